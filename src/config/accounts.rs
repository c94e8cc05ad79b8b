//! Accounts: where users are kept, and what a log-in may cost. Connecting and hashing are for `accounts`.

use super::read::Fields;
use super::redis_url::decoded as percent_decoded;
use super::report::Report;
use super::{Accounts, HIDDEN, Secret};
use std::error::Error as _;
use std::path::PathBuf;
use tokio_postgres::config::Host;

/// What the keys of `[accounts]` say of PostgreSQL.
pub(super) fn check_accounts(accounts: &Accounts, fields: &Fields<'_>, report: &mut Report) {
    if let Some(wrong) = accounts.postgres_url.as_ref().and_then(|url| wrong_part(url.reveal())) {
        let right = format!("{wrong}; {FORM}");
        report.wrong_at(fields.place_of("postgres_url"), "accounts.postgres_url", HIDDEN, &right);
    } else if accounts.postgres_ca_file.is_some() && accounts.postgres_url.as_ref().is_some_and(has_own_ca) {
        let what = "is given, and accounts.postgres_url has sslrootcert";
        fields.wrong(report, "postgres_ca_file", what, "name the certificates once");
    }
}

impl Accounts {
    /// The certificates that PostgreSQL's is checked against, wherever they are named. None: the system's.
    pub fn postgres_ca(&self) -> Option<PathBuf> {
        let in_url = self.postgres_url.as_ref().and_then(|url| postgres_url(url.reveal()).ok()?.ca_file);
        self.postgres_ca_file.clone().or(in_url)
    }
}

fn has_own_ca(url: &Secret) -> bool {
    postgres_url(url.reveal()).is_ok_and(|url| url.ca_file.is_some())
}

/// What a URL of PostgreSQL says.
#[derive(Debug)]
pub struct PostgresUrl {
    /// Where to connect to and how, but for certificates.
    pub connect: tokio_postgres::Config,
    /// `sslrootcert`: certificates (PEM) that the server's is checked against.
    pub ca_file: Option<PathBuf>,
}

/// Values of `sslmode`. The server's certificate and its name are checked whenever there is TLS, so the last three are one.
const SSL_MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Reads a URL of PostgreSQL; or which part of it is wrong. No part is quoted: where they are mistaken for one another, any
/// of them may be the password.
pub fn postgres_url(url: &str) -> Result<PostgresUrl, String> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("its scheme is not postgres://".to_owned());
    }
    // A ? in a password comes before the @.
    let (before, options) = url.rsplit_once('@').map_or(("", url), |(login, _)| url.split_at(login.len()));
    let Some((server, options)) = options.split_once('?') else { return parse(url, None) };
    let mut ca_file = None;
    let mut left = Vec::new();
    for option in options.split('&') {
        match option.split_once('=') {
            Some(("sslmode", mode)) if !SSL_MODES.contains(&mode) => {
                return Err(format!("its sslmode is none of {}", SSL_MODES.join(", ")));
            }
            Some(("sslmode", "verify-ca" | "verify-full")) => left.push("sslmode=require"),
            // As libpq has it: the system's certificates.
            Some(("sslrootcert", "system")) => {}
            Some(("sslrootcert", path)) => match percent_decoded(path).filter(|path| !path.is_empty()) {
                Some(path) => ca_file = Some(PathBuf::from(path)),
                None => return Err("its sslrootcert is no path".to_owned()),
            },
            _ => left.push(option),
        }
    }
    let options = if left.is_empty() { String::new() } else { format!("?{}", left.join("&")) };
    parse(&format!("{before}{server}{options}"), ca_file)
}

fn parse(url: &str, ca_file: Option<PathBuf>) -> Result<PostgresUrl, String> {
    match url.parse() {
        Ok(connect) => Ok(PostgresUrl { connect, ca_file }),
        // What the parser says may hold what it read.
        Err(error) => {
            let error: tokio_postgres::Error = error;
            Err(told(&error.source().map(ToString::to_string).unwrap_or_default()))
        }
    }
}

/// How a URL of PostgreSQL looks.
const FORM: &str = "write \"postgres://user:password@host:5432/database?sslmode=verify-full\"; escape special characters of a \
                    password by percent signs";

/// Options that stand behind the `?`.
const OPTIONS: &str = "application_name, channel_binding, connect_timeout, dbname, host, hostaddr, keepalives, \
                       keepalives_idle, keepalives_interval, keepalives_retries, load_balance_hosts, options, password, \
                       port, sslmode, sslnegotiation, sslrootcert, target_session_attrs, tcp_user_timeout, user";

/// Which part of a URL of PostgreSQL is wrong, if one is.
fn wrong_part(url: &str) -> Option<String> {
    let config = match postgres_url(url) {
        Ok(url) => url.connect,
        Err(wrong) => return Some(wrong),
    };
    let is_named = |host: &Host| match host {
        Host::Tcp(name) => !name.is_empty(),
        Host::Unix(_) => true,
    };
    let hosts = config.get_hosts();
    let wrong = if hosts.is_empty() || !hosts.iter().all(is_named) {
        "it names no host"
    } else if hosts.iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
        "its host has an @; one in a password is written as %40"
    } else if config.get_ports().contains(&0) {
        "its port is 0"
    } else if config.get_ports().len() > 1 && config.get_ports().len() != hosts.len() {
        "its ports are not as many as its hosts"
    } else {
        return None;
    };
    Some(wrong.to_owned())
}

