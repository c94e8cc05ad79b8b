//! Signing access tokens of our own. Who gets one, and for how long a session lasts, is for `accounts` and `sessions`.

use super::own::OwnKeys;
use super::provider::Signer;
use super::{CallerRoles, Claims, Origin, jwt};
use crate::config::{Auth, is_role};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Signs access tokens with the key that the configuration says. One on the bridge; a reload gives it a new one.
#[derive(Clone, Debug)]
pub struct Issuer {
    signer: Arc<Signer>,
    /// The encoded header and its dot: the same for all tokens.
    header: String,
    iss: Box<str>,
    audience: Box<str>,
    lifetime: Duration,
    token_bytes_max: usize,
}

/// Whom a token is for, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// The user's id.
    pub sub: &'a str,
    /// The user's e-mail address.
    pub email: &'a str,
    /// The user's role.
    pub role: &'a str,
    /// What the role permits.
    pub permissions: &'a [String],
    /// The session.
    pub sid: &'a str,
    /// When the session began, in Unix milliseconds.
    pub session_began_ms: u64,
}

/// A signed token and what it says.
pub struct Issued {
    /// The token; wiped when it goes.
    pub token: Zeroizing<String>,
    /// What it says: `JWTPayload`.
    pub claims: Claims,
    /// How long it lives.
    pub expires_in: Duration,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// Why a token is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IssueError {
    /// What it would say is nothing that a check would take: an id that fits no header, say.
    Grant,
    /// It would be longer than the gateway takes tokens: too many permissions.
    TooLong,
    /// The system has no randomness.
    Random,
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grant => "the token would say what no check would take",
            Self::TooLong => "the token would be longer than auth.token_bytes_max",
            Self::Random => "the system has no random bytes",
        })
    }
}

impl std::error::Error for IssueError {}

#[derive(Serialize)]
struct Payload<'a> {
    sub: &'a str,
    email: &'a str,
    role: &'a str,
    permissions: &'a [String],
    sid: &'a str,
    jti: &'a str,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    auth_time: serde_json::Number,
}

impl Issuer {
    /// Signs with the key of these that signs; `None` when all only verify.
    pub fn new(auth: &Auth, own: &OwnKeys) -> Option<Self> {
        super::provider::install();
        let key = own.signing()?;
        let header = serde_json::json!({ "alg": key.algorithm.name(), "kid": key.kid, "typ": "JWT" }).to_string();
        Some(Self {
            signer: Arc::clone(key.signer.as_ref()?),
            header: URL_SAFE_NO_PAD.encode(header) + ".",
            iss: auth.issuer.as_str().into(),
            audience: auth.audience.as_str().into(),
            lifetime: auth.access_lifetime,
            token_bytes_max: auth.token_bytes_max,
        })
    }

    /// Whether such a token can be signed, as far as that can be told without signing it: for whoever changes something
    /// before there is all that the token says.
    pub fn check(&self, grant: &Grant<'_>, now: Duration) -> Result<(), IssueError> {
        let (token, _) = self.unsigned(grant, now)?;
        if token.len() > self.token_bytes_max { Err(IssueError::TooLong) } else { Ok(()) }
    }

    /// Signs a token that lives from now on. `now` is Unix time.
    pub fn issue(&self, grant: &Grant<'_>, now: Duration) -> Result<Issued, IssueError> {
        let (mut token, claims) = self.unsigned(grant, now)?;
        let signature = self.signer.signature(token.as_bytes()).map_err(|_| IssueError::Random)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > self.token_bytes_max {
            return Err(IssueError::TooLong);
        }
        Ok(Issued { token, claims, expires_in: self.whole_lifetime() })
    }

    /// As `exp` counts.
    fn whole_lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime.as_secs().max(1))
    }

    /// Header and payload, and what they say.
    fn unsigned(&self, grant: &Grant<'_>, now: Duration) -> Result<(Zeroizing<String>, Claims), IssueError> {
        let mut jti = [0; 16];
        SystemRandom::new().fill(&mut jti).map_err(|_| IssueError::Random)?;
        let jti = URL_SAFE_NO_PAD.encode(jti);
        let iat = now.as_secs();
        let claims = Claims {
            sub: grant.sub.into(),
            email: (!grant.email.is_empty()).then(|| grant.email.into()),
            roles: CallerRoles::new(&[grant.role]),
            permissions: grant.permissions.iter().map(|permission| permission.as_str().into()).collect(),
            sid: Some(grant.sid.into()),
            jti: Some(jti.as_str().into()),
            iss: self.iss.clone(),
            aud: [self.audience.clone()].into(),
            iat: Some(iat),
            exp: iat + self.whole_lifetime().as_secs(),
            session_began_ms: Some(grant.session_began_ms),
            origin: Origin::Own,
        };
        if jwt::unsound(&claims).is_some() || !is_role(grant.role) {
            return Err(IssueError::Grant);
        }
        let payload = Payload {
            sub: grant.sub,
            email: grant.email,
            role: grant.role,
            permissions: grant.permissions,
            sid: grant.sid,
            jti: &jti,
            iss: &self.iss,
            aud: &self.audience,
            iat,
            exp: claims.exp,
            auth_time: seconds(grant.session_began_ms),
        };
        let payload = Zeroizing::new(serde_json::to_vec(&payload).map_err(|_| IssueError::Grant)?);
        // Room for all of it, the largest signature included: a text that grows leaves copies behind.
        let mut token = Zeroizing::new(String::with_capacity(self.header.len() + payload.len() * 4 / 3 + 1400));
        token.push_str(&self.header);
        URL_SAFE_NO_PAD.encode_string(&*payload, &mut token);
        Ok((token, claims))
    }
}

/// Seconds with milliseconds behind the point, if there are any.
fn seconds(millis: u64) -> serde_json::Number {
    if millis.is_multiple_of(1000) {
        return (millis / 1000).into();
    }
    #[expect(clippy::cast_precision_loss, reason = "2^53 milliseconds are 285,000 years")]
    let seconds = millis as f64 / 1000.0;
    serde_json::Number::from_f64(seconds).unwrap_or_else(|| (millis / 1000).into())
}
