//! Our unmasking, which is safe code over words of eight bytes, beside that of `fastwebsockets`, which aligns its words of
//! four with `unsafe`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn unmask(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask");
    // A heartbeat, a small message, a large one, and what one read takes; each begins at an odd address, as behind a header.
    for length in [30, 128, 1024, 16 * 1024] {
        group.throughput(Throughput::Bytes(length as u64));
        let mut buffer = vec![0x5a; length + 7];
        group.bench_function(BenchmarkId::new("shardgate", length), |bencher| {
            bencher.iter(|| shardgate::proto::websocket::unmask(black_box(&mut buffer[7..]), black_box(KEY)));
        });
        group.bench_function(BenchmarkId::new("fastwebsockets", length), |bencher| {
            bencher.iter(|| fastwebsockets::unmask(black_box(&mut buffer[7..]), black_box(KEY)));
        });
    }
    group.finish();
}

criterion_group!(benches, unmask);
criterion_main!(benches);
