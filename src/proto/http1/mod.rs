//! HTTP/1.1 as a pure core, for both directions: bytes in, heads and stretches of body out, and back into bytes.
//!
//! It is strict where leniency has let requests be smuggled (RFC 9112 §11): whatever two parsers could read differently
//! is refused here, in requests and in answers alike. Sockets, time-outs, the meaning of a path and what a proxy adds
//! to or takes from a head are left to others.
//!
//! A message is read in three steps: a scanner finds the end of its head ([`HeadScanner`], [`ResponseScanner`]), a
//! parser takes the buffer that holds it ([`parse_request`], [`parse_response`]), and a [`BodyDecoder`] walks through
//! what follows without copying it.

mod body;
pub(super) mod bytes;
mod connection;
mod encode;
mod error;
mod fields;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod request;
mod response;
mod scan;
mod target;
#[cfg(test)]
mod tests;
mod trailers;

pub use body::{BodyDecoder, Decoded};
pub(super) use connection::elements;
pub use connection::{connection_names, remove_connection_named};
pub use encode::{
    CHUNK_END, ConnectionToken, LAST_CHUNK, encode_chunk_header, encode_last_chunk, encode_request, encode_response,
};
pub use error::{BodyError, HeadError, RequestError, ResponseError};
pub(super) use fields::span_in;
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_request, fuzz_response};
pub use request::{WholeRequest, parse_request};
pub use response::{WholeResponse, parse_response};
pub use scan::{HeadLimits, HeadScanner, ResponseScanner};
pub use trailers::trailer_names;
