//! Lifecycle events where rooms span instances: Redis is told which rooms and users are here, decides what has happened, and
//! keeps it until the service has taken it; one instance sends it.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{LEASE, Need, Rooms, names::Names};
use crate::{
    bus::redis::{Link, RedisFailure, Script},
    hub::{
        bus::BusAnswer,
        events::{EventsAnswer, EventsRequest, KeptEvent, Subject},
        position::{Epoch, Position},
    },
    shard::{Local, complaints::complain},
};

/// How often Redis is asked whether there is something to send or an instance is dead.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Subjects that Redis is told of in one step, and that it sweeps in one.
const CHANGES_MAX: usize = 256;
const SWEPT_MAX: &str = "500";
/// Events with this instance's shards at once.
const GIVEN_MAX: usize = 256;
/// A sender that the service takes nothing from for so long lets another instance try; it tries again itself after as long.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// What wakes whoever sends events.
pub(super) const NUDGE: &str = "events";

/// What is there to do with Redis for events. One per process.
pub(super) struct Lifecycle {
    change: Script,
    taken: Script,
    state: Local<State>,
    woken: Notify,
}

#[derive(Default)]
struct State {
    /// How many events may wait as far as it goes by this instance; none where no service wants any.
    waiting_max: Option<usize>,
    register: Register,
    /// The last event that Redis is known to have had.
    seen: Position,
    sending: Sending,
    /// The process ends: Redis is told nothing more.
    is_leaving: bool,
}

/// Which rooms and users are here, and what of it Redis may know.
#[derive(Debug, Default, PartialEq, Eq)]
struct Register {
    known: BTreeMap<Box<str>, Known>,
    /// Those of whom Redis is to be told.
    unsaid: BTreeSet<Box<str>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    is_here: bool,
    /// Whether Redis may have been told that it is.
    is_said: bool,
}

/// Changes that Redis is told of together.
type Changes = Vec<(Box<str>, bool)>;

impl Register {
    /// Whether it is here now.
    fn note(&mut self, subject: Box<str>, is_here: bool) {
        let known = self.known.entry(subject.clone()).or_default();
        known.is_here = is_here;
        if is_here || known.is_said {
            self.unsaid.insert(subject);
        } else {
            // Redis never knew: while it is away, only what is here and what it knows is kept.
            self.known.remove(&subject);
            self.unsaid.remove(&subject);
        }
    }

    /// What Redis is told next. Followed by [`Register::told`] or [`Register::untold`].
    fn take(&mut self) -> Changes {
        let mut changes = Changes::new();
        while changes.len() < CHANGES_MAX
            && let Some(subject) = self.unsaid.pop_first()
        {
            if let Some(known) = self.known.get_mut(&subject) {
                known.is_said |= known.is_here;
                changes.push((subject, known.is_here));
            }
        }
        changes
    }

    /// Redis was told.
    fn told(&mut self, changes: &Changes) {
        for (subject, _) in changes.iter().filter(|(_, is_here)| !is_here) {
            if let Some(known) = self.known.get_mut(subject) {
                known.is_said = false;
                if !known.is_here {
                    self.known.remove(subject);
                }
            }
        }
    }

    /// Nobody knows whether Redis was told.
    fn untold(&mut self, changes: Changes) {
        let known = &self.known;
        self.unsaid
            .extend(changes.into_iter().map(|(subject, _)| subject).filter(|subject| known.contains_key(subject)));
    }

    /// Redis knows nothing but these changes.
    fn all_again(&mut self, changes: &Changes) {
        self.known.retain(|_, known| known.is_here);
        let said: BTreeSet<&str> =
            changes.iter().filter(|(_, is_here)| *is_here).map(|(subject, _)| &**subject).collect();
        self.unsaid.retain(|subject| self.known.contains_key(subject));
        self.unsaid.extend(self.known.keys().filter(|subject| !said.contains(&***subject)).cloned());
    }
}

