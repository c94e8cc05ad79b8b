//! The part of the table that is about requests: their bounds, where they come from and where they go.

use super::section::{section, words};
use super::{DAY, HOUR, KIB, MIB, MINUTE, TIB, UpstreamTls};
use crate::config::address::{HostPattern, IpNet, ServiceName};
use crate::config::instance::Instance;
use crate::config::key::Kind;
use crate::config::origin::OriginPattern;
use crate::config::path::PathPattern;
use crate::config::secret::Secret;
use crate::config::upstreams::{FailureStatuses, HashKey, StatusRange};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

impl Kind {
    const PERCENT: Self = Self::Number(0, 100);
    const WORDS: Self = Self::List("name, or `*`");
    const METHODS: Self = Self::List("method, as `GET`; `*`");
    const RETRY_ON: Self = Self::List("`connect`, `reset`, `timeout`, `502`, `503` or `504`");
}

section! {
    /// Limits and times of clients' requests.
    Http = Once "http", per Each, by Reload {
        /// From a request's first byte to the end of its head (`408 request_timeout`).
        header_timeout: Duration = "10s", e.g. "5s";
        /// From a request's first byte to the end of its body (`408 request_timeout`). Uploads that take longer need a
        /// route with a longer one.
        request_timeout: Duration = "60s", e.g. "30s";
        /// How long a client's connection may idle between two requests.
        keep_alive_timeout: Duration = "75s", e.g. "20s";
        /// Bytes of a request's head (`431 header_too_large`).
        head_bytes_max: usize as Size(KIB, MIB) = "32KiB", e.g. "16KiB";
        /// Fields of a request's head (`431 header_too_large`).
        fields_max: usize as Number(1, 256) = 100, e.g. 64;
        /// Bytes of a request's target (`414 uri_too_long`); not more than `head_bytes_max`.
        target_bytes_max: usize as Size(64, MIB) = "8KiB", e.g. "4KiB";
        /// Bytes of a request's body (`413 body_too_large`). 0 allows no body. A route may say otherwise.
        body_bytes_max: u64 as Size(0, TIB) = "1MiB", e.g. "10MiB";
        /// How long an answer may stand still while it streams, because its upstream sends nothing or its client reads
        /// nothing. A route may say otherwise.
        stream_idle_timeout: Duration = "5m", e.g. "1m";
        /// What becomes of a request when its client leaves before the answer is complete, or only ends its sending
        /// side: it is cancelled, or goes on, and is answered in full where somebody still reads. It holds for
        /// `/auth/*` too; a route may say otherwise.
        on_client_close: ClientClose = "cancel", e.g. "finish";
        /// Whether interim answers of the upstream (`103 Early Hints` and other 1xx) go to HTTP/1.1 clients. Some take
        /// the first of them for the answer, Python's `http.client` among them. A route may say otherwise.
        interim_answers: bool = true, e.g. false;
        /// Requests on one client connection before it is closed. 0: no limit.
        requests_per_connection_max: u32 = 0, e.g. 1000;
    }
}

words! {
    /// What becomes of the upstream's request when its client leaves before the answer is complete.
    ClientClose {
        /// It is cancelled: the upstream's connection closes.
        Cancel = "cancel",
        /// It goes on to its end and its answer is thrown away.
        Finish = "finish",
    }
}

section! {
    /// Whose word about a request's origin counts.
    Trust = Once "trust", per Process, by Reload {
        /// Peers (load balancers before the gateway) whose `X-Forwarded-*` is appended to; from anybody else it is
        /// replaced. On listeners with `proxy_protocol = "required"` only they may connect, and the peer is whom they tell.
        proxies: Vec<IpNet> = [], e.g. ["10.0.0.0/8"];
    }
}

