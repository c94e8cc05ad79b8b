//! What ends with a session: the exchanges that are under way for it.
//!
//! A token is checked when its request begins. From then on the exchange is tied to the token's session: when that ends, an
//! answer that is on its way ends too, and as long as none is, the request is refused instead.

use std::rc::Rc;

use crate::{
    auth::{Claims, Revocation, revocation::Kind},
    net::{End, Ender},
    shard::{
        Local,
        slab::{NONE, Slab},
    },
};

/// The exchanges under way that have a caller. One per shard.
///
/// Tying is on every such request's path, so an entry is a slot and a link in two chains, of those whose sessions and
/// of those whose users share a bucket; nothing is allocated for it. A revocation looks through one chain, however many
/// exchanges there are (`benches/ends.rs`).
#[derive(Debug, Default)]
pub struct Tethers {
    entries: Slab<Option<TiedExchange>>,
    by_session: Chains,
    by_user: Chains,
}

#[derive(Debug)]
struct TiedExchange {
    claims: Rc<Claims>,
    ender: Ender,
    in_session: ChainLink,
    of_user: ChainLink,
    /// The answer's head may be on its way, so that no other answer can take its place.
    is_answering: bool,
    has_ended: bool,
}

/// An entry's neighbours in a chain.
#[derive(Clone, Copy, Debug)]
struct ChainLink {
    hash: u32,
    before: u32,
    after: u32,
}

/// The first entries of chains by the hashes of their ids; as many as is a power of two.
///
/// Ids that were made to share a chain make a revocation slower, never a request.
#[derive(Debug, Default)]
struct Chains(Vec<u32>);

/// Ties an exchange to its session, until it is dropped.
#[derive(Debug)]
pub struct Tether {
    tethers: Rc<Local<Tethers>>,
    index: u32,
}

impl Tethers {
    /// Ties what is under way on this connection to the session of these claims.
    pub fn tie(tethers: &Rc<Local<Self>>, claims: &Rc<Claims>, ender: Ender) -> Tether {
        let index = tethers.with(|tethers| tethers.enter(Rc::clone(claims), ender));
        Tether { tethers: Rc::clone(tethers), index }
    }

    fn enter(&mut self, claims: Rc<Claims>, ender: Ender) -> u32 {
        let index = self.entries.insert(None);
        if self.entries.indices().len() > self.by_user.0.len() {
            self.grow();
        }
        // Tokens of other issuers may have no session: they share a chain that nobody looks through.
        let session = claims.sid.as_deref().map_or(0, hash);
        let user = hash(&claims.sub);
        let in_session = self.chain_up(Which::Session, session, index);
        let of_user = self.chain_up(Which::User, user, index);
        self.entries[index] =
            Some(TiedExchange { claims, ender, in_session, of_user, is_answering: false, has_ended: false });
        index
    }

    fn leave(&mut self, index: u32) -> Option<TiedExchange> {
        let entry = self.entries.remove(index)??;
        self.unchain(Which::Session, entry.in_session);
        self.unchain(Which::User, entry.of_user);
        Some(entry)
    }

    /// Puts an entry in front of its chain.
    fn chain_up(&mut self, which: Which, hash: u32, index: u32) -> ChainLink {
        let first = which.chains(self).first(hash);
        let after = std::mem::replace(first, index);
        if let Some(next) = self.link(which, after) {
            next.before = index;
        }
        ChainLink { hash, before: NONE, after }
    }

    fn unchain(&mut self, which: Which, link: ChainLink) {
        match self.link(which, link.before) {
            Some(before) => before.after = link.after,
            None => *which.chains(self).first(link.hash) = link.after,
        }
        if let Some(after) = self.link(which, link.after) {
            after.before = link.before;
        }
    }

    fn link(&mut self, which: Which, index: u32) -> Option<&mut ChainLink> {
        let entry = self.entries.get_mut(index)?.as_mut()?;
        Some(match which {
            Which::Session => &mut entry.in_session,
            Which::User => &mut entry.of_user,
        })
    }

    /// Twice as many chains, each entry in its new one.
    #[cold]
    fn grow(&mut self) {
        let chains = self.entries.indices().len().next_power_of_two().max(64);
        for which in [Which::Session, Which::User] {
            *which.chains(self) = Chains(vec![NONE; chains]);
            for index in self.entries.indices() {
                let Some(ChainLink { hash, .. }) = self.link(which, index).copied() else { continue };
                let link = self.chain_up(which, hash, index);
                if let Some(old) = self.link(which, index) {
                    *old = link;
                }
            }
        }
    }

