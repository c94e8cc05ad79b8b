//! The values that labels of metrics have, each a closed list.

use super::table::label;
use crate::config::RetryOn;

label! {
    /// Why a fresh connection was closed unserved.
    Refusal {
        /// The shard or the process serves as many as it may.
        Limit = "limit",
        /// The process has no file descriptor left.
        Descriptors = "descriptors",
    }
}

label! {
    /// What a client and the gateway have agreed on.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

label! {
    /// Which protocol a client and the gateway have agreed on within TLS.
    TlsAlpn {
        /// HTTP/1.1.
        Http1 = "http/1.1",
        /// The client asked for none: HTTP/1.1 too.
        Unsaid = "none",
    }
}

label! {
    /// Why a TLS handshake failed.
    TlsFailure {
        /// It took longer than it may.
        TimedOut = "timeout",
        /// The client left, or broke the connection.
        Left = "left",
        /// The client refused it by an alert: most do not trust the certificate.
        Refused = "refused",
        /// The client spoke HTTP in clear text.
        PlainHttp = "plain_http",
        /// There is no version, cipher or protocol that both speak.
        Incompatible = "incompatible",
        /// No certificate has the name that the client asked for.
        NoCertificate = "no_certificate",
        /// What the client sent is no TLS, or breaks its rules.
        Malformed = "malformed",
        /// Too many handshakes waited for their shard.
        Crowded = "crowded",
    }
}

label! {
    /// Why a connection was closed whose PROXY header could not be used.
    ProxyFailure {
        /// The peer is not in `trust.proxies`.
        Untrusted = "untrusted",
        /// The header was not whole in time.
        TimedOut = "timeout",
        /// The peer left, or broke the connection, before the header was whole.
        Left = "left",
        /// What came is no PROXY header, or breaks its rules.
        Malformed = "malformed",
        /// The header is longer than one may be.
        TooLong = "too_long",
        /// Its checksum is wrong.
        Checksum = "checksum",
    }
}

label! {
    /// How one attempt at an upstream ended.
    Outcome {
        /// A whole answer with a status below 500.
        Answered = "answered",
        /// A whole answer with status 500 or above.
        ServerError = "server_error",
        /// No connection came about.
        ConnectFailed = "connect_failed",
        /// There was a connection, and no TLS over it.
        TlsFailed = "tls_failed",
        /// It did not answer, or went silent, for longer than it may.
        TimedOut = "timed_out",
        /// The connection ended before the answer was complete.
        Closed = "closed",
        /// What came was no HTTP.
        Malformed = "malformed",
        /// It was given up: the client left or did not send its request, its session ended, or the process did.
        Cancelled = "cancelled",
    }
}

label! {
    /// Why there is no TLS with a service.
    TlsFault {
        /// Its certificate is of no authority that is trusted.
        UnknownAuthority = "tls_unknown_authority",
        /// Its certificate is for other names.
        WrongName = "tls_wrong_name",
        /// Its certificate has expired, or is not good yet.
        Expired = "tls_expired",
        /// It does not speak TLS there.
        NotTls = "tls_not_spoken",
        /// It refused the handshake by an alert.
        Alert = "tls_alert",
        /// The handshake took longer than it may.
        TimedOut = "tls_timeout",
        /// The handshake failed otherwise.
        Other = "tls_failed",
    }
}

impl TlsFault {
    /// As what a probe that meets it ends.
    pub const fn of_probe(self) -> ProbeResult {
        match self {
            Self::UnknownAuthority => ProbeResult::UnknownAuthority,
            Self::WrongName => ProbeResult::WrongName,
            Self::Expired => ProbeResult::Expired,
            Self::NotTls => ProbeResult::NotTls,
            Self::Alert => ProbeResult::Alert,
            Self::TimedOut => ProbeResult::TimedOut,
            Self::Other => ProbeResult::TlsFailed,
        }
    }

    /// In a word.
    pub const fn name(self) -> &'static str {
        Self::VALUES[self.index()]
    }
}

/// Why requests are sent again, as they are configured.
pub const RETRY_REASONS: &[&str] = &{
    let mut names = [""; RetryOn::ALL.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = RetryOn::ALL[at].name();
        at += 1;
    }
    names
};

label! {
    /// Why a request was refused at once instead of being answered too late.
    Shed {
        /// Its deadline would have been missed.
        Deadline = "deadline",
        /// Requests stood in line for their shard.
        Queue = "queue",
    }
}

impl Shed {
    /// The same in words.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Deadline => "its upstream has too much to do to meet its deadline",
            Self::Queue => "its shard is behind by more than shedding.queue_max",
        }
    }
}

