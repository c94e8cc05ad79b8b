//! What is followed for a configuration in force and for one that is to be taken, by resolvers that answer when the test
//! does.

use std::{future::pending, net::Ipv4Addr, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{following::LISTED_NAMES_WAIT, *};
use crate::{
    server::resolver::{Asked, AskedList},
    upstream::{LeftOut, ListAnswer, ListResult, Listed, NameAnswer},
};

const LONG: Duration = Duration::from_hours(1);

/// A name that was asked for, and where its answer goes.
struct Question {
    name: String,
    /// By whom: which configuration.
    by: usize,
    answer: oneshot::Sender<Result<NameAnswer, NoAddress>>,
}

/// The same of a list.
struct ListQuestion {
    source: Source,
    answer: oneshot::Sender<ListResult>,
}

impl ListQuestion {
    /// Answers with these instances, or with a failure where there are none.
    fn answer(self, instances: &[&str]) {
        let instances: Vec<_> = instances.iter().map(|text| text.parse().expect("an instance")).collect();
        let listed = Listed { instances, left_out: LeftOut::default(), time_to_live: LONG };
        let is_good = !listed.instances.is_empty();
        let answer = if is_good { Ok(ListAnswer::Listed(listed)) } else { Err("it is away".to_owned()) };
        let _ = self.answer.send(answer);
    }
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
        // Whoever gave it up waits no more.
        let _ = self.answer.send(answer);
    }
}

/// A resolver that answers when the test does.
#[derive(Debug)]
struct Scripted {
    by: usize,
    ask: mpsc::UnboundedSender<Question>,
    ask_list: mpsc::UnboundedSender<ListQuestion>,
}

impl Ask for Scripted {
    async fn changed(&mut self) {
        pending::<()>().await;
    }

    fn list(&mut self, source: &Source) -> AskedList {
        let (answer, answered) = oneshot::channel();
        self.ask_list.send(ListQuestion { source: source.clone(), answer }).expect("the test runs");
        Box::pin(async move { answered.await.expect("the test left a question, and so its task panics") })
    }

    fn name(&mut self, name: &str, _: Option<&str>) -> Asked {
        let (answer, answered) = oneshot::channel();
        self.ask.send(Question { name: name.to_owned(), by: self.by, answer }).expect("the test runs");
        Box::pin(async move { answered.await.expect("the test left a question, and so its task panics") })
    }
}

struct Scene {
    lookups: Lookups<Scripted>,
    /// Counts configurations.
    begun: usize,
    ask: mpsc::UnboundedSender<Question>,
    questions: mpsc::UnboundedReceiver<Question>,
    ask_list: mpsc::UnboundedSender<ListQuestion>,
    list_questions: mpsc::UnboundedReceiver<ListQuestion>,
}

impl Scene {
    fn new() -> Self {
        let (ask, questions) = mpsc::unbounded_channel();
        let (ask_list, list_questions) = mpsc::unbounded_channel();
        let nobody = Scripted { by: 0, ask: ask.clone(), ask_list: ask_list.clone() };
        let lookups = Lookups::by(nobody, settings(&Config::default().discovery));
        Self { lookups, begun: 0, ask, questions, ask_list, list_questions }
    }

    /// A configuration with these names is to be taken.
    fn begin(&mut self, names: &[&str], lookup_timeout: Duration) -> Config {
        self.begin_with(&[], names, lookup_timeout)
    }

    /// The same with what DNS may give.
    fn begin_with(&mut self, allow: &[DnsAddress], names: &[&str], lookup_timeout: Duration) -> Config {
        let mut config = Config::default();
        config.discovery.allow = allow.to_vec();
        config.upstreams.clear();
        for name in names {
            let instance = format!("{name}:80").parse().expect("an instance");
            config.upstreams.insert((*name).to_owned(), config::Upstream::new(vec![instance]));
        }
        config.runtime.lookup_timeout = lookup_timeout;
        self.begin_config(&config);
        config
    }

    fn begin_config(&mut self, config: &Config) {
        self.begun += 1;
        let (ask, ask_list) = (self.ask.clone(), self.ask_list.clone());
        self.lookups.begin_by(Scripted { by: self.begun, ask, ask_list }, config);
    }

