//! The control thread: what it is told, and what is due. It builds plans and pages and sends them to the shards; nothing here
//! is on a request's path.

mod candidate_files;
mod certificate_files;
mod certificates;
mod config_file;
mod operators;
mod reload;
mod report;
mod state;

use std::{collections::BTreeMap, future::poll_fn, net::SocketAddr, rc::Rc, sync::Arc, task::Poll, time::Duration};

use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep_until},
};

pub(super) use self::certificate_files::{Loaded, load as load_certificates, wanted as wanted_certificates};
use self::{
    candidate_files::CandidateFiles,
    certificates::Shown,
    config_file::{ConfigFile, Found},
    operators::{Operators, now},
    reload::{NewConfig, Taken},
    report::Scraper,
};
use super::{
    drain::{Drain, FAREWELL},
    instances::InstanceBook,
    letter::{AllLetters, Load, Scraped, ToBridge, ToControl, ToShard},
    lookup::{Lookups, News},
    probes::Probes,
    records::Records,
    rooms,
    signals::{Signalled, Signals},
};
use crate::{
    admin::{self, Access, Desk, Handshakes, Question, health::BusHealth, history::History},
    auth::Keychain,
    bus::{
        self, Bus, Pump,
        mesh::{Port, Received},
        to,
    },
    config::{Config, watch::Watch},
    gateway::Plan,
    shard::{clock, ticks::Ticks},
    sinks::otlp::Exporter,
    telemetry::{
        dependency::Databases,
        format::Format,
        metrics::{Names, ProcessCounters},
        usage,
    },
    upstream::Report,
};

/// How often the shards are asked how they are, and the configuration file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last spans may hold up the end.
const LAST_SPANS_WITHIN: Duration = Duration::from_secs(1);

/// What the control thread is given.
pub(super) struct ControlSetup {
    pub(super) config: Config,
    pub(super) exporter: Exporter,
    pub(super) keychain: Keychain,
    pub(super) certificates: Option<Loaded>,
    pub(super) watch: Option<Watch>,
    pub(super) plan: Arc<Plan>,
    pub(super) names: Names,
    pub(super) lookups: Lookups,
    /// Where the public listeners are bound.
    pub(super) listeners: Vec<SocketAddr>,
    pub(super) shards: usize,
    pub(super) descriptors: u64,
    /// What the shards wait for sockets with.
    pub(super) driver: &'static str,
    pub(super) port: Port<AllLetters, to::Control>,
    pub(super) admin: Option<std::net::TcpListener>,
    /// Who may ask for what there.
    pub(super) access: Access,
    pub(super) records: Records,
    pub(super) signals: Signals,
    /// Called once, when every shard runs the first configuration.
    pub(super) ready: Box<dyn FnOnce()>,
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// Everything that was under way was finished.
    Drained,
    /// The drain's time was up before that, or a second signal cut it short.
    Cut,
}

/// The control thread's state.
struct Control {
    config: Config,
    keychain: Keychain,
    shown: Shown,
    /// Where the configuration is from.
    file: Option<ConfigFile>,
    plan: Arc<Plan>,
    names: Names,
    lookups: Lookups,
    listeners: Vec<SocketAddr>,
    /// What is to be taken once its names are looked up and its files are read.
    candidate: Option<NewConfig>,
    candidate_files: CandidateFiles,
    shards: Vec<Shard>,
    descriptors: u64,
    bus: Bus<AllLetters>,
    probes: Probes,
    exporter: Exporter,
    instances: InstanceBook,
    /// How upstreams stood by the plan before, until all shards have told of the one in force.
    stood: BTreeMap<String, Vec<Report>>,
    databases: Databases,
    /// Whether rooms span instances now.
    bus_health: BusHealth,
    /// Whether Redis refuses what lifecycle events need.
    are_events_refused: bool,
    process: ProcessCounters,
    /// What operators have done.
    operators: Operators,
    /// The last minutes.
    history: History,
    taken: Taken,
    drain: Option<Drain>,
    scrapes: Vec<Scraper>,
    scrape_due: Option<Instant>,
    records: Records,
    /// Bytes of the metrics when they were told last.
    metrics_length: usize,
    /// Gone once it has been called.
    ready: Option<Box<dyn FnOnce()>>,
}