section! {
    /// Traces (W3C Trace Context): which are recorded, what services behind the gateway are told of them, and where the
    /// gateway's own spans go; see [tracing.md](tracing.md). Variables of OpenTelemetry (`OTEL_*`) stand for these keys too.
    Trace = Once "trace", per Process, by Reload {
        /// Which share of the traces is recorded, by the gateway and by the services that it tells of it, decided by the
        /// trace's id, so that all instances agree.
        sample_ratio: f64 = 1.0, e.g. 0.1;
        /// Whether a peer in `trust.proxies` that sends a `traceparent` has decided of its trace already. Otherwise the
        /// share decides of all.
        heed_parents: bool = true, e.g. false;
        /// Where spans are sent, by OTLP over HTTP: a collector, as protobuf. A URL without a path has `/v1/traces`.
        endpoint: Option<String> as Text("http or https URL") = unset "spans go nowhere",
            e.g. "http://localhost:4318/v1/traces";
        /// Whether a request that fails (5xx, or an answer that its upstream broke off) has a span whatever was decided of
        /// its trace.
        errors: bool = false, e.g. true;
        /// Fields that each request with spans carries, such as credentials. Never shown.
        headers: Option<Secret> as Secret("`name=value` pairs with commas, what is special in a value as `%2C`")
            = unset "none", e.g. "api-key=an-example";
        /// For one request with spans, from the connection to the end of the answer.
        timeout: Duration = "10s", e.g. "3s", per Each;
        /// Whether requests with spans are compressed.
        compression: Compression = "none", e.g. "gzip";
        /// Certificates (PEM) that the endpoint's is checked with.
        ca_file: Option<PathBuf> = unset "the system's certificates", e.g. "/etc/shardgate/otlp-ca.pem";
        /// What spans call this gateway (`service.name`).
        service_name: String = "shardgate", e.g. "edge";
        /// What else they say of it.
        attributes: String as Text("`name=value` pairs with commas, what is special in a value as `%2C`") = "",
            e.g. "deployment.environment.name=production";
        /// Spans that wait to be sent. When it is full, further ones are dropped and counted; no request waits.
        queue_spans: usize as Number(1024, 1_000_000) = 8192, e.g. 65536;
    }
}

words! {
    /// Whether what is sent is compressed.
    Compression {
        /// It is not.
        None = "none",
        /// By gzip.
        Gzip = "gzip",
    }
}

section! {
    /// Who may call from a browser, as the Fetch standard has it; see [cors.md](cors.md). Without origins the gateway
    /// leaves CORS to the services.
    Cors = Once "cors", per Process, by Reload {
        /// Origins that may read answers. A star in front stands for one label or more; scheme and port are as written.
        /// Empty: the gateway leaves CORS to the services.
        origins: Vec<OriginPattern> = [], e.g. ["https://*.example.com"];
        /// Methods that they may use. `*`: whichever is asked for.
        methods: Vec<String> as WORDS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], e.g. ["*"];
        /// Request fields that they may send. `*`: whichever are asked for.
        headers: Vec<String> as WORDS = ["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
            e.g. ["*"];
        /// Answer fields that their scripts may read. `*`: all; not with `credentials`.
        exposed: Vec<String> as WORDS = ["RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"],
            e.g. ["X-Request-Id"];
        /// How long a browser may remember the answer to a preflight. Browsers cap it themselves.
        max_age: Duration as Duration(0, DAY) = "10m", e.g. "1h", per Each;
        /// Whether cookies and client certificates may come along. Not with the origin `*`. `Authorization` needs no
        /// such thing.
        credentials: bool = false, e.g. true;
        /// Whether pages of the public network may call a gateway in a private one.
        private_network: bool = false, e.g. true;
    }
}

