//! Refresh tokens: opaque to clients, and their own proof. A token is a keyed MAC over what it says, so that the store
//! keeps a generation and no token; one that we did not make is refused before anything is asked.
//!
//! Pure: the keys are given, and whether a token's generation is still good is for `rotation`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use zeroize::Zeroizing;

use super::{SESSION_ID_BYTES_MAX, USER_ID_BYTES_MAX, is_session_id, is_user_id};
use crate::config;

/// The first byte. Another layout would have another one.
const VERSION: u8 = 1;

/// What the MAC is over begins with this, so that the same key, used for something else, makes no refresh tokens.
const PURPOSE: &[u8] = b"shardgate refresh token\0";

const MAC_BYTES: usize = 32;

/// Version, generation, two lengths, the ids, the MAC.
const BYTES_MAX: usize = 1 + 8 + 2 + SESSION_ID_BYTES_MAX + USER_ID_BYTES_MAX + MAC_BYTES;

/// The longest token that could be ours, as text.
pub const TOKEN_CHARS_MAX: usize = BYTES_MAX.div_ceil(3) * 4;

/// A token on its way to its client. Its memory is wiped when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken(Zeroizing<String>);

impl RefreshToken {
    /// The token itself: for the answer's body and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenContent {
    /// The session.
    pub(super) sid: Box<str>,
    /// Its user.
    pub(super) user: Box<str>,
    /// How often the session had been renewed when the token was made.
    pub(super) generation: u64,
}

/// The keys that tokens are made and checked with: the first makes them, all of them check.
pub struct Keyring {
    keys: Vec<hmac::Key>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.keys.len()).finish()
    }
}

impl Keyring {
    /// A ring of one key and of older ones, whose tokens stay good.
    pub fn new<'a>(secret: &'a [u8], older: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let keys = std::iter::once(secret).chain(older).map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self { keys: keys.collect() }
    }

    /// The ring that the configuration gives; `made` stands in where it names no secret.
    pub fn of(config: &config::Sessions, made: &[u8]) -> Self {
        let older = config.old_secret.iter().map(|secret| secret.reveal().as_bytes());
        match &config.secret {
            Some(secret) => Self::new(secret.reveal().as_bytes(), older),
            None => Self::new(made, older),
        }
    }

    /// The token for this generation of the session: always the same one for the same key.
    pub(super) fn issue(&self, said: &TokenContent) -> RefreshToken {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES_MAX));
        bytes.push(VERSION);
        bytes.extend(said.generation.to_be_bytes());
        for id in [&said.sid, &said.user] {
            bytes.push(u8::try_from(id.len()).expect("ids are checked where they come in"));
            bytes.extend(id.as_bytes());
        }
        let mac = sign(&self.keys[0], &bytes);
        bytes.extend(mac.as_ref());
        RefreshToken(Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes)))
    }

    /// What the token says, if one of the keys made it.
    pub(super) fn check(&self, token: &str) -> Option<TokenContent> {
        if token.len() > TOKEN_CHARS_MAX {
            return None;
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(token).ok()?);
        let (said, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let message = message(said);
        // In constant time for each key. Which key fits is no secret.
        self.keys.iter().find(|key| hmac::verify(key, &message, mac).is_ok())?;
        read(said)
    }
}

fn sign(key: &hmac::Key, said: &[u8]) -> hmac::Tag {
    hmac::sign(key, &message(said))
}

fn message(said: &[u8]) -> Vec<u8> {
    [PURPOSE, said].concat()
}

/// Reads what a MAC vouched for; ours, yet perhaps of a version that is not known here.
fn read(said: &[u8]) -> Option<TokenContent> {
    let (&version, rest) = said.split_first()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (sid, rest) = read_id(rest)?;
    let (user, rest) = read_id(rest)?;
    let is_sound = version == VERSION && rest.is_empty() && is_session_id(sid) && is_user_id(user);
    is_sound.then(|| TokenContent { sid: sid.into(), user: user.into(), generation: u64::from_be_bytes(*generation) })
}

fn read_id(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(length))?;
    Some((str::from_utf8(id).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &[u8] = b"an old secret of 32 bytes or more";
    const NEW: &[u8] = b"a new secret of 32 bytes or more.";

    fn said(generation: u64) -> TokenContent {
        TokenContent { sid: "s_AAAAAAAAAAAAAAAAAAAAAA".into(), user: "42".into(), generation }
    }

    #[test]
    fn a_token_is_read_back_and_always_the_same() {
        let keys = Keyring::new(NEW, []);
        let token = keys.issue(&said(7));
        assert_eq!(token, keys.issue(&said(7)));
        assert_ne!(token, keys.issue(&said(8)));
        assert_eq!(keys.check(token.reveal()), Some(said(7)));
        assert!(token.reveal().bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
        assert_eq!(format!("{token:?} {keys:?}"), "*** Keyring { keys: 1 }");
    }

    #[test]
    fn old_keys_check_and_foreign_keys_do_not() {
        let token = Keyring::new(OLD, []).issue(&said(1));
        let rotated = Keyring::new(NEW, [OLD]);
        assert_eq!(rotated.check(token.reveal()), Some(said(1)));
        assert_ne!(rotated.issue(&said(1)), token, "the first key makes them");
        assert_eq!(Keyring::new(NEW, []).check(token.reveal()), None);
    }

    #[test]
    fn ids_cannot_be_shifted_into_one_another() {
        let keys = Keyring::new(NEW, []);
        let one = TokenContent { sid: "s_ab".into(), user: "c".into(), generation: 0 };
        let two = TokenContent { sid: "s_a".into(), user: "bc".into(), generation: 0 };
        assert_ne!(keys.issue(&one), keys.issue(&two));
        assert_eq!(
            (keys.check(keys.issue(&one).reveal()), keys.check(keys.issue(&two).reveal())),
            (Some(one), Some(two))
        );
    }

    #[test]
    fn the_longest_ids_fit() {
        let keys = Keyring::new(NEW, []);
        let said = TokenContent {
            sid: format!("s_{}", "x".repeat(SESSION_ID_BYTES_MAX - 2)).into(),
            user: "u".repeat(USER_ID_BYTES_MAX).into(),
            generation: u64::MAX,
        };
        assert_eq!(keys.check(keys.issue(&said).reveal()), Some(said));
    }

    proptest! {
        #[test]
        fn no_other_text_is_taken(text in "[A-Za-z0-9_-]{0,200}", at in 0_usize..200, with in 0_usize..64) {
            let keys = Keyring::new(NEW, []);
            prop_assert_eq!(keys.check(&text), None);
            // One character of a good one changed: the canonical form leaves no bit unused.
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let good = keys.issue(&said(3)).reveal().to_owned();
            let mut bent = good.clone().into_bytes();
            let at = at % bent.len();
            bent[at] = alphabet[with];
            let bent = String::from_utf8(bent).expect("ASCII");
            prop_assert_eq!(keys.check(&bent).is_some(), bent == good);
            prop_assert_eq!(keys.check(&format!("{good}=")), None);
        }
    }
}
