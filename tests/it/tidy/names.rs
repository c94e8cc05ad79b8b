//! The map is true: what `ARCHITECTURE.md` and the decisions in force name in code font is there, and what there is of
//! modules and threads is on the map.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::imports::module_order;
use super::lexer::{is_word, literals};
use super::{Source, code_spans, first_word, item_end, line_of, none, root, sources, without_tests};

/// What is not ours, or is not there, and why it may be named. Dependencies are known from `Cargo.toml`, keys from the
/// schema, metrics, codes and fields from their documents.
const FOREIGN: &[(&str, &[&str])] = &[
    ("Rust's own", &["&mut", ".await", "unsafe", "unwrap", "match", "dyn Any"]),
    ("what the house does without", &["RwLock", "FuturesUnordered", "monoio::io::BufWriter"]),
    ("what was compared, or set aside", &["async-task", "aws-lc-rs", "jsonwebtoken::decode", "UNESCAPE_AND_FORWARD"]),
    ("settings of cargo's", &["panic = \"unwind\"", "panic = \"abort\"", "opt-level = 1"]),
    ("what measured", &["wrk", "strace -c -f"]),
    ("a feature of monoio's", &["poll-io"]),
    ("the kernel's", &["EAGAIN", "epoll_wait", "EPOLLRDHUP", "EPOLL_CTL_DEL", "SO_REUSEPORT", "stat"]),
    ("io_uring's", &["SINGLE_ISSUER", "DEFER_TASKRUN", "COOP_TASKRUN"]),
    ("SQLite's", &["synchronous=FULL", "synchronous=NORMAL"]),
    ("Redis's", &["min-replicas-to-write", "XREAD BLOCK"]),
    (
        "ClickHouse's",
        &["ReplacingMergeTree", "date_time_input_format", "input_format_allow_errors_num", "async_insert"],
    ),
    ("a key in Redis", &["session:<id>"]),
    ("algorithms that are not taken", &["ES384", "ES512", "RS512"]),
    ("what browsers have", &["EventSource", "WebSocket"]),
    ("messages that were sent", &["TE: identity", "TE: chunked", "content-length: 0", "Expect: 100-continue"]),
    ("nginx's", &["proxy_pass http://tomcat$uri"]),
    ("text and paths that are examples", &["issuer/subject", "|", "/admin/x", "/users/a/*"]),
    ("terms of a formula", &["t", "burst / 4n", "n − 1", "4n", "n = 8"]),
];

/// What can be named.
#[derive(Default)]
struct House {
    /// Files and folders of the repository.
    paths: BTreeSet<String>,
    files: Vec<File>,
    /// Keys of the configuration, metrics, error codes, fields of the access log; and the crates that it is made of.
    documented: BTreeSet<String>,
    /// What the binary says or reads: names of fields, threads, pages. In lower case.
    said: BTreeSet<String>,
}

/// A file of `src`, without its tests.
struct File {
    /// `gateway::rate_limit` for `src/gateway/rate_limit/mod.rs`.
    module: String,
    code: String,
    /// What it defines, members too.
    items: BTreeSet<String>,
}

impl House {
    fn real() -> Self {
        let mut house = Self::of(&sources(&["src"], &[".rs"]));
        let folders = ["src", "tests", "docs", "benches", "fuzz", "loadtest", "contrib", "scripts"];
        for source in sources(&folders, &[".rs", ".md", ".toml", ".json", ".service"]) {
            house.add_path(&source.path);
        }
        for name in ["ARCHITECTURE.md", "CHANGELOG.md", "PERF.md", "README.md", "Cargo.toml", "shardgate.example.toml"]
        {
            house.add_path(name);
        }
        let read = |name: &str| fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let schema: Value = serde_json::from_str(&read("docs/config.schema.json")).expect("it is JSON");
        house.add_keys(&schema, "");
        for name in ["docs/metrics.md", "docs/errors.md", "docs/access-log.md"] {
            let text = read(name);
            let first_cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
            house.documented.extend(first_cells.flat_map(code_spans).map(|(_, span)| span));
        }
        for manifest in sources(&["Cargo.toml", "benches", "fuzz/Cargo.toml"], &["Cargo.toml"]) {
            let tables = manifest.text.split("\n[").filter(|table| table.lines().next().is_some_and(is_of_crates));
            let lines = tables.flat_map(str::lines).filter_map(|line| line.split_once(" = "));
            house.documented.extend(lines.map(|(name, _)| name.to_owned()));
        }
        house
    }

