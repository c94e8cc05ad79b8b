//! One GET of `/api/state`: bounded in size and time.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::text;
use crate::{
    admin::state::State,
    certificates::{provider, read_authorities},
};

/// No document of ours comes near.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// For connecting and for the answer together.
const PATIENCE: Duration = Duration::from_secs(5);
/// So much of a refusal is told, in characters.
const REASON_MAX: usize = 300;

/// Where it is asked.
pub(super) struct Source {
    authority: String,
    host: String,
    port: u16,
    /// How, where it is over TLS.
    tls: Option<Tls>,
    authorization: Option<HeaderValue>,
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// With the certificates of this file to check the listener's, or those of the system.
    fn new(host: &str, ca: Option<&Path>) -> anyhow::Result<Self> {
        let given = ca.map(|file| read_authorities(file).map_err(anyhow::Error::msg)).transpose();
        let roots = given.context("--ca cannot be used")?.unwrap_or_else(|| {
            let mut roots = RootCertStore::empty();
            // Those that cannot be used check nothing.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        });
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("no certificate is for {host:?}"))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

impl Source {
    pub(super) fn new(url: &str, ca: Option<&Path>) -> anyhow::Result<Self> {
        let right = "write it as http://host:port or https://host:port, like http://127.0.0.1:3001";
        let uri: Uri = url.parse().ok().with_context(|| format!("{url:?} is no URL; {right}"))?;
        let Some(authority) = uri.authority().filter(|authority| !authority.as_str().contains('@')) else {
            bail!("{url:?} names no host; {right}");
        };
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
        if scheme.is_none() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            bail!("{url:?} is not the URL of an operator's listener; {right}");
        }
        let is_tls = scheme == Some("https");
        if ca.is_some() && !is_tls {
            bail!("--ca is for listeners that speak TLS, and {url:?} is none: write it as https://host:port");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let tls = is_tls.then(|| Tls::new(&host, ca)).transpose()?;
        Ok(Self { authority: authority.to_string(), host, port, tls, authorization: None })
    }

    /// Shows this token from now on.
    pub(super) fn authorise(&mut self, token: &[u8]) -> anyhow::Result<()> {
        let field = [b"Bearer ", token.trim_ascii()].concat();
        let mut field = HeaderValue::from_bytes(&field).context("it has characters that no token has")?;
        field.set_sensitive(true);
        self.authorization = Some(field);
        Ok(())
    }

    /// Whom it asks.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// How things are.
    pub(super) async fn ask(&self) -> anyhow::Result<State> {
        let asked = timeout(PATIENCE, self.get()).await;
        asked.with_context(|| format!("{} does not answer", self.authority))?
    }

    async fn get(&self) -> anyhow::Result<State> {
        let connected = TcpStream::connect((&*self.host, self.port)).await;
        let stream = connected.with_context(|| format!("{} cannot be reached", self.authority))?;
        let Some(Tls { connector, name }) = &self.tls else { return self.get_by(stream).await };
        let stream = connector.connect(name.clone(), stream).await;
        self.get_by(stream.with_context(|| format!("there is no TLS with {}", self.authority))?).await
    }

    async fn get_by(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<State> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::get("/api/state").header(HOST, &self.authority).header(ACCEPT, "application/json");
        request = request.header(USER_AGENT, concat!("shardgate/", env!("CARGO_PKG_VERSION"), " (top)"));
        if let Some(token) = &self.authorization {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.header(CONNECTION, "close").body(Empty::<Bytes>::new())?;
        let answered = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            anyhow::Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
        };
        // What ends the connection is told to who waits for the answer.
        let (answered, _) = tokio::join!(answered, connection);
        let (status, body) = answered.with_context(|| format!("{} gave no whole answer", self.authority))?;
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED if self.authorization.is_none() => {
                bail!("{} asks for a token: --token-file FILE", self.authority)
            }
            status => bail!("{} answers {status}{}", self.authority, reason(&body)),
        }
        serde_json::from_slice(&body).with_context(|| format!("what {} says is no state of a gateway", self.authority))
    }
}

/// What a refusal says of itself.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let problem = serde_json::from_str::<serde_json::Value>(&text).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str()).unwrap_or(&text);
    let detail = text::harmless(detail.trim(), REASON_MAX);
    if detail.is_empty() { detail } else { format!(": {detail}") }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_refusal_says_why_and_steers_no_terminal() {
        for (body, said) in [
            ("", ""),
            ("no such host\n", ": no such host"),
            (r#"{"status":403,"detail":"no token\u001b[2J is configured"}"#, ": no token[2J is configured"),
            ("\u{1b}]0;mine\u{7}gone", ": ]0;minegone"),
        ] {
            assert_eq!(reason(body.as_bytes()), said);
        }
        assert_eq!(reason(&[b'x'; 1000]).chars().count(), REASON_MAX + 2);
    }

    #[test]
    fn only_the_url_of_a_listener_is_taken() {
        let urls = [
            "http://127.0.0.1:3001",
            "http://localhost:3001/",
            "http://[::1]:3001",
            "http://gate.internal",
            "127.0.0.1:3001",
            "https://127.0.0.1:3001",
            "https://gate.internal",
            "https://gate_.-",
            "ftp://127.0.0.1:3001",
            "http://a:b@127.0.0.1:3001",
            "http://127.0.0.1:3001/api/state",
            "http://",
            "",
        ];
        let told = urls.map(|url| match Source::new(url, None) {
            Ok(Source { authority, host, port, .. }) => format!("{authority}: {host} {port}\n"),
            Err(error) => format!("{error}\n"),
        });
        expect![[r#"
            127.0.0.1:3001: 127.0.0.1 3001
            localhost:3001: localhost 3001
            [::1]:3001: ::1 3001
            gate.internal: gate.internal 80
            "127.0.0.1:3001" is not the URL of an operator's listener; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
            127.0.0.1:3001: 127.0.0.1 3001
            gate.internal: gate.internal 443
            no certificate is for "gate_.-"
            "ftp://127.0.0.1:3001" is not the URL of an operator's listener; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
            "http://a:b@127.0.0.1:3001" names no host; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
            "http://127.0.0.1:3001/api/state" is not the URL of an operator's listener; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
            "http://" is no URL; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
            "" is no URL; write it as http://host:port or https://host:port, like http://127.0.0.1:3001
        "#]].assert_eq(&told.concat());
    }
}
