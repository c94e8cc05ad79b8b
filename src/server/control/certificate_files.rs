//! The files of certificates, looked at and read on threads that may wait: a file system that hangs holds up neither operators
//! nor signals. What they hold is taken whole or not at all, when they change and with each configuration.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::super::readers::{NotRead, Readers, Reading, outcome};
use crate::{
    certificates::{Certificates, OfOperators, Wanted, WantedOfService},
    config::{
        Config,
        watch::{SetLook, WatchSet},
    },
    shard::clock,
};

/// From one look at the files to the next.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What is other than before is looked at again after this time: the second half of a pair comes soon after the first.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// Where there are many files, looks take so small a share of the time.
const LOOK_SHARE: u32 = 20;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Configurations whose files are read at once, those that hang among them.
const READERS_MAX: usize = 4;

/// What files hold, and since when they are watched for other content.
#[derive(Clone, Debug)]
pub(in crate::server) struct Loaded {
    pub(in crate::server) certificates: Arc<Certificates>,
    wanted: Arc<Wanted>,
    watch: WatchSet,
}

/// One per process, on the control thread.
pub(super) struct CertificateFiles {
    /// Of the configuration in force; nothing while it has no certificates.
    followed: Option<Followed>,
    /// A look at those: how the files were in it, and what it has found.
    look: Option<Reading<(WatchSet, Sight)>>,
    /// When that began, or the next is to begin.
    at: Instant,
    looker: Readers,
    /// Those of a configuration that is to be taken.
    candidate: Option<Reading<Result<Loaded, String>>>,
    readers: Readers,
}

struct Followed {
    wanted: Arc<Wanted>,
    /// As it was before the look under way, if there is one.
    watch: WatchSet,
    /// Why what was found last is of no use.
    wrong: Option<String>,
}

/// What a look has found.
enum Sight {
    Same,
    Settling,
    Read(Result<Arc<Certificates>, String>),
}

/// What was read.
pub(super) enum Read {
    /// For the configuration that is to be taken.
    Candidate(Result<Loaded, String>),
    /// For the one in force: its files hold something else, or nothing that is of use.
    Changed(Result<Arc<Certificates>, String>),
}

/// Which certificates a configuration wants, if any.
pub(in crate::server) fn wanted(config: &Config) -> Option<Wanted> {
    let shared_or_own = || config.admin.certificate().map_or(OfOperators::Shared, OfOperators::Own);
    let wanted = Wanted {
        tls: config.tls.clone(),
        operators: config.admin.speaks_tls().then(shared_or_own),
        services: WantedOfService::all(&config.upstreams),
    };
    (!wanted.is_nothing()).then_some(wanted)
}

/// Reads them, on whatever thread this is.
pub(in crate::server) fn load(wanted: Wanted) -> Result<Loaded, String> {
    // Before they are read, so that no change is missed.
    let watch = WatchSet::new(wanted.files());
    Ok(Loaded { certificates: read(&wanted)?, wanted: Arc::new(wanted), watch })
}

fn read(wanted: &Wanted) -> Result<Arc<Certificates>, String> {
    let loaded = Certificates::load(wanted, clock::unix_now().as_secs());
    loaded.map(Arc::new).map_err(|wrong| wrong.join("\n"))
}

fn look_at(watch: &mut WatchSet, wanted: &Wanted) -> Sight {
    match watch.look() {
        SetLook::Same => Sight::Same,
        SetLook::Settling => Sight::Settling,
        SetLook::Changed => Sight::Read(read(wanted)),
    }
}

fn not_read(why: NotRead) -> String {
    format!("the files of certificates cannot be read: {why}")
}

impl CertificateFiles {
    /// Follows what was read at the start.
    pub(super) fn new(loaded: Option<&Loaded>) -> Self {
        let mut files = Self {
            followed: None,
            look: None,
            at: Instant::now(),
            looker: Readers::new(1),
            candidate: None,
            readers: Readers::new(READERS_MAX),
        };
        files.follow(loaded);
        files
    }

    /// Follows these from now on, instead of those before.
    pub(super) fn follow(&mut self, loaded: Option<&Loaded>) {
        let followed = |Loaded { wanted, watch, .. }: &Loaded| Followed {
            wanted: Arc::clone(wanted),
            watch: watch.clone(),
            wrong: None,
        };
        // Who has no files is looked at by a reload.
        let loaded = loaded.filter(|loaded| !loaded.wanted.files().is_empty());
        (self.followed, self.look, self.at) = (loaded.map(followed), None, Instant::now() + LOOK_INTERVAL);
    }

    /// Begins to read what a configuration wants that is to be taken; says whether that is anything. What was read for one before
    /// is left.
    pub(super) fn begin(&mut self, config: &Config) -> bool {
        self.candidate = wanted(config).map(|wanted| self.readers.read(move || load(wanted)));
        self.candidate.is_some()
    }

