//! The names of instances, followed: what is known of them is in [`Discovery`]; here it is asked for, and told to whoever
//! compiles plans.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use tokio::{
    sync::mpsc,
    task::{self, AbortHandle},
    time::sleep,
};

use super::resolver::{Asked, Resolve, Resolver};
use crate::{
    config::{self, Config, DnsAddress},
    gateway::{self, Addresses, Instances, Moved},
    shard::{Instant, clock},
    telemetry::metrics::{NAMES_MAX, NameCounters},
    upstream::{Discovery, DiscoverySettings, Heard, Instance, Known, NameAnswer, NoAddress},
};

/// One per process, on the control thread.
#[derive(Debug)]
pub(super) struct Lookups<R = Resolver> {
    discovery: Discovery,
    resolver: R,
    /// The names of the configuration in force.
    in_force: BTreeSet<Box<str>>,
    /// Questions that are not answered yet, by their names.
    under_way: BTreeMap<Box<str>, Question>,
    /// Counts questions.
    asked: u64,
    /// What a start or a reload waits for.
    wait: Option<Wait>,
    /// The instances that the shards have, in the order of the plan's upstreams.
    instances: Vec<Box<[Instance]>>,
    /// What was told of instances that are the gateway's own listeners.
    loops: Vec<String>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
}

#[derive(Debug)]
struct Question {
    number: u64,
    task: AbortHandle,
}

#[derive(Debug)]
struct Wait {
    names: BTreeSet<Box<str>>,
    due: Instant,
}

/// What has come of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// What a start or a reload waited for is known, or the time is up.
    Ready,
    /// Names have other addresses.
    Changed,
}

/// The answer to a question, or that its task has ended without one.
#[derive(Debug)]
struct Told {
    name: Box<str>,
    number: u64,
    answer: Result<NameAnswer, NoAddress>,
}

/// Tells what came of a question, whatever ends its task.
struct Telling {
    told: Option<Told>,
    tell: mpsc::UnboundedSender<Told>,
}

impl Telling {
    async fn wait_for(mut self, asked: Asked) {
        let answer = asked.await;
        if let Some(told) = &mut self.told {
            told.answer = answer;
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            // Nobody listens any more when the process ends.
            let _ = self.tell.send(told);
        }
    }
}

impl Lookups {
    /// Follows no name yet.
    pub(super) fn new(config: &Config) -> Self {
        Self::by(Resolver::new(&config.discovery.nameservers), settings(&config.discovery))
    }

    /// Begins to follow the names of a configuration that is to be taken, beside those of the one in force; says how many
    /// are waited for. Those are they that nobody has asked for before; the others are asked for again, too.
    pub(super) fn begin(&mut self, config: &Config) -> usize {
        // What was changed together with the configuration counts from here on.
        self.resolver = Resolver::new(&config.discovery.nameservers);
        self.discovery.ask_all(clock::now());
        self.wait_for(config)
    }

    /// A configuration is in force, or stays so: no other names are followed.
    pub(super) fn settle(&mut self, config: &Config) {
        if self.resolver.ask_servers(&config.discovery.nameservers) {
            self.discovery.ask_all(clock::now());
        }
        self.keep(config);
    }

    /// What is done every second: other files of the system have the names asked for anew.
    pub(super) fn look(&mut self) {
        if !self.in_force.is_empty() && self.resolver.look() {
            self.discovery.ask_all(clock::now());
        }
    }
}

