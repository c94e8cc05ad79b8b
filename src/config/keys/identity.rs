//! The part of the table that is about users: accounts, their sessions, and what roles permit.

use super::section::{section, words};
use super::{DAY, HOUR, KIB, MIB, SECOND};
use crate::config::redis_url::RedisUrl;
use crate::config::secret::Secret;
use std::path::PathBuf;
use std::time::Duration;

section! {
    /// Where users are kept, and what a log-in may cost.
    Accounts = Once "accounts", per Process, by Restart {
        /// Whether the gateway has users of its own: `/auth/*`, sessions and the log of revocations. Without it, tokens
        /// of `[[auth.keys]]` and `[[auth.issuers]]` are checked all the same, and nothing is kept on disk but a
        /// generated key.
        enabled: bool = true, e.g. false;
        /// The PostgreSQL server that has the table `users`; write `"${DATABASE_URL}"`. `?sslmode=verify-full`
        /// (`verify-ca`, `require`) insists on TLS, `disable` is for none, and with `prefer`, the default, it is used
        /// if the server has it; certificate and name of the server are always checked. `sslrootcert=` names the
        /// certificates as `postgres_ca_file` does.
        postgres_url: Option<Secret> as Secret("`postgres://user:password@host:5432/database`")
            = unset "the embedded store", e.g. "postgres://shardgate@localhost/shop";
        /// The certificates that PostgreSQL's is checked against, as PEM.
        postgres_ca_file: Option<PathBuf> = unset "the system's certificates", e.g. "/etc/shardgate/ca.pem";
        /// Connections to PostgreSQL.
        postgres_connections_max: usize as Number(1, 1000) = 4, e.g. 16;
        /// How long connecting to PostgreSQL, and each statement, may take (`503 dependency_unavailable`).
        postgres_timeout: Duration = "3s", e.g. "1s", per Each;
        /// Threads that hash passwords, at low priority. 0: half as many as there are cores.
        password_threads: Option<usize> as Number(0, 1024) = 0, e.g. 2;
        /// Log-ins that wait for one of them; more are refused (`503 overloaded`, with `Retry-After`).
        password_queue: usize as Number(1, 100_000) = 64, e.g. 256;
        /// Memory that a password's hash takes (argon2id). Hashes of another cost are checked, and made anew at the
        /// next log-in.
        password_memory: usize as Size(64 * KIB, 256 * MIB) = "19MiB", e.g. "46MiB", per Each;
        /// Passes over that memory.
        password_passes: u32 as Number(1, 16) = 2, e.g. 1, per Each;
        /// Failed log-ins in a row, less than a minute apart, of one account from one address (IPv6: one /64); each
        /// further one waits twice as long as the one before, from 1 s to 5 min (`429 rate_limited`).
        login_failures_max: u32 as Number(1, 1000) = 5, e.g. 10;
    }
}

section! {
    /// Redis, which instances share. Without it one instance is complete by itself. Commands that it needs: 6.2 or
    /// newer; a cluster with a hub, 7.
    Redis = Once "redis", per Process, by Restart {
        /// Where it is: one server, or several sentinels or nodes of a cluster as `mode` says, all with the same user,
        /// password and database. `rediss` is with TLS. Write a password as `${REDIS_PASSWORD}`; it is never shown. The
        /// database divides keys only: two hubs need two servers, as channels know no databases.
        urls: Vec<RedisUrl> = [], e.g. ["redis://cache.example:6379/0"];
        /// What the servers in `urls` are.
        mode: RedisMode = "single", e.g. "cluster";
        /// What the sentinels call the server that is written to.
        master: String as Text("name") = "mymaster", e.g. "sessions";
        /// The sentinels' own password; the one in `urls` is the server's.
        sentinel_password: Option<Secret> as Secret("the sentinels' password") = unset "they ask for none",
            e.g. "an example";
        /// Certificates (PEM) that the server's certificate is checked with.
        ca_file: Option<PathBuf> = unset "those of the system", e.g. "/etc/shardgate/redis-ca.pem";
        /// To open a connection, log-in and TLS included.
        connect_timeout: Duration = "1s", e.g. "500ms", per Each;
        /// For one command and its answer; then whoever asked is told that Redis is away, and the connection is opened
        /// anew.
        timeout: Duration = "1s", e.g. "250ms", per Each;
    }
}

words! {
    /// What several servers of Redis are to one another.
    RedisMode {
        /// There is one.
        Single = "single",
        /// Sentinels, which know the one that is written to.
        Sentinel = "sentinel",
        /// Nodes of a cluster; the others are found through them.
        Cluster = "cluster",
    }
}

section! {
    /// Sessions and their refresh tokens (docs/sessions.md).
    Sessions = Once "sessions", per Process, by Restart {
        /// Where sessions and the log of revocations are kept: `embedded` is for one instance, `redis` for all that
        /// share it.
        store: Option<SessionStore> = unset "`redis` where `redis.urls` is given, else `embedded`", e.g. "embedded";
        /// How long a session lasts from its log-in, however often it is renewed.
        lifetime: Duration as Duration(SECOND, 400 * DAY) = "30d", e.g. "7d", per Each;
        /// For so long a refresh token that was just spent is answered with the same successor (two tabs, a lost
        /// answer). Later it ends the session (`401 refresh_reused`).
        refresh_grace: Duration as Duration(0, HOUR) = "10s", e.g. "5s", per Each;
        /// Sessions of one user. One more ends the one that was not renewed for longest.
        per_user_max: usize as Number(1, 1000) = 50, e.g. 10, per Each;
        /// What refresh tokens are signed with; instances that share sessions share it. Write `"${SESSIONS_SECRET}"`.
        secret: Option<Secret> as Secret("32 bytes or more")
            = unset "one is made and kept in `data.dir`; with `store = \"redis\"` it must be written",
            e.g. "an example of 32 bytes or more: no secret";
        /// The secret before this one: its tokens stay good, new ones are signed with `secret`.
        old_secret: Option<Secret> as Secret("32 bytes or more") = unset "none",
            e.g. "an example of 32 bytes or more: no secret";
    }
}

words! {
    /// Where sessions and revocations are kept.
    SessionStore {
        /// In the data directory: for one instance.
        Embedded = "embedded",
        /// In Redis: for all instances that share it.
        Redis = "redis",
    }
}

section! {
    /// What happens when the log of revocations cannot be read (docs/sessions.md).
    Revocation = Once "revocation", per Process, by Reload {
        /// How long what is known of the log serves while the log cannot be read.
        max_staleness: Duration as Duration(SECOND, DAY) = "60s", e.g. "10s";
        /// What becomes of requests with a token after that: refused (`503 dependency_unavailable`), or served.
        fail: Option<RevocationFail> = unset "`closed` on routes that ask for roles or permissions, else `open`",
            e.g. "closed";
    }
}

words! {
    /// What becomes of requests with a token when what is known of the log is too old.
    RevocationFail {
        /// They are refused with `503 dependency_unavailable`.
        Closed = "closed",
        /// They go on.
        Open = "open",
    }
}

section! {
    /// What callers with a role may do. `admin`, `service`, `analyst` and `user` are there unless the file says
    /// otherwise of them. A name is a letter, then up to 63 of `a-z`, `0-9`, `-` and `_`.
    Role = Named "roles.<name>", per Process, by Reload {
        /// What the role permits. A token's own permissions come on top.
        permissions: Vec<String> as GRANTED = [], e.g. ["events:write", "hub:*"];
    }
}
