//! The plan in force on a shard, with its upstreams: how a new one takes over, and what was noticed of backends meanwhile.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use super::{
    Gateway, Instances,
    plan::{Plan, Target},
    rate_limit::Limits,
    sockets,
};
use crate::{
    certificates::Certificates,
    exchange::{Labels, Ledger},
    net::{HttpLimits, Peer},
    proto::head::{Known, RequestHead},
    shard::{Instant, Local, clock, complaints::complain, gate::Gate},
    telemetry::{
        record::RouteNames,
        slots::{MetricSlot, OTHER},
        spans::SpanNames,
    },
    upstream::{BackendAddress, InstanceReport, NoticeBell, Orders, Report, Upstream, probe::Verdict},
};

/// The plan that is in force on a shard, and what it needs here. A request keeps the one that it began with.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) plan: Arc<Plan>,
    pub(super) http: Rc<HttpLimits>,
    pub(super) limits: Limits,
    /// In the order of the plan's.
    pub(super) upstreams: Vec<Rc<Upstream>>,
    /// For each route.
    pub(super) labels: Vec<Rc<Labels>>,
    /// For each service of the hub.
    pub(super) service_labels: Vec<Rc<Labels>>,
}

impl Gateway {
    /// Takes a new plan. Requests under way end by the old one; upstreams and backends that stay keep their connections.
    pub fn adopt(&self, plan: Arc<Plan>) {
        let old = self.live();
        self.identity.adopt(&plan.tokens);
        let known: Vec<_> =
            old.plan.upstreams.iter().map(|upstream| upstream.name.as_str()).zip(&old.upstreams).collect();
        self.limits.adopt(&plan.limits);
        let live = Rc::new(Live::new(plan, &known, &self.ledger, self.limits.clone(), &self.outages.bell));
        live.operate(&self.orders.with(|orders| Arc::clone(orders)));
        if let Some(certificates) = self.certificates.with(|certificates| certificates.clone()) {
            live.trust(&certificates, &self.to_services);
        }
        let replaced = self.live.with(|current| std::mem::replace(current, live));
        drop(replaced);
        // What the hub sends to services goes by the new plan from here on.
        self.sockets.adopt(&self.live().plan);
    }

    /// Names of instances have other addresses. Instances that stay keep their connections.
    pub fn follow(&self, instances: &Instances) {
        let live = self.live();
        // What belongs to an older plan is in the newer one already.
        if instances.generation != live.plan.generation {
            return;
        }
        for moved in &instances.changed {
            if let Some(upstream) = live.upstreams.get(moved.upstream) {
                upstream.replace_backends(&moved.instances, moved.table.clone());
            }
        }
        live.operate(&self.orders.with(|orders| Arc::clone(orders)));
    }

    /// Operators want this of backends from now on, and nothing else.
    pub fn operate(&self, orders: Arc<Orders>) {
        self.live().operate(&orders);
        self.orders.with(|known| *known = orders);
    }

    /// Closes connections to backends that have been idle for too long.
    pub fn sweep(&self, now: Instant) {
        self.identity.sweep();
        for upstream in &self.live().upstreams {
            upstream.sweep(now);
        }
        self.note_unasked();
        self.say_late(now);
    }

    /// Probes have come to another verdict of a backend of the upstream at this place, by this generation of the plan.
    pub fn probed(&self, generation: u64, upstream: usize, at: &BackendAddress, verdict: Verdict) {
        let live = self.live();
        if live.plan.generation == generation
            && let Some(upstream) = live.upstreams.get(upstream)
        {
            upstream.probed(at, verdict, clock::now());
        }
    }

    /// How each upstream stands on this shard, in the order of the plan's.
    pub fn report(&self, now: Instant) -> Vec<Report> {
        self.live().upstreams.iter().map(|upstream| upstream.report(now)).collect()
    }

    /// How each instance of each upstream stands on this shard, in the order of the plan's, with the upstream's place in the
    /// metrics.
    pub fn report_instances(&self, now: Instant) -> Vec<(MetricSlot, Vec<InstanceReport>)> {
        let live = self.live();
        let upstreams = live.plan.upstreams.iter().zip(&live.upstreams);
        upstreams.map(|(plan, upstream)| (plan.slot, upstream.report_instances(now))).collect()
    }

    /// The plan in force.
    pub fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.live().plan)
    }

    pub(super) fn live(&self) -> Rc<Live> {
        self.live.with(|live| Rc::clone(live))
    }

    /// Counts the connections on which backends sent something unasked, and tells once of each that is distrusted for it.
    pub fn note_unasked(&self) {
        let live = self.live();
        for (plan, upstream) in live.plan.upstreams.iter().zip(&live.upstreams) {
            for (backend, caught) in upstream.take_caught() {
                let shard = self.ledger.with(|ledger| {
                    ledger.counters.upstream(plan.slot).connections_unasked += caught.connections;
                    ledger.shard
                });
                let (upstream, instance) = (plan.name.as_str(), backend.name());
                if caught.newly_sends_bodies {
                    complain!(warn:
                        upstream,
                        instance,
                        shard,
                        "it sends bodies to HEAD: a connection is closed after each"
                    );
                }
                if caught.is_newly_distrusted {
                    complain!(warn:
                        upstream,
                        instance,
                        shard,
                        "it sent something that nobody had asked for: each of its connections waits before it is used again"
                    );
                }
            }
        }
    }
}

