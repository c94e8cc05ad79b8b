//! A view of the file system of one's own, for what a process finds at places that belong to the machine: `/etc/hosts`, or
//! a root that cannot be written.

use std::process::{Command, Stdio};

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
