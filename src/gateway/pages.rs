//! What the gateway answers itself: pages of a few bytes, the metrics, and what `OPTIONS` is told.

use std::{net::IpAddr, time::Duration};

use super::{Gateway, Plan, body::Body, plan::OwnPage};
use crate::{
    exchange::{Code, Reject},
    proto::head::{Framing, Known, Method, RequestHead, ResponseHead, TargetForm},
    shard::{buffers, clock, timer},
    telemetry::format::Format,
};

/// What the gateway says of its health on the public listener: written by the control thread, shown by every shard.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// `GET /health`.
    pub health: Page,
    /// `GET /health/ready`.
    pub ready: Page,
    /// `GET /health/ready/hub`.
    pub ready_hub: Page,
}

/// A status and a JSON document.
#[derive(Clone, Debug)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// The document.
    pub body: Vec<u8>,
}

impl Default for Page {
    /// What is shown until the control thread has said anything.
    fn default() -> Self {
        Self { status: 503, body: br#"{"status":"unhealthy"}"#.to_vec() }
    }
}

/// How long a scrape waits for the control thread, which itself gives the shards one second.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Shows what the control thread says of the gateway's health from now on.
    pub fn show(&self, pages: Pages) {
        let replaced = self.pages.with(|current| std::mem::replace(current, pages));
        drop(replaced);
    }

    pub(super) fn own_page(&self, page: OwnPage) -> (ResponseHead, Body) {
        match page {
            OwnPage::Health => self.pages.with(|pages| json(&pages.health)),
            OwnPage::Ready => self.pages.with(|pages| json(&pages.ready)),
            OwnPage::ReadyHub => self.pages.with(|pages| json(&pages.ready_hub)),
            // The metrics have a step of their own.
            OwnPage::Live | OwnPage::Metrics => json(&Page { status: 200, body: br#"{"status":"up"}"#.to_vec() }),
            OwnPage::Jwks => own_answer(200, "application/json", KEYS_CACHED, &self.identity.key_set()),
        }
    }

    /// What all shards have counted, for those who may know: the control thread asks the shards, and this one among
    /// them, while the request waits.
    pub(super) async fn metrics(
        &self,
        plan: &Plan,
        client: IpAddr,
        format: Format,
    ) -> Result<(ResponseHead, Body), Reject> {
        if !plan.metrics_allowed.iter().any(|network| network.contains(client)) {
            return Err(Reject::new(Code::NotFound));
        }
        let asked = self.desks.metrics.ask(format).map_err(|_| Reject::new(Code::Overloaded))?;
        let told = timer::within(clock::now() + METRICS_TIMEOUT, asked).await;
        let text = told.ok_or_else(|| Reject::new(Code::Overloaded))?;
        let mut head = own_head(200, format.content_type(), NOT_CACHED, text.len());
        // RFC 9110 §12.5.5: which of two it is depends on what was asked for.
        head.push(Known::Vary, b"Vary", b"Accept");
        Ok((head, Body::Own(text.into())))
    }
}

/// In which format a request wants the metrics.
pub(super) fn metrics_format(head: &RequestHead) -> Format {
    let is_accept = |name: &[u8]| name.eq_ignore_ascii_case(b"accept");
    let fields = head.fields.iter().filter(|field| field.known == Known::Other && is_accept(head.text(field.name)));
    Format::wanted(fields.map(|field| head.text(field.value)))
}

/// What `Cache-Control` says of pages that are of this moment, or somebody's own.
pub(super) const NOT_CACHED: &[u8] = b"no-store";

/// And of the public keys: they are the same for everybody, and a new one is shown before it signs (docs/tokens.md).
const KEYS_CACHED: &[u8] = b"public, max-age=300";

/// A document of this moment.
pub(super) fn json(page: &Page) -> (ResponseHead, Body) {
    own_answer(page.status, "application/json", NOT_CACHED, &page.body)
}

/// An answer of the gateway's own.
pub(super) fn own_answer(status: u16, content_type: &str, cached: &[u8], body: &[u8]) -> (ResponseHead, Body) {
    (own_head(status, content_type, cached, body.len()), Body::Own(body.to_vec().into()))
}

fn own_head(status: u16, content_type: &str, cached: &[u8], length: usize) -> ResponseHead {
    let mut head = ResponseHead::new(status, buffers::take(), buffers::take_fields());
    head.framing = Framing::Length(length as u64);
    head.push(Known::ContentType, b"Content-Type", content_type.as_bytes());
    head.push(Known::Other, b"Cache-Control", cached);
    head
}

/// What `Allow` says where any method is taken.
pub(super) const USUAL_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// The answer to OPTIONS that nobody else is asked.
pub(super) fn answer_options(allow: &str) -> (ResponseHead, Body) {
    let mut answer = ResponseHead::new(204, buffers::take(), buffers::take_fields());
    answer.push(Known::Other, b"Allow", allow.as_bytes());
    (answer, Body::Own(Vec::new().into()))
}

/// What no route is asked about: `OPTIONS *` is about the gateway, and some methods it does not do for anybody.
pub(super) fn own_method(head: &RequestHead) -> Result<Option<(ResponseHead, Body)>, Reject> {
    match (head.method, head.form) {
        // RFC 9110 §9.3.7: it asks for nothing but an answer.
        (Method::Options, TargetForm::Asterisk) => Ok(Some(answer_options(USUAL_METHODS))),
        // RFC 9110 §9.3.6 and §9.3.8: a tunnel to anywhere, and an echo of what clients keep secret.
        (Method::Connect | Method::Trace, _) => {
            Err(Reject::because(Code::NotImplemented, "the gateway does not serve CONNECT and TRACE"))
        }
        _ => Ok(None),
    }
}
