//! What a scrape costs with 1,000 routes of 3 instances each on 4 shards: a shard's copy of its counters, the control thread's
//! text in both formats.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::telemetry::{
    exemplars::{Exemplar, Exemplars, Merged},
    exposition::{InstanceSeries, Scrape, ShardCounters},
    format::Format,
    metrics::{Counters, Finished, InstanceCounters, Names, ProcessCounters},
};

const ROUTES: usize = 1000;
const INSTANCES: usize = 3;
const SHARDS: u16 = 4;

fn scrape(criterion: &mut Criterion) {
    let mut names = Names { reject_codes: &["not_found"], ..Names::default() };
    let mut counters = Counters::default();
    let mut exemplars = Exemplars::default();
    let mut instances = Vec::new();
    for at in 0..ROUTES {
        let (route, upstream) =
            (names.routes.claim(&format!("route-{at}")), names.upstreams.claim(&format!("shop-{at}")));
        for total_us in [90, 900, 90_000] {
            let (request_bytes, response_bytes) = (10, 1000);
            counters.finish(&Finished { route, status: 200, total_us, gateway_us: 20, request_bytes, response_bytes });
            exemplars.note(route, Exemplar { trace_id: [7; 16], took_us: total_us, at: 1 });
        }
        counters.upstream(upstream).requests[0] += 12_345;
        instances.extend((0..INSTANCES).map(|instance| InstanceSeries {
            upstream: format!("shop-{at}"),
            address: format!("10.0.{at}.{instance}:8080"),
            is_there: true,
            counters: InstanceCounters { up: 1, ..InstanceCounters::default() },
        }));
    }
    let mut group = criterion.benchmark_group("scrape/1000 routes × 3 instances");
    group.bench_function("a shard's copy", |bencher| bencher.iter(|| black_box(&counters).clone()));
    group.bench_function("a shard's exemplars", |bencher| bencher.iter(|| black_box(&exemplars).shown(|at| at)));
    let shards: Vec<_> = (0..SHARDS).map(|shard| ShardCounters { shard, counters: &counters }).collect();
    let exemplars = Merged::of(exemplars.shown(|at| at).into_iter());
    let process = ProcessCounters::default();
    let scrape = Scrape {
        shards: &shards,
        process: &process,
        followed: &[],
        instances: &instances,
        exemplars: &exemplars,
        names: &names,
    };
    for (name, format) in [("text", Format::Text), ("OpenMetrics", Format::OpenMetrics)] {
        let mut text = String::new();
        scrape.write(format, &mut text, &std::thread::yield_now);
        let name = format!("{name}, {} series", text.lines().filter(|line| !line.starts_with('#')).count());
        let length = text.len();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Memory is new for each, as it is on the control thread.
                let mut text = String::with_capacity(length + length / 8);
                scrape.write(format, &mut text, &std::thread::yield_now);
                text
            });
        });
    }
}

criterion_group!(benches, scrape);
criterion_main!(benches);
