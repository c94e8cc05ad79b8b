//! The connection to Redis, kept up: one server, the server that sentinels name, or a cluster; with or without TLS.
//!
//! A task of its own connects, asks once a second whether the server is there, and connects anew, with growing pauses,
//! when it is not. Whoever asks for something never waits for that: while Redis is away the answer is [`RedisFailure::Away`],
//! at once. What is asked, and what follows from Redis being away, is for the floors above.
//!
//! For the bridge: it needs a tokio runtime with I/O and time.

mod channels;
mod keeper;
mod link;

use std::cell::Cell;
use std::fmt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use redis::cluster::ClusterClientBuilder;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo as _, ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, TlsMode,
};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::config::{self, RedisMode};
use crate::shard::clock::{self, Instant};
pub use channels::{Push, Pushes};
use link::Line;
pub use link::{Link, Script};

/// Why something was not done, or nobody knows whether it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisFailure {
    /// Redis cannot be reached, or it did not answer in time. A change may have been made.
    #[error("Redis is away: {}", .0.word())]
    Away(Outage),
    /// Redis came to it too late, and changed nothing; see [`Redis::run_in_time`].
    #[error("Redis came to it too late, and changed nothing")]
    Late,
    /// Redis is there and takes no changes now: its memory is full, it follows another server, its disk fails.
    #[error("Redis takes no changes: {}", .0.word())]
    NoChanges(Outage, Box<str>),
    /// Redis answered that it will not do it, or with something else than was expected.
    #[error("Redis refused a command")]
    Refused(#[source] RedisError),
}

impl RedisFailure {
    /// Whether it would be the same for any other command now.
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

/// Tells the server's time, on the server that has the key.
const CLOCK: &str = "return redis.call('TIME')";

/// Why Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// Nothing has been tried yet.
    Unknown,
    /// No answer in time.
    Timeout,
    /// Nobody listens there.
    Refused,
    /// The connection broke, or TLS failed.
    Broken,
    /// The user or the password is wrong.
    Login,
    /// It is there and cannot serve: it loads, follows another one, lost its cluster; or the sentinels know no server.
    NotReady,
    /// It follows another server.
    ReadOnly,
    /// It has as much as it may (`maxmemory`), and lets nothing go for it.
    OutOfMemory,
    /// It could not write its data to its disk.
    NotSaved,
    /// Fewer servers follow it than it is told to want (`min-replicas-to-write`).
    TooFewReplicas,
}

impl Outage {
    /// As health reports show it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Login => "login",
            Self::NotReady => "not_ready",
            Self::ReadOnly => "read_only",
            Self::OutOfMemory => "out_of_memory",
            Self::NotSaved => "not_saved",
            Self::TooFewReplicas => "too_few_replicas",
        }
    }

    /// What an operator does about a server that takes no changes.
    const fn advice(self) -> &'static str {
        match self {
            Self::ReadOnly => "name its master in redis.urls, or its sentinels",
            Self::OutOfMemory => "give it more memory (maxmemory), or find who fills it",
            Self::NotSaved => "look at its log and its disk",
            Self::TooFewReplicas => "look at its replicas (min-replicas-to-write)",
            _ => "look at its log",
        }
    }

    /// Why the server takes no changes, if it says that.
    fn of_no_changes(error: &RedisError) -> Option<Self> {
        let class = |code| {
            Some(match code {
                "READONLY" => Self::ReadOnly,
                "OOM" => Self::OutOfMemory,
                "MISCONF" => Self::NotSaved,
                "NOREPLICAS" => Self::TooFewReplicas,
                _ => return None,
            })
        };
        // Before Redis 7 the code stands within what a script's error tells.
        let within = || {
            let words = error.detail()?.split([' ', '-']);
            words.filter(|word| error.code() == Some("ERR") && word.len() > 2).find_map(class)
        };
        error.code().and_then(class).or_else(within)
    }

    /// Why the connection is of no use after this error; `None` if it still is.
    fn of(error: &RedisError) -> Option<Self> {
        match error.kind() {
            _ if error.is_timeout() => Some(Self::Timeout),
            _ if error.is_connection_refusal() => Some(Self::Refused),
            ErrorKind::AuthenticationFailed => Some(Self::Login),
            ErrorKind::Io | ErrorKind::Parse => Some(Self::Broken),
            ErrorKind::MasterNameNotFoundBySentinel
            | ErrorKind::NoValidReplicasFoundBySentinel
            | ErrorKind::ClusterConnectionNotFound
            | ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain,
            ) => Some(Self::NotReady),
            // It became another's replica while it was asked for what is new.
            ErrorKind::Extension if error.code() == Some("UNBLOCKED") => Some(Self::NotReady),
            ErrorKind::Extension if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => Some(Self::Login),
            _ => None,
        }
    }
}

