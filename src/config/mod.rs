//! The configuration, checked: plain values that the other floors take their slices of.
//!
//! Whoever holds a [`Config`] need not check anything again: ranges, names, references and conflicts are checked in
//! [`fn@resolve`], where all mistakes are reported at once. [`keys`] is the one table of what can be written; defaults,
//! documentation, schema and the check for unknown keys follow from it. Acting on the values is for those who take them.
//!
//! Scope (shard, process, each) and what a reload applies are told per key in `docs/config.md`; here each field repeats
//! them in short: "reload" means that a reload applies it, "restart" that it needs a new process.

mod accounts;
mod address;
mod auth;
mod cors;
pub mod docs;
pub mod env;
pub mod keys;
mod limits;
mod listeners;
mod path;
mod print;
mod raw;
mod read;
mod redis;
mod resolve;
mod roles;
mod routes;
mod secret;
mod secret_file;
mod sessions;
#[cfg(test)]
mod tests;
mod units;
pub mod watch;

pub use accounts::{Accounts, postgres_url};
pub use address::{HostPattern, Instance, IpNet};
pub use auth::{Algorithm, Auth, SECRET_BYTES_MIN, TokenIssuer, TokenKey};
pub use cors::{Cors, ORIGIN_BYTES_MAX, OriginPattern, Port, RouteCors};
pub use limits::{LIMITS_PER_ROUTE_MAX, Limit, LimitApplies, LimitKey, LimitScope};
pub use listeners::{FurtherListener, ListenerKind, PublicListener};
pub use path::{PathPattern, Segment};
pub use read::{Mistake, Mistakes};
pub use redis::{Redis, RedisMode, RedisUrl};
pub use resolve::{INSTANCES_MAX, find, load, resolve};
pub use roles::{PERMISSION_FORM, is_permission, is_role};
pub use routes::{ACCOUNT_PATHS, OWN_PATHS};
pub use secret::{HIDDEN, Secret, trimmed};
pub use secret_file::{SecretFile, open_regular};
pub use sessions::{Revocation, RevocationFail, SessionStore, Sessions};
pub use units::{parse_duration, parse_size, written_duration, written_size};

use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured. One per process; a reload builds a new one.
///
/// It serialises to the TOML that would give it again ([`Config::to_toml`]).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Threads and how they wait for I/O.
    pub runtime: Runtime,
    /// The public listener.
    pub listener: Listener,
    /// Public listeners beside that one. Process, restart.
    pub listeners: Vec<FurtherListener>,
    /// The operator's listener.
    pub admin: Admin,
    /// Metrics on the public listener.
    pub metrics: Metrics,
    /// Limits and times of clients' requests.
    pub http: Http,
    /// Whose word about a request's origin counts.
    pub trust: Trust,
    /// What services are told of traces.
    pub trace: Trace,
    /// How the process stops.
    pub drain: Drain,
    /// What is kept on disk.
    pub data: Data,
    /// Where users are kept, and what a log-in may cost.
    pub accounts: Accounts,
    /// What is written where.
    pub log: Log,
    /// Tokens: keys, issuers, times.
    pub auth: Auth,
    /// Where Redis is.
    pub redis: Redis,
    /// Sessions.
    pub sessions: Sessions,
    /// How the log of revocations is followed.
    pub revocation: Revocation,
    /// What callers with a role may do, by the role's name. Process, reload.
    pub roles: BTreeMap<String, Role>,
    /// Who may call from a browser.
    pub cors: Cors,
    /// Limits of the rate of requests, by name.
    pub limits: BTreeMap<String, Limit>,
    /// The groups of servers behind the gateway, by name.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Which requests go where; names are unique and no two take the same requests.
    pub routes: Vec<Route>,
    /// What is allowed and yet looks like a slip, one sentence each; for the log and for `shardgate check`.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Threads, how they wait for I/O, and how names are looked up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Runtime {
    /// How many shards. `None` (written 0, the default): one per core that the process may use. Process, restart.
    #[serde(serialize_with = "units::zero_for_none")]
    pub shards: Option<usize>,
    /// The driver of all shards. Default `epoll`. Process, restart.
    pub driver: Driver,
    /// Whether each shard's thread stays on its core. Default true. Shard, restart.
    pub pin: bool,
    /// How long the names of instances may take to be looked up. Default 10 s. Process, reload.
    #[serde(serialize_with = "units::duration")]
    pub lookup_timeout: Duration,
}

