//! Endings in Redis that are half done: the log has them, and the record still has the session. Each is marked from the
//! moment when it is written until somebody has made its second step, so it does not depend on whoever began it: every
//! instance looks at the marks, and makes the steps that it sees for the second time.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use redis::cmd;

use super::known::LogEntry;
use super::redis::{RedisSessions, UNFINISHED};
use super::rotation::SessionRules;
use crate::bus::redis::{Link, RedisFailure};
use crate::shard::Local;
use crate::shard::clock::{self, Instant};

/// How often the marks are looked at. There are none nearly always, and looking is one question then.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Marks read in one go, and for each of these the next look is an interval later. And entries of the log that are
/// finished between two looks at the marks.
const PAGE: usize = 1000;

/// Finishes what is half done. One per process.
pub(super) struct Finisher {
    store: RedisSessions,
    rules: SessionRules,
    due: Instant,
    /// What was marked at the last look: whoever began it has had the time to finish it.
    seen: HashSet<String>,
    work: Rc<Local<Work>>,
}

#[derive(Default)]
struct Work {
    /// What was marked twice.
    marked: VecDeque<LogEntry>,
    /// What may be half done, unmarked: an older version wrote it.
    unmarked: VecDeque<LogEntry>,
    is_under_way: bool,
    is_failing: bool,
}

impl Finisher {
    pub(super) fn new(store: RedisSessions, rules: SessionRules) -> Self {
        Self { store, rules, due: clock::now(), seen: HashSet::new(), work: Rc::default() }
    }

    /// Finishes these entries too, sooner or later.
    pub(super) fn add(&mut self, entries: impl Iterator<Item = LogEntry>) {
        self.work.with(|work| work.unmarked.extend(entries.filter(|entry| entry.record_of().is_some())));
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self) -> bool {
        clock::now() >= self.due
    }

    /// Looks at the marks, and goes on with what is to be done.
    pub(super) async fn look(&mut self, link: &mut Link) -> Result<(), RedisFailure> {
        let began = clock::now();
        let marks = match read(link).await {
            Ok(marks) => marks,
            // Redis does not let us read the marks. Nothing else needs that right, and what was known stays known.
            Err(RedisFailure::Refused(error)) => {
                self.due = began + LOOK_INTERVAL;
                self.work.with(|work| tell(work, Some(&error.to_string())));
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        self.due = began + LOOK_INTERVAL * u32::try_from(1 + marks.len() / PAGE).unwrap_or(u32::MAX);
        let entries: Vec<(&String, LogEntry)> =
            marks.iter().filter_map(|mark| Some((mark, LogEntry::of_mark(mark)?))).collect();
        self.store.known.with(|known| known.keep_unfinished(entries.iter().map(|(_, entry)| entry)));
        let old = entries.into_iter().filter(|(mark, _)| self.seen.contains(*mark)).map(|(_, entry)| entry);
        let is_idle = self.work.with(|work| {
            if !work.is_under_way {
                work.marked = old.collect();
            }
            !std::mem::replace(&mut work.is_under_way, true)
        });
        if is_idle {
            let (store, rules, work) = (self.store.clone(), self.rules, Rc::clone(&self.work));
            // Of its own, as following the log does not wait for it.
            tokio::task::spawn_local(async move { finish(&store, rules, &work).await });
        }
        self.seen = marks;
        Ok(())
    }
}

/// Makes second steps, each once: what fails is there at the next look.
async fn finish(store: &RedisSessions, rules: SessionRules, work: &Local<Work>) {
    let (mut finished, mut refused) = (0, None);
    let mut left = work.with(|work| work.marked.len() + work.unmarked.len().min(PAGE));
    while left > 0 {
        left -= 1;
        let next = |work: &mut Work| {
            let marked = work.marked.pop_front().map(|entry| (entry, true));
            marked.or_else(|| work.unmarked.pop_front().map(|entry| (entry, false)))
        };
        let Some((entry, is_marked)) = work.with(next) else { break };
        let done = store.finish(&entry, rules).await;
        if done.is_ok() {
            finished += usize::from(is_marked);
            continue;
        }
        if !is_marked {
            work.with(|work| work.unmarked.push_back(entry));
        }
        if let Err(failure) = done {
            let is_away = failure.is_away();
            refused = Some(failure);
            if is_away {
                break;
            }
        }
    }
    if finished > 0 {
        tracing::info!(finished, "sessions that were ended in the log only have gone from their records in Redis");
    }
    work.with(|work| {
        work.is_under_way = false;
        let cause = refused.map(|failure| match failure {
            RedisFailure::Refused(error) => error.to_string(),
            other => other.to_string(),
        });
        tell(work, cause.as_deref());
    });
}

/// Tells the log when it begins to fail, and when it is over.
fn tell(work: &mut Work, cause: Option<&str>) {
    match cause {
        Some(error) if !work.is_failing => tracing::warn!(
            error,
            "sessions that were ended cannot be taken from their records in Redis; they stay ended, and it is tried \
             again until it works"
        ),
        None if work.is_failing => tracing::info!("sessions that are ended go from their records in Redis again"),
        _ => {}
    }
    work.is_failing = cause.is_some();
}

/// Marks with their times, as they are: anything may have been written there.
type Marks = Vec<(Vec<u8>, Vec<u8>)>;

/// All marks that there are meanwhile.
async fn read(link: &mut Link) -> Result<HashSet<String>, RedisFailure> {
    let mut marks = HashSet::new();
    let mut cursor = "0".to_owned();
    loop {
        // By their places one would miss some when others go.
        let command = cmd("ZSCAN").arg(UNFINISHED).arg(&cursor).arg("COUNT").arg(PAGE).clone();
        let (next, page): (String, Marks) = link.ask(&command).await?;
        // What is no text is none of ours, and holds up nothing that is.
        marks.extend(page.into_iter().filter_map(|(mark, _)| String::from_utf8(mark).ok()));
        if next == "0" {
            return Ok(marks);
        }
        cursor = next;
    }
}