/// How Redis is. Moves between threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Why it is away; `None` while it answers.
    pub away: Option<Outage>,
    /// Why it takes no changes though it answers; `None` while it does.
    pub refuses: Option<Outage>,
    /// How long the latest question whether it is there took.
    pub latency: Duration,
    /// When that was: the time since 1970.
    pub checked_at: Duration,
}

impl Status {
    fn now(away: Option<Outage>, refuses: Option<Outage>, latency: Duration) -> Self {
        Self { away, refuses, latency, checked_at: clock::unix_now() }
    }

    /// Whether it answers and takes changes.
    pub const fn is_up(&self) -> bool {
        self.away.is_none() && self.refuses.is_none()
    }
}

/// What makes connections: the configuration, checked as far as it can be without connecting. One per process.
#[derive(Clone)]
pub struct Address {
    kind: Topology,
    /// Where it is, or its sentinels or nodes are, as the log calls them.
    servers: Box<str>,
    connect_timeout: Duration,
    answer_timeout: Duration,
}

#[derive(Clone)]
enum Topology {
    Single(Client),
    Sentinel { sentinels: Vec<ConnectionAddr>, server: Box<Server> },
    Cluster { nodes: Vec<ConnectionInfo>, certificates: Option<TlsCertificates> },
}

/// What the server behind sentinels is asked with.
#[derive(Clone)]
struct Server {
    name: String,
    login: config::RedisUrl,
    sentinel_password: Option<config::Secret>,
    certificates: Option<TlsCertificates>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").finish_non_exhaustive()
    }
}

impl Address {
    /// Reads the certificates, if a file is given. Nothing is connected yet. Panics where no Redis is configured.
    pub fn new(config: &config::Redis) -> anyhow::Result<Self> {
        let first = config.urls.first().expect("whoever has no Redis does not come here");
        let certificates = config.ca_file.as_deref().map(read_certificates).transpose()?;
        let kind = match config.mode {
            RedisMode::Single => {
                let info = connection_info(first)?;
                Topology::Single(match certificates.filter(|_| first.is_tls) {
                    Some(certificates) => Client::build_with_tls(info, certificates)?,
                    None => Client::open(info)?,
                })
            }
            RedisMode::Sentinel => {
                let sentinels = config.urls.iter().map(address).collect();
                let server = Server {
                    name: config.master.clone(),
                    login: first.clone(),
                    sentinel_password: config.sentinel_password.clone(),
                    certificates,
                };
                Topology::Sentinel { sentinels, server: Box::new(server) }
            }
            RedisMode::Cluster => {
                let nodes = config.urls.iter().map(connection_info).collect::<Result<_, _>>()?;
                Topology::Cluster { nodes, certificates }
            }
        };
        let servers = servers(config);
        Ok(Self { kind, servers, connect_timeout: config.connect_timeout, answer_timeout: config.timeout })
    }

