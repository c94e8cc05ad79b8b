//! Rooms across instances: carries out on Redis what the shards' hubs ask of the bus, and brings them what it says. One per
//! process; runs on the bridge's thread, on a connection of its own.
//!
//! What a room's home makes of it is for `hub`; here nothing is known of a room but that it is followed.

mod names;

use std::{collections::HashSet, collections::VecDeque, rc::Rc, time::Duration};

use names::{Names, PARTITIONS};
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_local,
    time::sleep,
};

use super::letter::{AllLetters, DroppableToShard, ToShard};
use crate::{
    bus::{
        Bus,
        redis::{Address, Link, Push, RedisFailure, Script},
        to,
    },
    hub::{
        bus::{BusAnswer, BusAsker, BusMessage, BusPublish, BusRead, BusRequest, Stands},
        code::Code,
        name::RoomName,
        position::{Epoch, Position},
        unnumbered::Unnumbered,
    },
    shard::{Instant, Local, clock, ticks::Ticks},
};

/// Requests under way at once. They share one connection.
const UNDER_WAY_MAX: usize = 4096;
/// What channels have brought and no shard was told yet; more is missed, and read from the logs.
const PUSHES_MAX: usize = 8192;
/// Messages that one answer brings.
const MESSAGES_MAX: usize = 1000;
/// A nonce goes out so often, and the connection is good as long as one came back within the other.
const CANARY_INTERVAL: Duration = Duration::from_secs(1);
const CANARY_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked at, and answers that did not go are sent again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The pauses between attempts to connect: the first, and the longest. Half of each is chance.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];
/// How long messages wait for a shard that takes no letter; then it misses them until it takes one again.
const PATIENCE: Duration = Duration::from_millis(20);

/// How shards are reached, and how many there are.
pub(super) struct RoomsWay(pub(super) Bus<AllLetters>, pub(super) usize);

/// The rooms' way over Redis.
pub(super) struct Rooms {
    address: Address,
    names: Names,
    way: RoomsWay,
    publish: Script,
    read: Script,
    state: Local<State>,
    /// Somebody had no answer on the connection.
    failed: Notify,
}

