//! The keys that tokens are checked and signed with: one keychain for the process, loaded with each configuration.

use std::path::Path;

use crate::{
    auth::{Keychain, KeychainError},
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

/// Where a key of our own is made when none is configured: nowhere, if nobody is asked for a token.
pub(super) fn made_in(config: &Config) -> Option<&Path> {
    let is_asked = config.accounts.enabled || config.routes.iter().any(|route| route.access != Access::Public);
    is_asked.then_some(&*config.data.dir)
}
