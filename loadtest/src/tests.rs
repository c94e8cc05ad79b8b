//! The whole of it over real sockets: each scenario against the sample backend. Counts, never times.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

use clap::Parser;

use crate::front;
use crate::options::{Cli, Command};
use crate::report::Report;
use crate::scenario::{self, Measured};
use crate::serve::Server;

/// A backend in a thread of its own, until the tests end.
fn backend() -> u16 {
    let (tell, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (server, port) = Server::bind(Ipv4Addr::LOCALHOST, 0).expect("a free port");
        tell.send(port).expect("it is waited for");
        server.run();
    });
    port.recv().expect("it listens")
}

fn command(line: &str) -> Command {
    Cli::try_parse_from(std::iter::once("shardgate-loadtest").chain(line.split(' '))).expect("a valid line").command
}

/// Runs a scenario against a path of the backend, for a moment; tells the result and whether it counts as failed.
fn run(port: u16, line: &str, path: &str) -> (Measured, bool) {
    run_at(&format!("http://127.0.0.1:{port}{path}"), line)
}

fn run_at(url: &str, line: &str) -> (Measured, bool) {
    let line = format!("{line} --url {url} --warm-up 50ms");
    let (_, job) = crate::job(command(&line)).expect("a valid job");
    let measured = scenario::run(&job, &mut |_| {}).expect("it runs");
    let failed = Report::new(&job, &measured).failed();
    (measured, failed)
}

#[test]
fn an_open_loop_sends_what_it_should_have_sent() {
    let (measured, failed) = run(backend(), "open --rate 500 --duration 400ms --connections 8", "/");
    let tally = &measured.tally;
    assert_eq!(tally.answers() + tally.backlog, 200, "of 500 a second in 0.4 s");
    assert_eq!(tally.latency.len(), tally.answers());
    assert_eq!(failed, tally.backlog > 0);
}

#[test]
fn threads_share_the_rate_and_the_connections() {
    let (measured, _) = run(backend(), "open --rate 1000 --duration 300ms --connections 7 --threads 3", "/");
    let all = measured.tally.answers() + measured.tally.backlog;
    assert!((298..=302).contains(&all), "{all} of 1000 a second in 0.3 s");
}

#[test]
fn a_closed_loop_goes_round_with_bodies() {
    let port = backend();
    for line in ["closed --connections 4", "closed --connections 4 --body-bytes 5000", "closed --method HEAD"] {
        let (measured, failed) = run(port, &format!("{line} --duration 100ms"), "/echo");
        assert!(measured.tally.answers() > 4, "{line}: {}", measured.tally.answers());
        assert!(!failed, "{line}");
        assert_eq!(measured.tally.traffic.connects, 0, "{line}: connections are kept");
    }
}

#[test]
fn statuses_are_failures_unless_expected() {
    let port = backend();
    let (refused, failed) = run(port, "closed --connections 2 --duration 50ms", "/status?code=503");
    assert!(failed && !refused.tally.unexpected_latency.is_empty() && refused.tally.latency.is_empty());
    let (expected, failed) =
        run(port, "closed --connections 2 --duration 50ms --expect-status 503", "/status?code=503");
    assert!(!failed && expected.tally.unexpected_latency.is_empty() && !expected.tally.latency.is_empty());
}

#[test]
fn a_server_that_is_not_there_refuses_each() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = unused.expect("a free port").port();
    let (measured, failed) = run(port, "open --rate 100 --duration 200ms --connections 4", "/");
    assert!(failed);
    let failures = measured.tally.failures().collect::<Vec<_>>();
    // 20 of the measured time; on a stalled machine some of the five before it as well, or a backlog instead.
    let all = measured.tally.failed() + measured.tally.backlog;
    assert!((20..=25).contains(&all) && failures.iter().all(|(kind, _)| *kind == "connect_refused"), "{failures:?}");
}

