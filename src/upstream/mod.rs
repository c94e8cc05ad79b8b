//! The services behind the gateway: which backend takes a request, over which connection, and what is tried when it fails.
//!
//! Everything here belongs to one shard. What was decided about a request is told by its [`Trail`]; counting and logging
//! are left to the floors above.

mod admission;
pub mod balance;
mod breaker;
mod discovery;
mod failure;
mod hedge;
mod held;
mod instance;
mod judge;
mod notice;
mod outlier;
mod permit;
mod pool;
pub mod probe;
mod reports;
mod retry;
mod send;
mod streaming;
mod trail;
mod tries;
mod trust;
mod window;

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use admission::{Forecast, Queue};
use balance::{Balancer, Latency, Load, Rules, Standing, Table};
use breaker::Breaker;
pub use breaker::{BreakerPolicy, CircuitCounts};
#[cfg(any(test, fuzzing))]
pub use discovery::fuzz_registered;
pub use discovery::{
    AddressKind, Discovery, DiscoverySettings, Family, Heard, HeardList, Known, KnownList, LeftOut, ListAnswer,
    ListResult, Listed, Lists, NameAnswer, NoAddress, Source, SrvRecord, names_in, registered, srv_instances,
};
pub use failure::Failure;
pub use held::{Held, Order, Orders};
pub use instance::{BackendAddress, Instance, shares};
use notice::Notices;
pub use notice::{Notice, NoticeBell};
pub use outlier::{Cause, OutlierPolicy};
use outlier::{Outlier, Trial};
use permit::RequestPermit;
pub use pool::Caught;
use pool::{ConnectionPool, Doubt};
use probe::Verdict;
pub use reports::{InstanceCounts, InstanceId, InstanceReport};
use retry::RetryBudget;
pub use retry::{Backoff, RetryRules};
pub use send::{Asker, Call};
pub use streaming::{Streaming, SwitchedBackend};
pub use trail::{Trail, Unusual};
pub use tries::{FailedTry, Tries, UnderWay};
use trust::{BackendTrust, Trust};
pub use window::FailureShare;

use crate::{
    net::{AnswerLimits, ClientConnection},
    shard::{Instant, Local, clock},
    telemetry::metrics::CircuitState,
};

/// How an upstream is used. From the configuration; limits of the process are this shard's share already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For the handshakes of TCP and TLS together.
    pub connect_timeout: Duration,
    /// How long a connection may be idle before it is closed.
    pub idle_timeout: Duration,
    /// Idle connections kept for each backend.
    pub idle_max: usize,
    /// Bounds of what its backends answer before the body.
    pub answers: AnswerLimits,
    /// Requests under way on the upstream; past it the circuit is open.
    pub requests_max: u32,
    /// How many of these may be without the last byte of their body.
    pub uploads_max: u32,
    /// Retries that have no answer yet.
    pub retries_at_once_max: u32,
    /// Share of the requests that may be retried.
    pub retry_percent: u32,
    /// Retries that are always allowed, in thousandths a second.
    pub retry_min_milli_per_s: u32,
    /// How long to wait before them.
    pub backoff: Backoff,
    /// Whether a request is refused whose deadline will be missed.
    pub sheds_by_deadline: bool,
    /// How long requests may stand in line for the shard.
    pub queue_max: Duration,
    /// When a failing backend is left out.
    pub outlier: OutlierPolicy,
    /// When nothing is sent at all.
    pub breaker: BreakerPolicy,
    /// How a backend is chosen.
    pub balance: Rules,
    /// Where the gateway stands: backends of the same zone come first.
    pub zone: Option<Arc<str>>,
    /// Whether backends are used only while probes find them well.
    pub is_probed: bool,
}

/// A named group of backends. One per shard; it outlives a reload that keeps its name.
#[derive(Debug)]
pub struct Upstream {
    state: Local<UpstreamState>,
}

