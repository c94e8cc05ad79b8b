//! A Prometheus of a test's own: on a free port of loopback, with its data in a folder that goes with it.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{client::Client, harness::until, process::has_tool};

const WAIT_MAX: Duration = Duration::from_secs(30);

/// A running server.
#[derive(Debug)]
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it with this configuration, and these rules beside it. Without the program the test is passed over, or fails
    /// if `SHARDGATE_TEST_TOOLS=required`.
    #[track_caller]
    pub(crate) fn start(config: &str, rules: (&str, &Path)) -> Option<Self> {
        if !has_tool("prometheus") {
            return None;
        }
        // A port that was free may be taken by the time the server binds it.
        for _ in 0..5 {
            let directory = TempDir::new().expect("a temporary directory");
            let at = |name: &str| directory.path().join(name);
            fs::write(at("prometheus.yml"), config).expect("written");
            fs::copy(rules.1, at(rules.0)).expect("copied");
            let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port is free");
            let mut command = Command::new("prometheus");
            command.arg("--config.file").arg(at("prometheus.yml")).arg("--storage.tsdb.path").arg(at("data"));
            command.arg(format!("--web.listen-address={address}")).args(["--log.level=warn"]);
            command.args(["--enable-feature=exemplar-storage"]);
            let log = File::create(at("log")).expect("a log");
            command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let child = command.spawn().expect("it runs");
            let mut server = Self { child, address, _directory: directory };
            let is_up = until(WAIT_MAX, "Prometheus is ready", || match server.child.try_wait().expect("it is ours") {
                Some(_) => Some(false),
                None => server.try_get("/-/ready").filter(|(status, _)| *status == 200).map(|_| true),
            });
            if is_up {
                return Some(server);
            }
        }
        panic!("Prometheus does not start");
    }

    /// Asks its API.
    #[track_caller]
    pub(crate) fn api(&self, path: &str, query: &str) -> Value {
        let escaped = query.bytes().fold(String::new(), |text, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text + &char::from(byte).to_string(),
            _ => text + &format!("%{byte:02x}"),
        });
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?query={escaped}") };
        let (status, answer) = self.try_get(&target).expect("it answers");
        assert_eq!(status, 200, "{query}: {answer}");
        answer["data"].clone()
    }

    fn try_get(&self, target: &str) -> Option<(u16, Value)> {
        let stream = std::net::TcpStream::connect(self.address).ok()?;
        let mut client = Client::new(stream);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address));
        let answer = client.try_read_response("GET").ok()?;
        Some((answer.status, serde_json::from_str(&answer.text()).unwrap_or(Value::Null)))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