#[test]
fn a_late_answer_is_a_timeout() {
    let (measured, failed) =
        run(backend(), "closed --connections 3 --duration 50ms --timeout 100ms", "/delay?ms=3600000");
    assert!(failed);
    // Those of the warm-up time out in the end, and the requests that follow in their place count.
    assert!(measured.tally.failures().all(|(kind, _)| kind == "timeout"));
}

#[test]
fn a_delayed_answer_comes() {
    let (measured, failed) = run(backend(), "closed --connections 2 --duration 300ms", "/delay?ms=5");
    assert!(!failed && measured.tally.answers() > 2);
}

#[test]
fn places_serve_no_more_than_they_can_and_the_others_wait() {
    let (measured, failed) = run(backend(), "closed --connections 8 --duration 500ms", "/places?n=2&ms=10");
    // 2 × 100 a second, and what was under way when the time began.
    assert!(!failed && (8..=112).contains(&measured.tally.answers()), "{}", measured.tally.answers());
}

#[test]
fn events_come_with_their_stamps() {
    let (measured, failed) = run(backend(), "sse --streams 5 --duration 400ms", "/sse?rate=100");
    assert!(!failed);
    assert!(measured.tally.events > 5, "{} events", measured.tally.events);
    assert_eq!(measured.tally.stamped, measured.tally.events);
    let (ended, _) = run(backend(), "sse --streams 2 --duration 400ms", "/sse?rate=100&count=3");
    assert!(ended.tally.closed > 2, "streams that end are opened again");
}

#[test]
fn idle_connections_are_held_and_weighed() {
    let line = format!("idle --connections 300 --hold 50ms --server-pid {}", std::process::id());
    let (measured, failed) = run(backend(), &line, "/");
    let held = measured.tally.held.expect("weighed");
    assert_eq!((held.connections, measured.tally.answers(), failed), (300, 300, false));
    assert!(held.before.rss_kib > 0 && held.after.rss_kib > 0);
}

#[test]
fn slow_clients_are_still_open_or_answered() {
    let port = backend();
    let (head, failed) = run(port, "slow --connections 10 --every 20ms --duration 300ms", "/");
    assert_eq!((head.tally.endings.len(), failed), (10, false));
    assert!(head.tally.traffic.bytes_out > 10, "{} bytes", head.tally.traffic.bytes_out);
    // A body of five bytes is whole after five turns.
    let (body, _) = run(port, "slow --connections 10 --every 5ms --duration 5s --body --body-bytes 5", "/");
    assert!(body.tally.endings.iter().all(|(ending, _)| *ending == crate::tally::Ending::Status(200)));
}

#[test]
fn bombs_are_sent_whole_and_answered() {
    // The sample backend takes one long field, and not so many short ones.
    let line = "bomb --rate 200 --duration 300ms --head-bytes 8KiB --expect-status 200 --expect-status 400";
    let (bombs, failed) = run(backend(), line, "/");
    let statuses = bombs.tally.statuses().collect::<Vec<_>>();
    assert!(!failed, "{statuses:?}");
    assert!(matches!(statuses[..], [(200, long), (400, many)] if long > 5 && many > 5), "{statuses:?}");
    let bytes = bombs.tally.traffic.bytes_out / bombs.tally.answers().max(1);
    assert!((7_000..10_000).contains(&bytes), "{bytes} bytes each");
}

