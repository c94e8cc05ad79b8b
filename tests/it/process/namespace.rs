//! A view of the file system of one's own, for what a process finds at places that belong to the machine: `/etc/hosts`, or
//! a root that cannot be written; and file systems that hang.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// What makes a process with its own mounts, or nothing where this user may not; then the test says so and passes, unless
/// tools are required.
pub(super) fn unshare() -> Option<Vec<&'static str>> {
    let user = rustix::process::geteuid();
    let words: &[&str] =
        if user.is_root() { &["unshare", "--mount"] } else { &["unshare", "--user", "--map-root-user", "--mount"] };
    let is_possible = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !is_possible {
        let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
        assert!(!is_required, "there are no mount namespaces for this user, and the tests need them: run them as root");
        eprintln!("skipped: no mount namespaces for this user");
    }
    is_possible.then(|| words.to_vec())
}

/// A file system that answers nothing, over a folder or a file as a process sees it.
pub(super) struct Hang {
    process: u32,
    place: PathBuf,
    holder: Child,
}

impl Hang {
    /// Nothing where this user may not mount one; then the test says so.
    pub(super) fn over(place: &Path, process: u32) -> Option<Self> {
        // Whoever serves a file system in user space, and reads no question.
        let script = "exec 9<>/dev/fuse && nsenter -t $0 -m mount -n -i -t fuse \
                      -o fd=9,rootmode=$2,user_id=0,group_id=0 hang $1 && echo mounted && exec cat";
        let mut command = Command::new("sh");
        let mode = if place.is_dir() { "40000" } else { "100000" };
        command.args(["-c", script]).arg(process.to_string()).arg(place).arg(mode);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut told = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut told).ok()?;
        let hang = Self { process, place: place.to_owned(), holder };
        if told != "mounted\n" {
            eprintln!("skipped: no file system in user space for this user");
            return None;
        }
        Some(hang)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let mut command = Command::new("nsenter");
        command.arg("-t").arg(self.process.to_string()).args(["-m", "umount", "-l"]).arg(&self.place);
        // It may not be there.
        let _ = command.stderr(Stdio::null()).status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
