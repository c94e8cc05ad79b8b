//! The metrics as those read them who scrape: in both formats, of connections by what they carry, of each instance.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;

use super::has_tool;
use crate::{
    backend::{Backend, Conversation},
    client::{Client, Response},
    harness::{Gateway, pause},
    journey::{
        access::{KEYS, token},
        outcomes::nobody,
    },
    servers::python::python,
    service::Service,
};

const SWITCH: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A service whose answers last.
fn lasting(conversation: &mut Conversation) -> std::io::Result<()> {
    loop {
        let (_, head) = conversation.read_head()?;
        match head.first_line.split(' ').nth(1).unwrap_or_default() {
            "/events" => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream ;charset=utf-8\r\n";
                conversation.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n"))?;
                conversation.read_to_end();
                return Ok(());
            }
            "/tunnel" => {
                conversation.send(format!("HTTP/1.1 101 Switching Protocols\r\n{SWITCH}\r\n"))?;
                conversation.read_to_end();
                return Ok(());
            }
            _ => conversation.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?,
        }
    }
}

#[test]
fn what_lasts_is_counted_by_itself_and_is_no_requests_duration() {
    let back = Backend::start(lasting);
    let config = format!(
        "{KEYS}[upstreams.back]\ninstances = [\"{}\"]\n\
         [[routes]]\nname = \"all\"\npath = \"/*\"\nupstream = \"back\"\naccess = \"public\"\n",
        back.address()
    );
    let gateway = Gateway::start(&config);
    let ask = |request: String| {
        let mut client = gateway.connect();
        client.send(request);
        client
    };
    let mut kept = gateway.connect();
    assert_eq!(kept.get("/x").status, 200);
    let mut stream = ask("GET /events HTTP/1.1\r\nHost: a\r\n\r\n".to_owned());
    stream.read_until("data: 1");
    let mut tunnel = ask(format!("GET /tunnel HTTP/1.1\r\nHost: a\r\n{SWITCH}\r\n"));
    assert_eq!(tunnel.read_response().status, 101);
    let bearer = token(&json!({}));
    let mut socket = ask(format!("GET /ws HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {bearer}\r\n{SWITCH}\r\n"));
    assert_eq!(socket.read_response().status, 101);
    gateway.metrics_until("each is counted once", |metrics| {
        let open = |protocol| metrics.value(&format!("shardgate_connections_by_protocol{{protocol=\"{protocol}\"}}"));
        let counts = [("http1", 1), ("stream", 1), ("tunnel", 1), ("socket", 1)];
        counts.into_iter().all(|(protocol, count)| open(protocol) == count)
            && metrics.sum("shardgate_streams_open") == 1
    });
    // They last for longer than the buckets that are looked at.
    pause(Duration::from_millis(1200));
    drop((stream, tunnel, socket));
    let metrics = gateway.metrics_until("they have ended", |metrics| {
        let ended = |family: &str| metrics.value(&format!("shardgate_{family}{{route=\"all\"}}"));
        ended("stream_lifetime_seconds_count") == 1 && ended("tunnel_lifetime_seconds_count") == 1
    });
    assert_eq!(metrics.sum("shardgate_streams_open"), 0);
    let of_all = |family: &str| metrics.value(&format!("shardgate_{family}"));
    assert_eq!(of_all("stream_lifetime_seconds_bucket{route=\"all\",le=\"1.0\"}"), 0);
    assert_eq!(of_all("request_duration_seconds_count{route=\"all\"}"), 3);
    assert_eq!(of_all("request_duration_seconds_bucket{route=\"all\",le=\"1.0\"}"), 3, "no hour among them");
    let opened = "request_duration_seconds_bucket{route=\"/ws\",le=\"1.0\"}";
    assert_eq!((of_all(opened), metrics.sum("shardgate_request_duration_seconds_count")), (1, 4));
}

