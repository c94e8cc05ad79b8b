//! A client that has sent its request and ends its sending side: it may have left, or wait for its answer. Which of the two
//! is for `on_client_close` to say, and then it is the same every time.

use std::sync::mpsc;

use rustix::process::Signal;

use super::{Setup, before};
use crate::{
    backend::{Backend, OK},
    client::Client,
    harness::{Gateway, until},
};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
const TRIES: usize = 8;

/// When a backend is to answer, and when it has.
struct Cue {
    go: mpsc::Receiver<()>,
    sent: mpsc::Receiver<()>,
}

/// A backend that answers when it is told to.
fn patient() -> (Backend, Cue) {
    // It goes on when its test takes note.
    let ((waits, go), (has_sent, sent)) = (mpsc::sync_channel(0), mpsc::channel());
    let backend = Backend::start(move |conversation| {
        loop {
            conversation.read_request()?;
            let _ = waits.send(());
            conversation.send(OK)?;
            let _ = has_sent.send(());
        }
    });
    (backend, Cue { go, sent })
}

/// The client's end and the answer meet the gateway in one look.
fn end_and_answer(gateway: &Gateway, cue: &Cue, client: &Client) {
    gateway.stand_still();
    client.finish();
    cue.go.recv().expect("the backend waits");
    cue.sent.recv().expect("the backend answers");
    gateway.signal(Signal::CONT);
}

#[test]
fn by_default_it_has_left_even_where_its_answer_is_here() {
    let (mut backend, cue) = patient();
    let gateway = before(backend.address());
    for number in 0..TRIES {
        let mut client = gateway.connect();
        client.send(GET);
        backend.request();
        end_and_answer(&gateway, &cue, &client);
        assert_eq!(client.read_to_end().unwrap_or_default(), b"", "the {number}th was answered");
    }
    let reasons: Vec<_> = gateway.access_lines(TRIES).iter().map(|line| line["reason"].clone()).collect();
    assert!(reasons.iter().all(|reason| reason == "client_closed" || reason == "client_gone"), "{reasons:?}");
    // Whoever ends with its last byte has left as well; what needs no waiting is answered all the same.
    for (path, is_answered) in [("/x", false), ("/health/live", true)] {
        let mut client = gateway.connect();
        gateway.stand_still();
        client.send(GET.replace("/x", path));
        client.finish();
        gateway.signal(Signal::CONT);
        let got = client.read_to_end().unwrap_or_default();
        assert_eq!(got.starts_with(b"HTTP/1.1 200"), is_answered, "{path}");
    }
}

#[test]
fn it_is_answered_where_requests_are_finished() {
    let (mut backend, cue) = patient();
    let route = Setup { route: "on_client_close = \"finish\"", ..Setup::default() }.start(&[backend.address()]);
    let all = Setup { http: "on_client_close = \"finish\"", ..Setup::default() }.start(&[backend.address()]);
    for number in 0..TRIES {
        for gateway in [&route, &all] {
            let mut client = gateway.connect();
            client.send(GET);
            backend.request();
            end_and_answer(gateway, &cue, &client);
            let got = client.read_to_end().expect("the whole answer");
            assert!(got.starts_with(b"HTTP/1.1 200") && got.ends_with(b"ok"), "{number}: {}", got.escape_ascii());
        }
    }
}

#[test]
fn a_log_in_is_answered_or_not_like_everything_else() {
    let request = |email: &str| {
        let body = format!("{{\"email\":\"{email}\",\"password\":\"a password of nobody\"}}");
        format!(
            "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // A password takes its time, so that the end is seen before the answer.
    for (on_close, is_answered) in [("cancel", false), ("finish", true)] {
        let gateway = Gateway::start(&format!(
            "routes = []\n[http]\non_client_close = \"{on_close}\"\n[accounts]\npassword_passes = 4\n"
        ));
        for number in 0..4 {
            let mut client = gateway.connect();
            client.send(request(&format!("nobody{number}@a.test")));
            client.finish();
            let got = client.read_to_end().unwrap_or_default();
            assert_eq!(got.starts_with(b"HTTP/1.1 401"), is_answered, "{on_close} {number}: {}", got.escape_ascii());
            assert_eq!(got.is_empty(), !is_answered, "{on_close} {number}");
        }
        let lines = gateway.access_lines(4);
        let reason = if is_answered { "invalid_credentials" } else { "client_closed" };
        assert!(lines.iter().all(|line| line["reason"] == reason), "{lines:?}");
    }
}

#[test]
fn a_request_that_breaks_off_is_none_whatever_is_configured() {
    let (backend, _cue) = patient();
    let gateway = Setup { http: "on_client_close = \"finish\"", ..Setup::default() }.start(&[backend.address()]);
    for request in [
        "GET /x HTTP/1.1\r\nHost: a\r\n",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell",
        "POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{",
    ] {
        let mut client = gateway.connect();
        client.send(request);
        client.finish();
        assert_eq!(client.read_to_end().unwrap_or_default(), b"", "{request}");
    }
    until(std::time::Duration::from_secs(10), "nothing is under way", || {
        (gateway.metrics().sum("shardgate_requests_in_flight") == 0).then_some(())
    });
}
