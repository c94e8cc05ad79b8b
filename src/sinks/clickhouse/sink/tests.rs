//! The sink against a server that is made of its answers, on a clock that the tests turn.

use std::collections::BTreeMap;

use super::super::spill::Spill;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A server with a table: how often each row is in it.
#[derive(Default)]
struct Server {
    table: BTreeMap<String, u32>,
    /// Rows that hold this are refused.
    bad: Option<&'static str>,
    /// It answers so instead.
    fails: Option<Result<Answer, &'static str>>,
    requests: usize,
}

impl Server {
    fn answer(&mut self, request: &Request) -> Result<Answer, &'static str> {
        self.requests += 1;
        if let Some(failure) = &self.fails {
            return failure.clone();
        }
        let Request::Insert { gzip, .. } = request else { return answer(200, b"26.9.2.1\n") };
        let batch = Batch { rows: 0, oldest_ms: 0, gzip: gzip.clone() };
        let rows = String::from_utf8(batch.inflate(1 << 20).unwrap()).unwrap();
        if self.bad.is_some_and(|bad| rows.contains(bad)) {
            return answer(400, b"Code: 27. DB::Exception: Cannot parse input: a secret of a client");
        }
        for row in rows.lines() {
            *self.table.entry(row.to_owned()).or_default() += 1;
        }
        answer(200, b"")
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as a server answers")]
fn answer(status: u16, text: &[u8]) -> Result<Answer, &'static str> {
    Ok(Answer { status, code: None, text: text.to_vec() })
}

struct World {
    sink: Sink,
    server: Server,
    now: Instant,
    next: u64,
}

fn rules(memory_max: usize) -> Rules {
    Rules { batch_bytes: 4000, batch_interval: SECOND, memory_max }
}

impl World {
    fn new(memory_max: usize, spill: Option<(&std::path::Path, u64)>) -> Self {
        let now = Instant::START + SECOND;
        let spill = spill.map(|(directory, max)| (directory.to_owned(), max));
        let sink = Sink::new(now, "n_1".into(), rules(memory_max), spill, 7);
        Self { sink, server: Server::default(), now, next: 1 }
    }

    /// Some rows come.
    fn rows(&mut self, count: u64) {
        let mut lines = Vec::new();
        for row in self.next..self.next + count {
            lines.extend_from_slice(format!("{{\"time\":\"t\",\"path\":\"/{row}/\"}}\n").as_bytes());
        }
        let rows = Rows { first: self.next, count, lines, dropped: 0, _place: None };
        self.next += count;
        self.sink.handle_rows(self.now, self.unix_ms(), &rows);
    }

    fn unix_ms(&self) -> u64 {
        self.now.as_nanos() / 1_000_000
    }

    /// Lets time pass, and whatever is due happen.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns < 100_000, "it does not come to rest");
            self.sink.handle_timeout(self.now);
            if let Some(request) = self.sink.poll_request(self.now) {
                let answer = self.server.answer(&request);
                self.sink.handle_answer(self.now, Duration::from_millis(self.unix_ms()), SECOND / 100, answer);
                continue;
            }
            let due = self.sink.poll_timeout();
            assert!(due > self.now, "what is due now was done");
            if due > end {
                self.now = end;
                return;
            }
            self.now = due;
        }
    }

    /// Sent, refused, dropped, cut.
    fn counted(&self) -> [u64; RowOutcome::COUNT] {
        self.sink.report(self.unix_ms()).1.rows
    }

    fn counters(&self) -> ClickhouseCounters {
        self.sink.report(self.unix_ms()).1
    }

    fn health(&self) -> Option<(Option<&'static str>, bool)> {
        self.sink.report(self.unix_ms()).0.map(|found| (found.error, found.is_degraded))
    }
}

