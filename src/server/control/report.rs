//! What the control thread tells of the process: health, metrics, and how the hub is configured.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{letter::ToShard, scrapes::Wanted},
    Control, Shard,
};
use crate::{
    admin::{
        Done, HealthPage, Question, Unchanged, asyncapi,
        health::{self, BusHealth, UpstreamHealth},
    },
    bus::to,
    config::Upstream,
    gateway::{Page, Pages},
    shard::clock,
    telemetry::{
        dependency::Databases,
        exemplars::Merged,
        exposition::{Scrape, ShardCounters},
        format::Format,
        metrics::KeyFetch,
        usage,
    },
    upstream::Instance,
};

/// A scrape is answered without the shards that have not told by then.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(1);

/// Scrapes that a shard may have to answer at once.
const UNTOLD_MAX: u64 = 64;

/// Who waits for the metrics.
pub(super) enum Scraper {
    /// A client of the operator's listener.
    Operator(Format, oneshot::Sender<Arc<String>>),
    /// Clients of the shard of this number.
    Shard(usize, Wanted),
    /// An operator, whose change shards act by once they have told; and what it is, in a sentence.
    Change(oneshot::Sender<Result<Done, Unchanged>>, String),
}

impl Scraper {
    pub(super) fn wants(&self, wanted: Format) -> bool {
        match self {
            Self::Operator(format, _) => *format == wanted,
            Self::Shard(_, formats) => formats[wanted.index()],
            Self::Change(..) => false,
        }
    }
}

