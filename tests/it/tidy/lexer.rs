//! The little lexer that the checks share: it tells code from comments and literals.

/// Blanks comments, strings and characters, and keeps lines.
pub(super) fn code_only(text: &str) -> String {
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

pub(super) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What the strings of a text say, between their marks.
pub(super) fn literals(text: &str) -> impl Iterator<Item = &str> {
    let (mut rest, mut in_word) = (text, false);
    std::iter::from_fn(move || {
        while let Some(character) = rest.chars().next() {
            let length = skipped(rest, in_word);
            let (token, left) = rest.split_at(length.unwrap_or(character.len_utf8()));
            (rest, in_word) = (left, length.is_none() && is_word(character));
            let is_string = length.is_some() && token.ends_with(['"', '#']) && !token.starts_with('/');
            if is_string {
                return Some(token.trim_start_matches(is_word).trim_matches('#').trim_matches('"'));
            }
        }
        None
    })
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
    assert_eq!(literals("f(\"a\", b\"c\", 'd') // \"e\"\n + r#\"f\"#").collect::<Vec<_>>(), ["a", "c", "f"]);
    assert_eq!(code_only("a\n\"b\nc\"\nd").lines().count(), 4);
}
