//! The one table of what a configuration can say. The check for unknown keys, the types and ranges, the defaults,
//! `docs/config.md` and the JSON schema follow from it; turning what is written into values is for `read` and `resolve`.

use super::{LimitApplies, LimitKey, LimitScope};

/// A table of the file and its keys.
#[derive(Debug)]
pub struct Section {
    /// `http`, `upstreams.<name>`, `routes`, `routes.request_headers`.
    pub name: &'static str,
    /// How often it stands in the file.
    pub shape: Shape,
    /// What it is for, a sentence.
    pub about: &'static str,
    /// Its keys, in the order in which they are documented and printed.
    pub keys: &'static [Key],
}

/// How often a section stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Once: `[http]`. Only its keys have environment variables.
    Once,
    /// Once for each name that the user chose: `[upstreams.<name>]`.
    Named,
    /// Any number of times, in order: `[[routes]]`, `[[auth.keys]]`.
    Listed,
    /// Once inside each entry of a listed section: `[routes.request_headers]`.
    Inside,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What holds when it is not written.
    pub default: Fallback,
    /// A value that is not the default, as TOML; the schema shows it and the tests prove with it that the key acts.
    pub example: &'static str,
    /// What its number counts for.
    pub scope: Scope,
    /// Whether a reload applies it.
    pub reload: Reload,
    /// What it does, in Markdown, one line.
    pub about: &'static str,
}

/// What may be written for a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A port; 0 is for the key to explain.
    Port,
    /// A whole number in this range, both ends included.
    Number(u64, u64),
    /// A size in this range: `"32KiB"` or a number of bytes.
    Size(u64, u64),
    /// A duration in this range of milliseconds: `"10s"`.
    Duration(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text of this form, which the key's type checks.
    Text(&'static str),
    /// Text of this form that is shown nowhere, whatever becomes of it.
    Secret(&'static str),
    /// A list of texts of this form.
    List(&'static str),
    /// A table of field names and values.
    Fields,
}

/// What holds when a key is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// This, as TOML.
    Value(&'static str),
    /// Something else, told in words.
    Unset(&'static str),
    /// Nothing: it must be written.
    Required,
}

/// What a number counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each connection, request or answer by itself.
    Each,
    /// Each shard by itself.
    Shard,
    /// All shards of the process together.
    Process,
}

impl Scope {
    /// As the documentation writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Shard => "shard",
            Self::Process => "process",
        }
    }
}

/// Whether a reload applies a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// From the next connection or request on.
    Live,
    /// It needs a new process; a reload says so and goes on with the old value.
    Restart,
}

impl Reload {
    /// As the documentation writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Live => "reload",
            Self::Restart => "restart",
        }
    }
}

/// The section of that name.
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The name of the sections inside it, as its entries write them: `request_headers` in `routes`, `keys` in `auth`.
    pub fn inside(&self) -> impl Iterator<Item = &'static str> {
        let name = self.name;
        let inside = SECTIONS.iter().filter(|section| matches!(section.shape, Shape::Inside | Shape::Listed));
        inside.filter_map(move |section| section.name.strip_prefix(name)?.strip_prefix('.'))
    }

    /// The environment variable of a key; only keys of sections that stand once have one.
    pub fn variable(&self, key: &Key) -> Option<String> {
        let variable = || format!("SHARDGATE_{}_{}", self.name, key.name).to_ascii_uppercase();
        (self.shape == Shape::Once).then(variable)
    }
}

pub(super) const SECOND: u64 = 1_000;
pub(super) const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;
pub(super) const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Longer would be a slip; shorter than a millisecond cannot be written.
pub(super) const TIME: Kind = Kind::Duration(1, DAY);
const COUNT: Kind = Kind::Number(0, u32::MAX as u64);
const PERCENT: Kind = Kind::Number(0, 100);
const DIRECTORY: Kind = Kind::Text("path of a directory");
const ADDRESS: Kind = Kind::Text("IP address");
const NETWORKS: Kind = Kind::List("network, as `10.0.0.0/8` or `::1`");
const ACCESS: Kind = Kind::Choice(&["public", "authenticated"]);
const CLIENT_CLOSE: Kind = Kind::Choice(&["cancel", "finish"]);

