//! The one table of what a configuration can say. The check for unknown keys, the types and ranges, the defaults,
//! `docs/config.md` and the JSON schema follow from it; turning what is written into values is for `read` and `resolve`.

mod identity;
mod process;
mod requests;
mod tokens;

use identity::{ACCOUNTS, REDIS, REVOCATION, ROLES, SESSIONS};
use process::{ADMIN, DATA, DRAIN, LISTENER, LISTENERS, LOG, METRICS, RUNTIME};
use requests::{CORS, HEADERS, HTTP, LIMITS, ROUTE_CORS, ROUTES, TRACE, TRUST, UPSTREAMS};
use tokens::{AUTH, AUTH_ISSUERS, AUTH_KEYS};

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
    /// A share, from 0 to 1.
    Ratio,
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

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Longer would be a slip; shorter than a millisecond cannot be written.
const TIME: Kind = Kind::Duration(1, DAY);
const COUNT: Kind = Kind::Number(0, u32::MAX as u64);
const PERCENT: Kind = Kind::Number(0, 100);
const NETWORKS: Kind = Kind::List("network, as `10.0.0.0/8` or `::1`");

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
use keys;

/// Everything that can be configured, in the order in which it is documented and printed.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "runtime",
        shape: Shape::Once,
        about: "Threads, how they wait for I/O, and how names are looked up.",
        keys: RUNTIME,
    },
    Section { name: "listener", shape: Shape::Once, about: "The public listener.", keys: LISTENER },
    Section {
        name: "listeners",
        shape: Shape::Listed,
        about: "Public listeners beside `[listener]`. Each shard accepts from all of them; the backlog, the limits and the \
                rest of `[listener]` hold for all of them together.",
        keys: LISTENERS,
    },
    Section { name: "admin", shape: Shape::Once, about: "The operator's listener.", keys: ADMIN },
    Section { name: "metrics", shape: Shape::Once, about: "Metrics on the public listener.", keys: METRICS },
    Section { name: "http", shape: Shape::Once, about: "Limits and times of clients' requests.", keys: HTTP },
    Section { name: "trust", shape: Shape::Once, about: "Whose word about a request's origin counts.", keys: TRUST },
    Section {
        name: "trace",
        shape: Shape::Once,
        about: "Traces (W3C Trace Context): what services behind the gateway are told of them.",
        keys: TRACE,
    },
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
