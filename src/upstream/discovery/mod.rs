//! Where the instances of names are, followed while the gateway runs: when each name is asked for again, what an answer
//! changes, and what stays while the resolver fails ([decision 21](../../docs/decisions/0021-names-are-followed.md)).
//!
//! Nothing here asks anybody. The control thread does, by what is [due](Discovery::take_due), tells [what came of
//! it](Discovery::answered), and takes [what changed](Discovery::take_changed) to the shards.

mod kind;
mod lists;
mod registered;
mod srv;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

pub use kind::AddressKind;
pub use lists::{HeardList, KnownList, LeftOut, ListAnswer, ListResult, Listed, Lists, Source, names_in};
#[cfg(any(test, fuzzing))]
pub use registered::fuzz_registered;
pub use registered::registered;
pub use srv::{SrvRecord, srv_instances};

use crate::shard::Instant;

/// Addresses of one name that are instances. Whoever answers for DNS decides how many come; more than these are no service
/// of anybody's, and each is a pool on each shard.
const ADDRESSES_MAX: usize = 256;
/// Names that are asked for at once, of those whose last question was answered; new ones count among them.
const AT_ONCE_MAX: usize = 32;
/// The same of those whose last question failed. They have places of their own: whoever is asked for these may be silent, and
/// keeps a place until nobody waits any more.
const FAILING_AT_ONCE_MAX: usize = 16;
/// Changes are told at most this often, whatever DNS says meanwhile: each makes every shard look at its pools.
const CHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// A name that fails is asked for again at least this often; one without an address, whose service may only be starting,
/// more often.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// See [`RETRY_INTERVAL_MAX`].
const RETRY_INTERVAL_MAX_WITHOUT: Duration = Duration::from_secs(5);

/// How names are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoverySettings {
    /// An answer serves at least so long, however short its time to live, and a failure too.
    pub interval_min: Duration,
    /// An answer serves at most so long, however long its time to live.
    pub interval_max: Duration,
    /// Percent of a name's addresses that may be gone from one answer; more are believed when the next says so too.
    pub shrink_percent_max: u32,
    /// Whether DNS may say that an instance is this machine.
    pub takes_loopback: bool,
    /// Whether DNS may give addresses of one link, which machines give themselves; clouds have their secrets there.
    pub takes_link_local: bool,
}

impl DiscoverySettings {
    /// Whether somebody outside may say that an instance is there. Whoever can write into a zone would otherwise have the
    /// gateway ask what only this machine may.
    pub fn takes(&self, address: IpAddr) -> bool {
        match AddressKind::of(address) {
            AddressKind::Network => true,
            AddressKind::Loopback => self.takes_loopback,
            AddressKind::LinkLocal => self.takes_link_local,
            AddressKind::Nowhere => false,
        }
    }
}

/// What a resolver knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameAnswer {
    /// In any order, perhaps some of them twice.
    pub addresses: Vec<IpAddr>,
    /// How long that holds, by whoever said so.
    pub time_to_live: Duration,
    /// The addresses of this family are not known now.
    pub untold: Option<Family>,
    /// The operator says so (the hosts file), who may name any address.
    pub is_own: bool,
    /// The whole name that was found, with its domain.
    pub found_as: Box<str>,
}

/// A kind of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// There is none, or the resolver cannot tell; in its words.
    Unknown(String),
    /// The resolver had not answered after this long.
    Late(Duration),
    /// It has addresses, but none that is taken from DNS; this is the first of them.
    Refused(IpAddr),
}

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The last good answer, each address once and in order; none before the first.
    pub addresses: Box<[IpAddr]>,
    /// They are the operator's own word, and not of DNS.
    pub is_own: bool,
    /// The whole name that it was found as.
    pub found_as: Option<Box<str>>,
    /// Addresses that came with it and are not taken from DNS.
    pub refused: Box<[IpAddr]>,
    /// How many came with it that are too many.
    pub left_out: usize,
    /// When that was; since when the name is followed, where there was none.
    pub since: Instant,
    /// Questions in a row that failed since then, and why the last of them did.
    pub failures: u32,
    /// See `failures`.
    pub error: Option<NoAddress>,
    /// All questions that failed.
    pub failures_total: u64,
}

impl Known {
    /// Whether somebody has said what there is: addresses, or that there are none.
    pub fn is_heard(&self) -> bool {
        !self.addresses.is_empty() || self.error.as_ref().is_some_and(|error| !matches!(error, NoAddress::Late(_)))
    }

