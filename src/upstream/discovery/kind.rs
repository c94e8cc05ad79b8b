//! What an address that comes from outside may lead to: a network, or what only this machine or its link may reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// To somebody's network.
    Network,
    /// To this machine.
    Loopback,
    /// To one link, which machines give themselves; and to where clouds give each machine its secrets.
    LinkLocal,
    /// Nowhere that a service can be.
    Nowhere,
}

/// Where clouds answer with the secrets of whichever machine asks, besides 169.254.169.254: Alibaba, Oracle, Azure.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
/// The same: Amazon, Google.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

impl AddressKind {
    /// The kind of this address. One that carries an IPv4 address, which some router may take out, is of the worse kind.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => match Self::of_v6(address) {
                Self::Network => Self::worst(carried(address).into_iter().flatten().map(Self::of_v4)),
                kind => kind,
            },
        }
    }

    /// The kind of what may be read in several ways, some of which lead nowhere.
    fn worst(mut kinds: impl Iterator<Item = Self> + Clone) -> Self {
        let refused = kinds.clone().find(|kind| matches!(kind, Self::Loopback | Self::LinkLocal));
        let first = kinds.next().unwrap_or(Self::Network);
        let rest = kinds.fold(first, |all, kind| if all == kind { all } else { Self::Network });
        refused.unwrap_or(rest)
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address {
            // RFC 1122 §3.2.1.3: "this" network; Linux takes 0.0.0.0 for this machine.
            _ if address.octets()[0] == 0 || address.is_multicast() || address.is_broadcast() => Self::Nowhere,
            _ if address.is_loopback() => Self::Loopback,
            _ if address.is_link_local() || METADATA_V4.contains(&address) => Self::LinkLocal,
            _ => Self::Network,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address {
            _ if address.is_unspecified() || address.is_multicast() => Self::Nowhere,
            _ if address.is_loopback() => Self::Loopback,
            _ if address.is_unicast_link_local() || METADATA_V6.contains(&address) => Self::LinkLocal,
            _ => Self::Network,
        }
    }
}

/// The IPv4 addresses that an IPv6 address may stand for.
fn carried(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let octets = address.octets();
    // Those at these places.
    let v4 = |places: [usize; 4]| Some(Ipv4Addr::from(places.map(|place| octets[place])));
    let last = v4([12, 13, 14, 15]);
    match address.segments() {
        // RFC 4291 §2.5.5: IPv4-compatible and IPv4-mapped; RFC 2765 §2.1: translated; RFC 6052 §2.1: NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            [last, None, None]
        }
        // RFC 8215: NAT64 of one's own, with prefixes of several lengths (RFC 6052 §2.2: /48, /64 and /96).
        [0x64, 0xff9b, 1, ..] => [v4([6, 7, 9, 10]), v4([9, 10, 11, 12]), last],
        // RFC 3056 §2: 6to4.
        [0x2002, ..] => [v4([2, 3, 4, 5]), None, None],
        _ => [None; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_of_its_kind_however_it_is_written() {
        for (kind, addresses) in [
            (
                AddressKind::Network,
                "10.0.0.1 192.0.2.1 100.100.100.201 2001:db8::1 fd00::1 ::ffff:192.0.2.1 64:ff9b::192.0.2.1 \
                 64:ff9b:1:c000:2:100:: 2002:c000:201::1",
            ),
            (
                AddressKind::Loopback,
                "127.0.0.1 127.255.0.9 ::1 ::ffff:127.0.0.1 ::127.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 \
                 64:ff9b:1::127.0.0.1 64:ff9b:1:7f00:0:100:: 64:ff9b:1:1:7f:0:100:0 2002:7f00:1::9",
            ),
            (
                AddressKind::LinkLocal,
                "169.254.169.254 fe80::1 febf::1 100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 fd20:ce::254 \
                 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 64:ff9b:1::a9fe:a9fe ::ffff:100.100.100.200 \
                 64:ff9b::6464:64c8 2002:a9fe:a9fe::1",
            ),
            (
                AddressKind::Nowhere,
                "0.0.0.0 0.1.2.3 224.0.0.1 255.255.255.255 :: ff02::1 ::ffff:0.0.0.0 64:ff9b::e000:1 2002::1",
            ),
        ] {
            for address in addresses.split_whitespace() {
                let parsed = address.parse().expect("an address");
                assert_eq!(AddressKind::of(parsed), kind, "{address}");
            }
        }
    }
}
