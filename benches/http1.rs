//! What our HTTP/1.1 core costs per message: find the end of a head, parse it, write it, walk through chunks.
//!
//! Heads are parsed into lent buffers, as a connection does it. The loops include a copy of the head into that buffer,
//! which on a connection the read itself does.

mod messages;

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use messages::{ANSWER, BROWSER, SMALL};
use shardgate::proto::head::{Framing, Method};
use shardgate::proto::http1::{
    BodyDecoder, CHUNK_END, ConnectionToken, Decoded, HeadLimits, HeadScanner, ResponseScanner, encode_chunk_header,
    encode_last_chunk, encode_request, encode_response, parse_request, parse_response,
};

fn requests(criterion: &mut Criterion) {
    let limits = HeadLimits::default();
    for (name, raw) in [("small GET", SMALL), ("browser's GET", BROWSER)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(raw.len() as u64));
        group.bench_function("scan", |bencher| {
            bencher.iter(|| HeadScanner::new().scan(black_box(raw), &limits));
        });
        group.bench_function("scan and parse", |bencher| {
            let mut lent = Some((Vec::with_capacity(4096), Vec::with_capacity(64)));
            bencher.iter(|| {
                let (mut bytes, fields) = lent.take().expect("given back below");
                bytes.clear();
                bytes.extend_from_slice(black_box(raw));
                let found = HeadScanner::new().scan(&bytes, &limits).expect("legal").expect("complete");
                let head = parse_request(bytes, found, fields, &limits).expect("legal");
                black_box(&head);
                lent = Some((head.bytes, head.fields));
            });
        });
        group.bench_function("encode", |bencher| {
            let head = parse_request(raw.to_vec(), raw.len(), Vec::new(), &limits).expect("legal");
            let mut out = Vec::with_capacity(4096);
            bencher.iter(|| {
                out.clear();
                encode_request(black_box(&head), b"/events/17", Framing::None, false, &mut out);
                out.len()
            });
        });
        group.finish();
    }
}

fn answers(criterion: &mut Criterion) {
    let limits = HeadLimits::default();
    let mut group = criterion.benchmark_group("answer");
    group.throughput(Throughput::Bytes(ANSWER.len() as u64));
    group.bench_function("scan and parse", |bencher| {
        let mut lent = Some((Vec::with_capacity(4096), Vec::with_capacity(64)));
        bencher.iter(|| {
            let (mut bytes, fields) = lent.take().expect("given back below");
            bytes.clear();
            bytes.extend_from_slice(black_box(ANSWER));
            let found = ResponseScanner::new().scan(&bytes, &limits).expect("legal").expect("complete");
            let head = parse_response(bytes, found, fields, Method::Get, &limits).expect("legal");
            black_box(&head);
            lent = Some((head.bytes, head.fields));
        });
    });
    group.bench_function("encode", |bencher| {
        let head = parse_response(ANSWER.to_vec(), ANSWER.len(), Vec::new(), Method::Get, &limits).expect("legal");
        let mut out = Vec::with_capacity(4096);
        bencher.iter(|| {
            out.clear();
            encode_response(black_box(&head), head.framing, ConnectionToken::None, &mut out);
            out.len()
        });
    });
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunked 64 KiB");
    for chunk_bytes in [64, 4096] {
        let mut wire = Vec::new();
        for _ in 0..64 * 1024 / chunk_bytes {
            encode_chunk_header(NonZeroUsize::new(chunk_bytes).expect("not zero"), &mut wire);
            wire.resize(wire.len() + chunk_bytes, b'x');
            wire.extend_from_slice(CHUNK_END);
        }
        encode_last_chunk(b"", &mut wire);
        group.throughput(Throughput::Bytes(64 * 1024));
        group.bench_function(format!("chunks of {chunk_bytes}"), |bencher| {
            bencher.iter(|| payload_bytes(black_box(&wire)));
        });
    }
    group.finish();
}

fn payload_bytes(mut rest: &[u8]) -> usize {
    let mut body = BodyDecoder::new(Framing::Chunked);
    let mut payload = 0;
    loop {
        match body.decode(rest).expect("legal") {
            Decoded::Data { start, end } => {
                payload += end - start;
                rest = &rest[end..];
            }
            Decoded::More { .. } | Decoded::Done { .. } => return payload,
        }
    }
}

criterion_group!(benches, requests, answers, chunks);
criterion_main!(benches);
