//! The part of the table of keys that is about requests: their bounds, where they come from and where they go.

use super::Fallback::{Required, Unset, Value};
use super::{COUNT, DAY, KIB, Key, Kind, MIB, NETWORKS, PERCENT, Reload, Scope, TIB, TIME, keys};
use crate::config::{LimitApplies, LimitKey, LimitScope};

const ACCESS: Kind = Kind::Choice(&["public", "authenticated"]);
const CLIENT_CLOSE: Kind = Kind::Choice(&["cancel", "finish"]);
const ORIGINS: Kind = Kind::List("origin, as `https://shop.example.com` or `https://*.example.com`; `null`; `*`");
const WORDS: Kind = Kind::List("name, or `*`");
const METHODS: Kind = Kind::List("method, as `GET`; `*`");

pub(super) const HTTP: &[Key] = keys! {
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
        "What becomes of a request when its client leaves before the answer is complete, or only ends its sending side: it is cancelled, or goes on, and is answered in full where somebody still reads. It holds for `/auth/*` too; a route may say otherwise.";
    interim_answers: Kind::Boolean, Value("true"), "false", Each, Live,
        "Whether interim answers of the upstream (`103 Early Hints` and other 1xx) go to HTTP/1.1 clients. Some take the first of them for the answer, Python's `http.client` among them. A route may say otherwise.";
    requests_per_connection_max: COUNT, Value("0"), "1000", Each, Live,
        "Requests on one client connection before it is closed. 0: no limit.";
};

pub(super) const TRUST: &[Key] = keys! {
    proxies: NETWORKS, Value("[]"), "[\"10.0.0.0/8\"]", Process, Live,
        "Peers (load balancers before the gateway) whose `X-Forwarded-*` is appended to; from anybody else it is replaced.";
};

pub(super) const TRACE: &[Key] = keys! {
    sample_ratio: Kind::Ratio, Value("1.0"), "0.1", Process, Live,
        "Which share of the traces is marked to be recorded by the services, decided by the trace's id, so that all instances agree. A peer in `trust.proxies` that sends a `traceparent` has decided already.";
};

