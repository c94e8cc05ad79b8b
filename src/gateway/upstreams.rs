//! An upstream's part of the plan, out of its configuration: limits of the process divided among the shards, and who has which
//! key. Where its instances are is for `addresses`.

use std::sync::Arc;

use super::{
    addresses::{Addresses, instances, own_zone},
    affinity::Affinity,
    plan::UpstreamPlan,
};
use crate::{
    config::{Balance, Config, Shedding, Upstream},
    net::AnswerLimits,
    proto::http1::HeadLimits,
    telemetry::metrics::Names,
    upstream::{
        Backoff, BreakerPolicy, FailureShare, Instance, OutlierPolicy, Settings,
        balance::{Rules, Table},
        shares,
    },
};

impl UpstreamPlan {
    /// All of a configuration, with the instances that there are by these addresses.
    pub(super) fn all(config: &Config, addresses: &Addresses, shards: usize, names: &mut Names) -> Vec<Self> {
        let compiled = |((name, upstream), instances): ((&String, &Upstream), Box<[Instance]>)| {
            Self::compile(name, upstream, &config.shedding, instances, own_zone(config), shards, names)
        };
        config.upstreams.iter().zip(instances(config, addresses)).map(compiled).collect()
    }

    fn compile(
        name: &str,
        upstream: &Upstream,
        shedding: &Shedding,
        instances: Box<[Instance]>,
        zone: Option<&str>,
        shards: usize,
        names: &mut Names,
    ) -> Self {
        // A limit of the process is shared out; rounding up, so that each shard may do something.
        let share = |limit: u32| limit.div_ceil(u32::try_from(shards).unwrap_or(1));
        Self {
            name: name.to_owned(),
            slot: names.upstreams.claim(name),
            settings: Settings {
                connect_timeout: upstream.connect_timeout,
                idle_timeout: upstream.idle_timeout,
                idle_max: upstream.idle_max,
                answers: AnswerLimits {
                    head: HeadLimits {
                        head_bytes_max: upstream.head_bytes_max,
                        fields_max: upstream.fields_max,
                        target_bytes_max: 0,
                    },
                    interim_max: upstream.interim_answers_max,
                },
                requests_max: share(upstream.requests_max),
                uploads_max: share(upstream.uploads_max.unwrap_or_else(|| upstream.requests_max.div_ceil(2))),
                retries_at_once_max: RETRIES_AT_ONCE_MAX,
                retry_percent: upstream.retry_budget_percent,
                // A fraction for each shard: of 64 shards each would otherwise have one a second at least.
                retry_min_milli_per_s: share(upstream.retry_budget_min_per_s.saturating_mul(1000)),
                backoff: Backoff { first: upstream.retry_backoff, max: upstream.retry_backoff_max },
                sheds_by_deadline: shedding.by_deadline,
                queue_max: shedding.queue_max,
                outlier: OutlierPolicy {
                    failures: upstream.outlier_failures,
                    share: FailureShare {
                        percent: upstream.outlier_share_percent,
                        requests_min: upstream.outlier_requests_min,
                        window: upstream.outlier_window,
                    },
                    statuses: upstream.outlier_statuses,
                    ejection: upstream.outlier_ejection,
                    percent_max: upstream.outlier_percent_max,
                },
                breaker: BreakerPolicy {
                    share: FailureShare {
                        percent: upstream.breaker.percent,
                        requests_min: upstream.breaker.requests_min,
                        window: upstream.breaker.window,
                    },
                    statuses: upstream.breaker.statuses,
                    open_for: upstream.breaker.open_for,
                },
                balance: Rules {
                    policy: upstream.balance,
                    panic_percent: upstream.panic_percent,
                    slow_start: upstream.slow_start,
                },
                zone: zone.map(Arc::from),
                is_probed: upstream.health.kind().is_some(),
            },
            table: table_of(upstream.balance, &instances, zone),
            affinity: (upstream.balance == Balance::ConsistentHash)
                .then(|| Affinity::new(upstream.hash_key.clone(), upstream.hash_secret.as_ref())),
            health: Some(&upstream.health).filter(|health| health.kind().is_some()).cloned(),
            instances,
        }
    }
}

/// Which of these has which key, where they are chosen so. Made here, since it takes longer than a request.
pub(super) fn table_of(policy: Balance, instances: &[Instance], zone: Option<&str>) -> Option<Arc<Table>> {
    if policy != Balance::ConsistentHash {
        return None;
    }
    // Two names may be at one address, and one name at several.
    let name = |Instance { at, .. }: &Instance| format!("{} {}", at.name, at.address);
    let names: Vec<_> = instances.iter().map(name).zip(shares(instances, zone)).collect();
    Some(Arc::new(Table::new(&names)))
}

/// Retries that have no answer yet, for each upstream and shard: more than a budget of 20 % has saved up. An instance that is
/// killed breaks all that it has in flight at once, and none of these is to fail for that.
const RETRIES_AT_ONCE_MAX: u32 = 32;
