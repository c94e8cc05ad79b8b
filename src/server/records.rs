//! Where records of requests leave the process: the access log's writer, and the sink that has its lines besides.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use crate::{
    config::{self, Config},
    shard::clock,
    sinks::clickhouse::{self, ClickhouseSink, Prepared},
    telemetry::{
        access_log::{self, AccessLog, AccessLogWriter, LineSink},
        dependency::Dependency,
        log::Format,
        metrics::ClickhouseCounters,
    },
};

/// How long the access log may take to be written out when the process ends.
const LOG_CLOSE_MAX: Duration = Duration::from_secs(2);

/// The handles of the threads that write and send. One per process, with the control thread.
pub(super) struct Records {
    writer: AccessLogWriter,
    clickhouse: Option<ClickhouseSink>,
    /// The time since 1970 when it began.
    began: Duration,
}

impl Records {
    /// Opens the access log, and starts the sink where one is configured; besides, what each shard fills.
    pub(super) fn open(config: &Config, node: &str, shards: usize) -> anyhow::Result<(Self, Vec<AccessLog>)> {
        let (clickhouse, lines) = clickhouse::start(config, node)?.unzip();
        let (writer, logs) = open_access_log(&config.log, shards, lines)?;
        Ok((Self { writer, clickhouse, began: clock::unix_now() }, logs))
    }

    /// Opens the access log's file anew.
    pub(super) fn reopen(&self) {
        self.writer.reopen();
    }

    /// Whether there is a sink, which another configuration is prepared for.
    pub(super) const fn has_sink(&self) -> bool {
        self.clickhouse.is_some()
    }

    /// Goes on by the configuration that is in force now.
    pub(super) fn adopt(&self, prepared: Option<Prepared>, config: &Config) {
        if let (Some(sink), Some(prepared)) = (&self.clickhouse, prepared) {
            sink.adopt(prepared, &config.clickhouse);
        }
    }

    /// How ClickHouse is; `None` if none is configured.
    pub(super) fn clickhouse(&self) -> Option<Dependency> {
        let unknown = || Dependency {
            error: Some("unknown"),
            is_degraded: false,
            latency: Duration::ZERO,
            checked_at: self.began,
        };
        self.clickhouse.as_ref().map(|sink| sink.report().dependency.unwrap_or_else(unknown))
    }

    /// What was counted of rows; `None` if there is no sink.
    pub(super) fn counters(&self) -> Option<ClickhouseCounters> {
        self.clickhouse.as_ref().map(|sink| sink.report().counters)
    }

    /// Ends both, the writer first: the sink has the last of its lines then.
    pub(super) fn close(self) {
        if !self.writer.close(LOG_CLOSE_MAX) {
            tracing::warn!("the access log could not be written out in time; its last lines are lost");
        }
        if self.clickhouse.is_some_and(|sink| !sink.close(clickhouse::CLOSE_MAX)) {
            tracing::warn!("rows for ClickHouse could be neither sent nor kept in time; they may be lost");
        }
    }
}

/// Opens the access log: its writer, and what each shard fills.
fn open_access_log(
    log: &config::Log,
    shards: usize,
    lines: Option<LineSink>,
) -> anyhow::Result<(AccessLogWriter, Vec<AccessLog>)> {
    let target = match &log.access {
        config::AccessLog::Off => access_log::LogTarget::Off,
        config::AccessLog::Stdout => access_log::LogTarget::Stdout,
        config::AccessLog::File(path) => access_log::LogTarget::File(path.clone()),
    };
    let is_terminal = target == access_log::LogTarget::Stdout && io::stdout().is_terminal();
    let format = Format::wanted(log.format, is_terminal);
    access_log::spawn(&target, format, shards, log.buffer_bytes, lines).map_err(|error| match &log.access {
        config::AccessLog::File(path) => {
            let remedy = access_log::remedy(path, &error);
            anyhow::Error::new(error).context(format!("log.access is \"{}\": {remedy}", path.display()))
        }
        _ => anyhow::Error::new(error).context("the access log cannot be written"),
    })
}
