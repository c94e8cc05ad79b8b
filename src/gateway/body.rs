//! The bodies of the gateway's answers: its own few bytes, or a stream from a backend.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::sockets::Opening;
use crate::{
    net::{AnswerBody, Cut, RequestBody},
    proto::websocket::DeflateOffer,
    shard::{Pipe, buffers},
    upstream::Streaming,
};

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// The gateway's own.
    Own(OwnBytes),
    /// A backend's.
    Upstream(Streaming),
    /// None: the connection becomes a socket of the hub.
    Upgraded(Box<Opening>),
    /// None: the connection becomes a WebSocket that echoes, with this extension.
    Echo(Option<DeflateOffer>),
}

/// Bytes that are all here: a few in a buffer that goes back to the shard, or many that several answers share.
#[derive(Debug)]
pub struct OwnBytes {
    bytes: Vec<u8>,
    shared: Option<Arc<String>>,
    consumed: usize,
}

/// As much is written at once of bytes that are shared: the metrics of many routes are megabytes, and the kernel would copy
/// all that its buffer takes while the shard's other clients wait.
const SHARED_AT_ONCE: usize = 256 * 1024;

impl From<Vec<u8>> for OwnBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, shared: None, consumed: 0 }
    }
}

impl From<Arc<String>> for OwnBytes {
    fn from(text: Arc<String>) -> Self {
        Self { bytes: Vec::new(), shared: Some(text), consumed: 0 }
    }
}

impl OwnBytes {
    fn len(&self) -> usize {
        self.shared.as_ref().map_or(self.bytes.len(), |shared| shared.len())
    }

    fn chunk(&self) -> &[u8] {
        match &self.shared {
            None => &self.bytes[self.consumed..],
            Some(shared) => {
                let rest = &shared.as_bytes()[self.consumed..];
                &rest[..rest.len().min(SHARED_AT_ONCE)]
            }
        }
    }
}

impl Drop for OwnBytes {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.bytes));
    }
}

impl AnswerBody for Body {
    fn poll_fill(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Result<bool, Cut>> {
        match self {
            Self::Own(own) => Poll::Ready(Ok(own.consumed < own.len())),
            Self::Upgraded(_) | Self::Echo(_) => Poll::Ready(Ok(false)),
            Self::Upstream(streaming) => streaming.poll_fill(cx, request),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Own(own) => own.chunk(),
            Self::Upgraded(_) | Self::Echo(_) => &[],
            Self::Upstream(streaming) => streaming.chunk(),
        }
    }

    fn consume(&mut self, bytes: usize) {
        match self {
            Self::Own(own) => own.consumed = (own.consumed + bytes).min(own.len()),
            Self::Upgraded(_) | Self::Echo(_) => {}
            Self::Upstream(streaming) => streaming.consume(bytes),
        }
    }

    fn unseen(&self) -> u64 {
        match self {
            Self::Own(_) | Self::Upgraded(_) | Self::Echo(_) => 0,
            Self::Upstream(streaming) => streaming.unseen(),
        }
    }

    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        request: &mut impl RequestBody,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, Cut>> {
        match self {
            Self::Own(_) | Self::Upgraded(_) | Self::Echo(_) => Poll::Ready(Ok(0)),
            Self::Upstream(streaming) => streaming.poll_move(cx, request, pipe),
        }
    }

    fn trailers(&self) -> &[u8] {
        match self {
            Self::Own(_) | Self::Upgraded(_) | Self::Echo(_) => &[],
            Self::Upstream(streaming) => streaming.trailers(),
        }
    }

    fn takes_head(&self) -> bool {
        matches!(self, Self::Upgraded(_))
    }

    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, request: &mut impl RequestBody) -> Poll<Cut> {
        match self {
            Self::Own(_) | Self::Upgraded(_) | Self::Echo(_) => Poll::Pending,
            Self::Upstream(streaming) => streaming.poll_meanwhile(cx, request),
        }
    }

    fn write_timeout(&self) -> Option<Duration> {
        match self {
            Self::Own(_) | Self::Upgraded(_) | Self::Echo(_) => None,
            Self::Upstream(streaming) => streaming.write_timeout(),
        }
    }

    fn abandon(self) {
        if let Self::Upstream(streaming) = self {
            streaming.abandon();
        }
    }
}