    /// What these files define and say.
    fn of(files: &[Source]) -> Self {
        let mut house = Self::default();
        for source in files {
            house.add_path(&source.path);
            let Some(inside) = source.path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")) else {
                continue;
            };
            let module = inside.strip_suffix("/mod").unwrap_or(inside).replace('/', "::");
            let code = without_tests(&source.code());
            let items = items(&code);
            house.files.push(File { module, code, items });
            let text = source.text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            house.said.extend(literals(text).map(|literal| literal.trim().to_lowercase()));
        }
        house
    }

    fn add_path(&mut self, path: &str) {
        let folders = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
        self.paths.extend(folders.chain([path.to_owned()]));
    }

    /// The keys of a table, each by itself and behind those of the tables that it is in.
    fn add_keys(&mut self, schema: &Value, before: &str) {
        let inside = ["items", "anyOf", "additionalProperties"].into_iter().filter_map(|part| schema.get(part));
        for part in inside {
            part.as_array()
                .map_or(std::slice::from_ref(part), Vec::as_slice)
                .iter()
                .for_each(|part| self.add_keys(part, before));
        }
        for (key, value) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let whole = if before.is_empty() { key.clone() } else { format!("{before}.{key}") };
            let parts = whole.match_indices('.').map(|(at, _)| whole[at + 1..].to_owned());
            self.documented.extend(parts.chain([whole.clone()]));
            self.add_keys(value, &whole);
        }
    }

    /// Whether a name is of something that there is. `folder`: whose files are meant where no folder is said.
    fn has(&self, name: &str, folder: Option<&str>) -> bool {
        // What has an escape is an example of a path.
        let is_foreign = name.contains('%') || FOREIGN.iter().any(|(_, names)| names.contains(&name));
        if is_foreign || self.says(name) {
            return true;
        }
        if let Some((key, _)) = name.split_once(" = ") {
            return self.documented.contains(key);
        }
        if let Some(section) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            return self.documented.contains(section);
        }
        let name = name.trim_matches('"');
        let name = match name.split_once(' ') {
            Some((status, code)) if status.parse::<u16>().is_ok() => code,
            _ => name,
        };
        if self.documented.contains(name) || self.says(name) {
            return true;
        }
        let is_file = [".rs", ".md", ".toml", ".json"].iter().any(|ending| name.ends_with(ending));
        if is_file || name.contains('/') {
            return self.has_path(name.trim_end_matches('/'), folder);
        }
        // Generics and calls are not part of a name.
        let name = name.split(['<', '(']).next().unwrap_or_default().trim_end_matches("::");
        let parts: Vec<&str> = name.split("::").collect();
        if parts.iter().any(|part| part.is_empty() || !part.chars().all(is_word)) {
            return false;
        }
        match parts[..] {
            [name] => self.has_item(name),
            _ => self.has_item_inside(&parts),
        }
    }

    fn says(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        // `shard-n`, of which there are several; a pool is given the kind alone.
        let is_kind = |kind: &str| {
            let start = format!("{kind}-{{");
            self.said.contains(kind) || self.said.iter().any(|said| said.starts_with(&start))
        };
        self.said.contains(&name) || name.strip_suffix("-n").is_some_and(is_kind)
    }

    fn has_path(&self, path: &str, folder: Option<&str>) -> bool {
        let below = |folder: &str| self.paths.contains(&format!("{folder}/{path}"));
        match folder {
            Some(folder) => below(&format!("src/{folder}")) || (path.contains('/') && self.paths.contains(path)),
            None if path.contains('/') => self.paths.contains(path) || below("src"),
            // A file is named without its folder where the text has just said which one.
            None => self.paths.contains(path) || self.paths.iter().any(|known| known.ends_with(&format!("/{path}"))),
        }
    }

    /// Whether something has this name. Types of others count where they are used.
    fn has_item(&self, name: &str) -> bool {
        let is_type = name.starts_with(|first: char| first.is_uppercase());
        let is_module = |module: &str| module.split("::").any(|part| part == name);
        self.files
            .iter()
            .any(|file| file.items.contains(name) || is_module(&file.module) || (is_type && has_word(&file.code, name)))
    }

    /// Whether what the last part names is in what the others name: an item of a module, or of a folder that shows it as
    /// its own; a member of a type.
    fn has_item_inside(&self, parts: &[&str]) -> bool {
        let [before @ .., owner, name] = parts else { return false };
        let is_inside = |file: &&File, modules: &[&str]| {
            let start = modules.join("::");
            start.is_empty() || format!("::{}::", file.module).contains(&format!("::{start}::"))
        };
        let as_modules = [before, &[*owner]].concat();
        let is_submodule = |file: &&File| format!("::{}::", file.module).contains(&format!("::{}::", parts.join("::")));
        self.files
            .iter()
            .any(|file| is_submodule(&file) || (is_inside(&file, &as_modules) && file.items.contains(*name)))
            || self.files.iter().filter(|file| is_inside(file, before)).any(|file| is_member(&file.code, owner, name))
    }
}

