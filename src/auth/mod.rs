//! Who a token speaks for: reading and checking access tokens, the keys that they are checked with, signing our own, and
//! what has been revoked. Sessions and accounts are for the floors above; answering a request is for `gateway`.
//!
//! Everything here is pure but for the fetching of key sets: time is an argument.

mod cache;
mod check;
mod fetch;
mod fuzz;
mod issue;
mod json;
mod jwk;
mod jwt;
mod keychain;
mod keys;
mod own;
mod provider;
pub mod rbac;
pub mod revocation;
mod schedule;
#[cfg(test)]
mod tests;

pub use check::{CheckCounts, Checker};
pub use fetch::https_connector;
pub use fuzz::fuzz_one;
pub use issue::{Grant, IssueError, Issued, Issuer};
pub use jwk::{JwkSet, SET_BYTES_MAX, SetFault};
pub use keychain::{FetchCounts, Keychain, KeychainError, NewKeys};
pub use keys::KeySet;
pub use own::{KeyError, Made, OwnKeys};
pub use provider::install;
pub use rbac::CallerRoles;
pub use revocation::{Revocation, Revocations};

use std::fmt;

/// What a token that was checked says of its bearer. Shared on a shard as `Rc<Claims>`; it never holds the token.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// The user: 1 to 255 printable ASCII characters, fit for a header.
    pub sub: Box<str>,
    /// The user's e-mail address.
    pub email: Option<Box<str>>,
    /// The roles: one in our own tokens, all that it may give in another issuer's.
    pub roles: CallerRoles,
    /// What the token allows by name.
    pub permissions: Box<[Box<str>]>,
    /// The session, printable ASCII. Tokens of other issuers may have none.
    pub sid: Option<Box<str>>,
    /// The token's own id.
    pub jti: Option<Box<str>>,
    /// Who issued it, exactly as the configuration has it.
    pub iss: Box<str>,
    /// Whom it is for.
    pub aud: Box<[Box<str>]>,
    /// When it was issued, in Unix seconds.
    pub iat: Option<u64>,
    /// When it ends, in Unix seconds; the leeway comes on top.
    pub exp: u64,
    /// When the session began (`auth_time`), in Unix milliseconds.
    pub session_began_ms: Option<u64>,
    /// Whether this gateway's own keys signed it or another issuer's.
    pub origin: Origin,
}

impl Claims {
    /// A user of our own of whom nothing else is said, and whose token does not expire: for tests and benches.
    pub fn plain(sub: &str) -> Self {
        Self {
            sub: sub.into(),
            email: None,
            roles: CallerRoles::default(),
            permissions: Box::default(),
            sid: None,
            jti: None,
            iss: "shardgate".into(),
            aud: Box::default(),
            iat: None,
            exp: u64::MAX,
            session_began_ms: None,
            origin: Origin::Own,
        }
    }
}

/// Whose keys signed a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The gateway's own (`[[auth.keys]]`).
    Own,
    /// Another issuer's (`[[auth.issuers]]`).
    Foreign,
}

/// Why a token is refused, sorted by what its bearer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is none of ours or not sound: `401 token_invalid`. The flaw is for logs, never for the client.
    Invalid(Flaw),
    /// It was good once: `401 token_expired`.
    Expired,
    /// It is good, but its session or its user's sessions were ended: `401 token_revoked`.
    Revoked,
    /// Its issuer's keys could not be fetched so far, which is no fault of the bearer: `503 dependency_unavailable`.
    KeysAway,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(flaw) => write!(f, "the token is invalid: {flaw}"),
            Self::Expired => f.write_str("the token has expired"),
            Self::Revoked => f.write_str("the token was revoked"),
            Self::KeysAway => f.write_str("the keys of the token's issuer have not been fetched yet"),
        }
    }
}

impl std::error::Error for TokenError {}

impl From<Flaw> for TokenError {
    fn from(flaw: Flaw) -> Self {
        Self::Invalid(flaw)
    }
}

/// The longest `kid`, in tokens and in key sets.
const KID_BYTES_MAX: usize = 255;

