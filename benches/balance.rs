//! What it costs to choose an instance: among few and many, half of them out, by each policy; alike, and by weights and tiers.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::{
    config::Balance,
    shard::Instant,
    upstream::balance::{Balancer, Load, Rules, Share, Standing, Table},
};

/// What an instance is to get, by its number.
type Shares = fn(u32) -> Share;

const KINDS: [(&str, Shares); 2] = [
    ("alike", |_| Share { weight: 1, tier: 0 }),
    ("weights and tiers", |at| Share {
        weight: [1, 2, 5, 100][at as usize / 2 % 4],
        // Half of the first tier is out, so that the second gets its part.
        tier: u16::from(at % 4 > 1),
    }),
];

fn choose(criterion: &mut Criterion) {
    for count in [3_u32, 30, 1024] {
        for (kind, share) in KINDS {
            let mut group = criterion.benchmark_group(format!("balance/{count} instances, half of them out, {kind}"));
            let names: Vec<_> = (0..count).map(|at| (format!("10.0.0.{at}:80"), share(at))).collect();
            let table = Some(Arc::new(Table::new(&names)));
            for policy in Balance::ALL {
                let rules = Rules { policy, panic_percent: 0, slow_start: Duration::ZERO };
                let mut balancer = Balancer::new(rules, 1);
                let standing = |at| if at % 2 == 0 { Standing::Usable { since: None } } else { Standing::Unusable };
                balancer.set(rules, (0..count).map(|at| (share(at), standing(at))), table.clone());
                let loads: Vec<_> =
                    (0..count).map(|at| Load { in_flight: at % 7, latency_us: 1000 + at % 900 }).collect();
                let mut key = 0_u64;
                group.bench_function(policy.name(), |bencher| {
                    bencher.iter(|| {
                        key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        balancer.choose(
                            black_box(Instant::START),
                            Some(key),
                            3 * count,
                            |at| loads[at],
                            |at| at != usize::MAX,
                        )
                    });
                });
            }
        }
    }
}

criterion_group!(benches, choose);
criterion_main!(benches);