/// Whether a table of a manifest, by the rest of its first line, has the names of crates.
fn is_of_crates(title: &str) -> bool {
    title.ends_with("dependencies]")
}

/// What code defines: items by their keywords, fields by what stands behind them.
fn items(code: &str) -> BTreeSet<String> {
    const KEYWORDS: [&str; 10] =
        ["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "union", "macro_rules!"];
    let mut found = BTreeSet::new();
    let mut words = code.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if KEYWORDS.contains(&word.trim_start_matches(|character: char| !is_word(character))) {
            found.extend(words.peek().map(|name| first_word(name).to_owned()));
        }
    }
    for (at, _) in code.match_indices("struct ") {
        let block = &code[at..];
        let block = &block[..item_end(block)];
        found.extend(block.match_indices(": ").map(|(at, _)| last_word(&block[..at]).to_owned()));
    }
    found
}

/// Whether a block of this type (its definition, what is implemented for it) defines a member of this name.
fn is_member(code: &str, owner: &str, name: &str) -> bool {
    let starts = ["impl", "trait ", "enum ", "struct "].into_iter().flat_map(|start| code.match_indices(start));
    starts.filter(|&(at, _)| !code[..at].ends_with(is_word)).any(|(at, start)| {
        let block = &code[at..];
        let block = &block[..item_end(block)];
        let Some((head, body)) = block.split_once('{') else { return false };
        let is_variant_or_field = matches!(start, "enum " | "struct ") && has_word(body, name);
        has_word(head, owner) && (items(body).contains(name) || is_variant_or_field)
    })
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word))
}

fn last_word(text: &str) -> &str {
    text.rsplit(|character| !is_word(character)).next().unwrap_or_default()
}

/// Names in code font that are of nothing. In a row of the map files are those of the row's module.
fn unknown(source: &Source, house: &House, order: &[String]) -> Vec<String> {
    let complain = |(at, name): (usize, String)| {
        let line = source.text[..at].rfind('\n').map_or(0, |end| end + 1);
        let row = source.text[line..].strip_prefix("| `").map(first_word);
        let folder = row.filter(|row| order.iter().any(|module| module == row));
        let place = line_of(&source.text, at);
        (!house.has(&name, folder)).then(|| format!("{}:{place}: there is no `{name}`", source.path))
    };
    code_spans(&source.text).filter_map(complain).collect()
}

/// Whether a decision holds; nothing if it does not say. The line below its title has the day, and this.
fn is_in_force(text: &str) -> Option<bool> {
    let (_, said) = text.lines().nth(2)?.split_once(". ")?;
    if said.starts_with("In force") {
        return Some(true);
    }
    said.starts_with("Replaced by [decision ").then_some(false)
}

#[test]
fn what_the_map_and_the_decisions_name_exists() {
    let (house, order) = (House::real(), order());
    let decisions = sources(&["docs/decisions"], &[".md"]).into_iter();
    let in_force = decisions.filter(|source| is_in_force(&source.text).unwrap_or(true));
    let read = sources(&["ARCHITECTURE.md"], &[".md"]).into_iter().chain(in_force);
    none(&read.flat_map(|source| unknown(&source, &house, &order)).collect::<Vec<_>>());
}

#[test]
fn every_decision_says_whether_it_is_in_force() {
    let silent =
        sources(&["docs/decisions"], &[".md"]).into_iter().filter(|source| is_in_force(&source.text).is_none());
    let right = "`2026-11-24. In force.`, or `2026-11-24. Replaced by [decision 5](…).`";
    none(&silent.map(|source| format!("{}: say below the title: {right}", source.path)).collect::<Vec<_>>());
}

#[test]
fn every_module_and_thread_is_on_the_map() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    let rows = |heading: &str| {
        let part = map.split_once(heading).expect("it has this part").1.split("\n## ").next().unwrap_or_default();
        let first_cells = part.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        first_cells.flat_map(code_spans).map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(rows("## The map"), order(), "the map is the first, src/lib.rs the second");
    let shown = rows("## Threads");
    let started =
        sources(&["src"], &[".rs"]).into_iter().flat_map(|source| threads(&source.text)).collect::<BTreeSet<_>>();
    assert!(started.contains("bridge") && started.contains("shard-N"), "{started:?}");
    none(
        &started
            .iter()
            .filter(|name| !shown.contains(name))
            .map(|name| format!("no row for `{name}`"))
            .collect::<Vec<_>>(),
    );
}

