//! A collector of spans: takes what gateways export by OTLP over HTTP, decodes it by OpenTelemetry's own definitions, and
//! answers as a test tells it.

use std::{collections::BTreeMap, fmt::Write as _, io::Read as _, net::SocketAddr, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;

use crate::{
    backend::{Backend, Conversation, Received},
    harness::until,
};

/// All spans were taken.
pub(crate) const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";

/// A collector, and what it was sent.
#[derive(Debug)]
pub(crate) struct Collector {
    backend: Backend,
    /// The requests, each with the spans in it.
    pub(crate) requests: Vec<(Received, Vec<Told>)>,
}

/// A span as it was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty where it has none.
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) flags: u32,
    pub(crate) began_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) has_failed: bool,
    /// Numbers as text.
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) resource: BTreeMap<String, String>,
}

impl Told {
    /// An attribute; empty where there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

impl Collector {
    /// One that takes everything.
    pub(crate) fn start() -> Self {
        Self::answering(|_| TAKEN)
    }

    /// One that answers so.
    pub(crate) fn answering<A: AsRef<[u8]>>(answer: impl Fn(&Received) -> A + Send + Sync + 'static) -> Self {
        Self::over(Backend::answering(answer))
    }

    /// One that does so with each connection.
    pub(crate) fn at(
        address: SocketAddr,
        script: impl Fn(&mut Conversation) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::over(Backend::start_at(address, script))
    }

    fn over(backend: Backend) -> Self {
        Self { backend, requests: Vec::new() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.backend.address()
    }

    /// The section that makes a gateway send its spans here, with these lines.
    pub(crate) fn config(&self, more: &str) -> String {
        format!("[trace]\nendpoint = \"http://{}\"\n{more}\n", self.address())
    }

    /// Reads what has come.
    pub(crate) fn read(&mut self) {
        for request in self.backend.requests() {
            let spans = decode(&request);
            self.requests.push((request, spans));
        }
    }

    /// All spans that have come so far, those too that were not taken.
    pub(crate) fn spans(&self) -> Vec<Told> {
        self.requests.iter().flat_map(|(_, spans)| spans.clone()).collect()
    }

    /// Waits until the spans are as wanted, and returns all of them.
    #[track_caller]
    pub(crate) fn spans_until(&mut self, what: &str, mut are_so: impl FnMut(&[Told]) -> bool) -> Vec<Told> {
        until(Duration::from_secs(20), what, || {
            self.read();
            Some(self.spans()).filter(|spans| are_so(spans))
        })
    }

    /// Waits for the spans of one trace, until so many have come.
    #[track_caller]
    pub(crate) fn trace(&mut self, trace: &str, count: usize) -> Vec<Told> {
        let of = |spans: &[Told]| spans.iter().filter(|span| span.trace == trace).cloned().collect::<Vec<_>>();
        let what = format!("{count} spans of {trace}");
        of(&self.spans_until(&what, |spans| of(spans).len() >= count))
    }
}

/// The spans of a request, as the protocol has them.
#[track_caller]
pub(crate) fn decode(request: &Received) -> Vec<Told> {
    assert_eq!(request.head.field("content-type"), Some("application/x-protobuf"));
    let mut body = Vec::new();
    match request.head.field("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&request.body[..]).read_to_end(&mut body).expect("it is packed");
        }
        other => {
            assert_eq!(other, None);
            body.clone_from(&request.body);
        }
    }
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("the protocol's");
    let mut told = Vec::new();
    for of_resource in request.resource_spans {
        let resource = texts(&of_resource.resource.expect("it says who it is").attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            told.push(read(&span, &resource));
        }
    }
    told
}

fn read(span: &Span, resource: &BTreeMap<String, String>) -> Told {
    assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8), "{span:?}");
    assert!([0, 8].contains(&span.parent_span_id.len()), "{span:?}");
    assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
    Told {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name.clone(),
        kind: span.kind(),
        flags: span.flags,
        began_ns: span.start_time_unix_nano,
        ended_ns: span.end_time_unix_nano,
        has_failed: span.status.is_some(),
        attributes: texts(&span.attributes),
        resource: resource.clone(),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let texts: BTreeMap<_, _> = attributes
        .iter()
        .map(|attribute| {
            let value = attribute.value.as_ref().and_then(|value| value.value.as_ref()).expect("a value");
            let value = match value {
                Value::StringValue(text) => text.clone(),
                Value::IntValue(number) => number.to_string(),
                other => panic!("{other:?}"),
            };
            (attribute.key.clone(), value)
        })
        .collect();
    assert_eq!(texts.len(), attributes.len(), "each name stands once: {attributes:?}");
    texts
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("strings take everything");
        text
    })
}