    /// What was begun is not taken.
    pub(super) fn give_up(&mut self) {
        self.candidate = None;
    }

    /// Looks at the files from time to time, until something was read. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Read {
        loop {
            let is_due = self.look.is_none() && self.followed.is_some();
            let Self { look, candidate, at, .. } = self;
            tokio::select! {
                read = outcome(candidate) => return Read::Candidate(read.map_err(not_read).flatten()),
                looked = outcome(look) => if let Some(read) = self.take(looked) {
                    return Read::Changed(read);
                },
                () = sleep_until(*at), if is_due => self.begin_look(),
            }
        }
    }

    fn begin_look(&mut self) {
        let Some(Followed { wanted, watch, .. }) = &self.followed else { return };
        let (wanted, mut watch) = (Arc::clone(wanted), watch.clone());
        self.at = Instant::now();
        self.look = Some(self.looker.read(move || {
            let sight = look_at(&mut watch, &wanted);
            (watch, sight)
        }));
    }

    /// Takes what came of a look; what is wrong is told when it is something else than before.
    fn take(&mut self, looked: Result<(WatchSet, Sight), NotRead>) -> Option<Result<Arc<Certificates>, String>> {
        let followed = self.followed.as_mut()?;
        let now = Instant::now();
        let rest = (now.duration_since(self.at) * LOOK_SHARE).min(LOOK_INTERVAL_MAX);
        let is_settling = matches!(looked, Ok((_, Sight::Settling)));
        self.at = now + rest.max(if is_settling { SETTLE_TIME } else { LOOK_INTERVAL });
        let wrong = match looked {
            Ok((watch, sight)) => {
                followed.watch = watch;
                match sight {
                    Sight::Same | Sight::Settling => return None,
                    Sight::Read(Ok(certificates)) => {
                        followed.wrong = None;
                        return Some(Ok(certificates));
                    }
                    Sight::Read(Err(wrong)) => wrong,
                }
            }
            Err(why) => not_read(why),
        };
        // It is tried again, whatever the files hold: who may read them is no part of that.
        followed.watch.forget();
        let is_known = followed.wrong.as_ref() == Some(&wrong);
        followed.wrong = Some(wrong.clone());
        (!is_known).then_some(Err(wrong))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tokio::time::timeout;

    use super::*;
    use crate::{certificates::tests::made, config::Tls};

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work);
        runtime.shutdown_background();
    }

    #[test]
    fn half_a_pair_is_told_once_and_the_whole_is_taken() {
        let place = tempfile::tempdir().expect("a directory");
        let [old, new] = ["old", "new"].map(|name| made(place.path(), name, &["shop.example"]));
        let tls = Tls { certificates: vec![old.clone()], ..Tls::default() };
        let loaded = load(Wanted { tls, ..Wanted::default() }).expect("it is right");
        let copy = |from: &Path, to: &Path| fs::copy(from, to).map(drop).expect("copied");
        run(async {
            let mut files = CertificateFiles::new(Some(&loaded));
            copy(&new.cert, &old.cert);
            let Read::Changed(Err(wrong)) = files.next().await else { panic!("half of it") };
            assert!(wrong.contains("it is not the key of the first certificate"), "{wrong}");
            // Meanwhile it is tried again, and nothing is said of it.
            let silence = timeout(Duration::from_secs(2), files.next()).await;
            assert!(silence.is_err(), "it is known");
            copy(&new.key, &old.key);
            assert!(matches!(files.next().await, Read::Changed(Ok(_))), "both halves");
            // Another mistake is told, and that what was there before is back.
            fs::rename(&old.key, &new.key).expect("renamed");
            assert!(matches!(files.next().await, Read::Changed(Err(wrong)) if wrong.contains("there is no such file")));
            fs::rename(&new.key, &old.key).expect("renamed");
            assert!(matches!(files.next().await, Read::Changed(Ok(_))), "it is back");
        });
    }

    #[test]
    fn a_candidate_is_read_beside_what_is_followed() {
        let place = tempfile::tempdir().expect("a directory");
        let made = made(place.path(), "one", &["shop.example"]);
        let mut config = Config::default();
        run(async {
            let mut files = CertificateFiles::new(None);
            assert!(!files.begin(&config), "it wants none");
            config.tls.certificates.push(made);
            assert!(files.begin(&config));
            let Read::Candidate(Ok(loaded)) = files.next().await else { panic!("it is read") };
            files.follow(Some(&loaded));
            config.tls.certificates[0].key = place.path().join("none");
            assert!(files.begin(&config));
            assert!(
                matches!(files.next().await, Read::Candidate(Err(wrong)) if wrong.contains("there is no such file"))
            );
            assert!(files.begin(&config));
            files.give_up();
            assert!(timeout(Duration::from_millis(100), files.next()).await.is_err(), "nobody wants it any more");
        });
    }
}
