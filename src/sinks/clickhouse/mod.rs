//! The access log in ClickHouse ([decision 29](../../../docs/decisions/0029-rows-in-clickhouse.md), docs/clickhouse.md).
//!
//! The access log's thread hands over the lines of full buffers, and a thread of the sink's own makes batches of them and
//! sends those: `sink` decides, purely but for its files, `client` asks the server. Each row is there at least once, and what
//! names it (process, shard, number) makes the table count it once.

mod answer;
mod batch;
mod client;
mod migrate;
mod record;
mod sink;
mod spill;
mod split;
pub mod table;

use std::pin::Pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};

use answer::Answer;
use client::Client;
pub use migrate::migrate;
use sink::{Request, Rows, Rules, Sink};

use crate::config::{Clickhouse, Config};
use crate::shard::local::AbortOnUnwind;
use crate::shard::{Instant, clock};
use crate::telemetry::access_log::{LineSink, NumberedLines};
use crate::telemetry::dependency::Dependency;
use crate::telemetry::metrics::ClickhouseCounters;

/// A quarter of the memory is for lines that the sink has not looked at yet.
const ON_THE_WAY: usize = 4;
/// What that room is counted in.
const ROOM_UNIT: usize = 1024;
/// Buffers that may be on the way, however small.
const ON_THE_WAY_MAX: usize = 16 * 1024;
/// The sink gives way to the shards when both want a core.
const NICENESS: i32 = 5;
/// How often the log is told of rows that are dropped.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What the sink tells of itself.
#[derive(Clone, Debug, Default)]
pub struct SinkReport {
    /// How the server is; `None` before the first answer.
    pub dependency: Option<Dependency>,
    /// What was counted.
    pub counters: ClickhouseCounters,
}

/// A configuration whose files are read, so that nothing of it can fail any more.
pub struct Prepared(Client);

impl Prepared {
    /// Reads the files that the configuration names, and says what is wrong with them.
    pub fn new(config: &Clickhouse) -> Result<Self, String> {
        Client::new(config).map(Self)
    }
}

/// What another configuration says: whom to ask, and how much may wait.
type Orders = (Box<Client>, Rules);

/// The sink's handle. One per process, with the control thread.
pub struct ClickhouseSink {
    /// Dropped to end it.
    orders: mpsc::Sender<Orders>,
    report: watch::Receiver<SinkReport>,
    /// Never sent to: it ends when the thread does.
    ended: std::sync::mpsc::Receiver<()>,
    thread: JoinHandle<()>,
}

/// Starts the sink's thread, if there is to be one: its handle, and what takes the access log's lines.
pub fn start(config: &Config, node: &str) -> anyhow::Result<Option<(ClickhouseSink, LineSink)>> {
    if !config.clickhouse.enabled {
        return Ok(None);
    }
    let Prepared(client) = Prepared::new(&config.clickhouse).map_err(|wrong| anyhow::anyhow!(wrong))?;
    let room = Arc::new(Semaphore::new(config.clickhouse.memory_max / ON_THE_WAY / ROOM_UNIT));
    let (sender, rows) = mpsc::channel(ON_THE_WAY_MAX);
    let (orders, told) = mpsc::channel(4);
    let (tell, report) = watch::channel(SinkReport::default());
    let (end, ended) = std::sync::mpsc::sync_channel(0);
    let rules = Rules::new(&config.clickhouse, memory_max(&config.clickhouse));
    let spill = config.spill_dir().map(|directory| (directory, config.clickhouse.spill_max));
    let node = node.into();
    let thread = thread::Builder::new().name("clickhouse".to_owned()).spawn(move || {
        // Being refused a lower priority changes nothing that matters.
        let _ = rustix::process::nice(NICENESS);
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "ClickHouse: the sink cannot run; no row is sent"),
        };
        let guard = AbortOnUnwind("a panic in the sink of ClickHouse");
        let sink = Sink::new(clock::now(), node, rules, spill, fastrand::u64(..));
        runtime.block_on(Driver { sink, client, tell }.run(rows, told));
        guard.disarm();
        // Whoever still looks up the server's name is not waited for.
        runtime.shutdown_background();
        drop(end);
    })?;
    Ok(Some((ClickhouseSink { orders, report, ended, thread }, line_sink(sender, room))))
}

/// What is left of the memory for the sink itself.
fn memory_max(config: &Clickhouse) -> usize {
    config.memory_max - config.memory_max / ON_THE_WAY
}

/// Takes lines on the access log's thread. What finds no room is dropped, and counted with what comes next.
fn line_sink(sender: mpsc::Sender<Rows>, room: Arc<Semaphore>) -> LineSink {
    let mut dropped = 0;
    Box::new(move |NumberedLines { first, count, bytes, .. }| {
        let units = u32::try_from(bytes.len() / ROOM_UNIT + 1).unwrap_or(u32::MAX);
        let place = Arc::clone(&room).try_acquire_many_owned(units);
        let is_sent = place.is_ok_and(|place| {
            let rows = Rows { first, count, lines: bytes.to_vec(), dropped, _place: Some(place) };
            sender.try_send(rows).is_ok()
        });
        dropped = if is_sent { 0 } else { dropped + count };
    })
}

impl ClickhouseSink {
    /// How the server is and what was counted, as of now.
    pub fn report(&self) -> SinkReport {
        self.report.borrow().clone()
    }

