//! The permissions that there are: what RPCs need, and what built-in roles allow for what comes later.

use std::collections::{BTreeMap, BTreeSet};

use prism_core::permission::{Pattern, Permission, built_in_roles};
use prism_core::{Error, Result};
use prism_proto::rules::AuditClass;
use prism_rpc::Table;

/// Permission of a node's own certificate, which no role has.
const NODE: &str = "node:self";

/// Resources and their verbs.
pub(crate) struct Permissions(BTreeMap<String, BTreeSet<String>>);

impl Permissions {
    /// Those of the admin RPCs in `table` and of the built-in roles.
    pub(crate) fn of(table: &Table) -> Self {
        let mut verbs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let rules = table.rules().filter(|rule| rule.audit != AuditClass::None && rule.permission != NODE);
        for permission in rules.filter_map(|rule| Permission::parse(&rule.permission)) {
            verbs.entry(permission.resource().to_owned()).or_default().insert(permission.verb().to_owned());
        }
        let built_in = built_in_roles();
        for pattern in built_in.iter().flat_map(|role| role.permissions.iter()) {
            let verbs = verbs.entry(pattern.resource().to_owned()).or_default();
            verbs.extend(pattern.verb().map(ToOwned::to_owned));
        }
        Self(verbs)
    }

    /// Parses what a role is to allow; INVALID_ARGUMENT on `field`, naming what there is.
    pub(crate) fn pattern(&self, field: &str, text: &str) -> Result<Pattern> {
        let pattern = Pattern::try_from(text.to_owned()).map_err(|_| {
            let rule = "must be resource:verb or resource:*, such as config:read; the resources are";
            Error::invalid(field, format!("{rule}: {}", self.resources()))
        })?;
        self.require(field, pattern.resource(), pattern.verb())?;
        Ok(pattern)
    }

    /// Parses one permission; INVALID_ARGUMENT on `field`, naming what there is.
    pub(crate) fn permission(&self, field: &str, text: &str) -> Result<Permission> {
        let permission = Permission::parse(text).ok_or_else(|| {
            let rule = "must be one permission, resource:verb, such as config:read; the resources are";
            Error::invalid(field, format!("{rule}: {}", self.resources()))
        })?;
        self.require(field, permission.resource(), Some(permission.verb()))?;
        Ok(permission)
    }

    fn resources(&self) -> String {
        self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    fn require(&self, field: &str, resource: &str, verb: Option<&str>) -> Result<()> {
        let Some(verbs) = self.0.get(resource) else {
            return Err(Error::invalid(field, format!("has an unknown resource; there are: {}", self.resources())));
        };
        if verb.is_none_or(|verb| verbs.contains(verb)) {
            return Ok(());
        }
        let known: Vec<String> =
            verbs.iter().map(String::as_str).chain(["*"]).map(|verb| format!("{resource}:{verb}")).collect();
        Err(Error::invalid(field, format!("has an unknown verb; there are: {}", known.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_rpc_needs_and_a_built_in_role_allows_is_known() {
        let table = Table::load().unwrap();
        let known = Permissions::of(&table);
        for rule in table.rules().filter(|rule| rule.service.starts_with("prism.admin.")) {
            let special = rule.permission == "authenticated";
            assert!(special || known.permission("p", &rule.permission).is_ok(), "{}", rule.permission);
        }
        let built_in = built_in_roles();
        for pattern in built_in.iter().flat_map(|role| role.permissions.iter()) {
            assert_eq!(known.pattern("p", &pattern.to_string()).unwrap(), *pattern);
        }
        assert_eq!(known.pattern("p", "tokens.manage").unwrap().to_string(), "tokens:manage");
    }

    #[test]
    fn a_mistake_is_answered_with_what_there_is() {
        let known = Permissions::of(&Table::load().unwrap());
        let message = |text: &str| known.pattern("role.permissions[2]", text).unwrap_err().message().to_owned();
        assert!(message("config:write").contains("config:create, config:delete, config:read, config:update, config:*"));
        assert!(message("cfg:read").contains("access, audit, backend, config, namespace, nodes, operational"));
        assert!(message("nodes:join").contains("nodes:*"));
        for bad in
            ["", "config", "*", "*:*", "*:read", "config:", "config:read:x", "Config:read", "authenticated", "none"]
        {
            assert!(message(bad).contains("role.permissions[2]: must be resource:verb"), "{bad:?}");
        }
        // The data plane's and a node's are nothing that a role could hold.
        for foreign in ["node:self", "read:any", "session:write"] {
            assert!(known.pattern("p", foreign).is_err(), "{foreign}");
        }
        assert!(known.permission("permission", "config:*").is_err());
        assert!(known.permission("permission", "config.read").is_ok());
    }
}
