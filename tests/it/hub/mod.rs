//! The hub over real sockets, on 4 shards: one file for each kind of behaviour, each test an exchange of frames.

pub(crate) mod across;
mod bounds;
mod clients;
mod counted;
mod deflate;
mod endpoints;
mod ends;
mod frames;
mod instances;
mod lifecycle;
mod lifecycle_script;
mod opening;
mod points;
mod rooms;
mod services;
mod slow;
mod socket;

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use socket::Socket;

use crate::{
    harness::Gateway,
    journey::access::{KEYS, token, unix_now},
};

/// How long anything may take that is not asked for in the same breath.
const SOON: Duration = Duration::from_secs(10);

/// Sockets that are opened at most until each shard has one: 4 shards are missed by as many once in 10²⁴ times.
const ATTEMPTS_MAX: usize = 200;

/// A gateway whose tokens these tests sign, with this after it.
#[track_caller]
fn start(more: &str) -> Gateway {
    Gateway::start(&config(more))
}

/// Its configuration.
fn config(more: &str) -> String {
    format!("{KEYS}{more}")
}

/// The services of the reference platform, both at this address.
fn services(address: SocketAddr) -> String {
    format!("[upstreams.ingestion]\ninstances = [\"{address}\"]\n[upstreams.prediction]\ninstances = [\"{address}\"]\n")
}

/// The token of a user, with a session called like the user.
fn user(name: &str) -> String {
    token(&json!({ "sub": name, "sid": format!("s_{name}"), "role": "user" }))
}

/// The token of a caller with this role.
fn with_role(name: &str, role: &str) -> String {
    token(&json!({ "sub": name, "role": role }))
}

/// A socket on each of the 4 shards, of the users `u0` to `u3`.
#[track_caller]
fn on_each_shard(gateway: &Gateway) -> Vec<Socket> {
    on_each_shard_of(gateway, |n| user(&format!("u{n}")))
}

/// A socket on each of the 4 shards, with these tokens.
#[track_caller]
fn on_each_shard_of(gateway: &Gateway, token: impl Fn(usize) -> String) -> Vec<Socket> {
    let mut sockets: Vec<Socket> = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let socket = Socket::open(gateway, &token(sockets.len()));
        if sockets.iter().all(|other| other.shard() != socket.shard()) {
            sockets.push(socket);
        }
        if sockets.len() == 4 {
            expect_open(gateway, &[1; 4]);
            return sockets;
        }
    }
    panic!("{ATTEMPTS_MAX} sockets do not reach every shard");
}

/// Waits until each shard has so many sockets.
#[track_caller]
fn expect_open(gateway: &Gateway, counts: &[i64]) {
    gateway.metrics_until("each shard has its sockets", |metrics| metrics.by_shard("shardgate_sockets_open") == counts);
}

/// Waits until there are so many sockets.
#[track_caller]
fn expect_sockets(gateway: &Gateway, count: i64) {
    gateway.metrics_until("so many sockets are open", |metrics| metrics.sum("shardgate_sockets_open") == count);
}

/// Waits until so many sockets have been closed for this reason.
#[track_caller]
fn expect_closed(gateway: &Gateway, reason: &str, count: i64) {
    let row = format!("shardgate_sockets_closed_total{{reason=\"{reason}\"}}");
    gateway.metrics_until(&format!("{count} in {row}"), |metrics| metrics.value(&row) == count);
}
