//! What is asked of all instances: each hears it on one channel, and answers on that of whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{
    LEASE, Rooms,
    lifecycle::NUDGE,
    names::{Names, is_node},
};
use crate::{
    bus::redis::{Link, RedisFailure, Script},
    hub::{
        bus::BusAnswer,
        name::home_of,
        others::{Others, OthersAnswer, OthersRequest, UserOrder},
    },
    shard::Local,
};

/// How long instances have to answer. Those that live take some milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Questions of others under way here; past it the oldest is not answered.
const ASKED_MAX: usize = 4096;

/// Questions to and of other instances. One per process.
pub(super) struct Questions {
    ask: Script,
    alive: Script,
    open: Local<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    /// Ours, by their numbers.
    ours: HashMap<u64, Rc<Ours>>,
    /// Instances that live and have not answered the last time: messages do not wait for them until they are heard.
    silent: BTreeSet<String>,
    /// Those of others, by our numbers for them: who asks, and under which number.
    theirs: BTreeMap<u64, (String, u64)>,
}

/// A question of ours.
#[derive(Default)]
struct Ours {
    /// What each instance has answered.
    counts: Local<BTreeMap<String, u32>>,
    came: Notify,
}

impl Questions {
    pub(super) fn new() -> Self {
        Self {
            ask: Script::new(include_str!("ask.lua")),
            alive: Script::new(include_str!("alive.lua")),
            open: Local::default(),
        }
    }

    /// What Redis is to know before any of it runs.
    pub(super) fn scripts(&self) -> [&Script; 2] {
        [&self.ask, &self.alive]
    }
}

impl Rooms {
    /// Carries out what a hub asks of other instances.
    pub(super) async fn carry_out_for_others(
        &self,
        link: &mut Link,
        request: &OthersRequest,
    ) -> Result<Option<BusAnswer>, RedisFailure> {
        match request {
            OthersRequest::Ask { ticket, user, order } => {
                let (count, others) = self.ask_others(link, user, order).await?;
                let told = OthersAnswer::Told { ticket: *ticket, count, others: Some(others) };
                Ok(Some(BusAnswer::Others(Box::new(told))))
            }
            OthersRequest::Answer { number, count } => {
                let asker = self.questions.open.with(|open| open.theirs.remove(number));
                if let Some((node, theirs)) = asker {
                    let mut answer = redis::cmd(link.publishes_by());
                    answer.arg(Names::channel_of(&node)).arg(format!("{theirs} {count} {}", self.names.node));
                    link.ask::<i64>(&answer).await?;
                }
                Ok(None)
            }
        }
    }

    /// Asks all other instances that live, and waits for their answers.
    async fn ask_others(&self, link: &mut Link, user: &str, order: &UserOrder) -> Result<(u32, Others), RedisFailure> {
        let until = Instant::now() + ANSWER_WITHIN;
        let (number, ours) = self.questions.open.with(|open| {
            open.next += 1;
            let ours = open.ours.entry(open.next).or_default();
            (open.next, Rc::clone(ours))
        });
        let told = self.ask_until(link, number, &ours, (user, order), until).await;
        self.questions.open.with(|open| open.ours.remove(&number));
        let mut asked = told?;
        let counts = ours.counts.with(std::mem::take);
        self.questions.open.with(|open| {
            open.silent = asked.iter().filter(|node| !counts.contains_key(*node)).cloned().collect();
        });
        // One that has come meanwhile was asked too.
        asked.extend(counts.keys().cloned());
        let number_of = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let count = counts.values().fold(0_u32, |sum, count| sum.saturating_add(*count));
        Ok((count, Others { asked: number_of(asked.len()), answered: number_of(counts.len()) }))
    }

    /// Asks, and waits until all have answered or the time is up. Returns who was asked.
    async fn ask_until(
        &self,
        link: &mut Link,
        number: u64,
        ours: &Ours,
        (user, order): (&str, &UserOrder),
        until: Instant,
    ) -> Result<BTreeSet<String>, RedisFailure> {
        let text = format!("{} {number} {}", self.names.node, write(user, order));
        let arguments = [link.publishes_by(), &*self.names.all, &*text];
        let living: BTreeSet<String> = link.run(&self.questions.ask, &[&self.names.instances], &arguments).await?;
        let is_asked = |node: &String| *node != self.names.node && is_node(node);
        let asked: BTreeSet<String> = living.into_iter().filter(is_asked).collect();
        loop {
            let came = ours.came.notified();
            let is_silent = |node: &str| match order {
                // Whoever kicks wants to know.
                UserOrder::Close => false,
                UserOrder::Say { .. } => self.questions.open.with(|open| open.silent.contains(node)),
            };
            let is_whole =
                ours.counts.with(|counts| asked.iter().all(|node| counts.contains_key(node) || is_silent(node)));
            if is_whole || timeout_at(until, came).await.is_err() {
                return Ok(asked);
            }
        }
    }

    /// An instance asks, perhaps this one.
    pub(super) fn hear_question(&self, text: &str) {
        let Some((node, theirs, user, order)) = read_question(text).filter(|question| *question.0 != *self.names.node)
        else {
            return;
        };
        let number = self.questions.open.with(|open| {
            if open.theirs.len() >= ASKED_MAX {
                open.theirs.pop_first();
            }
            open.next += 1;
            open.theirs.insert(open.next, (node.to_owned(), theirs));
            open.next
        });
        let shard = home_of(&user, self.way.1);
        let asked = OthersAnswer::Asked { number, user, order };
        if self.offer(shard, BusAnswer::Others(Box::new(asked))).is_err() {
            // It has not answered.
            self.questions.open.with(|open| open.theirs.remove(&number));
        }
    }

