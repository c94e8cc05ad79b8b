//! What tying an exchange to its caller's session costs a request, and what ending many costs a shard.

use std::{hint::black_box, rc::Rc};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use shardgate::{
    auth::{Claims, Revocation, revocation::Kind},
    exchange::{Tether, Tethers},
    net::{Connections, Slot},
    shard::Local,
};

const OPEN: usize = 10_000;
const ENDED: usize = 1_000;

/// An exchange that is open.
type Open = (Slot, Tether);

/// So many callers with a session each, and one exchange of each.
fn open(tethers: &Rc<Local<Tethers>>) -> Vec<Open> {
    let connections = Connections::new();
    let open = (0..OPEN).map(|n| {
        let claims = Claims { sid: Some(format!("s_{n:020}").into()), ..Claims::plain(&format!("user-{n}")) };
        let slot = connections.enter();
        let tether = Tethers::tie(tethers, &Rc::new(claims), slot.ender());
        tether.answer();
        (slot, tether)
    });
    open.collect()
}

fn revocations(kind: Kind, id: impl Fn(usize) -> String) -> Vec<Revocation> {
    let every = OPEN / ENDED;
    let one = |n: usize| Revocation { kind, id: id(n * every).into(), at_ms: u64::MAX, by: "bench".into() };
    (0..ENDED).map(one).collect()
}

fn ends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ends");
    let by_session = revocations(Kind::Session, |n| format!("s_{n:020}"));
    let by_user = revocations(Kind::User, |n| format!("user-{n}"));
    for (name, revocations) in [("1,000 sessions of 10,000", by_session), ("1,000 users of 10,000", by_user)] {
        group.bench_function(name, |bencher| {
            let fresh = || {
                let tethers = Rc::new(Local::new(Tethers::default()));
                let open = open(&tethers);
                (tethers, open)
            };
            bencher.iter_batched_ref(
                fresh,
                // As they come one by one: none knows of the others.
                |(tethers, _)| {
                    revocations.iter().map(|one| Tethers::end(tethers, std::slice::from_ref(one))).sum::<usize>()
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.bench_function("tie and let go beside 10,000", |bencher| {
        let tethers = Rc::new(Local::new(Tethers::default()));
        let _open = open(&tethers);
        let slot = Connections::new().enter();
        let claims = Claims { sid: Some("s_00000000000000000000".into()), ..Claims::plain("user-0") };
        let claims = Rc::new(claims);
        bencher.iter(|| drop(black_box(Tethers::tie(&tethers, &claims, slot.ender()))));
    });
    group.finish();
}

criterion_group!(benches, ends);
criterion_main!(benches);
