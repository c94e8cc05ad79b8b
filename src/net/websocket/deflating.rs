//! A shard's own inflater and deflater, lent to whoever has a message at hand. They are made when first needed.

use super::Message;
use crate::{
    proto::websocket::{Deflater, FrameError, Inflater},
    shard::Local,
};

thread_local! {
    static INFLATER: Local<Option<Box<Inflater>>> = const { Local::new(None) };
    static DEFLATER: Local<Option<Box<Deflater>>> = const { Local::new(None) };
}

/// Inflates a compressed message, which may become so many bytes, and lends it; what is text is UTF-8.
pub fn with_inflated<R>(
    is_text: bool,
    payload: &[u8],
    bytes_max: u32,
    hear: impl FnOnce(Message<'_>) -> R,
) -> Result<R, FrameError> {
    with_inflater(|inflater| {
        let bytes = inflater.inflate(payload, bytes_max)?;
        let message = if is_text {
            Message::Text(str::from_utf8(bytes).map_err(|_| FrameError::NotUtf8)?)
        } else {
            Message::Binary(bytes)
        };
        Ok(hear(message))
    })
}

/// Lends the shard's inflater. What runs meanwhile may end in a panic: the next caller gets a new one.
fn with_inflater<R>(run: impl FnOnce(&mut Inflater) -> R) -> R {
    let mut inflater = INFLATER.with(|kept| kept.with(Option::take)).unwrap_or_default();
    let ran = run(&mut inflater);
    inflater.release();
    INFLATER.with(|kept| kept.with(|kept| *kept = Some(inflater)));
    ran
}

/// Lends the shard's deflater.
pub(super) fn with_deflater<R>(run: impl FnOnce(&mut Deflater) -> R) -> R {
    let mut deflater = DEFLATER.with(|kept| kept.with(Option::take)).unwrap_or_default();
    let ran = run(&mut deflater);
    deflater.release();
    DEFLATER.with(|kept| kept.with(|kept| *kept = Some(deflater)));
    ran
}
