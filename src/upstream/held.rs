//! What operators want of backends, whatever probes and requests say of them: held out of use, another weight; and what is told
//! of each backend.

use std::collections::BTreeMap;

use super::{Backend, BackendAddress, BackendState, Upstream, UpstreamState, balance::Standing};
use crate::shard::{Instant, clock};

/// How an operator holds a backend out of use. What is under way on it is finished in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It gets no new requests, but for those whose key is its own.
    Drained,
    /// It gets none.
    Ejected,
}

impl Held {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Ejected => "ejected",
        }
    }
}

/// What an operator wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Whether it is held out of use.
    pub held: Option<Held>,
    /// Its weight, if it is another one than it has otherwise.
    pub weight: Option<u16>,
}

/// All that operators want, by the upstream's name. A snapshot, on all shards.
pub type Orders = BTreeMap<String, Vec<(BackendAddress, Order)>>;

/// What an operator sees of a backend on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendReport {
    /// Which one.
    pub at: BackendAddress,
    /// Requests under way on it.
    pub in_flight: u32,
    /// How long its answers take, in microseconds; 0 while that is not known.
    pub latency_us: u32,
    /// Until when it is left out for failing.
    pub out_until: Option<Instant>,
    /// Whether it fails, and is not left out.
    pub is_failing: bool,
    /// The class of its last failure, while it fails.
    pub error: Option<&'static str>,
}

impl Upstream {
    /// This is wanted of its backends from now on, and nothing of others.
    pub fn operate(&self, orders: &[(BackendAddress, Order)]) {
        let mut closed = Vec::new();
        self.state.with(|state| {
            let mut has_changed = false;
            for backend in &state.backends {
                let wanted = orders.iter().find(|(at, _)| *at == backend.at).map(|(_, order)| *order);
                let wanted = wanted.unwrap_or_default();
                let before = backend.state.with(|state| std::mem::replace(&mut state.order, wanted));
                has_changed |= before != wanted;
                if before.held != wanted.held && wanted.held == Some(Held::Ejected) {
                    closed.push(std::rc::Rc::clone(backend));
                }
            }
            if has_changed {
                let weight = |state: &mut BackendState| state.order.weight.unwrap_or(state.weight);
                state.balancer.weigh(state.backends.iter().map(|backend| backend.state.with(weight)));
                state.renew(clock::now());
            }
        });
        for backend in closed {
            backend.close_idle();
        }
    }

    /// How each of its backends stands on this shard.
    pub fn backend_reports(&self, now: Instant) -> Vec<BackendReport> {
        self.state.with(|UpstreamState { backends, settings, .. }| {
            let policy = settings.outlier;
            let report = |backend: &std::rc::Rc<Backend>| {
                backend.state.with(|state| {
                    let (out_until, is_failing) = (state.outlier.out_until(now), state.outlier.is_failing(&policy));
                    BackendReport {
                        at: backend.at.clone(),
                        in_flight: state.in_flight,
                        latency_us: state.latency.us(now),
                        out_until,
                        is_failing,
                        error: state.last_error.filter(|_| out_until.is_some() || is_failing),
                    }
                })
            };
            backends.iter().map(report).collect()
        })
    }
}

/// How a backend stands that would stand so, if nobody held it.
pub(super) fn standing(held: Option<Held>, otherwise: Standing) -> Standing {
    match held {
        None => otherwise,
        Some(Held::Ejected) => Standing::Held { keeps_keys: false },
        Some(Held::Drained) => Standing::Held { keeps_keys: matches!(otherwise, Standing::Usable { .. }) },
    }
}
