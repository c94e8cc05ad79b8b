//! Rooms across instances: carries out on Redis what the shards' hubs ask of the bus, and brings them what it says. One per
//! process; runs on the bridge's thread, on a connection of its own.
//!
//! What a room's home makes of it is for `hub`; here nothing is known of a room but that it is followed.

mod asked;
mod heard;
mod lifecycle;
mod living;
mod names;
mod others;
mod trouble;

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use lifecycle::Lifecycle;
use living::lease;
use names::{Names, PARTITIONS};
use others::Questions;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::spawn_local,
    time::sleep,
};
use trouble::{Need, Refusals};

use super::letter::{AllLetters, DroppableToShard, ToControl, ToShard};
use crate::{
    bus::{
        Bus,
        redis::{Address, Link, Outage, Push, Pushes, RedisFailure, Script},
        to,
    },
    config::Config,
    hub::{
        bus::{BusAnswer, BusRequest},
        code::Code,
        name::RoomName,
    },
    shard::{Instant, Local, clock, complaints::Complaints, ticks::Ticks},
};

/// Requests under way at once. They share one connection.
const UNDER_WAY_MAX: usize = 4096;
/// What channels have brought and no shard was told yet; more is missed, and read from the logs.
const PUSHES_MAX: usize = 8192;
/// What is said of the connection and was not looked at yet: a canary, and one for each channel that is left.
const EVENTS_MAX: usize = 2 * PARTITIONS;
/// Bytes of answers to reads that may be under way: Redis ends a connection with channels for which 32 MiB wait, or 8 MiB for
/// a minute (`client-output-buffer-limit pubsub`).
const ANSWERS_BYTES_MAX: usize = 8 << 20;
/// A nonce goes out so often, and the connection is good as long as one came back within the other: health pages are to
/// know within two seconds.
const CANARY_INTERVAL: Duration = Duration::from_millis(500);
const CANARY_WITHIN: Duration = Duration::from_millis(1500);
/// How often it is looked at, and answers that did not go are sent again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The pauses between attempts to connect: the first, and the longest. Half of each is chance. They grow until a connection has
/// lasted: where each one fails as soon as it is used, all who are in rooms would have them read again and again.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
const LASTS: Duration = Duration::from_secs(5);
/// How long an instance lives on for the others when nothing is heard of it.
const LEASE: Duration = Duration::from_secs(10);
/// How often the log is told of what is not believed, and of a lease that was lost.
const DOUBT_INTERVAL: Duration = Duration::from_secs(1);
/// Rooms at once of which the others are told that nobody here is in them.
const LEFT_AT_ONCE: usize = 32;

/// Whether rooms span instances: there is a hub, and a Redis.
pub(super) fn have_bus(config: &Config) -> bool {
    config.hub.enabled && config.redis.is_given()
}

/// How shards are reached, and how many there are.
pub(super) struct RoomsWay(pub(super) Bus<AllLetters>, pub(super) usize);

/// The rooms' way over Redis.
pub(super) struct Rooms {
    address: Address,
    names: Names,
    way: RoomsWay,
    publish: Script,
    read: Script,
    here: Script,
    clean: Script,
    questions: Questions,
    lifecycle: Lifecycle,
    state: Local<State>,
    /// Space for answers to reads.
    answers: Semaphore,
    /// Somebody had no answer on the connection.
    failed: Notify,
}

