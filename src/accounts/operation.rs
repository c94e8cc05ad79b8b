//! What crosses between a shard and the bridge: what a client asks of its account, and what it is told.

use std::fmt;

use zeroize::Zeroizing;

use crate::exchange::{ClientNote, Code};
use crate::shard::Instant;

/// An operation that is asked for. Moves between threads.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub operation: Operation,
    /// When all of its request had come, and its client was still there. After that, what one thread knows of the client
    /// may be old.
    pub came: Instant,
}

/// Whoever waits for an operation, as far as it depends on that whether it is carried out.
pub trait Waiter {
    /// A renewal is not made later than this: its client has given up by then, or soon will, and asks again.
    fn waits_until(&self) -> Instant;

    /// Whether somebody still waits. Asked right before what cannot be taken back.
    fn is_there(&self) -> impl Future<Output = bool>;
}

/// Waits for as long as it takes.
#[derive(Clone, Copy, Debug)]
pub struct WaitsForever;

impl Waiter for WaitsForever {
    fn waits_until(&self) -> Instant {
        Instant::NEVER
    }

    async fn is_there(&self) -> bool {
        true
    }
}

/// What a client asks. Moves between threads.
pub enum Operation {
    /// Begin a session.
    Login {
        /// As it came in.
        email: String,
        /// As it came in.
        password: Zeroizing<String>,
        /// Who asks.
        note: ClientNote,
    },
    /// Renew a session and its tokens.
    Refresh {
        /// As it came in.
        token: Zeroizing<String>,
        /// Who asks.
        note: ClientNote,
    },
    /// End the caller's session.
    Logout {
        /// The caller's id.
        user: String,
        /// The session that its token names.
        sid: String,
    },
    /// End every session of the caller.
    LogoutAll {
        /// The caller's id.
        user: String,
    },
    /// Close what a user has open, on all instances; its sessions go on.
    Kick {
        /// The user's id.
        user: String,
        /// Who wants it.
        by: String,
    },
    /// Asked again for an end, by a token that it has revoked already: what the log says has ended is to be gone.
    EndAgain {
        /// The caller's id.
        user: String,
        /// The session that its token names; `None` for every session that the caller had when it began.
        sid: Option<String>,
        /// When the session of the token began, in Unix milliseconds.
        began_ms: u64,
    },
    /// List the caller's sessions.
    Sessions {
        /// The caller's id.
        user: String,
        /// The session that asks, if its token names one.
        current: Option<String>,
    },
    /// End one of the caller's sessions.
    EndSession {
        /// The caller's id.
        user: String,
        /// The session to end: as it came in.
        sid: String,
    },
}

impl Operation {
    /// What it is called in logs and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Login { .. } => "login",
            Self::Refresh { .. } => "refresh",
            Self::Logout { .. } => "logout",
            Self::LogoutAll { .. } => "logout_all",
            Self::Kick { .. } => "kick",
            Self::EndAgain { .. } => "end_again",
            Self::Sessions { .. } => "sessions",
            Self::EndSession { .. } => "end_session",
        }
    }
}

/// Nothing secret, and nothing of a person.
impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.name()).finish_non_exhaustive()
    }
}

/// What the client is told. Moves between threads.
pub enum Outcome {
    /// It is done.
    Done {
        /// 200 or 204.
        status: u16,
        /// A JSON document; empty with 204. It may hold tokens.
        body: Zeroizing<Vec<u8>>,
    },
    /// It is refused.
    Refused {
        /// Why.
        code: Code,
        /// After how many seconds it may be tried again, where that is known better than by the code.
        retry_after_s: Option<u32>,
    },
}

impl Outcome {
    /// A refusal that says nothing of when to try again.
    pub const fn refused(code: Code) -> Self {
        Self::Refused { code, retry_after_s: None }
    }
}

/// Without the body: it may hold tokens.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { status, .. } => f.debug_struct("Done").field("status", status).finish_non_exhaustive(),
            Self::Refused { code, retry_after_s } => {
                f.debug_struct("Refused").field("code", code).field("retry_after_s", retry_after_s).finish()
            }
        }
    }
}
