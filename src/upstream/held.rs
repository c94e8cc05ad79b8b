//! What operators want of backends, whatever probes and requests say of them: held out of use, another weight.

use std::{collections::BTreeMap, rc::Rc};

use super::{BackendAddress, BackendState, Upstream, balance::Standing};
use crate::shard::clock;

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

impl Order {
    /// Whether a backend of this weight gets requests by it, all else aside.
    pub fn gives_any(&self, weight: u16) -> bool {
        self.held.is_none() && self.weight.unwrap_or(weight) > 0
    }
}

/// All that operators want, by the upstream's name. A snapshot, on all shards.
pub type Orders = BTreeMap<String, Vec<(BackendAddress, Order)>>;

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
                    closed.push(Rc::clone(backend));
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
}

/// How a backend stands that would stand so, if nobody held it.
pub(super) fn standing(held: Option<Held>, otherwise: Standing) -> Standing {
    match held {
        None => otherwise,
        Some(Held::Ejected) => Standing::Held { keeps_keys: false },
        Some(Held::Drained) => Standing::Held { keeps_keys: matches!(otherwise, Standing::Usable { .. }) },
    }
}