#[test]
fn rows_go_by_size_and_by_time() {
    let mut world = World::new(1 << 20, None);
    world.pass(SECOND);
    assert_eq!((world.health(), world.server.requests), (Some((None, false)), 1), "it is asked what it is");
    world.rows(3);
    world.pass(SECOND / 2);
    assert_eq!(world.server.table.len(), 0, "a small batch waits");
    assert_eq!(world.counters().oldest_age, 0);
    world.pass(SECOND / 2);
    assert_eq!(world.server.table.len(), 3);
    assert!(world.server.table.contains_key("{\"node\":\"n_1\",\"line\":2,\"time\":\"t\",\"path\":\"/2/\"}"));
    world.rows(100);
    world.pass(Duration::ZERO);
    assert_eq!((world.server.table.len(), world.counted()), (103, [103, 0, 0, 0]), "a large one does not");
    assert_eq!(world.counters().batches, 2);
    // Nothing to be sent: it is asked how it is, and no more.
    let before = world.server.requests;
    world.pass(10 * SECOND);
    assert_eq!(world.server.requests - before, 5);
}

#[test]
fn a_row_that_is_refused_holds_nothing_behind_it() {
    let mut world = World::new(1 << 20, None);
    world.server.bad = Some("\"/17/\"");
    world.rows(60);
    world.rows(60);
    world.pass(2 * SECOND);
    assert_eq!(world.counted(), [119, 1, 0, 0]);
    let [good, rejected, failed] = world.counters().requests;
    assert!(good > 5 && rejected > 5 && failed == 0, "{good} {rejected} {failed}");
    assert!(world.server.table.values().all(|times| *times == 1) && world.server.table.len() == 119);
    assert_eq!(world.health(), Some((None, false)));

    // One that comes alone is given up once others are taken.
    let mut world = World::new(1 << 20, None);
    world.server.bad = Some("\"/1/\"");
    world.rows(1);
    world.pass(10 * SECOND);
    assert_eq!((world.counted(), world.health()), ([0; 4], Some((Some("rejected"), true))));
    world.rows(2);
    world.pass(10 * SECOND);
    assert_eq!((world.counted(), world.health()), ([2, 1, 0, 0], Some((None, false))));
}

#[test]
fn a_batch_that_is_refused_whole_holds_nothing_behind_it_where_files_are_full() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(1 << 20, Some((folder.path(), 4000)));
    world.server.fails = Some(Err("refused"));
    world.rows(1);
    world.pass(2 * SECOND);
    // Until no further batch finds room in files.
    while world.counters().memory_bytes == 0 {
        world.rows(1);
        world.pass(SECOND);
    }
    world.server.bad = Some("\"/1/\"");
    world.server.fails = None;
    world.pass(60 * SECOND);
    assert_eq!((world.counted(), world.health()), ([world.next - 2, 1, 0, 0], Some((None, false))));
    assert_eq!((world.counters().memory_bytes, world.counters().spill_bytes), (0, 0));
}

#[test]
fn where_all_rows_are_refused_none_is_lost() {
    for directory in [None, Some(tempfile::tempdir().unwrap())] {
        let mut world = World::new(1 << 20, directory.as_ref().map(|folder| (folder.path(), 1 << 20)));
        world.server.bad = Some("path");
        for _ in 0..5 {
            world.rows(100);
            world.pass(3 * SECOND);
        }
        world.pass(60 * SECOND);
        assert_eq!((world.counted(), world.health()), ([0; 4], Some((Some("rejected"), true))));
        world.server.bad = None;
        world.pass(30 * SECOND);
        assert_eq!((world.counted(), world.server.table.len()), ([500, 0, 0, 0], 500));
        assert!(world.server.table.values().all(|times| *times == 1));
    }
}

