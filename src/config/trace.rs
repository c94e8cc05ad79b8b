//! Where spans go and what they say of this gateway. Sending them is for `sinks::otlp`.

use super::Trace;
use super::address::has_sound_port;
use super::names::is_printable;
use super::raw::quoted;
use super::read::Fields;
use super::redis_url::decoded;
use super::report::Report;
use super::secret::{HIDDEN, Secret, trimmed};
use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};

/// Where collectors take spans that come over HTTP.
pub(super) const TRACES_PATH: &str = "/v1/traces";

/// Fields of a request, and attributes of the gateway: more would be a mistake.
const PAIRS_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 4096;

impl Trace {
    /// The whole URL that spans are sent to; `None` where they go nowhere.
    pub fn url(&self) -> Option<String> {
        let endpoint = self.endpoint.as_deref()?;
        let has_path = endpoint.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
        Some(format!("{endpoint}{}", if has_path { "" } else { TRACES_PATH }))
    }

    /// The fields that each request with spans carries.
    pub fn request_fields(&self) -> Vec<(String, Secret)> {
        let pairs = self.headers.as_ref().and_then(|headers| pairs(headers.reveal()).ok()).unwrap_or_default();
        pairs.into_iter().map(|(name, value)| (name, Secret::from(value))).collect()
    }

    /// What spans say of this gateway besides what it knows itself.
    pub fn resource(&self) -> Vec<(String, String)> {
        pairs(&self.attributes).unwrap_or_default()
    }
}

/// Pairs as W3C Baggage writes them: `name=value,name=value`, with what is special in a value as `%2C`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let members = text.split(',').map(trimmed).filter(|member| !member.is_empty());
    let pairs: Vec<_> = members
        .map(|member| {
            let (name, value) = member.split_once('=').ok_or("there is a part without a =")?;
            let (name, value) = (trimmed(name), trimmed(value));
            let value = decoded(value).ok_or("a value has a % that stands for nothing; % itself is %25")?;
            if name.is_empty() {
                return Err("there is a part without a name");
            }
            if value.len() > VALUE_BYTES_MAX {
                return Err("a value has more than 4096 bytes");
            }
            Ok((name.to_owned(), value))
        })
        .collect::<Result<_, _>>()?;
    if pairs.len() > PAIRS_MAX { Err("there are more than 64") } else { Ok(pairs) }
}

/// What holds of the keys of `[trace]`.
pub(super) fn check_trace(trace: &Trace, fields: &Fields<'_>, report: &mut Report) {
    if let Some(endpoint) = &trace.endpoint
        && let Err(right) = check_endpoint(endpoint)
    {
        // What stands behind these may be a password.
        let shown = if endpoint.contains(['@', '?']) { HIDDEN.to_owned() } else { quoted(endpoint) };
        fields.wrong(report, "endpoint", format_args!("is {shown}"), right);
    }
    if let Some(headers) = &trace.headers
        && let Err(wrong) = check_headers(headers.reveal())
    {
        let right = "write \"name=value,name=value\", with a comma in a value as %2C";
        fields.wrong(report, "headers", format_args!("is {HIDDEN}, and {wrong}"), right);
    }
    if let Err(wrong) = check_attributes(&trace.attributes) {
        let what = format_args!("is {}, and {wrong}", quoted(&trace.attributes));
        fields.wrong(report, "attributes", what, "write \"name=value,name=value\", with a comma in a value as %2C");
    }
    if !(1..=255).contains(&trace.service_name.len()) {
        let what = format_args!("is {}", quoted(&trace.service_name));
        fields.wrong(report, "service_name", what, "it is 1 to 255 bytes of text");
    }
    let is_https = trace.endpoint.as_ref().is_none_or(|url| url.starts_with("https:"));
    if trace.ca_file.is_some() && !is_https {
        let what = "is given, and trace.endpoint is no https URL";
        fields.wrong(report, "ca_file", what, "only https servers show certificates");
    }
    if trace.errors && trace.endpoint.is_none() {
        report.warn(&fields.place_of("errors"), "trace.errors is true, and without trace.endpoint spans go nowhere");
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), &'static str> {
    const RIGHT: &str = "it is an http or https URL without a user and a query, like \"http://localhost:4318/v1/traces\"; \
                         credentials belong in trace.headers";
    let uri: Uri = endpoint.parse().map_err(|_| RIGHT)?;
    let authority = uri.authority().ok_or(RIGHT)?;
    let is_plain = !authority.as_str().contains('@') && !endpoint.contains(['#', '?']) && !authority.host().is_empty();
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_plain && has_sound_port(authority) && is_http { Ok(()) } else { Err(RIGHT) }
}

