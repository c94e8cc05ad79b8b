//! A user, as every store has it.

use super::password::StoredHash;

/// Bytes of an e-mail address (RFC 5321 §4.5.3.1: a path of 256 with its brackets).
pub const EMAIL_BYTES_MAX: usize = 254;

/// One user. Its `Debug` shows no hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Fixed for ever: the `sub` of tokens. Its form is that of [`crate::sessions::is_user_id`].
    pub id: String,
    /// The normal form of the address.
    pub email: String,
    /// One of `[roles]`; a role that is not there permits nothing.
    pub role: String,
    /// What is permitted to this user besides what the role permits.
    pub permissions: Vec<String>,
    /// The password's hash; users of another way to log in have none.
    pub password: Option<StoredHash>,
    /// Whether the user is locked out.
    pub is_disabled: bool,
    /// When the user was added, in Unix milliseconds.
    pub created_ms: u64,
    /// When anything of this was last changed, in Unix milliseconds.
    pub updated_ms: u64,
}

/// The form in which addresses are stored and compared: without space around, in lower case. `None` if it is not an address.
pub fn normal_email(email: &str) -> Option<String> {
    let email = email.trim();
    if email.len() > EMAIL_BYTES_MAX {
        return None;
    }
    let email = email.to_lowercase();
    let (local, domain) = email.rsplit_once('@')?;
    let is_odd = |character: char| character.is_control() || character.is_whitespace();
    let sound = !local.is_empty() && !domain.is_empty() && !email.contains(is_odd) && email.len() <= EMAIL_BYTES_MAX;
    sound.then_some(email)
}

/// A fresh id: 96 random bits.
pub fn fresh_id() -> Option<String> {
    let mut bytes = [0_u8; 12];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).ok()?;
    let mut id = "u_".to_owned();
    for byte in bytes {
        id.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0')));
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        let normal = |email: &str| normal_email(email);
        assert_eq!(normal(" Ada@Example.COM\n").as_deref(), Some("ada@example.com"));
        assert_eq!(normal("\"a b\"@c"), None);
        assert_eq!(normal("Ä@ö.de").as_deref(), Some("ä@ö.de"));
        for wrong in ["", "@", "a@", "@b", "ab", "a\0@b", "a@b c"] {
            assert_eq!(normal(wrong), None, "{wrong:?}");
        }
        let long = |length: usize| format!("{}@b", "a".repeat(length - 2));
        assert!(normal(&long(254)).is_some());
        assert_eq!(normal(&long(255)), None);
        // Its lower case is longer than itself.
        assert_eq!(normal(&format!("{}@b", "\u{130}".repeat(126))), None);
    }

    #[test]
    fn ids_fit_where_they_go() {
        let [one, other] = [fresh_id(), fresh_id()].map(|id| id.expect("random bytes"));
        assert!(crate::sessions::is_user_id(&one) && one.len() == 26 && one != other);
    }
}
