//! The addresses of instances that a configuration gives by name, or has found elsewhere: which names and sources it has, and
//! what instances come of what is known of them. Following them is for whoever compiles the plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use super::upstreams::table_of;
use crate::{
    config::{self, Config, Discover, DnsAddress, INSTANCES_MAX, ServerAddress, Upstream, written_duration},
    shard::Address,
    upstream::{AddressKind, BackendAddress, DiscoverySettings, Instance, NoAddress, Source, balance::Table, names_in},
};

/// What is known of names and of lists.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    names: BTreeMap<Box<str>, Result<Box<[IpAddr]>, NoAddress>>,
    lists: BTreeMap<Source, Result<Box<[config::Instance]>, Box<str>>>,
    settings: DiscoverySettings,
}

/// What a configuration needs to have looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Names of instances.
    pub names: BTreeSet<Box<str>>,
    /// Sources of lists of instances.
    pub sources: BTreeSet<Source>,
}

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
    /// What is known of these names and lists. A name that is there has an address or several, and a list an instance.
    /// `settings` say where the names in lists from outside may lead.
    pub fn new(
        names: BTreeMap<Box<str>, Result<Box<[IpAddr]>, NoAddress>>,
        lists: BTreeMap<Source, Result<Box<[config::Instance]>, Box<str>>>,
        settings: DiscoverySettings,
    ) -> Self {
        Self { names, lists, settings }
    }

    /// What everybody knows without asking.
    pub fn of_this_machine() -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        Self { names: [("localhost".into(), Ok(loopback.into()))].into(), ..Self::default() }
    }

    /// What a configuration needs to have looked up.
    pub fn wanted(config: &Config) -> Wanted {
        let upstreams = &config.upstreams;
        let sources = upstreams.iter().flat_map(|(name, upstream)| sources(name, upstream)).collect();
        Wanted { names: upstreams.values().flat_map(names).map(Box::from).collect(), sources }
    }

    /// All that is known of where an upstream's instances are: those that are written, and those that were found.
    fn candidates<'a>(&'a self, name: &str, upstream: &'a Upstream) -> impl Iterator<Item = Candidate<'a>> {
        let written = upstream.instances.iter().enumerate();
        let written = written.map(|(index, instance)| Candidate { instance, whence: Whence::Written(index) });
        let lists = sources(name, upstream).filter_map(|source| self.lists.get_key_value(&source));
        let found = lists.flat_map(|(source, list)| {
            let instances = list.as_deref().unwrap_or_default().iter();
            instances.map(move |instance| Candidate { instance, whence: Whence::Found(source) })
        });
        written.chain(found)
    }

    /// Where an instance is: every address of its name.
    fn of(&self, Candidate { instance, whence }: Candidate<'_>) -> Result<Box<[Address]>, NoAddress> {
        let (host, port) = match &instance.address {
            ServerAddress::Port { host, port, .. } => (host.as_str(), *port),
            ServerAddress::Unix(path) => return Ok([Address::from(path.as_path())].into()),
        };
        let at = |address: IpAddr| Address::from(SocketAddr::new(address, port));
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok([at(address)].into());
        }
        let unknown = || NoAddress::Unknown("nobody looked it up".to_owned());
        let found = self.names.get(host).map_or_else(|| Err(unknown()), Clone::clone)?;
        // The hosts file may lead anywhere, but it is not for outsiders to name what is in it.
        let is_outside = matches!(whence, Whence::Found(source) if !source.is_own());
        let is_taken = |address: &&IpAddr| !is_outside || self.settings.takes(**address);
        let taken: Box<[Address]> = found.iter().filter(is_taken).copied().map(at).collect();
        match found.first() {
            Some(first) if taken.is_empty() => Err(NoAddress::Refused(*first)),
            _ => Ok(taken),
        }
    }
}

/// An instance, and who says that it is one.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    instance: &'a config::Instance,
    whence: Whence<'a>,
}

#[derive(Clone, Copy)]
enum Whence<'a> {
    /// The configuration, at this place.
    Written(usize),
    Found(&'a Source),
}

