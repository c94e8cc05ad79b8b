//! From the options to the requests: reads URLs, fields and tokens, refuses strangers' machines, builds every head
//! once. Sending them is `http`'s.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use anyhow::{Context, ensure};

use crate::http::Requests;
use crate::options::Common;
use crate::stream::Tls;

/// Heads built beforehand; past this, combinations of URLs and tokens repeat early.
const HEADS_MAX: usize = 65_536;
/// A body above this is sent by repeating one piece.
const PIECE_BYTES: u64 = 256 * 1024;

/// Builds the requests that the options describe.
pub(crate) fn requests(common: &Common) -> anyhow::Result<Requests> {
    // One empty token stands for none.
    let tokens = common.tokens.as_deref().map_or_else(|| Ok(vec![String::new()]), read_tokens)?;
    requests_with(common, &tokens)
}

/// Builds the requests that the options describe, with these tokens in turn.
pub(crate) fn requests_with(common: &Common, tokens: &[String]) -> anyhow::Result<Requests> {
    let urls = common.urls.iter().map(|url| Url::split(url)).collect::<anyhow::Result<Vec<_>>>()?;
    let &Url { is_secure, authority, .. } = urls.first().context("no URL")?;
    for other in &urls {
        ensure!(
            (other.is_secure, other.authority) == (is_secure, authority),
            "--url names {} beside {authority}; all must name the same scheme, host and port",
            other.authority
        );
    }
    let address = urls[0].resolve(common.allow_remote)?;
    let tls = is_secure.then(|| Tls::new(authority, common.tls)).transpose()?;
    ensure!(tls.is_some() || !common.resume, "--resume takes sessions of TLS up again; give a --url with https://");
    let method = common.method.as_deref().unwrap_or(if common.body_bytes > 0 { "POST" } else { "GET" });
    ensure!(
        !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
        "--method {method:?} is not a method; give one like GET or POST"
    );
    let fields = fields(common, method)?;
    let count = least_common_multiple(urls.len(), tokens.len()).min(HEADS_MAX);
    let heads = (0..count).map(|nth| {
        let path = urls[nth % urls.len()].path;
        let bearer = match tokens[nth % tokens.len()].as_str() {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{fields}{bearer}\r\n").into_bytes()
    });
    Ok(Requests {
        address,
        tls,
        resumes: common.resume,
        closes: common.headers.iter().any(|header| asks_to_close(header)),
        heads: heads.collect(),
        body: body(common.body_bytes),
        body_bytes: common.body_bytes,
        to_head: method == "HEAD",
    })
}

/// Heads that no server should take: one field without end, or fields without end.
pub(crate) fn bombs(common: &Common, head_bytes: u64) -> anyhow::Result<Requests> {
    let mut requests = requests(common)?;
    let size = usize::try_from(head_bytes).unwrap_or(usize::MAX).min(64 << 20);
    let bomb = |head: &Vec<u8>, filling: &[u8]| {
        let mut bomb = head[..head.len() - 2].to_vec();
        while bomb.len() < size {
            bomb.extend_from_slice(filling);
        }
        bomb.extend_from_slice(b"\r\n\r\n");
        bomb
    };
    let one_field = |head: &Vec<u8>| bomb(&[&head[..head.len() - 2], b"X-Bomb: \r\n"].concat(), &[b'a'; 64]);
    requests.heads = requests.heads.iter().flat_map(|head| [one_field(head), bomb(head, b"X-Bomb: a\r\n")]).collect();
    Ok(requests)
}

/// Log-ins of these users in turn, each request with its body.
pub(crate) fn logins(common: &Common, users: &Path, count: u32) -> anyhow::Result<Requests> {
    let mut common = common.clone();
    common.method = Some("POST".to_owned());
    let text = std::fs::read_to_string(users).with_context(|| format!("--users {}", users.display()))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let users = lines.map(|line| {
        let (email, password) = line.trim().split_once(char::is_whitespace)?;
        Some(login_body(email, password.trim_start()))
    });
    let bodies = users.collect::<Option<Vec<_>>>().context("--users wants an e-mail and a password on each line")?;
    ensure!(!bodies.is_empty(), "--users has no user; it wants an e-mail and a password on each line");
    let mut requests = requests(&common)?;
    let no_length = b"Content-Length: 0\r\n";
    let at = memchr::memmem::find(&requests.heads[0], no_length).context("a head has a length")?;
    let (before, after) = (&requests.heads[0][..at], &requests.heads[0][at + no_length.len()..]);
    let heads = (0..usize::try_from(count)?).map(|nth| {
        let body = &bodies[nth % bodies.len()];
        [before, format!("Content-Length: {}\r\n", body.len()).as_bytes(), after, body.as_bytes()].concat()
    });
    requests.heads = heads.collect();
    Ok(requests)
}

/// What `POST /auth/login` takes.
pub(crate) fn login_body(email: &str, password: &str) -> String {
    serde_json::json!({"email": email, "password": password}).to_string()
}

/// `http://host:port/path?query` in its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Url<'url> {
    /// It begins with `https://`.
    pub(crate) is_secure: bool,
    /// `host:port`
    pub(crate) authority: &'url str,
    /// `/path?query`
    pub(crate) path: &'url str,
}