/// How a shard waits for I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// `epoll(7)`.
    Epoll,
    /// `io_uring(7)`, where the kernel allows it.
    IoUring,
}

/// The public listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listener {
    /// The address that it binds. Default `0.0.0.0`. Process, restart.
    pub address: IpAddr,
    /// The port that it binds; 0 takes any free one. Default 3000, or `PORT`. Process, restart.
    pub port: u16,
    /// Connections that the kernel holds until they are accepted. Default 4096. Shard, restart.
    pub backlog: u32,
    /// Client connections open at once. `None` (written 0, the default): half of the process's file descriptors; see
    /// [`Listener::connections_allowed`]. Process, reload.
    #[serde(serialize_with = "units::zero_for_none")]
    pub connections_max: Option<usize>,
    /// Connections accepted in one go before the shard turns to those it has. Default 64. Shard, reload.
    pub accept_budget: usize,
    /// Whether a shard with clearly more connections than the least loaded hands fresh ones over. Default true.
    /// Process, reload.
    pub hand_over: bool,
}

impl Listener {
    /// How many client connections may be open at once when the process may hold this many file descriptors. Each
    /// proxied request may take one more for its upstream, hence the half.
    pub fn connections_allowed(&self, descriptors: u64) -> usize {
        let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        self.connections_max.unwrap_or(half).max(1)
    }
}

/// The operator's listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Admin {
    /// Whether there is one. Default true. Process, restart.
    pub enabled: bool,
    /// The address that it binds. Default `127.0.0.1`. Process, restart.
    pub address: IpAddr,
    /// The port that it binds; 0 takes any free one. Default 3001. Process, restart.
    pub port: u16,
}

/// Metrics on the public listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Clients that `GET /metrics` answers. Default none. Process, reload.
    pub allow: Vec<IpNet>,
}

/// Limits and times of clients' requests. All hold for each request or connection by itself; all follow a reload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Http {
    /// From a request's first byte to the end of its head (408). Default 10 s.
    #[serde(serialize_with = "units::duration")]
    pub header_timeout: Duration,
    /// From a request's first byte to the end of its body (408). Default 60 s.
    #[serde(serialize_with = "units::duration")]
    pub request_timeout: Duration,
    /// How long a connection may idle between two requests. Default 75 s.
    #[serde(serialize_with = "units::duration")]
    pub keep_alive_timeout: Duration,
    /// Bytes of a request's head (431). Default 32 KiB.
    #[serde(serialize_with = "units::size_in_memory")]
    pub head_bytes_max: usize,
    /// Fields of a request's head (431). Default 100.
    pub fields_max: usize,
    /// Bytes of a request's target (414). Default 8 KiB, never more than `head_bytes_max`.
    #[serde(serialize_with = "units::size_in_memory")]
    pub target_bytes_max: usize,
    /// Bytes of a request's body (413); 0 allows none. Default 1 MiB; a route may say otherwise.
    #[serde(serialize_with = "units::size")]
    pub body_bytes_max: u64,
    /// How long an answer's stream may stand still, either side. Default 5 min; a route may say otherwise.
    #[serde(serialize_with = "units::duration")]
    pub stream_idle_timeout: Duration,
    /// What becomes of the upstream's request when its client leaves. Default cancel; a route may say otherwise.
    pub on_client_close: ClientClose,
    /// Whether clients get the upstream's interim answers. Default true; a route may say otherwise.
    pub interim_answers: bool,
    /// Requests on one connection before it is closed; 0 is no limit. Default 0.
    pub requests_per_connection_max: u32,
}

/// What becomes of the upstream's request when its client leaves before the answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientClose {
    /// It is cancelled: the upstream's connection closes.
    Cancel,
    /// It goes on to its end and its answer is thrown away.
    Finish,
}

