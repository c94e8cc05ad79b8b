//! What ends with a session: the exchanges that are under way for it.
//!
//! A token is checked when its request begins. From then on the exchange is tied to the token's session: when that ends, an
//! answer that is on its way is cut off, and as long as none is, the request is refused instead.

use std::rc::Rc;

use crate::{
    auth::{Claims, Revocation, revocation::Kind},
    net::Cutter,
    shard::Local,
};

/// The exchanges under way that have a caller. One per shard.
///
/// Tying is on every such request's path, so it is a slot in a list and nothing more; a revocation, which is rare, looks
/// through all of them.
#[derive(Debug, Default)]
pub struct Tethers {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    claims: Rc<Claims>,
    cutter: Cutter,
    /// The answer's head may be on its way, so that no other answer can take its place.
    is_answering: bool,
    has_ended: bool,
}

/// Ties an exchange to its session, until it is dropped.
#[derive(Debug)]
pub struct Tether {
    tethers: Rc<Local<Tethers>>,
    place: usize,
}

impl Tethers {
    /// Ties what is under way on this connection to the session of these claims.
    pub fn tie(tethers: &Rc<Local<Self>>, claims: &Rc<Claims>, cutter: Cutter) -> Tether {
        let place = tethers.with(|tethers| {
            let entry = Some(Entry { claims: Rc::clone(claims), cutter, is_answering: false, has_ended: false });
            let place = tethers.free.pop().unwrap_or_else(|| {
                tethers.entries.push(None);
                tethers.entries.len() - 1
            });
            tethers.entries[place] = entry;
            place
        });
        Tether { tethers: Rc::clone(tethers), place }
    }

    /// Ends what these revocations end, and says how many exchanges that were. Those that wait are woken, and see it.
    pub fn end(tethers: &Local<Self>, revocations: &[Revocation]) -> usize {
        let ended = tethers.with(|tethers| {
            let mut ended = Vec::new();
            for entry in tethers.entries.iter_mut().flatten().filter(|entry| !entry.has_ended) {
                // A kick ends what lasts; the token stays good, so there is nothing to tell whoever waits for an answer.
                let concerns = |revocation: &&Revocation| entry.is_answering || revocation.kind != Kind::Kick;
                if revocations.iter().filter(concerns).any(|revocation| revocation.ends(&entry.claims)) {
                    entry.has_ended = true;
                    ended.push((entry.cutter.clone(), entry.is_answering));
                }
            }
            ended
        });
        // Outside the closure: this wakes tasks.
        for (cutter, is_answering) in &ended {
            if *is_answering { cutter.cut() } else { cutter.wake() }
        }
        ended.len()
    }

    /// How many exchanges are tied.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tether {
    /// Whether its session has ended.
    pub fn has_ended(&self) -> bool {
        self.with(|entry| entry.has_ended)
    }

    /// The answer begins: from now on it is cut off when the session ends.
    pub fn answer(&self) {
        self.with(|entry| entry.is_answering = true);
    }

    fn with<T>(&self, look: impl FnOnce(&mut Entry) -> T) -> T {
        self.tethers.with(|tethers| look(tethers.entries[self.place].as_mut().expect("a tether holds its place")))
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        let entry = self.tethers.with(|tethers| {
            tethers.free.push(self.place);
            tethers.entries[self.place].take()
        });
        // Outside the closure: the last cutter of a connection may drop more than itself.
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::net::{Connections, Slot};

    fn claims(sub: &str, sid: Option<&str>, began_ms: u64) -> Rc<Claims> {
        Rc::new(Claims { sid: sid.map(Into::into), session_began_ms: Some(began_ms), ..Claims::plain(sub) })
    }

    fn revocation(kind: Kind, id: &str) -> Revocation {
        Revocation { kind, id: id.into(), at_ms: 1_000, by: "test".into() }
    }

    fn is_cut(slot: &Slot) -> bool {
        slot.is_cut(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_revocation_cuts_what_it_ends_and_nothing_else() {
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
            let tether = Tethers::tie(&tethers, claims, slot.cutter());
            tether.answer();
            (tether, slot)
        };
        for (kind, id, expected) in [
            (Kind::Session, "s_1", [true, false, false, false]),
            (Kind::Session, "ann", [false; 4]),
            // Those that began later stay.
            (Kind::User, "ann", [true, false, true, false]),
            (Kind::Kick, "ann", [true, true, true, false]),
            (Kind::User, "nobody", [false; 4]),
        ] {
            let tied: Vec<_> = claims.iter().map(tie).collect();
            let count = Tethers::end(&tethers, &[revocation(kind, id)]);
            let cut: Vec<bool> = tied.iter().map(|(_, slot)| is_cut(slot)).collect();
            assert_eq!(cut, expected, "{kind:?} {id}");
            assert_eq!(tied.iter().map(|(tether, _)| tether.has_ended()).collect::<Vec<_>>(), expected);
            assert_eq!(count, expected.iter().filter(|cut| **cut).count());
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
            let [one, two] = [(); 2].map(|()| Tethers::tie(&tethers, &claims, slot.cutter()));
            assert_eq!(tethers.with(|tethers| tethers.len()), 2);
            drop(one);
            assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Session, "s_1")]), 1);
            drop(two);
        }
        tethers.with(|tethers| {
            assert!(tethers.is_empty());
            assert_eq!(tethers.entries.len(), 2, "places are used again");
        });
    }

    #[test]
    fn what_waits_for_its_answer_is_told_and_what_is_answered_is_cut() {
        let connections = Connections::new();
        let tethers = Rc::new(Local::new(Tethers::default()));
        let slots = [(); 2].map(|()| connections.enter());
        let claims = claims("ann", Some("s_1"), 500);
        let [waiting, answered] = [0, 1].map(|n: usize| Tethers::tie(&tethers, &claims, slots[n].cutter()));
        assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Kick, "ann")]), 0, "a kick ends what lasts");
        answered.answer();
        assert_eq!(Tethers::end(&tethers, &[revocation(Kind::Session, "s_1")]), 2);
        assert!(waiting.has_ended() && answered.has_ended());
        assert_eq!(slots.each_ref().map(is_cut), [false, true]);
    }
}