/// name: kind = default, another value, scope, reload, what it does
macro_rules! keys {
    ($($name:ident: $kind:expr, $default:expr, $example:literal, $scope:ident, $reload:ident, $about:literal;)*) => {
        &[$(Key {
            name: stringify!($name),
            kind: $kind,
            default: $default,
            example: $example,
            scope: Scope::$scope,
            reload: Reload::$reload,
            about: $about,
        }),*]
    };
}
pub(super) use keys;

use self::Fallback::{Required, Unset, Value};
use super::keys_of_tokens::{AUTH, AUTH_ISSUERS, AUTH_KEYS};

/// Everything that can be configured, in the order in which it is documented and printed.
pub const SECTIONS: &[Section] = &[
    Section { name: "runtime", shape: Shape::Once, about: "Threads and how they wait for I/O.", keys: RUNTIME },
    Section { name: "listener", shape: Shape::Once, about: "The public listener.", keys: LISTENER },
    Section { name: "admin", shape: Shape::Once, about: "The operator's listener.", keys: ADMIN },
    Section { name: "metrics", shape: Shape::Once, about: "Metrics on the public listener.", keys: METRICS },
    Section { name: "http", shape: Shape::Once, about: "Limits and times of clients' requests.", keys: HTTP },
    Section { name: "trust", shape: Shape::Once, about: "Whose word about a request's origin counts.", keys: TRUST },
    Section { name: "drain", shape: Shape::Once, about: "How the process stops after SIGTERM.", keys: DRAIN },
    Section { name: "data", shape: Shape::Once, about: "What the gateway keeps on disk.", keys: DATA },
    Section {
        name: "accounts",
        shape: Shape::Once,
        about: "Where users are kept, and what a log-in may cost.",
        keys: ACCOUNTS,
    },
    Section { name: "log", shape: Shape::Once, about: "What is written where.", keys: LOG },
    Section {
        name: "cors",
        shape: Shape::Once,
        about: "Who may call from a browser, as the Fetch standard has it; see [cors.md](cors.md). Without origins the \
                gateway leaves CORS to the services.",
        keys: CORS,
    },
    Section {
        name: "limits.<name>",
        shape: Shape::Named,
        about: "A limit of the rate of requests (`429 rate_limited`); see [rate-limits.md](rate-limits.md). A name is a \
                letter, then up to 63 of `a-z`, `0-9`, `-` and `_`.",
        keys: LIMITS,
    },
    Section {
        name: "auth",
        shape: Shape::Once,
        about: "Tokens: what holds for all of them. See `docs/tokens.md`.",
        keys: AUTH,
    },
    Section {
        name: "auth.keys",
        shape: Shape::Listed,
        about: "The gateway's own keys. One signs; the others verify what they signed before. Without any, one is made and \
                kept in the data directory.",
        keys: AUTH_KEYS,
    },
    Section {
        name: "auth.issuers",
        shape: Shape::Listed,
        about: "Other issuers whose tokens are taken, by the keys that they publish.",
        keys: AUTH_ISSUERS,
    },
    Section {
        name: "redis",
        shape: Shape::Once,
        about: "Redis, which instances share. Without it one instance is complete by itself. Commands that it needs: 6.2 or \
                newer.",
        keys: REDIS,
    },
    Section {
        name: "sessions",
        shape: Shape::Once,
        about: "Sessions and their refresh tokens (docs/sessions.md).",
        keys: SESSIONS,
    },
    Section {
        name: "revocation",
        shape: Shape::Once,
        about: "What happens when the log of revocations cannot be read (docs/sessions.md).",
        keys: REVOCATION,
    },
    Section {
        name: "roles.<name>",
        shape: Shape::Named,
        about: "What callers with a role may do. `admin`, `service`, `analyst` and `user` are there unless the file says \
                otherwise of them. A name is a letter, then up to 63 of `a-z`, `0-9`, `-` and `_`.",
        keys: ROLES,
    },
    Section {
        name: "upstreams.<name>",
        shape: Shape::Named,
        about: "A group of servers that answer the same requests. Its name is up to 64 of `a-z`, `0-9`, `-` and `_`, and \
                begins with a letter.",
        keys: UPSTREAMS,
    },
    Section {
        name: "routes",
        shape: Shape::Listed,
        about: "Which requests go where. The most specific route wins, whatever the order in the file: an exact host \
                before a `*.` one before any host; then an exact path before one with parameters before a prefix, a longer \
                prefix before a shorter one (of two with parameters, the one with text where the other has its first \
                parameter); then a route that names the method before one that takes any. A path that has routes, but none for \
                the method, is answered with 405, whatever wider routes take; and the gateway's own paths (`/health`, \
                `/metrics`, `/auth/…`, `/.well-known/jwks.json`) are its own on every host. Two routes that take the same \
                requests are a mistake.",
        keys: ROUTES,
    },
    Section {
        name: "routes.cors",
        shape: Shape::Inside,
        about: "What the route says otherwise than `[cors]`.",
        keys: ROUTE_CORS,
    },
    Section {
        name: "routes.request_headers",
        shape: Shape::Inside,
        about: "Changes to the fields that the upstream sees, after the gateway's own.",
        keys: HEADERS,
    },
    Section {
        name: "routes.response_headers",
        shape: Shape::Inside,
        about: "Changes to the fields that the client sees, after the gateway's own.",
        keys: HEADERS,
    },
];