#[derive(Debug)]
struct UpstreamState {
    settings: Settings,
    backends: Vec<Rc<Backend>>,
    /// Their places, in the order of what they are known by.
    by_address: Vec<u32>,
    /// Those that are no instances any more, while requests are under way on them.
    leaving: Vec<Rc<Backend>>,
    budget: RetryBudget,
    forecast: Forecast,
    queue: Queue,
    rng: fastrand::Rng,
    in_flight: u32,
    /// How many of these have no answer yet.
    waiting: u32,
    uploading: u32,
    retrying: u32,
    latency_us: u32,
    tried_at: Option<Instant>,
    /// Whose places are those of `backends`.
    balancer: Balancer,
    /// When the next backend that was left out comes back.
    returns_at: Instant,
    /// Whether a backend is on trial.
    has_trials: bool,
    breaker: Breaker,
    /// That the circuit has opened was noticed, and not yet that it is closed again.
    has_opened: bool,
    notices: Notices,
    /// Ejections that no request's trail tells of, since somebody asked.
    late_ejections: u32,
    bell: Option<Rc<NoticeBell>>,
    /// What connections are made by to backends that speak TLS.
    trust: Option<Trust>,
}

/// One server of an upstream, as this shard knows it. Kept across a reload that keeps its address.
#[derive(Debug)]
pub struct Backend {
    at: BackendAddress,
    id: InstanceId,
    /// One that comes back later is another, and counts anew.
    made_at: Instant,
    state: Local<BackendState>,
}

#[derive(Debug, Default)]
struct BackendState {
    pool: ConnectionPool,
    trust: BackendTrust,
    outlier: Outlier,
    latency: Latency,
    probed: Probed,
    /// Its weight, unless an operator wants another one.
    weight: u16,
    /// What an operator wants of it.
    order: Order,
    /// When it came to an upstream that had others.
    came_at: Option<Instant>,
    in_flight: u32,
    last_error: Option<&'static str>,
    counts: InstanceCounts,
    /// Of one that is leaving: all that was counted of it has been told.
    is_told: bool,
}

/// What probes have found of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Probed {
    /// Nothing yet.
    #[default]
    Untested,
    /// Nothing yet, and it was in use before there were probes: it stays in use until they speak against it.
    Trusted,
    /// It is well; since when, if it was not, or came to an upstream that had others.
    Up { since: Option<Instant> },
    /// It answers, and says that it is not.
    Unwell,
    /// It does not answer.
    Down,
}

/// What an operator sees of an upstream on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Backends that are neither ejected nor failing in a row, nor down by their probes or untested.
    pub healthy: usize,
    /// Those of them that get requests: no operator holds them out of use, and their weight is not 0.
    pub serving: usize,
    /// All backends.
    pub total: usize,
    /// Requests under way.
    pub in_flight: u32,
    /// How many of these have a body that is still coming in.
    pub uploading: u32,
    /// Idle connections.
    pub idle: usize,
    /// Connections that are held out of use until it is known that nothing comes behind their last answers.
    pub held: usize,
    /// Backends that sent something unasked of late.
    pub distrusted: usize,
    /// How the circuit stands; open also while as many requests are under way as may be.
    pub circuit: CircuitState,
    /// Whether nothing is sent because requests failed.
    pub is_failing: bool,
    /// Backends that are ejected.
    pub ejected: usize,
    /// How long answers took of late: a moving average, in microseconds.
    pub latency_us: u32,
    /// When an attempt ended last, well or not; `None` while nobody has asked for anything.
    pub tried_at: Option<Instant>,
    /// Whether backends are used that are not well, because too few are.
    pub is_panicking: bool,
    /// The class of the last failure, while a backend fails: `refused`, `timeout`, `closed`, `malformed` or `status`.
    pub error: Option<&'static str>,
}