struct State {
    /// The connection, and how many there were.
    link: Option<Link>,
    number: u64,
    /// Under which number others are told who is here, and since when this Redis has had the others before it: after a lease's
    /// time those that live are known to it.
    told_as: u64,
    since: Instant,
    /// The last that somebody had no answer on.
    failed: u64,
    /// Rooms with members here.
    followed: BTreeSet<RoomName>,
    /// Rooms that nobody here is in any more, and the others are not known to have been told.
    left: BTreeSet<RoomName>,
    /// How many of them are being told of.
    telling_left: usize,
    refusals: Refusals,
    /// Users of instances that cannot be.
    doubted: Complaints,
    /// Leases of this instance that Redis has lost.
    lost: Complaints,
    /// Rooms followed in each partition, and whether its channel is subscribed to on this connection.
    partitions: Vec<(u32, bool)>,
    /// How often each channel was left on this connection without its end being heard.
    leaving: Vec<u32>,
    under_way: usize,
    /// Other instances of whose users is known.
    nodes: BTreeSet<Arc<str>>,
    /// Answers that did not go.
    kept: VecDeque<(usize, BusAnswer)>,
    /// Shards that take no letters now.
    stuck: Vec<bool>,
    is_up: bool,
}

impl State {
    /// The next room of which the others are told that nobody here is in it.
    fn next_left(&mut self) -> Option<(RoomName, Link)> {
        if self.telling_left >= LEFT_AT_ONCE {
            return None;
        }
        let next = self.link.clone().and_then(|link| Some((self.left.pop_first()?, link)));
        self.telling_left += usize::from(next.is_some());
        next
    }
}

impl Rooms {
    pub(super) fn new(address: Address, is_cluster: bool, node: &str, way: RoomsWay) -> Rc<Self> {
        let state = State {
            link: None,
            number: 0,
            told_as: 0,
            since: Instant::START,
            failed: 0,
            followed: BTreeSet::new(),
            left: BTreeSet::new(),
            telling_left: 0,
            refusals: Refusals::new(),
            doubted: Complaints::every(DOUBT_INTERVAL),
            lost: Complaints::every(DOUBT_INTERVAL),
            partitions: vec![(0, false); PARTITIONS],
            leaving: vec![0; PARTITIONS],
            under_way: 0,
            nodes: BTreeSet::new(),
            kept: VecDeque::new(),
            stuck: vec![false; way.1],
            is_up: false,
        };
        Rc::new(Self {
            address,
            names: Names::new(is_cluster, node),
            way,
            publish: Script::new(concat!(include_str!("stands.lua"), include_str!("publish.lua"))),
            read: Script::new(concat!(include_str!("stands.lua"), include_str!("read.lua"))),
            here: Script::new(include_str!("here.lua")),
            clean: Script::new(include_str!("clean.lua")),
            questions: Questions::new(),
            lifecycle: Lifecycle::new(),
            state: Local::new(state),
            answers: Semaphore::new(ANSWERS_BYTES_MAX),
            failed: Notify::new(),
        })
    }

    /// A shard's hub asks.
    pub(super) fn take(self: &Rc<Self>, shard: usize, request: BusRequest) {
        let request = match request {
            BusRequest::Events(request) => return self.lifecycle.take(*request),
            request => request,
        };
        match &request {
            BusRequest::Forget(room) => return self.forget(room),
            // Now, not when its turn comes: the next letter may say that it is not wanted any more.
            BusRequest::Read(read) => self.state.with(|state| {
                state.left.remove(&read.room);
                if state.followed.insert(read.room.clone()) {
                    state.partitions[names::partition(&read.room)].0 += 1;
                }
            }),
            BusRequest::Publish(_)
            | BusRequest::Look { .. }
            | BusRequest::Here(_)
            | BusRequest::Others(_)
            | BusRequest::Events(_) => {}
        }
        let link = self.state.with(|state| {
            let link = state.link.clone().ok_or(Code::DependencyUnavailable)?;
            if state.under_way >= UNDER_WAY_MAX {
                return Err(Code::Overloaded);
            }
            state.under_way += 1;
            Ok((link, state.number))
        });
        match link {
            Ok((link, number)) => {
                let under_way = UnderWay(Rc::clone(self));
                spawn_local(async move {
                    let answer = under_way.0.carry_out(link, number, request).await;
                    if let Some(answer) = answer {
                        under_way.0.answer(shard, answer);
                    }
                });
            }
            Err(code) => {
                if let Some(answer) = refused(&request, code) {
                    self.answer(shard, answer);
                }
            }
        }
    }

