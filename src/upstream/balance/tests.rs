//! Who gets how much, as others come, go and are slow.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::START;
const IDLE: Load = Load { in_flight: 0, latency_us: 0 };
const USABLE: Standing = Standing::Usable { since: None };
const EQUAL: Share = Share { weight: 1, tier: 0 };

fn rules(policy: Balance) -> Rules {
    Rules { policy, panic_percent: 0, slow_start: Duration::ZERO }
}

fn balancer(rules: Rules, standings: &[Standing]) -> Balancer {
    shared(rules, &standings.iter().map(|standing| (EQUAL, *standing)).collect::<Vec<_>>())
}

/// Backends that have these shares and stand so.
fn shared(rules: Rules, backends: &[(Share, Standing)]) -> Balancer {
    let shares = backends.iter().map(|(share, _)| *share);
    let names: Vec<_> = shares.enumerate().map(|(at, share)| (format!("instance-{at}"), share)).collect();
    let mut balancer = Balancer::new(rules, 7);
    balancer.set(rules, backends.iter().copied(), Some(Arc::new(Table::new(&names))));
    balancer
}

/// One of so many stands otherwise.
fn change(balancer: &mut Balancer, at: usize, standing: Standing) {
    let mut standings: Vec<_> = balancer.backends.iter().map(|(_, standing)| *standing).collect();
    standings[at] = standing;
    balancer.stand(standings.into_iter());
}

fn choose(balancer: &mut Balancer, key: u64, under_way: u32, load: impl Fn(usize) -> Load) -> usize {
    balancer.choose(NOW, Some(key), under_way, load, |_| true).expect("one is ready")
}

/// How many of so many requests each gets.
fn shares(balancer: &mut Balancer, now: Instant, requests: usize, load: impl Fn(usize) -> Load) -> Vec<usize> {
    let mut taken = vec![0; balancer.backends.len()];
    for _ in 0..requests {
        taken[balancer.choose(now, None, 1, &load, |_| true).expect("one is ready")] += 1;
    }
    taken
}

/// So many requests that stay under way.
fn assigned(balancer: &mut Balancer, now: Instant, requests: usize) -> Vec<u32> {
    let mut in_flight = vec![0; balancer.backends.len()];
    for under_way in 1..=u32::try_from(requests).expect("few") {
        let load = |at: usize| Load { in_flight: in_flight[at], latency_us: 0 };
        let at = balancer.choose(now, None, under_way, load, |_| true).expect("one is ready");
        in_flight[at] += 1;
    }
    in_flight
}

#[test]
fn of_two_the_one_with_less_to_do_is_taken() {
    let load = |at| Load { in_flight: [5, 4][at], latency_us: 0 };
    for policy in [Balance::LeastLatency, Balance::LeastRequests] {
        assert_eq!(shares(&mut balancer(rules(policy), &[USABLE; 2]), NOW, 100, load), [0, 100]);
    }
    let slow = |at| Load { in_flight: [5, 4][at], latency_us: [1000, 1500][at] };
    assert_eq!(shares(&mut balancer(rules(Balance::LeastLatency), &[USABLE; 2]), NOW, 100, slow), [100, 0]);
    assert_eq!(shares(&mut balancer(rules(Balance::LeastRequests), &[USABLE; 2]), NOW, 100, slow), [0, 100]);
}

#[test]
fn equals_share_evenly() {
    for policy in [Balance::LeastLatency, Balance::LeastRequests, Balance::RoundRobin, Balance::ConsistentHash] {
        let even = shares(&mut balancer(rules(policy), &[USABLE; 4]), NOW, 4000, |_| IDLE);
        assert!(even.iter().all(|count| (850..1150).contains(count)), "{policy:?}: {even:?}");
    }
    let two_choices = assigned(&mut balancer(rules(Balance::LeastLatency), &[USABLE; 10]), NOW, 1000);
    assert!(two_choices.iter().all(|count| (97..=103).contains(count)), "{two_choices:?}");
}

