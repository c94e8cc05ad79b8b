//! How the stores are that the gateway depends on: what whoever uses one tells to whoever reports.

use std::time::Duration;

/// How a store that the gateway depends on was when it was last used or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Why it is away, as a class (`timeout`, `refused`, …); none while it is up.
    pub error: Option<&'static str>,
    /// How long that use took.
    pub latency: Duration,
    /// When that was: the time since 1970.
    pub checked_at: Duration,
}

/// The stores that the gateway depends on, those that it is configured to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Databases {
    /// Sessions, the log of revocations, shared limits.
    pub redis: Option<Dependency>,
    /// Users.
    pub postgres: Option<Dependency>,
    /// Users and sessions, in a file. On the operator's listener only: it is no service of the platform.
    pub embedded: Option<Dependency>,
}

impl Databases {
    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = &Dependency> {
        [&self.redis, &self.postgres, &self.embedded].into_iter().flatten()
    }
}
