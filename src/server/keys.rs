//! The keys that tokens are checked with, loaded with each configuration: one set for all shards.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    auth::{KeyError, KeySet, Made, OwnKeys},
    config::{Access, Config},
};

/// Loads the keys of a configuration, making one of our own where none is configured and tokens are asked for.
pub(super) fn load(config: &Config) -> Result<Arc<KeySet>, KeyError> {
    let is_asked = config.accounts.enabled || config.routes.iter().any(|route| route.access != Access::Public);
    let own = if is_asked || !config.auth.keys.is_empty() {
        OwnKeys::load(&config.auth, &config.data.dir)?
    } else {
        OwnKeys::none()
    };
    if let Some(Made { file, is_new }) = &own.made {
        let what = if *is_new { "made" } else { "read" };
        tracing::info!(file = %file.display(), "no key is configured for tokens; {what} one of our own");
    }
    Ok(Arc::new(KeySet::new(&config.auth, &own, &BTreeMap::new())))
}
