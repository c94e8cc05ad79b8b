//! What is sent when, what waits where and what is given up: all decisions of the sink, without sockets or a clock.
//!
//! Rows become batches by size and time. While the server takes them they wait in memory; as soon as it does not, they go
//! to files, and what comes then behind them. What finds no room is dropped and counted.

mod files;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use files::Files;

use super::answer::{Answer, Verdict, advice};
use super::batch::{Batch, Builder, compress, token};
use super::split::{Splitting, Step};
use super::table::Version;
use crate::config::Clickhouse;
use crate::shard::Instant;
use crate::telemetry::dependency::{Condition, ConditionChange, Dependency, LoggedCondition};
use crate::telemetry::metrics::{ClickhouseCounters, RequestResult, RowOutcome};

/// The server is asked how it is this long after it last answered, if there is nothing to be sent.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// After a failure the next request waits so long, and twice as long after each further one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// But not longer: how soon rows go on after an outage.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// After so many failures that do not tell whether the rows are to blame, they are sent in parts.
const UNSURE_MAX: u32 = 3;
/// Batches with a bad name that are remembered.
const TROUBLE_MAX: usize = 64;
/// No batch has more rows than that, whatever it was configured by.
const INFLATED_MAX: usize = 64 << 20;

/// Rows of one shard on their way to the sink. Moves from the access log's thread.
#[derive(Debug)]
pub(super) struct Rows {
    /// The number of the first, and how many there are.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) lines: Vec<u8>,
    /// Rows that found no room on the way before these.
    pub(super) dropped: u64,
    /// Their share of the room on the way, which is free again when they are gone.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// What the server is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// What it is, and whether it is there.
    Version,
    /// To take these rows.
    Insert { gzip: Bytes, token: u128, version: Version },
}

/// How much may wait where.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    batch_bytes: usize,
    batch_interval: Duration,
    /// Memory, without what is on its way from the access log's thread.
    memory_max: usize,
}

impl Rules {
    /// `memory_max` is what the access log's thread leaves of it.
    pub(super) fn new(config: &Clickhouse, memory_max: usize) -> Self {
        Self { batch_bytes: config.batch_bytes, batch_interval: config.batch_interval, memory_max }
    }
}

/// The sink's state. One per process.
pub(super) struct Sink {
    rules: Rules,
    /// The process's name, in each row.
    node: Box<str>,
    builder: Option<Builder>,
    /// Batches that wait in memory, behind those in files.
    queue: VecDeque<Batch>,
    files: Files,
    under_way: Option<UnderWay>,
    asked: Option<Request>,
    /// `None` until the server has told it since it last failed.
    version: Option<Version>,
    ask_at: Instant,
    /// Failures in a row, and when the next request may be made.
    failures: u32,
    retry_at: Instant,
    rng: fastrand::Rng,
    /// Parts that the server has taken so far.
    taken: u64,
    troubles: VecDeque<Trouble>,
    /// Why the server cannot be asked, and why it does not take rows.
    away: Option<&'static str>,
    refusing: Option<&'static str>,
    told: LoggedCondition,
    dependency: Option<Dependency>,
    counters: ClickhouseCounters,
    /// Rows that were dropped since the log was last told.
    dropped_untold: u64,
}

/// A batch that is being sent.
struct UnderWay {
    batch: Batch,
    /// It is the first of the files.
    is_spilled: bool,
    splitting: Option<Box<Splitting>>,
    /// The rows that were asked about last.
    part: Range<usize>,
    /// The server's code for what it refused.
    code: u32,
}

/// A batch that was not taken although the server answered.
struct Trouble {
    token: u128,
    /// How often without saying why.
    unsure: u32,
    /// How many parts of others had been taken when all of it was refused.
    refused_at: Option<u64>,
}

impl Sink {
    pub(super) fn new(now: Instant, node: Box<str>, rules: Rules, spill: Option<(PathBuf, u64)>, seed: u64) -> Self {
        Self {
            rules,
            node,
            builder: None,
            queue: VecDeque::new(),
            files: Files::new(now, spill),
            under_way: None,
            asked: None,
            version: None,
            ask_at: now,
            failures: 0,
            retry_at: now,
            rng: fastrand::Rng::with_seed(seed),
            taken: 0,
            troubles: VecDeque::new(),
            away: None,
            refusing: None,
            told: LoggedCondition::default(),
            dependency: None,
            counters: ClickhouseCounters::default(),
            dropped_untold: 0,
        }
    }

    /// Other sizes, and perhaps another server: it is asked at once.
    pub(super) fn adopt(&mut self, now: Instant, rules: Rules) {
        self.rules = rules;
        (self.version, self.ask_at, self.retry_at) = (None, now, now);
    }

