//! What one configuration names is followed: asked for when it is due, and what comes of it is kept in [`Discovery`].

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    sync::mpsc,
    task::{self, AbortHandle},
};

use super::said::Said;
use crate::{
    server::resolver::{Asked, Resolve},
    shard::{Instant, clock},
    upstream::{Discovery, DiscoverySettings, Heard, Known, NameAnswer, NoAddress},
};

/// The names of one configuration. Lives on the control thread; whoever drops it asks no more.
#[derive(Debug)]
pub(super) struct Following<R> {
    pub(super) discovery: Discovery,
    pub(super) resolver: R,
    /// Questions that are not answered yet, by their names.
    under_way: BTreeMap<Box<str>, Question>,
    /// Counts questions.
    asked: u64,
    said: BTreeMap<Box<str>, Said>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
}

#[derive(Debug)]
struct Question {
    number: u64,
    task: AbortHandle,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to a question, or that its task has ended without one.
#[derive(Debug)]
pub(super) struct Told {
    name: Box<str>,
    number: u64,
    answer: Result<NameAnswer, NoAddress>,
}

/// Tells what came of a question, whatever ends its task.
struct Telling {
    told: Option<Told>,
    tell: mpsc::UnboundedSender<Told>,
}

impl Telling {
    async fn wait_for(mut self, asked: Asked) {
        let answer = asked.await;
        if let Some(told) = &mut self.told {
            told.answer = answer;
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // Nobody listens any more when the configuration was given up, or the process ends.
            let _ = self.tell.send(told);
        }
    }
}

impl<R: Resolve> Following<R> {
    /// Follows no name yet.
    pub(super) fn new(resolver: R, settings: DiscoverySettings) -> Self {
        Self::of(resolver, Discovery::new(settings))
    }

    fn of(resolver: R, discovery: Discovery) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { discovery, resolver, under_way: BTreeMap::new(), asked: 0, said: BTreeMap::new(), tell, told }
    }

    /// What another configuration names, asked for as that one says. What is known already is taken along.
    pub(super) fn fork(&self, resolver: R, settings: DiscoverySettings, names: &BTreeSet<Box<str>>) -> Self {
        let now = clock::now();
        let mut fork = Self::of(resolver, self.discovery.fork(settings, now));
        fork.follow(names, now);
        fork
    }

    fn follow(&mut self, names: &BTreeSet<Box<str>>, now: Instant) {
        self.discovery.follow(names, now);
        self.under_way.retain(|name, _| names.contains(name));
        self.said.retain(|name, _| names.contains(name));
    }

    /// Asks for all that is due.
    pub(super) fn ask_due(&mut self, now: Instant) {
        for name in self.discovery.take_due(now) {
            self.ask(name);
        }
    }

    fn ask(&mut self, name: Box<str>) {
        self.asked += 1;
        let number = self.asked;
        let found_as = self.discovery.known(&name).and_then(|known| known.found_as.as_deref());
        let asked = self.resolver.ask(&name, found_as);
        let ended = Err(NoAddress::Unknown("the resolver panicked".to_owned()));
        let told = Told { name: name.clone(), number, answer: ended };
        let telling = Telling { told: Some(told), tell: self.tell.clone() };
        let task = task::spawn(telling.wait_for(asked));
        self.under_way.insert(name, Question { number, task: task.abort_handle() });
    }

    /// The next answer. Dropping the future loses nothing.
    pub(super) async fn answer(&mut self) -> Told {
        self.told.recv().await.expect("this holds a sender")
    }

    /// Takes an answer, and tells the log unless this name is told of by another.
    pub(super) fn take(&mut self, Told { name, number, answer }: Told, is_told_by_another: impl Fn(&str) -> bool) {
        // Of a name that was forgotten meanwhile.
        if self.under_way.get(&name).is_none_or(|question| question.number != number) {
            return;
        }
        self.under_way.remove(&name);
        let now = clock::now();
        let known = |discovery: &Discovery| discovery.known(&name).cloned().unwrap_or_default();
        let before = known(&self.discovery);
        let heard = self.discovery.answered(&name, answer, now);
        if is_told_by_another(&name) || heard == Heard::Same && before.failures == 0 {
            return;
        }
        let known = known(&self.discovery);
        self.said.entry(name.clone()).or_default().tell(&name, &heard, &before, &known, now);
    }

    /// Whether somebody has said what there is of this name; also where nobody asks.
    pub(super) fn is_heard(&self, name: &str) -> bool {
        self.discovery.known(name).is_none_or(Known::is_heard)
    }
}
