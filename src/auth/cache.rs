//! Tokens that passed, remembered: bounded, and with SIEVE's choice of what to forget. What a hit is worth is for `check`.
//!
//! Only tokens that passed enter, so a flood of garbage evicts nothing. SIEVE, because a token that is never seen again
//! (a script that logs in for each request) goes before those that are used, which a plain queue or an LRU list would
//! evict first; and because a hit sets one flag and moves nothing.

use super::Claims;
use super::keys::Fingerprint;
use crate::shard::slab::{NONE, Slab};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

/// A token's SHA-256: two tokens with the same one are not known to exist, so a hit is this very token. Tokens themselves
/// are not kept.
pub(super) type Digest = [u8; 32];

/// One per shard.
#[derive(Debug)]
pub(super) struct Cache {
    entries_max: usize,
    indices: HashMap<Digest, u32, BuildHasherDefault<Prefix>>,
    tokens: Slab<Option<Token>>,
    /// The youngest; from there `older` leads to the oldest.
    youngest: u32,
    oldest: u32,
    /// The next to be looked at when room is needed; it goes from old to young and round.
    hand: u32,
}

#[derive(Debug)]
struct Token {
    entry: CachedToken,
    digest: Digest,
    is_used: bool,
    younger: u32,
    older: u32,
}

/// What is remembered of a token.
#[derive(Debug)]
pub(super) struct CachedToken {
    pub(super) claims: Rc<Claims>,
    /// The key that it passed with.
    pub(super) key: Fingerprint,
    /// The key set and the revocations that it was last compared with.
    pub(super) keys_generation: Fingerprint,
    pub(super) revocations_generation: u64,
}

/// A digest is as good a hash as any.
#[derive(Debug, Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(prefix) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*prefix);
        }
    }

    fn write_usize(&mut self, _: usize) {
        // The length, which is always the same.
    }
}

impl Cache {
    pub(super) fn new(entries_max: usize) -> Self {
        let (indices, tokens) = (HashMap::default(), Slab::new());
        Self { entries_max: bounded(entries_max), indices, tokens, youngest: NONE, oldest: NONE, hand: NONE }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Holds at most so many from now on.
    pub(super) fn resize(&mut self, entries_max: usize) {
        self.entries_max = bounded(entries_max);
        while self.len() > self.entries_max {
            self.evict();
        }
    }

    /// Finds what is remembered of a token, and marks it as used.
    pub(super) fn find(&mut self, digest: &Digest) -> Option<&mut CachedToken> {
        let index = *self.indices.get(digest)?;
        let token = self.at(index)?;
        token.is_used = true;
        Some(&mut token.entry)
    }

    pub(super) fn insert(&mut self, digest: Digest, entry: CachedToken) {
        self.remove(&digest);
        if self.entries_max == 0 {
            return;
        }
        if self.len() >= self.entries_max {
            self.evict();
        }
        let token = Token { entry, digest, is_used: false, younger: NONE, older: self.youngest };
        let index = self.tokens.insert(Some(token));
        match self.at(self.youngest) {
            Some(youngest) => youngest.younger = index,
            None => self.oldest = index,
        }
        self.youngest = index;
        self.indices.insert(digest, index);
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        let Some(index) = self.indices.remove(digest) else { return };
        let Some(Token { younger, older, .. }) = self.tokens.remove(index).flatten() else { return };
        match self.at(younger) {
            Some(token) => token.older = older,
            None => self.youngest = older,
        }
        match self.at(older) {
            Some(token) => token.younger = younger,
            None => self.oldest = younger,
        }
        if self.hand == index {
            self.hand = younger;
        }
    }

    /// Forgets the first one from the hand on that was not used since the hand came by.
    fn evict(&mut self) {
        // Once round clears every mark, so the second time finds one at the latest.
        for _ in 0..=2 * self.len() {
            if self.hand == NONE {
                self.hand = self.oldest;
            }
            let Some(token) = self.at(self.hand) else { return };
            if !token.is_used {
                let digest = token.digest;
                self.remove(&digest);
                return;
            }
            token.is_used = false;
            self.hand = token.younger;
        }
    }

    /// `None` where the list ends.
    #[inline]
    fn at(&mut self, index: u32) -> Option<&mut Token> {
        self.tokens.get_mut(index)?.as_mut()
    }
}

fn bounded(entries_max: usize) -> usize {
    entries_max.min(NONE as usize - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        [n; 32]
    }

    fn entry(n: u8) -> CachedToken {
        let claims = Claims::plain(&n.to_string());
        CachedToken { claims: Rc::new(claims), key: [0; 16], keys_generation: [0; 16], revocations_generation: 0 }
    }

    fn has(cache: &mut Cache, n: u8) -> bool {
        cache.indices.contains_key(&digest(n))
    }

    #[test]
    fn what_is_used_stays_and_what_passes_through_goes() {
        let mut cache = Cache::new(3);
        for n in 0..3 {
            cache.insert(digest(n), entry(n));
        }
        assert!(cache.find(&digest(0)).is_some());
        for n in 10..100 {
            cache.insert(digest(n), entry(n));
            assert!(cache.find(&digest(0)).is_some(), "{n}");
            assert_eq!(cache.len(), 3);
        }
        assert!(!has(&mut cache, 1) && !has(&mut cache, 2) && has(&mut cache, 99));
    }

    #[test]
    fn a_cache_of_none_remembers_nothing() {
        let mut cache = Cache::new(0);
        cache.insert(digest(1), entry(1));
        assert_eq!(cache.len(), 0);
        cache.resize(2);
        for n in 0..5 {
            cache.insert(digest(n), entry(n));
        }
        assert_eq!(cache.len(), 2);
        cache.resize(1);
        assert_eq!(cache.len(), 1);
    }

    proptest! {
        /// Whatever happens in whatever order: the bound holds, what is found is what was put in, and the list is whole.
        #[test]
        fn it_keeps_its_promises(entries_max in 0_usize..6, steps in prop::collection::vec((0_u8..4, 0_u8..12), 0..200)) {
            let mut cache = Cache::new(entries_max);
            for (action, n) in steps {
                match action {
                    0 | 1 => cache.insert(digest(n), entry(n)),
                    2 => cache.remove(&digest(n)),
                    _ => {
                        if let Some(found) = cache.find(&digest(n)) {
                            prop_assert_eq!(found.claims.sub.to_string(), n.to_string());
                        }
                    }
                }
                prop_assert!(cache.len() <= entries_max);
                prop_assert!(cache.tokens.indices().len() <= entries_max.max(1));
                let (mut index, mut before, mut count) = (cache.youngest, NONE, 0);
                while let Some(&mut Token { younger, digest, older, .. }) = cache.at(index) {
                    prop_assert_eq!(younger, before);
                    prop_assert_eq!(cache.indices.get(&digest), Some(&index));
                    (before, index, count) = (index, older, count + 1);
                }
                prop_assert_eq!((count, before), (cache.len(), cache.oldest));
                let hand = cache.hand;
                prop_assert!(hand == NONE || cache.at(hand).is_some());
            }
        }
    }
}
