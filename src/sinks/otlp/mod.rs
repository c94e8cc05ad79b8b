//! Spans to a collector, by OTLP over HTTP as protobuf (docs/tracing.md, decision 28). One per process, on the control
//! thread.
//!
//! `queue` decides what is sent when and what is given up, `encode` makes requests of spans, `post` sends one.

mod encode;
mod post;
mod queue;

use std::{rc::Rc, time::Duration};

use encode::Resource;
use hyper::body::Bytes;
use post::{Answer, Endpoint};
use queue::Queue;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    config::Trace,
    shard::{Instant, clock, complaints::Complaints},
    telemetry::{
        dependency::ExportHealth,
        metrics::{ExportFailure, SpanLoss},
        spans::SpanBatch,
    },
};

/// How often trouble that goes on is told.
const TROUBLE_INTERVAL: Duration = Duration::from_mins(1);

/// Sends spans to where the configuration says.
#[derive(Debug)]
pub struct Exporter {
    /// What the process is called, and the machine.
    node: Box<str>,
    target: Option<Target>,
    queue: Queue,
    under_way: Option<JoinHandle<Answer>>,
    trouble: Option<Trouble>,
    /// Spans that were not taken, among others that were.
    rejected: Complaints,
    counts: ExportCounts,
    is_closing: bool,
}

/// Where spans go.
#[derive(Debug)]
struct Target {
    settings: Trace,
    endpoint: Rc<Endpoint>,
    resource: Resource,
}

/// What has gone wrong since the last request that was taken.
#[derive(Debug)]
struct Trouble {
    why: ExportFailure,
    failures: u64,
    dropped_before: u64,
    told_at: Instant,
}

/// What was counted of spans on their way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportCounts {
    /// Spans that were taken.
    pub exported: u64,
    /// Spans that nobody has, by reason.
    pub dropped: [u64; SpanLoss::COUNT],
    /// Requests that failed, by reason.
    pub failures: [u64; ExportFailure::COUNT],
}

/// Settings of which the certificates are read, so that nothing of them can fail any more. Moves between threads.
#[derive(Debug)]
pub struct Prepared {
    settings: Trace,
    /// Nothing where spans are not exported.
    endpoint: Option<Endpoint>,
}

impl Prepared {
    /// Reads the certificates, the system's where none are named, and says what is wrong with them.
    pub fn new(settings: &Trace) -> Result<Self, String> {
        let endpoint = settings.url().map(|url| Endpoint::new(&url, settings)).transpose()?;
        Ok(Self { settings: settings.clone(), endpoint })
    }
}

impl Exporter {
    /// One that sends spans as configured. `node` is what the hub calls this process. Says what is wrong with the
    /// certificates.
    pub fn new(node: &str, settings: &Trace) -> Result<Self, String> {
        let mut exporter = Self {
            node: node.into(),
            target: None,
            queue: Queue::default(),
            under_way: None,
            trouble: None,
            rejected: Complaints::new(),
            counts: ExportCounts::default(),
            is_closing: false,
        };
        exporter.adopt(Prepared::new(settings)?);
        Ok(exporter)
    }

    /// Whether spans are sent by these settings already.
    pub fn goes_by(&self, settings: &Trace) -> bool {
        // Of the same name, a file of certificates may have others now.
        settings.ca_file.is_none() && self.target.as_ref().is_some_and(|target| target.settings == *settings)
    }

    /// From now on spans go there; those that wait do too.
    pub fn adopt(&mut self, Prepared { settings, endpoint }: Prepared) {
        let Some(endpoint) = endpoint else {
            self.target = None;
            self.trouble = None;
            if let Some(under_way) = self.under_way.take() {
                under_way.abort();
            }
            self.counts.dropped[SpanLoss::GaveUp.index()] += self.queue.clear();
            return;
        };
        let resource = Resource::new(&settings, &self.node);
        self.queue.set(settings.queue_spans);
        tracing::info!(endpoint = settings.url(), "spans are exported");
        self.target = Some(Target { settings, endpoint: Rc::new(endpoint), resource });
    }

    /// Spans of a shard.
    pub fn take(&mut self, batch: &SpanBatch) {
        self.counts.dropped[SpanLoss::ShardFull.index()] += u64::from(batch.dropped);
        if self.target.is_some() {
            let dropped = self.queue.take(clock::now(), batch);
            self.counts.dropped[SpanLoss::QueueFull.index()] += dropped;
        } else {
            self.counts.dropped[SpanLoss::GaveUp.index()] += batch.len() as u64;
        }
    }

