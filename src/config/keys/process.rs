//! The part of the table that is about the process: its threads, how it finds services, listeners, files, and how it stops.

use super::section::{section, words};
use super::{DAY, GIB, HOUR, KIB, MIB, MINUTE};
use crate::config::address::{IpNet, Nameserver};
use crate::config::instance::Zone;
use crate::config::key::Kind;
use crate::config::secret::Secret;
use crate::config::values::AsText;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

section! {
    /// Threads, how they wait for I/O, and how long names are waited for.
    Runtime = Once "runtime", per Process, by Restart {
        /// How many shards, each with a thread of its own. 0: one per core that the process may use (the least of
        /// cgroup quota, affinity and cores).
        shards: Option<usize> as Number(0, 1024) = 0, e.g. 2;
        /// How shards wait for I/O. `io_uring` falls back to `epoll` where the kernel refuses it.
        driver: Driver = "epoll", e.g. "io_uring";
        /// Whether each shard's thread stays on its core.
        pin: bool = true, e.g. false, per Shard;
        /// How long a start or a reload waits for the names of instances that were never looked up, all of them together.
        /// Then it goes on without those that have no address yet.
        lookup_timeout: Duration as Duration(1, HOUR) = "10s", e.g. "30s", by Reload;
        /// Where the gateway stands. Instances of the same `zone` come before others of their `priority`.
        zone: Option<Zone> = unset "nowhere: all zones are alike", e.g. "eu-1a", by Reload;
    }
}

section! {
    /// How the names of instances are followed while the gateway runs.
    Discovery = Once "discovery", per Process, by Reload {
        /// Whom to ask, in this order: the next one when one fails or does not answer. The domains and `ndots` of
        /// `/etc/resolv.conf` count in any case, and what `/etc/hosts` says goes before all of them.
        nameservers: Vec<Nameserver> = [], e.g. ["10.0.0.2:53"];
        /// A name is asked for again when its time to live is over, but not sooner than this. So are names whose look-up
        /// failed, and then ever more rarely.
        interval_min: Duration as Duration(100, HOUR) = "1s", e.g. "5s";
        /// And not later than this.
        interval_max: Duration as Duration(100, DAY) = "5m", e.g. "1m";
        /// Percent of a name's addresses, or of a list's instances, that may be gone from one answer; when more are, a
        /// second answer decides.
        max_shrink: u32 as Number(0, 100) = 50, e.g. 30;
        /// Addresses that DNS and registries may give besides those of networks: of this machine, or of one link
        /// (`169.254.0.0/16`, `fe80::/10`) and what else clouds answer with secrets at. The hosts file may give any.
        allow: Vec<DnsAddress> as List("`loopback` or `link_local`") = [], e.g. ["loopback"];
    }
}

words! {
    /// What DNS may give only where it is allowed.
    DnsAddress {
        /// An address of this machine.
        Loopback = "loopback",
        /// An address of one link.
        LinkLocal = "link_local",
    }
}

words! {
    /// How a shard waits for I/O.
    Driver {
        /// `epoll(7)`.
        Epoll = "epoll",
        /// `io_uring(7)`, where the kernel allows it.
        IoUring = "io_uring",
    }
}

section! {
    /// The public listener.
    Listener = Once "listener", per Process, by Restart {
        /// The address that the public listener binds.
        address: IpAddr = "0.0.0.0", e.g. "::";
        /// Its port. 0 takes any free port. `PORT` sets it too.
        port: u16 = 3000, e.g. 8080;
        /// Connections that the kernel holds for a shard until it accepts them; the kernel's `somaxconn` caps it.
        backlog: u32 as Number(1, 65_535) = 4096, e.g. 1024, per Shard;
        /// Client connections open at once; more are refused. 0: half of the process's file descriptors.
        connections_max: Option<usize> as Number(0, 10_000_000) = 0, e.g. 10000, by Reload;
        /// Connections accepted in one go before the shard turns to those that it has.
        accept_budget: usize as Number(1, 4096) = 64, e.g. 16, per Shard, by Reload;
        /// Whether a shard that has clearly more connections than the least loaded one hands fresh ones over to it.
        hand_over: bool = true, e.g. false, by Reload;
        /// What its clients speak: `plain` is HTTP in clear text, `tls` is HTTP over TLS with the certificates of
        /// `[[tls.certificates]]`, `redirect` is HTTP in clear text that is answered by where the same is served over TLS
        /// (docs/tls.md).
        kind: ListenerKind = "plain", e.g. "tls";
        /// The port that a listener of kind `redirect` leads to: where clients reach what speaks TLS.
        https_port: Option<u16> = unset "that of the first listener of kind `tls`, or 443", e.g. 8443;
        /// Whether each connection begins with a PROXY header (version 1 or 2), in which a balancer tells whose it is. `required`:
        /// from peers in `trust.proxies`; whoever else connects, or sends none, is closed on. `off`: none is read.
        proxy_protocol: ProxyProtocol = "off", e.g. "required";
    }
}