section! {
    /// A limit of the rate of requests (`429 rate_limited`); see [rate-limits.md](rate-limits.md). A name is a letter,
    /// then up to 63 of `a-z`, `0-9`, `-` and `_`.
    Limit = Named "limits.<name>", per Process, by Reload {
        /// Whose requests are counted together: those of a client's address (of a /64 with IPv6; `trust.proxies`
        /// decides whose it is), of a caller with a valid token, or all of a route's. Addresses are counted before
        /// anybody is asked for a token.
        key: LimitKey = "address", e.g. "user";
        /// Requests for each `window`, on average. What it counts for is `scope`'s to say.
        quota: u32 as Number(1, 1_000_000_000) = 100, e.g. 600;
        /// The window of the quota. Requests are earned evenly within it.
        window: Duration = "1m", e.g. "10s";
        /// Requests at once, after a pause long enough.
        burst: Option<u32> as Number(1, u32::MAX as u64) = unset "as `quota`", e.g. 20;
        /// Who counts together: each shard by itself, all shards of the process, or all instances on one Redis.
        scope: LimitScope = "process", e.g. "shard";
        /// Where it holds: on every route that names no `limits`, on `/auth/*` and, by address, on preflights and
        /// requests that no route takes; on `/auth/*` only; or where `routes.limits` names it.
        applies: LimitApplies = "all", e.g. "named";
        /// Whether it only counts and logs what it would refuse.
        dry_run: bool = false, e.g. true;
        /// Of a limit of the fleet: what each instance allows by itself while Redis is away, in percent of quota and
        /// burst. With two instances 50 keeps the whole as it is.
        local_share_percent: u32 as Number(1, 100) = 50, e.g. 25;
        /// Addresses, users or routes that are remembered at once, 32 bytes each. When all of them owe something, new
        /// ones share one more place.
        keys_max: usize as Number(8, 1 << 22) = 65536, e.g. 1024, per Shard;
    }
}

words! {
    /// Whose requests are counted together.
    LimitKey {
        /// Those of one client address, behind trusted proxies; of one /64 with IPv6.
        Address = "address",
        /// Those of one caller with a valid token.
        User = "user",
        /// All of a route's.
        Route = "route",
    }
}

words! {
    /// Who counts together.
    LimitScope {
        /// Each shard by itself.
        Shard = "shard",
        /// All shards of the process.
        Process = "process",
        /// All instances that share a Redis.
        Fleet = "fleet",
    }
}

words! {
    /// Where a limit holds.
    LimitApplies {
        /// On every route that names no limits of its own, on the gateway's own endpoints for accounts, and by address
        /// elsewhere.
        All = "all",
        /// On the gateway's own endpoints for accounts only.
        Auth = "auth",
        /// On the routes that name it.
        Named = "named",
    }
}