#[test]
fn a_burst_sends_each_log_in_once() {
    let directory = std::env::temp_dir().join(format!("shardgate-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let users = directory.join("users");
    std::fs::write(&users, "a@b.example one two\nc@d.example  three\n").expect("written");
    let line = format!("login --count 50 --users {}", users.display());
    // The echo is what was sent: no token, and all the same an answer.
    let (all, failed) = run(backend(), &line, "/echo");
    assert!(!failed);
    assert_eq!((all.tally.answers(), all.tally.contents.len()), (50, 50));
    let said = |content: &Vec<u8>| String::from_utf8_lossy(content).into_owned();
    let with = |password: &str| all.tally.contents.iter().filter(|content| said(content).contains(password)).count();
    assert_eq!((with("\"one two\""), with("\"three\"")), (25, 25));
    let (few, failed) = run(backend(), &format!("{line} --connections 3"), "/echo");
    assert_eq!((few.tally.answers(), failed), (50, false));
    // A refusal that does not say when to come back is a failure.
    let (refused, failed) = run(backend(), &line, "/status?code=429");
    assert_eq!((refused.tally.answers(), refused.tally.told_when, failed), (50, 0, true));
    std::fs::remove_dir_all(&directory).expect("removed");
}

#[test]
fn big_bodies_go_both_ways_whole() {
    let port = backend();
    let (down, failed) = run(port, "stream --down --connections 2", "/big?bytes=5000000");
    assert!(!failed && down.tally.traffic.bytes_in > 10_000_000);
    let (up, failed) = run(port, "stream --up 5MiB", "/");
    assert!(!failed && up.tally.traffic.bytes_out > 5 << 20);
    let (echo, failed) = run(port, "stream --up 3MiB", "/echo");
    assert!(!failed && echo.tally.traffic.bytes_in > 3 << 20);
}

#[test]
fn requests_go_over_tls() {
    let url = format!("https://127.0.0.1:{}", front::tls(backend()));
    for line in ["closed", "closed --tls 1.2", "closed --body-bytes 200KiB", "open --rate 500"] {
        let (measured, failed) = run_at(&format!("{url}/echo"), &format!("{line} --connections 4 --duration 200ms"));
        assert!(!failed && measured.tally.answers() > 4, "{line}: {}", measured.tally.answers());
        assert_eq!(measured.tally.traffic.connects, 0, "{line}: connections are kept");
    }
    let (up, failed) = run_at(&url, "stream --up 5MiB");
    assert!(!failed && up.tally.traffic.bytes_out > 5 << 20);
    let (down, failed) = run_at(&format!("{url}/big?bytes=5000000"), "stream --down --connections 2");
    assert!(!failed && down.tally.traffic.bytes_in > 10_000_000);
    let (plain, failed) = run(backend(), "closed --duration 50ms", "/");
    assert!(!failed && plain.tally.traffic.whole + plain.tally.traffic.resumed == 0);
}

#[test]
fn sessions_are_taken_up_again_where_that_is_asked_for() {
    let url = format!("https://127.0.0.1:{}/", front::tls(backend()));
    for line in ["closed", "closed --tls 1.2"] {
        let line = format!("{line} --connections 3 --duration 200ms --header Connection:close");
        let (whole, failed) = run_at(&url, &line);
        let traffic = whole.tally.traffic;
        let failures = whole.tally.failures().collect::<Vec<_>>();
        assert!(!failed && traffic.whole > 3 && traffic.resumed == 0, "{line}: {traffic:?} {failures:?}");
        let (resumed, failed) = run_at(&url, &format!("{line} --resume"));
        let traffic = resumed.tally.traffic;
        let failures = resumed.tally.failures().collect::<Vec<_>>();
        assert!(!failed && traffic.resumed > 3 && traffic.whole <= 3, "{line}: {traffic:?} {failures:?}");
    }
}

#[test]
fn a_connection_that_is_to_be_closed_is_not_used_again() {
    // The backend closes it, and does not say so in its answer.
    let (measured, failed) = run(backend(), "closed --connections 3 --duration 200ms --header Connection:close", "/");
    let failures = measured.tally.failures().collect::<Vec<_>>();
    assert!(!failed && failures.is_empty(), "{failures:?}");
    assert!(measured.tally.traffic.connects > 3, "{:?}", measured.tally.traffic);
}

#[test]
fn what_speaks_no_tls_is_a_failure_of_its_own() {
    let (measured, failed) = run_at(&format!("https://127.0.0.1:{}/", backend()), "open --rate 100 --duration 100ms");
    let failures = measured.tally.failures().collect::<Vec<_>>();
    assert!(failed && matches!(failures[..], [("tls", 1..)]), "{failures:?}");
}

#[test]
fn a_flood_leaves_as_soon_as_it_is_answered() {
    let told = |port: u16| {
        let line = format!("flood --rate 200 --duration 200ms --connections 8 --url https://127.0.0.1:{port}");
        let Command::Flood(flood) = command(&line) else { unreachable!("a flood was asked for") };
        let report = crate::flood::measure(&flood).expect("it runs");
        let told = report.json(&crate::report::Conditions::now());
        let number = |name: &str| told[name].as_u64().expect("a number");
        (number("answered"), number("refused"), number("backlog"), told["failures"].clone(), report.failed())
    };
    let (answered, refused, backlog, failures, failed) = told(front::tls(backend()));
    assert_eq!((answered + backlog, refused, failed), (40, 0, false), "{failures}");
    let (answered, refused, backlog, failures, failed) = told(backend());
    assert_eq!((answered, refused, failed), (0, 0, true));
    assert_eq!(failures["bad_answer"].as_u64().map(|failed| failed + backlog), Some(40), "{failures}");
}

/// Sends bytes as they are and reads until the backend closes.
fn exchange(port: u16, pieces: &[&[u8]]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_nodelay(true).expect("a TCP socket");
    for piece in pieces {
        stream.write_all(piece).expect("it reads");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    answer
}

#[test]
fn the_backend_answers_pipelined_requests_in_order() {
    let close = b"GET /status?code=204 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let requests = [
        b"GET /delay?ms=1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
        b"3\r\nabc\r\n0\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok",
        close,
    ];
    let whole = requests.concat();
    let by_byte = whole.chunks(1).collect::<Vec<_>>();
    for pieces in [vec![whole.as_slice()], by_byte] {
        let answer = exchange(backend(), &pieces);
        let statuses = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect::<Vec<_>>();
        assert_eq!(statuses, ["200", "200", "200", "204"]);
        let content = answer.replace("\r\n", "|");
        assert!(content.contains("abc|") && content.contains("||ok"), "{content}");
        assert!(content.find("{\"pad\"") < content.find("abc|"));
    }
}

#[test]
fn the_backend_refuses_what_is_not_http() {
    assert!(exchange(backend(), &[b"hello\r\n\r\n"]).starts_with("HTTP/1.1 400 "));
    let chunk = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
    assert!(exchange(backend(), &[chunk]).starts_with("HTTP/1.1 400 "));
}

#[test]
fn the_backend_asks_for_an_expected_body() {
    let request =
        b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let answer = exchange(backend(), &[request]);
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[test]
fn a_job_says_what_is_wrong_with_it() {
    let refusal = |line: &str| crate::job(command(line)).err().map_or_else(String::new, |error| error.to_string());
    assert!(refusal("closed --url http://192.0.2.1/").contains("--allow-remote"));
    assert!(refusal("closed --server-pid 4294967295").contains("no process"));
    assert!(refusal("slow --every 0").contains("not slow"));
    assert!(refusal("open --rate 1 --timeout 0").contains("over 0"));
    assert_eq!(Arc::strong_count(&crate::job(command("closed")).expect("valid").1.requests), 1);
}

#[test]
fn a_backend_that_is_told_to_fails_and_counts_what_it_served() {
    let port = backend();
    let (_, failed) = run(port, "closed --connections 1 --duration 20ms", "/behave?failing=2&delay_us=100");
    assert!(!failed);
    let (measured, failed) = run(port, "closed --connections 1 --duration 100ms", "/");
    let statuses = measured.tally.statuses().collect::<Vec<_>>();
    let [(200, good), (500, bad)] = statuses[..] else { panic!("{statuses:?}") };
    assert!(failed && good.abs_diff(bad) <= 1, "{good} and {bad}");
    let address = ([127, 0, 0, 1], port).into();
    let mut caller = crate::logout::Caller::at(address, std::time::Duration::from_secs(5)).expect("it listens");
    let said = caller.ask("GET", "/served", "", "").expect("it answers");
    let served: u64 = std::str::from_utf8(&said.content).expect("a number").parse().expect("a number");
    assert!(served >= good + bad, "{served} of {good} and {bad}");
}