/// The names of the threads that a file starts, with an N where there are several.
fn threads(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let starts =
        [("Builder::new().name(", ""), ("start_lane(", ""), ("LogThread::spawn(", ""), ("Offload::start(", "-N")];
    let mut found = Vec::new();
    for (start, number) in starts {
        for (at, _) in text.match_indices(start) {
            let rest = &text[at + start.len()..];
            let literal =
                rest.strip_prefix("format!(").unwrap_or(rest).strip_prefix('"').and_then(|rest| rest.split('"').next());
            // Where a variable stands, the name is given by whoever calls.
            let Some(name) = literal.filter(|name| !name.starts_with('{')) else { continue };
            let (kind, several) = name.split_once('{').map_or((name, number), |(kind, _)| (kind, "N"));
            found.push(format!("{kind}{several}"));
        }
    }
    found
}

#[test]
fn what_is_foreign_is_named_somewhere() {
    let texts: Vec<String> =
        sources(&["ARCHITECTURE.md", "docs/decisions"], &[".md"]).into_iter().map(|source| source.text).collect();
    let named: BTreeSet<String> = texts.iter().flat_map(|text| code_spans(text)).map(|(_, name)| name).collect();
    let unused = FOREIGN.iter().flat_map(|(_, names)| *names).filter(|name| !named.contains(**name));
    none(&unused.map(|name| format!("nobody names `{name}` any more; take it off the list")).collect::<Vec<_>>());
}

fn order() -> Vec<String> {
    module_order(&fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs"))
}

#[test]
fn a_made_up_name_is_found() {
    let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
    let mut house = House::of(&[
        file("src/net/mod.rs", "pub mod inbound;\npub use inbound::Inbound;\n"),
        file(
            "src/net/inbound.rs",
            "pub struct Inbound { head: u8 }\nimpl Inbound { fn poll_head(&self) { name(\"reader-{n}\") } }\n\
             enum Step { First }\n/// Not `gone`.\nfn serve(_: Arc<u8>) {}\n#[cfg(test)]\nmod tests {\nfn only_here() {}\n}",
        ),
        file("src/bus/mod.rs", "pub struct Bus;\nimpl Bus { fn ring() {} }\n"),
    ]);
    house.add_keys(&serde_json::json!({"properties": {"runtime": {"properties": {"driver": {}}}}}), "");
    house.documented.insert("token_invalid".to_owned());
    let order = ["net", "bus"].map(str::to_owned);
    let found = |text: &str| unknown(&file("A.md", text), &house, &order).len();
    for there in [
        "`net`, `net/`, `src/net/inbound.rs`, `net/inbound.rs`, `inbound.rs`, `net::inbound`",
        "`Inbound::poll_head`, `net::Inbound`, `net::inbound::Inbound::poll_head`, `Inbound::head`, `Step::First`",
        "`Bus<L>`, `serve()`, `Arc`, `reader-N`, `net::serve`",
        "`runtime.driver = \"epoll\"`, `driver`, `[runtime]`, `401 token_invalid`",
        "| `net` | `inbound.rs`, `mod.rs` |",
        "```\n`nothing`\n```\n",
    ] {
        assert_eq!(found(there), 0, "{there}: {:?}", unknown(&file("A.md", there), &house, &order));
    }
    for made_up in [
        "`nett`",
        "`net/outbound.rs`",
        "`outbound.rs`",
        "`Inbound::poll_tail`",
        "`Inbound::ring`",
        "`bus::Inbound`",
        "`bus::serve`",
        "`gone`",
        "`only_here`",
        "`writer-N`",
        "`runtime.drivers`",
        "`runtime.drivers = 1`",
        "`[runtimes]`",
        "`401 token_gone`",
        "| `bus` | `inbound.rs` |",
        "`a sentence\nof two lines`",
    ] {
        assert_eq!(found(made_up), 1, "{made_up}");
    }
    let text = "Builder::new().name(\"bridge\".to_owned()) Builder::new().name(name) Builder::new().name(format!(\"{name}-{n}\"))
                Builder::new().name(format!(\"shard-{index}\")) start_lane(\"store\", x) Offload::start(\"pool\", 1)";
    assert_eq!(threads(text), ["bridge", "shard-N", "store", "pool-N"]);
    assert_eq!([is_in_force("# 1\n\n2026-11-24. In force.\n"), is_in_force("# 1\n\n2026-11-24\n")], [Some(true), None]);
    assert_eq!(is_in_force("# 1\n\n2026-11-24. Replaced by [decision 5](a.md).\n"), Some(false));
}