section! {
    /// A group of servers that answer the same requests. Its name is up to 64 of `a-z`, `0-9`, `-` and `_`, and begins
    /// with a letter.
    Upstream = Named "upstreams.<name>", per Each, by Reload {
        /// Its servers; at least one, unless `discover` finds some. Every address of a name is an instance: it is chosen, pooled, left out and
        /// counted by itself, and sees the name as `Host`; one at `unix:/path` sees `localhost`. With `https://`
        /// before it an instance speaks TLS ([tls.md](tls.md#to-services)), on port 443 where none is written; otherwise plain
        /// HTTP. In a table, `weight` (1 where it is not written) is an instance's share beside the others', 0 for none;
        /// those of a higher `priority` (0) are used when too few of the lower ones are well; and those of a `zone` that is
        /// `runtime.zone` come first ([balancing.md](balancing.md)).
        instances: Vec<Instance> = [], e.g. ["127.0.0.1:4001"], per Process;
        /// To open a connection, TLS included; then the next instance is tried, and first up to four other addresses of the same name
        /// (`502 upstream_unreachable` when none is left).
        connect_timeout: Duration = "1s", e.g. "250ms";
        /// From the request's last byte to the head of the answer (`504 upstream_timeout`). A route may say otherwise.
        response_timeout: Duration = "15s", e.g. "5s";
        /// How long an idle connection is kept for reuse; shorter when the upstream's `Keep-Alive` says so. Keep it
        /// below what the upstream itself waits.
        idle_timeout: Duration = "4s", e.g. "2s";
        /// Idle connections kept for reuse, per instance.
        idle_max: usize as Number(0, 65_536) = 64, e.g. 16, per Shard;
        /// Bytes of an answer's head (`502 upstream_bad_response`).
        head_bytes_max: usize as Size(KIB, MIB) = "64KiB", e.g. "128KiB";
        /// Fields of an answer's head (`502 upstream_bad_response`).
        fields_max: usize as Number(1, 256) = 256, e.g. 128;
        /// Interim answers (1xx) to one request before the final one (`502 upstream_bad_response`), also where clients
        /// get none.
        interim_answers_max: u8 as Number(0, 255) = 16, e.g. 4;
        /// Requests in flight at once to all instances; more are refused (`503 circuit_open`).
        requests_max: u32 as Number(1, u32::MAX as u64) = 1024, e.g. 256, per Process;
        /// How many of these may have a body that is still coming in, so that slow uploads leave places for others.
        /// Past it, a body of up to 16 KiB is waited for without a place, and a request with a longer one, or one of
        /// unknown length, is refused (`503 circuit_open`).
        uploads_max: Option<u32> as Number(1, u32::MAX as u64) = unset "half of `requests_max`", e.g. 64, per Process;
        /// Methods with which its instances read a request's body to its end. After a body with another method the
        /// connection is closed, and the instance is told so before: it might take the body for the next request. `*`:
        /// all. A route may say otherwise.
        body_methods: Vec<String> as METHODS = ["POST", "PUT", "PATCH"], e.g. ["POST", "PUT", "PATCH", "DELETE"];
        /// Attempts beyond the first, for requests that are safe to repeat. Further addresses of a name are not counted
        /// where a connection could not be opened. A route may say otherwise.
        retries_max: u32 as Number(0, 10) = 2, e.g. 1;
        /// Retries as a share of requests, in percent; what goes beyond fails at once instead of making an outage
        /// worse. Another instance after a connection that could not be opened is not counted: nobody was asked twice.
        retry_budget_percent: u32 as PERCENT = 20, e.g. 10, per Shard;
        /// Retries per second that are allowed whatever the share says. Each shard earns its part of them and may save some
        /// up; one it always may.
        retry_budget_min_per_s: u32 = 3, e.g. 10, per Process;
        /// What is tried again, where that is safe: `connect`, no connection could be opened; `reset`, it broke before a
        /// byte of the answer; `timeout`, the answer took longer than `per_try_timeout`; `502`, `503`, `504`, the answer's
        /// status. Empty: nothing. A route may say otherwise.
        retry_on: Vec<RetryOn> as RETRY_ON = ["connect", "reset", "timeout"], e.g. ["connect", "reset", "503"];
        /// From the request's last byte to the head of the answer, for one attempt at a request that is safe to repeat and has
        /// no body: then another one is made. All of them together have `response_timeout`, as have other requests. A route
        /// may say otherwise.
        per_try_timeout: Option<Duration> = unset "`response_timeout`", e.g. "2s";
        /// The pause before an attempt that somebody was asked before is drawn between nothing and this, twice this for the
        /// second one, and so on. After a 503 with `Retry-After` it is that long at least.
        retry_backoff: Duration as Duration(0, MINUTE) = "25ms", e.g. "100ms";
        /// The longest pause that is drawn.
        retry_backoff_max: Duration as Duration(0, MINUTE) = "250ms", e.g. "1s";
        /// Failures in a row that eject an instance: no connection, no answer in time, or one that is none. An answer
        /// of any status ends the row. 0 ejects none, by `outlier_share_percent` neither.
        outlier_failures: u32 = 5, e.g. 10, per Shard;
        /// The share of failures, in percent, that ejects an instance which fails at least twice as often as the better
        /// half of the others. 0: none is ejected for it.
        outlier_share_percent: u32 as PERCENT = 40, e.g. 20, per Shard;
        /// Answers that count as failures in that share, besides those that did not come: a status, two with a dash
        /// between them, or `none`.
        outlier_statuses: FailureStatuses = "502-504", e.g. "500-599", per Shard;
        /// Of fewer requests than these within `outlier_window` the share says nothing.
        outlier_requests_min: u32 as Number(1, 1_000_000) = 20, e.g. 100, per Shard;
        /// How far back the share is counted.
        outlier_window: Duration as Duration(1000, HOUR) = "10s", e.g. "1m", per Shard;
        /// How long an ejected instance stays out, times how often it was ejected of late, up to five minutes. Then one
        /// request tries it.
        outlier_ejection: Duration = "30s", e.g. "10s", per Shard;
        /// At most this share of the instances is ejected at once, in percent, and below 100 never the last one that is
        /// usable.
        outlier_percent_max: u32 as PERCENT = 50, e.g. 30, per Shard;
        /// How an instance is chosen. `least_latency`: the one of two drawn at random whose requests in flight times its
        /// latency of late are less. `least_requests`: by requests in flight alone, where requests differ widely in
        /// time. `round_robin`: each in its turn. `consistent_hash`: the same one for the same `hash_key`, unless it
        /// has far more to do than the others.
        balance: Balance = "least_latency", e.g. "consistent_hash", per Shard;
        /// What stays with one instance with `consistent_hash`: requests of a client's address (`trust.proxies` decides
        /// whose it is), of a caller with a valid token, or with the same value of a field or cookie. Requests that
        /// have none, and those of the hub, go by `least_latency`.
        hash_key: HashKey = "address", e.g. "cookie:session";
        /// What the keys of `consistent_hash` are hashed with; the same in all gateways that are to agree. Without it everybody
        /// can find values of a field or cookie that lead to one instance.
        hash_secret: Option<Secret> as Secret("16 bytes or more") = unset "what everybody knows",
            e.g. "a-secret-of-all-gateways";
        /// How long an instance that has come while the gateway runs, or is back, takes until it gets its full share; not
        /// with `consistent_hash`. 0 gives it at once.
        slow_start: Duration as Duration(0, HOUR) = "0s", e.g. "30s", per Shard;
        /// When less than this share of the instances is usable, by weight, in percent, those are used too that answer their probes
        /// and say that they are not well: a few would not bear what is meant for all. Those that do not answer, and
        /// those that requests have ejected, are used only when nobody else is there. 0: never; when none is left,
        /// requests are refused (`503 no_healthy_upstream`).
        panic_percent: u32 as PERCENT = 50, e.g. 0, per Shard;
    } with {
        /// Where further instances are found.
        discover: Discover,
        /// How its instances are probed.
        health: Health,
        /// When it is asked for nothing at all.
        breaker: Breaker,
        /// TLS to its instances.
        tls: UpstreamTls,
    }
}

