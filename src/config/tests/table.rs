//! The table of keys, the example and the effective configuration agree.

use super::*;
use crate::config::key::{Change, Fallback, Key, Kind, Section, Shape};
use crate::config::keys::SECTIONS;
use expect_test::expect;
use std::fs;

#[test]
#[expect(clippy::too_many_lines, reason = "the table is long")]
fn the_defaults_are_those_that_were_promised() {
    expect![[r#"
        [runtime]
        shards = 0
        driver = "epoll"
        pin = true
        lookup_timeout = "10s"

        [discovery]
        nameservers = []
        interval_min = "1s"
        interval_max = "5m"
        max_shrink = 50
        allow = []

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

        [metrics]
        allow = []

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
        interim_answers = true
        requests_per_connection_max = 0

        [trust]
        proxies = []

        [trace]
        sample_ratio = 1.0
        heed_parents = true
        errors = false
        timeout = "10s"
        compression = "none"
        service_name = "shardgate"
        attributes = ""
        queue_spans = 8192

        [deadline]
        from = "anybody"
        max = "1m"

        [shedding]
        by_deadline = true
        queue_max = "1s"

        [drain]
        notice = "5s"
        window = "10s"
        max = "30s"

        [data]
        dir = "./data"

        [accounts]
        enabled = true
        postgres_connections_max = 4
        postgres_timeout = "3s"
        password_threads = 0
        password_queue = 64
        password_memory = "19MiB"
        password_passes = 2
        login_failures_max = 5

        [log]
        level = "info"
        format = "auto"
        access = "stdout"
        buffer_bytes = "2MiB"
        flush_interval = "200ms"

        [cors]
        origins = []
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        headers = ["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"]
        exposed = ["RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"]
        max_age = "10m"
        credentials = false
        private_network = false

        [auth]
        issuer = "shardgate"
        audience = "shardgate"
        access_lifetime = "15m"
        lifetime_max = "1h"
        leeway = "5s"
        token_bytes_max = "8KiB"
        cache_entries = 16384
        revocations_max = 100000

        [redis]
        urls = []
        mode = "single"
        master = "mymaster"
        connect_timeout = "1s"
        timeout = "1s"

        [sessions]
        lifetime = "30d"
        refresh_grace = "10s"
        per_user_max = 50

        [revocation]
        max_staleness = "1m"

        [roles.admin]
        permissions = ["*"]

        [roles.analyst]
        permissions = ["hub:read"]

        [roles.service]
        permissions = ["hub:publish", "hub:read"]

        [roles.user]
        permissions = []

        [hub]
        enabled = true
        echo = false
        deflate = false
        auth_timeout = "10s"
        unauthenticated_per_address_max = 32
        ping_interval = "25s"
        dead_after = "1m"
        message_bytes_max = "64KiB"
        messages_per_s = 50
        rooms_per_socket_max = 128
        rooms_per_user_max = 1024
        sockets_per_user_max = 64
        sockets_max = 1000000
        rooms_max = 100000
        outbox_bytes_max = "1MiB"
        outboxes_bytes_max = "256MiB"
        histories_bytes_max = "256MiB"
        history_messages = 256
        history_bytes = "1MiB"
        history_age = "5m"
        dedup_window = "2m"
        presence_grace = "5s"
        events_path = "/hub-events"
        events = ["room.occupied", "room.vacated", "user.online", "user.offline"]
        events_timeout = "5s"
        events_waiting_max = 10000
        without_redis = "refuse"

        [[hub.rooms]]
        pattern = "public.*"
        roles = []
        permissions = []
        join = true
        publish = true
        presence = true
        presence_events = false
        slow_consumer = "close"

        [[hub.rooms]]
        pattern = "user.{sub}.*"
        roles = []
        permissions = []
        join = true
        publish = true
        presence = true
        presence_events = false
        slow_consumer = "close"

        [[hub.services]]
        type_name = "cart_event"
        upstream = "ingestion"
        path = "/events"
        timeout = "15s"
        waiting_max = 64
        share = "nobody"

        [[hub.services]]
        type_name = "prediction_request"
        upstream = "prediction"
        path = "/predict"
        answer = "prediction_response"
        timeout = "15s"
        waiting_max = 64
        share = "nobody"

        [upstreams.ai-engine]
        instances = ["127.0.0.1:4003"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [upstreams.ingestion]
        instances = ["127.0.0.1:4001"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [upstreams.prediction]
        instances = ["127.0.0.1:4002"]
        connect_timeout = "1s"
        response_timeout = "15s"
        idle_timeout = "4s"
        idle_max = 64
        head_bytes_max = "64KiB"
        fields_max = 256
        interim_answers_max = 16
        requests_max = 1024
        body_methods = ["POST", "PUT", "PATCH"]
        retries_max = 2
        retry_budget_percent = 20
        retry_budget_min_per_s = 3
        retry_on = ["connect", "reset", "timeout"]
        retry_backoff = "25ms"
        retry_backoff_max = "250ms"
        outlier_failures = 5
        outlier_ejection = "30s"
        outlier_percent_max = 50
        balance = "least_latency"
        hash_key = "address"
        slow_start = "0s"
        panic_percent = 50

        [[routes]]
        name = "ingestion"
        hosts = []
        path = "/api/events/*"
        methods = []
        upstream = "ingestion"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]

        [[routes]]
        name = "prediction"
        hosts = []
        path = "/api/predict/*"
        methods = []
        upstream = "prediction"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]

        [[routes]]
        name = "ai-engine"
        hosts = []
        path = "/api/ai/*"
        methods = []
        upstream = "ai-engine"
        access = "authenticated"
        roles = []
        permissions = []
        strip_prefix = "/api"
        preserve_host = false
        forward_authorization = true
        allow_encoded_slash = false
        merge_slashes = true
        rewrite_redirects = true
        upgrades = ["websocket"]
    "#]]
    .assert_eq(&Config::default().to_toml());
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

/// A file in which this key has its example for a value.
pub(super) fn file_with(section: &Section, key: &Key) -> String {
    let line = format!("{} = {}\n", key.name, key.example);
    let shop = "[upstreams.shop]\ninstances = [\"h:1\"]\n";
    let path = if key.name == "path" { "" } else { "path = \"/shop/*\"\n" };
    let upstream = if key.name == "upstream" { "" } else { "upstream = \"shop\"\n" };
    match section.shape {
        // Sessions are then kept there, and instances share their secret.
        Shape::Once if section.name == "redis" && key.name == "urls" => {
            format!("[sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n[redis]\n{line}")
        }
        Shape::Once => format!("[{}]\n{line}", section.name),
        Shape::Named if section.name == "upstreams.<name>" && key.name != "instances" => format!("{shop}{line}"),
        Shape::Named => format!("[{}]\n{line}", section.name.replace("<name>", "shop")),
        Shape::Listed if section.name == "auth.keys" => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let (kid, file) = (missing("kid", "kid = \"k\"\n"), missing("file", "file = \"k.pem\"\n"));
            let (algorithm, file) = match key.name {
                "algorithm" => ("", file),
                "secret" => ("algorithm = \"HS256\"\n", ""),
                _ => ("algorithm = \"ES256\"\n", file),
            };
            format!("[[auth.keys]]\n{kid}{algorithm}{file}{line}")
        }
        Shape::Listed if section.name == "auth.issuers" => {
            let issuer = if key.name == "issuer" { "" } else { "issuer = \"id\"\n" };
            let keys = if matches!(key.name, "jwks_url" | "jwks_file") { "" } else { "jwks_url = \"https://id\"\n" };
            format!("[[auth.issuers]]\n{issuer}{keys}{line}")
        }
        Shape::Listed if section.name == "listeners" => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let (port, kind) = (missing("port", "port = 1\n"), missing("kind", "kind = \"plain\"\n"));
            format!("[[listeners]]\n{port}{kind}{line}")
        }
        Shape::Listed if section.name == "hub.rooms" => {
            let pattern = if key.name == "pattern" { "" } else { "pattern = \"news\"\n" };
            let slow = if key.name == "key" { "slow_consumer = \"latest\"\n" } else { "" };
            format!("[[hub.rooms]]\n{pattern}{slow}{line}")
        }
        Shape::Listed if section.name == "hub.services" => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let upstream = missing("upstream", "upstream = \"ingestion\"\n");
            let (type_name, path) = (missing("type_name", "type_name = \"t\"\n"), missing("path", "path = \"/\"\n"));
            let answer = missing("answer", "answer = \"told\"\n");
            format!("[[hub.services]]\n{type_name}{upstream}{path}{answer}{line}")
        }
        Shape::Listed => format!("{shop}[[routes]]\n{path}{upstream}{line}"),
        Shape::Inside if section.name == "upstreams.<name>.discover" => discover::with_redis(&line),
        Shape::Inside if section.name.starts_with("upstreams.") => {
            let path = if matches!(key.name, "path" | "kind") { "" } else { "path = \"/\"\n" };
            format!("{ONE_ROUTE}[upstreams.a.health]\n{path}{line}")
        }
        Shape::Inside => format!("{shop}[[routes]]\n{path}{upstream}[{}]\n{line}", section.name),
    }
}