/// Whose word about a request's origin counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trust {
    /// Peers whose `X-Forwarded-*` is appended to instead of replaced. Default none. Process, reload.
    pub proxies: Vec<IpNet>,
}

/// What services behind the gateway are told of traces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// Which share of the traces they are to record, from 0 to 1. Default all. Process, reload.
    pub sample_ratio: f64,
}

/// How the process stops. `max` counts from the signal and is never less than `notice`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drain {
    /// From the signal on: not ready, yet still accepting, so that balancers can turn away. Default 5 s. Process, reload.
    #[serde(serialize_with = "units::duration")]
    pub notice: Duration,
    /// From the closing of the listeners on: tunnels end one by one within this time. Default 10 s. Process, reload.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
    /// After this long the rest is cut. Default 30 s. Process, reload.
    #[serde(serialize_with = "units::duration")]
    pub max: Duration,
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// The directory for it. Default `./data`. Process, restart.
    pub dir: PathBuf,
}

/// What is written where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Log {
    /// What the process tells of itself: a level, or `target=level` pairs with commas. Default `info`. Process, reload.
    pub level: String,
    /// How lines look. Default `auto`. Process, restart.
    pub format: LogFormat,
    /// Where the access log goes. Default stdout. Process, restart.
    pub access: AccessLog,
    /// Access-log bytes that wait to be written; when full, lines are dropped and counted. Default 2 MiB. Shard,
    /// restart.
    #[serde(serialize_with = "units::size_in_memory")]
    pub buffer_bytes: usize,
    /// How long an access-log line may wait. Default 200 ms. Shard, restart.
    #[serde(serialize_with = "units::duration")]
    pub flush_interval: Duration,
}

/// How the lines of the log and of the access log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON everywhere else; each of the two logs by where it goes.
    Auto,
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere (`"off"`).
    Off,
    /// Standard output (`"stdout"`).
    Stdout,
    /// The end of this file (a path with a slash in it).
    File(PathBuf),
}

impl Serialize for AccessLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::Stdout => serializer.serialize_str("stdout"),
            Self::File(path) => path.serialize(serializer),
        }
    }
}

/// What callers with a role may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Role {
    /// What it permits; see [`crate::auth::rbac`] for how they are compared.
    pub permissions: Vec<String>,
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Anybody; tokens are not looked at.
    Public,
    /// Callers with a valid token.
    Authenticated,
}

/// A group of servers that answer the same requests. All of it follows a reload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Upstream {
    /// Its servers; at least one, none twice.
    pub instances: Vec<Instance>,
    /// To open a connection. Default 1 s. Each.
    #[serde(serialize_with = "units::duration")]
    pub connect_timeout: Duration,
    /// From the request's last byte to the answer's head (504). Default 15 s; a route may say otherwise. Each.
    #[serde(serialize_with = "units::duration")]
    pub response_timeout: Duration,
    /// How long a connection is kept for reuse. Default 4 s. Each.
    #[serde(serialize_with = "units::duration")]
    pub idle_timeout: Duration,
    /// Connections kept for reuse, per instance. Default 64. Shard.
    pub idle_max: usize,
    /// Bytes of an answer's head (502). Default 64 KiB. Each.
    #[serde(serialize_with = "units::size_in_memory")]
    pub head_bytes_max: usize,
    /// Fields of an answer's head (502). Default 256. Each.
    pub fields_max: usize,
    /// Interim answers before the final one (502). Default 16. Each.
    pub interim_answers_max: u8,
    /// Requests in flight at once to all its instances; more are refused (503 `circuit_open`). Default 1024. Process.
    pub requests_max: u32,
    /// How many of these may have a body that is still coming in. Default half of `requests_max`. Process.
    pub uploads_max: Option<u32>,
    /// Methods with which its servers read bodies; `*` alone is all. Default POST, PUT and PATCH; a route may say otherwise.
    /// Each.
    pub body_methods: Vec<String>,
    /// Attempts beyond the first. Default 2; a route may say otherwise. Each.
    pub retries_max: u32,
    /// Retries as a share of requests, in percent. Default 20. Shard.
    pub retry_budget_percent: u32,
    /// Retries a second that are allowed whatever the share says. Default 3. Process.
    pub retry_budget_min_per_s: u32,
    /// Failures in a row that eject an instance; 0 ejects none. Default 5. Shard.
    pub outlier_failures: u32,
    /// How long it stays out, times how often it was ejected. Default 30 s. Shard.
    #[serde(serialize_with = "units::duration")]
    pub outlier_ejection: Duration,
    /// At most this share of the instances is out, in percent. Default 50. Shard.
    pub outlier_percent_max: u32,
}

