//! The addresses of instances that a configuration gives by name: which names it has, and what backends come of what is
//! known of them. Following the names is for whoever compiles the plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use super::upstreams::table_of;
use crate::{
    config::{self, Config, DnsAddress, INSTANCES_MAX, ServerAddress, Upstream, written_duration},
    shard::Address,
    upstream::{BackendAddress, Instance, NoAddress, balance::Table},
};

/// What is known of names.
#[derive(Clone, Debug, Default)]
pub struct Addresses(BTreeMap<Box<str>, Result<Box<[IpAddr]>, NoAddress>>);

/// The backends of upstreams whose names have other addresses than before. Crosses to each shard as one `Arc`.
#[derive(Debug)]
pub struct Instances {
    /// The plan that they belong to.
    pub generation: u64,
    /// Each upstream that has other backends.
    pub changed: Vec<Moved>,
}

/// An upstream's other backends.
#[derive(Debug)]
pub struct Moved {
    /// The upstream's place in the plan.
    pub upstream: usize,
    /// All that it has now.
    pub instances: Box<[Instance]>,
    /// Which of them has which key, where they are chosen so.
    pub(super) table: Option<Arc<Table>>,
}

impl Moved {
    /// The upstream at this place has these.
    pub fn new(place: usize, upstream: &Upstream, instances: &[Instance], zone: Option<&str>) -> Self {
        Self { upstream: place, instances: instances.into(), table: table_of(upstream.balance, instances, zone) }
    }
}

impl Addresses {
    /// What is known of these names. One that is there has an address or several.
    pub fn new(known: BTreeMap<Box<str>, Result<Box<[IpAddr]>, NoAddress>>) -> Self {
        Self(known)
    }

    /// What everybody knows without asking.
    pub fn of_this_machine() -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self([("localhost".into(), Ok(loopback.into()))].into())
    }

    /// The names that a configuration needs the addresses of.
    pub fn wanted(config: &Config) -> BTreeSet<Box<str>> {
        config.upstreams.values().flat_map(names).map(Box::from).collect()
    }

    /// Where an instance is: every address of its name.
    fn of(&self, instance: &config::Instance) -> Result<Box<[Address]>, NoAddress> {
        let (host, port) = match &instance.address {
            ServerAddress::Port { host, port } => (host.as_str(), *port),
            ServerAddress::Unix(path) => return Ok([Address::from(path.as_path())].into()),
        };
        let at = |address: IpAddr| Address::from(SocketAddr::new(address, port));
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok([at(address)].into());
        }
        let unknown = || NoAddress::Unknown("nobody looked it up".to_owned());
        let found = self.0.get(host).map_or_else(|| Err(unknown()), Clone::clone)?;
        Ok(found.iter().copied().map(at).collect())
    }
}

/// The names among an upstream's instances.
pub fn names(upstream: &Upstream) -> impl Iterator<Item = &str> {
    let hosts = upstream.instances.iter().filter_map(|instance| match &instance.address {
        ServerAddress::Port { host, .. } => Some(host.as_str()),
        ServerAddress::Unix(_) => None,
    });
    hosts.filter(|host| host.parse::<IpAddr>().is_err())
}

/// The instances of each upstream, in the order of the plan's. Each address of a name is one of its own; an address that two
/// instances lead to is one for each of them, as their requests carry different `Host` fields. A name without an address
/// gives none.
pub fn instances(config: &Config, addresses: &Addresses) -> Vec<Box<[Instance]>> {
    let of_upstream = |upstream: &Upstream| {
        let mut instances = Vec::with_capacity(upstream.instances.len());
        let mut known = BTreeSet::new();
        for written in &upstream.instances {
            let authority: Box<str> = match written.address {
                ServerAddress::Port { .. } => written.to_string().into(),
                // As others send it (nginx, curl): a path is no authority (RFC 3986 §3.2).
                ServerAddress::Unix(_) => "localhost".into(),
            };
            for address in addresses.of(written).unwrap_or_default() {
                let at = BackendAddress { authority: authority.clone(), address };
                // DNS may give an IPv4 address twice, once in the form of IPv6.
                if instances.len() < INSTANCES_MAX && known.insert(at.clone()) {
                    let zone = written.zone.as_ref().map(|zone| Arc::from(&*zone.0));
                    let (weight, priority) = (written.weight, written.priority);
                    instances.push(Instance { at, weight, priority, zone });
                }
            }
        }
        instances.into()
    };
    config.upstreams.values().map(of_upstream).collect()
}

/// Warnings of instances that have no address, or of which not all addresses are used.
pub fn unresolved_instances(config: &Config, addresses: &Addresses) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        let mut count = 0;
        for (index, instance) in upstream.instances.iter().enumerate() {
            match addresses.of(instance) {
                Ok(found) => count += found.len(),
                Err(why) => warnings.push(told_of(&why, name, index, instance)),
            }
        }
        if count > INSTANCES_MAX {
            warnings.push(format!(
                "upstreams.{name}.instances have {count} addresses; the first {INSTANCES_MAX} are used, as an upstream has \
                 no more"
            ));
        }
    }
    warnings
}