impl Candidate<'_> {
    /// How messages call it.
    fn named(&self, upstream: &str) -> String {
        let Self { instance, whence } = self;
        match whence {
            Whence::Written(index) => format!("upstreams.{upstream}.instances[{index}] is \"{instance}\""),
            Whence::Found(source) => format!("upstreams.{upstream}.discover found \"{instance}\" in {source}"),
        }
    }
}

/// Where further instances of an upstream are found.
pub fn sources(name: &str, upstream: &Upstream) -> impl Iterator<Item = Source> {
    let Discover { file, srv, redis } = &upstream.discover;
    let file = file.as_deref().map(|path| Source::File(path.into()));
    let registry = redis.then(|| Source::Registry(name.into()));
    let srv = srv.as_ref().map(|name| Source::Srv(name.0.clone()));
    [file, registry, srv].into_iter().flatten()
}

/// The names among an upstream's instances, as they are written.
pub fn names(upstream: &Upstream) -> impl Iterator<Item = &str> {
    names_in(&upstream.instances)
}

/// Where the gateway stands.
pub(super) fn own_zone(config: &Config) -> Option<&str> {
    config.runtime.zone.as_ref().map(|zone| &*zone.0)
}

/// The instances of each upstream, in the order of the plan's. Each address of a name is one of its own; an address that two
/// instances lead to is one for each of them, as their requests carry different `Host` fields. A name without an address
/// gives none.
pub fn instances(config: &Config, addresses: &Addresses) -> Vec<Box<[Instance]>> {
    let of_upstream = |(name, upstream): (&String, &Upstream)| {
        let mut instances = Vec::with_capacity(upstream.instances.len());
        let mut known = BTreeSet::new();
        for candidate in addresses.candidates(name, upstream) {
            let written = candidate.instance;
            let name: Box<str> = match written.address {
                ServerAddress::Port { .. } => written.to_string().into(),
                // As others send it (nginx, curl): a path is no authority (RFC 3986 §3.2).
                ServerAddress::Unix(_) => "localhost".into(),
            };
            for address in addresses.of(candidate).unwrap_or_default() {
                let at = BackendAddress { name: name.clone(), address };
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
    config.upstreams.iter().map(of_upstream).collect()
}

/// Warnings of instances that have no address, or of which not all addresses are used.
pub fn unresolved_instances(config: &Config, addresses: &Addresses) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in &config.upstreams {
        let mut count = 0;
        for candidate in addresses.candidates(name, upstream) {
            match addresses.of(candidate) {
                Ok(found) => count += found.len(),
                Err(why) => warnings.push(told_of(&why, name, candidate)),
            }
        }
        for source in sources(name, upstream) {
            if let Some(Err(why)) = addresses.lists.get(&source) {
                warnings.push(format!(
                    "upstreams.{name}.discover has no instance from {source}: {why}. It is asked again, and used when it has one"
                ));
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
pub fn own_listener_loops<'a>(
    upstreams: impl IntoIterator<Item = (&'a String, &'a Upstream)>,
    addresses: &Addresses,
    listeners: &[SocketAddr],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, upstream) in upstreams {
        for candidate in addresses.candidates(name, upstream) {
            let ServerAddress::Port { port, .. } = candidate.instance.address else { continue };
            let on_port = || listeners.iter().filter(|listener| listener.port() == port);
            if on_port().next().is_none() {
                continue;
            }
            let is_own = |address: &SocketAddr| on_port().any(|own| is_reached_at(own.ip(), address.ip()));
            let found = addresses.of(candidate).unwrap_or_default();
            if let Some(address) = found.iter().filter_map(Address::ip).find(is_own) {
                warnings.push(format!(
                    "{}, and {address} is the gateway's own listener: its requests would come back until connections \
                     run out; name the service's address",
                    candidate.named(name)
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
fn told_of(why: &NoAddress, upstream: &str, candidate: Candidate<'_>) -> String {
    let ServerAddress::Port { host, .. } = &candidate.instance.address else { return String::new() };
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
    let named = candidate.named(upstream);
    format!("{named}, and {host} {why}; {remedy}. It is asked for again, and used when it has an address")
}

/// What would have to be allowed.
fn kind(address: IpAddr) -> Option<DnsAddress> {
    match AddressKind::of(address) {
        AddressKind::Loopback => Some(DnsAddress::Loopback),
        AddressKind::LinkLocal => Some(DnsAddress::LinkLocal),
        AddressKind::Network | AddressKind::Nowhere => None,
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
            Addresses::wanted(&config).names.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["late.test", "shop.test"]
        );

        let found = |list: &[&str]| Ok(list.iter().map(|text| text.parse().expect("an address")).collect());
        let known = |list: [(&str, _); 2]| {
            let names = list.map(|(name, found)| (name.into(), found)).into();
            Addresses { names, ..Addresses::default() }
        };
        let text = |addresses: &Addresses| {
            let text = |Instance { at, .. }: &Instance| format!("{} {}", at.name, at.address);
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
            let told = told_of(&why, "back", Candidate { instance: &instance, whence: Whence::Written(0) });
            assert!(told.contains(&format!("a.test resolves to {address}, which is not taken")), "{told}");
            assert!(told.contains(remedy), "{told}");
        }
    }

    #[test]
    fn what_is_found_is_used_beside_what_is_written() {
        let mut config = Config::default();
        config.upstreams.clear();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an instance")).collect::<Vec<_>>();
        let mut shop = Upstream::new(list(&["10.0.0.1:80"]));
        shop.discover.file = Some("shop.toml".into());
        shop.discover.redis = true;
        shop.discover.srv = Some("_http._tcp.shop.test".parse().expect("a name"));
        config.upstreams.insert("shop".to_owned(), shop);
        let wanted = Addresses::wanted(&config);
        let sources: Vec<_> = wanted.sources.iter().map(ToString::to_string).collect();
        assert_eq!(sources, ["file:shop.toml", "redis:shop", "srv:_http._tcp.shop.test"]);
        let [file, registry, srv]: [Source; 3] =
            wanted.sources.into_iter().collect::<Vec<_>>().try_into().expect("three");

        let mut found = list(&["10.0.0.1:80", "10.0.0.2:80", "localhost:81", "unix:/run/shop.sock"]);
        found[0].weight = 9;
        found[1].weight = 5;
        let lists = [
            (file, Ok(found.into())),
            (registry, Err("Redis is away".into())),
            (srv, Ok(list(&["a.test:82", "localhost:82", "10.0.0.2:80"]).into())),
        ];
        let mut addresses = Addresses::of_this_machine();
        addresses.lists = lists.into();
        addresses
            .names
            .insert("a.test".into(), Ok(["192.0.2.1", "127.0.0.9"].map(|text| text.parse().expect("one")).into()));
        let shown = |Instance { at, weight, .. }: &Instance| format!("{} {} {weight}", at.name, at.address);
        let all: Vec<_> = instances(&config, &addresses)[0].iter().map(shown).collect();
        // What is written counts first, then the file; who is outside leads to this machine by no name.
        assert_eq!(
            all,
            [
                "10.0.0.1:80 10.0.0.1:80 1",
                "10.0.0.2:80 10.0.0.2:80 5",
                "localhost:81 127.0.0.1:81 1",
                "localhost:81 [::1]:81 1",
                "localhost unix:/run/shop.sock 1",
                "a.test:82 192.0.2.1:82 1"
            ]
        );
        assert_eq!(
            unresolved_instances(&config, &addresses),
            [
                "upstreams.shop.discover found \"localhost:82\" in srv:_http._tcp.shop.test, and localhost resolves to \
                 127.0.0.1, which is not taken from DNS; if that is meant, discovery.allow = [\"loopback\"] takes it. It is \
                 asked for again, and used when it has an address",
                "upstreams.shop.discover has no instance from redis:shop: Redis is away. It is asked again, and used when it \
                 has one"
            ]
        );
        let loops = own_listener_loops(&config.upstreams, &addresses, &["127.0.0.1:81".parse().expect("an address")]);
        assert_eq!(loops.len(), 1);
        assert!(
            loops[0].starts_with("upstreams.shop.discover found \"localhost:81\" in file:shop.toml, and 127.0.0.1:81")
        );
    }
}