    /// Rows that came.
    pub(super) fn handle_rows(&mut self, now: Instant, unix_ms: u64, rows: &Rows) {
        self.drop_rows(rows.dropped);
        if self.memory() + rows.lines.len() > self.rules.memory_max {
            return self.drop_rows(rows.count);
        }
        let builder = self.builder.get_or_insert_with(|| Builder::new(now, unix_ms));
        builder.push(&self.node, rows.first, &rows.lines);
        if builder.bytes() >= self.rules.batch_bytes {
            self.seal();
        }
    }

    fn drop_rows(&mut self, count: u64) {
        self.counters.rows[RowOutcome::Dropped.index()] += count;
        self.dropped_untold += count;
    }

    /// Memory of all rows that wait.
    fn memory(&self) -> usize {
        let under_way = self.under_way.as_ref().map_or(0, |under_way| {
            under_way.batch.gzip.len() + under_way.splitting.as_ref().map_or(0, |splitting| splitting.memory())
        });
        let queue: usize = self.queue.iter().map(|batch| batch.gzip.len()).sum();
        self.builder.as_ref().map_or(0, Builder::memory) + queue + under_way + self.files.memory()
    }

    /// Ends the batch that grows.
    pub(super) fn seal(&mut self) {
        let Some(batch) = self.builder.take().map(Builder::finish) else { return };
        let is_behind = self.queue.iter().map(|batch| batch.gzip.len()).sum::<usize>() > self.rules.memory_max / 2;
        if self.failures > 0 || is_behind {
            self.move_to_files();
        }
        if !(self.failures > 0 || is_behind || !self.files.is_empty()) || !self.files.append(&batch) {
            self.queue.push_back(batch);
        }
    }

    /// Everything that waits in memory goes to files, in order, as far as there is room.
    fn move_to_files(&mut self) {
        while let Some(batch) = self.queue.pop_front() {
            if !self.files.append(&batch) {
                self.queue.push_front(batch);
                return;
            }
        }
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.builder.as_ref().is_some_and(|builder| now >= builder.since + self.rules.batch_interval) {
            self.seal();
        }
        self.files.handle_timeout(now);
    }

    /// When to call again even if nothing happens.
    pub(super) fn poll_timeout(&self) -> Instant {
        let seal_at = self.builder.as_ref().map_or(Instant::NEVER, |builder| builder.since + self.rules.batch_interval);
        let next_request = match () {
            () if self.asked.is_some() => Instant::NEVER,
            () if self.has_work() => self.retry_at,
            () => self.ask_at.max(self.retry_at),
        };
        seal_at.min(self.files.poll_timeout()).min(next_request)
    }

    fn has_work(&self) -> bool {
        self.under_way.is_some() || !self.queue.is_empty() || !self.files.is_empty()
    }

    /// What is to be asked now; not again before that is answered.
    pub(super) fn poll_request(&mut self, now: Instant) -> Option<Request> {
        if self.asked.is_some() || now < self.retry_at {
            return None;
        }
        let request = match self.version {
            Some(version) => self.next_insert(version),
            None => Some(Request::Version),
        };
        self.asked = request.or_else(|| (now >= self.ask_at).then_some(Request::Version));
        self.asked.clone()
    }

    fn next_insert(&mut self, version: Version) -> Option<Request> {
        if self.under_way.is_none() {
            let spilled = self.files.front();
            let is_spilled = spilled.is_some();
            let batch = spilled.or_else(|| self.queue.pop_front())?;
            self.under_way = Some(UnderWay { batch, is_spilled, splitting: None, part: 0..0, code: 0 });
        }
        let under_way = self.under_way.as_mut()?;
        let gzip = match &mut under_way.splitting {
            None => under_way.batch.gzip.clone(),
            Some(splitting) => match splitting.step() {
                Step::Send(part) => {
                    let gzip = compress(splitting.bytes(&part));
                    under_way.part = part;
                    gzip
                }
                // Whoever handles an answer goes on until there is something to be sent.
                Step::Done | Step::NothingTaken => return None,
            },
        };
        Some(Request::Insert { token: token(&gzip), gzip, version })
    }

