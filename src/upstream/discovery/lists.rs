//! Lists of instances that files, SRV records and registries tell: when each source is asked again, what an answer changes,
//! and what stays while a source fails ([decision 24](../../../docs/decisions/0024-lists-of-instances.md)).
//!
//! As with names, nothing here asks anybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
    time::Duration,
};

use super::{DiscoverySettings, retry_wait, shrinks};
use crate::{
    config::{INSTANCES_MAX, Instance, ServerAddress},
    shard::Instant,
};

/// What is asked in any case how it is, rather than told: files, and registries.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// So long after a registry could not be read those stay that are not in it: while it was away nobody could renew a lease,
/// and services come back to it one by one.
const RENEWAL_GRACE: Duration = Duration::from_secs(15);

/// Who tells of instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A file with this path.
    File(Box<Path>),
    /// The services of the upstream with this name, which have registered in Redis.
    Registry(Box<str>),
    /// The SRV records of this name.
    Srv(Box<str>),
}

impl Source {
    /// Whether the operator says so, who may name any address.
    pub const fn is_own(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// As metrics and the log call it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Registry(upstream) => write!(f, "redis:{upstream}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListAnswer {
    /// What it said before.
    Unchanged,
    /// What is there is new, and is looked at once more before it is read.
    Settling,
    /// These.
    Listed(Listed),
}

/// Instances, as a source lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// In any order.
    pub instances: Vec<Instance>,
    /// Entries that can be no instances, each with why.
    pub left_out: LeftOut,
    /// How long that holds, where the source says so.
    pub time_to_live: Duration,
}

/// Entries of a list that are not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: usize,
    /// Why the first of them is not.
    pub why: Option<Box<str>>,
}

impl LeftOut {
    /// One more, for this reason.
    pub fn add(&mut self, why: impl FnOnce() -> String) {
        self.count += 1;
        self.why.get_or_insert_with(|| why().into());
    }
}

/// What came of asking a source, or why nothing did, in words.
pub type ListResult = Result<ListAnswer, String>;

/// What is known of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownList {
    /// The last good list, in the order of addresses; empty before the first.
    pub instances: Box<[Instance]>,
    /// When the source was heard last; since when it is followed, if it never was.
    pub since: Instant,
    /// What is left out of it.
    pub left_out: LeftOut,
    /// Questions in a row that failed since then, and why the last of them did.
    pub failures: u32,
    /// See `failures`.
    pub error: Option<Box<str>>,
    /// All questions that failed.
    pub failures_total: u64,
}

impl KnownList {
    /// Whether it was asked with any outcome.
    pub const fn is_heard(&self) -> bool {
        !self.instances.is_empty() || self.failures > 0
    }

    /// Whether it fails: twice in a row, as one question may be lost.
    pub const fn is_failing(&self) -> bool {
        self.instances.is_empty() || self.failures > 1
    }

    /// The names among the listed hosts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        names_in(&self.instances)
    }
}

/// The names among the hosts of these.
pub fn names_in(instances: &[Instance]) -> impl Iterator<Item = &str> {
    let hosts = instances.iter().filter_map(|instance| match &instance.address {
        ServerAddress::Port { host, .. } => Some(host.as_str()),
        ServerAddress::Unix(_) => None,
    });
    hosts.filter(|host| host.parse::<IpAddr>().is_err())
}

/// What an answer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeardList {
    /// It is what was known.
    Same,
    /// The list is another one.
    Changed {
        /// Those that came.
        added: Vec<ServerAddress>,
        /// Those that went. The weight or the place of others may have changed.
        gone: Vec<ServerAddress>,
    },
    /// So many are gone that the next answer decides.
    Doubted,
    /// There was none that is good.
    Failed,
}

#[derive(Clone, Debug)]
struct FollowedList {
    known: KnownList,
    /// When it is asked again, unless somebody waits for an answer.
    due: Instant,
    is_asked: bool,
    is_asked_again: bool,
    /// The last answer lacked so many that the next decides.
    is_doubted: bool,
    /// Until then those stay that a registry does not have any more.
    grace_until: Instant,
}

