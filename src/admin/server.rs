//! The listener itself: connections, which page a path is, and who is shown it.

use std::{
    cell::Cell,
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::{
    Desk, Handshakes, HealthPage, Question, api,
    guard::{Access, Denied, is_from_elsewhere},
    pages,
    pieces::InPieces,
};
use crate::{
    net::network,
    shard::complaints::complain,
    telemetry::{format::Format, metrics::AdminRefusal},
};

/// The control thread answers within its turn; past this something is wrong with it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections served at once; operators and scrapers are few.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection lasts, and how long its last answer may take then: whoever does not read gives its place back.
const CONNECTION_TIME: Duration = Duration::from_mins(1);
const LAST_ANSWER_TIME: Duration = Duration::from_secs(10);
/// From a request's first byte to the end of its head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// So long whoever shows a wrong token waits for its answer, and so many may wait: places are for others.
const GUESS_TIME: Duration = Duration::from_secs(1);
const GUESSES_MAX: u32 = 4;

pub(super) type Answer = Response<Full<Bytes>>;

/// What was refused, by reason; and who guesses tokens. One per process.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [Cell<u64>; AdminRefusal::COUNT],
    /// Wrong tokens of the last second, but for those that were too many.
    guesses: Cell<u32>,
}

impl Refusals {
    /// How many there were of each reason.
    pub fn counts(&self) -> [u64; AdminRefusal::COUNT] {
        self.counts.each_ref().map(Cell::get)
    }

    pub(super) fn count(&self, reason: AdminRefusal) {
        let count = &self.counts[reason.index()];
        count.set(count.get() + 1);
    }

    /// A wrong token has come. Whether its sender may wait for the answer; it is remembered for that time, also if whoever
    /// sent it does not wait.
    fn note_guess(self: &Rc<Self>) -> bool {
        let has_room = self.guesses.get() < GUESSES_MAX;
        if has_room {
            self.guesses.set(self.guesses.get() + 1);
            let refusals = Rc::clone(self);
            tokio::task::spawn_local(async move {
                sleep(GUESS_TIME).await;
                refusals.guesses.set(refusals.guesses.get() - 1);
            });
        }
        has_room
    }
}

/// One client.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) desk: Desk,
    /// The address that it has come to.
    reached: Option<IpAddr>,
    pub(super) address: SocketAddr,
}

/// A connection that is open.
struct Open {
    /// Whether it is from this machine.
    is_own: bool,
    network: NonZero<u64>,
    /// Whether a request on it is being answered.
    is_asked: Cell<bool>,
    /// Another one needs its place.
    give_way: Notify,
    /// Its place is free, or it asks for nothing any more.
    changed: Rc<Notify>,
}

impl Open {
    fn new(from: IpAddr, changed: &Rc<Notify>) -> Self {
        Self {
            is_own: from.to_canonical().is_loopback(),
            network: network(from),
            is_asked: Cell::new(false),
            give_way: Notify::new(),
            changed: Rc::clone(changed),
        }
    }