    /// Goes on by another configuration: where to, as whom, how large.
    pub fn adopt(&self, prepared: Prepared, config: &Clickhouse) {
        let rules = Rules::new(config, memory_max(config));
        // Full only if the sink stands still; then the next reload does.
        if self.orders.try_send((Box::new(prepared.0), rules)).is_err() {
            tracing::warn!("ClickHouse: the sink does not take the new configuration; reload again");
        }
    }

    /// Sends what has come, or keeps it in files, and ends the thread; `false` when that took longer than `bound`, and then
    /// the thread is left behind. The access log's writer has ended before, unless it stands still.
    #[must_use]
    pub fn close(self, bound: Duration) -> bool {
        let Self { orders, ended, thread, .. } = self;
        drop(orders);
        match ended.recv_timeout(bound) {
            Ok(()) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => thread.join().is_ok(),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => false,
        }
    }
}

/// How long what is in memory at the end may take to be sent, before it goes to files.
const LAST_MAX: Duration = Duration::from_secs(2);

/// Longer than all that the sink does at its end, unless its disk stands still.
pub const CLOSE_MAX: Duration = Duration::from_secs(5);

type Asking = Pin<Box<dyn Future<Output = (Result<Answer, &'static str>, Instant)>>>;

/// What the sink decides, done.
struct Driver {
    sink: Sink,
    client: Client,
    tell: watch::Sender<SinkReport>,
}

impl Driver {
    async fn run(mut self, mut rows: mpsc::Receiver<Rows>, mut orders: mpsc::Receiver<Orders>) {
        let mut asking: Option<Asking> = None;
        let mut tell_at = clock::now() + TELL_INTERVAL;
        loop {
            self.begin(&mut asking);
            let due = self.sink.poll_timeout().min(tell_at);
            tokio::select! {
                came = rows.recv() => match came {
                    Some(came) => self.take(&came),
                    None => break,
                },
                order = orders.recv() => match order {
                    Some((client, rules)) => {
                        self.client = *client;
                        self.sink.adopt(clock::now(), rules);
                    }
                    None => break,
                },
                answer = answered(&mut asking) => self.handle(answer),
                () = sleep_until(due) => {}
            }
            let now = clock::now();
            self.sink.handle_timeout(now);
            if now >= tell_at {
                tell_at = now + TELL_INTERVAL;
                self.sink.tell_dropped();
            }
            self.report();
        }
        // What was on its way. Whoever goes on sending is not waited for.
        for _ in 0..rows.len() {
            let Ok(came) = rows.try_recv() else { break };
            self.take(&came);
        }
        self.sink.seal();
        let last = clock::now() + LAST_MAX;
        while self.sink.may_finish() && clock::now() < last {
            self.begin(&mut asking);
            tokio::select! {
                answer = answered(&mut asking) => self.handle(answer),
                () = sleep_until(last) => {}
            }
        }
        let lost = self.sink.keep();
        self.sink.tell_dropped();
        if lost > 0 {
            tracing::error!(rows = lost, "ClickHouse: rows could be neither sent nor kept in files; they are lost");
        }
        self.report();
    }

    fn take(&mut self, rows: &Rows) {
        let unix_ms = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
        self.sink.handle_rows(clock::now(), unix_ms, rows);
    }

    /// Asks what is to be asked now.
    fn begin(&mut self, asking: &mut Option<Asking>) {
        let now = clock::now();
        let Some(request) = self.sink.poll_request(now) else { return };
        let client = self.client.clone();
        *asking = Some(Box::pin(async move {
            let answer = match request {
                Request::Version => client.query("SELECT version()").await,
                Request::Insert { gzip, token, version } => client.insert(gzip, token, version).await,
            };
            (answer, now)
        }));
    }

    fn handle(&mut self, (answer, began): (Result<Answer, &'static str>, Instant)) {
        let now = clock::now();
        self.sink.handle_answer(now, clock::unix_now(), now.since(began), answer);
    }

    fn report(&self) {
        let unix_ms = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
        let (dependency, counters) = self.sink.report(unix_ms);
        self.tell.send_replace(SinkReport { dependency, counters });
    }
}

/// What the request came to; never, if there is none.
async fn answered(asking: &mut Option<Asking>) -> (Result<Answer, &'static str>, Instant) {
    match asking {
        Some(future) => {
            let answer = future.await;
            *asking = None;
            answer
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Instant) {
    if due == Instant::NEVER {
        return std::future::pending().await;
    }
    tokio::time::sleep(due.since(clock::now())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_way_has_a_bound_by_its_bytes_and_drops_are_told_with_the_next() {
        let (sender, mut rows) = mpsc::channel(100);
        let mut sink = line_sink(sender, Arc::new(Semaphore::new(4)));
        let mut send = |first, bytes: &[u8]| sink(NumberedLines { shard: 0, first, count: 2, bytes });
        send(1, &[b'x'; 2000]);
        send(3, &[b'x'; 2000]);
        send(5, b"too\nmuch\n");
        let came = rows.try_recv().expect("the first");
        assert_eq!((came.first, came.dropped), (1, 0));
        send(7, &[b'x'; 5000]);
        drop(came);
        send(9, b"again\n");
        rows.try_recv().expect("the second");
        let came = rows.try_recv().expect("the last");
        assert_eq!((came.first, came.count, came.dropped), (9, 2, 4));
    }
}
