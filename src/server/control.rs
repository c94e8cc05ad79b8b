//! The control thread: signals, reloads, health, the operator's listener. It builds plans and pages and sends them to the
//! shards; nothing here is on a request's path.

use std::{
    collections::BTreeMap, fmt::Display, future::poll_fn, net::SocketAddr, path::PathBuf, sync::Arc, task::Poll,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    drain::{Drain, FAREWELL},
    files,
    letter::{AllLetters, Load, Scraped, ToBridge, ToControl, ToShard},
    lookup::{Lookups, News},
    probes::Probes,
    rooms,
    signals::{Signalled, Signals},
};
use crate::{
    admin::{
        self, HealthPage, Question, asyncapi,
        health::{self, BusHealth, UpstreamHealth},
    },
    auth::Keychain,
    bus::{
        self, Bus, Pump,
        mesh::{Port, Received},
        to,
    },
    config::{self, Config, watch::Watch},
    gateway::{Page, Pages, Plan},
    shard::{clock, ticks::Ticks},
    telemetry::{
        access_log,
        dependency::Databases,
        exposition::{ShardCounters, write_prometheus},
        log,
        metrics::{KeyFetch, Names, ProcessCounters, Reload},
    },
    upstream::Report,
};

/// How often the shards are asked how they are, and the configuration file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A scrape is answered without the shards that have not told by then.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(1);

/// Scrapes that a shard may have to answer at once.
const UNTOLD_MAX: u64 = 64;

/// What the control thread is given.
pub(super) struct ControlSetup {
    pub(super) config: Config,
    pub(super) keychain: Keychain,
    pub(super) watch: Option<Watch>,
    pub(super) plan: Arc<Plan>,
    pub(super) names: Names,
    pub(super) lookups: Lookups,
    /// Where the public listeners are bound.
    pub(super) listeners: Vec<SocketAddr>,
    pub(super) shards: usize,
    pub(super) descriptors: u64,
    pub(super) port: Port<AllLetters, to::Control>,
    pub(super) admin: Option<std::net::TcpListener>,
    pub(super) writer: access_log::AccessLogWriter,
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
    /// Where the configuration is from.
    watch: Option<Watch>,
    plan: Arc<Plan>,
    names: Names,
    lookups: Lookups,
    listeners: Vec<SocketAddr>,
    /// What is to be taken once its names are looked up.
    candidate: Option<NewConfig>,
    shards: Vec<Shard>,
    descriptors: u64,
    bus: Bus<AllLetters>,
    probes: Probes,
    /// How upstreams stood by the plan before, until all shards have told of the one in force.
    stood: BTreeMap<String, Vec<Report>>,
    databases: Databases,
    /// Whether rooms span instances now.
    bus_health: BusHealth,
    /// Whether Redis refuses what lifecycle events need.
    are_events_refused: bool,
    process: ProcessCounters,
    drain: Option<Drain>,
    scrapes: Vec<Scraper>,
    scrape_due: Option<Instant>,
    writer: access_log::AccessLogWriter,
    /// Gone once it has been called.
    ready: Option<Box<dyn FnOnce()>>,
}

/// A configuration that was read and checked, and is not in force yet.
struct NewConfig {
    config: Config,
    /// Why it was read.
    why: &'static str,
    path: PathBuf,
}

/// Who waits for the metrics.
enum Scraper {
    /// A client of the operator's listener.
    Operator(oneshot::Sender<String>),
    /// Clients of the shard of this number.
    Shard(usize),
}

