//! What is followed of names, by a clock that the test turns.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const SETTINGS: DiscoverySettings = DiscoverySettings {
    interval_min: Duration::from_secs(1),
    interval_max: Duration::from_mins(5),
    shrink_percent_max: 50,
    takes_loopback: false,
    takes_link_local: false,
};

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<Box<str>> {
    names.into_iter().map(Box::from).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "beside `no`, as a resolver answers")]
fn answer(addresses: &str, ttl_s: u64) -> Result<NameAnswer, NoAddress> {
    let addresses = addresses.split_whitespace().map(|text| text.parse().expect("an address")).collect();
    let time_to_live = Duration::from_secs(ttl_s);
    Ok(NameAnswer { addresses, time_to_live, untold: None, is_own: false, found_as: "a.test".into() })
}

fn no() -> Result<NameAnswer, NoAddress> {
    Err(NoAddress::Unknown("no such name".to_owned()))
}

/// One name that is followed, and a clock that the test turns.
struct One {
    discovery: Discovery,
    now: Instant,
    /// What the last answer came to.
    heard: Heard,
}

impl One {
    fn new() -> Self {
        let mut discovery = Discovery::new(SETTINGS);
        discovery.follow(&names(["a"]), Instant::START);
        Self { discovery, now: Instant::START, heard: Heard::Same }
    }

    /// Lets the time pass until it is asked for, answers, and says how long that took in seconds.
    fn answer(&mut self, answer: Result<NameAnswer, NoAddress>) -> f64 {
        let began = self.now;
        loop {
            self.now = self.now.max(self.due());
            let due = self.discovery.take_due(self.now);
            if !due.is_empty() {
                assert_eq!(due, [Box::<str>::from("a")]);
                break;
            }
            assert!(self.change(), "only a change is due beside it");
        }
        assert!(self.discovery.take_due(self.now).is_empty(), "it is asked for already");
        self.heard = self.discovery.answered("a", answer, self.now);
        self.now.since(began).as_secs_f64()
    }

    /// When there is something to do.
    fn due(&self) -> Instant {
        self.discovery.asks_at().min(self.discovery.changes_at())
    }