const RUNTIME: &[Key] = keys! {
    shards: Kind::Number(0, 1024), Value("0"), "2", Process, Restart,
        "How many shards, each with a thread of its own. 0: one per core that the process may use (the least of cgroup quota, affinity and cores).";
    driver: Kind::Choice(&["epoll", "io_uring"]), Value("\"epoll\""), "\"io_uring\"", Process, Restart,
        "How shards wait for I/O. `io_uring` falls back to `epoll` where the kernel refuses it.";
    pin: Kind::Boolean, Value("true"), "false", Shard, Restart,
        "Whether each shard's thread stays on its core.";
};

const LISTENER: &[Key] = keys! {
    address: ADDRESS, Value("\"0.0.0.0\""), "\"::\"", Process, Restart,
        "The address that the public listener binds.";
    port: Kind::Port, Value("3000"), "8080", Process, Restart,
        "Its port. 0 takes any free port. `PORT` sets it too.";
    backlog: Kind::Number(1, 65_535), Value("4096"), "1024", Shard, Restart,
        "Connections that the kernel holds for a shard until it accepts them; the kernel's `somaxconn` caps it.";
    connections_max: Kind::Number(0, 10_000_000), Value("0"), "10000", Process, Live,
        "Client connections open at once; more are refused. 0: half of the process's file descriptors.";
    accept_budget: Kind::Number(1, 4096), Value("64"), "16", Shard, Live,
        "Connections accepted in one go before the shard turns to those that it has.";
    hand_over: Kind::Boolean, Value("true"), "false", Process, Live,
        "Whether a shard that has clearly more connections than the least loaded one hands fresh ones over to it.";
};

const ADMIN: &[Key] = keys! {
    enabled: Kind::Boolean, Value("true"), "false", Process, Restart,
        "Whether there is an operator's listener.";
    address: ADDRESS, Value("\"127.0.0.1\""), "\"::1\"", Process, Restart,
        "The address that it binds.";
    port: Kind::Port, Value("3001"), "9000", Process, Restart,
        "Its port. 0 takes any free port.";
};

const METRICS: &[Key] = keys! {
    allow: NETWORKS, Value("[]"), "[\"10.0.0.0/8\"]", Process, Live,
        "Clients that `GET /metrics` answers on the public listener; for anybody else there is no such page (`404 not_found`). Behind `trust.proxies` the client is whom they name. The operator's listener has the page for itself.";
};

