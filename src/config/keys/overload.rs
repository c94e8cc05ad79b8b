//! The part of the table that is about requests for which there is no time: deadlines, and what is refused at once.

use super::MINUTE;
use super::section::{section, words};
use std::time::Duration;

section! {
    /// Deadlines that requests bring along: [resilience.md](resilience.md).
    Deadline = Once "deadline", per Each, by Reload {
        /// Whose `X-Request-Timeout-Ms` counts: everybody's, since it only makes the time shorter; that of peers in
        /// `trust.proxies`; or nobody's. With `nobody` the field goes on as any other.
        from: DeadlineFrom = "anybody", e.g. "trusted", per Process;
        /// What asks for more gets this. The other times hold besides.
        max: Duration = "60s", e.g. "10s";
    }
}

words! {
    /// Whose deadlines count.
    DeadlineFrom {
        /// Every client's.
        Anybody = "anybody",
        /// Those of peers in `trust.proxies`.
        Trusted = "trusted",
        /// Nobody's.
        Nobody = "nobody",
    }
}

section! {
    /// Requests to upstreams that are refused at once instead of late (`503 overloaded`): [resilience.md](resilience.md).
    Shedding = Once "shedding", per Shard, by Reload {
        /// Whether a request is refused that has a deadline which its upstream, by what it did of late, will miss.
        by_deadline: bool = true, e.g. false;
        /// Requests are refused while, for as long as this, each has waited for longer than this until its shard came to it.
        queue_max: Duration as Duration(1, MINUTE) = "1s", e.g. "200ms", per Each;
    }
}
