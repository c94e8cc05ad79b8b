//! The public listeners beside the first, and that no two listeners take the same port.

use super::keys::section::FromFields as _;
use super::keys::{Tls, TlsCertificate};
use super::raw::Table;
use super::read::Fields;
use super::report::{Location, Report};
use super::{Admin, Config, FurtherListener, Listener, ListenerKind, ProxyProtocol};
use std::net::{IpAddr, SocketAddr};

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
}

impl Config {
    /// All public listeners; that of `[listener]` comes first.
    pub fn public_listeners(&self) -> impl Iterator<Item = PublicListener> {
        let address = SocketAddr::new(self.listener.address, self.listener.port);
        let Listener { kind, proxy_protocol, .. } = self.listener;
        let first = PublicListener { name: "listener".to_owned(), address, kind, proxy_protocol };
        let others = self.listeners.iter().enumerate().map(|(index, listener)| PublicListener {
            name: format!("listeners[{index}]"),
            address: SocketAddr::new(listener.address, listener.port),
            kind: listener.kind,
            proxy_protocol: listener.proxy_protocol,
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
    for fields in Fields::listed(FurtherListener::SECTION, root.get("listeners"), LISTENERS_MAX, report) {
        let listener = FurtherListener::from_fields(&fields, report);
        // Where the port is wrong, 0 stands in for it, which meets no other.
        if fields.is_sound("address", report) {
            ports.push(ListenerPort::of(&fields, listener.address, listener.port));
        }
        check_proxy_protocol(listener.proxy_protocol, &fields, config, report);
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

/// Reads `[[tls.certificates]]`, and checks that there are some where they are needed.
pub(super) fn read_tls(root: &Table, config: &mut Config, report: &mut Report) {
    let fields = Tls::fields(root);
    for fields in Fields::listed(TlsCertificate::SECTION, fields.node("certificates"), CERTIFICATES_MAX, report) {
        config.tls.certificates.push(TlsCertificate::from_fields(&fields, report));
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
