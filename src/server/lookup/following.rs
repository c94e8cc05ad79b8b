//! What one configuration names is followed: asked for when it is due, and what comes of it is kept in [`Discovery`] and
//! [`Lists`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{self, AbortHandle},
};

use super::{
    said::{Said, SaidList},
    sources::Ask,
};
use crate::{
    config::Instance,
    gateway::Wanted,
    shard::{Instant, clock},
    upstream::{
        Discovery, DiscoverySettings, Heard, HeardList, Known, KnownList, ListResult, Lists, NameAnswer, NoAddress,
        Source, names_in,
    },
};

/// How long a new list waits for the names in it to be looked up. Until then the one before it serves.
pub(super) const LISTED_NAMES_WAIT: Duration = Duration::from_secs(5);

/// What one configuration names. Lives on the control thread; whoever drops it asks no more.
#[derive(Debug)]
pub(super) struct Following<A> {
    pub(super) discovery: Discovery,
    pub(super) lists: Lists,
    /// The lists that serve.
    serving: BTreeMap<Source, Box<[Instance]>>,
    /// Those with a list that does not serve yet, and since when they have one: however often it becomes another meanwhile.
    waiting: BTreeMap<Source, Instant>,
    wanted: Wanted,
    /// The lists may have other names than are followed.
    is_stale: bool,
    pub(super) sources: A,
    /// Questions that are not answered yet.
    under_way: BTreeMap<Subject, Question>,
    /// Counts questions.
    asked: u64,
    said: BTreeMap<Box<str>, Said>,
    said_of_lists: BTreeMap<Source, SaidList>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
}

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Name(Box<str>),
    List(Source),
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
    number: u64,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Name(Box<str>, Result<NameAnswer, NoAddress>),
    List(Source, ListResult),
}

/// Tells what came of a question, whatever ends its task.
struct Telling {
    told: Option<Told>,
    tell: mpsc::UnboundedSender<Told>,
}

impl Telling {
    async fn wait_for(mut self, asked: impl Future<Output = Answer>) {
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

impl<A: Ask> Following<A> {
    /// Follows nothing yet.
    pub(super) fn new(sources: A, settings: DiscoverySettings) -> Self {
        Self::of(sources, Discovery::new(settings), Lists::new(settings))
    }

    fn of(sources: A, discovery: Discovery, lists: Lists) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self {
            discovery,
            lists,
            serving: BTreeMap::new(),
            waiting: BTreeMap::new(),
            wanted: Wanted::default(),
            is_stale: false,
            sources,
            under_way: BTreeMap::new(),
            asked: 0,
            said: BTreeMap::new(),
            said_of_lists: BTreeMap::new(),
            tell,
            told,
        }
    }

    /// What another configuration names, asked for as that one says. What is known already is taken along.
    pub(super) fn fork(&self, sources: A, settings: DiscoverySettings, wanted: Wanted) -> Self {
        let now = clock::now();
        let (discovery, lists) = (self.discovery.fork(settings, now), self.lists.fork(settings, now));
        let mut fork = Self::of(sources, discovery, lists);
        fork.lists.follow(&wanted.sources, now);
        // As far as they may be taken still.
        let serves = |(source, known): (&Source, &KnownList)| {
            // They are in order.
            let place = |one: &Instance| known.instances.binary_search_by(|other| other.address.cmp(&one.address));
            let is_taken = |one: &&Instance| place(one).is_ok();
            let serving = self.serving.get(source)?.iter().filter(is_taken).cloned().collect();
            Some((source.clone(), serving))
        };
        fork.serving = fork.lists.sources().filter_map(serves).collect();
        let waits = |(source, known): (&Source, &KnownList)| {
            let does_serve = known.instances.is_empty() || fork.serving.get(source) == Some(&known.instances);
            (!does_serve).then(|| (source.clone(), self.waiting.get(source).copied().unwrap_or(now)))
        };
        fork.waiting = fork.lists.sources().filter_map(waits).collect();
        fork.wanted = wanted;
        fork.follow(now);
        fork
    }

    /// What was counted in the place of this one counts on.
    pub(super) fn join(&mut self, origin: &Self) {
        self.discovery.join(&origin.discovery);
        self.lists.join(&origin.lists);
    }

    /// Follows the names that are wanted now: those of the configuration, and those in lists.
    fn follow(&mut self, now: Instant) {
        let listed = self.lists.sources().flat_map(|(_, known)| known.names());
        let serving = self.serving.values().flat_map(|instances| names_in(instances));
        let names: BTreeSet<Box<str>> =
            self.wanted.names.iter().map(|name| &**name).chain(listed).chain(serving).map(Box::from).collect();
        self.discovery.follow(&names, now);
        let sources = &self.wanted.sources;
        self.under_way.retain(|subject, _| match subject {
            Subject::Name(name) => names.contains(name),
            Subject::List(source) => sources.contains(source),
        });
        self.said.retain(|name, _| names.contains(name));
        self.waiting.retain(|source, _| sources.contains(source));
        self.said_of_lists.retain(|source, _| sources.contains(source));
    }

    /// The same once for all lists that have changed since: each walks the names of all.
    fn follow_lists(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_stale) {
            self.follow(now);
        }
    }