label! {
    /// How a probe of an instance ended.
    ProbeResult {
        /// As it should.
        Good = "good",
        /// No connection came about.
        Refused = "refused",
        /// It took longer than it may.
        TimedOut = "timeout",
        /// The answer's status is none of those that are good.
        Status = "status",
        /// The answer's body has not the text that it should have.
        Body = "body",
        /// The connection ended before the answer was complete.
        Closed = "closed",
        /// What came was no HTTP.
        Malformed = "malformed",
        /// Its certificate is of no authority that is trusted.
        UnknownAuthority = "tls_unknown_authority",
        /// Its certificate is for other names.
        WrongName = "tls_wrong_name",
        /// Its certificate has expired, or is not good yet.
        Expired = "tls_expired",
        /// It does not speak TLS there.
        NotTls = "tls_not_spoken",
        /// It refused the handshake by an alert.
        Alert = "tls_alert",
        /// The handshake failed otherwise.
        TlsFailed = "tls_failed",
        /// The gateway itself had no descriptor, port or memory left to ask with. It says nothing of the instance.
        NotAsked = "not_asked",
    }
}

label! {
    /// Why a span was dropped.
    SpanLoss {
        /// Its shard had no room: the control thread was behind.
        ShardFull = "shard_full",
        /// As many waited as may.
        QueueFull = "queue_full",
        /// The collector refused the request that it was in.
        Refused = "refused",
        /// The collector took others of that request.
        Rejected = "rejected",
        /// It was tried for too long, or there is no collector any more.
        GaveUp = "gave_up",
    }
}

label! {
    /// How a probe of an instance ended, in short.
    Probed {
        /// As it should.
        Good = "good",
        /// In any other way, the gateway's own want of descriptors left out.
        Failed = "failed",
    }
}

label! {
    /// Why a request with spans failed.
    ExportFailure {
        /// There was no answer in time.
        Timeout = "timeout",
        /// No connection came about, or it broke.
        Unreachable = "unreachable",
        /// The collector asks for patience: 429, 502, 503 or 504.
        Busy = "busy",
        /// It answered otherwise.
        Refused = "refused",
    }
}

label! {
    /// Why a shard does not use an instance.
    InstanceOut {
        /// It failed, and the shard has left it out for a while.
        Ejected = "ejected",
        /// It has failed as often as would leave it out, and too many others are out.
        Failing = "failing",
        /// Its probes fail.
        Probes = "probes",
        /// It has had no good probe yet.
        Untested = "untested",
        /// An operator holds it out of use.
        Held = "held",
    }
}

label! {
    /// A store that the gateway depends on.
    Store {
        /// Sessions, revocations, limits, rooms across instances.
        Redis = "redis",
        /// Users.
        Postgres = "postgres",
        /// Users, sessions and revocations in a file.
        Embedded = "embedded",
        /// The access log's rows.
        Clickhouse = "clickhouse",
    }
}

label! {
    /// What became of rows for ClickHouse.
    RowOutcome {
        /// They are in the table.
        Sent = "sent",
        /// The server refused them, each alone and twice.
        Refused = "refused",
        /// There was no room for them, in memory or in files.
        Dropped = "dropped",
        /// They were still there when the process ended, and there was no room in files.
        Cut = "cut",
    }
}

label! {
    /// How a request to ClickHouse ended.
    RequestResult {
        /// It did what was asked.
        Good = "good",
        /// It refused a row.
        Rejected = "rejected",
        /// It took nothing, or did not answer.
        Failed = "failed",
    }
}

label! {
    /// What a thread of the process does.
    ThreadKind {
        /// Serves clients.
        Shard = "shard",
        /// Reloads, looks after instances, answers operators.
        Control = "control",
        /// Asks Redis and PostgreSQL.
        Bridge = "bridge",
        /// Reads and writes the embedded store.
        Store = "store",
        /// Hashes passwords.
        Password = "password",
        /// Writes the access log.
        AccessLog = "access_log",
        /// Sends the access log's rows to ClickHouse.
        Clickhouse = "clickhouse",
        /// Whatever else.
        Other = "other",
    }
}

label! {
    /// What a client's connection carries.
    Carried {
        /// HTTP/1.1 as usual, or nothing yet.
        Http1 = "http1",
        /// A stream of events, over HTTP/1.1.
        Stream = "stream",
        /// A tunnel to a service: its request has switched protocols.
        Tunnel = "tunnel",
        /// A socket of the hub.
        Socket = "socket",
    }
}

label! {
    /// How a circuit stands: whether an upstream is asked for anything. In the order from best to worst.
    #[derive(PartialOrd, Ord)]
    CircuitState {
        /// Everything is sent.
        Closed = "closed",
        /// A few requests are sent, to try.
        HalfOpen = "half_open",
        /// Nothing is sent.
        Open = "open",
    }
}

