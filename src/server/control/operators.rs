//! Changes by operators, carried out: instances held out of use, probes made at once, another level of the log. Each is told
//! by the log with who and from where.

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use tokio::sync::{oneshot, watch};

use super::{
    super::{
        letter::ToShard,
        orders::{ORDERS_MAX, OrderBook},
    },
    Control,
    report::Scraper,
};
use crate::{
    admin::{
        Access, Author, Change, Done, Refusals, Unchanged,
        state::{CHANGES_MAX, ChangeState, bounded},
    },
    telemetry::log,
    upstream::{BackendAddress, Held, Order},
};

/// What operators have done, and may do. One per process.
pub(super) struct Operators {
    pub(super) orders: OrderBook,
    /// The last one first.
    pub(super) latest: VecDeque<ChangeState>,
    /// The level of the log that one of them wants.
    pub(super) level: Option<String>,
    /// Who may ask for what, for the listener.
    pub(super) access: watch::Sender<Arc<Access>>,
    pub(super) refusals: Rc<Refusals>,
}

impl Operators {
    pub(super) fn new(access: Access) -> Self {
        Self {
            orders: OrderBook::default(),
            latest: VecDeque::new(),
            level: None,
            access: watch::Sender::new(Arc::new(access)),
            refusals: Rc::default(),
        }
    }

    fn note(&mut self, author: &Author, what: &str) {
        self.latest.truncate(CHANGES_MAX - 1);
        let (by, from) = (author.name.clone(), author.from.to_string());
        self.latest.push_front(ChangeState { at: now(), by, from, what: bounded(what) });
    }
}

/// How many addresses a name has, where it is more than one.
fn addresses(instances: &[BackendAddress]) -> String {
    if instances.len() == 1 { String::new() } else { format!(" ({} addresses)", instances.len()) }
}

/// That something is not there, and what is.
fn not_there<'n>(what: String, names: impl IntoIterator<Item = &'n str>) -> Unchanged {
    let names: Vec<_> = names.into_iter().collect();
    let there = if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
    Unchanged::NotThere(bounded(&(what + "; " + &there)))
}

/// Now, as RFC 3339 has it.
pub(super) fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

impl Control {
    /// Does what an operator wants. Of what shards have to do it is told when they do it.
    pub(super) fn change(&mut self, change: Change, author: &Author, told: oneshot::Sender<Result<Done, Unchanged>>) {
        let (kind, is_for_shards) = (change.kind(), matches!(change, Change::Hold { .. } | Change::Weigh { .. }));
        let mut level_wanted = None;
        let changed = match change {
            Change::Hold { upstream, instance, held } => self.hold(&upstream, &instance, held, author),
            Change::Weigh { upstream, instance, weight } => self.weigh(&upstream, &instance, weight, author),
            Change::Probe { upstream } => self.probe_now(&upstream),
            Change::LogLevel { level } => self.checked_level(level_wanted.insert(level).as_deref()),
        };
        let detail = match changed {
            Ok(detail) => detail,
            // Whoever asked may have left.
            Err(unchanged) => return drop(told.send(Err(unchanged))),
        };
        let (who, from) = (&author.name, author.from);
        tracing::warn!(target: log::AUDIT, who, %from, "an operator's change: {detail}");
        if let Some(level) = level_wanted {
            self.set_level(level);
        }
        self.operators.note(author, &detail);
        self.process.admin_changes[kind.index()] += 1;
        if is_for_shards {
            // A shard tells of itself after it has taken what was sent before.
            self.scrape(Scraper::Change(told, detail));
        } else {
            drop(told.send(Ok(Done { detail, shards: None })));
        }
    }

    fn hold(
        &mut self,
        upstream: &str,
        instance: &str,
        held: Option<Held>,
        author: &Author,
    ) -> Result<String, Unchanged> {
        let instances = self.named(upstream, instance)?;
        let is_held = |at: &BackendAddress| {
            self.operators.orders.of(upstream, at).is_some_and(|entry| entry.order.held.is_some())
        };
        let detail = match held {
            Some(held) => format!("is {}", held.name()),
            None if instances.iter().any(is_held) => "is let in again".to_owned(),
            None => return Err(Unchanged::Wrong(format!("{instance} of {upstream} is not held out of use"))),
        };
        self.order(upstream, &instances, author, |order| order.held = held)?;
        Ok(format!("{instance}{} of {upstream} {detail}", addresses(&instances)))
    }

