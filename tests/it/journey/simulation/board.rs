//! How far each exchange has come, as both sides have seen it so far: what their steps wait for.

use super::{
    plan::{Plan, When},
    wire::{Message, Tag},
};

/// How one exchange stands.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what has happened so far, in no one order")]
pub(super) struct Standing {
    /// Where its request begins among the bytes of its client.
    starts_at: usize,
    /// It was sent in one piece with the request behind it.
    is_paired: bool,
    /// How many connections of backends it has come over.
    pub(super) attempts: usize,
    /// What a backend has of the request's content, once it has its head.
    heard: Option<usize>,
    has_heard_all: bool,
    /// The client has any answer, and what it has of the final one's content.
    is_invited: bool,
    seen: Option<usize>,
    /// A backend's connection ended while it had this.
    is_torn: bool,
    has_left: bool,
    is_over: bool,
    /// The client kept a part of the request back until it had seen this answer begin.
    pub(super) was_held: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Board {
    clients: Vec<Vec<Standing>>,
    /// Bytes that each client has sent.
    sent: Vec<usize>,
    /// A backend was held up, and sent something later than the gateway waits for it.
    pub(super) is_too_late: bool,
}

impl Board {
    pub(super) fn new(plan: &Plan) -> Self {
        let standing =
            |exchange: &super::plan::Exchange| Standing { starts_at: exchange.starts_at, ..Standing::default() };
        let clients = plan.clients.iter().map(|client| client.exchanges.iter().map(standing).collect());
        Self { clients: clients.collect(), sent: vec![0; plan.clients.len()], is_too_late: false }
    }

    pub(super) fn of(&self, tag: Tag) -> &Standing {
        &self.clients[tag.client][tag.exchange]
    }

    fn of_mut(&mut self, tag: Tag) -> &mut Standing {
        &mut self.clients[tag.client][tag.exchange]
    }

    /// Whether a step of this exchange can be done.
    pub(super) fn is_open(&self, tag: Tag, when: When) -> bool {
        let standing = self.of(tag);
        standing.is_over && when != When::Alone
            || match when {
                When::Now => true,
                When::Alone => self.clients[tag.client][..tag.exchange].iter().all(|before| before.is_over),
                When::Invited => standing.is_invited || standing.is_torn,
                When::Seen(content) => standing.seen >= Some(content) || standing.is_torn,
                When::Heard(content) => standing.heard >= Some(content) || standing.is_torn,
                When::HeardAll => standing.has_heard_all,
                When::Left => standing.has_left,
                When::Over => false,
            }
    }

    /// Exchanges that are over.
    pub(super) fn over(&self) -> usize {
        self.clients.iter().flatten().filter(|standing| standing.is_over).count()
    }

    pub(super) fn are_all_over(&self) -> bool {
        self.clients.iter().flatten().all(|standing| standing.is_over)
    }

    /// Whether no request is on its way to a backend, but for one that came in one piece with this one.
    pub(super) fn is_quiet_but_for(&self, tag: Tag) -> bool {
        let is_on_its_way = |standing: &Standing, sent: usize| {
            sent > standing.starts_at && standing.heard.is_none() && !standing.is_over
        };
        let is_paired = |client: usize, exchange: usize| {
            client == tag.client && exchange == tag.exchange + 1 && self.of(tag).is_paired
        };
        self.clients.iter().zip(&self.sent).enumerate().all(|(client, (standings, &sent))| {
            standings
                .iter()
                .enumerate()
                .all(|(exchange, standing)| !is_on_its_way(standing, sent) || is_paired(client, exchange))
        })
    }

    pub(super) fn sent(&mut self, client: usize, bytes: usize) {
        self.sent[client] += bytes;
    }

    pub(super) fn paired(&mut self, tag: Tag) {
        self.of_mut(tag).is_paired = true;
    }

    /// The client goes on with a request whose answer it has seen begin.
    pub(super) fn held(&mut self, tag: Tag) {
        let standing = self.of_mut(tag);
        standing.was_held |= standing.seen.is_some() && !standing.is_over;
    }

    /// A backend has the head of a request; returns how often that has been so.
    pub(super) fn tried(&mut self, tag: Tag) -> usize {
        let standing = self.of_mut(tag);
        standing.attempts += 1;
        standing.has_heard_all = false;
        standing.attempts
    }

    pub(super) fn heard(&mut self, tag: Tag, request: &Message) {
        let standing = self.of_mut(tag);
        standing.heard = standing.heard.max(Some(request.content_bytes));
        standing.has_heard_all = request.is_whole;
    }

    pub(super) fn torn(&mut self, tag: Tag) {
        self.of_mut(tag).is_torn = true;
    }

    pub(super) fn invited(&mut self, tag: Tag) {
        self.of_mut(tag).is_invited = true;
    }

    pub(super) fn seen(&mut self, tag: Tag, answer: &Message) {
        let standing = self.of_mut(tag);
        standing.is_invited = true;
        standing.seen = Some(answer.content_bytes);
        standing.is_over |= answer.is_whole;
    }

    /// The connection of a client has ended, by itself or not.
    pub(super) fn ended(&mut self, client: usize, by_itself: bool) {
        for standing in &mut self.clients[client] {
            standing.has_left |= by_itself;
            standing.is_over = true;
        }
    }
}