section! {
    /// Public listeners beside `[listener]`. Each shard accepts from all of them; the backlog, the limits and the rest of
    /// `[listener]` hold for all of them together.
    FurtherListener = Listed "listeners", per Process, by Restart {
        /// The address that it binds.
        address: IpAddr = "0.0.0.0", e.g. "127.0.0.1";
        /// Its port. 0 takes any free port.
        port: u16 = required, e.g. 8081;
        /// What its clients speak, as on `[listener]`: `plain`, `tls` or `redirect`.
        kind: ListenerKind = required, e.g. "plain";
        /// The port that it leads to where its kind is `redirect`, as on `[listener]`.
        https_port: Option<u16> = unset "that of the first listener of kind `tls`, or 443", e.g. 8443;
        /// Whether each connection begins with a PROXY header, as on `[listener]`: `off` or `required`.
        proxy_protocol: ProxyProtocol = "off", e.g. "required";
    }
}

words! {
    /// Whether connections begin with a PROXY header.
    #[derive(Default)]
    ProxyProtocol {
        /// None is read.
        #[default]
        Off = "off",
        /// Each does.
        Required = "required",
    }
}

words! {
    /// What the clients of a listener speak.
    #[derive(Default)]
    ListenerKind {
        /// HTTP in clear text.
        #[default]
        Plain = "plain",
        /// HTTP over TLS.
        Tls = "tls",
        /// HTTP in clear text, answered by where the same is served over TLS.
        Redirect = "redirect",
    }
}

section! {
    /// TLS on the public listeners of kind `tls`: versions 1.2 and 1.3 (docs/tls.md).
    Tls = Once "tls", per Process, by Reload {
        /// How long a client may take for its handshake, from the accepted connection on.
        handshake_timeout: Duration as Duration(100, MINUTE) = "5s", e.g. "10s", per Each;
        /// Handshakes that may wait until their shard comes to them; past that, fresh connections are refused and counted.
        handshakes_waiting_max: usize as Number(1, 65_536) = 2048, e.g. 512, per Shard;
        /// Whether clients are refused that ask for a name which no certificate has, or for none. Otherwise they are shown the
        /// first certificate.
        strict_sni: bool = false, e.g. true;
        /// A file that holds a secret of 32 bytes or more, which instances share: the keys by which clients take sessions up
        /// again are derived from it and the hour, and then any of them takes up what another has begun. It may be readable by
        /// a group if it is root's or the gateway's own, and by nobody else.
        ticket_secret_file: Option<PathBuf> = unset "each process makes keys for itself", e.g. "/etc/shardgate/ticket-secret";
        /// How long browsers keep to HTTPS for the host of an answer over TLS (`Strict-Transport-Security`). `0s` has them forget
        /// it. What a service says itself stays.
        hsts_max_age: Option<Duration> as Duration(0, 3650 * DAY) = unset "browsers are not told", e.g. "365d";
        /// Whether they do so for all hosts below it too.
        hsts_include_subdomains: bool = false, e.g. true;
        /// Whether browsers may have it in the list that they come with. That is hard to take back, and asks for a year at
        /// least and all hosts below.
        hsts_preload: bool = false, e.g. true;
    } with {
        /// What is shown to clients; the first is the default.
        certificates: Vec<TlsCertificate>,
    }
}

section! {
    /// Certificates that clients are shown, by the name that they ask for: that of a certificate itself before a wildcard of
    /// one label. Where several have a name, the first that the client can check, one with an elliptic curve before RSA. Other
    /// files are taken when they change, and by a reload.
    TlsCertificate = Listed "tls.certificates", per Process, by Reload {
        /// The PEM file with the certificate, and behind it those that lead to an authority.
        cert: PathBuf as Text("path of a file") = required, e.g. "/etc/shardgate/tls/fullchain.pem";
        /// The PEM file with its key (PKCS#8, PKCS#1 or SEC1). Whoever else can read it is warned of, but for a group where it
        /// is root's or the gateway's own; what everybody can write is refused.
        key: PathBuf as Text("path of a file") = required, e.g. "/etc/shardgate/tls/key.pem";
    }
}

