//! What one shard runs: it accepts, serves, and does what letters say.

use std::{
    cell::{Cell, OnceCell},
    future::{Future, poll_fn},
    net::TcpListener,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use super::fresh::{self, Handshakes, OpenConnection};
use super::letter::{
    Accepted, AllLetters, DroppableToBridge, DroppableToShard, Revoked, Scraped, ToBridge, ToControl, ToShard,
};
use super::outages;
use super::scrapes::{Scrapes, Texts};
use super::spans;
use crate::{
    accounts::{Outcome, Question},
    auth::KeySet,
    bus::{
        self, Bus, Pump,
        desk::{Desk, DeskLetter},
        load::{LoadBoard, should_hand_over},
        mesh::{Port, Received},
        to,
    },
    certificates::Certificates,
    config::{ListenerKind, ProxyProtocol, PublicListener},
    exchange::{Code, Ledger},
    gateway::{
        AskBus, Desks, Gateway, Plan, Seat, SendLetter, ToHttps,
        rate_limit::{Limits, Post, To},
    },
    hub::Secret,
    net::{Connections, End, Peer, Scheme, Stream, serve_connection},
    proto::proxy_protocol::Told,
    shard::{Instant, Local, TcpStream, buffers, clock, listener::Acceptor, pipes, stall, task, timer},
    telemetry::{access_log::AccessLog, format::Format, ids::RequestId, metrics::Refusal, usage},
};

/// How often idle connections to backends are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Where clients look for HTTPS who are told no port.
const HTTPS: u16 = 443;

/// How long connections may take to end when they are cut: each needs one turn to count and log what it was doing.
const CUT_MAX: Duration = Duration::from_millis(500);

/// What a shard is given when its thread begins.
pub(super) struct ShardSetup {
    pub(super) index: usize,
    pub(super) plan: Arc<Plan>,
    pub(super) keys: Arc<KeySet>,
    /// What clients are shown, where a listener speaks TLS.
    pub(super) certificates: Option<Arc<Certificates>>,
    /// What was revoked, and until when that is complete, if it is known.
    pub(super) revoked: Option<(Revoked, Instant)>,
    pub(super) port: Port<AllLetters, to::Shard>,
    pub(super) board: Arc<LoadBoard>,
    /// One socket of each public listener.
    pub(super) listeners: Vec<(TcpListener, PublicListener)>,
    pub(super) access_log: AccessLog,
    pub(super) flush_interval: Duration,
    pub(super) seed: u64,
    /// What the hub calls this process.
    pub(super) node: Box<str>,
    /// What the hubs of all shards hash ids with.
    pub(super) secret: Secret,
    /// Whether rooms span instances.
    pub(super) has_bus: bool,
}

/// One shard's working parts.
struct Worker {
    index: usize,
    gateway: Rc<Gateway>,
    accounts: Rc<Desk<Question, Outcome>>,
    metrics: Rc<Desk<Format, Arc<String>>>,
    /// Who waits at the desk of the metrics.
    scrapes: Rc<Local<Scrapes>>,
    ledger: Rc<Local<Ledger>>,
    connections: Connections,
    bus: Bus<AllLetters>,
    board: Arc<LoadBoard>,
    /// In the order of the configuration.
    listeners: Box<[Listener]>,
    /// How many of them still accept.
    accepting: Cell<usize>,
    is_stopping: Cell<bool>,
    handshakes: Handshakes,
}

/// A public listener's socket of this shard.
struct Listener {
    acceptor: Acceptor,
    settings: PublicListener,
}

impl Listener {
    fn new(shard: usize, socket: TcpListener, settings: PublicListener, budget: usize) -> Self {
        match Acceptor::new(socket) {
            Ok(acceptor) => {
                acceptor.set_budget(budget);
                Self { acceptor, settings }
            }
            Err(error) => give_up(shard, "a listener cannot be used", &error),
        }
    }
}

/// Scrapes of a shard's clients at once; those who scrape are few, and each makes all shards tell.
const SCRAPES_MAX: usize = 8;

/// Operations on accounts that clients of one shard may wait for, and letters about them that may wait for a bridge that is
/// behind before others are refused. Each operation holds a connection of its client meanwhile; those that go on without
/// their clients are counted by the bridge.
const OPERATIONS_MAX: usize = 4096;

/// Runs a shard until it is told to stop.
pub(super) async fn run(equipment: ShardSetup) {
    let ShardSetup {
        index,
        plan,
        keys,
        certificates,
        revoked,
        port,
        board,
        listeners,
        access_log,
        flush_interval,
        seed,
        node,
        secret,
        has_bus,
    } = equipment;
    let number = u16::try_from(index).unwrap_or(u16::MAX);
    let ledger = Rc::new(Local::new(Ledger::new(number, access_log, seed)));
    let listener = |(socket, settings)| Listener::new(index, socket, settings, plan.accept_budget);
    let listeners: Box<[Listener]> = listeners.into_iter().map(listener).collect();
    let (bus, pump) = match bus::on_shard(port) {
        Ok(ends) => ends,
        Err(error) => give_up(index, "the shard cannot be reached by the others", &error),
    };
    let scrapes = Rc::new(Local::new(Scrapes::default()));
    let metrics = Desk::new(SCRAPES_MAX, {
        let (bus, scrapes) = (bus.clone(), Rc::clone(&scrapes));
        move |letter| match letter {
            DeskLetter::Ask(ticket, format) => {
                if let Some(wanted) = scrapes.with(|scrapes| scrapes.handle_ask(ticket, format)) {
                    bus.send(to::Control, ToControl::AskMetrics(index, wanted));
                }
            }
            DeskLetter::Withdraw(ticket) => scrapes.with(|scrapes| scrapes.handle_withdrawn(ticket)),
            // The control thread does not ask who still waits.
            DeskLetter::Awaited(_) => {}
        }
    });
    let limits = limits(index, board.shards(), bus.clone());
    let accounts = accounts_desk(index, bus.clone());
    let want_keys = {
        let bus = bus.clone();
        Box::new(move |issuer| bus.send(to::Control, ToControl::WantKeys(issuer)))
    };
    let desks = Desks { metrics: Rc::clone(&metrics), accounts: Rc::clone(&accounts), want_keys };
    let seat = Seat {
        shard: index,
        shards: board.shards(),
        node,
        secret,
        send: send_letter(index, bus.clone()),
        ask_bus: has_bus.then(|| ask_bus(index, bus.clone())),
    };
    let gateway = Gateway::new(plan, keys, Rc::clone(&ledger), desks, limits, seat);
    if let Some((revoked, until)) = revoked {
        gateway.revoke(&revoked.entries, None);
        gateway.known_until(until);
    }
    if let Some(certificates) = &certificates {
        gateway.adopt_certificates(Arc::clone(certificates));
    }
    let worker = Rc::new(Worker {
        index,
        gateway,
        accounts,
        metrics,
        scrapes,
        ledger,
        connections: Connections::new(),
        bus,
        board,
        accepting: Cell::new(listeners.len()),
        listeners,
        is_stopping: Cell::new(false),
        handshakes: Handshakes::new(certificates),
    });
    for listener in 0..worker.listeners.len() {
        task::spawn("acceptor", Rc::clone(&worker).accept(listener));
    }
    task::spawn("the hub", worker.gateway.run_hub());
    task::spawn("outages", outages::tell(Rc::clone(&worker.gateway), worker.bus.clone(), index));
    task::spawn("sweeper", Rc::clone(&worker).sweep());
    task::spawn("access log", Rc::clone(&worker).flush_log(flush_interval));
    task::spawn("spans", spans::flush(Rc::clone(&worker.ledger), worker.bus.clone()));
    let watched = Rc::clone(&worker);
    task::spawn("stall watch", stall::watch(move || watched.connections.open() == 0));
    worker.tell_applied();
    worker.receive(pump).await;
    worker.connections.cut();
    let given_up_at = clock::now() + CUT_MAX;
    while worker.connections.open() > 0 && clock::now() < given_up_at {
        task::yield_now().await;
    }
    worker.ledger.with(|ledger| ledger.access_log.flush());
}

/// Asks the bridge for operations on accounts, as long as it takes letters: clients who ask and leave, one after the other,
/// are as many letters as they like to cause.
fn accounts_desk(index: usize, bus: Bus<AllLetters>) -> Rc<Desk<Question, Outcome>> {
    let this: Rc<OnceCell<Weak<Desk<Question, Outcome>>>> = Rc::default();
    let desk = Desk::new(OPERATIONS_MAX, {
        let this = Rc::clone(&this);
        move |letter| match letter {
            DeskLetter::Ask(ticket, _) if bus.waiting_for(to::Bridge) >= OPERATIONS_MAX => {
                if let Some(desk) = this.get().and_then(Weak::upgrade) {
                    desk.told(ticket, Outcome::refused(Code::Overloaded));
                }
            }
            letter => bus.send(to::Bridge, ToBridge::Account(index, Box::new(letter))),
        }
    });
    // It is empty: nobody else has set it.
    let _ = this.set(Rc::downgrade(&desk));
    desk
}

/// How the shard's hub writes to those of the others.
fn send_letter(me: usize, bus: Bus<AllLetters>) -> SendLetter {
    let me = u16::try_from(me).unwrap_or(u16::MAX);
    Box::new(move |shard, letter| {
        let offered = bus.offer(to::Shard(shard), DroppableToShard::Room(me, Box::new(letter)));
        offered.map_err(|letter| match letter {
            DroppableToShard::Room(_, letter) => *letter,
            _ => unreachable!("what is offered comes back"),
        })
    })
}

/// How the shard's hub asks the bus between instances, where the configuration has one.
fn ask_bus(me: usize, bus: Bus<AllLetters>) -> AskBus {
    let me = u16::try_from(me).unwrap_or(u16::MAX);
    Box::new(move |request| {
        let offered = bus.offer(to::Bridge, DroppableToBridge::Rooms(me, Box::new(request)));
        offered.map_err(|letter| match letter {
            DroppableToBridge::Rooms(_, request) => *request,
            DroppableToBridge::Hits(..) => unreachable!("what is offered comes back"),
        })
    })
}

/// The shard's limits, which tell other shards of what they admit.
fn limits(me: usize, shards: usize, bus: Bus<AllLetters>) -> Limits {
    let tell_counted = {
        let bus = bus.clone();
        Box::new(move |shard, counted| bus.send(to::Shard(shard), ToShard::Counted(To::Shard(me), counted)))
    };
    let tell_owed = {
        let bus = bus.clone();
        // A shard that misses it is told with the next.
        Box::new(move |shard, owed| _ = bus.try_send(to::Shard(shard), DroppableToShard::Owed(owed)))
    };
    let tell_hits = Box::new(move |to, hits| match to {
        To::Shard(shard) => bus.try_send(to::Shard(shard), DroppableToShard::Hits(me, hits)),
        To::Redis => bus.try_send(to::Bridge, DroppableToBridge::Hits(me, hits)),
    });
    Limits::new(Post { me, shards, tell_hits, tell_counted, tell_owed })
}

/// A shard that cannot do its work takes the process with it: a supervisor starts a whole one, and nobody is left waiting
/// in a queue that nobody empties.
fn give_up(index: usize, what: &str, error: &std::io::Error) -> ! {
    tracing::error!(shard = index, %error, "{what}; the process ends, for a half-alive one helps nobody");
    std::process::abort()
}

impl Worker {
    /// Takes letters until one says stop.
    async fn receive(self: &Rc<Self>, mut pump: Pump<AllLetters, to::Shard>) {
        poll_fn(|cx| {
            // It is never ready by itself.
            let takes = || self.gateway.takes_letters();
            let _ = pump.poll_while(cx, takes, |letter| match letter {
                Received::Control(letter) => self.take(letter),
                Received::Droppable(DroppableToShard::Hits(from, hits)) => self.gateway.limits.count(from, hits),
                Received::Droppable(DroppableToShard::Owed(owed)) => self.gateway.limits.hear_owed(owed),
                Received::Droppable(DroppableToShard::Room(from, letter)) => self.gateway.hear(from.into(), *letter),
                Received::Droppable(DroppableToShard::Suspect(suspect)) => self.gateway.suspect(&suspect),
                Received::Droppable(DroppableToShard::Bus(answer)) => self.gateway.hear_bus(*answer),
            });
            if self.is_stopping.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn take(self: &Rc<Self>, letter: ToShard) {
        match letter {
            ToShard::Plan(plan) => {
                self.acceptors().for_each(|acceptor| acceptor.set_budget(plan.accept_budget));
                self.gateway.adopt(plan);
                self.tell_applied();
            }
            ToShard::Instances(instances) => self.gateway.follow(&instances),
            ToShard::Pages(pages) => self.gateway.show(*pages),
            ToShard::Keys(keys) => self.gateway.adopt_keys(keys),
            ToShard::Certificates(certificates) => {
                self.handshakes.adopt(&certificates);
                self.gateway.adopt_certificates(certificates);
            }
            ToShard::Told(ticket, outcome) => self.accounts.told(ticket, outcome),
            ToShard::Doubted(ticket) => self.accounts.doubt(ticket),
            ToShard::Revoked(revoked) => self.gateway.revoke(&revoked.entries, revoked.clock_ahead_ms),
            ToShard::KnownUntil(until) => self.gateway.known_until(until),
            ToShard::Scrape { with_exemplars } => {
                let mut scraped = self.scraped();
                if with_exemplars {
                    scraped.exemplars = self.ledger.with(|ledger| ledger.exemplars.shown(unix_ms));
                }
                self.bus.send(to::Control, ToControl::Scraped(Box::new(scraped)));
            }
            ToShard::EndConnections => self.connections.end_after_answers(),
            ToShard::StopAccepting => self.acceptors().for_each(Acceptor::stop),
            ToShard::RefuseUnanswered => {
                self.gateway.refuse_unanswered();
                self.connections.wake();
                task::spawn("last spans", spans::flush_to_the_end(Rc::clone(&self.ledger), self.bus.clone()));
            }
            ToShard::Counted(home, counted) => self.gateway.limits.hear(home, counted),
            ToShard::LimitsAlone(is_alone) => self.gateway.limits.redis_is_away(is_alone),
            ToShard::Bus(is_up) => self.gateway.bus_is_up(is_up),
            ToShard::Stop => self.is_stopping.set(true),
            ToShard::Connection(accepted) => self.serve(accepted),
            ToShard::Probed(probed) => {
                self.gateway.probed(probed.generation, probed.upstream, &probed.at, probed.verdict);
            }
            ToShard::Operated(orders) => self.gateway.operate(orders),
            ToShard::Metrics(texts) => self.answer_scrapes(&texts),
            ToShard::SpansTaken(batch) => self.ledger.with(|ledger| ledger.spans.give_back(batch)),
        }
    }

    /// Answers those who waited for what all shards have counted.
    fn answer_scrapes(&self, texts: &Texts) {
        let (answered, again) = self.scrapes.with(Scrapes::handle_told);
        for (ticket, format) in answered {
            if let Some(text) = &texts[format.index()] {
                self.metrics.told(ticket, Arc::clone(text));
            }
        }
        if let Some(wanted) = again {
            self.bus.send(to::Control, ToControl::AskMetrics(self.index, wanted));
        }
    }

    /// How the new plan's upstreams stand is told with it: once all shards have applied it, health is about them.
    fn tell_applied(&self) {
        self.bus.send(to::Control, ToControl::Applied(Box::new(self.scraped())));
    }

    fn scraped(&self) -> Scraped {
        self.gateway.note_unasked();
        self.gateway.count_circuits();
        let lag = stall::lag();
        let mut counters = self.ledger.with(|ledger| {
            ledger.counters.access_log_dropped = ledger.access_log.dropped();
            ledger.counters.spans_recorded = ledger.spans.recorded();
            ledger.counters.loop_lag.observe_us(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
            ledger.counters.clone()
        });
        let accepts = || self.acceptors().map(Acceptor::counts);
        counters.connections_refused[Refusal::Descriptors.index()] = accepts().map(|counts| counts.turned_away).sum();
        counters.accept_errors = accepts().map(|counts| counts.exhausted).sum();
        counters.connections_open = i64::try_from(self.connections.open()).unwrap_or(i64::MAX);
        counters.tls_waiting = i64::try_from(self.handshakes.waiting()).unwrap_or(i64::MAX);
        counters.panics = task::panics();
        let sent = self.bus.counts();
        (counters.mesh_spilled, counters.mesh_dropped) = (sent.spilled, sent.dropped);
        counters.spliced_bytes = pipes::moved_bytes();
        counters.buffers_idle = i64::try_from(buffers::kept().0).unwrap_or(i64::MAX);
        self.gateway.limits.report(&mut counters, clock::now());
        self.gateway.count(&mut counters);
        counters.cpu = usage::thread_time().into();
        counters.count_protocols();
        let plan = self.gateway.plan();
        let now = clock::now();
        let reports = self.gateway.report(now);
        let instances = self.gateway.report_instances(now);
        for (upstream, report) in plan.upstreams.iter().zip(&reports) {
            let upstream = counters.upstream(upstream.slot);
            upstream.requests_in_flight = i64::from(report.in_flight);
            upstream.uploads_in_flight = i64::from(report.uploading);
            let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            upstream.connections_idle = gauge(report.idle);
            upstream.connections_held = gauge(report.held);
            upstream.instances_distrusted = gauge(report.distrusted);
            upstream.shards_panicking = i64::from(report.is_panicking);
            upstream.instances_ejected = gauge(report.ejected);
            upstream.circuit_open_shards = i64::from(report.is_failing);
        }
        Scraped {
            shard: self.index,
            counters,
            generation: plan.generation,
            reports,
            lag,
            instances,
            exemplars: Vec::new(),
        }
    }

    fn acceptors(&self) -> impl Iterator<Item = &Acceptor> {
        self.listeners.iter().map(|listener| &listener.acceptor)
    }

    /// Accepts until a drain; the last listener to end then closes what is idle, and says when nothing is left.
    async fn accept(self: Rc<Self>, listener: usize) {
        let number = u16::try_from(listener).expect("the configuration bounds the listeners");
        let admit = |fd, address| self.admit(Accepted { fd, address, listener: number });
        if let Err(error) = self.listeners[listener].acceptor.run(admit).await {
            give_up(self.index, "a listener broke", &error);
        }
        self.accepting.set(self.accepting.get() - 1);
        if self.accepting.get() > 0 {
            return;
        }
        let window = self.gateway.plan().drain_window;
        self.connections.close_when_idle(window);
        self.gateway.drain_sockets(window);
        // A sibling that still empties its queue may hand one over.
        while self.board.total() > 0 {
            timer::sleep(DRAIN_LOOK).await;
        }
        self.tell_last_events().await;
        spans::hand_over(&self.ledger, &self.bus, true);
        self.bus.send(to::Control, ToControl::Drained(self.index));
        self.bus.flush();
    }

    /// Whom the last sockets leave behind is told, if the service that wants to know takes it soon.
    async fn tell_last_events(&self) {
        let due = clock::now() + LAST_EVENTS_WITHIN;
        while self.gateway.sends_events() {
            // Before the first look, other shards say who has left there.
            timer::sleep(DRAIN_LOOK).await;
            if self.gateway.events_waiting() == 0 || clock::now() >= due {
                return;
            }
        }
    }

    /// A connection has come: it is served here, by a less loaded shard, or refused.
    fn admit(self: &Rc<Self>, accepted: Accepted) {
        self.ledger.with(|ledger| ledger.counters.connections_accepted += 1);
        let plan = self.gateway.plan();
        if self.board.total() >= plan.connections_max {
            self.ledger.with(|ledger| {
                ledger.counters.connections_refused[Refusal::Limit.index()] += 1;
                ledger.counters.reject(Code::Overloaded as usize);
                let id = RequestId::generate(&mut ledger.rng);
                match self.listeners[usize::from(accepted.listener)].settings.kind {
                    ListenerKind::Plain | ListenerKind::Redirect => {
                        fresh::refuse_http(&accepted.fd, &id, ledger.dates.at(clock::unix_now().as_secs()));
                    }
                    ListenerKind::Tls => fresh::refuse_tls(&accepted.fd),
                }
            });
            return;
        }
        if plan.hands_over {
            let (least_loaded, least) = self.board.least_loaded();
            if least_loaded != self.index && should_hand_over(self.connections.open(), least) {
                self.ledger.with(|ledger| ledger.counters.connections_handed_over += 1);
                // It counts there from now on, so that a burst is not handed to one shard whole.
                self.board.add(least_loaded);
                self.bus.send(to::Shard(least_loaded), ToShard::Connection(accepted));
                self.bus.flush();
                return;
            }
        }
        self.board.add(self.index);
        self.serve(accepted);
    }

    /// Serves a connection that the board counts here already.
    fn serve(self: &Rc<Self>, accepted: Accepted) {
        let Accepted { fd, address, listener } = accepted;
        let place =
            OpenConnection { slot: self.connections.enter(), board: Arc::clone(&self.board), shard: self.index };
        let &PublicListener { kind, proxy_protocol, https_port, .. } = &self.listeners[usize::from(listener)].settings;
        let mut socket = match TcpStream::accepted(fd) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "a fresh connection broke before it was served");
                return;
            }
        };
        let worker = Rc::clone(self);
        task::spawn(address, async move {
            let switched = {
                let gateway = Rc::clone(&worker.gateway);
                let mut serving = pin!(async {
                    let client = match proxy_protocol {
                        ProxyProtocol::Off => Told::Client(address),
                        // As below: in a box of its own.
                        ProxyProtocol::Required => {
                            let plan = worker.gateway.plan();
                            Box::pin(fresh::hear_client(&mut socket, address, &plan, &worker.ledger)).await?
                        }
                    };
                    let scheme = if kind == ListenerKind::Tls { Scheme::Https } else { Scheme::Http };
                    let peer = match client {
                        Told::Client(client) => Peer::new(client, scheme),
                        Told::Nobody => Peer::unknown_behind(address, scheme),
                    };
                    let stream = match kind {
                        ListenerKind::Plain | ListenerKind::Redirect => Stream::Plain(socket),
                        // In a box of its own: it is over when the first request comes.
                        ListenerKind::Tls => {
                            let (plan, ledger) = (worker.gateway.plan(), &worker.ledger);
                            Box::pin(worker.handshakes.accept(socket, &peer, &place.slot, &plan, ledger)).await?
                        }
                    };
                    drop(worker);
                    if kind == ListenerKind::Redirect {
                        let service = Rc::new(ToHttps::new(gateway, https_port.unwrap_or(HTTPS)));
                        return Box::pin(serve_connection(service, stream, peer, &place.slot)).await;
                    }
                    serve_connection(gateway, stream, peer, &place.slot).await
                });
                poll_fn(|cx| match place.slot.poll_end(cx) {
                    // What is under way over HTTP ends with its connection; in a drain it has its time.
                    Poll::Ready(End::Revoked | End::Kicked | End::Cut) => Poll::Ready(None),
                    Poll::Ready(End::Draining) | Poll::Pending => serving.as_mut().poll(cx),
                })
                .await
            };
            // In a task of its own: this one is as large as what serves HTTP.
            if let Some(switched) = switched {
                task::spawn(address, switched.serve(place));
            }
        });
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            // An upstream's idle connections end a little later where no client is here to meet one.
            let is_idle = self.connections.open() == 0;
            timer::sleep(if is_idle { 2 * SWEEP_INTERVAL } else { SWEEP_INTERVAL }).await;
            self.gateway.sweep(clock::now());
        }
    }

    async fn flush_log(self: Rc<Self>, interval: Duration) {
        loop {
            poll_fn(|cx| self.ledger.with(|ledger| ledger.access_log.poll_line(cx))).await;
            timer::sleep(interval).await;
            self.ledger.with(|ledger| ledger.access_log.flush());
        }
    }
}

/// Milliseconds since 1970 of a time by the shards' clock.
fn unix_ms(at_ns: u64) -> u64 {
    u64::try_from(clock::to_unix(Instant::from_nanos(at_ns)).as_millis()).unwrap_or(u64::MAX)
}

/// How often a draining shard looks whether its last connection is gone.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long the hub's last events may hold up the end.
const LAST_EVENTS_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