#[test]
fn who_is_ten_times_slower_gets_next_to_nothing_and_noise_counts_for_nothing() {
    let shares = |load: &dyn Fn(usize) -> Load| {
        shares(&mut balancer(rules(Balance::LeastLatency), &[USABLE; 3]), NOW, 3000, load)
    };
    let slow = |at| Load { in_flight: 1, latency_us: [10_000, 10_000, 100_000][at] };
    assert_eq!(shares(&slow)[2], 0);
    let noisy = |at| Load { in_flight: 1, latency_us: [10_000, 12_000, 14_000][at] };
    let quick = |at| Load { in_flight: 1, latency_us: [100, 400, 900][at] };
    let unknown = |at| Load { in_flight: 3, latency_us: [0, 10_000, 10_000][at] };
    for taken in [shares(&noisy), shares(&quick), shares(&unknown)] {
        assert!(taken.iter().all(|count| (850..1150).contains(count)), "{taken:?}");
    }
}

#[test]
fn turns_are_taken_in_order_and_not_the_same_first_on_every_shard() {
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let rules = rules(Balance::RoundRobin);
        let mut balancer = Balancer::new(rules, seed);
        balancer.set(rules, [(EQUAL, USABLE); 3].into_iter(), None);
        let order: Vec<_> = (0..6).filter_map(|_| balancer.choose(NOW, None, 1, |_| IDLE, |_| true)).collect();
        assert!(order.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{order:?}");
        firsts.insert(order[0]);
    }
    assert_eq!(firsts.len(), 3);
}

#[test]
fn who_comes_gets_its_share_slowly() {
    let came = NOW + Duration::from_hours(1);
    for policy in [Balance::LeastLatency, Balance::LeastRequests, Balance::RoundRobin] {
        let rules = Rules { slow_start: Duration::from_secs(10), ..rules(policy) };
        for count in [2, 3] {
            let mut standings = vec![USABLE; count];
            standings[0] = Standing::Usable { since: Some(came) };
            let mut balancer = balancer(rules, &standings);
            // It has nothing to do yet, and the others have: two choices must not fill it all the same.
            let busy = |at| Load { in_flight: if at == 0 { 0 } else { 10 }, latency_us: 0 };
            let mut share_at = |seconds: u64| {
                shares(&mut balancer, came + Duration::from_secs(seconds), 3000, busy)[0] * count * 100 / 3000
            };
            let (first, half, whole) = (share_at(0), share_at(5), share_at(10));
            assert!((5..50).contains(&first), "{policy:?} of {count}: {first} % of its share");
            assert!((first..180).contains(&half), "{policy:?} of {count}: {half} % of its share");
            assert!((90..=300).contains(&whole), "{policy:?} of {count}: {whole} % of its share");
        }
    }
}

#[test]
fn one_alone_is_taken_however_slowly_it_comes() {
    let rules = Rules { slow_start: Duration::from_secs(10), ..rules(Balance::LeastLatency) };
    let comes = Standing::Usable { since: Some(NOW) };
    assert_eq!(shares(&mut balancer(rules, &[comes]), NOW, 10, |_| IDLE), [10]);
    assert_eq!(shares(&mut balancer(rules, &[comes; 2]), NOW, 10, |_| IDLE).iter().sum::<usize>(), 10);
    let rules = Rules { policy: Balance::RoundRobin, ..rules };
    assert_eq!(shares(&mut balancer(rules, &[comes; 2]), NOW, 10, |_| IDLE).iter().sum::<usize>(), 10);
}

