//! A real `redis-server` of a test's own: in a directory of its own, on a free port, and killed with the test. It can be
//! killed, paused and started again.
//!
//! The library's own tests use this file too, so it leans on nothing else here.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to start, or to do what it is told.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The file that sentinels have to have; they write to it.
const CONFIG: &str = "redis.conf";

/// A running server, unless it was killed.
#[derive(Debug)]
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    directory: TempDir,
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk. Without the program the test is passed over, or fails if
    /// `SHARDGATE_TEST_TOOLS=required`.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&["--save", ""])
    }

    /// Starts a server with these arguments.
    #[track_caller]
    pub(crate) fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::launch("", arguments)
    }

    /// Starts a sentinel that watches one server.
    #[track_caller]
    pub(crate) fn start_sentinel(name: &str, port: u16) -> Option<Self> {
        Self::launch(&format!("sentinel monitor {name} 127.0.0.1 {port} 1\n"), &["--sentinel"])
    }

    #[track_caller]
    fn launch(config: &str, arguments: &[&str]) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        // A port that was free may be taken by the time the server binds it.
        for _ in 0..5 {
            let (port, directory) = (free_port(), TempDir::new().expect("a temporary directory"));
            if !config.is_empty() {
                std::fs::write(directory.path().join(CONFIG), config).expect("the configuration is written");
            }
            let child = spawn(&directory, port, &arguments);
            let mut server = Self { child, port, arguments: arguments.clone(), directory };
            if server.answers() {
                return Some(server);
            }
        }
        panic!("redis-server does not start");
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its address for a configuration.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Starts it again after it was killed, on the same port and with what it kept.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.directory, self.port, &self.arguments);
        assert!(self.answers(), "redis-server does not start again");
    }

    /// Makes it hang: connections are taken by the kernel, and nothing is answered.
    pub(crate) fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).expect("it runs");
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).expect("it runs");
    }

    /// Sends a command, and returns its answer: a text or a number as it is, a list with a line for each part.
    #[track_caller]
    pub(crate) fn ask(&self, command: &[&str]) -> String {
        ask(self.port, command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it answers; false if it ended instead.
    fn answers(&mut self) -> bool {
        until(|| match ask(self.port, &["PING"]) {
            Ok(answer) if answer == "PONG" => Some(true),
            // It asks for a password, which is an answer.
            Err(error) if error.to_string().contains("NOAUTH") => Some(true),
            _ => self.child.try_wait().expect("it is ours").map(|_| false),
        })
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there are the programs; fails where they have to be there.
pub(crate) fn is_installed() -> bool {
    let runs = |program| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    let is_there = runs("redis-server") && runs("redis-cli");
    let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
    assert!(is_there || !is_required, "redis-server is not installed, and SHARDGATE_TEST_TOOLS says that it has to be");
    if !is_there {
        eprintln!("passed over: redis-server is not installed");
    }
    is_there
}

/// A port that nobody uses, low enough that a cluster's second port (10,000 higher) is one too.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = 20_000 + fastrand::u16(..30_000);
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

fn spawn(directory: &TempDir, port: u16, arguments: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(directory.path().join("log")).expect("a log");
    let mut command = Command::new("redis-server");
    let config = directory.path().join(CONFIG);
    if config.exists() {
        command.arg(&config);
    }
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(directory.path()).args(arguments);
    command.stdin(Stdio::null()).stdout(log).spawn().expect("redis-server runs")
}

/// Sends a command on a connection of its own.
pub(crate) fn ask(port: u16, command: &[&str]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(WAIT_MAX))?;
    let parts: String =
        command.iter().map(|part| format!("${}\r\n{part}\r\n", part.len())).collect::<Vec<_>>().concat();
    stream.write_all(format!("*{}\r\n{parts}", command.len()).as_bytes())?;
    read(&mut BufReader::new(stream))
}

fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let count = || rest.parse::<i64>().map_err(std::io::Error::other);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let Ok(length) = usize::try_from(count()?) else { return Ok(String::new()) };
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(length);
            String::from_utf8(bytes).map_err(std::io::Error::other)
        }
        "*" => {
            let parts: Result<Vec<_>, _> = (0..count()?).map(|_| read(stream)).collect();
            Ok(parts?.join("\n"))
        }
        _ => Err(std::io::Error::other(line.to_owned())),
    }
}

/// Looks until there is something to see.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "another process is watched, and it sends no event")]
pub(crate) fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let due = Instant::now() + WAIT_MAX;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < due, "redis-server takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}
