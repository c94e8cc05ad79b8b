//! Puts the house together: binds, starts the shards and the control thread, waits, ends.

mod bridge;
mod control;
mod drain;
mod files;
mod fresh;
mod instances;
mod knowledge;
mod letter;
mod lookup;
mod migrate;
mod operations;
mod orders;
mod outages;
mod probes;
mod readers;
mod records;
mod resolver;
mod revoking;
mod rooms;
mod scrapes;
mod signals;
mod spans;
mod waiting;
mod worker;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::Context as _;
pub use control::ProcessEnd;
pub use files::{check_files, file_warnings};
use letter::AllLetters;
use lookup::Lookups;
pub use migrate::migrate;
use records::Records;
#[cfg(any(test, fuzzing))]
pub use resolver::fuzz_dns_answer;
pub use signals::CUT;
use signals::Signals;

use crate::{
    bus::{
        load::LoadBoard,
        mesh::{self, Capacity},
    },
    config::{self, Config, ListenerKind, PublicListener, watch::Watch},
    exchange::Code,
    gateway::{self, Addresses, Plan},
    hub,
    shard::{
        self, Driver, cores,
        listener::{self, PortClaim},
    },
    sinks::otlp::Exporter,
    telemetry::metrics::Names,
};

/// Letters that a ring between two threads holds. Of control letters more are kept aside by the sender. Droppable ones are
/// looked at in each turn of their reader, 128 at a time: as many as come in a few turns.
const RINGS: Capacity = Capacity { control: 1024, droppable: 512 };

/// Told the addresses of the public listeners and the operator's.
pub type Ready = Box<dyn FnOnce(&[SocketAddr], Option<SocketAddr>)>;

/// Runs the gateway until a signal ends it. `watch` is on the file that the configuration is from, since before it was
/// read; `ready` is called once with the addresses of the public listeners and the operator's, when every shard runs the
/// configuration and nothing more is to be told of the start.
///
/// Everything that can be refused is refused before the first connection is accepted: the plan, the ports, the log.
pub fn run(config: Config, watch: Option<Watch>, ready: Ready) -> anyhow::Result<ProcessEnd> {
    // Its own thread is this one; the name is for those that may wait.
    let runtime = tokio::runtime::Builder::new_current_thread().thread_name("waits").enable_all().build()?;
    let ended = run_on(&runtime, config, watch, ready);
    // Whoever still looks up the name of an issuer, or reads a file on a file system that hangs, is not waited for.
    runtime.shutdown_background();
    ended
}

