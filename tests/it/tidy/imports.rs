//! Imports point down: a module uses only those that `src/lib.rs` declares below it.

use std::fs;

use super::lexer::code_only;
use super::{Source, first_word, is_word, line_of, none, root, sources};

#[test]
fn modules_use_only_modules_below_them() {
    let order = module_order(&fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs"));
    assert!(order.len() > 1, "src/lib.rs declares modules");
    let files = sources(&["src"], &[".rs"]);
    none(&files.iter().flat_map(|source| upward_paths(source, &order)).collect::<Vec<_>>());
}

/// The modules in the order in which `lib.rs` declares them: the one that uses all others first.
pub(super) fn module_order(lib: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    code_only(lib).lines().filter_map(|line| name(line.trim_end())).collect()
}

fn upward_paths(source: &Source, order: &[String]) -> Vec<String> {
    let rank = |name: &str| order.iter().position(|module| module == name);
    let Some((own, depth)) = module_of(&source.path) else { return Vec::new() };
    let Some(own_rank) = rank(own) else {
        return vec![format!("{}: src/lib.rs does not declare `pub mod {own};`", source.path)];
    };
    let code = source.code();
    let mut complaints = Vec::new();
    for (at, name) in paths_from_root(&code, depth) {
        if rank(name).is_some_and(|used| used < own_rank) {
            let line = line_of(&code, at);
            complaints.push(format!(
                "{}:{line}: `{own}` uses `{name}`, which stands above it in src/lib.rs; move the thing down or pass it in",
                source.path
            ));
        }
    }
    complaints
}

/// The top module that a file belongs to, and how many `super::` lead from it to the crate's root.
fn module_of(path: &str) -> Option<(&str, usize)> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut parts: Vec<&str> = inside.split('/').filter(|&part| part != "mod").collect();
    // `main.rs` and `lib.rs` see everything.
    if matches!(parts[..], ["main" | "lib"]) {
        return None;
    }
    let depth = parts.len();
    Some((parts.swap_remove(0), depth))
}

/// The first names of all paths that start at the crate's root, with their places.
fn paths_from_root(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let supers = "super::".repeat(depth);
    let mut found = Vec::new();
    for start in ["crate::", &supers] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with(is_word) {
                continue;
            }
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(first_names(group).into_iter().map(|name| (at, name))),
                // More of `super::` than the depth comes from modules inside the file.
                None => found.push((at, first_word(rest.trim_start_matches("super::")))),
            }
        }
    }
    found
}

/// The first name of each path in a group, up to the brace that closes it.
fn first_names(group: &str) -> Vec<&str> {
    let (mut names, mut depth, mut expected) = (Vec::new(), 0, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            _ if expected && is_word(character) => {
                names.push(first_word(&group[at..]));
                expected = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn an_upward_path_is_found_wherever_it_hides() {
    let order = ["server", "net", "telemetry", "proto"].map(str::to_owned);
    let used =
        |path: &str, text: &str| upward_paths(&Source { path: path.to_owned(), text: text.to_owned() }, &order).len();
    assert_eq!(used("src/telemetry/log.rs", "use crate::net::tls;"), 1);
    assert_eq!(used("src/telemetry/log.rs", "use crate::{proto::{head, net}, server::{self, x}, net};"), 2);
    assert_eq!(used("src/telemetry/log.rs", "fn f() { $crate::server::run(crate::net::x) }"), 2);
    assert_eq!(used("src/telemetry/log.rs", "use super::super::net;"), 1);
    assert_eq!(used("src/telemetry/log.rs", "mod tests { use super::super::super::net; }"), 1);
    assert_eq!(used("src/telemetry/mod.rs", "use super::{server, proto};"), 1);
    assert_eq!(used("src/proto/head.rs", "use super::net;"), 0, "that is proto::net");
    assert_eq!(used("src/net/tls.rs", "use crate::{proto::head, telemetry}; use crate::net::x;"), 0);
    assert_eq!(used("src/telemetry/log.rs", "/// [`crate::server`]\nlet text = \"crate::server\";"), 0);
    assert_eq!(used("src/main.rs", "use crate::server;"), 0);
    assert_eq!(used("src/stray.rs", ""), 1, "not declared");
    let lib = "//! pub mod no;\npub mod server;\n\npub mod net; // why\n// pub mod not;\n";
    assert_eq!(module_order(lib), ["server", "net"]);
}
