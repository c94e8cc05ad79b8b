//! How tunnels end that are ended by the gateway: those of `WebSocket` are told why, at the border of a frame; all close.

use std::{io::Read as _, time::Duration};

use rustix::process::Signal;

use super::Setup;
use crate::{
    backend::{Backend, Conversation},
    client::Client,
    harness::Gateway,
};

const SOON: Duration = Duration::from_secs(10);
const CLIENTS: usize = 32;

fn ask(protocol: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a\r\nUser-Agent: tests\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

fn switch(protocol: &str) -> String {
    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

/// A frame of text as a client sends it, with a mask that changes nothing.
fn masked(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// A `Close` as the gateway sends it to a client.
fn close(code: u16) -> Vec<u8> {
    [&[0x88, 2], &code.to_be_bytes()[..]].concat()
}

/// What the gateway sent to a service at last: the code of its `Close`, unmasked.
fn closed_with(heard: &[u8]) -> Option<u16> {
    let [.., 0x88, 0x82, a, b, _, _, high, low] = heard else { return None };
    Some(u16::from_be_bytes([high ^ a, low ^ b]))
}

/// A service that switches, then does as the script says; `heard` gets what it heard until the end.
fn service(
    protocol: &'static str,
    script: impl Fn(&mut Conversation) -> std::io::Result<()> + Send + Sync + 'static,
) -> (Backend, std::sync::mpsc::Receiver<Vec<u8>>) {
    let (tell, heard) = std::sync::mpsc::channel();
    let backend = Backend::start(move |conversation| {
        conversation.read_head()?;
        conversation.send(switch(protocol))?;
        script(conversation)?;
        let _ = tell.send(conversation.read_to_end());
        Ok(())
    });
    (backend, heard)
}

fn open(gateway: &Gateway, protocol: &str) -> Client {
    let mut client = gateway.connect();
    client.send(ask(protocol));
    assert_eq!(client.read_response().status, 101);
    client
}

fn wait_open(gateway: &Gateway, count: usize) {
    let count = i64::try_from(count).expect("few");
    gateway.metrics_until("the tunnels are open", |metrics| metrics.sum("shardgate_tunnels_open") == count);
}

#[test]
fn a_drain_closes_websockets_one_by_one_and_ends_well() {
    for driver in ["epoll", "io_uring"] {
        let (backend, heard) = service("websocket", |_| Ok(()));
        let rest = format!(
            "[runtime]\nshards = 4\ndriver = \"{driver}\"\n[drain]\nnotice = \"0s\"\nwindow = \"400ms\"\nmax = \"20s\""
        );
        let mut gateway = Setup { rest: &rest, ..Setup::default() }.start(&[backend.address()]);
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| open(&gateway, "websocket")).collect();
        wait_open(&gateway, CLIENTS);
        let metrics = gateway.metrics();
        let served = metrics.by_shard("shardgate_shard_requests_total");
        assert!(served.len() == 4 && served.iter().all(|count| *count > 0), "{driver}: {served:?}");
        let routed = |family: &str| metrics.value(&format!("shardgate_{family}{{route=\"all\"}}"));
        assert_eq!(
            (routed("request_duration_seconds_count"), metrics.sum("shardgate_requests_in_flight")),
            (i64::try_from(CLIENTS).expect("few"), 0),
            "an open tunnel is no request"
        );
        for client in &mut clients {
            client.send(masked("hi"));
        }
        gateway.signal(Signal::TERM);
        for client in &mut clients {
            assert_eq!(client.read_to_end().expect("a FIN, not a reset"), close(1001), "{driver}");
            client.finish();
        }
        for _ in 0..CLIENTS {
            let heard = heard.recv_timeout(SOON).expect("its end");
            assert!(heard.starts_with(&masked("hi")), "{driver}: {heard:?}");
            assert_eq!(closed_with(&heard), Some(1001), "{driver}: {heard:?}");
        }
        assert_eq!(gateway.wait_exit(SOON), Some(0), "{driver}");
        for line in gateway.access_lines(CLIENTS) {
            assert_eq!((&line["reason"], line["status"].as_u64()), (&"draining".into(), Some(101)), "{line}");
            assert_eq!((&line["path"], &line["host"], &line["method"]), (&"/x".into(), &"a".into(), &"GET".into()));
            assert_eq!((&line["user_agent"], line["request_bytes"].as_u64()), (&"tests".into(), Some(8)), "{line}");
        }
    }
}

#[test]
fn what_is_said_at_the_end_stands_between_two_frames() {
    // The service is in the middle of a frame, and so is the client.
    let (backend, heard) = service("websocket", |conversation| {
        conversation.send([0x81, 5, b'h', b'e'])?;
        conversation.read_until(b"half")?;
        // The gateway has been told to end by now.
        conversation.read_until(b"frame")?;
        conversation.send(b"llo\x81\x04more")
    });
    let rest = "[runtime]\nshards = 1\n[drain]\nnotice = \"0s\"\nwindow = \"0s\"";
    let mut gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let mut idle = gateway.connect();
    assert_eq!(idle.get("/health/live").status, 200);
    let mut client = open(&gateway, "websocket");
    let first = masked("half a frame");
    client.send(&first[..10]);
    client.read_until(b"\x81\x05he");
    gateway.metrics_until("the half has passed", |metrics| {
        metrics.value("shardgate_tunnel_received_bytes_total{route=\"all\"}") == 10
            && metrics.value("shardgate_tunnel_sent_bytes_total{route=\"all\"}") == 4
    });
    gateway.signal(Signal::TERM);
    // The shard tells all of its connections in one turn.
    idle.expect_end();
    client.send([&first[10..], &masked("another")].concat());
    assert_eq!(client.read_to_end().expect("a FIN"), [b"llo".as_slice(), &close(1001)].concat());
    client.finish();
    // Behind "frame" comes the `Close`, and nothing of the other frame.
    let rest = heard.recv_timeout(SOON).expect("its end");
    assert_eq!((rest.len(), closed_with(&rest)), (8, Some(1001)), "{rest:?}");
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn nothing_is_said_behind_a_close_nor_in_a_language_that_nobody_knows() {
    // This client has closed already; its service takes its time to answer.
    let (backend, heard) = service("websocket", |_| Ok(()));
    let rest = "[drain]\nnotice = \"0s\"\nwindow = \"0s\"";
    let mut gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let mut client = open(&gateway, "websocket");
    let closing = [0x88, 0x80, 1, 2, 3, 4];
    client.send(closing);
    gateway.metrics_until("it has passed", |metrics| metrics.sum("shardgate_tunnel_received_bytes_total") == 6);
    gateway.signal(Signal::TERM);
    assert_eq!(client.read_to_end().expect("a FIN"), close(1001));
    client.finish();
    assert_eq!(heard.recv_timeout(SOON).expect("its end"), closing);
    assert_eq!(gateway.wait_exit(SOON), Some(0));

    let (backend, heard) = service("foo", |conversation| conversation.send("bar"));
    let setup = Setup { rest, route: "upgrades = [\"foo\"]", ..Setup::default() };
    let mut gateway = setup.start(&[backend.address()]);
    let mut client = open(&gateway, "foo");
    client.send("foo");
    client.read_until("bar");
    gateway.metrics_until("it has passed", |metrics| metrics.sum("shardgate_tunnel_received_bytes_total") == 3);
    gateway.signal(Signal::TERM);
    assert_eq!(client.read_to_end().expect("a FIN"), b"");
    client.finish();
    assert_eq!(heard.recv_timeout(SOON).expect("its end"), b"foo");
    assert_eq!(gateway.wait_exit(SOON), Some(0));
}

#[test]
fn whoever_never_finishes_a_frame_is_not_waited_for() {
    let (backend, heard) = service("websocket", |conversation| conversation.send([0x82, 126, 0xff, 0xff, b'x']));
    let rest = "[drain]\nnotice = \"0s\"\nwindow = \"0s\"";
    let mut gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let mut client = open(&gateway, "websocket");
    client.read_until("x");
    client.send([0x82, 0xff, 0, 0, 0, 0, 0, 1]);
    gateway.metrics_until("it has passed", |metrics| metrics.sum("shardgate_tunnel_received_bytes_total") == 8);
    gateway.signal(Signal::TERM);
    // Neither side closes by itself.
    client.expect_end();
    assert_eq!(closed_with(&heard.recv_timeout(SOON).expect("its end")), None);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    assert_eq!(gateway.access_lines(1)[0]["reason"], "draining");
}

#[test]
fn whoever_goes_on_and_on_has_the_time_of_a_farewell_and_no_more() {
    // Both sides send as fast as they can, inside of frames that do not end, and read what comes.
    let flood = |stream: &std::net::TcpStream, header: &'static [u8]| {
        use std::io::Write as _;
        let (mut writes, mut reads) = (stream.try_clone().expect("cloned"), stream.try_clone().expect("cloned"));
        let reading = std::thread::spawn(move || while reads.read(&mut [0; 16_384]).is_ok_and(|read| read > 0) {});
        let _ = writes.write_all(header);
        while writes.write_all(&[0; 16_384]).is_ok() {}
        let _ = reading.join();
    };
    let backend = Backend::start(move |conversation| {
        conversation.read_head()?;
        conversation.send(switch("websocket"))?;
        flood(conversation.stream(), &[0x82, 127, 0x7f, 0xff, 0, 0, 0, 0, 0, 0]);
        Ok(())
    });
    let rest = "[runtime]\nshards = 1\n[drain]\nnotice = \"0s\"\nwindow = \"0s\"\nmax = \"1m\"";
    let mut gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let client = open(&gateway, "websocket");
            let stream = client.stream().try_clone().expect("cloned");
            std::thread::spawn(move || {
                flood(&stream, &[0x82, 0xff, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                drop(client);
            })
        })
        .collect();
    let many = 64 * 1024 * 1024;
    gateway.metrics_until("they flow", |metrics| metrics.sum("shardgate_tunnel_received_bytes_total") > many);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_exit(SOON), Some(0));
    for client in clients {
        client.join().expect("it ends");
    }
}

#[test]
fn a_tunnel_that_outlasts_the_drain_is_cut() {
    let (backend, heard) = service("websocket", |_| Ok(()));
    // A window as long as the drain: there is less than the two seconds that a tunnel may take to end.
    let rest = "[drain]\nnotice = \"0s\"\nmax = \"100ms\"";
    let mut gateway = Setup { rest, ..Setup::default() }.start(&[backend.address()]);
    let client = open(&gateway, "websocket");
    wait_open(&gateway, 1);
    gateway.signal(Signal::TERM);
    // It says goodbye, and this client, which reads nothing and keeps its side open, is cut.
    assert_eq!(gateway.wait_exit(SOON), Some(3));
    let _ = client.stream().read(&mut [0; 64]);
    let _ = heard.recv_timeout(SOON).expect("its end");
}

#[test]
fn tunnels_are_counted_by_how_they_end() {
    let (mut backend, _heard) = service("websocket", |conversation| {
        conversation.send("hello")?;
        match conversation.read_until(b"!")?.as_slice() {
            b"reset!" => conversation.reset(),
            b"close!" => Ok(()),
            _ => {
                conversation.read_to_end();
                Ok(())
            }
        }
    });
    let setup = Setup { route: "stream_idle_timeout = \"300ms\"", ..Setup::default() };
    let gateway = setup.start(&[backend.address()]);
    for (says, reason) in [("close!", "closed"), ("reset!", "broken"), ("wait!", "idle")] {
        let mut client = open(&gateway, "websocket");
        client.send(says);
        if reason == "closed" {
            client.finish();
        }
        let series = format!("shardgate_tunnels_ended_total{{route=\"all\",reason=\"{reason}\"}}");
        gateway.metrics_until(reason, |metrics| metrics.value(&series) == 1);
    }
    let metrics = gateway.metrics();
    let routed = |family: &str| metrics.value(&format!("shardgate_{family}{{route=\"all\"}}"));
    assert_eq!((routed("tunnels_open"), routed("tunnel_lifetime_seconds_count")), (0, 3));
    assert_eq!((routed("tunnel_received_bytes_total"), routed("tunnel_sent_bytes_total")), (17, 15));
    assert_eq!(routed("request_body_bytes_total") + routed("response_body_bytes_total"), 0);
    assert_eq!(backend.requests().len(), 0);
}