/// What is known of a shard.
#[derive(Default)]
struct Shard {
    /// The generation that it runs.
    applied: u64,
    /// What it told last.
    scraped: Option<Box<Scraped>>,
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
pub(super) async fn run(equipment: ControlSetup) -> anyhow::Result<(ProcessEnd, access_log::AccessLogWriter)> {
    let ControlSetup { config, keychain, watch, plan, names, lookups, listeners, .. } = equipment;
    let (shards, descriptors, port) = (equipment.shards, equipment.descriptors, equipment.port);
    let (admin, writer, signals, ready) = (equipment.admin, equipment.writer, equipment.signals, equipment.ready);
    let (bus, pump) = bus::on_tokio(port)?;
    let process = ProcessCounters {
        start_time: i64::try_from(clock::unix_now().as_secs()).unwrap_or(0),
        shards: i64::try_from(shards).unwrap_or(i64::MAX),
        ..ProcessCounters::default()
    };
    let bus_health = if rooms::have_bus(&config) { BusHealth::Down } else { BusHealth::None };
    let control = Control {
        config,
        keychain,
        watch,
        plan,
        names,
        lookups,
        listeners,
        candidate: None,
        shards: std::iter::repeat_with(Shard::default).take(shards).collect(),
        descriptors,
        bus,
        probes: Probes::new(),
        stood: BTreeMap::new(),
        databases: Databases::default(),
        bus_health,
        are_events_refused: false,
        process,
        drain: None,
        scrapes: Vec::new(),
        scrape_due: None,
        writer,
        ready: Some(ready),
    };
    let (ask, questions) = mpsc::channel(64);
    if let Some(listener) = admin {
        listener.set_nonblocking(true)?;
        tokio::task::spawn_local(admin::serve(TcpListener::from_std(listener)?, ask.clone()));
    }
    control.run(pump, questions, signals).await
}

impl Control {
    async fn run(
        mut self,
        mut pump: Pump<AllLetters, to::Control>,
        mut questions: mpsc::Receiver<Question>,
        mut signals: Signals,
    ) -> anyhow::Result<(ProcessEnd, access_log::AccessLogWriter)> {
        self.probes.set(&self.plan, self.lookups.backends());
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
                    News::Ready => self.take_candidate(),
                    News::Changed => self.tell_instances(),
                },
                changed = self.probes.changed() => if let Some(probed) = changed.letter(&self.plan) {
                    self.bus.broadcast(|| ToShard::Probed(Box::new(probed.clone())));
                },
                keys = self.keychain.changed() => self.bus.broadcast(|| ToShard::Keys(Arc::clone(&keys))),
                () = look.tick() => self.look(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.answer_scrapes();
            if let Some(ended) = self.advance_drain() {
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
                let shard = &mut self.shards[scraped.shard];
                shard.applied = scraped.generation;
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
                let shard = &mut self.shards[scraped.shard];
                shard.scraped = Some(scraped);
                shard.told += 1;
                if self.shards.iter().all(Shard::is_heard) {
                    self.show_pages();
                }
            }
            ToControl::AskMetrics(asker) => self.scrape(Scraper::Shard(asker)),
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
        // Who has not told yet is not asked again: a shard that is stuck would find all of it when it comes back.
        self.ask_shards(Shard::is_heard);
        self.lookups.look();
        let changed = match self.watch.as_mut().map(Watch::changed) {
            Some(Ok(changed)) => changed,
            Some(Err(error)) => {
                tracing::warn!(%error, "the configuration file cannot be read; the configuration stays as it is");
                false
            }
            None => false,
        };
        if changed {
            self.reload("the file changed");
        }
    }

    fn ask_shards(&mut self, whom: impl Fn(&Shard) -> bool) {
        for (index, shard) in self.shards.iter_mut().enumerate().filter(|(_, shard)| whom(shard)) {
            shard.asked += 1;
            self.bus.send(to::Shard(index), ToShard::Scrape);
        }
    }

    /// Reads the configuration file anew. What is right is taken once its names are looked up; a newer one takes its place
    /// meanwhile.
    fn reload(&mut self, why: &'static str) {
        let Some(path) = self.watch.as_ref().map(|watch| watch.path().to_owned()) else {
            tracing::info!("there is no configuration file to reload");
            return;
        };
        let config = match config::load(Some(&path)) {
            Ok(config) => config,
            Err(mistakes) => return self.refuse_reload(&mistakes),
        };
        if self.candidate.is_some() {
            tracing::info!("the configuration whose names are being looked up is left for a newer one");
        }
        let candidate = self.candidate.insert(NewConfig { config, why, path });
        let names = self.lookups.begin(&candidate.config);
        if names > 0 {
            tracing::info!(names, why, "looking up the names of instances for a new configuration");
        }
    }

