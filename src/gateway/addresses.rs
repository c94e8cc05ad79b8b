//! The addresses of instances that a configuration gives by name: which names it has, and what became of each. Looking
//! them up is for whoever compiles the plan: it may take as long as the resolver likes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crate::config::{Config, Instance, written_duration};

/// What is known of names. Each is asked for once, however many instances have it.
#[derive(Clone, Debug, Default)]
pub struct Addresses(BTreeMap<Box<str>, Result<Box<[SocketAddr]>, NoAddress>>);

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// There is none, or the resolver cannot tell; in its words.
    Unknown(String),
    /// The resolver had not answered after this long.
    Late(Duration),
}

impl Addresses {
    /// What became of these names. A name that was found has an address or several.
    pub fn new(found: BTreeMap<Box<str>, Result<Box<[SocketAddr]>, NoAddress>>) -> Self {
        Self(found)
    }

    /// What everybody knows without asking.
    pub fn of_this_machine() -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self([("localhost".into(), Ok(loopback.map(|address| SocketAddr::new(address, 0)).into()))].into())
    }

    /// The names that a configuration needs the addresses of.
    pub fn wanted(config: &Config) -> BTreeSet<Box<str>> {
        let instances = config.upstreams.values().flat_map(|upstream| &upstream.instances);
        let names = instances.filter(|instance| instance.host.parse::<IpAddr>().is_err());
        names.map(|instance| instance.host.as_str().into()).collect()
    }

    /// Where an instance is: every address of its name.
    pub(super) fn of(&self, instance: &Instance) -> Result<Box<[SocketAddr]>, NoAddress> {
        if let Ok(address) = instance.host.parse::<IpAddr>() {
            return Ok([SocketAddr::new(address, instance.port)].into());
        }
        let found = self.0.get(&*instance.host).cloned();
        let mut addresses = found.unwrap_or_else(|| Err(NoAddress::Unknown("nobody looked it up".to_owned())))?;
        addresses.iter_mut().for_each(|address| address.set_port(instance.port));
        Ok(addresses)
    }
}

/// Warnings of instances that are one of the gateway's own listeners: whoever asks for one asks until no connection is
/// left. As far as addresses are known; `listeners` is where they are bound, or will be.
pub fn own_listener_loops(config: &Config, addresses: &Addresses, listeners: &[SocketAddr]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        for (index, instance) in upstream.instances.iter().enumerate() {
            let on_port = || listeners.iter().filter(|listener| listener.port() == instance.port);
            if on_port().next().is_none() {
                continue;
            }
            let is_own = |address: &&SocketAddr| on_port().any(|own| is_reached_at(own.ip(), address.ip()));
            let found = addresses.of(instance).unwrap_or_default();
            if let Some(address) = found.iter().find(is_own) {
                warnings.push(format!(
                    "upstreams.{name}.instances[{index}] is \"{instance}\", and {address} is the gateway's own listener: \
                     its requests would come back until connections run out; name the service's address"
                ));
            }
        }
    }
    warnings
}

/// Whether what listens on `bound` takes connections to `address`.
fn is_reached_at(bound: IpAddr, address: IpAddr) -> bool {
    let (bound, address) = (bound.to_canonical(), address.to_canonical());
    // A connection to no address in particular goes to loopback (connect(2) on Linux).
    let address = match address {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    };
    match bound {
        IpAddr::V4(v4) if v4.is_unspecified() => address.is_ipv4() && is_of_this_machine(address),
        IpAddr::V6(v6) if v6.is_unspecified() => is_of_this_machine(address),
        bound => bound == address,
    }
}

/// An address that sockets can be bound to is the machine's own.
fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

impl NoAddress {
    /// The sentence for an instance of an upstream.
    pub(super) fn of(&self, upstream: &str, index: usize, instance: &Instance) -> String {
        let host = &instance.host;
        let key = format!("upstreams.{upstream}.instances[{index}] is \"{instance}\"");
        match self {
            Self::Unknown(why) => {
                format!("{key}, and {host} does not resolve ({why}); give an address, or a name that DNS knows")
            }
            Self::Late(time) => format!(
                "{key}, and {host} was not resolved within {}; see whether DNS answers, give an address, or raise \
                 runtime.lookup_timeout",
                written_duration(*time)
            ),
        }
    }
}
