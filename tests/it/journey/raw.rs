//! Raw bytes from either side: the tables in `tests/data/http1`, which the cores are tested with, sent through the whole
//! gateway. What is ambiguous or malformed is refused, ends its connection, and is never passed on.

use std::{io, time::Duration};

use super::{Setup, expect_refusal};
use crate::{
    backend::{Backend, OK},
    client::{Client, Response},
    harness::until,
};

#[path = "../../data/http1/cases.rs"]
#[expect(unreachable_pub, reason = "the tests of the cores include it too")]
mod cases;

use cases::Case;

const REQUESTS: &str = include_str!("../../data/http1/requests.txt");
const ANSWERS: &str = include_str!("../../data/http1/responses.txt");

/// The limits that the tables are written for.
const LIMITS: &str = "head_bytes_max = 2048\nfields_max = 16\ntarget_bytes_max = 256";

/// How long a connection may be held out of use.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the client is told for each mistake that the table names.
fn code_of(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        414 => "uri_too_long",
        417 => "expectation_failed",
        431 => "header_too_large",
        501 => "not_implemented",
        505 => "http_version_not_supported",
        502 => "upstream_bad_response",
        _ => panic!("no refusal has status {status}"),
    }
}

#[test]
fn requests_are_passed_on_or_refused_as_the_table_says() {
    let mut backend = Backend::ok();
    let gateway = Setup { http: LIMITS, ..Setup::default() }.start(&[backend.address()]);
    let mut count = 0;
    for (case, understood) in table(REQUESTS) {
        let mut client = gateway.connect();
        // Some are refused before their last byte.
        let _ = client.try_send(&case.raw);
        check_request(&case, understood.as_deref(), &mut client, &mut backend);
        count += 1;
    }
    assert!(count >= 60, "{count} cases");
}

fn check_request(case: &Case, understood: Option<&str>, client: &mut Client, backend: &mut Backend) {
    let Case { name, outcome, written, .. } = case;
    let context = format!("{name}: {written}");
    let method = understood.and_then(|text| text.split(' ').next()).unwrap_or("GET");
    match outcome.split(' ').collect::<Vec<_>>()[..] {
        ["accept"] if method == "CONNECT" => {
            expect_refusal(&client.read_response(), 501, "not_implemented");
            assert!(backend.requests().is_empty(), "{context}");
        }
        ["accept"] if understood.is_some_and(|text| text.starts_with("OPTIONS Asterisk")) => {
            assert_eq!(client.read_response().status, 204, "{context}");
            assert!(backend.requests().is_empty(), "{context}");
        }
        ["accept"] => {
            // Each request in the case is understood as one by the backend, no more and no less.
            for head in understood.expect("what is accepted is understood").split("; ").filter(|part| is_head(part)) {
                let method = head.split(' ').next().unwrap_or_default();
                let mut answer = client.try_read_response(method).unwrap_or_else(|error| panic!("{error}: {context}"));
                if answer.status == 100 {
                    answer = client.try_read_response(method).unwrap_or_else(|error| panic!("{error}: {context}"));
                }
                assert_eq!(answer.status, 200, "{context}: {answer:?}");
                let seen = backend.request();
                assert!(seen.head.first_line.starts_with(&format!("{method} ")), "{context}: {seen:?}");
                let framing = ["content-length", "transfer-encoding"].map(|name| count(&seen.head.fields, name));
                let announced: usize = framing.iter().sum();
                assert_eq!(announced, usize::from(!head.contains("body=None")), "{context}: {seen:?}");
            }
            assert!(backend.requests().is_empty(), "{context}");
        }
        ["wait"] => {
            // There is nothing to answer: the connection just ends.
            client.finish();
            assert_eq!(client.read_to_end().expect("an end"), b"", "{context}");
            assert!(backend.requests().is_empty(), "{context}");
        }
        [_, "Truncated"] if announces_too_much(understood) => {
            expect_refusal(&client.read_response(), 413, "body_too_large");
            assert!(backend.requests().is_empty(), "{context}");
        }
        [_, "Truncated"] => {
            client.finish();
            assert_eq!(client.read_to_end().expect("an end"), b"", "{context}");
            assert!(backend.requests().is_empty(), "{context}");
        }
        [status, _] => {
            let status = status.parse().expect("a status");
            let answer = client.try_read_response("GET").unwrap_or_else(|error| panic!("{error}: {context}"));
            assert_eq!(answer.status, status, "{context}: {answer:?}");
            expect_refusal(&answer, status, code_of(status));
            assert_eq!(answer.field("connection"), Some("close"), "{context}");
            assert_eq!(client.read_to_end().expect("an end"), b"", "{context}");
            // A head that was good may be there by now; a request that was not is never complete.
            assert!(backend.requests().is_empty(), "{context}");
        }
        _ => panic!("unknown outcome: {context}"),
    }
}

/// Whether the length alone is more than is accepted by default.
fn announces_too_much(understood: Option<&str>) -> bool {
    let length = understood.and_then(|text| text.split_once("body=Length(")?.1.split_once(')'));
    length.is_some_and(|(length, _)| length.parse::<u64>().is_ok_and(|length| length > 1024 * 1024))
}

/// Whether a part of what was understood is a request's head, not a body or trailers.
fn is_head(part: &str) -> bool {
    part.contains(" authority=")
}

fn count(fields: &[(String, String)], name: &str) -> usize {
    fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name)).count()
}

