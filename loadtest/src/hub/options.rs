//! The command line of the scenarios for the hub.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::options::{bytes, duration, rate};

#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Idle WebSockets in one room of the hub: what one more weighs and what joining costs
    HubIdle(HubIdle),
    /// Messages that the hub answers with themselves, at a set rate
    HubEcho(HubEcho),
    /// Messages to rooms at a set rate: latency to every member and to the last of each
    HubFanOut(HubFanOut),
    /// The same while some members stop reading: do the others notice?
    HubSlowReaders(HubSlowReaders),
    /// Thousands of sockets dropped at once: how long does anybody else wait?
    HubMassDisconnect(HubMassDisconnect),
    /// Thousands of sockets dropped, and all back again
    HubReconnectStorm(HubReconnectStorm),
    /// Rooms whose members are on several instances: does each member get each message once and in order, or is it told?
    HubInstances(HubInstances),
    /// Messages to rooms at a rate that rises until they take too long
    HubKnee(HubKnee),
    /// Log-outs while others log out: how soon are the session's sockets closed on all instances?
    HubLogOut(HubLogOut),
    /// Everything in one run: joined sockets with fan-out while requests with tokens are proxied
    Targets(Targets),
}

impl HubCommand {
    /// Where the report goes as JSON.
    pub(crate) fn json(&self) -> Option<&Path> {
        let common = match self {
            Self::HubIdle(options) => &options.common,
            Self::HubEcho(options) => &options.common,
            Self::HubFanOut(options) => &options.common,
            Self::HubSlowReaders(options) => &options.common,
            Self::HubMassDisconnect(options) => &options.common,
            Self::HubReconnectStorm(options) => &options.common,
            Self::HubInstances(options) => &options.common,
            Self::HubKnee(options) => &options.common,
            Self::HubLogOut(options) => &options.common,
            Self::Targets(options) => &options.common,
        };
        common.json.as_deref()
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct TokenOptions {
    /// A file with the secret (HS256) that tokens are signed with: one for each socket, each a user and a session by itself
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub(crate) secret: Option<PathBuf>,
    /// The `kid` of these tokens
    #[arg(long, default_value = "load")]
    pub(crate) kid: String,
    /// Their `iss`
    #[arg(long, default_value = "shardgate")]
    pub(crate) issuer: String,
    /// Their `aud`
    #[arg(long, default_value = "shardgate")]
    pub(crate) audience: String,
    /// A file of tokens instead, one a line, used in turn
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct HubCommon {
    /// Where the hub is; of several instances the members of each room use all, in turn. With wss:// sockets go over TLS, and whose
    /// certificate it is does not matter
    #[arg(long = "url", default_value = "ws://127.0.0.1:3000/ws")]
    pub(crate) urls: Vec<String>,
    #[command(flatten)]
    pub(crate) token: TokenOptions,
    /// What the names of rooms begin with; any user should be allowed in there
    #[arg(long, default_value = "public.load")]
    pub(crate) room: String,
    /// Bytes of a message's payload (JSON)
    #[arg(long, default_value = "128", value_parser = bytes)]
    pub(crate) payload_bytes: u64,
    /// How long to measure; 500ms, 10s, 2m
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long messages go to and fro before it is measured
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub(crate) warm_up: Duration,
    /// A socket that is not in its room after this long has failed; what is waited for may take as long
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Sockets on their way at once, for each thread
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) opening: u32,
    /// Threads of the load test itself
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: u16,
    /// Process of the server: its CPU and memory, its children's included, join the report; once for each instance
    #[arg(long = "server-pid", value_name = "PID")]
    pub(crate) server_pids: Vec<u32>,
    /// Process of Redis: its CPU joins the report
    #[arg(long, value_name = "PID")]
    pub(crate) redis_pid: Option<u32>,
    /// Writes the report as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// No progress line
    #[arg(long)]
    pub(crate) quiet: bool,
    /// Lets it load another machine than this one
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

#[derive(Args, Debug)]
pub(crate) struct HubIdle {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Sockets when the server is weighed first
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) from: u32,
    /// Sockets when it is weighed again
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(2..=500_000))]
    pub(crate) to: u32,
    /// How long they rest before each weighing
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) hold: Duration,
    /// The payload of the one message that all get at once in the end; 0 for none
    #[arg(long, default_value = "16KiB", value_parser = bytes)]
    pub(crate) burst_bytes: u64,
    /// How long after that message the server is weighed once more
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub(crate) burst_hold: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct HubEcho {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Sockets, used in turn
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    /// Messages a second, over all sockets
    #[arg(long, value_parser = rate)]
    pub(crate) rate: f64,
    /// The path that answers each message with itself
    #[arg(long, default_value = "/ws/echo")]
    pub(crate) path: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct FanOut {
    /// Rooms
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) rooms: u32,
    /// Members of each room
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) members: u32,
    /// Messages a second, over all rooms; the members of a room send them in turn
    #[arg(long, default_value = "20", value_parser = rate)]
    pub(crate) rate: f64,
}