/// What is known of a shard.
#[derive(Default)]
struct Shard {
    /// The generation that it runs.
    applied: u64,
    /// What it told last.
    scraped: Option<Box<Scraped>>,
    /// How late its timer was at worst, by all that it told since the last second was noted.
    lag: Duration,
    /// How often it was asked, and how often it has told.
    asked: u64,
    told: u64,
    /// Which of its answers tells what it had counted when the last scrape was asked for.
    wanted: u64,
    has_drained: bool,
}

impl Shard {
    /// Whether it has told all that it was asked for.
    fn is_heard(&self) -> bool {
        self.told >= self.asked
    }
}

/// Runs until the process is to end.
pub(super) async fn run(equipment: ControlSetup) -> anyhow::Result<(ProcessEnd, Records)> {
    let ControlSetup { config, keychain, watch, plan, names, lookups, listeners, .. } = equipment;
    let (shards, descriptors, port) = (equipment.shards, equipment.descriptors, equipment.port);
    let (admin, access, records) = (equipment.admin, equipment.access, equipment.records);
    let (signals, ready) = (equipment.signals, equipment.ready);
    let (bus, pump) = bus::on_tokio(port)?;
    let process = ProcessCounters {
        start_time: i64::try_from(clock::unix_now().as_secs()).unwrap_or(0),
        shards: i64::try_from(shards).unwrap_or(i64::MAX),
        descriptors_max: i64::try_from(descriptors).unwrap_or(i64::MAX),
        build: usage::build(equipment.driver),
        config: usage::config(&config),
        config_applied: i64::try_from(clock::unix_now().as_secs()).unwrap_or(0),
        ..ProcessCounters::default()
    };
    let bus_health = if rooms::have_bus(&config) { BusHealth::Down } else { BusHealth::None };
    let control = Control {
        config,
        keychain,
        shown: Shown::new(equipment.certificates.as_ref()),
        file: watch.map(ConfigFile::new),
        plan,
        names,
        lookups,
        listeners,
        candidate: None,
        candidate_files: CandidateFiles::new(),
        shards: std::iter::repeat_with(Shard::default).take(shards).collect(),
        descriptors,
        bus,
        probes: Probes::new(),
        exporter: equipment.exporter,
        instances: InstanceBook::default(),
        stood: BTreeMap::new(),
        databases: Databases::default(),
        bus_health,
        are_events_refused: false,
        process,
        operators: Operators::new(access),
        history: History::default(),
        taken: Taken { at: now(), restart_needed: Vec::new(), refusal: None },
        drain: None,
        scrapes: Vec::new(),
        scrape_due: None,
        metrics_length: 0,
        records,
        ready: Some(ready),
    };
    let (ask, questions) = mpsc::channel(64);
    if let Some(listener) = admin {
        listener.set_nonblocking(true)?;
        let desk = Desk {
            questions: ask.clone(),
            access: control.operators.access.subscribe(),
            refusals: Rc::clone(&control.operators.refusals),
        };
        let speaks_tls = control.config.admin.speaks_tls();
        let handshakes = speaks_tls.then(|| Handshakes::new(control.shown.of_operators()));
        tokio::task::spawn_local(admin::serve(TcpListener::from_std(listener)?, desk, handshakes));
    }
    // In a box: it is large, and lives as long as the process.
    Box::pin(control.run(pump, questions, signals)).await
}

