//! The instances, the way between each and what they share, and what happens next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use super::super::super::{
    Answer, Code, Effect, Entrance, Hub, Look, Plan, ServiceMessage, SocketKey,
    bus::{BusAnswer, BusHere, BusMessage, BusRequest, Elsewhere, Keep},
    letter::RoomLetter,
    name::RoomName,
    rules::{History, Policy},
};
use super::super::{HOME, Instant, hub_of_bus, identity, plan_of, read};
use super::store::Store;

const ROOMS: [&str; 3] = ["public.a", "public.b", "public.c"];
const STEPS: usize = 300;
const CLIENTS_MAX: usize = 12;

/// How often things happened.
#[derive(Debug, Default)]
pub(super) struct Seen {
    messages: usize,
    acks: usize,
    refused: usize,
    recovered: usize,
    unrecovered: usize,
    told: usize,
    cuts: usize,
    missed: usize,
    emptied: usize,
    gone_back: usize,
    quiet_runs: usize,
}

impl Seen {
    pub(super) fn is_everything(&self) -> bool {
        let Self {
            messages,
            acks,
            refused,
            recovered,
            unrecovered,
            told,
            cuts,
            missed,
            emptied,
            gone_back,
            quiet_runs,
        } = self;
        [messages, acks, refused, recovered, unrecovered, told, cuts, missed, emptied, gone_back, quiet_runs]
            .iter()
            .all(|count| **count > 0)
    }
}

/// One process.
struct Instance {
    hubs: Vec<Hub<()>>,
    /// What each shard wrote to each.
    rings: Vec<Vec<VecDeque<RoomLetter>>>,
    is_up: bool,
    /// Counts them.
    connection: u32,
    followed: BTreeSet<RoomName>,
    /// Rooms that nobody is in any more and the store was not told of.
    left: BTreeSet<RoomName>,
    requests: VecDeque<(usize, BusRequest)>,
    answers: VecDeque<(usize, BusAnswer)>,
    channel: VecDeque<BusAnswer>,
}

/// Where a member is, and what it heard since it came or was last told of a loss.
#[derive(Clone, Default)]
struct View {
    epoch: String,
    seq: u64,
    heard: BTreeMap<u64, String>,
}

struct Client {
    at: (usize, usize),
    key: SocketKey,
    user: usize,
    views: BTreeMap<String, View>,
    /// Rooms of joins under way, with where they asked to go on.
    joins: BTreeMap<String, (String, Option<View>)>,
    /// Messages that were not answered.
    sent: BTreeSet<String>,
}

