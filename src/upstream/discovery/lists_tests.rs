//! What is followed of lists, by a clock that the test turns.

use proptest::prelude::*;

use super::*;

const SETTINGS: DiscoverySettings = DiscoverySettings {
    interval_min: Duration::from_secs(1),
    interval_max: Duration::from_mins(5),
    shrink_percent_max: 50,
    takes_loopback: false,
    takes_link_local: false,
};

fn instances(list: &str) -> Vec<Instance> {
    list.split_whitespace().map(|text| text.parse().expect("an instance")).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "as a source answers")]
fn says(list: &str) -> ListResult {
    Ok(ListAnswer::Listed(Listed {
        instances: instances(list),
        time_to_live: Duration::from_mins(1),
        ..Listed::default()
    }))
}

fn no() -> ListResult {
    Err("it is away".to_owned())
}

fn file() -> Source {
    Source::File(Path::new("shop.toml").into())
}

fn registry() -> Source {
    Source::Registry("shop".into())
}

fn srv() -> Source {
    Source::Srv("_http._tcp.shop".into())
}

/// One source that is followed, and a clock that the test turns.
struct One {
    source: Source,
    lists: Lists,
    now: Instant,
    heard: HeardList,
}

impl One {
    fn new(source: Source) -> Self {
        let mut lists = Lists::new(SETTINGS);
        lists.follow(&[source.clone()].into(), Instant::START);
        Self { source, lists, now: Instant::START, heard: HeardList::Same }
    }

    /// Lets the time pass until it is asked, answers, and says how long that took in milliseconds.
    fn answer(&mut self, answer: ListResult) -> u128 {
        let began = self.now;
        self.now = self.now.max(self.lists.asks_at());
        assert_eq!(self.lists.take_due(self.now), std::slice::from_ref(&self.source));
        assert!(self.lists.take_due(self.now).is_empty(), "it is asked already");
        self.heard = self.lists.answered(&self.source, answer, self.now);
        self.now.since(began).as_millis()
    }

    fn known(&self) -> &KnownList {
        self.lists.known(&self.source).expect("it is followed")
    }

