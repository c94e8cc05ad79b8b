//! The name of a field, told apart once, by its length first.

use crate::proto::head::Known;

/// Which field of those that the gateway cares for has this name, in any case.
///
/// Names that say who the caller is, or where a request came from, also count when `_` or any other sign stands for
/// their `-`: many servers make both the same variable (`HTTP_X_USER_ID`), so neither may slip through.
#[inline]
pub fn known(name: &[u8]) -> Known {
    match by_length(name) {
        Known::XForwardedFor
        | Known::XForwardedHost
        | Known::XForwardedProto
        | Known::XForwardedOther
        | Known::XRequestId
            if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') =>
        {
            Known::LookAlike
        }
        known => known,
    }
}

fn by_length(name: &[u8]) -> Known {
    match name.len() {
        2 if is(name, b"te") => Known::Te,
        3 if is(name, b"via") => Known::Via,
        4 => of_four(name),
        6 if is(name, b"expect") => Known::Expect,
        6 if is(name, b"origin") => Known::Origin,
        7 if is(name, b"upgrade") => Known::Upgrade,
        7 if is(name, b"trailer") => Known::Trailer,
        8 if is(name, b"location") => Known::Location,
        9 => of_nine(name),
        10 => of_ten(name),
        11 => of_eleven(name),
        12 => of_twelve(name),
        13 if is(name, b"authorization") => Known::Authorization,
        14 if is(name, b"content-length") => Known::ContentLength,
        16 if is(name, b"proxy-connection") => Known::ProxyConnection,
        16 if is(name, b"content-location") => Known::ContentLocation,
        17 if is(name, b"transfer-encoding") => Known::TransferEncoding,
        18 if is(name, b"proxy-authenticate") => Known::ProxyAuthenticate,
        19 if is(name, b"proxy-authorization") => Known::ProxyAuthorization,
        13.. => of_long(name),
        _ => Known::Other,
    }
}

/// Whether a server that takes `_` for `-` would read this name as one that frames the body. `known` says `Other`.
pub(super) fn looks_like_framing(name: &[u8]) -> bool {
    match name.len() {
        14 => reads_as(name, b"content-length"),
        17 => reads_as(name, b"transfer-encoding"),
        _ => false,
    }
}

fn of_four(name: &[u8]) -> Known {
    if is(name, b"host") {
        Known::Host
    } else if is(name, b"date") {
        Known::Date
    } else if is(name, b"vary") {
        Known::Vary
    } else {
        Known::Other
    }
}

fn of_nine(name: &[u8]) -> Known {
    if reads_as(name, b"x-user-id") {
        Known::Identity
    } else if reads_as(name, b"x-real-ip") {
        Known::XForwardedOther
    } else if is(name, b"forwarded") {
        Known::Forwarded
    } else {
        Known::Other
    }
}

fn of_ten(name: &[u8]) -> Known {
    if is(name, b"connection") {
        Known::Connection
    } else if is(name, b"keep-alive") {
        Known::KeepAlive
    } else if is(name, b"set-cookie") {
        Known::SetCookie
    } else if is(name, b"tracestate") {
        Known::Tracestate
    } else if is(name, b"user-agent") {
        Known::UserAgent
    } else {
        Known::Other
    }
}

fn of_eleven(name: &[u8]) -> Known {
    if reads_as(name, b"x-user-role") {
        Known::Identity
    } else if reads_as(name, b"x-forwarded") || reads_as(name, b"x-client-ip") {
        Known::XForwardedOther
    } else if is(name, b"traceparent") {
        Known::Traceparent
    } else if is(name, b"retry-after") {
        Known::RetryAfter
    } else {
        Known::Other
    }
}

fn of_twelve(name: &[u8]) -> Known {
    if reads_as(name, b"x-session-id") {
        Known::Identity
    } else if reads_as(name, b"x-request-id") {
        Known::XRequestId
    } else if is(name, b"content-type") {
        Known::ContentType
    } else {
        Known::Other
    }
}

/// Families of names, and rarer claims about the hop before.
fn of_long(name: &[u8]) -> Known {
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'a') if begins(name, b"access-control-") => Known::AccessControl,
        Some(b'x') if begins(name, b"x-forwarded-") => match name.get(12..).unwrap_or_default() {
            rest if is(rest, b"for") => Known::XForwardedFor,
            rest if is(rest, b"host") => Known::XForwardedHost,
            rest if is(rest, b"proto") => Known::XForwardedProto,
            _ => Known::XForwardedOther,
        },
        Some(b'c' | b'f' | b't' | b'x') if is_claim(name) => Known::XForwardedOther,
        _ => Known::Other,
    }
}