impl<'url> Url<'url> {
    pub(crate) fn split(url: &'url str) -> anyhow::Result<Self> {
        let secure = url.strip_prefix("https://");
        let rest = secure.or_else(|| url.strip_prefix("http://"));
        let rest = rest.with_context(|| format!("--url {url} does not begin with http:// or https://"))?;
        ensure!(
            rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'),
            "--url {url:?} has characters that a URL has not"
        );
        let (authority, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
        ensure!(
            !authority.is_empty() && !authority.contains('@'),
            "--url {url} should be like http://127.0.0.1:3000/path"
        );
        ensure!(path.starts_with('/'), "--url {url} has a query without a path");
        Ok(Self { is_secure: secure.is_some(), authority, path })
    }

    pub(crate) fn resolve(&self, allow_remote: bool) -> anyhow::Result<SocketAddr> {
        resolve_with(self.authority, if self.is_secure { 443 } else { 80 }, allow_remote)
    }
}

/// A URL without TLS → (`host:port`, `/path?query`).
pub(crate) fn split_url(url: &str) -> anyhow::Result<(&str, &str)> {
    let Url { is_secure, authority, path } = Url::split(url)?;
    ensure!(!is_secure, "--url {url} does not begin with http://");
    Ok((authority, path))
}

pub(crate) fn resolve(authority: &str, allow_remote: bool) -> anyhow::Result<SocketAddr> {
    resolve_with(authority, 80, allow_remote)
}

fn resolve_with(authority: &str, port: u16, allow_remote: bool) -> anyhow::Result<SocketAddr> {
    let port_is_named = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let with_port = if port_is_named { authority.to_owned() } else { format!("{authority}:{port}") };
    let addresses = with_port.to_socket_addrs().with_context(|| format!("{authority} has no address"))?;
    let addresses = addresses.collect::<Vec<_>>();
    if !allow_remote {
        let remote = addresses.iter().find(|address| !address.ip().is_loopback());
        ensure!(
            remote.is_none(),
            "{authority} is another machine; a load test may break it, so only loopback is loaded unless --allow-remote says otherwise"
        );
    }
    addresses.first().copied().with_context(|| format!("{authority} has no address"))
}

fn asks_to_close(header: &str) -> bool {
    let Some((name, value)) = header.split_once(':') else { return false };
    name.eq_ignore_ascii_case("connection") && value.trim().eq_ignore_ascii_case("close")
}

fn fields(common: &Common, method: &str) -> anyhow::Result<String> {
    let mut fields = String::from("User-Agent: shardgate-loadtest\r\nAccept: */*\r\n");
    if common.body_bytes > 0 || matches!(method, "POST" | "PUT" | "PATCH") {
        fields.push_str("Content-Type: application/json\r\nContent-Length: ");
        fields.push_str(&common.body_bytes.to_string());
        fields.push_str("\r\n");
    }
    for header in &common.headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("--header {header:?} should be like `Name: value`"))?;
        let name_is_token = name.bytes().all(|byte| byte.is_ascii_graphic() && !b"()<>@,;\\\"/[]?={}".contains(&byte));
        ensure!(!name.is_empty() && name_is_token, "--header {header:?} has a name that is not one");
        ensure!(!value.contains(['\r', '\n', '\0']), "--header {header:?} has a line break in its value");
        for part in [name, ": ", value.trim(), "\r\n"] {
            fields.push_str(part);
        }
    }
    Ok(fields)
}