#[test]
fn answers_are_passed_on_or_refused_as_the_table_says() {
    // The head's bounds are narrower in the table than on the wire.
    let cases: Vec<_> = table(ANSWERS)
        .filter(|(case, _)| !case.name.ends_with("past its limit") && !case.name.ends_with("past their limit"))
        .filter(|(case, _)| !case.name.starts_with("CONNECT"))
        .collect();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let raw: Vec<Vec<u8>> = cases.iter().map(|(case, _)| case.raw.clone()).collect();
    let ends: Vec<bool> = cases.iter().map(|(case, _)| ends_with_it(case)).collect();
    let mut backend = Backend::start(move |conversation| {
        loop {
            let request = conversation.read_request()?;
            let target = request.head.first_line.split(' ').nth(1).unwrap_or_default();
            let Ok(number) = target[1..].parse::<usize>() else {
                conversation.send(OK)?;
                continue;
            };
            conversation.send(&raw[number])?;
            if ends[number] {
                return Ok(());
            }
        }
    });
    // Each answer is judged by itself: none ejects the backend, or opens the circuit.
    let upstream = "outlier_failures = 0\nretries_max = 0\nbreaker.percent = 0";
    let start = |backend: &Backend| Setup { upstream, ..Setup::default() }.start(&[backend.address()]);
    let mut gateway = start(&backend);
    let mut burnt = Vec::new();
    for (number, (case, understood)) in cases.iter().enumerate() {
        let context = format!("{}: {}", case.name, case.written);
        let method = if case.name.starts_with("HEAD ") { "HEAD" } else { "GET" };
        let mut client = gateway.connect();
        client.send(format!("{method} /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let (told, outcome) = read_answers(&mut client, method);
        let used = backend.request().connection;
        assert!(!burnt.contains(&used), "{context}: over a connection that is not to be used again");
        let is_kept_by_client = outcome.as_ref().is_ok_and(|answer| answer.field("connection").is_none());
        let understood = understood.as_deref();
        if let Some(understood) = understood {
            let of_backend = understood.split("; ").filter(|part| part.starts_with('1'));
            let passed_on =
                of_backend.filter_map(|part| part.get(..3)).filter(|status| !["100", "101"].contains(status));
            assert!(told.iter().map(String::as_str).eq(passed_on), "{context}: {told:?}");
        }
        let is_kept = check_answer(case, understood, outcome, &context);
        if !is_kept {
            burnt.push(used);
        }
        // The next request on the same shard shows whether the connection to the backend is still trusted.
        if is_kept_by_client {
            let mut is_used_again = || {
                let answer = client.get("/next");
                assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{context}: {answer:?}");
                backend.request().connection == used
            };
            if is_kept {
                // Where something may come behind it, that is waited for first.
                until(PATIENCE, &format!("{context}: the connection is used again"), || is_used_again().then_some(()));
            } else {
                assert!(!is_used_again(), "{context}: reuse of the connection");
            }
        }
        if gateway.metrics().sum("shardgate_upstream_instances_distrusted") > 0 {
            // Something came behind the answer. For this one every connection is in doubt from here on.
            gateway = start(&backend);
        }
    }
}

/// The statuses of the interim answers, and the answer that follows them.
fn read_answers(client: &mut Client, method: &str) -> (Vec<String>, io::Result<Response>) {
    let mut told = Vec::new();
    loop {
        match client.try_read_response(method) {
            Ok(answer) if (102..200).contains(&answer.status) => told.push(answer.status.to_string()),
            outcome => return (told, outcome),
        }
    }
}

/// Checks what the client got; returns whether the connection to the backend may be used again.
fn check_answer(case: &Case, understood: Option<&str>, outcome: io::Result<Response>, context: &str) -> bool {
    if case.name == "101" {
        // Nobody asked for it.
        let answer = outcome.unwrap_or_else(|error| panic!("{error}: {context}"));
        expect_refusal(&answer, 502, "upstream_bad_response");
        return false;
    }
    match case.outcome.split(' ').collect::<Vec<_>>()[..] {
        ["accept"] => {
            let answer = outcome.unwrap_or_else(|error| panic!("{error}: {context}"));
            let mut answers = understood.expect("what is accepted is understood").split("; ").peekable();
            while answers.peek().is_some_and(|text| text.starts_with('1')) {
                answers.next();
            }
            let wanted = answers.next().expect("a final answer");
            assert!(wanted.starts_with(&answer.status.to_string()), "{context}: {answer:?}");
            let body = answers.next().filter(|part| part.starts_with('"')).unwrap_or("\"\"");
            assert_eq!(format!("{:?}", answer.text()), body, "{context}");
            // What follows a 204 unasked would be taken for the answer to the next request.
            !wanted.contains(" close") && case.name != "204"
        }
        ["502", _] if understood.is_some() => {
            // The head was good and is out already: all that is left is to break off.
            assert!(outcome.is_err(), "{context}: {outcome:?}");
            false
        }
        ["502", "Truncated"] | ["wait"] => {
            let answer = outcome.unwrap_or_else(|error| panic!("{error}: {context}"));
            expect_refusal(&answer, 502, "upstream_unreachable");
            false
        }
        ["502", _] => {
            let answer = outcome.unwrap_or_else(|error| panic!("{error}: {context}"));
            assert_eq!(answer.status, 502, "{context}");
            expect_refusal(&answer, 502, "upstream_bad_response");
            false
        }
        _ => panic!("unknown outcome: {context}"),
    }
}

/// Whether the backend closes after this answer, because it is framed by that or cut short.
fn ends_with_it(case: &Case) -> bool {
    let ends = ["until close", "incomplete", "chunked cut", "length cut", "HTTP/0.9"];
    ends.iter().any(|start| case.name.starts_with(start))
}

/// The cases of a table, each with what is understood of it.
fn table(text: &'static str) -> impl Iterator<Item = (Case, Option<String>)> {
    cases::lines(text).zip(text.lines()).filter_map(|(line, written)| {
        let case = line.ok()?;
        Some((case, written.split(" | ").nth(3).map(str::to_owned)))
    })
}
