//! Spans as OTLP has them, by OpenTelemetry's semantic conventions for HTTP. Attributes of our own begin with `shardgate.`.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span, status::StatusCode},
};
use prost::Message as _;

use crate::{
    config::Trace,
    telemetry::spans::{Span, SpanBatch, SpanFacts, SpanKind, SpanTexts},
};

/// The conventions that the names of attributes are of.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The trace flags of W3C, and that it is known whether the parent is another process's (`SpanFlags` of the protocol).
const SAMPLED: u32 = 0x01;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Methods that have names; any other is `_OTHER`, so that strangers invent none.
const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// What all spans say of this gateway.
#[derive(Debug)]
pub(super) struct Resource(v1::Resource);

impl Resource {
    /// What the operator says goes over what the gateway knows itself.
    pub(super) fn new(settings: &Trace, node: &str) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let given = settings.resource();
        let is_named = settings.service_name != Trace::default().service_name;
        let own = [
            ("service.name", settings.service_name.as_str()),
            ("service.version", VERSION),
            ("service.instance.id", node),
            ("host.name", &host),
            ("telemetry.sdk.name", "shardgate"),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.version", VERSION),
        ];
        // A service's own name goes over the one among the attributes (OpenTelemetry, "General SDK Configuration").
        let is_given =
            |name: &str| given.iter().any(|(given, _)| given == name) && !(is_named && name == "service.name");
        let own = own.into_iter().filter(|(name, _)| !is_given(name)).map(|(name, value)| text(name, value));
        let own: Vec<_> = own.collect();
        let further = given.iter().filter(|(name, _)| is_given(name)).map(|(name, value)| text(name, value.as_str()));
        let attributes = own.into_iter().chain(further).collect();
        Self(v1::Resource { attributes, ..v1::Resource::default() })
    }
}

/// One request's body.
pub(super) fn request(resource: &Resource, batch: &SpanBatch) -> Vec<u8> {
    let scope =
        InstrumentationScope { name: "shardgate".to_owned(), version: VERSION.to_owned(), ..Default::default() };
    let spans = batch.iter().map(|span| otlp(&span)).collect();
    let scope_spans = ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA_URL.to_owned() };
    let resource_spans = ResourceSpans {
        resource: Some(resource.0.clone()),
        scope_spans: vec![scope_spans],
        schema_url: SCHEMA_URL.to_owned(),
    };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }.encode_to_vec()
}

fn otlp(span: &Span<'_>) -> OtlpSpan {
    let Span { facts, texts } = span;
    let mut attributes = Vec::with_capacity(20);
    let (kind, name) = match facts.kind {
        SpanKind::Request => (span::SpanKind::Server, describe_request(facts, texts, &mut attributes)),
        SpanKind::Message => {
            describe_request(facts, texts, &mut attributes);
            (span::SpanKind::Consumer, format!("message {}", lossy(texts.names.route())))
        }
        SpanKind::Try => (span::SpanKind::Client, describe_try(facts, texts, &mut attributes)),
        SpanKind::TokenCheck => (span::SpanKind::Internal, "token check".to_owned()),
        SpanKind::Account => (span::SpanKind::Internal, "account".to_owned()),
        SpanKind::Limit => (span::SpanKind::Internal, "rate limit".to_owned()),
    };
    if !facts.reason.is_empty() {
        attributes.push(text("error.type", facts.reason));
    } else if facts.has_failed && facts.status > 0 {
        attributes.push(text("error.type", facts.status.to_string()));
    }
    let has_parent = facts.parent != [0; 8];
    let is_remote = matches!(facts.kind, SpanKind::Request | SpanKind::Message) && has_parent;
    let status = facts.has_failed.then(|| Status { code: StatusCode::Error.into(), message: String::new() });
    OtlpSpan {
        trace_id: facts.trace_id.to_vec(),
        span_id: facts.id.to_vec(),
        parent_span_id: if has_parent { facts.parent.to_vec() } else { Vec::new() },
        flags: if facts.is_sampled { SAMPLED } else { 0 } | HAS_IS_REMOTE | if is_remote { IS_REMOTE } else { 0 },
        name,
        kind: kind.into(),
        start_time_unix_nano: facts.began_ns,
        end_time_unix_nano: facts.ended_ns,
        attributes,
        status,
        ..OtlpSpan::default()
    }
}

