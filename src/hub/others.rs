//! What is asked of a user's sockets, on this instance and by the bus on all others: to be told something, or to be closed.

use std::sync::Arc;

use super::{
    Answer, Code, Effect, Hub, Question, RoomLetter,
    arena::Key,
    asks::{Ask, Asker, Everywhere},
    bus::BusRequest,
    history::Seen,
    letter::ToUser,
};
use crate::shard::Instant;

/// How many other instances live, and how many of them have answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that live, as far as the bus knows.
    pub asked: u32,
    /// Those that answered in time.
    pub answered: u32,
}

/// What is asked of a user's sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserOrder {
    /// Close them.
    Close,
    /// Tell them this, unless it was told before.
    Say {
        /// The message.
        text: Arc<str>,
        /// Who says it, and its id.
        id: Option<(Box<str>, Box<str>)>,
    },
}

/// What a hub asks of the bus for other instances. Moves between threads.
#[derive(Debug)]
pub enum OthersRequest {
    /// Ask all that live. Answered by [`OthersAnswer::Told`], once. Lost: they could not be asked.
    Ask {
        /// Who asks.
        ticket: Key,
        /// Whose sockets.
        user: Arc<str>,
        /// What is asked of them.
        order: UserOrder,
    },
    /// The answer to [`OthersAnswer::Asked`]. Lost: not answered.
    Answer {
        /// Which question.
        number: u64,
        /// So many sockets it was.
        count: u32,
    },
}

/// What a hub hears of other instances. Moves between threads.
#[derive(Debug)]
pub enum OthersAnswer {
    /// What came of [`OthersRequest::Ask`].
    Told {
        /// Who asked.
        ticket: Key,
        /// So many sockets it was there.
        count: u32,
        /// None where they could not be asked.
        others: Option<Others>,
    },
    /// Another instance asks. Answered by [`OthersRequest::Answer`]. Lost: not answered.
    Asked {
        /// Which question.
        number: u64,
        /// Whose sockets.
        user: Arc<str>,
        /// What is asked of them.
        order: UserOrder,
    },
}

impl<W> Hub<W> {
    /// Asks all shards, and all other instances if whoever asks is not one itself.
    pub(super) fn ask_everywhere(&mut self, now: Instant, asker: Asker, user: &Arc<str>, order: UserOrder) {
        let has_others = self.bus.is_some() && matches!(asker, Asker::Outside(_));
        let asked = u32::try_from(self.shards).unwrap_or(u32::MAX);
        let all = Everywhere {
            asked,
            waiting: asked.saturating_add(u32::from(has_others)),
            answered: 0,
            count: 0,
            others: (!has_others).then(Others::default),
        };
        let due = now + self.plan.limits.answer_within;
        let ask = Ask { asker, question: Question::Everywhere(all), id: None, is_given_up: false };
        let ticket = match self.asks.insert(ask, due) {
            Ok(ticket) => ticket,
            Err(code) => return self.refuse_everywhere(asker, code),
        };
        match &order {
            UserOrder::Close => {
                for shard in 0..self.shards {
                    self.post.send(shard, RoomLetter::Kick { ticket, user: Arc::clone(user) });
                }
            }
            UserOrder::Say { text, id } => {
                let seen = id.as_ref().map(|(speaker, id)| self.mark(user, speaker, id));
                for shard in 0..self.shards {
                    let to_user = ToUser { ticket, user: Arc::clone(user), text: Arc::clone(text), seen };
                    self.post.send(shard, RoomLetter::ToUser(Box::new(to_user)));
                }
            }
        }
        if has_others {
            let user = Arc::clone(user);
            self.post.ask(BusRequest::Others(Box::new(OthersRequest::Ask { ticket, user, order })));
        }
    }

    /// The mark of a message to a user.
    fn mark(&self, user: &str, speaker: &str, id: &str) -> Seen {
        // The length first: what the one ends with is not what the other begins with.
        self.secret.mark(&format!("{}:{user}{speaker}", user.len()), id)
    }

    /// Whether a message has been told here already, and to how many sockets.
    pub(super) fn said_before(&mut self, now: Instant, seen: Option<Seen>) -> Option<u32> {
        self.said_to_users.prune(now, self.plan.limits.ids_for);
        self.said_to_users.number(seen?).map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// A message was told to so many sockets here. All shards keep that: a socket that has moved is not told again.
    pub(super) fn keep_said(&mut self, now: Instant, seen: Option<Seen>, count: u32) {
        if let Some(seen) = seen {
            self.said_to_users.push(now, seen, count.into());
        }
    }

    fn refuse_everywhere(&mut self, asker: Asker, code: Code) {
        if let Asker::Outside(asker) = asker {
            self.answer_outside(asker, Answer::Refused(code));
        }
    }

    pub(super) fn handle_others(&mut self, now: Instant, answer: OthersAnswer) {
        match answer {
            OthersAnswer::Told { ticket, count, others } => self.handle_others_told(ticket, count, others),
            OthersAnswer::Asked { number, user, order } => {
                self.ask_everywhere(now, Asker::Instance(number), &user, order);
            }
        }
    }

    pub(super) fn others_dropped(&mut self, request: &OthersRequest) {
        if let OthersRequest::Ask { ticket, .. } = request {
            self.handle_others_told(*ticket, 0, None);
        }
    }

    fn handle_others_told(&mut self, ticket: Key, count: u32, others: Option<Others>) {
        let Some(Question::Everywhere(all)) = self.asks.get_mut(ticket).map(|ask| &mut ask.question) else { return };
        all.count = all.count.saturating_add(count);
        all.others = others;
        self.one_less_waits(ticket);
    }

    /// A shard has answered, or was not reached.
    pub(super) fn handle_user_told(&mut self, ticket: Key, count: Option<u32>) {
        let Some(Question::Everywhere(all)) = self.asks.get_mut(ticket).map(|ask| &mut ask.question) else { return };
        if let Some(count) = count {
            all.answered = all.answered.saturating_add(1);
            all.count = all.count.saturating_add(count);
        }
        self.one_less_waits(ticket);
    }

    /// Whoever asked is told when nobody's answer is to come any more.
    fn one_less_waits(&mut self, ticket: Key) {
        let Some(ask) = self.asks.get_mut(ticket) else { return };
        let Question::Everywhere(all) = &mut ask.question else { return };
        all.waiting = all.waiting.saturating_sub(1);
        if all.waiting > 0 {
            return;
        }
        let (all, asker, is_given_up) = (*all, ask.asker, ask.is_given_up);
        self.asks.remove(ticket);
        match asker {
            Asker::Outside(asker) if !is_given_up => self.answer_outside(asker, all.answer()),
            // An instance of which a shard could not be asked has not answered.
            Asker::Instance(number) if !is_given_up && all.answered == all.asked => {
                let answer = OthersRequest::Answer { number, count: all.count };
                self.post.ask(BusRequest::Others(Box::new(answer)));
            }
            _ => {}
        }
    }

    pub(super) fn answer_outside(&mut self, asker: u64, answer: Answer) {
        self.effects.push_back(Effect::Told { asker, answer });
    }
}

impl Everywhere {
    /// As whoever asked is told.
    pub(super) const fn answer(&self) -> Answer {
        Answer::Sockets { count: self.count, asked: self.asked, answered: self.answered, others: self.others }
    }
}
