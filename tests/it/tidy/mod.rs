//! Checks on the source itself: what the compiler and clippy do not look at.
//!
//! Each check is a function from text to complaints, so that a planted mistake can show that it bites.

mod citations;
mod files;
mod imports;
mod lexer;
mod licences;
mod log_fields;
mod names;

use std::fs;
use std::path::{Path, PathBuf};

use lexer::{code_only, is_word};

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

fn first_word(text: &str) -> &str {
    text.split(|character| !is_word(character)).next().unwrap_or_default()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// What stands in code font in a text, on one line each, with its place. Blocks of code are passed over.
fn code_spans(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + text[at..].find('`')?;
            let marks = text[start..].len() - text[start..].trim_start_matches('`').len();
            let inside = start + marks;
            let end = inside + text[inside..].find(&text[start..inside])?;
            at = end + marks;
            if marks < 3 {
                return Some((start, text[inside..end].split_whitespace().collect::<Vec<_>>().join(" ")));
            }
        }
    })
}
