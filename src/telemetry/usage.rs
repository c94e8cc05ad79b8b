//! What the process uses of the machine, and what it is: read when somebody wants to know.

use std::{fs, path::Path, time::Duration};

use ring::digest::{SHA256, digest};
use rustix::time::{ClockId, clock_gettime};

use super::metrics::{ProcessCounters, ThreadKind};
use super::table::{Facts, Micros};
use crate::config::Config;

/// Threads that are looked at; there are as many as cores, and a few.
const THREADS_MAX: usize = 1024;

/// CPU time of the thread that asks.
pub fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// CPU time of all threads, those too that have ended.
pub fn process_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Takes down what the process uses now. What the kernel does not tell stays as it was.
pub fn read(process: &mut ProcessCounters) {
    let level = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    if let Some(bytes) = resident() {
        process.resident = level(bytes);
    }
    if let Some(count) = descriptors() {
        process.descriptors_open = level(count);
    }
    let mut times = [0; ThreadKind::COUNT];
    for (kind, us) in threads() {
        times[kind.index()] += us;
    }
    let known: u64 = times.iter().sum();
    // Threads that have ended, and what the kernel's ticks of ten milliseconds have missed.
    times[ThreadKind::Other.index()] += Micros::from(process_time()).0.saturating_sub(known);
    for (told, time) in process.cpu.0.iter_mut().zip(times) {
        // A thread that ended is no reason to count backwards.
        *told = (*told).max(time);
    }
}

/// What the program is. `driver` is what its shards wait for sockets with.
pub fn build(driver: &str) -> Facts {
    Facts(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("driver", driver.to_owned())])
}

/// Which configuration this is, in few digits.
pub fn config(config: &Config) -> Facts {
    let hash = digest(&SHA256, config.to_toml().as_bytes());
    let digits = hash.as_ref().iter().take(8).fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"));
    Facts(vec![("hash", digits)])
}

/// Bytes of memory that is in RAM.
pub fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Descriptors that are open.
pub fn descriptors() -> Option<u64> {
    const OPEN: &str = "/proc/self/fd";
    // Since Linux 6.2 the folder's size is how many there are.
    let told = fs::metadata(OPEN).ok()?.len();
    if told > 0 {
        return Some(told);
    }
    // One is open for the look itself.
    Some((fs::read_dir(OPEN).ok()?.count() as u64).saturating_sub(1))
}

/// Each thread that lives: what it does, and its CPU time in microseconds.
fn threads() -> impl Iterator<Item = (ThreadKind, u64)> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten().take(THREADS_MAX);
    threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (name, ticks) = parse_stat(&stat)?;
        let is_first = thread.file_name() == Path::new(&std::process::id().to_string());
        let kind = if is_first { ThreadKind::Control } else { kind_of(name) };
        Some((kind, ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1)))
    })
}

/// A thread's name and its CPU time in ticks: `7 (a name) S …`, `proc_pid_stat(5)`.
fn parse_stat(stat: &str) -> Option<(&str, u64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    let mut fields = after.split_ascii_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some((name, fields.next()??.saturating_add(fields.next()??)))
}

fn kind_of(name: &str) -> ThreadKind {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "bridge" => ThreadKind::Bridge,
        "store-writer" | "store-reader" => ThreadKind::Store,
        "access-log" | "access-log-sink" => ThreadKind::AccessLog,
        "clickhouse" => ThreadKind::Clickhouse,
        _ if name.strip_prefix("shard-").is_some_and(is_number) => ThreadKind::Shard,
        _ if name.strip_prefix("password-").is_some_and(is_number) => ThreadKind::Password,
        _ => ThreadKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::ThreadKind::{AccessLog, Bridge, Clickhouse, Other, Password, Shard, Store};
    use super::*;

    #[test]
    fn threads_are_known_by_what_the_kernel_says_of_them() {
        for (stat, expected) in [
            ("7 (shard-3) S 1 7 7 0 -1 4194560 100 0 0 0 21 4 0 0 20 0 9 0 5 6 7\n", Some(("shard-3", 25))),
            (
                "7 (a (odd) name) R 1 7 7 0 -1 4194560 100 0 0 0 0 18446744073709551615 0\n",
                Some(("a (odd) name", u64::MAX)),
            ),
            ("7 (x) S 1 2 3", None),
            ("7 (x) S 1 7 7 0 -1 4194560 100 0 0 0 x 4 0", None),
            ("", None),
        ] {
            assert_eq!(parse_stat(stat), expected, "{stat}");
        }
        let kinds = [
            "shard-0",
            "shard-x",
            "bridge",
            "store-reader",
            "password-12",
            "access-log-sink",
            "clickhouse",
            "signals",
            "",
        ]
        .map(kind_of);
        assert_eq!(kinds, [Shard, Other, Bridge, Store, Password, AccessLog, Clickhouse, Other, Other]);
    }

    #[test]
    fn what_is_used_is_read_and_never_falls() {
        let mut process = ProcessCounters::default();
        process.cpu.0[Password.index()] = u64::MAX;
        read(&mut process);
        assert!(process.resident > 1 << 20, "{} bytes", process.resident);
        let open = process.descriptors_open;
        assert!((3..100_000).contains(&open), "{open} descriptors");
        let files: Vec<_> = (0..7).map(|_| fs::File::open("/proc/self/statm").expect("it is there")).collect();
        read(&mut process);
        assert!(process.descriptors_open >= open + 7, "{} after {open}", process.descriptors_open);
        drop(files);
        assert_eq!(process.cpu.0[Password.index()], u64::MAX);
        let (before, mut spun) = (thread_time(), 0_u64);
        while thread_time() == before {
            spun += 1;
        }
        assert!(spun < 100_000_000 && thread_time() > before && process_time() > before);
    }
}
