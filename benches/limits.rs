//! What a limit costs a request: a key's hash, its place, the verdict, and counting it.

use std::{hint::black_box, net::Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::{
    gateway::rate_limit::{
        cells::CellKey,
        counter::{Counter, Due, Home, Terms, Verdict},
        gcra::Rate,
    },
    shard::{Instant, clock},
    telemetry::slots::OTHER,
};

const KEYS: u32 = 60_000;

fn counter(home: Home, burst: u32) -> Counter {
    let rate = Rate::new(1_000, burst);
    let terms = Terms { slot: OTHER, rate, home, lease: 64, dry_run: false, keys_max: 65_536 };
    Counter::new(terms, 0, 4)
}

fn address(number: u32) -> CellKey {
    CellKey::of_address(Ipv4Addr::from_bits(number).into())
}

/// One request, with what is told to others taken as told.
fn ask(counter: &mut Counter, key: CellKey, now: Instant) -> bool {
    let (place, Verdict::Conforms(next)) = counter.look(key, now) else { return false };
    if let Due::Now(hits) = counter.pass(place, next, now) {
        let (counted, _) = counter.count(hits, now);
        counter.hear(counted, now);
    }
    black_box(counter.state(place, now));
    true
}

fn limits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limits");
    group.bench_function("the clock", |bencher| bencher.iter(clock::now));
    group.bench_function("a caller's key", |bencher| {
        bencher.iter(|| {
            CellKey::of_texts(b'u', black_box(b"https://issuer.example.com"), black_box(b"b0c8f0e2-9d7c-4a53-8d6e-5a"))
        });
    });
    group.bench_function("one key, passes", |bencher| {
        let (mut counter, mut now) = (counter(Home::Here, 100), 0);
        bencher.iter(|| {
            now += 1_000;
            ask(&mut counter, address(black_box(7)), Instant::from_nanos(now))
        });
    });
    group.bench_function("one key, is refused", |bencher| {
        let mut counter = counter(Home::Here, 1);
        ask(&mut counter, address(7), Instant::from_nanos(5));
        bencher.iter(|| ask(&mut counter, address(black_box(7)), Instant::from_nanos(6)));
    });
    for (name, home) in
        [("60,000 keys, this shard counts", Home::Here), ("60,000 keys, told to their homes", Home::Shard)]
    {
        group.bench_function(name, |bencher| {
            let (mut counter, mut now, mut number) = (counter(home, 100), 0, 0_u32);
            bencher.iter(|| {
                now += 100;
                // A stride that meets all of them, far from one another.
                number = (number + 24_593) % KEYS;
                ask(&mut counter, address(number), Instant::from_nanos(now))
            });
        });
    }
    group.bench_function("a flood of new keys, a full table", |bencher| {
        let mut counter = counter(Home::Here, u32::MAX);
        let now = Instant::from_nanos(1);
        for key in 0..200_000 {
            ask(&mut counter, address(key), now);
        }
        let mut number = 1_000_000_u32;
        bencher.iter(|| {
            number = number.wrapping_add(1);
            ask(&mut counter, address(number), now)
        });
    });
    group.finish();
}

criterion_group!(benches, limits);
criterion_main!(benches);
