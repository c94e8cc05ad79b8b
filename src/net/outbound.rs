//! Writes one answer to an HTTP/1.1 client, with the coding that the client understands, and says what follows it.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    AnswerBody, Cut, Io, Response, Sent,
    body::RequestBody as _,
    http_client::recycle,
    inbound::Http1Body,
    writer::{Chunks, Progress, Writer},
};
use crate::{
    proto::{
        head::{Framing, Known, Version},
        http1::{ConnectionToken, encode_response},
    },
    shard::{Deadline, Pipe, buffers, task},
};

/// A part of an answer whose end is all that tells it from the whole: unless it becomes the whole, the connection is
/// reset, also when its task ends under it.
struct PartialAnswer<'a> {
    io: &'a Io,
    is_whole: bool,
}

impl Drop for PartialAnswer<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.io.reset_at_close();
        }
    }
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterAnswer {
    /// The connection takes the next request.
    Keep,
    /// The connection closes.
    Close,
    /// The connection speaks another protocol from now on.
    Switch,
}

/// An answer on its way to the client.
pub(super) struct Answer<'i, B> {
    body: B,
    request: Http1Body<'i>,
    writer: Writer,
    ending: AfterAnswer,
    write_timeout: Duration,
    /// Set while a write waits for the client; the connection's own timer is the body's meanwhile.
    write_due: Deadline,
    /// What the client had taken when that was set.
    taken_bytes: u64,
    is_until_close: bool,
}

/// An answer's body while the request's goes on.
struct Meanwhile<'a, 'i, B> {
    body: &'a mut B,
    request: &'a mut Http1Body<'i>,
}

impl<B: AnswerBody> Chunks for Meanwhile<'_, '_, B> {
    type Failure = Cut;

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        self.body.poll_fill(cx, self.request)
    }

    fn chunk(&self) -> &[u8] {
        self.body.chunk()
    }

    fn consume(&mut self, bytes: usize) {
        self.body.consume(bytes);
    }

    fn unseen(&self) -> u64 {
        self.body.unseen()
    }

    fn poll_move(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<usize, Cut>> {
        self.body.poll_move(cx, self.request, pipe)
    }

    fn trailers(&self) -> &[u8] {
        self.body.trailers()
    }
}

impl<'i, B: AnswerBody> Answer<'i, B> {
    /// Encodes the head. `to_head`: it answers a HEAD request. `keeps`: client and shard want the connection kept.
    pub(super) fn new(
        response: Response<Http1Body<'i>, B>,
        to_head: bool,
        version: Version,
        keeps: bool,
        write_timeout: Duration,
    ) -> Self {
        let Response { head, body, mut request } = response;
        let write_timeout = body.write_timeout().unwrap_or(write_timeout);
        let is_bodiless = to_head || matches!(head.status, 100..=199 | 204 | 304);
        let framing = match head.framing {
            _ if is_bodiless => Framing::None,
            // RFC 9112 §6.1: an HTTP/1.0 client does not know chunks.
            Framing::Chunked | Framing::UntilClose if version == Version::Http10 => Framing::UntilClose,
            Framing::Chunked | Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        let ending = match head.status {
            101 => AfterAnswer::Switch,
            _ if keeps && request.is_within_reach() && framing != Framing::UntilClose => AfterAnswer::Keep,
            _ => AfterAnswer::Close,
        };
        let token = match (ending, version) {
            (AfterAnswer::Switch, _) => ConnectionToken::Upgrade,
            (AfterAnswer::Close, _) => ConnectionToken::Close,
            (AfterAnswer::Keep, Version::Http10) => ConnectionToken::KeepAlive,
            // RFC 9110 §15.5.22: it says what to ask for.
            (AfterAnswer::Keep, _) if head.status == 426 && head.value(Known::Upgrade).is_some() => {
                ConnectionToken::Upgrade
            }
            (AfterAnswer::Keep, _) => ConnectionToken::None,
        };
        let interim = request.end_interim();
        let writer = Writer::new(framing == Framing::Chunked, is_bodiless, |out| {
            out.extend_from_slice(&interim);
            // An answer to HEAD says how long its body would be, with the field that the backend sent.
            encode_response(&head, framing, token, out);
        });
        recycle(head);
        buffers::give(interim);
        let is_until_close = framing == Framing::UntilClose;
        Self {
            body,
            request,
            writer,
            ending,
            write_timeout,
            write_due: Deadline::new(),
            taken_bytes: 0,
            is_until_close,
        }
    }

    /// What follows once it is sent.
    pub(super) fn ending(&self) -> AfterAnswer {
        self.ending
    }

    /// Whether a part of it can be told from the whole.
    pub(super) fn tells_its_end(&self) -> bool {
        !self.is_until_close
    }

    /// The body, for whoever goes on with it.
    pub(super) fn into_body(self) -> B {
        self.body
    }

    /// Whether it is for whoever takes the connection over to write.
    pub(super) fn takes_head(&self) -> bool {
        self.ending == AfterAnswer::Switch && self.body.takes_head()
    }

    /// What is to be written, in a buffer of the shard's; the body; and how much of the request's was taken.
    pub(super) fn into_head(self) -> (Vec<u8>, B, u64) {
        let Self { body, request, writer, .. } = self;
        (writer.into_unwritten(), body, request.received_bytes())
    }

    /// Writes all of it.
    pub(super) async fn send(&mut self, io: &Io) -> Sent {
        let mut part = self.is_until_close.then(|| PartialAnswer { io, is_whole: false });
        let cut = loop {
            match poll_fn(|cx| self.poll_send(io, cx)).await {
                Ok(true) => break None,
                Ok(false) => task::yield_now().await,
                Err(cut) => break Some(cut),
            }
        };
        if let Some(part) = &mut part {
            part.is_whole = cut.is_none();
        }
        Sent { body_bytes: self.writer.content_bytes(), request_bytes: self.request.received_bytes(), cut }
    }

    /// `true` when all is written, `false` when it has had its turn.
    fn poll_send(&mut self, io: &Io, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        if let Poll::Ready(cut) = self.body.poll_meanwhile(cx, &mut self.request) {
            return Poll::Ready(Err(cut));
        }
        let mut body = Meanwhile { body: &mut self.body, request: &mut self.request };
        let progress = self.writer.poll(io, cx, &mut body);
        io.sent.set(self.writer.content_bytes());
        match progress {
            Progress::Done => Poll::Ready(Ok(true)),
            Progress::Turn => Poll::Ready(Ok(false)),
            Progress::BodyFailed(cut) => Poll::Ready(Err(cut)),
            Progress::Broken => Poll::Ready(Err(Cut::ClientGone)),
            Progress::Waiting => {
                self.write_due.clear();
                Poll::Pending
            }
            Progress::Blocked => {
                // A client that reads slowly is served on; the time runs from the last byte that it took.
                let taken = self.writer.taken_bytes();
                if std::mem::replace(&mut self.taken_bytes, taken) != taken || self.write_due.at().is_none() {
                    self.write_due.set_after(self.write_timeout);
                }
                self.write_due.poll(cx).map(|()| Err(Cut::ClientStalled))
            }
        }
    }
}
