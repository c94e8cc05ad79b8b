//! Checks on the source itself: what the compiler and clippy do not look at.
//!
//! Each check is a function from text to complaints, so that a planted mistake can show that it bites.

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;

/// A file of the repository: its path from the root, and what it says.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The text with comments and literals blanked out, line by line as it was.
    fn code(&self) -> String {
        code_only(&self.text)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under `folders` (or those named) that end with one of `endings`, in order.
fn sources(folders: &[&str], endings: &[&str]) -> Vec<Source> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            // What cargo builds is nobody's source.
            if !path.ends_with("target") {
                waiting.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
            }
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let path = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn rust_files() -> Vec<Source> {
    let found = sources(&["src", "loadtest", "benches", "tests"], &[".rs"]);
    assert!(found.len() > 10, "the walk finds the sources");
    found
}

/// What is written for people, and the settings of tools.
fn documents() -> Vec<Source> {
    let names = fs::read_dir(root()).expect("the root").map(|entry| entry.expect("an entry").path());
    let files: Vec<String> =
        names.filter(|path| path.is_file()).map(|path| path.to_string_lossy().into_owned()).collect();
    let starts: Vec<&str> = files.iter().map(String::as_str).chain(["docs"]).collect();
    let found = sources(&starts, &[".md", ".toml"]);
    assert!(found.iter().any(|source| source.path == "Cargo.toml"), "the walk finds the documents");
    found
}

#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// ---- imports point down ----

#[test]
fn modules_use_only_modules_below_them() {
    let order = module_order(&fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs"));
    assert!(order.len() > 1, "src/lib.rs declares modules");
    let files = sources(&["src"], &[".rs"]);
    none(&files.iter().flat_map(|source| upward_paths(source, &order)).collect::<Vec<_>>());
}

/// The modules in the order in which `lib.rs` declares them: the one that uses all others first.
fn module_order(lib: &str) -> Vec<String> {
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

fn first_word(text: &str) -> &str {
    text.split(|character| !is_word(character)).next().unwrap_or_default()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
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

// ---- files say what they are for, and stay short ----

#[test]
fn files_open_with_what_they_are_for() {
    let silent = rust_files().into_iter().filter(|source| !source.text.starts_with("//! "));
    let complain =
        |source: Source| format!("{}: open with `//!`: what it is for, and what it leaves to others", source.path);
    none(&silent.map(complain).collect::<Vec<_>>());
}

#[test]
fn files_stay_short() {
    let long = rust_files().into_iter().filter(|source| source.text.lines().count() > FILE_LINES_MAX);
    let complain = |source: Source| {
        let lines = source.text.lines().count();
        format!("{}: {lines} lines, past {FILE_LINES_MAX}; look for the seam", source.path)
    };
    none(&long.map(complain).collect::<Vec<_>>());
}

// ---- nothing unfinished ----

#[test]
fn nothing_unfinished_outside_tests() {
    let files = sources(&["src", "loadtest"], &[".rs"]);
    none(&files.iter().flat_map(unfinished).collect::<Vec<_>>());
}

fn unfinished(source: &Source) -> Vec<String> {
    if source.path.split('/').any(|part| matches!(part, "tests" | "tests.rs")) {
        return Vec::new();
    }
    let code = without_tests(&source.code());
    let complain = |(at, what): (usize, &str)| {
        format!(
            "{}:{}: `{what}` outside tests; say why it holds with `expect`, or handle it",
            source.path,
            line_of(&code, at)
        )
    };
    let found = [".unwrap()", "todo!", "dbg!", "unimplemented!"].into_iter().flat_map(|what| code.match_indices(what));
    found.map(complain).collect()
}

/// The code without the items that only tests see.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|start| rest.find(start)).min() {
        kept.push_str(&rest[..at]);
        let item = &rest[at..];
        let end = item_end(item);
        kept.extend(item[..end].chars().filter(|&character| character == '\n'));
        rest = &item[end..];
    }
    kept + rest
}

/// Where an item ends: at its closing brace, or at a semicolon before any brace.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in item.char_indices() {
        match character {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    item.len()
}

#[test]
fn something_unfinished_is_found_only_outside_tests() {
    let found = |path: &str, text: &str| unfinished(&Source { path: path.to_owned(), text: text.to_owned() });
    let text = "fn f() { a.unwrap(); }\n#[cfg(test)]\nmod tests { fn g() { b.unwrap(); {} } }\nfn h() { todo!() }";
    let complaints = found("src/a.rs", text);
    assert_eq!(complaints.len(), 2);
    assert!(complaints[0].starts_with("src/a.rs:1: ") && complaints[1].starts_with("src/a.rs:4: "), "{complaints:?}");
    assert_eq!(found("src/a.rs", "#[cfg(test)]\nuse x;\nfn f() { dbg!(1) }").len(), 1);
    assert!(found("src/a.rs", "// todo!\nlet a = \".unwrap()\"; b.unwrap_or(1); b.expect(\"why\");").is_empty());
    assert!(found("src/a/tests.rs", "a.unwrap()").is_empty());
}

// ---- nothing that a reader cannot see ----

#[test]
fn no_invisible_characters() {
    none(&rust_files().iter().chain(&documents()).flat_map(invisible).collect::<Vec<_>>());
}

fn invisible(source: &Source) -> Vec<String> {
    // Tabs, carriage returns, zero-width characters, and marks that show code in another order than it runs.
    let hides = |character: char| {
        (character.is_control() && character != '\n')
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let complain = |(at, character): (usize, char)| {
        let (line, escaped) = (line_of(&source.text, at), character.escape_unicode());
        format!("{}:{line}: invisible character {escaped}; write it as an escape", source.path)
    };
    source.text.char_indices().filter(|&(_, character)| hides(character)).map(complain).collect()
}

#[test]
fn an_invisible_character_is_found() {
    let found = |text: &str| invisible(&Source { path: "src/a.rs".to_owned(), text: text.to_owned() }).len();
    assert_eq!(["\t", "\r\n", "a\u{202e}b", "\u{85}", "\u{200b}"].map(found), [1; 5]);
    assert_eq!(found("µs, … and “quotes”\n"), 0);
}

// ---- decisions that are cited can be read ----

#[test]
fn cited_decisions_exist() {
    let folder = root().join("docs/decisions");
    let entries = fs::read_dir(folder).into_iter().flatten();
    let written: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    none(
        &rust_files()
            .iter()
            .chain(&documents())
            .flat_map(|source| missing_decisions(source, &written))
            .collect::<Vec<_>>(),
    );
}

fn missing_decisions(source: &Source, written: &[String]) -> Vec<String> {
    let exists = |number: u32| written.iter().any(|name| name.starts_with(&format!("{number:04}-")));
    let complain = |(at, number)| {
        let line = line_of(&source.text, at);
        format!("{}:{line}: decision {number} is cited, but there is no docs/decisions/{number:04}-*.md", source.path)
    };
    cited_decisions(&source.text).into_iter().filter(|&(_, number)| !exists(number)).map(complain).collect()
}

/// The numbers behind the word, also when it stands for several, with their places.
fn cited_decisions(text: &str) -> Vec<(usize, u32)> {
    let mut cited = Vec::new();
    for (at, word) in text.match_indices("ecision") {
        let rest = text[at + word.len()..].trim_start_matches('s');
        for part in rest.split_inclusive(|character: char| character.is_ascii_digit()).take_while(|part| {
            let before = part.trim_end_matches(|character: char| character.is_ascii_digit());
            ["", " ", ", ", " and "].contains(&before) && part.len() > before.len()
        }) {
            let digit = part.chars().next_back().and_then(|digit| digit.to_digit(10)).unwrap_or_default();
            match cited.last_mut() {
                Some((last, number)) if *last == at && part.len() == 1 => *number = *number * 10 + digit,
                _ => cited.push((at, digit)),
            }
        }
    }
    cited
}

#[test]
fn a_citation_of_nothing_is_found() {
    // Put together here, or this file would cite them.
    let word = "decision";
    let numbers = |text: String| cited_decisions(&text).into_iter().map(|(_, number)| number).collect::<Vec<_>>();
    assert_eq!(numbers(format!("see {word} 12, and (D{} 3)", &word[1..])), [12, 3]);
    assert_eq!(numbers(format!("{word}s 1, 20 and 3; 4 more")), [1, 20, 3]);
    assert_eq!(numbers(format!("a {word} of 2 people; docs/{word}s/0001-x.md")), [0; 0]);
    let source = Source { path: "src/a.rs".to_owned(), text: format!("// {word}s 1 and 2\n") };
    let complaints = missing_decisions(&source, &["0001-codec.md".to_owned()]);
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].contains("0002-"), "{complaints:?}");
}

// ---- the little lexer that the checks share ----

/// Blanks comments, strings and characters, and keeps lines.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = skipped(rest, code.ends_with(is_word));
        let (token, left) = rest.split_at(length.unwrap_or(character.len_utf8()));
        match length {
            Some(_) => code.extend(token.chars().map(|inside| if inside == '\n' { '\n' } else { ' ' })),
            None => code.push(character),
        }
        rest = left;
    }
    code
}

