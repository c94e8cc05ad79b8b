//! Whom to ask for what a configuration names: DNS for names and SRV records, files, and the registry in Redis.

use std::{collections::BTreeSet, path::Path};

use super::{files::Files, registry::Registry};
use crate::{
    config,
    server::resolver::{Asked, AskedList, Resolver},
    upstream::Source,
};

/// Who answers questions.
pub(in crate::server) trait Ask {
    /// Looks a name up; `found_as` is the whole name that it was found as before.
    fn name(&mut self, name: &str, found_as: Option<&str>) -> Asked;
    /// Asks for a list of instances.
    fn list(&mut self, source: &Source) -> AskedList;
    /// Returns when all is to be asked for anew. Dropping the future loses nothing.
    fn changed(&mut self) -> impl Future<Output = ()>;
}

/// One per configuration, on the control thread.
#[derive(Debug)]
pub(in crate::server) struct Sources {
    pub(super) resolver: Resolver,
    files: Files,
    registry: Registry,
}

impl Sources {
    pub(super) fn new(config: &config::Config) -> Self {
        let (resolver, registry) = (Resolver::new(&config.discovery.nameservers), Registry::new(&config.redis));
        Self { resolver, files: Files::new(), registry }
    }

    /// Those of another configuration. The connection to Redis stays, as only a restart applies another.
    pub(super) fn fork(&mut self, config: &config::Config) -> Self {
        let named: BTreeSet<&Path> =
            config.upstreams.values().filter_map(|upstream| upstream.discover.file.as_deref()).collect();
        let (resolver, registry) = (self.resolver.fork(&config.discovery.nameservers), self.registry.clone());
        Self { resolver, files: self.files.fork(&named), registry }
    }
}

impl Ask for Sources {
    fn name(&mut self, name: &str, found_as: Option<&str>) -> Asked {
        self.resolver.ask(name, found_as)
    }

    fn list(&mut self, source: &Source) -> AskedList {
        match source {
            Source::File(path) => self.files.ask(path),
            Source::Registry(upstream) => self.registry.ask(upstream),
            Source::Srv(name) => self.resolver.ask_srv(name),
        }
    }

    async fn changed(&mut self) {
        self.resolver.changed().await;
    }
}
