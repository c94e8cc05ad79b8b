//! The same random histories through both stores: the script that runs in Redis decides as the pure core does.

use super::*;

/// One thing that is done to both stores.
#[derive(Clone, Copy, Debug)]
enum Act {
    Create(usize),
    Refresh(usize),
    End(usize),
    EndOwn(usize, usize),
    EndAll(usize),
    Pass(u64),
}

const USERS: [&str; 2] = ["42", "ann@shop.example"];

fn any_act(random: &mut fastrand::Rng, tokens: usize) -> Act {
    let recent = tokens.min(1 + random.usize(..8));
    match random.u8(..20) {
        0..=3 => Act::Create(random.usize(..2)),
        // Mostly late ones.
        4..=12 if tokens > 0 => Act::Refresh(tokens - 1 - random.usize(..recent)),
        13 if tokens > 0 => Act::End(random.usize(..tokens)),
        14 if tokens > 0 => Act::EndOwn(random.usize(..2), random.usize(..tokens)),
        15 => Act::EndAll(random.usize(..2)),
        16 => Act::Pass(random.u64(..400_000)),
        _ => Act::Pass(random.u64(..15_000)),
    }
}

/// Sessions are named by the order in which they began: each store chose other ids.
#[derive(Default)]
struct Story {
    sids: Vec<String>,
    /// User, session and token, as they came.
    tokens: Vec<(String, String, String)>,
}

impl Story {
    async fn tell(&mut self, bed: &Bed, act: Act) -> String {
        let sessions = &bed.sessions;
        match act {
            Act::Create(user) => {
                // Of two that are as old, the id decides which makes room, and ids are chance.
                bed.pass(1);
                let begun = sessions.create(USERS[user], &note("a")).await.expect("it begins");
                self.sids.push(begun.sid.clone());
                self.tokens.push((USERS[user].to_owned(), begun.sid, begun.refresh_token.reveal().to_owned()));
                format!("began {}", begun.began_ms)
            }
            Act::Refresh(index) => {
                let token = self.tokens[index].2.clone();
                match sessions.refresh(&token, &note("b")).await {
                    Ok(renewed) => {
                        let successor = renewed.refresh_token.reveal().to_owned();
                        let is_known = self.tokens.iter().position(|(_, _, known)| *known == successor);
                        let told = format!("renewed {} {is_known:?}", renewed.began_ms);
                        self.tokens.push((renewed.user, renewed.sid, successor));
                        told
                    }
                    // So that both have as many tokens.
                    Err(error) => {
                        let again = self.tokens[index].clone();
                        self.tokens.push(again);
                        format!("{error:?}")
                    }
                }
            }
            Act::End(index) => {
                let (user, sid, _) = self.tokens[index].clone();
                format!("{:?}", sessions.end(&user, &sid, "test").await)
            }
            Act::EndOwn(user, index) => {
                let sid = self.tokens[index].1.clone();
                format!("{:?}", sessions.end_own(USERS[user], &sid, "test").await)
            }
            Act::EndAll(user) => format!("{:?}", sessions.end_all(USERS[user], "test").await),
            Act::Pass(millis) => {
                bed.pass(millis);
                String::new()
            }
        }
    }

    fn name(&self, sid: &str) -> String {
        self.sids.iter().position(|known| known == sid).map_or_else(|| sid.to_owned(), |index| format!("#{index}"))
    }

    async fn state(&self, bed: &Bed) -> Vec<String> {
        let mut state = Vec::new();
        for user in USERS {
            let mut listed = bed.sessions.list(user).await.expect("the store answers");
            for session in &mut listed {
                session.sid = self.name(&session.sid);
            }
            listed.sort_by(|one, two| one.sid.cmp(&two.sid));
            state.push(format!("{user}: {listed:?}"));
        }
        state
    }

    async fn log(&self, bed: &Bed) -> Vec<(Kind, String)> {
        bed.log().await.into_iter().map(|(kind, id)| (kind, self.name(&id))).collect()
    }
}

#[test]
fn both_stores_tell_the_same_of_random_histories() {
    run(async {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for history in 0..20 {
            let Some(redis) = redis_bed() else { return };
            let embedded = embedded_bed();
            let (mut one, mut two) = (Story::default(), Story::default());
            let mut acts = Vec::new();
            for _ in 0..60 {
                let act = any_act(&mut random, one.tokens.len());
                acts.push(act);
                let told = (one.tell(&embedded, act).await, two.tell(&redis, act).await);
                assert_eq!(told.0, told.1, "seed {seed}, history {history}: {acts:?}");
                assert_eq!(one.state(&embedded).await, two.state(&redis).await, "seed {seed}: {acts:?}");
            }
            // The embedded one lets entries go by the clock that is turned here, Redis by its own; and what ended twice is
            // there once as long as the store knows of it.
            let (one, two) = (one.log(&embedded).await, two.log(&redis).await);
            assert!(one.iter().all(|entry| two.contains(entry)), "seed {seed}: {one:?} {two:?} {acts:?}");
        }
    });
}
