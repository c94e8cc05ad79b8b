//! What is cited can be read: decisions, documents, and their headings.

use std::fs;

use super::{Source, documents, is_word, line_of, none, root, rust_files, sources};

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

/// Words for documents that readers of the repository do not have.
const ELSEWHERE: [&str; 2] = ["SPEC", "Annex"];

#[test]
fn cited_documents_exist() {
    let written: Vec<Source> =
        sources(&["docs", "clients/js/README.md"], &[".md"]).into_iter().chain(documents()).collect();
    // Those two make some up.
    let is_read = |source: &Source| source.path != "tests/it/docs.rs" && !source.path.starts_with("tests/it/tidy/");
    let code = rust_files().into_iter().filter(is_read);
    let cite = code.chain(documents());
    none(&cite.flat_map(|source| missing_documents(&source, &written)).collect::<Vec<_>>());
}

/// What a text cites and nobody can read: documents, and headings (`PERF.md, "Idle connections"`).
fn missing_documents(source: &Source, written: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain =
        |at: usize, what: String| complaints.push(format!("{}:{}: {what}", source.path, line_of(&source.text, at)));
    for (at, _) in source.text.match_indices(".md") {
        let rest = &source.text[at + ".md".len()..];
        let is_part = |character: char| is_word(character) || "./-".contains(character);
        let before = source.text[..at].trim_end_matches(is_part).len();
        let name = format!("{}.md", &source.text[before..at]);
        // A pattern, a link to a page elsewhere, a path that begins in a variable.
        let before = &source.text[..before];
        if rest.starts_with(is_word) || name == ".md" || before.ends_with(['*', '}', ':', '@', '$']) {
            continue;
        }
        let end = name.trim_start_matches("../").trim_start_matches("./");
        let document =
            written.iter().find(|document| document.path == end || document.path.ends_with(&format!("/{end}")));
        let Some(document) = document else {
            complain(at, format!("there is no {name}"));
            continue;
        };
        let heading = rest.trim_start_matches('`').strip_prefix(", \"").and_then(|rest| rest.split('"').next());
        let is_heading = |heading: &str| {
            let lines = document.text.lines();
            lines.filter_map(|line| line.strip_prefix('#')).any(|line| line.trim_start_matches('#').trim() == heading)
        };
        if let Some(heading) = heading.filter(|heading| !is_heading(heading)) {
            complain(at, format!("{} has no heading \"{heading}\"", document.path));
        }
    }
    for word in ELSEWHERE {
        for (at, _) in source.text.match_indices(word) {
            if !source.text[..at].ends_with(is_word) && !source.text[at + word.len()..].starts_with(is_word) {
                complain(at, format!("{word} is not in the repository; say what it says, or cite what is"));
            }
        }
    }
    complaints
}

#[test]
fn a_document_that_nobody_has_is_found() {
    let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let written = [file("PERF.md", "# Performance\n\n### Log-ins\n"), file("docs/errors.md", "# Errors\n")];
    let found = |text: &str| missing_documents(&file("src/a.rs", text), &written).len();
    assert_eq!(
        found("// PERF.md, \"Log-ins\"; `PERF.md`, \"Performance\"; docs/errors.md; [x](../errors.md#y); docs/*.md"),
        0
    );
    assert_eq!(found("// PERF.md, \"Log-outs\"; `PERF.md`, \"Log\""), 2);
    assert_eq!(found("// DESIGN.md, and docs/decisions/errors.md"), 2);
    // In two parts, or this file would cite it.
    assert_eq!(found(concat!("// The signals of SP", "EC, An", "nex C.")), 2);
}
