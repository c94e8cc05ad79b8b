//! The operator's listener: health with details, metrics, the hub's `AsyncAPI` document. Served by the control thread, so that a
//! stuck shard cannot hide.
//!
//! Pages in a browser reach loopback too, so the `Host` of every request is checked (DNS rebinding).

pub mod asyncapi;
pub mod health;

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use crate::telemetry::exposition;

/// The control thread answers within its turn; past this something is wrong with it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections served at once; operators and scrapers are few.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection lasts, and how long its last answer may take then: whoever does not read gives its place back.
const CONNECTION_TIME: Duration = Duration::from_mins(1);
const LAST_ANSWER_TIME: Duration = Duration::from_secs(10);
/// From a request's first byte to the end of its head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the listener asks of the control thread. The answer goes to the sender.
#[derive(Debug)]
pub enum Question {
    /// All metrics, as Prometheus reads them.
    Metrics(oneshot::Sender<String>),
    /// A page about health.
    Health(HealthPage, oneshot::Sender<(u16, Vec<u8>)>),
    /// The hub as it is configured.
    AsyncApi(oneshot::Sender<String>),
}

/// The pages about health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPage {
    /// `GET /health`: every part, with details.
    Whole,
    /// `GET /health/ready`: whether traffic should come here.
    Ready,
    /// `GET /health/ready/hub`: whether sockets should come here.
    ReadyHub,
}

/// Serves until its thread ends.
pub async fn serve(listener: TcpListener, questions: mpsc::Sender<Question>) {
    let bound = listener.local_addr().ok();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::task::spawn_local(async move {
                    serve_connection(stream, bound, questions).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the operator's listener could not accept; trying again");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, bound: Option<SocketAddr>, questions: mpsc::Sender<Question>) {
    let service = service_fn(|request| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(answer(&request, bound, &questions).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(CONNECTION_TIME) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the operator's listener ended early");
    }
}

async fn answer(
    request: &Request<Incoming>,
    bound: Option<SocketAddr>,
    questions: &mpsc::Sender<Question>,
) -> Response<Full<Bytes>> {
    if !is_own_host(request.headers().get(HOST), bound) {
        return text(StatusCode::FORBIDDEN, "the Host is not one of this listener's; use localhost or its address\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this listener is read with GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let answered = match request.uri().path() {
        "/metrics" => ask(questions, Question::Metrics)
            .await
            .map(|metrics| page(StatusCode::OK, exposition::CONTENT_TYPE, metrics.into_bytes())),
        "/asyncapi.json" => ask(questions, Question::AsyncApi)
            .await
            .map(|document| page(StatusCode::OK, "application/json", document.into_bytes())),
        "/health" => health(questions, HealthPage::Whole).await,
        "/health/ready" => health(questions, HealthPage::Ready).await,
        "/health/ready/hub" => health(questions, HealthPage::ReadyHub).await,
        "/health/live" => Some(page(StatusCode::OK, "application/json", br#"{"status":"up"}"#.to_vec())),
        _ => Some(text(
            StatusCode::NOT_FOUND,
            "here are /metrics, /health, /health/live, /health/ready, /health/ready/hub and /asyncapi.json\n",
        )),
    };
    answered.unwrap_or_else(|| text(StatusCode::SERVICE_UNAVAILABLE, "the control thread does not answer\n"))
}

async fn health(questions: &mpsc::Sender<Question>, which: HealthPage) -> Option<Response<Full<Bytes>>> {
    let (status, body) = ask(questions, |answer| Question::Health(which, answer)).await?;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    Some(page(status, "application/json", body))
}

/// Asks the control thread; `None` when it does not answer in time.
async fn ask<T>(
    questions: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (sender, answer) = oneshot::channel();
    questions.try_send(question(sender)).ok()?;
    timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()
}

/// Whether a request means this listener: by `localhost`, by a loopback address or by the address that it is bound to.
fn is_own_host(host: Option<&HeaderValue>, bound: Option<SocketAddr>) -> bool {
    let Some(host) = host.and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) && !port.is_empty() => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    address.is_ok_and(|address| address.is_loopback() || bound.is_some_and(|bound| bound.ip() == address))
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn page(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_hosts_are_served() {
        let bound = Some("10.1.2.3:3001".parse().expect("an address"));
        for (host, is_own) in [
            ("localhost", true),
            ("LOCALHOST:3001", true),
            ("127.0.0.1:3001", true),
            ("127.9.9.9", true),
            ("[::1]:3001", true),
            ("10.1.2.3:3001", true),
            ("10.1.2.4:3001", false),
            ("evil.example", false),
            ("evil.example:3001", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_own_host(HeaderValue::from_str(host).ok().as_ref(), bound), is_own, "{host}");
        }
        assert!(!is_own_host(None, bound));
    }
}
