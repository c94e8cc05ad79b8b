//! The process as an operator meets it: its command line, its signals, its shards, its limits, its memory.

mod access_log;
mod addresses;
mod browser;
mod certificates;
mod cli;
mod clickhouse;
mod clients;
mod dashboard;
mod demo;
mod deploy;
mod discovered;
mod drain;
mod endings;
mod followed;
mod hanging;
mod health;
mod hostile;
mod listeners;
mod log;
mod memory;
mod metrics;
mod names;
mod namespace;
mod operators;
mod proxied;
mod reload;
mod secret_files;
mod shards;
mod systemd;
mod tls;
mod tls_bounds;
mod to_https;
mod top;

use std::{fs, net::IpAddr, process::Command};

use crate::harness::Gateway;

/// A figure of the process from `/proc/<pid>/<file>`, in KiB as the kernel tells it.
fn memory_kib(gateway: &Gateway, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/{file}", gateway.pid())).expect("the gateway runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {file}"));
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number of KiB")
}

/// Whether a program is there to test with. Without it the test says so and passes, unless tools are required.
pub(crate) fn has_tool(name: &str) -> bool {
    let is_there = Command::new("sh")
        .args(["-c", &format!("command -v {name}")])
        .output()
        .is_ok_and(|found| found.status.success());
    if !is_there {
        let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
        assert!(!is_required, "{name} is not installed, and SHARDGATE_TEST_TOOLS says that it has to be");
        eprintln!("skipped: {name} is not installed");
    }
    is_there
}

/// Raises this process's limit on open files as far as it goes: tests hold many connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit anybody may");
}

/// The `index`th source of connections: addresses of loopback, each good for `per_address` of them.
fn source(index: usize, per_address: usize) -> IpAddr {
    let host = u8::try_from(1 + index / per_address).expect("few addresses");
    IpAddr::from([127, 0, 0, host])
}