impl Control {
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::Metrics(format, sender) => self.scrape(Scraper::Operator(format, sender)),
            Question::Health(page, sender) => {
                let known = self.known();
                // Whoever asked may have left.
                let _ = sender.send(match page {
                    HealthPage::Whole => health::whole(&known),
                    HealthPage::Ready => health::ready(&known),
                    HealthPage::ReadyHub => health::ready_hub(&known),
                });
            }
            Question::AsyncApi(sender) => {
                let document = asyncapi::document(&self.config.hub, self.config.listener.port);
                let _ = sender.send(document.to_string() + "\n");
            }
            Question::State(sender) => {
                let _ = sender.send(self.state_document());
            }
            Question::Change(change, author, sender) => self.change(change, &author, sender),
        }
    }

    pub(super) fn scrape(&mut self, scraper: Scraper) {
        self.scrapes.push(scraper);
        self.scrape_due.get_or_insert_with(|| Instant::now() + SCRAPE_TIMEOUT);
        // All are asked anew: what is on its way was counted before. A shard that is behind by so much is not asked ever
        // more, and its next answers do.
        self.ask_shards(|shard| shard.asked.saturating_sub(shard.told) < UNTOLD_MAX);
        self.shards.iter_mut().for_each(|shard| shard.wanted = shard.asked);
    }

    /// Answers scrapes once every shard has told, or the time is up.
    pub(super) fn answer_scrapes(&mut self) {
        let Some(due) = self.scrape_due else { return };
        let has_told = |shard: &Shard| shard.told >= shard.wanted;
        let answered = self.shards.iter().filter(|shard| has_told(shard)).count();
        if answered < self.shards.len() && Instant::now() < due {
            return;
        }
        self.scrape_due = None;
        let total = self.shards.len();
        for change in self.scrapes.extract_if(.., |scraper| matches!(scraper, Scraper::Change(..))) {
            if let Scraper::Change(told, detail) = change {
                let _ = told.send(Ok(Done { detail, shards: Some((answered, total)) }));
            }
        }
        if self.scrapes.is_empty() {
            return;
        }
        self.process.shards_answered = i64::try_from(answered).unwrap_or(i64::MAX);
        let fetched = self.keychain.fetch_counts();
        self.process.key_fetches[KeyFetch::Good.index()] = fetched.good;
        self.process.key_fetches[KeyFetch::Failed.index()] = fetched.failed;
        self.process.probes = self.probes.counters();
        let spans = self.exporter.counts();
        self.process.spans_exported = spans.exported;
        (self.process.spans_dropped, self.process.span_exports_failed) = (spans.dropped, spans.failures);
        self.process.spans_waiting = i64::try_from(self.exporter.waiting()).unwrap_or(i64::MAX);
        self.process.clickhouse = self.records.counters();
        self.process.admin_refused = self.operators.refusals.counts();
        self.process.instances_unlisted = i64::try_from(self.instances.unlisted()).unwrap_or(i64::MAX);
        self.process.stores_up = self.databases().up();
        usage::read(&mut self.process);
        let scrapers = std::mem::take(&mut self.scrapes);
        let texts = Format::ALL.map(|format| {
            scrapers.iter().any(|scraper| scraper.wants(format)).then(|| Arc::new(self.write_metrics(format)))
        });
        for scraper in scrapers {
            match scraper {
                Scraper::Change(..) => {}
                Scraper::Operator(format, sender) => {
                    if let Some(text) = &texts[format.index()] {
                        // Whoever asked may have left.
                        let _ = sender.send(Arc::clone(text));
                    }
                }
                Scraper::Shard(shard, _) => self.bus.send(to::Shard(shard), ToShard::Metrics(texts.clone())),
            }
        }
    }

    /// What the shards have told, and what is known here.
    fn write_metrics(&mut self, format: Format) -> String {
        let told = self.shards.iter().enumerate().filter(|(_, shard)| shard.told >= shard.wanted);
        let told = told.filter_map(|(index, shard)| Some((u16::try_from(index).ok()?, shard.scraped.as_deref()?)));
        let shards: Vec<_> =
            told.clone().map(|(shard, scraped)| ShardCounters { shard, counters: &scraped.counters }).collect();
        let exemplars = Merged::of(told.flat_map(|(_, scraped)| scraped.exemplars.iter().copied()));
        let scrape = Scrape {
            shards: &shards,
            process: &self.process,
            followed: &self.lookups.counters(),
            instances: &self.instances.series(&self.names, clock::now()),
            exemplars: &exemplars,
            names: &self.names,
        };
        // As long as it was last, and a little more.
        let mut text = String::with_capacity(self.metrics_length + self.metrics_length / 8 + 64 * 1024);
        scrape.write(format, &mut text, &std::thread::yield_now);
        self.metrics_length = text.len();
        text
    }

    pub(super) fn show_pages(&mut self) {
        let known = self.known();
        let page = |(status, body)| Page { status, body };
        let pages = Pages {
            health: page(health::whole(&known)),
            ready: page(health::ready(&known)),
            ready_hub: page(health::ready_hub(&known)),
        };
        self.bus.broadcast(|| ToShard::Pages(Box::new(pages.clone())));
    }

    /// How all stores are: the bridge tells of its own, and knows nothing of ClickHouse.
    fn databases(&self) -> Databases {
        Databases { clickhouse: self.records.clickhouse(), ..self.databases.clone() }
    }

    pub(super) fn known(&self) -> health::HealthInputs {
        let generation = self.plan.generation;
        let told = || self.shards.iter().filter_map(|shard| shard.scraped.as_ref());
        let current = || told().filter(|scraped| scraped.generation == generation);
        let have_all_told = current().count() == self.shards.len();
        let upstreams = self.plan.upstreams.iter().enumerate().map(|(place, upstream)| {
            let mut reports: Vec<_> = current().filter_map(|scraped| scraped.reports.get(place).cloned()).collect();
            if !have_all_told {
                // A configuration that is just being taken is no outage.
                reports.extend(self.stood.get(&upstream.name).into_iter().flatten().cloned());
            }
            let probes = self.probes.report(&upstream.name);
            let instances = self.lookups.current().get(place).map_or(&[][..], |instances| instances);
            let is_given = |instance: &Instance| {
                let order = self.operators.orders.of(&upstream.name, &instance.at).map(|entry| entry.order);
                order.unwrap_or_default().gives_any(instance.weight)
            };
            UpstreamHealth {
                name: upstream.name.clone(),
                instances: instances.len(),
                withheld: instances.iter().map(|instance| !is_given(instance)).collect(),
                reports,
                probes,
                is_unverified: self.config.upstreams.get(&upstream.name).is_some_and(Upstream::is_unverified),
            }
        });
        let now = jiff::Timestamp::now();
        health::HealthInputs {
            upstreams: upstreams.collect(),
            unresolved: self.lookups.unresolved(&self.config),
            databases: self.databases(),
            is_revocation_stale: told().any(|scraped| scraped.counters.revocation_stale_shards > 0),
            uptime_s: clock::unix_now().as_secs().saturating_sub(u64::try_from(self.process.start_time).unwrap_or(0)),
            timestamp: format!("{now:.3}"),
            now: clock::now(),
            shards_ready: self.shards.iter().filter(|shard| shard.applied == generation).count(),
            shards: self.shards.len(),
            is_accepting: self.drain.is_none(),
            has_hub: self.config.hub.enabled,
            traces: self.exporter.health(),
            bus_health: match self.bus_health {
                BusHealth::Up if self.are_events_refused => BusHealth::EventsRefused,
                health => health,
            },
        }
    }
}
