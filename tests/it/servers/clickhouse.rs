//! A real ClickHouse of a test's own: in a directory of its own, on free ports of loopback, and ended with the test. It can be
//! killed, paused and started again. Any version from Debian's 18.16 on will do.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    client::{Client, Response},
    harness::until,
};

const WAIT_MAX: Duration = Duration::from_mins(1);

/// The password of its one user.
pub(crate) const PASSWORD: &str = "an example of a ClickHouse password";

const CONFIG: &str = "<yandex>
<logger><level>warning</level><log>DIRECTORY/log</log><errorlog>DIRECTORY/errors</errorlog></logger>
<http_port>HTTP_PORT</http_port><tcp_port>TCP_PORT</tcp_port><listen_host>127.0.0.1</listen_host>
<path>DIRECTORY/data/</path><tmp_path>DIRECTORY/tmp/</tmp_path><users_config>users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
<mark_cache_size>5368709</mark_cache_size><timezone>UTC</timezone>
</yandex>";

const USERS: &str = "<yandex>
<profiles><default></default></profiles><quotas><default></default></quotas>
<users><default><password>PASSWORD</password><networks><ip>127.0.0.0/8</ip></networks>
<profile>default</profile><quota>default</quota></default></users>
</yandex>";

/// A running server, unless it was killed.
#[derive(Debug)]
pub(crate) struct ClickhouseServer {
    child: Child,
    port: u16,
    directory: TempDir,
}

impl ClickhouseServer {
    /// Starts it. Without the program the test is passed over, or fails if `SHARDGATE_TEST_TOOLS=required`, unless
    /// `SHARDGATE_TEST_WITHOUT=clickhouse-server` says that there is none to be had.
    #[track_caller]
    pub(crate) fn start() -> Option<Self> {
        let is_there = Command::new("clickhouse-server").arg("--help").output().is_ok();
        if !is_there {
            let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|found| found == value);
            let is_required =
                is("SHARDGATE_TEST_TOOLS", "required") && !is("SHARDGATE_TEST_WITHOUT", "clickhouse-server");
            assert!(
                !is_required,
                "clickhouse-server is not installed, and SHARDGATE_TEST_TOOLS says that it has to be"
            );
            eprintln!("passed over: clickhouse-server is not installed");
            return None;
        }
        let directory = TempDir::new().expect("a temporary directory");
        fs::write(directory.path().join("users.xml"), USERS.replace("PASSWORD", PASSWORD)).expect("written");
        // A port that was free may be taken by the time the server binds it.
        for _ in 0..5 {
            let port = free_port();
            let path = directory.path().display().to_string();
            let config = CONFIG.replace("DIRECTORY", &path);
            let config = config.replace("HTTP_PORT", &port.to_string()).replace("TCP_PORT", &free_port().to_string());
            fs::write(directory.path().join("config.xml"), config).expect("written");
            let mut child = spawn(&directory);
            if is_up(&mut child, port) {
                return Some(Self { child, port, directory });
            }
        }
        panic!(
            "ClickHouse does not start: {}",
            fs::read_to_string(directory.path().join("errors")).unwrap_or_default()
        );
    }

    /// What a configuration says of it.
    pub(crate) fn config(&self) -> String {
        format!(
            "[clickhouse]\nenabled = true\nurl = \"http://127.0.0.1:{}\"\npassword = \"{PASSWORD}\"\n\
             batch_interval = \"50ms\"\ntimeout = \"500ms\"\n",
            self.port
        )
    }

    /// Ends it, and all its connections, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Starts it again after it was killed, on the same port and with what it kept.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        until(WAIT_MAX, "ClickHouse starts again", || {
            self.child = spawn(&self.directory);
            is_up(&mut self.child, self.port).then_some(())
        });
    }

    /// Makes it hang: connections are taken by the kernel, and nothing is answered.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("it runs");
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("it runs");
    }

    /// Has a statement carried out, and returns what comes back.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) -> String {
        let answer = ask(self.port, sql);
        assert_eq!(answer.status, 200, "{sql}: {}", answer.text());
        answer.text().trim_end().to_owned()
    }

    /// Rows of the table, counted once, and how often they were inserted.
    #[track_caller]
    pub(crate) fn rows(&self) -> (u64, u64) {
        let told = self.sql("SELECT uniqExact(node, shard, line), count() FROM shardgate_access");
        let (unique, all) = told.split_once('\t').expect("two numbers");
        (unique.parse().expect("a number"), all.parse().expect("a number"))
    }
}

impl Drop for ClickhouseServer {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(port: u16, sql: &str) -> Response {
    let mut client = Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).with_patience(WAIT_MAX);
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-clickhouse-user: default\r\n\
         x-clickhouse-key: {PASSWORD}\r\ncontent-length: {}\r\n\r\n{sql}",
        sql.len()
    ));
    client.read_response()
}

/// Waits until it answers; false if it ended instead.
fn is_up(child: &mut Child, port: u16) -> bool {
    until(WAIT_MAX, "ClickHouse answers", || {
        if std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Some(ask(port, "SELECT 1").status == 200);
        }
        child.try_wait().expect("it is ours").map(|_| false)
    })
}

fn spawn(directory: &TempDir) -> Child {
    let output = || File::options().create(true).append(true).open(directory.path().join("output")).expect("a file");
    let mut command = Command::new("clickhouse-server");
    command.arg(format!("--config-file={}", directory.path().join("config.xml").display()));
    command.current_dir(directory.path()).stdin(Stdio::null()).stdout(output()).stderr(output());
    command.spawn().expect("it is installed")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