const HTTP: &[Key] = keys! {
    header_timeout: TIME, Value("\"10s\""), "\"5s\"", Each, Live,
        "From a request's first byte to the end of its head (`408 request_timeout`).";
    request_timeout: TIME, Value("\"60s\""), "\"30s\"", Each, Live,
        "From a request's first byte to the end of its body (`408 request_timeout`). Uploads that take longer need a route with a longer one.";
    keep_alive_timeout: TIME, Value("\"75s\""), "\"20s\"", Each, Live,
        "How long a client's connection may idle between two requests.";
    head_bytes_max: Kind::Size(KIB, MIB), Value("\"32KiB\""), "\"16KiB\"", Each, Live,
        "Bytes of a request's head (`431 header_too_large`).";
    fields_max: Kind::Number(1, 256), Value("100"), "64", Each, Live,
        "Fields of a request's head (`431 header_too_large`).";
    target_bytes_max: Kind::Size(64, MIB), Value("\"8KiB\""), "\"4KiB\"", Each, Live,
        "Bytes of a request's target (`414 uri_too_long`); not more than `head_bytes_max`.";
    body_bytes_max: Kind::Size(0, TIB), Value("\"1MiB\""), "\"10MiB\"", Each, Live,
        "Bytes of a request's body (`413 body_too_large`). 0 allows no body. A route may say otherwise.";
    stream_idle_timeout: TIME, Value("\"5m\""), "\"1m\"", Each, Live,
        "How long an answer may stand still while it streams, because its upstream sends nothing or its client reads nothing. A route may say otherwise.";
    on_client_close: CLIENT_CLOSE, Value("\"cancel\""), "\"finish\"", Each, Live,
        "What becomes of the upstream's request when its client leaves before the answer is complete. A route may say otherwise.";
    requests_per_connection_max: COUNT, Value("0"), "1000", Each, Live,
        "Requests on one client connection before it is closed. 0: no limit.";
};

const TRUST: &[Key] = keys! {
    proxies: NETWORKS, Value("[]"), "[\"10.0.0.0/8\"]", Process, Live,
        "Peers (load balancers before the gateway) whose `X-Forwarded-*` is appended to; from anybody else it is replaced.";
};

const DRAIN: &[Key] = keys! {
    notice: Kind::Duration(0, HOUR), Value("\"5s\""), "\"1s\"", Process, Live,
        "From the signal on: `/health/ready` answers 503, yet connections are still accepted, so that balancers can turn away.";
    max: Kind::Duration(0, DAY), Value("\"30s\""), "\"1m\"", Process, Live,
        "From the signal on: after this long what is left is cut. Not less than `notice`.";
};

const DATA: &[Key] = keys! {
    dir: DIRECTORY, Value("\"./data\""), "\"/var/lib/shardgate\"", Process, Restart,
        "The directory for what the gateway keeps: `shardgate.db` (accounts, sessions and revocations, where no PostgreSQL or Redis is given) and generated keys. It is made, for this user alone, when something is first kept.";
};

const ACCOUNTS: &[Key] = keys! {
    enabled: Kind::Boolean, Value("true"), "false", Process, Restart,
        "Whether the gateway has users of its own: `/auth/*`, sessions and the log of revocations. Without it, tokens of `[[auth.keys]]` and `[[auth.issuers]]` are checked all the same, and nothing is kept on disk but a generated key.";
    postgres_url: Kind::Secret("`postgres://user:password@host:5432/database`"), Unset("the embedded store"), "\"postgres://shardgate@localhost/shop\"", Process, Restart,
        "The PostgreSQL server that has the table `users`; write `\"${DATABASE_URL}\"`. `?sslmode=require` asks for TLS, `disable` for none; by default it is used if the server has it.";
    postgres_ca_file: Kind::Text("path"), Unset("the system's certificates"), "\"/etc/shardgate/ca.pem\"", Process, Restart,
        "The certificates that PostgreSQL's is checked against, as PEM.";
    postgres_connections_max: Kind::Number(1, 1000), Value("4"), "16", Process, Restart,
        "Connections to PostgreSQL.";
    postgres_timeout: TIME, Value("\"3s\""), "\"1s\"", Each, Restart,
        "How long connecting to PostgreSQL, and each statement, may take (`503 dependency_unavailable`).";
    password_threads: Kind::Number(0, 1024), Value("0"), "2", Process, Restart,
        "Threads that hash passwords, at low priority. 0: half as many as there are cores.";
    password_queue: Kind::Number(1, 100_000), Value("64"), "256", Process, Restart,
        "Log-ins that wait for one of them; more are refused (`503 overloaded`, with `Retry-After`).";
    password_memory: Kind::Size(64 * KIB, 256 * MIB), Value("\"19MiB\""), "\"46MiB\"", Each, Restart,
        "Memory that a password's hash takes (argon2id). Hashes of another cost are checked, and made anew at the next log-in.";
    password_passes: Kind::Number(1, 16), Value("2"), "1", Each, Restart,
        "Passes over that memory.";
    login_failures_max: Kind::Number(1, 1000), Value("5"), "10", Process, Restart,
        "Failed log-ins in a row, less than a minute apart, of one account from one address (IPv6: one /64); each further one waits twice as long as the one before, from 1 s to 5 min (`429 rate_limited`).";
};