#[derive(Args, Debug)]
pub(crate) struct HubFanOut {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    #[command(flatten)]
    pub(crate) fan_out: FanOut,
    /// Has every `--server-pid` reload its configuration (SIGHUP) so often while it is measured
    #[arg(long, default_value_t = 0, requires = "server_pids")]
    pub(crate) reloads: u32,
    /// Time between two reloads
    #[arg(long, default_value = "200ms", value_parser = duration)]
    pub(crate) reload_every: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct HubSlowReaders {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    #[command(flatten)]
    pub(crate) fan_out: FanOut,
    /// Members that stop reading, of all rooms together, after as long as it is measured without
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) slow: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Others {
    /// Sockets that go on: one room, whose members send in turn
    #[arg(long = "others", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Messages a second in that room
    #[arg(long, default_value = "50", value_parser = rate)]
    pub(crate) rate: f64,
    /// New sockets a second meanwhile, each timed until it has joined
    #[arg(long, default_value = "20", value_parser = rate)]
    pub(crate) accepts: f64,
}

#[derive(Args, Debug)]
pub(crate) struct HubMassDisconnect {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Sockets that are dropped at once
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    #[command(flatten)]
    pub(crate) others: Others,
}

#[derive(Args, Debug)]
pub(crate) struct HubReconnectStorm {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Sockets that are dropped and come back
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    /// Each comes back at a random time within this, as the client does that is delivered with the gateway; 0: all at once
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) jitter: Duration,
    #[command(flatten)]
    pub(crate) others: Others,
}

#[derive(Args, Debug)]
pub(crate) struct HubInstances {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    #[command(flatten)]
    pub(crate) fan_out: FanOut,
    /// Where an instance says whether it is ready for sockets, as `http://127.0.0.1:3001/health/ready/hub`; once for each
    #[arg(long = "ready", value_name = "URL")]
    pub(crate) ready: Vec<String>,
    /// An instance that is killed (SIGKILL) half way
    #[arg(long, value_name = "PID")]
    pub(crate) kill_pid: Option<u32>,
    /// What the shell does half way, as `kill -9 $REDIS; sleep 2; redis-server --port 7000 --daemonize yes`
    #[arg(long, value_name = "COMMAND")]
    pub(crate) half_way: Option<String>,
    /// A socket that is lost comes back at a random time within this, to the next instance, with what it has
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) jitter: Duration,
    /// How long it is waited in the end for what may still come: instances compare positions every 5 s
    #[arg(long, default_value = "6s", value_parser = duration)]
    pub(crate) settle: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct HubKnee {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Its rate is that of the first step
    #[command(flatten)]
    pub(crate) fan_out: FanOut,
    /// Messages a second by which each step is more than the one before
    #[arg(long, default_value = "500", value_parser = rate)]
    pub(crate) step: f64,
    /// It ends with the step in which p99 is over this
    #[arg(long, default_value = "50ms", value_parser = duration)]
    pub(crate) p99_max: Duration,
    /// Steps at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,
}

#[derive(Args, Debug)]
pub(crate) struct HubLogOut {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    /// Sessions that log out one after the other while it is measured, each with a socket on every instance
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) sessions: u32,
    /// Log-outs a second of others beside them, at the first instance; their tokens are made, and need no log-in
    #[arg(long, default_value = "1000", value_parser = rate)]
    pub(crate) beside: f64,
    /// Where one logs out
    #[arg(long, default_value = "/auth/logout")]
    pub(crate) path: String,
}

#[derive(Args, Debug)]
pub(crate) struct Targets {
    #[command(flatten)]
    pub(crate) common: HubCommon,
    #[command(flatten)]
    pub(crate) fan_out: FanOut,
    /// Where requests go meanwhile: a route that checks tokens and has an upstream, at the same host and port
    #[arg(long, default_value = "/api/events")]
    pub(crate) http_path: String,
    /// Requests a second
    #[arg(long, default_value = "2000", value_parser = rate)]
    pub(crate) http_rate: f64,
    /// Connections that carry them
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) http_connections: u32,
    /// Users whose tokens the requests carry in turn
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) http_users: u32,
    /// Measures the requests without any socket first, for as long
    #[arg(long)]
    pub(crate) baseline: bool,
}
