//! Checks on the documents: what they say of error codes, commands and files is so.
//!
//! `tidy` looks at how sources are written; the tables of configuration and metrics are checked beside their parsers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shardgate::exchange::Code;
use shardgate::hub::code::{Close, Code as HubCode};
use shardgate::telemetry::metrics::{InstanceOut, ProbeResult};

use crate::harness::Gateway;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[track_caller]
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// ---- the table of error codes ----

/// The rows of the first table under a heading, each as its cells.
fn table<'t>(text: &'t str, heading: &str) -> Vec<Vec<&'t str>> {
    let section = text.split("\n## ").find(|section| section.lines().next() == Some(heading)).expect("the heading");
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    // The first two are the head and its rule.
    lines.skip(2).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn errors_md_has_every_code_with_its_status_and_title_and_no_other() {
    let text = read("docs/errors.md");
    let documented: Vec<String> = table(&text, "Codes").iter().map(|row| row[..3].join(" ")).collect();
    let row = |code: &Code| format!("`{}` {} {}", code.name(), code.status(), code.title());
    let defined: Vec<String> = Code::ALL.iter().map(row).collect();
    assert!(!defined.is_empty());
    assert_eq!(documented, defined, "docs/errors.md is the first, src/exchange/reject.rs the second");
}

#[test]
fn errors_md_says_of_every_code_when_it_comes_and_whether_to_repeat() {
    let text = read("docs/errors.md");
    let short =
        table(&text, "Codes").into_iter().filter(|row| row.len() != 5 || row.iter().any(|cell| cell.is_empty()));
    none(&short.map(|row| format!("docs/errors.md: {row:?} has an empty cell, or not five")).collect::<Vec<_>>());
}

// ---- the tables of the hub's codes ----

/// What stands between two marks of a document is this table; `UPDATE_DOCS=1` makes it so.
#[track_caller]
fn check_table(path: &str, mark: &str, head: [&str; 3], rows: impl Iterator<Item = String>) {
    let (begin, end) = (format!("<!-- {mark}: made from src/hub/code.rs -->\n"), format!("\n<!-- /{mark} -->\n"));
    let found = read(path);
    let (before, rest) = found.split_once(&begin).expect("the mark where the table begins");
    let (_, after) = rest.split_once(&end).expect("the mark where the table ends");
    let rows: String = rows.flat_map(|row| [row, "\n".to_owned()]).collect();
    let expected = format!("{before}{begin}\n| {} |\n| --- | --- | --- |\n{rows}{end}{after}", head.join(" | "));
    if found != expected && std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root().join(path), expected).expect("written");
        return;
    }
    assert!(found == expected, "{path} is not what src/hub/code.rs says; run the tests with UPDATE_DOCS=1");
}

#[test]
fn websocket_md_has_every_code_of_the_hub() {
    let yes = |is_so: bool| if is_so { "yes" } else { "no" };
    let code = |code: &HubCode| format!("| `{}` | {} | {} |", code.name(), yes(code.is_retryable()), code.sentence());
    let head = ["code", "again", "message"];
    check_table("docs/websocket.md", "codes", head, HubCode::ALL.iter().map(code));
    let close = |close: &Close| format!("| {} | {} | {} |", close.code(), close.reason(), yes(close.is_to_reconnect()));
    check_table("docs/websocket.md", "closes", ["code", "reason", "come back"], Close::ALL.iter().map(close));
}

/// What a script of the client knows of close codes is what the hub means by them.
#[test]
fn the_client_comes_back_after_the_codes_that_say_so() {
    let client = read("clients/js/shardgate.js");
    let list =
        client.split_once("FINAL_CODES = new Set([").and_then(|(_, rest)| rest.split_once("])")).expect("the list");
    let finals: Vec<u16> = list.0.split(", ").map(|code| code.parse().expect("a number")).collect();
    for close in Close::ALL {
        let comes_back = !finals.contains(&close.code()) && !(4100..4200).contains(&close.code());
        assert_eq!(comes_back, close.is_to_reconnect(), "{close:?}");
    }
}

// ---- sentences go into JSON as they are ----

/// A function's body, up to the brace in its column.
fn body<'t>(text: &'t str, start: &str) -> &'t str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("there is no {start}"));
    rest.split_once("\n    }\n").map_or(rest, |(body, _)| body)
}

