//! The one table of what a configuration can say. A key is one row; its field, how it is read and written, its default,
//! whether a reload applies it, `docs/config.md`, the JSON schema, its environment variable and the check for unknown keys
//! follow from it (decision 15).
//!
//! ```text
//! section! {
//!     /// The public listener.
//!     Listener = Once "listener", per Process, by Restart {
//!         /// Connections that the kernel holds for a shard until it accepts them.
//!         backlog: u32 as Number(1, 65_535) = 4096, e.g. 1024, per Shard;
//!     }
//! }
//! ```
//!
//! | of a section | |
//! | --- | --- |
//! | `/// The public listener.` | what it is for, in `docs/config.md` and for the struct |
//! | `Listener = Once "listener"` | the struct, how often it stands in the file ([`Shape`]), its name there |
//! | `per Process, by Restart` | what numbers count for ([`Scope`]) and what applies other values ([`Change`]), unless a row says otherwise |
//! | `with { … }` | fields for the sections inside it, which its own file reads |
//!
//! | of a key | |
//! | --- | --- |
//! | `/// Connections …` | what it does, in Markdown, for the document and for the field |
//! | `backlog: u32` | its name and type |
//! | `as Number(1, 65_535)` | what may be written (a [`Kind`]), where the type alone does not say it |
//! | `= 4096` | its default, as TOML; or `= unset "words"`, what holds then; or `= required` |
//! | `e.g. 1024` | another value: the schema shows it, and the tests prove with it that the key acts |
//! | `per Shard`, `by Reload` | where it differs from its section |
//!
//! An optional type with a default in TOML has `None` for that default: the gateway decides.
//!
//! To add a key, write its row, use its field, show it in `shardgate.example.toml`, and run the tests with `UPDATE_DOCS=1` and
//! `UPDATE_EXPECT=1`. What holds between keys is checked in the section's own file (`cors`, `limits`, `routes` and others), or
//! in `resolve`. A new type is `Written` (in `values`), most easily as `AsText` or, where it is one of some words, by `words!`.
//!
//! [`Shape`]: super::key::Shape
//! [`Scope`]: super::key::Scope
//! [`Change`]: super::key::Change

mod hub;
mod identity;
mod overload;
mod process;
mod requests;
pub(super) mod section;
mod services;
mod tokens;

pub use hub::{Hub, HubEventType, HubRoom, HubService, HubShare, SlowConsumer, WithoutRedis};
pub use identity::{Accounts, Redis, RedisMode, Revocation, RevocationFail, Role, SessionStore, Sessions};
pub use overload::{Deadline, DeadlineFrom, Shedding};
pub use process::{
    AccessLog, Admin, AdminToken, Clickhouse, Data, Discovery, DnsAddress, Drain, Driver, FurtherListener, Listener,
    ListenerKind, Log, LogFormat, Metrics, ProxyProtocol, Runtime, Tls, TlsCertificate,
};
pub use requests::{
    Access, Balance, Breaker, ClientClose, Compression, Cors, Discover, HeaderRules, Health, Http, Limit, LimitApplies,
    LimitKey, LimitScope, ProbeKind, RetryOn, Route, RouteCors, Trace, Trust, Upstream,
};
pub use services::UpstreamTls;
pub use tokens::{Algorithm, Auth, TokenIssuer, TokenKey};

use super::key::{Kind, Section};
use super::raw;
use super::report::Report;
use section::{FromFields as _, Part, config};
use std::collections::BTreeMap;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

impl Kind {
    const GRANTED: Self =
        Self::List("permission, as `events:write`; `events:*` stands for all that begin so, `*` for all");
}

/// All sections, in the order in which they are documented and printed.
pub const SECTIONS: &[&Section] = &[
    Runtime::SECTION,
    Discovery::SECTION,
    Listener::SECTION,
    FurtherListener::SECTION,
    Tls::SECTION,
    TlsCertificate::SECTION,
    Admin::SECTION,
    AdminToken::SECTION,
    Metrics::SECTION,
    Http::SECTION,
    Trust::SECTION,
    Trace::SECTION,
    Deadline::SECTION,
    Shedding::SECTION,
    Drain::SECTION,
    Data::SECTION,
    Accounts::SECTION,
    Log::SECTION,
    Clickhouse::SECTION,
    Cors::SECTION,
    Limit::SECTION,
    Auth::SECTION,
    TokenKey::SECTION,
    TokenIssuer::SECTION,
    Redis::SECTION,
    Sessions::SECTION,
    Revocation::SECTION,
    Role::SECTION,
    Hub::SECTION,
    HubRoom::SECTION,
    HubService::SECTION,
    Upstream::SECTION,
    Discover::SECTION,
    Health::SECTION,
    Breaker::SECTION,
    UpstreamTls::SECTION,
    Route::SECTION,
    RouteCors::SECTION,
    &Section {
        name: "routes.request_headers",
        about: "Changes to the fields that the upstream sees, after the gateway's own.",
        ..*HeaderRules::SECTION
    },
    &Section {
        name: "routes.response_headers",
        about: "Changes to the fields that the client sees, after the gateway's own.",
        ..*HeaderRules::SECTION
    },
];

config! {
    /// Everything that can be configured. One per process; a reload builds a new one.
    Config {
        /// Threads, how they wait for I/O, and how long names are waited for.
        runtime: Runtime,
        /// How the names of instances are followed.
        discovery: Discovery,
        /// The public listener.
        listener: Listener,
        /// Public listeners beside that one.
        listeners: Vec<FurtherListener>,
        /// TLS on public listeners.
        tls: Tls,
        /// The operator's listener.
        admin: Admin,
        /// Metrics on the public listener.
        metrics: Metrics,
        /// Limits and times of clients' requests.
        http: Http,
        /// Whose word about a request's origin counts.
        trust: Trust,
        /// Which traces are recorded, and where their spans go.
        trace: Trace,
        /// Deadlines that requests bring along.
        deadline: Deadline,
        /// What is refused at once instead of late.
        shedding: Shedding,
        /// How the process stops.
        drain: Drain,
        /// What is kept on disk.
        data: Data,
        /// Where users are kept, and what a log-in may cost.
        accounts: Accounts,
        /// What is written where.
        log: Log,
        /// The access log in ClickHouse.
        clickhouse: Clickhouse,
        /// Who may call from a browser.
        cors: Cors,
        /// Limits of the rate of requests, by name.
        limits: BTreeMap<String, Limit>,
        /// Tokens: keys, issuers, times.
        auth: Auth,
        /// Where Redis is.
        redis: Redis,
        /// Sessions.
        sessions: Sessions,
        /// How the log of revocations is followed.
        revocation: Revocation,
        /// What callers with a role may do, by the role's name.
        roles: BTreeMap<String, Role>,
        /// The WebSocket hub.
        hub: Hub,
        /// The groups of servers behind the gateway, by name.
        upstreams: BTreeMap<String, Upstream>,
        /// Which requests go where; names are unique and no two take the same requests.
        routes: Vec<Route>,
    }
}