/// All sources of lists that a configuration names. Lives on the control thread.
#[derive(Debug)]
pub struct Lists {
    settings: DiscoverySettings,
    sources: BTreeMap<Source, FollowedList>,
}

impl Lists {
    /// Follows no source.
    pub fn new(settings: DiscoverySettings) -> Self {
        Self { settings, sources: BTreeMap::new() }
    }

    /// The same with other settings, for a configuration that may yet be refused; see `Discovery::fork`.
    #[must_use]
    pub fn fork(&self, settings: DiscoverySettings, now: Instant) -> Self {
        let mut fork = Self { settings, sources: self.sources.clone() };
        for (source, followed) in &mut fork.sources {
            let instances = followed.known.instances.to_vec();
            followed.known.instances = taken(source, instances, &mut LeftOut::default(), settings).into();
            followed.is_asked = false;
        }
        fork.ask_all(now);
        fork
    }

    /// Counts what failed where this was forked from meanwhile, too.
    pub fn join(&mut self, origin: &Self) {
        for (source, followed) in &mut self.sources {
            let total = origin.sources.get(source).map_or(0, |origin| origin.known.failures_total);
            followed.known.failures_total = followed.known.failures_total.max(total);
        }
    }

    /// Follows these sources from now on and forgets others. What is known of those that stay is kept.
    pub fn follow(&mut self, sources: &BTreeSet<Source>, now: Instant) {
        self.sources.retain(|source, _| sources.contains(source));
        for source in sources {
            let fresh = || FollowedList {
                known: KnownList { since: now, ..KnownList::default() },
                due: now,
                is_asked: false,
                is_asked_again: false,
                is_doubted: false,
                grace_until: Instant::START,
            };
            self.sources.entry(source.clone()).or_insert_with(fresh);
        }
    }

    /// Every source is to be asked now.
    pub fn ask_all(&mut self, now: Instant) {
        for followed in self.sources.values_mut() {
            followed.due = now;
            followed.is_asked_again = followed.is_asked;
        }
    }

    /// Sources to ask now; each is asked once until it has [answered](Self::answered).
    pub fn take_due(&mut self, now: Instant) -> Vec<Source> {
        let due = self.sources.iter_mut().filter(|(_, followed)| !followed.is_asked && followed.due <= now);
        due.map(|(source, followed)| {
            followed.is_asked = true;
            source.clone()
        })
        .collect()
    }

    /// When there is somebody to ask.
    pub fn asks_at(&self) -> Instant {
        let due = self.sources.values().filter(|followed| !followed.is_asked).map(|followed| followed.due);
        due.min().unwrap_or(Instant::NEVER)
    }

    /// Takes what came of a question. A list without an instance is a failure: an upstream does not empty because a file was
    /// cut off, or because no lease was renewed.
    pub fn answered(&mut self, source: &Source, answer: ListResult, now: Instant) -> HeardList {
        // Nobody follows it any more.
        let Some(followed) = self.sources.get_mut(source) else { return HeardList::Same };
        let settings = self.settings;
        let answer = answer.and_then(|answer| {
            let mut listed = match answer {
                ListAnswer::Listed(listed) => listed,
                ListAnswer::Unchanged | ListAnswer::Settling => return Ok(answer),
            };
            listed.instances = taken(source, listed.instances, &mut listed.left_out, settings);
            match (listed.instances.len(), listed.left_out.why.take()) {
                (0, Some(why)) => Err(format!("it lists nothing that can be an instance: {why}")),
                (0, None) => Err("it lists no instance".to_owned()),
                (count, _) if count > INSTANCES_MAX => {
                    Err(format!("it lists {count} instances, and an upstream has at most {INSTANCES_MAX}"))
                }
                _ if listed.instances.iter().all(|instance| instance.weight == 0) => {
                    Err("its instances have no weight but 0".to_owned())
                }
                (_, why) => {
                    listed.left_out.why = why;
                    Ok(ListAnswer::Listed(listed))
                }
            }
        });
        let heard = followed.take(source, answer, settings, now);
        followed.is_asked = false;
        if std::mem::take(&mut followed.is_asked_again) {
            followed.due = now;
        }
        heard
    }

    /// What is known of a source; nothing of one that is not followed.
    pub fn known(&self, source: &Source) -> Option<&KnownList> {
        self.sources.get(source).map(|followed| &followed.known)
    }