    fn addresses(&self) -> String {
        let known = self.discovery.known("a").expect("it is followed");
        known.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Takes a change if there is one.
    fn change(&mut self) -> bool {
        self.discovery.take_changed(self.now)
    }
}

#[test]
fn an_answer_serves_as_long_as_it_says_within_bounds() {
    let mut one = One::new();
    for (ttl_s, waited_s) in [(0, 1.0), (1, 1.0), (30, 30.0), (86_400, 300.0)] {
        one.answer(answer("192.0.2.1", ttl_s));
        one.change();
        assert_eq!(one.answer(answer("192.0.2.1", ttl_s)).to_bits(), f64::to_bits(waited_s), "{ttl_s}");
    }
}

#[test]
fn what_fails_keeps_what_was_known_and_is_asked_again_ever_more_rarely() {
    let mut one = One::new();
    one.answer(answer("192.0.2.1 192.0.2.2", 5));
    assert!(one.change());
    let waits = [no(), answer("", 60), no(), no(), no(), no(), no()].map(|answer| one.answer(answer));
    assert_eq!(waits.map(f64::to_bits), [5.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0].map(f64::to_bits));
    assert_eq!(one.addresses(), "192.0.2.1 192.0.2.2");
    assert!(!one.change());
    let known = one.discovery.known("a").expect("it is followed");
    assert_eq!((known.failures, known.failures_total, known.since), (7, 7, Instant::START));
    one.answer(answer("192.0.2.1 192.0.2.2", 5));
    assert!(!one.change(), "nothing is another");
    assert_eq!(one.discovery.known("a").map(|known| (known.failures, known.error.clone())), Some((0, None)));
    assert_eq!(one.discovery.known("a").map(|known| known.failures_total), Some(7));
}

#[test]
fn the_order_of_an_answer_and_doubles_in_it_do_not_matter() {
    let mut one = One::new();
    one.answer(answer("192.0.2.2 2001:db8::1 192.0.2.1 192.0.2.2", 1));
    assert!(one.change());
    assert_eq!(one.addresses(), "192.0.2.1 192.0.2.2 2001:db8::1");
    one.answer(answer("2001:db8::1 192.0.2.1 192.0.2.2", 1));
    assert!(!one.change());
}

#[test]
fn when_more_than_half_is_gone_the_next_answer_decides() {
    let four = "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4";
    let mut one = One::new();
    one.answer(answer(four, 60));
    one.answer(answer("192.0.2.1 192.0.2.2", 60));
    assert_eq!(one.addresses(), "192.0.2.1 192.0.2.2", "half may go at once");
    one.answer(answer(four, 60));
    one.answer(answer("192.0.2.1", 60));
    assert_eq!(one.addresses(), four);
    assert_eq!(one.heard, Heard::Doubted);
    assert_eq!(one.answer(answer(four, 60)).to_bits(), f64::to_bits(1.0), "the second look comes soon");
    assert_eq!(one.addresses(), four);
    one.answer(answer("192.0.2.9", 60));
    assert_eq!(one.addresses(), four, "others in their place are gone, too");
    one.answer(answer("192.0.2.8", 60));
    assert_eq!(one.addresses(), "192.0.2.8");
}

#[test]
fn changes_are_told_once_and_once_a_second_at_most() {
    let mut one = One::new();
    one.answer(answer("192.0.2.1", 0));
    assert!(one.change());
    assert!(!one.change());
    one.discovery.follow(&names(["a", "b"]), one.now);
    assert_eq!(one.discovery.take_due(one.now), [Box::<str>::from("b")]);
    one.discovery.answered("b", answer("192.0.2.7", 60), one.now);
    assert!(!one.change(), "it is less than a second");
    assert_eq!(one.due(), one.now + CHANGE_INTERVAL);
    one.now += CHANGE_INTERVAL;
    assert!(one.change());
}

#[test]
fn names_that_stay_keep_what_is_known_and_others_are_forgotten() {
    let mut one = One::new();
    one.answer(answer("192.0.2.1", 60));
    one.discovery.follow(&names(["a", "b"]), one.now);
    assert_eq!(one.addresses(), "192.0.2.1");
    assert_eq!(one.discovery.take_due(one.now), [Box::<str>::from("b")]);
    one.discovery.follow(&names(["a"]), one.now);
    one.discovery.answered("b", answer("192.0.2.7", 60), one.now);
    assert!(one.discovery.known("b").is_none());
    one.discovery.follow(&names(["b"]), one.now);
    assert!(one.discovery.known("b").is_some_and(|known| !known.is_heard()));
}

#[test]
fn so_many_are_asked_for_at_once() {
    let mut discovery = Discovery::new(SETTINGS);
    let all: BTreeSet<Box<str>> = (0..=AT_ONCE_MAX).map(|index| format!("n{index:03}").into()).collect();
    discovery.follow(&all, Instant::START);
    assert_eq!(discovery.take_due(Instant::START).len(), AT_ONCE_MAX);
    assert_eq!(discovery.asks_at(), Instant::NEVER, "a place has to become free");
    discovery.answered("n000", no(), Instant::START);
    assert_eq!(discovery.asks_at(), Instant::START);
    assert_eq!(discovery.take_due(Instant::START), [Box::<str>::from(format!("n{AT_ONCE_MAX:03}"))]);
}

#[test]
fn a_name_without_an_address_is_asked_for_more_often() {
    let mut one = One::new();
    let waits = [(); 6].map(|()| one.answer(no()));
    assert_eq!(waits.map(f64::to_bits), [0.0, 1.0, 2.0, 4.0, 5.0, 5.0].map(f64::to_bits));
}

#[test]
fn who_is_late_has_said_nothing() {
    let mut one = One::new();
    let mut is_heard = |answer| {
        one.answer(answer);
        one.discovery.known("a").expect("it is followed").is_heard()
    };
    assert!(!is_heard(Err(NoAddress::Late(Duration::from_secs(9)))));
    assert!(is_heard(no()));
    assert!(is_heard(answer("192.0.2.1", 1)));
    assert!(is_heard(Err(NoAddress::Late(Duration::from_secs(9)))), "it was told before");
}

#[test]
fn what_dns_may_not_say_is_left_out_unless_it_may() {
    let refused = "0.0.0.0 127.0.0.1 169.254.169.254 224.0.0.1 255.255.255.255 :: ::1 fe80::1 ff02::1 \
                   ::ffff:127.0.0.2 ::ffff:169.254.0.1";
    let mut one = One::new();
    one.answer(answer(refused, 60));
    assert_eq!(one.heard, Heard::Failed);
    let known = |one: &One| one.discovery.known("a").expect("it is followed").clone();
    assert_eq!(known(&one).error, Some(NoAddress::Refused(Ipv4Addr::UNSPECIFIED.into())));
    one.answer(answer(&format!("10.0.0.1 {refused}"), 60));
    assert_eq!((one.addresses().as_str(), known(&one).refused.len()), ("10.0.0.1", 11));
    one.answer(answer(refused, 60));
    assert_eq!((one.heard.clone(), one.addresses().as_str()), (Heard::Failed, "10.0.0.1"), "what was good stays");
    for (takes_loopback, takes_link_local, taken) in [
        (true, false, "10.0.0.1 127.0.0.1 ::1 ::ffff:127.0.0.2"),
        (false, true, "10.0.0.1 169.254.169.254 ::ffff:169.254.0.1 fe80::1"),
    ] {
        let settings = DiscoverySettings { takes_loopback, takes_link_local, ..SETTINGS };
        one.change();
        one.discovery = one.discovery.fork(settings, one.now);
        assert!(one.due() <= one.now, "other rules, another look");
        for _ in 0..2 {
            one.answer(answer(&format!("10.0.0.1 {refused}"), 60));
        }
        assert_eq!(one.addresses(), taken);
    }
    // What may not be taken any more goes at once, whatever DNS says then.
    let settings = DiscoverySettings { takes_loopback: true, ..SETTINGS };
    one.discovery = one.discovery.fork(settings, one.now);
    for _ in 0..2 {
        one.answer(answer("127.0.0.1", 60));
    }
    assert_eq!(one.addresses(), "127.0.0.1");
    one.now += CHANGE_INTERVAL;
    one.change();
    let allowed = std::mem::replace(&mut one.discovery, Discovery::new(SETTINGS));
    one.discovery = allowed.fork(SETTINGS, one.now);
    assert_eq!(allowed.known("a").map(|known| known.addresses.len()), Some(1), "that is another's");
    assert_eq!(one.addresses(), "");
    assert_eq!(known(&one).error, Some(NoAddress::Refused(Ipv4Addr::LOCALHOST.into())));
    let own = answer("127.0.0.1", 60).map(|answer| NameAnswer { is_own: true, ..answer });
    one.answer(own.clone());
    one.answer(own);
    assert_eq!(one.addresses(), "127.0.0.1", "the operator may name any");
}

#[test]
fn a_family_of_which_nothing_is_known_now_stays() {
    let mut one = One::new();
    one.answer(answer("192.0.2.1 192.0.2.2 2001:db8::1", 1));
    let without = |addresses, family| answer(addresses, 1).map(|answer| NameAnswer { untold: Some(family), ..answer });
    one.answer(without("2001:db8::2", Family::V4));
    assert_eq!(one.addresses(), "192.0.2.1 192.0.2.2 2001:db8::2");
    one.answer(without("192.0.2.2", Family::V6));
    assert_eq!(one.addresses(), "192.0.2.2 2001:db8::2");
    let [added, gone] = [vec![], vec!["192.0.2.1".parse().expect("an address")]];
    assert_eq!(one.heard, Heard::Changed { added, gone });
}

#[test]
fn a_family_that_is_never_told_does_not_stay_for_ever() {
    let mut one = One::new();
    one.answer(answer("192.0.2.1 2001:db8::1 2001:db8::2", 60));
    let without_v6 = || answer("192.0.2.1", 60).map(|answer| NameAnswer { untold: Some(Family::V6), ..answer });
    let mut minutes = 0;
    while one.addresses() != "192.0.2.1" {
        one.answer(without_v6());
        one.change();
        minutes += 1;
        assert!(minutes < 20, "{}", one.addresses());
    }
    // As long as an answer may serve, and a second look, as it is more than half.
    assert_eq!(minutes, 7);
    one.answer(answer("192.0.2.1 2001:db8::1", 60));
    one.answer(without_v6());
    assert_eq!(one.addresses(), "192.0.2.1 2001:db8::1", "it was told again");
}

#[test]
fn what_is_asked_while_the_answer_may_change_is_asked_again() {
    let mut one = One::new();
    assert_eq!(one.discovery.take_due(one.now), [Box::<str>::from("a")]);
    one.discovery.ask_all(one.now);
    assert!(one.discovery.take_due(one.now).is_empty(), "not twice at once");
    one.discovery.answered("a", answer("192.0.2.1", 60), one.now);
    one.change();
    assert_eq!(one.due(), one.now);
    one.answer(answer("192.0.2.1", 60));
    one.change();
    assert_eq!(one.due(), one.now + Duration::from_mins(1));
}

#[test]
fn so_many_addresses_are_taken_and_the_rest_is_counted() {
    let all: Vec<_> = (0..ADDRESSES_MAX + 9).rev().map(|host| format!("10.0.{}.{}", host / 256, host % 256)).collect();
    let mut one = One::new();
    one.answer(answer(&all.join(" "), 60));
    let known = one.discovery.known("a").expect("it is followed");
    assert_eq!((known.addresses.len(), known.left_out), (ADDRESSES_MAX, 9));
    assert_eq!(known.addresses[0].to_string(), "10.0.0.0");
}

proptest! {
    /// Whatever DNS says: a name that had an address keeps one, never has more than may be, and is asked for again
    /// neither at once nor later than the bounds say.
    #[test]
    fn a_name_never_empties_and_is_always_asked_again(
        answers in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..6), any::<u32>(), any::<bool>()), 1..60)
    ) {
        let mut one = One::new();
        one.answer(answer("192.0.2.1", 60));
        for (hosts, ttl_s, is_good) in answers {
            let addresses = hosts.iter().map(|host| IpAddr::from([192, 0, 2, *host])).collect();
            let time_to_live = Duration::from_secs(ttl_s.into());
            let good = NameAnswer { addresses, time_to_live, untold: None, is_own: false, found_as: "a".into() };
            one.answer(if is_good { Ok(good) } else { no() });
            let count = one.discovery.known("a").expect("it is followed").addresses.len();
            prop_assert!((1..=ADDRESSES_MAX).contains(&count));
            let wait = one.due().since(one.now);
            prop_assert!((SETTINGS.interval_min..=SETTINGS.interval_max).contains(&wait) || one.discovery.has_changed);
            one.change();
        }
    }
}

