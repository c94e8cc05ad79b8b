//! The servers of an upstream, as the configuration and discovery name them: where each is, and how much it is to get.

use std::{collections::BTreeSet, sync::Arc};

use super::balance::Share;
use crate::shard::Address;

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendAddress {
    /// As configured: `host:port`, or `https://host` where it speaks TLS; of a socket with a path it is `localhost`.
    pub name: Box<str>,
    /// Where to connect to.
    pub address: Address,
}

impl BackendAddress {
    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.name.starts_with(HTTPS)
    }

    /// What its requests carry as `Host`.
    pub fn authority(&self) -> &str {
        self.name.strip_prefix(HTTPS).unwrap_or(&self.name)
    }

    /// The same without a port, and an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => authority.split(':').next().unwrap_or(authority),
        }
    }
}

const HTTPS: &str = "https://";

/// A server, and how much it is to get. Where the same one gets another share, all that is known of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Which one it is.
    pub at: BackendAddress,
    /// Its share of the requests, beside the others' of its tier. With 0 it gets none.
    pub weight: u16,
    /// Those with a higher number are there for when too few of the lower ones are well.
    pub priority: u16,
    /// Where it stands: those of the gateway's own zone come first.
    pub zone: Option<Arc<str>>,
}

impl Instance {
    /// One like any other.
    pub fn new(at: BackendAddress) -> Self {
        Self { at, weight: 1, priority: 0, zone: None }
    }

    /// What comes first has less: priority by priority, and within each the gateway's own zone.
    fn rank(&self, own_zone: Option<&str>) -> (u16, bool) {
        (self.priority, own_zone.is_some() && self.zone.as_deref() != own_zone)
    }
}

/// The shares of these, for a gateway in this zone.
pub fn shares(instances: &[Instance], own_zone: Option<&str>) -> Vec<Share> {
    let ranks: BTreeSet<_> = instances.iter().map(|instance| instance.rank(own_zone)).collect();
    let ranks: Vec<_> = ranks.into_iter().collect();
    let share = |instance: &Instance| {
        let tier = ranks.binary_search(&instance.rank(own_zone)).unwrap_or(0);
        Share { weight: instance.weight, tier: u16::try_from(tier).unwrap_or(u16::MAX) }
    };
    instances.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_spoken_and_what_is_asked_for() {
        let told = |name: &str, address: &str| {
            let address: std::net::SocketAddr = address.parse().expect("an address");
            let at = BackendAddress { name: name.into(), address: address.into() };
            let scheme = if at.is_https() { "https" } else { "http" };
            format!("{scheme} {} {} | {}", at.authority(), at.host(), at.label())
        };
        for (name, address, wanted) in [
            ("shop:80", "10.0.0.1:80", "http shop:80 shop | shop:80 10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.1:80", "http 10.0.0.1:80 10.0.0.1 | 10.0.0.1:80"),
            ("https://shop", "10.0.0.1:443", "https shop shop | https://shop 10.0.0.1:443"),
            ("https://shop:8443", "10.0.0.1:8443", "https shop:8443 shop | https://shop:8443 10.0.0.1:8443"),
            ("https://10.0.0.1", "10.0.0.1:443", "https 10.0.0.1 10.0.0.1 | https://10.0.0.1"),
            ("https://[::1]:8443", "[::1]:8443", "https [::1]:8443 ::1 | https://[::1]:8443"),
            ("https://[::1]", "[::1]:443", "https [::1] ::1 | https://[::1]"),
        ] {
            assert_eq!(told(name, address), wanted);
        }
    }
}
