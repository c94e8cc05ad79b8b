//! The sample services, in a few lines each.

use std::{convert::Infallible, time::Duration};

use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::pages;

/// How long a sample service pauses between two words of its answer.
const WORD_INTERVAL: Duration = Duration::from_millis(300);
/// Where sample services say that they are well.
pub(super) const HEALTH_PATH: &str = "/healthz";
/// What a sample service reads of a request at most.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Service {
    /// Takes events of carts.
    Ingestion,
    /// Says how likely a cart is recovered.
    Prediction,
    /// Answers word by word.
    AiEngine,
    /// The demo's own page, which says on which port it is over TLS.
    #[value(skip)]
    Pages {
        /// That port, if there is one.
        tls: Option<u16>,
    },
}

/// Serves on this socket until its thread ends.
pub(super) fn run(listener: std::net::TcpListener, service: Service) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(listener, service));
    Ok(())
}

async fn serve(listener: std::net::TcpListener, service: Service) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve_connection(stream, service));
        }
    }
}

async fn serve_connection(stream: TcpStream, service: Service) {
    let answer = service_fn(move |request| async move { Ok::<_, Infallible>(answer(service, request).await) });
    // The gateway closes idle connections; that is no error of the service.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

pub(super) type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(service: Service, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let request_id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("").to_owned();
    let body = http_body_util::Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let Ok(body) = body.map(http_body_util::Collected::to_bytes) else {
        return document(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "the body is too large"}));
    };
    if path == HEALTH_PATH {
        return document(StatusCode::OK, &json!({"status": "up"}));
    }
    match service {
        Service::Ingestion => {
            let accepted = json!({"accepted": true, "path": path, "bytes": body.len(), "requestId": request_id});
            document(StatusCode::ACCEPTED, &accepted)
        }
        Service::Prediction => {
            // A toy that still depends on what it is asked: fuller carts are recovered more often.
            let cart: Value = serde_json::from_slice(&body).unwrap_or_default();
            let items = cart["items"].as_array().map_or(0, Vec::len);
            let items = f64::from(u32::try_from(items).unwrap_or(u32::MAX));
            let recovers = 1.0 - 0.8 / (1.0 + items);
            document(StatusCode::OK, &json!({"recoveryProbability": recovers, "requestId": request_id}))
        }
        Service::AiEngine => words(),
        Service::Pages { tls } => pages::answer(&path, tls),
    }
}

fn document(status: StatusCode, document: &Value) -> Answer {
    let mut response = Response::new(Full::from(document.to_string() + "\n").boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A stream of server-sent events, a word each, as language models answer.
fn words() -> Answer {
    const WORDS: [&str; 9] = ["Your", "cart", "still", "waits", "for", "you:", "two", "items", "left."];
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    tokio::task::spawn_local(async move {
        for word in WORDS {
            let event = Frame::data(Bytes::from(format!("data: {}\n\n", json!({"word": word}))));
            // The reader may leave at any time.
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
            tokio::time::sleep(WORD_INTERVAL).await;
        }
        let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"event: done\ndata: {}\n\n")))).await;
    });
    let mut response = Response::new(StreamBody::new(Frames(receiver)).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The receiving end as the stream that a body is made of.
struct Frames(tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
