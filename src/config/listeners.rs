//! The public listeners beside the first, and that no two listeners take the same port.

use super::raw::{Node, Place, Value};
use super::read::{Fields, Report};
use super::{Admin, Config};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// Each takes a socket of every shard.
const LISTENERS_MAX: usize = 64;

/// A public listener beside the first. All else that `[listener]` says holds for all of them together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FurtherListener {
    /// The address that it binds. Default `0.0.0.0`. Process, restart.
    pub address: IpAddr,
    /// The port that it binds; 0 takes any free one. Process, restart.
    pub port: u16,
    /// What its clients speak. Process, restart.
    pub kind: ListenerKind,
}

/// What the clients of a listener speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerKind {
    /// HTTP in clear text.
    Plain,
}

/// Any of the public listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicListener {
    /// How messages call it: `listener`, `listeners[0]`.
    pub name: String,
    /// What it binds.
    pub address: SocketAddr,
    /// What its clients speak.
    pub kind: ListenerKind,
}

impl Config {
    /// All public listeners; that of `[listener]` comes first.
    pub fn public_listeners(&self) -> impl Iterator<Item = PublicListener> {
        let address = SocketAddr::new(self.listener.address, self.listener.port);
        let first = PublicListener { name: "listener".to_owned(), address, kind: ListenerKind::Plain };
        let others = self.listeners.iter().enumerate().map(|(index, listener)| PublicListener {
            name: format!("listeners[{index}]"),
            address: SocketAddr::new(listener.address, listener.port),
            kind: listener.kind,
        });
        std::iter::once(first).chain(others)
    }
}

/// Reads `[[listeners]]`, and what of each is held against the others. What has a mistake is left out.
pub(super) fn read_listeners(node: Option<&Node>, report: &mut Report) -> (Vec<FurtherListener>, Vec<Port>) {
    let Some(node) = node else { return Default::default() };
    let list = match &node.value {
        Value::List(list) if list.len() <= LISTENERS_MAX => list,
        Value::List(list) => {
            let right = format!("there are at most {LISTENERS_MAX}");
            report.push(node.place.clone(), format!("there are {} listeners", list.len()), &right);
            return Default::default();
        }
        _ => {
            report.wrong(node, "listeners", "it is a list of listeners: [[listeners]]");
            return Default::default();
        }
    };
    let read = |(index, node): (usize, &Node)| {
        let fields = Fields::of("listeners", format!("listeners[{index}]"), Some(node), report);
        let address = fields.take("address", report);
        let (port, kind) = (fields.take_written("port", report), fields.take_written("kind", report));
        let listener = FurtherListener { address, port: port?, kind: kind? };
        let address = SocketAddr::new(listener.address, listener.port);
        let port = Port { name: fields.path.clone(), address, place: fields.place_of("port") };
        fields.is_sound("address", report).then_some((listener, port))
    };
    list.iter().enumerate().filter_map(read).unzip()
}

/// One listener, among those whose ports may meet.
pub(super) struct Port {
    name: String,
    address: SocketAddr,
    place: Place,
}

impl Port {
    /// Whether the kernel would refuse one of the two, or connections could go to either.
    fn meets(&self, other: &Self) -> bool {
        let [one, two] = [self, other].map(|port| port.address.ip().to_canonical());
        let port = self.address.port();
        port != 0 && port == other.address.port() && (one.is_unspecified() || two.is_unspecified() || one == two)
    }
}

/// Checks the listeners against each other; `further` are those of `[[listeners]]`.
pub(super) fn check_listeners(
    config: &Config,
    listener: &Fields<'_>,
    further: Vec<Port>,
    admin: &Fields<'_>,
    report: &mut Report,
) {
    let mut ports = further;
    if listener.is_sound("port", report) {
        let address = SocketAddr::new(config.listener.address, config.listener.port);
        ports.insert(0, Port { name: "listener".to_owned(), address, place: listener.place_of("port") });
    }
    let Admin { enabled, address, port } = config.admin;
    if enabled {
        if !address.to_canonical().is_loopback() && admin.is_sound("address", report) {
            let right =
                "the operator's listener asks for no token, so it binds loopback addresses only, like \"127.0.0.1\"";
            report.push(admin.place_of("address"), format!("admin.address is \"{address}\""), right);
        }
        if admin.is_sound("port", report) {
            let place = admin.place_of("port");
            ports.push(Port { name: "admin".to_owned(), address: SocketAddr::new(address, port), place });
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let Some(earlier) = ports[..index].iter().find(|earlier| earlier.meets(port)) else { continue };
        // Where the default of one meets what is written for the other, that is where to look.
        let is_written = port.name != "admin" || admin.node("port").is_some();
        let place = if is_written { &port.place } else { &earlier.place };
        let what = format!("{}.port is {}, and so is {}.port", port.name, port.address.port(), earlier.name);
        report.push(place.clone(), what, "give each listener a port of its own");
    }
}
