//! Real servers that tests start for themselves.

pub(crate) mod npm;
pub(crate) mod postgres;
pub(crate) mod python;
#[expect(dead_code, reason = "the library's own tests use the rest")]
pub(crate) mod redis;
pub(crate) mod web;
