//! One connection to Redis: what is asked on it, and the scripts that run there.

use std::fmt;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisFuture, RedisResult, ServerErrorKind, Value};
use tokio::time::{error::Elapsed, timeout};

use super::{Outage, RedisFailure};
use crate::shard::clock::{self, Instant};

/// What a script answers with that was come to too late: the first word of its error.
const LATE: &str = "LATE";

/// This part of an answer's timeout is left for the answer to a script that was come to in time at the last moment.
const ON_ITS_WAY: u32 = 8;

/// A script that runs in Redis, as one step that nothing comes between.
#[derive(Clone, Debug)]
pub struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    /// A script in Lua.
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }
}

/// A connection. Clones share it; what they ask is sent in one pipeline.
#[derive(Clone)]
pub struct Link {
    pub(super) line: Line,
    pub(super) answer_timeout: Duration,
}

#[derive(Clone)]
pub(super) enum Line {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.line {
            Line::One(line) => line.req_packed_command(cmd),
            Line::Cluster(line) => line.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.line {
            Line::One(line) => line.req_packed_commands(cmd, offset, count),
            Line::Cluster(line) => line.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.line {
            Line::One(line) => line.get_db(),
            Line::Cluster(line) => line.get_db(),
        }
    }
}

impl Link {
    /// Asks, and waits for the answer as long as may be.
    pub async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisFailure> {
        // Beyond the connection's own bound: a cluster tries more than once.
        let bound = self.answer_timeout + Duration::from_millis(100);
        let answer = timeout(bound, command.query_async(self)).await;
        self.told(answer)
    }

    /// What came of asking on this connection.
    pub(super) fn told<T>(&self, answer: Result<RedisResult<T>, Elapsed>) -> Result<T, RedisFailure> {
        match answer_of(answer) {
            // It was followed as often as may be: the cluster has not settled yet on who has the key.
            Err(RedisFailure::Refused(error))
                if matches!(self.line, Line::Cluster(_))
                    && matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask)) =>
            {
                Err(RedisFailure::Away(Outage::NotReady))
            }
            told => told,
        }
    }

    /// Runs a script, which is sent whole only where the server does not know it yet.
    ///
    /// In a cluster all keys are in one slot, which is where it runs.
    pub async fn run<T: FromRedisValue>(
        &mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<T, RedisFailure> {
        let call = |how: &str, what: &str| {
            let mut command = redis::cmd(how);
            command.arg(what).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        match self.ask(&call("EVALSHA", &script.hash)).await {
            Err(RedisFailure::Refused(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(&call("EVAL", script.code)).await
            }
            other => other,
        }
    }

    /// Makes a script known to the server, or to all that a cluster has now.
    pub async fn load(&mut self, script: &Script) -> Result<(), RedisFailure> {
        self.ask::<Value>(redis::cmd("SCRIPT").arg("LOAD").arg(script.code)).await.map(drop)
    }

    /// Runs a script that was made known on this connection: what is asked on it in one order is done in that order. A server
    /// that does not know it any more is not the one that was connected to, or was told to forget.
    pub async fn run_loaded<T: FromRedisValue>(
        &mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
    ) -> Result<T, RedisFailure> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.hash).arg(keys.len()).arg(keys).arg(arguments);
        match self.ask(&command).await {
            Err(RedisFailure::Refused(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                Err(RedisFailure::Away(Outage::NotReady))
            }
            other => other,
        }
    }

    /// Runs a script that gets as its first argument until when it may change anything; see `Redis::run_in_time`.
    pub async fn run_in_time<T: FromRedisValue>(
        &mut self,
        clock: &Script,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
        until: Instant,
    ) -> Result<T, RedisFailure> {
        let asked_at = clock::now();
        if until <= asked_at {
            return Err(RedisFailure::Late);
        }
        let (seconds, micros): (u64, u64) = self.run(clock, keys, &[]).await?;
        // The server told its time before we heard it, and we begin to wait after that. So by its clock we still wait
        // when this is over, and for as long as an answer may be on its way.
        let patience = self.answer_timeout.saturating_sub(self.answer_timeout / ON_ITS_WAY);
        // The server told its time after we asked for it, so what is left since then is the least that is left.
        let patience = patience.min(until.since(asked_at));
        let until = Duration::from_secs(seconds) + Duration::from_micros(micros) + patience;
        let until_ms = until.as_millis().to_string();
        let arguments: Vec<&str> = std::iter::once(until_ms.as_str()).chain(arguments.iter().copied()).collect();
        self.run(script, keys, &arguments).await
    }
}

/// What came of asking, and what follows from it: for everything that is asked.
pub(super) fn answer_of<T>(answer: Result<RedisResult<T>, Elapsed>) -> Result<T, RedisFailure> {
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.code() == Some(LATE) => Err(RedisFailure::Late),
        Ok(Err(error)) if let Some(class) = Outage::of_no_changes(&error) => {
            Err(RedisFailure::NoChanges(class, error.to_string().into()))
        }
        Ok(Err(error)) => match Outage::of(&error) {
            Some(class) => {
                tracing::debug!(%error, "a command to Redis failed");
                Err(RedisFailure::Away(class))
            }
            None => Err(RedisFailure::Refused(error)),
        },
        Err(_) => Err(RedisFailure::Away(Outage::Timeout)),
    }
}
