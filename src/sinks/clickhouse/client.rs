//! Requests to ClickHouse's HTTP interface: where, as whom, how long. What is asked is for `sink` and `migrate`.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::answer::Answer;
use super::table::Version;
use crate::auth::https_connector;
use crate::config::{Clickhouse, SecretFile, trimmed};

/// Of an answer so much is read: what an exception is called stands at its beginning.
const ANSWER_MAX: usize = 64 * 1024;
/// Connections are closed before the server does it, which an older one does after 3 s.
const IDLE_MAX: Duration = Duration::from_millis(2500);
/// A password is not longer.
const PASSWORD_FILE_MAX: usize = 4096;

/// Asks one server as one user. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// `http://host:8123`.
    base: String,
    user: HeaderValue,
    key: Option<HeaderValue>,
    database: String,
    table: String,
    timeout: Duration,
}

impl Client {
    /// Says what is wrong with the files that the configuration names.
    pub(super) fn new(config: &Clickhouse) -> Result<Self, String> {
        let is_secure = config.url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https"));
        let ca_file = config.ca_file.as_deref().filter(|_| is_secure);
        let place = if ca_file.is_some() { "clickhouse." } else { "clickhouse.url: " };
        let connector = https_connector(ca_file, is_secure).map_err(|wrong| format!("{place}{wrong}"))?;
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(1)
            .build(connector);
        let user = HeaderValue::from_str(&config.user).map_err(|_| "clickhouse.user is no header's value")?;
        Ok(Self {
            http,
            base: config.url.trim_end_matches('/').to_owned(),
            user,
            key: password(config)?,
            database: config.database.clone(),
            table: config.table.clone(),
            timeout: config.timeout,
        })
    }

    /// Sends compressed rows. The token names them, for servers that know rows which they have already.
    pub(super) fn insert(
        &self,
        gzip: Bytes,
        token: u128,
        version: Version,
    ) -> impl Future<Output = Result<Answer, &'static str>> + use<> {
        let query = format!("INSERT INTO `{}`.`{}` FORMAT JSONEachRow", self.database, self.table);
        // A newer gateway may write fields that the table does not have yet; and times are as RFC 3339 has them.
        let mut settings =
            "&input_format_skip_unknown_fields=1&date_time_input_format=best_effort&log_queries=0".to_owned();
        if version.has_async_inserts() {
            // Rows are in the table when it answers.
            settings.push_str("&async_insert=0");
        }
        if version.has_deduplication() {
            // Writing to a String cannot fail.
            let _ = write!(settings, "&insert_deduplication_token={token:032x}");
        }
        self.ask(&format!("query={}{settings}", escaped(&query)), gzip, true)
    }

    /// Has a statement carried out.
    pub(super) fn query(&self, sql: &str) -> impl Future<Output = Result<Answer, &'static str>> + use<> {
        // As a body: an older server insists on one, and hyper says nothing of one that is empty.
        self.ask("log_queries=0", Bytes::copy_from_slice(sql.as_bytes()), false)
    }

    /// Dropping the future closes the connection, and what was asked may be done all the same.
    fn ask(
        &self,
        query: &str,
        body: Bytes,
        is_gzip: bool,
    ) -> impl Future<Output = Result<Answer, &'static str>> + use<> {
        let uri = format!("{}/?{query}", self.base).parse::<Uri>();
        let request = uri.map_err(hyper::http::Error::from).and_then(|uri| {
            let mut request = Request::post(uri)
                .header(header::USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION")))
                .header("X-ClickHouse-User", self.user.clone());
            if let Some(key) = &self.key {
                request = request.header("X-ClickHouse-Key", key.clone());
            }
            if is_gzip {
                request = request.header(header::CONTENT_ENCODING, "gzip");
            }
            request.body(Full::new(body))
        });
        let (http, timeout) = (self.http.clone(), self.timeout);
        async move {
            let request = request.map_err(|_| "unexpected")?;
            let answer = async {
                let response = http.request(request).await.map_err(|error| class(&error))?;
                let status = response.status().as_u16();
                let code = response.headers().get("x-clickhouse-exception-code");
                let code = code.and_then(|code| code.to_str().ok()?.parse().ok());
                // What is longer is no answer of ours, and its connection is not used again.
                let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
                let text = match body {
                    Ok(body) => body.to_bytes().to_vec(),
                    Err(error) if error.is::<http_body_util::LengthLimitError>() => b"longer than any answer".to_vec(),
                    Err(_) => return Err("broken"),
                };
                Ok(Answer { status, code, text })
            };
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err("timeout"))
        }
    }
}

/// The password, as the header has it.
fn password(config: &Clickhouse) -> Result<Option<HeaderValue>, String> {
    let read;
    let text = match (&config.password, &config.password_file) {
        (Some(password), _) => password.reveal(),
        (None, Some(path)) => {
            let wrong =
                |why: &dyn std::fmt::Display| format!("clickhouse.password_file is \"{}\": {why}", path.display());
            let file = SecretFile::read(path, PASSWORD_FILE_MAX).map_err(|error| wrong(&error))?;
            read = file.secret(path).map_err(|why| wrong(&why))?;
            trimmed(std::str::from_utf8(&read).map_err(|_| wrong(&"it is no text"))?)
        }
        (None, None) => return Ok(None),
    };
    let mut value = HeaderValue::from_str(text).map_err(|_| "clickhouse.password is no header's value")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A statement as a query string has it.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Why there is no answer, as a class.
fn class(error: &hyper_util::client::legacy::Error) -> &'static str {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return "tls";
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::ConnectionRefused => return "refused",
                io::ErrorKind::TimedOut => return "timeout",
                _ if is_of_tls(error) => return "tls",
                _ => {}
            }
        }
        cause = error.source();
    }
    if error.is_connect() && format!("{error:?}").contains("dns error") { "unresolved" } else { "broken" }
}

/// Whether rustls stands inside, perhaps in an error of the same kind: what holds one is passed over as its source.
fn is_of_tls(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>() || inner.downcast_ref::<io::Error>().is_some_and(is_of_tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_in_a_handshake_is_of_tls() {
        let tls = || io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        assert!(is_of_tls(&tls()) && is_of_tls(&io::Error::other(tls())));
        assert!(!is_of_tls(&io::Error::other("no")) && !is_of_tls(&io::ErrorKind::InvalidData.into()));
    }

    #[test]
    fn a_statement_in_a_url() {
        assert_eq!(escaped("SELECT `a` + 'é'"), "SELECT%20%60a%60%20%2B%20%27%C3%A9%27");
    }
}
