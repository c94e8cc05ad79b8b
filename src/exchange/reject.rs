//! Every refusal: its status, its code, its wording. One table; `docs/errors.md` is checked against it.

use std::error::Error;

use crate::{
    net::{BodyFailure, ClientError, Mistake},
    proto::{
        head::{Framing, Known, ResponseHead},
        http1::{HeadError, RequestError, ResponseError},
    },
    shard::buffers,
    upstream::Failure,
};

/// Defines the codes, so that a code, its status and its wording stand on one line.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $title:literal, $detail:literal;)*) => {
        /// What a refusal is called in the API, in logs and in metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Their names, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($code,)*];

            /// The name, as clients and operators see it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The status of the answer.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The title of the problem document: the same for every refusal with this code.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// The sentence for the client: what happened, and what would help. Never echoes what came in.
            pub const fn detail(self) -> &'static str {
                match self { $(Self::$name => $detail,)* }
            }
        }
    };
}

codes! {
    /// The request line, a field, the framing or the path is malformed or ambiguous.
    BadRequest = "bad_request", 400, "Bad request", "the request is malformed or ambiguous";
    /// The body is no JSON document.
    InvalidJson = "invalid_json", 400, "Invalid JSON", "the body is not a JSON document of the form that this path takes";
    /// No such user, or not this password; which of the two is not told.
    InvalidCredentials = "invalid_credentials", 401, "Invalid credentials", "the e-mail address or the password is wrong";
    /// The route asks for a token, and there is none.
    TokenMissing = "token_missing", 401, "Token missing", "this path asks for an access token: Authorization: Bearer <token>";
    /// The token is malformed, not ours, or not for us.
    TokenInvalid = "token_invalid", 401, "Token invalid", "the access token is not valid here; log in again";
    /// The token's time is up.
    TokenExpired = "token_expired", 401, "Token expired", "the access token has expired; refresh it";
    /// The token's session has ended.
    TokenRevoked = "token_revoked", 401, "Token revoked", "the session of the access token has ended; log in again";
    /// The refresh token is malformed, or its session has ended.
    RefreshInvalid = "refresh_invalid", 401, "Refresh token invalid", "the refresh token is not valid any more; log in again";
    /// The refresh token was used before: somebody else may have it, so its session ends.
    RefreshReused = "refresh_reused", 401, "Refresh token reused", "the refresh token was used before, so its session has ended; log in again";
    /// The caller may not do this.
    Forbidden = "forbidden", 403, "Forbidden", "the caller does not have the role or the permissions that this path asks for";
    /// No route matches.
    NotFound = "not_found", 404, "Not found", "nothing is served at this host and path";
    /// A route matches, but not with this method.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed", "this path does not support the method; see Allow";
    /// The request did not arrive in time.
    RequestTimeout = "request_timeout", 408, "Request timeout", "the request did not arrive in time; send it faster or in parts";
    /// The body is larger than the route allows.
    BodyTooLarge = "body_too_large", 413, "Body too large", "the request body is larger than this path accepts";
    /// The request target is too long.
    UriTooLong = "uri_too_long", 414, "URI too long", "the request target is longer than the gateway accepts";
    /// The body is of another type than the path takes.
    UnsupportedMediaType = "unsupported_media_type", 415, "Unsupported media type", "this path takes a body of type application/json";
    /// An expectation other than `100-continue`.
    ExpectationFailed = "expectation_failed", 417, "Expectation failed", "the only expectation supported is 100-continue";
    /// The connection was opened for another host, or the host that is asked for is none of ours.
    MisdirectedRequest = "misdirected_request", 421, "Misdirected request", "the connection was opened for another host; ask over one of its own";
    /// The document lacks a member, or one is out of bounds.
    ValidationFailed = "validation_failed", 422, "Validation failed", "a member of the document is missing or out of bounds";
    /// The path speaks another protocol than HTTP/1.1 without an upgrade.
    UpgradeRequired = "upgrade_required", 426, "Upgrade required", "this path is a WebSocket (RFC 6455): ask with Upgrade: websocket and Sec-WebSocket-Version: 13";
    /// A rate limit is used up.
    RateLimited = "rate_limited", 429, "Rate limited", "too many requests; try again after the time that Retry-After gives";
    /// The head is too large or has too many fields.
    HeaderTooLarge = "header_too_large", 431, "Header too large", "the request head has too many or too large fields";
    /// A transfer coding or a method that the gateway does not implement.
    NotImplemented = "not_implemented", 501, "Not implemented", "the request asks for something that the gateway does not implement";
    /// What the backend sent is no HTTP answer.
    UpstreamBadResponse = "upstream_bad_response", 502, "Bad response from upstream", "the service answered with something that is not valid HTTP";
    /// No connection to the backend, or it closed before it answered.
    UpstreamUnreachable = "upstream_unreachable", 502, "Upstream unreachable", "the service could not be reached, or closed before it answered";
    /// Every backend is ejected or down.
    NoHealthyUpstream = "no_healthy_upstream", 503, "No healthy upstream", "no instance of the service can be used; try again shortly";
    /// The upstream has as many requests under way as it may.
    CircuitOpen = "circuit_open", 503, "Circuit open", "the service has too many requests under way; try again shortly";
    /// The gateway has as many connections as it may, as much waits for the stores of accounts, or an answer would come too
    /// late.
    Overloaded = "overloaded", 503, "Overloaded", "the gateway has as much to do as it may; try again shortly";
    /// The gateway ends, and the time that requests under way had is up.
    Draining = "draining", 503, "Draining", "the gateway is going out of service; try again over a new connection";
    /// What the answer depends on (the user store, the session store, the log of revocations) is away.
    DependencyUnavailable = "dependency_unavailable", 503, "Dependency unavailable", "something that this path depends on is away; try again shortly";
    /// The backend did not answer in time.
    UpstreamTimeout = "upstream_timeout", 504, "Upstream timeout", "the service did not answer in time";
    /// An HTTP version other than 1.0 and 1.1 on a plain connection.
    VersionNotSupported = "http_version_not_supported", 505, "HTTP version not supported", "HTTP/1.1 and HTTP/1.0 are supported here";
    /// The client left before it was answered. No answer is sent: the status is for the log, as nginx has it.
    ClientClosed = "client_closed", 499, "Client closed", "the client closed its connection before it was answered";
}

