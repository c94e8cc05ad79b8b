//! The control thread's keys: our own, those of other issuers from files, and those that are fetched, kept fresh. Each
//! change makes a new [`KeySet`]; sending it to the shards is for whoever holds the [`Keychain`].

use super::fetch::Fetcher;
use super::jwk::{JwkSet, SET_BYTES_MAX};
use super::schedule::Schedule;
use super::{Issuer, KeySet, OwnKeys};
use crate::certificates::read_authorities;
use crate::config::{Auth, TokenIssuer, open_regular};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Everything that tokens are checked and signed with. One, on the control thread, inside a `LocalSet`.
#[derive(Debug)]
pub struct Keychain {
    auth: Auth,
    own: OwnKeys,
    /// By the issuer's name; those whose keys never came are missing.
    sets: BTreeMap<String, Arc<JwkSet>>,
    remotes: Vec<Remote>,
    keys: Arc<KeySet>,
    began: Instant,
    fetched: mpsc::UnboundedSender<Fetched>,
    arrivals: mpsc::UnboundedReceiver<Fetched>,
    counts: FetchCounts,
}

/// How fetches ended, since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchCounts {
    /// A set came.
    pub good: u64,
    /// None came, or nothing of use.
    pub failed: u64,
}

/// An issuer whose keys are fetched.
#[derive(Debug)]
struct Remote {
    config: TokenIssuer,
    fetcher: Fetcher,
    schedule: Schedule,
    /// Tells fetches for this configuration from those for one that is gone.
    id: u64,
    has_failed: bool,
}

#[derive(Debug)]
struct Fetched {
    id: u64,
    set: Result<JwkSet, String>,
}

/// The keys of a configuration, read and not in force yet. Moves between threads.
#[derive(Debug)]
pub struct NewKeys {
    auth: Auth,
    own: OwnKeys,
    sets: BTreeMap<String, Arc<JwkSet>>,
    remotes: Vec<Remote>,
}

/// Why the keys of a configuration cannot be used; one line.
#[derive(Debug)]
pub struct KeychainError(String);

impl fmt::Display for KeychainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeychainError {}

impl NewKeys {
    /// Reads the keys of a configuration: all of them, or nothing.
    ///
    /// Where no key of our own is configured, one is made in the directory `made_in`, if that is given; not in place of one that
    /// this process has made or found before, which is `made`.
    pub fn read(auth: &Auth, made_in: Option<&Path>, made: Option<&Path>) -> Result<Self, KeychainError> {
        if let Some(file) = made.filter(|file| auth.keys.is_empty() && !file.exists()) {
            // Another one in its place would log everybody out, and nobody would know why.
            return Err(KeychainError(format!(
                "{}: the key that tokens are signed with is gone; put it back, or restart to make another, which logs everybody out",
                file.display()
            )));
        }
        let own = load_own(auth, made_in)?;
        let sets = read_files(auth)?;
        Ok(Self { auth: auth.clone(), own, sets, remotes: Self::remotes_of(auth)? })
    }

    /// Those that a configuration fetches.
    fn remotes_of(auth: &Auth) -> Result<Vec<Remote>, KeychainError> {
        let mut remotes = Vec::new();
        for (index, config) in auth.issuers.iter().enumerate() {
            let Some(url) = &config.jwks_url else { continue };
            let fetcher = Fetcher::new(config, url);
            let fetcher = fetcher.map_err(|why| KeychainError(format!("auth.issuers[{index}]: {why}")))?;
            let seed = fastrand::u64(..);
            let schedule = Schedule::new(config.refresh_interval, config.unknown_key_cooldown, seed);
            remotes.push(Remote { config: config.clone(), fetcher, schedule, id: seed, has_failed: false });
        }
        Ok(remotes)
    }
}