    fn shown(&self) -> String {
        self.known().instances.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn files_and_registries_are_asked_each_second_and_srv_as_it_says() {
    for (source, wait) in [(file(), 1000), (registry(), 1000), (srv(), 60_000)] {
        let mut one = One::new(source);
        one.answer(says("10.0.0.1:80"));
        assert_eq!(one.answer(says("10.0.0.1:80")), wait);
        assert_eq!(one.heard, HeardList::Same);
    }
    let mut one = One::new(file());
    one.answer(no());
    assert_eq!([1000; 3], [(); 3].map(|()| one.answer(no())));
    let mut one = One::new(srv());
    one.answer(says("10.0.0.1:80"));
    assert_eq!([60_000, 1000, 2000, 4000], [(); 4].map(|()| one.answer(no())));
}

#[test]
fn what_fails_or_is_empty_keeps_what_was_known() {
    for source in [file(), registry(), srv()] {
        let mut one = One::new(source);
        one.answer(says("10.0.0.2:80 10.0.0.1:80"));
        let [added, gone] = [vec!["10.0.0.1:80", "10.0.0.2:80"], vec![]];
        let parsed = |list: Vec<&str>| list.iter().map(|text| text.parse().expect("an address")).collect();
        assert_eq!(one.heard, HeardList::Changed { added: parsed(added), gone: parsed(gone) });
        let since = one.known().since;
        for answer in [no(), says("")] {
            one.answer(answer);
            assert_eq!((one.heard.clone(), one.shown().as_str()), (HeardList::Failed, "10.0.0.1:80 10.0.0.2:80"));
        }
        let known = one.known();
        assert_eq!((known.failures, known.failures_total, known.since), (2, 2, since));
        assert!(known.is_failing() && known.error.is_some());
        one.answer(Ok(ListAnswer::Settling));
        assert!(one.known().is_failing() && one.known().error.is_some(), "nothing is known of it yet");
        one.answer(Ok(ListAnswer::Unchanged));
        assert!(!one.known().is_failing() && one.known().since > since);
        assert_eq!((one.heard.clone(), one.known().failures_total), (HeardList::Same, 2));
    }
}

#[test]
fn more_than_half_is_looked_at_twice_but_for_files() {
    let four = "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 10.0.0.4:80";
    for source in [registry(), srv()] {
        let mut one = One::new(source);
        one.answer(says(four));
        one.answer(says("10.0.0.1:80"));
        assert_eq!((one.heard.clone(), one.shown().as_str()), (HeardList::Doubted, four));
        assert!(one.answer(says("10.0.0.1:80")) <= 1000, "the second look comes soon");
        assert_eq!(one.shown(), "10.0.0.1:80");
        one.answer(says("10.0.0.1:81"));
        assert_eq!(one.heard, HeardList::Doubted, "another port is another instance");
    }
    let mut one = One::new(file());
    one.answer(says(four));
    one.answer(says("10.0.0.9:80"));
    assert_eq!(one.shown(), "10.0.0.9:80");
}

#[test]
fn after_a_registry_was_away_services_have_the_time_to_come_back() {
    let mut one = One::new(registry());
    one.answer(says("10.0.0.1:80 10.0.0.2:80 10.0.0.3:80"));
    one.answer(no());
    one.answer(says("10.0.0.2:80"));
    assert_eq!((one.heard.clone(), one.known().failures), (HeardList::Same, 0));
    let back = one.now;
    while one.shown().contains(".1:80") {
        one.answer(says("10.0.0.2:80 10.0.0.4:80"));
        assert!(one.shown().contains("10.0.0.4:80"), "who is new is used at once");
    }
    assert_eq!(one.now.since(back), RENEWAL_GRACE, "half may be gone at once");
    assert_eq!(one.shown(), "10.0.0.2:80 10.0.0.4:80");
    // What is said anew of somebody counts meanwhile.
    one.answer(no());
    let mut listed = instances("10.0.0.2:80");
    listed[0].weight = 7;
    one.answer(Ok(ListAnswer::Listed(Listed { instances: listed, ..Listed::default() })));
    let weights: Vec<_> = one.known().instances.iter().map(|instance| instance.weight).collect();
    assert_eq!(weights, [7, 1]);
}

#[test]
fn another_weight_is_a_change_of_nobody() {
    let mut one = One::new(file());
    one.answer(says("10.0.0.1:80"));
    let mut listed = instances("10.0.0.1:80");
    listed[0].weight = 7;
    one.answer(Ok(ListAnswer::Listed(Listed { instances: listed, ..Listed::default() })));
    assert_eq!(one.heard, HeardList::Changed { added: vec![], gone: vec![] });
    let mut listed = instances("10.0.0.1:80");
    listed[0].weight = 0;
    one.answer(Ok(ListAnswer::Listed(Listed { instances: listed, ..Listed::default() })));
    assert_eq!((one.heard.clone(), one.known().instances[0].weight), (HeardList::Failed, 7), "somebody gets requests");
}

#[test]
fn outsiders_lead_nowhere_that_is_not_allowed() {
    let refused = "127.0.0.1:80 169.254.169.254:80 100.100.100.200:80 [64:ff9b::7f00:1]:80 [::1]:80 unix:/run/x";
    for source in [registry(), srv()] {
        let mut one = One::new(source);
        one.answer(says(refused));
        assert_eq!((one.heard.clone(), one.shown().as_str()), (HeardList::Failed, ""));
        let error = one.known().error.clone().expect("it failed");
        assert!(error.contains("127.0.0.1:80 is not taken from outside"), "{error}");
        one.answer(says(&format!("{refused} 10.0.0.1:80 a.test:80")));
        assert_eq!((one.shown().as_str(), one.known().left_out.count), ("10.0.0.1:80 a.test:80", 6));
        let allowed = one.lists.fork(DiscoverySettings { takes_loopback: true, ..SETTINGS }, one.now);
        let origin = std::mem::replace(&mut one.lists, allowed);
        assert_eq!(one.answer(says(refused)), 0, "it is asked at once");
        one.answer(says(refused));
        assert_eq!(one.shown(), "127.0.0.1:80 [64:ff9b::7f00:1]:80 [::1]:80");
        // And what is not allowed any more is gone at once.
        one.lists = one.lists.fork(SETTINGS, one.now);
        assert_eq!(one.shown(), "");
        assert_eq!(origin.known(&one.source).map(|known| known.instances.len()), Some(2), "that is another's");
    }
    let mut one = One::new(file());
    one.answer(says(refused));
    assert_eq!(one.known().instances.len(), 6, "the operator may name any");
}

#[test]
fn too_many_are_refused() {
    let many = |count: usize| (0..count).map(|port| format!("10.0.0.1:{}", port + 1)).collect::<Vec<_>>().join(" ");
    let mut one = One::new(registry());
    one.answer(says(&many(INSTANCES_MAX)));
    assert_eq!(one.known().instances.len(), INSTANCES_MAX);
    one.answer(says(&many(INSTANCES_MAX + 1)));
    assert_eq!(one.heard, HeardList::Failed);
    assert_eq!(one.known().instances.len(), INSTANCES_MAX);
}

proptest! {
    /// Whatever a source says: a list that had instances keeps some, has each address once and not too many, and is asked
    /// again within its bounds.
    #[test]
    fn a_list_never_empties_and_is_always_asked_again(
        kind in 0_u8..3,
        answers in prop::collection::vec((prop::collection::vec((any::<u8>(), 1_u16..4), 0..8), any::<bool>()), 1..60)
    ) {
        let mut one = One::new([file(), registry(), srv()][usize::from(kind)].clone());
        one.answer(says("10.0.0.1:80"));
        for (hosts, is_good) in answers {
            let list: Vec<_> = hosts.iter().map(|(host, port)| format!("10.0.0.{host}:{port}")).collect();
            let waited = one.answer(if is_good { says(&list.join(" ")) } else { no() });
            prop_assert!((1000..=60_000).contains(&waited), "{}", waited);
            let known = one.known();
            prop_assert!((1..=INSTANCES_MAX).contains(&known.instances.len()));
            prop_assert!(known.instances.windows(2).all(|pair| pair[0].address < pair[1].address));
        }
    }
}