#[test]
fn whoever_has_waited_longest_is_asked_for_first() {
    let all: BTreeSet<Box<str>> = (0..=AT_ONCE_MAX).map(|number| format!("a{number:03}").into()).collect();
    let mut discovery = Discovery::new(SETTINGS);
    discovery.follow(&all, Instant::START);
    let first = discovery.take_due(Instant::START);
    assert_eq!(first.len(), AT_ONCE_MAX);
    for name in &first {
        discovery.answered(name, answer("192.0.2.1", 1), Instant::START);
    }
    let last = all.last().expect("there are some");
    assert!(!first.contains(last) && discovery.take_due(Instant::START + Duration::from_secs(5)).contains(last));
}

#[test]
fn names_whose_servers_are_silent_do_not_hold_up_the_others() {
    let mut all: BTreeSet<Box<str>> = (0..200).map(|number| format!("silent{number:03}").into()).collect();
    all.insert("well".into());
    let mut discovery = Discovery::new(SETTINGS);
    discovery.follow(&all, Instant::START);
    let mut asked = BTreeSet::new();
    while asked.len() < all.len() {
        for name in discovery.take_due(Instant::START) {
            let late = Err(NoAddress::Late(Duration::from_secs(3)));
            discovery.answered(&name, if &*name == "well" { answer("192.0.2.1", 5) } else { late }, Instant::START);
            asked.insert(name);
        }
    }
    // The others have been due for longer, and are more than there are places.
    let due = discovery.take_due(Instant::START + Duration::from_secs(9));
    assert_eq!((due.len(), due.first()), (1 + FAILING_AT_ONCE_MAX, Some(&"well".into())));
    assert_eq!(discovery.asks_at(), Instant::NEVER, "places have to become free");
}
