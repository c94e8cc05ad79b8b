//! What a row of the table of metrics says, and the macros that turn rows into counters.
//!
//! The rows themselves stand in `metrics`.

use std::time::Duration;

use super::histogram::{Histogram, Lifetimes, Own, Requests};

/// What Prometheus is told a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises, until the process ends.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Durations counted into buckets.
    Histogram,
    /// What is said in labels; its value is 1.
    Info,
}

impl MetricKind {
    /// The word in `# TYPE`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// What has a series of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// One for the process: the shards are added up.
    Process,
    /// One for each shard, label `shard`.
    Shard,
    /// One for each route, label `route`, the shards added up.
    Route,
    /// One for each limit, label `limit`, the shards added up.
    Limit,
    /// One for each upstream, label `upstream`, the shards added up.
    Upstream,
    /// One for each name of instances, label `name`.
    Name,
    /// One for each instance of an upstream, labels `upstream` and `address`.
    Instance,
}

impl Per {
    /// The labels that tell one series from another.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Process => &[],
            Self::Shard => &["shard"],
            Self::Route => &["route"],
            Self::Limit => &["limit"],
            Self::Upstream => &["upstream"],
            Self::Name => &["name"],
            Self::Instance => &["upstream", "address"],
        }
    }
}

/// The values of a further label, in the order of an array's elements.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Known here.
    Fixed(&'static [&'static str]),
    /// The codes of refusals, which a floor above lists in [`Names::reject_codes`](super::metrics::Names::reject_codes).
    RejectCodes,
    /// Found out when the process runs; the label is a list of labels then.
    Free,
}

/// Microseconds, which are published as seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Micros(pub u64);

impl From<Duration> for Micros {
    fn from(time: Duration) -> Self {
        Self(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }
}

/// The same for each value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicrosBy<const N: usize>(pub [u64; N]);

impl<const N: usize> Default for MicrosBy<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

/// A gauge for each value of a label, which has a series only where there is something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse<const N: usize>(pub [Option<u64>; N]);

impl<const N: usize> Default for Sparse<N> {
    fn default() -> Self {
        Self([None; N])
    }
}

/// What is said in labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(pub Vec<(&'static str, String)>);

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The published name, its unit last.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// What it counts.
    pub help: &'static str,
    /// What has a series of its own.
    pub per: Per,
    /// A further label and its values.
    pub by: Option<(&'static str, Values)>,
}

/// One field of the counters as `exposition` sees it.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// A counter.
    Count(u64),
    /// A gauge.
    Level(i64),
    /// A counter for each value of a label.
    Counts(&'a [u64]),
    /// A gauge for each value of a label, where there is one.
    Sparse(&'a [Option<u64>]),
    /// Microseconds.
    Time(u64),
    /// Microseconds for each value of a label.
    Times(&'a [u64]),
    /// Labels and their values.
    Facts(&'a [(&'static str, String)]),
    /// Durations of whole requests.
    Requests(&'a Histogram<Requests>),
    /// Durations of the gateway's own work.
    Own(&'a Histogram<Own>),
    /// How long connections lasted.
    Lifetimes(&'a Histogram<Lifetimes>),
}

/// What a field of the counters can do.
pub(super) trait Field {
    fn value(&self) -> Value<'_>;
    fn add(&mut self, other: &Self);
}

impl Field for u64 {
    fn value(&self) -> Value<'_> {
        Value::Count(*self)
    }
    fn add(&mut self, other: &Self) {
        *self += other;
    }
}

impl Field for i64 {
    fn value(&self) -> Value<'_> {
        Value::Level(*self)
    }
    fn add(&mut self, other: &Self) {
        *self += other;
    }
}

impl<const N: usize> Field for [u64; N] {
    fn value(&self) -> Value<'_> {
        Value::Counts(self)
    }
    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.iter_mut().zip(other) {
            *mine += theirs;
        }
    }
}

impl Field for Micros {
    fn value(&self) -> Value<'_> {
        Value::Time(self.0)
    }
    fn add(&mut self, other: &Self) {
        self.0 += other.0;
    }
}

impl<const N: usize> Field for MicrosBy<N> {
    fn value(&self) -> Value<'_> {
        Value::Times(&self.0)
    }
    fn add(&mut self, other: &Self) {
        self.0.add(&other.0);
    }
}

impl<const N: usize> Field for Sparse<N> {
    fn value(&self) -> Value<'_> {
        Value::Sparse(&self.0)
    }
    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            if let Some(theirs) = theirs {
                *mine.get_or_insert(0) += theirs;
            }
        }
    }
}

impl Field for Facts {
    fn value(&self) -> Value<'_> {
        Value::Facts(&self.0)
    }
    /// What is so for one process is said once.
    fn add(&mut self, _: &Self) {}
}

impl Field for Histogram<Requests> {
    fn value(&self) -> Value<'_> {
        Value::Requests(self)
    }
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }
}

impl Field for Histogram<Own> {
    fn value(&self) -> Value<'_> {
        Value::Own(self)
    }
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }
}

impl Field for Histogram<Lifetimes> {
    fn value(&self) -> Value<'_> {
        Value::Lifetimes(self)
    }
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }
}

/// Counters that can be added up, field by field.
pub(super) trait Merge {
    fn merge_fields(&mut self, other: &Self);
}

/// Declares an enum whose variants are the values of a label, and index an array of counters.
macro_rules! label {
    ($(#[$meta:meta])* $Label:ident { $(#[doc = $help:literal] $Variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Label { $(#[doc = $help] $Variant,)+ }

        impl $Label {
            /// The label's values in the order of the variants.
            pub const VALUES: &'static [&'static str] = &[$($value),+];
            /// How many there are.
            pub const COUNT: usize = Self::VALUES.len();

            /// The place in an array of counters.
            #[inline]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

/// Declares a struct of counters and the rows that publish them, so that neither can be without the other.
macro_rules! table {
    (
        $(#[$meta:meta])*
        $Counters:ident {
            $(#[doc = $help:literal]
              $field:ident: $type:ty = $kind:ident $name:literal per $per:ident $(by $label:literal in $values:expr)?;)*
        }
        $(also { $($(#[$also_meta:meta])* $also_vis:vis $also:ident: $also_type:ty,)* })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $Counters {
            $(#[doc = $help] pub $field: $type,)*
            $($($(#[$also_meta])* $also_vis $also: $also_type,)*)?
        }

        impl $Counters {
            /// The rows of the table, in the order of [`Self::values`].
            pub const METRICS: &'static [Metric] = &[$(Metric {
                name: $name,
                kind: MetricKind::$kind,
                help: $help.trim_ascii(),
                per: Per::$per,
                by: table!(@by $($label in $values)?),
            }),*];

            /// What the fields hold, in the order of [`Self::METRICS`].
            pub fn values(&self) -> [Value<'_>; Self::METRICS.len()] {
                [$(self.$field.value()),*]
            }
        }

        impl Merge for $Counters {
            fn merge_fields(&mut self, other: &Self) {
                $(self.$field.add(&other.$field);)*
            }
        }
    };
    (@by) => { None };
    (@by $label:literal in $values:expr) => { Some(($label, $values)) };
}

pub(super) use {label, table};
