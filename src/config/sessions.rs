//! Sessions, and how the log of revocations is followed. Keeping them is for `sessions`.

use super::raw::Node;
use super::read::{Fields, FromText, Report, one_of};
use super::redis::Redis;
use super::{Config, SECRET_BYTES_MIN, Secret, units};
use serde::Serialize;
use std::time::Duration;

/// Sessions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sessions {
    /// Where they and the log of revocations are kept. None: see [`Config::session_store`]. Restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<SessionStore>,
    /// How long a session lasts, however often it is renewed. Default 30 d. Restart.
    #[serde(serialize_with = "units::duration")]
    pub lifetime: Duration,
    /// For so long a spent refresh token is answered with its successor. Default 10 s. Restart.
    #[serde(serialize_with = "units::duration")]
    pub refresh_grace: Duration,
    /// Sessions of one user. Default 50. Restart.
    pub per_user_max: usize,
    /// What refresh tokens are signed with; 32 bytes or more. None: one is made and kept in the data directory; never so
    /// where they are kept in Redis. Restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// The former secret, whose tokens stay good. Restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_secret: Option<Secret>,
}

/// Where sessions and revocations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionStore {
    /// In the data directory: for one instance.
    Embedded,
    /// In Redis: for all instances that share it.
    Redis,
}

impl FromText for SessionStore {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "redis" => Ok(Self::Redis),
            _ => Err(one_of(&["embedded", "redis"])),
        }
    }
}

/// How the log of revocations is followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Revocation {
    /// How old the knowledge of the log may be. Default 60 s. Process, reload.
    #[serde(serialize_with = "units::duration")]
    pub max_staleness: Duration,
    /// What becomes of requests with a token after that. None: routes that ask for roles or permissions are closed, the
    /// others open. Process, reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail: Option<RevocationFail>,
}

impl Revocation {
    /// Whether a route is closed when what is known of the log is too old; `is_guarded`: it asks for roles or permissions.
    pub fn closes(&self, is_guarded: bool) -> bool {
        self.fail.map_or(is_guarded, |fail| fail == RevocationFail::Closed)
    }
}

/// What becomes of requests with a token when what is known of the log is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationFail {
    /// They are refused with `503 dependency_unavailable`.
    Closed,
    /// They go on.
    Open,
}

impl FromText for RevocationFail {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err(one_of(&["closed", "open"])),
        }
    }
}

impl Config {
    /// Where sessions and the log of revocations are kept: as written, else in Redis where there is one.
    pub fn session_store(&self) -> SessionStore {
        chosen(self.sessions.store, &self.redis)
    }
}

fn chosen(written: Option<SessionStore>, redis: &Redis) -> SessionStore {
    let usual = if redis.is_given() { SessionStore::Redis } else { SessionStore::Embedded };
    written.unwrap_or(usual)
}

/// Reads `[sessions]`.
pub(super) fn read_sessions(node: Option<&Node>, redis: &Redis, report: &mut Report) -> Sessions {
    let fields = Fields::of("sessions", "sessions".to_owned(), node, report);
    let sessions = Sessions {
        store: fields.take_written("store", report),
        lifetime: fields.take("lifetime", report),
        refresh_grace: fields.take("refresh_grace", report),
        per_user_max: fields.take("per_user_max", report),
        secret: fields.take_written("secret", report),
        old_secret: fields.take_written("old_secret", report),
    };
    check(&sessions, redis, &fields, report);
    sessions
}

fn check(sessions: &Sessions, redis: &Redis, fields: &Fields<'_>, report: &mut Report) {
    let Sessions { store, lifetime, refresh_grace, secret, old_secret, .. } = sessions;
    for (key, secret) in [("secret", secret), ("old_secret", old_secret)] {
        if let Some(secret) = secret.as_ref().filter(|secret| secret.reveal().len() < SECRET_BYTES_MIN) {
            let what = format!("sessions.{key} has {} bytes", secret.reveal().len());
            let right = format!("a secret has {SECRET_BYTES_MIN} bytes or more: openssl rand -base64 32");
            report.push(fields.place_of(key), what, &right);
        }
    }
    if lifetime < refresh_grace && fields.is_sound("lifetime", report) && fields.is_sound("refresh_grace", report) {
        let [lifetime, grace] = [lifetime, refresh_grace].map(|duration| super::written_duration(*duration));
        let what = format!("sessions.lifetime is \"{lifetime}\"");
        let right = format!("it is not less than sessions.refresh_grace, which is \"{grace}\"");
        report.push(fields.place_of("lifetime"), what, &right);
    }
    if chosen(*store, redis) == SessionStore::Redis && fields.is_sound("store", report) {
        if !redis.is_given() {
            let what = "sessions.store is \"redis\", and there is no Redis".to_owned();
            report.push(fields.place_of("store"), what, "say where it is: redis.urls = [\"redis://host:6379\"]");
        }
        if secret.is_none() && fields.is_sound("secret", report) {
            let what = "sessions.secret is missing, and sessions are kept in Redis".to_owned();
            let right = "instances that share sessions share the secret of their refresh tokens: write \
                         secret = \"${SESSIONS_SECRET}\", 32 bytes or more (openssl rand -base64 32)";
            report.push(fields.place_of("secret"), what, right);
        }
    }
}

/// Reads `[revocation]`.
pub(super) fn read_revocation(node: Option<&Node>, report: &mut Report) -> Revocation {
    let fields = Fields::of("revocation", "revocation".to_owned(), node, report);
    Revocation { max_staleness: fields.take("max_staleness", report), fail: fields.take_written("fail", report) }
}
