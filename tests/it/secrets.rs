//! Nothing secret stands in what a gateway writes. Every token and password that a test's client sends or is given is kept
//! in mind here, and at the end of each gateway its logs and metrics are searched for all that are known by then.

#![expect(clippy::disallowed_types, reason = "the tests of one process share what they know")]

use std::{
    collections::{BTreeSet, HashSet},
    sync::{LazyLock, Mutex, PoisonError},
};

/// What is shorter, or has fewer different characters, could stand in a log by chance.
const WORD_CHARS_MIN: usize = 20;
const WORD_ALPHABET_MIN: usize = 10;
const PHRASE_CHARS_MIN: usize = 12;
const PHRASE_ALPHABET_MIN: usize = 5;

/// A message may carry them in its first bytes, not behind.
const LOOKED_AT_MAX: usize = 64 * 1024;

/// What stands before a secret, and whether it is a token: a word of base64url and dots. Passwords are phrases up to `"`.
const MARKS: [(&str, bool); 4] =
    [("Bearer ", true), ("oken\":\"", true), ("\"password\":\"", false), ("access_token=", true)];

#[derive(Debug, Default)]
struct Known {
    /// Found as whole words.
    words: HashSet<String>,
    /// Found anywhere.
    phrases: BTreeSet<String>,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

impl Known {
    fn keep_message(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LOOKED_AT_MAX)]);
        let is_end = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        for (mark, is_token) in MARKS {
            for (at, _) in text.match_indices(mark) {
                let rest = &text[at + mark.len()..];
                let end = if is_token { rest.find(is_end) } else { rest.find('"') };
                let secret = &rest[..end.unwrap_or(rest.len())];
                if is_token {
                    self.keep_token(secret);
                } else if secret.chars().count() >= PHRASE_CHARS_MIN
                    && secret.chars().collect::<BTreeSet<_>>().len() >= PHRASE_ALPHABET_MIN
                {
                    self.phrases.insert(secret.to_owned());
                }
            }
        }
    }

    /// Of a JWT what it says and what proves it; its header is no secret.
    fn keep_token(&mut self, token: &str) {
        let parts = token.split('.').skip(usize::from(token.contains('.')));
        let is_telling = |part: &&str| {
            part.len() >= WORD_CHARS_MIN && part.bytes().collect::<BTreeSet<_>>().len() >= WORD_ALPHABET_MIN
        };
        self.words.extend(parts.filter(is_telling).map(str::to_owned));
    }

    fn find_in(&self, text: &str) -> Option<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let word = text.split(|c| !is_part(c)).find(|word| self.words.contains(*word));
        let phrase = || self.phrases.iter().map(String::as_str).find(|phrase| text.contains(*phrase));
        word.or_else(phrase).map(str::to_owned)
    }
}

/// Keeps the secrets of a message in mind.
pub(crate) fn keep_message(bytes: &[u8]) {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).keep_message(bytes);
}

/// Keeps a secret in mind that no message carries.
pub(crate) fn keep(secret: &str) {
    assert!(secret.len() >= PHRASE_CHARS_MIN, "too short to be told from the rest: {secret}");
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).phrases.insert(secret.to_owned());
}

/// Fails if a secret stands in this.
#[track_caller]
pub(crate) fn expect_none(what: &str, text: &str) {
    let found = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).find_in(text);
    if let Some(found) = found {
        let line = text.lines().find(|line| line.contains(&found)).unwrap_or_default();
        panic!("{what} tells a secret: {found} in {line}");
    }
}

#[test]
fn what_messages_carry_is_found_again() {
    let mut known = Known::default();
    let [refresh, claims, proof] = ["r", "c", "p"].map(|part| format!("{part}bcdefghij-_0123456789"));
    known.keep_message(
        format!("POST /auth/refresh HTTP/1.1\r\nAuthorization: Bearer eyJhbGciOiJFUzI1NiJ9.{claims}.{proof}\r\n\r\n{{\"refreshToken\":\"{refresh}\"}}")
            .as_bytes(),
    );
    let [asked, shown] = ["a", "s"].map(|part| format!("{part}bcdefghij-_0123456789"));
    known.keep_message(format!("GET /x?access_token=e30.{asked}.{shown}&a=1 HTTP/1.1\r\n\r\n").as_bytes());
    known.keep_message(b"{\"email\":\"ann@example.com\",\"password\":\"correct horse battery\"}");
    let filler = "x".repeat(1_025);
    known.keep_message(format!("{{\"password\":\"{filler}\"}}").as_bytes());
    for secret in [&*refresh, &claims, &proof, &asked, &shown, "correct horse battery"] {
        assert_eq!(known.find_in(&format!("{{\"message\":\"refused {secret}\"}}\n")).as_deref(), Some(secret));
    }
    for harmless in ["", "eyJhbGciOiJFUzI1NiJ9", "ann@example.com", &filler, &refresh[1..], &format!("{proof}p")] {
        assert_eq!(known.find_in(&format!("{{\"message\":\"refused {harmless}\"}}\n")), None, "{harmless}");
    }
}
