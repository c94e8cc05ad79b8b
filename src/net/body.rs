//! What a request's body is to whoever forwards or reads it, whatever protocol it comes by.

use std::task::{Context, Poll};

use super::Chunks;
use crate::{
    proto::{head::ResponseHead, http1::BodyError},
    shard::{Deadline, Instant, buffers},
};

/// A request's body on its way, and what goes on between it and the client meanwhile: chunks that are looked at where they
/// are, a deadline, interim answers, and whether the client is still there.
///
/// Who takes one does not know where it comes from: a connection's bytes, bytes that are here already ([`OwnedBody`]), or
/// a stream of a protocol that has several at once.
pub trait RequestBody: Chunks<Failure = BodyFailure> {
    /// Whether every byte has been consumed.
    fn is_done(&self) -> bool;

    /// Bytes of content consumed so far.
    fn received_bytes(&self) -> u64;

    /// Leaves trailer fields out (RFC 9110 §6.5.1 lets an intermediary do so).
    fn drop_trailers(&mut self);

    /// Replaces the bound on the body's size.
    fn set_bytes_max(&mut self, bytes_max: u64);

    /// The bound on the body's size.
    fn bytes_max(&self) -> u64;

    /// States when the whole body has to be here.
    fn set_due(&mut self, due: Instant);

    /// When the whole body has to be here.
    fn due(&self) -> Instant;

    /// Whether every byte of it has come. Asked before any of it is consumed.
    fn is_here(&self) -> bool;

    /// Whether all of it finds room in the buffer that it is received into.
    fn is_short(&self) -> bool;

    /// Waits until all of a short body is here, or it is due. None of it is consumed.
    fn poll_here(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyFailure>>;

    /// Sends the client an interim answer (RFC 9110 §15.2), as soon as it reads.
    fn tell(&mut self, cx: &mut Context<'_>, interim: &ResponseHead);

    /// Writes what was told, as far as the client takes it now. If it has left, that shows elsewhere.
    fn poll_told(&mut self, cx: &mut Context<'_>);

    /// Ready when the client has left. Only once the body is done: until then `poll_fill` tells.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whether the client has left by now: the kernel is asked, not what was heard of it, so a shard that stood still
    /// knows as well. For what is not to be begun for a client that has left.
    fn has_client_left(&mut self, cx: &mut Context<'_>) -> bool;

    /// The exchange's timer: whoever waits on behalf of this request sets and polls it.
    fn deadline(&mut self) -> &mut Deadline;

    /// Sets the exchange's timer to when the whole body has to be here.
    fn wait_until_due(&mut self) {
        let due = self.due();
        self.deadline().set(due);
    }
}

/// Why a request's body did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum BodyFailure {
    /// The client closed, or the connection broke.
    #[error("the client closed before its request was complete")]
    ClientGone,
    /// It took longer than the request timeout.
    #[error("the request body took too long")]
    TimedOut,
    /// It is larger than the route allows.
    #[error("the request body is too large")]
    TooLarge,
    /// Its chunked coding is malformed.
    #[error("the request body is malformed")]
    Malformed(#[source] BodyError),
}

/// A body whose bytes are all here: what a message carried, or what the gateway asks for itself.
///
/// Whoever waits for the answer drops the future that sends it when the answer is not wanted any more, so a client that
/// leaves does not show here; interim answers are nobody's.
#[derive(Debug)]
pub struct OwnedBody {
    bytes: Vec<u8>,
    consumed: usize,
    deadline: Deadline,
    due: Instant,
}

impl OwnedBody {
    /// A body of these bytes; the buffer goes to the shard in the end.
    pub fn new(bytes: Vec<u8>, due: Instant) -> Self {
        Self { bytes, consumed: 0, deadline: Deadline::new(), due }
    }
}

impl Drop for OwnedBody {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
    }
}

impl Chunks for OwnedBody {
    type Failure = BodyFailure;

    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<Result<bool, BodyFailure>> {
        Poll::Ready(Ok(!self.is_done()))
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.get(self.consumed..).unwrap_or_default()
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(bytes).min(self.bytes.len());
    }

    fn trailers(&self) -> &[u8] {
        &[]
    }
}

impl RequestBody for OwnedBody {
    fn is_done(&self) -> bool {
        self.consumed == self.bytes.len()
    }

    fn received_bytes(&self) -> u64 {
        self.consumed as u64
    }

    fn drop_trailers(&mut self) {}

    /// It was bounded by whoever received it.
    fn set_bytes_max(&mut self, _: u64) {}

    fn bytes_max(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn set_due(&mut self, due: Instant) {
        self.due = due;
    }

    fn due(&self) -> Instant {
        self.due
    }

    fn is_here(&self) -> bool {
        true
    }

    fn is_short(&self) -> bool {
        true
    }

    fn poll_here(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BodyFailure>> {
        Poll::Ready(Ok(()))
    }

    fn tell(&mut self, _: &mut Context<'_>, _: &ResponseHead) {}

    fn poll_told(&mut self, _: &mut Context<'_>) {}

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn has_client_left(&mut self, _: &mut Context<'_>) -> bool {
        false
    }

    fn deadline(&mut self) -> &mut Deadline {
        &mut self.deadline
    }
}