struct State {
    /// The connection, and how many there were.
    link: Option<Link>,
    number: u64,
    /// Rooms with members here.
    followed: HashSet<RoomName>,
    /// Rooms followed in each partition, and whether its channel is subscribed to on this connection.
    partitions: Vec<(u32, bool)>,
    under_way: usize,
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
            followed: HashSet::new(),
            partitions: vec![(0, false); PARTITIONS],
            under_way: 0,
            kept: VecDeque::new(),
            stuck: vec![false; way.1],
            is_up: false,
        };
        Rc::new(Self {
            address,
            names: Names::new(is_cluster, node),
            way,
            publish: Script::new(include_str!("publish.lua")),
            read: Script::new(include_str!("read.lua")),
            state: Local::new(state),
            failed: Notify::new(),
        })
    }

    /// A shard's hub asks.
    pub(super) fn take(self: &Rc<Self>, shard: usize, request: BusRequest) {
        if let BusRequest::Forget(room) = &request {
            return self.forget(room);
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
                    rooms.answer(shard, answer);
                });
            }
            Err(code) => self.answer(shard, refused(&request, code)),
        }
    }

    /// Nobody here is in the room any more.
    fn forget(self: &Rc<Self>, room: &RoomName) {
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

    // ---- what is asked ----

    async fn carry_out(&self, mut link: Link, number: u64, request: BusRequest) -> BusAnswer {
        let answer = match &request {
            BusRequest::Publish(publish) => self.number(&mut link, publish).await,
            BusRequest::Read(read) => self.read(&mut link, number, read).await,
            BusRequest::Look { room, asker } => self.look(&mut link, room, *asker).await,
            BusRequest::Forget(_) => return refused(&request, Code::Overloaded),
        };
        answer.unwrap_or_else(|failure| {
            match failure {
                RedisFailure::Away(_) if self.state.with(|state| state.number == number) => self.failed.notify_one(),
                RedisFailure::Away(_) => {}
                failure => tracing::warn!(error = %ErrorChain(&failure), "Redis refused what a room asked for"),
            }
            refused(&request, Code::DependencyUnavailable)
        })
    }

    async fn number(&self, link: &mut Link, publish: &BusPublish) -> Result<BusAnswer, RedisFailure> {
        let BusPublish { room, asker, seen, epoch, id, message, keep } = publish;
        let [meta, log] = self.names.room(room);
        let id = id.as_ref().map(|(speaker, id)| self.names.id(room, speaker, id));
        let keys: Vec<&str> = [&*meta, &*log].into_iter().chain(id.as_deref()).collect();
        let ms = |time: Duration| time.as_millis().to_string();
        let arguments = [
            link.publishes_by().to_owned(),
            self.names.channel(names::partition(room)),
            room.as_str().to_owned(),
            message.to_kept(),
            seen.epoch.to_string(),
            seen.seq.to_string(),
            epoch.to_string(),
            keep.messages_max.to_string(),
            keep.bytes_max.to_string(),
            ms(keep.age_max),
            ms(keep.ids_age),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (epoch, seq): (String, u64) = link.run(&self.publish, &keys, &arguments).await?;
        let position = Position { epoch: Epoch::parse(&epoch), seq };
        Ok(BusAnswer::Published { room: room.clone(), asker: *asker, position })
    }

    /// Listens to the room's partition, and then reads.
    async fn read(&self, link: &mut Link, number: u64, read: &BusRead) -> Result<BusAnswer, RedisFailure> {
        let BusRead { room, seen, epoch, from, keep, .. } = read;
        let partition = names::partition(room);
        let is_subscribed = self.state.with(|state| {
            if state.followed.insert(room.clone()) {
                state.partitions[partition].0 += 1;
            }
            state.partitions[partition].1
        });
        if !is_subscribed {
            link.subscribe(&self.names.channel(partition)).await?;
            self.state.with(|state| {
                let (rooms, is_subscribed) = &mut state.partitions[partition];
                *is_subscribed = state.number == number && *rooms > 0;
            });
        }
        let from = (*from != u64::MAX).then(|| from.to_string()).unwrap_or_default();
        let lives = keep.age_max.max(keep.ids_age).as_millis().to_string();
        let (position, messages) = self.run_read(link, room, *seen, &epoch.to_string(), &from, &lives).await?;
        Ok(BusAnswer::Stands(Box::new(Stands { room: room.clone(), number: read.number, position, messages })))
    }

    async fn look(&self, link: &mut Link, room: &RoomName, asker: BusAsker) -> Result<BusAnswer, RedisFailure> {
        let (position, _) = self.run_read(link, room, Position::default(), "", "", "0").await?;
        Ok(BusAnswer::LookIs { asker, position })
    }

    async fn run_read(
        &self,
        link: &mut Link,
        room: &RoomName,
        seen: Position,
        begins: &str,
        from: &str,
        lives: &str,
    ) -> Result<(Position, Vec<(u64, Unnumbered)>), RedisFailure> {
        let [meta, log] = self.names.room(room);
        let (epoch, seq, most) = (seen.epoch.to_string(), seen.seq.to_string(), MESSAGES_MAX.to_string());
        let arguments = [&*epoch, &*seq, begins, from, &*most, lives];
        let answer: Vec<String> = link.run(&self.read, &[&*meta, &*log], &arguments).await?;
        let mut answer = answer.into_iter();
        let (epoch, seq) = (answer.next().unwrap_or_default(), answer.next().unwrap_or_default());
        let position = Position { epoch: Epoch::parse(&epoch), seq: seq.parse().unwrap_or_default() };
        let mut messages = Vec::new();
        while let (Some(seq), Some(message)) = (answer.next(), answer.next()) {
            // What cannot be read is a hole: it is told.
            messages.extend(seq.parse().ok().zip(Unnumbered::parse(&message)));
        }
        Ok((position, messages))
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
                () = self.failed.notified() => return RedisFailure::Away(crate::bus::redis::Outage::Timeout),
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
                        spawn_local(async move { link.ask::<i64>(&canary).await.is_ok() });
                    }
                }
            }
        }
    }

    async fn listen(&self, link: &mut Link, partitions: &[usize]) -> Result<(), RedisFailure> {
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
    }

    /// A message of some instance.
    async fn hear(&self, text: &str) {
        let Some(message) = read_message(text) else { return };
        if !self.state.with(|state| state.followed.contains(&message.room)) {
            return;
        }
        let shard = message.room.home(self.way.1);
        let mut answer = BusAnswer::Heard(Box::new(message));
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
    let mut parts = text.splitn(4, ' ');
    let (room, epoch, seq, message) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let position = Position { epoch: Epoch::parse(epoch), seq: seq.parse().ok()? };
    Some(BusMessage { room: RoomName::parse(room)?, position, message: Unnumbered::parse(message)? })
}

/// The answer where there is none.
fn refused(request: &BusRequest, code: Code) -> BusAnswer {
    match request {
        BusRequest::Publish(publish) => BusAnswer::Refused { asker: publish.asker, code },
        BusRequest::Look { asker, .. } => BusAnswer::Refused { asker: *asker, code },
        BusRequest::Read(read) => BusAnswer::Unread { room: read.room.clone(), number: read.number },
        BusRequest::Forget(_) => unreachable!("nobody waits for an answer"),
    }
}

/// A failure with its causes, in one line.
struct ErrorChain<'a>(&'a RedisFailure);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        match self.0 {
            RedisFailure::Refused(cause) => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}