    /// Nobody here is in the room any more.
    fn forget(self: &Rc<Self>, room: &RoomName) {
        let partition = names::partition(room);
        let link = self.state.with(|state| {
            if !state.followed.remove(room) {
                // Nobody was ever in it: there is nothing to tell, and clients choose such names.
                return None;
            }
            state.left.insert(room.clone());
            let (rooms, is_subscribed) = &mut state.partitions[partition];
            *rooms -= 1;
            let link = (*rooms == 0 && std::mem::take(is_subscribed)).then(|| state.link.clone()).flatten();
            state.leaving[partition] += u32::from(link.is_some());
            link
        });
        self.tell_left();
        let Some(mut link) = link else { return };
        let channel = self.names.channel(partition);
        spawn_local(async move { link.unsubscribe(&channel).await });
    }

    /// Tells the others of the rooms that nobody here is in any more, of some at once; when that fails, again later.
    fn tell_left(self: &Rc<Self>) {
        while let Some((room, link)) = self.state.with(State::next_left) {
            let rooms = Rc::clone(self);
            spawn_local(async move {
                let told = rooms.tell_here(link, &room, true, &[], LEASE).await;
                rooms.state.with(|state| {
                    state.telling_left -= 1;
                    if told.is_err() && !state.followed.contains(&room) {
                        state.left.insert(room);
                    }
                });
                if told.is_ok() {
                    rooms.tell_left();
                }
            });
        }
    }

    /// Tells a shard, now or as soon as it takes letters.
    fn answer(&self, shard: usize, answer: BusAnswer) {
        if let Err(DroppableToShard::Bus(answer)) = self.offer(shard, answer) {
            self.state.with(|state| state.kept.push_back((shard, *answer)));
        }
    }

    fn offer(&self, shard: usize, answer: BusAnswer) -> Result<(), DroppableToShard> {
        self.way.0.offer(to::Shard(shard), DroppableToShard::Bus(Box::new(answer)))
    }

    fn send_kept(&self) {
        let kept = self.state.with(|state| std::mem::take(&mut state.kept));
        for (shard, answer) in kept {
            self.answer(shard, answer);
        }
    }

    // ---- the connection ----

