//! Probes at work: asks whom `upstream::probe` says, each over a connection of its own, and keeps what came of it for health
//! and metrics. One per process, on the control thread.

use std::{collections::BTreeMap, io, rc::Rc};

use http_body_util::Empty;
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};

use super::letter;
use crate::{
    config::{Health, ProbeKind},
    gateway::Plan,
    shard::{Address, Instant, clock, complaints::Complaints, explained, is_ours},
    telemetry::{
        metrics::{self, ProbeCounters, ProbeResult},
        slots::MetricSlot,
    },
    upstream::{
        BackendAddress, Instance,
        probe::{LastProbe, Probe, ProbeRules, Prober, Verdict},
    },
};

/// An answer's head is read up to so many bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Changes of instances that the log is told of one by one in a second; when a whole network flaps, the rest is counted.
const CHANGES_TOLD: u32 = 20;

/// All upstreams' probes.
pub(super) struct Probes {
    upstreams: BTreeMap<String, Probed>,
    tell: UnboundedSender<Told>,
    told: UnboundedReceiver<Told>,
    /// Those that ended since somebody took them, each with its upstream's place in the metrics.
    ended: Vec<(MetricSlot, BackendAddress, metrics::Probed)>,
    complaints: Complaints,
}

/// An upstream that is probed.
struct Probed {
    prober: Prober,
    health: Rc<Health>,
    slot: MetricSlot,
    counts: [u64; ProbeResult::COUNT],
}

/// A probe of an upstream has ended. At most [`UNDER_WAY_MAX`](crate::upstream::probe::UNDER_WAY_MAX) of each are waiting.
struct Told {
    upstream: String,
    probe: Probe,
    result: ProbeResult,
}

/// An instance's verdict is another one.
pub(super) struct Changed {
    upstream: String,
    at: BackendAddress,
    /// Whether it is well.
    is_up: bool,
    /// How the last probe ended.
    result: ProbeResult,
}

impl Changed {
    /// What shards of this plan are told.
    pub(super) fn letter(self, plan: &Plan) -> Option<letter::Probed> {
        let upstream = plan.upstreams.iter().position(|known| known.name == self.upstream)?;
        let Self { at, is_up, .. } = self;
        Some(letter::Probed { generation: plan.generation, upstream, at, is_up })
    }

    /// Tells the operator; in a storm of changes, of some that stand for so many.
    fn log(&self, before: Verdict, count: u64) {
        let Self { upstream, at, is_up, result } = self;
        let (instance, address) = (&*at.authority, &at.address);
        if before == Verdict::Unknown && *is_up {
            // As it should be.
            tracing::debug!(upstream, instance, %address, "an instance is up: its first probe went well");
        } else if *is_up {
            tracing::info!(upstream, instance, %address, count, "an instance is up: its probes go well");
        } else {
            let error = ProbeResult::VALUES[result.index()];
            tracing::warn!(upstream, instance, %address, error, count, "an instance is down: its probes fail");
        }
    }
}

impl Probes {
    pub(super) fn new() -> Self {
        let (tell, told) = unbounded_channel();
        Self { upstreams: BTreeMap::new(), tell, told, ended: Vec::new(), complaints: Complaints::singly(CHANGES_TOLD) }
    }

    /// Takes other upstreams, or other instances of them, in the plan's order. What is known of those that stay is kept, new
    /// ones are asked at once.
    pub(super) fn set(&mut self, plan: &Plan, instances: &[Box<[Instance]>]) {
        let now = clock::now();
        let mut known = std::mem::take(&mut self.upstreams);
        for (upstream, instances) in plan.upstreams.iter().zip(instances) {
            let Some(health) = upstream.health.as_ref().filter(|health| health.kind().is_some()) else { continue };
            let rules =
                ProbeRules { interval: health.interval, down_after: health.down_after, up_after: health.up_after };
            let mut probed = known.remove(&upstream.name).unwrap_or_else(|| Probed {
                prober: Prober::new(rules, fastrand::u64(..)),
                health: Rc::new(health.clone()),
                slot: upstream.slot,
                counts: [0; ProbeResult::COUNT],
            });
            probed.prober.set(now, rules, instances);
            if *probed.health != *health {
                probed.health = Rc::new(health.clone());
                probed.prober.ask_all(now);
            }
            self.upstreams.insert(upstream.name.clone(), probed);
        }
    }