    /// Sends what is due, and returns when something has happened. Dropping the future loses nothing.
    pub async fn turn(&mut self) {
        if let Some(under_way) = &mut self.under_way {
            // A task that is gone was aborted, or panicked; either way nobody has its spans.
            let answer =
                under_way.await.unwrap_or(Answer::Failed { why: ExportFailure::Unreachable, detail: String::new() });
            self.under_way = None;
            self.heard(clock::now(), &answer);
            return;
        }
        let now = clock::now();
        let Some((due, target)) = self.queue.poll_timeout(self.is_closing).zip(self.target.as_ref()) else {
            return std::future::pending().await;
        };
        if due > now {
            return sleep(due.since(now)).await;
        }
        let encode = |batch: &SpanBatch| Bytes::from(encode::request(&target.resource, batch));
        if let Some(body) = self.queue.begin(now, encode) {
            let endpoint = Rc::clone(&target.endpoint);
            self.under_way = Some(tokio::task::spawn_local(async move { endpoint.post(body).await }));
        }
    }

    /// What came of a request.
    fn heard(&mut self, now: Instant, answer: &Answer) {
        let (why, detail) = match answer {
            Answer::Taken { rejected, message } => {
                let spans = self.queue.taken();
                let rejected = (*rejected).min(spans);
                self.counts.exported += spans - rejected;
                self.counts.dropped[SpanLoss::Rejected.index()] += rejected;
                if let Some(rejected) = self.rejected.add(now, rejected) {
                    tracing::warn!(rejected, detail = message, "the collector took some spans only");
                }
                if let Some(trouble) = self.trouble.take() {
                    let dropped = self.dropped() - trouble.dropped_before;
                    tracing::info!(failures = trouble.failures, dropped, "spans are exported again");
                }
                return;
            }
            Answer::Busy { after } => {
                self.counts.failures[ExportFailure::Busy.index()] += 1;
                let given_up = self.queue.failed(now, *after);
                self.counts.dropped[SpanLoss::GaveUp.index()] += given_up;
                (ExportFailure::Busy, "it asks for patience")
            }
            Answer::Failed { why, detail } => {
                self.counts.failures[why.index()] += 1;
                let given_up = self.queue.failed(now, None);
                self.counts.dropped[SpanLoss::GaveUp.index()] += given_up;
                (*why, detail.as_str())
            }
            Answer::Refused { detail } => {
                self.counts.failures[ExportFailure::Refused.index()] += 1;
                self.counts.dropped[SpanLoss::Refused.index()] += self.queue.refused(now);
                (ExportFailure::Refused, detail.as_str())
            }
        };
        self.tell_trouble(now, why, detail);
    }

    /// The first failure is told, and then how many there were, now and then.
    fn tell_trouble(&mut self, now: Instant, why: ExportFailure, detail: &str) {
        let dropped = self.dropped();
        let error = ExportFailure::VALUES[why.index()];
        match &mut self.trouble {
            None => {
                self.trouble = Some(Trouble { why, failures: 1, dropped_before: dropped, told_at: now });
                tracing::warn!(
                    error,
                    detail,
                    "spans cannot be exported; they wait, and past trace.queue_spans they are dropped"
                );
            }
            Some(trouble) => {
                trouble.failures += 1;
                trouble.why = why;
                if now.since(trouble.told_at) >= TROUBLE_INTERVAL {
                    trouble.told_at = now;
                    let (failures, dropped) = (trouble.failures, dropped - trouble.dropped_before);
                    tracing::warn!(error, detail, failures, dropped, "spans still cannot be exported");
                }
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.counts.dropped.iter().sum()
    }

    /// What was counted so far.
    pub fn counts(&self) -> ExportCounts {
        self.counts
    }

    /// Spans that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How the way out is.
    pub fn health(&self) -> ExportHealth {
        match (&self.target, &self.trouble) {
            (None, _) => ExportHealth::Off,
            (Some(_), None) => ExportHealth::Up,
            (Some(_), Some(trouble)) => ExportHealth::Failing(ExportFailure::VALUES[trouble.why.index()]),
        }
    }

    /// Sends what waits as the process ends, if somebody takes it within this time.
    pub async fn close(&mut self, within: Duration) {
        self.is_closing = true;
        let sent = timeout(within, async {
            while self.target.is_some() && self.queue.len() > 0 && self.trouble.is_none() {
                self.turn().await;
            }
        });
        if sent.await.is_err() || self.queue.len() > 0 {
            tracing::warn!(spans = self.queue.len(), "spans could not be exported before the end; they are lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::spans::{Span, SpanFacts, SpanTexts};

    #[test]
    fn what_a_collector_rejects_is_told_once_a_second_with_a_count() {
        let mut exporter = Exporter::new("here", &Trace::default()).expect("nothing is wrong");
        exporter.queue.set(10);
        let mut batch = SpanBatch::default();
        batch.push(&Span { facts: SpanFacts::BLANK, texts: SpanTexts::default() });
        let now = Instant::START + Duration::from_secs(1);
        for _ in 0..3 {
            exporter.queue.take(now, &batch);
            exporter.queue.begin(now, |_| Bytes::new());
            exporter.heard(now, &Answer::Taken { rejected: 9, message: "too old".to_owned() });
        }
        assert_eq!(exporter.counts().dropped[SpanLoss::Rejected.index()], 3);
        let later = now + Duration::from_secs(1);
        assert_eq!(exporter.rejected.add(later, 0), Some(2), "the first was told, the others will be");
    }
}
