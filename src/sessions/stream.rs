//! Following the log of revocations in Redis: on a connection of its own, which waits there for what is new.
//!
//! After each connection the whole log is read, which is short: it holds what access tokens of the last minutes could
//! still be affected by. So it shows what the log has lost, if a replica took over that lacked entries, or Redis came
//! back empty: what this instance knows is written back, and nothing revoked is good again as long as one instance lives.
//! On the way it has finished what is half done.

use std::collections::HashMap;
use std::time::Duration;

use redis::streams::StreamReadReply;
use redis::{RedisError, Value, cmd, from_redis_value};
use tokio::time::sleep;

use super::known::{EntryId, LogEntry};
use super::log::{Freshness, LogUpdate};
use super::redis::{LOG, RedisSessions};
use super::rotation::SessionRules;
use super::unfinished::Finisher;
use crate::auth::Revocation;
use crate::auth::revocation::Kind;
use crate::bus::redis::{Link, RedisFailure};
use crate::shard::clock;

/// How long the server holds a question when there is nothing new. Freshness advances each time, so this stays well below
/// the least `revocation.max_staleness`, which is a second.
const WAIT: Duration = Duration::from_millis(500);

/// The pauses between attempts to read: the first, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Entries read in one go.
const PAGE: usize = 1000;

/// Reads the log.
pub(super) struct Stream {
    store: RedisSessions,
    finisher: Finisher,
    link: Option<Link>,
    /// The last entry that was read.
    position: EntryId,
    /// The latest reading brought something: whether that was all shows the next, which does not wait.
    is_behind: bool,
    /// How many entries the log had ever taken when it was last looked at, where the server counts them (Redis 7).
    added: Option<u64>,
    freshness: Freshness,
    clock_ahead_ms: i64,
    pause: Option<Duration>,
    is_first: bool,
    /// The log was told that the server refuses to be read.
    is_refused: bool,
}

impl Stream {
    pub(super) fn new(store: RedisSessions, rules: SessionRules) -> Self {
        Self {
            finisher: Finisher::new(store.clone(), rules),
            store,
            link: None,
            position: EntryId::default(),
            is_behind: false,
            added: None,
            freshness: Freshness::NEVER,
            clock_ahead_ms: 0,
            pause: None,
            is_first: true,
            is_refused: false,
        }
    }

    /// See [`super::Follower::next`].
    pub(super) async fn next(&mut self) -> LogUpdate {
        if let Some(pause) = self.pause {
            sleep(pause).await;
        }
        let heard = match &mut self.link {
            Some(_) => self.wait().await,
            None => self.catch_up().await,
        };
        match heard {
            Ok(heard) => {
                self.is_refused = false;
                self.pause = None;
                heard
            }
            Err(failure) => {
                if let RedisFailure::Refused(error) = &failure
                    && !std::mem::replace(&mut self.is_refused, true)
                {
                    tracing::error!(%error, "Redis refused to read the log of revocations");
                }
                self.link = None;
                self.pause = Some(self.pause.map_or(PAUSE[0], |pause| PAUSE[1].min(2 * pause)));
                self.heard(Vec::new())
            }
        }
    }

    fn heard(&self, entries: Vec<Revocation>) -> LogUpdate {
        let (freshness, clock_ahead_ms) = (self.freshness, self.clock_ahead_ms);
        LogUpdate { entries, freshness, is_replay: false, is_lossy: false, clock_ahead_ms }
    }

    /// Connects and reads all of the log.
    async fn catch_up(&mut self) -> Result<LogUpdate, RedisFailure> {
        let mut link = self.store.redis.address().connect(WAIT).await?;
        let now_ms = self.compare_clocks(&mut link).await?;
        self.store.known.with(|known| known.expire(now_ms));
        let mut read: Vec<(EntryId, LogEntry)> = Vec::new();
        let mut position = EntryId::default();
        let looked_at = loop {
            let looked_at = clock::now();
            let page = read_after(&mut link, position, None).await?;
            let is_end = page.len() < PAGE;
            position = page.last().map_or(position, |(id, _)| *id);
            read.extend(page.into_iter().filter_map(|(id, entry)| Some((id, entry?))));
            if is_end {
                break looked_at;
            }
        };
        let mut found: HashMap<(Kind, &str), u64> = HashMap::new();
        for (_, LogEntry { revocation, .. }) in &read {
            let at_ms = found.entry((revocation.kind, &revocation.id)).or_default();
            *at_ms = revocation.at_ms.max(*at_ms);
        }
        // Not by number: an entry that another instance has written back already has another one.
        let is_found =
            |wanted: &Revocation| found.get(&(wanted.kind, &*wanted.id)).is_some_and(|at_ms| *at_ms >= wanted.at_ms);
        let (missing, oldest_ms) =
            self.store.known.with(|known| (known.take_missing(is_found), known.oldest_ms(now_ms)));
        // One that only mattered because it was unfinished may have been finished since, and gone with its time.
        let is_lossy = missing.iter().any(|entry| entry.revocation.at_ms >= oldest_ms) || position < self.position;
        if is_lossy {
            tracing::error!(
                read = %self.position,
                end = %position,
                missing = missing.len(),
                "the log of revocations in Redis has lost entries (emptied, or a stale replica took over); \
                 what this instance knows is written back"
            );
        }
        for (index, entry) in missing.iter().enumerate() {
            if let Err(failure) = self.store.write_back(&mut link, entry).await {
                // They are missed again next time: a number that no entry has keeps them until then.
                self.store.known.with(|known| {
                    for (entry, count) in missing[index..].iter().cloned().zip(0..) {
                        known.read(EntryId(now_ms, u64::MAX - count), entry);
                    }
                });
                return Err(failure);
            }
        }
        let is_first = std::mem::replace(&mut self.is_first, false);
        if is_first {
            self.finisher.add(read.iter().map(|(_, entry)| entry.clone()));
        }
        self.finisher.look(&mut link).await?;
        self.added = info(&mut link).await?.and_then(|(_, added)| added);
        let entries = self.take_in(read, is_first);
        self.position = position;
        self.link = Some(link);
        self.freshness = Freshness::at(looked_at);
        Ok(LogUpdate { is_replay: true, is_lossy, ..self.heard(entries) })
    }

