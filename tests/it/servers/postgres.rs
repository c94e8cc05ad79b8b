//! A real PostgreSQL of a test's own: in a directory of its own, on a free port of loopback, as a user that is not root,
//! and ended with the test. It can be killed, paused and started again.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::harness::until;

const WAIT_MAX: Duration = Duration::from_mins(1);

/// Debian's `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// The password of its one user, as a URL has it.
const PASSWORD: &str = "test%20only";

/// A running server, unless it was killed.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    child: Child,
    port: u16,
    programs: PathBuf,
    settings: Vec<String>,
    directory: TempDir,
}

impl PostgresServer {
    /// Makes a cluster and starts it. Without the programs the test is passed over, or fails if
    /// `SHARDGATE_TEST_TOOLS=required`.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
            assert!(!is_required, "PostgreSQL is not installed, and SHARDGATE_TEST_TOOLS says that it has to be");
            eprintln!("passed over: PostgreSQL is not installed");
            return None;
        };
        let directory = TempDir::new().expect("a temporary directory");
        give_away(directory.path());
        fs::write(directory.path().join("password"), PASSWORD.replace("%20", " ")).expect("written");
        give_away(&directory.path().join("password"));
        let mut initdb = command(&programs.join("initdb"), directory.path());
        initdb.args(["--username=shardgate", "--auth=scram-sha-256", "--no-sync", "--no-locale", "--encoding=UTF8"]);
        let made = initdb.args(["--pwfile=password", "--pgdata=cluster"]).output().expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // A port that was free may be taken by the time the server binds it.
        let (port, settings) = (free_port(), Vec::new());
        let child = spawn(&programs, directory.path(), port, &settings);
        let mut server = Self { child, port, programs, settings, directory };
        for _ in 0..5 {
            if server.is_up() {
                return Some(server);
            }
            server.port = free_port();
            server.child = spawn(&server.programs, server.directory.path(), server.port, &server.settings);
        }
        panic!("PostgreSQL does not start: {}", server.log());
    }

    /// Its address for a configuration, with user and password.
    pub(crate) fn url(&self) -> String {
        format!("postgres://shardgate:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// Where it keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Settings for its next start: `name=value`.
    pub(crate) fn set(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|&setting| setting.to_owned()).collect();
    }

    /// Gives one of its files to the user that it runs as.
    pub(crate) fn give(&self, name: &str) {
        give_away(&self.directory.path().join(name));
    }

    /// Ends it, and all its connections, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.signal_all(Signal::KILL);
        self.child.wait().expect("it is ours");
    }

    /// Ends it by a signal to the server alone: `INT` is its fast shutdown, `QUIT` its immediate one.
    pub(crate) fn stop(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        self.child.wait().expect("it is ours");
    }

    /// Starts it again after it was killed, on the same port and with what it kept.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        // What is left of the killed one may be still on its way out.
        until(WAIT_MAX, "PostgreSQL starts again", || {
            self.child = spawn(&self.programs, self.directory.path(), self.port, &self.settings);
            self.is_up().then_some(())
        });
    }

    /// Makes it hang: connections are taken by the kernel, and nothing is answered.
    pub(crate) fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Runs SQL as another client would, and returns what it prints, without headings.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = command(&self.programs.join("psql"), self.directory.path());
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", sql]);
        let output = psql.output().expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Waits until it answers; false if it ended instead.
    fn is_up(&mut self) -> bool {
        until(WAIT_MAX, "PostgreSQL answers", || {
            let mut ready = command(&self.programs.join("pg_isready"), self.directory.path());
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().expect("pg_isready runs").success() {
                return Some(true);
            }
            self.child.try_wait().expect("it is ours").map(|_| false)
        })
    }

    /// The server and its processes, each of which leads a session of its own.
    fn signal_all(&self, signal: Signal) {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("it runs");
        let server = Pid::from_child(&self.child);
        // First the one who would start others. Those may end on their own meanwhile.
        kill_process(server, signal).expect("it is ours");
        for child in children.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)) {
            let _ = kill_process(child, signal);
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // An immediate end, so that it gives its shared memory back. It may have ended before.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_all(Signal::CONT);
            let _ = kill_process(Pid::from_child(&self.child), Signal::QUIT);
            let _ = self.child.wait();
        }
    }
}

/// The folder of the newest version's programs.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let number = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.path()).max_by_key(number)?;
    Some(newest.join("bin")).filter(|folder| folder.join("initdb").exists())
}

/// A program, run in the server's directory as the user that the server runs as.
fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn give_away(path: &Path) {
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

fn spawn(programs: &Path, directory: &Path, port: u16, settings: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(directory.join("log")).expect("a log");
    let mut postgres = command(&programs.join("postgres"), directory);
    postgres.args(["-D", "cluster", "-p", &port.to_string()]);
    let usual = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "shared_buffers=16MB"];
    for setting in usual.iter().map(|&setting| setting.to_owned()).chain(settings.iter().cloned()) {
        postgres.args(["-c", &setting]);
    }
    postgres.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("postgres runs")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
