//! Roles from what is written, over those that are there by default; and what routes ask of their callers.

use super::keys::section::FromFields as _;
use super::names::{PERMISSION_FORM, is_one_permission, is_permission, is_plain};
use super::raw::{Table, quoted};
use super::read::{Fields, suggestion_of};
use super::report::Report;
use super::{Access, Role, Route};
use std::collections::BTreeMap;

/// The roles of the reference platform.
const BUILT_IN: [(&str, &[&str]); 4] =
    [("admin", &["*"]), ("analyst", &["hub:read"]), ("service", &["hub:publish", "hub:read"]), ("user", &[])];

/// Reads `[roles.<name>]`.
pub(super) fn read_roles(root: &Table, report: &mut Report) -> BTreeMap<String, Role> {
    let built_in = |(name, permissions): &(&str, &[&str])| {
        let permissions = permissions.iter().map(|permission| (*permission).to_owned()).collect();
        ((*name).to_owned(), Role { permissions })
    };
    let mut roles: BTreeMap<String, Role> = BUILT_IN.iter().map(built_in).collect();
    for (name, fields) in Fields::named(Role::SECTION, root.get("roles"), ["a role", "editor"], report) {
        let role = Role::from_fields(&fields, report);
        check_granted(&role.permissions, &fields, report);
        roles.insert(name.to_owned(), role);
    }
    roles
}

/// Permissions that are granted.
pub(super) fn check_granted(permissions: &[String], fields: &Fields<'_>, report: &mut Report) {
    let wrong = permissions.iter().filter(|permission| !is_permission(permission));
    fields.wrong_values(report, "permissions", wrong, PERMISSION_FORM);
}

/// What a route asks of its callers: roles that there are, and nothing where nobody is asked who they are.
pub(super) fn check_access(route: &Route, fields: &Fields<'_>, roles: &BTreeMap<String, Role>, report: &mut Report) {
    for role in route.roles.iter().filter(|role| !roles.contains_key(*role)) {
        let what = format_args!("has {}, and there is no such role", quoted(role));
        fields.wrong(report, "roles", what, &suggestion_of(role, roles, "[roles.editor]"));
    }
    let wrong = route.permissions.iter().filter(|permission| !is_one_permission(permission));
    fields.wrong_values(report, "permissions", wrong, PERMISSION_FORM);
    if let Some(name) = route.token_query.as_ref().filter(|name| !is_plain(name)) {
        let right = "it is up to 64 of A-Z, a-z, 0-9, ., _ and -, like \"access_token\"";
        fields.wrong(report, "token_query", format_args!("is {}", quoted(name)), right);
    }
    let asked = [
        ("roles", !route.roles.is_empty()),
        ("permissions", !route.permissions.is_empty()),
        ("token_query", route.token_query.is_some()),
    ];
    for (key, _) in asked.into_iter().filter(|(_, is_given)| *is_given && route.access == Access::Public) {
        let what = format_args!("is given, and {}.access is \"public\"", fields.path);
        fields.wrong(report, key, what, "anybody may use a public route; take one of the two out");
    }
}