#[test]
fn a_key_stays_where_it_is_when_others_come_and_go() {
    let mut balancer = balancer(rules(Balance::ConsistentHash), &[USABLE; 10]);
    let homes = |balancer: &mut Balancer| -> BTreeMap<u64, usize> {
        let keys = (0..1000_u64).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        keys.map(|key| (key, choose(balancer, key, 1, |_| IDLE))).collect()
    };
    let before = homes(&mut balancer);
    change(&mut balancer, 4, Standing::Unusable);
    let without = homes(&mut balancer);
    let mut heirs = std::collections::BTreeSet::new();
    for (key, home) in &before {
        if *home == 4 {
            heirs.insert(without[key]);
        } else {
            assert_eq!(without[key], *home, "only those of the one that went move");
        }
    }
    assert!(heirs.len() >= 8, "they are spread: {heirs:?}");
    change(&mut balancer, 4, USABLE);
    assert_eq!(homes(&mut balancer), before, "and they come back");
}

#[test]
fn a_key_that_is_too_much_for_one_goes_to_another_and_always_to_the_same() {
    let mut balancer = balancer(rules(Balance::ConsistentHash), &[USABLE; 4]);
    let home = choose(&mut balancer, 1, 1, |_| IDLE);
    let busy = move |at| Load { in_flight: if at == home { 50 } else { 10 }, latency_us: 0 };
    let other = choose(&mut balancer, 1, 80, busy);
    assert_ne!(other, home);
    assert_eq!(choose(&mut balancer, 1, 80, busy), other);
    let all_busy = |_| Load { in_flight: 50, latency_us: 0 };
    assert_eq!(choose(&mut balancer, 1, 200, all_busy), home, "that is no more than the others have");
    let few = move |at| Load { in_flight: u32::from(at == home), latency_us: 0 };
    assert_eq!(choose(&mut balancer, 1, 2, few), home, "two at once are borne");
}

#[test]
fn who_weighs_more_gets_more() {
    let share = |weight| (Share { weight, tier: 0 }, USABLE);
    let backends = [share(1), share(3), share(0), share(6)];
    let idle = |policy| {
        let mut balancer = shared(rules(policy), &backends);
        let keys = (0..10_000_u64).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut taken = [0; 4];
        for key in keys {
            taken[choose(&mut balancer, key, 1, |_| IDLE)] += 1;
        }
        taken
    };
    for policy in Balance::ALL {
        let [one, three, none, six] = idle(policy);
        let all = [one, three, six];
        let fair = [(850..1150).contains(&one), (2800..3200).contains(&three), (5800..6200).contains(&six)];
        assert!(none == 0 && fair == [true; 3], "{policy:?}: {all:?}");
    }
    // A slow one has many under way, and they weigh on it by what it bears.
    for policy in [Balance::LeastLatency, Balance::LeastRequests] {
        let busy = assigned(&mut shared(rules(policy), &backends), NOW, 1000);
        assert!((90..=110).contains(&busy[0]) && (290..=310).contains(&busy[1]), "{policy:?}: {busy:?}");
        let slow = |at| Load { in_flight: [3, 9, 0, 18][at], latency_us: [10_000, 100_000, 10_000, 10_000][at] };
        let taken = shares(&mut shared(rules(Balance::LeastLatency), &backends), NOW, 1000, slow);
        assert!(taken[1] < 100, "the slow one: {taken:?}");
    }
    // A canary beside one that is slower than it, but not by far.
    let canary = [share(99), share(1)];
    let better = |at| Load { in_flight: 0, latency_us: [30_000, 10_000][at] };
    let taken = shares(&mut shared(rules(Balance::LeastLatency), &canary), NOW, 10_000, better);
    assert!((100..260).contains(&taken[1]), "at most twice its share: {taken:?}");
    let far_better = |at| Load { in_flight: 0, latency_us: [90_000, 10_000][at] };
    let taken = shares(&mut shared(rules(Balance::LeastLatency), &canary), NOW, 1000, far_better);
    assert_eq!(taken[0], 0, "that one is ill");
    let mut turns = shared(rules(Balance::RoundRobin), &backends);
    for _ in 0..200 {
        let ten = shares(&mut turns, NOW, 10, |_| IDLE);
        assert!((0..=2).contains(&ten[0]) && (2..=4).contains(&ten[1]) && (5..=7).contains(&ten[3]), "{ten:?}");
    }
}

