//! WhoAmI, CanI: what any valid credential may ask about itself; WhoCan: who else holds a permission.

use std::collections::BTreeSet;
use std::sync::Arc;

use prism_core::access::{Access, RoleGrant};
use prism_core::permission::{Grant, Permission, Reach};
use prism_core::subject::Subject;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::timestamp;
use prism_store::{ApiKeyRow, Tx};

use super::permissions::Permissions;
use super::scopes::scope_of;
use crate::cluster::canonical_path;
use crate::convert;
use crate::door::reach_of;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// `WhoAmI`.
#[derive(Clone)]
pub struct WhoAmI;

impl Op for WhoAmI {
    type Request = wire::WhoAmIRequest;
    type Response = wire::WhoAmIResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/WhoAmI";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        String::new()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(_: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self)
    }

    fn execute(self, _: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let grant = |grant: &Grant| wire::Grant {
            role: grant.role.clone(),
            namespace: grant.namespace.as_ref().map(ToString::to_string),
            permissions: grant.permissions.iter().map(ToString::to_string).collect(),
        };
        Ok(Done::new(wire::WhoAmIResponse {
            actor: caller.identity.actor.clone(),
            auth_method: caller.identity.auth_method.to_owned(),
            credential_id: caller.identity.credential_id.clone(),
            grants: caller.grants.iter().map(grant).collect(),
            subjects: caller.identity.subjects().iter().map(ToString::to_string).collect(),
            expires_at: caller.identity.expires_at().map(timestamp),
        }))
    }
}

/// `CanI`.
#[derive(Clone)]
pub struct CanI {
    rpc: String,
    permission: String,
    namespace: Option<String>,
}

impl Op for CanI {
    type Request = wire::CanIRequest;
    type Response = wire::CanIResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CanI";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        String::new()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let path = format!("/{}", request.rpc.strip_prefix('/').unwrap_or(&request.rpc));
        // By its older name it is the same RPC.
        let path = canonical_path(&path).unwrap_or(path);
        let rule =
            services.table.rule(&path).filter(|rule| rule.audit != prism_proto::rules::AuditClass::None).ok_or_else(
                || {
                    Error::invalid(
                        "rpc",
                        "is not an RPC of the admin plane, such as prism.admin.v1.AdminService/CreateConfig",
                    )
                },
            );
        convert::all_of([convert::outcome(&rule), convert::namespace_filter(request.namespace.as_deref())])?;
        Ok(Self { permission: rule?.permission.clone(), rpc: path[1..].to_owned(), namespace: request.namespace })
    }

    fn execute(self, _: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let reason = match self.permission.as_str() {
            "none" => None,
            // A node's own certificate, which no operator holds.
            "node:self" => Some("is for a node's own certificate".to_owned()),
            permission => {
                let reach = reach_of(&caller.grants, permission)?;
                let (scope, namespace) = (scope_of(&self.rpc), self.namespace.as_deref());
                (!scope.allows(&reach, namespace)).then(|| {
                    let place = match (scope, namespace) {
                        (Scope::Namespace | Scope::Filtered, Some(name)) => format!("namespace {name}"),
                        (Scope::Filtered, None) => "any namespace".to_owned(),
                        (Scope::Installation, _) | (Scope::Namespace, None) => "the whole installation".to_owned(),
                    };
                    format!("your grants do not include {permission} for {place}")
                })
            }
        };
        let allowed = reason.is_none();
        let reason = reason.unwrap_or_default();
        let done = Done::new(wire::CanIResponse { allowed, permission: self.permission, reason });
        Ok(done.detail("rpc", self.rpc).detail("allowed", allowed))
    }
}

/// `WhoCan`: the subjects of bindings, groups of an issuer's `role_map`, and `key:<id>` for API keys that are valid now. Whoever
/// may ask in one namespace only is told who is bound there, and of the others how many they are.
#[derive(Clone)]
pub struct WhoCan {
    permission: Permission,
    namespace: Option<NamespaceName>,
    mapped: Arc<[(Subject, RoleGrant)]>,
}

impl Op for WhoCan {
    type Request = wire::WhoCanRequest;
    type Response = wire::WhoCanResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/WhoCan";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(_: &Self::Request) -> String {
        "roles".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(request.namespace.clone()))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let permission = Permissions::of(&services.table).permission("permission", &request.permission);
        let namespace = request.namespace.as_deref().map(|name| NamespaceName::parse("namespace", name)).transpose();
        convert::all_of([convert::outcome(&permission), convert::outcome(&namespace)])?;
        Ok(Self { permission: permission?, namespace: namespace?, mapped: Arc::clone(&services.mapped) })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (access, keys) = (tx.access()?, tx.valid_api_keys()?);
        let Holders { mut here, everywhere } =
            Holders::of((&access, &self.mapped, &keys), &self.permission, self.namespace.as_ref());
        let mut installation_wide = 0;
        if caller.reach == Reach::Installation {
            here.extend(everywhere);
        } else {
            installation_wide = i32::try_from(everywhere.difference(&here).count()).unwrap_or(i32::MAX);
        }
        let subjects = here.into_iter().collect();
        let done = Done::new(wire::WhoCanResponse { subjects, installation_wide });
        Ok(done.detail("permission", self.permission))
    }
}

