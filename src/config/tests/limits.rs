//! Rate limits and CORS as written, with what is told about them.

use super::*;
use expect_test::expect;

#[test]
fn limits() {
    check(
        r#"
[limits.Login]
[limits.a]
key = "ip"
quota = 0
window = "0s"
scope = "global"
[limits.b]
quota = 1000001
window = "1s"
[limits.c]
quota = 1
window = "1d"
burst = 31
[limits.d]
applies = "auth"
[limits.e]
applies = "named"
[upstreams.a]
instances = ["h:1"]
[[routes]]
path = "/"
upstream = "a"
limits = ["d", "e", "e", "f"]
"#,
        &expect![[r#"
            shardgate.toml:2: "Login" is no name of a limit; a name is a letter, then up to 63 of a-z, 0-9, - and _
            shardgate.toml:4: limits.a.key is "ip"; it is one of "address", "user", "route"
            shardgate.toml:5: limits.a.quota is 0; it is a whole number from 1 to 1000000000
            shardgate.toml:6: limits.a.window is "0s"; write a duration from "1ms" to "1d", like "250ms", "10s" or "5m"
            shardgate.toml:7: limits.a.scope is "global"; it is one of "shard", "process", "fleet"
            shardgate.toml:9: limits.b.quota is 1000001 in 1s; it is at most 1000000 a second
            shardgate.toml:14: limits.c.burst is 31; it is at most what the quota gives in 30d
            shardgate.toml:24: routes[0].limits has "d", which applies to the endpoints for accounts; write limits.d.applies = "named"
            shardgate.toml:24: routes[0].limits has "e" twice; once is enough
            shardgate.toml:24: routes[0].limits has "f", and there is no such limit; there are a, b, c, d, e"#]],
    );
    check(
        "[limits.a]\napplies = \"named\"\n",
        &expect![[r#"
        warning: limits.a applies where it is named, and no route names it
    "#]],
    );
    check("limits = 1\n", &expect!["shardgate.toml:1: limits is 1; it is a table of limits by name: [limits.login]"]);
}

#[test]
fn origins() {
    check(
        r#"
[cors]
origins = [
    "https://a.example", "HTTPS://B.Example:443", "http://[::1]:3000", "chrome-extension://abcdef", "https://*.c.example:*",
    "https://d.example/", "https://e.example:0", "*.f.example", "https://*g.example", "https://h.*.example", "https://user@i",
    "https://j.example:*", "https://", "https://k..example", "https://1.2.3", "null", "*",
]
methods = ["get", "*"]
headers = ["a b"]
exposed = ["*"]
credentials = true
"#,
        &expect![[r#"
            shardgate.toml:3: cors.origins has "*" and more; the star stands for all
            shardgate.toml:5: cors.origins[5] is "https://d.example/"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*": no path, not even a last slash, and no user
            shardgate.toml:5: cors.origins[6] is "https://e.example:0"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:5: cors.origins[7] is "*.f.example"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:5: cors.origins[8] is "https://*g.example"; a star stands for whole labels in front: "https://*.example.com"
            shardgate.toml:5: cors.origins[9] is "https://h.*.example"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:5: cors.origins[10] is "https://user@i"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*": no path, not even a last slash, and no user
            shardgate.toml:6: cors.origins[11] is "https://j.example:*"; any port goes with a star in front only: "http://*.example.com:*"
            shardgate.toml:6: cors.origins[12] is "https://"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:6: cors.origins[13] is "https://k..example"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:6: cors.origins[14] is "https://1.2.3"; write an origin as "https://shop.example.com", "https://*.example.com", "http://localhost:8080", "null" or "*"
            shardgate.toml:8: cors.methods has "*" and more; the star stands for all
            shardgate.toml:8: cors.methods has "get"; methods are told apart by case; write "GET"
            shardgate.toml:9: cors.headers has "a b"; it is one word or "*"
            shardgate.toml:10: cors.credentials is true, and cors.exposed has "*"; browsers take that star literally then; name the fields
            shardgate.toml:11: cors.credentials is true, and cors.origins has "*"; every site could act as the user; name the origins"#]],
    );
    check(
        "[cors]\norigins = [\"null\", \"https://a.example\"]\ncredentials = true\n[upstreams.a]\ninstances = [\"h:1\"]\n\
         [[routes]]\npath = \"/\"\nupstream = \"a\"\n",
        &expect![[r#"
            warning: shardgate.toml:2: cors allows "null" with credentials: any site can be it
        "#]],
    );
    check(
        "[cors]\norigins = [\"*\"]\n[upstreams.a]\ninstances = [\"h:1\"]\n[[routes]]\npath = \"/\"\nupstream = \"a\"\n\
         [routes.cors]\ncredentials = true\norigin = []\n",
        &expect![[r#"
            shardgate.toml:9: routes[0].cors.credentials is true, and routes[0].cors.origins has "*"; every site could act as the user; name the origins
            shardgate.toml:10: routes[0].cors.origin is not a key; did you mean routes[0].cors.origins?"#]],
    );
}
