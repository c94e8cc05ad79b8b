//! A new configuration under a running gateway: whole or not at all, and no connection notices.

use std::{
    fs,
    os::unix::fs::symlink,
    process::Command,
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use rustix::process::Signal;

use super::memory_kib;
use crate::{
    harness::{Gateway, is_long, until},
    service::Service,
};

const SOON: Duration = Duration::from_secs(15);

/// Everything goes to the service, and answers tell which configuration they passed.
fn versioned(service: &Service, version: usize) -> String {
    service.config("") + &format!("[routes.response_headers]\nset = {{ X-Version = \"{version}\" }}\n")
}

fn version(gateway: &Gateway) -> String {
    gateway.get("/").field("x-version").unwrap_or_default().to_owned()
}

/// Starts a gateway and waits for all shards, so that what they say later is about a reload.
fn start(config: &str) -> Gateway {
    let gateway = Gateway::start(config);
    gateway.log_until(APPLIED, SOON);
    gateway
}

const APPLIED: &str = "every shard runs the configuration";

#[test]
fn a_signal_and_a_change_of_the_file_are_enough() {
    let service = Service::start();
    let gateway = start(&versioned(&service, 1));
    assert_eq!(version(&gateway), "1");
    gateway.rewrite_config(&versioned(&service, 2));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth(APPLIED, 2, SOON);
    assert_eq!(version(&gateway), "2");
    gateway.rewrite_config(&versioned(&service, 3));
    gateway.log_until("the file changed", SOON);
    gateway.log_until_nth(APPLIED, 3, SOON);
    assert_eq!(version(&gateway), "3");
    let metrics = gateway.metrics();
    assert_eq!(metrics.by_shard("shardgate_config_generation"), [3; 4]);
    assert_eq!(metrics.value("shardgate_config_reloads_total{result=\"applied\"}"), 2);
}

#[test]
fn a_change_that_a_signal_told_of_is_not_found_again() {
    let service = Service::start();
    let gateway = start(&versioned(&service, 1));
    gateway.rewrite_config(&versioned(&service, 2));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth(APPLIED, 2, SOON);
    // The file is looked at every second, and a change counts when it was seen twice.
    let uptime = || gateway.ask_admin("/health").json()["uptimeSeconds"].as_u64().expect("a number");
    let began = uptime();
    until(SOON, "the file was looked at often enough", || (uptime() > began + 3).then_some(()));
    assert_eq!(gateway.metrics().by_shard("shardgate_config_generation"), [2; 4]);
}

#[test]
fn a_file_with_a_mistake_changes_nothing() {
    let service = Service::start();
    let mut gateway = start(&versioned(&service, 1));
    gateway.expect_error("the configuration is refused");
    let half_right = versioned(&service, 2) + "\n[upstreams.other]\ninstances = [\"nowhere\"]\n";
    for (count, bad) in [half_right.as_str(), "nonsense", "[listener]\nprot = 1\n"].into_iter().enumerate() {
        gateway.rewrite_config(bad);
        gateway.signal(Signal::HUP);
        let line = gateway.log_until_nth("the configuration is refused", count + 1, SOON);
        assert!(line.contains("\"ERROR\"") && line.contains("shardgate.toml"), "{line}");
        assert_eq!(version(&gateway), "1");
        assert_eq!(gateway.get("/health/ready").status, 200);
    }
    // Nobody ever writes to the pipe, and the control thread does not wait for whoever might.
    let pipe = gateway.config_path().with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    fs::rename(&pipe, gateway.config_path()).expect("renamed");
    gateway.signal(Signal::HUP);
    let line = gateway.log_until_nth("the configuration is refused", 4, SOON);
    assert!(line.contains("it is no regular file"), "{line}");
    let metrics = gateway.metrics();
    assert_eq!(metrics.value("shardgate_config_reloads_total{result=\"refused\"}"), 4);
    assert_eq!(metrics.by_shard("shardgate_config_generation"), [1; 4]);
    gateway.rewrite_config(&versioned(&service, 2));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth(APPLIED, 2, SOON);
    assert_eq!(version(&gateway), "2");
}

/// A read of the kernel's log hangs while the kernel has nothing to say, as that of any file does when the server behind its
/// file system is away. Who is not root may not read it at all, which is told alike.
#[test]
fn a_file_that_hangs_holds_up_neither_operators_nor_signals() {
    let service = Service::start();
    let mut gateway = start(&service.config("[drain]\nnotice = \"0s\"\nmax = \"5s\"\n"));
    gateway.expect_error("the configuration is refused");
    fs::remove_file(gateway.config_path()).expect("removed");
    symlink("/proc/kmsg", gateway.config_path()).expect("a link");
    for count in 1..=3 {
        gateway.signal(Signal::HUP);
        let line = gateway.log_until_nth("the configuration is refused", count, SOON);
        assert!(line.contains("the file cannot be read"), "{line}");
    }
    assert_eq!(gateway.metrics().value("shardgate_config_reloads_total{result=\"refused\"}"), 3);
    assert_eq!(gateway.get("/").status, 200);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn a_directory_in_the_place_of_the_file_is_told() {
    let service = Service::start();
    let gateway = start(&versioned(&service, 1));
    fs::remove_file(gateway.config_path()).expect("removed");
    fs::create_dir(gateway.config_path()).expect("a directory");
    let line = gateway.log_until("the configuration file cannot be read", SOON);
    assert!(line.contains("it is a directory"), "{line}");
    fs::remove_dir(gateway.config_path()).expect("removed");
    gateway.rewrite_config(&versioned(&service, 2));
    gateway.log_until_nth(APPLIED, 2, SOON);
    assert_eq!(version(&gateway), "2");
}

#[test]
fn keys_that_need_a_restart_are_told_and_left() {
    let service = Service::start();
    let gateway = start(&service.config(""));
    gateway.rewrite_config(&service.config("[runtime]\nshards = 2\n"));
    gateway.signal(Signal::HUP);
    let line = gateway.log_until("applied by a restart only", SOON);
    assert!(line.contains("runtime.shards"), "{line}");
    gateway.log_until_nth(APPLIED, 2, SOON);
    assert_eq!(gateway.metrics().by_shard("shardgate_config_generation"), [2; 4]);
}

#[test]
fn open_connections_and_streams_go_on() {
    let service = Service::start();
    let gateway = start(&versioned(&service, 1));
    // Enough for every shard to have some.
    let mut kept: Vec<_> = (0..32).map(|_| gateway.connect()).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").field("x-version"), Some("1"));
    }
    let mut streams: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for stream in &mut streams {
        stream.send("GET /stream HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.read_until("first\r\n");
    }
    // The upstream of the streams under way is no longer in the new configuration.
    let other = Service::start();
    gateway.rewrite_config(&versioned(&other, 2));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth(APPLIED, 2, SOON);
    for client in &mut kept {
        assert_eq!(client.get("/").field("x-version"), Some("2"));
    }
    service.release();
    for stream in &mut streams {
        stream.read_until("4\r\nlast\r\n0\r\n\r\n");
        assert_eq!(stream.get("/").field("x-version"), Some("2"), "its connection goes on too");
    }
    assert_eq!(gateway.metrics().sum("shardgate_connections_accepted_total"), 40);
}

#[test]
fn many_reloads_under_load_fail_no_request_and_leave_no_trace() {
    let reloads = if is_long() { 1_000 } else { 50 };
    let service = Service::start();
    let gateway = start(&versioned(&service, 1));
    let mut resident_kib = Vec::with_capacity(reloads);
    let served: usize = std::thread::scope(|scope| {
        let gateway = &gateway;
        let (stops, loaders): (Vec<_>, Vec<_>) = (0..4)
            .map(|loader| {
                let (stop, stopped) = channel();
                (stop, scope.spawn(move || load(gateway, loader, &stopped)))
            })
            .unzip();
        for reload in 1..=reloads {
            gateway.rewrite_config(&versioned(&service, 1 + reload % 2));
            gateway.signal(Signal::HUP);
            gateway.log_until_nth(APPLIED, reload + 1, SOON);
            resident_kib.push(memory_kib(gateway, "status", "VmRSS:"));
        }
        drop(stops);
        loaders.into_iter().map(|loader| loader.join().expect("no request failed")).sum()
    });
    assert!(served > reloads, "there was load: {served} requests");
    let expected = i64::try_from(reloads + 1).expect("few");
    let generations = gateway.metrics().by_shard("shardgate_config_generation");
    assert_eq!(generations, [expected; 4]);
    // The first reloads fill what is kept for reuse.
    let quarter = reloads / 4;
    let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len() as u64;
    let (early, late) =
        (mean(&resident_kib[quarter / 2..quarter + quarter / 2]), mean(&resident_kib[reloads - quarter..]));
    assert!(late <= early + early / 10 + 2048, "from {early} KiB to {late} KiB: {resident_kib:?}");
}

/// Asks over and over until told to stop, on a connection that is kept and now and then on a fresh one.
fn load(gateway: &Gateway, loader: usize, stopped: &Receiver<()>) -> usize {
    let mut served = 0;
    let mut kept = gateway.connect();
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        let body = format!("{loader}.{served}");
        let response = kept.post("/echo", body.as_bytes());
        assert_eq!((response.status, response.text()), (200, body));
        assert!(["1", "2"].contains(&response.field("x-version").unwrap_or("none")), "{response:?}");
        served += 1;
        if served % 16 == 0 {
            kept = gateway.connect();
        }
    }
    served
}