impl Upstream {
    /// An upstream without backends; `update` gives them. The seed makes the balancer's choices repeatable.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let budget = RetryBudget::new(settings.retry_percent, settings.retry_min_milli_per_s, clock::now());
        let balancer = Balancer::new(settings.balance, seed);
        let state = UpstreamState {
            settings,
            backends: Vec::new(),
            by_address: Vec::new(),
            leaving: Vec::new(),
            budget,
            forecast: Forecast::default(),
            queue: Queue::default(),
            rng: fastrand::Rng::with_seed(seed.rotate_left(32)),
            in_flight: 0,
            waiting: 0,
            uploading: 0,
            retrying: 0,
            latency_us: 0,
            tried_at: None,
            balancer,
            returns_at: Instant::NEVER,
            has_trials: false,
            breaker: Breaker::default(),
            has_opened: false,
            notices: Notices::default(),
            late_ejections: 0,
            bell: None,
            trust: None,
        };
        Self { state: Local::new(state) }
    }

    /// Takes a new configuration. Backends that stay keep their connections and what is known of their health. `table` is
    /// that of these backends, where they are chosen by key.
    pub fn update(&self, settings: Settings, instances: &[Instance], table: Option<Arc<Table>>) {
        self.state.with(|state| {
            if !settings.is_probed {
                // Probes that begin later begin with nothing, but not with nobody: all would go to the first that answers.
                for backend in state.backends.iter().chain(&state.leaving) {
                    backend.state.with(|state| state.probed = Probed::Trusted);
                }
            }
            state.budget.set(settings.retry_percent, settings.retry_min_milli_per_s);
            if settings.outlier.share != state.settings.outlier.share {
                for backend in state.backends.iter().chain(&state.leaving) {
                    backend.state.with(|state| state.outlier.forget_window());
                }
            }
            if settings.breaker != state.settings.breaker {
                let now = clock::now();
                state.breaker.update(now, &settings.breaker);
                state.notice_circuit(now);
            }
            state.settings = settings;
        });
        self.ring();
        self.replace_backends(instances, table);
    }

    /// Takes these backends in the place of those that it has. Those that stay keep their connections and what is known of
    /// their health; those that go get no new request and finish what they have, and their idle connections close.
    pub fn replace_backends(&self, instances: &[Instance], table: Option<Arc<Table>>) {
        let now = clock::now();
        let gone = self.state.with(|state| {
            // What comes with the upstream has nobody to come behind.
            let came_at = (!state.backends.is_empty()).then_some(now);
            let mut known: BTreeMap<_, _> = (state.backends.drain(..).chain(state.leaving.drain(..)))
                .map(|backend| (backend.at.clone(), backend))
                .collect();
            let is_probed = state.settings.is_probed;
            let probed = if is_probed { Probed::Untested } else { Probed::Trusted };
            let fresh = |at: &BackendAddress| {
                let state = BackendState { probed, came_at, ..BackendState::default() };
                Rc::new(Backend { at: at.clone(), id: at.id(), made_at: now, state: Local::new(state) })
            };
            let backend = |Instance { at, .. }: &Instance| known.remove(at).unwrap_or_else(|| fresh(at));
            state.backends = instances.iter().map(backend).collect();
            state.by_address = (0..).take(state.backends.len()).collect();
            let UpstreamState { backends, by_address, .. } = state;
            by_address.sort_unstable_by(|one, other| backends[*one as usize].at.cmp(&backends[*other as usize].at));
            for (backend, instance) in state.backends.iter().zip(instances) {
                // Whoever has been weighed otherwise is weighed again.
                backend.state.with(|state| (state.weight, state.order.weight) = (instance.weight, None));
            }
            let gone: Vec<_> = known.into_values().collect();
            for backend in &gone {
                backend.state.with(|state| state.is_told = false);
            }
            state.leaving.clone_from(&gone);
            let standings = state.backends.iter().map(|backend| backend.standing(is_probed, now));
            let shares = shares(instances, state.settings.zone.as_deref());
            state.balancer.set(state.settings.balance, shares.into_iter().zip(standings), table);
            state.renew(now);
            gone
        });
        for backend in gone {
            backend.close_idle();
        }
    }

    /// Probes have come to a verdict of a backend: another one, or one that is up has gone well again. One that was down and is up
    /// is let in whatever it was ejected for.
    pub fn probed(&self, at: &BackendAddress, verdict: Verdict, now: Instant) {
        self.state.with(|state| {
            let UpstreamState { backends, by_address, .. } = state;
            let Ok(found) = by_address.binary_search_by(|place| backends[*place as usize].at.cmp(at)) else { return };
            let has_changed = backends[by_address[found] as usize].state.with(|backend| {
                if verdict == Verdict::Up && matches!(backend.probed, Probed::Up { .. }) {
                    backend.outlier.answers_probes();
                    return false;
                }
                backend.probed = match (verdict, backend.probed) {
                    (Verdict::Unknown, known) => known,
                    (Verdict::Unwell, _) => Probed::Unwell,
                    (Verdict::Down, _) => Probed::Down,
                    (Verdict::Up, Probed::Untested) => Probed::Up { since: backend.came_at.map(|_| now) },
                    (Verdict::Up, Probed::Trusted) => Probed::Up { since: backend.came_at },
                    (Verdict::Up, Probed::Unwell | Probed::Down | Probed::Up { .. }) => Probed::Up { since: Some(now) },
                };
                if verdict == Verdict::Up {
                    backend.outlier.readmit(now);
                    backend.latency = Latency::default();
                }
                true
            });
            if !has_changed {
                return;
            }
            if verdict == Verdict::Up {
                state.breaker.hint_well(now);
            }
            // With the next request: a thousand verdicts in one turn renew it once.
            state.returns_at = Instant::START;
        });
    }

    /// Closes connections that have been idle for too long, or that their backends have closed or sent something on.
    pub fn sweep(&self, now: Instant) {
        let (backends, idle_max) = self.state.with(|state| (state.backends.clone(), state.settings.idle_max));
        for backend in backends {
            backend.state.with(|backend| backend.pool.sweep(now, idle_max));
        }
        self.close_leaving();
    }

    /// Closes what is idle of backends that are leaving, and forgets those on which nothing is under way any more once all that
    /// was counted of them has been told.
    fn close_leaving(&self) {
        let leaving = self.state.with(|state| {
            let leaving = state.leaving.clone();
            state.leaving.retain(|backend| backend.is_busy() || !backend.state.with(|state| state.is_told));
            leaving
        });
        for backend in leaving {
            backend.close_idle();
        }
    }

    /// What its backends were caught at since this was asked last, for each that was.
    pub fn take_caught(&self) -> Vec<(Rc<Backend>, Caught)> {
        let caught = |backend: &Rc<Backend>| backend.state.with(|backend| backend.pool.take_caught());
        self.state.with(|state| {
            let backends = state.backends.iter().map(|backend| (Rc::clone(backend), caught(backend)));
            backends.filter(|(_, caught)| *caught != Caught::default()).collect()
        })
    }

    /// How it stands on this shard.
    pub fn report(&self, now: Instant) -> Report {
        self.state.with(|state| {
            if now >= state.returns_at {
                state.renew(now);
            }
            let mut report = Report {
                total: state.backends.len(),
                in_flight: state.in_flight,
                uploading: state.uploading,
                circuit: match state.in_flight {
                    in_flight if in_flight >= state.settings.requests_max => CircuitState::Open,
                    _ => state.breaker.state(now),
                },
                is_failing: state.breaker.state(now) == CircuitState::Open,
                latency_us: state.latency_us,
                tried_at: state.tried_at,
                is_panicking: state.balancer.is_panicking(),
                ..Report::default()
            };
            let policy = state.settings.outlier;
            for backend in &state.backends {
                // What an operator holds out of use may be well.
                let is_usable =
                    matches!(backend.standing_unheld(state.settings.is_probed, now), Standing::Usable { .. });
                backend.state.with(|backend| {
                    let is_healthy = is_usable && !backend.outlier.is_failing(&policy);
                    report.healthy += usize::from(is_healthy);
                    report.serving += usize::from(is_healthy && backend.order.gives_any(backend.weight));
                    report.ejected += usize::from(backend.outlier.is_out(now));
                    report.idle += backend.pool.len();
                    report.held += backend.pool.held();
                    report.distrusted += usize::from(backend.pool.is_distrusted(now));
                    report.error = report.error.or(backend.last_error.filter(|_| !is_healthy));
                });
            }
            report
        })
    }

    /// Chooses a backend, other than those that failed if there is a choice, and other than the last of them in any case if
    /// there is another. `key` is what stays with one.
    fn choose(&self, now: Instant, key: Option<u64>, failed: &[Rc<Backend>]) -> Option<Rc<Backend>> {
        let Some(last) = failed.last() else { return self.choose_among(now, key, |_| true) };
        let is_fresh = |backend: &Rc<Backend>| !failed.iter().any(|failed| Rc::ptr_eq(failed, backend));
        self.choose_among(now, key, is_fresh)
            .or_else(|| self.choose_among(now, key, |backend| !Rc::ptr_eq(last, backend)))
            .or_else(|| self.choose_among(now, key, |_| true))
    }

    /// Chooses one of these backends.
    fn choose_among(
        &self,
        now: Instant,
        key: Option<u64>,
        is_meant: impl Fn(&Rc<Backend>) -> bool,
    ) -> Option<Rc<Backend>> {
        self.state.with(|state| {
            if now >= state.returns_at {
                state.renew(now);
            }
            let UpstreamState { backends, balancer, in_flight, has_trials, .. } = state;
            let load = |place: usize| {
                let load =
                    |state: &mut BackendState| Load { in_flight: state.in_flight, latency_us: state.latency.us(now) };
                backends[place].state.with(load)
            };
            // One on trial gets a second request only where nobody else would.
            let takes = |place: usize| backends[place].state.with(|state| state.outlier.takes(now));
            let is_wanted = |place: usize| is_meant(&backends[place]) && (!*has_trials || takes(place));
            let chosen = balancer.choose(now, key, *in_flight, load, is_wanted);
            let chosen = match chosen {
                None if *has_trials => balancer.choose(now, key, *in_flight, load, |place| is_meant(&backends[place])),
                chosen => chosen,
            };
            chosen.map(|place| Rc::clone(&backends[place]))
        })
    }
}

