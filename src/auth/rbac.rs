//! What a caller may do: its roles' permissions by the configuration, and its token's own.
//!
//! A permission is a name (`events:write`). What grants may also be `*`, which grants everything, or `events:*`, which
//! grants every name that begins with `events:`.

use super::Claims;
use std::collections::BTreeMap;

/// What stands between two roles where they are listed; no role has it in its name ([`crate::config::is_role`]).
const SEPARATOR: char = ',';

/// The roles of a caller, each once. One text, as `X-User-Role` lists them, so that whoever remembers it holds one
/// allocation and a request makes none: callers have few roles and routes ask for few.
///
/// No set of bits: what the bits mean would change with each reload, and the services are told names, those that no route
/// asks for among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerRoles(Box<str>);

impl CallerRoles {
    /// These roles, in this order; their names are sound.
    pub fn new(names: &[&str]) -> Self {
        Self(names.join(&*SEPARATOR.to_string()).into_boxed_str())
    }

    /// All of them as one list; `None` where there are no roles.
    pub fn as_list(&self) -> Option<&str> {
        Some(&*self.0).filter(|list| !list.is_empty())
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.as_list().into_iter().flat_map(|list| list.split(SEPARATOR))
    }

    /// Whether this is one of them.
    pub fn has(&self, role: &str) -> bool {
        self.names().any(|name| name == role)
    }
}

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

    /// Whether one of the caller's roles or its token permits this.
    pub fn permit(&self, claims: &Claims, permission: &str) -> bool {
        let is_granted = |grant: &str| grants(grant, permission);
        claims.permissions.iter().any(|own| is_granted(own))
            || claims.roles.names().any(|role| self.of(role).any(is_granted))
    }

    /// What the caller is granted: by its token, then by each of its roles; each once.
    pub fn granted<'a>(&'a self, claims: &'a Claims) -> Vec<&'a str> {
        let mut granted: Vec<&str> = claims.permissions.iter().map(Box::as_ref).collect();
        for grant in claims.roles.names().flat_map(|role| self.of(role)) {
            if !granted.contains(&grant) {
                granted.push(grant);
            }
        }
        granted
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
    fn a_token_and_its_roles_grant_together() {
        let roles = Roles::new([
            ("admin", vec!["*"]),
            ("editor", vec!["events:write", "hub:*"]),
            ("reader", vec!["events:read", "hub:*"]),
            ("user", vec![]),
        ]);
        let claims = |names: &[&str], permissions: &[&str]| Claims {
            roles: CallerRoles::new(names),
            permissions: permissions.iter().map(|permission| (*permission).into()).collect(),
            ..Claims::plain("42")
        };
        let editor = claims(&["editor"], &["hub:*", "ai:ask"]);
        assert_eq!(roles.granted(&editor), ["hub:*", "ai:ask", "events:write"]);
        assert!(roles.permit(&editor, "hub:publish") && roles.permit(&editor, "ai:ask"));
        assert!(!roles.permit(&editor, "ai:train"));
        assert!(roles.permit(&claims(&["admin"], &[]), "anything"));
        assert!(!roles.permit(&claims(&["user"], &[]), "events:write"));
        assert!(!roles.permit(&claims(&["nobody"], &[]), "events:write"));
        assert!(!roles.permit(&claims(&[], &[]), "events:write"));
        let both = claims(&["nobody", "reader", "editor"], &["ai:ask"]);
        assert_eq!(roles.granted(&both), ["ai:ask", "events:read", "hub:*", "events:write"], "each once");
        assert!(roles.permit(&both, "events:read") && roles.permit(&both, "events:write"));
        assert!(!roles.permit(&both, "events:delete"));
    }

    #[test]
    fn roles_are_a_list_and_each_is_whole() {
        let none = CallerRoles::default();
        assert_eq!((none.as_list(), none.names().count(), none.has("")), (None, 0, false));
        assert_eq!(CallerRoles::new(&[]), none);
        let two = CallerRoles::new(&["sales admin", "user"]);
        assert_eq!(two.as_list(), Some("sales admin,user"));
        assert_eq!(two.names().collect::<Vec<_>>(), ["sales admin", "user"]);
        assert!(two.has("user") && two.has("sales admin"));
        for other in ["admin", "use", "sales admin,user", ",user", ""] {
            assert!(!two.has(other), "{other}");
        }
    }
}
