//! Tables of bad files, with what is told about each.

use super::*;
use expect_test::expect;
use std::fs;

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
proxies = ["10.0.0.0/8", 7, "10.0.0.1/8"]
[trace]
sample_ratio = 1.5
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
            shardgate.toml:16: trust.proxies[1] is 7; it is text: network, as "10.0.0.0/8" or "::1"
            shardgate.toml:16: trust.proxies[2] is "10.0.0.1/8"; the address has bits beyond the network; write "10.0.0.0/8"
            shardgate.toml:18: trace.sample_ratio is 1.5; it is a share from 0.0 to 1.0, like 0.1
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
            shardgate.toml:6: drain.x is not a key; there are notice, window, max
            shardgate.toml:8: http.head_byte_max is not a key; did you mean http.head_bytes_max?"#]],
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
balance = "fastest"
hash_key = "header:no name"
[[routes]]
path = "/"
upstream = "numbers"
"#,
        &expect![[r#"
            shardgate.toml:2: upstreams.none.instances is missing; name one or more: ["127.0.0.1:4001"], or say in [upstreams.none.discover] where they are found
            shardgate.toml:4: upstreams.empty.instances is empty; an upstream has one instance or more
            shardgate.toml:6: upstreams.twice.instances has h:1 twice; name each instance once
            shardgate.toml:7: "Shop" is no name of an upstream; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:9: "a.b" is no name of an upstream; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:13: upstreams.numbers.requests_max is 0; it is a whole number from 1 to 4294967295
            shardgate.toml:14: upstreams.numbers.retries_max is 11; it is a whole number from 0 to 10
            shardgate.toml:15: upstreams.numbers.outlier_percent_max is 101; it is a whole number from 0 to 100
            shardgate.toml:16: upstreams.numbers.balance is "fastest"; it is one of "least_latency", "least_requests", "round_robin", "consistent_hash"
            shardgate.toml:17: upstreams.numbers.hash_key is "header:no name"; it is "address", "user", "header:NAME" or "cookie:NAME""#]],
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
body_methods = ["*", "get"]
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
            shardgate.toml:25: routes[5].rewrite is "/x"; take either rewrite or strip_prefix
            shardgate.toml:27: routes[5].body_methods has "get"; methods are told apart by case; write "GET"
            shardgate.toml:27: routes[5].body_methods has "*" and more; the star stands for all"#]],
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
            shardgate.toml:2: admin.address is "0.0.0.0"; others can reach that address, so operators need tokens there: write [[admin.tokens]], or bind a loopback address like "127.0.0.1"
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
fn listeners_beside_the_first() {
    check(
        "[[listeners]]\n[[listeners]]\nport = 70000\nkind = \"tls\"\n",
        &expect![[r#"
            shardgate.toml:1: listeners[0].port is missing; ports go from 1 to 65535
            shardgate.toml:1: listeners[0].kind is missing; it is one of "plain", "tls", "redirect"
            shardgate.toml:3: listeners[1].port is 70000; ports go from 1 to 65535
            shardgate.toml: listeners[1].kind is "tls", and there is no certificate; give cert and key of one as [[tls.certificates]]"#]],
    );
    check(
        "listeners = 8080\n[listener]\nports = 1\n",
        &expect![[r#"
        shardgate.toml:1: listeners is 8080; it is a list of listeners: [[listeners]]
        shardgate.toml:3: listener.ports is not a key; did you mean listener.port?"#]],
    );
    // What is wrong with one of these hides nothing of the others.
    check(
        "[[listeners]]\nport = 1\n[[listeners]]\nport = 3000\nkind = \"plain\"\n[[listeners]]\nport = 3001\nkind = \"plain\"\n",
        &expect![[r#"
            shardgate.toml:1: listeners[0].kind is missing; it is one of "plain", "tls", "redirect"
            shardgate.toml:4: listeners[1].port is 3000, and so is listener.port; give each listener a port of its own
            shardgate.toml:7: admin.port is 3001, and so is listeners[2].port; give each listener a port of its own"#]],
    );
    check(
        "[listener]\naddress = \"10.0.0.1\"\n[admin]\nport = 3002\n\
         [[listeners]]\naddress = \"10.0.0.2\"\nport = 3000\nkind = \"plain\"\n\
         [[listeners]]\naddress = \"::ffff:10.0.0.1\"\nport = 3000\nkind = \"plain\"\n\
         [[listeners]]\naddress = \"?\"\nport = 3002\nkind = \"plain\"\n\
         [[listeners]]\nport = 3002\nkind = \"plain\"\n",
        &expect![[r#"
            shardgate.toml:4: admin.port is 3002, and so is listeners[3].port; give each listener a port of its own
            shardgate.toml:11: listeners[1].port is 3000, and so is listener.port; give each listener a port of its own
            shardgate.toml:14: listeners[2].address is "?"; it is an IP address, like "127.0.0.1" or "::""#]],
    );
    // Each of these takes a port of its own.
    check("[[listeners]]\nport = 0\nkind = \"plain\"\n[[listeners]]\nport = 0\nkind = \"plain\"\n", &expect![[""]]);
}

#[test]
fn warnings() {
    check(
        "[upstreams.ingestion]\ninstances = [\"h:1\"]\n[upstreams.extra]\ninstances = [\"h:1\"]\n",
        &expect![[r#"
            warning: shardgate.toml:1: there are no routes, so the built-in ones apply, and upstreams.prediction is "127.0.0.1:4002"
            warning: shardgate.toml:1: there are no routes, so the built-in ones apply, and upstreams.ai-engine is "127.0.0.1:4003"
            warning: upstreams.extra is the upstream of no route, and of nothing in [hub]
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
        DIR/f.toml: the file cannot be read: there is no such file; make it, or name another one; without one the defaults hold
        DIR/f.toml: the file is no UTF-8 at byte 7; save it as UTF-8
        DIR/f.toml: the file is larger than 1MiB; name a configuration
        DIR: the file cannot be read: Is a directory (os error 21); name a readable file, or none"#]]
    .assert_eq(&outcome);
}

#[test]
fn depth_is_bounded() {
    let deep = 100_000;
    for text in [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}{}", "[".repeat(deep), "]".repeat(deep)),
        format!("a = {}1{}", "{ a = ".repeat(deep), " }".repeat(deep)),
        format!("a{} = 1", ".a".repeat(deep)),
        format!("[a{}]", ".a".repeat(deep)),
        format!("[[a{}]]", ".a".repeat(deep)),
    ] {
        assert!(resolve_text(&text).is_err());
    }
}

#[test]
fn who_may_use_a_route() {
    check(
        r#"[roles.Editor]
permissions = []
[roles.editor]
permissions = ["a b", "hub:*", "*", "x*"]
[upstreams.a]
instances = ["h:1"]
[[routes]]
path = "/1"
upstream = "a"
access = "public"
roles = ["admin"]
token_query = "access_token"
[[routes]]
path = "/2"
upstream = "a"
access = "everybody"
token_query = "access token"
roles = ["editr"]
permissions = ["*"]
"#,
        &expect![[r#"
            shardgate.toml:1: "Editor" is no name of a role; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:4: roles.editor.permissions has "a b"; a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like "events:write"
            shardgate.toml:4: roles.editor.permissions has "x*"; a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like "events:write"
            shardgate.toml:11: routes[0].roles is given, and routes[0].access is "public"; anybody may use a public route; take one of the two out
            shardgate.toml:12: routes[0].token_query is given, and routes[0].access is "public"; anybody may use a public route; take one of the two out
            shardgate.toml:16: routes[1].access is "everybody"; it is one of "public", "authenticated"
            shardgate.toml:17: routes[1].token_query is "access token"; it is up to 64 of A-Z, a-z, 0-9, ., _ and -, like "access_token"
            shardgate.toml:18: routes[1].roles has "editr", and there is no such role; did you mean editor?
            shardgate.toml:19: routes[1].permissions has "*"; a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like "events:write""#]],
    );
}

#[test]
fn keys_and_issuers_of_tokens() {
    check(
        r#"[auth]
issuer = "id"
audience = ""
access_lifetime = "2h"
[[auth.keys]]
kid = "a"
algorithm = "HS256"
secret = "too short, and never shown"
[[auth.keys]]
kid = "a"
algorithm = "RS257"
file = ""
[[auth.keys]]
kid = "b"
algorithm = "ES256"
secret = "long enough, but of no use for ES256"
sign = true
[[auth.keys]]
kid = "c"
algorithm = "EdDSA"
file = "c.pem"
secret = ["never shown"]
sign = true
[[auth.keys]]
algorithm = "HS256"
[[auth.issuers]]
issuer = "id"
jwks_url = "ftp://id/keys"
algorithms = ["HS256"]
types = []
[[auth.issuers]]
issuer = "id"
jwks_file = "keys.json"
ca_file = "ca.pem"
audiences = [""]
algorithms = []
[[auth.issuers]]
issuer = "user"
jwks_url = "https://user:password@id/keys"
jwks_file = "keys.json"
"#,
        &expect![[r#"
            shardgate.toml:3: auth.audience is ""; it is 1 to 255 printable ASCII characters
            shardgate.toml:4: auth.access_lifetime is "2h"; it is not more than auth.lifetime_max, which is "1h"
            shardgate.toml:8: auth.keys[0].secret has 26 bytes; it has 32 or more, by chance: `openssl rand -base64 32` makes one
            shardgate.toml:10: auth.keys[1].kid is "a", as that of another key; give each key an id of its own
            shardgate.toml:11: auth.keys[1].algorithm is "RS257"; it is one of "HS256", "RS256", "PS256", "ES256", "EdDSA"
            shardgate.toml:12: auth.keys[1].file is ""; it is a path
            shardgate.toml:16: auth.keys[2].secret is no PEM, and auth.keys[2].algorithm is "ES256"; only HS256 has a secret; name the file of the key, or write secret = "${VARIABLE}" where the variable holds the key as PEM
            shardgate.toml:18: auth.keys[3] has both file and secret; give the file that holds the key, or the key itself as secret
            shardgate.toml:22: auth.keys[3].secret is no text; it is a secret text: 32 bytes or more for HS256, else PEM
            shardgate.toml:23: auth.keys[3].sign is true, as that of another key; one key signs; the others only verify
            shardgate.toml:24: auth.keys[4].kid is missing; it is text: 1 to 255 printable ASCII characters
            shardgate.toml:26: auth.issuers[0].issuer is "id", and so is auth.issuer; the gateway's own keys stand in [[auth.keys]]
            shardgate.toml:26: auth.issuers[1].issuer is "id", and so is auth.issuer; the gateway's own keys stand in [[auth.keys]]
            shardgate.toml:26: auth.issuers[1].issuer is "id", as that of another; write each issuer once
            shardgate.toml:28: auth.issuers[0].jwks_url is "ftp://id/keys"; it is an http or https URL without a user, like "https://id.example.com/jwks.json"
            shardgate.toml:29: auth.issuers[0].algorithms has "HS256"; a key set has public keys only; for a shared secret write [[auth.keys]]
            shardgate.toml:30: auth.issuers[0].types is empty; name one or more; "" is for tokens without
            shardgate.toml:34: auth.issuers[1].ca_file is given, and auth.issuers[1].jwks_url is no https URL; only https servers show certificates
            shardgate.toml:35: auth.issuers[1].audiences is ""; it is 1 to 255 printable ASCII characters
            shardgate.toml:36: auth.issuers[1].algorithms is empty; name one or more
            shardgate.toml:37: auth.issuers[2] has both jwks_url and jwks_file; say where its keys are: jwks_url or jwks_file
            shardgate.toml:39: auth.issuers[2].jwks_url is ***; it is an http or https URL without a user, like "https://id.example.com/jwks.json""#]],
    );
    check(
        "[[auth.issuers]]\nissuer = \"id\"\njwks_url = \"http://id/keys?token=secret\"\n[[auth.issuers]]\nissuer = \"id2\"\njwks_url = \"http://[::1]:80/keys\"\n",
        &expect![[r#"
            warning: shardgate.toml:3: auth.issuers[0].jwks_url is ***; whoever is on the way can put keys of their own there; use https
            warning: shardgate.toml:1: auth.issuers[0] has no audiences, so tokens that it issued for anybody else are taken too
            warning: shardgate.toml:4: auth.issuers[1] has no audiences, so tokens that it issued for anybody else are taken too
        "#]],
    );
}

#[test]
fn what_issuers_may_give() {
    let issuer = |name: &str, rest: &str| {
        format!("[[auth.issuers]]\nissuer = \"{name}\"\naudiences = [\"a\"]\njwks_file = \"keys.json\"\n{rest}")
    };
    let text = [
        issuer(
            "a",
            "sub_prefix = \" a\"\nroles = [\"\", \"a,b\", \"sales admin\"]\nrole = \" \"\npermissions = [\"events*\"]\n",
        ),
        issuer("b", "sub_prefix = \"partner\"\n"),
        issuer("c", "sub_prefix = \"partner:\"\nclaim_role = \"/role\"\nclaim_permissions = \"scope\"\n"),
        issuer(&"d".repeat(127), ""),
    ];
    check(
        &text.concat(),
        &expect![[r#"
        shardgate.toml:1: auth.issuers[2].sub_prefix is "partner:", which begins with that of auth.issuers[1]; neither may begin with the other, or ids of the two could meet
        shardgate.toml:6: auth.issuers[0].roles is ""; it is 1 to 255 printable ASCII characters without a comma, and begins and ends with no space
        shardgate.toml:6: auth.issuers[0].roles is "a,b"; it is 1 to 255 printable ASCII characters without a comma, and begins and ends with no space
        shardgate.toml:7: auth.issuers[0].role is ""; it is 1 to 255 printable ASCII characters without a comma, and begins and ends with no space
        shardgate.toml:8: auth.issuers[0].permissions has "events*"; a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like "events:write"
        shardgate.toml:22: auth.issuers[3].sub_prefix would be the issuer and a |, 128 bytes; write a shorter one: sub_prefix = "partner:""#]],
    );
    let fine = [
        issuer("a", "sub_prefix = \"\"\nroles = [\"*\"]\npermissions = [\"*\", \"hub:*\"]\n"),
        issuer("b", "sub_prefix = \"partner:\"\nrole = \"user\"\n"),
        issuer("c", "sub_prefix = \"partner:\"\nclaim_role = \"/role\"\nclaim_permissions = \"scope\"\n"),
    ];
    check(
        &fine.concat(),
        &expect![[r#"
        warning: shardgate.toml:19: auth.issuers[2].claim_role is given, and auth.issuers[2].roles is empty, so that none of them counts
        warning: shardgate.toml:20: auth.issuers[2].claim_permissions is given, and auth.issuers[2].permissions is empty, so that none of them counts
    "#]],
    );
}

#[test]
fn a_secret_out_of_a_variable_is_shown_nowhere() {
    let text = "[[auth.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\nsecret = \"${TOKEN_SECRET}\"\n";
    check_with(
        text,
        &[("TOKEN_SECRET", "hunter2")],
        &expect![
            "shardgate.toml:4: auth.keys[0].secret has 7 bytes; it has 32 or more, by chance: `openssl rand -base64 32` makes one"
        ],
    );
    let secret = "correct horse battery staple, twice over";
    let config = resolve(Some((Path::new("f"), text)), &env(&[("TOKEN_SECRET", secret)])).expect("it is right");
    assert_eq!(config.auth.keys[0].secret.as_ref().expect("a secret").reveal(), secret);
    assert!(!config.to_toml().contains("horse") && !format!("{config:?}").contains("horse"));
}

#[test]
fn a_route_that_sees_no_request_is_worth_a_warning() {
    let route =
        |path: &str| format!("[upstreams.a]\ninstances = [\"h:1\"]\n[[routes]]\npath = \"{path}\"\nupstream = \"a\"\n");
    check(
        &route("/auth/login"),
        &expect![[r#"
        warning: the route of /auth/login sees no request: the gateway answers that path itself
    "#]],
    );
    check(
        &route("/health"),
        &expect![[r#"
        warning: the route of /health sees no request: the gateway answers that path itself
    "#]],
    );
    check(
        &route("/auth/sessions/{id}"),
        &expect![[r#"
        warning: the route of /auth/sessions/{id} sees no request: the gateway answers that path itself
    "#]],
    );
    check(&route("/auth/*"), &expect![[r#""#]]);
    check(&(route("/auth/login") + "[accounts]\nenabled = false\n"), &expect![[r#""#]]);
}
