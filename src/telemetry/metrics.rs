//! The one table of metrics, and the plain counters that it declares.
//!
//! A row gives a counter's field, type, published name, labels and meaning; `exposition` publishes what stands here,
//! and a test keeps `docs/metrics.md` true to it. Counting is adding to a field of the shard's own [`Counters`]; a
//! scrape asks each shard for a copy.

use super::histogram::{Histogram, Own, Requests};
use super::slots::{SLOTS_MAX, Slot, Slots};

/// What Prometheus is told a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until the process ends.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Durations counted into buckets.
    Histogram,
}

impl Kind {
    /// The word in `# TYPE`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
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
    /// One for each upstream, label `upstream`, the shards added up.
    Upstream,
}

impl Per {
    /// The label that tells one series from another.
    pub const fn label(self) -> Option<&'static str> {
        match self {
            Self::Process => None,
            Self::Shard => Some("shard"),
            Self::Route => Some("route"),
            Self::Upstream => Some("upstream"),
        }
    }
}

/// The values of a further label, in the order of an array's elements.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// Known here.
    Fixed(&'static [&'static str]),
    /// The codes of refusals, which a floor above lists in [`Names::reject_codes`].
    RejectCodes,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The published name, its unit last.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
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
    /// Durations of whole requests.
    Requests(&'a Histogram<Requests>),
    /// Durations of the gateway's own work.
    Own(&'a Histogram<Own>),
}

/// What a field of the counters can do.
trait Field {
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

/// Counters that can be added up, field by field.
trait Merge {
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

label! {
    /// Why a fresh connection was closed unserved.
    Refusal {
        /// The shard or the process serves as many as it may.
        Limit = "limit",
        /// The process has no file descriptor left.
        Descriptors = "descriptors",
        /// The gateway drains.
        Draining = "draining",
    }
}

label! {
    /// How one attempt at an upstream ended.
    Outcome {
        /// A whole answer with a status below 500.
        Answered = "answered",
        /// A whole answer with status 500 or above.
        ServerError = "server_error",
        /// No connection came about.
        ConnectFailed = "connect_failed",
        /// It did not answer, or went silent, for longer than it may.
        TimedOut = "timed_out",
        /// The connection ended before the answer was complete.
        Closed = "closed",
        /// What came was no HTTP.
        Malformed = "malformed",
        /// The client left, and the request was cancelled.
        Cancelled = "cancelled",
    }
}

label! {
    /// How a reload ended.
    Reload {
        /// Every shard runs the new configuration.
        Applied = "applied",
        /// The file has mistakes, and the old configuration stays.
        Refused = "refused",
    }
}

/// The hundreds of an answer's status; the last is for requests that ended without an answer.
pub const STATUS_CLASSES: &[&str] = &["1xx", "2xx", "3xx", "4xx", "5xx", "none"];
/// Room for the codes of refusals.
pub const REJECT_CODES_MAX: usize = 64;

/// Declares a struct of counters and the rows that publish them, so that neither can be without the other.
macro_rules! table {
    (
        $(#[$meta:meta])*
        $Counters:ident {
            $(#[doc = $help:literal]
              $field:ident: $type:ty = $kind:ident $name:literal per $per:ident $(by $label:literal in $values:expr)?;)*
        }
        $(also { $($(#[$also_meta:meta])* $also:ident: $also_type:ty,)* })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $Counters {
            $(#[doc = $help] pub $field: $type,)*
            $($($(#[$also_meta])* $also: $also_type,)*)?
        }

        impl $Counters {
            /// The rows of the table, in the order of [`Self::values`].
            pub const METRICS: &'static [Metric] = &[$(Metric {
                name: $name,
                kind: Kind::$kind,
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

table! {
    /// What one shard counts. One per shard; copies answer a scrape.
    Counters {
        /// Connections accepted from clients.
        connections_accepted: u64 = Counter "shardgate_connections_accepted_total" per Process;
        /// Fresh connections closed unserved, by reason.
        connections_refused: [u64; Refusal::COUNT] = Counter "shardgate_connections_refused_total" per Process
            by "reason" in Values::Fixed(Refusal::VALUES);
        /// Client connections open now.
        connections_open: i64 = Gauge "shardgate_connections_open" per Shard;
        /// Fresh connections handed to a shard with fewer of them.
        connections_handed_over: u64 = Counter "shardgate_connections_handed_over_total" per Shard;
        /// Accepts that failed for want of descriptors or memory.
        accept_errors: u64 = Counter "shardgate_accept_errors_total" per Process;
        /// Requests that ended, by the shard that served them.
        requests: u64 = Counter "shardgate_shard_requests_total" per Shard;
        /// Requests being served now.
        requests_in_flight: i64 = Gauge "shardgate_requests_in_flight" per Shard;
        /// Time that the gateway itself added to a request.
        gateway_duration: Histogram<Own> = Histogram "shardgate_gateway_duration_seconds" per Process;
        /// Requests that the gateway refused, by error code.
        rejects: [u64; REJECT_CODES_MAX] = Counter "shardgate_rejects_total" per Process
            by "code" in Values::RejectCodes;
        /// Access-log lines dropped because they could not be written in time.
        access_log_dropped: u64 = Counter "shardgate_access_log_dropped_total" per Process;
        /// Panics caught; each closed one connection.
        panics: u64 = Counter "shardgate_panics_total" per Process;
        /// Letters to other shards that found their ring full and were kept aside.
        mesh_spilled: u64 = Counter "shardgate_mesh_spilled_total" per Process;
        /// How much later than due a shard's regular timer ran.
        loop_lag: Histogram<Own> = Histogram "shardgate_loop_lag_seconds" per Shard;
        /// Number of the configuration that a shard runs.
        config_generation: i64 = Gauge "shardgate_config_generation" per Shard;
        /// Buffers lent to connections now.
        buffers_lent: i64 = Gauge "shardgate_buffers_lent" per Shard;
        /// Buffers kept for the next connection that needs one.
        buffers_idle: i64 = Gauge "shardgate_buffers_idle" per Shard;
        /// Buffers allocated because none was idle.
        buffers_allocated: u64 = Counter "shardgate_buffers_allocated_total" per Process;
    }
    also {
        routes: Vec<RouteCounters>,
        upstreams: Vec<UpstreamCounters>,
    }
}

table! {
    /// What one shard counts of one route.
    #[derive(Default)]
    RouteCounters {
        /// Requests that ended, by the class of their status.
        requests: [u64; STATUS_CLASSES.len()] = Counter "shardgate_requests_total" per Route
            by "status" in Values::Fixed(STATUS_CLASSES);
        /// Time from a request's first byte to its answer's last.
        duration: Histogram<Requests> = Histogram "shardgate_request_duration_seconds" per Route;
        /// Bytes of request bodies received.
        request_bytes: u64 = Counter "shardgate_request_body_bytes_total" per Route;
        /// Bytes of answer bodies sent.
        response_bytes: u64 = Counter "shardgate_response_body_bytes_total" per Route;
    }
}

table! {
    /// What one shard counts of one upstream.
    #[derive(Default)]
    UpstreamCounters {
        /// Attempts that ended, by outcome.
        requests: [u64; Outcome::COUNT] = Counter "shardgate_upstream_requests_total" per Upstream
            by "outcome" in Values::Fixed(Outcome::VALUES);
        /// Requests in flight to it now.
        requests_in_flight: i64 = Gauge "shardgate_upstream_requests_in_flight" per Upstream;
        /// Time that requests waited for it.
        duration: Histogram<Requests> = Histogram "shardgate_upstream_duration_seconds" per Upstream;
        /// Connections opened to it.
        connections_opened: u64 = Counter "shardgate_upstream_connections_opened_total" per Upstream;
        /// Requests that went over a connection used before.
        connections_reused: u64 = Counter "shardgate_upstream_connections_reused_total" per Upstream;
        /// Connections to it that wait for a request now.
        connections_idle: i64 = Gauge "shardgate_upstream_connections_idle" per Upstream;
        /// Requests sent to it again.
        retries: u64 = Counter "shardgate_upstream_retries_total" per Upstream;
        /// Instances of it that were taken out for failing.
        ejections: u64 = Counter "shardgate_upstream_ejections_total" per Upstream;
    }
}

table! {
    /// What the control thread counts. One per process.
    #[derive(Default)]
    ProcessCounters {
        /// Reloads of the configuration, by result.
        config_reloads: [u64; Reload::COUNT] = Counter "shardgate_config_reloads_total" per Process
            by "result" in Values::Fixed(Reload::VALUES);
        /// When the process started, in seconds since 1970.
        start_time: i64 = Gauge "shardgate_start_time_seconds" per Process;
        /// Shards that should answer a scrape.
        shards: i64 = Gauge "shardgate_shards" per Process;
        /// Shards that answered this scrape in time.
        shards_answered: i64 = Gauge "shardgate_shards_answered" per Process;
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections_accepted: 0,
            connections_refused: [0; Refusal::COUNT],
            connections_open: 0,
            connections_handed_over: 0,
            accept_errors: 0,
            requests: 0,
            requests_in_flight: 0,
            gateway_duration: Histogram::default(),
            rejects: [0; REJECT_CODES_MAX],
            access_log_dropped: 0,
            panics: 0,
            mesh_spilled: 0,
            loop_lag: Histogram::default(),
            config_generation: 0,
            buffers_lent: 0,
            buffers_idle: 0,
            buffers_allocated: 0,
            routes: vec![RouteCounters::default()],
            upstreams: vec![UpstreamCounters::default()],
        }
    }
}

/// What is counted of a request when it ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// The route's slot; [`OTHER`](super::slots::OTHER) when no route took it.
    pub route: Slot,
    /// The answer's status; 0 when there was none.
    pub status: u16,
    /// From the request's first byte to the answer's last.
    pub total_us: u64,
    /// The part of it that the gateway added.
    pub gateway_us: u64,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
}

impl Counters {
    /// Counts a request that ended; once for each.
    #[inline]
    pub fn finish(&mut self, finished: &Finished) {
        self.requests += 1;
        self.gateway_duration.observe_us(finished.gateway_us);
        let route = self.route(finished.route);
        route.requests[status_class(finished.status)] += 1;
        route.duration.observe_us(finished.total_us);
        route.request_bytes += finished.request_bytes;
        route.response_bytes += finished.response_bytes;
    }

    /// The counters of a route.
    #[inline]
    pub fn route(&mut self, slot: Slot) -> &mut RouteCounters {
        at(&mut self.routes, slot)
    }

    /// The counters of an upstream.
    #[inline]
    pub fn upstream(&mut self, slot: Slot) -> &mut UpstreamCounters {
        at(&mut self.upstreams, slot)
    }

    /// Counts a refusal by the place of its code in [`Names::reject_codes`].
    #[inline]
    pub fn reject(&mut self, code: usize) {
        if let Some(count) = self.rejects.get_mut(code) {
            *count += 1;
        }
    }

    /// Makes room for the slots of a new configuration, so that no request has to.
    pub fn make_room(&mut self, routes: usize, upstreams: usize) {
        grow(&mut self.routes, routes);
        grow(&mut self.upstreams, upstreams);
    }

    /// Adds what another shard counted.
    pub fn merge(&mut self, other: &Self) {
        self.merge_fields(other);
        self.make_room(other.routes.len(), other.upstreams.len());
        for (mine, theirs) in self.routes.iter_mut().zip(&other.routes) {
            mine.merge_fields(theirs);
        }
        for (mine, theirs) in self.upstreams.iter_mut().zip(&other.upstreams) {
            mine.merge_fields(theirs);
        }
    }

    /// The counters of all routes, by slot.
    pub fn routes(&self) -> &[RouteCounters] {
        &self.routes
    }

    /// The counters of all upstreams, by slot.
    pub fn upstreams(&self) -> &[UpstreamCounters] {
        &self.upstreams
    }
}

/// The element of a slot. A slot that came before [`Counters::make_room`] did costs its first use an allocation.
#[inline]
fn at<T: Default>(elements: &mut Vec<T>, slot: Slot) -> &mut T {
    if slot.index() >= elements.len() {
        grow(elements, slot.index() + 1);
    }
    &mut elements[slot.index()]
}

#[cold]
fn grow<T: Default>(elements: &mut Vec<T>, length: usize) {
    if length > elements.len() {
        elements.resize_with(length.min(SLOTS_MAX), T::default);
    }
}

#[inline]
fn status_class(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => usize::from(class) - 1,
        _ => STATUS_CLASSES.len() - 1,
    }
}

/// The names behind slots and codes. One per process, with whoever answers scrapes.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Routes by slot.
    pub routes: Slots,
    /// Upstreams by slot.
    pub upstreams: Slots,
    /// Codes of refusals by the number that [`Counters::reject`] takes.
    pub reject_codes: &'static [&'static str],
}