section! {
    /// An upstream's circuit: [resilience.md](resilience.md). When most of what a shard has sent to it failed, the shard
    /// sends nothing for a while (`503 circuit_open` with `Retry-After`), and then one request, whose end decides.
    Breaker = Inside "upstreams.<name>.breaker", per Shard, by Reload {
        /// The share of failed requests, in percent, that opens the circuit. Failed is what had no answer, tries again
        /// included. 0: it never opens.
        percent: u32 as PERCENT = 50, e.g. 80;
        /// Of fewer requests than these within `window` the share says nothing.
        requests_min: u32 as Number(1, 1_000_000) = 20, e.g. 100;
        /// How far back the share is counted.
        window: Duration as Duration(1000, HOUR) = "10s", e.g. "30s";
        /// How long nothing is sent before a request tries.
        open_for: Duration as Duration(100, HOUR) = "5s", e.g. "30s";
        /// Answers that count as failures besides: a status, two with a dash between them, or `none`.
        statuses: FailureStatuses = "none", e.g. "502-504";
    }
}

section! {
    /// Where instances of an upstream are found besides `instances`, while the gateway runs: [discovery.md](discovery.md).
    /// What each of these keys finds is used together.
    Discover = Inside "upstreams.<name>.discover", per Process, by Reload {
        /// A file that lists them as `instances`, in TOML (`.toml`) or JSON (`.json`). It is looked at every second, and
        /// taken whole or not at all.
        file: Option<PathBuf> as Text("path ending in `.toml` or `.json`") = unset "none", e.g. "./shop.toml";
        /// A name with SRV records, in full. Each is an instance, and its target's addresses are followed. Where the name
        /// begins with `_https.` they speak TLS.
        srv: Option<ServiceName> = unset "none", e.g. "_http._tcp.shop.internal";
        /// Whether services register themselves in Redis, in the sorted set `shardgate:services:<name>`. `redis.urls`
        /// says which.
        redis: bool = false, e.g. true;
    }
}

