//! Messages for services: in order for each socket and type, one under way. Their acks are in the order of all acks of the
//! socket; what else they answer waits for nothing.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{
    Asker, Code, Effect, Hub, SocketKey,
    arena::Key,
    asks::{Ask, Question},
    encode::Refusal,
    socket::{AwaitedAck, Service},
    types::{ServiceAnswer, ServiceTypes},
};
use crate::shard::Instant;

/// Names a message that was forwarded.
pub type Ticket = Key;

/// The index of a type that has gone with a reload.
const NOWHERE: usize = usize::MAX;

/// Bytes of messages that wait for services, of all sockets of a shard. A client that hears `overloaded` may try again.
const BYTES_MAX: usize = 64 << 20;

/// What a service made of a message.
#[derive(Clone, Copy, Debug)]
pub enum ServiceOutcome<'a> {
    /// It took it: the status, and its JSON where that is the answer.
    Taken {
        /// A 2xx.
        status: u16,
        /// One JSON document.
        json: &'a str,
    },
    /// It did not, or could not be asked.
    Refused {
        /// Why.
        code: Code,
        /// When it may be tried again.
        retry_after_ms: Option<u64>,
    },
}

impl<W> Hub<W> {
    pub(super) fn forward(&mut self, now: Instant, key: SocketKey, id: Option<&str>, index: usize, payload: &str) {
        let Some(kind) = self.plan.types.at(index) else { return };
        let (waiting_max, is_acknowledged) = (kind.waiting_max, kind.answer == ServiceAnswer::Ack);
        let Some(socket) = self.sockets.all.get_mut(key) else { return };
        let queue = socket.busy.as_ref().and_then(|busy| busy.services.iter().find(|queue| queue.index == index));
        let is_full = queue.is_some_and(|queue| queue.waiting.len() >= waiting_max)
            || queue.is_some() && self.service_bytes.saturating_add(payload.len()) > BYTES_MAX;
        let ask = Ask {
            asker: Asker::Socket(key),
            question: Question::Service(index),
            id: id.map(Into::into),
            is_given_up: false,
        };
        // Whoever forwards it has its own limits of time.
        let noted = if is_full { Err(Code::Overloaded) } else { self.asks.insert(ask, Instant::NEVER) };
        let ticket = match noted {
            Ok(ticket) => ticket,
            Err(code) => return self.refuse(now, key, &Refusal::new(id, code)),
        };
        let busy = socket.busy();
        if is_acknowledged {
            busy.acks.push_back(AwaitedAck { ticket, frame: None, is_of_service: true });
        }
        if let Some(queue) = busy.services.iter_mut().find(|queue| queue.index == index) {
            queue.waiting.push_back((ticket, payload.into()));
            self.service_bytes = self.service_bytes.saturating_add(payload.len());
            return;
        }
        busy.services.push(Service { index, under_way: ticket, waiting: VecDeque::new() });
        let id = id.map(Into::into);
        self.effects.push_back(Effect::Forward { ticket, socket: key, index, id, payload: payload.into() });
    }

    /// What has become of a forwarded message. The next of its type goes.
    pub fn service_answered(&mut self, now: Instant, ticket: Ticket, outcome: &ServiceOutcome<'_>) {
        self.take_answer(ticket, outcome);
        self.settle(now);
    }

    fn take_answer(&mut self, ticket: Ticket, outcome: &ServiceOutcome<'_>) {
        let Some(ask) = self.asks.remove(ticket) else { return };
        let Ask { asker: Asker::Socket(key), question: Question::Service(index), id, .. } = ask else { return };
        if !self.is_open(key) {
            return;
        }
        let id = id.as_deref();
        self.forward_next(key, ticket);
        let frame = match (*outcome, self.plan.types.at(index).map(|kind| &kind.answer)) {
            (ServiceOutcome::Taken { status, .. }, Some(ServiceAnswer::Ack)) => {
                let frame = self.encoder.service_ack(id, status);
                return self.acknowledge(key, ticket, frame);
            }
            (ServiceOutcome::Taken { json, .. }, Some(ServiceAnswer::Response(kind))) => {
                self.encoder.service_answer(id, kind, json)
            }
            // Whatever it is, it is no mistake in what the client says to the hub.
            (ServiceOutcome::Refused { code, retry_after_ms }, _) => {
                self.encoder.error(&Refusal { retry_after_ms, ..Refusal::new(id, code) })
            }
            // The type has gone with a reload: what became of it cannot be said.
            (ServiceOutcome::Taken { .. }, None) => self.encoder.error(&Refusal::new(id, Code::UpstreamBadResponse)),
        };
        self.forget_ask(key, ticket);
        self.sockets.push(key, frame);
    }

    fn forward_next(&mut self, key: SocketKey, answered: Ticket) {
        let Some(busy) = self.busy(key) else { return };
        // Not by its type: several may have gone with a reload.
        let Some(at) = busy.services.iter().position(|queue| queue.under_way == answered) else { return };
        let Some(queue) = busy.services.get_mut(at) else { return };
        let index = queue.index;
        let Some((ticket, payload)) = queue.waiting.pop_front() else {
            busy.services.swap_remove(at);
            if let Some(socket) = self.sockets.all.get_mut(key) {
                socket.rest();
            }
            return;
        };
        queue.under_way = ticket;
        self.service_bytes = self.service_bytes.saturating_sub(payload.len());
        let id = self.asks.get_mut(ticket).and_then(|ask| ask.id.clone());
        self.effects.push_back(Effect::Forward { ticket, socket: key, index, id, payload });
    }

    /// Types have other indices from now on. What waits for one that has gone is told when its turn comes.
    pub(super) fn adopt_types(&mut self, old: &ServiceTypes) {
        let types = Rc::clone(&self.plan.types);
        if *types == *old {
            return;
        }
        let index_of =
            |index: usize| old.at(index).and_then(|kind| types.find(&kind.name)).map_or(NOWHERE, |(at, _)| at);
        let keys: Vec<SocketKey> = self.sockets.all.iter().map(|(key, _)| key).collect();
        for key in keys {
            let Some(busy) = self.sockets.all.get_mut(key).and_then(|socket| socket.busy.as_mut()) else { continue };
            for service in &mut busy.services {
                service.index = index_of(service.index);
                let waiting = service.waiting.iter().map(|&(ticket, _)| ticket);
                for ticket in waiting.chain([service.under_way]) {
                    if let Some(ask) = self.asks.get_mut(ticket) {
                        ask.question = Question::Service(service.index);
                    }
                }
            }
        }
    }

    /// Nobody waits for these any more.
    pub(super) fn cancel_services(&mut self, services: &[Service]) {
        for service in services {
            self.asks.remove(service.under_way);
            self.effects.push_back(Effect::Cancel(service.under_way));
            for (ticket, payload) in &service.waiting {
                self.asks.remove(*ticket);
                self.service_bytes = self.service_bytes.saturating_sub(payload.len());
            }
        }
    }
}
