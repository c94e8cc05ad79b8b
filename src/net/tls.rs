//! TLS as a kind of stream, with clients and to services: records of rustls over buffers that the shard lends, so that a
//! connection on which nothing happens holds none. Which certificate is shown, who is trusted, and what may be agreed on, is
//! in the configuration that is given.
//!
//! A write becomes one record, and counts when the kernel has all of it. What a peer sends becomes bytes one record after
//! the other, no more of them at once than fit into one buffer of records.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use rustls::{
    ClientConfig, CommonState, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus},
};
use tokio::io::AsyncWrite as _;

use super::stream::Shutdown;
use crate::shard::{Heard, TcpStream, buffers};

/// Content of one record.
const CONTENT_MAX: usize = 16 * 1024;

/// What a record is longer than its content: its header, and what its cipher adds.
const RECORD_OVERHEAD: usize = 64;

/// Records in a row that stand for nothing that anybody reads: empty ones, changed keys, warnings. Nobody needs so many.
const BARREN_BYTES_MAX: usize = 128 * 1024;

/// So much of what nobody wants to read any more is read over.
const UNREAD_BUFFERS_MAX: usize = 4;

/// A connection over TLS.
pub struct Tls {
    socket: TcpStream,
    session: Session,
    /// Records that came and were not taken in, the last of them perhaps in part.
    incoming: Vec<u8>,
    /// Whether what came was not looked at to its end.
    has_unseen: bool,
    /// Bytes that came since something was decoded.
    barren: usize,
    /// What was decoded and not read yet, from this place on.
    decoded: Vec<u8>,
    decoded_at: usize,
    /// What the socket has not taken of our records, from this place on.
    held: Vec<u8>,
    held_at: usize,
    /// Bytes that a record among them stands for, which are not said to be written before all is out.
    promised: usize,
    /// The peer's `close_notify` came: nothing of it that comes later counts.
    has_peer_ended: bool,
    has_said_goodbye: bool,
    /// What made the session unfit for anything.
    failure: Option<rustls::Error>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tls").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// A session by what we are in it.
enum Session {
    /// Of a client's connection.
    Server(UnbufferedServerConnection),
    /// Of a connection to a service.
    Client(UnbufferedClientConnection),
}

/// Where taking in what came has led to.
enum Step {
    /// There may be more to take in.
    Again,
    /// Something is decoded.
    Decoded,
    /// The peer says nothing any more.
    PeerEnded,
    /// Nothing is left to take in, and what was to be said stands behind what is held.
    AtRest,
}

/// What is to be said once the session may say something.
#[derive(Clone, Copy)]
enum Say<'b> {
    Nothing,
    Content(&'b [u8]),
    Goodbye,
}

impl Tls {
    /// A session with a client that has not begun.
    pub(super) fn accepted(socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self::new(socket, Session::Server(UnbufferedServerConnection::new(config)?)))
    }

