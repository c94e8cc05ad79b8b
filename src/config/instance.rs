//! The servers of an upstream as they are written: where each is, and how much it is to get beside the others.

use super::address::{host_name, plain_number};
use super::key::{Key, Kind};
use super::names::is_plain;
use super::raw::{Node, Value};
use super::read::suggestion;
use super::report::Report;
use super::values::{AsText, Written, right, texts};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use toml::Value as Toml;

/// Where a server is: `127.0.0.1:4001`, `[::1]:4001`, `events.internal:80`, `https://events.internal`, `unix:/run/shop.sock`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerAddress {
    /// On a port.
    Port {
        /// A name in lower case or an address; an IPv6 address stands without its brackets.
        host: String,
        /// Its port, never 0.
        port: u16,
        /// Whether it speaks TLS there.
        is_https: bool,
    },
    /// On a socket with this path.
    Unix(PathBuf),
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where it is.
    pub address: ServerAddress,
    /// Its share of the requests, beside the others'. With 0 it gets none.
    pub weight: u16,
    /// Those with a higher number are there for when too few of the lower ones are well.
    pub priority: u16,
    /// Where it stands.
    pub zone: Option<Zone>,
}

/// Where a machine stands: what fails as one, and is near to itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Zone(pub Box<str>);

/// What an instance has when only its address is written.
const WEIGHT: u16 = 1;

/// Longer paths are no address (unix(7)).
const PATH_BYTES_MAX: usize = 107;

const FORM: &str = "write an instance as \"host:port\", like \"127.0.0.1:4001\" or \"[::1]:4001\"";
const HTTPS: &str = "https://";
/// What need not be written behind that.
const HTTPS_PORT: u16 = 443;

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_sound = path.starts_with('/') && !path.chars().any(char::is_control);
            return match path.len() {
                1..=PATH_BYTES_MAX if is_sound => Ok(Self::Unix(path.into())),
                _ => Err(format!(
                    "write a socket as \"unix:/run/shop.sock\": a whole path of at most {PATH_BYTES_MAX} bytes"
                )),
            };
        }
        let (is_https, text) = text.strip_prefix(HTTPS).map_or((false, text), |rest| (true, rest));
        if text.contains("://") {
            return Err(format!("{FORM}, without a scheme, or as \"https://host\" where it speaks TLS"));
        }
        let form = || {
            let https = "write it as \"https://host\" or \"https://host:port\", without a path";
            if is_https { https.to_owned() } else { FORM.to_owned() }
        };
        let (host, port) = match text.rsplit_once(':') {
            // What stands behind the last colon of an address in brackets is no port.
            Some((_, behind)) if is_https && behind.ends_with(']') => (text, HTTPS_PORT),
            Some((host, port)) => {
                let port = plain_number(port).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
                (host, port.ok_or_else(|| format!("{}; ports go from 1 to 65535", form()))?)
            }
            None if is_https => (text, HTTPS_PORT),
            None => return Err(form()),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .and_then(|address| address.parse::<Ipv6Addr>().ok())
                // An IPv4 address is written as one, so that it is not two instances.
                .map(|address| IpAddr::V6(address).to_canonical().to_string())
                .ok_or_else(form)?,
            None => host_name(host).ok_or_else(form)?,
        };
        Ok(Self::Port { host, port, is_https })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { host, port, is_https } => {
                if *is_https {
                    f.write_str(HTTPS)?;
                }
                if host.contains(':') {
                    write!(f, "[{host}]")?;
                } else {
                    f.write_str(host)?;
                }
                if *is_https && *port == HTTPS_PORT { Ok(()) } else { write!(f, ":{port}") }
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<ServerAddress> for Instance {
    fn from(address: ServerAddress) -> Self {
        Self { address, weight: WEIGHT, priority: 0, zone: None }
    }
}

impl FromStr for Instance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<ServerAddress>().map(Self::from)
    }
}

/// Only its address: what messages call it.
impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_plain(text) { Ok(Self(text.into())) } else { Err("it is up to 64 of A-Za-z0-9._-".to_owned()) }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

texts! {
    Zone: "up to 64 of `A-Za-z0-9._-`";
}

impl Instance {
    /// A table with its keys.
    fn read(node: &Node, path: &str, report: &mut Report) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            return read_as(node, path, report, str::parse);
        };
        let mut instance = None;
        if let Some(address) = table.get("address") {
            instance = read_as(address, &format!("{path}.address"), report, str::parse);
        } else {
            report.push(node.place.clone(), format!("{path}.address is missing"), FORM);
        }
        let mut number = |name: &str, default: u16| {
            let Some(node) = table.get(name) else { return default };
            let kind = Kind::Number(0, u16::MAX.into());
            u16::from_value(&node.value, kind).unwrap_or_else(|right| {
                if !matches!(node.value, Value::Broken) {
                    node.wrong(report, &format!("{path}.{name}"), &right);
                }
                default
            })
        };
        let (weight, priority) = (number("weight", WEIGHT), number("priority", 0));
        let zone = table.get("zone").and_then(|node| read_as(node, &format!("{path}.zone"), report, Zone::from_text));
        for (name, node) in table.iter().filter(|(name, _)| !KEYS.contains(&name.as_str())) {
            report.push(node.place.clone(), format!("{path}.{name} is not a key"), &suggestion(name, &KEYS, ""));
        }
        Some(Self { weight, priority, zone, ..instance? })
    }

    /// As it is written: with no more than its address, if that says all.
    fn to_value(&self) -> Toml {
        if *self == Self::from(self.address.clone()) {
            return self.to_string().into();
        }
        let mut table = toml::Table::new();
        table.insert("address".to_owned(), self.to_string().into());
        table.insert("weight".to_owned(), i64::from(self.weight).into());
        table.insert("priority".to_owned(), i64::from(self.priority).into());
        table.extend(self.zone.as_ref().map(|zone| ("zone".to_owned(), zone.to_string().into())));
        table.into()
    }
}

