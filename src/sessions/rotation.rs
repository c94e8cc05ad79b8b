//! How sessions of one user begin, are renewed and end: the pure core. Both stores decide as this does: the embedded one
//! calls it, and the script that runs in Redis is held to it by tests over random histories.
//!
//! A session has a *generation*: how often it was renewed. A refresh token names one, and only the latest is good. The
//! one before it is answered with the latest again for a short grace: two tabs renewed at once, or an answer was lost.

use std::time::Duration;

use crate::config;

/// What holds for all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRules {
    /// A session ends this long after it began, however often it is renewed.
    pub lifetime_ms: u64,
    /// For so long a token that was just spent is answered with its successor.
    pub grace_ms: u64,
    /// Sessions of one user; one more ends the one that was not seen for longest.
    pub per_user_max: usize,
}

impl SessionRules {
    /// Rules from durations.
    pub fn new(lifetime: Duration, grace: Duration, per_user_max: usize) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { lifetime_ms: millis(lifetime), grace_ms: millis(grace), per_user_max: per_user_max.max(1) }
    }
}

impl From<&config::Sessions> for SessionRules {
    fn from(config: &config::Sessions) -> Self {
        Self::new(config.lifetime, config.refresh_grace, config.per_user_max)
    }
}

/// A session as it is stored. Times are Unix milliseconds by the store's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Its id.
    pub(super) sid: String,
    /// When it began.
    pub(super) created_ms: u64,
    /// When it was last renewed (or began).
    pub(super) last_seen_ms: u64,
    /// How often it was renewed.
    pub(super) generation: u64,
    /// When it was last renewed (or began): what the grace counts from.
    pub(super) rotated_ms: u64,
    /// What its client calls itself.
    pub(super) user_agent: String,
    /// Where it was last seen.
    pub(super) address: String,
}

impl Session {
    /// Whether its time is up.
    pub(super) const fn is_over(&self, now_ms: u64, rules: &SessionRules) -> bool {
        now_ms >= self.created_ms.saturating_add(rules.lifetime_ms)
    }
}

/// What becomes of a refresh token that names this generation of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshVerdict {
    /// It was the latest: now the next one is.
    Renewed,
    /// It was just spent: its successor is the latest and is answered again. Nothing changes.
    Again,
    /// It was spent before: somebody else may hold a token of this session, so the session ends.
    Reused,
    /// It is of no session that there is, so it is refused and nothing changes.
    Invalid,
}

/// Judges a token against its session, if there still is one.
pub(super) const fn judge(
    session: Option<&Session>,
    generation: u64,
    now_ms: u64,
    rules: &SessionRules,
) -> RefreshVerdict {
    let Some(session) = session else { return RefreshVerdict::Invalid };
    if session.is_over(now_ms, rules) || generation > session.generation {
        // From the future: the store lost renewals, as a failover to a stale replica does.
        return RefreshVerdict::Invalid;
    }
    if generation == session.generation {
        return RefreshVerdict::Renewed;
    }
    // A clock that was set back makes the grace longer, never shorter.
    let in_grace = now_ms <= session.rotated_ms.saturating_add(rules.grace_ms);
    // Two renewals or more behind is reuse even within the grace: whoever renewed every few seconds would otherwise keep a
    // stolen session for ever, while its owner's token only ever looked old. A tab that late logs in again.
    if in_grace && generation + 1 == session.generation { RefreshVerdict::Again } else { RefreshVerdict::Reused }
}

/// Which of a user's sessions end so that one more may begin: those not seen for longest, the older first.
pub(super) fn crowded_out(sessions: &[Session], now_ms: u64, rules: &SessionRules) -> Vec<String> {
    let mut live: Vec<&Session> = sessions.iter().filter(|session| !session.is_over(now_ms, rules)).collect();
    let too_many = (live.len() + 1).saturating_sub(rules.per_user_max);
    live.sort_by(|one, two| key(one).cmp(&key(two)));
    live.into_iter().take(too_many).map(|session| session.sid.clone()).collect()
}