/// Which events are with this instance's shards. Means something while this instance sends.
#[derive(Debug, Default)]
struct Sending {
    is_ours: bool,
    /// The last that was given to a shard.
    last: u64,
    given: BTreeSet<u64>,
    /// Those that the service has taken, and Redis does not know that yet.
    taken: BTreeSet<u64>,
    /// When the service took the last, or nothing waited for it.
    moved_at: Option<Instant>,
    /// Until when another instance may send.
    rests_until: Option<Instant>,
}

impl Sending {
    /// Whether this instance is to send, as far as the service takes anything from it.
    fn is_able(&mut self, now: Instant) -> bool {
        if !self.is_ours || self.given.is_empty() || !self.taken.is_empty() {
            self.moved_at = Some(now);
        }
        if self.moved_at.is_some_and(|moved_at| now >= moved_at + STALLED_AFTER) {
            self.moved_at = Some(now);
            self.rests_until = Some(now + STALLED_AFTER);
        }
        self.rests_until.is_none_or(|until| now >= until)
    }
}

/// What Redis says to changes.
struct Said {
    position: Position,
    standing: String,
    has_more: bool,
    sender: String,
    dropped: u64,
    came: u64,
}

impl Said {
    fn read(answer: &[String]) -> Option<Self> {
        let [epoch, seq, standing, more, sender, dropped, came] = answer else { return None };
        Some(Self {
            position: Position { epoch: Epoch::parse(epoch), seq: seq.parse().ok()? },
            standing: standing.clone(),
            has_more: more == "1",
            sender: sender.clone(),
            dropped: dropped.parse().ok()?,
            came: came.parse().ok()?,
        })
    }
}

impl Lifecycle {
    pub(super) fn new() -> Self {
        Self {
            change: Script::new(include_str!("lifecycle.lua")),
            taken: Script::new(include_str!("taken.lua")),
            state: Local::default(),
            woken: Notify::new(),
        }
    }

    /// What Redis is to know before any of it runs.
    pub(super) fn scripts(&self) -> [&Script; 2] {
        [&self.change, &self.taken]
    }

    /// A shard's hub says who is here, or what the service has taken.
    pub(super) fn take(&self, request: EventsRequest) {
        self.state.with(|state| match request {
            EventsRequest::Is { subject, is_here } => state.register.note(subject.to_text().into(), is_here),
            // Another count's has gone with it.
            EventsRequest::Taken(Position { epoch, .. }) | EventsRequest::Left(Position { epoch, .. })
                if epoch != state.seen.epoch => {}
            EventsRequest::Taken(position) => {
                state.sending.taken.insert(position.seq);
                // The service can be reached from here.
                (state.sending.moved_at, state.sending.rests_until) = (Some(Instant::now()), None);
            }
            EventsRequest::Left(position) => {
                state.sending.given.remove(&position.seq);
                state.sending.last = state.sending.last.min(position.seq.saturating_sub(1));
            }
        });
        self.wake();
    }

    /// There may be something to send.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Whether a service wants any.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.with(|state| state.waiting_max.is_some())
    }

    /// Whether this instance sends what waits.
    pub(super) fn sends(&self) -> bool {
        self.state.with(|state| state.sending.is_ours)
    }

    /// Whether the process ends.
    pub(super) fn is_leaving(&self) -> bool {
        self.state.with(|state| state.is_leaving)
    }

    /// The process ends: from now on Redis is told nothing more.
    pub(super) fn leave(&self) {
        self.state.with(|state| state.is_leaving = true);
    }

    fn is_idle(&self) -> bool {
        self.state.with(|state| {
            let State { waiting_max, register, sending, .. } = state;
            let is_done = register.unsaid.is_empty() && sending.taken.is_empty() && !sending.is_ours;
            waiting_max.is_none() && is_done
        })
    }
}

impl Rooms {
    /// Another plan is in force.
    pub(in crate::server) fn adopt(&self, events_waiting_max: Option<usize>) {
        self.lifecycle.state.with(|state| state.waiting_max = events_waiting_max);
        self.lifecycle.wake();
    }