/// Whom roles allow a permission, sorted, each once.
struct Holders {
    /// In the namespace, by what is given there.
    here: BTreeSet<String>,
    /// In the whole installation, and so in each namespace too.
    everywhere: BTreeSet<String>,
}

impl Holders {
    fn of(
        (access, mapped, keys): (&Access, &[(Subject, RoleGrant)], &[ApiKeyRow]),
        permission: &Permission,
        namespace: Option<&NamespaceName>,
    ) -> Self {
        let allows = |role: &str| {
            access.roles.get(role).is_some_and(|role| role.permissions.iter().any(|pattern| pattern.covers(permission)))
        };
        let bound =
            access.bindings.iter().flat_map(|(subject, grants)| grants.iter().map(move |grant| (subject, grant)));
        let given = bound.chain(mapped.iter().map(|(group, grant)| (group, grant)));
        let mut holders = Self { here: BTreeSet::new(), everywhere: BTreeSet::new() };
        for (subject, grant) in given.filter(|(_, grant)| allows(&grant.role)) {
            holders.add(subject.to_string(), grant.namespace.as_ref(), namespace);
        }
        for key in keys.iter().filter(|key| key.roles.iter().any(|role| allows(role))) {
            holders.add(format!("key:{}", key.id), key.namespace.as_ref(), namespace);
        }
        holders
    }

    fn add(&mut self, holder: String, held: Option<&NamespaceName>, namespace: Option<&NamespaceName>) {
        match held {
            None => drop(self.everywhere.insert(holder)),
            held if held == namespace => drop(self.here.insert(holder)),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use prism_core::secret::{Random, SecretKind};
    use prism_store::KeyLife;

    use super::*;

    fn grant(role: &str, namespace: Option<&str>) -> RoleGrant {
        let namespace = namespace.map(|name| NamespaceName::parse("n", name).unwrap());
        RoleGrant { role: role.to_owned(), namespace }
    }

    fn key(roles: &[&str], namespace: Option<&str>) -> ApiKeyRow {
        let new = Random::system().secret(SecretKind::AdminKey);
        ApiKeyRow {
            id: new.id,
            hash: new.hash,
            name: "k".to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            namespace: grant("", namespace).namespace,
            owner: None,
            life: KeyLife::default(),
            rotated_at: None,
            previous: None,
        }
    }

    #[test]
    fn holders_are_those_whose_roles_reach_the_place() {
        let (alice, ops) = (Subject::user("alice").unwrap(), Subject::group("ops").unwrap());
        let gone = Subject::certificate("spiffe://prism-1/user/bob").unwrap();
        let access = Access {
            bindings: [
                (alice, vec![grant("viewer", None), grant("operator", Some("a")), grant("operator", Some("b"))]),
                (ops, vec![grant("admin", Some("b"))]),
                (gone, vec![grant("gone", None)]),
            ]
            .into(),
            ..Access::default()
        };
        let keys = [key(&["gone", "admin"], None), key(&["operator"], Some("a")), key(&[], None)];
        let (first, second) = (format!("key:{}", keys[0].id), format!("key:{}", keys[1].id));
        let mapped = [
            (Subject::group("corp:platform").unwrap(), grant("admin", None)),
            (Subject::group("corp:a-team").unwrap(), grant("operator", Some("a"))),
            (Subject::group("ops").unwrap(), grant("viewer", Some("a"))),
        ];
        let asked = |mapped: &[_], permission: &str, namespace| {
            let permission = Permission::parse(permission).unwrap();
            Holders::of((&access, mapped, &keys), &permission, grant("", namespace).namespace.as_ref())
        };
        let who = |permission: &str, namespace| {
            let Holders { here, everywhere } = asked(&[], permission, namespace);
            (&here | &everywhere).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(who("session:terminate", None), std::slice::from_ref(&first));
        let mut in_a = vec![first.clone(), second, "user:alice".to_owned()];
        in_a.sort();
        assert_eq!(who("session:terminate", Some("a")), in_a);
        assert_eq!(
            who("session:terminate", Some("b")),
            ["group:ops".to_owned(), first.clone(), "user:alice".to_owned()]
        );
        assert_eq!(who("config:read", None), [first.clone(), "user:alice".to_owned()]);
        assert_eq!(who("config:delete", Some("c")), std::slice::from_ref(&first));
        // Those whom issuers' settings name count like those who are bound.
        let names = |holders: BTreeSet<String>| holders.into_iter().collect::<Vec<_>>();
        let Holders { here, everywhere } = asked(&mapped, "config:delete", Some("b"));
        assert_eq!(
            (names(here), names(everywhere)),
            (vec!["group:ops".to_owned()], vec!["group:corp:platform".to_owned(), first])
        );
        let Holders { here, .. } = asked(&mapped, "session:read", Some("a"));
        assert_eq!(names(here).iter().filter(|name| name.starts_with("group:")).count(), 2);
    }
}