section! {
    /// The operator's listener.
    Admin = Once "admin", per Process, by Restart {
        /// Whether there is an operator's listener.
        enabled: bool = true, e.g. false;
        /// The address that it binds.
        address: IpAddr = "127.0.0.1", e.g. "::1";
        /// Its port. 0 takes any free port.
        port: u16 = 3001, e.g. 9000;
        /// Names by which browsers may ask for it, besides `localhost` and its addresses: those of a tunnel or a proxy in
        /// front of it. Any other is refused, as a page elsewhere could have its name lead here.
        hosts: Vec<String> as List("name of a host") = [], e.g. ["gateway.internal"], by Reload;
        /// What is spoken there, as on `[listener]`: `plain` or `tls`.
        kind: ListenerKind = "plain", e.g. "tls";
        /// With `tls`, the PEM file of the certificate that is shown there, whatever name is asked for.
        cert: Option<PathBuf> = unset "one of `[[tls.certificates]]`, by name, or the first",
            e.g. "/etc/shardgate/tls/operators.pem", by Reload;
        /// The file of its key, as that of any other.
        key: Option<PathBuf> = unset "`cert` is not given", e.g. "/etc/shardgate/tls/operators-key.pem", by Reload;
    } with {
        /// Who may make changes; names are unique.
        tokens: Vec<AdminToken>,
    }
}

section! {
    /// Operators who may make changes by the operator's listener, each with a token of their own (docs/dashboard.md). Without
    /// any nobody may. Where the listener is on no loopback address, reading asks for one too.
    AdminToken = Listed "admin.tokens", per Process, by Reload {
        /// Whose it is: the log tells by it who changed what.
        name: String as Text("up to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`") = required, e.g. "ann";
        /// The file that holds it, 16 bytes or more. It may be readable by a group if it is root's or the gateway's own, and by
        /// nobody else. A reload reads it anew.
        file: Option<PathBuf> = unset "`secret` is given", e.g. "/etc/shardgate/admin-token";
        /// What `file` would hold, for platforms that have variables only: write `"${ADMIN_TOKEN}"`.
        secret: Option<Secret> as Secret("16 bytes or more") = unset "`file` is given", e.g. "an-example-that-is-no-secret";
    }
}

section! {
    /// Metrics on the public listener.
    Metrics = Once "metrics", per Process, by Reload {
        /// Clients that `GET /metrics` answers on the public listener; for anybody else there is no such page
        /// (`404 not_found`). Behind `trust.proxies` the client is whom they name. The operator's listener has the page
        /// for itself.
        allow: Vec<IpNet> = [], e.g. ["10.0.0.0/8"];
    }
}

section! {
    /// How the process stops after SIGTERM.
    Drain = Once "drain", per Process, by Reload {
        /// From the signal on: `/health/ready` answers 503, yet connections are still accepted, so that balancers can
        /// turn away.
        notice: Duration as Duration(0, HOUR) = "5s", e.g. "1s";
        /// From the closing of the listeners on: tunnels (proxied WebSockets) and sockets of the hub are closed one by one
        /// within this time, so that their clients do not all come back at once. As long as `max` lets it be, less two
        /// seconds.
        window: Duration as Duration(0, DAY) = "10s", e.g. "25s";
        /// From the signal on: after this long what is left is cut. Not less than `notice`; with the hub at least `notice`,
        /// `window` and the five seconds in which a socket's client may answer its close, or some sockets may be cut.
        max: Duration as Duration(0, DAY) = "30s", e.g. "1m";
    }
}

section! {
    /// What the gateway keeps on disk.
    Data = Once "data", per Process, by Restart {
        /// The directory for what the gateway keeps: `shardgate.db` (accounts, sessions and revocations, where no
        /// PostgreSQL or Redis is given) and generated keys. It is made, for this user alone, when something is first
        /// kept. Where systemd keeps a directory for the service (`StateDirectory=`), that one is the default.
        dir: PathBuf as Text("path of a directory") = "./data", e.g. "/var/lib/shardgate";
    }
}