impl UpstreamState {
    /// Takes over who is left out now, and until when.
    fn renew(&mut self, now: Instant) {
        let Self { backends, balancer, returns_at, settings, has_trials, .. } = self;
        let out_until = |backend: &Rc<Backend>| backend.state.with(|state| state.outlier.out_until(now));
        *returns_at = backends.iter().filter_map(out_until).min().unwrap_or(Instant::NEVER);
        *has_trials = backends.iter().any(|backend| backend.state.with(|state| state.outlier.is_on_trial(now)));
        balancer.stand(backends.iter().map(|backend| backend.standing(settings.is_probed, now)));
    }
}

impl Backend {
    /// As configured: `host:port`, or `https://host`.
    pub fn name(&self) -> &str {
        &self.at.name
    }

    /// What its requests carry as `Host`.
    pub fn authority(&self) -> &str {
        self.at.authority()
    }

    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.at.is_https()
    }

    /// Whether both are addresses of one name. Sockets with paths have none.
    fn has_name_of(&self, other: &Self) -> bool {
        self.at.address.ip().is_some() && other.at.address.ip().is_some() && self.at.name == other.at.name
    }

    fn standing(&self, is_probed: bool, now: Instant) -> Standing {
        held::standing(self.state.with(|state| state.order.held), self.standing_unheld(is_probed, now))
    }

    fn standing_unheld(&self, is_probed: bool, now: Instant) -> Standing {
        self.state.with(|state| {
            match state.outlier.out_for(now) {
                Some(Cause::InARow) => return Standing::Unusable,
                // It answers, at times.
                Some(Cause::Share) => return Standing::Unwell,
                None => {}
            }
            let since = match state.probed {
                _ if !is_probed => state.came_at,
                Probed::Untested => return Standing::Untested,
                Probed::Unwell => return Standing::Unwell,
                Probed::Down => return Standing::Unusable,
                Probed::Trusted => state.came_at,
                Probed::Up { since } => since,
            };
            Standing::Usable { since: since.max(state.outlier.back_since()) }
        })
    }

    fn close_idle(&self) {
        let pool = self.state.with(|state| std::mem::take(&mut state.pool));
        drop(pool);
    }

    /// Whether a request is under way on it.
    fn is_busy(&self) -> bool {
        self.state.with(|state| state.in_flight > 0)
    }
}

