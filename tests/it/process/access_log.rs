//! Where the access log goes: what cannot be written is said at once and with a remedy, and nothing waits for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader},
    os::{
        fd::OwnedFd,
        unix::{
            fs::OpenOptionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{Gateway, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_mins(1);

fn to(path: &str) -> String {
    format!("[log]\naccess = \"{path}\"\n")
}

pub(super) fn pipe(directory: &Path) -> PathBuf {
    let path = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
    path
}

/// Opens a pipe for reading, whether or not somebody writes to it yet. Reading it waits.
pub(super) fn reader(path: &Path) -> File {
    let not_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("it fits");
    let file = OpenOptions::new().read(true).custom_flags(not_waiting).open(path).expect("it is ours");
    rustix::io::ioctl_fionbio(&file, false).expect("it is ours");
    file
}

#[test]
fn what_cannot_be_written_ends_the_start_with_a_remedy() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let _socket = UnixListener::bind(path("socket")).expect("it is free");
    for (access, told) in [
        (
            pipe(directory.path()).display().to_string(),
            "it is a pipe that nobody reads; start its reader first".to_owned(),
        ),
        (path("gone/access.log"), format!("there is no directory {}; make it, or name another file", path("gone"))),
        (path("socket"), "it is a socket; write \"stdout\", or name a file".to_owned()),
        (path("."), "it is a directory; name a file in it".to_owned()),
    ] {
        let mut gateway = Gateway::launch(&to(&access), |_| {});
        assert_eq!(gateway.wait_exit(SOON), Some(1), "{access}");
        let log = gateway.log();
        assert!(log.contains(&format!("shardgate: log.access is \"{access}\": {told}")), "{log}");
        assert!(!log.contains("listening on"), "{log}");
    }
}

#[test]
fn standard_output_that_is_a_socket_is_written_by_any_of_its_names() {
    for name in ["stdout", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"] {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(PATIENCE)).expect("a time");
        let service = Service::start();
        let gateway = Gateway::start_as(&service.config(&to(name)), |command| {
            command.stdout(OwnedFd::from(theirs));
        });
        assert_eq!(gateway.get("/x").status, 200);
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).expect("a line");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["path"], "/x", "{name}");
    }
}

#[test]
fn a_reader_that_leaves_its_pipe_costs_lines_and_no_request() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = pipe(directory.path());
    let first = reader(&path);
    let service = Service::start();
    let mut gateway =
        Gateway::start(&service.config(&format!("{}flush_interval = \"1ms\"\n", to(&path.display().to_string()))));
    gateway.expect_error("access log: cannot write; lines are dropped");
    gateway.expect_error("access log: cannot reopen, and the old file goes on: it is a pipe that nobody reads");
    let mut lines = BufReader::new(first);
    let read = |lines: &mut BufReader<File>| {
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        serde_json::from_str::<Value>(&line).expect("JSON")["path"].as_str().expect("a path").to_owned()
    };
    assert_eq!(gateway.get("/read").status, 200);
    assert_eq!(read(&mut lines), "/read");
    drop(lines);
    let dropped = || gateway.metrics().sum("shardgate_access_log_dropped_total");
    until(SOON, "lines are dropped and counted", || {
        assert_eq!(gateway.get("/unread").status, 200);
        (dropped() > 0).then_some(())
    });
    // Opening it anew waits for nobody either.
    gateway.signal(Signal::HUP);
    gateway.log_until("cannot reopen", SOON);
    assert_eq!(gateway.get("/unread").status, 200);
    let mut lines = BufReader::new(reader(&path));
    until(SOON, "it is written again", || {
        assert_eq!(gateway.get("/again").status, 200);
        gateway.log().contains("access log: writing again").then_some(())
    });
    assert!(["/again", "/unread"].contains(&&*read(&mut lines)));
    assert!(fs::metadata(&path).is_ok());
}
