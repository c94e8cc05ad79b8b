//! Two signals end the process in every state of its life, and one ends it where nothing is served yet.

use std::{fs, io::Write as _, net::TcpListener, os::fd::OwnedFd, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::access_log::{pipe, reader};
use crate::{
    harness::{Gateway, shardgate, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_start_that_waits_for_a_store_ends_at_the_first_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        // It takes the connection and never says a word.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let config = format!(
            "[redis]\nurls = [\"redis://{}\"]\ntimeout = \"1h\"\nconnect_timeout = \"1h\"\n\
             [sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n",
            silent.local_addr().expect("it is bound")
        );
        let mut gateway = Gateway::launch(&config, |_| {});
        let _asked = silent.accept().expect("it asks the store");
        gateway.signal(signal);
        assert_eq!(gateway.wait_exit(SOON), Some(0));
        let log = gateway.log();
        assert!(log.contains("ended before it listened: the stores were still being opened"), "{log}");
    }
}

#[test]
fn a_log_that_nobody_reads_keeps_no_process_alive() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = pipe(directory.path());
    let _reader = reader(&path);
    let service = Service::start();
    let log = format!("[log]\naccess = \"{}\"\nbuffer_bytes = \"64KiB\"\nflush_interval = \"1ms\"\n", path.display());
    let mut gateway = Gateway::start(&service.config(&format!("{log}[drain]\nnotice = \"1h\"\nmax = \"2h\"\n")));
    let mut client = gateway.connect();
    until(Duration::from_mins(1), "the log's writer is stuck", || {
        for _ in 0..100 {
            assert_eq!(client.get("/x").status, 200);
        }
        (gateway.metrics().sum("shardgate_access_log_dropped_total") > 0).then_some(())
    });
    gateway.signal(Signal::TERM);
    gateway.log_until("draining", SOON);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(3));
}

/// Whatever the control thread is about, it tells standard error of it: where nobody reads that, it is held up for ever.
#[test]
fn a_control_thread_that_is_held_up_is_not_waited_for() {
    let directory = TempDir::new().expect("a temporary directory");
    let (_unread, full) = std::io::pipe().expect("a pipe");
    let mut full = fs::File::from(OwnedFd::from(full));
    rustix::io::ioctl_fionbio(&full, true).expect("it is ours");
    while full.write(&[b'\n'; 4096]).is_ok() {}
    while full.write(b"\n").is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).expect("it is ours");
    let mut command = shardgate(directory.path());
    command.arg("run").env("PORT", "0").env("SHARDGATE_ADMIN_PORT", "0").env("SHARDGATE_RUNTIME_SHARDS", "4");
    let mut child = command.stderr(Stdio::from(full)).spawn().expect("it runs");
    let pid = Pid::from_child(&child);
    let is_listening = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).ok()?;
        let mut names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|name| name.trim_end() == "signals").then_some(())
    };
    until(SOON, "somebody listens to signals", is_listening);
    // Signals that come together are one (signal(7)), so this one is heard before the next is sent.
    kill_process(pid, Signal::TERM).expect("it runs");
    let ended = until(SOON, "it ends", || {
        let _ = kill_process(pid, Signal::TERM);
        child.try_wait().expect("it is ours")
    });
    assert!(matches!(ended.code(), Some(3) | None), "{ended:?}");
}
