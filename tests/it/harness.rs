//! Runs the real binary in a directory of its own, on ports of its own, and looks at it from outside: its log, its
//! access log, its metrics, its memory, its end.
//!
//! A gateway that goes out of scope is killed; in a test that passed it is first asked whether it panicked anywhere, and
//! its log is searched for errors that nobody announced, and all that it wrote for secrets.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use crate::client::{Client, Response};
use crate::secrets;

/// How long a gateway may take to start.
const START_MAX: Duration = Duration::from_secs(20);
/// How often something is looked at that tells nobody when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The time by the clock of this machine: tests wait for a process that has no other.
#[expect(clippy::disallowed_methods, reason = "shard::clock is a shard's; a test has none")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Lets this much time pass: the pace of a load or of a look, never a guess that something has happened by then.
#[expect(clippy::disallowed_methods, reason = "other processes are watched, and they send no event")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Looks until `look` finds something; fails the test when that takes longer than `time`.
#[track_caller]
pub(crate) fn until<T>(time: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let due = now() + time;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < due, "after {time:?} still not: {what}");
        pause(LOOK_INTERVAL);
    }
}

/// Whether the long suites were asked for.
pub(crate) fn is_long() -> bool {
    std::env::var_os("SHARDGATE_TEST_LONG").is_some_and(|value| value == "1")
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    exited: Option<ExitStatus>,
    directory: TempDir,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    /// What may stand in lines of level ERROR.
    expected_errors: Vec<String>,
}

