//! Traces: begun or continued, and whether the services behind are to record them (W3C Trace Context). OpenTelemetry's
//! usual sampler does as its parent says, and the gateway is the parent of everything behind it.

use super::{Setup, before};
use crate::{
    backend::Backend,
    harness::{Gateway, until},
};

const TRUSTING: &str = "[trust]\nproxies = [\"127.0.0.0/8\"]\n";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// Its last eight bytes are the largest there are, so that no share but the whole takes it.
const LAST: &str = "4bf92f3577b34da6ffffffffffffffff";
/// And the least, so that any does.
const FIRST: &str = "4bf92f3577b34da60000000000000001";
const PARENT: &str = "00f067aa0ba902b7";

/// Sends a GET with these lines, and gives what the backend was told: trace, parent, flags, and the `tracestate`s.
#[track_caller]
fn told(gateway: &Gateway, backend: &mut Backend, lines: &str) -> ([String; 3], Vec<String>) {
    let mut client = gateway.connect();
    client.send(format!("GET /x HTTP/1.1\r\nHost: shop.test\r\n{lines}\r\n"));
    assert_eq!(client.read_response().status, 200);
    let seen = backend.request().head;
    let values = |name: &str| {
        let named = seen.fields.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let [parent] = &values("traceparent")[..] else { panic!("{seen:?}") };
    let parts: Vec<_> = parent.split('-').map(str::to_owned).collect();
    let [version, trace, parent, flags] = <[String; 4]>::try_from(parts).expect("four parts");
    assert_eq!((version.as_str(), trace.len(), parent.len()), ("00", 32, 16));
    assert_ne!(parent, PARENT, "the gateway's span is its own");
    ([trace, parent, flags], values("tracestate"))
}

#[test]
fn a_new_trace_is_recorded_and_a_strangers_decision_is_made_anew() {
    let mut backend = Backend::ok();
    let stranger = before(backend.address());
    let trusting = Setup { rest: TRUSTING, ..Setup::default() }.start(&[backend.address()]);
    let parent =
        |flags: &str| format!("traceparent: 00-{TRACE}-{PARENT}-{flags}\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
    // Gateway, what is sent, whether the trace goes on, flags.
    for (gateway, sent, is_continued, flags) in [
        (&stranger, String::new(), false, "01"),
        (&trusting, String::new(), false, "01"),
        (&stranger, parent("00"), true, "01"),
        (&stranger, parent("01"), true, "01"),
        (&trusting, parent("00"), true, "00"),
        (&trusting, parent("01"), true, "01"),
        // Flags that the version does not define are not passed on.
        (&trusting, parent("fe"), true, "00"),
        (&trusting, parent("03"), true, "01"),
        // Another version is read as far as ours goes, and ours is written.
        (
            &trusting,
            format!("traceparent: cc-{TRACE}-{PARENT}-00-more\r\ntracestate: a=1\r\ntracestate: b=2\r\n"),
            true,
            "00",
        ),
        (&trusting, format!("traceparent: ff-{TRACE}-{PARENT}-00\r\ntracestate: a=1\r\n"), false, "01"),
        (&trusting, format!("traceparent: 00-{TRACE}-{PARENT}\r\ntracestate: a=1\r\n"), false, "01"),
        // Two say nothing, whether they agree or not.
        (&trusting, parent("00") + &parent("00"), false, "01"),
        (&stranger, format!("{}Traceparent: 00-{LAST}-{PARENT}-00\r\n", parent("00")), false, "01"),
    ] {
        let ([trace, _, told_flags], state) = told(gateway, &mut backend, &sent);
        assert_eq!((trace == TRACE, told_flags.as_str()), (is_continued, flags), "{sent}");
        assert_ne!(trace, LAST, "{sent}");
        let kept: &[&str] = if is_continued { &["a=1", "b=2"] } else { &[] };
        assert_eq!(state, kept, "it belongs to the trace that it came with: {sent}");
    }
    // Shards write on their own: the lines stand in any order.
    let lines = stranger.access_lines(4);
    assert_eq!(lines.iter().filter(|line| line["trace_id"] == TRACE).count(), 2, "{lines:?}");
}

#[test]
fn a_share_of_the_traces_is_recorded_and_every_instance_takes_the_same() {
    let mut backend = Backend::ok();
    let share = |rest: &str| Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let (one, two) = (share("[trace]\nsample_ratio = 0.5\n"), share("[trace]\nsample_ratio = 0.5\n"));
    let (none, trusting) =
        (share("[trace]\nsample_ratio = 0\n"), share(&format!("[trace]\nsample_ratio = 0.0\n{TRUSTING}")));
    let sent = |trace: &str, flags: &str| format!("traceparent: 00-{trace}-{PARENT}-{flags}\r\n");
    for (gateway, trace, sent_flags, flags) in [
        (&one, FIRST, "00", "01"),
        (&two, FIRST, "00", "01"),
        (&one, LAST, "01", "00"),
        (&two, LAST, "01", "00"),
        (&none, FIRST, "01", "00"),
        (&trusting, FIRST, "01", "01"),
        (&trusting, FIRST, "00", "00"),
    ] {
        let ([told_trace, _, told_flags], _) = told(gateway, &mut backend, &sent(trace, sent_flags));
        assert_eq!((told_trace.as_str(), told_flags.as_str()), (trace, flags), "{trace} {sent_flags}");
    }
    let mut began = [0, 0];
    for _ in 0..64 {
        let ([trace, _, flags], _) = told(&one, &mut backend, "");
        began[usize::from(flags == "01")] += 1;
        // What one instance has decided another decides alike.
        let ([_, _, again], _) = told(&two, &mut backend, &sent(&trace, "00"));
        assert_eq!(again, flags, "{trace}");
    }
    assert!(began[0] > 0 && began[1] > 0, "{began:?}");
    assert_eq!(told(&none, &mut backend, "").0[2], "00");
}

#[test]
fn a_reload_changes_the_share() {
    let mut backend = Backend::ok();
    let config = |ratio: &str| {
        format!(
            "[trace]\nsample_ratio = {ratio}\n[upstreams.back]\ninstances = [\"{}\"]\n[[routes]]\naccess = \"public\"\n\
             path = \"/*\"\nupstream = \"back\"\n",
            backend.address()
        )
    };
    let (none, all) = (config("0.0"), config("1"));
    let gateway = Gateway::start(&none);
    assert_eq!(told(&gateway, &mut backend, "").0[2], "00");
    gateway.rewrite_config(&all);
    gateway.signal(rustix::process::Signal::HUP);
    until(std::time::Duration::from_secs(10), "new traces are recorded", || {
        (told(&gateway, &mut backend, "").0[2] == "01").then_some(())
    });
}
