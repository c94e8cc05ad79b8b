//! The keys that tokens are checked and signed with: one keychain for the process, loaded with each configuration.

use std::path::Path;

use crate::{
    auth::{Keychain, KeychainError, read_certificates},
    config::{Access, Config},
};

/// Loads the keys of a configuration.
pub(super) fn load(config: &Config) -> Result<Keychain, KeychainError> {
    Keychain::load(&config.auth, made_in(config))
}

/// Loads the keys of a new configuration: all of them, or the old ones stay.
pub(super) fn reload(keychain: &mut Keychain, config: &Config) -> Result<(), KeychainError> {
    keychain.reload(&config.auth, made_in(config))
}

/// Everything that is wrong with the files that a configuration names and the gateway reads at its start: keys, key sets
/// and certificates. Nothing is made or fetched.
pub fn check_files(config: &Config) -> Vec<String> {
    let mut wrong = Keychain::check_files(&config.auth, made_in(config));
    let redis = config.redis.ca_file.as_ref().filter(|_| config.redis.is_given());
    let postgres = config.accounts.postgres_ca_file.as_ref().filter(|_| config.accounts.postgres_url.is_some());
    for (key, file) in [("redis.ca_file", redis), ("accounts.postgres_ca_file", postgres)] {
        let why = file.map(|file| read_certificates(file)).and_then(Result::err);
        wrong.extend(why.map(|why| format!("{key} is {why}")));
    }
    wrong
}

/// Where a key of our own is made when none is configured: nowhere, if nobody is asked for a token.
fn made_in(config: &Config) -> Option<&Path> {
    let is_asked = config.accounts.enabled || config.routes.iter().any(|route| route.access != Access::Public);
    is_asked.then_some(&*config.data.dir)
}
