//! What `[upstreams.<name>]` may say of its servers.

use super::*;
use expect_test::expect;

fn with(instances: &str) -> String {
    ONE_ROUTE.replace("[\"h:1\"]", instances)
}

#[test]
fn an_instance_is_a_text_or_a_table() {
    let config = good(&with(
        r#"["h:1", { address = "h:2", weight = 3 }, { address = "unix:/run/a.sock", priority = 2, zone = "eu-1a" }, { address = "h:3", weight = 0 }]"#,
    ));
    let told = |config: &Config| {
        let of = |instance: &Instance| {
            let zone = instance.zone.as_ref().map_or(String::new(), |zone| format!(" in {zone}"));
            format!("{instance} {} {}{zone}", instance.weight, instance.priority)
        };
        config.upstreams["a"].instances.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(told(&config), ["h:1 1 0", "h:2 3 0", "unix:/run/a.sock 1 2 in eu-1a", "h:3 0 0"]);
    assert_eq!(told(&good(&config.to_toml())), told(&config), "{}", config.to_toml());
    let text = with(r#""${HOSTS}""#);
    let found = resolve(Some((Path::new("a.toml"), &text)), &env(&[("HOSTS", "h:1, unix:/run/b.sock")]));
    assert_eq!(told(&found.expect("good")), ["h:1 1 0", "unix:/run/b.sock 1 0"]);
    assert_eq!(good("[runtime]\nzone = \"eu-1a\"\n").runtime.zone, Some(Zone("eu-1a".into())));
}

#[test]
fn mistakes_of_instances_are_told() {
    check(
        &with(
            r#"["h", { weight = 1 }, { address = "h:2", weigth = 3, weight = -1, priority = "x", zone = "a b" }, 7, { address = 1 }, "unix:a.sock", "h:1", { address = "h:1", weight = 2 }, "[::ffff:10.0.0.1]:1", "10.0.0.1:1"]"#,
        ),
        &expect![[r#"
            shardgate.toml:2: upstreams.a.instances[0] is "h"; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            shardgate.toml:2: upstreams.a.instances[1].address is missing; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            shardgate.toml:2: upstreams.a.instances[2].weight is -1; it is a whole number from 0 to 65535
            shardgate.toml:2: upstreams.a.instances[2].priority is "x"; it is a whole number from 0 to 65535
            shardgate.toml:2: upstreams.a.instances[2].zone is "a b"; it is up to 64 of A-Za-z0-9._-
            shardgate.toml:2: upstreams.a.instances[2].weigth is not a key; did you mean weight?
            shardgate.toml:2: upstreams.a.instances[3] is 7; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            shardgate.toml:2: upstreams.a.instances[4].address is 1; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            shardgate.toml:2: upstreams.a.instances[5] is "unix:a.sock"; write a socket as "unix:/run/shop.sock": a whole path of at most 107 bytes
            shardgate.toml:2: upstreams.a.instances has h:1 twice; name each instance once
            shardgate.toml:2: upstreams.a.instances has 10.0.0.1:1 twice; name each instance once"#]],
    );
    check(
        &with(r#"[{ address = "h:1", weight = 0 }]"#),
        &expect!["shardgate.toml:2: upstreams.a.instances have no weight but 0; one instance or more gets requests"],
    );
    check(
        &with("7"),
        &expect![[r#"
        shardgate.toml:2: upstreams.a.instances is 7; it is a list of instances: ["127.0.0.1:4001"]
        shardgate.toml:2: upstreams.a.instances is empty; an upstream has one instance or more"#]],
    );
}

#[test]
fn a_key_of_several_words_is_told_by_its_first() {
    check(
        "[upstreams.a]\ninstances = [\"127.0.0.1:1\"]\nretrys = 1\nzzz = 1\n[[routes]]\npath = \"/\"\nupstream = \"a\"\nacess = 1\n",
        &expect![[r#"
            shardgate.toml:3: upstreams.a.retrys is not a key; did you mean one of retries_max, retry_budget_percent, retry_budget_min_per_s, retry_on, retry_backoff, retry_backoff_max?
            shardgate.toml:4: upstreams.a.zzz is not a key; there are instances, connect_timeout, response_timeout, idle_timeout, idle_max, head_bytes_max, fields_max, interim_answers_max, requests_max, uploads_max, body_methods, retries_max, retry_budget_percent, retry_budget_min_per_s, retry_on, per_try_timeout, retry_backoff, retry_backoff_max, outlier_failures, outlier_share_percent, outlier_statuses, outlier_requests_min, outlier_window, outlier_ejection, outlier_percent_max, balance, hash_key, hash_secret, slow_start, panic_percent, discover, health, breaker, tls
            shardgate.toml:8: routes[0].acess is not a key; did you mean routes[0].access?"#]],
    );
}

#[test]
fn what_is_said_of_tls_to_services_is_checked() {
    let with_tls = |instances: &str, tls: &str| format!("{}\n[upstreams.a.tls]\n{tls}\n", with(instances));
    let of = |instances: &str, tls: &str| check(&with_tls(instances, tls), &expect![[""]]);
    of(r#"["https://h", "h:1", "https://h:1"]"#, "ca_file = \"ca.pem\"\nserver_name = \"shop.internal\"");
    of(r#"["https://h"]"#, "server_name = \"10.0.0.1\"\ncert = \"a.pem\"\nkey = \"a.key\"");
    check(
        &with_tls(r#"["https://h", "https://h:443"]"#, "cert = \"a.pem\"\nserver_name = \"a b\"\nca = 1"),
        &expect![[r#"
            shardgate.toml:2: upstreams.a.instances has https://h twice; name each instance once
            shardgate.toml:8: upstreams.a.tls.cert is given, and no key; give upstreams.a.tls.key too
            shardgate.toml:9: upstreams.a.tls.server_name is "a b"; it is a name or an address, like "shop.internal"
            shardgate.toml:10: upstreams.a.tls.ca is not a key; did you mean upstreams.a.tls.ca_file?"#]],
    );
    check(
        &with_tls(r#"["https://h"]"#, "key = \"a.key\"\nverify = 1"),
        &expect![[r#"
        shardgate.toml:8: upstreams.a.tls.key is given, and no cert; give upstreams.a.tls.cert too
        shardgate.toml:9: upstreams.a.tls.verify is 1; write true or false"#]],
    );
    let warnings = |instances: &str, tls: &str| good(&with_tls(instances, tls)).warnings.join("\n");
    expect![[r#"
        shardgate.toml:8: upstreams.a.tls.verify is false: whoever takes the place of a service of the upstream reads what it is sent, tokens too
        shardgate.toml:9: upstreams.a.tls.ca_file does nothing, as upstreams.a.tls.verify is false"#]].assert_eq(&warnings(r#"["https://h"]"#, "verify = false\nca_file = \"a.pem\""));
    expect!["shardgate.toml:7: upstreams.a.tls does nothing, as no instance begins with https://"]
        .assert_eq(&warnings(r#"["h:1"]"#, "verify = false"));
    expect![[r#"
        shardgate.toml:2: upstreams.a.instances has h:443, the port of HTTPS, and requests and their tokens go to it in clear text; write https://h where it speaks TLS"#]].assert_eq(&warnings(r#"["h:443"]"#, ""));
}