    /// Does what there is to do for events on a connection, until that is given up.
    pub(super) async fn tend_events(self: Rc<Self>, mut link: Link, number: u64) {
        // When all instances come back together, those that are later than others are not dead.
        let sweeps_from = Instant::now() + LEASE;
        let mut look_at = Instant::now();
        loop {
            if self.state.with(|state| state.number != number || state.link.is_none()) {
                return;
            }
            let now = Instant::now();
            let is_look = now >= look_at;
            if is_look {
                look_at = now + LOOK_INTERVAL;
            }
            let has_more = if self.lifecycle.is_idle() {
                self.events_are_refused(false);
                false
            } else {
                let told = match self.tell_taken(&mut link).await {
                    Err(failure) if failure.is_away() => Err(failure),
                    // What is refused of the one is no reason to be silent of the other.
                    taken => {
                        let told = self.tell_changes(&mut link, number, is_look && now >= sweeps_from).await;
                        told.and_then(|has_more| taken.map(|()| has_more))
                    }
                };
                match told {
                    Ok(has_more) => {
                        self.events_are_refused(false);
                        has_more
                    }
                    Err(failure) => {
                        self.note(number, Need::Events, &failure);
                        if failure.is_away() {
                            return;
                        }
                        sleep_until(look_at).await;
                        false
                    }
                }
            };
            if has_more {
                look_at = now;
                continue;
            }
            tokio::select! {
                () = self.lifecycle.woken.notified() => {}
                () = sleep_until(look_at) => {}
            }
        }
    }

    /// Tells Redis what has changed, and gives to the shards what it has to send. Says whether there is more to do.
    async fn tell_changes(&self, link: &mut Link, number: u64, sweeps: bool) -> Result<bool, RedisFailure> {
        let asked = self.lifecycle.state.with(|state| {
            let sends = state.waiting_max.is_some() && state.sending.is_able(Instant::now());
            (!state.is_leaving).then(|| (state.register.take(), state.seen, state.waiting_max, sends))
        });
        let Some((changes, seen, waiting_max, sends)) = asked else { return Ok(false) };
        let flag = |is: bool| if is { "1" } else { "0" }.to_owned();
        let mut arguments = vec![
            self.names.node.clone(),
            number.to_string(),
            seen.epoch.to_string(),
            seen.seq.to_string(),
            Epoch::random(&mut fastrand::Rng::new()).to_string(),
            // Where none are wanted any more, others' may wait.
            waiting_max.unwrap_or(0).to_string(),
            flag(sweeps),
            flag(sends),
            SWEPT_MAX.to_owned(),
        ];
        arguments.extend(changes.iter().flat_map(|(subject, is_here)| [subject.to_string(), flag(*is_here)]));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let keys = self.names.lifecycle();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let answer = link.run::<Vec<String>>(&self.lifecycle.change, &keys, &arguments).await;
        let said = match answer.and_then(|answer| Said::read(&answer).ok_or_else(unreadable)) {
            // What an older connection still brings is not how it stands.
            Ok(said) if self.state.with(|state| state.number == number) => said,
            answer => {
                self.lifecycle.state.with(|state| state.register.untold(changes));
                return answer.map(|_| false);
            }
        };
        let mut is_ours = said.sender == self.names.node;
        let (has_unsaid, begins) = self.lifecycle.state.with(|state| {
            match &*said.standing {
                "known" => state.register.told(&changes),
                "new" => {
                    state.register.told(&changes);
                    state.register.all_again(&changes);
                }
                _ => state.register.untold(changes),
            }
            let begins = state.seen.epoch != said.position.epoch;
            if begins {
                state.sending = Sending::default();
            }
            if begins && state.seen.epoch != Epoch::NONE {
                // Whoever has sent so far may not have seen it yet.
                state.sending.rests_until = Some(Instant::now() + 2 * LOOK_INTERVAL);
                is_ours = false;
            }
            if is_ours && !state.sending.is_ours {
                // Another one may have left some.
                state.sending.last = 0;
            }
            state.sending.is_ours = is_ours;
            state.seen = said.position;
            // Where another connection has come, asking again at once changes nothing.
            (!state.register.unsaid.is_empty() && said.standing != "late", begins)
        });
        if begins {
            for shard in 0..self.way.1 {
                self.answer(shard, BusAnswer::Events(Box::new(EventsAnswer::Begins(said.position.epoch))));
            }
        }
        if said.dropped > 0 {
            self.answer(0, BusAnswer::Events(Box::new(EventsAnswer::Dropped(said.dropped))));
        }
        if is_ours {
            self.give_out(link).await?;
        } else if said.came > 0 && !said.sender.is_empty() {
            let mut nudge = redis::cmd(link.publishes_by());
            nudge.arg(Names::channel_of(&said.sender)).arg(NUDGE);
            link.ask::<i64>(&nudge).await?;
        }
        Ok(said.has_more || has_unsaid)
    }