pub(super) struct World {
    rng: fastrand::Rng,
    now: Instant,
    plan: Plan,
    instances: Vec<Instance>,
    clients: Vec<Client>,
    store: Store,
    /// A replica that is behind.
    replica: Store,
    /// Whether what is shared ever loses anything.
    is_faithful: bool,
    /// Whether those who ask see that another server took over.
    is_seen: bool,
    last: BTreeMap<(usize, String), View>,
    asked: u64,
    looks: BTreeMap<u64, Look>,
    ids: u64,
    is_calm: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let is_faithful = rng.bool();
        let messages_max = if is_faithful { 100_000 } else { *rng.choice(&[5, 20, 100_000]).expect("some") };
        let history = History { messages_max, bytes_max: 1 << 30, age_max: Duration::from_hours(1) };
        let plan = plan_of(Policy { history, ..Policy::default() });
        let shards = rng.usize(1..=2);
        let instances = (0..rng.usize(2..=3)).map(|_| Instance {
            hubs: (0..shards).map(|shard| hub_of_bus(shard, shards, plan.clone(), rng.u64(..))).collect(),
            rings: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            is_up: false,
            connection: 0,
            followed: BTreeSet::new(),
            left: BTreeSet::new(),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            channel: VecDeque::new(),
        });
        Self {
            now: Instant::START,
            instances: instances.collect(),
            plan,
            clients: Vec::new(),
            store: Store::default(),
            replica: Store::default(),
            is_faithful,
            is_seen: rng.bool(),
            last: BTreeMap::new(),
            asked: 0,
            looks: BTreeMap::new(),
            ids: 0,
            is_calm: false,
            rng,
        }
    }

    pub(super) fn play(mut self, seen: &mut Seen) {
        for _ in 0..STEPS {
            self.act(seen);
            self.turn(seen);
        }
        self.calm(seen);
        seen.quiet_runs += usize::from(self.is_faithful);
    }

    // ---- what happens ----

    fn act(&mut self, seen: &mut Seen) {
        match self.rng.u32(0..100) {
            0..6 => self.come(),
            6..9 => self.die(),
            9..14 => self.connect_or_cut(seen),
            14..16 if !self.is_faithful => {
                if self.rng.u8(0..4) == 0 {
                    seen.emptied += 1;
                    self.store.take_over(&Store::default(), true);
                } else {
                    seen.gone_back += 1;
                    self.store.take_over(&self.replica, self.is_seen);
                }
                // Nobody stays connected to a server that is gone.
                (0..self.instances.len()).for_each(|at| self.cut(at));
            }
            16..20 => self.replica = self.store.clone(),
            20..24 => self.push(),
            24..90 => self.say(),
            _ => self.now += Duration::from_millis(self.rng.u64(0..400)),
        }
    }

    fn come(&mut self) {
        if self.clients.len() >= CLIENTS_MAX {
            return;
        }
        let at = (self.rng.usize(0..self.instances.len()), self.rng.usize(0..self.instances[0].hubs.len()));
        let user = self.rng.usize(0..6);
        let mut identity = identity(&self.plan, &format!("u{user}"));
        identity.expires = self.now + Duration::from_hours(24);
        let entrance = Entrance { handle: (), network: HOME, identity: Some(identity), window_bits: None };
        let key = self.instances[at.0].hubs[at.1].enter(self.now, entrance).expect("room");
        let (views, joins, sent) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        self.clients.push(Client { at, key, user, views, joins, sent });
    }

    fn die(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let client = self.clients.swap_remove(self.rng.usize(0..self.clients.len()));
        for (room, view) in client.views {
            self.last.insert((client.user, room), view);
        }
        self.instances[client.at.0].hubs[client.at.1].leave(self.now, client.key);
    }

    fn connect_or_cut(&mut self, seen: &mut Seen) {
        let at = self.rng.usize(0..self.instances.len());
        if self.instances[at].is_up {
            seen.cuts += 1;
            self.cut(at);
        } else {
            self.connect(at);
        }
    }

    fn connect(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        instance.is_up = true;
        instance.connection += 1;
        let left = std::mem::take(&mut instance.left).into_iter().filter(|room| !instance.followed.contains(room));
        instance.requests.extend(left.map(|room| (0, BusRequest::Forget(room))));
        instance.hubs.iter_mut().for_each(|hub| hub.bus_is_up(self.now, true));
    }

    /// What is under way may have been done, and nobody knows.
    fn cut(&mut self, at: usize) {
        self.instances[at].channel.clear();
        let requests: Vec<_> = self.instances[at].requests.drain(..).collect();
        for (shard, request) in requests {
            let answer = refused(&request);
            if let BusRequest::Forget(room) = request {
                self.instances[at].left.insert(room);
                continue;
            }
            if self.rng.bool() {
                let count = self.instances[at].answers.len();
                self.carry_out(at, shard, request);
                self.instances[at].answers.truncate(count);
            }
            self.instances[at].answers.extend(answer.map(|answer| (shard, answer)));
        }
        let instance = &mut self.instances[at];
        if std::mem::replace(&mut instance.is_up, false) {
            instance.hubs.iter_mut().for_each(|hub| hub.bus_is_up(self.now, false));
        }
    }

    fn push(&mut self) {
        let (at, room) = (self.rng.usize(0..self.instances.len()), *self.rng.choice(&ROOMS).expect("some"));
        self.ids += 1;
        self.asked += 1;
        let payload = self.ids.to_string();
        let message = ServiceMessage { sub: "svc", kind: "room_message", id: None, payload: &payload };
        let room = RoomName::parse(room).expect("a name");
        self.instances[at].hubs[0].publish_for(self.now, self.asked, room, &message);
    }

    fn say(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.clients.len());
        let room = (*self.rng.choice(&ROOMS).expect("some")).to_owned();
        self.ids += 1;
        let id = format!("m{}", self.ids);
        let client = &mut self.clients[at];
        if client.joins.contains_key(&room) {
            return;
        }
        let text = if !client.views.contains_key(&room) {
            let recover = self.last.get(&(client.user, room.clone())).cloned().filter(|_| self.rng.u8(0..4) > 0);
            let payload = recover.as_ref().map_or("{}".to_owned(), |view| {
                format!(r#"{{"recover":{{"epoch":"{}","seq":{}}}}}"#, view.epoch, view.seq)
            });
            client.joins.insert(room.clone(), (id.clone(), recover));
            format!(r#"{{"type":"join_room","id":"{id}","room":"{room}","payload":{payload}}}"#)
        } else if self.rng.u8(0..12) == 0 {
            let view = client.views.remove(&room).expect("it is there");
            self.last.insert((client.user, room.clone()), view);
            format!(r#"{{"type":"leave_room","room":"{room}"}}"#)
        } else {
            client.sent.insert(id.clone());
            format!(r#"{{"type":"room_message","id":"{id}","room":"{room}","payload":"{id}"}}"#)
        };
        let (instance, shard) = client.at;
        self.instances[instance].hubs[shard].handle_text(self.now, client.key, &text);
    }

    // ---- the driver ----

    fn turn(&mut self, seen: &mut Seen) {
        for at in 0..self.instances.len() {
            let count = if self.is_calm { usize::MAX } else { self.rng.usize(0..8) };
            for shard in 0..self.instances[at].hubs.len() {
                let hub = &mut self.instances[at].hubs[shard];
                hub.go_on(self.now);
                if hub.poll_timeout().is_some_and(|due| due <= self.now) {
                    hub.handle_timeout(self.now);
                }
            }
            self.effects(at);
            for _ in 0..count.min(64) {
                let Some((shard, request)) = self.instances[at].requests.pop_front() else { break };
                self.carry_out(at, shard, request);
            }
            for _ in 0..count.min(64) {
                // Answers and channels come over ways of their own.
                let is_answer = self.rng.bool() || self.instances[at].channel.is_empty();
                if is_answer && let Some((shard, answer)) = self.instances[at].answers.pop_front() {
                    self.instances[at].hubs[shard].handle_bus(self.now, answer);
                } else if let Some(answer) = self.instances[at].channel.pop_front() {
                    if !self.is_calm && matches!(answer, BusAnswer::Heard(_)) && self.rng.u8(0..30) == 0 {
                        seen.missed += 1;
                        continue;
                    }
                    let shard = answer.room().expect("it is a room's").home(self.instances[at].hubs.len());
                    self.instances[at].hubs[shard].handle_bus(self.now, answer);
                }
                self.effects(at);
            }
        }
        for at in 0..self.clients.len() {
            self.listen(at, seen);
        }
    }

    fn carry_out(&mut self, at: usize, shard: usize, request: BusRequest) {
        let connections: Vec<u32> = self.instances.iter().map(|instance| instance.connection).collect();
        let answer = match request {
            BusRequest::Publish(publish) => {
                let (position, message) = self.store.publish(self.rng.u64(..), &publish);
                if let Some(message) = message {
                    for instance in self.instances.iter_mut().filter(|instance| instance.is_up) {
                        if instance.followed.contains(&message.room) {
                            let &BusMessage { ref room, position, chain, ref message } = &message;
                            let (room, message) = (room.clone(), message.clone());
                            let message = BusMessage { room, position, chain, message };
                            instance.channel.push_back(BusAnswer::Heard(Box::new(message)));
                        }
                    }
                }
                BusAnswer::Published { room: publish.room.clone(), asker: publish.asker, position }
            }
            BusRequest::Read(read) => BusAnswer::Stands(Box::new(self.store.read(at, &connections, &read))),
            BusRequest::Look { room, asker } => {
                let users = self.store.users(&room, &connections).into_iter().map(|(_, present)| present).collect();
                BusAnswer::LookIs { asker, position: self.store.position(&room), users }
            }
            BusRequest::Here(here) => return self.tell_here(at, &here),
            BusRequest::Others(_) | BusRequest::Events(_) => return,
            BusRequest::Forget(room) => {
                let keep = Keep { messages_max: 0, bytes_max: 0, age_max: Duration::ZERO, ids_age: Duration::ZERO };
                return self.tell_here(at, &BusHere { room, is_whole: true, users: Vec::new(), keep });
            }
        };
        self.instances[at].answers.push_back((shard, answer));
    }

    /// Keeps who is in a room on an instance, and tells the others.
    fn tell_here(&mut self, at: usize, here: &BusHere) {
        self.store.here(at, self.instances[at].connection, here);
        for (other, instance) in self.instances.iter_mut().enumerate() {
            if other != at && instance.is_up && instance.followed.contains(&here.room) {
                let BusHere { room, is_whole, users, .. } = here;
                let (room, node) = (room.clone(), format!("n{at}").into());
                let elsewhere = Elsewhere { room, node, is_whole: *is_whole, users: users.clone() };
                instance.channel.push_back(BusAnswer::Elsewhere(Box::new(elsewhere)));
            }
        }
    }

    fn effects(&mut self, at: usize) {
        let instance = &mut self.instances[at];
        for shard in (0..instance.hubs.len()).chain(0..instance.hubs.len()) {
            while let Some(effect) = instance.hubs[shard].poll_effect() {
                match effect {
                    Effect::Letter(to, letter) if self.is_calm || self.rng.u8(0..60) > 0 => {
                        instance.rings[shard][to].push_back(letter);
                    }
                    Effect::Letter(to, letter) => instance.hubs[shard].letter_dropped(self.now, to, letter),
                    Effect::Bus(request) if !self.is_calm && self.rng.u8(0..60) == 0 => {
                        instance.hubs[shard].bus_dropped(self.now, request);
                    }
                    Effect::Bus(BusRequest::Forget(room)) => {
                        instance.followed.remove(&room);
                        if instance.is_up {
                            instance.requests.push_back((shard, BusRequest::Forget(room)));
                        } else {
                            instance.left.insert(room);
                        }
                    }
                    Effect::Bus(request) => {
                        if let BusRequest::Read(read) = &request {
                            instance.followed.insert(read.room.clone());
                        }
                        if instance.is_up {
                            instance.requests.push_back((shard, request));
                            continue;
                        }
                        instance.answers.extend(refused(&request).map(|answer| (shard, answer)));
                    }
                    Effect::Told { asker, answer: Answer::Room(look) } => _ = self.looks.insert(asker, look),
                    Effect::Ping(key) => instance.hubs[shard].heard(self.now, key),
                    Effect::Due(_) | Effect::Told { answer: Answer::Published(_) | Answer::Refused(_), .. } => {}
                    other => panic!("no reason for {other:?}"),
                }
            }
            for from in 0..instance.hubs.len() {
                while let Some(letter) = instance.rings[from][shard].pop_front() {
                    instance.hubs[shard].handle_letter(self.now, from, letter);
                }
            }
        }
    }

    // ---- what clients hear ----

    fn listen(&mut self, at: usize, seen: &mut Seen) {
        let client = &mut self.clients[at];
        for text in read(&mut self.instances[client.at.0].hubs[client.at.1], client.key) {
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            let room = frame["room"].as_str().unwrap_or_default().to_owned();
            let seq = frame["seq"].as_u64().unwrap_or_default();
            let epoch = frame["epoch"].as_str().unwrap_or_default();
            match frame["type"].as_str().expect("a type") {
                "welcome" | "left" => {}
                "joined" => {
                    let (_, recover) = client.joins.remove(&room).expect("it asked");
                    let mut view = View { epoch: epoch.to_owned(), seq, heard: BTreeMap::new() };
                    match (&frame["payload"]["recovered"], recover) {
                        (Value::Bool(true), Some(last)) => {
                            seen.recovered += 1;
                            assert_eq!(last.epoch, epoch, "{text}");
                            // Where nobody sees that another server took over, nobody finds numbers that were given twice
                            // while nobody was there.
                            let is_compared = self.is_faithful || self.is_seen;
                            view.heard = if is_compared { last.heard } else { BTreeMap::new() };
                            let messages = frame["payload"]["messages"].as_array().expect("they are there");
                            let numbers: Vec<_> =
                                messages.iter().filter_map(|message| message["seq"].as_u64()).collect();
                            assert_eq!(numbers, (last.seq + 1..=seq).collect::<Vec<_>>(), "{text}");
                            view.heard.extend(numbers.into_iter().zip(messages.iter().map(Value::to_string)));
                        }
                        (Value::Bool(false), Some(last)) => {
                            assert!(!self.is_faithful, "{text} after {} {}", last.epoch, last.seq);
                            seen.unrecovered += 1;
                        }
                        (Value::Null, None) => {}
                        other => panic!("{other:?}", other = other.0),
                    }
                    client.views.insert(room, view);
                }
                "room_message" => {
                    // It may have left meanwhile.
                    let view = client.views.get_mut(&room).expect("a member");
                    assert_eq!((epoch, seq), (&*view.epoch, view.seq + 1), "{text}");
                    view.seq = seq;
                    view.heard.insert(seq, frame.to_string());
                    seen.messages += 1;
                }
                "continuity" => {
                    assert!(!self.is_faithful, "nothing was lost: {text}");
                    let view = client.views.get_mut(&room).expect("a member");
                    assert!(epoch != view.epoch || seq > view.seq, "{text} at {} {}", view.epoch, view.seq);
                    *view = View { epoch: epoch.to_owned(), seq, heard: BTreeMap::new() };
                    seen.told += 1;
                }
                "ack" => {
                    assert!(client.sent.remove(frame["id"].as_str().expect("an id")), "{text}");
                    seen.acks += 1;
                }
                "error" => {
                    let code = frame["payload"]["code"].as_str();
                    let is_known =
                        matches!(code, Some("dependency_unavailable" | "overloaded" | "timeout" | "rate_limited"));
                    assert!(is_known && frame["payload"]["retryable"] == true, "{text}");
                    let id = frame["id"].as_str().expect("an id");
                    if !client.sent.remove(id) {
                        client.joins.retain(|_, (asked, _)| asked != id);
                    }
                    seen.refused += 1;
                }
                _ => panic!("{text}"),
            }
        }
    }

    // ---- when all is quiet ----

    /// Every instance knows who is in a room.
    fn check_crowd(&mut self, room: &RoomName, seen: &mut Seen) {
        let members = || self.clients.iter().filter(|client| client.views.contains_key(room.as_str()));
        let users = members().map(|client| client.user).collect::<BTreeSet<_>>().len();
        let wanted = (users, members().count());
        for at in 0..self.instances.len() {
            self.asked += 1;
            self.instances[at].hubs[0].look_for(self.now, self.asked, room.clone());
            self.looks.clear();
            (0..6).for_each(|_| self.turn(seen));
            let look = self.looks.get(&self.asked).expect("an answer");
            assert_eq!((look.members as usize, look.connections as usize), wanted, "{room} at {at}");
        }
    }

    fn calm(&mut self, seen: &mut Seen) {
        self.is_calm = true;
        for at in 0..self.instances.len() {
            if !self.instances[at].is_up {
                self.connect(at);
            }
        }
        // Longer than six comparisons: who left while a bus took over that did not know it is looked for with the sixth.
        for _ in 0..250 {
            self.turn(seen);
            self.now += Duration::from_millis(150);
        }
        for client in &self.clients {
            assert!(client.joins.is_empty() && client.sent.is_empty(), "never answered: {:?}", client.sent);
            for (room, view) in &client.views {
                let at = self.store.position(&RoomName::parse(room).expect("a name"));
                assert_eq!((&view.epoch, view.seq), (&at.epoch.to_string(), at.seq), "{room}");
                for (seq, heard) in &view.heard {
                    let said: Value = serde_json::from_str(self.store.said(room, *seq).expect("said")).expect("JSON");
                    assert_eq!(*heard, said.to_string(), "{room} {seq}: a number that was given twice");
                }
            }
        }
        for room in ROOMS {
            self.check_crowd(&RoomName::parse(room).expect("a name"), seen);
        }
        let held: usize = self.instances.iter().flat_map(|instance| &instance.hubs).map(|hub| hub.counts().asks).sum();
        assert_eq!(held, 0, "no question is left");
        while !self.clients.is_empty() {
            self.die();
        }
        for _ in 0..20 {
            self.turn(seen);
            self.now += Duration::from_millis(150);
        }
        for instance in &self.instances {
            assert!(instance.followed.is_empty(), "{:?}", instance.followed);
            for hub in &instance.hubs {
                let counts = hub.counts();
                assert_eq!((counts.rooms, counts.homes, counts.history_bytes, counts.kept), (0, 0, 0, 0), "{counts:?}");
                assert!(hub.makers.is_empty() && hub.history_order.is_empty() && hub.poll_timeout().is_none());
            }
        }
    }
}

/// The answer to what was not done.
fn refused(request: &BusRequest) -> Option<BusAnswer> {
    let code = Code::DependencyUnavailable;
    match request {
        BusRequest::Publish(publish) => Some(BusAnswer::Refused { asker: publish.asker, code }),
        BusRequest::Look { asker, .. } => Some(BusAnswer::Refused { asker: *asker, code }),
        BusRequest::Read(read) => Some(BusAnswer::Unread { room: read.room.clone(), number: read.number }),
        BusRequest::Here(_) | BusRequest::Forget(_) | BusRequest::Others(_) | BusRequest::Events(_) => None,
    }
}