section! {
    /// What is written where.
    Log = Once "log", per Process, by Restart {
        /// What the process tells of itself: `off`, `error`, `warn`, `info`, `debug` or `trace`, for all of it or by
        /// target.
        level: String as Text("level, or `target=level` pairs with commas") = "info",
            e.g. "warn,shardgate=debug", by Reload;
        /// How the lines of the log (on standard error) and of the access log look: `json` for programs, `text` for
        /// people, one line each. `auto` is text on a terminal, with colours unless `NO_COLOR` is set, and JSON
        /// everywhere else.
        format: LogFormat = "auto", e.g. "text";
        /// Where the access log goes, one line per request (docs/access-log.md).
        access: AccessLog = "stdout", e.g. "/var/log/shardgate/access.log";
        /// Access-log bytes that wait to be written. When it is full, lines are dropped and counted; no request waits.
        buffer_bytes: usize as Size(64 * KIB, GIB) = "2MiB", e.g. "1MiB", per Shard;
        /// How long an access-log line may wait.
        flush_interval: Duration as Duration(1, MINUTE) = "200ms", e.g. "1s", per Shard;
    }
}

section! {
    /// The access log in ClickHouse, besides or instead of what `log.access` says (docs/clickhouse.md).
    Clickhouse = Once "clickhouse", per Process, by Reload {
        /// Whether access-log lines are sent there. `shardgate migrate` makes the table.
        enabled: bool = false, e.g. true, by Restart;
        /// Its HTTP interface.
        url: String as Text("`http://host:8123` or `https://host:8443`") = "http://127.0.0.1:8123",
            e.g. "https://clickhouse.example:8443";
        /// The database, which must be there.
        database: String as Text("up to 64 of A-Z, a-z, 0-9 and _") = "default", e.g. "shop";
        /// The table in it.
        table: String as Text("up to 64 of A-Z, a-z, 0-9 and _") = "shardgate_access", e.g. "access_log";
        /// Who logs in.
        user: String as Text("up to 128 printable ASCII characters") = "default", e.g. "shardgate";
        /// The user's password; write `"${CLICKHOUSE_PASSWORD}"`. It goes in a header and is never shown.
        password: Option<Secret> as Secret("password") = unset "none", e.g. "an example";
        /// The file that holds the password instead; a reload reads it again.
        password_file: Option<PathBuf> = unset "none", e.g. "/run/secrets/clickhouse";
        /// Certificates (PEM) that the server's is checked with.
        ca_file: Option<PathBuf> = unset "those of the system", e.g. "/etc/shardgate/ca.pem";
        /// How long one request may take, its connection included. Then it is sent again.
        timeout: Duration as Duration(10, 10 * MINUTE) = "10s", e.g. "30s", per Each;
        /// A batch of so many bytes of rows is sent at once.
        batch_bytes: usize as Size(4 * KIB, 16 * MIB) = "4MiB", e.g. "1MiB", per Each;
        /// And a smaller one after this time. The server merges each batch: rather one a second than ten.
        batch_interval: Duration as Duration(10, MINUTE) = "1s", e.g. "5s";
        /// Memory for rows that are not sent yet, most of it for compressed ones. When it is full, rows are dropped and
        /// counted.
        memory_max: usize as Size(8 * MIB, 16 * GIB) = "64MiB", e.g. "256MiB", by Restart;
        /// The directory of the files that keep rows, compressed, while the server is away. For one process at a time.
        spill_dir: Option<PathBuf> as Text("path of a directory") = unset "`clickhouse` in `data.dir`",
            e.g. "/var/spool/shardgate", by Restart;
        /// How large these files may become; then rows wait in memory, and are dropped when that is full. 0: no files.
        spill_max: u64 as Size(0, 1024 * GIB) = "1GiB", e.g. "10GiB", by Restart;
        /// Days that rows are kept, which `shardgate migrate` tells the server (20.1 or newer). 0: for ever.
        keep_days: u32 as Number(0, 36_500) = 30, e.g. 7, per Each;
    }
}

words! {
    /// How the lines of the log and of the access log look.
    LogFormat {
        /// Text on a terminal, JSON everywhere else; each of the two logs by where it goes.
        Auto = "auto",
        /// One JSON object a line.
        Json = "json",
        /// Text for people.
        Text = "text",
    }
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

impl AsText for AccessLog {
    const KIND: Kind = Kind::Text("`off`, `stdout` or a path with a slash");

    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "stdout" => Ok(Self::Stdout),
            _ if text.contains('/') && !text.ends_with('/') && !text.contains('\0') => Ok(Self::File(text.into())),
            _ => {
                Err("it is \"off\", \"stdout\" or the path of a file with a slash in it, like \"./access.log\""
                    .to_owned())
            }
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Off => "off".to_owned(),
            Self::Stdout => "stdout".to_owned(),
            Self::File(path) => path.to_text(),
        }
    }
}