    /// The next question for a list.
    async fn list_question(&mut self) -> ListQuestion {
        tokio::select! {
            question = self.list_questions.recv() => question.expect("somebody asks"),
            news = self.lookups.next() => panic!("{news:?}"),
        }
    }

    /// It is taken.
    fn take(&mut self, config: &Config) {
        self.lookups.adopt();
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
    let all = instances.iter().flatten().map(|Instance { at, .. }| format!("{} {}", at.name, at.address));
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
        scene.take(&config);
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
fn whoever_reloads_again_and_again_waits_no_longer() {
    run(async {
        let mut scene = Scene::new();
        scene.begin(&["silent"], Duration::from_millis(1));
        let config = scene.begin(&["silent", "other"], LONG);
        assert_eq!(scene.news().await, News::Ready);
        assert_eq!(shown(&scene, &config), "");
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
        let questions =
            [scene.question().await, scene.question().await, scene.question().await, scene.question().await];
        let names: Vec<_> = questions.iter().map(|question| (question.by, &*question.name)).collect();
        assert_eq!(names, [(2, "a"), (3, "a"), (3, "b"), (3, "gone")]);
        // A newer configuration asks by itself, and nobody hears what comes of the older one.
        let config = scene.begin(&["a", "b", "gone"], LONG);
        let again = [scene.question().await, scene.question().await, scene.question().await];
        questions.into_iter().skip(1).for_each(|question| question.answer(Some([192, 0, 2, 7])));
        assert!(scene.is_quiet().await);
        for (question, host) in again.into_iter().zip([1, 2, 8]) {
            question.answer(Some([192, 0, 2, host]));
        }
        assert_eq!(scene.news().await, News::Ready);
        assert_eq!(shown(&scene, &config), "a:80 192.0.2.1:80, b:80 192.0.2.2:80, gone:80 192.0.2.8:80");
    });
}

/// A configuration in force with one name that leads to this machine, as it allows.
async fn in_force(scene: &mut Scene) -> Config {
    let config = scene.begin_with(&[DnsAddress::Loopback], &["a"], LONG);
    scene.question().await.answer(Some([127, 0, 0, 5]));
    assert_eq!(scene.news().await, News::Ready);
    scene.take(&config);
    config
}

#[test]
fn what_is_not_taken_yet_does_not_act_and_when_it_is_refused_nothing_is_left_of_it() {
    run(async {
        let mut scene = Scene::new();
        let config = in_force(&mut scene).await;
        // Other rules, and other servers, of which nobody knows whether they will count.
        scene.begin_with(&[], &["a", "b"], LONG);
        let [a, b] = [scene.question().await, scene.question().await];
        assert_eq!([(a.by, &*a.name), (b.by, &*b.name)], [(2, "a"), (2, "b")]);
        a.answer(Some([192, 0, 2, 66]));
        assert!(scene.is_quiet().await, "nothing has changed");
        assert!(scene.lookups.instances(&config, &[], 1).is_none());
        assert!(scene.lookups.unresolved(&config).is_empty());
        scene.lookups.give_up();
        b.answer(Some([192, 0, 2, 67]));
        assert!(scene.is_quiet().await);
        assert!(scene.lookups.instances(&config, &[], 1).is_none());
        assert_eq!(shown(&scene, &config), "a:80 127.0.0.5:80");
        assert_eq!(scene.lookups.counters().len(), 2, "the name and the others");
    });
}

#[test]
fn what_is_taken_acts_in_the_plan_and_in_what_shards_are_said_to_have() {
    run(async {
        let mut scene = Scene::new();
        in_force(&mut scene).await;
        // What was allowed is not any more, and nobody answers in time.
        let config = scene.begin_with(&[], &["a"], LONG);
        assert_eq!(scene.news().await, News::Ready, "no name is new");
        let plan = gateway::instances(&config, &scene.lookups.addresses(&config));
        assert!(plan[0].is_empty());
        scene.take(&config);
        assert_eq!(scene.lookups.current(), plan);
        assert!(scene.lookups.instances(&config, &[], 2).is_none(), "shards have what is known");
        // From then on its own resolver is asked.
        let a = scene.question().await;
        assert_eq!((a.by, &*a.name), (2, "a"));
        a.answer(Some([192, 0, 2, 1]));
        assert_eq!(scene.news().await, News::Changed);
    });
}

#[test]
fn failures_are_counted_on_when_a_configuration_is_taken() {
    run(async {
        let mut scene = Scene::new();
        let config = scene.begin(&["a"], LONG);
        scene.question().await.answer(None);
        assert_eq!(scene.news().await, News::Ready);
        scene.take(&config);
        let config = scene.begin(&["a", "b"], LONG);
        // Names that fail are behind the others.
        let [b, a] = [scene.question().await, scene.question().await];
        assert_eq!([&*b.name, &*a.name], ["b", "a"]);
        b.answer(None);
        assert_eq!(scene.news().await, News::Ready);
        scene.take(&config);
        drop(a);
        let counters = scene.lookups.counters();
        let failures: Vec<_> = counters.iter().map(|(name, of)| (name.as_str(), of.failures)).collect();
        assert_eq!(failures, [("a", 1), ("b", 1), (OTHERS, 0)]);
    });
}

/// A configuration in force with one upstream whose instances a file lists, at this address.
async fn listed(scene: &mut Scene) -> Config {
    let mut config = Config::default();
    config.upstreams.clear();
    let mut upstream = config::Upstream::new(Vec::new());
    upstream.discover.file = Some("shop.toml".into());
    config.upstreams.insert("shop".to_owned(), upstream);
    scene.begin_config(&config);
    let question = scene.list_question().await;
    assert_eq!(question.source.to_string(), "file:shop.toml");
    question.answer(&["10.0.0.1:80"]);
    assert_eq!(scene.news().await, News::Ready);
    scene.take(&config);
    assert_eq!(shown(scene, &config), "10.0.0.1:80 10.0.0.1:80");
    config
}

#[test]
fn a_new_list_serves_when_its_names_are_known() {
    run(async {
        let mut scene = Scene::new();
        let config = listed(&mut scene).await;
        scene.list_question().await.answer(&["10.0.0.2:80", "new.test:81"]);
        let name = scene.question().await;
        assert_eq!(name.name, "new.test");
        assert!(scene.is_quiet().await, "the old list serves");
        assert_eq!(shown(&scene, &config), "10.0.0.1:80 10.0.0.1:80");
        name.answer(Some([192, 0, 2, 1]));
        assert_eq!(scene.news().await, News::Changed);
        assert!(scene.lookups.instances(&config, &[], 7).is_some());
        assert_eq!(shown(&scene, &config), "10.0.0.2:80 10.0.0.2:80, new.test:81 192.0.2.1:81");
        // What nobody lists any more is not asked for.
        scene.list_question().await.answer(&["10.0.0.2:80"]);
        assert_eq!(scene.news().await, News::Changed);
        let counters = scene.lookups.counters();
        assert_eq!(counters.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["file:shop.toml", OTHERS]);
    });
}

#[test]
fn a_list_that_becomes_another_again_and_again_does_not_wait_for_ever() {
    run(async {
        let mut scene = Scene::new();
        let config = listed(&mut scene).await;
        scene.list_question().await.answer(&["10.0.0.2:80", "silent.test:81"]);
        let _silent = scene.question().await;
        let since = clock::now();
        scene.list_question().await.answer(&["10.0.0.3:80", "silent.test:81"]);
        // It is taken while the next question is waited for.
        let _next = scene.list_question().await;
        assert_eq!(shown(&scene, &config), "10.0.0.1:80 10.0.0.1:80");
        scene.lookups.in_force.serve(since + LISTED_NAMES_WAIT);
        assert_eq!(shown(&scene, &config), "10.0.0.3:80 10.0.0.3:80");
    });
}

#[test]
fn a_list_that_fails_is_kept_and_said() {
    run(async {
        let mut scene = Scene::new();
        let config = listed(&mut scene).await;
        for failures in 1..=2 {
            scene.list_question().await.answer(&[]);
            // The answer is taken while the next question is waited for.
            let next = scene.list_question().await;
            assert_eq!(scene.lookups.unresolved(&config).len(), usize::from(failures > 1));
            let counters = scene.lookups.counters();
            assert_eq!((counters[0].1.addresses, counters[0].1.failures), (1, failures * 2 - 1));
            next.answer(&[]);
        }
        assert_eq!(shown(&scene, &config), "10.0.0.1:80 10.0.0.1:80");
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