section! {
    /// Probes of an upstream's instances, by the process and not by each shard: [health.md](health.md). Without `path` and
    /// `kind` there are none, and instances are judged by requests alone. An instance is used after its first good
    /// probe, unless no instance has had one.
    Health = Inside "upstreams.<name>.health", per Process, by Reload {
        /// What a probe is: a GET whose status counts, or a connection that is opened, which a process that stands still
        /// takes too. A GET goes over TLS where the instance speaks it; of a connection no more is asked than that it opens.
        kind: Option<ProbeKind> = unset "`http` with a `path`, otherwise none", e.g. "tcp";
        /// The path of the GET, with a query if need be.
        path: Option<String> as Text("path") = unset "no GET", e.g. "/healthz";
        /// Its `Host`.
        host: Option<String> as Text("host, or host:port") = unset "the instance's own authority", e.g. "shop.internal";
        /// Statuses that are good: a first and a last one, or one.
        statuses: StatusRange = "200-399", e.g. "200-299";
        /// Text that the first 64 KiB of the answer's body have, as it stands there.
        body: Option<String> as Text("up to 1024 bytes") = unset "the body is not looked at", e.g. "\"ok\"";
        /// From one probe of an instance to the next, less up to a fifth, by chance. The first is at once.
        interval: Duration as Duration(100, HOUR) = "5s", e.g. "2s";
        /// From the connection to the end of what is looked at of the answer; not more than `interval`, nor is what it is by
        /// default.
        timeout: Duration as Duration(1, HOUR) = "2s", e.g. "500ms";
        /// Failures in a row that take an instance out.
        down_after: u32 as Number(1, 100) = 3, e.g. 2;
        /// Good probes in a row that bring it back.
        up_after: u32 as Number(1, 100) = 2, e.g. 1;
    }
}

words! {
    /// What a probe is.
    ProbeKind {
        /// A GET.
        Http = "http",
        /// A connection.
        Tcp = "tcp",
    }
}

words! {
    /// What is tried again.
    RetryOn {
        /// No connection could be opened.
        Connect = "connect",
        /// The connection broke before a byte of the answer had come.
        Reset = "reset",
        /// No answer came in the time of one attempt.
        Timeout = "timeout",
        /// The answer's status is 502.
        BadGateway = "502",
        /// The answer's status is 503.
        Unavailable = "503",
        /// The answer's status is 504.
        GatewayTimeout = "504",
    }
}

words! {
    /// How an instance is chosen.
    Balance {
        /// Of two, the one with less requests times latency.
        LeastLatency = "least_latency",
        /// Of two, the one with less requests.
        LeastRequests = "least_requests",
        /// Each in its turn.
        RoundRobin = "round_robin",
        /// By a key of the request.
        ConsistentHash = "consistent_hash",
    }
}