/// Which requests go where, and what is changed about them. All of it follows a reload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key")]
pub struct Route {
    /// Its name in logs and metrics; the path as written unless given.
    pub name: String,
    /// The hosts it answers for; empty is any.
    pub hosts: Vec<HostPattern>,
    /// The paths it answers for.
    pub path: PathPattern,
    /// The methods it answers for; empty is any.
    pub methods: Vec<String>,
    /// The upstream; there is one of that name in [`Config::upstreams`].
    pub upstream: String,
    /// Who may use it. Default authenticated.
    pub access: Access,
    /// The caller has one of these roles, each of which is in [`Config::roles`]; empty is any.
    pub roles: Vec<String>,
    /// The caller has all of these permissions.
    pub permissions: Vec<String>,
    /// The parameter of the query that may hold the caller's token; never on a public route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_query: Option<String>,
    /// Whole segments taken from the path's front; never together with `rewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strip_prefix: Option<String>,
    /// The path that the upstream sees: `/v2/{id}/{rest}`, of whole segments; names only parameters that `path` has
    /// (`rest` is what its `/*` took).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
    /// Whether the upstream sees the client's `Host` instead of its own authority. Default false.
    pub preserve_host: bool,
    /// Whether the upstream sees `Authorization`. Default true.
    pub forward_authorization: bool,
    /// Whether `%2F` and `%5C` may stand in a path (400 otherwise). Default false.
    pub allow_encoded_slash: bool,
    /// Whether doubled slashes become one before routing and forwarding. Default true.
    pub merge_slashes: bool,
    /// Whether redirects and cookie paths of the upstream lead back through the gateway. Default true.
    pub rewrite_redirects: bool,
    /// Protocols that may be switched to. Default `websocket`.
    pub upgrades: Vec<String>,
    /// Instead of [`Http::body_bytes_max`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::optional_size")]
    pub body_bytes_max: Option<u64>,
    /// Instead of [`Upstream::body_methods`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_methods: Option<Vec<String>>,
    /// Instead of [`Upstream::response_timeout`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::optional_duration")]
    pub response_timeout: Option<Duration>,
    /// Instead of [`Http::request_timeout`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::optional_duration")]
    pub request_timeout: Option<Duration>,
    /// Instead of [`Http::stream_idle_timeout`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::optional_duration")]
    pub stream_idle_timeout: Option<Duration>,
    /// Instead of [`Http::on_client_close`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_client_close: Option<ClientClose>,
    /// Instead of [`Http::interim_answers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interim_answers: Option<bool>,
    /// Instead of [`Upstream::retries_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries_max: Option<u32>,
    /// The limits of its rate, each of which is in [`Config::limits`]. `None`: those that apply to all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Vec<String>>,
    /// What it says otherwise than [`Config::cors`].
    pub cors: RouteCors,
    /// Changes to the request's fields, after the gateway's own.
    pub request_headers: HeaderRules,
    /// Changes to the answer's fields, after the gateway's own.
    pub response_headers: HeaderRules,
}

/// Changes to a head's fields: first `remove`, then `set`, then `add`. Names and values are legal as they stand, and no
/// name is one that the gateway answers for (framing, hop-by-hop, `Host`, identity).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeaderRules {
    /// Fields to take out.
    pub remove: Vec<String>,
    /// Fields to have once, with this value.
    pub set: BTreeMap<String, String>,
    /// Fields to have besides those that are there.
    pub add: BTreeMap<String, String>,
}

impl HeaderRules {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}