/// What other proxies and networks tell a service about the client or the original target.
fn is_claim(name: &[u8]) -> bool {
    reads_as(name, b"true-client-ip")
        || reads_as(name, b"x-original-url")
        || reads_as(name, b"x-rewrite-url")
        || reads_as(name, b"x-original-uri")
        || reads_as(name, b"x-original-host")
        || reads_as(name, b"cf-connecting-ip")
        || reads_as(name, b"fastly-client-ip")
        || reads_as(name, b"x-cluster-client-ip")
        || reads_as(name, b"x-original-forwarded-for")
}

/// Compares with a lower-case name in any case, all bytes at once and without a branch. Of the signs that may stand in a
/// name only letters have a partner 0x20 away.
#[inline]
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Some(name) = name.as_array::<N>() else { return false };
    name.iter().zip(lower).fold(0, |apart, (byte, wanted)| apart | ((byte | 0x20) ^ wanted)) == 0
}

/// As [`is`], and any sign that is no letter or digit may stand for `-`.
#[inline]
fn reads_as<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Some(name) = name.as_array::<N>() else { return false };
    let apart = |byte: u8, wanted: u8| if wanted == b'-' { 0 } else { (byte | 0x20) ^ wanted };
    name.iter().zip(lower).fold(0, |sum, (byte, wanted)| sum | apart(*byte, *wanted)) == 0
        && name.iter().zip(lower).all(|(byte, wanted)| *wanted != b'-' || !byte.is_ascii_alphanumeric())
}

#[inline]
fn begins<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    name.first_chunk::<N>().is_some_and(|start| reads_as(start, lower))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::known;

    #[test]
    fn names_are_told_apart_in_any_case_and_look_alikes_with_them() {
        let names = "Host hOST Hosts TE Via Content-Length content-length Content_Length Transfer-Encoding \
                     Connection Keep-Alive Proxy-Connection Proxy-Authenticate Proxy-Authorization Trailer \
                     Upgrade Expect Authorization Date Forwarded X-Forwarded-For X_Forwarded_For \
                     x_forwarded-for X-Forwarded-Proto X_FORWARDED_HOST X-Forwarded-Port \
                     X_Forwarded_Client_Cert X-Forwarded X-Forwarded- X_Real_IP X-Request-ID X_Request_Id \
                     traceparent Tracestate X-User-Id X_User_Id x-user_role X.Session.Id XxUserxId X-User-Ids \
                     Origin Access-Control-Allow-Origin access_control_allow_origin Access-Control Vary \
                     Retry-After Set-Cookie Location Content-Location Content-Type True-Client-IP X-Original-URL X X-Custom";
        let told: Vec<_> = names.split(' ').map(|name| format!("{name}: {:?}", known(name.as_bytes()))).collect();
        expect![["
            Host: Host
            hOST: Host
            Hosts: Other
            TE: Te
            Via: Via
            Content-Length: ContentLength
            content-length: ContentLength
            Content_Length: Other
            Transfer-Encoding: TransferEncoding
            Connection: Connection
            Keep-Alive: KeepAlive
            Proxy-Connection: ProxyConnection
            Proxy-Authenticate: ProxyAuthenticate
            Proxy-Authorization: ProxyAuthorization
            Trailer: Trailer
            Upgrade: Upgrade
            Expect: Expect
            Authorization: Authorization
            Date: Date
            Forwarded: Forwarded
            X-Forwarded-For: XForwardedFor
            X_Forwarded_For: LookAlike
            x_forwarded-for: LookAlike
            X-Forwarded-Proto: XForwardedProto
            X_FORWARDED_HOST: LookAlike
            X-Forwarded-Port: XForwardedOther
            X_Forwarded_Client_Cert: LookAlike
            X-Forwarded: XForwardedOther
            X-Forwarded-: Other
            X_Real_IP: LookAlike
            X-Request-ID: XRequestId
            X_Request_Id: LookAlike
            traceparent: Traceparent
            Tracestate: Tracestate
            X-User-Id: Identity
            X_User_Id: Identity
            x-user_role: Identity
            X.Session.Id: Identity
            XxUserxId: Other
            X-User-Ids: Other
            Origin: Origin
            Access-Control-Allow-Origin: AccessControl
            access_control_allow_origin: AccessControl
            Access-Control: Other
            Vary: Vary
            Retry-After: RetryAfter
            Set-Cookie: SetCookie
            Location: Location
            Content-Location: ContentLocation
            Content-Type: ContentType
            True-Client-IP: XForwardedOther
            X-Original-URL: XForwardedOther
            X: Other
            X-Custom: Other"]]
        .assert_eq(&told.join("\n"));
    }
}