    /// Tells Redis what the service has taken.
    async fn tell_taken(&self, link: &mut Link) -> Result<(), RedisFailure> {
        let (epoch, taken) = self.lifecycle.state.with(|state| {
            let taken: Vec<u64> = state.sending.taken.iter().copied().take(GIVEN_MAX).collect();
            (state.seen.epoch, taken)
        });
        if taken.is_empty() {
            return Ok(());
        }
        let mut arguments = vec![epoch.to_string()];
        arguments.extend(taken.iter().map(|seq| format!("{seq}-0")));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let [meta, _, _, outbox, ..] = self.names.lifecycle();
        link.run::<i64>(&self.lifecycle.taken, &[&meta, &outbox], &arguments).await?;
        self.lifecycle.state.with(|state| {
            for seq in taken {
                state.sending.taken.remove(&seq);
                state.sending.given.remove(&seq);
            }
        });
        Ok(())
    }

    /// Gives the next events to shards, which send them: those of one room or user to the same, in order.
    async fn give_out(&self, link: &mut Link) -> Result<(), RedisFailure> {
        let [_, _, _, outbox, ..] = self.names.lifecycle();
        loop {
            let (last, room, epoch) = self.lifecycle.state.with(|state| {
                let Sending { last, given, .. } = &state.sending;
                (*last, GIVEN_MAX.saturating_sub(given.len()), state.seen.epoch)
            });
            if room == 0 {
                return Ok(());
            }
            let mut range = redis::cmd("XRANGE");
            range.arg(&outbox).arg(format!("{}-0", last + 1)).arg("+").arg("COUNT").arg(room);
            let entries: Vec<(String, Vec<String>)> = link.ask(&range).await?;
            let count = entries.len();
            for (id, fields) in entries {
                let Some(seq) = id.split_once('-').and_then(|(seq, _)| seq.parse::<u64>().ok()) else {
                    return Err(unreadable());
                };
                let is_given = self.lifecycle.state.with(|state| state.sending.given.contains(&seq));
                if !is_given {
                    if let Some(event) = kept_event(Position { epoch, seq }, &fields) {
                        let shard = event.subject.home(self.way.1);
                        let answer = BusAnswer::Events(Box::new(EventsAnswer::Event(event)));
                        if self.offer(shard, answer).is_err() {
                            // At the next look.
                            return Ok(());
                        }
                    } else {
                        complain!(warn: id, "nobody can read this lifecycle event in Redis, and so it is not sent");
                        self.lifecycle.state.with(|state| state.sending.taken.insert(seq));
                    }
                }
                self.lifecycle.state.with(|state| {
                    state.sending.given.insert(seq);
                    state.sending.last = seq;
                });
            }
            if count < room {
                return Ok(());
            }
        }
    }
}

/// What is no answer of our scripts.
fn unreadable() -> RedisFailure {
    RedisFailure::Refused((redis::ErrorKind::UnexpectedReturnType, "no answer of this script").into())
}

