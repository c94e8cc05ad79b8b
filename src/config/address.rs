//! Who and where: networks, servers of DNS, host patterns, and the hosts of URLs. Each is read from text that says what is
//! wrong with itself and is written back as it was. Looking names up is for `server`.

use super::values::texts;
use hyper::http::uri::Authority;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A network in CIDR form: `10.0.0.0/8`, `fd00::/8`; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNet {
    address: IpAddr,
    bits: u8,
}

impl IpNet {
    /// Whether the address lies in the network. An IPv4 address that came through an IPv6 socket counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.bits) == self.address
    }

    /// Whether it holds every address of its family.
    pub fn is_everybody(&self) -> bool {
        self.bits == 0
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write a network as \"10.0.0.0/8\" or an address as \"10.1.2.3\"";
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| FORM.to_owned())?;
        if address.to_canonical() != address {
            return Err(format!("write IPv4 networks in IPv4 form, like \"{}\"", address.to_canonical()));
        }
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => bits_max,
            Some(bits) => plain_number(bits)
                .filter(|bits| *bits <= u32::from(bits_max))
                .and_then(|bits| u8::try_from(bits).ok())
                .ok_or_else(|| format!("the bits after the slash go from 0 to {bits_max}"))?,
        };
        let network = Self { address: masked(address, bits), bits };
        if network.address != address {
            return Err(format!("the address has bits beyond the network; write \"{network}\""));
        }
        Ok(network)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// Which hosts a route answers for. Ports are no part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// This host and no other, in lower case; an IPv6 address keeps its brackets, as `Host` has it.
    Exact(String),
    /// `*.example.com`, held as `example.com`: every host that ends in it with one label more or several.
    Subdomains(String),
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write a host as \"shop.example.com\" or \"*.example.com\"";
        if !text.is_ascii() {
            return Err("write the name in its ASCII form (xn--…), as clients send it".to_owned());
        }
        if let Some(address) = text.strip_prefix('[') {
            let address = address.strip_suffix(']').and_then(|address| address.parse::<Ipv6Addr>().ok());
            return address.map(|address| Self::Exact(format!("[{address}]"))).ok_or_else(|| FORM.to_owned());
        }
        if text.contains(':') {
            return Err(format!("{FORM}, without a scheme or a port"));
        }
        match text.strip_prefix("*.") {
            Some(parent) => host_name(parent).map(Self::Subdomains),
            None => host_name(text).map(Self::Exact),
        }
        .ok_or_else(|| FORM.to_owned())
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Subdomains(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// A server that answers for DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nameserver(pub SocketAddr);

impl FromStr for Nameserver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse().or_else(|_| text.parse().map(|address| SocketAddr::new(address, DNS_PORT)));
        match address {
            Ok(address) if address.port() != 0 => Ok(Self(address)),
            _ => Err("write an address and a port, like \"10.0.0.2:53\" or \"[fd00::2]:53\"".to_owned()),
        }
    }
}

impl fmt::Display for Nameserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const DNS_PORT: u16 = 53;

/// A name with SRV records, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName(pub Box<str>);

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = host_name(text.strip_suffix('.').unwrap_or(text)).filter(|name| name.parse::<IpAddr>().is_err());
        let right = || "write a name with SRV records, like \"_http._tcp.shop.internal\"".to_owned();
        name.map(|name| Self(name.into())).ok_or_else(right)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host name (RFC 1123, and `_` as service names of container networks have it) or an IPv4 address, in lower case.
pub(super) fn host_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits makes an address of it (RFC 1123 §2.1), and then it must be a whole one.
    let ends_in_digits = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let fits = text.len() <= 253 && text.split('.').all(label);
    (fits && (!ends_in_digits || text.parse::<std::net::Ipv4Addr>().is_ok())).then(|| text.to_ascii_lowercase())
}

/// Digits only: `parse` alone would take a plus sign.
pub(super) fn plain_number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Whether a URL's authority, without a user, names a port that there is, or none. Of one that is too large whoever connects
/// would see none, and take the scheme's.
pub(super) fn has_sound_port(authority: &Authority) -> bool {
    let behind = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    behind.strip_prefix(':').is_none_or(|port| plain_number(port).is_some_and(|port| (1..=65_535).contains(&port)))
}