impl<R: Resolve> Lookups<R> {
    fn by(resolver: R, settings: DiscoverySettings) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self {
            discovery: Discovery::new(settings),
            resolver,
            in_force: BTreeSet::new(),
            under_way: BTreeMap::new(),
            asked: 0,
            wait: None,
            instances: Vec::new(),
            loops: Vec::new(),
            tell,
            told,
        }
    }

    fn wait_for(&mut self, config: &Config) -> usize {
        let now = clock::now();
        let wanted = Addresses::wanted(config);
        let names = wanted.difference(&self.in_force).cloned().collect();
        self.follow(&(&wanted | &self.in_force), config, now);
        let wait = self.wait.insert(Wait { names, due: now + config.runtime.lookup_timeout });
        wait.names.len()
    }

    fn keep(&mut self, config: &Config) {
        self.wait = None;
        self.in_force = Addresses::wanted(config);
        self.follow(&self.in_force.clone(), config, clock::now());
    }

    fn follow(&mut self, names: &BTreeSet<Box<str>>, config: &Config, now: Instant) {
        self.discovery.follow(names, settings(&config.discovery), now);
        self.under_way.retain(|name, question| {
            let is_followed = names.contains(name);
            if !is_followed {
                question.task.abort();
            }
            is_followed
        });
    }

    /// Asks for what is due and takes answers until there is news. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> News {
        loop {
            let now = clock::now();
            for name in self.discovery.take_due(now) {
                self.ask(name);
            }
            if self.wait.take_if(|wait| is_over(wait, &self.discovery, now)).is_some() {
                return News::Ready;
            }
            if self.discovery.take_changed(now) && !self.in_force.is_empty() {
                return News::Changed;
            }
            let due = self.wait.as_ref().map_or(Instant::NEVER, |wait| wait.due).min(self.discovery.due());
            tokio::select! {
                Some(told) = self.told.recv() => self.take(told),
                () = sleep(due.since(now)), if due != Instant::NEVER => {}
            }
        }
    }

    /// Waits until what was begun can be taken.
    pub(super) async fn ready(&mut self) {
        while self.next().await != News::Ready {}
    }

    fn ask(&mut self, name: Box<str>) {
        self.asked += 1;
        let number = self.asked;
        let found_as = self.discovery.known(&name).and_then(|known| known.found_as.as_deref());
        let asked = self.resolver.ask(&name, found_as);
        let ended = Err(NoAddress::Unknown("the resolver panicked".to_owned()));
        let told = Told { name: name.clone(), number, answer: ended };
        let telling = Telling { told: Some(told), tell: self.tell.clone() };
        let task = task::spawn(telling.wait_for(asked));
        self.under_way.insert(name, Question { number, task: task.abort_handle() });
    }

    fn take(&mut self, Told { name, number, answer }: Told) {
        // Of a name that was forgotten meanwhile.
        if self.under_way.get(&name).is_none_or(|question| question.number != number) {
            return;
        }
        self.under_way.remove(&name);
        let known = |discovery: &Discovery| discovery.known(&name).cloned().unwrap_or_default();
        let before = known(&self.discovery);
        let heard = self.discovery.answered(&name, answer, clock::now());
        log(&name, heard, &before, &known(&self.discovery));
    }

    /// What is known of all names; the shards are told with the plan that is made of it.
    pub(super) fn addresses(&self, config: &Config) -> Addresses {
        let of = |known: &Known| {
            if !known.addresses.is_empty() {
                return Ok(known.addresses.clone());
            }
            let late = NoAddress::Late(config.runtime.lookup_timeout);
            Err(known.error.clone().filter(|error| !matches!(error, NoAddress::Late(_))).unwrap_or(late))
        };
        Addresses::new(self.discovery.names().map(|(name, known)| (name.into(), of(known))).collect())
    }

    /// The shards have all that is known now, with the plan of this configuration.
    pub(super) fn told(&mut self, config: &Config, listeners: &[SocketAddr]) {
        let addresses = self.addresses(config);
        self.instances = gateway::instances(config, &addresses);
        self.loops = gateway::own_listener_loops(config, &addresses, listeners);
        self.discovery.told(clock::now());
    }

    /// The instances that the shards have, in the order of the plan's upstreams.
    pub(super) fn current(&self) -> &[Box<[Instance]>] {
        &self.instances
    }

    /// What the shards are to be told of the names of the configuration in force, if it is anything.
    pub(super) fn instances(
        &mut self,
        config: &Config,
        listeners: &[SocketAddr],
        generation: u64,
    ) -> Option<Instances> {
        let addresses = self.addresses(config);
        let loops = gateway::own_listener_loops(config, &addresses, listeners);
        loops.iter().filter(|warning| !self.loops.contains(warning)).for_each(|warning| tracing::warn!("{warning}"));
        self.loops = loops;
        let zone = config.runtime.zone.as_ref().map(|zone| &*zone.0);
        let instances = gateway::instances(config, &addresses);
        let places = instances.iter().zip(&self.instances).enumerate().zip(config.upstreams.values());
        let changed = places.filter(|((_, (new, old)), _)| new != old);
        let changed = changed.map(|((place, (new, _)), upstream)| Moved::new(place, upstream, new, zone));
        let changed: Vec<_> = changed.collect();
        self.instances = instances;
        (!changed.is_empty()).then_some(Instances { generation, changed })
    }

    /// The upstreams with a name whose look-ups fail.
    pub(super) fn unresolved(&self, config: &Config) -> BTreeSet<String> {
        let is_failing = |name: &str| self.discovery.known(name).is_none_or(Known::is_failing);
        let failing = config.upstreams.iter().filter(|(_, upstream)| gateway::names(upstream).any(is_failing));
        failing.map(|(name, _)| name.clone()).collect()
    }

    /// What a scrape tells of each name.
    pub(super) fn counters(&self) -> Vec<(String, NameCounters)> {
        let now = clock::now();
        let mut counters = Vec::new();
        let mut others = NameCounters::default();
        for (place, (name, known)) in self.discovery.names().enumerate() {
            let of_name = NameCounters {
                addresses: i64::try_from(known.addresses.len()).unwrap_or(i64::MAX),
                age: i64::try_from(now.since(known.since).as_secs()).unwrap_or(i64::MAX),
                failures: known.failures_total,
            };
            if place < NAMES_MAX && name != OTHERS {
                counters.push((name.to_owned(), of_name));
            } else {
                others.join(&of_name);
            }
        }
        counters.push((OTHERS.to_owned(), others));
        counters
    }
}