const LOG: &[Key] = keys! {
    level: Kind::Text("level, or `target=level` pairs with commas"), Value("\"info\""), "\"warn,shardgate=debug\"", Process, Restart,
        "What the process tells of itself: `off`, `error`, `warn`, `info`, `debug` or `trace`, for all of it or by target.";
    access: Kind::Text("`off`, `stdout` or a path with a slash"), Value("\"stdout\""), "\"/var/log/shardgate/access.log\"", Process, Restart,
        "Where the access log goes, one JSON line per request.";
    buffer_bytes: Kind::Size(64 * KIB, GIB), Value("\"2MiB\""), "\"1MiB\"", Shard, Restart,
        "Access-log bytes that wait to be written. When it is full, lines are dropped and counted; no request waits.";
    flush_interval: Kind::Duration(1, MINUTE), Value("\"200ms\""), "\"1s\"", Shard, Restart,
        "How long an access-log line may wait.";
};

const UPSTREAMS: &[Key] = keys! {
    instances: Kind::List("`host:port`"), Required, "[\"127.0.0.1:4001\"]", Process, Live,
        "Its servers; at least one.";
    connect_timeout: TIME, Value("\"1s\""), "\"250ms\"", Each, Live,
        "To open a connection; then the next instance is tried (`502 upstream_unreachable` when none is left).";
    response_timeout: TIME, Value("\"15s\""), "\"5s\"", Each, Live,
        "From the request's last byte to the head of the answer (`504 upstream_timeout`). A route may say otherwise.";
    idle_timeout: TIME, Value("\"4s\""), "\"2s\"", Each, Live,
        "How long an idle connection is kept for reuse; shorter when the upstream's `Keep-Alive` says so. Keep it below what the upstream itself waits.";
    idle_max: Kind::Number(0, 65_536), Value("64"), "16", Shard, Live,
        "Idle connections kept for reuse, per instance.";
    requests_max: Kind::Number(1, u32::MAX as u64), Value("1024"), "256", Process, Live,
        "Requests in flight at once to all instances; more are refused (`503 circuit_open`).";
    retries_max: Kind::Number(0, 10), Value("2"), "1", Each, Live,
        "Attempts beyond the first, for requests that are safe to repeat. A route may say otherwise.";
    retry_budget_percent: PERCENT, Value("20"), "10", Shard, Live,
        "Retries as a share of requests, in percent; what goes beyond fails at once instead of making an outage worse.";
    retry_budget_min_per_s: COUNT, Value("3"), "10", Process, Live,
        "Retries per second that are allowed whatever the share says.";
    outlier_failures: COUNT, Value("5"), "10", Shard, Live,
        "Failures in a row that eject an instance. 0 ejects none.";
    outlier_ejection: TIME, Value("\"30s\""), "\"10s\"", Shard, Live,
        "How long an ejected instance stays out, times how often it was ejected.";
    outlier_percent_max: PERCENT, Value("50"), "30", Shard, Live,
        "At most this share of the instances is out at once, in percent.";
};

const ORIGINS: Kind = Kind::List("origin, as `https://shop.example.com` or `https://*.example.com`; `null`; `*`");
const WORDS: Kind = Kind::List("name, or `*`");