    /// Asks for all that is due.
    pub(super) fn ask_due(&mut self, now: Instant) {
        self.follow_lists(now);
        for source in self.lists.take_due(now) {
            let asked = self.sources.list(&source);
            let ended = Answer::List(source.clone(), Err("whoever was asked panicked".to_owned()));
            let of = source.clone();
            self.ask(Subject::List(source), ended, async move { Answer::List(of, asked.await) });
        }
        for name in self.discovery.take_due(now) {
            let found_as = self.discovery.known(&name).and_then(|known| known.found_as.as_deref());
            let asked = self.sources.name(&name, found_as);
            let ended = Answer::Name(name.clone(), Err(NoAddress::Unknown("the resolver panicked".to_owned())));
            let of = name.clone();
            self.ask(Subject::Name(name), ended, async move { Answer::Name(of, asked.await) });
        }
    }

    fn ask(&mut self, subject: Subject, ended: Answer, asked: impl Future<Output = Answer> + Send + 'static) {
        self.asked += 1;
        let number = self.asked;
        let telling = Telling { told: Some(Told { number, answer: ended }), tell: self.tell.clone() };
        let task = task::spawn(telling.wait_for(asked));
        self.under_way.insert(subject, Question { number, task: task.abort_handle() });
    }

    /// Whether anything is asked of DNS.
    pub(super) fn asks_dns(&self) -> bool {
        let has_srv = self.wanted.sources.iter().any(|source| matches!(source, Source::Srv(_)));
        has_srv || self.discovery.names().next().is_some()
    }

    /// When there is something to ask for, or a list has waited long enough.
    pub(super) fn asks_at(&self) -> Instant {
        let waiting = self.waiting.values().map(|since| *since + LISTED_NAMES_WAIT);
        waiting.fold(self.discovery.asks_at().min(self.lists.asks_at()), Instant::min)
    }

    /// The next answer; nothing if all is to be asked for anew instead. Dropping the future loses nothing.
    pub(super) async fn answer(&mut self) -> Option<Told> {
        tokio::select! {
            told = self.told.recv() => Some(told.expect("this holds a sender")),
            () = self.sources.changed() => None,
        }
    }

    /// Takes an answer and all others that have come, and tells the log unless another following tells of the same.
    pub(super) fn take(&mut self, told: Option<Told>, another: Option<&Self>) {
        let Some(told) = told else {
            let now = clock::now();
            self.discovery.ask_all(now);
            return self.lists.ask_all(now);
        };
        self.take_one(told, another);
        while let Ok(told) = self.told.try_recv() {
            self.take_one(told, another);
        }
    }