    /// Keeps the bus up. Never ends.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            // It ends by a panic only, which the runtime has caught and the hook logged: that costs the connection.
            let _ = spawn_local(Rc::clone(&self).stay_connected()).await;
            self.is_away("a task of its own has ended");
            sleep(PAUSE[1]).await;
        }
    }

    /// Connects, listens, and connects anew.
    async fn stay_connected(self: Rc<Self>) {
        let mut pause = PAUSE[0];
        loop {
            let (tell, pushes) = Pushes::new(&self.names.canary, PUSHES_MAX, EVENTS_MAX);
            let began = clock::now();
            let ended = match self.address.connect_with_channels(tell).await {
                Ok(link) => self.serve(link, pushes).await,
                Err(failure) => {
                    self.note(self.state.with(|state| state.number), Need::Connection, &failure);
                    failure
                }
            };
            self.is_away(&ended.to_string());
            self.count_refusals();
            if clock::now().since(began) >= LASTS {
                pause = PAUSE[0];
            }
            let wait = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
            tokio::pin!(wait);
            // Answers to shards go on.
            while !wait.is_elapsed() {
                self.send_kept();
                tokio::select! {
                    () = &mut wait => {}
                    () = sleep(LOOK_INTERVAL) => {}
                }
            }
            pause = PAUSE[1].min(pause * 2);
        }
    }

    /// Uses a connection until it is of no use any more.
    async fn serve(
        self: &Rc<Self>,
        mut link: Link,
        [mut messages, mut events]: [mpsc::Receiver<Push>; 2],
    ) -> RedisFailure {
        let wanted = self.state.with(|state| {
            state.number += 1;
            state.told_as += 1;
            state.since = clock::now();
            state.leaving.fill(0);
            let wanted = state.partitions.iter().enumerate().filter(|(_, (rooms, _))| *rooms > 0);
            wanted.map(|(partition, _)| partition).collect::<Vec<_>>()
        });
        if let Err(failure) = self.listen(&mut link, &wanted).await {
            return failure;
        }
        self.state.with(|state| {
            state.link = Some(link.clone());
            for (partition, (_, is_subscribed)) in state.partitions.iter_mut().enumerate() {
                *is_subscribed = wanted.contains(&partition);
            }
        });
        spawn_local(Rc::clone(self).tend_events(link.clone(), self.state.with(|state| state.number)));
        let mut looks = Ticks::every(LOOK_INTERVAL);
        let (mut heard_at, mut sent_at) = (clock::now(), Instant::START);
        let mut nonce = String::new();
        let own = Names::channel_of(&self.names.node);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(Push::Message { text, .. }) => {
                        if text == nonce {
                            heard_at = clock::now();
                            nonce.clear();
                            self.way.0.send(to::Control, ToControl::BusHeard(heard_at.since(sent_at)));
                            self.is_there();
                        }
                    }
                    // The node of a cluster does not have the channel any more, or we left it ourselves.
                    Some(Push::Unsubscribed { channel }) if self.was_left(&channel) => {}
                    Some(Push::Unsubscribed { .. } | Push::Ended) | None => return RedisFailure::Away(Outage::Broken),
                },
                () = self.failed.notified() => {
                    // It may have been about one that was given up before.
                    if self.state.with(|state| state.failed == state.number) {
                        return RedisFailure::Away(Outage::Timeout);
                    }
                }
                () = looks.tick() => {
                    self.send_kept();
                    self.tell_left();
                    let now = clock::now();
                    if now.since(heard_at) > CANARY_WITHIN {
                        return RedisFailure::Away(Outage::Timeout);
                    }
                    if now.since(sent_at) >= CANARY_INTERVAL {
                        sent_at = now;
                        nonce = format!("{:016x}", fastrand::u64(..));
                        let number = self.state.with(|state| state.number);
                        spawn_local(Rc::clone(self).live_on(link.clone(), number, nonce.clone()));
                        self.count_refusals();
                    }
                }
                message = messages.recv() => match message {
                    Some(Push::Message { channel, text, .. }) if channel == self.names.all => self.hear_question(&text),
                    Some(Push::Message { channel, text, .. }) if channel == own => self.hear_answer(&text),
                    Some(Push::Message { text, .. }) => self.hear(&text).await,
                    _ => return RedisFailure::Away(Outage::Broken),
                },
            }
        }
    }

    /// Says something to this instance itself, and that it lives; and looks whether the others do.
    async fn live_on(self: Rc<Self>, mut link: Link, number: u64, nonce: String) {
        let mut canary = redis::cmd(link.publishes_by());
        canary.arg(&self.names.canary).arg(&nonce);
        // One that is slow once is not given up: that it is away the canary's silence tells. A server that takes no changes is of
        // no use.
        let is_done = |need: Need<'_>, failure: Option<RedisFailure>| {
            if let Some(failure) = failure.as_ref().filter(|failure| !failure.is_away()) {
                self.note(number, need, failure);
            }
            failure.is_none()
        };
        is_done(Need::Channel(&self.names.canary), link.ask::<i64>(&canary).await.err());
        if is_done(Need::Lease, self.renew_lease(&mut link, number).await.err()) {
            is_done(Need::Instances, self.renew(&mut link, false).await.err());
            is_done(Need::Lease, self.look_for_nodes(&mut link).await.err());
        }
    }

    async fn listen(&self, link: &mut Link, partitions: &[usize]) -> Result<(), RedisFailure> {
        // Before anybody is told who is here.
        let number = self.state.with(|state| state.told_as).to_string();
        self.told(Need::Lease, link.ask::<()>(&lease(&self.names.node, &number)).await)?;
        self.told(Need::Rooms, link.ask::<i64>(redis::cmd("DEL").arg(Names::PROBE)).await)?;
        // The scripts ask it; they do without, and see less.
        let info = link.ask::<redis::Value>(redis::cmd("INFO").arg("replication")).await;
        let _ = self.told(Need::Server, info);
        // Before any runs: a script that is not known yet would be overtaken while it is sent.
        for script in [&self.publish, &self.read, &self.here, &self.clean]
            .into_iter()
            .chain(self.questions.scripts())
            .chain(self.lifecycle.scripts())
        {
            self.told(Need::Scripts, link.load(script).await)?;
        }
        self.told(Need::Instances, self.renew(link, false).await)?;
        for channel in [&self.names.canary, &self.names.all, &Names::channel_of(&self.names.node)] {
            self.told(Need::Channel(channel), link.subscribe(channel).await)?;
        }
        for &partition in partitions {
            let channel = self.names.channel(partition);
            self.told(Need::Channel(&channel), link.subscribe(&channel).await)?;
        }
        Ok(())
    }

    /// A channel brings nothing more: whether we left it ourselves.
    fn was_left(&self, channel: &str) -> bool {
        let Some(at) = (0..PARTITIONS).find(|at| self.names.channel(*at) == channel) else { return false };
        self.state.with(|state| {
            let was_left = state.leaving[at] > 0;
            state.leaving[at] = state.leaving[at].saturating_sub(1);
            was_left
        })
    }

    /// What came of a command; that it is refused is told, with what it was about.
    fn told<T>(&self, need: Need<'_>, answer: Result<T, RedisFailure>) -> Result<T, RedisFailure> {
        answer.inspect_err(|failure| self.note(self.state.with(|state| state.number), need, failure))
    }

    /// The connection is good.
    fn is_there(&self) {
        if self.becomes(true) {
            tracing::info!("rooms span instances: Redis is there");
        }
    }

    /// The connection is of no use any more.
    fn is_away(&self, error: &str) {
        self.state.with(|state| {
            state.link = None;
            state.partitions.iter_mut().for_each(|(_, is_subscribed)| *is_subscribed = false);
        });
        if self.becomes(false) {
            tracing::warn!(error, "rooms do not span instances: Redis is away");
        }
    }

    /// Tells all whom it concerns whether rooms span instances, if that has changed.
    fn becomes(&self, is_up: bool) -> bool {
        let has_changed = self.state.with(|state| {
            let has_changed = std::mem::replace(&mut state.is_up, is_up) != is_up;
            // What is refused from now on is told again.
            state.refusals.is_told &= !has_changed;
            has_changed
        });
        if has_changed {
            self.way.0.broadcast(|| ToShard::Bus(is_up));
            self.way.0.send(to::Control, ToControl::Bus(is_up));
        }
        has_changed
    }
}

/// A request that is under way, until it is dropped.
struct UnderWay(Rc<Rooms>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state.with(|state| state.under_way -= 1);
    }
}

/// The answer where there is none.
fn refused(request: &BusRequest, code: Code) -> Option<BusAnswer> {
    match request {
        BusRequest::Publish(publish) => Some(BusAnswer::Refused { asker: publish.asker, code }),
        BusRequest::Look { asker, .. } => Some(BusAnswer::Refused { asker: *asker, code }),
        BusRequest::Read(read) => Some(BusAnswer::Unread { room: read.room.clone(), number: read.number }),
        // While the bus is away all are told when it comes.
        BusRequest::Here(here) => (code == Code::Overloaded).then(|| BusAnswer::TellAgain(here.room.clone())),
        BusRequest::Forget(_) | BusRequest::Events(_) => None,
        BusRequest::Others(request) => others::unasked(request),
    }
}