/// The length of the comment or literal that `rest` starts with.
fn skipped(rest: &str, in_word: bool) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return Some(1 + closing(inside, '"'));
    }
    let raw = ["r", "br", "cr"].into_iter().find_map(|prefix| rest.strip_prefix(prefix)).filter(|_| !in_word);
    if let Some(raw) = raw {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let opening = rest.len() - raw.len() + hashes + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            return Some(rest[opening..].find(&end).map_or(rest.len(), |at| opening + at + end.len()));
        }
    }
    let inside = rest.strip_prefix('\'')?;
    let mut characters = inside.chars();
    match (characters.next()?, characters.next()?) {
        ('\\', _) => Some(1 + closing(inside, '\'')),
        (character, '\'') => Some(2 + character.len_utf8()),
        // A lifetime.
        _ => None,
    }
}

/// Where a literal ends, past its closing mark.
fn closing(inside: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, character) in inside.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == mark => return at + 1,
            _ => {}
        }
    }
    inside.len()
}

/// Where a block comment ends; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

#[test]
fn the_lexer_tells_code_from_the_rest() {
    let check =
        |text: &str, code: &str| assert_eq!(code_only(text).split_whitespace().collect::<Vec<_>>().join(" "), code);
    check("a // b\nc", "a c");
    check("a /* b /* c */ d */ e", "a e");
    check(r#"a("b\"c", 'd', '\'', '"', b"e") + f"#, "a( , , , , b ) + f");
    check("r#\"a \" b\"# c br\"d\\\" e r#type", "c e r#type");
    check("fn f<'a>(x: &'a str) -> &'static str { '\u{20ac}' }", "fn f<'a>(x: &'a str) -> &'static str { }");
    check("parser\"x\" y", "parser y");
    assert_eq!(code_only("a\n\"b\nc\"\nd").lines().count(), 4);
}
