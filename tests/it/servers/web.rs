//! Real web servers of a test's own, each on a free port of loopback and killed with the test: nginx, and what node and
//! Python bring along. Each answers `admin` where it reads the request as one for `/admin/…`, and `other` elsewhere.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::harness::until;

const WAIT_MAX: Duration = Duration::from_secs(20);

/// Hosts below `in.test` have a server of their own, all of which is `admin`; `front.test` passes on what it makes of a path
/// to the first, as it is.
const NGINX: &str = "daemon off; master_process off; pid pid; error_log stderr;
events { worker_connections 128; }
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:PORT default_server;
        location /admin/ { return 200 admin; }
        location / { return 200 other; }
    }
    server {
        listen 127.0.0.1:PORT;
        server_name *.in.test;
        location / { return 200 admin; }
    }
    server {
        listen 127.0.0.1:PORT;
        server_name front.test;
        location / { proxy_pass http://127.0.0.1:PORT$uri; }
    }
}
";

/// The two usual ways to a path: URL first or escapes first.
const NODE: &str = r#"
const path = require("path");
const read = [
  (target) => path.posix.normalize(decodeURIComponent(new URL(target, "http://a").pathname)),
  (target) => new URL(decodeURIComponent(target), "http://a").pathname,
];
const server = require("http").createServer((request, answer) => {
  const isAdmin = read.some((read) => { try { return read(request.url).startsWith("/admin/"); } catch { return false; } });
  answer.end(isAdmin ? "admin" : "other");
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"#;

/// The way of `python3 -m http.server`, without its files.
const PYTHON: &str = r#"
import http.server
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def __init__(self, *arguments):
        super().__init__(*arguments, directory="/srv")
    def do_GET(self):
        body = b"admin" if self.translate_path(self.path).startswith("/srv/admin/") else b"other"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// A running server.
#[derive(Debug)]
pub(crate) struct WebServer {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl WebServer {
    /// Starts nginx. Without the program the test is passed over, or fails if `SHARDGATE_TEST_TOOLS=required`; so with
    /// the others.
    #[track_caller]
    pub(crate) fn nginx() -> Option<Self> {
        Self::nginx_by(NGINX)
    }

    /// The same, by this configuration: where it says `PORT` stands its own.
    #[track_caller]
    pub(crate) fn nginx_by(config: &str) -> Option<Self> {
        // A user's path may not lead to programs of the system.
        let installed = ["/usr/sbin/nginx", "nginx"].into_iter().find(|program| runs(program, "-v"));
        let program = require(installed, "nginx")?;
        // A port that was free may be taken by the time the server binds it.
        for _ in 0..5 {
            let directory = TempDir::new().expect("a temporary directory");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            drop(listener);
            let file = directory.path().join("nginx.conf");
            fs::write(&file, config.replace("PORT", &address.port().to_string())).expect("written");
            let mut command = Command::new(program);
            command.arg("-p").arg(directory.path()).arg("-c").arg(&file).args(["-e", "stderr"]);
            let mut child = command.stdin(Stdio::null()).stderr(log(directory.path())).spawn().expect("nginx runs");
            let is_up = until(WAIT_MAX, "nginx listens", || {
                if TcpStream::connect(address).is_ok() {
                    return Some(true);
                }
                child.try_wait().expect("it is ours").map(|_| false)
            });
            let server = Self { child, address, _directory: directory };
            if is_up {
                return Some(server);
            }
        }
        panic!("nginx does not start");
    }

    /// Starts node's server.
    #[track_caller]
    pub(crate) fn node() -> Option<Self> {
        let program = require(Some("node").filter(|program| runs(program, "--version")), "node")?;
        Some(Self::script(program, &["-e", NODE]))
    }

    /// Starts Python's server.
    #[track_caller]
    pub(crate) fn python() -> Option<Self> {
        Self::python_by(PYTHON, &[])
    }

    /// The same, by this script with its arguments, which tells the port that it got.
    #[track_caller]
    pub(crate) fn python_by(script: &str, arguments: &[&str]) -> Option<Self> {
        let program = require(Some("python3").filter(|program| runs(program, "--version")), "python3")?;
        Some(Self::script(program, &[&["-c", script], arguments].concat()))
    }

    /// Starts `openssl s_server` with these arguments.
    #[track_caller]
    pub(crate) fn openssl(arguments: &[&str]) -> Option<Self> {
        let program = require(Some("openssl").filter(|program| runs(program, "version")), "openssl")?;
        for _ in 0..5 {
            let directory = TempDir::new().expect("a temporary directory");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            drop(listener);
            let mut command = Command::new(program);
            command.args(["s_server", "-accept", &address.to_string()]).args(arguments).stdin(Stdio::null());
            command.stdout(log(directory.path())).stderr(Stdio::null());
            let mut child = command.spawn().expect("openssl runs");
            // It takes one connection after the other: one that says nothing would be the one that it waits for.
            let said = directory.path().join("log");
            let is_up = until(WAIT_MAX, "openssl listens", || {
                if fs::read_to_string(&said).is_ok_and(|said| said.contains("ACCEPT")) {
                    return Some(true);
                }
                child.try_wait().expect("it is ours").map(|_| false)
            });
            let server = Self { child, address, _directory: directory };
            if is_up {
                return Some(server);
            }
        }
        panic!("openssl does not start");
    }

    /// Has it stand still, as a process does that hangs.
    pub(crate) fn stand_still(&self) {
        let process = Pid::from_child(&self.child);
        rustix::process::kill_process(process, Signal::STOP).expect("it is ours");
    }

    /// Starts a program that tells the port that it got.
    #[track_caller]
    fn script(program: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(log(directory.path())).spawn().expect("it runs");
        let mut line = String::new();
        let mut told = BufReader::new(child.stdout.take().expect("it is piped"));
        told.read_line(&mut line).expect("it tells its port");
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{program} told {line:?}"));
        Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _directory: directory }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

pub(super) fn require<'p>(installed: Option<&'p str>, name: &str) -> Option<&'p str> {
    let is_required = std::env::var_os("SHARDGATE_TEST_TOOLS").is_some_and(|value| value == "required");
    assert!(
        installed.is_some() || !is_required,
        "{name} is not installed, and SHARDGATE_TEST_TOOLS says that it has to be"
    );
    if installed.is_none() {
        eprintln!("passed over: {name} is not installed");
    }
    installed
}

pub(super) fn log(directory: &Path) -> File {
    File::create(directory.join("log")).expect("a log")
}