impl Keychain {
    /// Reads the keys of a configuration, as [`NewKeys::read`] does. Those that are fetched come later; until then their issuers'
    /// tokens are answered with 503.
    pub fn load(auth: &Auth, made_in: Option<&Path>) -> Result<Self, KeychainError> {
        let NewKeys { auth, own, sets, remotes } = NewKeys::read(auth, made_in, None)?;
        tell_of(&own);
        let (fetched, arrivals) = mpsc::unbounded_channel();
        let keys = Arc::new(KeySet::new(&auth, &own, &sets));
        let (began, counts) = (Instant::now(), FetchCounts::default());
        Ok(Self { auth, own, sets, remotes, keys, began, fetched, arrivals, counts })
    }

    /// The file with the key of the process's own making, if it goes by one.
    pub fn made(&self) -> Option<&Path> {
        self.own.made.as_ref().map(|made| &*made.file)
    }

    /// Takes the keys of a new configuration. Sets that were fetched from where they still are to be fetched stay.
    pub fn adopt(&mut self, new: NewKeys) {
        let NewKeys { auth, own, mut sets, mut remotes } = new;
        for remote in &mut remotes {
            let name = &remote.config.issuer;
            let stays = self
                .remotes
                .iter()
                .any(|old| old.config.issuer == *name && old.config.jwks_url == remote.config.jwks_url);
            if let Some(set) = self.sets.get(name).filter(|_| stays) {
                sets.insert(name.clone(), Arc::clone(set));
            }
            // Certificates may have changed, and nothing else did: its time has not come because of that.
            if let Some(index) = self.remotes.iter().position(|old| old.config == remote.config) {
                let old = self.remotes.swap_remove(index);
                *remote = Remote { fetcher: remote.fetcher.clone(), ..old };
            }
        }
        (self.auth, self.own, self.sets, self.remotes) = (auth, own, sets, remotes);
        self.rebuild();
    }

    /// Everything that is wrong with the files that [`Keychain::load`] would read. Makes no key, and fetches nothing.
    pub fn check_files(auth: &Auth, made_in: Option<&Path>) -> Vec<String> {
        let mut wrong: Vec<String> = OwnKeys::check(auth, made_in).iter().map(ToString::to_string).collect();
        for (index, issuer) in auth.issuers.iter().enumerate() {
            let set = issuer.jwks_file.as_ref().map(|file| read_set(index, issuer, file));
            wrong.extend(set.and_then(Result::err).map(|error| error.to_string()));
            let certificates = issuer.ca_file.as_ref().map(|file| read_authorities(file));
            let why = certificates.and_then(Result::err);
            wrong.extend(why.map(|why| format!("auth.issuers[{index}]: ca_file is {why}")));
        }
        wrong
    }

