//! Tickets, by which a client takes its session up again: the session itself, sealed by keys that all shards have, so that
//! none has to ask another and no handshake takes a lock.
//!
//! The keys are made by chance, and then are this process's alone; or they are derived from a secret and the period of time
//! (RFC 5869), and then all processes have the same that have the secret, without asking each other.
//!
//! A ticket has the name of its key, a salt, and the session, sealed by a key of its own that is derived from the two. So
//! no key ever seals two things, however many tickets there are.

use std::{fmt, time::Duration};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf, hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// How long a key seals tickets. A ticket opens for as long again.
pub const TICKET_KEY_TIME: Duration = Duration::from_hours(6);

/// A shorter secret can be guessed, and whoever has it can open what was said in sessions that have begun under it.
pub const TICKET_SECRET_BYTES_MIN: usize = 32;

/// Secrets of other uses, or of another form of tickets, give other keys.
const PURPOSE: &[u8] = b"shardgate TLS tickets 1";

const NAME_BYTES: usize = 16;
const SALT_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// The keys of tickets. Immutable; all shards share them.
pub(super) struct Tickets {
    current: Key,
    /// It sealed before the current one.
    last: Key,
    /// It will seal after the current one: a shard that is told of a change later than another, and a process whose clock is
    /// behind, open what those seal that are ahead.
    next: Key,
    /// What they are derived from; nothing where they were made by chance.
    origin: Option<Origin>,
}