fn key(session: &Session) -> (u64, u64, &str) {
    (session.last_seen_ms, session.created_ms, &session.sid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: SessionRules = SessionRules { lifetime_ms: 100_000, grace_ms: 10_000, per_user_max: 3 };

    fn session(generation: u64, rotated_ms: u64) -> Session {
        Session {
            sid: "s_1".into(),
            created_ms: 1_000,
            last_seen_ms: rotated_ms,
            generation,
            rotated_ms,
            user_agent: String::new(),
            address: String::new(),
        }
    }

    #[test]
    fn each_generation_has_its_verdict() {
        let of = |generation, now| judge(Some(&session(5, 50_000)), generation, now, &RULES);
        assert_eq!(of(5, 50_000), RefreshVerdict::Renewed);
        assert_eq!(of(5, 100_999), RefreshVerdict::Renewed, "however late");
        assert_eq!(of(5, 101_000), RefreshVerdict::Invalid, "the session is over");
        assert_eq!(of(4, 101_000), RefreshVerdict::Invalid, "the session is over");
        assert_eq!(of(6, 50_000), RefreshVerdict::Invalid, "not issued yet");
        assert_eq!(
            (of(4, 50_000), of(4, 60_000), of(4, 60_001)),
            (RefreshVerdict::Again, RefreshVerdict::Again, RefreshVerdict::Reused)
        );
        assert_eq!(
            (of(3, 60_000), of(3, 60_001), of(0, 60_001)),
            (RefreshVerdict::Reused, RefreshVerdict::Reused, RefreshVerdict::Reused)
        );
        assert_eq!(of(4, 0), RefreshVerdict::Again, "the clock was set back");
        assert_eq!(judge(None, 5, 50_000, &RULES), RefreshVerdict::Invalid);
    }

    #[test]
    fn those_not_seen_for_longest_go_first() {
        let named = |sid: &str, created_ms, last_seen_ms| Session {
            sid: sid.into(),
            created_ms,
            last_seen_ms,
            ..session(1, last_seen_ms)
        };
        let sessions = [named("a", 10, 40), named("b", 20, 30), named("c", 30, 50), named("d", 40, 40)];
        assert_eq!(crowded_out(&sessions[..2], 60, &RULES), Vec::<String>::new());
        assert_eq!(crowded_out(&sessions[..3], 60, &RULES), ["b"]);
        assert_eq!(crowded_out(&sessions, 60, &RULES), ["b", "a"]);
        assert_eq!(crowded_out(&sessions, 100_015, &RULES), ["b"], "one that is over makes room");
        assert_eq!(crowded_out(&sessions, 200_000, &RULES), Vec::<String>::new());
    }

    /// What happens to one session, after so many milliseconds.
    #[derive(Clone, Debug)]
    enum Step {
        /// The token of this client's pocket is presented.
        Present { client: usize, after_ms: u64 },
        /// A client copies the token of another, as tabs that share a store do, and thieves.
        Copy { from: usize, to: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let present = (0_usize..3, 0_u64..15_000).prop_map(|(client, after_ms)| Step::Present { client, after_ms });
        let copy = (0_usize..3, 0_usize..3).prop_map(|(from, to)| Step::Copy { from, to });
        prop::collection::vec(prop_oneof![3 => present, 1 => copy], 0..40)
    }

    proptest! {
        #[test]
        fn a_token_has_one_successor_and_is_never_spent_twice(steps in steps()) {
            let rules = SessionRules { lifetime_ms: u64::MAX, ..RULES };
            let mut now_ms = 1_000;
            let mut stored = Some(session(0, now_ms));
            let mut pockets = [0_u64; 3];
            let mut spent_at = Vec::new();
            for step in steps {
                match step {
                    Step::Copy { from, to } => pockets[to] = pockets[from],
                    Step::Present { client, after_ms } => {
                        now_ms += after_ms;
                        let presented = pockets[client];
                        match judge(stored.as_ref(), presented, now_ms, &rules) {
                            RefreshVerdict::Renewed => {
                                prop_assert_eq!(spent_at.len() as u64, presented, "each is spent once, in order");
                                spent_at.push(now_ms);
                                stored = Some(session(presented + 1, now_ms));
                                pockets[client] = presented + 1;
                            }
                            RefreshVerdict::Again => {
                                prop_assert!(now_ms - spent_at[usize::try_from(presented).unwrap()] <= rules.grace_ms);
                                pockets[client] = presented + 1;
                            }
                            RefreshVerdict::Reused => {
                                let is_last = presented + 1 == spent_at.len() as u64;
                                let since_ms = now_ms - spent_at[usize::try_from(presented).unwrap()];
                                prop_assert!(!is_last || since_ms > rules.grace_ms, "two tabs are no thief");
                                stored = None;
                            }
                            RefreshVerdict::Invalid => prop_assert!(stored.is_none(), "it is of a session that there was"),
                        }
                    }
                }
            }
        }
    }
}