    /// The next change of a verdict. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> Changed {
        loop {
            self.begin(clock::now());
            let due = self.upstreams.values().filter_map(|probed| probed.prober.poll_timeout()).min();
            let wait = due.map_or(std::time::Duration::MAX, |due| due.since(clock::now()));
            tokio::select! {
                Some(told) = self.told.recv() => {
                    if let Some(changed) = self.take(told) {
                        return changed;
                    }
                }
                () = sleep(wait), if due.is_some() => {}
            }
        }
    }

    /// Makes the probes that are due.
    fn begin(&mut self, now: Instant) {
        for (name, probed) in &mut self.upstreams {
            while let Some(probe) = probed.prober.poll_probe(now) {
                let (tell, health, upstream) = (self.tell.clone(), Rc::clone(&probed.health), name.clone());
                tokio::task::spawn_local(async move {
                    let asked = timeout(health.timeout, ask(&health, &probe.at)).await;
                    let result = asked.unwrap_or(ProbeResult::TimedOut);
                    // Nobody listens any more when the process ends.
                    let _ = tell.send(Told { upstream, probe, result });
                });
            }
        }
    }

    fn take(&mut self, told: Told) -> Option<Changed> {
        let Told { upstream, probe, result } = told;
        let probed = self.upstreams.get_mut(&upstream)?;
        probed.counts[result.index()] += 1;
        if result != ProbeResult::NotAsked {
            let is_good = result == ProbeResult::Good;
            let ended = if is_good { metrics::Probed::Good } else { metrics::Probed::Failed };
            self.ended.push((probed.slot, probe.at.clone(), ended));
        }
        let (before, verdict) = probed.prober.handle_result(clock::now(), &probe, result)?;
        let changed = Changed { upstream, at: probe.at, is_up: verdict == Verdict::Up, result };
        if let Some(count) = self.complaints.add(clock::now(), 1) {
            changed.log(before, count);
        }
        Some(changed)
    }

    /// Those that ended since this was asked last.
    pub(super) fn take_ended(&mut self) -> Vec<(MetricSlot, BackendAddress, metrics::Probed)> {
        std::mem::take(&mut self.ended)
    }

    /// Asks all instances of an upstream as soon as may be; says whether it is probed.
    pub(super) fn ask_now(&mut self, upstream: &str) -> bool {
        let probed = self.upstreams.get_mut(upstream);
        probed.map(|probed| probed.prober.ask_all(clock::now())).is_some()
    }

    /// What is known of each instance of an upstream, in the order in which it was given them; `None` if it is not probed.
    pub(super) fn report(&self, upstream: &str) -> Option<Vec<(Verdict, Option<LastProbe>)>> {
        let probed = self.upstreams.get(upstream)?;
        Some(probed.prober.report().map(|(_, verdict, last)| (verdict, last)).collect())
    }

    /// What is published, by slot; nothing for upstreams that are not probed.
    pub(super) fn counters(&self) -> Vec<Option<ProbeCounters>> {
        let mut counters = Vec::new();
        for probed in self.upstreams.values() {
            let slot = probed.slot.index();
            counters.resize_with(counters.len().max(slot + 1), || None);
            let instances_up = i64::try_from(probed.prober.up()).unwrap_or(i64::MAX);
            counters[slot] = Some(ProbeCounters { probes: probed.counts, instances_up });
        }
        counters
    }
}

/// Asks an instance whether it is well.
async fn ask(health: &Health, at: &BackendAddress) -> ProbeResult {
    let asked = match &at.address {
        Address::Ip(address) => {
            let stream = TcpStream::connect(address).await;
            ask_over(health, at, stream.map_err(|error| explained(*address, error))).await
        }
        // Where too many wait the kernel does not say when there is room; what is asked for every so often need not know.
        Address::Unix(path) => ask_over(health, at, UnixStream::connect(path).await).await,
    };
    asked.unwrap_or_else(|result| result)
}

async fn ask_over<S>(health: &Health, at: &BackendAddress, stream: io::Result<S>) -> Result<ProbeResult, ProbeResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = stream.map_err(|error| not_connected(&error))?;
    match health.kind() {
        Some(ProbeKind::Http) => get(health, at, stream).await,
        Some(ProbeKind::Tcp) | None => Ok(ProbeResult::Good),
    }
}