/// A claim of a token, under the name that our own tokens have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the claim of that name")]
pub enum Claim {
    Sub,
    Email,
    Role,
    Permissions,
    Sid,
    Jti,
    Iss,
    Aud,
    Iat,
    Nbf,
    Exp,
    AuthTime,
}

impl Claim {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sub => "sub",
            Self::Email => "email",
            Self::Role => "role",
            Self::Permissions => "permissions",
            Self::Sid => "sid",
            Self::Jti => "jti",
            Self::Iss => "iss",
            Self::Aud => "aud",
            Self::Iat => "iat",
            Self::Nbf => "nbf",
            Self::Exp => "exp",
            Self::AuthTime => "auth_time",
        }
    }
}

macro_rules! flaws {
    (
        $($(#[$doc:meta])* $name:ident = $text:literal;)*
        [$($(#[$of_doc:meta])* $of:ident(Claim) = $of_text:literal;)*]
    ) => {
        /// What is wrong with a token that is invalid; one for each thing that its maker can do wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Flaw {
            $($(#[$doc])* $name,)*
            $($(#[$of_doc])* $of(Claim),)*
        }

        impl fmt::Display for Flaw {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    $(Self::$of(claim) => write!(f, concat!($of_text, ": {}"), claim.name()),)*
                }
            }
        }
    };
}

flaws! {
    /// Longer than any token that we would take.
    TooLong = "it is too long";
    /// Not three parts with dots between them (RFC 7515 §3.1); five would be an encrypted one.
    Parts = "it does not have three parts";
    /// Padding, stray bits, or bytes that are not base64url (RFC 7515 §2, RFC 4648 §3.5).
    Base64 = "a part is not canonical base64url";
    /// The header is no JSON object.
    HeaderJson = "its header is no JSON object";
    /// The claims are no JSON object.
    ClaimsJson = "its claims are no JSON object";
    /// A member stands twice in one object (RFC 7515 §4, RFC 7519 §4).
    Duplicate = "a member stands twice in an object";
    /// Objects or lists in one another deeper than any token has them, or too many members.
    Depth = "its JSON is too deep or too large";
    /// `alg` is missing or no text.
    AlgorithmMissing = "its header names no algorithm";
    /// `none` in any case (RFC 8725 §3.2).
    AlgorithmNone = "its algorithm is none";
    /// Not the algorithm that is fixed for its key (RFC 8725 §3.1).
    Algorithm = "its algorithm is not its key's";
    /// A key of its own or where to find one: `jwk`, `jku`, `x5u`, `x5c` (RFC 8725 §3.10).
    EmbeddedKey = "its header brings or names a key";
    /// `crit` names extensions, and we know none (RFC 7515 §4.1.11).
    Critical = "its header has crit";
    /// Parameters of encryption, compression, nesting or unencoded payloads.
    HeaderParameter = "its header has a parameter of another kind of token";
    /// `typ` is not one that its issuer uses (RFC 8725 §3.11).
    Type = "its typ is not accepted";
    /// `kid` is no text or too long.
    KeyId = "its kid is no text of a sensible length";
    /// Nobody that we know issued it.
    Issuer = "its issuer is not known";
    /// Its issuer has no such key, or it names none and there are several.
    UnknownKey = "its issuer has no such key";
    /// The signature does not fit.
    Signature = "its signature does not fit";
    /// A list of roles in a token of our own, which has one; or more of another issuer's than a field should name.
    Roles = "it has more roles than its issuer's tokens may have";
    /// `nbf` has not come yet.
    NotYet = "it is not valid yet";
    /// `iat` has not come yet.
    FromTheFuture = "it was issued in the future";
    /// It would live longer than its issuer's tokens may.
    Lifetime = "it lives too long";
    /// `aud` does not name us (RFC 8725 §3.9).
    Audience = "its aud names somebody else";
    [
    /// A claim that must be there is missing.
    Missing(Claim) = "a claim is missing";
    /// A claim of the wrong type, or a text that is empty, too long or has control characters.
    ClaimType(Claim) = "a claim is not of its type";
    /// A time that is negative, not finite or past the year 9999.
    Time(Claim) = "a time is out of range";
    ]
}
