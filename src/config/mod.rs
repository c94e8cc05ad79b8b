//! The configuration, checked: plain values that the other floors take their slices of.
//!
//! Whoever holds a [`Config`] need not check anything again: ranges, names, references and conflicts are checked in
//! [`fn@resolve`], where all mistakes are reported at once. [`keys`] is the one table of what can be written, and makes the
//! structs; defaults, documentation, schema and the check for unknown keys follow from it. Acting on the values is for
//! those who take them.
//!
//! The files stand on one another: `report`, `raw` (the TOML as written), `key`, `values` (the types that a key can have),
//! `read` (one table of the file), `keys`, then a file for each section that has checks of its own, and `resolve`.

mod accounts;
mod address;
mod admin;
mod auth;
mod clickhouse;
mod cors;
pub mod docs;
pub mod env;
mod hub;
mod instance;
pub mod key;
pub mod keys;
mod limits;
mod listeners;
mod listing;
mod names;
mod origin;
mod otel;
mod path;
mod print;
mod raw;
mod read;
mod redis;
mod redis_url;
mod report;
mod resolve;
mod roles;
mod routes;
mod secret;
mod secret_file;
mod sessions;
#[cfg(test)]
mod tests;
mod trace;
mod units;
mod upstreams;
mod values;
pub mod watch;

pub use accounts::postgres_url;
pub use address::{HostPattern, IpNet, Nameserver, ServiceName};
pub use admin::{ADMIN_TOKEN_BYTES_MAX, ADMIN_TOKEN_FORM, admin_token_mistake};
pub use auth::SECRET_BYTES_MIN;
pub use hub::{CLOSE_WITHIN, HUB_TYPES};
pub use instance::{Instance, ServerAddress, Zone};
pub use keys::{
    Access, AccessLog, Accounts, Admin, AdminToken, Algorithm, Auth, Balance, Breaker, Clickhouse, ClientClose,
    Compression, Config, Cors, Data, Deadline, DeadlineFrom, Discover, Discovery, DnsAddress, Drain, Driver,
    FurtherListener, HeaderRules, Health, Http, Hub, HubEventType, HubRoom, HubService, HubShare, Limit, LimitApplies,
    LimitKey, LimitScope, Listener, ListenerKind, Log, LogFormat, Metrics, ProbeKind, ProxyProtocol, Redis, RedisMode,
    RetryOn, Revocation, RevocationFail, Role, Route, RouteCors, Runtime, SessionStore, Sessions, Shedding,
    SlowConsumer, Tls, TlsCertificate, TokenIssuer, TokenKey, Trace, Trust, Upstream, UpstreamTls, WithoutRedis,
};
pub use limits::LIMITS_PER_ROUTE_MAX;
pub use listeners::PublicListener;
#[cfg(any(test, fuzzing))]
pub use listing::fuzz_listing;
pub use listing::{LISTING_BYTES_MAX, ListingFormat, parse_listing};
pub use names::{PERMISSION_FORM, is_permission, is_role};
pub use origin::{ORIGIN_BYTES_MAX, OriginPattern, PortPattern};
pub use path::{PathPattern, Segment};
pub use redis_url::RedisUrl;
pub use report::{Mistake, Mistakes};
pub use resolve::{find, load, resolve};
pub use routes::{ACCOUNT_PATHS, ECHO_PATH, HUB_PATHS, OWN_PATHS};
pub use secret::{HIDDEN, Secret, trimmed};
pub use secret_file::{SecretFile, open_regular};
pub use units::{parse_duration, parse_size, written_duration, written_size};
pub use upstreams::{FailureStatuses, HashKey, INSTANCES_MAX, StatusRange};
