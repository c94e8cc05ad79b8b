//! Weights, priorities and zones of instances, and instances that are sockets with paths.
#![expect(clippy::disallowed_types, reason = "a service is told from another thread what to answer from now on")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::Signal;

use super::{
    outcomes::nobody,
    probes::{Process, SOON, wait_healthy},
};
use crate::{
    backend::Backend,
    harness::{Gateway, shardgate, until},
};

/// A service that answers with its number, and its probes with a status that can change.
fn numbered(number: usize) -> (Backend, Arc<AtomicUsize>) {
    let status = Arc::new(AtomicUsize::new(200));
    let shared = Arc::clone(&status);
    let backend = Backend::answering(move |request| {
        let is_probe = request.head.first_line.starts_with("GET /health ");
        let status = if is_probe { shared.load(Ordering::Relaxed) } else { 200 };
        format!("HTTP/1.1 {status} S\r\nContent-Length: 1\r\n\r\n{number}")
    });
    (backend, status)
}

/// A gateway in front of these instances, as they are written.
fn config(instances: &str, more: &str) -> String {
    format!(
        "[upstreams.back]\ninstances = [{instances}]\n{more}\n\
         [upstreams.back.health]\npath = \"/health\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\n\
         [[routes]]\naccess = \"public\"\npath = \"/*\"\nupstream = \"back\"\n"
    )
}

/// How many of so many requests each answers; they come on connections of their own, which land on all shards.
#[track_caller]
fn answers(gateway: &Gateway, requests: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        let answer = gateway.get("/x");
        assert_eq!(answer.status, 200, "{answer:?}");
        *answers.entry(answer.text()).or_default() += 1;
    }
    answers
}

#[test]
fn who_weighs_more_gets_more_and_a_weight_of_none_gets_nothing() {
    let services: Vec<_> = (0..3).map(numbered).collect();
    let at: Vec<_> = services.iter().map(|(backend, _)| backend.address()).collect();
    let instances = |weights: [u32; 3]| {
        let one = |(at, weight): (&SocketAddr, u32)| format!("{{ address = \"{at}\", weight = {weight} }}");
        at.iter().zip(weights).map(one).collect::<Vec<_>>().join(", ")
    };
    // Not by latency: on a machine that has other things to do it is noise.
    for (balance, heavy_gets, last_gets) in
        [("least_requests", 280..=360, 60..=140), ("round_robin", 300..=340, 85..=115)]
    {
        let more = format!("balance = \"{balance}\"");
        let gateway = Gateway::start(&config(&instances([1, 4, 0]), &more));
        wait_healthy(&gateway, 3);
        let taken = answers(&gateway, 400);
        let heavy = taken.get("1").copied().unwrap_or(0);
        assert!(heavy_gets.contains(&heavy) && !taken.contains_key("2"), "{balance}: {taken:?}");
        // Another weight keeps what is known of an instance: it is used at once.
        gateway.rewrite_config(&config(&instances([0, 1, 1]), &more));
        gateway.signal(Signal::HUP);
        gateway.log_until_nth("every shard runs the configuration", 2, SOON);
        let taken = answers(&gateway, 200);
        let last = taken.get("2").copied().unwrap_or(0);
        assert!(last_gets.contains(&last) && !taken.contains_key("0"), "{balance}: {taken:?}");
    }
}

