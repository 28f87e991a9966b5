//! Permissions, roles and grants (contract §7, seed A "Authorization").

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::NamespaceName;

/// A permission that an RPC needs: `resource:verb`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    resource: String,
    verb: String,
}

impl Permission {
    /// Parses `resource:verb` or `resource.verb`; `None` when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (resource, verb) = split(text)?;
        (verb != "*").then(|| Self { resource: resource.to_owned(), verb: verb.to_owned() })
    }

    /// What it is about.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// What may be done with it.
    pub fn verb(&self) -> &str {
        &self.verb
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.resource, self.verb)
    }
}

fn split(text: &str) -> Option<(&str, &str)> {
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let (resource, verb) = text.split_once([':', '.'])?;
    (word(resource) && (verb == "*" || word(verb))).then_some((resource, verb))
}

/// What a role allows: `resource:verb`, or `resource:*` for every verb.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    resource: String,
    verb: Option<String>,
}

impl Pattern {
    /// Whether this pattern covers `permission`.
    pub fn covers(&self, permission: &Permission) -> bool {
        self.resource == permission.resource && self.verb.as_ref().is_none_or(|verb| *verb == permission.verb)
    }

    /// Whether this pattern covers everything that `other` covers, verbs to come included: only `resource:*` does that for
    /// another `resource:*`.
    pub fn includes(&self, other: &Self) -> bool {
        self.resource == other.resource && (self.verb.is_none() || self.verb == other.verb)
    }

    /// What it is about.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// What may be done with it; `None` = everything.
    pub fn verb(&self) -> Option<&str> {
        self.verb.as_deref()
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let (resource, verb) = split(&text).ok_or_else(|| format!("{text:?} is not resource:verb or resource:*"))?;
        Ok(Self { resource: resource.to_owned(), verb: (verb != "*").then(|| verb.to_owned()) })
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.resource, self.verb.as_deref().unwrap_or("*"))
    }
}

/// A named set of permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub permissions: Arc<[Pattern]>,
    /// Built-in roles cannot change.
    pub built_in: bool,
}

const ADMIN: &[&str] = &[
    "config:*",
    "session:*",
    "namespace:*",
    "backend:read",
    "operational:*",
    "audit:read",
    "tokens:manage",
    "access:*",
    "nodes:*",
];
const OPERATOR: &[&str] =
    &["config:read", "session:read", "session:terminate", "backend:read", "operational:maintenance", "audit:read"];
const VIEWER: &[&str] = &["config:read", "session:read", "backend:read", "audit:read"];

/// The three roles of seed A; `admin` with the additions of contract §7.
pub fn built_in_roles() -> Vec<Role> {
    [("admin", ADMIN), ("operator", OPERATOR), ("viewer", VIEWER)]
        .into_iter()
        .map(|(name, permissions)| Role {
            name: name.to_owned(),
            permissions: permissions.iter().filter_map(|text| Pattern::try_from((*text).to_owned()).ok()).collect(),
            built_in: true,
        })
        .collect()
}

/// A role held by a caller, for the whole installation or one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Name of the role.
    pub role: String,
    /// `None` = the whole installation.
    pub namespace: Option<NamespaceName>,
    /// What the role allows.
    pub permissions: Arc<[Pattern]>,
}

/// Where a caller may use a permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everywhere.
    Installation,
    /// In these namespaces only; never empty.
    Namespaces(Vec<NamespaceName>),
    /// Nowhere.
    Nowhere,
}

impl Reach {
    /// Whether it includes `namespace`; `None` asks for the whole installation.
    pub fn includes(&self, namespace: Option<&str>) -> bool {
        match (self, namespace) {
            (Self::Installation, _) => true,
            (Self::Namespaces(names), Some(wanted)) => names.iter().any(|name| name.as_str() == wanted),
            _ => false,
        }
    }
}

/// Where `grants` allow `permission`.
pub fn reach(grants: &[Grant], permission: &Permission) -> Reach {
    reach_where(grants, |held| held.covers(permission))
}

/// Where one of the permissions of `grants` includes all of `pattern`.
pub fn pattern_reach(grants: &[Grant], pattern: &Pattern) -> Reach {
    reach_where(grants, |held| held.includes(pattern))
}

fn reach_where(grants: &[Grant], suffices: impl Fn(&Pattern) -> bool) -> Reach {
    let mut namespaces = Vec::new();
    for grant in grants.iter().filter(|grant| grant.permissions.iter().any(&suffices)) {
        match &grant.namespace {
            None => return Reach::Installation,
            Some(namespace) => namespaces.push(namespace.clone()),
        }
    }
    namespaces.sort();
    namespaces.dedup();
    if namespaces.is_empty() { Reach::Nowhere } else { Reach::Namespaces(namespaces) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_colons_are_the_same() {
        assert_eq!(Permission::parse("tokens.manage"), Permission::parse("tokens:manage"));
        for bad in ["", "tokens", "tokens:", ":manage", "a:b:c", "A:b", "tokens:*"] {
            assert!(Permission::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_built_in_roles_are_seed_a_letter_for_letter() {
        let roles = built_in_roles();
        assert_eq!(roles[0].permissions.len(), ADMIN.len());
        assert_eq!(roles[1].permissions.len(), OPERATOR.len());
        assert_eq!(roles[2].permissions.len(), VIEWER.len());
        let allows = |role: usize, text: &str| {
            roles[role].permissions.iter().any(|p| p.covers(&Permission::parse(text).unwrap()))
        };
        assert!(allows(0, "config:delete") && allows(0, "operational:drain"));
        assert!(!allows(1, "operational:drain") && allows(1, "session:terminate"));
        assert!(!allows(2, "session:terminate") && !allows(2, "namespace:read"));
    }

    #[test]
    fn a_bound_grant_reaches_its_namespace_only() {
        let role = built_in_roles().remove(0);
        let namespace = NamespaceName::parse("n", "a").unwrap();
        let grants = [Grant { role: role.name, namespace: Some(namespace), permissions: role.permissions }];
        let reach = reach(&grants, &Permission::parse("config:read").unwrap());
        assert!(reach.includes(Some("a")) && !reach.includes(Some("b")) && !reach.includes(None));
    }

    #[test]
    fn every_verb_is_held_through_the_star_only() {
        let pattern = |text: &str| Pattern::try_from(text.to_owned()).unwrap();
        let verbs = ["access:manage", "access:read"].map(pattern);
        let grant =
            |permissions: &[Pattern]| Grant { role: "r".to_owned(), namespace: None, permissions: permissions.into() };
        assert_eq!(pattern_reach(&[grant(&verbs)], &pattern("access:*")), Reach::Nowhere);
        assert_eq!(pattern_reach(&[grant(&verbs)], &pattern("access.read")), Reach::Installation);
        assert_eq!(pattern_reach(&[grant(&[pattern("access:*")])], &pattern("access:*")), Reach::Installation);
        assert_eq!(pattern_reach(&[grant(&[pattern("access:*")])], &pattern("access:read")), Reach::Installation);
        assert_eq!(pattern_reach(&[grant(&[pattern("access:*")])], &pattern("config:read")), Reach::Nowhere);
    }
}