    /// Where it is, as the log calls it.
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// Opens a connection of its own, on which an answer may take `longer` than is configured: for commands that wait.
    pub async fn connect(&self, longer: Duration) -> Result<Link, RedisFailure> {
        let answer_timeout = self.answer_timeout + longer;
        let times = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(answer_timeout));
        let connecting = async {
            let line = match &self.kind {
                Topology::Single(client) => {
                    Line::One(client.get_multiplexed_async_connection_with_config(&times).await?)
                }
                Topology::Sentinel { sentinels, server } => {
                    let mut client = sentinel_client(sentinels, server, ProtocolVersion::RESP2)?;
                    Line::One(client.get_async_connection_with_config(&times).await?)
                }
                Topology::Cluster { nodes, certificates } => {
                    let client = self.cluster_builder(nodes, certificates.as_ref(), answer_timeout).build()?;
                    Line::Cluster(client.get_async_connection().await?)
                }
            };
            Ok(Link { line, answer_timeout })
        };
        // Sentinels and nodes are asked one after another, so the whole has its own bound.
        link::answer_of(timeout(2 * self.connect_timeout, connecting).await)
    }

    fn cluster_builder(
        &self,
        nodes: &[ConnectionInfo],
        certificates: Option<&TlsCertificates>,
        answer_timeout: Duration,
    ) -> ClusterClientBuilder {
        let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
            .connection_timeout(self.connect_timeout)
            .response_timeout(answer_timeout)
            // A failover takes seconds; whoever asks is not to wait for it.
            .retries(2)
            .min_retry_wait(10)
            .max_retry_wait(100);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates.clone());
        }
        builder
    }
}

fn sentinel_client(
    sentinels: &[ConnectionAddr],
    server: &Server,
    protocol: ProtocolVersion,
) -> RedisResult<SentinelClient> {
    let Server { name, login, sentinel_password, certificates } = server;
    let mut builder = SentinelClientBuilder::new(sentinels.iter().cloned(), name, SentinelServerType::Master)?
        .set_client_to_redis_db(login.database.into())
        .set_client_to_redis_protocol(protocol);
    if login.is_tls {
        builder =
            builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
    }
    if let Some(username) = &login.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &login.password {
        builder = builder.set_client_to_redis_password(password.reveal());
    }
    if let Some(password) = sentinel_password {
        builder = builder.set_client_to_sentinel_password(password.reveal());
    }
    builder.build()
}

fn read_certificates(path: &Path) -> anyhow::Result<TlsCertificates> {
    let pem = std::fs::read(path).map_err(|error| {
        anyhow::anyhow!("redis.ca_file: {}: {error}; it is a file of certificates (PEM)", path.display())
    })?;
    Ok(TlsCertificates { client_tls: None, root_cert: Some(pem) })
}

/// Where it is, or its sentinels or nodes are: hosts and ports, without what one logs in with.
pub fn servers(config: &config::Redis) -> Box<str> {
    let server = |url: &config::RedisUrl| {
        if url.host.contains(':') {
            format!("[{}]:{}", url.host, url.port)
        } else {
            format!("{}:{}", url.host, url.port)
        }
    };
    let servers: Vec<_> = config.urls.iter().map(server).collect();
    servers.join(" ").into()
}