#[test]
fn the_second_tier_takes_over_when_the_first_is_killed_and_gives_back() {
    let mut first: Vec<_> = (0..2).map(|_| Process::start(nobody(), "first")).collect();
    let (second, _second_health) = numbered(2);
    let instances = format!(
        "\"{}\", \"{}\", {{ address = \"{}\", priority = 1 }}",
        first[0].address(),
        first[1].address(),
        second.address()
    );
    let gateway = Gateway::start(&config(&instances, ""));
    wait_healthy(&gateway, 3);
    assert_eq!(answers(&gateway, 60).len(), 1, "the second tier is not needed");
    let places: Vec<_> = first.iter().map(Process::address).collect();
    // No GET fails meanwhile: what the first tier fails the second answers.
    first.remove(0).signal(Signal::KILL);
    answers(&gateway, 60);
    wait_healthy(&gateway, 2);
    let taken = answers(&gateway, 300);
    // Half of the first tier bears 69 %.
    assert!((160..=250).contains(&taken["first"]), "{taken:?}");
    first.remove(0).signal(Signal::KILL);
    answers(&gateway, 60);
    wait_healthy(&gateway, 1);
    assert_eq!(answers(&gateway, 60).keys().collect::<Vec<_>>(), ["2"]);
    // Of one that is back before its probes have noticed only requests could tell.
    until(SOON, "both are down by their probes", || {
        (gateway.log().matches("an instance is down: its probes fail").count() == 2).then_some(())
    });
    let _back: Vec<_> = places.iter().map(|place| Process::start(*place, "first")).collect();
    wait_healthy(&gateway, 3);
    until(SOON, "the first tier is used alone", || {
        (answers(&gateway, 40).keys().collect::<Vec<_>>() == ["first"]).then_some(())
    });
}

#[test]
fn the_own_zone_comes_first() {
    let services: Vec<_> = (0..3).map(numbered).collect();
    let zones = ["a", "b", ""];
    let one = |((backend, _), zone): (&(Backend, _), &str)| match zone {
        "" => format!("\"{}\"", backend.address()),
        zone => format!("{{ address = \"{}\", zone = \"{zone}\" }}", backend.address()),
    };
    let instances = services.iter().zip(zones).map(one).collect::<Vec<_>>().join(", ");
    let gateway = Gateway::start(&format!("[runtime]\nzone = \"b\"\n{}", config(&instances, "")));
    wait_healthy(&gateway, 3);
    assert_eq!(answers(&gateway, 40).keys().collect::<Vec<_>>(), ["1"]);
    services[1].1.store(503, Ordering::Relaxed);
    wait_healthy(&gateway, 2);
    until(SOON, "the others take over", || {
        (answers(&gateway, 40).keys().collect::<Vec<_>>() == ["0", "2"]).then_some(())
    });
    services[1].1.store(200, Ordering::Relaxed);
    wait_healthy(&gateway, 3);
    until(SOON, "and give back", || (answers(&gateway, 40).keys().collect::<Vec<_>>() == ["1"]).then_some(()));
    // Elsewhere, all zones but the own one are alike.
    gateway.rewrite_config(&format!("[runtime]\nzone = \"c\"\n{}", config(&instances, "")));
    gateway.signal(Signal::HUP);
    gateway.log_until_nth("every shard runs the configuration", 2, SOON);
    assert_eq!(answers(&gateway, 60).len(), 3);
}

#[test]
fn in_panic_those_are_used_that_answer() {
    let services: Vec<_> = (0..2).map(numbered).collect();
    let hung: Vec<_> = (0..2).map(|_| Process::start(nobody(), "hung")).collect();
    let at = services.iter().map(|(backend, _)| backend.address()).chain(hung.iter().map(Process::address));
    let instances = at.map(|at| format!("\"{at}\"")).collect::<Vec<_>>().join(", ");
    let gateway = Gateway::start(&config(&instances, "panic_percent = 80"));
    wait_healthy(&gateway, 4);
    for hung in &hung {
        hung.signal(Signal::STOP);
    }
    wait_healthy(&gateway, 2);
    let panicking = || gateway.metrics().value("shardgate_upstream_shards_panicking{upstream=\"back\"}");
    until(SOON, "nobody asks those that stand still", || {
        (answers(&gateway, 40).keys().collect::<Vec<_>>() == ["0", "1"]).then_some(())
    });
    assert_eq!(panicking(), 0, "half are well, and the others do not answer");
    services[0].1.store(503, Ordering::Relaxed);
    wait_healthy(&gateway, 1);
    until(SOON, "every shard panics", || (panicking() == 4).then_some(()));
    assert_eq!(answers(&gateway, 80).keys().collect::<Vec<_>>(), ["0", "1"]);
    let entry = || gateway.ask_admin("/health").json()["services"]["back"].clone();
    until(SOON, "health says so", || (entry()["panic"] == true).then_some(()));
    services[0].1.store(200, Ordering::Relaxed);
    wait_healthy(&gateway, 2);
    until(SOON, "it is over", || (panicking() == 0 && entry()["panic"].is_null()).then_some(()));
}