    /// Waits for what is new, and answers when there was nothing for a while.
    async fn wait(&mut self) -> Result<LogUpdate, RedisFailure> {
        let Some(link) = &mut self.link else { return Err(RedisFailure::Away(crate::bus::redis::Outage::Unknown)) };
        // When it was asked, not when it was answered: this process may have stood still since the server looked.
        let mut looked_at = clock::now();
        let page = read_after(link, self.position, (!self.is_behind).then_some(WAIT)).await?;
        self.is_behind = !page.is_empty();
        let is_end = page.len() < PAGE;
        let position = page.last().map_or(self.position, |(id, _)| *id);
        if page.is_empty() {
            let asked_at = clock::now();
            let now = info(link).await?;
            if now.is_none_or(|(last, _)| last <= self.position) {
                // The log ends where it was read to, and that was asked just now.
                looked_at = asked_at;
            }
            let is_another = match now {
                Some((last, added)) => {
                    last < self.position || added.zip(self.added).is_some_and(|(now, before)| now < before)
                }
                None => self.position > EntryId::default(),
            };
            if is_another {
                // It was emptied or replaced under this very connection.
                return self.catch_up().await;
            }
            self.added = now.and_then(|(_, added)| added);
        }
        if self.finisher.is_due() {
            self.finisher.look(link).await?;
            // Only after a look, so that what is unfinished is not forgotten.
            let now_ms = self.store_now_ms();
            self.store.known.with(|known| known.expire(now_ms));
        }
        let entries = self.take_in(page.into_iter().filter_map(|(id, entry)| Some((id, entry?))).collect(), false);
        self.position = position;
        if is_end {
            self.freshness = Freshness::at(looked_at);
        }
        Ok(self.heard(entries))
    }

    /// The entries that are new to this instance, or all of them.
    fn take_in(&self, read: Vec<(EntryId, LogEntry)>, all: bool) -> Vec<Revocation> {
        let mut new = Vec::new();
        self.store.known.with(|known| {
            for (id, entry) in read {
                let revocation = entry.revocation.clone();
                if known.read(id, entry) || all {
                    new.push(revocation);
                }
            }
        });
        new
    }

    /// The server's time; remembers how far it is ahead of ours.
    async fn compare_clocks(&mut self, link: &mut Link) -> Result<u64, RedisFailure> {
        let before = clock::unix_now();
        let (seconds, micros): (u64, u64) = link.ask(&cmd("TIME")).await?;
        let ours = (before + clock::unix_now()) / 2;
        let theirs_ms = seconds * 1000 + micros / 1000;
        self.clock_ahead_ms = signed(theirs_ms) - signed(millis(ours));
        Ok(theirs_ms)
    }

    fn store_now_ms(&self) -> u64 {
        millis(clock::unix_now()).saturating_add_signed(self.clock_ahead_ms)
    }
}

/// The entries after this one, with their numbers; nothing in place of what cannot be read. Waits for some if told to.
async fn read_after(
    link: &mut Link,
    position: EntryId,
    wait: Option<Duration>,
) -> Result<Vec<(EntryId, Option<LogEntry>)>, RedisFailure> {
    let mut command = cmd("XREAD");
    command.arg("COUNT").arg(PAGE);
    if let Some(wait) = wait {
        command.arg("BLOCK").arg(millis(wait));
    }
    let read: Option<StreamReadReply> = link.ask(command.arg("STREAMS").arg(LOG).arg(position.to_string())).await?;
    let ids = read.into_iter().flat_map(|read| read.keys).flat_map(|key| key.ids);
    Ok(ids
        .filter_map(|entry| {
            let id = EntryId::parse(&entry.id)?;
            let field = |name: &str| entry.get::<String>(name);
            let read = || {
                let kind = Kind::from_word(&field("kind")?)?;
                let (whom, at_ms) = (field("id")?, field("at")?.parse().ok()?);
                let by = field("by").unwrap_or_default();
                let revocation = Revocation { kind, id: whom.into(), at_ms, by: by.into() };
                Some(LogEntry { revocation, user: field("user").map(Into::into) })
            };
            Some((id, read()))
        })
        .collect())
}

/// The last number that the log gave and how many it ever gave; `None` if there is no log.
async fn info(link: &mut Link) -> Result<Option<(EntryId, Option<u64>)>, RedisFailure> {
    let mut info: HashMap<String, Value> = match link.ask(cmd("XINFO").arg("STREAM").arg(LOG)).await {
        Err(RedisFailure::Refused(error)) if is_no_such_key(&error) => return Ok(None),
        other => other?,
    };
    let last: Option<String> = info.remove("last-generated-id").and_then(|value| from_redis_value(value).ok());
    let added = info.remove("entries-added").and_then(|value| from_redis_value(value).ok());
    Ok(last.and_then(|last| EntryId::parse(&last)).map(|last| (last, added)))
}

fn is_no_such_key(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("no such key"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
