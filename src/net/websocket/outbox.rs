//! What a WebSocket is still to be told: whole frames, in their order, and how far the first of them is written.

use std::{
    collections::VecDeque,
    io::IoSlice,
    task::{Context, Poll},
};

use crate::{
    net::Io,
    proto::websocket::{DeflateOffer, Opcode, deflated_header, header},
    shard::buffers,
};

/// Frames in one write. The kernel copies each alike, so more would only hold others up.
const PIECES_MAX: usize = 64;

/// Frames of one socket's own that are small share a buffer of the shard until it has so many bytes.
const SHARED_BYTES_MAX: usize = buffers::BUFFER_BYTES;

/// Places for frames that a socket at rest may keep.
const PLACES_KEPT: usize = 4;

/// Frames on their way to one client. Whoever fills it looks at [`Outbox::bytes`] for its bound.
#[derive(Debug)]
pub struct Outbox {
    /// Each holds one frame, or several.
    frames: VecDeque<Vec<u8>>,
    /// Bytes of the first that are written.
    written: usize,
    /// Bytes that are not written, of all.
    bytes: usize,
    /// So many frames were shown to the stream, which may have begun them; they have to be finished.
    offered: usize,
    deflate: Option<DeflateOffer>,
}

impl Outbox {
    pub(super) fn new(deflate: Option<DeflateOffer>) -> Self {
        Self { frames: VecDeque::new(), written: 0, bytes: 0, offered: 0, deflate }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// A text message.
    pub fn text(&mut self, text: &str) {
        self.message(Opcode::Text, text.as_bytes());
    }

    /// A message of bytes.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.message(Opcode::Binary, bytes);
    }

    fn message(&mut self, opcode: Opcode, payload: &[u8]) {
        let Some(DeflateOffer { server_window_bits }) = self.deflate else {
            return self.frame(header(opcode, payload.len()).as_bytes(), payload);
        };
        super::deflating::with_deflater(|deflater| {
            let deflated = deflater.deflate(payload, server_window_bits);
            self.frame(deflated_header(opcode, deflated.len()).as_bytes(), deflated);
        });
    }

    /// A frame for this socket alone.
    pub(super) fn frame(&mut self, header: &[u8], payload: &[u8]) {
        let length = header.len() + payload.len();
        self.bytes += length;
        let frame = match self.frames.back_mut() {
            Some(last) if last.len() + length <= last.capacity() => last,
            _ => {
                let bytes = if length <= SHARED_BYTES_MAX { buffers::take() } else { Vec::with_capacity(length) };
                self.frames.push_back(bytes);
                let Some(last) = self.frames.back_mut() else { return };
                last
            }
        };
        frame.extend_from_slice(header);
        frame.extend_from_slice(payload);
    }

    /// Drops what nobody has begun to write.
    pub fn drop_waiting(&mut self) {
        for frames in self.frames.drain(self.offered..) {
            self.bytes -= frames.len();
            buffers::give(frames);
        }
    }

    /// Writes what the kernel takes, and says how much that was; ready when nothing waits any longer.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, io: &Io, sent: &mut u64) -> Poll<Result<(), Broken>> {
        while let Some(first) = self.frames.front() {
            let first = &first[self.written..];
            let offered = self.frames.len().min(PIECES_MAX);
            let polled = if offered == 1 {
                io.poll_write(cx, first)
            } else {
                let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
                pieces[0] = IoSlice::new(first);
                for (piece, frames) in pieces[1..].iter_mut().zip(self.frames.iter().skip(1)) {
                    *piece = IoSlice::new(frames);
                }
                io.poll_write_vectored(cx, &pieces[..offered])
            };
            match polled {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Broken)),
                Poll::Ready(Ok(bytes)) => {
                    *sent += bytes as u64;
                    self.wrote(bytes);
                }
                Poll::Pending => {
                    self.offered = offered;
                    self.wait();
                    return Poll::Pending;
                }
            }
        }
        self.offered = 0;
        if self.frames.capacity() > PLACES_KEPT {
            self.frames = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.written += bytes;
        self.offered = 1;
        while let Some(first) = self.frames.front() {
            if self.written < first.len() {
                return;
            }
            self.written -= first.len();
            if let Some(frames) = self.frames.pop_front() {
                buffers::give(frames);
            }
        }
        self.offered = 0;
    }

    /// The client does not read: what waits for it waits in memory of its own size, and the shard has its buffers back.
    fn wait(&mut self) {
        for frames in &mut self.frames {
            if frames.capacity() == buffers::BUFFER_BYTES && frames.len() < buffers::BUFFER_BYTES / 2 {
                let buffer = std::mem::take(frames);
                *frames = buffer.as_slice().into();
                buffers::give(buffer);
            }
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.frames.drain(..).for_each(buffers::give);
    }
}

/// The client's connection broke.
#[derive(Debug)]
pub(super) struct Broken;