#[test]
fn the_next_tier_gets_what_the_first_does_not_bear() {
    use Standing::{Untested, Unusable};
    // Four of ten in the first tier, as many in the second; so many of each are not there.
    for (first, second, percent) in [
        (0, 0, 100),
        (1, 4, 100),
        (2, 0, 69),
        (3, 0, 34),
        (4, 0, 0),
        // Neither bears it, so that both get by what they bear.
        (2, 4, 100),
        (3, 3, 50),
        (4, 3, 0),
    ] {
        for policy in Balance::ALL {
            let mut backends: Vec<_> = (0..8).map(|at| (Share { weight: 1, tier: at / 4 }, USABLE)).collect();
            for at in (0..first).chain(4..4 + second) {
                backends[at].1 = Unusable;
            }
            let mut balancer = shared(rules(policy), &backends);
            let mut taken = 0;
            for key in 0..4000_u64 {
                let at = choose(&mut balancer, key.wrapping_mul(0x9e37_79b9_7f4a_7c15), 1, |_| IDLE);
                assert!(backends[at].1 == USABLE, "it is there");
                taken += usize::from(at < 4);
            }
            let found = (taken + 20) / 40;
            assert!(found.abs_diff(percent) <= 4, "{policy:?}, {first} and {second} are gone: {found} %");
        }
    }
    let tiers = |standings: &[Standing]| {
        let share = |at| Share { weight: 1, tier: at };
        let backends: Vec<_> = (0_u16..).map(share).zip(standings.iter().copied()).collect();
        shared(rules(Balance::LeastLatency), &backends).ready
    };
    assert_eq!(tiers(&[Untested, Untested]), [0], "at the start");
    assert_eq!(tiers(&[Unusable, Untested]), [1]);
    assert_eq!(tiers(&[Untested, USABLE]), [1], "who is known to be well");
    assert_eq!(tiers(&[USABLE, USABLE]), [0]);
}

#[test]
fn what_the_first_tier_has_failed_the_next_one_gets() {
    let backends = [0, 0, 1, 2].map(|tier| (Share { weight: 1, tier }, USABLE));
    let mut balancer = shared(rules(Balance::LeastLatency), &backends);
    let mut next = |tried: &[usize]| balancer.choose(NOW, None, 1, |_| IDLE, |at| !tried.contains(&at));
    assert_eq!(next(&[0]), Some(1));
    assert_eq!(next(&[0, 1]), Some(2));
    assert_eq!(next(&[0, 1, 2]), Some(3));
    assert_eq!(next(&[0, 1, 2, 3]), None);
}

#[test]
fn what_is_left_of_a_tier_bears_what_it_weighs() {
    use Standing::Unusable;
    let of_first = |standings: [Standing; 2]| {
        let shares = [(99, 0), (1, 0), (1, 1)].map(|(weight, tier)| Share { weight, tier });
        let standings = [standings[0], standings[1], USABLE];
        let mut balancer = shared(rules(Balance::LeastLatency), &shares.into_iter().zip(standings).collect::<Vec<_>>());
        (0..1000).filter(|_| balancer.choose(NOW, None, 1, |_| IDLE, |_| true).is_some_and(|at| at < 2)).count()
    };
    assert_eq!(of_first([USABLE, USABLE]), 1000);
    assert_eq!(of_first([USABLE, Unusable]), 1000, "the light one is no loss");
    let light = of_first([Unusable, USABLE]);
    assert!((1..40).contains(&light), "one of a hundred gets no more than it bears: {light} of 1000");
}

