//! The shards, the mesh between them, the clock, and what happens next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::{
    Answer, Close, Code, Effect, Entrance, Hub, Identity, PIECES_MAX, Plan, ServiceMessage, ServiceOutcome, SocketKey,
    Ticket,
    events::{Event, EventKind},
    letter::{Look, RoomLetter},
    name::RoomName,
};
use super::super::{BEGIN_UNIX_MS, HOME, Instant, hub_of};
use super::client::{Client, Sent, Truth};
use super::plan::{Seen, plan};

const ROOMS: [&str; 7] =
    ["public.a.1", "public.a.2", "public.a.3", "public.b.1", "public.b.2", "public.c.1", "public.c.2"];
const USERS: usize = 4;
const STEPS: usize = 400;
const CLIENTS_MAX: usize = 14;

/// A token that a hub wants to have checked.
struct Check {
    shard: usize,
    socket: SocketKey,
    id: Option<Box<str>>,
    token: usize,
}

/// All that there is.
pub(super) struct World {
    rng: fastrand::Rng,
    now: Instant,
    plan: Plan,
    hubs: Vec<Hub<()>>,
    /// What each shard wrote to each.
    rings: Vec<Vec<VecDeque<RoomLetter>>>,
    ring_max: usize,
    /// Of 100 letters, so many do not go although there is room.
    loss: u32,
    is_stalled: Vec<bool>,
    clients: Vec<Client>,
    checks: Vec<Check>,
    /// Messages under way at services: shard, ticket, socket, type.
    services: Vec<(usize, Ticket, SocketKey, usize)>,
    leaving: Vec<(usize, SocketKey)>,
    /// Where users were in rooms when they lost their connection.
    last: BTreeMap<(usize, String), super::client::View>,
    /// Messages that were sent, by their user: they may be sent again.
    said: Vec<(usize, String, String, u64)>,
    asked: u64,
    open_askers: BTreeSet<u64>,
    looks: BTreeMap<u64, Look>,
    /// What was told last of each room and user: whether somebody is there, and its number.
    events: BTreeMap<String, (bool, u64)>,
    ids: u64,
    truth: Truth,
    seen: Seen,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = rng.usize(1..=4);
        let plan = plan(&mut rng);
        Self {
            now: Instant::START,
            hubs: (0..shards).map(|shard| hub_of(shard, shards, plan.clone())).collect(),
            rings: (0..shards).map(|_| (0..shards).map(|_| VecDeque::new()).collect()).collect(),
            ring_max: *rng.choice(&[2, 5, 20, 1000]).expect("some"),
            loss: *rng.choice(&[0, 0, 2, 20]).expect("some"),
            is_stalled: vec![false; shards],
            clients: Vec::new(),
            checks: Vec::new(),
            services: Vec::new(),
            leaving: Vec::new(),
            last: BTreeMap::new(),
            said: Vec::new(),
            asked: 0,
            open_askers: BTreeSet::new(),
            looks: BTreeMap::new(),
            events: BTreeMap::new(),
            ids: 0,
            truth: Truth::default(),
            seen: Seen::default(),
            plan,
            rng,
        }
    }

    pub(super) fn play(mut self) -> Seen {
        for _ in 0..STEPS {
            self.act();
            self.turn();
            self.check();
        }
        self.calm();
        self.check_calm();
        self.end();
        self.truth.check();
        self.seen
    }

    // ---- what happens ----

    fn act(&mut self) {
        match self.rng.u32(0..100) {
            0..8 => self.come(),
            8..10 => self.die(),
            10..13 => {
                let at = self.rng.usize(0..self.is_stalled.len());
                self.is_stalled[at] = !self.is_stalled[at];
            }
            13..20 => self.stall(),
            20..22 => self.kick_or_push(),
            22..26 => self.push(),
            26..28 => self.answer_late(),
            28..90 => self.say(),
            _ => {
                let longest = if self.rng.u8(0..20) == 0 { 30_000 } else { 300 };
                self.now += Duration::from_millis(self.rng.u64(0..longest));
            }
        }
    }

    fn any(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.clients.len()).filter(|&at| self.clients[at].is_open).collect();
        self.rng.choice(&open).copied()
    }

    fn identity(&self, user: usize, token: usize) -> Identity {
        let expires = self.now + Duration::from_hours(12);
        Identity {
            user: Arc::from(format!("u{user}")),
            session: Some(Arc::from(format!("s{user}"))),
            permits: self.plan.rules.permits(|role| token == 0 || role != "all", |_| false),
            expires,
            expires_unix_s: BEGIN_UNIX_MS / 1000 + expires.as_nanos() / 1_000_000_000,
        }
    }

    fn come(&mut self) {
        if self.clients.iter().filter(|client| client.is_open).count() >= CLIENTS_MAX {
            return;
        }
        let (shard, user) = (self.rng.usize(0..self.hubs.len()), self.rng.usize(0..USERS));
        let token = self.rng.bool().then_some(0);
        let identity = token.map(|token| self.identity(user, token));
        let window_bits = *self.rng.choice(&[None, Some(15), Some(9)]).expect("some");
        let entrance = Entrance { handle: (), network: HOME, identity, window_bits };
        let key = self.hubs[shard].enter(self.now, entrance).expect("room");
        self.clients.push(Client::new(shard, key, user, token, window_bits.is_some()));
        if token.is_none() {
            self.send(self.clients.len() - 1, Sent::Auth { token: 0 });
        }
    }

    fn die(&mut self) {
        let Some(at) = self.any() else { return };
        self.lose(at);
        let client = &self.clients[at];
        self.hubs[client.shard].leave(self.now, client.key);
    }

    /// The client's connection is over: it remembers where it was.
    fn lose(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.is_open = false;
        for (room, view) in std::mem::take(&mut client.views) {
            self.last.insert((client.user, room), view);
        }
    }

    fn stall(&mut self) {
        let Some(at) = self.any() else { return };
        let client = &mut self.clients[at];
        client.is_stalled = !client.is_stalled;
        client.was_stalled |= client.is_stalled;
        if !client.is_stalled {
            self.hubs[client.shard].set_blocked(client.key, false);
        }
    }

    fn kick_or_push(&mut self) {
        let (shard, user) = (self.rng.usize(0..self.hubs.len()), self.rng.usize(0..USERS));
        let user = Arc::from(format!("u{user}"));
        let asker = self.asker();
        if self.rng.u8(0..4) == 0 {
            self.hubs[shard].kick_for(self.now, asker, &user);
        } else {
            let message = ServiceMessage { sub: "pricing", kind: "push", id: None, payload: "1" };
            self.hubs[shard].publish_to_user_for(self.now, asker, &user, &message);
        }
    }

    /// A service says something in a room.
    fn push(&mut self) {
        let shard = self.rng.usize(0..self.hubs.len());
        let room = RoomName::parse(self.rng.choice(&ROOMS).expect("some")).expect("a name");
        let asker = self.asker();
        let payload = self.number().to_string();
        let message = ServiceMessage { sub: "svc", kind: "room_message", id: None, payload: &payload };
        self.hubs[shard].publish_for(self.now, asker, room, &message);
    }

    fn asker(&mut self) -> u64 {
        self.asked += 1;
        self.open_askers.insert(self.asked);
        self.asked
    }

    fn number(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Some token or service comes to its answer.
    fn answer_late(&mut self) {
        for _ in 0..self.rng.usize(0..4) {
            if !self.checks.is_empty() {
                let check = self.checks.remove(self.rng.usize(0..self.checks.len()));
                self.answer_check(&check);
            }
            if !self.services.is_empty() {
                let at = self.rng.usize(0..self.services.len());
                self.answer_service(at);
            }
        }
    }

    fn answer_check(&mut self, check: &Check) {
        let Check { shard, socket, id, token } = check;
        let Some(client) = self.clients.iter().find(|client| (client.shard, client.key) == (*shard, *socket)) else {
            return;
        };
        if *token > 1 {
            self.hubs[*shard].auth_failed(self.now, *socket, id.as_deref(), Code::DependencyUnavailable);
        } else {
            let identity = self.identity(client.user, *token);
            self.hubs[*shard].authenticated(self.now, *socket, id.as_deref(), identity);
        }
    }

    fn answer_service(&mut self, at: usize) {
        let (shard, ticket, ..) = self.services.remove(at);
        let outcome = if self.rng.bool() {
            ServiceOutcome::Taken { status: 202, json: "{}" }
        } else {
            ServiceOutcome::Refused { code: Code::UpstreamTimeout, retry_after_ms: Some(500) }
        };
        self.hubs[shard].service_answered(self.now, ticket, &outcome);
        self.seen.answers += 1;
    }

    fn say(&mut self) {
        let Some(at) = self.any() else { return };
        let own: Vec<&String> = self.clients[at].views.keys().collect();
        let room = match self.rng.choice(&own) {
            Some(&own) if self.rng.u8(0..4) > 0 => own.clone(),
            _ => (*self.rng.choice(&ROOMS).expect("some")).to_owned(),
        };
        let is_in = self.clients[at].views.contains_key(&room);
        let sent = match self.rng.u32(0..100) {
            0..10 if is_in => Sent::Leave { room },
            0..75 if !is_in => {
                let recover = self.last.get(&(self.clients[at].user, room.clone())).cloned();
                Sent::Join { room, recover: recover.filter(|_| self.rng.u8(0..4) > 0) }
            }
            0..80 => {
                let number = self.number();
                Sent::Publish { room, number }
            }
            80..83 => Sent::Presence,
            83..85 => Sent::Heartbeat,
            85..90 => Sent::Cart,
            90..94 => Sent::Prediction,
            94..97 => Sent::Auth { token: self.rng.usize(0..3) },
            97 => Sent::Nonsense,
            _ => return self.say_again(at),
        };
        self.send(at, sent);
    }

    fn send(&mut self, at: usize, sent: Sent) {
        let id = format!("m{}", self.number());
        if let Sent::Publish { room, number } = &sent {
            self.said.push((self.clients[at].user, id.clone(), room.clone(), *number));
        }
        self.send_as(at, &id, sent);
    }

    /// The same message again, perhaps over another socket.
    fn say_again(&mut self, at: usize) {
        let user = self.clients[at].user;
        let mine: Vec<_> = self.said.iter().filter(|(by, ..)| *by == user).cloned().collect();
        let Some((_, id, room, number)) = self.rng.choice(&mine).cloned() else { return };
        if !self.clients[at].sent.contains_key(&id) {
            self.send_as(at, &id, Sent::Publish { room, number });
        }
    }

    fn send_as(&mut self, at: usize, id: &str, sent: Sent) {
        let client = &mut self.clients[at];
        if client.is_open {
            // What it said before waits for its turn.
            for _ in 0..100 {
                if self.hubs[client.shard].takes_messages() {
                    break;
                }
                self.hubs[client.shard].go_on(self.now);
            }
            let text = client.say(id, sent);
            self.hubs[client.shard].handle_text(self.now, client.key, &text);
        }
    }

    // ---- the driver ----

    fn turn(&mut self) {
        for shard in 0..self.hubs.len() {
            self.hubs[shard].go_on(self.now);
            self.pass_time(shard);
            self.effects(shard);
            self.write(shard);
        }
        if self.rng.bool() {
            for (shard, key) in std::mem::take(&mut self.leaving) {
                self.hubs[shard].leave(self.now, key);
            }
        }
        for to in 0..self.hubs.len() {
            for from in 0..self.hubs.len() {
                let count = if self.is_stalled[to] { 0 } else { self.rng.usize(0..=self.ring_max.min(30)) };
                for _ in 0..count {
                    if !self.hubs[to].takes_letters() {
                        self.seen.held += 1;
                        break;
                    }
                    let Some(letter) = self.rings[from][to].pop_front() else { break };
                    let before = self.hubs[to].counts().deliveries;
                    self.hubs[to].handle_letter(self.now, from, letter);
                    let queued = self.hubs[to].counts().deliveries - before;
                    // The last message goes to all members, and whom it is too much for leaves.
                    assert!(queued < (self.plan.limits.pushes_per_turn + CLIENTS_MAX) as u64, "{queued}");
                }
            }
            self.effects(to);
            self.write(to);
        }
    }

    fn pass_time(&mut self, shard: usize) {
        if self.hubs[shard].poll_timeout().is_some_and(|due| due <= self.now) {
            self.hubs[shard].handle_timeout(self.now);
        }
        let clients = self.clients.iter().filter(|client| client.is_open && client.shard == shard);
        for client in clients {
            if self.hubs[shard].socket_due(client.key) <= self.now {
                self.hubs[shard].handle_socket_timeout(self.now, client.key);
            }
        }
    }

    fn effects(&mut self, shard: usize) {
        while let Some(effect) = self.hubs[shard].poll_effect() {
            match effect {
                Effect::Letter(to, letter) => {
                    assert_ne!(to, shard);
                    let is_lost = self.rng.u32(0..100) < self.loss;
                    if is_lost || self.rings[shard][to].len() >= self.ring_max {
                        self.seen.lost += 1;
                        self.hubs[shard].letter_dropped(self.now, to, letter);
                    } else {
                        self.rings[shard][to].push_back(letter);
                    }
                }
                effect @ (Effect::Bus(_) | Effect::EventsDropped(_) | Effect::EventsBegin(_)) => {
                    panic!("there is no bus: {effect:?}")
                }
                Effect::Close(key, close) => self.close(shard, key, close),
                Effect::Cut(_) => panic!("whoever is closed is written to here before anything else"),
                Effect::Ping(key) => self.hubs[shard].heard(self.now, key),
                Effect::Due(_) => {}
                Effect::Auth { socket, id, token } => {
                    let token = token.parse().expect("ours");
                    self.checks.push(Check { shard, socket, id, token });
                }
                Effect::Forward { ticket, socket, index, .. } => {
                    let is_under_way = |&(at, _, by, kind): &(usize, Ticket, SocketKey, usize)| {
                        (at, by, kind) == (shard, socket, index)
                    };
                    assert!(!self.services.iter().any(is_under_way), "two of one type are under way");
                    self.services.push((shard, ticket, socket, index));
                }
                Effect::Cancel(ticket) => {
                    let at = self.services.iter().position(|&(at, known, ..)| (at, known) == (shard, ticket));
                    // Its answer may have been quicker.
                    if let Some(at) = at {
                        self.services.remove(at);
                        self.seen.cancelled += 1;
                    }
                }
                Effect::Event(event) => self.hear_event(&event),
                Effect::Told { asker, answer } => {
                    assert!(self.open_askers.remove(&asker), "one answer each");
                    if let Answer::Room(look) = answer {
                        self.looks.insert(asker, look);
                    }
                }
            }
        }
    }

    /// What is told of a room or user alternates, and no number is missing.
    fn hear_event(&mut self, event: &Event) {
        let (subject, n) = event.key.strip_prefix("n1:").and_then(|key| key.rsplit_once(':')).expect("a key");
        let (was_there, last) = self.events.get(subject).copied().unwrap_or_default();
        let is_there = matches!(event.kind, EventKind::RoomOccupied | EventKind::UserOnline);
        assert_eq!((is_there, n.parse()), (!was_there, Ok(last + 1)), "{event:?}");
        let name = subject.split_once(':').expect("a kind and a name").1;
        assert!(event.json.contains(&format!("\":\"{name}\",\"n\":{n},\"at\":\"2026-")), "{event:?}");
        self.events.insert(subject.to_owned(), (is_there, last + 1));
        self.seen.events += 1;
    }

    /// What was told last is true.
    fn check_events(&self) {
        let is_told = |subject: String| self.events.get(&subject).is_some_and(|&(is_there, _)| is_there);
        for room in ROOMS {
            let mut open = self.clients.iter().filter(|client| client.is_open);
            let is_occupied = open.any(|client| client.views.contains_key(room));
            assert_eq!(is_told(format!("room:{room}")), is_occupied, "{room}");
        }
        for user in (0..USERS).map(|user| format!("u{user}")) {
            let is_online = self.hubs.iter().any(|hub| hub.users.contains_key(&*user));
            assert_eq!(is_told(format!("user:{user}")), is_online, "{user}");
        }
    }

    fn close(&mut self, shard: usize, key: SocketKey, close: Close) {
        let at = self.clients.iter().position(|client| (client.shard, client.key) == (shard, key)).expect("known");
        assert!(self.clients[at].is_open, "closed once");
        match close {
            Close::SlowConsumer => {
                let is_slow = self.clients[at].was_stalled || self.plan.limits.outbox_bytes_max <= 4096;
                assert!(is_slow || self.plan.limits.frames_bytes_max < 1 << 20, "it reads as fast as it can");
                self.seen.slow += 1;
            }
            Close::Revoked => self.seen.kicked += 1,
            // Time goes in leaps here.
            Close::NoPong | Close::Unauthenticated | Close::PolicyViolation => {}
            Close::Restart => self.seen.drained += 1,
            other => panic!("no reason to close with {other:?}"),
        }
        // What was queued before comes before the close.
        while self.write_some(shard, key, usize::MAX) {}
        self.lose(at);
        self.leaving.push((shard, key));
    }

    fn write(&mut self, shard: usize) {
        for _ in 0..self.rng.usize(0..40) {
            let Some(key) = self.hubs[shard].next_dirty() else { return };
            let Some(client) =
                self.clients.iter().find(|client| client.is_open && (client.shard, client.key) == (shard, key))
            else {
                continue;
            };
            if client.is_stalled {
                self.hubs[shard].set_blocked(key, true);
                continue;
            }
            let max = if self.rng.bool() { usize::MAX } else { self.rng.usize(1..400) };
            self.write_some(shard, key, max);
        }
    }

    /// Writes some of what is queued; says whether there was any.
    fn write_some(&mut self, shard: usize, key: SocketKey, max: usize) -> bool {
        let Some(socket) = self.hubs[shard].socket(key) else { return false };
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let count = socket.outbox.slices(&mut pieces);
        let mut bytes: Vec<u8> = pieces[..count].iter().flat_map(|piece| piece.iter().copied()).collect();
        bytes.truncate(max);
        if bytes.is_empty() {
            return false;
        }
        self.hubs[shard].written(key, bytes.len());
        let at = self.clients.iter().position(|client| (client.shard, client.key) == (shard, key)).expect("known");
        let client = &mut self.clients[at];
        client.bytes.extend_from_slice(&bytes);
        client.read(self.now, &mut self.truth, &mut self.seen);
        true
    }

    // ---- what holds at every time ----

    fn check(&self) {
        let limits = &self.plan.limits;
        for hub in &self.hubs {
            assert!(hub.is_sound());
            let counts = hub.counts();
            assert!(counts.frame_bytes <= limits.frames_bytes_max, "{counts:?}");
            assert!(counts.history_bytes <= limits.history_bytes_max, "{counts:?}");
            assert!(hub.rooms.iter().all(|(_, room)| room.early().0 <= 256 && room.early().1 <= 1 << 20));
        }
    }

    // ---- when all is quiet ----

    /// Nothing is lost any more, everybody reads and answers, and time passes.
    fn calm(&mut self) {
        self.loss = 0;
        self.ring_max = usize::MAX;
        self.is_stalled.fill(false);
        for client in self.clients.iter_mut().filter(|client| client.is_open) {
            client.is_stalled = false;
            self.hubs[client.shard].set_blocked(client.key, false);
        }
        for round in 0..400 {
            while let Some(check) = self.checks.pop() {
                self.answer_check(&check);
            }
            while !self.services.is_empty() {
                self.answer_service(0);
                (0..self.hubs.len()).for_each(|shard| self.effects(shard));
            }
            self.turn();
            self.check();
            if round % 10 == 0 {
                self.now += Duration::from_millis(400);
            }
        }
    }

    fn check_calm(&mut self) {
        for client in self.clients.iter().filter(|client| client.is_open) {
            assert!(client.sent.is_empty(), "never answered: {:?}", client.sent);
            assert!(client.bytes.is_empty(), "half a frame");
        }
        assert!(self.open_askers.is_empty(), "never answered: {:?}", self.open_askers);
        self.check_events();
        for room in ROOMS {
            let asker = self.asker();
            let shard = self.rng.usize(0..self.hubs.len());
            self.hubs[shard].look_for(self.now, asker, RoomName::parse(room).expect("a name"));
            (0..20).for_each(|_| self.turn());
            let look = self.looks.remove(&asker).expect("an answer");
            let open = self.clients.iter().filter(|client| client.is_open);
            let members: Vec<&Client> = open.filter(|client| client.views.contains_key(room)).collect();
            let users: BTreeSet<usize> = members.iter().map(|client| client.user).collect();
            assert_eq!((look.members as usize, look.connections as usize), (users.len(), members.len()), "{room}");
            for member in members {
                let view = &member.views[room];
                assert_eq!((&view.epoch, view.seq), (&look.position.epoch.to_string(), look.position.seq), "{room}");
            }
        }
    }

    /// All go, by a drain or by themselves; nothing is left of them.
    fn end(&mut self) {
        if self.rng.bool() {
            let window = Duration::from_secs(20);
            (0..self.hubs.len()).for_each(|shard| self.hubs[shard].drain(self.now, window));
            for _ in 0..60 {
                self.now += Duration::from_millis(400);
                self.turn();
                self.check();
            }
            assert!(self.clients.iter().all(|client| !client.is_open), "all are closed within the window");
        }
        while self.any().is_some() {
            self.die();
        }
        for _ in 0..80 {
            self.now += Duration::from_mins(1);
            self.turn();
        }
        for (shard, key) in std::mem::take(&mut self.leaving) {
            self.hubs[shard].leave(self.now, key);
        }
        for hub in &self.hubs {
            let counts = hub.counts();
            self.seen.pulls += usize::try_from(counts.pulls).expect("few");
            let left = (counts.sockets, counts.users, counts.rooms, counts.homes, counts.frame_bytes);
            assert_eq!(left, (0, 0, 0, 0, 0), "{counts:?}");
            assert_eq!((counts.history_bytes, counts.asks, counts.kept, counts.service_bytes), (0, 0, 0, 0));
            assert!(hub.makers.is_empty() && hub.anonymous.is_empty() && hub.history_order.is_empty());
            assert!(hub.poll_timeout().is_none() && !hub.is_dirty());
        }
        self.check_events();
    }
}