fn check_headers(text: &str) -> Result<(), &'static str> {
    /// What the exporter says itself of each request.
    const OWN: [&str; 6] =
        ["content-type", "content-length", "content-encoding", "transfer-encoding", "host", "connection"];
    for (name, value) in pairs(text)? {
        let name: HeaderName = name.parse().map_err(|_| "a name is none of a field")?;
        if OWN.contains(&name.as_str()) {
            return Err("it has a field that the gateway writes itself");
        }
        if HeaderValue::from_str(&value).is_err() {
            return Err("a value has what no field may have");
        }
    }
    Ok(())
}

fn check_attributes(text: &str) -> Result<(), &'static str> {
    let is_name = |name: &String| name.len() <= 255 && is_printable(name);
    let are_names = pairs(text)?.iter().all(|(name, _)| is_name(name));
    if are_names { Ok(()) } else { Err("a name is no printable ASCII of up to 255 bytes") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(endpoint: &str, expected: &Expect) {
        let trace = Trace { endpoint: Some(endpoint.to_owned()), ..Trace::default() };
        expected
            .assert_eq(&check_endpoint(endpoint).map_or_else(|_| "refused".to_owned(), |()| trace.url().expect("one")));
    }

    #[test]
    fn a_url_without_a_path_has_the_usual_one() {
        check("http://localhost:4318", &expect!["http://localhost:4318/v1/traces"]);
        check("https://[::1]:4318/", &expect!["https://[::1]:4318/"]);
        check("https://otlp.example/a/b", &expect!["https://otlp.example/a/b"]);
        check("HTTP://a", &expect!["HTTP://a/v1/traces"]);
        for wrong in [
            "",
            "localhost:4318",
            "grpc://a:4317",
            "http://u:p@a/",
            "http://a/?key=1",
            "http://a/#x",
            "/v1",
            "http://:1/",
            "http://a:0",
            "http://a:99999",
            "https://[::1]:65536/",
        ] {
            check(wrong, &expect!["refused"]);
        }
    }

    #[test]
    fn pairs_are_read_as_baggage_has_them() {
        let read = |text: &str| format!("{:?}", pairs(text));
        expect![[r#"Ok([("a", "b"), ("c", "d,=%")])"#]].assert_eq(&read(" a = b ,, c=d%2C=%25"));
        expect![[r#"Ok([("a", "")])"#]].assert_eq(&read("a="));
        expect!["Ok([])"].assert_eq(&read(""));
        expect![[r#"Err("there is a part without a =")"#]].assert_eq(&read("a=b,c"));
        expect![[r#"Err("there is a part without a name")"#]].assert_eq(&read("=b"));
        expect![[r#"Err("a value has a % that stands for nothing; % itself is %25")"#]].assert_eq(&read("a=%zz"));
        assert!(pairs(&"a=b,".repeat(PAIRS_MAX)).is_ok() && pairs(&"a=b,".repeat(PAIRS_MAX + 1)).is_err());
        assert_eq!(check_headers("Authorization=Basic%20abc%3D"), Ok(()));
        for wrong in ["a b=c", "host=x", "Content-Length=1", "a=%0Ab", "a=b%0d"] {
            assert!(check_headers(wrong).is_err(), "{wrong}");
        }
    }
}