/// A connection in use by one exchange, and its backend's count of requests under way. Dropping it closes the connection.
#[derive(Debug)]
struct Lease {
    backend: Rc<Backend>,
    connection: Option<Box<ClientConnection>>,
    idle_timeout: Duration,
    idle_max: usize,
    /// What it tries of a backend that was left out.
    trial: Option<Trial>,
    /// By which trust its connection was made; see [`BackendTrust::changes`].
    trusted_by: u32,
}

impl Lease {
    fn connection(&mut self) -> &mut ClientConnection {
        self.connection.as_mut().expect("a lease has its connection until it ends")
    }

    /// Ends the lease and keeps the connection for later, for as long as the backend said that it keeps it, less a
    /// margin for the way.
    fn give_back(mut self, keep_alive: Option<Duration>, doubt: Option<Doubt>, now: Instant) {
        let margin = Duration::from_secs(1);
        let idle = keep_alive.map_or(self.idle_timeout, |hint| self.idle_timeout.min(hint.saturating_sub(margin)));
        if let Some(connection) = self.connection.take_if(|_| !idle.is_zero()) {
            let until = now + idle;
            self.backend.state.with(|state| {
                if state.trust.changes() == self.trusted_by {
                    state.pool.give(connection, now, until, doubt, self.idle_max);
                }
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let trial = self.trial;
        self.backend.state.with(|state| {
            state.in_flight -= 1;
            if let Some(trial) = trial {
                state.outlier.end(trial);
            }
        });
    }
}

#[cfg(test)]
mod failure_simulation;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
