//! One request with spans to the collector, and what came of it (the OTLP specification, "OTLP/HTTP").

use std::{io::Write as _, time::Duration};

use flate2::{Compression as Level, write::GzEncoder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    body::Bytes,
    header::{self, HeaderName, HeaderValue},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tokio::time::timeout;

use crate::{
    auth::https_connector,
    config::{Compression, Trace},
    telemetry::metrics::ExportFailure,
};

/// An answer is read up to so many bytes. It says how many spans were not taken, and why.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Characters of what a collector says that are told on.
const MESSAGE_MAX: usize = 200;
/// How long a connection waits for the next request: spans come each second or so while there are requests.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Where spans are sent, and how.
#[derive(Debug)]
pub(super) struct Endpoint {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    fields: HeaderMap,
    timeout: Duration,
    compression: Compression,
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The spans were taken, but for some.
    Taken { rejected: u64, message: String },
    /// Not now; after this time, if it said.
    Busy { after: Option<Duration> },
    /// Nobody answered.
    Failed { why: ExportFailure, detail: String },
    /// Not now and not later.
    Refused { detail: String },
}

impl Endpoint {
    /// Says what is wrong with the certificates.
    pub(super) fn new(url: &str, settings: &Trace) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("trace.endpoint: {error}"))?;
        let is_https = uri.scheme_str() == Some("https");
        let connector = https_connector(settings.ca_file.as_deref(), is_https)
            .map_err(|wrong| format!("trace.endpoint: {wrong}"))?;
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        let mut fields = HeaderMap::new();
        for (name, value) in settings.request_fields() {
            let (name, value) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.reveal()));
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                fields.append(name, value);
            }
        }
        // Credentials of the operator's may name another client.
        fields.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(concat!(
            "shardgate/",
            env!("CARGO_PKG_VERSION"),
            " (otlp)"
        )));
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if settings.compression == Compression::Gzip {
            fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(Self { client, uri, fields, timeout: settings.timeout, compression: settings.compression })
    }

    /// A body as it goes over the wire. Here, since one that waits may be sent by another configuration than it was made by.
    fn packed(&self, body: Bytes) -> Bytes {
        match self.compression {
            Compression::None => body,
            Compression::Gzip => {
                let mut packer = GzEncoder::new(Vec::with_capacity(body.len() / 4), Level::fast());
                // Writing to a vector cannot fail.
                let _ = packer.write_all(&body);
                packer.finish().unwrap_or_default().into()
            }
        }
    }

    /// Sends it. Dropping the future closes the connection.
    pub(super) async fn post(&self, body: Bytes) -> Answer {
        timeout(self.timeout, self.exchange(self.packed(body))).await.unwrap_or_else(|_| Answer::Failed {
            why: ExportFailure::Timeout,
            detail: format!("no answer within {:?}", self.timeout),
        })
    }

    async fn exchange(&self, body: Bytes) -> Answer {
        let mut request = Request::post(self.uri.clone());
        if let Some(fields) = request.headers_mut() {
            fields.clone_from(&self.fields);
        }
        let unreachable =
            |error: &dyn std::error::Error| Answer::Failed { why: ExportFailure::Unreachable, detail: chain(error) };
        let request = match request.body(Full::new(body)) {
            Ok(request) => request,
            Err(error) => return unreachable(&error),
        };
        let answer = match self.client.request(request).await {
            Ok(answer) => answer,
            Err(error) => return unreachable(&error),
        };
        let (status, after) = (answer.status(), retry_after(answer.headers()));
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        read(status, after, &body)
    }
}

/// What an answer means.
fn read(status: StatusCode, after: Option<Duration>, body: &[u8]) -> Answer {
    match status.as_u16() {
        200..=299 => {
            // Whoever says nothing that can be read took all.
            let partial = ExportTraceServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
            let (rejected, message) = partial.map_or((0, String::new()), |partial| {
                (u64::try_from(partial.rejected_spans).unwrap_or(0), shortened(&partial.error_message))
            });
            Answer::Taken { rejected, message }
        }
        429 | 502 | 503 | 504 => Answer::Busy { after },
        status => Answer::Refused { detail: format!("it answered {status}") },
    }
}

/// Seconds only (RFC 9110 §10.2.3); a date is passed over.
fn retry_after(fields: &HeaderMap) -> Option<Duration> {
    let seconds = fields.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_MAX).collect()
}

/// An error and what caused it, in one line. Fields are no part of it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    shortened(&text)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn check(status: u16, body: &[u8], expected: &Expect) {
        let status = StatusCode::from_u16(status).expect("a status");
        expected.assert_eq(&format!("{:?}", read(status, None, body)));
    }

    #[test]
    fn answers_mean_what_the_specification_says() {
        let partial = |rejected_spans, message: &str| {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: message.to_owned() };
            ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
        };
        check(200, b"", &expect![[r#"Taken { rejected: 0, message: "" }"#]]);
        check(200, &partial(0, "a warning"), &expect![[r#"Taken { rejected: 0, message: "a warning" }"#]]);
        check(200, &partial(3, "too old"), &expect![[r#"Taken { rejected: 3, message: "too old" }"#]]);
        check(200, &partial(-3, ""), &expect![[r#"Taken { rejected: 0, message: "" }"#]]);
        check(202, b"{\"partialSuccess\":{}}", &expect![[r#"Taken { rejected: 0, message: "" }"#]]);
        check(429, b"", &expect!["Busy { after: None }"]);
        check(503, b"", &expect!["Busy { after: None }"]);
        check(500, b"", &expect![[r#"Refused { detail: "it answered 500" }"#]]);
        check(301, b"", &expect![[r#"Refused { detail: "it answered 301" }"#]]);
        check(400, &[0xff; 9], &expect![[r#"Refused { detail: "it answered 400" }"#]]);
        let long = partial(1, &"x".repeat(10_000));
        let Answer::Taken { message, .. } = read(StatusCode::OK, None, &long) else { panic!("it was taken") };
        assert_eq!(message.len(), MESSAGE_MAX);
    }

    #[test]
    fn patience_is_asked_for_in_seconds() {
        for (value, after) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("-1", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", None),
            ("99999999999999999999", None),
        ] {
            let fields = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(value))]);
            assert_eq!(retry_after(&fields), after.map(Duration::from_secs), "{value}");
        }
    }
}
