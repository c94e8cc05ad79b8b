//! `shardgate demo`: the gateway in front of three sample services, so that a first request needs no other program, a page to
//! try the hub in a browser, and instances to kill.

mod certificate;
mod instances;
mod pages;
mod service;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};

use self::{instances::Instances, service::HEALTH_PATH};
pub use self::{instances::serve, service::Service};
use crate::{
    accounts::cli::{DEMO_USERS, add_demo_users},
    config::{
        Access, AdminToken, Config, FurtherListener, Health, Instance, ListenerKind, LogFormat, ProxyProtocol, Route,
        Secret, ServerAddress, Upstream,
    },
    server::{self, ProcessEnd},
    telemetry::log,
};

/// Instances of each service: one may go.
const INSTANCES: usize = 2;

/// The key of the environment that says where the demo listens.
const ADDRESS: &str = "SHARDGATE_LISTENER_ADDRESS";

/// The environment that the demo has its configuration from. Its users have passwords that everybody knows, so others reach
/// it only where it says so.
pub fn environment(mut env: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_given = env.get(ADDRESS).is_some_and(|address| !address.trim().is_empty());
    if !is_given {
        env.insert(ADDRESS.to_owned(), Ipv4Addr::LOCALHOST.to_string());
    }
    env
}

/// Starts the sample services and runs the gateway in front of them until a signal ends it; over TLS as well, on this port.
pub fn run(mut config: Config, tls: Option<u16>) -> anyhow::Result<ProcessEnd> {
    // A person tries it: what happens is told in words, also where it is piped into a file.
    if config.log.format == LogFormat::Auto {
        config.log.format = LogFormat::Text;
    }
    log::init(&config.log.level, config.log.format)?;
    let mut instances = Instances::new()?;
    for (name, service) in
        [("ingestion", Service::Ingestion), ("prediction", Service::Prediction), ("ai-engine", Service::AiEngine)]
    {
        let upstream = config
            .upstreams
            .get_mut(name)
            .with_context(|| format!("the configuration has no upstream {name}; run the demo without one"))?;
        upstream.instances = Vec::new();
        for _ in 0..INSTANCES {
            upstream.instances.push(instance(instances.start(name, service)?));
        }
        if upstream.health == Health::default() {
            upstream.health = probes();
        }
    }
    add_pages(&mut config, tls)?;
    if !config.listener.address.is_loopback() {
        tracing::warn!(
            address = %config.listener.address,
            "others reach the demo, and everybody knows the passwords of its users; without {ADDRESS} it listens on 127.0.0.1"
        );
    }
    // Who comes and goes is worth seeing.
    config.hub.rooms.iter_mut().for_each(|room| room.presence_events = true);
    let loopback = |network: &str| network.parse().expect("a network");
    config.metrics.allow = ["127.0.0.0/8", "::1"].map(loopback).into();
    config.hub.echo = true;
    let token = add_operator(&mut config)?;
    let folder = Folder::make()?;
    if config.data == Config::default().data {
        config.data.dir.clone_from(&folder.path);
    }
    let certificate = tls.map(|port| add_tls(&mut config, port, &folder.path)).transpose()?;
    add_demo_users(&config).context("the users of the demo cannot be added")?;
    let table = instances.table();
    let watched = instances.watch()?;
    let hints = move |public: &[SocketAddr], operators: Option<SocketAddr>| {
        let over_tls = certificate.as_deref().zip(public.get(1)).map(|(file, address)| (address.port(), file));
        let operators = operators.map(|address| address.port());
        print_hints(public[0].port(), over_tls, operators, &table, token.as_deref());
    };
    let ended = server::run(config, None, Box::new(hints));
    drop((watched, folder));
    ended
}

/// Lets whoever started the demo change what the dashboard offers, unless the configuration says who may. The token is another
/// one each time.
fn add_operator(config: &mut Config) -> anyhow::Result<Option<String>> {
    if !config.admin.tokens.is_empty() {
        return Ok(None);
    }
    let mut random = [0; 18];
    SystemRandom::new().fill(&mut random).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let token = URL_SAFE_NO_PAD.encode(random);
    let secret = Some(Secret::from(token.clone()));
    config.admin.tokens.push(AdminToken { name: "demo".to_owned(), file: None, secret });
    Ok(Some(token))
}