/// A configuration of which each metric of instances says something: one that is well, one that is away, one behind a name.
pub(super) fn busy_config(service: &Service, more: &str) -> String {
    let (away, port) = (nobody(), service.address().port());
    let probed = "[upstreams.shop.health]\nkind = \"tcp\"\ninterval = \"300ms\"\ntimeout = \"200ms\"\n";
    service.config(&format!(
        "{more}[trace]\nsample_ratio = 1.0\n[metrics]\nallow = [\"127.0.0.1\"]\n\
         [upstreams.shop]\ninstances = [\"{}\", \"{away}\"]\n{probed}\
         [upstreams.named]\ninstances = [\"localhost:{port}\"]\n\
         [[routes]]\nname = \"shop\"\npath = \"/shop\"\naccess = \"public\"\nupstream = \"shop\"\n\
         [[routes]]\nname = \"named\"\npath = \"/named\"\naccess = \"public\"\nupstream = \"named\"\n",
        service.address()
    ))
}

/// Some requests to each upstream.
pub(super) fn keep_busy(gateway: &Gateway) {
    for path in ["/x", "/shop", "/named", "/x"] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
    }
}

#[test]
fn each_instance_has_series_for_as_long_as_it_is_one() {
    let service = Service::start();
    let config = busy_config(&service, "");
    let gateway = Gateway::start(&config);
    let address = service.address();
    let away = config.split("instances = [").nth(1).and_then(|list| list.split('"').nth(3)).expect("it is the second");
    let of = |family: &str, address: &str, more: &str| {
        format!("shardgate_instance_{family}{{upstream=\"shop\",address=\"{address}\"{more}}}")
    };
    let (well, gone) = (address.to_string(), away.to_owned());
    let metrics = gateway.metrics_until("probes and requests have found out", |metrics| {
        keep_busy(&gateway);
        metrics.value(&of("out_shards", &gone, ",reason=\"probes\"")) == 4 && metrics.value(&of("up", &well, "")) == 1
    });
    assert_eq!(metrics.0.get(&of("up", &gone, "")), Some(&0));
    assert!(metrics.value(&of("requests_total", &well, ",outcome=\"answered\"")) > 0);
    assert!(metrics.value(&of("probes_total", &gone, ",result=\"failed\"")) >= 3);
    assert!(metrics.value(&of("probes_total", &well, ",result=\"good\"")) >= 1);
    assert_eq!(metrics.value(&of("requests_in_flight", &well, "")), 0);
    assert_eq!(metrics.value("shardgate_instances_unlisted"), 0);
    let named = metrics.0.keys().find(|series| series.contains("upstream=\"named\"")).expect("it has a series");
    assert!(named.contains("localhost:") || named.contains("shardgate_upstream"), "{named}");
    let up: Vec<_> = metrics.0.keys().filter(|series| series.starts_with("shardgate_instance_up{")).collect();
    assert!(
        up.iter().any(|series| series.contains("address=\"localhost:") && series.contains(" 127.0.0.1:")),
        "{up:?}"
    );

    // One that is no instance any more is no alarm, and what was counted stays.
    gateway.rewrite_config(&config.replace(&format!(", \"{gone}\""), ""));
    gateway.signal(Signal::HUP);
    let metrics =
        gateway.metrics_until("it is no instance any more", |metrics| !metrics.0.contains_key(&of("up", &gone, "")));
    assert!(metrics.value(&of("probes_total", &gone, ",result=\"failed\"")) >= 3);
    assert!(!metrics.0.contains_key(&of("out_shards", &gone, ",reason=\"probes\"")));
    assert!(metrics.value(&of("requests_total", &well, ",outcome=\"answered\"")) > 0);
    let hashes = |metrics: &crate::harness::Metrics| -> Vec<String> {
        metrics.0.keys().filter(|series| series.starts_with("shardgate_config_info")).cloned().collect()
    };
    assert_eq!(hashes(&metrics).len(), 1);
}