pub(super) fn every_key() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    SECTIONS.iter().flat_map(|&section| section.keys.iter().map(move |key| (section, key)))
}

#[test]
pub(super) fn every_key_of_the_table_acts_and_is_written_back() {
    for (section, key) in every_key() {
        let config = good(&file_with(section, key));
        let written: toml::Table = config.to_toml().parse().expect("TOML");
        let last = section.name.rsplit('.').next().expect("a name");
        let table = match section.shape {
            Shape::Once => written[section.name].clone(),
            Shape::Named => written[section.name.trim_end_matches(".<name>")]["shop"].clone(),
            Shape::Listed => {
                let mut names = section.name.split('.');
                let top = &written[names.next().expect("a name")];
                names.fold(top, |table, name| &table[name])[0].clone()
            }
            Shape::Inside if section.name.starts_with("upstreams.") => written["upstreams"]["a"][last].clone(),
            Shape::Inside => written["routes"][0][last].clone(),
        };
        let shown = if matches!(key.kind, Kind::Secret(_)) { "\"***\"" } else { key.example };
        let example: toml::Table = format!("value = {shown}").parse().expect("TOML");
        assert_eq!(table[key.name], example["value"], "{}.{}", section.name, key.name);
        if let Fallback::Value(default) = key.default {
            assert_ne!(default, key.example, "{}.{}", section.name, key.name);
        }
    }
}