#[test]
fn while_the_server_is_away_rows_wait_in_files_and_go_on_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(1 << 20, Some((folder.path(), 1 << 20)));
    world.rows(5);
    world.pass(2 * SECOND);
    world.server.fails = Some(Err("refused"));
    for _ in 0..60 {
        world.rows(100);
        world.pass(SECOND);
    }
    let asked = world.server.requests;
    assert!(asked < 60, "{asked} requests in a minute");
    let counters = world.counters();
    assert!(counters.spill_bytes > 0 && counters.memory_bytes < 10_000, "{counters:?}");
    assert!((55..=61).contains(&counters.oldest_age), "{counters:?}");
    assert_eq!(world.health(), Some((Some("refused"), false)));

    // The process is killed: what was sealed is there for the next, which sends it before its own.
    drop(world.sink);
    let spill = Some((folder.path().to_owned(), 1 << 20));
    let sink = Sink::new(world.now, "n_2".into(), rules(1 << 20), spill, 7);
    let mut next = World { sink, ..world };
    next.server.fails = None;
    next.rows(10);
    next.pass(6 * SECOND);
    let (old, new): (Vec<_>, Vec<_>) = next.server.table.iter().partition(|(row, _)| row.contains("n_1"));
    assert_eq!((old.len(), new.len()), (6005, 10));
    assert!(next.server.table.values().all(|times| *times == 1));
    let counters = next.counters();
    assert_eq!((counters.spill_bytes, counters.memory_bytes, counters.oldest_age), (0, 0, 0));
}

#[test]
fn past_the_bounds_rows_are_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(30_000, Some((folder.path(), 20_000)));
    world.server.fails = Some(Err("timeout"));
    for _ in 0..300 {
        world.rows(100);
        world.pass(SECOND / 10);
        let counters = world.counters();
        assert!(counters.memory_bytes <= 36_000 && counters.spill_bytes <= 20_000, "{counters:?}");
    }
    let dropped = world.counted()[RowOutcome::Dropped.index()];
    assert!(dropped > 1000, "{dropped}");
    world.server.fails = None;
    world.pass(30 * SECOND);
    assert_eq!(world.counted(), [30_000 - dropped, 0, dropped, 0]);
    assert_eq!(world.server.table.len() as u64, 30_000 - dropped);
}

#[test]
fn what_the_server_says_of_itself_is_told_and_nothing_is_lost() {
    for (status, text, class, is_degraded) in [
        (404, "Code: 60, e.displayText() = DB::Exception: Table does not exist", "not_migrated", true),
        (401, "Code: 193, e.displayText() = DB::Exception: Wrong password", "authentication", true),
        (500, "Code: 241, e.displayText() = DB::Exception: Memory limit", "out_of_memory", true),
        (200, "<html>please log in</html>", "unexpected", true),
        (500, "Code: 1002. DB::Exception: something", "failed", true),
    ] {
        let mut world = World::new(1 << 20, None);
        world.pass(SECOND);
        world.rows(10);
        world.pass(SECOND / 2);
        // It is met by the insert.
        world.sink.seal();
        let request = world.sink.poll_request(world.now).unwrap();
        assert!(matches!(request, Request::Insert { .. }));
        let said = answer(status, text.as_bytes());
        world.sink.handle_answer(world.now, SECOND, SECOND, said);
        assert_eq!(world.health(), Some((Some(class), is_degraded)), "{text}");
        world.pass(SECOND);
        assert_eq!((world.counted(), world.health()), ([10, 0, 0, 0], Some((None, false))), "{text}");
    }
}

#[test]
fn a_row_that_breaks_the_server_is_found_too() {
    let mut world = World::new(1 << 20, None);
    world.pass(SECOND);
    world.rows(120);
    let mut requests = 0;
    while world.counted() == [0; 4] {
        requests += 1;
        assert!(requests < 200);
        if let Some(request) = world.sink.poll_request(world.now) {
            let is_bad = |gzip: &Bytes| {
                let batch = Batch { rows: 0, oldest_ms: 0, gzip: gzip.clone() };
                String::from_utf8(batch.inflate(1 << 20).unwrap()).unwrap().contains("\"/9/\"")
            };
            let said = match &request {
                Request::Insert { gzip, .. } if is_bad(gzip) => answer(500, b"Code: 153. DB::Exception: Division"),
                request => world.server.answer(request),
            };
            world.sink.handle_answer(world.now, SECOND, SECOND, said);
        } else {
            world.now = world.sink.poll_timeout();
        }
    }
    assert_eq!(world.counted(), [119, 1, 0, 0]);
}

