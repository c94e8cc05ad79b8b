//! Values that nobody may read: they show as `***` wherever they could be written.

use std::fmt;
use zeroize::Zeroizing;

/// How a secret looks in logs, errors and the effective configuration.
pub const HIDDEN: &str = "***";

/// A secret out of the configuration. Its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// What it hides. Whoever asks takes care where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A value without the white space around it. Files end with a newline that nobody means, and so do variables that are made
/// of them. What is written in a configuration, stands in a variable or in the file of a secret is read through this.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(|character: char| character.is_ascii_whitespace())
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_around_a_value_goes_and_within_it_stays() {
        assert_eq!(trimmed("\n a b\r\n"), "a b");
        assert_eq!(trimmed("\u{a0}a"), "\u{a0}a", "only what editors and shells leave behind");
    }

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = Secret::from("correct horse".to_owned());
        assert_eq!(secret.reveal(), "correct horse");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "*** Some(\n    ***,\n)");
    }
}
