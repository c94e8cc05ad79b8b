//! Whom to ask for what a configuration names: DNS for names and SRV records, files, and the registry in Redis.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use super::registry::Registry;
use crate::{
    config::{self, LISTING_BYTES_MAX, ListingFormat, parse_listing, watch::Watch},
    server::resolver::{Asked, AskedList, Resolver},
    upstream::{LeftOut, ListAnswer, ListResult, Listed, Source},
};

/// Who answers questions.
pub(in crate::server) trait Ask {
    /// Looks a name up; `found_as` is the whole name that it was found as before.
    fn name(&mut self, name: &str, found_as: Option<&str>) -> Asked;
    /// Asks for a list of instances.
    fn list(&mut self, source: &Source) -> AskedList;
}

/// One per configuration, on the control thread.
#[derive(Debug)]
pub(in crate::server) struct Sources {
    pub(super) resolver: Resolver,
    files: BTreeMap<Box<Path>, WatchedFile>,
    registry: Registry,
}

#[derive(Debug)]
struct WatchedFile {
    watch: Watch,
    /// Why what it held when it was read last is none.
    wrong: Option<String>,
}

impl Sources {
    pub(super) fn new(config: &config::Config) -> Self {
        Self::by(Resolver::new(&config.discovery.nameservers), Registry::new(&config.redis))
    }

    fn by(resolver: Resolver, registry: Registry) -> Self {
        Self { resolver, files: BTreeMap::new(), registry }
    }

    /// Those of another configuration. The connection to Redis stays, as only a restart applies another.
    pub(super) fn fork(&self, config: &config::Config) -> Self {
        Self::by(Resolver::new(&config.discovery.nameservers), self.registry.clone())
    }

    /// Looks at a file; what it holds is read anew when that has changed. That is short, and a file that is not there any
    /// more, or is on a disk that is away, is the configuration's own trouble too.
    fn look_at(&mut self, path: &Path) -> ListResult {
        if let Some(file) = self.files.get_mut(path) {
            match file.watch.changed() {
                Err(error) => return Err(format!("it cannot be read: {error}")),
                // A file that is about to be written is cut off first.
                Ok(false) if is_empty(path) => return Err("it is empty".to_owned()),
                Ok(false) => return file.wrong.clone().map_or(Ok(ListAnswer::Unchanged), Err),
                Ok(true) => {}
            }
        } else {
            // Before it is read, so that no change is missed.
            self.files.insert(path.into(), WatchedFile { watch: Watch::new(path), wrong: None });
        }
        let read = read_listing(path);
        if let Some(file) = self.files.get_mut(path) {
            file.wrong = read.as_ref().err().cloned();
        }
        read
    }
}

impl Ask for Sources {
    fn name(&mut self, name: &str, found_as: Option<&str>) -> Asked {
        self.resolver.ask(name, found_as)
    }

    fn list(&mut self, source: &Source) -> AskedList {
        match source {
            Source::File(path) => {
                let told = self.look_at(path);
                Box::pin(async move { told })
            }
            Source::Registry(upstream) => self.registry.ask(upstream),
            Source::Srv(name) => self.resolver.ask_srv(name),
        }
    }
}

fn is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0)
}

/// Reads a file of instances.
pub(in crate::server) fn read_listing(path: &Path) -> ListResult {
    let format = ListingFormat::of(path).ok_or("its name ends in neither .json nor .toml")?;
    let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
    // A pipe could be read only once, or would be waited for.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut bytes = Vec::new();
    let bytes_max = LISTING_BYTES_MAX as u64 + 1;
    File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes)).map_err(cannot)?;
    let instances = parse_listing(&bytes, format)?;
    Ok(ListAnswer::Listed(Listed { instances, left_out: LeftOut::default(), ..Listed::default() }))
}
