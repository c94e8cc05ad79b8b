//! What refusals and ends are called: one table of the codes of `error` frames, one of close codes.
//!
//! What is documented of them is made from these tables. Why something is refused is for those who refuse it.

use crate::exchange;

/// Defines the codes of `error` frames, so that a code, whether trying again helps, and its sentence stand on one line.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $retry:ident, $sentence:literal;)*) => {
        /// Why a message of a client was refused: what `payload.code` of an `error` frame says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as clients see it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The sentence for the client: what happened, and what would help. Never echoes what came in.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }

            /// Whether the same message may be taken later, without anybody changing it.
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }
        }
    };
}

codes! {
    /// The text is not a JSON object.
    InvalidJson = "invalid_json", false, "a message is one JSON object";
    /// A member is missing, there twice, or of the wrong form.
    InvalidMessage = "invalid_message", false, "a member of the message is missing or out of form";
    /// No such `type`.
    UnknownType = "unknown_type", false, "no message has this type";
    /// The type asks for an `id`.
    IdRequired = "id_required", false, "messages of this type have an id";
    /// The `id` is no text of at most 64 characters, or cannot become a header where it has to.
    InvalidId = "invalid_id", false, "an id is a text of 1 to 64 characters";
    /// The message names no room, or what no room is called.
    InvalidRoom = "invalid_room", false, "a room's name is 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'";
    /// `payload` lacks what the type asks for.
    InvalidPayload = "invalid_payload", false, "the payload does not have the form that this type asks for";
    /// Nothing but `auth` and `heartbeat` before the log-in.
    Unauthenticated = "unauthenticated", false, "log in first: send auth with an access token";
    /// The token of `auth` is malformed, not ours, or not for us.
    TokenInvalid = "token_invalid", false, "the access token is not valid here; log in again";
    /// The token of `auth` has expired.
    TokenExpired = "token_expired", false, "the access token has expired; refresh it";
    /// The session of the token of `auth` has ended.
    TokenRevoked = "token_revoked", false, "the session of the access token has ended; log in again";
    /// `auth` on a live socket with somebody else's token.
    OtherUser = "other_user", false, "the access token is another user's; open a connection of its own for it";
    /// No rule allows it.
    Forbidden = "forbidden", false, "no rule allows this user to do this in this room";
    /// The socket is in the room already.
    AlreadyJoined = "already_joined", false, "this connection has joined the room already";
    /// The socket is not in the room.
    NotJoined = "not_joined", false, "this connection has not joined the room";
    /// The socket is in as many rooms as it may, or its user was the first in too many that are not forgotten yet.
    TooManyRooms = "too_many_rooms", false, "this connection is in too many rooms, or its user opened too many; leave one";
    /// The socket, or whoever it counts for, has sent as much as it may.
    RateLimited = "rate_limited", true, "too many messages; try again after retryAfterMs";
    /// A bounded queue on the way is full.
    Overloaded = "overloaded", true, "too much is under way; try again shortly";
    /// What was asked gave no answer in time.
    Timeout = "timeout", true, "no answer came in time; try again with the same id";
    /// The instance goes out of service.
    Draining = "draining", true, "the gateway is going out of service; try again over a new connection";
    /// What the answer depends on (the bus between instances, the log of revocations) is away.
    DependencyUnavailable = "dependency_unavailable", true, "something that this depends on is away; try again shortly";
    /// The service took the message and refused it: it answered with a 4xx.
    UpstreamRefused = "upstream_refused", false, "the service refused the message";
    /// The service failed: it answered with a 5xx.
    UpstreamFailed = "upstream_failed", true, "the service failed; try again with the same id";
    /// What the service sent is no answer that can be passed on.
    UpstreamBadResponse = "upstream_bad_response", true, "the service answered with something that cannot be passed on";
    /// No connection to the service, or it closed before it answered.
    UpstreamUnreachable = "upstream_unreachable", true, "the service could not be reached, or closed before it answered";
    /// Every instance of the service is ejected.
    NoHealthyUpstream = "no_healthy_upstream", true, "no instance of the service can be used; try again shortly";
    /// The service has as much under way as it may.
    CircuitOpen = "circuit_open", true, "the service has too many requests under way; try again shortly";
    /// The service did not answer in time.
    UpstreamTimeout = "upstream_timeout", true, "the service did not answer in time; try again with the same id";
}

impl Code {
    /// What a service's answer with this status is on a socket; nothing where the service took the message.
    pub const fn of_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            429 => Some(Self::RateLimited),
            400..=499 => Some(Self::UpstreamRefused),
            500..=599 => Some(Self::UpstreamFailed),
            _ => Some(Self::UpstreamBadResponse),
        }
    }
}