section! {
    /// Which requests go where. The most specific route wins, whatever the order in the file: an exact host before a
    /// `*.` one before any host; then an exact path before one with parameters before a prefix, a longer prefix before
    /// a shorter one (of two with parameters, the one with text where the other has its first parameter); then a route
    /// that names the method before one that takes any. A path that has routes, but none for the method, is answered
    /// with 405, whatever wider routes take; and the gateway's own paths (`/health`, `/metrics`, `/auth/…`,
    /// `/.well-known/jwks.json`) are its own on every host. Two routes that take the same requests are a mistake.
    Route = Listed "routes", per Process, by Reload {
        /// What logs and metrics call it; unique.
        name: String as Text("up to 64 of `A-Za-z0-9._-`") = unset "the path as written", e.g. "orders";
        /// Hosts it answers for, without ports. `*.` stands for one label or more. Empty: any. A host with an empty
        /// label (`.example.com`, `a..b`) is nobody's and refused (`400 bad_request`); with one dot behind it, it is
        /// the same host.
        hosts: Vec<HostPattern> = [], e.g. ["shop.example.com"];
        /// Paths it answers for: `/health` is that path alone, `/api/*` is `/api` and all below it,
        /// `/users/{id}/orders` takes one segment as `id`, and `/users/{id}/*` all below. Paths are normalised before
        /// they are compared, and what may stand plain in a path (`@`, `:` and the like) is written plain here. A
        /// request is refused (`400 bad_request`) that services could read as one of another route, or of none outside
        /// the route's own beginning (what stands before its first parameter): a path with its escapes undone (`%40`,
        /// `%3B`), without what follows its semicolons, a method in capitals. `/users/` and `/Users` are other paths
        /// than `/users`, and a wider route may take them: guard `/users/*`. Where a less guarded route to the same
        /// upstream takes `/users/`, a warning says so.
        path: PathPattern = required, e.g. "/shop/*";
        /// Methods it answers for. Empty: any.
        methods: Vec<String> as List("method, as `GET`") = [], e.g. ["GET", "HEAD"];
        /// Where its requests go.
        upstream: String as Text("name of an upstream") = required, e.g. "shop";
        /// Who may use it: callers with a valid token (`401 token_missing` and others without), or anybody. A public
        /// route looks at no token.
        access: Access = "authenticated", e.g. "public";
        /// The caller has one of these roles (`403 forbidden`). Empty: any.
        roles: Vec<String> as List("name of a role") = [], e.g. ["admin"];
        /// The caller has all of these permissions (`403 forbidden`). Empty: none is asked for.
        permissions: Vec<String> as List("permission, as `events:write`") = [], e.g. ["events:write"];
        /// The parameter of the query that may hold the token, for browsers' `EventSource` and `WebSocket`. It is taken
        /// out before the request goes on. With `Authorization` as well, or twice, it is refused (`400 bad_request`).
        token_query: Option<String> as Text("up to 64 of `A-Za-z0-9._-`")
            = unset "none: tokens come in `Authorization` only", e.g. "access_token";
        /// Whole segments taken from the front of the path before the upstream sees it.
        strip_prefix: Option<String> as Text("path") = unset "nothing is stripped", e.g. "/shop";
        /// The path that the upstream sees, made of the parameters of `path`; `{rest}` is what its `/*` took. Not
        /// together with `strip_prefix`.
        rewrite: Option<String> as Text("path of whole segments with `{parameter}` and `{rest}`")
            = unset "the path stays", e.g. "/v2/{rest}";
        /// Whether the upstream sees the client's `Host` instead of its own authority.
        preserve_host: bool = false, e.g. true;
        /// Whether the upstream sees the client's `Authorization`.
        forward_authorization: bool = true, e.g. false;
        /// Whether `%2F` and `%5C` may stand in a path; otherwise it is refused (`400 bad_request`). Where they may, a
        /// path is refused that services could read as one of another route, as one above what `strip_prefix` leaves,
        /// or as one that no route takes and that begins otherwise than the route's do. A warning names the guarded
        /// routes of the same upstream that ask for more.
        allow_encoded_slash: bool = false, e.g. true;
        /// Whether doubled slashes become one before the path is compared and forwarded. `false` is for routes that
        /// carry URLs in paths (`/proxy/https://a.example/b`): they are kept for routing and upstream alike, where the
        /// path with and without them leads to this route; elsewhere they become one.
        merge_slashes: bool = true, e.g. false;
        /// Whether `Location` and `Content-Location` that name the upstream's own authority, and these and cookie paths
        /// that name its paths without the stripped or rewritten prefix, are changed to what leads there through the
        /// gateway ([operations.md](operations.md)).
        rewrite_redirects: bool = true, e.g. false;
        /// Protocols that a client and the upstream may switch to with `Upgrade`, whatever their version. Others are
        /// left out of the request; `h2c` cannot be one.
        upgrades: Vec<String> as List("name of a protocol, as `websocket`") = ["websocket"], e.g. ["websocket", "tcp"];
        /// Bytes of a request's body (`413 body_too_large`).
        body_bytes_max: Option<u64> as Size(0, TIB) = unset "`http.body_bytes_max`", e.g. "10MiB", per Each;
        /// Methods with which the service reads a request's body to its end. `*`: all.
        body_methods: Option<Vec<String>> as METHODS = unset "the upstream's", e.g. ["*"], per Each;
        /// From the request's last byte to the head of the answer (`504 upstream_timeout`).
        response_timeout: Option<Duration> = unset "the upstream's", e.g. "30s", per Each;
        /// From a request's first byte to the end of its body (`408 request_timeout`).
        request_timeout: Option<Duration> = unset "`http.request_timeout`", e.g. "10m", per Each;
        /// How long an answer may stand still while it streams.
        stream_idle_timeout: Option<Duration> = unset "`http.stream_idle_timeout`", e.g. "1h", per Each;
        /// What becomes of the upstream's request when its client leaves.
        on_client_close: Option<ClientClose> = unset "`http.on_client_close`", e.g. "finish", per Each;
        /// Whether interim answers of the upstream go to the client.
        interim_answers: Option<bool> = unset "`http.interim_answers`", e.g. false, per Each;
        /// Attempts beyond the first.
        retries_max: Option<u32> as Number(0, 10) = unset "the upstream's", e.g. 0, per Each;
        /// What is tried again.
        retry_on: Option<Vec<RetryOn>> as RETRY_ON = unset "the upstream's", e.g. ["connect", "503"], per Each;
        /// How long one attempt may take.
        per_try_timeout: Option<Duration> = unset "the upstream's", e.g. "500ms", per Each;
        /// When no answer has come after this long, another instance is asked as well, and the first answer counts. For
        /// requests without a body that are safe to repeat; within the budget for retries.
        hedge_after: Option<Duration> = unset "never", e.g. "100ms", per Each;
        /// How long a request may take until it is answered, from its first byte (`504 upstream_timeout`). A client may ask
        /// for less with `X-Request-Timeout-Ms`; see [resilience.md](resilience.md).
        deadline: Option<Duration> = unset "none, unless the client has one", e.g. "2s", per Each;
        /// The limits of its rate: these and no others.
        limits: Option<Vec<String>> as List("name of a limit") = unset "those that apply to all", e.g. [];
    } with {
        /// What it says otherwise than [`Cors`].
        cors: RouteCors,
        /// Changes to the request's fields, after the gateway's own.
        request_headers: HeaderRules,
        /// Changes to the answer's fields, after the gateway's own.
        response_headers: HeaderRules,
    }
}

