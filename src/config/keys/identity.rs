//! The part of the table of keys that is about users: accounts, their sessions, and what roles permit.

use super::Fallback::{Unset, Value};
use super::{DAY, HOUR, KIB, Key, Kind, MIB, Reload, SECOND, Scope, TIME, keys};

pub(super) const ACCOUNTS: &[Key] = keys! {
    enabled: Kind::Boolean, Value("true"), "false", Process, Restart,
        "Whether the gateway has users of its own: `/auth/*`, sessions and the log of revocations. Without it, tokens of `[[auth.keys]]` and `[[auth.issuers]]` are checked all the same, and nothing is kept on disk but a generated key.";
    postgres_url: Kind::Secret("`postgres://user:password@host:5432/database`"), Unset("the embedded store"), "\"postgres://shardgate@localhost/shop\"", Process, Restart,
        "The PostgreSQL server that has the table `users`; write `\"${DATABASE_URL}\"`. `?sslmode=verify-full` (`verify-ca`, `require`) insists on TLS, `disable` is for none, and with `prefer`, the default, it is used if the server has it; certificate and name of the server are always checked. `sslrootcert=` names the certificates as `postgres_ca_file` does.";
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

pub(super) const REDIS: &[Key] = keys! {
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

pub(super) const SESSIONS: &[Key] = keys! {
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

pub(super) const REVOCATION: &[Key] = keys! {
    max_staleness: Kind::Duration(SECOND, DAY), Value("\"60s\""), "\"10s\"", Process, Live,
        "How long what is known of the log serves while the log cannot be read.";
    fail: Kind::Choice(&["closed", "open"]), Unset("`closed` on routes that ask for roles or permissions, else `open`"), "\"closed\"", Process, Live,
        "What becomes of requests with a token after that: refused (`503 dependency_unavailable`), or served.";
};

pub(super) const ROLES: &[Key] = keys! {
    permissions: Kind::List("permission, as `events:write`; `events:*` stands for all that begin so, `*` for all"), Value("[]"), "[\"events:write\", \"hub:*\"]", Process, Live,
        "What the role permits. A token's own permissions come on top.";
};
