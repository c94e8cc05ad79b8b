//! The access log's rows in ClickHouse: each request is there once, whatever becomes of the server and of the process.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use rustix::process::Signal;
use rustls::{ServerConnection, StreamOwned};
use serde_json::Value;
use shardgate::{config::Clickhouse, sinks::clickhouse::table};

use crate::{
    harness::{Gateway, is_long, now, pause, shardgate, until},
    servers::{
        chdb,
        clickhouse::{ClickhouseServer, PASSWORD},
        tls::{certificate, server_config},
    },
    service::Service,
};

const SOON: Duration = Duration::from_secs(20);
const SENT: &str = "shardgate_clickhouse_rows_total{outcome=\"sent\"}";
const DROPPED: &str = "shardgate_clickhouse_rows_total{outcome=\"dropped\"}";

/// Makes the table by the command that operators have.
#[track_caller]
fn migrate(config: &str) -> String {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let file = directory.path().join("shardgate.toml");
    fs::write(&file, config).expect("written");
    let mut command = shardgate(directory.path());
    let done = command.args(["migrate", "--config"]).arg(&file).status().expect("it runs");
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("it is there");
    assert!(done.success(), "{}", read("stderr.log"));
    read("stdout.log")
}

/// Sends so many requests on some connections, so that all shards have some.
#[track_caller]
fn send(gateway: &Gateway, count: usize, tag: &str) {
    let mut clients: Vec<_> = (0..16).map(|_| gateway.connect()).collect();
    for number in 0..count {
        let client = &mut clients[number % 16];
        assert_eq!(client.get(&format!("/{tag}/{number}")).status, 200);
    }
}

/// How ClickHouse is, as `/health` tells it.
fn health(gateway: &Gateway) -> Value {
    gateway.ask_admin("/health").json()["services"]["databases"]["clickhouse"].clone()
}

#[track_caller]
fn wait_for_rows(server: &ClickhouseServer, count: u64) {
    let mut found = 0;
    until(SOON, "every row is there once", || {
        found = server.rows().0;
        assert!(found <= count, "{found} rows of {count}");
        (found == count).then_some(())
    });
}

/// A configuration in which only ClickHouse has what requests leave behind, with files in a directory that outlives the
/// process.
fn config(service: &Service, server: &ClickhouseServer, files: &Path, more: &str) -> String {
    let accounts = "[accounts]\nenabled = false\n";
    let clickhouse = server.config();
    let files = files.display();
    service.config(&format!("{accounts}{clickhouse}spill_dir = \"{files}\"\n{more}"))
}