const KEYS: [&str; 4] = ["address", "weight", "priority", "zone"];

fn read_as<T>(node: &Node, path: &str, report: &mut Report, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let parsed = match &node.value {
        Value::Text(text) => parse(&text.text),
        _ => Err(FORM.to_owned()),
    };
    match parsed {
        Ok(value) => return Some(value),
        // It is told already.
        Err(_) if matches!(node.value, Value::Broken) => {}
        Err(right) => node.wrong(report, path, &right),
    }
    None
}

impl Written for Vec<Instance> {
    const KIND: Kind = Kind::Instances;

    /// What is wrong is reported; the rest stands in, as no configuration comes of it.
    fn read(node: &Node, key: &'static Key, path: &str, report: &mut Report) -> Option<Self> {
        match &node.value {
            Value::List(list) => {
                let read = |(index, node)| Instance::read(node, &format!("{path}[{index}]"), report);
                Some(list.iter().enumerate().filter_map(read).collect())
            }
            // A variable has no lists: commas part what stands in it.
            Value::Text(text) if text.from_variable => {
                let parts = text.text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let read = |part: &str| {
                    let wrong = |right: String| {
                        report.wrong_at(node.place.clone(), path, &super::raw::quoted(part), &right);
                    };
                    part.parse().map_err(wrong).ok()
                };
                Some(parts.filter_map(read).collect())
            }
            Value::Broken => None,
            _ => {
                node.wrong(report, path, &right(key.kind));
                None
            }
        }
    }

    fn write(&self, _: &Key) -> Option<Toml> {
        Some(self.iter().map(Instance::to_value).collect::<Vec<_>>().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// Each line read and written back, or what it says is wrong.
    fn check(texts: &[&str], expected: &Expect) {
        let mut outcome = String::new();
        for text in texts {
            let read = text.parse::<Instance>().map_or_else(|wrong| format!("! {wrong}"), |value| value.to_string());
            outcome.extend([format!("{text:?} -> {read}\n")]);
        }
        expected.assert_eq(&outcome);
    }

    #[test]
    fn instances() {
        check(
            &[
                "127.0.0.1:4001",
                "[::1]:4001",
                "[::ffff:10.0.0.1]:80",
                "unix:/run/shop.sock",
                "unix:run/shop.sock",
                "unix:",
                "unix:///run/shop.sock",
                "Events.Internal:80",
                "my_service:80",
                "::1:80",
                "127.0.0.1",
                "host:0",
                "host:65536",
                "host:+80",
                "http://host:80",
                "https://host",
                "https://Host:443",
                "https://host:8443",
                "https://[::1]",
                "https://[::1]:8443",
                "https://host/",
                "https://host:8443/path",
                "https://user@host",
                "https://host:0",
                "https://::1",
                "https://",
                "https://https://host",
                "HTTPS://host",
                "host:80/path",
                "bad host:80",
                "1.2.3:80",
                ":80",
                "",
            ],
            &expect![[r#"
                "127.0.0.1:4001" -> 127.0.0.1:4001
                "[::1]:4001" -> [::1]:4001
                "[::ffff:10.0.0.1]:80" -> 10.0.0.1:80
                "unix:/run/shop.sock" -> unix:/run/shop.sock
                "unix:run/shop.sock" -> ! write a socket as "unix:/run/shop.sock": a whole path of at most 107 bytes
                "unix:" -> ! write a socket as "unix:/run/shop.sock": a whole path of at most 107 bytes
                "unix:///run/shop.sock" -> unix:///run/shop.sock
                "Events.Internal:80" -> events.internal:80
                "my_service:80" -> my_service:80
                "::1:80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
                "127.0.0.1" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
                "host:0" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"; ports go from 1 to 65535
                "host:65536" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"; ports go from 1 to 65535
                "host:+80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"; ports go from 1 to 65535
                "http://host:80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001", without a scheme, or as "https://host" where it speaks TLS
                "https://host" -> https://host
                "https://Host:443" -> https://host
                "https://host:8443" -> https://host:8443
                "https://[::1]" -> https://[::1]
                "https://[::1]:8443" -> https://[::1]:8443
                "https://host/" -> ! write it as "https://host" or "https://host:port", without a path
                "https://host:8443/path" -> ! write it as "https://host" or "https://host:port", without a path; ports go from 1 to 65535
                "https://user@host" -> ! write it as "https://host" or "https://host:port", without a path
                "https://host:0" -> ! write it as "https://host" or "https://host:port", without a path; ports go from 1 to 65535
                "https://::1" -> ! write it as "https://host" or "https://host:port", without a path
                "https://" -> ! write it as "https://host" or "https://host:port", without a path
                "https://https://host" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001", without a scheme, or as "https://host" where it speaks TLS
                "HTTPS://host" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001", without a scheme, or as "https://host" where it speaks TLS
                "host:80/path" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"; ports go from 1 to 65535
                "bad host:80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
                "1.2.3:80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
                ":80" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
                "" -> ! write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            "#]],
        );
    }
}
