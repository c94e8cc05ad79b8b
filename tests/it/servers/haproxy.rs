//! HAProxy as a balancer that passes connections on and tells whose they are.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::web::{log, require, runs};
use crate::harness::until;

const WAIT_MAX: Duration = Duration::from_secs(20);

/// It looks itself whether its server is there, with a header of its own.
const CONFIG: &str = "global
    maxconn 100
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:PORT
    server gateway SERVER OPTIONS check inter 100ms
";

/// A running balancer, killed with the test.
#[derive(Debug)]
pub(crate) struct Haproxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Haproxy {
    /// Starts it before this server, which it tells of clients as these options of its say. Without the program the test is
    /// passed over, or fails if `SHARDGATE_TEST_TOOLS=required`.
    #[track_caller]
    pub(crate) fn start(server: SocketAddr, options: &str) -> Option<Self> {
        // A user's path may not lead to programs of the system.
        let installed = ["/usr/sbin/haproxy", "haproxy"].into_iter().find(|program| runs(program, "-v"));
        let program = require(installed, "haproxy")?;
        // A port that was free may be taken by the time the balancer binds it.
        for _ in 0..5 {
            let directory = TempDir::new().expect("a temporary directory");
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            drop(listener);
            let config = CONFIG.replace("PORT", &address.port().to_string()).replace("SERVER", &server.to_string());
            let file = directory.path().join("haproxy.cfg");
            fs::write(&file, config.replace("OPTIONS", options)).expect("written");
            let mut command = Command::new(program);
            command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
            let mut child = command.stderr(log(directory.path())).spawn().expect("haproxy runs");
            let is_up = until(WAIT_MAX, "haproxy listens", || {
                if TcpStream::connect(address).is_ok() {
                    return Some(true);
                }
                child.try_wait().expect("it is ours").map(|_| false)
            });
            let balancer = Self { child, address, _directory: directory };
            if is_up {
                return Some(balancer);
            }
        }
        panic!("haproxy does not start");
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
