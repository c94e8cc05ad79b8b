//! How the stores are that the gateway depends on: what whoever uses one tells to whoever reports.

use std::time::Duration;

use super::metrics::Store;
use super::table::Sparse;

/// How a store is, as far as the log tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It does what it is asked.
    Up,
    /// It is there and answers, and takes no changes; why, as a class.
    Refusing(&'static str),
    /// It cannot be used; why, as a class.
    Away(&'static str),
}

/// What is to be said of a store: one line for each change, however many requests notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionChange {
    /// It is there for the first time.
    There,
    /// It is there again, or takes changes again.
    Back,
    /// It takes no changes.
    Refuses(&'static str),
    /// It has gone.
    Gone(&'static str),
}

/// What the log was told of a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoggedCondition(Option<Condition>);

impl LoggedCondition {
    /// It is so now: what is to be said of it, if anything.
    pub fn change(&mut self, now: Condition) -> Option<ConditionChange> {
        let before = self.0;
        if before == Some(now) {
            return None;
        }
        if let (Some(Condition::Away(one)), Condition::Away(two)) = (before, now)
            && [one, two].iter().all(|class| PASSING.contains(class))
        {
            // A server that restarts breaks its connections, refuses new ones, and loads: that is one event.
            return None;
        }
        self.0 = Some(now);
        Some(match now {
            Condition::Up if before.is_none() => ConditionChange::There,
            Condition::Up => ConditionChange::Back,
            Condition::Refusing(class) => ConditionChange::Refuses(class),
            Condition::Away(class) => ConditionChange::Gone(class),
        })
    }
}

/// Classes that follow each other while a server goes and comes back.
const PASSING: [&str; 5] = ["unknown", "timeout", "refused", "broken", "not_ready"];

/// How a store that the gateway depends on was when it was last used or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// Why it is away or takes no changes, as a class (`timeout`, `refused`, `out_of_memory`, …); `None` while it is up.
    pub error: Option<&'static str>,
    /// It answers all the same, and only takes no changes.
    pub is_degraded: bool,
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
    /// The access log's rows.
    pub clickhouse: Option<Dependency>,
}

impl Databases {
    /// Whether each that there is does what it is asked, in the order of the label's values.
    pub fn up(&self) -> Sparse<{ Store::COUNT }> {
        let is_up = |store: &Option<Dependency>| store.as_ref().map(|store| u64::from(store.error.is_none()));
        let mut up = Sparse::default();
        up.0[Store::Redis.index()] = is_up(&self.redis);
        up.0[Store::Postgres.index()] = is_up(&self.postgres);
        up.0[Store::Embedded.index()] = is_up(&self.embedded);
        up.0[Store::Clickhouse.index()] = is_up(&self.clickhouse);
        up
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = &Dependency> {
        [&self.redis, &self.postgres, &self.embedded, &self.clickhouse].into_iter().flatten()
    }
}

/// How the way of spans to their collector is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExportHealth {
    /// Spans go nowhere.
    #[default]
    Off,
    /// The last request was taken, or none was needed yet.
    Up,
    /// It was not; why.
    Failing(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stores_that_there_are_have_series() {
        let store = |error| {
            let (latency, checked_at) = (Duration::ZERO, Duration::ZERO);
            Some(Dependency { error, is_degraded: false, latency, checked_at })
        };
        assert_eq!(Databases::default().up(), Sparse::default());
        let databases = Databases { redis: store(None), postgres: store(Some("timeout")), ..Databases::default() };
        let up = databases.up().0;
        let of = |store: Store| up[store.index()];
        assert_eq!([of(Store::Redis), of(Store::Postgres), of(Store::Embedded)], [Some(1), Some(0), None]);
    }

    #[test]
    fn one_line_for_a_change_and_none_for_what_belongs_to_it() {
        let mut told = LoggedCondition::default();
        let conditions = [
            (Condition::Up, Some(ConditionChange::There)),
            (Condition::Up, None),
            (Condition::Away("broken"), Some(ConditionChange::Gone("broken"))),
            (Condition::Away("refused"), None),
            (Condition::Away("not_ready"), None),
            (Condition::Up, Some(ConditionChange::Back)),
            (Condition::Away("timeout"), Some(ConditionChange::Gone("timeout"))),
            (Condition::Away("authentication"), Some(ConditionChange::Gone("authentication"))),
            (Condition::Refusing("read_only"), Some(ConditionChange::Refuses("read_only"))),
            (Condition::Refusing("read_only"), None),
            (Condition::Up, Some(ConditionChange::Back)),
        ];
        for (condition, news) in conditions {
            assert_eq!(told.change(condition), news, "{condition:?}");
        }
    }
}