/// What a refusal of the HTTP side is on a socket: the same name where there is one.
impl From<exchange::Code> for Code {
    fn from(code: exchange::Code) -> Self {
        use exchange::Code as Http;
        match code {
            Http::TokenMissing => Self::Unauthenticated,
            Http::TokenInvalid => Self::TokenInvalid,
            Http::TokenExpired => Self::TokenExpired,
            Http::TokenRevoked => Self::TokenRevoked,
            Http::Forbidden => Self::Forbidden,
            Http::InvalidJson => Self::InvalidJson,
            Http::RateLimited => Self::RateLimited,
            Http::UpstreamBadResponse => Self::UpstreamBadResponse,
            Http::UpstreamUnreachable => Self::UpstreamUnreachable,
            Http::NoHealthyUpstream => Self::NoHealthyUpstream,
            Http::CircuitOpen => Self::CircuitOpen,
            Http::Overloaded => Self::Overloaded,
            Http::Draining => Self::Draining,
            Http::DependencyUnavailable => Self::DependencyUnavailable,
            Http::UpstreamTimeout => Self::UpstreamTimeout,
            other if other.status() < 500 => Self::UpstreamRefused,
            _ => Self::UpstreamFailed,
        }
    }
}

/// Defines the close codes, so that a code, whether to come back, and its reason stand on one line.
macro_rules! closes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $back:ident, $reason:literal;)*) => {
        /// Why a socket was closed: code and reason of its close frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Close { $($(#[$doc])* $name = $code,)* }

        impl Close {
            /// Every one of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The status code (RFC 6455 §7.4).
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// What the close frame says beside it; the name in metrics too, with `_` for spaces.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// Whether the client should come back as it is.
            pub const fn is_to_reconnect(self) -> bool {
                match self { $(Self::$name => $back,)* }
            }
        }
    };
}

closes! {
    /// One side is done.
    Normal = 1000, false, "normal";
    /// The process ends at once, or the browser leaves the page.
    GoingAway = 1001, true, "going away";
    /// The frames break RFC 6455.
    ProtocolError = 1002, false, "protocol error";
    /// A binary message where none is taken.
    Unsupported = 1003, false, "unsupported";
    /// A text that is not UTF-8.
    InvalidText = 1007, false, "invalid text";
    /// A message longer than may be.
    TooBig = 1009, false, "too big";
    /// The instance restarts: come back as `reconnect` said.
    Restart = 1012, true, "restart";
    /// As much is connected or held as may be, or what the hub depends on is away: come back later.
    TryLater = 1013, true, "try later";
    /// The client reads more slowly than is sent to it.
    SlowConsumer = 4000, true, "slow consumer";
    /// Nothing came from the client for too long, not even a pong.
    NoPong = 4001, true, "no pong";
    /// No token in time, or one that is not valid.
    Unauthenticated = 4100, false, "unauthenticated";
    /// The token has expired.
    TokenExpired = 4101, false, "token expired";
    /// The session has ended, or somebody threw the user out.
    Revoked = 4102, false, "revoked";
    /// Too many mistakes, or a message that was begun and not ended in time.
    PolicyViolation = 4103, false, "policy violation";
    /// The user, the address or the instance has as many sockets as it may.
    TooManyConnections = 4104, false, "too many connections";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_sides_that_are_called_alike_are_one() {
        for &code in exchange::Code::ALL {
            let same = Code::ALL.iter().find(|same| same.name() == code.name());
            assert!(same.is_none_or(|&same| same == Code::from(code)), "{code:?}");
        }
    }

    #[test]
    fn only_success_is_no_refusal() {
        for (status, code) in [
            (200, None),
            (202, None),
            (299, None),
            (101, Some(Code::UpstreamBadResponse)),
            (304, Some(Code::UpstreamBadResponse)),
            (400, Some(Code::UpstreamRefused)),
            (404, Some(Code::UpstreamRefused)),
            (429, Some(Code::RateLimited)),
            (500, Some(Code::UpstreamFailed)),
            (503, Some(Code::UpstreamFailed)),
            (999, Some(Code::UpstreamBadResponse)),
        ] {
            assert_eq!(Code::of_status(status), code, "{status}");
        }
    }

    #[test]
    fn names_are_unique_and_sentences_plain() {
        let mut names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(crate::telemetry::escape::is_plain(code.sentence().as_bytes()), "{code:?}");
            assert!(crate::telemetry::escape::is_plain(code.name().as_bytes()), "{code:?}");
        }
    }

    #[test]
    fn ranges_of_close_codes_tell_whether_to_come_back() {
        for close in Close::ALL {
            assert!(close.reason().len() <= 123, "fits a control frame (RFC 6455 §5.5): {close:?}");
            if close.code() >= 4000 {
                assert_eq!(close.is_to_reconnect(), (4000..4100).contains(&close.code()), "{close:?}");
            }
        }
    }
}
