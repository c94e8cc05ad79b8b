//! What our HTTP/1.1 core costs per message: find the end of a head, parse it, write it, walk through chunks.
//!
//! Heads are parsed into lent buffers, as a connection does it. The loops include a copy of the head into that buffer,
//! which on a connection the read itself does.

use std::hint::black_box;
use std::num::NonZeroUsize;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardgate::proto::head::{Framing, Method};
use shardgate::proto::http1::{
    BodyDecoder, CHUNK_END, ConnectionToken, Decoded, HeadLimits, HeadScanner, ResponseScanner, encode_chunk_header,
    encode_last_chunk, encode_request, encode_response, parse_request, parse_response,
};

const SMALL: &[u8] =
    b"GET /api/events/17 HTTP/1.1\r\nHost: localhost:3000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

const BROWSER: &[u8] = b"GET /api/predict/carts/8f14e45f?window=30d&limit=50 HTTP/1.1\r\n\
Host: gateway.example.com\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"130\", \"Google Chrome\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
Accept: application/json, text/plain, */*\r\n\
Authorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0MiIsInJvbGUiOiJ1c2VyIn0.c2lnbmF0dXJlLW9mLTMyLWJ5dGVz\r\n\
Origin: https://app.example.com\r\n\
Sec-Fetch-Site: same-site\r\n\
Sec-Fetch-Mode: cors\r\n\
Sec-Fetch-Dest: empty\r\n\
Referer: https://app.example.com/dashboard\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 10:15:00 GMT\r\n\
Content-Type: application/json\r\nContent-Length: 1024\r\nConnection: keep-alive\r\nETag: \"6561f1a3-400\"\r\n\r\n";

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
                encode_request(black_box(&head), b"/events/17", Framing::None, &mut out);
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
