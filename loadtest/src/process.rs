//! What a process and its children cost: CPU and memory, read from `/proc`. Knows nothing of load.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context;
use rustix::process::{Pid, Signal};

/// Memory of a process and its children.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    /// Resident, with what is shared counted in each process.
    pub(crate) rss_kib: u64,
    /// Resident, with what is shared divided among those who share it; 0 if this user may not read it.
    pub(crate) pss_kib: u64,
}

/// Whether the process is there.
pub(crate) fn exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false)
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no process"))?;
    rustix::process::kill_process(id, signal).with_context(|| format!("no signal to process {pid}"))
}

/// CPU time in microseconds, user and system, of the process and its living descendants; in steps of the kernel's
/// tick, 10 ms as a rule.
pub(crate) fn cpu_us(root: u32) -> u64 {
    let tick_us = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    tree(root).values().map(|stat| stat.ticks * tick_us).sum()
}

/// Memory now. Reads every mapping, which takes milliseconds: not for the middle of a measurement.
pub(crate) fn memory(root: u32) -> Memory {
    let members = members(root);
    let mut memory = Memory { rss_kib: rss_kib(&members), pss_kib: 0 };
    for pid in members {
        if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            memory.pss_kib += field_kib(&text, "Pss:").unwrap_or(0);
        }
    }
    memory
}

/// The process and its descendants now.
pub(crate) fn members(root: u32) -> Vec<u32> {
    tree(root).into_keys().collect()
}

/// Resident memory of these processes now. One short read each, so it may be sampled while the load runs; looking
/// for a process's descendants reads all of `/proc` and may not.
pub(crate) fn rss_kib(members: &[u32]) -> u64 {
    let page_kib = rustix::param::page_size() as u64 / 1024;
    let pages = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0)
    };
    members.iter().map(|pid| pages(pid) * page_kib).sum()
}

#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

/// The process and its descendants.
fn tree(root: u32) -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let all = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
    });
    descendants(root, all.collect())
}

fn descendants(root: u32, mut all: BTreeMap<u32, Stat>) -> BTreeMap<u32, Stat> {
    let mut found = BTreeMap::new();
    let mut frontier = vec![root];
    while let Some(pid) = frontier.pop() {
        if let Some(stat) = all.remove(&pid) {
            found.insert(pid, stat);
            frontier.extend(all.iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| *child));
        }
    }
    found
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may hold spaces and parentheses itself.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields = rest.split(' ').collect::<Vec<_>>();
    let number = |nth: usize| fields.get(nth)?.parse::<u64>().ok();
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks: number(11)? + number(12)? })
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_an_odd_name() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194304 10 0 0 0 300 45 0 0 20 0 1 0 1 1 1";
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, ticks: 345 }));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn descendants_are_found_whatever_their_order() {
        let all = [(10, 1), (9, 10), (30, 9), (11, 1), (31, 11)];
        let all = all.map(|(pid, parent)| (pid, Stat { parent, ticks: 1 }));
        let found = descendants(10, BTreeMap::from(all)).into_keys().collect::<Vec<_>>();
        assert_eq!(found, [9, 10, 30]);
    }

    #[test]
    fn this_process_can_be_weighed() {
        let own = std::process::id();
        assert!(exists(own));
        let memory = memory(own);
        assert!(memory.rss_kib > 100 && memory.pss_kib > 100, "{memory:?}");
        assert_eq!(field_kib("Rss:  12 kB\nPss:  7 kB\n", "Pss:"), Some(7));
    }
}