fn address(url: &config::RedisUrl) -> ConnectionAddr {
    let (host, port) = (url.host.clone(), url.port);
    if url.is_tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn connection_info(url: &config::RedisUrl) -> RedisResult<ConnectionInfo> {
    let mut login = RedisConnectionInfo::default().set_db(url.database.into());
    if let Some(username) = &url.username {
        login = login.set_username(username);
    }
    if let Some(password) = &url.password {
        login = login.set_password(password.reveal());
    }
    Ok(address(url).into_connection_info()?.set_redis_settings(login))
}

/// A connection that is kept up. Clones share it. When the last is gone, so is the task that keeps it up.
#[derive(Clone)]
pub struct Redis {
    address: Address,
    clock: Rc<Script>,
    state: watch::Receiver<LinkState>,
    /// What was noticed on a connection, by its number.
    noticed: mpsc::UnboundedSender<(u64, Noticed)>,
    /// When the log was last told that a command was refused.
    complained_at: Rc<Cell<Option<Instant>>>,
}

/// What whoever uses a connection tells the task that keeps it up.
enum Noticed {
    /// It is of no use any more.
    Failed(Outage),
    /// The server takes no changes, and says so.
    Refused(Outage, Box<str>),
}

#[derive(Clone)]
struct LinkState {
    /// Counts connections.
    number: u64,
    link: Option<Link>,
    status: Status,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Redis {
    /// Starts to connect. Within a tokio runtime.
    pub fn start(address: Address) -> Self {
        let state =
            LinkState { number: 0, link: None, status: Status::now(Some(Outage::Unknown), None, Duration::ZERO) };
        let (tell, state) = watch::channel(state);
        let (noticed, notices) = mpsc::unbounded_channel();
        tokio::spawn(keeper::keep_up(address.clone(), tell, notices));
        Self { address, clock: Rc::new(Script::new(CLOCK)), state, noticed, complained_at: Rc::default() }
    }

    /// Asks, and waits for the answer as long as is configured; less long while Redis is known to be away.
    ///
    /// Dropping the future does not take the command back.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisFailure> {
        let (number, mut link) = self.link().await?;
        self.watched(number, link.ask(command).await)
    }

    /// Runs a script; see [`Link::run`].
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<T, RedisFailure> {
        let (number, mut link) = self.link().await?;
        self.watched(number, link.run(script, keys, arguments).await)
    }

    /// Runs a script that changes nothing once whoever asked has been told that Redis is away: what a server that hangs
    /// finds in its sockets when it goes on was given up long before, and may have been asked for again.
    ///
    /// The script gets one more argument, before the others: until when it may change anything, in Unix milliseconds by
    /// the clock of the server that has the first key; after that it answers with an error that begins with `LATE`. The
    /// server is asked for its time first, each time: one more round trip, and no clock that was compared long ago, with
    /// another server, before somebody set it. A server that stood still together with its clock (a frozen machine)
    /// comes to it in time by its own clock, and so does one whose clock was set back between the two questions.
    ///
    /// Nor is anything changed later than `until`, by this machine's clock: when whoever asked has had enough.
    ///
    /// A change may still have been made if the failure is [`RedisFailure::Away`]: the answer may have been lost.
    pub async fn run_in_time<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
        until: Instant,
    ) -> Result<T, RedisFailure> {
        let (number, mut link) = self.link().await?;
        self.watched(number, link.run_in_time(&self.clock, script, keys, arguments, until).await)
    }

    /// How it is.
    pub fn status(&self) -> Status {
        self.state.borrow().status.clone()
    }

    /// Waits until the status is another one, or was looked at again.
    pub async fn changed(&mut self) {
        // The task that tells lives as long as we do.
        let _ = self.state.changed().await;
    }

    /// For connections of one's own.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The connection; waited for only when the process has just started.
    async fn link(&self) -> Result<(u64, Link), RedisFailure> {
        let mut state = self.state.clone();
        let first = state.wait_for(|state| state.link.is_some() || state.status.away != Some(Outage::Unknown));
        let Ok(Ok(state)) = timeout(2 * self.address.connect_timeout, first).await else {
            return Err(RedisFailure::Away(Outage::Timeout));
        };
        match &state.link {
            Some(link) => Ok((state.number, link.clone())),
            None => Err(RedisFailure::Away(state.status.away.unwrap_or(Outage::Unknown))),
        }
    }

    /// Tells the log of a command that is refused for another reason than that none is taken: a mistake of ours or of who
    /// set Redis up. Now and then: each request may meet it.
    fn complain(&self, error: &RedisError) {
        let now = clock::now();
        if self.complained_at.get().is_none_or(|at| now.since(at) >= COMPLAINT_INTERVAL) {
            self.complained_at.set(Some(now));
            tracing::error!(%error, "Redis refused a command; this is told once a minute at most");
        }
    }

    fn watched<T>(&self, number: u64, answer: Result<T, RedisFailure>) -> Result<T, RedisFailure> {
        // If nobody listens the runtime ends.
        match &answer {
            Err(RedisFailure::Away(class)) => drop(self.noticed.send((number, Noticed::Failed(*class)))),
            Err(RedisFailure::NoChanges(class, said)) => {
                let _ = self.noticed.send((number, Noticed::Refused(*class, said.clone())));
            }
            Err(RedisFailure::Refused(error)) => self.complain(error),
            Ok(_) | Err(RedisFailure::Late) => {}
        }
        answer
    }
}

/// How often the log is told that Redis refused a command, at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);