pub(super) const CORS: &[Key] = keys! {
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

pub(super) const LIMITS: &[Key] = keys! {
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
        "Where it holds: on every route that names no `limits`, on `/auth/*` and, by address, on preflights and requests that no route takes; on `/auth/*` only; or where `routes.limits` names it.";
    dry_run: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether it only counts and logs what it would refuse.";
    local_share_percent: Kind::Number(1, 100), Value("50"), "25", Process, Live,
        "Of a limit of the fleet: what each instance allows by itself while Redis is away, in percent of quota and burst. With two instances 50 keeps the whole as it is.";
    keys_max: Kind::Number(8, 1 << 22), Value("65536"), "1024", Shard, Live,
        "Addresses, users or routes that are remembered at once, 32 bytes each. When all of them owe something, new ones share one more place.";
};

pub(super) const UPSTREAMS: &[Key] = keys! {
    instances: Kind::List("`host:port`"), Required, "[\"127.0.0.1:4001\"]", Process, Live,
        "Its servers; at least one. Every address of a name is an instance: it is chosen, pooled, left out and counted by itself, and sees the name as `Host`. Plain HTTP: there is no TLS to services yet.";
    connect_timeout: TIME, Value("\"1s\""), "\"250ms\"", Each, Live,
        "To open a connection; then the next instance is tried, and first up to four other addresses of the same name (`502 upstream_unreachable` when none is left).";
    response_timeout: TIME, Value("\"15s\""), "\"5s\"", Each, Live,
        "From the request's last byte to the head of the answer (`504 upstream_timeout`). A route may say otherwise.";
    idle_timeout: TIME, Value("\"4s\""), "\"2s\"", Each, Live,
        "How long an idle connection is kept for reuse; shorter when the upstream's `Keep-Alive` says so. Keep it below what the upstream itself waits.";
    idle_max: Kind::Number(0, 65_536), Value("64"), "16", Shard, Live,
        "Idle connections kept for reuse, per instance.";
    head_bytes_max: Kind::Size(KIB, MIB), Value("\"64KiB\""), "\"128KiB\"", Each, Live,
        "Bytes of an answer's head (`502 upstream_bad_response`).";
    fields_max: Kind::Number(1, 256), Value("256"), "128", Each, Live,
        "Fields of an answer's head (`502 upstream_bad_response`).";
    interim_answers_max: Kind::Number(0, 255), Value("16"), "4", Each, Live,
        "Interim answers (1xx) to one request before the final one (`502 upstream_bad_response`), also where clients get none.";
    requests_max: Kind::Number(1, u32::MAX as u64), Value("1024"), "256", Process, Live,
        "Requests in flight at once to all instances; more are refused (`503 circuit_open`).";
    uploads_max: Kind::Number(1, u32::MAX as u64), Unset("half of `requests_max`"), "64", Process, Live,
        "How many of these may have a body that is still coming in, so that slow uploads leave places for others. Past it, a body of up to 16 KiB is waited for without a place, and a request with a longer one, or one of unknown length, is refused (`503 circuit_open`).";
    body_methods: METHODS, Value("[\"POST\", \"PUT\", \"PATCH\"]"), "[\"POST\", \"PUT\", \"PATCH\", \"DELETE\"]", Each, Live,
        "Methods with which its instances read a request's body to its end. After a body with another method the connection is closed, and the instance is told so before: it might take the body for the next request. `*`: all. A route may say otherwise.";
    retries_max: Kind::Number(0, 10), Value("2"), "1", Each, Live,
        "Attempts beyond the first, for requests that are safe to repeat. Further addresses of a name are not counted where a connection could not be opened. A route may say otherwise.";
    retry_budget_percent: PERCENT, Value("20"), "10", Shard, Live,
        "Retries as a share of requests, in percent; what goes beyond fails at once instead of making an outage worse. Another instance after a connection that could not be opened is not counted: nobody was asked twice.";
    retry_budget_min_per_s: COUNT, Value("3"), "10", Process, Live,
        "Retries per second that are allowed whatever the share says.";
    outlier_failures: COUNT, Value("5"), "10", Shard, Live,
        "Failures in a row that eject an instance. 0 ejects none.";
    outlier_ejection: TIME, Value("\"30s\""), "\"10s\"", Shard, Live,
        "How long an ejected instance stays out, times how often it was ejected.";
    outlier_percent_max: PERCENT, Value("50"), "30", Shard, Live,
        "At most this share of the instances is out at once, in percent.";
};

pub(super) const ROUTES: &[Key] = keys! {
    name: Kind::Text("up to 64 of `A-Za-z0-9._-`"), Unset("the path as written"), "\"orders\"", Process, Live,
        "What logs and metrics call it; unique.";
    hosts: Kind::List("host, as `shop.example.com` or `*.example.com`"), Value("[]"), "[\"shop.example.com\"]", Process, Live,
        "Hosts it answers for, without ports. `*.` stands for one label or more. Empty: any. A host with an empty label (`.example.com`, `a..b`) is nobody's and refused (`400 bad_request`); with one dot behind it, it is the same host.";
    path: Kind::Text("path"), Required, "\"/shop/*\"", Process, Live,
        "Paths it answers for: `/health` is that path alone, `/api/*` is `/api` and all below it, `/users/{id}/orders` takes one segment as `id`, and `/users/{id}/*` all below. Paths are normalised before they are compared, and what may stand plain in a path (`@`, `:` and the like) is written plain here. A request is refused (`400 bad_request`) that services could read as one of another route, or of none outside the route's own beginning (what stands before its first parameter): a path with its escapes undone (`%40`, `%3B`), without what follows its semicolons, a method in capitals. `/users/` and `/Users` are other paths than `/users`, and a wider route may take them: guard `/users/*`. Where a less guarded route to the same upstream takes `/users/`, a warning says so.";
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
    token_query: Kind::Text("up to 64 of `A-Za-z0-9._-`"), Unset("none: tokens come in `Authorization` only"), "\"access_token\"", Process, Live,
        "The parameter of the query that may hold the token, for browsers' `EventSource` and `WebSocket`. It is taken out before the request goes on. With `Authorization` as well, or twice, it is refused (`400 bad_request`).";
    strip_prefix: Kind::Text("path"), Unset("nothing is stripped"), "\"/shop\"", Process, Live,
        "Whole segments taken from the front of the path before the upstream sees it.";
    rewrite: Kind::Text("path of whole segments with `{parameter}` and `{rest}`"), Unset("the path stays"), "\"/v2/{rest}\"", Process, Live,
        "The path that the upstream sees, made of the parameters of `path`; `{rest}` is what its `/*` took. Not together with `strip_prefix`.";
    preserve_host: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether the upstream sees the client's `Host` instead of its own authority.";
    forward_authorization: Kind::Boolean, Value("true"), "false", Process, Live,
        "Whether the upstream sees the client's `Authorization`.";
    allow_encoded_slash: Kind::Boolean, Value("false"), "true", Process, Live,
        "Whether `%2F` and `%5C` may stand in a path; otherwise it is refused (`400 bad_request`). Where they may, a path is refused that services could read as one of another route, as one above what `strip_prefix` leaves, or as one that no route takes and that begins otherwise than the route's do. A warning names the guarded routes of the same upstream that ask for more.";
    merge_slashes: Kind::Boolean, Value("true"), "false", Process, Live,
        "Whether doubled slashes become one before the path is compared and forwarded. `false` is for routes that carry URLs in paths (`/proxy/https://a.example/b`): they are kept for routing and upstream alike, where the path with and without them leads to this route; elsewhere they become one.";
    rewrite_redirects: Kind::Boolean, Value("true"), "false", Process, Live,
        "Whether `Location` and `Content-Location` that name the upstream's own authority, and these and cookie paths that name its paths without the stripped or rewritten prefix, are changed to what leads there through the gateway ([operations.md](operations.md)).";
    upgrades: Kind::List("name of a protocol, as `websocket`"), Value("[\"websocket\"]"), "[\"websocket\", \"tcp\"]", Process, Live,
        "Protocols that a client and the upstream may switch to with `Upgrade`, whatever their version. Others are left out of the request; `h2c` cannot be one.";
    body_bytes_max: Kind::Size(0, TIB), Unset("`http.body_bytes_max`"), "\"10MiB\"", Each, Live,
        "Bytes of a request's body (`413 body_too_large`).";
    body_methods: METHODS, Unset("the upstream's"), "[\"*\"]", Each, Live,
        "Methods with which the service reads a request's body to its end. `*`: all.";
    response_timeout: TIME, Unset("the upstream's"), "\"30s\"", Each, Live,
        "From the request's last byte to the head of the answer (`504 upstream_timeout`).";
    request_timeout: TIME, Unset("`http.request_timeout`"), "\"10m\"", Each, Live,
        "From a request's first byte to the end of its body (`408 request_timeout`).";
    stream_idle_timeout: TIME, Unset("`http.stream_idle_timeout`"), "\"1h\"", Each, Live,
        "How long an answer may stand still while it streams.";
    on_client_close: CLIENT_CLOSE, Unset("`http.on_client_close`"), "\"finish\"", Each, Live,
        "What becomes of the upstream's request when its client leaves.";
    interim_answers: Kind::Boolean, Unset("`http.interim_answers`"), "false", Each, Live,
        "Whether interim answers of the upstream go to the client.";
    retries_max: Kind::Number(0, 10), Unset("the upstream's"), "0", Each, Live,
        "Attempts beyond the first.";
    limits: Kind::List("name of a limit"), Unset("those that apply to all"), "[]", Process, Live,
        "The limits of its rate: these and no others.";
};

pub(super) const ROUTE_CORS: &[Key] = keys! {
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

pub(super) const HEADERS: &[Key] = keys! {
    remove: Kind::List("field name"), Value("[]"), "[\"X-Debug\"]", Each, Live,
        "Fields to take out, before the rest is done, with any other sign for `-` too. With these, or with `set`, trailer fields are left out.";
    set: Kind::Fields, Value("{}"), "{ X-Tier = \"gold\" }", Each, Live,
        "Fields to have once, with this value; whatever else would read as such a field is taken out.";
    add: Kind::Fields, Value("{}"), "{ X-Seen-By = \"edge\" }", Each, Live,
        "Fields to have besides those that are there.";
};