/// How long a client should wait after a refusal that passes by itself, in seconds, where nothing better is known.
const RETRY_AFTER_S: u32 = 1;

impl Code {
    /// What `WWW-Authenticate` says (RFC 6750 §3): nothing of a token where none was given.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::TokenInvalid => Some(
                r#"Bearer realm="shardgate", error="invalid_token", error_description="the access token is not valid""#,
            ),
            Self::TokenExpired => Some(
                r#"Bearer realm="shardgate", error="invalid_token", error_description="the access token has expired""#,
            ),
            Self::TokenRevoked => {
                Some(r#"Bearer realm="shardgate", error="invalid_token", error_description="the session has ended""#)
            }
            Self::Forbidden => Some(r#"Bearer realm="shardgate", error="insufficient_scope""#),
            _ if self.status() == 401 => Some(r#"Bearer realm="shardgate""#),
            _ => None,
        }
    }
}

/// A refusal: what the client is told, and why, for the log.
#[derive(Debug)]
pub struct Reject {
    /// Its place in the table.
    pub code: Code,
    /// A more precise sentence than the table's, still without anything of the input.
    pub detail: Option<&'static str>,
    /// The methods that a path supports, for `Allow`.
    pub allow: Option<String>,
    /// After how many seconds it may be tried again, where that is known; for 429 and 503.
    pub retry_after_s: Option<u32>,
    /// What led to it. Never shown to the client.
    pub cause: Option<Box<dyn Error>>,
}

impl Reject {
    /// A refusal with the table's wording.
    pub const fn new(code: Code) -> Self {
        Self { code, detail: None, allow: None, retry_after_s: None, cause: None }
    }

    /// A refusal with a more precise sentence.
    pub const fn because(code: Code, detail: &'static str) -> Self {
        Self { code, detail: Some(detail), allow: None, retry_after_s: None, cause: None }
    }