/// The tokens of a file, one a line.
pub(crate) fn read_tokens(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("--tokens {}", file.display()))?;
    let tokens = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    ensure!(!tokens.is_empty(), "--tokens {} has no token; it wants one a line", file.display());
    let clean = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(tokens.iter().all(clean), "--tokens {} has a token with characters that no token has", file.display());
    Ok(tokens)
}

/// A JSON body of exactly this size, or the piece of which a big one is made.
fn body(size: u64) -> Vec<u8> {
    let piece = usize::try_from(size.min(PIECE_BYTES)).unwrap_or(0);
    let mut body = vec![b'1'; piece]; // too small for an object: a number
    if size <= PIECE_BYTES && piece >= 10 {
        body.fill(b'x');
        body[..8].copy_from_slice(b"{\"pad\":\"");
        body[piece - 2..].copy_from_slice(b"\"}");
    }
    body
}

fn least_common_multiple(one: usize, other: usize) -> usize {
    let (mut high, mut low) = (one, other);
    while low > 0 {
        (high, low) = (low, high % low);
    }
    (one / high.max(1)).saturating_mul(other)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::{Cli, Command};

    fn build(arguments: &[&str]) -> anyhow::Result<Requests> {
        let line = ["shardgate-loadtest", "closed"].iter().chain(arguments);
        let Command::Closed(closed) = Cli::try_parse_from(line)?.command else { unreachable!("closed was asked for") };
        requests(&closed.common)
    }

    fn refusal(arguments: &[&str]) -> String {
        build(arguments).err().map_or_else(|| "accepted".to_owned(), |error| error.to_string())
    }

    #[test]
    fn a_head_has_what_the_options_say() {
        let requests = build(&["--url", "http://127.0.0.1:81/a?b", "--header", "X-Any:  1 ", "--body-bytes", "12"]);
        let requests = requests.expect("valid");
        assert_eq!(
            String::from_utf8_lossy(&requests.heads[0]),
            "POST /a?b HTTP/1.1\r\nHost: 127.0.0.1:81\r\nUser-Agent: shardgate-loadtest\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: 12\r\nX-Any: 1\r\n\r\n"
        );
        assert_eq!(requests.body, b"{\"pad\":\"xx\"}");
        assert_eq!(requests.address.to_string(), "127.0.0.1:81");
    }

    #[test]
    fn urls_are_used_in_turn() {
        let requests = build(&["--url", "http://127.0.0.1:81/a", "--url", "http://127.0.0.1:81/b"]).expect("valid");
        assert_eq!(requests.heads.len(), 2);
        assert!(requests.heads[1].starts_with(b"GET /b "));
    }

    #[test]
    fn strangers_are_refused() {
        let refused = refusal(&["--url", "http://192.0.2.1:80/"]);
        assert!(refused.contains("--allow-remote"), "{refused}");
        assert!(build(&["--url", "http://192.0.2.1:80/", "--allow-remote"]).is_ok());
        assert!(build(&["--url", "http://[::1]:80/"]).is_ok());
        assert!(build(&["--url", "http://127.0.0.9/"]).is_ok());
    }

    #[test]
    fn what_would_break_a_request_is_refused() {
        for arguments in [
            ["--url", "ftp://127.0.0.1/"],
            ["--url", "http://127.0.0.1/a b"],
            ["--url", "http://user@127.0.0.1/"],
            ["--url", "http://127.0.0.1?query"],
            ["--header", "no colon"],
            ["--header", "Na me: x"],
            ["--header", "X: a\r\nY: b"],
            ["--method", "GE T"],
            ["--tokens", "/nonexistent"],
        ] {
            assert_ne!(refusal(&arguments), "accepted", "{arguments:?}");
        }
        assert!(refusal(&["--resume"]).contains("https://"));
        assert_eq!(refusal(&["--resume", "--url", "https://127.0.0.1:1/"]), "accepted");
        for other in ["http://127.0.0.1:2/", "https://127.0.0.1:1/"] {
            assert!(
                refusal(&["--url", "http://127.0.0.1:1/", "--url", other]).contains("the same scheme, host"),
                "{other}"
            );
        }
    }

    #[test]
    fn heads_come_round_together() {
        assert_eq!(least_common_multiple(3, 1000), 3000);
        assert_eq!(least_common_multiple(4, 6), 12);
        assert_eq!(least_common_multiple(1, 1), 1);
    }
}
