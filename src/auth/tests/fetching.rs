//! Key sets over the network: servers that are slow, wrong, huge, away and hostile; what is kept meanwhile, and when they
//! are asked again.

use super::*;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use tokio::task::LocalSet;

const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

/// What the server does with the next connection.
#[derive(Clone)]
enum Act {
    Answer(String),
    /// Accepts, and never answers until the peer leaves.
    Stall,
    /// Sends so many bytes of a body that has no end.
    Flood,
    Close,
}

/// A server of key sets that does as the test says, connection by connection. It ends with its channel.
struct Server {
    address: SocketAddr,
    acts: mpsc::Sender<Act>,
    requests: mpsc::Receiver<String>,
}

impl Server {
    fn start() -> Self {
        Self::start_at("127.0.0.1:0", None)
    }

    fn start_at(address: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let address = listener.local_addr().expect("bound");
        let (acts, todo) = mpsc::channel::<Act>();
        let (told, requests) = mpsc::channel();
        thread::spawn(move || {
            for act in todo {
                let Ok((stream, _)) = listener.accept() else { return };
                match &tls {
                    None => serve(stream, &act, &told),
                    Some(config) => {
                        let connection = ServerConnection::new(Arc::clone(config)).expect("a connection");
                        serve(StreamOwned::new(connection, stream), &act, &told);
                    }
                }
            }
        });
        Self { address, acts, requests }
    }

    fn will(&self, act: Act) {
        self.acts.send(act).expect("it runs");
    }

    fn will_answer_with(&self, kid: &str) {
        self.will(Act::Answer(answer("200 OK", &set(kid))));
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn serve(stream: impl Read + Write, act: &Act, told: &mpsc::Sender<String>) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    loop {
        let mut line = String::new();
        // A peer that does not trust us, or has no patience, leaves.
        if stream.read_line(&mut line).is_err() || line.is_empty() {
            let _ = told.send(String::new());
            return;
        }
        if line == "\r\n" {
            break;
        }
        request += &line;
    }
    let _ = told.send(request);
    match act {
        Act::Answer(text) => drop(stream.get_mut().write_all(text.as_bytes())),
        Act::Stall => drop(stream.read(&mut [0])),
        Act::Flood => {
            let _ = stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"keys\":[");
            while stream.get_mut().write_all(&[b' '; 4096]).is_ok() {}
        }
        Act::Close => {}
    }
    let _ = stream.get_mut().flush();
}

fn set(kid: &str) -> String {
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": kid }] }).to_string()
}

fn auth(url: &str, rules: &str) -> Auth {
    let text = format!(
        "[[auth.keys]]\nkid = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n[[auth.issuers]]\nissuer = \"id\"\njwks_url = \"{url}\"\n{rules}\n"
    );
    crate::config::resolve(Some((Path::new("f"), &text)), &BTreeMap::new()).expect("it is right").auth
}

fn kids(keys: &KeySet) -> Vec<String> {
    let issuer = keys.issuer("id").expect("configured");
    issuer.keys.iter().flatten().filter_map(|key| key.kid.as_deref().map(str::to_owned)).collect()
}

/// Runs the control thread's part.
fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test());
}

fn load(auth: &Auth) -> Keychain {
    Keychain::load(auth, None).expect("the configuration is right")
}

const QUICK: &str = "refresh_interval = \"1s\"\nunknown_key_cooldown = \"100ms\"";

#[test]
fn a_set_is_fetched_and_follows_its_issuer() {
    run(async || {
        let server = Server::start();
        let mut keychain = load(&auth(&format!("http://{}/keys?a=b", server.address), QUICK));
        assert_eq!(keychain.keys().away().collect::<Vec<_>>(), ["id"]);
        server.will_answer_with("one");
        assert_eq!(kids(&*keychain.changed().await), ["one"]);
        let request = server.requests.recv().expect("asked").to_ascii_lowercase();
        assert!(request.starts_with("get /keys?a=b http/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {}\r\n", server.address)), "{request}");
        // The refresh brings the next one by itself; a set that stays is no news.
        server.will_answer_with("one");
        server.will_answer_with("two");
        assert_eq!(kids(&*keychain.changed().await), ["two"]);
        assert_eq!(keychain.fetch_counts(), FetchCounts { good: 3, failed: 0 });
    });
}

#[test]
fn an_unknown_key_fetches_at_once_and_not_twice() {
    run(async || {
        let server = Server::start();
        let rules = "refresh_interval = \"1d\"\nunknown_key_cooldown = \"300ms\"";
        let mut keychain = load(&auth(&format!("http://{}/", server.address), rules));
        let began = tokio::time::Instant::now();
        server.will_answer_with("one");
        keychain.changed().await;
        server.will_answer_with("two");
        for _ in 0..100 {
            keychain.want("id");
            keychain.want("nobody");
        }
        assert_eq!(kids(&*keychain.changed().await), ["two"]);
        assert!(began.elapsed() >= Duration::from_millis(200), "not before the cool-down");
        assert_eq!(keychain.fetch_counts().good, 2);
    });
}

