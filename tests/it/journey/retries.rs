//! What is sent again, to whom and when; and what two instances are asked.

use std::{io::Write as _, sync::mpsc, time::Duration};

use rustix::process::Signal;

use super::{Setup, before, expect_refusal};
use crate::{
    backend::{Backend, Conversation, OK},
    client::Client,
    harness::{Gateway, now, pause},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody is left out, each in its turn, and as often as need be.
const EACH_IN_TURN: &str = "balance = \"round_robin\"\noutlier_failures = 0\nretry_budget_min_per_s = 1000\n\
                            retry_on = [\"connect\", \"reset\", \"timeout\", \"502\", \"503\", \"504\"]";

/// Answers with this status, and a body that says so.
fn with_status(status: u16, fields: &'static str) -> Backend {
    Backend::answering(move |_| format!("HTTP/1.1 {status} S\r\n{fields}Content-Length: 6\r\n\r\nnot me"))
}

/// Takes requests and says nothing.
fn silent() -> Backend {
    Backend::start(|conversation| {
        conversation.tell_head()?;
        conversation.read_to_end();
        Ok(())
    })
}

#[track_caller]
fn retries(gateway: &Gateway, reason: &str) -> i64 {
    gateway.metrics().value(&format!("shardgate_upstream_retries_total{{upstream=\"back\",reason=\"{reason}\"}}"))
}

#[track_caller]
fn of_upstream(gateway: &Gateway, name: &str) -> i64 {
    gateway.metrics().value(&format!("shardgate_upstream_{name}{{upstream=\"back\"}}"))
}

#[test]
fn a_status_is_tried_again_at_another_instance() {
    const REQUESTS: usize = 12;
    for status in [502, 503, 504] {
        let (mut failing, mut good) = (with_status(status, ""), Backend::ok());
        let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[failing.address(), good.address()]);
        let mut client = gateway.connect();
        for _ in 0..REQUESTS {
            assert_eq!(client.get("/x").status, 200, "{status}");
        }
        let failed = failing.requests().len();
        assert!(failed >= REQUESTS / 2, "{failed} of {REQUESTS} began there");
        assert_eq!(good.requests().len(), REQUESTS);
        assert_eq!(failing.opened(), 1, "what it answered was read to its end");
        assert_eq!(usize::try_from(retries(&gateway, &status.to_string())), Ok(failed));
        // What was not passed on is counted like what is.
        let metrics = gateway.metrics();
        let of_upstream = "shardgate_upstream_requests_total{upstream=\"back\",outcome=\"server_error\"}";
        let address = failing.address();
        let of_instance = format!(
            "shardgate_instance_requests_total{{upstream=\"back\",address=\"{address}\",outcome=\"server_error\"}}"
        );
        let counts = [of_upstream, &of_instance].map(|series| usize::try_from(metrics.value(series)));
        assert_eq!(counts, [Ok(failed); 2]);
        // What may have been carried out is not.
        let answered: Vec<_> = (0..4).map(|_| client.post("/x", b"hello").status).collect();
        assert!(answered.contains(&status) && answered.contains(&200), "{answered:?}");
    }
}

#[test]
fn what_is_not_named_is_not_tried_again() {
    let upstream = "retry_on = [\"502\"]\noutlier_failures = 0";
    let mut failing = with_status(503, "");
    let gateway = Setup { upstream, ..Setup::default() }.start(&[failing.address()]);
    assert_eq!(gateway.get("/x").status, 503);
    let mut resetting = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.reset()
    });
    // The route's word counts.
    let setup = Setup { upstream: EACH_IN_TURN, route: "retry_on = [\"connect\"]", ..Setup::default() };
    let gateway = setup.start(&[resetting.address()]);
    expect_refusal(&gateway.get("/x"), 502, "upstream_unreachable");
    assert_eq!((failing.requests().len(), resetting.requests().len()), (1, 1));
}

