//! `shardgate demo`: the gateway in front of three sample services, so that a first request needs no other program, and a
//! page to try the hub in a browser.

mod pages;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
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

use crate::{
    accounts::cli::{DEMO_USERS, add_demo_users},
    config::{Access, Config, Health, Instance, LogFormat, Route, ServerAddress, Upstream},
    server::{self, ProcessEnd},
    telemetry::log,
};

/// How long a sample service pauses between two words of its answer.
const WORD_INTERVAL: Duration = Duration::from_millis(300);
/// Where sample services say that they are well.
const HEALTH_PATH: &str = "/healthz";
/// What a sample service reads of a request at most.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Starts the sample services and runs the gateway in front of them until a signal ends it.
pub fn run(mut config: Config) -> anyhow::Result<ProcessEnd> {
    // A person tries it: what happens is told in words, also where it is piped into a file.
    if config.log.format == LogFormat::Auto {
        config.log.format = LogFormat::Text;
    }
    log::init(&config.log.level, config.log.format)?;
    for (name, service) in
        [("ingestion", Service::Ingestion), ("prediction", Service::Prediction), ("ai-engine", Service::AiEngine)]
    {
        let address = start(name, service)?;
        let upstream = config
            .upstreams
            .get_mut(name)
            .with_context(|| format!("the configuration has no upstream {name}; run the demo without one"))?;
        upstream.instances = vec![instance(address)];
        if upstream.health == Health::default() {
            upstream.health = probes();
        }
    }
    add_pages(&mut config)?;
    // Who comes and goes is worth seeing.
    config.hub.rooms.iter_mut().for_each(|room| room.presence_events = true);
    let loopback = |network: &str| network.parse().expect("a network");
    config.metrics.allow = ["127.0.0.0/8", "::1"].map(loopback).into();
    config.hub.echo = true;
    let data = Data::prepare(&mut config)?;
    add_demo_users(&config).context("the users of the demo cannot be added")?;
    let hints = |public: &[SocketAddr], operators: Option<SocketAddr>| {
        print_hints(public[0].port(), operators.map(|address| address.port()));
    };
    let ended = server::run(config, None, Box::new(hints));
    drop(data);
    ended
}

/// How the demo's services are probed: often, for who looks at it.
fn probes() -> Health {
    Health {
        path: Some(HEALTH_PATH.to_owned()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        ..Health::default()
    }
}

fn instance(address: SocketAddr) -> Instance {
    ServerAddress::Port { host: address.ip().to_string(), port: address.port() }.into()
}

/// Serves the page on a public route, unless the name or the path is taken.
fn add_pages(config: &mut Config) -> anyhow::Result<()> {
    let route = Route {
        access: Access::Public,
        ..Route::new(format!("{}/*", pages::PATH).parse().expect("a path with a star"), "pages")
    };
    let is_taken = config.routes.iter().any(|other| other.path.same_paths(&route.path));
    if is_taken || config.upstreams.contains_key(&route.upstream) {
        tracing::warn!(
            "the configuration has a route {} or an upstream {} of its own: the demo shows no page",
            route.path,
            route.upstream
        );
        return Ok(());
    }
    let address = start("pages", Service::Pages)?;
    let upstream = Upstream { health: probes(), ..Upstream::new(vec![instance(address)]) };
    config.upstreams.insert(route.upstream.clone(), upstream);
    config.routes.push(route);
    Ok(())
}

/// Where the demo keeps its users and sessions: a directory that goes with it, unless the environment names one.
struct Data {
    made: Option<PathBuf>,
}

impl Data {
    fn prepare(config: &mut Config) -> anyhow::Result<Self> {
        if config.data != Config::default().data {
            return Ok(Self { made: None });
        }
        let made = std::env::temp_dir().join(format!("shardgate-demo-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&made)
            .with_context(|| format!("the demo cannot make {} for its users", made.display()))?;
        config.data.dir.clone_from(&made);
        Ok(Self { made: Some(made) })
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Some(made) = &self.made
            && let Err(error) = std::fs::remove_dir_all(made)
        {
            tracing::warn!(%error, "{} could not be removed", made.display());
        }
    }
}

/// The services of the reference platform, in a few lines each.
#[derive(Clone, Copy)]
enum Service {
    Ingestion,
    Prediction,
    AiEngine,
    /// None of the platform's: the demo's page.
    Pages,
}

/// Starts a service on a thread of its own and any free port.
fn start(name: &'static str, service: Service) -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, serve(listener, service)),
            Err(error) => tracing::error!(%error, service = name, "a sample service could not be started"),
        }
    })?;
    Ok(address)
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

type Answer = Response<BoxBody<Bytes, Infallible>>;

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
        Service::Pages => pages::answer(&path),
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

/// Lines to paste into another terminal.
fn print_hints(port: u16, operators_port: Option<u16>) {
    let gateway = format!("http://localhost:{port}");
    let bearer = "-H \"Authorization: Bearer $TOKEN\"";
    let metrics = operators_port.map_or_else(String::new, |port| {
        format!("  curl -s http://localhost:{port}/metrics | grep shardgate_requests_total\n")
    });
    let [(email, _, password), ..] = DEMO_USERS;
    let path = pages::PATH;
    let users = DEMO_USERS.map(|(email, role, password)| format!("  {email} ({role}): {password}")).join("\n");
    eprintln!(
        "\nThe gateway listens on {gateway}, in front of three sample services. Users and their passwords:
{users}

In a browser, in two tabs: {gateway}{path}

In another terminal:\n
  TOKEN=$(curl -s {gateway}/auth/login -H 'Content-Type: application/json' -d '{{\"email\":\"{email}\",\"password\":\"{password}\"}}' | sed 's/.*\"accessToken\":\"\\([^\"]*\\)\".*/\\1/')
  curl -i {gateway}/auth/me {bearer}
  curl -i {gateway}/api/events {bearer} -d '{{\"type\":\"cart_abandoned\"}}'
  curl -i {gateway}/api/predict {bearer} -d '{{\"items\":[1,2]}}'
  curl -N {gateway}/api/ai/chat {bearer}
  curl -i {gateway}/health
{metrics}  curl -i -X POST {gateway}/auth/logout {bearer}

Ctrl-C ends it after the requests under way; a second Ctrl-C ends it at once.\n"
    );
}