#[test]
fn whatever_goes_wrong_the_last_good_set_stays() {
    run(async || {
        let server = Server::start();
        let mut keychain = load(&auth(&format!("http://{}/", server.address), QUICK));
        server.will_answer_with("good");
        keychain.changed().await;
        let bad = [
            Act::Close,
            Act::Flood,
            Act::Answer(answer("302 Found\r\nlocation: http://127.0.0.1:1/keys", "")),
            Act::Answer(answer("500 Oops", &set("bad"))),
            Act::Answer(answer("204 No Content", "")),
        ];
        for act in bad {
            server.will(act);
        }
        server.will(Act::Answer(answer("200 OK", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\",\"kid\":\"bad\"}]}")));
        let mut failed = 0;
        while failed < 6 {
            // Nothing changes; so the wait is for the fetches, which are told by the server.
            tokio::select! {
                keys = keychain.changed() => panic!("{:?}", kids(&keys)),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            failed = keychain.fetch_counts().failed;
            assert_eq!(kids(&keychain.keys()), ["good"]);
        }
        server.will_answer_with("better");
        assert_eq!(kids(&*keychain.changed().await), ["better"]);
    });
}

#[test]
fn a_server_that_never_answers_is_left() {
    run(async || {
        let server = Server::start();
        let mut keychain = load(&auth(&format!("http://{}/", server.address), QUICK));
        server.will(Act::Stall);
        server.will_answer_with("late");
        assert_eq!(kids(&*keychain.changed().await), ["late"]);
        assert_eq!(keychain.fetch_counts(), FetchCounts { good: 1, failed: 1 });
    });
}

#[test]
fn a_reload_keeps_what_was_fetched_from_the_same_place() {
    run(async || {
        let server = Server::start();
        let url = format!("http://{}/", server.address);
        let mut keychain = load(&auth(&url, "refresh_interval = \"1d\""));
        server.will_answer_with("one");
        keychain.changed().await;
        reload(&mut keychain, &auth(&url, "refresh_interval = \"1d\"\naudiences = [\"api\"]"), None).expect("right");
        assert_eq!(kids(&keychain.keys()), ["one"]);
        let mut wrong = auth(&url, "");
        wrong.keys[0].secret = Some("short".to_owned().into());
        assert!(reload(&mut keychain, &wrong, None).is_err());
        wrong = auth(&url, "");
        wrong.issuers[0].jwks_url = None;
        wrong.issuers[0].jwks_file = Some("/nowhere/keys.json".into());
        let error = reload(&mut keychain, &wrong, None).expect_err("there is no such file").to_string();
        assert!(error.starts_with("auth.issuers[0].jwks_file is \"/nowhere/keys.json\": "), "{error}");
        assert_eq!(kids(&keychain.keys()), ["one"], "a bad configuration changes nothing");
        reload(&mut keychain, &auth(&format!("{url}elsewhere"), ""), None).expect("right");
        assert_eq!(keychain.keys().away().collect::<Vec<_>>(), ["id"], "keys from elsewhere are to come from there");
    });
}

/// A server with the certificate of the tests' own authority.
fn tls() -> Arc<ServerConfig> {
    let certificates = CertificateDer::pem_file_iter(file("server.pem")).expect("a file");
    let certificates = certificates.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(file("server.key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    Arc::new(config.with_no_client_auth().with_single_cert(certificates, key).expect("a key that fits"))
}

#[test]
fn https_servers_are_checked() {
    run(async || {
        let server = Server::start_at("127.0.0.1:0", Some(tls()));
        let trusted = format!("ca_file = \"{}\"\n{QUICK}", file("ca.pem").display());
        for host in ["localhost", "127.0.0.1"] {
            let mut keychain = load(&auth(&format!("https://{host}:{}/", server.address.port()), &trusted));
            server.will_answer_with(host);
            assert_eq!(kids(&*keychain.changed().await), [host]);
        }
        // The name is not the certificate's; and the system does not know the authority.
        let other = Server::start_at("127.0.0.2:0", Some(tls()));
        let port = server.address.port();
        for (url, rules, server) in [
            (format!("https://{}/", other.address), trusted.as_str(), &other),
            (format!("https://localhost:{port}/"), "refresh_interval = \"1d\"", &server),
        ] {
            let Ok(mut keychain) = Keychain::load(&auth(&url, rules), None) else {
                continue; // The system has no certificates at all.
            };
            server.will(Act::Answer(answer("200 OK", &set("never"))));
            while keychain.fetch_counts().failed == 0 {
                tokio::select! {
                    keys = keychain.changed() => panic!("{:?}", kids(&keys)),
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        }
        let missing = auth("https://localhost/", "ca_file = \"/nowhere/ca.pem\"");
        assert!(Keychain::load(&missing, None).is_err());
        let no_certificate = auth("https://localhost/", &format!("ca_file = \"{}\"", file("p256.pub.pem").display()));
        let error = Keychain::load(&no_certificate, None).expect_err("it is a key").to_string();
        assert!(error.contains("there is no certificate in it; write the PEM file"), "{error}");
    });
}