    /// What came of the request, after so long; or why there is no answer, as a class.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        unix: Duration,
        took: Duration,
        answer: Result<Answer, &'static str>,
    ) {
        let Some(asked) = self.asked.take() else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(class) => {
                self.away = Some(class);
                return self.fail(now, unix, took);
            }
        };
        self.ask_at = now + ASK_INTERVAL;
        match asked {
            Request::Version => self.handle_version(now, unix, took, &answer),
            Request::Insert { .. } => self.handle_verdict(now, unix, took, answer.verdict()),
        }
    }

    fn handle_version(&mut self, now: Instant, unix: Duration, took: Duration, answer: &Answer) {
        let version = str::from_utf8(&answer.text).ok().and_then(Version::parse).filter(|_| answer.status == 200);
        if version.is_none() {
            self.away = Some(match answer.verdict() {
                Verdict::Away(class) => class,
                _ => "unexpected",
            });
            return self.fail(now, unix, took);
        }
        (self.version, self.away) = (version, None);
        self.count(RequestResult::Good);
        if self.refusing.is_none() {
            self.failures = 0;
        }
        self.note(unix, took);
    }

    fn handle_verdict(&mut self, now: Instant, unix: Duration, took: Duration, verdict: Verdict) {
        let Some(under_way) = &mut self.under_way else { return };
        match verdict {
            Verdict::Taken => {
                self.taken += 1;
                (self.failures, self.away, self.refusing) = (0, None, None);
                self.count(RequestResult::Good);
                self.note(unix, took);
                match self.under_way.as_mut().and_then(|under_way| under_way.splitting.as_mut()) {
                    None => self.finish(0),
                    Some(splitting) => {
                        splitting.handle_taken();
                        self.go_on(now, unix, took);
                    }
                }
            }
            Verdict::Rows(code) => self.refused(now, unix, took, code),
            Verdict::Unsure(code) => {
                let is_split = under_way.splitting.is_some();
                let token = under_way.batch.token();
                let trouble = self.trouble(token);
                trouble.unsure += 1;
                if is_split || trouble.unsure >= UNSURE_MAX {
                    return self.refused(now, unix, took, code);
                }
                tracing::debug!(code, "ClickHouse: an insert failed");
                self.refusing = Some("failed");
                self.fail(now, unix, took);
            }
            Verdict::Away(class) => {
                self.refusing = Some(class);
                self.fail(now, unix, took);
            }
        }
    }

    /// The rows that were sent are refused.
    fn refused(&mut self, now: Instant, unix: Duration, took: Duration, code: u32) {
        self.count(RequestResult::Rejected);
        self.away = None;
        let Some(under_way) = &mut self.under_way else { return };
        under_way.code = code;
        if let Some(splitting) = &mut under_way.splitting {
            splitting.handle_refused();
        } else {
            let token = under_way.batch.token();
            let Ok(rows) = under_way.batch.inflate(INFLATED_MAX) else {
                // It was never a batch of ours: nothing of it can be sent in parts.
                let rows = u64::from(under_way.batch.rows);
                return self.finish(rows);
            };
            let taken = self.taken;
            let takes_others = self.trouble(token).refused_at.is_some_and(|before| taken > before);
            if let Some(under_way) = &mut self.under_way {
                under_way.splitting = Some(Box::new(Splitting::new(rows, takes_others)));
            }
        }
        self.go_on(now, unix, took);
    }

    /// Goes on with a batch that is sent in parts, as far as that goes without the server.
    fn go_on(&mut self, now: Instant, unix: Duration, took: Duration) {
        let Some(UnderWay { splitting: Some(splitting), code, .. }) = &mut self.under_way else { return };
        match splitting.step() {
            Step::Send(_) => {}
            Step::Done => {
                let (refused, first) = splitting.refused();
                if refused > 0 {
                    tracing::error!(rows = refused, code = *code, first, "ClickHouse refuses rows; they are lost");
                }
                self.finish(refused);
            }
            Step::NothingTaken => {
                self.put_behind();
                self.refusing = Some("rejected");
                self.fail(now, unix, took);
            }
        }
    }

    /// The batch that nothing is taken of waits behind the others, which may fare better.
    fn put_behind(&mut self) {
        let Some(UnderWay { batch, is_spilled, .. }) = self.under_way.take() else { return };
        let taken = self.taken;
        self.trouble(batch.token()).refused_at.get_or_insert(taken);
        if !is_spilled {
            self.queue.push_back(batch);
            return;
        }
        // Where files have no room it waits in memory: at their front it would hold all that is behind it.
        if !self.files.append(&batch) {
            if self.memory() + batch.gzip.len() > self.rules.memory_max {
                return;
            }
            self.queue.push_back(batch);
        }
        self.files.pop();
    }

    /// The batch is sent, but for so many of its rows.
    fn finish(&mut self, refused: u64) {
        let Some(UnderWay { batch, is_spilled, .. }) = self.under_way.take() else { return };
        let token = batch.token();
        self.troubles.retain(|trouble| trouble.token != token);
        if is_spilled {
            self.files.pop();
        }
        self.counters.batches += 1;
        self.counters.rows[RowOutcome::Refused.index()] += refused;
        self.counters.rows[RowOutcome::Sent.index()] += u64::from(batch.rows).saturating_sub(refused);
    }

    /// What is remembered of a batch.
    fn trouble(&mut self, token: u128) -> &mut Trouble {
        let place = self.troubles.iter().position(|trouble| trouble.token == token).unwrap_or_else(|| {
            if self.troubles.len() >= TROUBLE_MAX {
                self.troubles.pop_front();
            }
            self.troubles.push_back(Trouble { token, unsure: 0, refused_at: None });
            self.troubles.len() - 1
        });
        &mut self.troubles[place]
    }

    /// The server takes nothing now: what waits goes to files, and it is asked again after a while.
    fn fail(&mut self, now: Instant, unix: Duration, took: Duration) {
        self.count(RequestResult::Failed);
        self.version = None;
        let wait = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
        self.retry_at = now + wait.mul_f64(0.5 + self.rng.f64() / 2.0);
        self.failures = self.failures.saturating_add(1);
        self.note(unix, took);
        if let Some(UnderWay { batch, is_spilled, .. }) = self.under_way.take()
            && !is_spilled
        {
            self.queue.push_front(batch);
        }
        self.move_to_files();
    }

    /// Notes how the server is, and tells the log of a change.
    fn note(&mut self, unix: Duration, took: Duration) {
        let error = self.away.or(self.refusing);
        let is_degraded = self.away.is_none() && self.refusing.is_some();
        self.dependency = Some(Dependency { error, is_degraded, latency: took, checked_at: unix });
        let condition = match (self.away, self.refusing) {
            (Some(class), _) => Condition::Away(class),
            (None, Some(class)) => Condition::Refusing(class),
            (None, None) => Condition::Up,
        };
        let waiting = self.waiting();
        match self.told.change(condition) {
            Some(ConditionChange::Gone(class)) => {
                tracing::warn!("ClickHouse is away ({class}): {}; rows wait meanwhile", advice(class));
            }
            Some(ConditionChange::Refuses(class)) => {
                tracing::warn!("ClickHouse takes no rows ({class}): {}; they wait meanwhile", advice(class));
            }
            Some(ConditionChange::Back) => {
                tracing::info!(bytes = waiting, "ClickHouse is back; rows that waited are sent");
            }
            Some(ConditionChange::There) => tracing::info!("ClickHouse is there"),
            None => {}
        }
    }

    /// Tells the log of rows that were dropped. Once a second is enough.
    pub(super) fn tell_dropped(&mut self) {
        let rows = std::mem::take(&mut self.dropped_untold);
        if rows > 0 {
            tracing::error!(rows, "ClickHouse: there is no room for more rows; they are dropped");
        }
    }

    fn count(&mut self, result: RequestResult) {
        self.counters.requests[result.index()] += 1;
    }

    fn waiting(&self) -> u64 {
        self.files.bytes() + self.memory() as u64
    }

    /// Whether rows are in memory that it makes sense to wait for at the end: the server takes them, and none are before them.
    pub(super) fn may_finish(&self) -> bool {
        let is_under_way = self.under_way.as_ref().is_some_and(|under_way| !under_way.is_spilled);
        self.failures == 0 && self.files.is_empty() && (is_under_way || !self.queue.is_empty())
    }

    /// The process ends: what is not sent goes to files. Returns the rows that find no room there.
    pub(super) fn keep(&mut self) -> u64 {
        self.seal();
        if let Some(UnderWay { batch, is_spilled: false, .. }) = self.under_way.take() {
            self.queue.push_front(batch);
        }
        self.move_to_files();
        let lost = self.queue.iter().map(|batch| u64::from(batch.rows)).sum();
        self.counters.rows[RowOutcome::Cut.index()] += lost;
        lost
    }

    /// How the server is, and what was counted.
    pub(super) fn report(&self, unix_ms: u64) -> (Option<Dependency>, ClickhouseCounters) {
        let mut counters = self.counters.clone();
        let level = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        counters.memory_bytes = level(self.memory() as u64);
        counters.spill_bytes = level(self.files.bytes());
        (counters.damaged, counters.spill_errors) = (self.files.damaged(), self.files.errors);
        counters.oldest_age = self.oldest_ms().map_or(0, |oldest| level(unix_ms.saturating_sub(oldest) / 1000));
        (self.dependency.clone(), counters)
    }

    fn oldest_ms(&self) -> Option<u64> {
        let files = self.files.oldest_ms();
        let under_way = self.under_way.as_ref().map(|under_way| under_way.batch.oldest_ms);
        let builder = self.builder.as_ref().map(Builder::oldest_ms);
        [files, under_way, self.queue.front().map(|batch| batch.oldest_ms), builder].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
