//! WebSocket as a pure core (RFC 6455): the opening handshake, bytes into messages, messages into frames, and
//! permessage-deflate (RFC 7692).
//!
//! A server reads with a [`Reader`] and writes what [`header`], [`text_frame`] and [`close_frame`] make. Who relays a
//! connection of others only follows its [`Borders`]. When a ping is due, how long a close may take and what messages mean
//! is left to others.

mod borders;
mod deflate;
mod extensions;
mod frame;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod handshake;
mod mask;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use borders::Borders;
pub use deflate::{Deflater, Inflater};
pub use extensions::DeflateOffer;
pub use frame::{FrameError, Opcode};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_frames, fuzz_handshake};
pub use handshake::{Handshake, HandshakeError};
pub use mask::unmask;
pub use reader::{Event, Limits, Reader};
pub use writer::{
    CLOSE_FRAME_MAX, Header, client_frame, close_frame, close_to_client, close_to_server, deflated_header, header,
    text_frame,
};
