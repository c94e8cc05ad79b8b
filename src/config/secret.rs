//! Values that nobody may read: they show as `***` wherever they could be written.

use serde::{Serialize, Serializer};
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

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = Secret::from("correct horse".to_owned());
        assert_eq!(secret.reveal(), "correct horse");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "*** Some(\n    ***,\n)");
        assert_eq!(serde_json::to_string(&secret).expect("JSON"), "\"***\"");
    }
}