/// Names without a series of their own.
const OTHERS: &str = "other";

fn is_over(wait: &Wait, discovery: &Discovery, now: Instant) -> bool {
    let is_heard = |name: &str| discovery.known(name).is_none_or(Known::is_heard);
    now >= wait.due || wait.names.iter().all(|name| is_heard(name))
}

fn settings(discovery: &config::Discovery) -> DiscoverySettings {
    DiscoverySettings {
        interval_min: discovery.interval_min,
        interval_max: discovery.interval_max,
        shrink_percent_max: discovery.max_shrink,
        takes_loopback: discovery.allow.contains(&DnsAddress::Loopback),
        takes_link_local: discovery.allow.contains(&DnsAddress::LinkLocal),
    }
}

/// Tells what is new of a name, once.
fn log(name: &str, heard: Heard, before: &Known, now: &Known) {
    match heard {
        Heard::Changed { added, .. } if before.addresses.is_empty() => {
            tracing::info!(name, addresses = listed(&added), "a name of instances is resolved");
        }
        Heard::Changed { added, gone } => {
            let addresses = now.addresses.len();
            tracing::info!(
                name,
                addresses,
                added = listed(&added),
                gone = listed(&gone),
                "a name of instances has moved"
            );
        }
        // A service with one address moves like that.
        Heard::Doubted => {
            tracing::info!(name, "more of a name's addresses are gone than may be; the next answer decides");
        }
        // Twice, as one question may be lost; a name that has never had an address is told of when the plan is made.
        Heard::Failed if now.failures == 2 && !now.addresses.is_empty() => {
            let why = match &now.error {
                Some(NoAddress::Unknown(why)) => why.clone(),
                Some(NoAddress::Refused(address)) => format!("{address} is not taken from DNS"),
                Some(NoAddress::Late(_)) | None => "nobody answers".to_owned(),
            };
            let addresses = listed(&now.addresses);
            tracing::warn!(
                name,
                why,
                addresses,
                "a name of instances is not resolved any more; its last addresses stay"
            );
        }
        Heard::Failed | Heard::Same => {}
    }
    if before.failures > 1 && now.failures == 0 && !before.addresses.is_empty() {
        tracing::info!(name, failures = before.failures, "a name of instances is resolved again");
    }
    let none_is_taken = match &now.error {
        Some(NoAddress::Refused(address)) if now.error != before.error => vec![*address],
        _ => Vec::new(),
    };
    let refused = if now.refused == before.refused { &none_is_taken[..] } else { &now.refused };
    if !refused.is_empty() {
        let refused = listed(refused);
        tracing::warn!(
            name,
            refused,
            "addresses of a name of instances are not taken from DNS; discovery.allow says which are"
        );
    }
    if now.left_out > 0 && before.left_out == 0 {
        let (used, left_out) = (now.addresses.len(), now.left_out);
        tracing::warn!(
            name,
            left_out,
            "a name of instances has more addresses than are used; the first {used} in order are"
        );
    }
}