impl Control {
    async fn run(
        mut self,
        mut pump: Pump<AllLetters, to::Control>,
        mut questions: mpsc::Receiver<Question>,
        mut signals: Signals,
    ) -> anyhow::Result<(ProcessEnd, Records)> {
        if let Some(certificates) = &self.shown.certificates {
            self.probes.trust(certificates.services());
        }
        self.set_instances();
        let mut look = Ticks::every(LOOK_INTERVAL);
        loop {
            let due = self.due();
            tokio::select! {
                letters = receive(&mut pump) => {
                    for letter in letters {
                        self.take(letter);
                    }
                }
                Some(question) = questions.recv() => self.answer(question),
                signal = signals.next() => if self.signalled(signal) {
                    return Ok(self.end(ProcessEnd::Cut));
                },
                news = self.lookups.next() => match news {
                    News::Ready => self.take_candidates_names(),
                    News::Changed => self.tell_instances(),
                },
                changed = self.probes.changed() => if let Some(probed) = changed.letter(&self.plan) {
                    self.bus.broadcast(|| ToShard::Probed(Box::new(probed.clone())));
                },
                found = found(self.file.as_mut()) => self.take_found(found),
                read = self.shown.files.next() => self.take_read(read),
                read = self.candidate_files.read() => self.take_candidates_files(read),
                keys = self.keychain.changed() => self.bus.broadcast(|| ToShard::Keys(Arc::clone(&keys))),
                () = self.exporter.turn() => {}
                () = look.tick() => self.look(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            for (slot, at, result) in self.probes.take_ended() {
                self.instances.probed(slot, &at, result);
            }
            self.answer_scrapes();
            if let Some(ended) = self.advance_drain() {
                self.exporter.close(LAST_SPANS_WITHIN).await;
                return Ok(self.end(ended));
            }
            self.bus.flush();
        }
    }

    /// When something is to be done even if nothing happens.
    fn due(&self) -> Option<Instant> {
        let drain = self.drain.map(|drain| drain.due());
        [drain, self.scrape_due].into_iter().flatten().min()
    }

    /// A letter from a shard or the bridge.
    fn take(&mut self, letter: ToControl) {
        match letter {
            ToControl::Applied(scraped) => {
                self.instances.told(scraped.shard, &scraped.instances);
                let shard = &mut self.shards[scraped.shard];
                shard.applied = scraped.generation;
                shard.lag = shard.lag.max(scraped.lag);
                shard.scraped = Some(scraped);
                if self.is_applied() {
                    tracing::info!(generation = self.plan.generation, "every shard runs the configuration");
                    self.show_pages();
                    if let Some(ready) = self.ready.take() {
                        ready();
                    }
                }
            }
            ToControl::Scraped(scraped) => {
                self.instances.told(scraped.shard, &scraped.instances);
                if scraped.generation == self.plan.generation {
                    self.probes.told(&self.plan, &scraped.instances);
                }
                let shard = &mut self.shards[scraped.shard];
                shard.lag = shard.lag.max(scraped.lag);
                shard.scraped = Some(scraped);
                shard.told += 1;
                if self.shards.iter().all(Shard::is_heard) {
                    self.show_pages();
                }
            }
            ToControl::AskMetrics(asker, wanted) => self.scrape(Scraper::Shard(asker, wanted)),
            ToControl::Spans(batch) => {
                self.exporter.take(&batch);
                self.bus.send(to::Shard(batch.shard.into()), ToShard::SpansTaken(batch));
            }
            ToControl::WantKeys(issuer) => self.keychain.want(&issuer),
            ToControl::Drained(shard) => self.shards[shard].has_drained = true,
            ToControl::RevocationsLost => self.process.revocation_log_losses += 1,
            ToControl::Load(Load { under_way, waiting }) => {
                let level = |count| i64::try_from(count).unwrap_or(i64::MAX);
                self.process.operations_under_way = level(under_way);
                self.process.operations_waiting = level(waiting);
            }
            ToControl::Databases(databases) => self.databases = *databases,
            ToControl::BusHeard(after) => {
                self.process.bus_round_trip.observe_us(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            }
            ToControl::Bus(is_up) => {
                self.bus_health = if is_up { BusHealth::Up } else { BusHealth::Down };
                self.process.bus_up = i64::from(is_up);
                self.show_pages();
            }
            ToControl::BusRefused => {
                // Of one thing that is refused while all else works the log tells.
                if self.bus_health == BusHealth::Down {
                    self.bus_health = BusHealth::Refused;
                }
                self.show_pages();
            }
            ToControl::BusRefusals(count) => self.process.bus_refusals += count,
            ToControl::EventsRefused(are) => {
                self.are_events_refused = are;
                self.show_pages();
            }
        }
    }

    fn is_applied(&self) -> bool {
        self.shards.iter().all(|shard| shard.applied == self.plan.generation)
    }

    /// What is done every second.
    fn look(&mut self) {
        self.note_second();
        // Who has not told yet is not asked again: a shard that is stuck would find all of it when it comes back.
        self.ask_shards(Shard::is_heard);
        self.lookups.look();
        self.look_at_certificates();
        if let Some(file) = &mut self.file {
            file.look();
        }
    }

    fn ask_shards(&mut self, whom: impl Fn(&Shard) -> bool) {
        // Whatever else a shard is asked for: its last answer is what a scrape tells.
        let with_exemplars = self.scrapes.iter().any(|scraper| scraper.wants(Format::OpenMetrics));
        for (index, shard) in self.shards.iter_mut().enumerate().filter(|(_, shard)| whom(shard)) {
            shard.asked += 1;
            self.bus.send(to::Shard(index), ToShard::Scrape { with_exemplars });
        }
    }

    /// Whether the signal ends the process at once.
    fn signalled(&mut self, signal: Signalled) -> bool {
        match signal {
            Signalled::Reload => {
                self.records.reopen();
                if let Some(file) = &mut self.file {
                    file.read("SIGHUP");
                } else {
                    tracing::info!("there is no configuration file to reload");
                }
                false
            }
            Signalled::End if self.drain.is_some() => {
                tracing::warn!("a second signal: ending at once");
                true
            }
            Signalled::End => {
                let now = Instant::now();
                let drain = &self.config.drain;
                tracing::info!(
                    notice_s = drain.notice.as_secs_f64(),
                    max_s = drain.max.as_secs_f64(),
                    "draining: not ready from now on; a second signal ends at once"
                );
                self.drain = Some(Drain::begin(now, drain));
                self.bus.broadcast(|| ToShard::EndConnections);
                self.show_pages();
                false
            }
        }
    }

    /// Brings an end that is under way further; says when it has come.
    fn advance_drain(&mut self) -> Option<ProcessEnd> {
        let mut drain = self.drain?;
        let now = Instant::now();
        if !drain.has_closed && now >= drain.closes_at {
            drain.has_closed = true;
            tracing::info!("closing the listeners; requests under way go on");
            self.bus.broadcast(|| ToShard::StopAccepting);
        }
        let has_drained = drain.has_closed && self.shards.iter().all(|shard| shard.has_drained);
        if has_drained {
            // What was refused was not finished.
            return Some(if drain.has_refused { ProcessEnd::Cut } else { ProcessEnd::Drained });
        }
        if !drain.has_refused && now >= drain.refuses_at {
            drain.has_refused = true;
            // They get to read it even if everything is due at once.
            drain.cut_at = drain.cut_at.max(now + FAREWELL / 5);
            tracing::warn!("the drain's time is up: refusing requests that have no answer yet, then cutting the rest");
            self.bus.broadcast(|| ToShard::RefuseUnanswered);
        }
        self.drain = Some(drain);
        (now >= drain.cut_at).then_some(ProcessEnd::Cut)
    }

    /// Stops the shards.
    fn end(self, ended: ProcessEnd) -> (ProcessEnd, Records) {
        self.bus.broadcast(|| ToShard::Stop);
        self.bus.send(to::Bridge, ToBridge::Stop);
        self.bus.flush();
        (ended, self.records)
    }
}

/// The letters that have come, at least one.
async fn receive(pump: &mut Pump<AllLetters, to::Control>) -> Vec<ToControl> {
    poll_fn(|cx| {
        let mut letters = Vec::new();
        // It is never ready by itself.
        let _ = pump.poll(cx, |Received::Control(letter)| letters.push(letter));
        if letters.is_empty() { Poll::Pending } else { Poll::Ready(letters) }
    })
    .await
}

/// What comes of a look at the configuration file.
async fn found(file: Option<&mut ConfigFile>) -> Found {
    match file {
        Some(file) => file.found().await,
        None => std::future::pending().await,
    }
}
