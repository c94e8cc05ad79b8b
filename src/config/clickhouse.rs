//! `[clickhouse]`: where the access log's rows go. Connecting is for `sinks`.

use super::address::{has_sound_port, is_this_machine};
use super::raw::quoted;
use super::read::Fields;
use super::report::Report;
use super::{Clickhouse, Config, HIDDEN};
use hyper::Uri;
use std::path::PathBuf;

impl Config {
    /// The directory of the files that keep rows while ClickHouse is away; none, if there shall be none.
    pub fn spill_dir(&self) -> Option<PathBuf> {
        let directory = || self.clickhouse.spill_dir.clone().unwrap_or_else(|| self.data.dir.join("clickhouse"));
        (self.clickhouse.enabled && self.clickhouse.spill_max > 0).then(directory)
    }
}

/// What the keys of `[clickhouse]` say, also where it is not enabled yet.
pub(super) fn check_clickhouse(config: &Config, fields: &Fields<'_>, report: &mut Report) {
    let clickhouse = &config.clickhouse;
    match wrong_url(&clickhouse.url) {
        // A password in it is shown to nobody: before the host, or as ClickHouse's own clients take it, behind a `?`.
        Err(right) => {
            let shown = if clickhouse.url.contains(['@', '?']) { HIDDEN.to_owned() } else { quoted(&clickhouse.url) };
            fields.wrong(report, "url", format_args!("is {shown}"), right);
        }
        Ok(is_exposed) if is_exposed && has_password(clickhouse) => report.warn(
            &fields.place_of("url"),
            "clickhouse.url is http, so whoever is on the way reads the password and the rows; use https",
        ),
        Ok(_) => {}
    }
    for (key, name) in [("database", &clickhouse.database), ("table", &clickhouse.table)] {
        if !is_name(name) {
            let right = "it is a name of up to 64 of A-Z, a-z, 0-9 and _, without a digit first";
            fields.wrong(report, key, format_args!("is {}", quoted(name)), right);
        }
    }
    let is_printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !(1..=128).contains(&clickhouse.user.len()) || !is_printable(&clickhouse.user) {
        let right = "it is 1 to 128 printable ASCII characters";
        fields.wrong(report, "user", format_args!("is {}", quoted(&clickhouse.user)), right);
    }
    if clickhouse.password.as_ref().is_some_and(|password| !is_printable(password.reveal())) {
        fields.wrong(report, "password", "is no header's value", "it is printable ASCII characters");
    }
    if clickhouse.password.is_some() && clickhouse.password_file.is_some() {
        fields.wrong(report, "password_file", "is given, and so is clickhouse.password", "name the password once");
    }
    if clickhouse.memory_max < 4 * clickhouse.batch_bytes {
        let what = "is less than four times clickhouse.batch_bytes";
        fields.wrong_pair(report, ["memory_max", "batch_bytes"], what, "some are filled while others are sent");
    }
}

fn has_password(clickhouse: &Clickhouse) -> bool {
    clickhouse.enabled && (clickhouse.password.is_some() || clickhouse.password_file.is_some())
}

/// Whether others may read what is sent there; or what would be right.
fn wrong_url(url: &str) -> Result<bool, &'static str> {
    const RIGHT: &str = "it is \"http://host:8123\" or \"https://host:8443\", without a user, a path or a ?";
    let uri: Uri = url.parse().map_err(|_| RIGHT)?;
    let authority = uri.authority().ok_or(RIGHT)?;
    let is_bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    if authority.as_str().contains('@') || url.contains('#') || !is_bare || authority.host().is_empty() {
        return Err(RIGHT);
    }
    if !has_sound_port(authority) {
        return Err(RIGHT);
    }
    match uri.scheme_str() {
        Some("https") => Ok(false),
        Some("http") => Ok(!is_this_machine(authority)),
        _ => Err(RIGHT),
    }
}

fn is_name(name: &str) -> bool {
    let is_word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_word && (1..=64).contains(&name.len()) && !name.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_of_a_server() {
        for url in [
            "clickhouse:8123",
            "tcp://clickhouse:9000",
            "http://u:hunter2@clickhouse:8123",
            "http://clickhouse:8123/?database=x",
            "http://clickhouse:8123/x",
            "http://clickhouse:8123/#x",
            "http://:8123",
            "http://clickhouse:81234",
            "http://clickhouse:0",
            "",
        ] {
            assert!(wrong_url(url).is_err(), "{url}");
        }
        for (url, is_exposed) in [
            ("http://clickhouse:8123", true),
            ("http://clickhouse:8123/", true),
            ("http://127.0.0.2:8123", false),
            ("http://[::1]:8123", false),
            ("https://clickhouse", false),
        ] {
            assert_eq!(wrong_url(url), Ok(is_exposed), "{url}");
        }
    }

    #[test]
    fn names_need_no_quotes() {
        for (name, is) in [("shardgate_access", true), ("_1", true), ("1a", false), ("", false), ("a`b", false)] {
            assert_eq!(is_name(name), is, "{name}");
        }
        assert!(is_name(&"a".repeat(64)) && !is_name(&"a".repeat(65)));
    }
}