    /// Ends what these revocations end, and says how many exchanges that were. Those that wait are woken, and see it.
    pub fn end(tethers: &Local<Self>, revocations: &[Revocation]) -> usize {
        let mut ended = Vec::new();
        tethers.with(|tethers| {
            for revocation in revocations {
                tethers.end_by(revocation, &mut ended);
            }
        });
        // Outside the closure: this wakes tasks.
        for (ender, end) in &ended {
            match end {
                Some(end) => ender.end(*end),
                None => ender.wake(),
            }
        }
        ended.len()
    }

    fn end_by(&mut self, revocation: &Revocation, ended: &mut Vec<(Ender, Option<End>)>) {
        let (which, end) = match revocation.kind {
            Kind::Session => (Which::Session, End::Revoked),
            Kind::User => (Which::User, End::Revoked),
            Kind::Kick => (Which::User, End::Kicked),
        };
        if self.entries.is_empty() {
            return;
        }
        let mut next = *which.chains(self).first(hash(&revocation.id));
        while let Some(entry) = self.entries.get_mut(next).and_then(Option::as_mut) {
            next = if which == Which::Session { entry.in_session.after } else { entry.of_user.after };
            // A kick ends what lasts; the token stays good, so there is nothing to tell whoever waits for an answer.
            let concerns = entry.is_answering || revocation.kind != Kind::Kick;
            if concerns && !entry.has_ended && revocation.ends(&entry.claims) {
                entry.has_ended = true;
                ended.push((entry.ender.clone(), entry.is_answering.then_some(end)));
            }
        }
    }

    /// How many exchanges are tied.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which of an entry's two chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Session,
    User,
}

impl Which {
    fn chains(self, tethers: &mut Tethers) -> &mut Chains {
        match self {
            Self::Session => &mut tethers.by_session,
            Self::User => &mut tethers.by_user,
        }
    }
}

impl Chains {
    /// The index of the first entry of a hash's chain. There are chains before there are entries.
    fn first(&mut self, hash: u32) -> &mut u32 {
        let chain = hash as usize & (self.0.len() - 1);
        &mut self.0[chain]
    }
}

/// Spreads ids, eight bytes a step. Not against malice: see [`Chains`].
fn hash(id: &str) -> u32 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(SPREAD);
    let (words, rest) = id.as_bytes().as_chunks::<8>();
    let hash = words.iter().fold(id.len() as u64, |hash, word| step(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, byte| step(hash, u64::from(*byte)));
    // What the last letters of an id say has gone to the upper half alone.
    u32::try_from((hash ^ (hash >> 32)).wrapping_mul(SPREAD) >> 32).unwrap_or_default()
}

impl Tether {
    /// Whether its session has ended.
    pub fn has_ended(&self) -> bool {
        self.with(|entry| entry.has_ended)
    }

    /// The answer begins: from now on it ends when the session does.
    pub fn answer(&self) {
        self.with(|entry| entry.is_answering = true);
    }