/// Words in quotes.
fn words(text: &str) -> Vec<&str> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted
        .filter(|word| !word.is_empty() && word.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()))
        .collect()
}

#[test]
fn health_md_explains_every_class_and_reason() {
    let text = read("docs/health.md");
    let failures = read("src/upstream/failure.rs");
    let (redis, embedded) = (read("src/bus/redis/mod.rs"), read("src/embedded/failure.rs"));
    let (users, in_file) = (read("src/accounts/store/postgres.rs"), read("src/accounts/store/embedded.rs"));
    let in_file: Vec<&str> = in_file.split("Away(\"").skip(1).filter_map(|call| call.split('"').next()).collect();
    let found = [
        words(body(&failures, "fn class(&self)")),
        words(body(&redis, "pub const fn word(self)")),
        words(body(&embedded, "pub const fn word(self)")),
        words(body(&users, "fn classify(")),
        in_file,
    ];
    assert!(found.iter().all(|words| words.len() > 1), "the walk finds them: {found:?}");
    let probes = ProbeResult::VALUES.iter().filter(|word| **word != "good");
    let all = found.iter().flatten().chain(probes).chain(InstanceOut::VALUES);
    let unknown = all.filter(|word| !text.contains(&format!("`{word}`")));
    none(&unknown.map(|word| format!("docs/health.md does not say what {word} means")).collect::<Vec<_>>());
}

#[test]
fn health_md_explains_every_status() {
    let (text, code) = (read("docs/health.md") + &read("docs/operations.md"), read("src/admin/health.rs"));
    let code = code.split_once("#[cfg(test)]").map_or(&*code, |(code, _)| code);
    // What is the value of something: behind an arrow or a brace, before no colon.
    let values = ["=> \"", "{ \"", "(503, \"", "(200, \""];
    let said = values.iter().flat_map(|start| code.split(start).skip(1)).filter_map(|rest| rest.split_once('"'));
    let said: Vec<&str> = said.filter(|(_, rest)| !rest.starts_with(':')).map(|(word, _)| word).collect();
    assert!(["down", "unhealthy", "stale"].iter().all(|word| said.contains(word)), "the walk finds them: {said:?}");
    let unknown = said.iter().filter(|word| !text.contains(&format!("`{word}`")));
    none(&unknown.map(|word| format!("docs/health.md does not say what {word} means")).collect::<Vec<_>>());
}

/// Files with a table of sentences for clients, and what stands before each of them.
const TABLES: [(&str, &str); 2] = [("src/proto/http1/error.rs", ""), ("src/gateway/path.rs", "=> ")];

#[test]
fn sentences_for_clients_need_no_escapes() {
    let codes = Code::ALL.iter().flat_map(|code| [code.name(), code.title(), code.detail()]);
    let mut sentences: Vec<String> = codes.map(str::to_owned).collect();
    for (path, start) in TABLES {
        let found = literals(&read(path), start);
        assert!(!found.is_empty(), "{path} has sentences");
        sentences.extend(found);
    }
    let given: Vec<String> = files("src", "rs").iter().flat_map(|path| given_to_rejects(&read(path))).collect();
    assert!(!given.is_empty(), "some refusals are more precise than their code");
    sentences.extend(given);
    none(&sentences.into_iter().filter(|sentence| needs_escapes(sentence)).collect::<Vec<_>>());
}

