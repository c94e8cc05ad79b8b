//! Upstreams from what is written: their servers, and the methods with which these read bodies.

use super::address::NO_TLS;
use super::keys::section::FromFields as _;
use super::names::is_token;
use super::raw::{Table, Value, quoted};
use super::read::Fields;
use super::report::Report;
use super::values::texts;
use super::{Balance, Instance, Upstream};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// As many as one shard's snapshot of an upstream should ever hold.
pub const INSTANCES_MAX: usize = 1024;

const HTTPS_PORT: u16 = 443;

/// What keeps a request with one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    Address,
    /// The caller.
    User,
    /// The value of the first field of this name.
    Header(Box<str>),
    /// The value of the first cookie of this name.
    Cookie(Box<str>),
}

impl FromStr for HashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "address" => Ok(Self::Address),
            None if text == "user" => Ok(Self::User),
            Some(("header", name)) if is_token(name) => Ok(Self::Header(name.into())),
            Some(("cookie", name)) if is_token(name) => Ok(Self::Cookie(name.into())),
            _ => Err("it is \"address\", \"user\", \"header:NAME\" or \"cookie:NAME\"".to_owned()),
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
            Self::User => f.write_str("user"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

texts! { HashKey: "`address`, `user`, `header:NAME` or `cookie:NAME`"; }

impl Upstream {
    /// An upstream of these instances with everything else as by default.
    pub fn new(instances: Vec<Instance>) -> Self {
        Self { instances, ..Self::default() }
    }
}

/// Reads `[upstreams.<name>]`.
pub(super) fn read_upstreams(root: &Table, report: &mut Report) -> BTreeMap<String, Upstream> {
    let mut upstreams = BTreeMap::new();
    for (name, fields) in Fields::named(Upstream::SECTION, root.get("upstreams"), ["an upstream", "shop"], report) {
        let upstream = Upstream::from_fields(&fields, report);
        check_body_methods(&upstream.body_methods, &fields, report);
        check_instances(&upstream.instances, &fields, report);
        if upstream.hash_key != HashKey::Address && upstream.balance != Balance::ConsistentHash {
            let path = &fields.path;
            let warning = format!("{path}.hash_key is given, and {path}.balance is not \"consistent_hash\"");
            report.warn(&fields.place_of("hash_key"), &warning);
        }
        upstreams.insert(name.to_owned(), upstream);
    }
    upstreams
}

fn check_instances(instances: &[Instance], fields: &Fields<'_>, report: &mut Report) {
    let Some(node) = fields.node("instances") else { return };
    let written = if let Value::List(list) = &node.value { list.len() } else { instances.len() };
    if written == 0 && !matches!(node.value, Value::Broken) {
        fields.wrong(report, "instances", "is empty", "an upstream has one instance or more");
    }
    if written > INSTANCES_MAX {
        let right = format!("an upstream has at most {INSTANCES_MAX}");
        fields.wrong(report, "instances", format_args!("has {written} instances"), &right);
        return;
    }
    for (index, instance) in instances.iter().enumerate() {
        if instances[..index].contains(instance) {
            fields.wrong(report, "instances", format_args!("has {instance} twice"), "name each instance once");
        }
        if instance.port == HTTPS_PORT {
            let path = &fields.path;
            report.warn(&node.place, &format!("{path}.instances has {instance}, the port of HTTPS, and {NO_TLS}"));
        }
    }
}

/// Methods with which bodies are read: names, or a star for all.
pub(super) fn check_body_methods(methods: &[String], fields: &Fields<'_>, report: &mut Report) {
    check_methods(methods, "body_methods", fields, report);
    if methods.len() > 1 && methods.iter().any(|method| method == "*") {
        fields.wrong(report, "body_methods", "has \"*\" and more", "the star stands for all");
    }
}

/// Methods as requests have them.
pub(super) fn check_methods(methods: &[String], key: &str, fields: &Fields<'_>, report: &mut Report) {
    for method in methods {
        let right = if !is_token(method) || method.len() > 32 {
            "a method is a word of up to 32 letters, like GET".to_owned()
        } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            format!("methods are told apart by case; write {}", quoted(&method.to_ascii_uppercase()))
        } else if method == "CONNECT" {
            "CONNECT opens tunnels, which the gateway does not offer".to_owned()
        } else {
            continue;
        };
        fields.wrong_values(report, key, [method], &right);
    }
    fields.report_twice(report, key, methods);
}