    /// Puts a new configuration in force: whole, or not at all.
    fn take_candidate(&mut self) {
        let Some(NewConfig { mut config, why, path }) = self.candidate.take() else { return };
        let addresses = self.lookups.addresses(&config);
        let generation = self.plan.generation + 1;
        let (shards, descriptors) = (self.shards.len(), self.descriptors);
        let stood = self.known().upstreams.into_iter().map(|upstream| (upstream.name, upstream.reports)).collect();
        match Plan::compile(&config, &addresses, generation, shards, descriptors, &mut self.names) {
            // Once the keys are taken nothing can fail any more.
            Ok(plan) => match files::reload_keys(&mut self.keychain, &config) {
                Ok(()) => (self.plan, self.stood) = (Arc::new(plan), stood),
                Err(error) => return self.refuse_reload(&error),
            },
            Err(error) => {
                let error = error.to_string();
                let lines: Vec<_> = error.lines().map(|line| format!("{}: {line}", path.display())).collect();
                return self.refuse_reload(&lines.join("\n"));
            }
        }
        super::warn(&config);
        super::warn_of_names(&config, &addresses, &self.listeners);
        let restart_needed = self.config.restart_needed(&config);
        if !restart_needed.is_empty() {
            tracing::warn!(keys = restart_needed.join(", "), "these keys are applied by a restart only");
        }
        config.keep_until_restart(&self.config);
        log::set_level(&config.log.level);
        self.config = config;
        self.lookups.settle(&self.config);
        self.lookups.told(&self.config, &self.listeners);
        self.process.config_reloads[Reload::Applied.index()] += 1;
        tracing::info!(generation, why, path = %path.display(), "configuration reloaded");
        let keys = self.keychain.keys();
        self.bus.broadcast(|| ToShard::Keys(Arc::clone(&keys)));
        let plan = Arc::clone(&self.plan);
        self.bus.broadcast(|| ToShard::Plan(Arc::clone(&plan)));
        self.probes.set(&self.plan, self.lookups.backends());
        self.bus.send(to::Bridge, ToBridge::Plan(plan));
        self.bus.send(to::Bridge, ToBridge::Configuration(Arc::new(self.config.clone()), self.keychain.issuer()));
    }

    /// Tells the shards of other addresses of names.
    fn tell_instances(&mut self) {
        let generation = self.plan.generation;
        if let Some(instances) = self.lookups.instances(&self.config, &self.listeners, generation) {
            let instances = Arc::new(instances);
            self.bus.broadcast(|| ToShard::Instances(Arc::clone(&instances)));
            // After that letter, so that shards know whom probes speak of.
            self.probes.set(&self.plan, self.lookups.backends());
            self.process.discovery_changes += 1;
        }
    }

    fn refuse_reload(&mut self, mistakes: &dyn Display) {
        self.process.config_reloads[Reload::Refused.index()] += 1;
        tracing::error!("the configuration is refused and the old one stays:\n{mistakes}");
        if self.candidate.is_none() {
            self.lookups.settle(&self.config);
        }
    }

