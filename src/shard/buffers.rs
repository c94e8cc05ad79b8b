//! Buffers that belong to the shard and are lent while there are bytes. An idle connection holds none.
//!
//! One pool per thread, reached without a handle: a future that carried one would be larger for it.

use crate::proto::head::Field;

use super::local::Local;

/// Capacity of a lent buffer: a request's or an answer's head with the first bytes of its body.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Capacity of a buffer for records of TLS: the longest one, of 16 KiB of content, and what else may stand before it
/// (RFC 5246 §6.2.3: 5 bytes of header, and up to 2,048 more than the content).
pub const RECORD_BUFFER_BYTES: usize = 18_437 + 507;
/// Field lines that a lent list has room for before it grows; the default limit on fields is 100.
const FIELDS: usize = 32;
/// A list that grew past this is freed, not kept.
const FIELDS_MAX: usize = 128;
/// Buffers kept for the next: 4 MiB a shard. More are in use only while so many exchanges have bytes in flight.
const KEPT_MAX: usize = 256;

struct BufferPool {
    buffers: Vec<Vec<u8>>,
    record_buffers: Vec<Vec<u8>>,
    fields: Vec<Vec<Field>>,
}

thread_local! {
    static POOL: Local<BufferPool> =
        const { Local::new(BufferPool { buffers: Vec::new(), record_buffers: Vec::new(), fields: Vec::new() }) };
}

/// An empty buffer with room for [`BUFFER_BYTES`].
#[inline]
pub fn take() -> Vec<u8> {
    let kept = POOL.try_with(|pool| pool.with(|pool| pool.buffers.pop())).ok().flatten();
    kept.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
}

/// Gives a buffer back. One that grew, shrank or is not needed is freed.
#[inline]
pub fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() != BUFFER_BYTES {
        return;
    }
    buffer.clear();
    // An error means that the thread is ending and its pool is gone.
    let _ = POOL.try_with(|pool| pool.with(|pool| keep(&mut pool.buffers, buffer)));
}

/// An empty buffer with room for [`RECORD_BUFFER_BYTES`].
pub fn take_for_records() -> Vec<u8> {
    let kept = POOL.try_with(|pool| pool.with(|pool| pool.record_buffers.pop())).ok().flatten();
    kept.unwrap_or_else(|| Vec::with_capacity(RECORD_BUFFER_BYTES))
}

/// Gives such a buffer back.
pub fn give_for_records(mut buffer: Vec<u8>) {
    if buffer.capacity() != RECORD_BUFFER_BYTES {
        return;
    }
    buffer.clear();
    let _ = POOL.try_with(|pool| pool.with(|pool| keep(&mut pool.record_buffers, buffer)));
}

/// An empty list of field lines.
#[inline]
pub fn take_fields() -> Vec<Field> {
    let kept = POOL.try_with(|pool| pool.with(|pool| pool.fields.pop())).ok().flatten();
    kept.unwrap_or_else(|| Vec::with_capacity(FIELDS))
}

/// Gives a list of field lines back. One that grew far is freed.
#[inline]
pub fn give_fields(mut fields: Vec<Field>) {
    if !(FIELDS..=FIELDS_MAX).contains(&fields.capacity()) {
        return;
    }
    fields.clear();
    let _ = POOL.try_with(|pool| pool.with(|pool| keep(&mut pool.fields, fields)));
}

#[inline]
fn keep<T>(kept: &mut Vec<T>, one: T) {
    if kept.len() < KEPT_MAX {
        kept.push(one);
    }
}

/// How many buffers for records this shard keeps ready.
#[cfg(test)]
pub(crate) fn kept_for_records() -> usize {
    POOL.with(|pool| pool.with(|pool| pool.record_buffers.len()))
}

/// How many buffers and lists of fields this shard keeps ready.
pub fn kept() -> (usize, usize) {
    POOL.with(|pool| pool.with(|pool| (pool.buffers.len(), pool.fields.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test runner gives each test its own thread, and with it its own pool.

    #[test]
    fn a_buffer_given_back_is_lent_again_empty() {
        let mut buffer = take();
        assert_eq!(buffer.capacity(), BUFFER_BYTES);
        buffer.extend_from_slice(b"secret");
        let address = buffer.as_ptr();
        give(buffer);
        assert_eq!(kept().0, 1);
        let again = take();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, BUFFER_BYTES));
    }

    #[test]
    fn what_grew_or_shrank_is_freed() {
        let mut grown = take();
        grown.resize(BUFFER_BYTES + 1, 0);
        give(grown);
        give(Vec::with_capacity(10));
        give(Vec::new());
        give_fields(Vec::new());
        give_fields(Vec::with_capacity(FIELDS_MAX + 1));
        assert_eq!(kept(), (0, 0));
    }

    #[test]
    fn the_pool_is_bounded() {
        let buffers: Vec<_> = (0..KEPT_MAX + 10).map(|_| take()).collect();
        let lists: Vec<_> = (0..KEPT_MAX + 10).map(|_| take_fields()).collect();
        buffers.into_iter().for_each(give);
        lists.into_iter().for_each(give_fields);
        assert_eq!(kept(), (KEPT_MAX, KEPT_MAX));
        assert!(take_fields().is_empty());
    }
}