#[test]
fn the_last_answer_goes_on_when_none_is_left() {
    // Each attempt has a connection of its own.
    let mut backend = Backend::answering(|request| {
        format!("HTTP/1.1 503 Busy\r\nX-Number: {}\r\nContent-Length: 4\r\n\r\nbusy", request.connection)
    });
    let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[backend.address()]);
    let answer = gateway.get("/x");
    assert_eq!((answer.status, answer.text().as_str(), answer.field("x-number")), (503, "busy", Some("2")));
    assert_eq!(backend.requests().len(), 3);
    // Without a budget it is the first.
    let upstream = "retry_budget_percent = 0\nretry_budget_min_per_s = 0\nretry_on = [\"503\"]";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    assert_eq!(gateway.get("/x").field("x-number"), Some("3"));
    assert_eq!(of_upstream(&gateway, "retries_refused_total"), 1);
}

#[test]
fn an_answer_that_goes_on_and_on_is_not_waited_for() {
    let (mut endless, good) = (
        Backend::start(|conversation| {
            conversation.read_request()?;
            conversation.send("HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n")?;
            conversation.read_to_end();
            Ok(())
        }),
        Backend::ok(),
    );
    let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[endless.address(), good.address()]);
    let mut client = gateway.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/x").status, 200);
    }
    // Its connection is in doubt.
    endless.wait_ended(0);
}

#[test]
fn an_instance_that_asks_for_time_gets_it_if_there_is_any() {
    let asks_for_time = || {
        Backend::answering(|request| match request.connection {
            0 => b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            _ => OK,
        })
    };
    let backend = asks_for_time();
    let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[backend.address()]);
    let began = now();
    assert_eq!(gateway.get("/x").status, 200);
    assert!(began.elapsed() >= Duration::from_millis(950), "after {:?}", began.elapsed());

    let backend = asks_for_time();
    let route = "deadline = \"900ms\"";
    let gateway = Setup { upstream: EACH_IN_TURN, route, ..Setup::default() }.start(&[backend.address()]);
    let answer = gateway.get("/x");
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    let line = &gateway.access_lines(1)[0];
    assert_eq!(line["attempts"], 1);
}

#[test]
fn one_attempt_has_its_time_and_then_another_instance_is_asked() {
    let upstream = format!("{EACH_IN_TURN}\nper_try_timeout = \"100ms\"\nresponse_timeout = \"1s\"");
    let (mut slow, good) = (silent(), Backend::ok());
    let setup = Setup { upstream: &upstream, ..Setup::default() };
    let gateway = setup.start(&[slow.address(), good.address()]);
    let mut client = gateway.connect();
    for _ in 0..4 {
        assert_eq!(client.get("/x").status, 200);
    }
    assert!(retries(&gateway, "timeout") >= 2);
    slow.wait_ended(0);
    // All attempts together have as long as one has otherwise, and so has what is not sent again.
    let gateway = setup.start(&[slow.address()]);
    for (method, attempts) in [("GET", 3), ("POST", 1)] {
        let mut client = gateway.connect();
        let began = now();
        client.send(format!("{method} /x HTTP/1.1\r\nHost: a\r\n\r\n"));
        expect_refusal(&client.read_response(), 504, "upstream_timeout");
        let least = Duration::from_millis(if method == "GET" { 300 } else { 1000 });
        assert!(began.elapsed() >= least, "{method} after {:?}", began.elapsed());
        let lines = gateway.access_lines(if method == "GET" { 1 } else { 2 });
        assert_eq!(lines.last().map(|line| line["attempts"].clone()), Some(attempts.into()));
    }
}

