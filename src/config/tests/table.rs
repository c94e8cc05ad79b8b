//! The table of keys, the example and the effective configuration agree.

use super::*;
use crate::config::key::{Change, Fallback, Key, Kind, Section, Shape};
use crate::config::keys::SECTIONS;
use std::fs;

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

const CERTIFICATE: &str = "[[tls.certificates]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";

/// Who may send a PROXY header.
const TRUST: &str = "[trust]\nproxies = [\"10.0.0.0/8\"]\n";

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
        Shape::Once if section.name == "tls" && matches!(key.name, "hsts_include_subdomains" | "hsts_preload") => {
            let subdomains = if key.name == "hsts_preload" { "hsts_include_subdomains = true\n" } else { "" };
            format!("[tls]\nhsts_max_age = \"365d\"\n{subdomains}{line}")
        }
        Shape::Once if section.name == "listener" && key.name == "https_port" => {
            format!("{CERTIFICATE}[listener]\nkind = \"redirect\"\n{line}")
        }
        Shape::Once if section.name == "listener" && key.name == "proxy_protocol" => {
            format!("{TRUST}[listener]\n{line}")
        }
        Shape::Once if section.name == "listener" && key.name == "kind" => {
            format!("[[tls.certificates]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n[listener]\n{line}")
        }
        // A certificate goes with its key.
        Shape::Once if section.name == "admin" && matches!(key.name, "kind" | "cert" | "key") => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let (cert, key) = (missing("cert", "cert = \"c.pem\"\n"), missing("key", "key = \"k.pem\"\n"));
            format!("[admin]\n{cert}{key}{line}")
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
        Shape::Listed if section.name == "admin.tokens" => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let (name, file) = (missing("name", "name = \"ben\"\n"), missing("file", "file = \"t\"\n"));
            let file = if key.name == "secret" { "" } else { file };
            format!("[[admin.tokens]]\n{name}{file}{line}")
        }
        Shape::Listed if section.name == "tls.certificates" => {
            let other = if key.name == "cert" { "key = \"k.pem\"\n" } else { "cert = \"c.pem\"\n" };
            format!("[[tls.certificates]]\n{other}{line}")
        }
        Shape::Listed if section.name == "listeners" && key.name == "https_port" => {
            format!("{CERTIFICATE}[[listeners]]\nport = 1\nkind = \"redirect\"\n{line}")
        }
        Shape::Listed if section.name == "listeners" => {
            let missing = |name: &str, text| if key.name == name { "" } else { text };
            let (port, kind) = (missing("port", "port = 1\n"), missing("kind", "kind = \"plain\"\n"));
            let trust = if key.name == "proxy_protocol" { TRUST } else { "" };
            format!("{trust}[[listeners]]\n{port}{kind}{line}")
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
        Shape::Inside if section.name == "upstreams.<name>.breaker" => {
            format!("{ONE_ROUTE}[upstreams.a.breaker]\n{line}")
        }
        Shape::Inside if section.name == "upstreams.<name>.tls" => {
            // One half of a pair is none.
            let other = match key.name {
                "cert" => "key = \"a.key\"\n",
                "key" => "cert = \"a.pem\"\n",
                _ => "",
            };
            format!("{ONE_ROUTE}[upstreams.a.tls]\n{other}{line}")
        }
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
        let old = match section.name {
            "listener" if key.name == "https_port" => good(&format!("{CERTIFICATE}[listener]\nkind = \"redirect\"\n")),
            _ if is_discover => good(&discover::with_redis("")),
            _ => Config::default(),
        };
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
            // And whoever has none of these files yet starts without.
            Shape::Listed
                if ["tls.certificates", "auth.keys", "auth.issuers", "admin.tokens"].contains(&section.name) =>
            {
                is_comment && example().contains(&format!("# [[{}]]", section.name))
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
                let upstreams = written["upstreams"].as_table().expect("a table");
                upstreams.values().any(|upstream| has(upstream.get(last), key.name))
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