    /// A session with a service that goes by this name. What begins it has yet to be [said](Self::advance_handshake).
    pub(super) fn to_service(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        Ok(Self::new(socket, Session::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    fn new(socket: TcpStream, session: Session) -> Self {
        Self {
            socket,
            session,
            incoming: Vec::new(),
            has_unseen: false,
            barren: 0,
            decoded: Vec::new(),
            decoded_at: 0,
            held: Vec::new(),
            held_at: 0,
            promised: 0,
            has_peer_ended: false,
            has_said_goodbye: false,
            failure: None,
        }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn session(&self) -> &CommonState {
        match &self.session {
            Session::Server(session) => session,
            Session::Client(session) => session,
        }
    }

    /// What has come and was not taken in.
    pub(super) fn incoming(&self) -> &[u8] {
        &self.incoming
    }

    /// Keeps what has come in no more memory than it takes, and gives the buffer back: many wait at once for their turn, each
    /// with its first record.
    pub(super) fn pack_incoming(&mut self) {
        let packed = self.incoming.as_slice().into();
        buffers::give_for_records(std::mem::replace(&mut self.incoming, packed));
    }

    /// Reads over what the peer has sent, as far as it is here and not for ever: left unread, it would have the kernel take
    /// back what was said last.
    pub(super) fn discard_unread(&mut self, cx: &mut Context<'_>) {
        let mut unread = buffers::take_for_records();
        for _ in 0..UNREAD_BUFFERS_MAX {
            unread.clear();
            if !matches!(self.socket.poll_read_to(cx, &mut unread), Poll::Ready(Ok(1..))) {
                break;
            }
        }
        buffers::give_for_records(unread);
    }

    pub(super) fn poll_readable(&self, cx: &Context<'_>) -> Poll<()> {
        let is_here = !self.decoded.is_empty() || self.has_unseen || self.has_peer_ended || self.failure.is_some();
        if is_here { Poll::Ready(()) } else { self.socket.poll_readable(cx) }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        ready!(self.poll_decoded(cx))?;
        let rest = &self.decoded[self.decoded_at..];
        let bytes = rest.len().min(buffer.capacity() - buffer.len());
        buffer.extend_from_slice(&rest[..bytes]);
        self.decoded_at += bytes;
        if self.decoded_at == self.decoded.len() {
            self.decoded_at = 0;
            buffers::give(std::mem::take(&mut self.decoded));
        }
        Poll::Ready(Ok(bytes))
    }

    /// Until there is something to be read, or the peer has said that nothing comes any more.
    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.decoded.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.has_unseen && !self.has_peer_ended {
                if let Err(error) = self.advance(Say::Nothing) {
                    // The alert that tells the peer why, as far as the socket takes it.
                    let _ = self.poll_held(cx);
                    return Poll::Ready(Err(error));
                }
                continue;
            }
            if self.has_peer_ended {
                self.give_incoming();
                return Poll::Ready(Ok(()));
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads records from the socket. `Ok(0)` is the end of its bytes.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(failure) = &self.failure {
            return Poll::Ready(Err(failed(failure.clone())));
        }
        if self.incoming.capacity() < buffers::RECORD_BUFFER_BYTES {
            // What was packed goes on in one that has room for more.
            let packed = std::mem::replace(&mut self.incoming, buffers::take_for_records());
            self.incoming.extend_from_slice(&packed);
        }
        // No record is so long: a message of the session's own goes on over several, and is longer than any should be.
        let is_full = self.incoming.len() == self.incoming.capacity();
        if is_full || self.barren > BARREN_BYTES_MAX {
            return Poll::Ready(Err(self.fail(rustls::InvalidMessage::MessageTooLarge.into())));
        }
        let read = self.socket.poll_read_to(cx, &mut self.incoming);
        match read {
            Poll::Ready(Ok(bytes @ 1..)) => {
                self.has_unseen = true;
                self.barren += bytes;
            }
            _ => self.give_incoming(),
        }
        read
    }

    /// Gives the buffer for records back if nothing is in it that counts.
    fn give_incoming(&mut self) {
        if self.incoming.is_empty() || self.has_peer_ended {
            self.has_unseen = false;
            buffers::give_for_records(std::mem::take(&mut self.incoming));
        }
    }

    /// Takes in what came, until something is decoded or nothing is left; or, where there is something to say, until that
    /// stands behind what is held.
    fn advance(&mut self, say: Say<'_>) -> io::Result<()> {
        if let Some(failure) = &self.failure {
            return Err(failed(failure.clone()));
        }
        loop {
            let (discard, done) = self.step(say);
            self.incoming.drain(..discard);
            match done {
                Ok(Step::Again) => {}
                // An empty record is none to stop at.
                Ok(Step::Decoded) if self.decoded.is_empty() || !matches!(say, Say::Nothing) => {}
                Ok(Step::Decoded) => break,
                Ok(Step::PeerEnded) => self.has_peer_ended = true,
                Ok(Step::AtRest) => {
                    self.has_unseen = false;
                    break;
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
        self.give_incoming();
        Ok(())
    }

    /// Has the session take in what it does at once; how many bytes of what came are done with, and what came of it.
    fn step(&mut self, say: Say<'_>) -> (usize, Result<Step, rustls::Error>) {
        let Self { session, incoming, decoded, held, barren, .. } = self;
        match session {
            Session::Server(session) => {
                take_in(session.process_tls_records(incoming), say, &mut Taken { decoded, held, barren })
            }
            Session::Client(session) => {
                take_in(session.process_tls_records(incoming), say, &mut Taken { decoded, held, barren })
            }
        }
    }

    /// Nothing is read or written from here on but the alert that tells the peer.
    fn fail(&mut self, error: rustls::Error) -> io::Error {
        while self.session().wants_write() {
            // It stands first in what is left to do; whatever else there is comes to nothing.
            if !matches!(self.step(Say::Nothing), (_, Ok(Step::Again))) {
                break;
            }
        }
        self.failure = Some(error.clone());
        self.has_unseen = false;
        buffers::give_for_records(std::mem::take(&mut self.incoming));
        failed(error)
    }

    /// Takes in what came during the handshake; what is to be said stands behind what is held then.
    pub(super) fn advance_handshake(&mut self) -> Result<(), rustls::Error> {
        let advanced = self.advance(Say::Nothing);
        advanced.map_err(|_| self.failure.clone().unwrap_or(rustls::Error::HandshakeNotComplete))
    }

    /// Has this alert stand where the session's own would.
    pub(super) fn replace_held(&mut self, bytes: &[u8]) {
        self.held.clear();
        self.held.extend_from_slice(bytes);
        self.held_at = 0;
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.promised == 0 {
            let mut filled = pieces.iter().filter(|piece| !piece.is_empty());
            let said = match (filled.next(), filled.next()) {
                (None, _) => Ok(0),
                // One that is alone, or as long as a record, is not copied together with others.
                (Some(piece), other) if other.is_none() || piece.len() >= CONTENT_MAX => {
                    self.advance_with(&piece[..piece.len().min(CONTENT_MAX)])
                }
                _ => {
                    let mut gathered = buffers::take();
                    for piece in pieces {
                        let room = CONTENT_MAX - gathered.len();
                        gathered.extend_from_slice(&piece[..piece.len().min(room)]);
                    }
                    let said = self.advance_with(&gathered);
                    buffers::give(gathered);
                    said
                }
            };
            self.promised = said?;
        }
        debug_assert!(
            pieces.iter().map(|piece| piece.len()).sum::<usize>() >= self.promised,
            "a write that was begun goes on with the same bytes"
        );
        ready!(self.poll_held(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.promised)))
    }

    /// Has a record of these bytes stand behind what is held.
    fn advance_with(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.has_said_goodbye {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.advance(Say::Content(bytes))?;
        Ok(bytes.len())
    }

    /// Ready when the socket has taken all that is held.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held_at < self.held.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.held[self.held_at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.held_at += written,
            }
        }
        self.held_at = 0;
        if self.held.capacity() > 0 {
            buffers::give_for_records(std::mem::take(&mut self.held));
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>, how: Shutdown) -> Poll<io::Result<()>> {
        match how {
            Shutdown::Whole => ready!(self.poll_goodbye(cx))?,
            Shutdown::Cut => ready!(self.poll_held(cx))?,
        }
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// Ready when the socket has taken the goodbye, and all that is held before it.
    pub(super) fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_said_goodbye && self.failure.is_none() {
            self.has_said_goodbye = true;
            // Where that fails, an alert stands there instead.
            let _ = self.advance(Say::Goodbye);
        }
        self.poll_held(cx)
    }

    pub(super) fn heard(&mut self) -> Heard {
        let mut cx = Context::from_waker(Waker::noop());
        if self.poll_readable(&cx).is_pending() {
            return Heard::Nothing;
        }
        match self.poll_decoded(&mut cx) {
            Poll::Pending => Heard::Nothing,
            Poll::Ready(Ok(())) if self.decoded.is_empty() => Heard::End,
            Poll::Ready(Ok(())) => {
                self.decoded_at = 0;
                buffers::give(std::mem::take(&mut self.decoded));
                Heard::Bytes
            }
            Poll::Ready(Err(_)) => Heard::End,
        }
    }
}

/// What taking in records adds to.
struct Taken<'t> {
    decoded: &'t mut Vec<u8>,
    held: &'t mut Vec<u8>,
    barren: &'t mut usize,
}

/// Does what a session's state asks for; the same on both sides.
fn take_in<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    say: Say<'_>,
    taken: &mut Taken<'_>,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let done = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut read = Ok(Step::Decoded);
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        if taken.decoded.capacity() == 0 {
                            *taken.decoded = buffers::take();
                        }
                        taken.decoded.extend_from_slice(record.payload);
                        if !record.payload.is_empty() {
                            *taken.barren = 0;
                        }
                    }
                    Err(error) => read = Err(error),
                }
            }
            read
        }
        Ok(ConnectionState::PeerClosed) => Ok(Step::PeerEnded),
        Ok(ConnectionState::EncodeTlsData(mut record)) => {
            append(taken.held, 0, |room| record.encode(room)).map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(sent)) => {
            sent.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            let said = match say {
                Say::Nothing => Ok(()),
                Say::Content(bytes) => {
                    append(taken.held, bytes.len() + RECORD_OVERHEAD, |room| traffic.encrypt(bytes, room))
                }
                Say::Goodbye => append(taken.held, RECORD_OVERHEAD, |room| traffic.queue_close_notify(room)),
            };
            said.map(|()| Step::AtRest)
        }
        Ok(_) => Ok(Step::AtRest),
        Err(error) => Err(error),
    };
    (discard, done)
}