    /// Leaves out what may not be taken by other settings, whatever the next answer is.
    fn leave_out(&mut self, settings: DiscoverySettings) {
        if self.is_own {
            return;
        }
        let (stays, goes): (Vec<_>, Vec<_>) = self.addresses.iter().partition(|address| settings.takes(**address));
        let Some(first) = goes.first() else { return };
        if stays.is_empty() {
            self.error = Some(NoAddress::Refused(*first));
        }
        self.addresses = stays.into();
    }

    /// Whether the look-ups fail: twice in a row, as one question may be lost.
    pub fn is_failing(&self) -> bool {
        self.addresses.is_empty() || self.failures > 1
    }
}

/// What an answer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is what was known.
    Same,
    /// These addresses came, and these went.
    Changed {
        /// Those that came.
        added: Vec<IpAddr>,
        /// Those that went.
        gone: Vec<IpAddr>,
    },
    /// So many are gone that the next answer decides.
    Doubted,
    /// There was none that is good.
    Failed,
}

/// A name that is followed.
#[derive(Clone, Debug)]
struct Followed {
    known: Known,
    /// When it was last told which addresses of IPv4 it has, and which of IPv6.
    told_at: [Instant; 2],
    /// When it is asked for again, unless somebody waits for an answer.
    due: Instant,
    is_asked: bool,
    /// What is being asked may be answered by what holds no more.
    is_asked_again: bool,
    /// The last answer lacked so many addresses that the next decides.
    is_doubted: bool,
}

/// The names of all instances of a configuration. Lives on the control thread.
#[derive(Debug)]
pub struct Discovery {
    settings: DiscoverySettings,
    names: BTreeMap<Box<str>, Followed>,
    /// Names whose last question was answered, and those whose failed.
    queues: [Queue; 2],
    /// Addresses are others than when that was asked last.
    has_changed: bool,
    /// Until then changes wait.
    quiet_until: Instant,
}

/// Names that are asked for in turn.
#[derive(Debug)]
struct Queue {
    /// Names whose turn has not come, by when it does.
    waiting: BTreeSet<(Instant, Box<str>)>,
    /// How many somebody is asked for.
    asked: usize,
    asked_max: usize,
}

impl Queue {
    /// The two that [`Followed::queue`] tells apart.
    fn both() -> [Self; 2] {
        [AT_ONCE_MAX, FAILING_AT_ONCE_MAX].map(|asked_max| Self { waiting: BTreeSet::new(), asked: 0, asked_max })
    }

    /// When there is something to ask for.
    fn asks_at(&self) -> Instant {
        let next = self.waiting.first().filter(|_| self.asked < self.asked_max);
        next.map_or(Instant::NEVER, |(due, _)| *due)
    }
}

impl Discovery {
    /// Follows no name.
    pub fn new(settings: DiscoverySettings) -> Self {
        Self {
            settings,
            names: BTreeMap::new(),
            queues: Queue::both(),
            has_changed: false,
            quiet_until: Instant::START,
        }
    }

    /// The same with other settings, for a configuration that may yet be refused: what is known is taken along as far as
    /// they let it, and every name is asked for anew.
    #[must_use]
    pub fn fork(&self, settings: DiscoverySettings, now: Instant) -> Self {
        let mut fork = Self { names: self.names.clone(), quiet_until: self.quiet_until, ..Self::new(settings) };
        for followed in fork.names.values_mut() {
            followed.known.leave_out(settings);
            followed.is_asked = false;
        }
        fork.ask_all(now);
        fork
    }

    /// Counts what failed where this was forked from meanwhile, too.
    pub fn join(&mut self, origin: &Self) {
        for (name, followed) in &mut self.names {
            let total = origin.names.get(name).map_or(0, |origin| origin.known.failures_total);
            followed.known.failures_total = followed.known.failures_total.max(total);
        }
    }

    /// Follows these names from now on and forgets others. What is known of those that stay is kept.
    pub fn follow(&mut self, names: &BTreeSet<Box<str>>, now: Instant) {
        self.names.retain(|name, _| names.contains(name));
        for name in names {
            let fresh = || Followed {
                known: Known { since: now, ..Known::default() },
                told_at: [now; 2],
                due: now,
                is_asked: false,
                is_asked_again: false,
                is_doubted: false,
            };
            self.names.entry(name.clone()).or_insert_with(fresh);
        }
        self.queue_all();
    }