/// The literals of the lines that hold `start`, behind it; comments are passed over.
fn literals(text: &str, start: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let behind = lines.filter_map(|line| line.split_once(start).map(|(_, rest)| rest));
    behind.flat_map(|rest| rest.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The sentences that refusals are made with where they are made.
fn given_to_rejects(code: &str) -> Vec<String> {
    let calls = code.split("Reject::because(").skip(1);
    let literal = |call: &str| {
        let (before, rest) = call.split_once('"')?;
        // The call ended before: its sentence is no literal.
        if before.contains(')') { None } else { rest.split('"').next().map(str::to_owned) }
    };
    calls.filter_map(literal).collect()
}

fn needs_escapes(sentence: &str) -> bool {
    sentence.is_empty() || !sentence.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
}

#[test]
fn a_sentence_that_needs_escapes_is_found() {
    assert_eq!(["a \u{20ac}", "a\\", "a\"b", "tab\t", ""].map(needs_escapes), [true; 5]);
    assert!(!needs_escapes("the path has an escaped slash; see /docs (RFC 9110)"));
    assert_eq!(literals("// A => \"no\"\nA => \"one\",\nlet b = \"no\";", "=> "), ["one"]);
    let code = "Reject::because(A, b.c()); \"no\"; Reject::because(\n    A,\n    \"one (1) \\\"two\",\n)";
    assert_eq!(given_to_rejects(code), ["one (1) \\"], "an escape shows as a backslash");
}

// ---- commands in the README are those that the demo prints ----

fn curl_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("curl ") || line.starts_with("TOKEN="))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_readme_shows_the_commands_of_the_demo() {
    let any_port = [("SHARDGATE_LISTENER_PORT", "0"), ("SHARDGATE_ADMIN_PORT", "0"), ("SHARDGATE_RUNTIME_SHARDS", "1")];
    let demo = Gateway::start_command(&["demo"], &any_port);
    demo.log_until("Ctrl-C", Duration::from_secs(10));
    let usual = |line: String| {
        let line = line.replace(&format!("localhost:{}/", demo.address().port()), "localhost:3000/");
        line.replace(&format!("localhost:{}/", demo.admin().port()), "localhost:3001/")
    };
    let printed: Vec<String> = curl_lines(&demo.log()).into_iter().map(usual).collect();
    assert!(printed.len() > 3, "the demo prints commands: {printed:?}");
    assert_eq!(curl_lines(&read("README.md")), printed, "README.md is the first, the demo the second");
}

// ---- links and paths lead somewhere ----

/// Every document for people.
fn documents() -> Vec<PathBuf> {
    let top = fs::read_dir(root()).expect("the root").map(|entry| entry.expect("an entry").path());
    let top = top.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut found: Vec<PathBuf> =
        top.map(|path| path.strip_prefix(root()).expect("below the root").to_owned()).collect();
    found.extend(files("docs", "md"));
    found.push("clients/js/README.md".into());
    assert!(found.len() > 5, "the walk finds the documents");
    found
}

/// All files below a folder with this ending, by their paths from the root.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from(folder)];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder") {
            let path = folder.join(entry.expect("an entry").file_name());
            if root().join(&path).is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn links_in_documents_lead_to_files() {
    let check = |path: PathBuf| {
        let folder = path.parent().expect("a file has a folder").to_owned();
        let dead = links(&read(&path)).into_iter().filter(move |link| !root().join(&folder).join(link).exists());
        dead.map(move |link| format!("{}: the link to {link} leads nowhere", path.display())).collect::<Vec<_>>()
    };
    none(&documents().into_iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn paths_in_documents_exist() {
    let check = |path: PathBuf| {
        let dead = paths(&read(&path)).into_iter().filter(|named| !root().join(named).exists());
        dead.map(move |named| format!("{}: there is no {named}", path.display())).collect::<Vec<_>>()
    };
    none(&documents().into_iter().flat_map(check).collect::<Vec<_>>());
}

/// The targets of Markdown links within the repository, without what follows a `#`.
fn links(text: &str) -> Vec<String> {
    let targets = text.match_indices("](").filter_map(|(at, start)| text[at + start.len()..].split(')').next());
    let files = targets.filter_map(|target| target.split('#').next());
    files
        .filter(|file| !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

/// What stands in backticks and names a file or a folder of the repository, from its root.
fn paths(text: &str) -> Vec<String> {
    let folders = ["src/", "docs/", "tests/", "scripts/", "contrib/", "clients/"];
    let prose = text.split("```").step_by(2);
    let ticked = prose.flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let words = ticked.filter_map(|code| code.trim_start_matches("./").split_whitespace().next());
    words.filter(|word| folders.iter().any(|folder| word.starts_with(folder))).map(str::to_owned).collect()
}

#[test]
fn dead_links_and_paths_are_found() {
    let text = "[a](docs/a.md#b) [c](https://example.com/x) [d](#e) [f](../f.md)\n";
    assert_eq!(links(text), ["docs/a.md", "../f.md"]);
    let text = "see `src/no.rs`, `./scripts/test --all` and `GET /docs/x`\n```\n`src/quoted.rs`\n```\n`docs/`";
    assert_eq!(paths(text), ["src/no.rs", "scripts/test", "docs/"]);
}
