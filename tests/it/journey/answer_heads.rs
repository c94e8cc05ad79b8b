//! Heads of answers: how large they may be, and what is mended about them.

use super::{Setup, before, expect_refusal};
use crate::backend::Backend;

/// What a backend answers by the request's path: a head of so many bytes, so many fields, or so many interim answers.
fn measured() -> Backend {
    Backend::answering(|request| {
        let path = request.head.first_line.split(' ').nth(1).expect("a path");
        let mut parts = path[1..].split('/');
        let (what, count) =
            (parts.next().expect("a kind"), parts.next().expect("a count").parse::<usize>().expect("one"));
        let (start, end) = ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", "\r\nok");
        match what {
            "bytes" => {
                let filled = "X: ".len() + "\r\n\r\n".len() + start.len();
                format!("{start}X: {}\r\n{end}", "x".repeat(count - filled))
            }
            "fields" => format!("{start}{}{end}", "X: y\r\n".repeat(count - 1)),
            _ => format!("{}{start}{end}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(count)),
        }
    })
}

#[test]
fn heads_past_their_bounds_are_refused_and_the_refusal_says_which() {
    let backend = measured();
    let usual = before(backend.address());
    let narrow = Setup {
        upstream: "head_bytes_max = \"1KiB\"\nfields_max = 8\ninterim_answers_max = 1\noutlier_failures = 0",
        route: "interim_answers = false",
        ..Setup::default()
    };
    let wide = Setup { upstream: "head_bytes_max = \"1MiB\"\ninterim_answers_max = 255", ..narrow };
    let none = Setup { upstream: "interim_answers_max = 0", ..narrow };
    let [narrow, wide, none] = [narrow, wide, none].map(|setup| setup.start(&[backend.address()]));
    for (gateway, kind, most, word) in [
        (&usual, "bytes", 65_536, "larger"),
        (&usual, "fields", 256, "more fields"),
        (&narrow, "bytes", 1024, "larger"),
        (&narrow, "fields", 8, "more fields"),
        (&narrow, "interim", 1, "more interim answers"),
        (&wide, "bytes", 1024 * 1024, "larger"),
        (&wide, "interim", 255, "more interim answers"),
        (&none, "interim", 0, "more interim answers"),
    ] {
        let answer = gateway.get(&format!("/{kind}/{most}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{kind} {most}");
        let refused = gateway.get(&format!("/{kind}/{}", most + 1));
        expect_refusal(&refused, 502, "upstream_bad_response");
        let detail = refused.json()["detail"].as_str().expect("a sentence").to_owned();
        assert!(detail.contains(word), "{kind} {most}: {detail}");
    }
}

#[test]
fn white_space_before_a_colon_is_taken_out_and_counted() {
    const SPACED: &str = "HTTP/1.1 200 OK\r\nX-Spaced : a \r\nX-Tabbed\t \t: b:c\r\nSet-Cookie : d=1\r\n\
                          Content-Length  : 2\r\n\r\nok";
    const PLAIN: &str = "HTTP/1.1 200 OK\r\nX-Plain: b\r\nContent-Length: 2\r\n\r\nok";
    let backend = Backend::answering(|request| if request.head.first_line.contains("/plain") { PLAIN } else { SPACED });
    let gateway = before(backend.address());
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("GET /spaced HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = client.read_until("\r\n\r\n");
        let head = String::from_utf8(head).expect("ASCII");
        for line in ["X-Spaced: a\r\n", "X-Tabbed: b:c\r\n", "Set-Cookie: d=1\r\n", "Content-Length: 2\r\n"] {
            assert!(head.contains(line), "{line:?}: {head}");
        }
        client.read_until("ok");
    }
    assert_eq!(client.get("/plain").field("x-plain"), Some("b"));
    let mended = "shardgate_upstream_answers_mended_total{upstream=\"back\"}";
    gateway.metrics_until("both are counted", |metrics| metrics.value(mended) == 2);
    // A request with such a field is refused, as ever: RFC 9112 §5.1.
    let mut client = gateway.connect();
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n");
    expect_refusal(&client.read_response(), 400, "bad_request");
}
