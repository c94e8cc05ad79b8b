//! What a caller may do: its role's permissions by the configuration, and its token's own.
//!
//! A permission is a name (`events:write`). What grants may also be `*`, which grants everything, or `events:*`, which
//! grants every name that begins with `events:`.

use super::Claims;
use std::collections::BTreeMap;

/// What roles permit. Immutable; on every shard as part of its plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(BTreeMap<Box<str>, Box<[Box<str>]>>);

impl Roles {
    /// Roles by name, each with what it grants.
    pub fn new<'a, G>(roles: impl IntoIterator<Item = (&'a str, G)>) -> Self
    where
        G: IntoIterator<Item = &'a str>,
    {
        let owned = |(name, grants): (&str, G)| (name.into(), grants.into_iter().map(Into::into).collect());
        Self(roles.into_iter().map(owned).collect())
    }

    /// Whether the caller's role or its token permits this.
    pub fn permit(&self, claims: &Claims, permission: &str) -> bool {
        self.granted(claims).any(|grant| grants(grant, permission))
    }

    /// What the caller is granted: by its token, then by its role; each once.
    pub fn granted<'a>(&'a self, claims: &'a Claims) -> impl Iterator<Item = &'a str> {
        let own = claims.permissions.iter().map(Box::as_ref);
        let of_role = self.of(claims.role.as_deref().unwrap_or_default());
        own.chain(of_role.filter(|grant| !claims.permissions.iter().any(|own| own.as_ref() == *grant)))
    }

    /// What a role grants; a role that is not configured grants nothing.
    pub fn of(&self, role: &str) -> impl Iterator<Item = &str> {
        self.0.get(role).into_iter().flat_map(|grants| grants.iter().map(Box::as_ref))
    }

    /// Whether there is such a role.
    pub fn has(&self, role: &str) -> bool {
        self.0.contains_key(role)
    }

    /// The names of all roles, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(Box::as_ref)
    }
}

/// Whether this grant grants that permission.
pub fn grants(grant: &str, permission: &str) -> bool {
    match grant.strip_suffix('*') {
        Some("") => true,
        Some(stem) if stem.ends_with(':') => permission.len() > stem.len() && permission.starts_with(stem),
        _ => grant == permission,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_a_name_a_family_or_everything() {
        for (grant, permission, expected) in [
            ("events:write", "events:write", true),
            ("events:write", "events:writer", false),
            ("events:write", "events", false),
            ("events:*", "events:write", true),
            ("events:*", "events:a:b", true),
            ("events:*", "events:", false),
            ("events:*", "events", false),
            ("events:*", "eventsx:write", false),
            ("events*", "events:write", false),
            ("*", "events:write", true),
            ("", "events:write", false),
            ("*:write", "events:write", false),
            ("EVENTS:*", "events:write", false),
        ] {
            assert_eq!(grants(grant, permission), expected, "{grant} {permission}");
        }
    }

    #[test]
    fn a_token_and_its_role_grant_together() {
        let roles = Roles::new([("admin", vec!["*"]), ("editor", vec!["events:write", "hub:*"]), ("user", vec![])]);
        let claims = |role: Option<&str>, permissions: &[&str]| Claims {
            role: role.map(Into::into),
            permissions: permissions.iter().map(|permission| (*permission).into()).collect(),
            ..Claims::plain("42")
        };
        let editor = claims(Some("editor"), &["hub:*", "ai:ask"]);
        assert_eq!(roles.granted(&editor).collect::<Vec<_>>(), ["hub:*", "ai:ask", "events:write"]);
        assert!(roles.permit(&editor, "hub:publish") && roles.permit(&editor, "ai:ask"));
        assert!(!roles.permit(&editor, "ai:train"));
        assert!(roles.permit(&claims(Some("admin"), &[]), "anything"));
        assert!(!roles.permit(&claims(Some("user"), &[]), "events:write"));
        assert!(!roles.permit(&claims(Some("nobody"), &[]), "events:write"));
        assert!(!roles.permit(&claims(None, &[]), "events:write"));
    }
}