const CORS: &[Key] = keys! {
    origins: ORIGINS, Value("[]"), "[\"https://*.example.com\"]", Process, Live,
        "Origins that may read answers. A star in front stands for one label or more; scheme and port are as written. Empty: the gateway leaves CORS to the services.";
    methods: WORDS, Value("[\"GET\", \"HEAD\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]"), "[\"*\"]", Process, Live,
        "Methods that they may use. `*`: whichever is asked for.";
    headers: WORDS, Value("[\"Authorization\", \"Content-Type\", \"Idempotency-Key\", \"X-Request-Id\"]"), "[\"*\"]", Process, Live,
        "Request fields that they may send. `*`: whichever are asked for.";
    exposed: WORDS, Value("[\"RateLimit\", \"RateLimit-Policy\", \"Retry-After\", \"X-Request-Id\"]"), "[\"X-Request-Id\"]", Process, Live,
        "Answer fields that their scripts may read. `*`: all; not with `credentials`.";
    max_age: Kind::Duration(0, DAY), Value("\"10m\""), "\"1h\"", Each, Live,
        "How long a browser may remember the answer to a preflight. Browsers cap it themselves.";
    credentials: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether cookies and client certificates may come along. Not with the origin `*`. `Authorization` needs no such thing.";
    private_network: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether pages of the public network may call a gateway in a private one.";
};

const ROUTE_CORS: &[Key] = keys! {
    origins: ORIGINS, Unset("as `[cors]`"), "[\"https://partner.example\"]", Process, Live,
        "Origins that may read answers. Empty: the service does CORS by itself on this route.";
    methods: WORDS, Unset("as `[cors]`"), "[\"GET\"]", Process, Live,
        "Methods that they may use.";
    headers: WORDS, Unset("as `[cors]`"), "[\"*\"]", Process, Live,
        "Request fields that they may send.";
    exposed: WORDS, Unset("as `[cors]`"), "[\"ETag\"]", Process, Live,
        "Answer fields that their scripts may read.";
    max_age: Kind::Duration(0, DAY), Unset("as `[cors]`"), "\"1h\"", Each, Live,
        "How long a browser may remember the answer to a preflight.";
    credentials: Kind::Boolean, Unset("as `[cors]`"), "true", Process, Live,
        "Whether cookies and client certificates may come along.";
    private_network: Kind::Boolean, Unset("as `[cors]`"), "true", Process, Live,
        "Whether pages of the public network may call a gateway in a private one.";
};

const LIMITS: &[Key] = keys! {
    key: Kind::Choice(LimitKey::WORDS), Value("\"address\""), "\"user\"", Process, Live,
        "Whose requests are counted together: those of a client's address (of a /64 with IPv6; `trust.proxies` decides whose it is), of a caller with a valid token, or all of a route's. Addresses are counted before anybody is asked for a token.";
    quota: Kind::Number(1, 1_000_000_000), Value("100"), "600", Process, Live,
        "Requests for each `window`, on average. What it counts for is `scope`'s to say.";
    window: TIME, Value("\"1m\""), "\"10s\"", Process, Live,
        "The window of the quota. Requests are earned evenly within it.";
    burst: Kind::Number(1, u32::MAX as u64), Unset("as `quota`"), "20", Process, Live,
        "Requests at once, after a pause long enough.";
    scope: Kind::Choice(LimitScope::WORDS), Value("\"process\""), "\"shard\"", Process, Live,
        "Who counts together: each shard by itself, all shards of the process, or all instances on one Redis.";
    applies: Kind::Choice(LimitApplies::WORDS), Value("\"all\""), "\"named\"", Process, Live,
        "Where it holds: on every route that names no `limits` and on `/auth/*`, on `/auth/*` only, or where `routes.limits` names it.";
    dry_run: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether it only counts and logs what it would refuse.";
    local_share_percent: Kind::Number(1, 100), Value("50"), "25", Process, Live,
        "Of a limit of the fleet: what each instance allows by itself while Redis is away, in percent of quota and burst. With two instances 50 keeps the whole as it is.";
    keys_max: Kind::Number(8, 1 << 22), Value("65536"), "1024", Shard, Live,
        "Addresses, users or routes that are remembered at once, 32 bytes each. When all of them owe something, new ones share one more place.";
};