#[test]
fn a_body_of_which_a_byte_is_gone_is_never_sent_again() {
    // It has seen the head and what there was of the body.
    let mut backend = Backend::start(|conversation| {
        conversation.tell_head()?;
        conversation.take(2)?;
        conversation.reset()
    });
    let good = Backend::ok();
    let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[backend.address()]);
    for (framing, body) in [
        ("Content-Length: 5", "hello"),
        ("Content-Length: 10", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
    ] {
        let mut client = gateway.connect();
        client.send(format!("PUT /x HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}"));
        expect_refusal(&client.read_response(), 502, "upstream_unreachable");
    }
    assert_eq!(backend.requests().len(), 3);
    // Nor is it for a status, which such a request may get before it is complete.
    let mut failing = Backend::start(|conversation| {
        conversation.tell_head()?;
        conversation.take(2)?;
        conversation.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")?;
        conversation.read_to_end();
        Ok(())
    });
    let gateway = Setup { upstream: EACH_IN_TURN, ..Setup::default() }.start(&[failing.address(), good.address()]);
    let mut client = gateway.connect();
    let mut statuses = Vec::new();
    for _ in 0..2 {
        client.send("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        statuses.push(client.read_response().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
    assert_eq!(failing.requests().len(), 1);
}

#[test]
fn a_backend_that_is_killed_fails_no_get() {
    const CLIENTS: usize = 8;
    // Something to kill: a gateway of its own stands for a backend's process.
    let origin = Backend::ok();
    let mut killed = before(origin.address());
    let (one, two) = (Backend::ok(), Backend::ok());
    let gateway = before_three([killed.address(), one.address(), two.address()]);
    let (told, heard) = mpsc::channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (mut client, told) = (gateway.connect(), told.clone());
            std::thread::spawn(move || get_until_told(&mut client, &told))
        })
        .collect();
    drop(told);
    let answered = |count: usize| {
        for _ in 0..count {
            heard.recv_timeout(PATIENCE).expect("answers keep coming");
        }
    };
    answered(600);
    killed.signal(Signal::KILL);
    killed.wait_exit(PATIENCE);
    answered(600);
    drop(heard);
    let failed: Vec<_> = clients.into_iter().flat_map(|client| client.join().expect("it went on")).collect();
    assert!(failed.is_empty(), "statuses {failed:?}");
    let instance = killed.address().to_string();
    let served = gateway.access_lines(1200).iter().filter(|line| line["instance"] == instance.as_str()).count();
    assert!(served > 20, "the killed instance had its share: {served}");
}

/// With everything as by default, but that each instance has its share, however slow it is.
fn before_three(instances: [std::net::SocketAddr; 3]) -> Gateway {
    Setup { upstream: "balance = \"round_robin\"", ..Setup::default() }.start(&instances)
}

/// Asks until nobody listens any more; returns the statuses of what failed.
fn get_until_told(client: &mut Client, told: &mpsc::Sender<()>) -> Vec<u16> {
    let mut failed = Vec::new();
    loop {
        let status = client.get("/x").status;
        if status != 200 {
            failed.push(status);
        }
        if told.send(()).is_err() {
            return failed;
        }
    }
}

/// Answers after this long.
fn after(time: Duration, answer: &'static [u8]) -> impl Fn(&mut Conversation) -> std::io::Result<()> + Send + Sync {
    move |conversation| {
        loop {
            conversation.read_request()?;
            pause(time);
            conversation.stream().write_all(answer)?;
        }
    }
}

const HEDGED: &str = "hedge_after = \"50ms\"\nresponse_timeout = \"2s\"";

