//! What becomes of requests and answers on their way through the gateway: one file for each kind of behaviour, over real
//! sockets, in front of backends that do as they are told.

pub(crate) mod access;
mod answer_heads;
mod balance;
mod between;
mod bodies;
mod circuits;
mod cors;
mod deadlines;
mod echo;
mod fields;
mod half_closed;
mod hops;
mod hub_events;
mod interim;
mod large;
mod limits;
mod limits_reach;
mod links;
mod log;
pub(crate) mod outcomes;
mod probes;
mod rate_limits;
mod raw;
mod redirects;
mod retries;
mod reuse;
mod roles;
mod routing;
pub(crate) mod rows;
mod shared_calls;
mod shedding;
mod simulation;
mod span_export;
mod spans;
mod spellings;
mod tiers;
mod to_services;
mod token_query;
pub(crate) mod tokens;
mod traces;
mod tunnels;
mod upgrade;
mod uploads;
mod upstream;
mod why;

use std::{fmt::Write as _, net::SocketAddr};

use crate::{client::Response, harness::Gateway};

/// What a journey's gateway is set up with; everything unsaid is as by default, with 4 shards.
#[derive(Clone, Copy, Debug, Default)]
struct Setup<'s> {
    /// Lines of `[http]`.
    http: &'s str,
    /// Lines of the upstream.
    upstream: &'s str,
    /// Lines of the one route, which takes every path.
    route: &'s str,
    /// Further sections.
    rest: &'s str,
}

impl Setup<'_> {
    /// Starts a gateway in front of these instances of one upstream, `back`.
    #[track_caller]
    fn start(&self, instances: &[SocketAddr]) -> Gateway {
        Gateway::start(&self.config(instances))
    }

    fn config(&self, instances: &[SocketAddr]) -> String {
        let Self { http, upstream, route, rest } = self;
        let mut config = format!("[http]\n{http}\n[upstreams.back]\n{upstream}\ninstances = [");
        for instance in instances {
            write!(config, "\"{instance}\", ").expect("strings take everything");
        }
        write!(
            config,
            "]\n{rest}\n[[routes]]\naccess = \"public\"\nname = \"all\"\npath = \"/*\"\nupstream = \"back\"\n{route}\n"
        )
        .expect("strings take everything");
        config
    }
}

/// A gateway with defaults in front of one backend.
#[track_caller]
fn before(instance: SocketAddr) -> Gateway {
    Setup::default().start(&[instance])
}

/// Checks a refusal: its status, and the problem document with this code (RFC 9457).
#[track_caller]
fn expect_refusal(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, answer.field("content-type")), (status, Some("application/problem+json")), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["type"], "about:blank", "{problem}");
    for part in ["title", "detail"] {
        assert!(problem[part].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    let id = answer.field("x-request-id").expect("every answer has an id");
    assert_eq!(problem["requestId"], id, "{problem}");
    if status == 503 {
        assert!(answer.field("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{answer:?}");
    }
}
