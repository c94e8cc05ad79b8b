//! What it costs to make a head ready for the other side: the fields of a browser's request as the backend gets them,
//! and those of its answer as the client does.
//!
//! The edits grow the head, so each turn begins by bringing it back, which is measured by itself at last.

#[expect(dead_code, reason = "other benches use the rest")]
mod messages;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use messages::{ANSWER, BROWSER};
use shardgate::config::HeaderRules;
use shardgate::gateway::fields::{FieldRules, RequestContext, of_answer, of_request};
use shardgate::net::Scheme;
use shardgate::proto::head::{Field, Method, RequestHead, ResponseHead, Version};
use shardgate::proto::http1::{HeadLimits, parse_request, parse_response};
use shardgate::telemetry::ids::TraceContext;

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

fn rules() -> FieldRules {
    let text = |text: &str| text.to_owned();
    FieldRules::from(&HeaderRules {
        remove: vec![text("Server"), text("Referer")],
        set: [(text("X-Tier"), text("gold"))].into(),
        add: [(text("X-Seen-By"), text("edge"))].into(),
    })
}

fn rewriting(criterion: &mut Criterion) {
    let trace = TraceContext::begin(&mut fastrand::Rng::with_seed(1));
    let said = RequestContext {
        request_id: b"4bf92f3577b34da6a3ce929d0e",
        trace: &trace,
        continues_trace: false,
        peer: b"192.0.2.7",
        scheme: Scheme::Http,
        is_trusted: false,
        caller: None,
        stripped: None,
        forwards_authorization: true,
    };
    for (suffix, rules) in [("", FieldRules::default()), (", with rules", rules())] {
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
                of_answer(black_box(&mut head), Version::Http11, &rules);
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