#[test]
fn a_tier_that_bears_all_does_not_panic_for_another_one() {
    use Standing::Unwell;
    let rules = Rules { panic_percent: 50, ..rules(Balance::LeastLatency) };
    let tiers = |standings: [Standing; 6]| {
        let shares = [0, 0, 0, 1, 1, 1].map(|tier| Share { weight: 1, tier });
        let balancer = shared(rules, &shares.into_iter().zip(standings).collect::<Vec<_>>());
        (balancer.is_panicking(), balancer.ready)
    };
    assert_eq!(tiers([Unwell, Unwell, Unwell, USABLE, USABLE, USABLE]), (false, vec![3, 4, 5]));
    assert!(tiers([Unwell, Unwell, Unwell, Unwell, USABLE, USABLE]).0, "it alone bears 92 %");
    assert_eq!(tiers([Unwell, USABLE, USABLE, Unwell, Unwell, Unwell]).1, [1, 2, 3, 4, 5]);
}

#[test]
fn too_few_are_left_and_all_are_used() {
    let rules = Rules { panic_percent: 50, ..rules(Balance::LeastLatency) };
    let mut balancer = balancer(rules, &[USABLE; 4]);
    for (out, ready) in [(0, vec![1, 2, 3]), (1, vec![2, 3]), (2, vec![0, 1, 2, 3]), (3, vec![0, 1, 2, 3])] {
        change(&mut balancer, out, Standing::Unwell);
        assert_eq!(balancer.ready, ready, "{out}");
        assert_eq!(balancer.is_panicking(), out >= 2);
    }
    for at in 0..4 {
        change(&mut balancer, at, USABLE);
    }
    assert!(!balancer.is_panicking());
}

#[test]
fn who_was_never_tested_is_used_only_while_nobody_else_is_there() {
    use Standing::{Untested, Unusable, Unwell};
    for (panic_percent, standings, ready) in [
        (50, [Untested, Untested, Untested, Untested], vec![0, 1, 2, 3]),
        (50, [Untested, USABLE, Untested, Untested], vec![1]),
        (50, [Untested, USABLE, Unusable, Untested], vec![1]),
        (50, [Untested, USABLE, Unwell, Unusable], vec![0, 1, 2]),
        (50, [Untested, USABLE, Unusable, Unusable], vec![0, 1]),
        (50, [Untested, Unwell, Unusable, Untested], vec![0, 3]),
        (50, [Unwell, Unusable, Unusable, Unwell], vec![0, 3]),
        (50, [Unusable, Unusable, Unusable, Unusable], vec![0, 1, 2, 3]),
        (50, [USABLE, Unusable, Unusable, Unusable], vec![0]),
        (0, [Untested, Unusable, Unusable, Untested], vec![0, 3]),
        (0, [Untested, USABLE, Unwell, Unusable], vec![1]),
        (0, [Unwell, Unusable, Unwell, Unusable], vec![]),
        (0, [Unusable, Unusable, Unusable, Unusable], vec![]),
    ] {
        let rules = Rules { panic_percent, ..rules(Balance::LeastLatency) };
        assert_eq!(balancer(rules, &standings).ready, ready, "{panic_percent} %: {standings:?}");
    }
}