impl Live {
    pub(super) fn new(
        plan: Arc<Plan>,
        known: &[(&str, &Rc<Upstream>)],
        ledger: &Local<Ledger>,
        limits: Limits,
        bell: &Rc<NoticeBell>,
    ) -> Self {
        let upstreams = plan.upstreams.iter().map(|wanted| {
            let known = known.iter().find(|(name, _)| *name == wanted.name).map(|(_, upstream)| Rc::clone(upstream));
            let seed = || ledger.with(|ledger| ledger.rng.u64(..));
            let upstream = known.unwrap_or_else(|| Rc::new(Upstream::new(wanted.settings.clone(), seed())));
            upstream.attach(bell);
            upstream.update(wanted.settings.clone(), &wanted.instances, wanted.table.clone());
            upstream
        });
        let upstreams: Vec<_> = upstreams.collect();
        let labels = plan.routes.iter().map(|route| {
            let upstream = match &route.target {
                Target::Proxy(proxy) => Some(&plan.upstreams[proxy.upstream]),
                Target::Own(_) | Target::Account(_) | Target::Socket | Target::Hub(_) | Target::Echo => None,
            };
            Rc::new(Labels {
                place: RouteNames::new(&route.name, upstream.map_or("", |upstream| &upstream.name)),
                route_slot: route.slot,
                upstream_slot: upstream.map_or(OTHER, |upstream| upstream.slot),
                names: SpanNames::new(&route.name, route.pattern(), upstream.map_or("", |upstream| &upstream.name)),
            })
        });
        let labels = labels.collect();
        let service_labels = sockets::label_services(&plan);
        ledger.with(|ledger| {
            let slots = |slots: &mut dyn Iterator<Item = usize>| slots.max().map_or(0, |slot| slot + 1);
            ledger.counters.make_room(
                slots(&mut plan.routes.iter().map(|route| route.slot.index()).chain(plan.hub.slots())),
                slots(&mut plan.upstreams.iter().map(|upstream| upstream.slot.index())),
            );
            ledger.sampler = plan.sampler;
            ledger.spans.set(plan.recording);
            ledger.counters.config_generation = i64::try_from(plan.generation).unwrap_or(i64::MAX);
        });
        Self { http: Rc::new(plan.http.clone()), plan, limits, upstreams, labels, service_labels }
    }

    /// Has connections to backends that speak TLS be made by what these certificates say. An upstream of which they say nothing,
    /// as it is going, keeps what it had.
    pub(super) fn trust(&self, certificates: &Certificates, gate: &Rc<Gate>) {
        for (plan, upstream) in self.plan.upstreams.iter().zip(&self.upstreams) {
            if let Some(tls) = certificates.services().get(&plan.name) {
                upstream.trust(tls, gate);
            }
        }
    }

    /// Does with backends what operators want, after a change of it or of the backends.
    fn operate(&self, orders: &Orders) {
        for (plan, upstream) in self.plan.upstreams.iter().zip(&self.upstreams) {
            upstream.operate(orders.get(&plan.name).map_or(&[], Vec::as_slice));
        }
    }

    /// Whom a request is from, and whether the peer's word about it counts: the last address of `X-Forwarded-For` that
    /// no trusted peer has added.
    pub(super) fn client(&self, peer: &Peer, head: &RequestHead) -> (IpAddr, bool) {
        let is_trusted = |address: IpAddr| self.plan.trusted.iter().any(|net| net.contains(address));
        let mut client = peer.address.ip();
        if self.plan.trusted.is_empty() || !peer.may_vouch || !is_trusted(client) {
            return (client, false);
        }
        let fields = head.fields.iter().filter(|field| field.known == Known::XForwardedFor);
        let hops = fields.rev().flat_map(|field| field.value.of(&head.bytes).rsplit(|byte| *byte == b','));
        // RFC 9110 §5.6.1: empty members of a list stand for nothing.
        let hops = hops.map(<[u8]>::trim_ascii).filter(|hop| !hop.is_empty());
        for hop in hops {
            let Some(address) = hop_address(hop) else { break };
            client = address;
            if !is_trusted(address) {
                break;
            }
        }
        (client, true)
    }
}

/// The address of a member of `X-Forwarded-For`. Some proxies add the port, and brackets to an IPv6 address.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    hop.parse().ok().or_else(with_port).or_else(bare)
}