/// Why a record does not stand in the room that it was given.
trait NoRoom: Sized {
    /// What it takes, or why no room is enough.
    fn required(self) -> Result<usize, rustls::Error>;
}

impl NoRoom for EncodeError {
    fn required(self) -> Result<usize, rustls::Error> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Ok(required_size),
            Self::AlreadyEncoded => Err(rustls::Error::General("a record was encoded twice".to_owned())),
        }
    }
}

impl NoRoom for EncryptError {
    fn required(self) -> Result<usize, rustls::Error> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Ok(required_size),
            Self::EncryptExhausted => Err(rustls::Error::EncryptError),
        }
    }
}

/// Has a record written behind what is held, with as much room as it takes.
fn append<E: NoRoom>(
    held: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), rustls::Error> {
    if held.capacity() == 0 {
        *held = buffers::take_for_records();
    }
    let start = held.len();
    loop {
        held.resize(start + room, 0);
        match write(&mut held[start..]).map_err(NoRoom::required) {
            Ok(written) => {
                held.truncate(start + written);
                return Ok(());
            }
            Err(Ok(required)) if required > room => room = required,
            Err(wrong) => {
                held.truncate(start);
                return Err(wrong.err().unwrap_or(rustls::Error::EncryptError));
            }
        }
    }
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
