//! The files of a configuration that is to be taken, but for those of certificates and lists: keys, tokens, passwords, and the
//! certificates that servers are known by. They are read on threads that may wait, each kind by itself, so that the log can say
//! which of them hangs; what they hold is taken whole or not at all.

use std::{future::pending, path::Path, pin::Pin, sync::Arc};

use super::super::{
    files,
    readers::{Readers, Reading},
    records::Records,
};
use crate::{
    admin::Access,
    auth::{Keychain, NewKeys},
    config::Config,
    sinks::{
        clickhouse,
        otlp::{self, Exporter},
    },
};

/// Configurations whose files of one kind are read at once, those that hang among them.
const READERS_MAX: usize = 4;

/// What the files hold.
pub(super) struct NewFiles {
    pub(super) keys: NewKeys,
    pub(super) access: Access,
    /// If there is a sink.
    pub(super) clickhouse: Option<clickhouse::Prepared>,
    /// Nothing where spans go on as they do.
    pub(super) spans: Option<otlp::Prepared>,
}

/// What comes of reading them.
type UnderWay = Pin<Box<dyn Future<Output = Result<NewFiles, String>>>>;

/// One per process, on the control thread.
pub(super) struct CandidateFiles {
    of_keys: Readers,
    of_tokens: Readers,
    of_clickhouse: Readers,
    of_spans: Readers,
    under_way: Option<UnderWay>,
}

impl CandidateFiles {
    pub(super) fn new() -> Self {
        let [of_keys, of_tokens, of_clickhouse, of_spans] = [(); 4].map(|()| Readers::new(READERS_MAX));
        Self { of_keys, of_tokens, of_clickhouse, of_spans, under_way: None }
    }

    /// Begins to read what a configuration names, as it is from now on. What was read for one before is left.
    pub(super) fn begin(&mut self, config: &Config, keychain: &Keychain, records: &Records, exporter: &Exporter) {
        let config = Arc::new(config.clone());
        let made = keychain.made().map(Path::to_owned);
        let (has_sink, has_spans) = (records.has_sink(), exporter.goes_by(&config.trace));
        let [for_keys, for_tokens, for_sink] = [(); 3].map(|()| Arc::clone(&config));
        let keys = self.of_keys.read(move || {
            let read = files::read_keys(&for_keys, made.as_deref());
            read.map_err(|error| error.to_string())
        });
        let tokens = self.of_tokens.read(move || files::admin_access(&for_tokens));
        let prepare = move || has_sink.then(|| clickhouse::Prepared::new(&for_sink.clickhouse)).transpose();
        let clickhouse = self.of_clickhouse.read(prepare);
        let prepare = move || (!has_spans).then(|| otlp::Prepared::new(&config.trace)).transpose();
        let spans = self.of_spans.read(prepare);
        self.under_way = Some(Box::pin(async move {
            let (keys, access, clickhouse, spans) = tokio::try_join!(
                outcome("the keys of tokens (auth.keys, auth.issuers, data.dir)", keys),
                outcome("the tokens of operators (admin.tokens)", tokens),
                outcome("the files of clickhouse (password_file, ca_file)", clickhouse),
                outcome("the certificates of the collector (trace.ca_file)", spans),
            )?;
            Ok(NewFiles { keys, access, clickhouse, spans })
        }));
    }

    /// What was begun is not taken.
    pub(super) fn give_up(&mut self) {
        self.under_way = None;
    }

    /// What the files hold, or why that is of no use. Dropping the future loses nothing.
    pub(super) async fn read(&mut self) -> Result<NewFiles, String> {
        let Some(under_way) = &mut self.under_way else { return pending().await };
        let read = under_way.as_mut().await;
        self.under_way = None;
        read
    }
}

async fn outcome<T>(what: &str, mut reading: Reading<Result<T, String>>) -> Result<T, String> {
    reading.outcome().await.unwrap_or_else(|why| Err(format!("{what} cannot be read: {why}")))
}