#[test]
fn a_reload_names_the_keys_that_need_a_new_process() {
    for (section, key) in every_key() {
        let is_discover = section.name == "upstreams.<name>.discover";
        let old = if is_discover { good(&discover::with_redis("")) } else { Config::default() };
        let mut next = good(&file_with(section, key));
        let expected = match key.change {
            Change::Restart if key.name == "urls" => vec!["redis.urls".to_owned(), "sessions.secret".to_owned()],
            Change::Restart if section.shape == Shape::Listed => vec![section.name.to_owned()],
            Change::Restart => vec![format!("{}.{}", section.name, key.name)],
            Change::Reload => Vec::new(),
        };
        assert_eq!(old.restart_needed(&next), expected);
        let live = next.clone();
        next.keep_until_restart(&old);
        assert_eq!(old.restart_needed(&next), Vec::<String>::new());
        assert_eq!(next == live, key.change == Change::Reload, "{}.{}", section.name, key.name);
    }
}

/// A password that changed shows as `***` before and after.
#[test]
fn a_reload_names_hidden_keys_that_need_a_new_process() {
    let urls = |password: &str| {
        let secret = "[sessions]\nsecret = \"an example of 32 bytes or more: no secret\"\n";
        ("redis.urls".to_owned(), format!("{secret}[redis]\nurls = [\"redis://:{password}@h\"]\n"))
    };
    let hidden = every_key().filter(|(section, key)| {
        section.shape == Shape::Once && key.change == Change::Restart && matches!(key.kind, Kind::Secret(_))
    });
    let mut cases = vec![[urls("before"), urls("after")]];
    for (section, key) in hidden {
        let name = format!("{}.{}", section.name, key.name);
        let file = file_with(section, key);
        let other = file.replace("an example", "another example").replace("shardgate@", "shardgate:changed@");
        cases.push([(name.clone(), file), (name, other)]);
    }
    assert_eq!(cases.len(), 5);
    for [(name, before), (_, after)] in cases {
        let (before, mut after) = (good(&before), good(&after));
        assert_eq!(before.to_toml(), after.to_toml(), "{name} is hidden");
        assert_eq!(before.restart_needed(&after), [name]);
        after.keep_until_restart(&before);
        assert_eq!(before.restart_needed(&after), Vec::<String>::new());
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
    let Config { limits, roles, upstreams, routes, .. } = default.clone();
    let mut sections = Config { limits, roles, upstreams, routes, ..config.clone() };
    sections.hub.rooms.clone_from(&default.hub.rooms);
    sections.hub.services.clone_from(&default.hub.services);
    // Without keys one is made, and there are no other issuers.
    sections.auth.keys.clear();
    sections.auth.issuers.clear();
    assert_eq!(sections, default);
    let shop = &config.upstreams["shop"];
    assert_eq!(*shop, Upstream::new(shop.instances.clone()));
}

#[test]
fn the_example_shows_every_key() {
    let written: toml::Table = example().parse().expect("TOML");
    let has = |table: Option<&toml::Value>, key: &str| table.is_some_and(|table| table.get(key).is_some());
    for (section, key) in every_key() {
        let is_unset = matches!(key.default, Fallback::Unset(_));
        let is_comment = example().contains(&format!("# {} = ", key.name));
        if is_unset && section.shape == Shape::Once || matches!(key.kind, Kind::Secret(_)) {
            // The example says the defaults, and nobody must run with a secret that everybody knows.
            assert!(is_comment, "{}.{}", section.name, key.name);
            continue;
        }
        if is_unset && is_comment {
            continue;
        }
        let routes = written["routes"].as_array().expect("routes");
        let last = section.name.rsplit('.').next().expect("a name");
        let shown = match section.shape {
            Shape::Once => has(written.get(section.name), key.name),
            Shape::Named => {
                let tables = written.get(section.name.trim_end_matches(".<name>")).and_then(toml::Value::as_table);
                tables.is_some_and(|tables| tables.values().any(|table| has(Some(table), key.name)))
            }
            Shape::Listed if section.name.contains('.') => {
                let (table, name) = section.name.split_once('.').expect("a dot");
                let list = written[table][name].as_array().expect("a list");
                list.iter().any(|entry| has(Some(entry), key.name))
            }
            // Whoever starts from the example gets no further port by it.
            Shape::Listed if section.name == "listeners" => is_comment && example().contains("# [[listeners]]"),
            Shape::Listed => routes.iter().any(|route| has(Some(route), key.name)),
            Shape::Inside if section.name.starts_with("upstreams") => {
                has(written["upstreams"]["orders"].get(last), key.name)
            }
            Shape::Inside => routes.iter().any(|route| has(route.get(last), key.name)),
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
fn a_file_with_a_byte_order_mark_is_read() {
    assert_eq!(good("\u{feff}[http]\nfields_max = 7\n").http.fields_max, 7);
}
