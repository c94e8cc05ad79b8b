//! `docs/files.md` lists every source file with the first sentence of what it says of itself. `UPDATE_DOCS=1` makes it so.

use std::{env, fmt::Write as _, fs};

use super::imports::module_order;
use super::{Source, root, sources};

const LIST: &str = "docs/files.md";
const TOP: &str = "<!-- Made from the first sentence of each file; UPDATE_DOCS=1 cargo test makes it anew. -->\n\n\
    # Every source file\n\nBy module, in the order of the [map](../ARCHITECTURE.md#the-map). Tests are left out.\n";

#[test]
fn every_file_is_listed_with_what_it_says_of_itself() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("it is there");
    let all = sources(&["src"], &[".rs"]);
    let mut expected = TOP.to_owned();
    for module in module_order(&lib) {
        let folder = format!("src/{module}/");
        let _ = write!(expected, "\n## `{module}`\n\n");
        let own = all.iter().filter_map(|source| Some((source.path.strip_prefix(&folder)?, source)));
        for (path, source) in own.filter(|(path, _)| !is_of_tests(path)) {
            let _ = writeln!(expected, "- `{path}`: {}", first_sentence(source));
        }
    }
    let path = root().join(LIST);
    let found = fs::read_to_string(&path).unwrap_or_default();
    if found != expected && env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).expect("it can be written");
        return;
    }
    assert!(found == expected, "{LIST} is not what the files say of themselves; run the tests with UPDATE_DOCS=1");
}

fn is_of_tests(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part.ends_with("tests.rs"))
}

/// The first sentence of a file's documentation, without its links.
fn first_sentence(source: &Source) -> String {
    let lines = source.text.lines().map_while(|line| line.strip_prefix("//!").map(str::trim));
    let paragraph = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let end = paragraph.match_indices(". ").map(|(at, _)| at + 1).find(|&at| !is_abbreviation(&paragraph[..at]));
    let mut sentence = paragraph[..end.unwrap_or(paragraph.len())].replace("[`", "`").replace("`]", "`");
    while let Some((before, rest)) = sentence.split_once("](") {
        let (_, after) = rest.split_once(')').expect("a link ends");
        let (before, text) = before.rsplit_once('[').expect("a link begins");
        sentence = format!("{before}{text}{after}");
    }
    sentence
}

fn is_abbreviation(text: &str) -> bool {
    ["e.g.", "i.e.", "et al."].iter().any(|short| text.ends_with(short))
}
