//! What is cited can be read: decisions.

use std::fs;

use super::{Source, documents, line_of, none, root, rust_files};

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