/// Whether a URL's host is this machine, so that nobody is on the way.
pub(super) fn is_this_machine(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

texts! {
    IpNet: "network, as `10.0.0.0/8` or `::1`";
    Nameserver: "`address:port`";
    ServiceName: "name with SRV records";
    HostPattern: "host, as `shop.example.com` or `*.example.com`";
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// Each line read as `T` and written back, or what it says is wrong.
    fn check<T: FromStr<Err = String> + fmt::Display>(texts: &[&str], expected: &Expect) {
        let mut outcome = String::new();
        for text in texts {
            let read = text.parse::<T>().map_or_else(|wrong| format!("! {wrong}"), |value| value.to_string());
            outcome.extend([format!("{text:?} -> {read}\n")]);
        }
        expected.assert_eq(&outcome);
    }

    #[test]
    fn networks() {
        check::<IpNet>(
            &[
                "10.0.0.0/8",
                "127.0.0.1",
                "::1",
                "fd00::/8",
                "0.0.0.0/0",
                "::/0",
                "10.1.0.0/8",
                "10.0.0.0/33",
                "10.0.0.0/+8",
                "::ffff:10.0.0.1",
                "localhost",
                "",
            ],
            &expect![[r#"
                "10.0.0.0/8" -> 10.0.0.0/8
                "127.0.0.1" -> 127.0.0.1/32
                "::1" -> ::1/128
                "fd00::/8" -> fd00::/8
                "0.0.0.0/0" -> 0.0.0.0/0
                "::/0" -> ::/0
                "10.1.0.0/8" -> ! the address has bits beyond the network; write "10.0.0.0/8"
                "10.0.0.0/33" -> ! the bits after the slash go from 0 to 32
                "10.0.0.0/+8" -> ! the bits after the slash go from 0 to 32
                "::ffff:10.0.0.1" -> ! write IPv4 networks in IPv4 form, like "10.0.0.1"
                "localhost" -> ! write a network as "10.0.0.0/8" or an address as "10.1.2.3"
                "" -> ! write a network as "10.0.0.0/8" or an address as "10.1.2.3"
            "#]],
        );
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.1.2", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::1"),
            ("127.0.0.1", "127.0.0.1", "127.0.0.2"),
            ("0.0.0.0/0", "255.255.255.255", "2001:db8::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("2001:db8::7", "2001:db8::7", "2001:db8::8"),
        ] {
            let network: IpNet = network.parse().expect("a network");
            assert!(network.contains(inside.parse().expect("an address")), "{network} holds {inside}");
            assert!(!network.contains(outside.parse().expect("an address")), "{network} does not hold {outside}");
        }
    }

    #[test]
    fn nameservers() {
        check::<Nameserver>(
            &["10.0.0.2:53", "10.0.0.2", "[fd00::2]:5353", "fd00::2", "10.0.0.2:0", "dns.internal:53", ""],
            &expect![[r#"
                "10.0.0.2:53" -> 10.0.0.2:53
                "10.0.0.2" -> 10.0.0.2:53
                "[fd00::2]:5353" -> [fd00::2]:5353
                "fd00::2" -> [fd00::2]:53
                "10.0.0.2:0" -> ! write an address and a port, like "10.0.0.2:53" or "[fd00::2]:53"
                "dns.internal:53" -> ! write an address and a port, like "10.0.0.2:53" or "[fd00::2]:53"
                "" -> ! write an address and a port, like "10.0.0.2:53" or "[fd00::2]:53"
            "#]],
        );
    }

    #[test]
    fn hosts() {
        check::<HostPattern>(
            &[
                "Shop.Example.com",
                "*.example.com",
                "[::1]",
                "10.0.0.1",
                "*",
                "*example.com",
                "a.*.com",
                "example.com:443",
                "https://example.com",
                "bücher.example",
                "example..com",
                "example.com.",
                "-a.com",
                ".example.com",
                "*..example.com",
                "*.",
                ".",
                "",
            ],
            &expect![[r#"
                "Shop.Example.com" -> shop.example.com
                "*.example.com" -> *.example.com
                "[::1]" -> [::1]
                "10.0.0.1" -> 10.0.0.1
                "*" -> ! write a host as "shop.example.com" or "*.example.com"
                "*example.com" -> ! write a host as "shop.example.com" or "*.example.com"
                "a.*.com" -> ! write a host as "shop.example.com" or "*.example.com"
                "example.com:443" -> ! write a host as "shop.example.com" or "*.example.com", without a scheme or a port
                "https://example.com" -> ! write a host as "shop.example.com" or "*.example.com", without a scheme or a port
                "bücher.example" -> ! write the name in its ASCII form (xn--…), as clients send it
                "example..com" -> ! write a host as "shop.example.com" or "*.example.com"
                "example.com." -> ! write a host as "shop.example.com" or "*.example.com"
                "-a.com" -> ! write a host as "shop.example.com" or "*.example.com"
                ".example.com" -> ! write a host as "shop.example.com" or "*.example.com"
                "*..example.com" -> ! write a host as "shop.example.com" or "*.example.com"
                "*." -> ! write a host as "shop.example.com" or "*.example.com"
                "." -> ! write a host as "shop.example.com" or "*.example.com"
                "" -> ! write a host as "shop.example.com" or "*.example.com"
            "#]],
        );
    }
}
