//! The public listeners beside the first, and that no two listeners take the same port.

use super::keys::section::FromFields as _;
use super::keys::{Tls, TlsCertificate};
use super::raw::Table;
use super::read::Fields;
use super::report::{Location, Report};
use super::{Admin, Config, FurtherListener, Listener, ListenerKind, ProxyProtocol};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Each takes a socket of every shard.
const LISTENERS_MAX: usize = 64;

/// Each is looked at for every handshake that asks for a name which it has.
const CERTIFICATES_MAX: usize = 1000;

/// Any of the public listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicListener {
    /// How messages call it: `listener`, `listeners[0]`.
    pub name: String,
    /// What it binds.
    pub address: SocketAddr,
    /// What its clients speak.
    pub kind: ListenerKind,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Which port it leads to, where it leads elsewhere; `None` as long as that is not known.
    pub https_port: Option<u16>,
}

impl Config {
    /// All public listeners; that of `[listener]` comes first.
    pub fn public_listeners(&self) -> impl Iterator<Item = PublicListener> {
        let address = SocketAddr::new(self.listener.address, self.listener.port);
        let Listener { kind, proxy_protocol, https_port, .. } = self.listener;
        let first = PublicListener { name: "listener".to_owned(), address, kind, proxy_protocol, https_port };
        let others = self.listeners.iter().enumerate().map(|(index, listener)| PublicListener {
            name: format!("listeners[{index}]"),
            address: SocketAddr::new(listener.address, listener.port),
            kind: listener.kind,
            proxy_protocol: listener.proxy_protocol,
            https_port: listener.https_port,
        });
        std::iter::once(first).chain(others)
    }
}

/// Reads `[[listeners]]`, and checks all listeners against each other.
pub(super) fn read_listeners(root: &Table, config: &Config, report: &mut Report) -> Vec<FurtherListener> {
    let Config { listener: first, admin, .. } = config;
    let (mut ports, mut listeners) = (Vec::new(), Vec::new());
    let fields = Listener::fields(root);
    if fields.is_sound("port", report) {
        ports.push(ListenerPort::of(&fields, first.address, first.port));
    }
    check_proxy_protocol(first.proxy_protocol, &fields, config, report);
    check_https_port(first.kind, first.https_port, &fields, report);
    for fields in Fields::listed(FurtherListener::SECTION, root.get("listeners"), LISTENERS_MAX, report) {
        let listener = FurtherListener::from_fields(&fields, report);
        // Where the port is wrong, 0 stands in for it, which meets no other.
        if fields.is_sound("address", report) {
            ports.push(ListenerPort::of(&fields, listener.address, listener.port));
        }
        check_proxy_protocol(listener.proxy_protocol, &fields, config, report);
        check_https_port(listener.kind, listener.https_port, &fields, report);
        listeners.push(listener);
    }
    let fields = Admin::fields(root);
    if admin.enabled && fields.is_sound("port", report) {
        ports.push(ListenerPort::of(&fields, admin.address, admin.port));
    }
    for (index, port) in ports.iter().enumerate() {
        let Some(earlier) = ports[..index].iter().find(|earlier| earlier.meets(port)) else { continue };
        // Where the default of one meets what is written for the other, that is where to look.
        let is_written = port.name != fields.path || fields.node("port").is_some();
        let place = if is_written { &port.place } else { &earlier.place };
        let what = format!("{}.port is {}, and so is {}.port", port.name, port.address.port(), earlier.name);
        report.push(place.clone(), what, "give each listener a port of its own");
    }
    listeners
}

/// Whoever may say of any connection whose it is has to be named.
fn check_proxy_protocol(wanted: ProxyProtocol, fields: &Fields<'_>, config: &Config, report: &mut Report) {
    if wanted == ProxyProtocol::Required && config.trust.proxies.is_empty() {
        let right = "name the balancers that connect to it as trust.proxies";
        fields.wrong(report, "proxy_protocol", "is \"required\", and nobody is trusted to send the header", right);
    }
}

/// Nobody is sent to a port that says nothing, or by a listener that sends nobody anywhere.
fn check_https_port(kind: ListenerKind, port: Option<u16>, fields: &Fields<'_>, report: &mut Report) {
    if port == Some(0) {
        fields.wrong(report, "https_port", "is 0", "ports go from 1 to 65535");
    } else if port.is_some() && kind != ListenerKind::Redirect && fields.is_sound("kind", report) {
        let right = format!("it is for kind = \"redirect\"; leave it out, or give {} that kind", fields.path);
        fields.wrong(report, "https_port", "leads nowhere", &right);
    }
}

/// What browsers ask of those who want to be in the list that they come with (hstspreload.org).
const PRELOAD_MIN: Duration = Duration::from_hours(365 * 24);

fn check_hsts(tls: &Tls, fields: &Fields<'_>, report: &mut Report) {
    for (key, is_set) in [("hsts_include_subdomains", tls.hsts_include_subdomains), ("hsts_preload", tls.hsts_preload)]
    {
        if is_set && tls.hsts_max_age.is_none() && fields.is_sound("hsts_max_age", report) {
            fields.wrong(report, key, "is true, and browsers are told nothing", "give tls.hsts_max_age too");
            return;
        }
    }
    let is_enough = tls.hsts_include_subdomains && tls.hsts_max_age.is_none_or(|age| age >= PRELOAD_MIN);
    if tls.hsts_preload && !is_enough && fields.is_sound("hsts_max_age", report) {
        let right = "the list takes hosts with hsts_max_age = \"365d\" or more and hsts_include_subdomains = true";
        fields.wrong(report, "hsts_preload", "is true, and the rest does not do for it", right);
    }
}

/// Reads `[[tls.certificates]]`, and checks that there are some where they are needed.
pub(super) fn read_tls(root: &Table, config: &mut Config, report: &mut Report) {
    let fields = Tls::fields(root);
    for fields in Fields::listed(TlsCertificate::SECTION, fields.node("certificates"), CERTIFICATES_MAX, report) {
        config.tls.certificates.push(TlsCertificate::from_fields(&fields, report));
    }
    check_hsts(&config.tls, &fields, report);
    let names_hosts = config.routes.iter().any(|route| !route.hosts.is_empty());
    if config.tls.certificates.is_empty()
        && !names_hosts
        && let Some(listener) = config.public_listeners().find(|listener| listener.kind == ListenerKind::Redirect)
    {
        let what =
            format!("{}.kind is \"redirect\", and neither a route nor a certificate names a host", listener.name);
        report.push(Location::File, what, "give routes their hosts, or a certificate as [[tls.certificates]]");
    }
    if config.tls.certificates.is_empty()
        && let Some(listener) = config.public_listeners().find(|listener| listener.kind == ListenerKind::Tls)
    {
        let what = format!("{}.kind is \"tls\", and there is no certificate", listener.name);
        report.push(Location::File, what, "give cert and key of one as [[tls.certificates]]");
    }
}

/// One listener, among those whose ports may meet.
struct ListenerPort {
    name: String,
    address: SocketAddr,
    place: Location,
}

impl ListenerPort {
    /// That of the listener of these fields.
    fn of(fields: &Fields<'_>, address: IpAddr, port: u16) -> Self {
        Self { name: fields.path.clone(), address: SocketAddr::new(address, port), place: fields.place_of("port") }
    }

    /// Whether the kernel would refuse one of the two, or connections could go to either.
    fn meets(&self, other: &Self) -> bool {
        let [one, two] = [self, other].map(|port| port.address.ip().to_canonical());
        let port = self.address.port();
        port != 0 && port == other.address.port() && (one.is_unspecified() || two.is_unspecified() || one == two)
    }
}
