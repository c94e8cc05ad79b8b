//! The operator's listener: the dashboard, the state that it shows, health with details, metrics, the hub's `AsyncAPI`
//! document, and changes by operators. Served by the control thread, so that a stuck shard cannot hide.
//!
//! It knows nothing itself: what it is asked for it asks the control thread.

mod api;
pub mod asyncapi;
mod guard;
pub mod health;
pub mod history;
pub mod pages;
mod pieces;
mod server;
pub mod state;
mod tls;

use std::{net::SocketAddr, rc::Rc, sync::Arc};

pub use api::{Change, Done, Unchanged};
pub use guard::Access;
pub use server::{Refusals, serve};
pub use tls::Handshakes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::telemetry::format::Format;

/// What the listener asks of the control thread. The answer goes to the sender.
#[derive(Debug)]
pub enum Question {
    /// All metrics, in this format.
    Metrics(Format, oneshot::Sender<Arc<String>>),
    /// A page about health.
    Health(HealthPage, oneshot::Sender<(u16, Vec<u8>)>),
    /// The hub as it is configured.
    AsyncApi(oneshot::Sender<String>),
    /// Everything that goes on, as JSON.
    State(oneshot::Sender<Vec<u8>>),
    /// An operator changes something.
    Change(Change, Author, oneshot::Sender<Result<Done, Unchanged>>),
}

/// Who changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Whose token it is.
    pub name: String,
    /// From where.
    pub from: SocketAddr,
}

/// The pages about health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPage {
    /// `GET /health`: every part, with details.
    Whole,
    /// `GET /health/ready`: whether traffic should come here.
    Ready,
    /// `GET /health/ready/hub`: whether sockets should come here.
    ReadyHub,
}

/// What the listener works with.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Where it asks.
    pub questions: mpsc::Sender<Question>,
    /// Who may ask for what.
    pub access: watch::Receiver<Arc<Access>>,
    /// What it has refused.
    pub refusals: Rc<Refusals>,
}
