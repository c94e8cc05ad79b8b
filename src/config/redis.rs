//! Where Redis is and how it is reached. Connecting is for `bus::redis`.

use super::raw::quoted;
use super::read::Fields;
use super::redis_url::RedisUrl;
use super::report::Report;
use super::{Redis, RedisMode};

impl Redis {
    /// Whether there is one.
    pub fn is_given(&self) -> bool {
        !self.urls.is_empty()
    }
}

/// What holds between the keys of `[redis]`.
pub(super) fn check_redis(redis: &Redis, fields: &Fields<'_>, report: &mut Report) {
    if !fields.is_sound("urls", report) {
        return;
    }
    let Some(first) = redis.urls.first() else { return };
    let alike = |url: &&RedisUrl| {
        let of = |url: &RedisUrl| (url.is_tls, url.username.clone(), url.password.clone(), url.database);
        of(url) == of(first)
    };
    if let Some(other) = redis.urls.iter().find(|url| !alike(url)) {
        let what = format_args!("has {} beside {}", quoted(&other.to_string()), quoted(&first.to_string()));
        fields.wrong(report, "urls", what, "all of them have the same scheme, user, password and database");
        return;
    }
    match redis.mode {
        RedisMode::Single if redis.urls.len() > 1 => {
            let what = format_args!("has {} servers, and redis.mode is \"single\"", redis.urls.len());
            fields.wrong(report, "urls", what, "name one, or set redis.mode to \"sentinel\" or \"cluster\"");
        }
        RedisMode::Cluster if first.database != 0 => {
            let what = format_args!("has database {}, and redis.mode is \"cluster\"", first.database);
            fields.wrong(report, "urls", what, "a cluster has database 0 only");
        }
        _ => {}
    }
    if redis.master.is_empty() {
        fields.wrong(report, "master", "is empty", "it is a name, like \"mymaster\"");
    }
}
