//! Real servers that tests start for themselves.

pub(crate) mod chdb;
pub(crate) mod clickhouse;
pub(crate) mod dns;
pub(crate) mod haproxy;
pub(crate) mod npm;
pub(crate) mod postgres;
pub(crate) mod prometheus;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod tls;
pub(crate) mod web;
