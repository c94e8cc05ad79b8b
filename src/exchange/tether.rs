//! What ends with a session: the long answers (streams, tunnels) that are under way for it.
//!
//! A token is checked when its request begins. An answer that goes on after that is tied to the token's session here, and
//! cut off when the session ends.

use std::{collections::HashMap, rc::Rc};

use crate::{
    auth::{Claims, Revocation, revocation::Kind},
    net::Cutter,
    shard::Local,
};

/// The long answers under way, by session and by user. One per shard.
#[derive(Debug, Default)]
pub struct Tethers {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    by_session: HashMap<Box<str>, Vec<usize>>,
    by_user: HashMap<Box<str>, Vec<usize>>,
}

#[derive(Debug)]
struct Entry {
    claims: Rc<Claims>,
    cutter: Cutter,
    is_cut: bool,
}

/// Ties an answer to its session, until it is dropped.
#[derive(Debug)]
pub struct Tether {
    tethers: Rc<Local<Tethers>>,
    place: usize,
}

impl Tethers {
    /// Ties what is under way on this connection to the session of these claims.
    pub fn tie(tethers: &Rc<Local<Self>>, claims: &Rc<Claims>, cutter: Cutter) -> Tether {
        let place = tethers.with(|tethers| {
            let entry = Some(Entry { claims: Rc::clone(claims), cutter, is_cut: false });
            let place = tethers.free.pop().unwrap_or_else(|| {
                tethers.entries.push(None);
                tethers.entries.len() - 1
            });
            tethers.entries[place] = entry;
            if let Some(sid) = &claims.sid {
                list(&mut tethers.by_session, sid).push(place);
            }
            list(&mut tethers.by_user, &claims.sub).push(place);
            place
        });
        Tether { tethers: Rc::clone(tethers), place }
    }

    /// Cuts what this revocation ends, and says how many that were.
    pub fn end(tethers: &Local<Self>, revocation: &Revocation) -> usize {
        let cutters: Vec<Cutter> = tethers.with(|tethers| {
            let index = match revocation.kind {
                Kind::Session => &tethers.by_session,
                Kind::User | Kind::Kick => &tethers.by_user,
            };
            let places = index.get(&revocation.id).map_or(&[][..], Vec::as_slice);
            let mut cutters = Vec::new();
            for place in places {
                let Some(entry) = tethers.entries.get_mut(*place).and_then(Option::as_mut) else { continue };
                if !entry.is_cut && revocation.ends(&entry.claims) {
                    entry.is_cut = true;
                    cutters.push(entry.cutter.clone());
                }
            }
            cutters
        });
        // Outside the closure: a cut wakes tasks.
        cutters.iter().for_each(Cutter::cut);
        cutters.len()
    }

    /// How many answers are tied.
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
    pub fn is_cut(&self) -> bool {
        self.tethers.with(|tethers| tethers.entries[self.place].as_ref().is_some_and(|entry| entry.is_cut))
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        let entry = self.tethers.with(|tethers| {
            let entry = tethers.entries[self.place].take()?;
            tethers.free.push(self.place);
            if let Some(sid) = &entry.claims.sid {
                strike(&mut tethers.by_session, sid, self.place);
            }
            strike(&mut tethers.by_user, &entry.claims.sub, self.place);
            Some(entry)
        });
        drop(entry);
    }
}

/// The list of this key. A key is copied only when it is new.
fn list<'a>(index: &'a mut HashMap<Box<str>, Vec<usize>>, key: &str) -> &'a mut Vec<usize> {
    if !index.contains_key(key) {
        index.insert(key.into(), Vec::new());
    }
    index.get_mut(key).expect("it was just put there")
}

fn strike(index: &mut HashMap<Box<str>, Vec<usize>>, key: &str, place: usize) {
    let Some(places) = index.get_mut(key) else { return };
    if let Some(at) = places.iter().position(|other| *other == place) {
        places.swap_remove(at);
    }
    if places.is_empty() {
        index.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::{
        auth::Origin,
        net::{Connections, Slot},
    };

    fn claims(sub: &str, sid: Option<&str>, began_ms: u64) -> Rc<Claims> {
        Rc::new(Claims {
            sub: sub.into(),
            email: None,
            role: None,
            permissions: Box::default(),
            sid: sid.map(Into::into),
            jti: None,
            iss: "shardgate".into(),
            aud: Box::default(),
            iat: None,
            exp: 0,
            session_began_ms: Some(began_ms),
            origin: Origin::Own,
        })
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
            let count = Tethers::end(&tethers, &revocation(kind, id));
            let cut: Vec<bool> = tied.iter().map(|(_, slot)| is_cut(slot)).collect();
            assert_eq!(cut, expected, "{kind:?} {id}");
            assert_eq!(tied.iter().map(|(tether, _)| tether.is_cut()).collect::<Vec<_>>(), expected);
            assert_eq!(count, expected.iter().filter(|cut| **cut).count());
            assert_eq!(Tethers::end(&tethers, &revocation(kind, id)), 0, "once");
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
            assert_eq!(Tethers::end(&tethers, &revocation(Kind::Session, "s_1")), 1);
            drop(two);
        }
        tethers.with(|tethers| {
            assert!(tethers.is_empty() && tethers.by_session.is_empty() && tethers.by_user.is_empty());
            assert_eq!(tethers.entries.len(), 2, "places are used again");
        });
    }
}
