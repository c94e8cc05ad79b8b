//! Variables: which go before which, what they can hold, and which are none of ours.

use super::*;
use expect_test::expect;

#[test]
fn the_environment_goes_before_the_file() {
    let port = |text: &str, pairs: &[(&str, &str)]| {
        let config = resolve(Some((Path::new("f"), text)), &env(pairs)).expect("a configuration");
        config.listener.port
    };
    let file = "[listener]\nport = 1\n";
    assert_eq!(port("", &[]), 3000);
    assert_eq!(port(file, &[]), 1);
    assert_eq!(port("", &[("PORT", "2")]), 2);
    assert_eq!(port(file, &[("PORT", "2")]), 2);
    assert_eq!(port(file, &[("SHARDGATE_LISTENER_PORT", "3")]), 3);
    assert_eq!(port(file, &[("PORT", "2"), ("SHARDGATE_LISTENER_PORT", "3")]), 3);
    assert_eq!(port(file, &[("PORT", ""), ("SHARDGATE_LISTENER_PORT", "")]), 1);
}

#[test]
fn variables_have_every_type() {
    let pairs = [
        ("SHARDGATE_RUNTIME_PIN", "false"),
        ("SHARDGATE_HTTP_BODY_BYTES_MAX", "10MiB"),
        ("SHARDGATE_HTTP_HEAD_BYTES_MAX", "16384"),
        ("SHARDGATE_HTTP_HEADER_TIMEOUT", "3s"),
        ("SHARDGATE_HTTP_ON_CLIENT_CLOSE", "finish"),
        ("SHARDGATE_TRUST_PROXIES", "10.0.0.0/8, ::1,"),
        ("SHARDGATE_LOG_ACCESS", "/tmp/$a"),
    ];
    let config = resolve(None, &env(&pairs)).expect("a configuration");
    assert!(!config.runtime.pin);
    assert_eq!(config.http.body_bytes_max, 10 << 20);
    assert_eq!(config.http.head_bytes_max, 16_384);
    assert_eq!(config.http.header_timeout, Duration::from_secs(3));
    assert_eq!(config.http.on_client_close, ClientClose::Finish);
    assert_eq!(config.trust.proxies.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(config.log.access, AccessLog::File("/tmp/$a".into()));
}

#[test]
fn mistakes_in_the_environment() {
    let pairs = [
        ("PORT", "http"),
        ("SHARDGATE_ADMIN_PORT", "99999"),
        ("SHARDGATE_HTTP_FIELDS_MAX", "-1"),
        ("SHARDGATE_RUNTIME_PIN", "yes"),
        ("SHARDGATE_TRUST_PROXIES", "10.0.0.0/8,here"),
        ("SHARDGATE_LISTENER_PROT", "1"),
        ("SHARDGATE_SOMETHING_ELSE", "1"),
    ];
    check_with(
        "[http]\nfields_max = 7\n",
        &pairs,
        &expect![[r#"
        environment: PORT is "http"; ports go from 1 to 65535
        environment: SHARDGATE_ADMIN_PORT is "99999"; ports go from 1 to 65535
        environment: SHARDGATE_HTTP_FIELDS_MAX is "-1"; it is a whole number from 1 to 256
        environment: SHARDGATE_LISTENER_PROT is no variable of Shardgate; did you mean SHARDGATE_LISTENER_PORT?
        environment: SHARDGATE_RUNTIME_PIN is "yes"; write true or false
        environment: SHARDGATE_SOMETHING_ELSE is no variable of Shardgate; docs/config.md lists those that are
        environment: SHARDGATE_TRUST_PROXIES is "here"; write a network as "10.0.0.0/8" or an address as "10.1.2.3""#]],
    );
    // A section that is none stays the file's mistake.
    check_with(
        "listener = 1\n",
        &[("PORT", "80")],
        &expect!["shardgate.toml:1: listener is 1; it is a table: [listener]"],
    );
}

#[test]
fn what_others_set_is_passed_over() {
    let pairs = [
        ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
        ("SHARDGATE_SERVICE_PORT", "3000"),
        ("SHARDGATE_SERVICE_PORT_HTTP", "3000"),
        ("SHARDGATE_PORT", "tcp://10.0.0.1:3000"),
        ("SHARDGATE_PORT_3000_TCP", "tcp://10.0.0.1:3000"),
        ("SHARDGATE_PORT_3000_TCP_ADDR", "10.0.0.1"),
        ("SHARDGATE_ADMIN_PORT", "tcp://10.0.0.1:3001"),
        ("SHARDGATE_CONFIG", "/etc/shardgate.toml"),
        ("SHARDGATE_TEST_SLOW", "1"),
    ];
    assert_eq!(resolve(None, &env(&pairs)).expect("a configuration"), Config::default());
}

#[test]
fn variables_inside_the_file() {
    let text = r#"
[listener]
port = "${HTTP_PORT:-8080}"
[trust]
proxies = "${PROXIES}"
[upstreams.a]
instances = ["${HOST:-localhost}:${NUMBER}"]
[[routes]]
path = "/"
upstream = "a"
[routes.request_headers]
set = { X-Price = "$$5", X-Host = "${HOST:-none}" }
"#;
    let pairs = [("PROXIES", "10.0.0.1,10.0.0.2"), ("NUMBER", "80")];
    let config = resolve(Some((Path::new("f"), text)), &env(&pairs)).expect("a configuration");
    assert_eq!(config.listener.port, 8080);
    assert_eq!(config.trust.proxies.len(), 2);
    assert_eq!(config.upstreams["a"].instances[0].to_string(), "localhost:80");
    assert_eq!(config.routes[0].request_headers.set["X-Price"], "$5");
    assert_eq!(config.routes[0].request_headers.set["X-Host"], "none");
    check_with(
        text,
        &[("NUMBER", "x"), ("HTTP_PORT", "http")],
        &expect![[r#"
        shardgate.toml:3: listener.port is "http"; ports go from 1 to 65535
        shardgate.toml:5: trust.proxies is "${PROXIES}"; PROXIES is not set; set it, or write ${PROXIES:-default}
        shardgate.toml:7: upstreams.a.instances[0] is "localhost:x"; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"; ports go from 1 to 65535"#]],
    );
}

#[test]
fn the_file_is_found() {
    let named = env(&[("SHARDGATE_CONFIG", "named.toml")]);
    assert_eq!(find(Some("given.toml".into()), &named), Some("given.toml".into()));
    assert_eq!(find(None, &named), Some("named.toml".into()));
}
