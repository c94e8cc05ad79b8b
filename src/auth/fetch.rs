//! Fetching a key set over HTTP or HTTPS: one GET, in a limited time, of a limited size, without following anybody
//! elsewhere. When that is done is for `schedule`.

use super::jwk::{JwkSet, SET_BYTES_MAX, SetFault};
use crate::certificates::read_authorities;
use crate::config::{Algorithm, TokenIssuer};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// From the connection to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches the key set of one issuer. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    uri: Uri,
    algorithms: Vec<Algorithm>,
}

impl Fetcher {
    /// A fetcher for an issuer with a `jwks_url`; says what is wrong with its certificates.
    pub(super) fn new(issuer: &TokenIssuer, url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        let connector = https_connector(issuer.ca_file.as_deref(), uri.scheme_str() == Some("https"))?;
        // A connection once in ten minutes is not worth keeping.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, uri, algorithms: issuer.algorithms.clone() })
    }

    /// Fetches and reads the set. Dropping the future closes the connection.
    pub(super) async fn fetch(&self) -> Result<JwkSet, String> {
        let body = tokio::time::timeout(FETCH_TIMEOUT, self.get());
        let body = body.await.map_err(|_| format!("it took longer than {} s", FETCH_TIMEOUT.as_secs()))??;
        JwkSet::parse(&body, &self.algorithms).map_err(|fault: SetFault| fault.to_string())
    }

    async fn get(&self) -> Result<Bytes, String> {
        let request = Request::get(self.uri.clone())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| chain(&error))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(format!(
                "it answered {}; redirects are not followed, so configure where they lead",
                status.as_u16()
            ));
        }
        if status != StatusCode::OK {
            return Err(format!("it answered {}", status.as_u16()));
        }
        let body = Limited::new(response.into_body(), SET_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                "its answer is larger than 512KiB".to_owned()
            } else {
                chain(&*error)
            }
        })
    }
}

/// Connects to an HTTP server, by TLS if it is one of those. Says what is wrong with the certificates of `ca_file`, or with
/// the system's where it is not given.
pub fn https_connector(ca_file: Option<&Path>, is_https: bool) -> Result<HttpsConnector<HttpConnector>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca_file {
        roots = read_authorities(file).map_err(|wrong| format!("ca_file is {wrong}"))?;
    } else if is_https {
        // What cannot be read of the system's is no reason not to trust the rest.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(
                "the system has no certificates to check its server with; install them or set ca_file".to_owned()
            );
        }
    }
    let provider = crate::certificates::provider();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp))
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