    /// A refusal with the table's wording, and why for the log.
    pub fn caused(code: Code, cause: impl Into<Box<dyn Error>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(code) }
    }

    /// The sentence for the client.
    pub fn detail(&self) -> &'static str {
        self.detail.unwrap_or(self.code.detail())
    }

    /// The answer: a problem document (RFC 9457).
    pub fn to_response(&self, request_id: &[u8]) -> (ResponseHead, Vec<u8>) {
        let mut body = buffers::take();
        for part in [
            br#"{"type":"about:blank","title":""#.as_slice(),
            self.code.title().as_bytes(),
            br#"","status":"#,
            itoa::Buffer::new().format(self.code.status()).as_bytes(),
            br#","code":""#,
            self.code.name().as_bytes(),
            br#"","detail":""#,
            self.detail().as_bytes(),
            br#"","requestId":""#,
            // Its alphabet needs no escapes.
            request_id,
            br#""}"#,
        ] {
            body.extend_from_slice(part);
        }
        let mut head = ResponseHead::new(self.code.status(), buffers::take(), buffers::take_fields());
        head.framing = Framing::Length(body.len() as u64);
        head.push(Known::ContentType, b"Content-Type", b"application/problem+json");
        head.push(Known::Other, b"Cache-Control", b"no-store");
        if let Some(allow) = &self.allow {
            head.push(Known::Other, b"Allow", allow.as_bytes());
        }
        if self.code == Code::UpgradeRequired {
            // RFC 9110 §15.5.22, RFC 6455 §4.2.2.
            head.push(Known::Upgrade, b"Upgrade", b"websocket");
            head.push(Known::Other, b"Sec-WebSocket-Version", b"13");
        }
        if matches!(self.code.status(), 429 | 503) {
            let seconds = self.retry_after_s.unwrap_or(RETRY_AFTER_S);
            head.push(Known::RetryAfter, b"Retry-After", itoa::Buffer::new().format(seconds).as_bytes());
        }
        if let Some(challenge) = self.code.challenge() {
            head.push(Known::Other, b"WWW-Authenticate", challenge.as_bytes());
        }
        (head, body)
    }
}

impl From<Failure> for Reject {
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::NoBackend { .. } => Code::NoHealthyUpstream,
            Failure::Failing(_) | Failure::CircuitOpen | Failure::UploadsFull => Code::CircuitOpen,
            Failure::Connect(_) | Failure::Broken(_) => Code::UpstreamUnreachable,
            Failure::BadAnswer(_) => Code::UpstreamBadResponse,
            Failure::TimedOut | Failure::DeadlineMissed => Code::UpstreamTimeout,
            Failure::Shed(_) => Code::Overloaded,
            Failure::Request(BodyFailure::TimedOut) => Code::RequestTimeout,
            Failure::Request(BodyFailure::TooLarge) => Code::BodyTooLarge,
            // The trailer section has bounds as the head has.
            Failure::Request(BodyFailure::Malformed(error)) if error.status() == 431 => Code::HeaderTooLarge,
            Failure::Request(BodyFailure::Malformed(_)) => Code::BadRequest,
            Failure::Request(BodyFailure::ClientGone) | Failure::ClientGone => Code::ClientClosed,
            Failure::Ended => Code::TokenRevoked,
        };
        let detail = match &failure {
            Failure::DeadlineMissed => Some("the service did not answer within the time that the request has"),
            Failure::Shed(_) => Some("the answer would come too late; try again shortly"),
            Failure::Failing(_) => Some("the service fails; try again after the time that Retry-After gives"),
            Failure::UploadsFull => {
                Some("the service has too many requests under way whose bodies are on their way; try again shortly")
            }
            Failure::BadAnswer(ClientError::Head(ResponseError::Head(HeadError::TooLarge))) => {
                Some("the head of the service's answer is larger than the gateway accepts")
            }
            Failure::BadAnswer(ClientError::Head(ResponseError::Head(HeadError::TooManyFields))) => {
                Some("the head of the service's answer has more fields than the gateway accepts")
            }
            Failure::BadAnswer(ClientError::Interim) => {
                Some("the service sent more interim answers than the gateway accepts")
            }
            _ => None,
        };
        let retry_after_s = match &failure {
            Failure::Failing(after) => u32::try_from(after.as_millis().div_ceil(1000)).ok().map(|s| s.max(1)),
            _ => None,
        };
        Self { code, detail, allow: None, retry_after_s, cause: Some(Box::new(failure)) }
    }
}

impl From<Mistake> for Reject {
    fn from(mistake: Mistake) -> Self {
        match mistake {
            Mistake::TimedOut => {
                Self::caused(Code::RequestTimeout, "the head was not complete within http.header_timeout")
            }
            Mistake::Head(error) => Self::from(error),
        }
    }
}

impl From<RequestError> for Reject {
    fn from(error: RequestError) -> Self {
        let code = match error.status() {
            414 => Code::UriTooLong,
            417 => Code::ExpectationFailed,
            431 => Code::HeaderTooLarge,
            501 => Code::NotImplemented,
            505 => Code::VersionNotSupported,
            _ => Code::BadRequest,
        };
        // What the client is told says neither the key nor its value.
        let bound = match error {
            RequestError::Head(HeadError::TooLarge) => Some("the head is larger than http.head_bytes_max"),
            RequestError::Head(HeadError::TooManyFields) => Some("the head has more fields than http.fields_max"),
            RequestError::TargetTooLong => Some("the target is longer than http.target_bytes_max"),
            _ => None,
        };
        Self { cause: bound.map(Into::into), ..Self::because(code, error.sentence()) }
    }
}
