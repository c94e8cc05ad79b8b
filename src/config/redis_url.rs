//! Where a Redis is: its URL, which shows without its password.

use super::secret::{HIDDEN, Secret};
use super::values::texts;
use std::fmt;
use std::str::FromStr;

/// `redis://user:password@host:6379/0`, or `rediss://` with TLS. It shows without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Whether by TLS.
    pub is_tls: bool,
    /// Who logs in; none: the default user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The name or address; IPv6 without brackets.
    pub host: String,
    /// The port. Default 6379.
    pub port: u16,
    /// The database. Default 0.
    pub database: u8,
}

/// How a URL of Redis looks.
const FORM: &str = "write \"redis://host:6379\", or \"rediss://user:password@host:6379/0\" with TLS and a password; \
                    what is special in a password is written as %40";

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        read_url(text).map_err(|wrong| format!("{wrong}; {FORM}"))
    }
}

texts! {
    RedisUrl: "`redis://host:port`, or `rediss://user:password@host:port/database`", shown as HIDDEN;
}

/// What is wrong is told by its part and never quoted: where the parts are mistaken for one another, any of them may be the
/// password.
fn read_url(text: &str) -> Result<RedisUrl, &'static str> {
    let (is_tls, rest) = match text.split_once("://") {
        Some(("redis", rest)) => (false, rest),
        Some(("rediss", rest)) => (true, rest),
        _ => return Err("its scheme is neither redis:// nor rediss://"),
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if database.contains('@') {
        return Err("it has a / before an @; one in a password is written as %2F");
    }
    if database.contains('?') {
        return Err("it has options behind a ?, and there are none");
    }
    let database = if database.is_empty() {
        0
    } else {
        database.parse().map_err(|_| "its database, behind the /, is no number from 0 to 255")?
    };
    let (login, server) = authority.rsplit_once('@').map_or((None, authority), |(login, server)| (Some(login), server));
    let (username, password) = match login {
        None => (None, None),
        Some(login) => {
            let (username, password) = login.split_once(':').unwrap_or((login, ""));
            let username = decoded(username).ok_or("its user has a % that stands for nothing")?;
            let password = decoded(password).ok_or("its password has a % that stands for nothing; % itself is %25")?;
            (Some(username).filter(|text| !text.is_empty()), Some(password).filter(|text| !text.is_empty()))
        }
    };
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => {
            const NO_ADDRESS: &str = "its host in brackets is no IPv6 address";
            let (host, port) = rest.split_once(']').ok_or(NO_ADDRESS)?;
            let _: std::net::Ipv6Addr = host.parse().map_err(|_| NO_ADDRESS)?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or_default()) })
        }
        None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    if host.is_empty() {
        return Err("it names no host");
    }
    if host.len() > 255 || !host.bytes().all(is_plain) {
        return Err("its host is no name and no address");
    }
    let port = port.map_or(Some(6379), |port| port.parse().ok().filter(|port| *port != 0));
    let port = port.ok_or("its port is no number from 1 to 65535")?;
    Ok(RedisUrl { is_tls, username, password: password.map(Secret::from), host: host.to_owned(), port, database })
}

/// A part of a URL without its percent signs.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(rest.next()?)? * 16 + digit(rest.next()?)?).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_tls, username, password, host, port, database } = self;
        f.write_str(if *is_tls { "rediss://" } else { "redis://" })?;
        f.write_str(username.as_deref().unwrap_or_default())?;
        if password.is_some() {
            write!(f, ":{HIDDEN}")?;
        }
        if username.is_some() || password.is_some() {
            f.write_str("@")?;
        }
        if host.contains(':') { write!(f, "[{host}]:{port}/{database}") } else { write!(f, "{host}:{port}/{database}") }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_show_no_password() {
        let shown = |text: &str| text.parse::<RedisUrl>().map(|url| url.to_string()).ok();
        for (text, expected) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://cache.internal:7000/3", "redis://cache.internal:7000/3"),
            ("rediss://[::1]:6380", "rediss://[::1]:6380/0"),
            ("redis://:secret@h", "redis://:***@h:6379/0"),
            ("redis://gate:se%40cr%65t@h/", "redis://gate:***@h:6379/0"),
            ("redis://gate@h", "redis://gate@h:6379/0"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        let url = "redis://gate:se%40c:r%65t@h".parse::<RedisUrl>().expect("it is one");
        assert_eq!(url.password.expect("it has one").reveal(), "se@c:ret");
        for text in [
            "",
            "h:6379",
            "http://h",
            "redis://",
            "redis://h:0",
            "redis://h:x",
            "redis://h/16x",
            "redis://:%4@h",
            "redis://a b",
            "redis://::1",
        ] {
            assert_eq!(shown(text), None, "{text}");
        }
        for (text, part) in [
            ("hunter2", "scheme"),
            ("redis//:hunter2@h", "scheme"),
            ("redis://:hunter2@h:port", "port"),
            ("redis://:hunter2@h:99999", "port"),
            ("redis://:hunter2@[::1]6379", "port"),
            ("redis://:hunter2@[h]", "host"),
            ("redis://:hunter2@", "host"),
            ("redis://:hunter2@h h", "host"),
            ("redis://:hunter2@h/sessions", "database"),
            ("redis://:hunter2@h/256", "database"),
            ("redis://:hunter2@h/0?protocol=3", "options"),
            ("redis://:hunter2/@h", "%2F"),
            ("redis://:hunter2%@h", "password"),
            ("redis://hunter2%zz@h", "user"),
        ] {
            let wrong = text.parse::<RedisUrl>().expect_err(text);
            let (wrong, _) = wrong.split_once("; write").expect("then what would be right");
            assert!(wrong.contains(part) && !wrong.contains("hunter2"), "{text}: {wrong}");
        }
    }
}
