//! The command line: what may be said, checked as far as one option can be by itself. Requests are built from it by
//! `target`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::hub::options::HubCommand;
use crate::pace::Arrival;
use crate::stream::TlsVersion;

/// The load test of Shardgate. Exits with 0 if all went well, 1 if any request failed, 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open loop: requests leave at a set rate, and latency counts from when each should have left
    Open(Open),
    /// Closed loop: each connection sends its next request when the answer came; finds the ceiling
    Closed(Closed),
    /// Server-sent events: opens streams and measures how late events come
    Sse(Sse),
    /// Opens keep-alive connections, one request each, holds them and weighs the server
    Idle(Idle),
    /// Slow clients: a byte at a time; tells how the server ended each
    Slow(Slow),
    /// Header bombs: heads that are far too large, at a set rate; latency is the time until each is refused
    Bomb(Bomb),
    /// Log-ins, all at once: how many are served, how many told to come back, and how fast
    Login(Login),
    /// Log-outs at one instance: how long until another refuses the token and ends its stream
    Logout(Logout),
    /// Starts sample backends behind a proxy, makes the last of them fail for a while, and tells what becomes of requests
    Faults(Faults),
    /// One big upload or download: MB/s, and the server's peak of memory meanwhile
    Stream(Stream),
    /// Half handshakes at a set rate: clients leave as soon as the server has signed. How many it answers, refuses, and how fast
    Flood(Flood),
    #[command(flatten)]
    Hub(HubCommand),
    /// A fast sample backend: 1 KiB answers, /big /sse /echo /delay /status
    Serve(Serve),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Where to send requests; several are used in turn and must name the same scheme, host and port. With https:// they go over
    /// TLS, and whose certificate it is does not matter
    #[arg(long = "url", default_value = "http://127.0.0.1:3000/api/events")]
    pub(crate) urls: Vec<String>,
    /// The version of TLS [default: the best that both have]
    #[arg(long, value_enum)]
    pub(crate) tls: Option<TlsVersion>,
    /// Where a connection follows another, it takes that one's session of TLS up again
    #[arg(long)]
    pub(crate) resume: bool,
    /// The request method [default: GET, or POST with a body]
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// Size of each request's body (JSON); 4096, 4KiB, 1MiB
    #[arg(long, default_value = "0", value_parser = bytes)]
    pub(crate) body_bytes: u64,
    /// A field for every request, as `Name: value`; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// A file of bearer tokens, one a line, used in turn
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// A status to take for success; may be repeated [default: all below 400]
    #[arg(long = "expect-status", value_name = "STATUS")]
    pub(crate) expected: Vec<u16>,
    /// How long to measure; 500ms, 10s, 2m
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub(crate) warm_up: Duration,
    /// A request without a complete answer after this long has failed
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Threads of the load test itself
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: u16,
    /// Process of the server: its CPU and memory, its children's included, join the report
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
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

