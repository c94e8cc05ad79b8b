//! That `deny.toml` allows the licences of what the program is built from, and none that nothing of it has.

use std::{collections::BTreeSet, fs, process::Command};

use super::root;

/// The licences that `deny.toml` allows.
fn allowed(text: &str) -> BTreeSet<String> {
    let file: toml::Table = toml::from_str(text).expect("TOML");
    let licences = file["licenses"]["allow"].as_array().expect("a list");
    licences.iter().map(|licence| licence.as_str().expect("a name").to_owned()).collect()
}

/// Whether this may be used by whoever accepts these licences; adds those that there is no way around.
fn is_fine(expression: &str, allowed: &BTreeSet<String>, needed: &mut BTreeSet<String>) -> bool {
    // Crates write no deeper ones: all of what is between the `AND`s, and of each any.
    expression.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']).replace('/', " OR ");
        let ways: Vec<_> = part.split(" OR ").map(str::trim).collect();
        if let [only] = *ways {
            needed.insert(only.to_owned());
        }
        ways.iter().any(|way| allowed.contains(*way))
    })
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed: BTreeSet<_> = ["MIT", "ISC"].map(str::to_owned).into();
    let mut needed = BTreeSet::new();
    for (expression, is_so) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only", true),
        ("GPL-3.0-only/MIT", true),
        ("(Apache-2.0 OR MIT) AND ISC", true),
        ("Apache-2.0 AND ISC", false),
        ("Apache-2.0 WITH LLVM-exception OR Apache-2.0", false),
    ] {
        assert_eq!(is_fine(expression, &allowed, &mut needed), is_so, "{expression}");
    }
    assert_eq!(needed, ["MIT", "GPL-3.0-only", "ISC", "Apache-2.0"].map(str::to_owned).into());
}

#[test]
fn the_licences_of_dependencies_are_allowed_and_no_others() {
    let allowed = allowed(&fs::read_to_string(root().join("deny.toml")).expect("it is there"));
    // As it is built here: what other systems need is not there to be read.
    let args =
        ["metadata", "--offline", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 50, "the graph is there: {}", packages.len());
    let mut needed = BTreeSet::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(is_fine(licence, &allowed, &mut needed), "{}: {licence}", package["name"]);
    }
    let idle: Vec<_> = allowed.difference(&needed).collect();
    assert!(idle.is_empty(), "nobody has nothing but these: {idle:?}");
}