    /// What the shards check tokens with now.
    pub fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys)
    }

    /// What signs tokens now; `None` when all keys only verify.
    pub fn issuer(&self) -> Option<Issuer> {
        Issuer::new(&self.auth, &self.own)
    }

    /// How fetches ended so far.
    pub fn fetch_counts(&self) -> FetchCounts {
        self.counts
    }

    /// A shard saw a token of this issuer whose key is not known.
    pub fn want(&mut self, issuer: &str) {
        for remote in self.remotes.iter_mut().filter(|remote| remote.config.issuer == issuer) {
            remote.schedule.handle_unknown_key();
        }
    }

    /// Fetches what is due, and comes back when the keys have changed. Dropping the future loses nothing: fetches go on.
    pub async fn changed(&mut self) -> Arc<KeySet> {
        loop {
            self.begin_fetches();
            let due = self.remotes.iter().filter_map(|remote| remote.schedule.poll_timeout()).min();
            let due = due.map(|due| self.began + due);
            tokio::select! {
                Some(fetched) = self.arrivals.recv() => if self.take(fetched) {
                    return self.keys();
                },
                () = sleep_until(due.unwrap_or(self.began)), if due.is_some() => {}
            }
        }
    }

    fn begin_fetches(&mut self) {
        let now = self.began.elapsed();
        for remote in &mut self.remotes {
            if remote.schedule.handle_timeout(now) {
                let (fetcher, id, told) = (remote.fetcher.clone(), remote.id, self.fetched.clone());
                let fetch = tokio::task::spawn_local(async move { fetcher.fetch().await });
                tokio::task::spawn_local(async move {
                    // The runtime catches a panic, and the issuer is asked again as after any other failure.
                    let set = fetch.await.unwrap_or_else(|_| Err("asking it panicked".to_owned()));
                    // Nobody listens any more when the process ends.
                    let _ = told.send(Fetched { id, set });
                });
            }
        }
    }

    /// Takes what a fetch brought; says whether the keys have changed by it.
    fn take(&mut self, Fetched { id, set }: Fetched) -> bool {
        let now = self.began.elapsed();
        let Some(remote) = self.remotes.iter_mut().find(|remote| remote.id == id) else { return false };
        remote.schedule.handle_fetched(now, set.is_ok());
        let issuer = remote.config.issuer.clone();
        let url = remote.config.jwks_url.clone().unwrap_or_default();
        match set {
            Ok(set) => {
                self.counts.good += 1;
                let is_news = !self.sets.contains_key(&issuer) || remote.has_failed;
                remote.has_failed = false;
                if is_news {
                    tracing::info!(issuer, url, keys = set.len(), "the issuer's keys were fetched");
                }
                for why in &set.skipped {
                    tracing::debug!(issuer, url, "a key of the issuer cannot be used: {why}");
                }
                self.sets.insert(issuer, Arc::new(set));
                let before = self.keys.generation();
                self.rebuild();
                before != self.keys.generation()
            }
            Err(why) => {
                self.counts.failed += 1;
                remote.has_failed = true;
                let meanwhile = if self.sets.contains_key(&issuer) {
                    "the last good ones go on"
                } else {
                    "its tokens are answered with 503 until they come"
                };
                tracing::warn!(issuer, url, "the issuer's keys could not be fetched: {why}; {meanwhile}");
                false
            }
        }
    }

    fn rebuild(&mut self) {
        self.keys = Arc::new(KeySet::new(&self.auth, &self.own, &self.sets));
    }
}

fn load_own(auth: &Auth, made_in: Option<&Path>) -> Result<OwnKeys, KeychainError> {
    match made_in {
        None if auth.keys.is_empty() => Ok(OwnKeys::none()),
        made_in => {
            OwnKeys::load(auth, made_in.unwrap_or(Path::new("."))).map_err(|error| KeychainError(error.to_string()))
        }
    }
}

/// The sets that stand in files, which a reload reads anew.
fn read_files(auth: &Auth) -> Result<BTreeMap<String, Arc<JwkSet>>, KeychainError> {
    let mut sets = BTreeMap::new();
    for (index, issuer) in auth.issuers.iter().enumerate() {
        let Some(file) = &issuer.jwks_file else { continue };
        let set = read_set(index, issuer, file)?;
        for why in &set.skipped {
            tracing::warn!(issuer = issuer.issuer, file = %file.display(), "a key of the issuer cannot be used: {why}");
        }
        sets.insert(issuer.issuer.clone(), Arc::new(set));
    }
    Ok(sets)
}

fn read_set(index: usize, issuer: &TokenIssuer, file: &Path) -> Result<JwkSet, KeychainError> {
    let wrong = |why: &dyn fmt::Display| {
        KeychainError(format!("auth.issuers[{index}].jwks_file is \"{}\": {why}", file.display()))
    };
    let mut bytes = Vec::new();
    let read = open_regular(file).and_then(|file| file.take(SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| wrong(&error))?;
    JwkSet::parse(&bytes, &issuer.algorithms).map_err(|fault| wrong(&fault))
}

/// A key of one's own making is worth a line: it is to be kept, and backed up, and shared among instances.
fn tell_of(own: &OwnKeys) {
    let Some(made) = &own.made else { return };
    let file = made.file.display();
    if made.is_new {
        tracing::info!(%file, "no auth.keys are configured: made a key for tokens (ES256) and kept it; instances that are to take each other's tokens need the same one");
    } else {
        tracing::info!(%file, "no auth.keys are configured: tokens are signed with the key that was made before");
    }
}
