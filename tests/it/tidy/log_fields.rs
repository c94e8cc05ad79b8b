//! Fields of log lines: none has the name of what a line has already, or the line is JSON with one name twice, of which
//! readers take either.

use super::{Source, lexer::is_word, line_of, none, sources, without_tests};

/// What each line has besides the fields of its event.
const OWN: [&str; 4] = ["timestamp", "level", "target", "message"];
const MACROS: [&str; 6] =
    ["tracing::trace!(", "tracing::debug!(", "tracing::info!(", "tracing::warn!(", "tracing::error!(", "complain!("];

#[test]
fn a_log_line_has_each_name_once() {
    let files = sources(&["src"], &[".rs"]);
    let calls =
        files.iter().map(|source| MACROS.map(|start| source.code().matches(start).count()).iter().sum::<usize>());
    assert!(calls.sum::<usize>() > 100, "the log lines are found");
    none(&files.iter().flat_map(twice).collect::<Vec<_>>());
}

fn twice(source: &Source) -> Vec<String> {
    let code = without_tests(&source.code());
    let mut complaints = Vec::new();
    for start in MACROS {
        for (at, _) in code.match_indices(start) {
            let mut seen = OWN.to_vec();
            if start == "complain!(" {
                seen.push("count");
            }
            for name in arguments(&code[at + start.len()..]).into_iter().filter_map(field) {
                if seen.contains(&name) {
                    complaints.push(format!(
                        "{}:{}: the line has `{name}` already; take another name for the field",
                        source.path,
                        line_of(&code, at)
                    ));
                }
                seen.push(name);
            }
        }
    }
    complaints
}

/// What stands between the commas of a call, up to its end.
fn arguments(code: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0_usize, 0, Vec::new());
    for (at, character) in code.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => {
                found.push(&code[begin..at]);
                break;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&code[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// The field that an argument is: `name = value`, or `name` alone, with a mark for how it is shown. Literals are blanks here.
fn field(argument: &str) -> Option<&str> {
    let words = argument.trim();
    // `complain!` has its level before the first.
    let words = words.split_once(": ").filter(|(level, _)| level.chars().all(is_word)).map_or(words, |(_, rest)| rest);
    let name = words.split_once('=').map_or(words, |(name, _)| name).trim().trim_start_matches(['%', '?']);
    (!name.is_empty() && name.chars().all(|character| is_word(character) || character == '.')).then_some(name)
}

#[test]
fn a_name_that_is_there_twice_is_found() {
    let found = |text: &str| twice(&Source { path: "src/a.rs".to_owned(), text: text.to_owned() }).len();
    for text in [
        "tracing::warn!(rejected, message, \"some\");",
        "tracing::warn!(%message, \"some\");",
        "tracing::info!(message = f(a, b), \"some\");",
        "tracing::info!(one = 1, one = 2, \"some\");",
        "complain!(warn: count, \"some\");",
        "complain!(warn: level = ?a, \"some\");",
    ] {
        assert_eq!(found(text), 1, "{text}");
    }
    for text in [
        "tracing::warn!(rejected, detail = message, \"message\");",
        "tracing::warn!(target: AUDIT, who, \"some\");",
        "tracing::info!(count, \"some\");",
        "complain!(warn: %error, from = f(count, message), \"some\");",
        "#[cfg(test)]\nfn f() { tracing::warn!(message, \"some\"); }",
    ] {
        assert_eq!(found(text), 0, "{text}");
    }
}
