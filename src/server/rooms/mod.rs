//! Rooms across instances: carries out on Redis what the shards' hubs ask of the bus, and brings them what it says. One per
//! process; runs on the bridge's thread, on a connection of its own.
//!
//! What a room's home makes of it is for `hub`; here nothing is known of a room but that it is followed.

mod asked;
mod names;

use std::{
    collections::{BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use asked::lease;
use names::{Names, PARTITIONS};
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_local,
    time::sleep,
};

use super::letter::{AllLetters, DroppableToShard, ToControl, ToShard};
use crate::{
    bus::{
        Bus,
        redis::{Address, Link, Push, RedisFailure, Script},
        to,
    },
    config::Config,
    hub::{
        bus::{BusAnswer, BusMessage, BusRequest, Elsewhere},
        code::Code,
        name::RoomName,
        position::{Chain, Digest, Epoch, Position},
        unnumbered::Unnumbered,
    },
    shard::{Instant, Local, clock, ticks::Ticks},
};

/// Requests under way at once. They share one connection.
const UNDER_WAY_MAX: usize = 4096;
/// What channels have brought and no shard was told yet; more is missed, and read from the logs.
const PUSHES_MAX: usize = 8192;
/// A nonce goes out so often, and the connection is good as long as one came back within the other.
const CANARY_INTERVAL: Duration = Duration::from_secs(1);
const CANARY_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked at, and answers that did not go are sent again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The pauses between attempts to connect: the first, and the longest. Half of each is chance.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How long an instance lives on for the others when nothing is heard of it.
const LEASE: Duration = Duration::from_secs(10);
/// How long messages wait for a shard that takes no letter; then it misses them until it takes one again.
const PATIENCE: Duration = Duration::from_millis(20);

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
    state: Local<State>,
    /// Somebody had no answer on the connection.
    failed: Notify,
}

struct State {
    /// The connection, and how many there were.
    link: Option<Link>,
    number: u64,
    /// The last that somebody had no answer on.
    failed: u64,
    /// Rooms with members here.
    followed: BTreeSet<RoomName>,
    /// Rooms that nobody here is in any more, and the others are not known to have been told.
    left: BTreeSet<RoomName>,
    /// Rooms followed in each partition, and whether its channel is subscribed to on this connection.
    partitions: Vec<(u32, bool)>,
    under_way: usize,
    /// Other instances of whose users is known.
    nodes: BTreeSet<Arc<str>>,
    /// Answers that did not go.
    kept: VecDeque<(usize, BusAnswer)>,
    /// Shards that take no letters now.
    stuck: Vec<bool>,
    is_up: bool,
}