words! {
    /// Who may use a route.
    Access {
        /// Anybody; tokens are not looked at.
        Public = "public",
        /// Callers with a valid token.
        Authenticated = "authenticated",
    }
}

section! {
    /// What the route says otherwise than `[cors]`.
    RouteCors = Inside "routes.cors", per Process, by Reload {
        /// Origins that may read answers. Empty: the service does CORS by itself on this route.
        origins: Option<Vec<OriginPattern>> = unset "as `[cors]`", e.g. ["https://partner.example"];
        /// Methods that they may use.
        methods: Option<Vec<String>> as WORDS = unset "as `[cors]`", e.g. ["GET"];
        /// Request fields that they may send.
        headers: Option<Vec<String>> as WORDS = unset "as `[cors]`", e.g. ["*"];
        /// Answer fields that their scripts may read.
        exposed: Option<Vec<String>> as WORDS = unset "as `[cors]`", e.g. ["ETag"];
        /// How long a browser may remember the answer to a preflight.
        max_age: Option<Duration> as Duration(0, DAY) = unset "as `[cors]`", e.g. "1h", per Each;
        /// Whether cookies and client certificates may come along.
        credentials: Option<bool> = unset "as `[cors]`", e.g. true;
        /// Whether pages of the public network may call a gateway in a private one.
        private_network: Option<bool> = unset "as `[cors]`", e.g. true;
    }
}

section! {
    /// Changes to a head's fields: first `remove`, then `set`, then `add`.
    HeaderRules = Inside "routes.*_headers", per Each, by Reload {
        /// Fields to take out, before the rest is done, with any other sign for `-` too. With these, or with `set`,
        /// trailer fields are left out.
        remove: Vec<String> as List("field name") = [], e.g. ["X-Debug"];
        /// Fields to have once, with this value; whatever else would read as such a field is taken out.
        set: BTreeMap<String, String> = {}, e.g. { X-Tier = "gold" };
        /// Fields to have besides those that are there.
        add: BTreeMap<String, String> = {}, e.g. { X-Seen-By = "edge" };
    }
}