proptest! {
    /// Whatever comes and goes: one is chosen if there is one, and never one that must not be.
    #[test]
    fn the_choice_is_always_one_that_may_be(
        count in 1_usize..20,
        policy in proptest::sample::select(Balance::ALL.to_vec()),
        panic_percent in prop_oneof![Just(0_u32), Just(50)],
        slow_start in prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(5))],
        shares in proptest::collection::vec((0_u16..4, 0_u16..3), 20),
        steps in proptest::collection::vec((any::<usize>(), 0_u8..4, any::<Option<u64>>(), any::<usize>()), 1..60),
    ) {
        use Standing::{Held, Untested, Unusable, Unwell, Usable};
        let shares = shares.into_iter().take(count).map(|(weight, tier)| (Share { weight, tier }, USABLE));
        let mut balancer = shared(Rules { policy, panic_percent, slow_start }, &shares.collect::<Vec<_>>());
        let mut now = NOW;
        for (at, how, key, tried) in steps {
            now += Duration::from_millis(700);
            let standing = [Usable { since: Some(now) }, Untested, Unwell, Unusable][usize::from(how)];
            change(&mut balancer, at % count, standing);
            let tried = tried % count;
            let load = |at: usize| {
                let at = u32::try_from(at).expect("few");
                Load { in_flight: at, latency_us: 100 * at }
            };
            let chosen = balancer.choose(now, key, 1, load, |at| at != tried);
            let takes_part = |at: &usize| balancer.backends[*at].0.weight > 0;
            let stands = |at: &usize, is_one: fn(&Standing) -> bool| takes_part(at) && is_one(&balancer.backends[*at].1);
            let any = |is_one: fn(&Standing) -> bool| (0..count).any(|at| stands(&at, is_one));
            let is_usable: fn(&Standing) -> bool = |standing| matches!(standing, Usable { .. });
            // Whoever is usable is found, in whatever tier.
            if (0..count).any(|at| at != tried && stands(&at, is_usable)) {
                prop_assert!(chosen.is_some());
            }
            let panics = panic_percent > 0;
            let may_be = |at: &usize| match balancer.backends[*at].1 {
                Usable { .. } => true,
                Untested => panics || !any(is_usable),
                Unwell => panics && (any(is_usable) || !any(|standing| *standing == Untested)),
                Unusable => panics && !any(|standing| *standing != Unusable),
                Held { .. } => false,
            };
            prop_assert!(chosen.is_none_or(|at| at != tried && takes_part(&at) && may_be(&at)), "{:?} of {:?}", chosen, balancer.backends);
            let bounds = balancer.tiers.iter().map(|tier| tier.percent);
            prop_assert!(bounds.clone().is_sorted() && bounds.max().is_none_or(|percent| percent == 100));
        }
    }
}

#[test]
fn who_is_held_is_never_used_and_no_sign_of_trouble() {
    let held = Standing::Held { keeps_keys: false };
    for policy in [Balance::LeastLatency, Balance::LeastRequests, Balance::RoundRobin, Balance::ConsistentHash] {
        let rules = Rules { panic_percent: 50, ..rules(policy) };
        let taken = shares(&mut balancer(rules, &[USABLE, held, held, held]), NOW, 100, |_| IDLE);
        assert_eq!(taken, [100, 0, 0, 0], "{policy:?}");
        // Half of those that may be used are: nobody panics for those that are held.
        let taken = shares(&mut balancer(rules, &[USABLE, Standing::Unusable, held, held]), NOW, 100, |_| IDLE);
        assert_eq!(taken, [100, 0, 0, 0], "{policy:?}");
        // And in a panic they are still held.
        let taken = shares(&mut balancer(rules, &[Standing::Unusable, Standing::Unusable, held]), NOW, 100, |_| IDLE);
        assert_eq!((taken[0] + taken[1], taken[2]), (100, 0), "{policy:?}");
        let mut all = balancer(rules, &[held; 3]);
        assert_eq!(all.choose(NOW, Some(1), 1, |_| IDLE, |_| true), None, "{policy:?}");
        assert_eq!(all.choose(NOW, None, 1, |_| IDLE, |_| true), None, "{policy:?}");
    }
}

#[test]
fn who_is_drained_keeps_its_keys_and_gets_nothing_else() {
    for others in [1, 2] {
        let standings = vec![USABLE; others + 1];
        let mut balancer = balancer(rules(Balance::ConsistentHash), &standings);
        let owners: Vec<_> = (0..200).map(|key| choose(&mut balancer, key, 1, |_| IDLE)).collect();
        change(&mut balancer, 0, Standing::Held { keeps_keys: true });
        let drained: Vec<_> = (0..200).map(|key| choose(&mut balancer, key, 1, |_| IDLE)).collect();
        assert_eq!(drained, owners, "keys stay where they are");
        assert_eq!(shares(&mut balancer, NOW, 100, |_| IDLE)[0], 0, "what has no key goes elsewhere");
        change(&mut balancer, 0, Standing::Held { keeps_keys: false });
        assert!((0..200).all(|key| choose(&mut balancer, key, 1, |_| IDLE) != 0), "once it is not well, or ejected");
    }
}
