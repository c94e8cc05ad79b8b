//! A shard's own inflater and deflater, lent to whoever has a message at hand. They are made when first needed.

use crate::{
    proto::websocket::{Deflater, Inflater},
    shard::Local,
};

thread_local! {
    static INFLATER: Local<Option<Box<Inflater>>> = const { Local::new(None) };
    static DEFLATER: Local<Option<Box<Deflater>>> = const { Local::new(None) };
}

/// Lends the shard's inflater. What runs meanwhile may end in a panic: the next caller gets a new one.
pub(super) fn with_inflater<R>(run: impl FnOnce(&mut Inflater) -> R) -> R {
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