/// The same on the control thread's runtime.
fn run_on(
    runtime: &tokio::runtime::Runtime,
    config: Config,
    watch: Option<Watch>,
    ready: Ready,
) -> anyhow::Result<ProcessEnd> {
    // Before anything tells that the process runs: a signal that nobody handles yet would kill it.
    let mut signals = Signals::new().context("signals cannot be received")?;
    warn(&config);
    keep_pages_small();
    let descriptors = raise_descriptor_limit();
    let cores = cores::shard_count(config.runtime.shards);
    let shards = cores.count;
    let driver = shard::probe_driver(named_driver(config.runtime.driver));
    let mut names = Names { reject_codes: Code::NAMES, ..Names::default() };
    let Some((mut lookups, addresses)) = look_up(&config, runtime, &mut signals) else {
        return Ok(ProcessEnd::Drained);
    };
    let plan = Arc::new(Plan::compile(&config, &addresses, 1, shards, descriptors, &mut names)?);

    let keychain = files::load_keys(&config).context("the keys of tokens cannot be used")?;
    let Some(certificates) = load_certificates(&config, runtime, &mut signals).transpose()? else {
        return Ok(ProcessEnd::Drained);
    };
    files::warn_of_certificates(&config, certificates.as_ref().map(|loaded| &*loaded.certificates));
    let PublicSockets { addresses: listeners, mut sockets, claims } = bind_public(&config, shards)?;
    warn_of_names(&config, &addresses, &listeners);
    lookups.told(&config, &listeners);
    let access =
        files::admin_access(&config).map_err(anyhow::Error::msg).context("operators' tokens cannot be used")?;
    let admin = bind_admin(&config)?;
    let data = files::claim_data(&config)?;
    let (node, secret) = hub_names();
    let (records, access_logs) = Records::open(&config, &node, shards)?;

    let mesh = mesh::build::<AllLetters>(shards, RINGS)?;
    let exporter = Exporter::new(&node, &config.trace).map_err(anyhow::Error::msg)?;
    let bridge = bridge::spawn(bridge::BridgeSetup {
        config: config.clone(),
        node: node.clone(),
        issuer: keychain.issuer(),
        plan: Arc::clone(&plan),
        shards,
        port: mesh.bridge,
    })?;
    let begun = unless_ended(runtime, &mut signals, bridge.begun(), "the stores were still being opened");
    let Some(bridge) = begun.transpose()? else { return Ok(ProcessEnd::Drained) };
    let board = Arc::new(LoadBoard::new(shards));
    let mut threads = Vec::with_capacity(shards);
    for (index, (access_log, port)) in access_logs.into_iter().zip(mesh.shards).enumerate() {
        let equipment = worker::ShardSetup {
            index,
            plan: Arc::clone(&plan),
            keys: keychain.keys(),
            certificates: certificates.as_ref().map(|loaded| Arc::clone(&loaded.certificates)),
            revoked: bridge.revoked.clone(),
            port,
            board: Arc::clone(&board),
            listeners: std::mem::take(&mut sockets[index]),
            access_log,
            flush_interval: config.log.flush_interval,
            seed: fastrand::u64(..),
            node: node.clone(),
            secret,
            has_bus: rooms::have_bus(&config),
        };
        let cpu = cores.cpus.get(index).copied().filter(|_| config.runtime.pin);
        let thread = shard::spawn_shard(index, cpu, driver, move || worker::run(equipment))
            .with_context(|| format!("shard {index} could not be started"))?;
        threads.push(thread);
    }
    tell_listening(&listeners, &cores, driver);
    let operators = admin.as_ref().and_then(|listener| listener.local_addr().ok());
    let public = listeners.clone();
    let control = control::ControlSetup {
        config,
        exporter,
        keychain,
        certificates,
        watch,
        plan,
        names,
        lookups,
        listeners,
        shards,
        descriptors,
        driver: driver.name(),
        port: mesh.control,
        admin,
        access,
        records,
        signals,
        ready: Box::new(move || ready(&public, operators)),
    };
    // The control thread is the one that called: it has nothing else to do.
    let (ended, records) = tokio::task::LocalSet::new().block_on(runtime, control::run(control))?;
    for thread in threads {
        // A shard's panic has ended the process already, and so has the bridge's.
        let _ = thread.join();
    }
    let _ = bridge.thread.join();
    records.close();
    drop((claims, data));
    match ended {
        ProcessEnd::Drained => tracing::info!("ended: every request under way was finished"),
        ProcessEnd::Cut => tracing::warn!("ended: connections that were still open were cut"),
    }
    Ok(ended)
}

/// Tells the log where clients are let in, and by how many shards.
fn tell_listening(listeners: &[SocketAddr], cores: &cores::Cores, driver: Driver) {
    tracing::info!(
        address = %listed(listeners, ", "),
        shards = cores.count,
        why = cores.why,
        driver = driver.name(),
        version = env!("CARGO_PKG_VERSION"),
        "listening on {}",
        listed(listeners, " and ")
    );
}

const fn named_driver(driver: config::Driver) -> Driver {
    match driver {
        config::Driver::Epoll => Driver::Epoll,
        config::Driver::IoUring => Driver::IoUring,
    }
}

/// What the hub calls this process, and what it hashes the ids of messages with.
fn hub_names() -> (Box<str>, hub::Secret) {
    let node = format!("n_{:012x}", fastrand::u64(..) >> 16);
    (node.into(), hub::Secret([fastrand::u64(..), fastrand::u64(..)]))
}

/// What is allowed in a configuration and yet looks like a mistake, one sentence each, as far as can be told without asking
/// for names.
pub fn warnings(config: &Config) -> impl Iterator<Item = String> {
    let listeners: Vec<_> = config.public_listeners().map(|listener| listener.address).collect();
    own_warnings(config).chain(gateway::own_listener_loops(
        &config.upstreams,
        &Addresses::of_this_machine(),
        &listeners,
    ))
}

fn own_warnings(config: &Config) -> impl Iterator<Item = String> {
    config.warnings.iter().cloned().chain(gateway::unguarded_neighbours(config))
}

/// Tells the log of what looks like a mistake in a configuration.
fn warn(config: &Config) {
    for warning in own_warnings(config) {
        tracing::warn!("{warning}");
    }
}