impl Common {
    /// Plain requests to one URL.
    pub(crate) fn of_url(url: String, allow_remote: bool) -> Self {
        Self {
            urls: vec![url],
            tls: None,
            resume: false,
            method: None,
            body_bytes: 0,
            headers: Vec::new(),
            tokens: None,
            expected: Vec::new(),
            duration: Duration::ZERO,
            warm_up: Duration::ZERO,
            timeout: Duration::ZERO,
            threads: 1,
            server_pid: None,
            json: None,
            quiet: true,
            allow_remote,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Open {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Requests a second, over all connections
    #[arg(long, value_parser = rate)]
    pub(crate) rate: f64,
    /// How intended times are spaced
    #[arg(long, value_enum, default_value = "constant")]
    pub(crate) arrival: Arrival,
    /// Replays the same Poisson arrivals
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Connections that carry the requests
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Faults {
    #[command(flatten)]
    pub(crate) common: Common,
    /// What happens to the last instance
    #[arg(long, value_enum)]
    pub(crate) fault: Fault,
    /// Ports on 127.0.0.1 where the proxy expects its instances
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) ports: Vec<u16>,
    /// How long each instance takes for an answer; ten times as long where it is slow
    #[arg(long, default_value = "2ms", value_parser = duration)]
    pub(crate) delay: Duration,
    /// How long all is well
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) before: Duration,
    /// How long the instance fails
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub(crate) lasting: Duration,
    /// How long all is well again
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub(crate) after: Duration,
    /// Requests a second, over all connections
    #[arg(long, default_value = "2000", value_parser = rate)]
    pub(crate) rate: f64,
    /// How intended times are spaced
    #[arg(long, value_enum, default_value = "constant")]
    pub(crate) arrival: Arrival,
    /// Replays the same Poisson arrivals
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Connections that carry the requests
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// It is killed, and started anew
    Killed,
    /// It is stopped: its connections stay open and nothing answers; then it goes on
    Stopped,
    /// It takes ten times as long
    Slow,
    /// It answers every second request with 500
    Failing,
}

#[derive(Args, Debug)]
pub(crate) struct Closed {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Sse {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Streams to open
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) streams: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Idle {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Connections to hold; those past 20,000 come from 127.0.0.2, .3, and so on
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    /// How long to hold them before the server is weighed
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) hold: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct Slow {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Slow connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    /// Time between two bytes
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub(crate) every: Duration,
    /// Sends the head at once and the body slowly
    #[arg(long)]
    pub(crate) body: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Bomb {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Bombs a second
    #[arg(long, default_value = "500", value_parser = rate)]
    pub(crate) rate: f64,
    /// Size of each head: one endless field in every other bomb, and as many fields as fit in the rest
    #[arg(long, default_value = "64KiB", value_parser = bytes)]
    pub(crate) head_bytes: u64,
    /// Connections that carry them; the server closes each after its refusal
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Login {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Users, one a line: e-mail, white space, password; they log in in turn
    #[arg(long, value_name = "FILE")]
    pub(crate) users: PathBuf,
    /// How many log-ins
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) count: u32,
    /// How many are under way at once [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) connections: Option<u32>,
    /// Writes the access tokens that were issued, one a line; `--tokens` takes such a file
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Logout {
    /// The instance that users log in and out at
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub(crate) at: String,
    /// The instance that is asked and watched meanwhile
    #[arg(long, default_value = "http://127.0.0.1:3100")]
    pub(crate) seen_from: String,
    /// A user's e-mail
    #[arg(long)]
    pub(crate) email: String,
    /// A file with the user's password
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: PathBuf,
    /// A path that takes a token
    #[arg(long, default_value = "/api/events/x")]
    pub(crate) path: String,
    /// A path that takes a token and answers with an endless stream
    #[arg(long, default_value = "/api/ai/sse?rate=10")]
    pub(crate) stream: String,
    /// How many log-outs
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// One that is not seen after this long has failed
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Writes the report as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Stream {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Uploads a body of this size; 100MiB, 1GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes, required_unless_present = "down")]
    pub(crate) up: Option<u64>,
    /// Downloads what the URL answers
    #[arg(long, conflicts_with = "up")]
    pub(crate) down: bool,
    /// How many at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) connections: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Flood {
    /// Where to shake hands: https://
    #[arg(long)]
    pub(crate) url: String,
    /// The version of TLS that is offered [default: both]
    #[arg(long, value_enum)]
    pub(crate) tls: Option<TlsVersion>,
    /// Handshakes a second
    #[arg(long, value_parser = rate)]
    pub(crate) rate: f64,
    /// How many may be under way
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=500_000))]
    pub(crate) connections: u32,
    /// How long
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// One that hears nothing for this long has failed
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Process of the server: its CPU joins the report
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Option<u32>,
    /// Writes the report as JSON too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Lets it load another machine than this one
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    /// Which of this machine's own addresses to listen on, so that several backends have one port
    #[arg(long, default_value = "127.0.0.1", value_parser = loopback)]
    pub(crate) address: Ipv4Addr,
    /// Its port; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
}

fn loopback(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|_| "not an IPv4 address".to_owned())?;
    if address.is_loopback() { Ok(address) } else { Err("not in 127.0.0.0/8".to_owned()) }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit_ms) = match text {
        _ if text.ends_with("ms") => (&text[..text.len() - 2], 1.0),
        _ if text.ends_with('s') => (&text[..text.len() - 1], 1000.0),
        _ if text.ends_with('m') => (&text[..text.len() - 1], 60_000.0),
        _ => (text, 1000.0),
    };
    let ms = number.parse::<f64>().ok().map(|number| number * unit_ms);
    match ms {
        Some(ms) if (0.0..=86_400_000.0).contains(&ms) => Ok(Duration::from_secs_f64(ms / 1000.0)),
        _ => Err("a duration is a number with ms, s or m, and 24 h at most".to_owned()),
    }
}

pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1_u64)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|size| *size <= 1 << 40)
        .ok_or_else(|| "a size is a number with KiB, MiB or GiB, and 1 TiB at most".to_owned())
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.01..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "a rate is a number of requests a second from 0.01 to 10000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_sizes_and_rates_are_read_with_their_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("3"), Ok(Duration::from_secs(3)));
        assert!(duration("-1s").is_err() && duration("25h").is_err() && duration("nan").is_err());
        assert_eq!(bytes("1GiB"), Ok(1 << 30));
        assert_eq!(bytes("4KiB"), Ok(4096));
        assert_eq!(bytes("100"), Ok(100));
        assert!(bytes("1MB").is_err() && bytes("9999999999GiB").is_err());
        assert_eq!(rate("2000"), Ok(2000.0));
        assert!(rate("0").is_err() && rate("inf").is_err());
    }
}
