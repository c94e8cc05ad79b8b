//! The bridge thread: what a request may have to wait for off its shard (accounts, sessions, the log of revocations,
//! Redis, PostgreSQL). A request waits for the bridge, never for the control thread (decision 10).

use std::{cell::Cell, collections::HashMap, future::poll_fn, rc::Rc, sync::Arc, task::Poll, thread, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinError, JoinHandle, LocalSet, spawn_local},
    time::timeout,
};

use super::{
    knowledge::Knowledge,
    letter::{AllLetters, DroppableToBridge, DroppableToShard, Load, ReplyTo, Revoked, ToBridge, ToControl, ToShard},
    operations::{Next, Operations},
    revoking::Revoking,
    rooms::{self, Rooms, RoomsWay},
    waiting::{WaitingClient, WaitingClients},
};
use crate::{
    accounts::{Accounts, Operation, Outcome, Question},
    auth::Issuer,
    bus::{
        self, Bus, Pump,
        desk::DeskLetter,
        mesh::{Port, Received},
        redis::{Address, Redis},
        to,
    },
    config::{Config, RedisMode},
    exchange::Code,
    gateway::{
        Plan,
        rate_limit::{
            LimitPlan, To,
            counter::Hits,
            fleet::{Fleet, FleetMessage},
        },
    },
    sessions::{Follower, LogUpdate},
    shard::{Instant, Local, clock, local::AbortOnUnwind, ticks::Ticks},
};

/// How long the process waits for the stores to be opened and the log of revocations to be read before it listens. After
/// that it goes on without: what needs them is refused until they are there.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// How often the control thread is told how the stores are.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Operations of one sort that are under way at once, whether or not their clients wait for them. The embedded store takes
/// 256 in one transaction, and Redis that many in a fraction of a millisecond, so more would only wait there.
const AT_ONCE_MAX: usize = 512;
/// How long an operation waits for its turn, or up to a second longer; and how long after its request came a renewal may
/// still be made. What waits is bounded by the shards' desks.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the answer to a log-out waits until the shards have been told of it. The revocation is durable by then, and
/// other instances do not wait either.
const SETTLE_MAX: Duration = Duration::from_millis(250);

/// What the bridge is given when its thread begins.
pub(super) struct BridgeSetup {
    pub(super) config: Config,
    /// The name of this process, which no other has.
    pub(super) node: Box<str>,
    /// What signs access tokens; `None` if nothing does.
    pub(super) issuer: Option<Issuer>,
    pub(super) plan: Arc<Plan>,
    pub(super) shards: usize,
    pub(super) port: Port<AllLetters, to::Bridge>,
}

/// A bridge that opens what it works with.
pub(super) struct StartingBridge {
    thread: thread::JoinHandle<()>,
    begun: oneshot::Receiver<anyhow::Result<Option<(Revoked, Instant)>>>,
}

/// What is known once the bridge has begun.
pub(super) struct RunningBridge {
    pub(super) thread: thread::JoinHandle<()>,
    /// What was revoked, and until when that is complete; `None` if the log could not be read.
    pub(super) revoked: Option<(Revoked, Instant)>,
}

/// Starts the bridge's thread.
pub(super) fn spawn(equipment: BridgeSetup) -> anyhow::Result<StartingBridge> {
    let (tell, begun) = oneshot::channel();
    let thread = thread::Builder::new().name("bridge".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().thread_name("waits").enable_all().build() {
            Ok(runtime) => runtime,
            // Whoever waits is told by the channel's end.
            Err(error) => return drop(tell.send(Err(error.into()))),
        };
        let guard = AbortOnUnwind("a panic on the bridge");
        LocalSet::new().block_on(&runtime, run(equipment, tell));
        guard.disarm();
        // Whoever still looks up the name of Redis or PostgreSQL is not waited for.
        runtime.shutdown_background();
    })?;
    Ok(StartingBridge { thread, begun })
}

impl StartingBridge {
    /// Waits until the bridge has opened what it works with. Dropping the future leaves the thread to itself.
    pub(super) async fn begun(self) -> anyhow::Result<RunningBridge> {
        let Self { thread, begun } = self;
        match timeout(2 * BEGIN_MAX, begun).await {
            Ok(Ok(revoked)) => Ok(RunningBridge { thread, revoked: revoked? }),
            Ok(Err(_)) => anyhow::bail!("the bridge's thread ended as it began"),
            Err(_) => {
                tracing::warn!(
                    waited_s = 2 * BEGIN_MAX.as_secs(),
                    "the stores have not been opened yet; requests that depend on them are refused until they are"
                );
                Ok(RunningBridge { thread, revoked: None })
            }
        }
    }
}

