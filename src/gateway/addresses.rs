//! The addresses of instances that a configuration gives by name: which names it has, and what became of each. Looking
//! them up is for whoever compiles the plan: it may take as long as the resolver likes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::config::{Config, Instance, written_duration};

/// What is known of names. Each is asked for once, however many instances have it.
#[derive(Clone, Debug, Default)]
pub struct Addresses(BTreeMap<Box<str>, Result<SocketAddr, NoAddress>>);

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// There is none, or the resolver cannot tell; in its words.
    Unknown(String),
    /// The resolver had not answered after this long.
    Late(Duration),
}

impl Addresses {
    /// What became of these names.
    pub fn new(found: BTreeMap<Box<str>, Result<SocketAddr, NoAddress>>) -> Self {
        Self(found)
    }

    /// The names that a configuration needs the addresses of.
    pub fn wanted(config: &Config) -> BTreeSet<Box<str>> {
        let instances = config.upstreams.values().flat_map(|upstream| &upstream.instances);
        let names = instances.filter(|instance| instance.host.parse::<IpAddr>().is_err());
        names.map(|instance| instance.host.as_str().into()).collect()
    }

    /// Where an instance is.
    pub(super) fn of(&self, instance: &Instance) -> Result<SocketAddr, NoAddress> {
        if let Ok(address) = instance.host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(address, instance.port));
        }
        let found = self.0.get(&*instance.host).cloned();
        let mut address = found.unwrap_or_else(|| Err(NoAddress::Unknown("nobody looked it up".to_owned())))?;
        address.set_port(instance.port);
        Ok(address)
    }
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
