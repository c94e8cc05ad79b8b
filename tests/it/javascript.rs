//! The client for browsers and node: its own tests, by node's runner against a hub that does what it is told, and its
//! types as TypeScript reads them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::servers::npm;

/// As `devDependencies` of the client's `package.json` has them.
const PACKAGES: [&str; 2] = ["typescript@5.9.3", "ws@8.23.0"];

/// A copy of the client beside the packages, so that nothing is written into the tree.
#[track_caller]
fn client() -> Option<PathBuf> {
    let packages = npm::packages(&PACKAGES)?;
    let copy = packages.join(format!("client-{}", std::process::id()));
    for folder in ["", "test"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/js").join(folder);
        fs::create_dir_all(copy.join(folder)).expect("a folder");
        for entry in fs::read_dir(from).expect("the client").map(|entry| entry.expect("an entry")) {
            if entry.path().is_file() {
                fs::copy(entry.path(), copy.join(folder).join(entry.file_name())).expect("copied");
            }
        }
    }
    Some(copy)
}

#[test]
fn the_client_keeps_what_it_promises_and_its_types_are_right() {
    let Some(client) = client() else { return };
    let wanted = fs::read_to_string(client.join("package.json")).expect("the client's package");
    for package in PACKAGES {
        let (name, version) = package.split_once('@').expect("name and version");
        assert!(wanted.contains(&format!("\"{name}\": \"{version}\"")), "package.json has another {name}");
    }
    let output = Command::new("npm").arg("test").current_dir(&client).output().expect("npm runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed = text.lines().find_map(|line| line.split_once("pass ")).map(|(_, count)| count.parse::<u32>());
    assert!(passed.is_some_and(|count| count.is_ok_and(|count| count > 40)), "its tests ran: {text}");
    fs::remove_dir_all(client).expect("it is ours");
}