/// An event as Redis keeps it: names and values by turns.
fn kept_event(position: Position, fields: &[String]) -> Option<KeptEvent> {
    let [_, subject, _, is_there, _, n, _, at, _, node] = fields else { return None };
    Some(KeptEvent {
        position,
        subject: Subject::parse(subject)?,
        is_there: is_there == "1",
        n: n.parse().ok()?,
        at_unix_ms: at.parse().ok()?,
        node: node.as_str().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(changes: &[(&str, bool)]) -> Changes {
        changes.iter().map(|&(subject, is_here)| (subject.into(), is_here)).collect()
    }

    fn said(register: &mut Register, wanted: &[(&str, bool)]) -> Changes {
        let found = register.take();
        assert_eq!(found, changes(wanted));
        found
    }

    #[test]
    fn redis_is_told_what_has_changed_and_again_where_it_may_not_know() {
        let mut register = Register::default();
        register.note("user:a".into(), true);
        register.note("user:b".into(), true);
        let first = said(&mut register, &[("user:a", true), ("user:b", true)]);
        // While it is on its way somebody goes.
        register.note("user:a".into(), false);
        register.untold(first);
        let second = said(&mut register, &[("user:a", false), ("user:b", true)]);
        register.told(&second);
        assert_eq!((register.known.len(), register.take()), (1, Changes::new()), "who has gone is forgotten");
        register.note("user:b".into(), false);
        let third = said(&mut register, &[("user:b", false)]);
        register.note("user:b".into(), true);
        register.told(&third);
        let fourth = said(&mut register, &[("user:b", true)]);
        register.told(&fourth);
        register.note("user:b".into(), false);
        assert_eq!(register.take(), changes(&[("user:b", false)]), "it was told that it is here");
    }

    #[test]
    fn what_redis_never_knew_is_not_kept_for_it() {
        let mut register = Register::default();
        for name in 0..10_000 {
            register.note(format!("user:{name}").into(), true);
            register.note(format!("user:{name}").into(), false);
        }
        assert_eq!(register, Register::default());
    }

    #[test]
    fn a_redis_that_knows_nothing_is_told_of_all_who_are_here() {
        let mut register = Register::default();
        for name in ["a", "b", "c", "d"] {
            register.note(name.into(), true);
        }
        let all = register.take();
        register.told(&all);
        register.note("a".into(), false);
        register.note("b".into(), false);
        let two = register.take();
        register.note("e".into(), true);
        register.note("c".into(), false);
        register.told(&two);
        register.all_again(&two);
        assert_eq!(register.take(), changes(&[("d", true), ("e", true)]), "not of those who have gone");
        assert_eq!(register.known.len(), 2);
    }

    #[test]
    fn whoever_sends_in_vain_lets_another_try() {
        let (mut sending, start) = (Sending::default(), Instant::now());
        assert!(sending.is_able(start));
        sending.is_ours = true;
        assert!(sending.is_able(start + 2 * STALLED_AFTER), "nothing waits");
        sending.given.insert(1);
        let begun = start + 2 * STALLED_AFTER;
        assert!(sending.is_able(begun + STALLED_AFTER / 2));
        assert!(!sending.is_able(begun + STALLED_AFTER));
        sending.is_ours = false;
        assert!(!sending.is_able(begun + STALLED_AFTER * 3 / 2));
        assert!(sending.is_able(begun + 2 * STALLED_AFTER));
        sending.is_ours = true;
        assert!(sending.is_able(begun + STALLED_AFTER * 5 / 2), "from the beginning");
    }

    #[test]
    fn what_is_told_together_is_bounded() {
        let mut register = Register::default();
        for name in 0..1000 {
            register.note(format!("{name}").into(), true);
        }
        assert_eq!((register.take().len(), register.unsaid.len()), (CHANGES_MAX, 1000 - CHANGES_MAX));
    }
}