/// Addresses in a line of the log; whoever answers for DNS decides how many there are.
fn listed(addresses: &[IpAddr]) -> String {
    let mut words: Vec<_> = addresses.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if addresses.len() > LISTED_MAX {
        words.push(format!("and {} more", addresses.len() - LISTED_MAX));
    }
    words.join(" ")
}

const LISTED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    /// A name that was asked for, and where its answer goes.
    struct Question {
        name: String,
        answer: oneshot::Sender<Result<NameAnswer, NoAddress>>,
    }

    impl Question {
        fn answer(self, address: Option<[u8; 4]>) {
            let found = |address: [u8; 4]| NameAnswer {
                addresses: vec![Ipv4Addr::from(address).into()],
                time_to_live: LONG,
                untold: None,
                is_own: false,
                found_as: self.name.as_str().into(),
            };
            let answer = address.map(found).ok_or_else(|| NoAddress::Unknown("no such name".to_owned()));
            self.answer.send(answer).expect("somebody waits");
        }
    }

    /// A resolver that answers when the test does.
    #[derive(Debug)]
    struct Scripted(mpsc::UnboundedSender<Question>);

    impl Resolve for Scripted {
        fn ask(&self, name: &str, _: Option<&str>) -> Asked {
            let (answer, answered) = oneshot::channel();
            self.0.send(Question { name: name.to_owned(), answer }).expect("the test runs");
            Box::pin(async move { answered.await.expect("the test left a question, and so its task panics") })
        }
    }

    struct Scene {
        lookups: Lookups<Scripted>,
        questions: mpsc::UnboundedReceiver<Question>,
    }

    impl Scene {
        fn new() -> Self {
            let (ask, questions) = mpsc::unbounded_channel();
            let lookups = Lookups::by(Scripted(ask), settings(&Config::default().discovery));
            Self { lookups, questions }
        }

        /// A configuration with these names is to be taken.
        fn begin(&mut self, names: &[&str], lookup_timeout: Duration) -> Config {
            let mut config = Config::default();
            config.upstreams.clear();
            for name in names {
                let instance = format!("{name}:80").parse().expect("an instance");
                config.upstreams.insert((*name).to_owned(), config::Upstream::new(vec![instance]));
            }
            config.runtime.lookup_timeout = lookup_timeout;
            self.lookups.wait_for(&config);
            config
        }

        /// It is taken.
        fn take(&mut self, config: &Config) {
            self.lookups.keep(config);
            self.lookups.told(config, &[]);
        }

        /// The next question, while news is waited for that does not come.
        async fn question(&mut self) -> Question {
            tokio::select! {
                question = self.questions.recv() => question.expect("the resolver is there"),
                news = self.lookups.next() => panic!("{news:?}"),
            }
        }

        async fn news(&mut self) -> News {
            timeout(Duration::from_secs(10), self.lookups.next()).await.expect("there is news")
        }

        /// Waits a little for what is not to come yet, and so cannot be waited for.
        async fn is_quiet(&mut self) -> bool {
            timeout(Duration::from_millis(20), self.lookups.next()).await.is_err()
        }
    }

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work);
    }

    fn shown(scene: &Scene, config: &Config) -> String {
        let instances = gateway::instances(config, &scene.lookups.addresses(config));
        let all = instances.iter().flatten().map(|Instance { at, .. }| format!("{} {}", at.authority, at.address));
        all.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_start_waits_for_all_names_at_once_and_is_taken_without_those_that_are_not() {
        run(async {
            let mut scene = Scene::new();
            let config = scene.begin(&["a", "b", "c"], LONG);
            let questions = [scene.question().await, scene.question().await, scene.question().await];
            let [a, b, c] = questions;
            assert_eq!([&*a.name, &*b.name, &*c.name], ["a", "b", "c"], "none waits for another");
            c.answer(Some([192, 0, 2, 3]));
            a.answer(None);
            assert!(scene.is_quiet().await, "one is missing");
            b.answer(None);
            assert_eq!(scene.news().await, News::Ready);
            assert_eq!(shown(&scene, &config), "c:80 192.0.2.3:80");
            assert_eq!(gateway::unresolved_instances(&config, &scene.lookups.addresses(&config)).len(), 2);
            let unresolved: Vec<_> = scene.lookups.unresolved(&config).into_iter().collect();
            assert_eq!(unresolved, ["a", "b"]);
        });
    }

    #[test]
    fn nobody_waits_longer_than_is_said_and_what_comes_later_is_told() {
        run(async {
            let mut scene = Scene::new();
            let config = scene.begin(&["a"], Duration::from_millis(1));
            let a = scene.question().await;
            assert_eq!(scene.news().await, News::Ready);
            let told = gateway::unresolved_instances(&config, &scene.lookups.addresses(&config)).concat();
            assert!(told.contains("a was not resolved within 1ms"), "{told}");
            scene.take(&config);
            a.answer(Some([192, 0, 2, 1]));
            assert_eq!(scene.news().await, News::Changed);
            let instances = scene.lookups.instances(&config, &[], 7).expect("they have changed");
            assert_eq!(instances.generation, 7);
            assert_eq!(
                instances.changed.iter().map(|moved| (moved.upstream, moved.instances.len())).collect::<Vec<_>>(),
                [(0, 1)]
            );
            assert!(scene.lookups.instances(&config, &[], 7).is_none(), "it is told once");
        });
    }

    #[test]
    fn a_reload_waits_for_new_names_only_and_those_that_went_are_forgotten() {
        run(async {
            let mut scene = Scene::new();
            let config = scene.begin(&["a", "gone"], LONG);
            scene.question().await.answer(Some([192, 0, 2, 1]));
            scene.question().await.answer(Some([192, 0, 2, 9]));
            assert_eq!(scene.news().await, News::Ready);
            scene.take(&config);
            let config = scene.begin(&["a"], LONG);
            assert_eq!(scene.news().await, News::Ready, "it is known");
            scene.take(&config);
            scene.begin(&["a", "b", "gone"], LONG);
            let b = scene.question().await;
            let gone = scene.question().await;
            assert_eq!([&*b.name, &*gone.name], ["b", "gone"]);
            // A newer configuration does not want it, and the one after that asks anew.
            scene.begin(&["a", "b"], LONG);
            let config = scene.begin(&["a", "b", "gone"], LONG);
            let again = scene.question().await;
            assert_eq!(again.name, "gone");
            drop(gone);
            again.answer(Some([192, 0, 2, 8]));
            b.answer(Some([192, 0, 2, 2]));
            assert_eq!(scene.news().await, News::Ready);
            assert_eq!(shown(&scene, &config), "a:80 192.0.2.1:80, b:80 192.0.2.2:80, gone:80 192.0.2.8:80");
        });
    }

    #[test]
    fn a_resolver_that_panics_is_one_that_failed() {
        run(async {
            let mut scene = Scene::new();
            let config = scene.begin(&["a"], LONG);
            drop(scene.question().await);
            assert_eq!(scene.news().await, News::Ready);
            let told = gateway::unresolved_instances(&config, &scene.lookups.addresses(&config)).concat();
            assert!(told.contains("the resolver panicked"), "{told}");
        });
    }

    #[test]
    fn a_line_of_the_log_stays_short() {
        let all: Vec<IpAddr> = (0..20).map(|host| IpAddr::from([10, 0, 0, host])).collect();
        assert!(listed(&all).ends_with("10.0.0.15 and 4 more"));
        assert_eq!(listed(&all[..2]), "10.0.0.0 10.0.0.1");
    }

    #[test]
    fn without_names_nothing_is_waited_for() {
        run(async {
            let mut scene = Scene::new();
            scene.begin(&[], LONG);
            assert_eq!(scene.news().await, News::Ready);
            assert!(scene.is_quiet().await);
            let counters = scene.lookups.counters();
            assert_eq!(counters.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [OTHERS]);
        });
    }
}
