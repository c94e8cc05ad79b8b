//! Whom to ask for what a configuration names: DNS for names and SRV records, files, and the registry in Redis.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::Path,
};

use super::registry::Registry;
use crate::{
    config::{self, LISTING_BYTES_MAX, ListingFormat, open_regular, parse_listing, watch::Watch},
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

#[derive(Clone, Debug)]
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

    /// Those of another configuration. The connection to Redis stays, as only a restart applies another. And files are looked
    /// at as before: one that is being written while a reload comes is not read halfway.
    pub(super) fn fork(&self, config: &config::Config) -> Self {
        let named: BTreeSet<&Path> =
            config.upstreams.values().filter_map(|upstream| upstream.discover.file.as_deref()).collect();
        let files = self.files.iter().filter(|(path, _)| named.contains(&***path));
        let files = files.map(|(path, file)| {
            let mut file = file.clone();
            // What was read just now may not be known there yet.
            file.watch.forget();
            (path.clone(), file)
        });
        Self { files: files.collect(), ..Self::by(Resolver::new(&config.discovery.nameservers), self.registry.clone()) }
    }

    /// Looks at a file; what it holds is read anew when that has changed. That is short, and a file that is not there any
    /// more, or is on a disk that is away, is the configuration's own trouble too.
    fn look_at(&mut self, path: &Path) -> ListResult {
        if let Some(file) = self.files.get_mut(path) {
            match file.watch.changed() {
                Err(error) => return Err(format!("it cannot be read: {error}")),
                Ok(false) => {
                    let wrong = passed_over(path).map(str::to_owned).or_else(|| file.wrong.clone());
                    return wrong.map_or(Ok(ListAnswer::Unchanged), Err);
                }
                Ok(true) => {}
            }
        } else {
            // Before it is read, so that no change is missed.
            self.files.insert(path.into(), WatchedFile { watch: Watch::new(path), wrong: None });
        }
        let bytes = read(path);
        let is_read = bytes.is_ok();
        let listed = bytes.and_then(|bytes| parse(path, &bytes));
        if let Some(file) = self.files.get_mut(path) {
            if !is_read {
                file.watch.forget();
            }
            file.wrong = listed.as_ref().err().cloned();
        }
        listed
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

/// Why a watch has passed something over: a file that is about to be written is cut off first, and something else may be in
/// its place.
fn passed_over(path: &Path) -> Option<&'static str> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() {
        return Some("it is no regular file");
    }
    (metadata.len() == 0).then_some("it is empty")
}

/// Reads a file of instances.
pub(in crate::server) fn read_listing(path: &Path) -> ListResult {
    parse(path, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let bytes_max = LISTING_BYTES_MAX as u64 + 1;
    let read = open_regular(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| format!("it cannot be read: {error}"))
}

fn parse(path: &Path, bytes: &[u8]) -> ListResult {
    let format = ListingFormat::of(path).ok_or("its name ends in neither .json nor .toml")?;
    let instances = parse_listing(bytes, format)?;
    Ok(ListAnswer::Listed(Listed { instances, left_out: LeftOut::default(), ..Listed::default() }))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_read_halfway_because_of_a_reload() {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("shop.toml");
        let write = |instances: &str| fs::write(&path, format!("instances = [{instances}]\n")).expect("written");
        let mut config = config::Config::default();
        let mut upstream = config::Upstream::new(Vec::new());
        upstream.discover.file = Some(path.clone());
        config.upstreams.insert("shop".to_owned(), upstream);

        write("\"10.0.0.1:80\"");
        let mut sources = Sources::new(&config);
        assert!(matches!(sources.look_at(&path), Ok(ListAnswer::Listed(_))));
        write("\"10.0.0.2:80\"");
        let mut fork = sources.fork(&config);
        assert_eq!(fork.look_at(&path), Ok(ListAnswer::Unchanged), "it may be but a part");
        write("\"10.0.0.2:80\", \"10.0.0.3:80\"");
        assert_eq!(fork.look_at(&path), Ok(ListAnswer::Unchanged), "as it was");
        let Ok(ListAnswer::Listed(listed)) = fork.look_at(&path) else { panic!("it has settled") };
        assert_eq!(listed.instances.len(), 2);
        // What was told may not have been heard when the next reload comes.
        let mut fork = fork.fork(&config);
        assert_eq!(fork.look_at(&path), Ok(ListAnswer::Unchanged));
        assert!(matches!(fork.look_at(&path), Ok(ListAnswer::Listed(_))));
        // Nothing is left of files that nobody names any more.
        assert!(sources.fork(&config::Config::default()).files.is_empty());
    }
}