#[test]
fn requests_are_rows_of_a_table_that_migrate_makes() {
    let Some(server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    let config = config(&service, &server, &files.path().join("rows"), "");
    for _ in 0..2 {
        let told = migrate(&config);
        assert!(told.contains("the table default.shardgate_access in ClickHouse"), "{told}");
    }
    // One that an older gateway has made gets what it lacks.
    server.sql("ALTER TABLE shardgate_access DROP COLUMN close_code");
    migrate(&config);
    let gateway = Gateway::start(&config);
    send(&gateway, 40, "a");
    assert_eq!(gateway.get("/it's/%22").status, 200);
    wait_for_rows(&server, 41);
    let told = server.sql(
        "SELECT uniqExact(shard) > 1, uniqExact(node), min(line), countIf(status = 200), countIf(upstream = 'sample'), \
         countIf(reused = 1) > 0, countIf(time > now() - 100 AND time < now() + 100), countIf(total_us > 0), \
         countIf(client = '127.0.0.1'), uniqExact(request_id), countIf(path = '/it\\'s/%22') \
         FROM shardgate_access",
    );
    let routes = server.sql("SELECT DISTINCT route, upstream, method, protocol FROM shardgate_access");
    assert_eq!(told.split('\t').collect::<Vec<_>>(), ["1", "1", "1", "41", "41", "1", "41", "41", "41", "41", "1"]);
    assert!(routes.ends_with("\tsample\tGET\tHTTP/1.1") && !routes.contains('\n'), "{routes}");
    // The file has the same lines.
    let lines = gateway.access_lines(41);
    assert_eq!(lines.len(), 41);
    let found = health(&gateway);
    assert_eq!((&found["status"], &found["instances"]["healthy"]), (&"up".into(), &1.into()), "{found}");
    // The answer comes after the rows are there.
    let metrics = gateway.metrics_until("all are counted", |metrics| metrics.value(SENT) == 41);
    assert_eq!((metrics.value(SENT), metrics.value("shardgate_store_up{store=\"clickhouse\"}")), (41, 1));
    for name in ["memory_bytes", "spill_bytes", "oldest_row_age_seconds", "spill_damaged_total"] {
        assert_eq!(metrics.value(&format!("shardgate_clickhouse_{name}")), 0, "{name}");
    }
    assert!(!gateway.log().contains(PASSWORD));
}

#[test]
fn without_a_table_rows_wait_and_the_log_says_what_to_do() {
    let Some(server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    let config = config(&service, &server, files.path(), "[log]\naccess = \"off\"\n");
    let gateway = Gateway::start(&config);
    send(&gateway, 20, "a");
    gateway.log_until("run `shardgate migrate` with this configuration", SOON);
    until(SOON, "it takes no rows", || (health(&gateway)["error"] == "not_migrated").then_some(()));
    assert_eq!(health(&gateway)["status"], "degraded");
    assert_eq!(gateway.ask_admin("/health").json()["status"], "degraded");
    assert_eq!(gateway.get("/health").status, 200);
    migrate(&config);
    wait_for_rows(&server, 21);
    until(SOON, "it is up", || (health(&gateway)["status"] == "up").then_some(()));
}

#[test]
fn a_server_that_dies_or_hangs_costs_no_row_and_no_request() {
    let Some(mut server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    let config = config(&service, &server, files.path(), "");
    migrate(&config);
    let gateway = Gateway::start(&config);
    send(&gateway, 50, "before");
    wait_for_rows(&server, 50);

    server.kill();
    send(&gateway, 50, "killed");
    gateway.log_until("ClickHouse is away", SOON);
    until(SOON, "it is down", || (health(&gateway)["status"] == "down").then_some(()));
    gateway.metrics_until("rows wait in files", |metrics| metrics.value("shardgate_clickhouse_spill_bytes") > 0);
    server.restart();
    wait_for_rows(&server, 100);
    gateway.log_until("ClickHouse is back", SOON);

    server.pause();
    let began = now();
    send(&gateway, 50, "paused");
    assert!(began.elapsed() < SOON / 2, "no request waits");
    until(SOON, "it does not answer", || (health(&gateway)["error"] == "timeout").then_some(()));
    server.go_on();
    wait_for_rows(&server, 150);
    gateway.metrics_until("no row waits", |metrics| metrics.value("shardgate_clickhouse_spill_bytes") == 0);
    assert_eq!(gateway.metrics().value(DROPPED), 0);
}

#[test]
fn a_process_that_is_killed_leaves_its_rows_to_the_next() {
    let Some(mut server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    let config = config(&service, &server, files.path(), "");
    migrate(&config);
    let mut gateway = Gateway::start(&config);
    send(&gateway, 50, "before");
    wait_for_rows(&server, 50);
    server.kill();
    send(&gateway, 300, "away");
    // Sealed batches are in files within the interval; what a shard has still in its hands is lost with the process.
    let spilled = "shardgate_clickhouse_spill_bytes";
    let mut before = 0;
    until(SOON, "all rows are in files", || {
        pause(Duration::from_millis(200));
        let metrics = gateway.metrics();
        let is_settled = metrics.value(spilled) > 0
            && metrics.value(spilled) == before
            && metrics.value("shardgate_clickhouse_memory_bytes") == 0;
        before = metrics.value(spilled);
        is_settled.then_some(())
    });
    gateway.signal(Signal::KILL);
    assert_eq!(gateway.wait_exit(SOON), None, "a signal ended it");
    drop(gateway);
    // As if it had been in the middle of a record.
    let last = fs::read_dir(files.path()).expect("it is there").flatten().map(|entry| entry.path());
    let last = last.filter(|path| path.extension().is_some_and(|end| end == "rows")).max().expect("a file");
    let mut file = fs::File::options().append(true).open(last).expect("it is ours");
    file.write_all(b"\xf3SGB\x00\x10\x00\x00torn").expect("written");

    let gateway = Gateway::start(&config);
    send(&gateway, 50, "after");
    server.restart();
    wait_for_rows(&server, 400);
    assert_eq!(server.sql("SELECT uniqExact(node) FROM shardgate_access"), "2");
    let torn = "shardgate_clickhouse_spill_damaged_total";
    gateway.metrics_until("the torn end is counted", |metrics| metrics.value(torn) == 1);
    // Rows that came twice are one after a merge.
    assert_eq!(server.sql("SELECT count() FROM shardgate_access FINAL"), "400");
}

#[test]
fn at_the_end_of_the_process_rows_are_sent_or_kept() {
    let Some(mut server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    let slow = "[drain]\nnotice = \"10ms\"\nwindow = \"0s\"\n";
    let config = config(&service, &server, files.path(), slow).replace("\"50ms\"", "\"1m\"");
    migrate(&config);
    let mut gateway = Gateway::start(&config);
    until(SOON, "it is up", || (health(&gateway)["status"] == "up").then_some(()));
    send(&gateway, 30, "a");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    assert_eq!(server.rows().0, 30, "the last batch is sent");

    let mut gateway = Gateway::start(&config);
    until(SOON, "it is up", || (health(&gateway)["status"] == "up").then_some(()));
    server.kill();
    send(&gateway, 30, "b");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    server.restart();
    let _gateway = Gateway::start(&config);
    wait_for_rows(&server, 60);
}

/// A server that answers what it is told, and tells what it was asked.
struct Scripted {
    address: SocketAddr,
    requests: Receiver<Vec<u8>>,
}

/// What it does with an insert.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Take,
    Say(&'static str),
    /// A whole answer.
    Raw(&'static str),
    Hang,
    CloseInTheMiddle,
}

impl Scripted {
    fn start(answers: Vec<Answer>) -> Self {
        Self::over(Some, answers)
    }

    /// One that takes everything, over TLS with this certificate.
    fn start_tls(directory: &Path, name: &str) -> Self {
        let config = server_config(directory, name);
        let accept = move |stream| {
            let session = ServerConnection::new(Arc::clone(&config)).ok()?;
            Some(StreamOwned::new(session, stream))
        };
        Self::over(accept, Vec::new())
    }

    fn over<S: Read + Write + 'static>(
        accept: impl Fn(TcpStream) -> Option<S> + Send + 'static,
        answers: Vec<Answer>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (tell, requests) = channel();
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            let mut held = Vec::new();
            for stream in listener.incoming().flatten().filter_map(accept) {
                serve(stream, &mut answers, &tell, &mut held);
            }
        });
        Self { address, requests }
    }
}

/// Serves one request and closes, so that requests come in order.
fn serve<S: Read + Write>(
    mut stream: S,
    answers: &mut impl Iterator<Item = Answer>,
    tell: &Sender<Vec<u8>>,
    held: &mut Vec<S>,
) {
    let mut request = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let read = stream.read(&mut bytes).unwrap_or(0);
        request.extend_from_slice(&bytes[..read]);
        let head = request.windows(4).position(|window| window == b"\r\n\r\n");
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let is_whole = head.is_some_and(|head| request.len() >= head + 4 + length.unwrap_or(0));
        if is_whole || read == 0 {
            break;
        }
    }
    let say = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    let is_insert = request.windows(6).any(|window| window == b"INSERT");
    let answer = if is_insert { answers.next().unwrap_or(Answer::Take) } else { Answer::Say("200 OK\n26.9.2.1\n") };
    let text = match answer {
        Answer::Take => say("200 OK", ""),
        Answer::Say(text) => {
            let (status, body) = text.split_once('\n').expect("a status and a body");
            say(status, body)
        }
        Answer::Raw(text) => text.to_owned(),
        Answer::Hang => return held.push(stream),
        Answer::CloseInTheMiddle => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(text.as_bytes());
    if is_insert {
        // Nobody may listen any more.
        let _ = tell.send(request);
    }
}

#[test]
fn a_server_that_refuses_hangs_and_fails_in_the_middle_gets_the_rows_in_the_end() {
    let server = Scripted::start(vec![
        Answer::Say("500 Internal Server Error\nCode: 1002. DB::Exception: a secret of a client"),
        Answer::Hang,
        Answer::CloseInTheMiddle,
        Answer::Say("200 OK\n<html>log in</html>"),
        Answer::Say("404 Not Found\nCode: 60. DB::Exception: Table does not exist"),
        Answer::Say("503 Service Unavailable\nbusy"),
    ]);
    let service = Service::start();
    let clickhouse = format!(
        "[clickhouse]\nenabled = true\nurl = \"http://{}\"\npassword = \"{PASSWORD}\"\ndatabase = \"shop\"\n\
         table = \"rows\"\nbatch_interval = \"50ms\"\ntimeout = \"300ms\"\nspill_max = 0\n",
        server.address
    );
    let gateway = Gateway::start(&service.config(&clickhouse));
    send(&gateway, 10, "a");
    let metrics = gateway.metrics_until("all rows are taken", |metrics| metrics.value(SENT) == 10);
    let failed = metrics.value("shardgate_clickhouse_requests_total{result=\"failed\"}");
    assert!(failed >= 6, "{failed}");
    let request = server.requests.recv_timeout(SOON).expect("it was asked");
    let head = String::from_utf8_lossy(&request).into_owned();
    assert!(head.starts_with("POST /?query=INSERT%20INTO%20%60shop%60.%60rows%60%20FORMAT%20JSONEachRow&"), "{head}");
    assert!(head.contains("&async_insert=0&insert_deduplication_token="), "{head}");
    let head = head.to_lowercase();
    for field in [
        "content-encoding: gzip",
        "x-clickhouse-user: default",
        &format!("x-clickhouse-key: {}", PASSWORD.to_lowercase()),
    ] {
        assert!(head.contains(field), "{field}: {head}");
    }
    let log = gateway.log();
    assert!(!log.contains("a secret of a client") && !log.contains(PASSWORD), "{log}");
    assert_eq!(gateway.metrics().value(DROPPED), 0);
}

#[test]
fn what_leads_elsewhere_or_tells_late_of_an_exception_has_not_taken_the_rows() {
    let elsewhere = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n";
    let late = "HTTP/1.1 200 OK\r\nx-clickhouse-exception-code: 0\r\nconnection: close\r\n\r\n\r\n__exception__\r\n\
                vxkrduqjqngvxabc\r\nCode: 241. DB::Exception: Memory limit exceeded\r\n";
    for (answer, class) in [(elsewhere, "unexpected"), (late, "out_of_memory")] {
        let (server, service) = (Scripted::start(vec![Answer::Raw(answer)]), Service::start());
        let gateway = Gateway::start(&service.config(&format!(
            "[clickhouse]\nenabled = true\nurl = \"http://{}\"\nbatch_interval = \"50ms\"\nspill_max = 0\n",
            server.address
        )));
        send(&gateway, 3, "a");
        gateway.log_until(&format!("takes no rows ({class})"), SOON);
        let metrics = gateway.metrics_until("all rows are taken", |metrics| metrics.value(SENT) == 3);
        assert_eq!(metrics.value("shardgate_clickhouse_requests_total{result=\"failed\"}"), 1);
        assert_eq!(metrics.value(DROPPED), 0);
    }
}

#[test]
fn a_server_over_tls_is_known_by_its_certificate() {
    let directory = tempfile::TempDir::new().expect("a directory");
    for name in ["right", "other"] {
        if certificate(directory.path(), name).is_none() {
            return;
        }
    }
    let server = Scripted::start_tls(directory.path(), "right");
    let service = Service::start();
    let config = |name: &str, host: &str| {
        let file = directory.path().join(format!("{name}.crt"));
        service.config(&format!(
            "[clickhouse]\nenabled = true\nurl = \"https://{host}:{}\"\nca_file = \"{}\"\npassword = \"{PASSWORD}\"\n\
             batch_interval = \"20ms\"\nspill_max = 0\n",
            server.address.port(),
            file.display()
        ))
    };
    // Of nobody who is trusted, and for another name.
    for (name, host) in [("other", "127.0.0.1"), ("right", "localhost")] {
        let gateway = Gateway::start(&config(name, host));
        until(SOON, "it is not trusted", || (health(&gateway)["error"] == "tls").then_some(()));
        assert_eq!(health(&gateway)["status"], "down", "{name} {host}");
    }
    let gateway = Gateway::start(&config("other", "127.0.0.1"));
    send(&gateway, 5, "a");
    let log = gateway.log_until("clickhouse.ca_file", SOON);
    assert!(!log.contains(PASSWORD), "{log}");
    assert_eq!(server.requests.try_iter().count(), 0, "nobody else is told the rows");
    // The right one, by a reload: what waited goes there.
    gateway.rewrite_config(&config("right", "127.0.0.1"));
    gateway.log_until("configuration reloaded", SOON);
    gateway.metrics_until("all rows are taken", |metrics| metrics.value(SENT) == 5);
    let mut rows = 0;
    while rows < 5 {
        rows += rows_of(&server.requests.recv_timeout(SOON).expect("rows")).lines().count();
    }
    assert_eq!(rows, 5);
}

#[test]
fn what_waits_has_a_bound_in_files_and_what_is_past_it_waits_in_memory() {
    let files = tempfile::TempDir::new().expect("a directory");
    let service = Service::start();
    // Nobody listens there.
    let clickhouse = format!(
        "[clickhouse]\nenabled = true\nurl = \"http://127.0.0.1:1\"\nbatch_interval = \"10ms\"\nspill_max = \"64KiB\"\n\
         spill_dir = \"{}\"\nmemory_max = \"8MiB\"\nbatch_bytes = \"1MiB\"\n",
        files.path().display()
    );
    let gateway = Gateway::start(&service.config(&clickhouse));
    // So many that 64 KiB do not hold them: a batch has some rows only.
    for _ in 0..20 {
        send(&gateway, 200, "a");
    }
    let metrics = gateway
        .metrics_until("rows wait in memory too", |metrics| metrics.value("shardgate_clickhouse_memory_bytes") > 1000);
    let spilled = metrics.value("shardgate_clickhouse_spill_bytes");
    assert!((1..=64 * 1024).contains(&spilled), "{spilled}");
    assert!(metrics.value("shardgate_clickhouse_memory_bytes") <= 8 << 20);
    assert_eq!(health(&gateway)["error"], "refused");
}

#[test]
fn a_reload_takes_another_server_and_refuses_files_that_it_cannot_read() {
    let (old, new) = (Scripted::start(Vec::new()), Scripted::start(Vec::new()));
    let service = Service::start();
    let config = |server: &Scripted, more: &str| {
        let url = format!("url = \"http://{}\"\nbatch_interval = \"20ms\"\nspill_max = 0\n", server.address);
        service.config(&format!("[clickhouse]\nenabled = true\n{url}{more}"))
    };
    let mut gateway = Gateway::start(&config(&old, ""));
    send(&gateway, 5, "a");
    old.requests.recv_timeout(SOON).expect("rows");
    gateway.expect_error("the configuration is refused");
    gateway.rewrite_config(&config(&new, "password_file = \"/nowhere/password\"\n"));
    gateway.log_until("clickhouse.password_file is \\\"/nowhere/password\\\"", SOON);
    let password = gateway.directory().join("password");
    fs::write(&password, format!("{PASSWORD}\n")).expect("written");
    fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    gateway.rewrite_config(&config(&new, &format!("password_file = \"{}\"\n", password.display())));
    gateway.log_until("configuration reloaded", SOON);
    send(&gateway, 5, "b");
    let request = new.requests.recv_timeout(SOON).expect("rows");
    assert!(String::from_utf8_lossy(&request).contains(PASSWORD), "the password comes out of its file");
}

/// The body of a request, inflated.
fn rows_of(request: &[u8]) -> String {
    let head = request.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let mut rows = String::new();
    flate2::read::GzDecoder::new(&request[head + 4..]).read_to_string(&mut rows).expect("gzip");
    rows
}

/// Each setting of an insert's URL, as a statement has it.
fn settings_of(request: &[u8]) -> String {
    let head = String::from_utf8_lossy(request);
    let query = head.split(' ').nth(1).expect("a target");
    let settings = query.split('&').skip(1).map(|setting| {
        let (name, value) = setting.split_once('=').expect("a setting");
        format!("{name} = '{value}'")
    });
    settings.collect::<Vec<_>>().join(", ")
}

/// What Debian's server is asked for, and what is sent to it, does on the newest one too.
#[test]
fn todays_engine_takes_the_table_and_its_rows() {
    if !is_long() {
        return;
    }
    let server = Scripted::start(vec![Answer::CloseInTheMiddle]);
    let service = Service::start();
    let clickhouse = format!(
        "[clickhouse]\nenabled = true\nurl = \"http://{}\"\nbatch_interval = \"300ms\"\nspill_max = 0\n",
        server.address
    );
    let gateway = Gateway::start(&service.config(&clickhouse));
    send(&gateway, 40, "a");
    gateway.get("/it's/%22");
    gateway.metrics_until("all rows are taken", |metrics| metrics.value(SENT) == 41);
    let requests: Vec<_> = server.requests.try_iter().collect();

    let config = Clickhouse::default();
    let version = table::Version::parse("26.9.2.1").expect("a version");
    let mut statements =
        vec![table::create(&config, version), table::list_columns(&config), table::show_engine(&config)];
    for request in &requests {
        let settings = settings_of(request);
        statements
            .push(format!("INSERT INTO shardgate_access SETTINGS {settings} FORMAT JSONEachRow\n{}", rows_of(request)));
    }
    let all: BTreeSet<_> = table::columns().map(str::to_owned).collect();
    let mut older = all.clone();
    older.remove("user_agent");
    statements.push("ALTER TABLE shardgate_access DROP COLUMN user_agent".to_owned());
    statements.extend(table::update(&config, version, &older, ""));
    statements.extend(documented_queries());
    statements.push(
        "SELECT count(), uniqExact(node, shard, line), countIf(toUnixTimestamp64Milli(time) % 1000 != 0) > 0, \
         countIf(path = '/it\\'s/%22'), countIf(upstream = 'sample') FROM shardgate_access"
            .to_owned(),
    );
    let told = chdb::query(&statements);
    assert_eq!(told[1].lines().map(|name| name.trim_matches('"').to_owned()).collect::<BTreeSet<_>>(), all);
    assert_eq!(table::update(&config, version, &all, &told[2]), [""; 0], "a new table is up to date: {}", told[2]);
    // The batch that was sent twice is known by its token.
    assert!(requests.len() >= 2);
    assert_eq!(told.last().map(|told| told.trim()), Some("41,41,1,1,41"));
}

/// The statements of docs/clickhouse.md that read.
fn documented_queries() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clickhouse.md");
    let text = fs::read_to_string(path).expect("it is there");
    let blocks = text.split("```sql\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.filter(|block| block.starts_with("SELECT")).map(str::to_owned).collect()
}

#[test]
fn what_the_documentation_asks_is_answered_by_an_old_server_too() {
    let Some(server) = ClickhouseServer::start() else { return };
    let (service, files) = (Service::start(), tempfile::TempDir::new().expect("a directory"));
    migrate(&config(&service, &server, files.path(), ""));
    let queries = documented_queries();
    assert!(queries.len() >= 5, "{queries:?}");
    for query in queries {
        server.sql(&query);
    }
}