const REDIS: &[Key] = keys! {
    urls: Kind::List("`redis://host:port`, or `rediss://user:password@host:port/database`"), Value("[]"), "[\"redis://cache.example:6379/0\"]", Process, Restart,
        "Where it is: one server, or several sentinels or nodes of a cluster as `mode` says, all with the same user, password and database. `rediss` is with TLS. Write a password as `${REDIS_PASSWORD}`; it is never shown.";
    mode: Kind::Choice(&["single", "sentinel", "cluster"]), Value("\"single\""), "\"cluster\"", Process, Restart,
        "What the servers in `urls` are.";
    master: Kind::Text("name"), Value("\"mymaster\""), "\"sessions\"", Process, Restart,
        "What the sentinels call the server that is written to.";
    sentinel_password: Kind::Secret("the sentinels' password"), Unset("they ask for none"), "\"an example\"", Process, Restart,
        "The sentinels' own password; the one in `urls` is the server's.";
    ca_file: Kind::Text("path"), Unset("those of the system"), "\"/etc/shardgate/redis-ca.pem\"", Process, Restart,
        "Certificates (PEM) that the server's certificate is checked with.";
    connect_timeout: TIME, Value("\"1s\""), "\"500ms\"", Each, Restart,
        "To open a connection, log-in and TLS included.";
    timeout: TIME, Value("\"1s\""), "\"250ms\"", Each, Restart,
        "For one command and its answer; then whoever asked is told that Redis is away, and the connection is opened anew.";
};

const SESSIONS: &[Key] = keys! {
    store: Kind::Choice(&["embedded", "redis"]), Unset("`redis` where `redis.urls` is given, else `embedded`"), "\"embedded\"", Process, Restart,
        "Where sessions and the log of revocations are kept: `embedded` is for one instance, `redis` for all that share it.";
    lifetime: Kind::Duration(SECOND, 400 * DAY), Value("\"30d\""), "\"7d\"", Each, Restart,
        "How long a session lasts from its log-in, however often it is renewed.";
    refresh_grace: Kind::Duration(0, HOUR), Value("\"10s\""), "\"5s\"", Each, Restart,
        "For so long a refresh token that was just spent is answered with the same successor (two tabs, a lost answer). Later it ends the session (`401 refresh_reused`).";
    per_user_max: Kind::Number(1, 1000), Value("50"), "10", Each, Restart,
        "Sessions of one user. One more ends the one that was not renewed for longest.";
    secret: Kind::Secret("32 bytes or more"), Unset("one is made and kept in `data.dir`; with `store = \"redis\"` it must be written"), "\"an example of 32 bytes or more: no secret\"", Process, Restart,
        "What refresh tokens are signed with; instances that share sessions share it. Write `\"${SESSIONS_SECRET}\"`.";
    old_secret: Kind::Secret("32 bytes or more"), Unset("none"), "\"an example of 32 bytes or more: no secret\"", Process, Restart,
        "The secret before this one: its tokens stay good, new ones are signed with `secret`.";
};

const REVOCATION: &[Key] = keys! {
    max_staleness: Kind::Duration(SECOND, DAY), Value("\"60s\""), "\"10s\"", Process, Live,
        "How long what is known of the log serves while the log cannot be read.";
    fail: Kind::Choice(&["closed", "open"]), Unset("`closed` on routes that ask for roles or permissions, else `open`"), "\"closed\"", Process, Live,
        "What becomes of requests with a token after that: refused (`503 dependency_unavailable`), or served.";
};

const ROLES: &[Key] = keys! {
    permissions: Kind::List("permission, as `events:write`; `events:*` stands for all that begin so, `*` for all"), Value("[]"), "[\"events:write\", \"hub:*\"]", Process, Live,
        "What the role permits. A token's own permissions come on top.";
};