impl Gateway {
    /// Starts the gateway with this configuration. Unless it says otherwise there are 4 shards, the listeners are on
    /// free ports of loopback, and the access log goes to a file.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_as(config, |_| {})
    }

    /// The same, with changes to how the process is started.
    #[track_caller]
    pub(crate) fn start_as(config: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::launch(config, prepare).listening()
    }

    /// Starts a command of the binary that serves without a configuration file, and waits until it listens.
    #[track_caller]
    pub(crate) fn start_command(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = shardgate(directory.path());
        command.args(arguments).envs(environment.iter().copied());
        Self::spawn(directory, command).listening()
    }

    /// Starts this program with its arguments, which becomes the binary, and waits until it listens.
    #[track_caller]
    pub(crate) fn start_program(words: &[String], prepare: impl FnOnce(&mut Command)) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = program(&words[0], directory.path());
        command.args(&words[1..]);
        prepare(&mut command);
        Self::spawn(directory, command).listening()
    }

    /// Waits until it listens, and learns where.
    #[track_caller]
    fn listening(self) -> Self {
        let mut gateway = self;
        let due = now() + START_MAX;
        loop {
            if let Some(address) = logged_address(&gateway.log(), "listening on ") {
                gateway.address = address;
                // It is told first, where there is one.
                gateway.admin = logged_address(&gateway.log(), "operators: http://");
                return gateway;
            }
            assert!(gateway.has_exited().is_none(), "the gateway did not start");
            assert!(now() < due, "the gateway does not start");
            pause(LOOK_INTERVAL);
        }
    }

    /// Starts the process without waiting for it to listen.
    #[track_caller]
    pub(crate) fn launch(config: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::launch_through(&[], config, prepare)
    }

    /// The same, by a command that becomes the one behind it: `unshare --mount sh -c '…; exec "$@"' sh`.
    #[track_caller]
    pub(crate) fn launch_through(before: &[&str], config: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let file = directory.path().join("shardgate.toml");
        fs::write(&file, completed(config, directory.path())).expect("the configuration is written");
        let mut command = through(before, directory.path());
        command.arg("run").arg("--config").arg(&file);
        prepare(&mut command);
        Self::spawn(directory, command)
    }

    /// Waits for one that was only launched.
    #[track_caller]
    pub(crate) fn wait_listening(self) -> Self {
        self.listening()
    }

    fn spawn(directory: TempDir, mut command: Command) -> Self {
        let child = command.spawn().expect("the binary runs");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { child, exited: None, directory, address, admin: None, expected_errors: Vec::new() }
    }

    /// The public listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The operator's listener.
    #[track_caller]
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("the gateway has an operator's listener")
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its configuration and its logs are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A connection to the public listener.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Asks on a connection of its own, and closes it.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        self.connect().get(path)
    }

    /// Asks the operator's listener.
    #[track_caller]
    pub(crate) fn ask_admin(&self, path: &str) -> Response {
        let mut client = Client::connect(self.admin());
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        client.read_response()
    }

    /// Sends a signal. The process has not been waited for, so its id is nobody else's.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.exited.is_none(), "the gateway has ended");
        kill_process(self.process(), signal).expect("the gateway runs");
    }

    /// Stops the process, and waits until every thread of it stands still. `Signal::CONT` lets it go on.
    #[track_caller]
    pub(crate) fn stand_still(&self) {
        self.signal(Signal::STOP);
        let is_still = |status: &str| status.lines().any(|line| line.starts_with("State:\tT"));
        until(START_MAX, "every thread stands still", || {
            let mut threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
            let all = threads.all(|thread| {
                let path = thread.expect("a thread").path().join("status");
                fs::read_to_string(path).is_ok_and(|status| is_still(&status))
            });
            all.then_some(())
        });
    }

    /// The process, as system calls name it.
    pub(crate) fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small")).expect("process ids are positive")
    }

    /// Waits for the end and returns the exit code; `None` when a signal ended it.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self, deadline: Duration) -> Option<i32> {
        until(deadline, "the gateway ends", || self.has_exited()).code()
    }

    /// How it ended, if it has.
    pub(crate) fn has_exited(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("the process is ours");
        }
        self.exited
    }

    /// What it wrote to standard error so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(STDERR)).unwrap_or_default()
    }

    /// Waits for a line of the log that contains `pattern`, and returns it.
    #[track_caller]
    pub(crate) fn log_until(&self, pattern: &str, deadline: Duration) -> String {
        self.log_until_nth(pattern, 1, deadline)
    }

    /// Waits for the `count`th line of the log that contains `pattern`, and returns it.
    #[track_caller]
    pub(crate) fn log_until_nth(&self, pattern: &str, count: usize, deadline: Duration) -> String {
        until(deadline, &format!("{count} × {pattern:?} in the log"), || {
            complete_lines(&self.log()).filter(|line| line.contains(pattern)).nth(count - 1).map(str::to_owned)
        })
    }

    /// Waits until the access log has at least `count` lines, and returns all of them.
    #[track_caller]
    pub(crate) fn access_lines(&self, count: usize) -> Vec<Value> {
        until(Duration::from_secs(10), &format!("{count} lines in the access log"), || {
            let log = fs::read_to_string(self.directory.path().join(ACCESS_LOG)).unwrap_or_default();
            let lines: Vec<_> = complete_lines(&log)
                .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
                .collect();
            (lines.len() >= count).then_some(lines)
        })
    }

    /// All metrics, as the operator's listener tells them now.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        let answer = self.ask_admin("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(&answer.text())
    }

    /// Waits until the metrics are as wanted.
    #[track_caller]
    pub(crate) fn metrics_until(&self, what: &str, mut is_so: impl FnMut(&Metrics) -> bool) -> Metrics {
        until(Duration::from_secs(10), what, || Some(self.metrics()).filter(&mut is_so))
    }

    /// The configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.directory.path().join("shardgate.toml")
    }

    /// Puts another configuration in the place of the file, completed as at the start, without telling the gateway. What
    /// is no TOML is written as it is.
    pub(crate) fn rewrite_config(&self, config: &str) {
        // Renamed over the old one, so that nobody reads half of it.
        let fresh = self.directory.path().join("fresh.toml");
        fs::write(&fresh, completed(config, self.directory.path())).expect("the configuration is written");
        fs::rename(fresh, self.config_path()).expect("the configuration is replaced");
    }

    /// From now on lines of level ERROR may contain this.
    pub(crate) fn expect_error(&mut self, pattern: &str) {
        self.expected_errors.push(pattern.to_owned());
    }

    /// Fails if anything panicked or an error was logged that nobody announced.
    fn check_health(&mut self) {
        let log = self.log();
        for line in complete_lines(&log).filter(|line| line.contains("\"level\":\"ERROR\"")) {
            let is_expected = self.expected_errors.iter().any(|pattern| line.contains(pattern));
            assert!(is_expected, "the gateway logged an error: {line}");
        }
        assert!(!log.contains("panicked at"), "the gateway panicked");
        secrets::expect_none("the log", &log);
        for name in [STDOUT, ACCESS_LOG] {
            secrets::expect_none(name, &fs::read_to_string(self.directory.path().join(name)).unwrap_or_default());
        }
        if self.has_exited().is_none() && self.admin.is_some() {
            let metrics = self.ask_admin("/metrics").text();
            secrets::expect_none("/metrics", &metrics);
            assert_eq!(Metrics::parse(&metrics).sum("shardgate_panics_total"), 0, "the gateway caught a panic");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if !std::thread::panicking() {
                self.check_health();
            }
        }));
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() || checked.is_err() {
            eprintln!("---- what the gateway wrote ----\n{}--------", self.log());
        }
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    }
}