    fn weigh(
        &mut self,
        upstream: &str,
        instance: &str,
        weight: Option<u16>,
        author: &Author,
    ) -> Result<String, Unchanged> {
        let instances = self.named(upstream, instance)?;
        self.order(upstream, &instances, author, |order| order.weight = weight)?;
        let detail = weight.map_or_else(|| "has its own weight again".to_owned(), |weight| format!("weighs {weight}"));
        Ok(format!("{instance}{} of {upstream} {detail}", addresses(&instances)))
    }

    fn order(
        &mut self,
        upstream: &str,
        instances: &[BackendAddress],
        author: &Author,
        change: impl Fn(&mut Order),
    ) -> Result<(), Unchanged> {
        let changed = self.operators.orders.change(upstream, instances, [&author.name, &now()], change);
        let wrong =
            || format!("operators hold or weigh as many instances as they can, {ORDERS_MAX}; return some first");
        changed.ok_or_else(|| Unchanged::Wrong(wrong()))?;
        self.tell_orders();
        Ok(())
    }

    /// Tells all shards what operators want.
    pub(super) fn tell_orders(&mut self) {
        self.process.instances_held = i64::try_from(self.operators.orders.held()).unwrap_or(i64::MAX);
        let orders = self.operators.orders.snapshot();
        self.bus.broadcast(|| ToShard::Operated(Arc::clone(&orders)));
    }

    /// The instances of an upstream that somebody means: by their name, or one by its address. Those that are held may
    /// have gone.
    fn named(&self, upstream: &str, instance: &str) -> Result<Vec<BackendAddress>, Unchanged> {
        let place = self.place_of(upstream)?;
        let there = self.lookups.current().get(place).into_iter().flatten().map(|instance| &instance.at);
        let gone = self.operators.orders.instances_of(upstream);
        let all: BTreeSet<_> = there.chain(gone).collect();
        let those = |is_meant: &dyn Fn(&BackendAddress) -> bool| -> Vec<BackendAddress> {
            all.iter().copied().filter(|at| is_meant(at)).cloned().collect()
        };
        let mut found = those(&|at| &*at.name == instance);
        if found.is_empty() {
            found = those(&|at| at.address.to_string() == instance);
        }
        if found.is_empty() {
            let names: BTreeSet<_> = all.iter().map(|at| &*at.name).collect();
            return Err(not_there(format!("{upstream} has no such instance"), names));
        }
        Ok(found)
    }

    /// Which upstream has this name.
    fn place_of(&self, upstream: &str) -> Result<usize, Unchanged> {
        let names = || self.plan.upstreams.iter().map(|upstream| &*upstream.name);
        names()
            .position(|name| name == upstream)
            .ok_or_else(|| not_there("there is no such upstream".to_owned(), names()))
    }

    fn probe_now(&mut self, upstream: &str) -> Result<String, Unchanged> {
        self.place_of(upstream)?;
        if !self.probes.ask_now(upstream) {
            return Err(Unchanged::Wrong(format!("{upstream} has no probes: [upstreams.{upstream}.health] sets them")));
        }
        Ok(format!("the instances of {upstream} are probed now"))
    }

    fn checked_level(&self, level: Option<&str>) -> Result<String, Unchanged> {
        let configured = &self.config.log.level;
        log::check_level(level.unwrap_or(configured)).map_err(|error| Unchanged::Wrong(bounded(&error.to_string())))?;
        Ok(match level {
            Some(level) => format!("the log's level is {level}"),
            None => format!("the log's level is {configured} again, as configured"),
        })
    }

    /// Sets what the log lets through; `None`: as configured.
    pub(super) fn set_level(&mut self, level: Option<String>) {
        if let Err(error) = log::set_level(level.as_ref().unwrap_or(&self.config.log.level)) {
            tracing::warn!(%error, "the level of the log stays as it is");
        }
        self.operators.level = level;
    }
}