#[expect(clippy::derivable_impls, reason = "the table takes no attribute of a value")]
impl Default for CircuitState {
    fn default() -> Self {
        Self::Closed
    }
}

label! {
    /// What a limit did with a request.
    LimitOutcome {
        /// It passed.
        Allowed = "allowed",
        /// It was refused.
        Limited = "limited",
        /// A limit that only watches would have refused it.
        DryRun = "dry_run",
    }
}

label! {
    /// What became of a request while it was not known what had been revoked lately.
    Stale {
        /// It was refused.
        Refused = "refused",
        /// It was served by what was known.
        Served = "served",
    }
}

label! {
    /// How a reload ended.
    Reload {
        /// Every shard runs the new configuration.
        Applied = "applied",
        /// The file has mistakes, and the old configuration stays.
        Refused = "refused",
    }
}

label! {
    /// What an operator has changed.
    AdminChange {
        /// An instance was ejected.
        Eject = "eject",
        /// An instance was drained.
        Drain = "drain",
        /// An instance was let in again.
        Return = "return",
        /// An instance got another weight.
        Weight = "weight",
        /// Instances were probed.
        Probe = "probe",
        /// The log lets other lines through.
        LogLevel = "log_level",
    }
}

label! {
    /// Why the operator's listener refused a request.
    AdminRefusal {
        /// Its `Host` is none of the listener's.
        Host = "host",
        /// A page of another origin sent it.
        Origin = "origin",
        /// It shows no token.
        TokenMissing = "token_missing",
        /// It shows a wrong one.
        TokenWrong = "token_wrong",
        /// Its address has shown several wrong ones.
        TooManyGuesses = "too_many_guesses",
        /// No token is configured.
        NotConfigured = "not_configured",
        /// What it wants cannot be read, or is not there.
        Malformed = "malformed",
        /// It is none yet: the handshake before it failed, or took too long.
        Handshake = "handshake",
    }
}

label! {
    /// How a token's check came out.
    TokenCheck {
        /// It was remembered, and is still good.
        Remembered = "remembered",
        /// It was checked anew, and passed.
        Passed = "passed",
        /// It was refused.
        Refused = "refused",
    }
}

label! {
    /// How a fetch of another issuer's keys ended.
    KeyFetch {
        /// They came.
        Good = "good",
        /// They did not; the last good ones go on.
        Failed = "failed",
    }
}

label! {
    /// Why a tunnel ended.
    TunnelEnded {
        /// Its sides have ended.
        Closed = "closed",
        /// A side's connection broke.
        Broken = "broken",
        /// Nothing moved for too long.
        Idle = "idle",
        /// Its caller's session ended.
        Revoked = "revoked",
        /// Its caller was kicked.
        Kicked = "kicked",
        /// The process drains.
        Draining = "draining",
        /// The process ended, or its task broke.
        Cut = "cut",
    }
}

label! {
    /// What became of a lifecycle event of the hub.
    HubEvent {
        /// The service took it.
        Delivered = "delivered",
        /// The service does not want it.
        Refused = "refused",
        /// Too many waited.
        Dropped = "dropped",
    }
}

label! {
    /// What instances lost of a room.
    BusLoss {
        /// Messages that were missed had left the log.
        Window = "window",
        /// The numbers began anew: Redis had lost some.
        Epoch = "epoch",
    }
}

label! {
    /// Why the bus between instances was not asked.
    BusRefusal {
        /// Redis was away.
        Away = "away",
        /// Too much waited.
        Full = "full",
    }
}

label! {
    /// With what a socket of the hub was closed.
    SocketClosed {
        /// 1000: one side was done.
        Normal = "normal",
        /// 1002: its frames were no WebSocket.
        ProtocolError = "protocol_error",
        /// 1003: it sent a binary message.
        Unsupported = "unsupported",
        /// 1007: a text of it was no UTF-8.
        InvalidText = "invalid_text",
        /// 1009: a message of it was too long.
        TooBig = "too_big",
        /// 1012 or 1001: the process drains.
        Restart = "restart",
        /// 1013: it came at a bad time.
        TryLater = "try_later",
        /// 4000: it did not read what was sent to it.
        SlowConsumer = "slow_consumer",
        /// 4001: nothing came from it any more.
        NoPong = "no_pong",
        /// 4100: it did not log in.
        Unauthenticated = "unauthenticated",
        /// 4101: its token expired.
        TokenExpired = "token_expired",
        /// 4102: its session ended, or its user was kicked.
        Revoked = "revoked",
        /// 4103: it made too many mistakes.
        PolicyViolation = "policy_violation",
        /// 4104: there were as many as may be.
        TooManyConnections = "too_many_connections",
    }
}
