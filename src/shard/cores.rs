//! How many shards to run, and on which CPUs.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getaffinity};

/// More shards than this are a mistake: the mesh has a ring for each pair.
const SHARDS_MAX: usize = 256;

/// The answer, with its reason for the start-up log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// How many shards.
    pub count: usize,
    /// The CPU of each shard; empty when they are not pinned.
    pub cpus: Vec<usize>,
    /// Why so many, and why pinned or not.
    pub why: String,
}

/// One shard per core that this process may use: the least of affinity mask and cgroup quota (rounded up), unless
/// `requested` says otherwise.
pub fn shard_count(requested: Option<usize>) -> Cores {
    decide(requested, &allowed_cpus(), cgroup_quota(Path::new("/")))
}

fn decide(requested: Option<usize>, allowed: &[usize], quota: Option<f64>) -> Cores {
    let available = allowed.len().max(1);
    let quota_count = quota.map(round_up);
    let (count, mut why) = match (requested, quota_count) {
        (Some(requested), _) => (requested, "as configured".to_owned()),
        (None, Some(share)) if share < available => {
            (share, format!("the cgroup's quota is {share} of {available} CPUs"))
        }
        (None, _) => (available, format!("{available} CPUs may be used")),
    };
    let count = count.clamp(1, SHARDS_MAX);
    let cpus = if count > allowed.len() {
        why.push_str("; not pinned: fewer CPUs than shards");
        Vec::new()
    } else if quota_count.is_some_and(|share| share < available) {
        // A quota is a share of time on any CPU. Every container of the machine would pin itself to the same first ones.
        why.push_str("; not pinned: the quota is a share of all CPUs");
        Vec::new()
    } else {
        allowed.iter().copied().take(count).collect()
    };
    Cores { count, cpus, why }
}

/// A quota of 1.5 CPUs keeps two shards busy part of the time; one would leave a third of it unused.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what usize holds")]
fn round_up(cpus: f64) -> usize {
    cpus.ceil().clamp(1.0, 1e6) as usize
}

/// The CPUs in the affinity mask, in their order.
fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(mask) => (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect(),
        // A machine with more CPUs than the mask holds, or no such call: the count is known, the numbers are not.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// The least quota, in CPUs, of this process' cgroup and those above it; `None` without any.
fn cgroup_quota(root: &Path) -> Option<f64> {
    let membership = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = root.join("sys/fs/cgroup");
    let v2 = v2_path(&membership).and_then(|path| {
        least_on_the_way_up(&mounts, path, |folder| parse_cpu_max(&fs::read_to_string(folder.join("cpu.max")).ok()?))
    });
    let v1 = v1_path(&membership).and_then(|path| {
        least_on_the_way_up(&mounts.join("cpu"), path, |folder| {
            let quota = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?;
            parse_cfs(&quota, &fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?)
        })
    });
    [v1, v2].into_iter().flatten().min_by(f64::total_cmp)
}

/// In a container the path may be the host's and lead nowhere; then the mount itself, at the end of the way, is ours.
fn least_on_the_way_up(mount: &Path, path: &str, quota: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    let relative = PathBuf::from(path.trim_start_matches('/'));
    relative.ancestors().filter_map(|folder| quota(&mount.join(folder))).min_by(f64::total_cmp)
}

/// The path in `/proc/self/cgroup`'s line for cgroup v2: `0::/path`.
fn v2_path(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The path in its line for the v1 controller `cpu`: `4:cpu,cpuacct:/path`.
fn v1_path(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "cpu").then_some(path)
    })
}

/// CPUs that `cpu.max` allows: `200000 100000` is 2, `max 100000` is no limit.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    parse_cfs(words.next()?, words.next()?)
}

/// CPUs that a quota and a period in microseconds allow; a quota of -1, or of anything else that is no count, is none.
fn parse_cfs(quota: &str, period: &str) -> Option<f64> {
    let quota: u32 = quota.trim().parse().ok()?;
    let period: u32 = period.trim().parse().ok()?;
    (quota > 0 && period > 0).then(|| f64::from(quota) / f64::from(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(requested: Option<usize>, allowed: &[usize], quota: Option<f64>, count: usize, cpus: &[usize]) {
        let cores = decide(requested, allowed, quota);
        assert_eq!((cores.count, &cores.cpus[..]), (count, cpus), "{}", cores.why);
    }

    #[test]
    fn the_least_of_quota_and_affinity_decides() {
        check(None, &[0, 1, 2, 3], None, 4, &[0, 1, 2, 3]);
        check(None, &[2, 5], None, 2, &[2, 5]);
        check(None, &[0, 1, 2, 3], Some(1.5), 2, &[]);
        check(None, &[0, 1, 2, 3], Some(0.2), 1, &[]);
        check(None, &[0, 1], Some(8.0), 2, &[0, 1]);
        check(None, &[0, 1], Some(1.5), 2, &[0, 1]);
        check(None, &[], None, 1, &[]);
    }

    #[test]
    fn what_is_asked_for_is_obeyed_within_reason() {
        check(Some(1), &[0, 1], None, 1, &[0]);
        check(Some(4), &[0, 1], None, 4, &[]);
        check(Some(0), &[0, 1], None, 1, &[0]);
        check(Some(1 << 20), &[0, 1], None, SHARDS_MAX, &[]);
        check(Some(2), &[0, 1, 2, 3], Some(2.0), 2, &[]);
    }

    #[test]
    fn quotas_are_read() {
        assert_eq!(parse_cpu_max("200000 100000\n"), Some(2.0));
        assert_eq!(parse_cpu_max("150000 100000"), Some(1.5));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max(""), None);
        assert_eq!(parse_cpu_max("200000"), None);
        assert_eq!(parse_cpu_max("200000 0"), None);
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("50000\n", "100000\n"), Some(0.5));
    }

    #[test]
    fn the_cgroup_is_found() {
        assert_eq!(v2_path("0::/user.slice/a:b\n"), Some("/user.slice/a:b"));
        let v1 = "12:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n3:cpuset:/y\n";
        assert_eq!((v2_path(v1), v1_path(v1)), (None, Some("/docker/x")));
        assert_eq!(v1_path("3:cpuset:/y\n\nnonsense\n"), None);
    }

    #[test]
    fn the_least_quota_on_the_way_up_counts() {
        let root = tempfile::tempdir().expect("a folder for the test");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        assert_eq!(cgroup_quota(root.path()), None);
        write("proc/self/cgroup", "0::/a/b\n");
        assert_eq!(cgroup_quota(root.path()), None);
        write("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
        write("sys/fs/cgroup/a/cpu.max", "300000 100000\n");
        assert_eq!(cgroup_quota(root.path()), Some(3.0));
        // A container that sees the host's path but only its own mount.
        write("proc/self/cgroup", "0::/elsewhere\n");
        write("sys/fs/cgroup/cpu.max", "250000 100000\n");
        assert_eq!(cgroup_quota(root.path()), Some(2.5));
        write("proc/self/cgroup", "4:cpu,cpuacct:/d\n");
        write("sys/fs/cgroup/cpu/d/cpu.cfs_quota_us", "150000\n");
        write("sys/fs/cgroup/cpu/d/cpu.cfs_period_us", "100000\n");
        assert_eq!(cgroup_quota(root.path()), Some(1.5));
    }

    #[test]
    fn this_machine_has_an_answer() {
        let cores = shard_count(None);
        assert!(cores.count >= 1 && !cores.why.is_empty());
        assert!(cores.cpus.is_empty() || cores.cpus.len() == cores.count);
    }
}