/// What keys are derived from.
#[derive(Clone)]
struct Origin {
    secret: hkdf::Prk,
    /// How many times [`TICKET_KEY_TIME`] had gone by since 1970 when the current key began.
    period: u64,
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
        Ok(Self { current: Key::new()?, last: Key::new()?, next: Key::new()?, origin: None })
    }

    /// Keys of this secret at this time, in seconds since 1970.
    pub(super) fn derived(secret: &[u8], now: u64) -> Result<Self, Unspecified> {
        Self::of_period(&hkdf::Salt::new(hkdf::HKDF_SHA256, PURPOSE).extract(secret), period_at(now))
    }

    fn of_period(secret: &hkdf::Prk, period: u64) -> Result<Self, Unspecified> {
        let key = |period| Key::derived(secret, period);
        let origin = Some(Origin { secret: secret.clone(), period });
        let (last, next) = (key(period.wrapping_sub(1))?, key(period.wrapping_add(1))?);
        Ok(Self { current: key(period)?, last, next, origin })
    }

    /// Whether these are this process's alone.
    pub(super) fn are_by_chance(&self) -> bool {
        self.origin.is_none()
    }

    /// The keys from now on, if they are others: those by chance go one step on when that is due, the others go by the clock.
    pub(super) fn changed(&self, now: u64, is_due: bool) -> Result<Option<Self>, Unspecified> {
        match &self.origin {
            Some(Origin { secret, period }) if *period != period_at(now) => {
                Self::of_period(secret, period_at(now)).map(Some)
            }
            None if is_due => {
                let (current, last) = (self.next.clone(), self.current.clone());
                Ok(Some(Self { current, last, next: Key::new()?, origin: None }))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// Which period of keys this time is in.
const fn period_at(now: u64) -> u64 {
    now / TICKET_KEY_TIME.as_secs()
}

/// So many bytes of a derived key.
struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl Key {
    fn new() -> Result<Self, Unspecified> {
        let random = SystemRandom::new();
        let mut name = [0; NAME_BYTES];
        random.fill(&mut name)?;
        Ok(Self { name, secret: hmac::Key::generate(hmac::HMAC_SHA256, &random)? })
    }

    /// That of a period.
    fn derived(secret: &hkdf::Prk, period: u64) -> Result<Self, Unspecified> {
        let period = period.to_be_bytes();
        let (mut name, mut bytes) = ([0; NAME_BYTES], Zeroizing::new([0; 32]));
        secret.expand(&[b"name", &period], Bytes(name.len()))?.fill(&mut name)?;
        secret.expand(&[b"key", &period], Bytes(bytes.len()))?.fill(&mut *bytes)?;
        Ok(Self { name, secret: hmac::Key::new(hmac::HMAC_SHA256, &*bytes) })
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
        let changed = |tickets: &Tickets| tickets.changed(0, true).expect("chance").expect("it is due");
        assert!(first.changed(u64::MAX, false).expect("chance").is_none(), "these do not go by the clock");
        let second = changed(&first);
        assert!(opens(&second), "the key before");
        // A shard that was not told yet opens what one seals that was.
        let ahead = second.encrypt(b"ahead").expect("sealed");
        assert_eq!(first.decrypt(&ahead).as_deref(), Some(&b"ahead"[..]));
        assert!(!opens(&changed(&second)), "a key that is gone");
        assert!(!opens(&Tickets::new().expect("chance")), "keys of somebody else");
    }

    const HOUR: u64 = 60 * 60;
    /// When a period begins.
    const BEGIN: u64 = 80_000 * 6 * HOUR;

    fn derived(now: u64) -> Tickets {
        Tickets::derived(b"a secret of 32 bytes, known here", now).expect("derived")
    }

    #[test]
    fn who_has_the_secret_opens_what_others_seal_also_if_clocks_differ() {
        // Every ticket opens for six hours at least, less what the clock of whoever sealed it is behind.
        for sealed_at in [BEGIN, BEGIN + 3 * HOUR, BEGIN + 6 * HOUR - 1] {
            let ticket = derived(sealed_at).encrypt(b"a session").expect("sealed");
            for later in [0, HOUR, 3 * HOUR, 6 * HOUR - 300, 6 * HOUR] {
                for skew in [-300, -60, 0, 60, 300_i64] {
                    let now = sealed_at.saturating_add(later).saturating_add_signed(skew);
                    let is_late = now / (6 * HOUR) > sealed_at / (6 * HOUR) + 1;
                    let opened = derived(now).decrypt(&ticket);
                    assert_eq!(opened.is_some(), !is_late, "{sealed_at} {later} {skew}");
                    assert!(!is_late || later == 6 * HOUR && skew > 0, "{sealed_at} {later} {skew}");
                }
            }
            assert_eq!(derived(sealed_at + 12 * HOUR).decrypt(&ticket), None, "a key that is gone");
        }
        let ticket = derived(BEGIN).encrypt(b"a session").expect("sealed");
        let other = Tickets::derived(b"another secret of 32 bytes or so", BEGIN).expect("derived");
        assert_eq!(other.decrypt(&ticket), None);
    }

    #[test]
    fn derived_keys_go_by_the_clock_wherever_it_goes() {
        let tickets = derived(BEGIN);
        for is_due in [false, true] {
            assert!(tickets.changed(BEGIN + 6 * HOUR - 1, is_due).expect("derived").is_none());
            for now in [BEGIN + 6 * HOUR, BEGIN - 1, BEGIN + 600 * HOUR, 0, u64::MAX] {
                let changed = tickets.changed(now, is_due).expect("derived").expect("another period");
                let ticket = changed.encrypt(b"a session").expect("sealed");
                assert_eq!(derived(now).decrypt(&ticket).as_deref(), Some(&b"a session"[..]), "{now}");
            }
        }
    }

    /// Another form of tickets would have instances of two versions refuse each other's.
    #[test]
    fn the_keys_of_a_secret_stay_what_they_are() {
        let Key { name, secret } = derived(BEGIN).current;
        let of_key = hmac::sign(&secret, b"");
        let shown = format!("{name:02x?} {:02x?}", &of_key.as_ref()[..8]);
        expect_test::expect![
            "[d9, 2e, 86, e8, f6, 0b, 2f, 13, e5, 8a, 74, 40, aa, a9, 02, 26] [43, 19, ff, 1f, fa, e0, 7e, 51]"
        ]
        .assert_eq(&shown);
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