#[test]
fn for_want_of_an_answer_another_instance_is_asked() {
    let (mut slow, good) = (silent(), Backend::ok());
    let gateway =
        Setup { upstream: EACH_IN_TURN, route: HEDGED, ..Setup::default() }.start(&[slow.address(), good.address()]);
    let mut client = gateway.connect();
    let began = now();
    for _ in 0..4 {
        assert_eq!(client.get("/x").status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // The connection of the one that was not waited for is not used again.
    slow.wait_ended(0);
    let (hedges, won) = (of_upstream(&gateway, "hedges_total"), of_upstream(&gateway, "hedges_won_total"));
    assert!(hedges >= 2 && won == hedges, "{won} of {hedges}");
    let metrics = gateway.metrics();
    let outcome = |outcome| {
        metrics.value(&format!("shardgate_upstream_requests_total{{upstream=\"back\",outcome=\"{outcome}\"}}"))
    };
    assert_eq!((outcome("answered"), outcome("cancelled")), (4, hedges));
    assert_eq!(metrics.sum("shardgate_upstream_retries_total"), 0);
    assert_eq!(metrics.value("shardgate_upstream_requests_in_flight{upstream=\"back\"}"), 0);
    // What may not be carried out twice is not, however long it takes.
    let statuses: Vec<_> = (0..2).map(|_| client.post("/x", b"hello").status).collect();
    assert!(statuses.contains(&504), "{statuses:?}");
}

#[test]
fn the_first_answer_counts_and_an_error_only_if_there_is_no_other() {
    // The second one refuses at once; the first one has it in the end.
    let late = Backend::start(after(Duration::from_millis(300), OK));
    let mut failing = with_status(500, "");
    let gateway =
        Setup { upstream: EACH_IN_TURN, route: HEDGED, ..Setup::default() }.start(&[late.address(), failing.address()]);
    let mut client = gateway.connect();
    let statuses: Vec<_> = (0..4).map(|_| client.get("/x").status).collect();
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 2, "{statuses:?}");
    assert!(failing.requests().len() >= 2);
    let (hedges, won) = (of_upstream(&gateway, "hedges_total"), of_upstream(&gateway, "hedges_won_total"));
    // Where the one that fails was asked first and took its time, the other one's answer counts.
    assert!(hedges - won >= 2, "{won} of {hedges}");
}

#[test]
fn a_kept_connection_that_its_server_has_closed_is_no_failure_of_a_second_instance_either() {
    let late = Backend::start(after(Duration::from_millis(300), OK));
    // It says nothing of it, and answers once on each connection.
    let closing = Backend::start(|conversation| {
        conversation.read_request()?;
        conversation.send(OK)?;
        conversation.read_request().map(drop)
    });
    let upstream = "balance = \"round_robin\"\noutlier_failures = 1";
    let setup = Setup { upstream, route: HEDGED, rest: "[runtime]\nshards = 1", ..Setup::default() };
    let gateway = setup.start(&[late.address(), closing.address()]);
    let mut client = gateway.connect();
    for _ in 0..4 {
        assert_eq!(client.get("/x").status, 200);
    }
    let metrics = gateway.metrics();
    let closed = metrics.value("shardgate_upstream_requests_total{upstream=\"back\",outcome=\"closed\"}");
    assert!(closed >= 1, "a second attempt met such a connection");
    assert_eq!(of_upstream(&gateway, "ejections_total"), 0);
}

#[test]
fn nobody_is_asked_twice_without_another_instance_or_a_budget() {
    let mut slow = silent();
    let route = "hedge_after = \"20ms\"\nresponse_timeout = \"300ms\"";
    let gateway = Setup { upstream: EACH_IN_TURN, route, ..Setup::default() }.start(&[slow.address()]);
    expect_refusal(&gateway.get("/x"), 504, "upstream_timeout");
    let mut other = silent();
    let upstream = "retry_budget_percent = 0\nretry_budget_min_per_s = 0";
    let gateway = Setup { upstream, route, ..Setup::default() }.start(&[slow.address(), other.address()]);
    expect_refusal(&gateway.get("/x"), 504, "upstream_timeout");
    assert_eq!(slow.requests().len() + other.requests().len(), 2);
    assert_eq!(of_upstream(&gateway, "hedges_total"), 0);
}

#[test]
fn a_last_try_that_is_cut_short_takes_no_instance_out() {
    let (first, second) = (silent(), silent());
    let upstream = "outlier_failures = 1\noutlier_percent_max = 100\nretry_on = [\"timeout\"]\nretries_max = 1\n\
                    response_timeout = \"600ms\"\nper_try_timeout = \"400ms\"";
    let gateway = Setup { upstream, ..Setup::default() }.start(&[first.address(), second.address()]);
    expect_refusal(&gateway.get("/x"), 504, "upstream_timeout");
    // The first had its time; the second what was left of the request's.
    assert_eq!(of_upstream(&gateway, "ejections_total"), 1);
}