/// Asks for the metrics with this `Accept`.
fn scrape(mut client: Client, accept: &str) -> Response {
    let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
    client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}Connection: close\r\n\r\n"));
    let answer = client.read_response();
    assert_eq!((answer.status, answer.field("vary")), (200, Some("Accept")));
    answer
}

const OPEN: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

#[test]
fn both_formats_are_on_both_listeners_and_others_read_them() {
    let service = Service::start();
    let gateway = Gateway::start(&busy_config(&service, ""));
    keep_busy(&gateway);
    for (is_public, accept, is_open) in
        [(true, OPEN, true), (false, OPEN, true), (true, "", false), (false, "*/*", false), (true, "text/plain", false)]
    {
        let client = if is_public { gateway.connect() } else { Client::connect(gateway.admin()) };
        let answer = scrape(client, accept);
        let (kind, text) = (answer.field("content-type").expect("it says what it is"), answer.text());
        assert_eq!(kind.starts_with("application/openmetrics-text; version=1.0.0"), is_open, "{accept:?}: {kind}");
        assert_eq!(kind.starts_with("text/plain; version=0.0.4"), !is_open, "{accept:?}: {kind}");
        assert_eq!((text.ends_with("# EOF\n"), text.contains("# {trace_id=\"")), (is_open, is_open), "{accept:?}");
    }
    let (open, text) = (scrape(gateway.connect(), OPEN).text(), scrape(gateway.connect(), "").text());
    if let Some(python) = python() {
        let read = |module: &str, text: &str| -> (u64, u64, u64) {
            let code = format!(
                "import sys; from {module} import text_string_to_metric_families as parse\n\
                 families = list(parse(sys.stdin.read()))\n\
                 samples = [sample for family in families for sample in family.samples]\n\
                 print(len(samples), sum(bool(sample.exemplar) for sample in samples), sum(bool(f.unit) for f in families))"
            );
            let told = feed(Command::new(python).args(["-c", &code]), text);
            let mut numbers = told.split_whitespace().map(|number| number.parse().expect("a number"));
            let mut next = || numbers.next().unwrap_or_else(|| panic!("{told}"));
            (next(), next(), next())
        };
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count() as u64;
        let (count, exemplars, units) = read("prometheus_client.openmetrics.parser", &open);
        assert_eq!(count, samples(&open));
        assert!(exemplars > 0 && units > 10, "{exemplars} exemplars, {units} units");
        assert_eq!(read("prometheus_client.parser", &text).0, samples(&text));
    }
    if has_tool("promtool") {
        assert_eq!(feed(Command::new("promtool").args(["check", "metrics"]), &text), "", "nothing to complain of");
    }
}

#[test]
fn only_sampled_traces_stand_for_requests_and_whatever_others_scrape_they_are_there() {
    let service = Service::start();
    let config = busy_config(&service, "");
    let gateway = Gateway::start(&config.replace("sample_ratio = 1.0", "sample_ratio = 0.0"));
    let has_traces = || scrape(Client::connect(gateway.admin()), OPEN).text().contains("# {trace_id=");
    keep_busy(&gateway);
    // Whoever is not trusted has decided nothing.
    let mut client = gateway.connect();
    let parent = "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    client.send(format!("GET /x HTTP/1.1\r\nHost: a\r\n{parent}\r\n"));
    assert_eq!(client.read_response().status, 200);
    assert!(!has_traces());

    gateway.rewrite_config(&config);
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, Duration::from_secs(10));
    keep_busy(&gateway);
    // The shards are asked for traces though somebody else asks them for none meanwhile.
    std::thread::scope(|scope| {
        let ask = || (0..50).for_each(|_| drop(scrape(Client::connect(gateway.admin()), "")));
        let others: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        while others.iter().any(|other| !other.is_finished()) {
            assert!(has_traces());
        }
    });
}

/// Gives a program a text, and returns what it says; it has to end well.
#[track_caller]
fn feed(command: &mut Command, text: &str) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    told
}
