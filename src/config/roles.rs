//! Roles from what is written, over those that are there by default.

use super::raw::{Node, Value, quoted};
use super::read::{Fields, Report};
use super::resolve::{NAME_FORM, is_name};
use super::{Role, Route};
use std::collections::BTreeMap;

/// The roles of the reference platform.
const BUILT_IN: [(&str, &[&str]); 4] =
    [("admin", &["*"]), ("analyst", &["hub:read"]), ("service", &["hub:publish", "hub:read"]), ("user", &[])];

/// How a permission looks.
pub const PERMISSION_FORM: &str = "a permission is up to 128 of A-Z, a-z, 0-9, ., _, - and :, like \"events:write\"";

/// Reads `[roles.<name>]`.
pub(super) fn read_roles(node: Option<&Node>, report: &mut Report) -> BTreeMap<String, Role> {
    let built_in = |(name, permissions): &(&str, &[&str])| {
        let permissions = permissions.iter().map(|permission| (*permission).to_owned()).collect();
        ((*name).to_owned(), Role { permissions })
    };
    let mut roles: BTreeMap<String, Role> = BUILT_IN.iter().map(built_in).collect();
    let Some(node) = node else { return roles };
    let Value::Table(table) = &node.value else {
        report.wrong(node, "roles", "it is a table of roles by name: [roles.editor]");
        return roles;
    };
    for (name, node) in table {
        if !is_name(name) {
            report.push(node.place.clone(), format!("{} is no name of a role", quoted(name)), NAME_FORM);
            continue;
        }
        let fields = Fields::of("roles.<name>", format!("roles.{name}"), Some(node), report);
        let permissions: Vec<String> = fields.take("permissions", report);
        for permission in permissions.iter().filter(|permission| !is_permission(permission)) {
            report_permission(permission, &fields, report);
        }
        roles.insert(name.clone(), Role { permissions });
    }
    roles
}

/// What a route asks of its callers: roles that there are, and nothing where nobody is asked who they are.
pub(super) fn check_access(route: &Route, fields: &Fields<'_>, roles: &BTreeMap<String, Role>, report: &mut Report) {
    for role in route.roles.iter().filter(|role| !roles.contains_key(*role)) {
        let names: Vec<&str> = roles.keys().map(String::as_str).collect();
        let what = format!("{}.roles has {}, and there is no such role", fields.path, quoted(role));
        report.push(fields.place_of("roles"), what, &super::read::suggestion(role, &names, ""));
    }
    for permission in route.permissions.iter().filter(|permission| !is_plain(permission)) {
        report_permission(permission, fields, report);
    }
    let is_parameter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if let Some(name) = &route.token_query
        && !((1..=64).contains(&name.len()) && name.bytes().all(is_parameter))
    {
        let what = format!("{}.token_query is {}", fields.path, quoted(name));
        report.push(
            fields.place_of("token_query"),
            what,
            "it is up to 64 of A-Z, a-z, 0-9, ., _ and -, like \"access_token\"",
        );
    }
    if route.access == super::Access::Public {
        let [roles, permissions] = [&route.roles, &route.permissions].map(|list| !list.is_empty());
        let asked = [("roles", roles), ("permissions", permissions), ("token_query", route.token_query.is_some())];
        for (key, is_given) in asked {
            if is_given {
                let what = format!("{}.{key} is given, and {}.access is \"public\"", fields.path, fields.path);
                report.push(fields.place_of(key), what, "anybody may use a public route; take one of the two out");
            }
        }
    }
}

/// Whether an issuer may call a role so: it stands in a header field, alone and in a list.
pub fn is_role(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b',')
        && !name.starts_with(' ')
        && !name.ends_with(' ')
}

/// Whether it is a permission that can be granted: a name, all names that begin so (`events:*`), or all (`*`).
pub fn is_permission(text: &str) -> bool {
    text == "*" || is_plain(text.strip_suffix(":*").unwrap_or(text))
}

fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    (1..=128).contains(&name.len()) && name.bytes().all(is_plain)
}

/// `permissions` of these fields has one that is none.
pub(super) fn report_permission(permission: &str, fields: &Fields<'_>, report: &mut Report) {
    let what = format!("{}.permissions has {}", fields.path, quoted(permission));
    report.push(fields.place_of("permissions"), what, PERMISSION_FORM);
}
