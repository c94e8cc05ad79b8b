//! Tickets, by which a client takes its session up again: the session itself, sealed by keys that all shards have, so that
//! none has to ask another and no handshake takes a lock.
//!
//! A ticket has the name of its key, a salt, and the session, sealed by a key of its own that is derived from the two. So
//! no key ever seals two things, however many tickets there are.

use std::{fmt, time::Duration};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::server::ProducesTickets;

/// How long a key seals tickets. A ticket opens for as long again.
pub const TICKET_KEY_TIME: Duration = Duration::from_hours(6);

const NAME_BYTES: usize = 16;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// The keys of tickets. Immutable; all shards share them.
pub(super) struct Tickets {
    current: Key,
    /// It sealed before the current one.
    last: Key,
    /// It will seal after the current one: a shard that is told of a change later than another opens what that one seals.
    next: Key,
}

#[derive(Clone)]
struct Key {
    name: [u8; NAME_BYTES],
    secret: hmac::Key,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    /// Keys by chance.
    pub(super) fn new() -> Result<Self, Unspecified> {
        Ok(Self { current: Key::new()?, last: Key::new()?, next: Key::new()? })
    }

    /// The same, one step on.
    pub(super) fn changed(&self) -> Result<Self, Unspecified> {
        Ok(Self { current: self.next.clone(), last: self.current.clone(), next: Key::new()? })
    }
}

impl Key {
    fn new() -> Result<Self, Unspecified> {
        let random = SystemRandom::new();
        let mut name = [0; NAME_BYTES];
        random.fill(&mut name)?;
        Ok(Self { name, secret: hmac::Key::generate(hmac::HMAC_SHA256, &random)? })
    }

    /// What seals the one ticket with this salt.
    fn of_ticket(&self, salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
        let derived = hmac::sign(&self.secret, salt);
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, derived.as_ref())?))
    }
}

/// The only one of its key.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(TICKET_KEY_TIME.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        let Key { name, .. } = &self.current;
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).ok()?;
        let mut sealed = session.to_vec();
        let key = self.current.of_ticket(&salt).ok()?;
        key.seal_in_place_append_tag(nonce(), Aad::from(name), &mut sealed).ok()?;
        Some([&name[..], &salt, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (salt, sealed) = rest.split_first_chunk::<SALT_BYTES>()?;
        if sealed.len() < TAG_BYTES {
            return None;
        }
        // Names are no secret.
        let key = [&self.current, &self.last, &self.next].into_iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let session = key.of_ticket(salt).ok()?.open_in_place(nonce(), Aad::from(name), &mut sealed).ok()?;
        Some(session.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_while_its_key_is_known() {
        let first = Tickets::new().expect("chance");
        let ticket = first.encrypt(b"a session").expect("sealed");
        let opens = |tickets: &Tickets| tickets.decrypt(&ticket).is_some_and(|session| session == b"a session");
        assert!(opens(&first));
        let second = first.changed().expect("chance");
        assert!(opens(&second), "the key before");
        // A shard that was not told yet opens what one seals that was.
        let ahead = second.encrypt(b"ahead").expect("sealed");
        assert_eq!(first.decrypt(&ahead).as_deref(), Some(&b"ahead"[..]));
        assert!(!opens(&second.changed().expect("chance")), "a key that is gone");
        assert!(!opens(&Tickets::new().expect("chance")), "keys of somebody else");
    }

    #[test]
    fn what_is_no_ticket_of_ours_does_not_open() {
        let tickets = Tickets::new().expect("chance");
        let ticket = tickets.encrypt(b"a session").expect("sealed");
        assert_ne!(ticket, tickets.encrypt(b"a session").expect("sealed"), "no two are alike");
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None);
        }
        for place in 0..ticket.len() {
            let mut wrong = ticket.clone();
            wrong[place] ^= 1;
            assert_eq!(tickets.decrypt(&wrong), None, "{place}");
        }
    }
}