    fn with<T>(&self, look: impl FnOnce(&mut TiedExchange) -> T) -> T {
        self.tethers.with(|tethers| look(tethers.entries[self.index].as_mut().expect("a tether holds its entry")))
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        let entry = self.tethers.with(|tethers| tethers.leave(self.index));
        // Outside the closure: the last ender of a connection may drop more than itself.
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::net::{Connections, Slot};

    fn claims(sub: &str, sid: Option<&str>, began_ms: u64) -> Rc<Claims> {
        Rc::new(Claims { sid: sid.map(Into::into), session_began_ms: Some(began_ms), ..Claims::plain(sub) })
    }

    fn revocation(kind: Kind, id: &str) -> Revocation {
        Revocation { kind, id: id.into(), at_ms: 1_000, by: "test".into() }
    }

    fn end(slot: &Slot) -> Option<End> {
        match slot.poll_end(&Context::from_waker(Waker::noop())) {
            Poll::Ready(end) => Some(end),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_revocation_ends_what_is_its_and_nothing_else() {
        let connections = Connections::new();
        let tethers = Rc::new(Local::new(Tethers::default()));
        let claims = [
            claims("ann", Some("s_1"), 500),
            claims("ann", Some("s_2"), 2_000),
            claims("ann", None, 500),
            claims("bob", Some("s_3"), 500),
        ];
        let tie = |claims: &Rc<Claims>| {
            let slot = connections.enter();
            let tether = Tethers::tie(&tethers, claims, slot.ender());
            tether.answer();
            (tether, slot)
        };
        for (kind, id, expected) in [
            (Kind::Session, "s_1", [true, false, false, false]),
            (Kind::Session, "ann", [false; 4]),
            (Kind::Session, "", [false; 4]),
            // Those that began later stay.
            (Kind::User, "ann", [true, false, true, false]),
            (Kind::Kick, "ann", [true, true, true, false]),
            (Kind::User, "nobody", [false; 4]),
        ] {
            let tied: Vec<_> = claims.iter().map(tie).collect();
            let count = Tethers::end(&tethers, &[revocation(kind, id)]);
            let reason = if kind == Kind::Kick { End::Kicked } else { End::Revoked };
            let ended: Vec<_> = tied.iter().map(|(_, slot)| end(slot)).collect();
            assert_eq!(ended, expected.map(|ends| ends.then_some(reason)), "{kind:?} {id}");
            assert_eq!(tied.iter().map(|(tether, _)| tether.has_ended()).collect::<Vec<_>>(), expected);
            assert_eq!(count, expected.iter().filter(|ended| **ended).count());
            assert_eq!(Tethers::end(&tethers, &[revocation(kind, id)]), 0, "once");
        }
    }

    #[test]
    fn what_is_over_leaves_nothing_behind() {
        let connections = Connections::new();
        let tethers = Rc::new(Local::new(Tethers::default()));
        let claims = claims("ann", Some("s_1"), 500);
        let slot = connections.enter();
        for _ in 0..3 {
            let [one, two] = [(); 2].map(|()| Tethers::tie(&tethers, &claims, slot.ender()));
            assert_eq!(tethers.with(|tethers| tethers.len()), 2);
            drop(one);
            assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Session, "s_1")]), 1);
            drop(two);
        }
        tethers.with(|tethers| {
            assert!(tethers.is_empty());
            assert_eq!(tethers.entries.indices().len(), 2, "slots are used again");
        });
    }

    #[test]
    fn what_waits_for_its_answer_is_told_and_what_is_answered_ends() {
        let connections = Connections::new();
        let tethers = Rc::new(Local::new(Tethers::default()));
        let slots = [(); 2].map(|()| connections.enter());
        let claims = claims("ann", Some("s_1"), 500);
        let [waiting, answered] = [0, 1].map(|n: usize| Tethers::tie(&tethers, &claims, slots[n].ender()));
        assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Kick, "ann")]), 0, "a kick ends what lasts");
        answered.answer();
        assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Session, "s_1")]), 2);
        assert!(waiting.has_ended() && answered.has_ended());
        assert_eq!(slots.each_ref().map(end), [None, Some(End::Revoked)]);
    }

    /// Whatever comes and goes, a revocation finds what comparing each with each would find.
    #[test]
    fn chains_hold_whoever_is_tied_while_they_come_and_go() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let connections = Connections::new();
            let tethers = Rc::new(Local::new(Tethers::default()));
            let mut tied: Vec<(Tether, Rc<Claims>, bool)> = Vec::new();
            for _ in 0..600 {
                match rng.u8(..8) {
                    0..4 => {
                        let (user, session) = (format!("u{}", rng.u8(..20)), format!("s_{}", rng.u8(..60)));
                        let sid = rng.bool().then_some(session.as_str());
                        let claims = claims(&user, sid, rng.u64(..2_000));
                        let slot = connections.enter();
                        tied.push((Tethers::tie(&tethers, &claims, slot.ender()), claims, false));
                    }
                    4..7 if !tied.is_empty() => drop(tied.swap_remove(rng.usize(..tied.len()))),
                    _ => {
                        let revocation = match rng.u8(..2) {
                            0 => revocation(Kind::Session, &format!("s_{}", rng.u8(..60))),
                            _ => revocation(Kind::User, &format!("u{}", rng.u8(..20))),
                        };
                        let mut expected = 0;
                        for (_, claims, has_ended) in &mut tied {
                            if revocation.ends(claims) && !std::mem::replace(has_ended, true) {
                                expected += 1;
                            }
                        }
                        assert_eq!(Tethers::end(&tethers, &[revocation]), expected, "seed {seed}");
                    }
                }
                assert_eq!(tethers.with(|tethers| tethers.len()), tied.len());
            }
            for (tether, _, has_ended) in &tied {
                assert_eq!(tether.has_ended(), *has_ended, "seed {seed}");
            }
        }
    }

    #[test]
    fn ids_that_differ_little_share_few_chains() {
        let connections = Connections::new();
        let tethers = Rc::new(Local::new(Tethers::default()));
        let slot = connections.enter();
        let tie = |n: usize| {
            let claims = claims(&format!("user-{n}"), Some(&format!("s_{n:020}")), 500);
            Tethers::tie(&tethers, &claims, slot.ender())
        };
        let _tied: Vec<_> = (0..4096).map(tie).collect();
        tethers.with(|tethers| {
            for chains in [&tethers.by_session, &tethers.by_user] {
                // As many as there are chains: by chance alone, a share of 1 - 1/e of them is in use.
                let used = chains.0.iter().filter(|first| **first != NONE).count();
                assert!(used > 4096 / 2, "{used} of {}", chains.0.len());
            }
        });
    }
}
