//! The fields that the gateway cares for: one table of their names, and which field a name is.

/// Makes the enum and the lookup of rows that say for each field its names, each with its length, its first letter and how
/// it is compared ([`is`] or [`reads_as`]). A field without names is told in another way.
macro_rules! fields {
    ($($(#[$about:meta])* $field:ident: $($length:literal $first:literal $how:ident $name:literal),*;)*) => {
        /// The fields that the gateway itself reads, sets or drops, known once by name when the head is parsed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each is the field of that name")]
        pub enum Known {
            $($(#[$about])* $field,)*
        }

        const _: () = {
            $($(assert!($name.len() == $length && $name[0] == $first, "a row has its name's length and letter");)*)*
        };

        /// One jump by the length and one by the first letter, whatever its case; few names have both.
        fn by_name(name: &[u8]) -> Known {
            match (name.len(), name.first().map_or(0, |letter| letter | 0x20)) {
                $($(($length, $first) if $how(name, $name) => Known::$field,)*)*
                (13.., b'a' | b'x') => by_family(name),
                _ => Known::Other,
            }
        }

        #[cfg(test)]
        const NAMES: &[(&[u8], Known)] = &[$($(($name, Known::$field),)*)*];
    };
}

fields! {
    Other: ;
    Host: 4 b'h' is b"host";
    ContentLength: 14 b'c' is b"content-length";
    TransferEncoding: 17 b't' is b"transfer-encoding";
    Connection: 10 b'c' is b"connection";
    KeepAlive: 10 b'k' is b"keep-alive";
    ProxyConnection: 16 b'p' is b"proxy-connection";
    ProxyAuthenticate: 18 b'p' is b"proxy-authenticate";
    ProxyAuthorization: 19 b'p' is b"proxy-authorization";
    Te: 2 b't' is b"te";
    Trailer: 7 b't' is b"trailer";
    Upgrade: 7 b'u' is b"upgrade";
    Expect: 6 b'e' is b"expect";
    Authorization: 13 b'a' is b"authorization";
    Date: 4 b'd' is b"date";
    Via: 3 b'v' is b"via";
    Forwarded: 9 b'f' is b"forwarded";
    XForwardedFor: 15 b'x' reads_as b"x-forwarded-for";
    XForwardedProto: 17 b'x' reads_as b"x-forwarded-proto";
    XForwardedHost: 16 b'x' reads_as b"x-forwarded-host";
    /// `X-Forwarded-Port`, `X-Real-IP` and whatever else proxies and networks tell a service about the client or the
    /// original target: only a trusted peer may claim it. Also any other `X-Forwarded-*`.
    XForwardedOther:
        9 b'x' reads_as b"x-real-ip",
        11 b'x' reads_as b"x-forwarded",
        11 b'x' reads_as b"x-client-ip",
        13 b'x' reads_as b"x-rewrite-url",
        14 b't' reads_as b"true-client-ip",
        14 b'x' reads_as b"x-original-url",
        14 b'x' reads_as b"x-original-uri",
        15 b'x' reads_as b"x-original-host",
        16 b'c' reads_as b"cf-connecting-ip",
        16 b'f' reads_as b"fastly-client-ip",
        19 b'x' reads_as b"x-cluster-client-ip",
        24 b'x' reads_as b"x-original-forwarded-for";
    XRequestId: 12 b'x' reads_as b"x-request-id";
    /// How long the client waits for its answer.
    XRequestTimeout: 20 b'x' reads_as b"x-request-timeout-ms";
    Traceparent: 11 b't' is b"traceparent";
    Tracestate: 10 b't' is b"tracestate";
    /// Each of them also written with `_`.
    Identity: 9 b'x' reads_as b"x-user-id", 11 b'x' reads_as b"x-user-role", 12 b'x' reads_as b"x-session-id";
    Origin: 6 b'o' is b"origin";
    /// Any `Access-Control-*`.
    AccessControl: ;
    Vary: 4 b'v' is b"vary";
    RetryAfter: 11 b'r' is b"retry-after";
    SetCookie: 10 b's' is b"set-cookie";
    Location: 8 b'l' is b"location";
    ContentLocation: 16 b'c' is b"content-location";
    ContentType: 12 b'c' is b"content-type";
    UserAgent: 10 b'u' is b"user-agent";
    WebSocketKey: 17 b's' is b"sec-websocket-key";
    WebSocketVersion: 21 b's' is b"sec-websocket-version";
    WebSocketProtocol: 22 b's' is b"sec-websocket-protocol";
    WebSocketExtensions: 24 b's' is b"sec-websocket-extensions";
    /// Reads like a claim about the hop before, or like `X-Request-Id` or `X-Request-Timeout-Ms`, to servers that take another sign for `-`. Nobody
    /// honest sends it, not even a trusted peer.
    LookAlike: ;
}

/// Which field of those that the gateway cares for has this name, in any case.
///
/// Names that say who the caller is, or where a request came from, also count when `_` or any other sign stands for
/// their `-`: many servers make both the same variable (`HTTP_X_USER_ID`), so neither may slip through.
#[inline]
pub fn known(name: &[u8]) -> Known {
    match by_name(name) {
        Known::XForwardedFor
        | Known::XForwardedHost
        | Known::XForwardedProto
        | Known::XForwardedOther
        | Known::XRequestId
        | Known::XRequestTimeout
            if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') =>
        {
            Known::LookAlike
        }
        known => known,
    }
}

/// Names of which only the beginning is known.
fn by_family(name: &[u8]) -> Known {
    if begins(name, b"access-control-") {
        Known::AccessControl
    } else if begins(name, b"x-forwarded-") {
        Known::XForwardedOther
    } else {
        Known::Other
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

/// Whether more follows this beginning.
#[inline]
fn begins<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    name.len() > N && name.first_chunk::<N>().is_some_and(|start| reads_as(start, lower))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{Known, NAMES, known};

    /// A name is found in any case, and no other one in its place, but with another sign for `-` where that counts.
    #[test]
    fn every_name_of_the_table_is_its_fields_and_no_other_one_is() {
        let looks_alike = |byte: u8| !byte.is_ascii_alphanumeric();
        for (name, field) in NAMES {
            assert_eq!(known(name), *field);
            assert_eq!(known(&name.to_ascii_uppercase()), *field);
            let named = |other: &[u8]| known(other) == *field || known(other) == Known::LookAlike;
            let is_loose = named(&name.iter().map(|byte| if *byte == b'-' { b'_' } else { *byte }).collect::<Vec<_>>());
            for (index, letter) in name.iter().enumerate() {
                for byte in (0x20_u8..0x7f).filter(|byte| !byte.eq_ignore_ascii_case(letter)) {
                    let changed = |(at, kept): (usize, &u8)| if at == index { byte } else { *kept };
                    let other: Vec<_> = name.iter().enumerate().map(changed).collect();
                    if NAMES.iter().any(|(name, _)| name.eq_ignore_ascii_case(&other))
                        || other.starts_with(b"x-forwarded-")
                    {
                        continue;
                    }
                    let expected = *letter == b'-' && is_loose && looks_alike(byte);
                    assert_eq!(named(&other), expected, "{}", other.escape_ascii());
                }
            }
            let without_first = name.get(1..).unwrap_or_default();
            let without_last = name.split_last().map_or(&[][..], |(_, rest)| rest);
            for other in [without_first, without_last, &[name, &b"s"[..]].concat()] {
                assert!(!named(other) || other.starts_with(b"x-forwarded-"), "{}", other.escape_ascii());
            }
        }
    }

    #[test]
    fn names_are_told_apart_in_any_case_and_look_alikes_with_them() {
        let names = "Host hOST Hosts TE Via Content-Length content-length Content_Length Transfer-Encoding \
                     Connection Keep-Alive Proxy-Connection Proxy-Authenticate Proxy-Authorization Trailer \
                     Upgrade Expect Authorization Date Forwarded X-Forwarded-For X_Forwarded_For \
                     x_forwarded-for X-Forwarded-Proto X_FORWARDED_HOST X-Forwarded-Port \
                     X_Forwarded_Client_Cert X-Forwarded X-Forwarded- X_Real_IP X-Request-ID X_Request_Id X-Request-Timeout-Ms X_Request_Timeout_Ms \
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
            X-Request-Timeout-Ms: XRequestTimeout
            X_Request_Timeout_Ms: LookAlike
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