#[test]
fn at_the_end_what_is_not_sent_is_kept_or_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(1 << 20, Some((folder.path(), 1 << 20)));
    world.pass(SECOND);
    world.rows(10);
    assert!(!world.sink.may_finish(), "the batch is not sealed");
    world.sink.seal();
    assert!(world.sink.may_finish());
    let request = world.sink.poll_request(world.now).unwrap();
    assert!(world.sink.may_finish(), "it is under way");
    assert_eq!(world.sink.keep(), 0);
    assert!(world.counters().spill_bytes > 0 && !world.sink.may_finish());
    drop((request, world));

    let mut world = World::new(1 << 20, None);
    world.rows(10);
    world.server.fails = Some(Err("timeout"));
    world.pass(2 * SECOND);
    world.rows(10);
    assert!(!world.sink.may_finish(), "the server is away");
    assert_eq!((world.sink.keep(), world.counted()), (20, [0, 0, 0, 20]));
}

#[test]
fn a_directory_that_another_process_has_is_taken_when_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let other = Spill::open(folder.path(), 1 << 20).unwrap();
    let mut world = World::new(1 << 20, Some((folder.path(), 1 << 20)));
    world.server.fails = Some(Err("refused"));
    world.rows(10);
    world.pass(10 * SECOND);
    assert_eq!(world.counters().spill_bytes, 0);
    drop(other);
    world.rows(10);
    world.pass(10 * SECOND);
    assert!(world.counters().spill_bytes > 0);
    world.server.fails = None;
    world.pass(10 * SECOND);
    assert_eq!(world.counted(), [20, 0, 0, 0]);
}

#[test]
fn files_that_cannot_be_written_are_told_and_rows_wait_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("rows");
    let mut world = World::new(1 << 20, Some((&directory, 1 << 20)));
    world.server.fails = Some(Err("refused"));
    std::fs::remove_dir_all(&directory).unwrap();
    world.rows(10);
    world.pass(10 * SECOND);
    let counters = world.counters();
    assert!(counters.spill_errors > 0 && counters.spill_bytes == 0 && counters.memory_bytes > 0, "{counters:?}");
    world.server.fails = None;
    world.pass(10 * SECOND);
    assert_eq!(world.counted(), [10, 0, 0, 0]);
}

proptest::proptest! {
    /// Whatever happens to the server and the process, rows are sent, refused, dropped or still there; bounds hold.
    #[test]
    fn every_row_is_accounted_for(
        steps in proptest::collection::vec((0_u8..8, 1_u64..150), 1..60),
        has_files in proptest::prelude::any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::new(50_000, has_files.then_some((folder.path(), 12_000)));
        for (step, amount) in steps {
            match step {
                0..=3 => world.rows(amount),
                4 => world.server.fails = Some(Err("broken")),
                5 => world.server.fails = Some(answer(500, b"Code: 252. DB::Exception: Too many parts")),
                6 => world.server.fails = None,
                _ => world.server.bad = (amount % 2 == 0).then_some("\"/33/\""),
            }
            world.pass(Duration::from_millis(amount * 20));
            let counters = world.counters();
            proptest::prop_assert!(counters.memory_bytes <= 60_000 && counters.spill_bytes <= 12_000, "{:?}", counters);
        }
        world.server.fails = None;
        world.rows(5);
        world.pass(30 * SECOND);
        let [sent, refused, dropped, cut] = world.counted();
        proptest::prop_assert_eq!(sent + refused + dropped + cut, world.next - 1);
        proptest::prop_assert!(refused <= 1);
        proptest::prop_assert_eq!(world.server.table.len() as u64, sent);
    }
}
