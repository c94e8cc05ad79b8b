//! The resolver, over answers that the tests make.

use super::*;

#[test]
fn the_hosts_file_gives_all_addresses_of_a_name() {
    let text =
        "# comment\n127.0.0.1 localhost Local.test # and more\n::1\tlocalhost\n\nnonsense x\nfe80::1%lo x\n192.0.2.1\n";
    let hosts = parse_hosts(text);
    let of = |name| hosts.get(name).map(|addresses| format!("{addresses:?}")).unwrap_or_default();
    assert_eq!([of("localhost"), of("local.test")], ["[127.0.0.1, ::1]", "[127.0.0.1]"]);
    assert_eq!(hosts.len(), 2, "{hosts:?}");
}

#[test]
fn names_are_looked_up_with_domains_as_the_system_does() {
    let view = |text| View::of_resolv_conf(text, &[]);
    let whole = |text, name| {
        let names = view(text).whole_names(name).expect("a name");
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let cluster = "nameserver 10.0.0.2\nsearch ns.svc.local svc.local\noptions ndots:5\n";
    assert_eq!(whole(cluster, "shop"), "shop.ns.svc.local. shop.svc.local. shop.");
    assert_eq!(whole(cluster, "a.b.c.d.e.f"), "a.b.c.d.e.f. a.b.c.d.e.f.ns.svc.local. a.b.c.d.e.f.svc.local.");
    let plain = "nameserver 10.0.0.2\nsearch corp.example\n";
    assert_eq!(whole(plain, "my_shop.test"), "my_shop.test. my_shop.test.corp.example.");
    assert_eq!(
        whole("nameserver 10.0.0.2\nsearch corp.example\noptions ndots:0\n", "shop"),
        "shop. shop.corp.example."
    );
    assert_eq!(view(cluster).servers.len(), 1);
    let broken = "nameserver 10.0.0.2\nsearch a..b corp.example\ndomain .bad.\nsearch ok.example x..y\n";
    assert_eq!(view(broken).servers.len(), 1, "what can be no domain is passed over");
    assert_eq!(whole(broken, "shop"), "shop.ok.example. shop.");
    assert_eq!(view("search x\n").servers.len(), 0, "nobody is asked whom nobody has named");
    let named = ["127.0.0.1:5353".parse().expect("a server"), "127.0.0.2:53".parse().expect("a server")];
    assert_eq!(View::of_resolv_conf("", &named).servers.len(), 2);
    assert_eq!(View::of_resolv_conf(plain, &named).search.len(), 1, "domains count in any case");
}

/// Where this machine is.
async fn answer(resolver: &mut Resolver) -> Result<NameAnswer, NoAddress> {
    let asked = resolver.ask("localhost", None);
    tokio::select! {
        answer = asked => answer,
        () = resolver.changed() => panic!("nothing was known before"),
    }
}

#[test]
fn files_that_hang_hold_up_nobody_for_long_and_are_taken_in_the_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let readers = Readers::new(1).within(Duration::from_millis(20));
    let (release, hangs) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let mut hanging = readers.read(move || hangs.recv().is_ok());
        assert!(hanging.outcome().await.is_err());
        let mut resolver = Resolver::reading(&[], readers.clone(), None);
        assert!(answer(&mut resolver).await.is_ok(), "it is known all the same");
        assert!(resolver.is_late && resolver.files.is_none());
        // Nor is there another who reads it.
        let mut fork = resolver.fork(&[]);
        assert!(answer(&mut fork).await.is_ok());
        resolver.look();
        assert_eq!(readers.free(), 0);
        release.send(()).expect("it hangs");
        for mut resolver in [resolver, fork] {
            resolver.changed().await;
            assert!(!resolver.is_late && resolver.files.is_some());
        }
    });
    runtime.shutdown_background();
}

#[test]
fn this_machine_is_known_without_asking() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = runtime.block_on(answer(&mut Resolver::new(&[]))).expect("it is known");
    assert!(answer.is_own && answer.addresses.iter().all(IpAddr::is_loopback), "{answer:?}");
    let view = View::default();
    let answer = runtime.block_on(view.ask("a.localhost", None)).expect("it is known");
    assert_eq!(answer.addresses.len(), 2);
    let error = runtime.block_on(view.ask("a.test", None)).expect_err("nobody is there to ask");
    assert!(format!("{error:?}").contains("no server of DNS is known"), "{error:?}");
}