const STDERR: &str = "stderr.log";
const STDOUT: &str = "stdout.log";
const ACCESS_LOG: &str = "access.log";

/// The binary, with nothing of this process's environment that it would listen to, and what it writes in `directory`.
pub(crate) fn shardgate(directory: &Path) -> Command {
    through(&[], directory)
}

/// The same, as the last argument of another command.
fn through(before: &[&str], directory: &Path) -> Command {
    let mut words = before.iter().copied().chain([env!("CARGO_BIN_EXE_shardgate")]);
    let mut command = program(words.next().expect("the binary at least"), directory);
    command.args(words);
    command
}

fn program(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(name);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["SHARDGATE_", "OTEL_"].iter().any(|prefix| text.starts_with(prefix))
            || text == "PORT"
            || text == "STATE_DIRECTORY"
        {
            command.env_remove(&name);
        }
    }
    let file = |name| fs::File::create(directory.join(name)).expect("a file for what is written");
    command.current_dir(directory).stdin(Stdio::null()).stdout(file(STDOUT)).stderr(file(STDERR));
    // The demo's data too goes with the directory, even if it is killed.
    command.env("TMPDIR", directory);
    command
}

/// The configuration with what tests want wherever it says nothing; what is no TOML stays as it is.
fn completed(config: &str, directory: &Path) -> String {
    let Ok(mut table) = config.parse::<toml::Table>() else { return config.to_owned() };
    let access_log = directory.join(ACCESS_LOG).to_string_lossy().into_owned();
    let driver = std::env::var_os("SHARDGATE_TEST_DRIVER").map(|driver| driver.to_string_lossy().into_owned());
    for (section, key, value) in [
        ("runtime", "shards", toml::Value::Integer(4)),
        ("runtime", "driver", toml::Value::String(driver.unwrap_or_else(|| "epoll".to_owned()))),
        ("listener", "address", toml::Value::String("127.0.0.1".to_owned())),
        ("listener", "port", toml::Value::Integer(0)),
        ("admin", "port", toml::Value::Integer(0)),
        ("log", "access", toml::Value::String(access_log)),
        ("log", "flush_interval", toml::Value::String("10ms".to_owned())),
    ] {
        let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
        if let Some(section) = section.as_table_mut() {
            section.entry(key).or_insert(value);
        }
    }
    table.to_string()
}

/// The address behind `prefix` in a message of the log.
pub(crate) fn logged_address(log: &str, prefix: &str) -> Option<SocketAddr> {
    complete_lines(log).find_map(|line| {
        let line = match serde_json::from_str::<Value>(line) {
            Ok(line) => line["message"].as_str()?.to_owned(),
            // With `log.format = "text"` the time and the level stand before it.
            Err(_) => line.split_once(" INFO  ")?.1.to_owned(),
        };
        line.strip_prefix(prefix)?.split(['/', ' ']).next()?.parse().ok()
    })
}

/// The lines that have been written to their end.
fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// Counts and gauges by series, as `shardgate_connections_open{shard="0"}`.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(pub(crate) BTreeMap<String, i64>);

impl Metrics {
    /// Takes whole numbers only: what is in seconds is nothing to assert.
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line:?}"));
            let _: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    /// The value of one series; 0 where there is none, as counters begin.
    pub(crate) fn value(&self, series: &str) -> i64 {
        self.0.get(series).copied().unwrap_or(0)
    }

    /// All series of this name together.
    pub(crate) fn sum(&self, name: &str) -> i64 {
        let is_of =
            |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.0.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }

    /// The values of this name by shard, in order of the shards.
    pub(crate) fn by_shard(&self, name: &str) -> Vec<i64> {
        let shards = |index| self.0.get(&format!("{name}{{shard=\"{index}\"}}")).copied();
        (0..).map_while(shards).collect()
    }
}