    /// All sources and what is known of them, in order.
    pub fn sources(&self) -> impl Iterator<Item = (&Source, &KnownList)> {
        self.sources.iter().map(|(source, followed)| (source, &followed.known))
    }
}

impl FollowedList {
    fn take(&mut self, source: &Source, answer: ListResult, settings: DiscoverySettings, now: Instant) -> HeardList {
        let known = &mut self.known;
        let listed = match answer {
            Ok(ListAnswer::Listed(listed)) => listed,
            // That it was wrong is of what was there before.
            Ok(ListAnswer::Settling) => {
                self.due = now + POLL_INTERVAL;
                return HeardList::Same;
            }
            Ok(ListAnswer::Unchanged) => {
                (known.since, known.failures, known.error) = (now, 0, None);
                self.due = now + POLL_INTERVAL;
                return HeardList::Same;
            }
            Err(error) => {
                self.due = now
                    + match source {
                        Source::Srv(_) => retry_wait(known.failures, known.instances.is_empty(), settings),
                        Source::File(_) | Source::Registry(_) => POLL_INTERVAL,
                    };
                known.failures = known.failures.saturating_add(1);
                known.failures_total += 1;
                known.error = Some(error.into());
                return HeardList::Failed;
            }
        };
        let Listed { mut instances, left_out, time_to_live } = listed;
        if matches!(source, Source::Registry(_)) {
            if known.failures > 0 && !known.instances.is_empty() {
                self.grace_until = now + RENEWAL_GRACE;
            }
            if now < self.grace_until {
                instances.extend(known.instances.iter().cloned());
                instances.truncate(INSTANCES_MAX);
                // Of two with one address the first, which is the newer, stays.
                instances.sort_by(|one, other| one.address.cmp(&other.address));
                instances.dedup_by(|later, earlier| later.address == earlier.address);
            }
        }
        let (interval_min, interval_max) = (settings.interval_min, settings.interval_max.max(settings.interval_min));
        let wait = match source {
            Source::Srv(_) => time_to_live.clamp(interval_min, interval_max),
            Source::File(_) | Source::Registry(_) => POLL_INTERVAL,
        };
        let addresses = |instances: &[Instance]| -> Vec<ServerAddress> {
            instances.iter().map(|instance| instance.address.clone()).collect()
        };
        let (old, new) = (addresses(&known.instances), addresses(&instances));
        // A file says the same in two looks before it is read.
        let may_be_doubted = !source.is_own() && !self.is_doubted;
        if may_be_doubted && shrinks(&old, &new, settings.shrink_percent_max) {
            self.is_doubted = true;
            self.due = now + wait.min(interval_min.max(POLL_INTERVAL));
            return HeardList::Doubted;
        }
        self.is_doubted = false;
        self.due = now + wait;
        let has_changed = *known.instances != *instances;
        *known = KnownList {
            instances: instances.into(),
            since: now,
            left_out,
            failures: 0,
            error: None,
            failures_total: known.failures_total,
        };
        if has_changed {
            let (added, gone) = (super::lacking(&new, &old), super::lacking(&old, &new));
            HeardList::Changed { added, gone }
        } else {
            HeardList::Same
        }
    }
}

/// What is taken of a list: each address once and in order, and from outside only where instances may be.
fn taken(
    source: &Source,
    mut instances: Vec<Instance>,
    left_out: &mut LeftOut,
    settings: DiscoverySettings,
) -> Vec<Instance> {
    if !source.is_own() {
        instances.retain(|instance| {
            let is_taken = match &instance.address {
                ServerAddress::Port { host, .. } => host.parse().map_or(true, |address| settings.takes(address)),
                ServerAddress::Unix(_) => false,
            };
            if !is_taken {
                left_out.add(|| format!("{instance} is not taken from outside, unless discovery.allow has its kind"));
            }
            is_taken
        });
    }
    instances.sort_by(|one, other| one.address.cmp(&other.address));
    instances.dedup_by(|later, earlier| later.address == earlier.address);
    instances
}

#[cfg(test)]
#[path = "lists_tests.rs"]
mod tests;