/// Warnings of instances that are one of the gateway's own listeners: whoever asks for one asks until no connection is
/// left. As far as addresses are known; `listeners` is where they are bound, or will be.
pub fn own_listener_loops(config: &Config, addresses: &Addresses, listeners: &[SocketAddr]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        for (index, instance) in upstream.instances.iter().enumerate() {
            let ServerAddress::Port { port, .. } = instance.address else { continue };
            let on_port = || listeners.iter().filter(|listener| listener.port() == port);
            if on_port().next().is_none() {
                continue;
            }
            let is_own = |address: &SocketAddr| on_port().any(|own| is_reached_at(own.ip(), address.ip()));
            let found = addresses.of(instance).unwrap_or_default();
            if let Some(address) = found.iter().filter_map(Address::ip).find(is_own) {
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

/// The sentence for an instance without an address.
fn told_of(why: &NoAddress, upstream: &str, index: usize, instance: &config::Instance) -> String {
    let ServerAddress::Port { host, .. } = &instance.address else { return String::new() };
    let (why, remedy) = match why {
        NoAddress::Unknown(why) => {
            (format!("does not resolve ({why})"), "give an address, or a name that DNS knows".to_owned())
        }
        NoAddress::Late(time) => {
            (format!("was not resolved within {}", written_duration(*time)), "see whether DNS answers".to_owned())
        }
        NoAddress::Refused(address) => (
            format!("resolves to {address}, which is not taken from DNS"),
            match kind(*address) {
                Some(kind) => format!("if that is meant, discovery.allow = [\"{}\"] takes it", kind.name()),
                None => "no service can be there".to_owned(),
            },
        ),
    };
    format!(
        "upstreams.{upstream}.instances[{index}] is \"{instance}\", and {host} {why}; {remedy}. It is asked for again, and \
         used when it has an address"
    )
}

/// What would have to be allowed.
fn kind(address: IpAddr) -> Option<DnsAddress> {
    match address.to_canonical() {
        address if address.is_loopback() => Some(DnsAddress::Loopback),
        IpAddr::V4(address) => address.is_link_local().then_some(DnsAddress::LinkLocal),
        IpAddr::V6(address) => address.is_unicast_link_local().then_some(DnsAddress::LinkLocal),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn instances_are_where_their_names_are_and_each_name_is_wanted_once() {
        let mut config = Config::default();
        config.upstreams.clear();
        let written = |list: &[&str]| list.iter().map(|text| text.parse().expect("an instance")).collect();
        let shop = Upstream::new(written(&["shop.test:80", "127.0.0.9:81", "[::1]:82", "shop.test:83"]));
        config.upstreams.insert("shop".to_owned(), shop);
        config.upstreams.insert("till".to_owned(), Upstream::new(written(&["shop.test:84", "late.test:85"])));
        assert_eq!(
            Addresses::wanted(&config).iter().map(|name| &**name).collect::<Vec<_>>(),
            ["late.test", "shop.test"]
        );

        let found = |list: &[&str]| Ok(list.iter().map(|text| text.parse().expect("an address")).collect());
        let known = |list: [(&str, _); 2]| Addresses::new(list.map(|(name, found)| (name.into(), found)).into());
        let text = |addresses: &Addresses| {
            let text = |Instance { at, .. }: &Instance| format!("{} {}", at.authority, at.address);
            let all = instances(&config, addresses);
            all.iter().map(|instances| instances.iter().map(text).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let all = known([("shop.test", found(&["192.0.2.1"])), ("late.test", found(&["192.0.2.2", "2001:db8::1"]))]);
        let [shop, till]: [Vec<String>; 2] = text(&all).try_into().expect("two upstreams");
        assert_eq!(
            shop,
            [
                "shop.test:80 192.0.2.1:80",
                "127.0.0.9:81 127.0.0.9:81",
                "[::1]:82 [::1]:82",
                "shop.test:83 192.0.2.1:83"
            ]
        );
        assert_eq!(till, ["shop.test:84 192.0.2.1:84", "late.test:85 192.0.2.2:85", "late.test:85 [2001:db8::1]:85"]);
        assert!(unresolved_instances(&config, &all).is_empty());

        let unknown = Err(NoAddress::Unknown("no such name".to_owned()));
        let none = known([("shop.test", unknown), ("late.test", Err(NoAddress::Late(Duration::from_secs(10))))]);
        let [shop, till]: [Vec<String>; 2] = text(&none).try_into().expect("two upstreams");
        assert_eq!((shop.len(), till.len()), (2, 0), "what is there serves");
        let told = unresolved_instances(&config, &none);
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(
            told[1],
            "upstreams.shop.instances[3] is \"shop.test:83\", and shop.test does not resolve (no such name); give an \
             address, or a name that DNS knows. It is asked for again, and used when it has an address"
        );
        assert_eq!(
            told[3],
            "upstreams.till.instances[1] is \"late.test:85\", and late.test was not resolved within 10s; see whether DNS \
             answers. It is asked for again, and used when it has an address"
        );

        let many = (0..1024).map(|host| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host))).collect();
        let many = known([("shop.test", Ok(many)), ("late.test", found(&["192.0.2.2"]))]);
        assert!(text(&many).iter().all(|instances| instances.len() == INSTANCES_MAX));
        assert_eq!(
            unresolved_instances(&config, &many),
            [2050, 1025].map(|count| {
                let name = if count == 2050 { "shop" } else { "till" };
                format!(
                    "upstreams.{name}.instances have {count} addresses; the first 1024 are used, as an upstream has no more"
                )
            })
        );
    }

    #[test]
    fn what_is_not_taken_from_dns_is_told_with_what_would_take_it() {
        let instance = "a.test:80".parse().expect("an instance");
        for (address, remedy) in [
            ("127.0.0.5", "discovery.allow = [\"loopback\"] takes it"),
            ("::1", "discovery.allow = [\"loopback\"] takes it"),
            ("169.254.169.254", "discovery.allow = [\"link_local\"] takes it"),
            ("fe80::1", "discovery.allow = [\"link_local\"] takes it"),
            ("0.0.0.0", "no service can be there"),
        ] {
            let why = NoAddress::Refused(address.parse().expect("an address"));
            let told = told_of(&why, "back", 0, &instance);
            assert!(told.contains(&format!("a.test resolves to {address}, which is not taken")), "{told}");
            assert!(told.contains(remedy), "{told}");
        }
    }
}