impl Rooms {
    pub(super) fn new(address: Address, is_cluster: bool, node: &str, way: RoomsWay) -> Rc<Self> {
        let state = State {
            link: None,
            number: 0,
            failed: 0,
            followed: BTreeSet::new(),
            left: BTreeSet::new(),
            partitions: vec![(0, false); PARTITIONS],
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
            state: Local::new(state),
            failed: Notify::new(),
        })
    }

    /// A shard's hub asks.
    pub(super) fn take(self: &Rc<Self>, shard: usize, request: BusRequest) {
        match &request {
            BusRequest::Forget(room) => return self.forget(room),
            // Now, not when its turn comes: the next letter may say that it is not wanted any more.
            BusRequest::Read(read) => self.state.with(|state| {
                state.left.remove(&read.room);
                if state.followed.insert(read.room.clone()) {
                    state.partitions[names::partition(&read.room)].0 += 1;
                }
            }),
            BusRequest::Publish(_) | BusRequest::Look { .. } | BusRequest::Here(_) => {}
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
                let rooms = Rc::clone(self);
                spawn_local(async move {
                    let answer = rooms.carry_out(link, number, request).await;
                    rooms.state.with(|state| state.under_way -= 1);
                    if let Some(answer) = answer {
                        rooms.answer(shard, answer);
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
        self.state.with(|state| state.left.insert(room.clone()));
        self.tell_left(room.clone());
        let partition = names::partition(room);
        let link = self.state.with(|state| {
            if !state.followed.remove(room) {
                return None;
            }
            let (rooms, is_subscribed) = &mut state.partitions[partition];
            *rooms -= 1;
            (*rooms == 0 && std::mem::take(is_subscribed)).then(|| state.link.clone()).flatten()
        });
        let Some(mut link) = link else { return };
        let channel = self.names.channel(partition);
        spawn_local(async move { link.unsubscribe(&channel).await });
    }

    /// Tells the others that nobody here is in a room any more; when that fails, again with the next connection.
    fn tell_left(self: &Rc<Self>, room: RoomName) {
        let Some(link) = self.state.with(|state| state.link.clone()) else { return };
        let rooms = Rc::clone(self);
        spawn_local(async move {
            if rooms.tell_here(link, &room, &rooms.names.node, true, &[], LEASE).await.is_ok() {
                rooms.state.with(|state| state.left.remove(&room));
            }
        });
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

    /// Connects, listens, and connects anew. Never ends.
    pub(super) async fn run(self: Rc<Self>) {
        let mut pause = PAUSE[0];
        loop {
            let (tell, pushes) = mpsc::channel(PUSHES_MAX);
            let ended = match self.address.connect_with_channels(tell).await {
                Ok(link) => self.serve(link, pushes, &mut pause).await,
                Err(failure) => failure,
            };
            self.is_up(false);
            tracing::debug!(error = %ended, "the rooms' connection to Redis is given up");
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
        mut pushes: mpsc::Receiver<Push>,
        pause: &mut Duration,
    ) -> RedisFailure {
        let wanted = self.state.with(|state| {
            state.number += 1;
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
        for room in self.state.with(|state| state.left.clone()) {
            self.tell_left(room);
        }
        let mut looks = Ticks::every(LOOK_INTERVAL);
        let (mut heard_at, mut sent_at) = (clock::now(), Instant::START);
        let mut nonce = String::new();
        loop {
            tokio::select! {
                push = pushes.recv() => match push {
                    Some(Push::Message { channel, text }) if channel == self.names.canary => {
                        if text == nonce {
                            heard_at = clock::now();
                            *pause = PAUSE[0];
                            self.is_up(true);
                        }
                    }
                    Some(Push::Message { text, .. }) => self.hear(&text).await,
                    Some(Push::Ended) | None => return RedisFailure::Away(crate::bus::redis::Outage::Broken),
                },
                () = self.failed.notified() => {
                    // It may have been about one that was given up before.
                    if self.state.with(|state| state.failed == state.number) {
                        return RedisFailure::Away(crate::bus::redis::Outage::Timeout);
                    }
                }
                () = looks.tick() => {
                    self.send_kept();
                    let now = clock::now();
                    if now.since(heard_at) > CANARY_WITHIN {
                        return RedisFailure::Away(crate::bus::redis::Outage::Timeout);
                    }
                    if now.since(sent_at) >= CANARY_INTERVAL {
                        sent_at = now;
                        nonce = format!("{:016x}", fastrand::u64(..));
                        let mut canary = redis::cmd(link.publishes_by());
                        canary.arg(&self.names.canary).arg(&nonce);
                        let mut link = link.clone();
                        let lease = lease(&self.names.node, self.state.with(|state| state.number));
                        let rooms = Rc::clone(self);
                        spawn_local(async move {
                            let (_, _) = (link.ask::<i64>(&canary).await, link.ask::<()>(&lease).await);
                            rooms.look_for_nodes(link).await
                        });
                    }
                }
            }
        }
    }

    async fn listen(&self, link: &mut Link, partitions: &[usize]) -> Result<(), RedisFailure> {
        // Before anybody is told who is here.
        let number = self.state.with(|state| state.number);
        link.ask::<()>(&lease(&self.names.node, number)).await?;
        link.subscribe(&self.names.canary).await?;
        for &partition in partitions {
            link.subscribe(&self.names.channel(partition)).await?;
        }
        Ok(())
    }

    /// The connection is good, or of no use.
    fn is_up(&self, is_up: bool) {
        let was_up = self.state.with(|state| {
            if !is_up {
                state.link = None;
                state.partitions.iter_mut().for_each(|(_, is_subscribed)| *is_subscribed = false);
            }
            std::mem::replace(&mut state.is_up, is_up)
        });
        if was_up == is_up {
            return;
        }
        if is_up {
            tracing::info!("rooms span instances: Redis is there");
        } else {
            tracing::warn!("rooms do not span instances: Redis is away");
        }
        self.way.0.broadcast(|| ToShard::Bus(is_up));
        self.way.0.send(to::Control, ToControl::Bus(is_up));
    }

    /// A message of some instance.
    async fn hear(&self, text: &str) {
        let mut answer = match text.strip_prefix("! ") {
            None => match read_message(text) {
                Some(message) => BusAnswer::Heard(Box::new(message)),
                None => return,
            },
            Some(text) => match read_elsewhere(text).filter(|elsewhere| *elsewhere.node != *self.names.node) {
                Some(elsewhere) => BusAnswer::Elsewhere(Box::new(elsewhere)),
                None => return,
            },
        };
        let Some(room) = answer.room() else { return };
        let is_followed = self.state.with(|state| {
            if let BusAnswer::Elsewhere(elsewhere) = &answer
                && !elsewhere.users.is_empty()
            {
                state.nodes.insert(Arc::clone(&elsewhere.node));
            }
            state.followed.contains(room)
        });
        if !is_followed {
            return;
        }
        let shard = room.home(self.way.1);
        let given_up_at = clock::now() + PATIENCE;
        loop {
            let Err(DroppableToShard::Bus(back)) = self.offer(shard, answer) else {
                return self.state.with(|state| state.stuck[shard] = false);
            };
            answer = *back;
            // One shard that stands still holds up the others once, not with each message.
            let is_stuck = self.state.with(|state| {
                state.stuck[shard] |= clock::now() >= given_up_at;
                state.stuck[shard]
            });
            if is_stuck {
                return;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A message as a channel brings it.
fn read_message(text: &str) -> Option<BusMessage> {
    let mut parts = text.splitn(6, ' ');
    let mut next = || parts.next();
    let room = RoomName::parse(next()?)?;
    let position = Position { epoch: Epoch::parse(next()?), seq: next()?.parse().ok()? };
    let chain = Chain { before: Digest::parse(next()?), after: Digest::parse(next()?) };
    Some(BusMessage { room, position, chain, message: Unnumbered::parse(next()?)? })
}

/// Who is in a room on an instance, as a channel brings it.
fn read_elsewhere(text: &str) -> Option<Elsewhere> {
    let mut parts = text.splitn(4, ' ');
    let (room, node, is_whole, users) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let users: Vec<(String, u32)> = serde_json::from_str(users).ok()?;
    let users = users.into_iter().map(|(user, sockets)| (user.into(), sockets)).collect();
    Some(Elsewhere { room: RoomName::parse(room)?, node: node.into(), is_whole: is_whole == "1", users })
}

/// The answer where there is none.
fn refused(request: &BusRequest, code: Code) -> Option<BusAnswer> {
    match request {
        BusRequest::Publish(publish) => Some(BusAnswer::Refused { asker: publish.asker, code }),
        BusRequest::Look { asker, .. } => Some(BusAnswer::Refused { asker: *asker, code }),
        BusRequest::Read(read) => Some(BusAnswer::Unread { room: read.room.clone(), number: read.number }),
        // While the bus is away all are told when it comes.
        BusRequest::Here(here) => (code == Code::Overloaded).then(|| BusAnswer::TellAgain(here.room.clone())),
        BusRequest::Forget(_) => None,
    }
}
