//! The part of the table of keys that is about the process: its threads, listeners, files, and how it stops.

use super::Fallback::{Required, Value};
use super::{DAY, GIB, HOUR, KIB, Key, Kind, MINUTE, NETWORKS, Reload, Scope, keys};

const DIRECTORY: Kind = Kind::Text("path of a directory");
const ADDRESS: Kind = Kind::Text("IP address");

pub(super) const RUNTIME: &[Key] = keys! {
    shards: Kind::Number(0, 1024), Value("0"), "2", Process, Restart,
        "How many shards, each with a thread of its own. 0: one per core that the process may use (the least of cgroup quota, affinity and cores).";
    driver: Kind::Choice(&["epoll", "io_uring"]), Value("\"epoll\""), "\"io_uring\"", Process, Restart,
        "How shards wait for I/O. `io_uring` falls back to `epoll` where the kernel refuses it.";
    pin: Kind::Boolean, Value("true"), "false", Shard, Restart,
        "Whether each shard's thread stays on its core.";
    lookup_timeout: Kind::Duration(1, HOUR), Value("\"10s\""), "\"30s\"", Process, Live,
        "How long the names of instances may take to be looked up, all of them together: at the start, which fails then, and at a reload, which is refused then.";
};

pub(super) const LISTENER: &[Key] = keys! {
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

pub(super) const LISTENERS: &[Key] = keys! {
    address: ADDRESS, Value("\"0.0.0.0\""), "\"127.0.0.1\"", Process, Restart,
        "The address that it binds.";
    port: Kind::Port, Required, "8081", Process, Restart,
        "Its port. 0 takes any free port.";
    kind: Kind::Choice(&["plain"]), Required, "\"plain\"", Process, Restart,
        "What its clients speak: `plain` is HTTP in clear text, as on `[listener]`.";
};

pub(super) const ADMIN: &[Key] = keys! {
    enabled: Kind::Boolean, Value("true"), "false", Process, Restart,
        "Whether there is an operator's listener.";
    address: ADDRESS, Value("\"127.0.0.1\""), "\"::1\"", Process, Restart,
        "The address that it binds.";
    port: Kind::Port, Value("3001"), "9000", Process, Restart,
        "Its port. 0 takes any free port.";
};

pub(super) const METRICS: &[Key] = keys! {
    allow: NETWORKS, Value("[]"), "[\"10.0.0.0/8\"]", Process, Live,
        "Clients that `GET /metrics` answers on the public listener; for anybody else there is no such page (`404 not_found`). Behind `trust.proxies` the client is whom they name. The operator's listener has the page for itself.";
};

pub(super) const DRAIN: &[Key] = keys! {
    notice: Kind::Duration(0, HOUR), Value("\"5s\""), "\"1s\"", Process, Live,
        "From the signal on: `/health/ready` answers 503, yet connections are still accepted, so that balancers can turn away.";
    window: Kind::Duration(0, DAY), Value("\"10s\""), "\"25s\"", Process, Live,
        "From the closing of the listeners on: tunnels (proxied WebSockets) are closed one by one within this time, so that their clients do not all come back at once. As long as `max` lets it be, less two seconds.";
    max: Kind::Duration(0, DAY), Value("\"30s\""), "\"1m\"", Process, Live,
        "From the signal on: after this long what is left is cut. Not less than `notice`.";
};

pub(super) const DATA: &[Key] = keys! {
    dir: DIRECTORY, Value("\"./data\""), "\"/var/lib/shardgate\"", Process, Restart,
        "The directory for what the gateway keeps: `shardgate.db` (accounts, sessions and revocations, where no PostgreSQL or Redis is given) and generated keys. It is made, for this user alone, when something is first kept. Where systemd keeps a directory for the service (`StateDirectory=`), that one is the default.";
};

pub(super) const LOG: &[Key] = keys! {
    level: Kind::Text("level, or `target=level` pairs with commas"), Value("\"info\""), "\"warn,shardgate=debug\"", Process, Live,
        "What the process tells of itself: `off`, `error`, `warn`, `info`, `debug` or `trace`, for all of it or by target.";
    format: Kind::Choice(&["auto", "json", "text"]), Value("\"auto\""), "\"text\"", Process, Restart,
        "How the lines of the log (on standard error) and of the access log look: `json` for programs, `text` for people, one line each. `auto` is text on a terminal, with colours unless `NO_COLOR` is set, and JSON everywhere else.";
    access: Kind::Text("`off`, `stdout` or a path with a slash"), Value("\"stdout\""), "\"/var/log/shardgate/access.log\"", Process, Restart,
        "Where the access log goes, one line per request (docs/access-log.md).";
    buffer_bytes: Kind::Size(64 * KIB, GIB), Value("\"2MiB\""), "\"1MiB\"", Shard, Restart,
        "Access-log bytes that wait to be written. When it is full, lines are dropped and counted; no request waits.";
    flush_interval: Kind::Duration(1, MINUTE), Value("\"200ms\""), "\"1s\"", Shard, Restart,
        "How long an access-log line may wait.";
};
