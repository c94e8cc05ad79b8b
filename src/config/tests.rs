//! What the whole does: a file and an environment in, a configuration or all its mistakes out.

use super::keys::{Fallback, Key, Reload, SECTIONS, Section, Shape};
use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn resolve_text(text: &str) -> Result<Config, Mistakes> {
    resolve(Some((Path::new("shardgate.toml"), text)), &env(&[]))
}

fn good(text: &str) -> Config {
    resolve_text(text).unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"))
}

/// What is wrong with a text, one mistake a line; and, when nothing is, its warnings.
fn check(text: &str, expected: &Expect) {
    check_with(text, &[], expected);
}

fn check_with(text: &str, pairs: &[(&str, &str)], expected: &Expect) {
    let told = match resolve(Some((Path::new("shardgate.toml"), text)), &env(pairs)) {
        Err(mistakes) => mistakes.to_string(),
        Ok(config) => config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect(),
    };
    expected.assert_eq(&told);
}

const ONE_ROUTE: &str = "[upstreams.a]\ninstances = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n";

#[test]
fn the_defaults_are_those_that_were_promised() {
    expect![[r#"
        [runtime]
        shards = 0
        driver = "epoll"
        pin = true

        [listener]
        address = "0.0.0.0"
        port = 3000
        backlog = 4096
        connections_max = 0
        accept_budget = 64
        hand_over = true

        [admin]
        enabled = true
        address = "127.0.0.1"
        port = 3001

        [http]
        header_timeout = "10s"
        request_timeout = "1m"
        keep_alive_timeout = "75s"
        head_bytes_max = "32KiB"
        fields_max = 100
        target_bytes_max = "8KiB"
        body_bytes_max = "1MiB"
        stream_idle_timeout = "5m"
        on_client_close = "cancel"
        requests_per_connection_max = 0

        [trust]
        proxies = []

        [metrics]
        allow = []

        [drain]
        notice = "5s"
        max = "30s"

        [log]
        level = "info"
        access = "stdout"
        buffer_bytes = "256KiB"
        flush_interval = "200ms"

        [upstreams.ai-engine]
        instances = ["127.0.0.1:4003"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        connections_max = 0
        requests_max = 1024
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50

        [upstreams.ingestion]
        instances = ["127.0.0.1:4001"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        connections_max = 0
        requests_max = 1024
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50

        [upstreams.prediction]
        instances = ["127.0.0.1:4002"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        connections_max = 0
        requests_max = 1024
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50

        [[routes]]
        name = "ingestion"
        hosts = []
        path = "/api/events/*"
        methods = []
        upstream = "ingestion"
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false

        [[routes]]
        name = "prediction"
        hosts = []
        path = "/api/predict/*"
        methods = []
        upstream = "prediction"
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false

        [[routes]]
        name = "ai-engine"
        hosts = []
        path = "/api/ai/*"
        methods = []
        upstream = "ai-engine"
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
    "#]]
    .assert_eq(&Config::default().to_toml());
}

#[test]
fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
    check(
        r#"
[listener]
port = 99999
adress = "::"
backlog = "many"

[http]
header_timeout = 10
head_bytes_max = "32KB"
fields_max = 1000
on_client_close = "finsh"

[drain]
notice = "40s"

[upstreams.shop]
instances = ["shop:80", "shop"]
conect_timeout = "1s"

[[routes]]
path = "/shop/*"
upstream = "shpo"
"#,
        &expect![[r#"
            shardgate.toml:3: listener.port is 99999; ports go from 1 to 65535
            shardgate.toml:4: listener.adress is not a key; did you mean listener.address?
            shardgate.toml:5: listener.backlog is "many"; it is a whole number from 1 to 65535
            shardgate.toml:8: http.header_timeout is 10; write a duration from "1ms" to "1d", like "250ms", "10s" or "5m"
            shardgate.toml:9: http.head_bytes_max is "32KB"; write a size from "1KiB" to "1MiB", like "32KiB"
            shardgate.toml:10: http.fields_max is 1000; it is a whole number from 1 to 256
            shardgate.toml:11: http.on_client_close is "finsh"; it is one of "cancel", "finish"
            shardgate.toml:14: drain.max is "30s"; it is not less than drain.notice, which is "40s"
            shardgate.toml:17: upstreams.shop.instances[1] is "shop"; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            shardgate.toml:18: upstreams.shop.conect_timeout is not a key; did you mean upstreams.shop.connect_timeout?
            shardgate.toml:22: routes[0].upstream is "shpo", and there is no such upstream; did you mean shop?"#]],
    );
}

#[test]
fn types() {
    check(
        r#"
listener = 3000
upstreams = "shop"
routes = { path = "/" }
[runtime]
shards = -1
driver = 7
pin = "true"
[http]
fields_max = "100"
body_bytes_max = 1.5
header_timeout = "0s"
keep_alive_timeout = "2d"
requests_per_connection_max = 99999999999999999999
[trust]
proxies = "10.0.0.0/8"
[metrics]
allow = ["10.0.0.0/8", 7, "10.0.0.1/8"]
[log]
access = "access.log"
level = "info,shardgate=loud"
"#,
        &expect![[r#"
            shardgate.toml:2: listener is 3000; it is a table: [listener]
            shardgate.toml:3: upstreams is "shop"; it is a table of upstreams by name: [upstreams.shop]
            shardgate.toml:4: routes is a table; it is a list of routes: [[routes]]
            shardgate.toml:6: runtime.shards is -1; it is a whole number from 0 to 1024
            shardgate.toml:7: runtime.driver is 7; it is one of "epoll", "io_uring"
            shardgate.toml:8: runtime.pin is "true"; write true or false
            shardgate.toml:10: http.fields_max is "100"; it is a whole number from 1 to 256, without quotes
            shardgate.toml:11: http.body_bytes_max is 1.5; write a size from "0B" to "1TiB", like "32KiB"
            shardgate.toml:12: http.header_timeout is "0s"; write a duration from "1ms" to "1d", like "250ms", "10s" or "5m"
            shardgate.toml:13: http.keep_alive_timeout is "2d"; write a duration from "1ms" to "1d", like "250ms", "10s" or "5m"
            shardgate.toml:14: http.requests_per_connection_max is 99999999999999999999; it is a whole number from 0 to 4294967295
            shardgate.toml:16: trust.proxies is "10.0.0.0/8"; it is a list of texts: network, as "10.0.0.0/8" or "::1"
            shardgate.toml:18: metrics.allow[1] is 7; it is text: network, as "10.0.0.0/8" or "::1"
            shardgate.toml:18: metrics.allow[2] is "10.0.0.1/8"; the address has bits beyond the network; write "10.0.0.0/8"
            shardgate.toml:20: log.access is "access.log"; it is "off", "stdout" or the path of a file with a slash in it, like "./access.log"
            shardgate.toml:21: log.level has "shardgate=loud"; write a level or target=level; levels are "off", "error", "warn", "info", "debug", "trace""#]],
    );
}

#[test]
fn unknown_names() {
    check(
        "port = 80\nhtpp = 1\n[listner]\nport = 1\n[drain]\nx = 1\n[http]\nhead_byte_max = 1\n[tls]\n",
        &expect![[r#"
            shardgate.toml:1: port is in no section; did you mean listener.port?
            shardgate.toml:2: htpp is not a section; did you mean http?
            shardgate.toml:3: listner is not a section; did you mean listener?
            shardgate.toml:6: drain.x is not a key; there are notice, max
            shardgate.toml:8: http.head_byte_max is not a key; did you mean http.head_bytes_max?
            shardgate.toml:9: tls is not a section; there are runtime, listener, admin, http, trust, metrics, drain, log, upstreams, routes"#]],
    );
}

#[test]
fn what_is_no_toml() {
    check(
        "[http\nfields_max = 1\n[log]\nlevel = \n",
        &expect![[r#"
        shardgate.toml:1: this is no TOML: unclosed table, expected `]`
        shardgate.toml:4: this is no TOML: string values must be quoted, expected literal string"#]],
    );
    check("[http]\nfields_max = 1\nfields_max = 2\n", &expect!["shardgate.toml:3: this is no TOML: duplicate key"]);
    check(
        "a = \"\u{0}\"\n",
        &expect![[
            r#"shardgate.toml:1: this is no TOML: invalid basic string, expected non-double-quote visible characters, `\`"#
        ]],
    );
}

#[test]
fn upstreams() {
    check(
        r#"
[upstreams.none]
[upstreams.empty]
instances = []
[upstreams.twice]
instances = ["h:1", "h:2", "H:1"]
[upstreams.Shop]
instances = ["h:1"]
[upstreams."a.b"]
instances = ["h:1"]
[upstreams.numbers]
instances = ["h:1"]
requests_max = 0
retries_max = 11
outlier_percent_max = 101
[[routes]]
path = "/"
upstream = "numbers"
"#,
        &expect![[r#"
            shardgate.toml:2: upstreams.none.instances is missing; it is a list of texts: "host:port"
            shardgate.toml:4: upstreams.empty.instances is empty; an upstream has one instance or more
            shardgate.toml:6: upstreams.twice.instances has h:1 twice; name each instance once
            shardgate.toml:7: "Shop" is no name of an upstream; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:9: "a.b" is no name of an upstream; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:13: upstreams.numbers.requests_max is 0; it is a whole number from 1 to 4294967295
            shardgate.toml:14: upstreams.numbers.retries_max is 11; it is a whole number from 0 to 10
            shardgate.toml:15: upstreams.numbers.outlier_percent_max is 101; it is a whole number from 0 to 100"#]],
    );
}

#[test]
fn routes() {
    let upstream = "[upstreams.a]\ninstances = [\"h:1\"]\n";
    let text = r#"
[[routes]]
upstream = "a"
[[routes]]
path = "api"
[[routes]]
name = "a b"
path = "/1"
upstream = "b"
methods = ["get", "GE T", "CONNECT", "PUT", "PUT"]
hosts = ["a:80", "b", "B"]
[[routes]]
path = "/api/*"
upstream = "a"
strip_prefix = "/ap"
[[routes]]
path = "/2/{id}"
upstream = "a"
rewrite = "/x/{name}"
[[routes]]
path = "/3"
upstream = "a"
rewrite = "/x"
strip_prefix = "/3"
"#;
    check(
        &format!("{upstream}{text}"),
        &expect![[r#"
            shardgate.toml:4: routes[0].path is missing; it is text: path
            shardgate.toml:6: routes[1].upstream is missing; it is text: name of an upstream
            shardgate.toml:7: routes[1].path is "api"; a path begins with a slash
            shardgate.toml:9: routes[2].name is "a b"; a name is up to 64 of A-Z, a-z, 0-9, ., _ and -
            shardgate.toml:11: routes[2].upstream is "b", and there is no such upstream; there are a
            shardgate.toml:12: routes[2].methods has "get"; methods are told apart by case; write "GET"
            shardgate.toml:12: routes[2].methods has "GE T"; a method is a word of up to 32 letters, like GET
            shardgate.toml:12: routes[2].methods has "CONNECT"; CONNECT opens tunnels, which the gateway does not offer
            shardgate.toml:12: routes[2].methods has "PUT" twice; once is enough
            shardgate.toml:13: routes[2].hosts[0] is "a:80"; write a host as "shop.example.com" or "*.example.com", without a scheme or a port
            shardgate.toml:13: routes[2].hosts has "b" twice; once is enough
            shardgate.toml:17: routes[3].strip_prefix is "/ap"; the path, "/api/*", does not begin with it in whole segments
            shardgate.toml:21: routes[4].rewrite is "/x/{name}"; the path has no {name}; it has {id}
            shardgate.toml:25: routes[5].rewrite is "/x"; take either rewrite or strip_prefix"#]],
    );
    check(
        "[[routes]]\npath = \"/\"\nupstream = \"ingestion\"\n",
        &expect![[
            r#"shardgate.toml:3: routes[0].upstream is "ingestion", and there is no such upstream; define one: [upstreams.shop]"#
        ]],
    );
}

#[test]
fn routes_that_take_the_same_requests() {
    let route = |keys: &str| format!("[[routes]]\nupstream = \"a\"\n{keys}\n");
    let text = [
        "path = \"/a/*\"",
        "path = \"/a/*\"",
        "path = \"/a/*\"\nname = \"get\"\nmethods = [\"GET\"]",
        "path = \"/a/*\"\nname = \"get2\"\nmethods = [\"POST\", \"GET\"]",
        "path = \"/a/*\"\nname = \"host\"\nhosts = [\"x\", \"*.y\"]",
        "path = \"/a/*\"\nname = \"host2\"\nhosts = [\"z\", \"*.y\"]",
        "path = \"/a/{x}\"",
        "path = \"/a/{y}\"",
        "path = \"/a\"",
        "path = \"/b\"\nname = \"/a\"",
        "path = \"/c\"\nname = \"get\"",
    ];
    let text = format!("[upstreams.a]\ninstances = [\"h:1\"]\n{}", text.map(route).concat());
    check(
        &text,
        &expect![[r#"
        shardgate.toml:6: routes[1] takes the same requests as routes[0] (line 3): any method, any host, /a/*; change the hosts, the path or the methods of one
        shardgate.toml:14: routes[3] takes the same requests as routes[2] (line 9): GET, any host, /a/*; change the hosts, the path or the methods of one
        shardgate.toml:24: routes[5] takes the same requests as routes[4] (line 19): any method, *.y, /a/*; change the hosts, the path or the methods of one
        shardgate.toml:32: routes[7] takes the same requests as routes[6] (line 29): any method, any host, /a/{y}; change the hosts, the path or the methods of one
        shardgate.toml:38: routes[9].name is "/a", as that of routes[8] (line 35); give each route a name of its own
        shardgate.toml:41: routes[9].name is "/a"; a name is up to 64 of A-Z, a-z, 0-9, ., _ and -
        shardgate.toml:42: routes[10].name is "get", as that of routes[2] (line 9); give each route a name of its own"#]],
    );
}

#[test]
fn header_rules() {
    let rules = r#"
[routes.request_headers]
remove = ["X_User_Id", "X-Debug", "bad name", "X-Debug"]
set = { Host = "a", X-A = "1", x-a = "2", X-B = "ü", X-C = " b", X-D = "a\r\nX-E: b", X-F = 7 }
[routes.response_headers]
add = { Transfer-Encoding = "chunked", Content-Length = "1", X-G = "" }
sett = {}
"#;
    check(
        &format!("{ONE_ROUTE}{rules}"),
        &expect![[r#"
        shardgate.toml:8: routes[0].request_headers.remove has "X_User_Id"; the gateway itself answers for that field
        shardgate.toml:8: routes[0].request_headers.remove has "bad name"; a field name is up to 128 letters, digits and !#$%&'*+-.^_`|~
        shardgate.toml:8: routes[0].request_headers.remove has "X-Debug" twice; once is enough
        shardgate.toml:9: routes[0].request_headers.set.X-F is 7; a field's value is text
        shardgate.toml:9: routes[0].request_headers.set has "Host"; the gateway itself answers for that field
        shardgate.toml:9: routes[0].request_headers.set.X-B is "ü"; a value is up to 4096 printable ASCII characters without spaces around them
        shardgate.toml:9: routes[0].request_headers.set.X-C is " b"; a value is up to 4096 printable ASCII characters without spaces around them
        shardgate.toml:9: routes[0].request_headers.set.X-D is "a\r\nX-E: b"; a value is up to 4096 printable ASCII characters without spaces around them
        shardgate.toml:9: routes[0].request_headers.set has "x-a" twice; field names are the same in any case
        shardgate.toml:11: routes[0].response_headers.add has "Content-Length"; the gateway itself answers for that field
        shardgate.toml:11: routes[0].response_headers.add has "Transfer-Encoding"; the gateway itself answers for that field
        shardgate.toml:12: routes[0].response_headers.sett is not a key; did you mean routes[0].response_headers.set?"#]],
    );
}

#[test]
fn what_holds_between_keys() {
    check(
        "[drain]\nmax = \"1s\"\n[http]\ntarget_bytes_max = \"64KiB\"\n",
        &expect![[r#"
        shardgate.toml:2: drain.max is "1s"; it is not less than drain.notice, which is "5s"
        shardgate.toml:4: http.target_bytes_max is "64KiB"; a target is part of a head, and http.head_bytes_max is "32KiB""#]],
    );
    check(
        "[http]\nhead_bytes_max = \"4KiB\"\n",
        &expect![[
            r#"shardgate.toml:2: http.target_bytes_max is "8KiB"; a target is part of a head, and http.head_bytes_max is "4KiB""#
        ]],
    );
    check(
        "[admin]\naddress = \"0.0.0.0\"\nport = 3000\n",
        &expect![[r#"
        shardgate.toml:2: admin.address is "0.0.0.0"; the operator's listener asks for no token, so it binds loopback addresses only, like "127.0.0.1"
        shardgate.toml:3: admin.port is 3000, and so is listener.port; give each listener a port of its own"#]],
    );
    check(
        "[listener]\nport = 3001\n",
        &expect!["shardgate.toml:2: admin.port is 3001, and so is listener.port; give each listener a port of its own"],
    );
    // What cannot be read is told once, and its default is compared with nothing.
    check(
        "[drain]\nnotice = \"40s\"\nmax = \"?\"\n[http]\nhead_bytes_max = \"1KiB\"\ntarget_bytes_max = true\n",
        &expect![[r#"
            shardgate.toml:3: drain.max is "?"; write a duration from "0s" to "1d", like "250ms", "10s" or "5m"
            shardgate.toml:6: http.target_bytes_max is true; write a size from "64B" to "1MiB", like "32KiB""#]],
    );
    // Nothing collides with a listener that is not there, or with one that takes any free port.
    check("[listener]\nport = 3001\n[admin]\nenabled = false\naddress = \"0.0.0.0\"\n", &expect![[""]]);
    check("[listener]\nport = 0\n[admin]\nport = 0\n", &expect![[""]]);
}

#[test]
fn warnings() {
    check(
        "[upstreams.ingestion]\ninstances = [\"h:1\"]\n[upstreams.extra]\ninstances = [\"h:1\"]\n",
        &expect![[r#"
        warning: shardgate.toml:1: there are no routes, so the built-in ones apply, and upstreams.prediction is "127.0.0.1:4002"
        warning: shardgate.toml:1: there are no routes, so the built-in ones apply, and upstreams.ai-engine is "127.0.0.1:4003"
        warning: upstreams.extra is the upstream of no route
    "#]],
    );
    check(
        "[trust]\nproxies = [\"0.0.0.0/0\"]\n",
        &expect![[r#"
        warning: shardgate.toml:2: trust.proxies trusts every peer to say where a request came from
    "#]],
    );
    check(ONE_ROUTE, &expect![[""]]);
    check("routes = []\n", &expect![[""]]);
}

#[test]
fn the_built_in_routes_take_the_users_upstreams() {
    let config =
        good("[upstreams.ingestion]\nresponse_timeout = \"1s\"\n[upstreams.ai-engine]\ninstances = [\"ai:1\"]\n");
    let ingestion = &config.upstreams["ingestion"];
    assert_eq!(ingestion.response_timeout, Duration::from_secs(1));
    assert_eq!(ingestion.instances[0].to_string(), "127.0.0.1:4001");
    assert_eq!(config.upstreams["ai-engine"].instances[0].to_string(), "ai:1");
    assert_eq!(config.upstreams["prediction"].instances[0].to_string(), "127.0.0.1:4002");
    assert_eq!(config.routes, Config::default().routes);
    let config = good(ONE_ROUTE);
    assert_eq!(config.upstreams.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(config.routes.len(), 1);
    assert!(good("routes = []").routes.is_empty());
}

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
fn what_kubernetes_sets_for_its_services_is_passed_over() {
    let pairs = [
        ("SHARDGATE_SERVICE_HOST", "10.0.0.1"),
        ("SHARDGATE_SERVICE_PORT", "3000"),
        ("SHARDGATE_SERVICE_PORT_HTTP", "3000"),
        ("SHARDGATE_PORT", "tcp://10.0.0.1:3000"),
        ("SHARDGATE_PORT_3000_TCP", "tcp://10.0.0.1:3000"),
        ("SHARDGATE_PORT_3000_TCP_ADDR", "10.0.0.1"),
        ("SHARDGATE_ADMIN_PORT", "tcp://10.0.0.1:3001"),
        ("SHARDGATE_CONFIG", "/etc/shardgate.toml"),
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

/// A file in which this key has its example for a value.
fn file_with(section: &Section, key: &Key) -> String {
    let line = format!("{} = {}\n", key.name, key.example);
    let shop = "[upstreams.shop]\ninstances = [\"h:1\"]\n";
    let path = if key.name == "path" { "" } else { "path = \"/shop/*\"\n" };
    let upstream = if key.name == "upstream" { "" } else { "upstream = \"shop\"\n" };
    match section.shape {
        Shape::Once => format!("[{}]\n{line}", section.name),
        Shape::Named if key.name == "instances" => format!("[upstreams.shop]\n{line}"),
        Shape::Named => format!("{shop}{line}"),
        Shape::Listed => format!("{shop}[[routes]]\n{path}{upstream}{line}"),
        Shape::Inside => format!("{shop}[[routes]]\n{path}{upstream}[{}]\n{line}", section.name),
    }
}

fn every_key() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    SECTIONS.iter().flat_map(|section| section.keys.iter().map(move |key| (section, key)))
}

#[test]
fn every_key_of_the_table_acts_and_is_written_back() {
    for (section, key) in every_key() {
        let config = good(&file_with(section, key));
        let written: toml::Table = config.to_toml().parse().expect("TOML");
        let table = match section.shape {
            Shape::Once => written[section.name].clone(),
            Shape::Named => written["upstreams"]["shop"].clone(),
            Shape::Listed => written["routes"][0].clone(),
            Shape::Inside => written["routes"][0][section.name.trim_start_matches("routes.")].clone(),
        };
        let example: toml::Table = format!("value = {}", key.example).parse().expect("TOML");
        assert_eq!(table[key.name], example["value"], "{}.{}", section.name, key.name);
        if let Fallback::Value(default) = key.default {
            assert_ne!(default, key.example, "{}.{}", section.name, key.name);
        }
    }
}

#[test]
fn a_reload_names_the_keys_that_need_a_new_process() {
    let old = Config::default();
    for (section, key) in every_key() {
        let mut next = good(&file_with(section, key));
        let expected = match key.reload {
            Reload::Restart => vec![format!("{}.{}", section.name, key.name)],
            Reload::Live => Vec::new(),
        };
        assert_eq!(old.restart_needed(&next), expected);
        let live = next.clone();
        next.keep_until_restart(&old);
        assert_eq!(old.restart_needed(&next), Vec::<String>::new());
        assert_eq!(next == live, key.reload == Reload::Live, "{}.{}", section.name, key.name);
    }
}

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("shardgate.example.toml");
    fs::read_to_string(path).expect("the example is there")
}

#[test]
fn the_example_is_valid_and_says_the_defaults() {
    let config = good(&example());
    assert_eq!(config.warnings, Vec::<String>::new());
    let default = Config::default();
    let sections = Config { upstreams: default.upstreams.clone(), routes: default.routes.clone(), ..config.clone() };
    assert_eq!(sections, default);
    let shop = &config.upstreams["shop"];
    assert_eq!(*shop, Upstream::new(shop.instances.clone()));
}

#[test]
fn the_example_shows_every_key() {
    let written: toml::Table = example().parse().expect("TOML");
    let has = |table: Option<&toml::Value>, key: &str| table.is_some_and(|table| table.get(key).is_some());
    for (section, key) in every_key() {
        let routes = written["routes"].as_array().expect("routes");
        let shown = match section.shape {
            Shape::Once => has(written.get(section.name), key.name),
            Shape::Named => has(written["upstreams"].get("shop"), key.name),
            Shape::Listed => routes.iter().any(|route| has(Some(route), key.name)),
            Shape::Inside => routes.iter().any(|route| has(route.get(&section.name["routes.".len()..]), key.name)),
        };
        assert!(shown, "the example does not show {} of {}", key.name, section.name);
    }
}

#[test]
fn a_configuration_written_and_read_again_is_the_same() {
    let dollar = format!("{ONE_ROUTE}[routes.request_headers]\nset = {{ X-Price = \"$$5 \\\"a\\\" ${{A:-b}}\" }}\n");
    for text in ["", "routes = []\n[upstreams.a]\ninstances = [\"[::1]:1\"]", ONE_ROUTE, &dollar, &example()] {
        let config = good(text);
        let again = good(&config.to_toml());
        assert_eq!(Config { warnings: config.warnings.clone(), ..again }, config, "{text}");
    }
}

#[test]
fn constructors_give_the_defaults() {
    let config = good(ONE_ROUTE);
    assert_eq!(Upstream::new(config.upstreams["a"].instances.clone()), config.upstreams["a"]);
    assert_eq!(Route::new(PathPattern::Exact("/".to_owned()), "a"), config.routes[0]);
}

#[test]
fn connections_come_from_the_descriptors_unless_configured() {
    let mut listener = Config::default().listener;
    assert_eq!(listener.connections_allowed(1024), 512);
    assert_eq!(listener.connections_allowed(0), 1);
    listener.connections_max = Some(7);
    assert_eq!(listener.connections_allowed(1024), 7);
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let path = dir.path().join("f.toml");
    let told = |path: &Path| {
        let mistakes = load(Some(path)).expect_err("a mistake").to_string();
        mistakes.replace(&dir.path().display().to_string(), "DIR")
    };
    let mut outcome = told(&path) + "\n";
    fs::write(&path, b"[http]\n\xff").expect("written");
    outcome += &(told(&path) + "\n");
    fs::write(&path, "#".repeat((1 << 20) + 1)).expect("written");
    outcome += &(told(&path) + "\n");
    outcome += &told(dir.path());
    expect![[r#"
        DIR/f.toml: the file cannot be read: No such file or directory (os error 2); name a readable file, or none
        DIR/f.toml: the file is no UTF-8 at byte 7; save it as UTF-8
        DIR/f.toml: the file is larger than 1MiB; name a configuration
        DIR: the file cannot be read: Is a directory (os error 21); name a readable file, or none"#]]
    .assert_eq(&outcome);
}

#[test]
fn a_file_with_a_byte_order_mark_is_read() {
    assert_eq!(good("\u{feff}[http]\nfields_max = 7\n").http.fields_max, 7);
}

#[test]
fn the_file_is_found() {
    let named = env(&[("SHARDGATE_CONFIG", "named.toml")]);
    assert_eq!(find(Some("given.toml".into()), &named), Some("given.toml".into()));
    assert_eq!(find(None, &named), Some("named.toml".into()));
}

/// Lines that are nearly right, so that more is reached than the parser.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<String> = every_key().map(|(_, key)| key.name.to_owned()).collect();
    let headers: Vec<String> = SECTIONS.iter().map(|section| section.name.replace("<name>", "a")).collect();
    let values =
        ["0", "-1", "\"\"", "\"${A}\"", "\"/{a}/*\"", "[]", "[\"*.a\"]", "{}", "{ a = \"b\" }", "\"10s\"", "true"];
    prop_oneof![
        (prop::sample::select(keys), prop::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} = {value}")),
        (prop::sample::select(headers.clone())).prop_map(|name| format!("[{name}]")),
        prop::sample::select(headers).prop_map(|name| format!("[[{name}]]")),
        ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn nothing_that_is_written_panics(text: String, value: String) {
        let _ = resolve(Some((Path::new("f"), &text)), &env(&[("PORT", &value), ("SHARDGATE_TRUST_PROXIES", &value)]));
    }

    #[test]
    fn nothing_nearly_right_panics_and_what_is_taken_comes_back(lines in prop::collection::vec(line(), 0..12), a: String) {
        let text = lines.join("\n");
        if let Ok(config) = resolve(Some((Path::new("f"), &text)), &env(&[("A", &a)])) {
            let again = good(&config.to_toml());
            prop_assert_eq!(Config { warnings: config.warnings.clone(), ..again }, config);
        }
    }

    #[test]
    fn values_of_any_text_never_panic(value: String, key in prop::sample::select(every_key().collect::<Vec<_>>())) {
        let (section, key) = key;
        let written = toml::Value::String(value.replace('$', "$$")).to_string();
        let list = format!("[{written}]");
        for value in [written, list] {
            let changed = Key { example: Box::leak(value.into_boxed_str()), ..*key };
            let _ = resolve_text(&file_with(section, &changed));
        }
    }
}
