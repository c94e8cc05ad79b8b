//! A shard's check of tokens: the cache before the cryptography, and revocation on every hit.

use super::cache::{Cache, CachedToken, Digest};
use super::keys::KeySet;
use super::{Claims, Flaw, Revocations, TokenError, jwt};
use ring::digest;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a shard keeps quiet about an issuer's unknown keys after it has told of one. Control has the longer word.
const QUIET: Duration = Duration::from_secs(1);

/// How checks came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCounts {
    /// The token was remembered, and is still good.
    pub remembered: u64,
    /// It was checked anew, and passed.
    pub passed: u64,
    /// It was refused.
    pub refused: u64,
}

/// Checks tokens, and remembers those that passed. One per shard.
#[derive(Debug)]
pub struct Checker {
    cache: Cache,
    counts: CheckCounts,
    wanted: Option<Arc<str>>,
    /// When each issuer was last asked for; as many as there are issuers.
    asked: Vec<(Arc<str>, Duration)>,
}

impl Checker {
    /// Remembers at most so many tokens.
    pub fn new(entries_max: usize) -> Self {
        Self { cache: Cache::new(entries_max), counts: CheckCounts::default(), wanted: None, asked: Vec::new() }
    }

    /// Checks a token at this Unix time.
    pub fn check(
        &mut self,
        keys: &KeySet,
        revocations: &Revocations,
        token: &[u8],
        now: Duration,
    ) -> Result<Rc<Claims>, TokenError> {
        let checked = self.look_up_or_check(keys, revocations, token, now);
        if checked.is_err() {
            self.counts.refused += 1;
        }
        checked
    }

    /// Checks a token that was refused as revoked for everything else: whose it is, by a signature that is right and a
    /// time that is not up.
    pub fn check_revoked(&self, keys: &KeySet, token: &[u8], now: Duration) -> Result<Rc<Claims>, TokenError> {
        jwt::check(keys, token, now).map(|checked| Rc::new(checked.claims))
    }

    fn look_up_or_check(
        &mut self,
        keys: &KeySet,
        revocations: &Revocations,
        token: &[u8],
        now: Duration,
    ) -> Result<Rc<Claims>, TokenError> {
        // What is longer than any token is not even hashed.
        if token.len() > keys.token_bytes_max {
            return Err(Flaw::TooLong.into());
        }
        let mut digest: Digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        if let Some(entry) = self.cache.find(&digest) {
            match look_again(entry, keys, revocations, now) {
                Again::Good => {
                    self.counts.remembered += 1;
                    return Ok(Rc::clone(&entry.claims));
                }
                // It stays: it is refused faster so, and it may not come back otherwise before it has expired.
                Again::Revoked(refusal) => return Err(refusal),
                Again::Expired => {
                    self.cache.remove(&digest);
                    return Err(TokenError::Expired);
                }
                Again::OtherKeys => self.cache.remove(&digest),
            }
        }
        let checked = match jwt::check(keys, token, now) {
            Ok(checked) => checked,
            Err(error) => {
                self.want_keys(error, keys, token, now);
                return Err(error);
            }
        };
        let claims = Rc::new(checked.claims);
        let refusal = revocations.refusal(&claims);
        let entry = CachedToken {
            claims: Rc::clone(&claims),
            key: checked.key,
            keys_generation: keys.generation(),
            // No generation is 0, so that one that is revoked is looked up on each hit.
            revocations_generation: if refusal.is_some() { 0 } else { revocations.generation() },
        };
        self.cache.insert(digest, entry);
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.counts.passed += 1;
        Ok(claims)
    }

    /// Remembers at most so many tokens from now on.
    pub fn resize(&mut self, entries_max: usize) {
        self.cache.resize(entries_max);
    }

    /// How many tokens are remembered.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How checks came out so far.
    pub fn counts(&self) -> CheckCounts {
        self.counts
    }

    /// The issuer whose keys a refused token asked for and did not find, to be told to the control thread; at most once a
    /// second for each issuer.
    pub fn take_wanted(&mut self) -> Option<Arc<str>> {
        self.wanted.take()
    }

    fn want_keys(&mut self, error: TokenError, keys: &KeySet, token: &[u8], now: Duration) {
        if !matches!(error, TokenError::Invalid(Flaw::UnknownKey) | TokenError::KeysAway) || self.wanted.is_some() {
            return;
        }
        let Some(issuer) = jwt::issuer_to_ask(keys, token) else { return };
        match self.asked.iter_mut().find(|(name, _)| *name == issuer.name) {
            // A date that was set back says nothing of how long that is ago.
            Some((_, at)) if now >= *at && now.saturating_sub(*at) < QUIET => return,
            Some((_, at)) => *at = now,
            None => {
                // Issuers come and go with reloads.
                self.asked.retain(|(name, _)| keys.issuer(name).is_some());
                self.asked.push((Arc::clone(&issuer.name), now));
            }
        }
        self.wanted = Some(Arc::clone(&issuer.name));
    }
}

enum Again {
    Good,
    Expired,
    Revoked(TokenError),
    /// Its key is gone, or the rules for it have changed.
    OtherKeys,
}

/// What may have changed since the token passed.
fn look_again(entry: &mut CachedToken, keys: &KeySet, revocations: &Revocations, now: Duration) -> Again {
    if entry.keys_generation != keys.generation() {
        if !keys.has(entry.key) {
            return Again::OtherKeys;
        }
        entry.keys_generation = keys.generation();
    }
    if jwt::has_expired(&entry.claims, keys.leeway, now) {
        return Again::Expired;
    }
    if entry.revocations_generation != revocations.generation() {
        if let Some(refusal) = revocations.refusal(&entry.claims) {
            return Again::Revoked(refusal);
        }
        entry.revocations_generation = revocations.generation();
    }
    Again::Good
}