/// Adds what a span says of a client's request. Returns its name.
fn describe_request(facts: &SpanFacts, texts: &SpanTexts<'_>, out: &mut Vec<KeyValue>) -> String {
    let method = describe_method(texts, out);
    let pattern = lossy(texts.names.pattern());
    let bytes = |count| i64::try_from(count).unwrap_or(i64::MAX);
    push(out, "url.scheme", facts.scheme.as_bytes());
    push(out, "url.path", texts.path);
    push(out, "http.route", texts.names.pattern());
    describe_status(facts, out);
    describe_server(texts.host, out);
    out.push(text("client.address", facts.client.to_canonical().to_string()));
    push(out, "network.protocol.version", facts.protocol.as_bytes());
    push(out, "user_agent.original", texts.user_agent);
    out.push(number("http.request.body.size", bytes(facts.request_bytes)));
    out.push(number("http.response.body.size", bytes(facts.response_bytes)));
    push(out, "shardgate.request_id", texts.request_id);
    push(out, "shardgate.route", texts.names.route());
    push(out, "shardgate.upstream", texts.names.upstream());
    push(out, "shardgate.instance", texts.instance);
    if facts.attempt > 0 {
        out.push(number("shardgate.attempts", facts.attempt.into()));
    }
    out.push(number("shardgate.shard", facts.shard.into()));
    if pattern.is_empty() { method.to_owned() } else { format!("{method} {pattern}") }
}

/// Adds what a span says of a try at an instance. Returns its name.
fn describe_try(facts: &SpanFacts, texts: &SpanTexts<'_>, out: &mut Vec<KeyValue>) -> String {
    let method = describe_method(texts, out);
    let instance = lossy(texts.instance);
    if !instance.starts_with("unix:") {
        let scheme = if instance.starts_with(HTTPS) { "" } else { "http://" };
        out.push(text("url.full", format!("{scheme}{instance}{}", lossy(texts.path))));
    }
    describe_status(facts, out);
    describe_server(texts.instance, out);
    push(out, "shardgate.upstream", texts.names.upstream());
    if facts.attempt > 1 {
        out.push(number("http.request.resend_count", i64::from(facts.attempt) - 1));
    }
    out.push(text("shardgate.connection", if facts.is_reused { "reused" } else { "opened" }));
    if !facts.is_reused {
        out.push(number("shardgate.connect_us", facts.connect_us.into()));
    }
    method.to_owned()
}

fn describe_method(texts: &SpanTexts<'_>, out: &mut Vec<KeyValue>) -> &'static str {
    let known = METHODS.into_iter().find(|known| known.as_bytes() == texts.method);
    out.push(text("http.request.method", known.unwrap_or("_OTHER")));
    if known.is_none() {
        push(out, "http.request.method_original", texts.method);
    }
    known.unwrap_or("HTTP")
}

fn describe_status(facts: &SpanFacts, out: &mut Vec<KeyValue>) {
    if facts.status > 0 {
        out.push(number("http.response.status_code", facts.status.into()));
    }
}

const HTTPS: &str = "https://";

/// Adds `host:port` as two attributes.
fn describe_server(authority: &[u8], out: &mut Vec<KeyValue>) {
    let authority = lossy(authority.strip_prefix(HTTPS.as_bytes()).unwrap_or(authority));
    let port = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = port.map_or((&*authority, None), |(host, port)| (host, Some(port)));
    push(out, "server.address", host.trim_start_matches('[').trim_end_matches(']').as_bytes());
    if let Some(port) = port {
        out.push(number("server.port", port.into()));
    }
}

/// An attribute, unless there is nothing to say.
fn push(out: &mut Vec<KeyValue>, key: &str, value: &[u8]) {
    if !value.is_empty() {
        out.push(text(key, lossy(value)));
    }
}

/// Protobuf has text in UTF-8 only.
fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_told_by_what_it_is_asked_for_and_where_it_is() {
        for (instance, told) in [
            ("shop:80", ["http://shop:80/a", "shop", "80"]),
            ("[::1]:80", ["http://[::1]:80/a", "::1", "80"]),
            ("https://shop", ["https://shop/a", "shop", ""]),
            ("https://shop:8443", ["https://shop:8443/a", "shop", "8443"]),
            ("unix:/run/shop.sock", ["", "unix:/run/shop.sock", ""]),
        ] {
            let texts = SpanTexts { instance: instance.as_bytes(), path: b"/a", ..SpanTexts::default() };
            let mut out = Vec::new();
            describe_try(&SpanFacts::BLANK, &texts, &mut out);
            let of = |key: &str| match out.iter().find(|found| found.key == key)?.value.as_ref()?.value.as_ref()? {
                Value::StringValue(text) => Some(text.clone()),
                Value::IntValue(number) => Some(number.to_string()),
                _ => None,
            };
            assert_eq!(["url.full", "server.address", "server.port"].map(|key| of(key).unwrap_or_default()), told);
        }
    }
}
