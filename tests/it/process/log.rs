//! What the process tells of itself: for people and for programs, by level, and how often it wakes to tell nothing.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    harness::{Gateway, now, pause, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn text_is_one_readable_line_and_json_is_for_programs() {
    let service = Service::start();
    let log = "[log]\naccess = \"./access.log\"\nflush_interval = \"1ms\"\n";
    let text = Gateway::start(&service.config(&format!("{log}format = \"text\"\n")));
    assert_eq!(text.get("/x").status, 200);
    let told = text.log_until("listening on", SOON);
    let line = told.lines().find(|line| line.contains("listening on")).expect("it listens");
    assert!(line.contains("Z INFO  listening on 127.0.0.1:") && !line.starts_with('{'), "{line}");
    assert!(!told.contains('\u{1b}'), "no colours without a terminal: {told}");
    let path = text.directory().join("access.log");
    let line = until(SOON, "a line of the access log", || {
        fs::read_to_string(&path).ok().filter(|lines| lines.ends_with('\n'))
    });
    assert!(line.contains("Z 200 GET /x ") && line.contains(" > ") && line.contains(", 127.0.0.1, "), "{line}");

    let json = Gateway::start(&service.config(&format!("{log}format = \"json\"\n")));
    let told = json.log_until("listening on", SOON);
    for line in told.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

/// What a terminal would show of a gateway that runs until somebody else ends it: `script` gives it one.
fn on_a_terminal(directory: &Path, environment: &[(&str, &str)]) -> String {
    let config = "[listener]\naddress = \"127.0.0.1\"\nport = 0\n[admin]\nenabled = false\n[drain]\nnotice = \"0s\"\n";
    fs::write(directory.join("shardgate.toml"), config).expect("it is ours");
    let program = format!("exec {} run --config shardgate.toml", env!("CARGO_BIN_EXE_shardgate"));
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &program, "/dev/null"]).current_dir(directory);
    command.envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut terminal = command.spawn().expect("script is part of every Debian");
    let mut shown = BufReader::new(terminal.stdout.take().expect("piped"));
    let mut all = String::new();
    while !all.contains("listening on") {
        assert!(shown.read_line(&mut all).expect("a terminal shows text") > 0, "it ended: {all}");
    }
    let children = format!("/proc/{0}/task/{0}/children", terminal.id());
    let gateway = fs::read_to_string(children).expect("script runs it");
    let pid = gateway.trim().parse().ok().and_then(rustix::process::Pid::from_raw).expect("one child");
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    shown.read_to_string(&mut all).expect("a terminal shows text");
    assert!(terminal.wait().expect("ours").success(), "{all}");
    all
}

#[test]
fn a_terminal_gets_colours_unless_they_are_not_wanted() {
    let directory = tempfile::tempdir().expect("a directory");
    let colourful = on_a_terminal(directory.path(), &[]);
    let line = colourful.lines().find(|line| line.contains("listening on")).expect("it listens");
    assert!(line.contains("\u{1b}[32mINFO \u{1b}[0m listening on"), "{line:?}");
    let plain = on_a_terminal(directory.path(), &[("NO_COLOR", "1")]);
    assert!(plain.contains(" INFO  listening on") && !plain.contains('\u{1b}'), "{plain:?}");
}

#[test]
fn the_level_follows_a_reload() {
    let service = Service::start();
    let config = |level: &str| service.config(&format!("[log]\nlevel = \"{level}\"\n"));
    let gateway = Gateway::start(&config("info"));
    gateway.rewrite_config(&config("error"));
    gateway.signal(Signal::HUP);
    gateway.metrics_until("the quiet configuration", |metrics| {
        metrics.value("shardgate_config_reloads_total{result=\"applied\"}") == 1
    });
    assert!(!gateway.log().contains("configuration reloaded"), "below the new level: {}", gateway.log());
    assert!(!gateway.log().contains("restart"), "no restart is asked for: {}", gateway.log());
    gateway.rewrite_config(&config("debug"));
    gateway.signal(Signal::HUP);
    gateway.log_until("configuration reloaded", SOON);
}

/// How often the threads of a process have gone to sleep by themselves.
fn sleeps(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).map(of).sum()
}

#[test]
fn a_process_without_work_sleeps() {
    let service = Service::start();
    let gateway = Gateway::start(&service.config("[runtime]\nshards = 2\n"));
    assert_eq!(gateway.get("/x").status, 200);
    // What it did for its start and for the request is over once a second has passed in which it did nearly nothing; a
    // process that wakes for nothing never has one.
    let (began, mut before, mut least) = (now(), sleeps(gateway.pid()), u64::MAX);
    while least > 45 {
        assert!(now().duration_since(began) < Duration::from_mins(1), "it wakes {least} times a second at the least");
        pause(Duration::from_secs(1));
        let after = sleeps(gateway.pid());
        least = least.min(after - before);
        before = after;
    }
}