    /// Every name is to be asked for now: whoever answers, or what is taken of it, has changed.
    pub fn ask_all(&mut self, now: Instant) {
        for followed in self.names.values_mut() {
            followed.due = now;
            followed.is_asked_again = followed.is_asked;
            // It may be found elsewhere now.
            followed.known.found_as = None;
        }
        self.queue_all();
    }

    fn queue_all(&mut self) {
        self.queues = Queue::both();
        for (name, followed) in &self.names {
            let queue = &mut self.queues[followed.queue()];
            if followed.is_asked {
                queue.asked += 1;
            } else {
                queue.waiting.insert((followed.due, name.clone()));
            }
        }
    }

    /// Names to ask for now; each is asked for once until it is [answered](Self::answered).
    pub fn take_due(&mut self, now: Instant) -> Vec<Box<str>> {
        let mut taken = Vec::new();
        // Whoever has waited longest: by name the last ones would never be asked where answers serve for a second.
        for queue in &mut self.queues {
            while queue.asks_at() <= now
                && let Some((_, name)) = queue.waiting.pop_first()
            {
                if let Some(followed) = self.names.get_mut(&name) {
                    followed.is_asked = true;
                }
                queue.asked += 1;
                taken.push(name);
            }
        }
        taken
    }

    /// When a change may be told, if there is one.
    pub fn changes_at(&self) -> Instant {
        if self.has_changed { self.quiet_until } else { Instant::NEVER }
    }

    /// When there is something to ask for.
    pub fn asks_at(&self) -> Instant {
        let [answered, failing] = &self.queues;
        answered.asks_at().min(failing.asks_at())
    }

    /// Takes what came of a question. No address at all is a failure: an upstream does not empty because a zone was
    /// published without its records.
    pub fn answered(&mut self, name: &str, answer: Result<NameAnswer, NoAddress>, now: Instant) -> Heard {
        // Nobody follows it any more.
        let Some(followed) = self.names.get_mut(name) else { return Heard::Same };
        let settings = self.settings;
        let queue = &mut self.queues[followed.queue()];
        if std::mem::take(&mut followed.is_asked) {
            queue.asked -= 1;
        } else {
            queue.waiting.remove(&(followed.due, name.into()));
        }
        let answer = answer.and_then(|answer| followed.taken(answer, settings, now));
        let heard = followed.take(answer, settings, now);
        self.has_changed |= matches!(heard, Heard::Changed { .. });
        if std::mem::take(&mut followed.is_asked_again) {
            followed.due = now;
        }
        self.queues[followed.queue()].waiting.insert((followed.due, name.into()));
        heard
    }

    /// Whether addresses have changed, and enough time has passed since they did before; once for each change.
    pub fn take_changed(&mut self, now: Instant) -> bool {
        let is_told = self.has_changed && now >= self.quiet_until;
        if is_told {
            self.told(now);
        }
        is_told
    }

    /// What is to be told has changed otherwise: a list of instances has.
    pub fn note_change(&mut self) {
        self.has_changed = true;
    }

    /// All that is known now is told.
    pub fn told(&mut self, now: Instant) {
        self.has_changed = false;
        self.quiet_until = now + CHANGE_INTERVAL;
    }

    /// What is known of a name; nothing of one that is not followed.
    pub fn known(&self, name: &str) -> Option<&Known> {
        self.names.get(name).map(|followed| &followed.known)
    }

    /// All names and what is known of them, in order.
    pub fn names(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.names.iter().map(|(name, followed)| (&**name, &followed.known))
    }
}

impl Followed {
    /// In which of the two queues it is.
    fn queue(&self) -> usize {
        usize::from(self.known.failures > 0)
    }

    /// What is taken of an answer. A family of addresses that nobody can tell of stays as it was, but not for ever: some
    /// servers never answer for one.
    fn taken(&mut self, answer: NameAnswer, settings: DiscoverySettings, now: Instant) -> Result<Taken, NoAddress> {
        for (family, told_at) in [Family::V4, Family::V6].into_iter().zip(&mut self.told_at) {
            if answer.untold != Some(family) {
                *told_at = now;
            }
        }
        let may_stay = answer.untold.is_some_and(|family| {
            let told_at = self.told_at[usize::from(family == Family::V6)];
            now.since(told_at) <= settings.interval_max.max(settings.interval_min)
        });
        Taken::of(answer, &self.known, may_stay, settings)
    }