    fn take_one(&mut self, Told { number, answer }: Told, another: Option<&Self>) {
        let subject = match &answer {
            Answer::Name(name, _) => Subject::Name(name.clone()),
            Answer::List(source, _) => Subject::List(source.clone()),
        };
        // Of what was forgotten meanwhile.
        if self.under_way.get(&subject).is_none_or(|question| question.number != number) {
            return;
        }
        self.under_way.remove(&subject);
        let now = clock::now();
        match answer {
            Answer::Name(name, answer) => {
                let is_told = another.is_some_and(|another| another.discovery.known(&name).is_some());
                self.take_name(&name, answer, is_told, now);
            }
            Answer::List(source, answer) => {
                let is_told = another.is_some_and(|another| another.lists.known(&source).is_some());
                self.take_list(&source, answer, is_told, now);
            }
        }
    }

    fn take_name(&mut self, name: &str, answer: Result<NameAnswer, NoAddress>, is_told: bool, now: Instant) {
        let known = |discovery: &Discovery| discovery.known(name).cloned().unwrap_or_default();
        let before = known(&self.discovery);
        let heard = self.discovery.answered(name, answer, now);
        if is_told || heard == Heard::Same && before.failures == 0 {
            return;
        }
        let known = known(&self.discovery);
        self.said.entry(name.into()).or_default().tell(name, &heard, &before, &known, now);
    }

    fn take_list(&mut self, source: &Source, answer: ListResult, is_told: bool, now: Instant) {
        let before = self.lists.known(source).map_or(0, |known| known.left_out.count);
        let heard = self.lists.answered(source, answer, now);
        if matches!(heard, HeardList::Changed { .. }) {
            self.waiting.entry(source.clone()).or_insert(now);
            self.is_stale = true;
        }
        if let Some(known) = self.lists.known(source).filter(|_| !is_told) {
            let said = self.said_of_lists.entry(source.clone()).or_default();
            said.tell(source, &heard, before, known, now);
        }
    }

    /// New lists serve once there is an answer for each of their names, or that has taken too long. A list that serves at
    /// once would leave an upstream without instances meanwhile.
    pub(super) fn serve(&mut self, now: Instant) {
        // What is not followed counts as heard.
        self.follow_lists(now);
        let due = |(source, since): (&Source, &Instant)| {
            let known = self.lists.known(source)?;
            let is_due = now >= *since + LISTED_NAMES_WAIT || known.names().all(|name| self.is_name_heard(name));
            is_due.then(|| (source.clone(), known.instances.clone()))
        };
        let due: Vec<_> = self.waiting.iter().filter_map(due).collect();
        if !due.is_empty() {
            for (source, _) in &due {
                self.waiting.remove(source);
            }
            self.serving.extend(due);
            self.discovery.note_change();
            self.is_stale = true;
        }
    }

    fn is_name_heard(&self, name: &str) -> bool {
        self.discovery.known(name).is_none_or(Known::is_heard)
    }

    /// Whether somebody has said what there is of all this; also where nobody asks.
    pub(super) fn is_heard(&self, wanted: &Wanted) -> bool {
        let is_list_heard = |source: &Source| match self.lists.known(source) {
            None => true,
            Some(known) if known.instances.is_empty() => known.is_heard(),
            Some(_) => !self.waiting.contains_key(source),
        };
        wanted.names.iter().all(|name| self.is_name_heard(name)) && wanted.sources.iter().all(is_list_heard)
    }

    /// The lists that serve; of a source that has none why not.
    pub(super) fn serving(&self) -> BTreeMap<Source, Result<Box<[Instance]>, Box<str>>> {
        let of = |(source, known): (&Source, &KnownList)| {
            let none = || known.error.clone().unwrap_or_else(|| "nobody has answered yet".into());
            (source.clone(), self.serving.get(source).cloned().filter(|list| !list.is_empty()).ok_or_else(none))
        };
        self.lists.sources().map(of).collect()
    }
}