/// A service on a socket with a path, which answers each request with its `Host` and the length of its body, and sends the
/// body back.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn start(path: &Path, name: &'static str) -> Self {
        let listener = UnixListener::bind(path).expect("a path that is free");
        let accepting = listener.try_clone().expect("another descriptor");
        std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                std::thread::spawn(move || serve(&stream, name));
            }
        });
        Self { path: path.to_owned(), listener }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(mut stream: &UnixStream, name: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let (mut host, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some((field, value)) = line.split_once(':') {
                match field.to_ascii_lowercase().as_str() {
                    "host" => value.trim().clone_into(&mut host),
                    "content-length" => length = value.trim().parse().ok()?,
                    _ => {}
                }
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let head =
            format!("HTTP/1.1 200 OK\r\nX-Name: {name}\r\nX-Saw-Host: {host}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok()?;
    }
}

#[test]
fn a_socket_with_a_path_is_an_instance_like_any_other() {
    for driver in ["epoll", "io_uring"] {
        let place = tempfile::tempdir().expect("a directory");
        let paths = ["one.sock", "two.sock"].map(|name| place.path().join(name));
        let mut services = vec![Socket::start(&paths[0], "one"), Socket::start(&paths[1], "two")];
        let instances = paths.iter().map(|path| format!("\"unix:{}\"", path.display())).collect::<Vec<_>>().join(", ");
        let kept = "[[routes]]\naccess = \"public\"\npath = \"/kept/*\"\nupstream = \"back\"\npreserve_host = true\n\
                    body_bytes_max = \"10MiB\"\n";
        let gateway = Gateway::start(&format!("[runtime]\ndriver = \"{driver}\"\n{}{kept}", config(&instances, "")));
        wait_healthy(&gateway, 2);
        let names = |path: &str, requests: usize| {
            let mut names = BTreeMap::new();
            for _ in 0..requests {
                let answer = gateway.get(path);
                assert_eq!(answer.status, 200, "{answer:?}");
                let field = |name: &str| answer.field(name).expect("it says so").to_owned();
                *names.entry((field("x-name"), field("x-saw-host"))).or_insert(0) += 1;
            }
            names
        };
        let both = |host: &str| ["one", "two"].map(|name| (name.to_owned(), host.to_owned()));
        assert_eq!(names("/x", 40).into_keys().collect::<Vec<_>>(), both("localhost"), "{driver}");
        assert!(names("/kept/x", 40).keys().all(|(_, host)| host != "localhost"), "{driver}");
        // A body that is larger than any buffer goes there and back as it is.
        let body: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        let mut client = gateway.connect();
        client.send(format!("POST /kept/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(&body);
        let answer = client.read_response();
        assert!(answer.status == 200 && answer.body == body, "{driver}: {}", answer.status);

        // Its connections go on; nobody gets in any more.
        drop(services.remove(0));
        names("/x", 20);
        wait_healthy(&gateway, 1);
        assert!(names("/x", 20).keys().all(|(name, _)| name == "two"), "{driver}");
        assert_eq!(gateway.ask_admin("/health").json()["services"]["back"]["error"], "refused");
        services.push(Socket::start(&paths[0], "one"));
        wait_healthy(&gateway, 2);
        until(SOON, "it is used again", || (names("/x", 20).len() == 2).then_some(()));
    }
}

#[test]
fn a_path_is_looked_at_when_a_configuration_is_checked() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("none.sock");
    let mut command = shardgate(place.path());
    std::fs::write(place.path().join("a.toml"), config(&format!("\"unix:{}\"", path.display()), "")).expect("written");
    let output =
        command.args(["check", "a.toml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it may come later: {told}");
    assert!(told.contains("none.sock\", and nothing is there"), "{told}");
}