    fn take(&mut self, answer: Result<Taken, NoAddress>, settings: DiscoverySettings, now: Instant) -> Heard {
        let DiscoverySettings { interval_min, interval_max, shrink_percent_max, .. } = settings;
        let known = &mut self.known;
        match answer {
            Ok(taken) if !self.is_doubted && shrinks(&known.addresses, &taken.addresses, shrink_percent_max) => {
                self.is_doubted = true;
                self.due = now + interval_min;
                Heard::Doubted
            }
            Ok(Taken { addresses, is_own, refused, left_out, time_to_live, found_as }) => {
                self.is_doubted = false;
                self.due = now + time_to_live.clamp(interval_min, interval_max.max(interval_min));
                let (added, gone) = (lacking(&addresses, &known.addresses), lacking(&known.addresses, &addresses));
                *known = Known {
                    addresses,
                    is_own,
                    found_as: Some(found_as),
                    refused,
                    left_out,
                    since: now,
                    failures: 0,
                    error: None,
                    failures_total: known.failures_total,
                };
                if added.is_empty() && gone.is_empty() { Heard::Same } else { Heard::Changed { added, gone } }
            }
            Err(error) => {
                self.due = now + retry_wait(known.failures, known.addresses.is_empty(), settings);
                known.failures = known.failures.saturating_add(1);
                known.failures_total += 1;
                known.error = Some(error);
                Heard::Failed
            }
        }
    }
}

/// What is taken of an answer: at least one address.
struct Taken {
    addresses: Box<[IpAddr]>,
    is_own: bool,
    refused: Box<[IpAddr]>,
    left_out: usize,
    time_to_live: Duration,
    found_as: Box<str>,
}

impl Taken {
    fn of(
        answer: NameAnswer,
        known: &Known,
        does_untold_stay: bool,
        settings: DiscoverySettings,
    ) -> Result<Self, NoAddress> {
        let NameAnswer { mut addresses, time_to_live, untold, is_own, found_as } = answer;
        let stays = |address: &&IpAddr| match untold.filter(|_| does_untold_stay) {
            Some(Family::V4) => address.is_ipv4(),
            Some(Family::V6) => address.is_ipv6(),
            None => false,
        };
        let may_stay = |address: &&IpAddr| known.is_own || settings.takes(**address);
        let kept: Vec<IpAddr> = known.addresses.iter().filter(stays).filter(may_stay).copied().collect();
        // In an order that does not depend on the resolver's: it turns them from answer to answer.
        addresses.sort_unstable();
        addresses.dedup();
        let (mut addresses, refused): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| is_own || settings.takes(*address));
        addresses.extend(kept);
        addresses.sort_unstable();
        addresses.dedup();
        match (addresses.is_empty(), refused.first()) {
            (true, Some(first)) => return Err(NoAddress::Refused(*first)),
            (true, None) => return Err(NoAddress::Unknown("it has no address".to_owned())),
            (false, _) => {}
        }
        let left_out = addresses.len().saturating_sub(ADDRESSES_MAX);
        addresses.truncate(ADDRESSES_MAX);
        Ok(Self { addresses: addresses.into(), is_own, refused: refused.into(), left_out, time_to_live, found_as })
    }
}

/// How long nobody is asked again who has failed so often before.
fn retry_wait(failures: u32, is_without: bool, settings: DiscoverySettings) -> Duration {
    let longest = if is_without { RETRY_INTERVAL_MAX_WITHOUT } else { RETRY_INTERVAL_MAX };
    let wait = settings.interval_min.saturating_mul(1 << failures.min(16));
    wait.min(longest.max(settings.interval_min))
}

/// What of these others do not have. Both are in order.
fn lacking<T: Ord + Clone>(these: &[T], others: &[T]) -> Vec<T> {
    these.iter().filter(|one| others.binary_search(one).is_err()).cloned().collect()
}

/// Whether more than this share of the old ones is gone.
fn shrinks<T: Ord + Clone>(old: &[T], new: &[T], percent_max: u32) -> bool {
    let gone = lacking(old, new).len();
    gone.saturating_mul(100) > old.len().saturating_mul(usize::try_from(percent_max).unwrap_or(100))
}

#[cfg(test)]
mod tests;