    /// Whether the signal ends the process at once.
    fn signalled(&mut self, signal: Signalled) -> bool {
        match signal {
            Signalled::Reload => {
                self.writer.reopen();
                // What is read now is no change to be found later.
                self.watch = self.watch.take().map(|watch| Watch::new(watch.path()));
                self.reload("SIGHUP");
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
    fn end(self, ended: ProcessEnd) -> (ProcessEnd, access_log::AccessLogWriter) {
        self.bus.broadcast(|| ToShard::Stop);
        self.bus.send(to::Bridge, ToBridge::Stop);
        self.bus.flush();
        (ended, self.writer)
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Metrics(sender) => self.scrape(Scraper::Operator(sender)),
            Question::Health(page, sender) => {
                let known = self.known();
                // Whoever asked may have left.
                let _ = sender.send(match page {
                    HealthPage::Whole => health::whole(&known),
                    HealthPage::Ready => health::ready(&known),
                    HealthPage::ReadyHub => health::ready_hub(&known),
                });
            }
            Question::AsyncApi(sender) => {
                let document = asyncapi::document(&self.config.hub, self.config.listener.port);
                let _ = sender.send(document.to_string() + "\n");
            }
        }
    }

    fn scrape(&mut self, scraper: Scraper) {
        self.scrapes.push(scraper);
        self.scrape_due.get_or_insert_with(|| Instant::now() + SCRAPE_TIMEOUT);
        // All are asked anew: what is on its way was counted before. A shard that is behind by so much is not asked ever
        // more, and its next answers do.
        self.ask_shards(|shard| shard.asked.saturating_sub(shard.told) < UNTOLD_MAX);
        self.shards.iter_mut().for_each(|shard| shard.wanted = shard.asked);
    }

    /// Answers scrapes once every shard has told, or the time is up.
    fn answer_scrapes(&mut self) {
        let Some(due) = self.scrape_due else { return };
        let has_told = |shard: &Shard| shard.told >= shard.wanted;
        let answered = self.shards.iter().filter(|shard| has_told(shard)).count();
        if answered < self.shards.len() && Instant::now() < due {
            return;
        }
        self.scrape_due = None;
        self.process.shards_answered = i64::try_from(answered).unwrap_or(i64::MAX);
        let shards: Vec<_> = self
            .shards
            .iter()
            .enumerate()
            .filter(|(_, shard)| has_told(shard))
            .filter_map(|(index, shard)| {
                let counters = shard.scraped.as_ref()?.counters.clone();
                Some(ShardCounters { shard: u16::try_from(index).ok()?, counters })
            })
            .collect();
        let fetched = self.keychain.fetch_counts();
        self.process.key_fetches[KeyFetch::Good.index()] = fetched.good;
        self.process.key_fetches[KeyFetch::Failed.index()] = fetched.failed;
        self.process.probes = self.probes.counters();
        let mut text = String::with_capacity(64 * 1024);
        write_prometheus(&shards, &self.process, &self.lookups.counters(), &self.names, &mut text);
        let mut shared: Option<Arc<str>> = None;
        for scraper in std::mem::take(&mut self.scrapes) {
            match scraper {
                // Whoever asked may have left.
                Scraper::Operator(sender) => drop(sender.send(text.clone())),
                Scraper::Shard(shard) => {
                    let text = shared.get_or_insert_with(|| text.as_str().into());
                    self.bus.send(to::Shard(shard), ToShard::Metrics(Arc::clone(text)));
                }
            }
        }
    }

    fn show_pages(&mut self) {
        let known = self.known();
        let page = |(status, body)| Page { status, body };
        let pages = Pages {
            health: page(health::whole(&known)),
            ready: page(health::ready(&known)),
            ready_hub: page(health::ready_hub(&known)),
        };
        self.bus.broadcast(|| ToShard::Pages(Box::new(pages.clone())));
    }

    fn known(&self) -> health::HealthInputs {
        let generation = self.plan.generation;
        let told = || self.shards.iter().filter_map(|shard| shard.scraped.as_ref());
        let current = || told().filter(|scraped| scraped.generation == generation);
        let have_all_told = current().count() == self.shards.len();
        let upstreams = self.plan.upstreams.iter().enumerate().map(|(place, upstream)| {
            let mut reports: Vec<_> = current().filter_map(|scraped| scraped.reports.get(place).cloned()).collect();
            if !have_all_told {
                // A configuration that is just being taken is no outage.
                reports.extend(self.stood.get(&upstream.name).into_iter().flatten().cloned());
            }
            let probes = self.probes.report(&upstream.name);
            let instances = self.lookups.backends().get(place).map_or(0, |backends| backends.len());
            UpstreamHealth { name: upstream.name.clone(), instances, reports, probes }
        });
        let now = jiff::Timestamp::now();
        health::HealthInputs {
            upstreams: upstreams.collect(),
            unresolved: self.lookups.unresolved(&self.config),
            databases: self.databases.clone(),
            is_revocation_stale: told().any(|scraped| scraped.counters.revocation_stale_shards > 0),
            uptime_s: clock::unix_now().as_secs().saturating_sub(u64::try_from(self.process.start_time).unwrap_or(0)),
            timestamp: format!("{now:.3}"),
            now: clock::now(),
            shards_ready: self.shards.iter().filter(|shard| shard.applied == generation).count(),
            shards: self.shards.len(),
            is_accepting: self.drain.is_none(),
            has_hub: self.config.hub.enabled,
            bus_health: match self.bus_health {
                BusHealth::Up if self.are_events_refused => BusHealth::EventsRefused,
                health => health,
            },
        }
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
