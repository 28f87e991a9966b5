//! Nobody hands out more than they hold.

use prism_core::access::Access;
use prism_core::permission::{Pattern, pattern_reach};
use prism_core::{Error, Kind, Result};

use crate::door::reach_of;
use crate::op::Caller;

/// Requires that the caller holds every permission of a role that they are about to give away, as far as it will reach: in the
/// namespace `place`, or everywhere. PERMISSION_DENIED names the first that is missing. `resource:*` is held through
/// `resource:*` only, as it covers verbs to come.
pub(crate) fn require_held(caller: &Caller, role: &str, permissions: &[Pattern], place: Option<&str>) -> Result<()> {
    let missing = permissions.iter().find(|pattern| !pattern_reach(&caller.grants, pattern).includes(place));
    missing.map_or(Ok(()), |pattern| {
        let message = format!("the role {role} allows {pattern}, which your credential does not have here");
        Err(Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message).with("permission", pattern.to_string()))
    })
}

/// Requires that the caller holds this permission everywhere, to do what `what` says beside what the RPC asks for.
/// PERMISSION_DENIED names it.
pub(crate) fn require(caller: &Caller, permission: &str, what: &str) -> Result<()> {
    if reach_of(&caller.grants, permission)?.includes(None) {
        return Ok(());
    }
    let message = format!("{what}: this needs the permission {permission}, which your credential does not have here");
    Err(Error::new(Kind::PermissionDenied, "PERMISSION_DENIED", message).with("permission", permission))
}

/// As [`require_held`], for roles by their names; one that does not exist gives nothing away.
pub(crate) fn require_roles_held(
    caller: &Caller,
    access: &Access,
    roles: &[String],
    place: Option<&str>,
) -> Result<()> {
    roles
        .iter()
        .filter_map(|name| access.roles.get(name))
        .try_for_each(|role| require_held(caller, &role.name, &role.permissions, place))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prism_core::NamespaceName;
    use prism_core::permission::{Grant, Reach};

    use super::*;
    use crate::identity::Identity;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::try_from((*text).to_owned()).unwrap()).collect()
    }

    fn caller(held: &[(Option<&str>, &[&str])]) -> Caller {
        let grants = held.iter().map(|(namespace, permissions)| Grant {
            role: "r".to_owned(),
            namespace: namespace.map(|name| NamespaceName::parse("n", name).unwrap()),
            permissions: patterns(permissions).into(),
        });
        Caller { identity: Arc::new(Identity::server("prism")), grants: grants.collect(), reach: Reach::Nowhere }
    }

    #[test]
    fn each_permission_must_be_held_where_it_is_given() {
        let caller = caller(&[(None, &["config:read"]), (Some("a"), &["config:*", "access:manage"])]);
        let held = |permissions: &[&str], place| require_held(&caller, "x", &patterns(permissions), place);
        held(&["config:read"], None).unwrap();
        held(&["config:read", "config:*", "access:manage"], Some("a")).unwrap();
        held(&[], None).unwrap();
        for (permissions, place, missing) in [
            (&["config:read", "config:update"][..], None, "config:update"),
            (&["config:update"], Some("b"), "config:update"),
            (&["access:*"], Some("a"), "access:*"),
            (&["config:*"], None, "config:*"),
        ] {
            let error = held(permissions, place).unwrap_err();
            assert_eq!((error.kind(), error.metadata()["permission"].as_str()), (Kind::PermissionDenied, missing));
            assert!(error.message().contains("the role x allows"), "{}", error.message());
        }
    }

    #[test]
    fn a_permission_beside_that_of_the_rpc_is_asked_for_everywhere() {
        let required = |held: &[(Option<&str>, &[&str])]| require(&caller(held), "nodes:manage", "n1 is taken");
        required(&[(None, &["nodes:*"])]).unwrap();
        for held in [&[(None, &["tokens:manage", "nodes:read"][..])][..], &[(Some("a"), &["nodes:manage"])], &[]] {
            let error = required(held).unwrap_err();
            assert_eq!(
                (error.kind(), error.metadata()["permission"].as_str()),
                (Kind::PermissionDenied, "nodes:manage")
            );
        }
    }

    #[test]
    fn roles_are_what_they_are_now_and_unknown_ones_are_nothing() {
        let access = Access::default();
        let viewer = access.roles["viewer"].permissions.iter().map(ToString::to_string).collect::<Vec<_>>();
        let viewer: Vec<&str> = viewer.iter().map(String::as_str).collect();
        let caller = caller(&[(None, &viewer)]);
        let held = |roles: &[&str]| {
            let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
            require_roles_held(&caller, &access, &roles, None)
        };
        held(&["viewer", "gone"]).unwrap();
        assert_eq!(held(&["viewer", "operator"]).unwrap_err().metadata()["permission"], "session:terminate");
    }
}