/// What the parser says, without what it read.
fn told(message: &str) -> String {
    let refused = message.strip_prefix("invalid value for option `").and_then(|rest| rest.strip_suffix('`'));
    match refused.filter(|name| OPTIONS.split(", ").any(|option| option == *name)) {
        Some("port") => "its port is no number from 1 to 65535".to_owned(),
        Some("host") => "its host in brackets is no address".to_owned(),
        Some(option) => format!("its option {option} has a value that there is not"),
        None if message.starts_with("unknown option") => {
            format!("it has an option that there is not behind the ?; there are {OPTIONS}")
        }
        None if message.starts_with("unterminated") => "an option behind the ? has no =".to_owned(),
        None => "a part of it is no text behind its percent signs".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::SslMode;

    #[test]
    fn what_is_wrong_with_a_url_is_told_by_its_part() {
        for (url, part) in [
            ("hunter2", "scheme"),
            ("mysql://u:hunter2@h/d", "scheme"),
            ("postgres://u:hunter2@h:hunter2/d", "port"),
            ("postgres://u:hunter2@h:99999/d", "port"),
            ("postgres://u:hunter2@h:0/d", "port"),
            ("postgres://u:hunter2@h/d?port=1&port=2", "ports"),
            ("postgres://u:hunter2@:5432/d", "host"),
            ("postgres://u:hunter2@", "host"),
            ("postgres://u:hunter2@[::1/d", "host"),
            ("postgres://u:hunter@hunter2@h/d", "%40"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "none of disable, prefer, require, verify-ca, verify-full"),
            ("postgres://u:hunter2@h/d?sslmode=allow", "none of disable, prefer"),
            ("postgres://u:hunter2@h/d?sslrootcert=", "sslrootcert is no path"),
            ("postgres://u:hunter2@h/d?sslcert=hunter2", "an option that there is not"),
            ("postgres://u:hunter2@h/d?connect_timeout=soon", "option connect_timeout"),
            ("postgres://u:hunter2@h/d?hunter2=1", "an option that there is not"),
            ("postgres://u:hunter2@h/d?hunter2", "no ="),
            ("postgres://hunter2%ff@h/d", "percent"),
            ("postgres://u:hunter2@h/%ff", "percent"),
        ] {
            let wrong = wrong_part(url).expect(url);
            assert!(wrong.contains(part) && !wrong.contains("hunter"), "{url}: {wrong}");
        }
        for url in [
            "postgres://u:hunter2@h:5432/d?sslmode=require",
            "postgresql://h",
            "postgres://u@[::1]:5432/d",
            "postgres://u:p@one,two:5433/d?target_session_attrs=read-write",
            "postgres:///d?host=/run/postgresql",
            "postgres://u:p@h/d?sslmode=verify-ca",
            "postgres://u:p@h/d?sslrootcert=/etc/ca.pem",
        ] {
            assert_eq!(wrong_part(url), None, "{url}");
        }
    }

    #[test]
    fn managed_databases_hand_out_urls_that_are_taken() {
        let read = |url: &str| {
            let PostgresUrl { connect, ca_file } = postgres_url(url).expect(url);
            let password = connect.get_password().map(|password| String::from_utf8_lossy(password).into_owned());
            (connect.get_ssl_mode(), ca_file, password, connect.get_application_name().map(str::to_owned))
        };
        let path = |path: &str| Some(PathBuf::from(path));
        let password = || Some("p".to_owned());
        for (url, expected) in [
            ("postgres://u:p@h/d", (SslMode::Prefer, None, password(), None)),
            ("postgres://u:p@h/d?sslmode=verify-full", (SslMode::Require, None, password(), None)),
            (
                "postgres://u:p@h:5432/d?sslmode=verify-full&sslrootcert=/etc/my%20ca.pem&application_name=x",
                (SslMode::Require, path("/etc/my ca.pem"), password(), Some("x".to_owned())),
            ),
            ("postgres://u:p@h/d?sslrootcert=system&sslmode=verify-ca", (SslMode::Require, None, password(), None)),
            (
                "postgres://u:?sslmode=p@h/d?sslmode=disable",
                (SslMode::Disable, None, Some("?sslmode=p".to_owned()), None),
            ),
            ("postgres://h/d?sslmode=require", (SslMode::Require, None, None, None)),
        ] {
            assert_eq!(read(url), expected, "{url}");
        }
    }

    /// What the parser takes, so that the list goes with it.
    #[test]
    fn the_options_are_those_of_the_parser() {
        for option in OPTIONS.split(", ") {
            let wrong = wrong_part(&format!("postgres://h/d?{option}=%00")).unwrap_or_default();
            assert!(!wrong.contains("an option that there is not"), "{option}: {wrong}");
        }
    }
}