    fn set_asked(&self, is_asked: bool) {
        self.is_asked.set(is_asked);
        self.changed.notify_one();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Serves until its thread ends; over TLS, where there are handshakes.
pub async fn serve(listener: TcpListener, desk: Desk, handshakes: Option<Handshakes>) {
    let changed = Rc::new(Notify::new());
    // Those that came first stand first.
    let mut all: VecDeque<Weak<Open>> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                make_room(&mut all, &changed).await;
                let open = Rc::new(Open::new(address.ip(), &changed));
                all.push_back(Rc::downgrade(&open));
                let reached = stream.local_addr().ok().map(|address| address.ip());
                let client = Client { desk: desk.clone(), reached, address };
                let handshakes = handshakes.clone();
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        () = begin(stream, client, handshakes, &open) => {}
                        () = open.give_way.notified() => {}
                    }
                });
            }
            Err(error) => {
                complain!(warn: %error, "the operator's listener could not accept; trying again");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Waits until there is a place for one more. Whoever only holds connections shall not keep those out who ask.
async fn make_room(all: &mut VecDeque<Weak<Open>>, changed: &Notify) {
    loop {
        all.retain(|open| open.strong_count() > 0);
        if all.len() < CONNECTIONS_MAX {
            return;
        }
        let open: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        if let Some(idle) = who_gives_way(&open) {
            idle.give_way.notify_one();
        }
        drop(open);
        changed.notified().await;
    }
}

/// Of those that ask for nothing, the first of the network that has the most connections: whoever opens many shall not keep
/// others out. This machine and all others have half of the places each, if they want them.
fn who_gives_way(all: &[Rc<Open>]) -> Option<&Rc<Open>> {
    let like = |is_like: &dyn Fn(&Open) -> bool| all.iter().filter(|other| is_like(other)).count();
    let share =
        |open: &Open| (like(&|other| other.is_own == open.is_own), like(&|other| other.network == open.network));
    // Of several that have as many it is the last that is found.
    all.iter().rev().filter(|open| !open.is_asked.get()).max_by_key(|open| share(open))
}

/// Serves a connection, after its handshake where there is one.
async fn begin(stream: TcpStream, client: Client, handshakes: Option<Handshakes>, open: &Open) {
    let Some(handshakes) = handshakes else { return serve_connection(stream, client, open).await };
    match handshakes.accept(stream, client.address.ip()).await {
        Ok(stream) => serve_connection(stream, client, open).await,
        Err(error) => {
            client.desk.refusals.count(AdminRefusal::Handshake);
            tracing::debug!(%error, from = %client.address, "a handshake with the operator's listener failed");
        }
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, client: Client, open: &Open) {
    let service = service_fn(|request| {
        let client = client.clone();
        async move {
            open.set_asked(true);
            let answer = client.answer(request).await;
            open.set_asked(false);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(InPieces(stream)), service);
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

impl Client {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let access = Arc::clone(&self.desk.access.borrow());
        if !access.is_own_host(request.uri(), request.headers(), self.reached) {
            self.desk.refusals.count(AdminRefusal::Host);
            return text(
                StatusCode::FORBIDDEN,
                "this Host is not one of the listener's: ask for localhost or for its address, or write the name in admin.hosts\n",
            );
        }
        let path = request.uri().path();
        if let Some(name) = path.strip_prefix("/api/").filter(|name| *name != "state") {
            let name = name.to_owned();
            return api::change(self, &access, &name, request).await;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this page is read with GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if let Some(file) = pages::file(path, request.headers()) {
            return file;
        }
        if path == "/health/live" {
            return page(StatusCode::OK, JSON, br#"{"status":"up"}"#.to_vec());
        }
        let is_about_traffic = matches!(path, "/health/ready" | "/health/ready/hub");
        if access.are_reads_guarded()
            && !is_about_traffic
            && let Err(answer) = self.who(&access, &request).await
        {
            return answer;
        }
        if path == "/api/state" && is_from_elsewhere(request.headers()) {
            return self.refuse_origin();
        }
        let format = Format::wanted(request.headers().get_all(ACCEPT).iter().map(HeaderValue::as_bytes));
        self.read(path, format).await.unwrap_or_else(|| text(StatusCode::SERVICE_UNAVAILABLE, NO_ANSWER))
    }

    /// What is read; `None` when the control thread does not answer in time.
    async fn read(&self, path: &str, format: Format) -> Option<Answer> {
        Some(match path {
            "/api/state" => page(StatusCode::OK, JSON, self.ask(Question::State).await?),
            "/metrics" => {
                let metrics = self.ask(|sender| Question::Metrics(format, sender)).await?;
                let mut page = page(StatusCode::OK, format.content_type(), Bytes::from_owner(Shared(metrics)));
                // RFC 9110 §12.5.5: which of two it is depends on what was asked for.
                page.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
                page
            }
            "/asyncapi.json" => page(StatusCode::OK, JSON, self.ask(Question::AsyncApi).await?.into_bytes()),
            "/health" => self.health(HealthPage::Whole).await?,
            "/health/ready" => self.health(HealthPage::Ready).await?,
            "/health/ready/hub" => self.health(HealthPage::ReadyHub).await?,
            _ => text(
                StatusCode::NOT_FOUND,
                "here are / (the dashboard), /api/state, /metrics, /health, /health/live, /health/ready, /health/ready/hub \
                 and /asyncapi.json\n",
            ),
        })
    }

    async fn health(&self, which: HealthPage) -> Option<Answer> {
        let (status, body) = self.ask(|answer| Question::Health(which, answer)).await?;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Some(page(status, JSON, body))
    }

    /// Asks the control thread; `None` when it does not answer in time.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.desk.questions.try_send(question(sender)).ok()?;
        timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()
    }

    /// Whose token the request shows, or its refusal, for which whoever guesses waits.
    pub(super) async fn who<'a>(&self, access: &'a Access, request: &Request<Incoming>) -> Result<&'a str, Answer> {
        let refusals = &self.desk.refusals;
        // A right token passes whoever guesses: behind somebody who ends TLS all have one address.
        let denied = match access.who(request.headers()) {
            Ok(name) => return Ok(name),
            Err(denied) => denied,
        };
        let (reason, status, code, detail) = match denied {
            Denied::NotConfigured => (
                AdminRefusal::NotConfigured,
                StatusCode::FORBIDDEN,
                "changes_not_configured",
                "no token is configured, so nothing can be changed here: write [[admin.tokens]] with a name, and the token \
                 in a file or as secret = \"${ADMIN_TOKEN}\" (`openssl rand -base64 32` makes one), and reload",
            ),
            Denied::Missing => (
                AdminRefusal::TokenMissing,
                StatusCode::UNAUTHORIZED,
                "token_missing",
                "this needs an operator's token, as a field: Authorization: Bearer TOKEN",
            ),
            Denied::Wrong => (
                AdminRefusal::TokenWrong,
                StatusCode::UNAUTHORIZED,
                "token_wrong",
                "this token is none of those in [[admin.tokens]] of the configuration in force",
            ),
            Denied::Several => (
                AdminRefusal::TokenWrong,
                StatusCode::UNAUTHORIZED,
                "token_wrong",
                "there are several Authorization fields; send the one with an operator's token",
            ),
        };
        if denied == Denied::Wrong {
            complain!(warn: from = %self.address, "an operator's token is wrong");
            if !refusals.note_guess() {
                refusals.count(AdminRefusal::TooManyGuesses);
                let detail = "this token is wrong, as several were in the last second; ask again in a second";
                let mut answer = problem(StatusCode::TOO_MANY_REQUESTS, "too_many_guesses", detail);
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                return Err(answer);
            }
        }
        refusals.count(reason);
        if denied == Denied::Wrong {
            sleep(GUESS_TIME).await;
        }
        let mut answer = problem(status, code, detail);
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"operators\""));
        }
        Err(answer)
    }

    pub(super) fn refuse_origin(&self) -> Answer {
        self.desk.refusals.count(AdminRefusal::Origin);
        problem(StatusCode::FORBIDDEN, "origin_refused", ELSEWHERE)
    }
}