/// A server that has an address for names below `far.test`, none for others, and no word for `quiet.near.test`. It says
/// that `loop` is another word for itself, and `alias` for this machine. Or one that refers to others.
fn server(refers: bool) -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut question) {
            let name_ends = 12 + question[12..length].iter().position(|byte| *byte == 0).expect("a name");
            let (name, kind) = (&question[12..name_ends], question[name_ends + 2]);
            if name.starts_with(b"\x05quiet\x04near") {
                continue;
            }
            let is_there = kind == 1 && name.ends_with(b"\x03far\x04test");
            let mut answer = question[..name_ends + 5].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_there), 0, 0, 0, 0]);
            if is_there {
                answer.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 9]);
            }
            let other_name: &[u8] = match name {
                [4, b'l', b'o', b'o', b'p', ..] => &[0xC0, 12],
                [5, b'a', b'l', b'i', b'a', b's', ..] => b"\x09localhost\0",
                _ => &[],
            };
            if !other_name.is_empty() {
                answer.truncate(name_ends + 5);
                answer[7] = 1;
                answer.extend_from_slice(&[0xC0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0]);
                answer.push(u8::try_from(other_name.len()).expect("it is short"));
                answer.extend_from_slice(other_name);
            }
            if refers {
                answer.truncate(name_ends + 5);
                answer[2..12].copy_from_slice(&[0x81, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
                // Of the root it is said that the question's name serves it.
                answer.extend_from_slice(&[0, 0, 2, 0, 1, 0, 0, 0, 60, 0, 2, 0xC0, 12]);
            }
            let _ = socket.send_to(&answer, peer);
        }
    });
    address
}

#[test]
fn whoever_has_the_name_in_another_domain_is_somebody_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let server = Nameserver(server(false));
        let view = View::of_resolv_conf("search near.test far.test\noptions ndots:2 timeout:1\n", &[server]);
        let found = view.ask("shop", None).await.expect("the second domain has it");
        assert_eq!((&*found.found_as, found.addresses.len()), ("shop.far.test.", 1));
        assert_eq!(view.ask("shop", Some("shop.far.test.")).await, Ok(found));
        let gone = view.ask("shop", Some("shop.near.test.")).await.expect_err("it has no address there");
        assert!(matches!(gone, NoAddress::Unknown(_)), "{gone:?}");
        let late = view.ask("quiet", None).await.expect_err("it may be there");
        assert!(matches!(late, NoAddress::Late(_)), "{late:?}");
    });
}

#[test]
fn other_names_lead_neither_round_for_ever_nor_to_this_machine() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let view = View::of_resolv_conf("", &[Nameserver(server(false))]);
        let round = view.ask("loop.far.test", None).await.expect_err("it has no address");
        assert_eq!(round, unknown("there is no such name"));
        let here = view.ask("alias.far.test", None).await.expect("this machine is known");
        assert!(
            !here.is_own && here.addresses.iter().all(IpAddr::is_loopback),
            "as DNS says, and not the operator: {here:?}"
        );
    });
}

#[test]
fn who_only_refers_to_others_has_not_answered() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let [refers, knows] = [true, false].map(|refers| Nameserver(server(refers)));
        let found = View::of_resolv_conf("", &[refers, knows]).ask("shop.far.test", None).await;
        assert_eq!(found.map(|answer| answer.addresses.len()), Ok(1), "the next server is asked");
        let none = View::of_resolv_conf("", &[refers]).ask("shop.far.test", None).await;
        let none = format!("{:?}", none.expect_err("nobody knows"));
        assert!(none.contains("refers to others"), "{none}");
    });
}

proptest::proptest! {
    /// Nothing that is fuzzed panics with bytes that begin like an answer.
    #[test]
    fn chance_bytes_are_an_answer_or_none(rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        // One answer, whose name is the root, and which may be an SRV record.
        let head = [0, 1, 0x81, 0x80, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 33, 0, 1, 0, 0, 0, 9, 0, 9];
        fuzz_dns_answer(&[&head[..], &rest].concat());
        fuzz_dns_answer(&rest);
    }
}
