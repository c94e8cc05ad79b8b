//! Sessions, and how the log of revocations is followed. Keeping them is for `sessions`.

use super::read::Fields;
use super::report::Report;
use super::{Config, Revocation, RevocationFail, SECRET_BYTES_MIN, SessionStore, Sessions};

impl Revocation {
    /// Whether a route is closed when what is known of the log is too old; `is_guarded`: it asks for roles or permissions.
    pub fn closes(&self, is_guarded: bool) -> bool {
        self.fail.map_or(is_guarded, |fail| fail == RevocationFail::Closed)
    }
}

impl Config {
    /// Where sessions and the log of revocations are kept: as written, else in Redis where there is one.
    pub fn session_store(&self) -> SessionStore {
        let usual = if self.redis.is_given() { SessionStore::Redis } else { SessionStore::Embedded };
        self.sessions.store.unwrap_or(usual)
    }
}

/// What holds between the keys of `[sessions]`, and between these and Redis.
pub(super) fn check_sessions(config: &Config, fields: &Fields<'_>, report: &mut Report) {
    let Sessions { lifetime, refresh_grace, secret, old_secret, .. } = &config.sessions;
    for (key, secret) in [("secret", secret), ("old_secret", old_secret)] {
        if let Some(secret) = secret.as_ref().filter(|secret| secret.reveal().len() < SECRET_BYTES_MIN) {
            let right = format!("a secret has {SECRET_BYTES_MIN} bytes or more: openssl rand -base64 32");
            fields.wrong(report, key, format_args!("has {} bytes", secret.reveal().len()), &right);
        }
    }
    if lifetime < refresh_grace {
        let [lifetime, grace] = [lifetime, refresh_grace].map(|duration| super::written_duration(*duration));
        let right = format!("it is not less than sessions.refresh_grace, which is \"{grace}\"");
        fields.wrong_pair(report, ["lifetime", "refresh_grace"], format_args!("is \"{lifetime}\""), &right);
    }
    if config.session_store() == SessionStore::Redis && fields.is_sound("store", report) {
        if !config.redis.is_given() {
            let right = "say where it is: redis.urls = [\"redis://host:6379\"]";
            fields.wrong(report, "store", "is \"redis\", and there is no Redis", right);
        }
        if secret.is_none() && fields.is_sound("secret", report) {
            let right = "instances that share sessions share the secret of their refresh tokens: write \
                         secret = \"${SESSIONS_SECRET}\", 32 bytes or more (openssl rand -base64 32)";
            fields.wrong(report, "secret", "is missing, and sessions are kept in Redis", right);
        }
    }
}