/// How the demo's services are probed: often, for who looks at it.
fn probes() -> Health {
    Health {
        path: Some(HEALTH_PATH.to_owned()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        ..Health::default()
    }
}

fn instance(address: SocketAddr) -> Instance {
    ServerAddress::Port { host: address.ip().to_string(), port: address.port(), is_https: false }.into()
}

/// Serves the page on a public route, unless the name or the path is taken.
fn add_pages(config: &mut Config, tls: Option<u16>) -> anyhow::Result<()> {
    let route = Route {
        access: Access::Public,
        ..Route::new(format!("{}/*", pages::PATH).parse().expect("a path with a star"), "pages")
    };
    let is_taken = config.routes.iter().any(|other| other.path.same_paths(&route.path));
    if is_taken || config.upstreams.contains_key(&route.upstream) {
        tracing::warn!(
            "the configuration has a route {} or an upstream {} of its own: the demo shows no page",
            route.path,
            route.upstream
        );
        return Ok(());
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("pages".to_owned()).spawn(move || {
        if let Err(error) = service::run(listener, Service::Pages { tls }) {
            tracing::error!(%error, "the demo's page cannot be served");
        }
    })?;
    let upstream = Upstream { health: probes(), ..Upstream::new(vec![instance(address)]) };
    config.upstreams.insert(route.upstream.clone(), upstream);
    config.routes.push(route);
    Ok(())
}

/// Adds a listener that speaks TLS, and returns the file of its certificate.
fn add_tls(config: &mut Config, port: u16, folder: &Path) -> anyhow::Result<PathBuf> {
    let made = certificate::make(folder)?;
    let file = made.cert.clone();
    config.tls.certificates.push(made);
    let listener = FurtherListener {
        address: config.listener.address,
        port,
        kind: ListenerKind::Tls,
        https_port: None,
        proxy_protocol: ProxyProtocol::Off,
    };
    config.listeners.insert(0, listener);
    Ok(file)
}

/// What the demo keeps: a directory that goes with it. Its users and sessions are there, unless the environment says where, and
/// its certificate.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("shardgate-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("the demo cannot make {} for its users", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, "{} could not be removed", self.path.display());
        }
    }
}

/// Lines to paste into another terminal.
fn print_hints(
    port: u16,
    over_tls: Option<(u16, &Path)>,
    operators_port: Option<u16>,
    instances: &str,
    token: Option<&str>,
) {
    let gateway = format!("http://localhost:{port}");
    let bearer = "-H \"Authorization: Bearer $TOKEN\"";
    let metrics = operators_port.map_or_else(String::new, |port| {
        format!("  curl -s http://localhost:{port}/metrics | grep '^shardgate_requests_total.* [1-9]'\n")
    });
    let dashboard = operators_port.map_or_else(String::new, |port| {
        let changes = token.map_or_else(String::new, |token| format!("; the token for changes is {token}"));
        format!("The dashboard: http://localhost:{port}/ (in a terminal: shardgate top --url http://localhost:{port}){changes}\n\n")
    });
    let [(email, _, password), ..] = DEMO_USERS;
    let path = pages::PATH;
    let over_tls = over_tls.map_or_else(String::new, |(port, certificate)| {
        format!(
            "The same over TLS: https://localhost:{port}{path} (the browser warns, as nobody but this demo has signed the certificate; \
             sockets are wss there), and in a terminal:\n
  curl --cacert {} https://localhost:{port}/health\n\n",
            certificate.display()
        )
    });
    let users = DEMO_USERS.map(|(email, role, password)| format!("  {email} ({role}): {password}")).join("\n");
    eprintln!(
        "\nThe gateway listens on {gateway}, in front of three sample services. Users and their passwords:
{users}

In a browser, in two tabs: {gateway}{path}

{over_tls}{dashboard}In another terminal:\n
  TOKEN=$(curl -s {gateway}/auth/login -H 'Content-Type: application/json' -d '{{\"email\":\"{email}\",\"password\":\"{password}\"}}' | sed 's/.*\"accessToken\":\"\\([^\"]*\\)\".*/\\1/')
  curl -i {gateway}/auth/me {bearer}
  curl -i {gateway}/api/events {bearer} -d '{{\"type\":\"cart_abandoned\"}}'
  curl -i {gateway}/api/predict {bearer} -d '{{\"items\":[1,2]}}'
  curl -N {gateway}/api/ai/chat {bearer}
  curl -i {gateway}/health
{metrics}  curl -i -X POST {gateway}/auth/logout {bearer}

Each service has {INSTANCES} instances, processes of their own. When one goes, requests go to the other; only a POST that was under
way on it is lost, as it may have been done. One that hangs is out of use within seconds; what was under way on it waits up
to 15 s (response_timeout):
{instances}
  kill N            it is gone, and started again ten seconds later
  kill -STOP N      it hangs, until kill -CONT N

Ctrl-C ends it after the requests under way; a second Ctrl-C ends it at once.\n"
    );
}