pub(super) const JSON: &str = "application/json";
pub(super) const NO_ANSWER: &str = "the control thread has not answered within 5 seconds; ask again\n";
const ELSEWHERE: &str = "a page of another origin sends this; behind a proxy that changes Host, have it pass on the one that \
                         the browser sends";

fn text(status: StatusCode, body: &'static str) -> Answer {
    page(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

/// A refusal, as RFC 9457 has it.
pub(super) fn problem(status: StatusCode, code: &str, detail: &str) -> Answer {
    let document = json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(), "code": code, "detail": detail,
    });
    page(status, "application/problem+json", document.to_string().into_bytes())
}

/// A text that other answers share.
struct Shared(Arc<String>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

pub(super) fn page(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills all places, one after the other, and then so many come, each for one that gives way: how many are left of each.
    fn left(at_first: &[(&str, usize)], then: &[(&str, usize)]) -> Vec<usize> {
        let changed = Rc::default();
        let comers = |comers: &[(&str, usize)]| -> Vec<IpAddr> {
            let all = comers.iter().flat_map(|(from, count)| std::iter::repeat_n(*from, *count));
            all.map(|from| from.parse().expect("an address")).collect()
        };
        let mut all: Vec<_> = comers(at_first).into_iter().map(|from| Rc::new(Open::new(from, &changed))).collect();
        assert_eq!(all.len(), CONNECTIONS_MAX);
        for from in comers(then) {
            let leaves = Rc::clone(who_gives_way(&all).expect("nobody asks"));
            all.retain(|open| !Rc::ptr_eq(open, &leaves));
            all.push(Rc::new(Open::new(from, &changed)));
        }
        let of = |from: &str| network(from.parse().expect("an address"));
        let count = |from: &str| all.iter().filter(|open| open.network == of(from)).count();
        at_first.iter().map(|(from, _)| count(from)).collect()
    }

    #[test]
    fn whoever_opens_many_connections_keeps_nobody_out() {
        let operator = ("192.0.2.1", 2);
        assert_eq!(left(&[operator, ("192.0.2.2", 62)], &[("192.0.2.2", 500)]), [2, 62]);
        assert_eq!(left(&[operator, ("2001:db8::1", 62)], &[("2001:db8::2", 500)]), [2, 62], "they are one network");
        // From more addresses than there are places.
        let many: Vec<String> = (0..200).map(|number| format!("198.51.100.{number}")).collect();
        let many: Vec<_> = many.iter().map(|from| (from.as_str(), 1)).collect();
        assert_eq!(left(&[("127.0.0.1", 5), ("192.0.2.2", 59)], &many), [5, 0]);
        assert_eq!(left(&[operator, ("127.0.0.1", 62)], &[("127.0.0.1", 500)]), [2, 62]);
    }

    #[test]
    fn who_asks_for_something_gives_no_way() {
        let changed = Rc::default();
        let all: Vec<_> = ["192.0.2.1"; 3].map(|from| Rc::new(Open::new(from.parse().expect("one"), &changed))).into();
        all[0].set_asked(true);
        assert!(who_gives_way(&all).is_some_and(|open| Rc::ptr_eq(open, &all[1])), "the first that does not");
        for open in &all {
            open.set_asked(true);
        }
        assert!(who_gives_way(&all).is_none());
    }
}