fn not_connected(error: &io::Error) -> ProbeResult {
    match error.kind() {
        _ if is_ours(error) => ProbeResult::NotAsked,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ProbeResult::TimedOut,
        _ => ProbeResult::Refused,
    }
}

/// One GET; of the answer only the head is looked at.
async fn get<S>(health: &Health, at: &BackendAddress, stream: S) -> Result<ProbeResult, ProbeResult>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(health.path.as_deref().unwrap_or("/"))
        .header(header::HOST, health.host.as_deref().unwrap_or(&at.authority))
        .header(header::USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION"), " (health)"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("the configuration is checked");
    let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| class_of(&error))?;
    let (mut connection, answer) = (std::pin::pin!(connection), sender.send_request(request));
    let mut answer = std::pin::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What ended it is told to who waits.
        _ = &mut connection => answer.await,
    };
    let status = answer.map_err(|error| class_of(&error))?.status().as_u16();
    Ok(if health.statuses.contains(status) { ProbeResult::Good } else { ProbeResult::Status })
}

fn class_of(error: &hyper::Error) -> ProbeResult {
    if error.is_parse() { ProbeResult::Malformed } else { ProbeResult::Closed }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::{LocalSet, spawn_local},
    };

    use super::*;

    /// A service that says this to each connection once it has read something, and then waits or closes; and what came of
    /// a probe of it, and what it read.
    fn probed(health: Health, says: &'static str, closes: bool) -> (ProbeResult, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let service = spawn_local(async move {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut read = vec![0; 4096];
                let bytes = stream.read(&mut read).await.unwrap_or(0);
                let _ = stream.write_all(says.as_bytes()).await;
                if !closes {
                    // Until the prober has enough.
                    let _ = stream.read(&mut [0; 1]).await;
                }
                String::from_utf8_lossy(&read[..bytes]).into_owned()
            });
            let at = BackendAddress { authority: "shop.internal:80".into(), address: address.into() };
            let asked = timeout(health.timeout, ask(&health, &at)).await;
            (asked.unwrap_or(ProbeResult::TimedOut), service.await.expect("it ends"))
        })
    }

    fn health() -> Health {
        Health { path: Some("/health?deep=1".to_owned()), timeout: Duration::from_millis(300), ..Health::default() }
    }

    #[test]
    fn an_answer_is_good_bad_late_or_none() {
        for (says, closes, result) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 204 None\r\n\r\n", true, ProbeResult::Good),
            ("HTTP/1.1 399 Odd\r\nContent-Length: 9999999\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", false, ProbeResult::Good),
            ("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false, ProbeResult::Status),
            ("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", true, ProbeResult::Status),
            ("", true, ProbeResult::Closed),
            ("HTTP/1.1 200 O", true, ProbeResult::Closed),
            ("", false, ProbeResult::TimedOut),
            ("HTTP/1.1 200 O", false, ProbeResult::TimedOut),
            ("SSH-2.0-OpenSSH_9.9\r\n", false, ProbeResult::Malformed),
        ] {
            assert_eq!(probed(health(), says, closes).0, result, "{says:?}");
        }
    }

    #[test]
    fn what_is_asked_is_as_configured() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (_, read) = probed(health(), ok, false);
        assert!(read.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{read}");
        let fields: BTreeSet<_> = read.to_ascii_lowercase().lines().map(str::to_owned).collect();
        assert!(fields.contains("host: shop.internal:80") && fields.contains("connection: close"), "{read}");
        let (_, read) = probed(Health { host: Some("shop.example".to_owned()), ..health() }, ok, false);
        assert!(read.to_ascii_lowercase().contains("\r\nhost: shop.example\r\n"), "{read}");
        let statuses = "201".parse().expect("a status");
        assert_eq!(probed(Health { statuses, ..health() }, ok, false).0, ProbeResult::Status);
        let tcp = Health { kind: Some(ProbeKind::Tcp), path: None, ..health() };
        assert_eq!(probed(tcp, "", true), (ProbeResult::Good, String::new()), "to be let in is enough");
    }

    #[test]
    fn who_does_not_listen_refuses() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let result = runtime.block_on(async {
            let address = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr());
            let address = Address::from(address.expect("an address"));
            ask(&health(), &BackendAddress { authority: "gone".into(), address }).await
        });
        assert_eq!(result, ProbeResult::Refused);
    }
}