/// Tells the log of instances that are one of these public listeners, or have no address.
fn warn_of_names(config: &Config, addresses: &Addresses, listeners: &[SocketAddr]) {
    let unresolved = gateway::unresolved_instances(config, addresses);
    for warning in unresolved.into_iter().chain(gateway::own_listener_loops(&config.upstreams, addresses, listeners)) {
        tracing::warn!("{warning}");
    }
}

/// Looks the names of instances up, unless the process is to end before that is done.
fn look_up(config: &Config, runtime: &tokio::runtime::Runtime, signals: &mut Signals) -> Option<(Lookups, Addresses)> {
    let mut lookups = Lookups::new(config);
    lookups.begin(config);
    unless_ended(runtime, signals, lookups.ready(), "names were still being looked up")?;
    lookups.adopt();
    let addresses = lookups.addresses(config);
    Some((lookups, addresses))
}

/// Reads the certificates, unless the process is to end before that is done.
fn load_certificates(
    config: &Config,
    runtime: &tokio::runtime::Runtime,
    signals: &mut Signals,
) -> Option<anyhow::Result<Option<control::Loaded>>> {
    let Some(wanted) = control::wanted_certificates(config) else { return Some(Ok(None)) };
    let reading = runtime.spawn_blocking(|| control::load_certificates(wanted));
    let read = unless_ended(runtime, signals, reading, "the files of certificates were still being read")?;
    Some(read.map_err(anyhow::Error::new).and_then(|read| read.map(Some).map_err(anyhow::Error::msg)))
}

/// What comes of the work, unless the process is to end before it is done.
fn unless_ended<T>(
    runtime: &tokio::runtime::Runtime,
    signals: &mut Signals,
    work: impl Future<Output = T>,
    state: &str,
) -> Option<T> {
    runtime.block_on(async {
        tokio::select! {
            done = work => Some(done),
            () = signals.end() => {
                tracing::info!("ended before it listened: {state}");
                None
            }
        }
    })
}

/// The public listeners, bound.
struct PublicSockets {
    /// Where each is, in the order of the configuration.
    addresses: Vec<SocketAddr>,
    /// For each shard its sockets, one of each listener.
    sockets: Vec<Vec<(TcpListener, PublicListener)>>,
    claims: Vec<PortClaim>,
}

/// Binds the public listeners, before anything is served.
fn bind_public(config: &Config, shards: usize) -> io::Result<PublicSockets> {
    let backlog = i32::try_from(config.listener.backlog).unwrap_or(i32::MAX);
    let mut sockets: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    let (mut addresses, mut claims) = (Vec::new(), Vec::new());
    let mut tls_port = None;
    for listener in config.public_listeners() {
        let bound = listener::bind(&listener.name, listener.address, backlog, shards)?;
        for (of_shard, socket) in sockets.iter_mut().zip(bound.sockets) {
            of_shard.push((socket, listener.clone()));
        }
        if listener.kind == ListenerKind::Tls {
            tls_port.get_or_insert(bound.address.port());
        }
        addresses.push(bound.address);
        claims.push(bound.claim);
    }
    for (_, listener) in sockets.iter_mut().flatten() {
        listener.https_port = listener.https_port.or(tls_port);
    }
    Ok(PublicSockets { addresses, sockets, claims })
}

/// Addresses, as a person is told of them.
pub fn listed(addresses: &[SocketAddr], between: &str) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(between)
}

/// Binds the operator's listener, before anything is served.
fn bind_admin(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    if !config.admin.enabled {
        return Ok(None);
    }
    let address = SocketAddr::new(config.admin.address, config.admin.port);
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for operators; set admin.port to a free port"))?;
    let bound = listener.local_addr()?;
    let scheme = if config.admin.speaks_tls() { "https" } else { "http" };
    tracing::info!(address = %bound, "operators: {scheme}://{bound}/ is the dashboard, beside /health and /metrics");
    Ok(Some(listener))
}

/// Asks the kernel for no huge pages: with them each shard's heap grows by 2 MiB at a time, and an idle gateway takes four
/// times the memory. What a shard touches fits into few small pages.
fn keep_pages_small() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on; memory grows by 2 MiB at a time");
    }
}

/// Raises the limit on open files as far as it may be: each proxied request takes two.
fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
    .unwrap_or(u64::MAX)
}
