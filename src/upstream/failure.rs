//! Why a request to an upstream has no answer, and whose fault it is.

use std::{io, time::Duration};

use crate::{
    net::{BodyFailure, ClientError, tls_fault},
    shard::is_ours,
    telemetry::metrics::{Outcome, Shed},
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Every backend is held out of use, ejected or down, or there is none.
    #[error("no instance {}", of_none(*.held, *.total))]
    NoBackend {
        /// Those that an operator holds out of use.
        held: usize,
        /// All.
        total: usize,
    },
    /// Most requests to it failed of late; it is tried again after this long.
    #[error("the circuit is open: most requests to the upstream failed of late")]
    Failing(Duration),
    /// As many requests are under way as the upstream may have.
    #[error("the upstream has as many requests under way as it may")]
    CircuitOpen,
    /// As many requests whose bodies are still coming in are under way as the upstream may have.
    #[error("the upstream has as many requests with a body on its way as it may")]
    UploadsFull,
    /// No connection to the backend.
    #[error("connecting to the instance failed")]
    Connect(#[source] io::Error),
    /// The backend did not take the request, or did not answer it, in time.
    #[error("the instance did not answer in time")]
    TimedOut,
    /// The request's own deadline has passed.
    #[error("the request's deadline has passed")]
    DeadlineMissed,
    /// It would be answered too late.
    #[error("the request would be answered too late: {}", .0.why())]
    Shed(Shed),
    /// The connection broke before the answer's head was complete.
    #[error("the instance closed the connection before it answered")]
    Broken(#[source] ClientError),
    /// What the backend sent is no answer.
    #[error("the instance's answer is malformed")]
    BadAnswer(#[source] ClientError),
    /// The client did not deliver its request.
    #[error("the request did not arrive")]
    Request(#[source] BodyFailure),
    /// The client left while the backend worked.
    #[error("the client closed before it was answered")]
    ClientGone,
    /// The right to an answer ended while the backend worked.
    #[error("the caller's session ended before the instance answered")]
    Ended,
}

/// Why of so many instances none is asked.
fn of_none(held: usize, total: usize) -> String {
    match held {
        _ if total == 0 => "is known: no name of one has an address, or the list of them is empty".to_owned(),
        0 => "is healthy".to_owned(),
        _ if held >= total => "is in use: an operator holds all out of use".to_owned(),
        _ => format!("is healthy, but for those that an operator holds out of use: {held} of {total}"),
    }
}

impl Failure {
    pub(super) fn of(error: ClientError) -> Self {
        match error {
            ClientError::Broken(_) => Self::Broken(error),
            ClientError::Head(_) | ClientError::Body(_) | ClientError::Interim => Self::BadAnswer(error),
        }
    }

    /// Whether time ran out.
    pub(super) fn is_of_time(&self) -> bool {
        match self {
            Self::TimedOut | Self::Request(BodyFailure::TimedOut) => true,
            Self::Connect(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// How the attempt ended, as it is counted; `None` if there was no attempt.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Connect(error) if tls_fault(error).is_some() => Some(Outcome::TlsFailed),
            Self::Connect(_) => Some(Outcome::ConnectFailed),
            Self::TimedOut | Self::DeadlineMissed => Some(Outcome::TimedOut),
            Self::Broken(_) => Some(Outcome::Closed),
            Self::BadAnswer(_) => Some(Outcome::Malformed),
            Self::Request(_) | Self::ClientGone | Self::Ended => Some(Outcome::Cancelled),
            Self::NoBackend { .. } | Self::Failing(_) | Self::CircuitOpen | Self::UploadsFull | Self::Shed(_) => None,
        }
    }

    /// What the backend did wrong, in a word; `None` if it was not the backend.
    pub(super) fn class(&self) -> Option<&'static str> {
        if let Self::Connect(error) | Self::Broken(ClientError::Broken(Some(error))) = self
            && let Some(fault) = tls_fault(error)
        {
            return Some(fault.name());
        }
        match self {
            // Ours: no descriptor, port or memory left to connect with.
            Self::Connect(error) if is_ours(error) => None,
            Self::Connect(error) if error.kind() != io::ErrorKind::TimedOut => Some("refused"),
            Self::Connect(_) | Self::TimedOut => Some("timeout"),
            Self::Broken(_) => Some("closed"),
            Self::BadAnswer(_) => Some("malformed"),
            // A client that is in a hurry takes no instance out.
            Self::DeadlineMissed
            | Self::Shed(_)
            | Self::NoBackend { .. }
            | Self::Failing(_)
            | Self::CircuitOpen
            | Self::UploadsFull
            | Self::Request(_)
            | Self::ClientGone
            | Self::Ended => None,
        }
    }
}