async fn run(equipment: BridgeSetup, begun: oneshot::Sender<anyhow::Result<Option<(Revoked, Instant)>>>) {
    let BridgeSetup { config, node, issuer, plan, shards, port } = equipment;
    let started = bus::on_tokio(port).context("the bridge cannot be reached").and_then(|(bus, pump)| {
        let accounts = config.accounts.enabled.then(|| Accounts::start(&config, issuer));
        let accounts = accounts.transpose().context("accounts cannot be served")?;
        let redis = match accounts.as_ref().and_then(Accounts::redis) {
            None if config.redis.is_given() => Some(Redis::start(Address::new(&config.redis).context("redis")?)),
            shared => shared.cloned(),
        };
        let rooms = if rooms::have_bus(&config) {
            let address = Address::new(&config.redis).context("redis")?;
            let is_cluster = config.redis.mode == RedisMode::Cluster;
            Some(Rooms::new(address, is_cluster, &node, RoomsWay(bus.clone(), shards)))
        } else {
            None
        };
        Ok((bus, pump, accounts, redis, rooms))
    });
    let (bus, pump, accounts, redis, rooms) = match started {
        Ok(started) => started,
        // Whoever waits ends the process.
        Err(error) => return drop(begun.send(Err(error))),
    };
    let follower = accounts.as_ref().map(Accounts::follow);
    let bridge = Rc::new(Bridge {
        bus,
        shards,
        accounts,
        redis,
        rooms,
        fleet: Local::default(),
        log_ins: Local::default(),
        operations: OperationKind::ALL.map(|_| Local::new(Operations::new(AT_ONCE_MAX, WAIT_MAX))),
        revoking: Revoking::default(),
        waiting: WaitingClients::default(),
        knowledge: Knowledge::new(&config.revocation),
        is_stopping: Cell::new(false),
    });
    bridge.adopt(&plan);
    if let Some(rooms) = &bridge.rooms {
        spawn_local(Rc::clone(rooms).run());
    }
    let receiving = Rc::clone(&bridge);
    let receive = spawn_local(async move { receiving.receive(pump).await });
    match follower {
        Some(mut follower) => {
            // Dropping the question loses nothing; it is asked again.
            let heard = timeout(BEGIN_MAX, follower.next()).await.unwrap_or_default();
            let revoked = heard.freshness.looked_at().map(|until| (Revoked::of(&heard), until));
            // Whoever waited too long runs the shards already, so they are told by letter too.
            let _ = begun.send(Ok(revoked));
            bridge.tell(&heard);
            spawn_local(Rc::clone(&bridge).follow(follower));
            spawn_local(Rc::clone(&bridge).look());
        }
        None => drop(begun.send(Ok(None))),
    }
    assert!(receive.await.is_ok(), "letters to the bridge are not taken any more");
    if let Some(rooms) = &bridge.rooms {
        rooms.leave().await;
    }
}

/// What the bridge works with.
struct Bridge {
    bus: Bus<AllLetters>,
    shards: usize,
    /// `None` if the configuration has none.
    accounts: Option<Accounts>,
    /// `None` if the configuration has none.
    redis: Option<Redis>,
    /// The bus between instances; `None` if the configuration has no Redis or no hub.
    rooms: Option<Rc<Rooms>>,
    /// What counts in Redis; `None` as long as no limit is the fleet's.
    fleet: Local<Option<Fleet>>,
    /// Log-ins under way, by who asked. They are given up when nobody waits for them any more, and bounded by the shards'
    /// desks and the queue for hashes.
    log_ins: Local<HashMap<ReplyTo, AbortHandle>>,
    /// Everything else, by its sort.
    operations: [Local<Operations<ReplyTo, Task>>; OperationKind::ALL.len()],
    /// Revocations that an operation waits to have told the shards of.
    revoking: Revoking,
    /// Clients for whom a session is to begin or to be renewed.
    waiting: WaitingClients,
    /// How old what is known of revocations is.
    knowledge: Knowledge,
    is_stopping: Cell<bool>,
}

/// What is to be carried out, and for whom if that matters.
type Task = (Operation, Option<Rc<WaitingClient>>);

/// Operations that need the same stores: while one store stands still, only those that need it wait.
#[derive(Clone, Copy)]
enum OperationKind {
    /// Renewals need the users and their sessions.
    Renewal,
    /// Endings and lists need the sessions.
    Session,
}

impl OperationKind {
    const ALL: [Self; 2] = [Self::Renewal, Self::Session];

    /// A log-in is of no sort: it has a queue of its own.
    const fn of(operation: &Operation) -> Option<Self> {
        match operation {
            Operation::Login { .. } => None,
            Operation::Refresh { .. } => Some(Self::Renewal),
            Operation::Logout { .. }
            | Operation::LogoutAll { .. }
            | Operation::Kick { .. }
            | Operation::EndSession { .. }
            | Operation::EndAgain { .. }
            | Operation::Sessions { .. } => Some(Self::Session),
        }
    }
}

