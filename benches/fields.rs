//! What it costs to make a head ready for the other side: the fields of a browser's request as the backend gets them,
//! and those of its answer as the client does.
//!
//! The edits grow the head, so each turn begins by bringing it back, which is measured by itself at last.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use shardgate::config::HeaderRules;
use shardgate::gateway::fields::{Rules, Said, of_answer, of_request};
use shardgate::proto::head::{Field, Method, RequestHead, ResponseHead};
use shardgate::proto::http1::{HeadLimits, parse_request, parse_response};
use shardgate::telemetry::ids::TraceContext;

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

/// A head that is brought back to what it was before each turn; on a connection, parsing fills it.
struct Again {
    bytes: usize,
    fields: Vec<Field>,
}

impl Again {
    fn reset(&self, bytes: &mut Vec<u8>, fields: &mut Vec<Field>) {
        bytes.truncate(self.bytes);
        fields.clear();
        fields.extend_from_slice(&self.fields);
    }
}

fn request() -> RequestHead {
    let mut bytes = BROWSER.to_vec();
    bytes.reserve(4096);
    parse_request(bytes, BROWSER.len(), Vec::with_capacity(64), &HeadLimits::default()).expect("legal")
}

fn answer() -> ResponseHead {
    let mut bytes = ANSWER.to_vec();
    bytes.reserve(4096);
    let limits = HeadLimits::default();
    parse_response(bytes, ANSWER.len(), Vec::with_capacity(64), Method::Get, &limits).expect("legal")
}

fn rules() -> Rules {
    let text = |text: &str| text.to_owned();
    Rules::from(&HeaderRules {
        remove: vec![text("Server"), text("Referer")],
        set: [(text("X-Tier"), text("gold"))].into(),
        add: [(text("X-Seen-By"), text("edge"))].into(),
    })
}

fn rewriting(criterion: &mut Criterion) {
    let trace = TraceContext::begin(&mut fastrand::Rng::with_seed(1));
    let said = Said {
        request_id: b"4bf92f3577b34da6a3ce929d0e",
        trace: &trace,
        continues_trace: false,
        peer: b"192.0.2.7",
        is_trusted: false,
        caller: None,
        forwards_authorization: true,
    };
    for (suffix, rules) in [("", Rules::default()), (", with rules", rules())] {
        let mut head = request();
        let again = Again { bytes: head.bytes.len(), fields: head.fields.clone() };
        criterion.bench_function(&format!("fields of a browser's request{suffix}"), |bencher| {
            bencher.iter(|| {
                again.reset(&mut head.bytes, &mut head.fields);
                of_request(black_box(&mut head), &said, &rules);
            });
        });
        let mut head = answer();
        let again = Again { bytes: head.bytes.len(), fields: head.fields.clone() };
        criterion.bench_function(&format!("fields of an answer{suffix}"), |bencher| {
            bencher.iter(|| {
                again.reset(&mut head.bytes, &mut head.fields);
                of_answer(black_box(&mut head), &rules);
            });
        });
    }
    let mut head = request();
    let again = Again { bytes: head.bytes.len(), fields: head.fields.clone() };
    criterion.bench_function("of that, bringing the request back", |bencher| {
        bencher.iter(|| {
            again.reset(black_box(&mut head.bytes), &mut head.fields);
        });
    });
}

criterion_group!(benches, rewriting);
criterion_main!(benches);