const ROUTES: &[Key] = keys! {
    name: Kind::Text("up to 64 of `A-Za-z0-9._-`"), Unset("the path as written"), "\"orders\"", Process, Live,
        "What logs and metrics call it; unique.";
    hosts: Kind::List("host, as `shop.example.com` or `*.example.com`"), Value("[]"), "[\"shop.example.com\"]", Process, Live,
        "Hosts it answers for, without ports. `*.` stands for one label or more. Empty: any.";
    path: Kind::Text("path"), Required, "\"/shop/*\"", Process, Live,
        "Paths it answers for: `/health` is that path alone, `/api/*` is `/api` and all below it, `/users/{id}/orders` takes one segment as `id`, and `/users/{id}/*` all below. Paths are normalised before they are compared.";
    methods: Kind::List("method, as `GET`"), Value("[]"), "[\"GET\", \"HEAD\"]", Process, Live,
        "Methods it answers for. Empty: any.";
    upstream: Kind::Text("name of an upstream"), Required, "\"shop\"", Process, Live,
        "Where its requests go.";
    access: ACCESS, Value("\"authenticated\""), "\"public\"", Process, Live,
        "Who may use it: callers with a valid token (`401 token_missing` and others without), or anybody. A public route looks at no token.";
    roles: Kind::List("name of a role"), Value("[]"), "[\"admin\"]", Process, Live,
        "The caller has one of these roles (`403 forbidden`). Empty: any.";
    permissions: Kind::List("permission, as `events:write`"), Value("[]"), "[\"events:write\"]", Process, Live,
        "The caller has all of these permissions (`403 forbidden`). Empty: none is asked for.";
    strip_prefix: Kind::Text("path"), Unset("nothing is stripped"), "\"/shop\"", Process, Live,
        "Whole segments taken from the front of the path before the upstream sees it.";
    rewrite: Kind::Text("path of whole segments with `{parameter}` and `{rest}`"), Unset("the path stays"), "\"/v2/{rest}\"", Process, Live,
        "The path that the upstream sees, made of the parameters of `path`; `{rest}` is what its `/*` took. Not together with `strip_prefix`.";
    preserve_host: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether the upstream sees the client's `Host` instead of its own authority.";
    forward_authorization: Kind::Boolean, Value("true"), "false", Process, Live,
        "Whether the upstream sees the client's `Authorization`.";
    allow_encoded_slash: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether `%2F` and `%5C` may stand in a path; otherwise it is refused (`400 bad_request`).";
    body_bytes_max: Kind::Size(0, TIB), Unset("`http.body_bytes_max`"), "\"10MiB\"", Each, Live,
        "Bytes of a request's body (`413 body_too_large`).";
    response_timeout: TIME, Unset("the upstream's"), "\"30s\"", Each, Live,
        "From the request's last byte to the head of the answer (`504 upstream_timeout`).";
    request_timeout: TIME, Unset("`http.request_timeout`"), "\"10m\"", Each, Live,
        "From a request's first byte to the end of its body (`408 request_timeout`).";
    stream_idle_timeout: TIME, Unset("`http.stream_idle_timeout`"), "\"1h\"", Each, Live,
        "How long an answer may stand still while it streams.";
    on_client_close: CLIENT_CLOSE, Unset("`http.on_client_close`"), "\"finish\"", Each, Live,
        "What becomes of the upstream's request when its client leaves.";
    retries_max: Kind::Number(0, 10), Unset("the upstream's"), "0", Each, Live,
        "Attempts beyond the first.";
    limits: Kind::List("name of a limit"), Unset("those that apply to all"), "[]", Process, Live,
        "The limits of its rate: these and no others.";
};

const HEADERS: &[Key] = keys! {
    remove: Kind::List("field name"), Value("[]"), "[\"X-Debug\"]", Each, Live,
        "Fields to take out, before the rest is done.";
    set: Kind::Fields, Value("{}"), "{ X-Tier = \"gold\" }", Each, Live,
        "Fields to have once, with this value.";
    add: Kind::Fields, Value("{}"), "{ X-Seen-By = \"edge\" }", Each, Live,
        "Fields to have besides those that are there.";
};