impl Bridge {
    /// Carries out what letters say, until one says stop.
    async fn receive(self: &Rc<Self>, mut pump: Pump<AllLetters, to::Bridge>) {
        poll_fn(|cx| {
            // It is never ready by itself.
            let _ = pump.poll(cx, |letter| match letter {
                Received::Control(letter) => self.take(letter),
                Received::Droppable(DroppableToBridge::Hits(shard, hits)) => self.count(shard, hits),
                Received::Droppable(DroppableToBridge::Rooms(shard, request)) => {
                    if let Some(rooms) = &self.rooms {
                        rooms.take(shard.into(), *request);
                    }
                }
            });
            // Only now: who asked may have left in the next letter.
            self.go_on(OperationKind::Renewal);
            if self.is_stopping.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn take(self: &Rc<Self>, letter: ToBridge) {
        match letter {
            ToBridge::Account(shard, letter) => match *letter {
                DeskLetter::Ask(ticket, question) => self.ask(ReplyTo { shard, ticket }, question),
                DeskLetter::Awaited(ticket) => self.waiting.seen(ReplyTo { shard, ticket }),
                DeskLetter::Withdraw(ticket) => self.leave(ReplyTo { shard, ticket }),
            },
            ToBridge::Configuration(config, issuer) => {
                if let Some(accounts) = &self.accounts {
                    accounts.adopt(&config, issuer);
                    self.knowledge.adopt(&config.revocation);
                }
            }
            ToBridge::Plan(plan) => self.adopt(&plan),
            ToBridge::Stop => self.is_stopping.set(true),
        }
    }

    /// Another plan is in force.
    fn adopt(&self, plan: &Plan) {
        self.count_for_fleet(plan);
        if let Some(rooms) = &self.rooms {
            rooms.adopt(plan.events_waiting_max());
        }
    }

    /// Counts in Redis what a shard has admitted.
    fn count(&self, shard: usize, hits: Hits) {
        // Shards are told to count there once there is one.
        if let Some(fleet) = self.fleet.with(|fleet| fleet.clone()) {
            fleet.take(shard, hits);
        }
    }

    /// Counts the fleet's limits in Redis, from the first configuration on that has one.
    fn count_for_fleet(&self, plan: &Plan) {
        let known = self.fleet.with(|fleet| fleet.clone());
        if let Some(fleet) = known {
            return fleet.adopt(&plan.limits);
        }
        let Some(redis) = self.redis.clone().filter(|_| plan.limits.iter().any(LimitPlan::is_fleet)) else { return };
        let bus = self.bus.clone();
        let fleet = Fleet::new(redis, self.shards, move |shard, news| {
            let shard = to::Shard(shard);
            match news {
                FleetMessage::Counted(counted) => bus.send(shard, ToShard::Counted(To::Redis, counted)),
                FleetMessage::IsAway(is_away) => bus.send(shard, ToShard::LimitsAlone(is_away)),
                // A shard that misses it is told with the next.
                FleetMessage::Owed(owed) => _ = bus.try_send(shard, DroppableToShard::Owed(owed)),
            }
        });
        fleet.adopt(&plan.limits);
        spawn_local(fleet.clone().watch());
        self.fleet.with(|place| *place = Some(fleet));
    }

    /// Takes an operation that begins when its turn comes: a log-in at once.
    fn ask(self: &Rc<Self>, asker: ReplyTo, Question { operation, came }: Question) {
        let enter = |until| Some(self.waiting.enter(asker, self.bus.clone(), came, until));
        let (sort, since, client) = match OperationKind::of(&operation) {
            // Its password may have waited for long; see `accounts.password_queue`.
            None => return self.log_in(asker, (operation, enter(Instant::NEVER))),
            // Since its request came: its client has been waiting since then, wherever that was.
            Some(sort @ OperationKind::Renewal) => (sort, came, enter(came + WAIT_MAX)),
            // An end is right whenever it is made, and whether or not its client waits.
            Some(sort @ OperationKind::Session) => (sort, clock::now(), None),
        };
        self.operations[sort as usize].with(|operations| operations.handle_ask(since, asker, (operation, client)));
        if matches!(sort, OperationKind::Session) {
            // At once: the next letter may withdraw it, as its client has left, and what has begun is made all the same.
            self.go_on(sort);
        }
    }

    /// Nobody waits for an operation any more. A log-in is given up, and so is what has not begun; the rest goes on, a
    /// renewal not beyond where it can still be left.
    fn leave(&self, asker: ReplyTo) {
        self.waiting.leave(asker);
        if let Some(task) = self.log_ins.with(|log_ins| log_ins.remove(&asker)) {
            task.abort();
        }
        for operations in &self.operations {
            operations.with(|operations| operations.handle_withdrawn(asker));
        }
    }

    /// Begins what may begin, and refuses what has waited for too long.
    fn go_on(self: &Rc<Self>, sort: OperationKind) {
        let next = || self.operations[sort as usize].with(|operations| operations.poll(clock::now()));
        while let Some(next) = next() {
            match next {
                Next::Begin(asker, task) => {
                    let (task, bridge) = (self.carry_out(task), Rc::clone(self));
                    spawn_local(async move {
                        let outcome = outcome(spawn_local(task).await);
                        bridge.operations[sort as usize].with(Operations::handle_end);
                        bridge.answer(asker, outcome);
                        bridge.go_on(sort);
                    });
                }
                Next::Refuse(asker) => self.answer(asker, Some(Outcome::refused(Code::Overloaded))),
            }
        }
    }

    fn log_in(self: &Rc<Self>, asker: ReplyTo, task: Task) {
        let (task, bridge) = (spawn_local(self.carry_out(task)), Rc::clone(self));
        self.log_ins.with(|log_ins| log_ins.insert(asker, task.abort_handle()));
        spawn_local(async move {
            let outcome = outcome(task.await);
            bridge.log_ins.with(|log_ins| log_ins.remove(&asker));
            bridge.answer(asker, outcome);
        });
    }

    fn answer(&self, asker: ReplyTo, outcome: Option<Outcome>) {
        self.waiting.leave(asker);
        if let Some(outcome) = outcome {
            self.bus.send(to::Shard(asker.shard), ToShard::Told(asker.ticket, outcome));
        }
    }

    fn carry_out(self: &Rc<Self>, (operation, client): Task) -> impl Future<Output = Outcome> + 'static {
        let bridge = Rc::clone(self);
        async move {
            // Without accounts no route leads here.
            let Some(accounts) = &bridge.accounts else { return Outcome::refused(Code::NotFound) };
            let revocation = bridge.revoking.expect(&operation);
            let outcome = match client {
                Some(client) => accounts.handle_for(operation, &client).await,
                None => accounts.handle(operation).await,
            };
            if let Some(revocation) = revocation.filter(|_| matches!(outcome, Outcome::Done { .. })) {
                // Late is better than never: the revocation is durable, and the log is still followed.
                let _ = timeout(SETTLE_MAX, revocation.told()).await;
            }
            outcome
        }
    }

    /// Follows the log of revocations and tells the shards.
    async fn follow(self: Rc<Self>, mut follower: Follower) {
        loop {
            let heard = follower.next().await;
            self.tell(&heard);
        }
    }

    fn tell(&self, heard: &LogUpdate) {
        if heard.is_lossy {
            self.bus.send(to::Control, ToControl::RevocationsLost);
        }
        if !heard.entries.is_empty() {
            let revoked = Revoked::of(heard);
            self.bus.broadcast(|| ToShard::Revoked(revoked.clone()));
        }
        if let Some(until) = self.knowledge.heard(heard) {
            self.bus.broadcast(|| ToShard::KnownUntil(until));
        }
        for entry in &heard.entries {
            self.revoking.tell(entry.kind, &entry.id);
        }
    }

    /// Tells the control thread how much there is to do and how the stores are, and refuses what has waited for too long
    /// even if nothing ends.
    async fn look(self: Rc<Self>) {
        let mut due = Ticks::every(REPORT_INTERVAL);
        let (mut told, mut asking) = (Load::default(), None::<JoinHandle<()>>);
        loop {
            due.tick().await;
            self.knowledge.look(clock::now());
            let mut load = Load::default();
            for sort in OperationKind::ALL {
                self.go_on(sort);
                self.operations[sort as usize].with(|operations| {
                    load.under_way += operations.under_way();
                    load.waiting += operations.waiting();
                });
            }
            if load != told {
                told = load;
                self.bus.send(to::Control, ToControl::Load(load));
            }
            // A store that is slow to say how it is holds up nothing else.
            if asking.as_ref().is_none_or(JoinHandle::is_finished) {
                asking = Some(spawn_local(Rc::clone(&self).report()));
            }
        }
    }

    /// Tells the control thread how the stores are.
    async fn report(self: Rc<Self>) {
        let Some(accounts) = &self.accounts else { return };
        let databases = accounts.databases().await;
        self.bus.send(to::Control, ToControl::Databases(Box::new(databases)));
    }
}

/// What came of an operation; `None` if it was given up.
fn outcome(ended: Result<Outcome, JoinError>) -> Option<Outcome> {
    match ended {
        Ok(outcome) => Some(outcome),
        Err(given_up) if given_up.is_cancelled() => None,
        // The runtime has caught the panic, and the hook has logged it.
        Err(_) => Some(Outcome::refused(Code::DependencyUnavailable)),
    }
}