    /// An instance answers, or says that there are events.
    pub(super) fn hear_answer(&self, text: &str) {
        if text == NUDGE {
            return self.lifecycle.wake();
        }
        let Some((number, count, node)) = read_answer(text) else { return };
        self.questions.open.with(|open| open.silent.remove(node));
        let Some(ours) = self.questions.open.with(|open| open.ours.get(&number).map(Rc::clone)) else { return };
        ours.counts.with(|counts| counts.insert(node.to_owned(), count));
        ours.came.notify_waiters();
    }

    /// This instance lives on; or it goes now.
    pub(super) async fn renew(&self, link: &mut Link, goes: bool) -> Result<(), RedisFailure> {
        if !goes && self.lifecycle.is_leaving() {
            return Ok(());
        }
        let lease = LEASE.as_millis().to_string();
        let arguments = [&*self.names.node, &*lease, if goes { "1" } else { "0" }];
        let [.., sender] = self.names.lifecycle();
        // Who has nothing to do with lifecycle events needs no right to their keys.
        let keys = [&*self.names.instances, &*sender];
        let count = if goes && self.lifecycle.sends() { 2 } else { 1 };
        link.run::<i64>(&self.questions.alive, &keys[..count], &arguments).await.map(|_| ())
    }

    /// The process ends: nobody asks this instance any more.
    pub(in crate::server) async fn leave(&self) {
        const WITHIN: Duration = Duration::from_millis(200);
        self.lifecycle.leave();
        if let Some(mut link) = self.state.with(|state| state.link.clone()) {
            let ends = async {
                let _ = self.end_lease(&mut link).await;
                let _ = self.renew(&mut link, true).await;
            };
            let _ = tokio::time::timeout(WITHIN, ends).await;
        }
    }
}

/// The answer where others could not be asked.
pub(super) fn unasked(request: &OthersRequest) -> Option<BusAnswer> {
    match request {
        OthersRequest::Ask { ticket, .. } => {
            Some(BusAnswer::Others(Box::new(OthersAnswer::Told { ticket: *ticket, count: 0, others: None })))
        }
        OthersRequest::Answer { .. } => None,
    }
}

/// A question as the channel carries it: which instance asks, under which number, of whom, and what.
fn read_question(text: &str) -> Option<(&str, u64, Arc<str>, UserOrder)> {
    let mut parts = text.splitn(3, ' ');
    let (node, number, rest) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    let (user, order) = read(rest)?;
    is_node(node).then_some((node, number, user, order))
}

/// An answer: to which question, how many, and which instance answers.
fn read_answer(text: &str) -> Option<(u64, u32, &str)> {
    let mut parts = text.splitn(3, ' ');
    let (number, count, node) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    is_node(node).then_some((number, count, node))
}

/// What is asked, as the channel carries it.
fn write(user: &str, order: &UserOrder) -> String {
    match order {
        UserOrder::Close => json!([user]),
        UserOrder::Say { text, id: None } => json!([user, &**text]),
        UserOrder::Say { text, id: Some((speaker, id)) } => json!([user, &**text, speaker, id]),
    }
    .to_string()
}

fn read(text: &str) -> Option<(Arc<str>, UserOrder)> {
    let parts: Vec<String> = serde_json::from_str(text).ok()?;
    let mut parts = parts.into_iter();
    let user = parts.next()?.into();
    let Some(text) = parts.next() else { return Some((user, UserOrder::Close)) };
    let id = parts.next().zip(parts.next()).map(|(speaker, id)| (speaker.into(), id.into()));
    Some((user, UserOrder::Say { text: text.into(), id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_as_it_was_written() {
        let say = |id: Option<(&str, &str)>| UserOrder::Say {
            text: r#"{"type":"x","payload":" \u0000"}"#.into(),
            id: id.map(|(speaker, id)| (speaker.into(), id.into())),
        };
        for order in [UserOrder::Close, say(None), say(Some(("shop", "1 2")))] {
            assert_eq!(read(&write("a \"b\n", &order)), Some(("a \"b\n".into(), order)));
        }
        for wrong in ["", "[]", "[1]", "{}"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_question_or_answer_of_no_instance_or_without_a_number_is_none() {
        let node = "n_0123456789ab";
        let question = read_question(r#"n_0123456789ab 7 ["ann"]"#);
        assert_eq!(question, Some((node, 7, "ann".into(), UserOrder::Close)));
        assert_eq!(read_answer("7 2 n_0123456789ab"), Some((7, 2, node)));
        for text in ["", "n_0123456789ab", r#"n_0123456789ab x ["ann"]"#, r#"x 7 ["ann"]"#, "n_0123456789ab 7 []"] {
            assert_eq!(read_question(text), None, "{text}");
        }
        for text in ["", "7", "7 2", "7 -2 n_0123456789ab", "x 2 n_0123456789ab", "7 2 x", "7 2 n_0123456789ab x"] {
            assert_eq!(read_answer(text), None, "{text}");
        }
    }
}
