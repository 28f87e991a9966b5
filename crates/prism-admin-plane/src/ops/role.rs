//! ListRoles, CreateRole, UpdateRole, DeleteRole.

use prism_core::access::Access;
use prism_core::limits::MAX_ROLE_PERMISSIONS;
use prism_core::page::Page;
use prism_core::permission::{Pattern, Role};
use prism_core::{Error, Result, RoleName};
use prism_proto::admin::v1 as wire;
use prism_store::Tx;
use serde_json::{Value, json};

use super::held::require_held;
use super::permissions::Permissions;
use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

fn resource_of(name: &str) -> String {
    format!("role:{name}")
}

/// Requires that there is a role of this name; INVALID_ARGUMENT on `field`, naming those that there are.
pub(crate) fn require_role(field: &str, name: &str, access: &Access) -> Result<()> {
    if access.roles.contains_key(name) {
        return Ok(());
    }
    let known = convert::listed(access.roles.keys().map(String::as_str));
    Err(Error::invalid(field, format!("is not a role; there are: {known}")))
}

/// Requires that a role may change, if there is one of this name.
fn require_custom(name: &str, access: &Access) -> Result<()> {
    if !access.roles.get(name).is_some_and(|role| role.built_in) {
        return Ok(());
    }
    let message = format!("the role {name} is built in and cannot change; create a role of another name");
    Err(Error::precondition("ROLE_BUILT_IN", message))
}

/// Proves a role as an operator wrote it.
fn proven(role: Option<wire::Role>, services: &Services) -> Result<Role> {
    let role = role.ok_or_else(|| Error::invalid("role", "must be set"))?;
    let name = RoleName::parse("role.name", &role.name);
    let permissions = permissions(&role.permissions, &Permissions::of(&services.table));
    let built_in = if role.built_in {
        Err(Error::invalid("role.built_in", "must not be set; it is Prism's to say"))
    } else {
        Ok(())
    };
    convert::all_of([convert::outcome(&name), convert::outcome(&permissions), built_in])?;
    Ok(Role { name: name?.into(), permissions: permissions?.into(), built_in: false })
}

fn permissions(texts: &[String], known: &Permissions) -> Result<Vec<Pattern>> {
    if texts.is_empty() || texts.len() > MAX_ROLE_PERMISSIONS {
        let bound = format!("must be 1 to {MAX_ROLE_PERMISSIONS} permissions");
        return Err(Error::invalid("role.permissions", bound));
    }
    let (mut found, mut violations) = (Vec::<Pattern>::new(), Vec::new());
    for (index, text) in texts.iter().enumerate() {
        let field = format!("role.permissions[{index}]");
        match known.pattern(&field, text) {
            Ok(pattern) if found.contains(&pattern) => {
                violations.extend_from_slice(Error::invalid(field, "is there twice").fields());
            }
            Ok(pattern) => found.push(pattern),
            Err(error) => violations.extend_from_slice(error.fields()),
        }
    }
    if violations.is_empty() { Ok(found) } else { Err(Error::invalid_fields(violations)) }
}

/// What can change of a role, for its audit entry.
fn shown(role: &Role) -> Value {
    json!({"permissions": &*role.permissions})
}

/// `ListRoles`, by name, the built-in ones included.
#[derive(Clone)]
pub struct ListRoles {
    page: Page,
}

impl Op for ListRoles {
    type Request = wire::ListRolesRequest;
    type Response = wire::ListRolesResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListRoles";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "roles".to_owned()
    }

    /// Roles are those of the whole installation, and whoever may bind them in one namespace has to know them.
    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("roles", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let access = tx.access()?;
        let after = |name: &str| self.page.after.as_deref().is_none_or(|after| name > after);
        let rest = access.roles.values().filter(|role| after(&role.name));
        let mut roles: Vec<&Role> = rest.take(self.page.size + 1).collect();
        let next_page_token = self.page.cut(&mut roles, |role| role.name.clone()).unwrap_or_default();
        Ok(Done::new(wire::ListRolesResponse {
            roles: roles.into_iter().map(convert::role).collect(),
            next_page_token,
            total_count: i32::try_from(access.roles.len()).unwrap_or(i32::MAX),
        }))
    }
}

/// `CreateRole`. The settings of an issuer may give a role by its name alone, so whoever makes one must hold all of it,
/// everywhere.
#[derive(Clone)]
pub struct CreateRole {
    role: Role,
}

impl Op for CreateRole {
    type Request = wire::CreateRoleRequest;
    type Response = wire::CreateRoleResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateRole";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(request.role.as_ref().map_or("", |role| &role.name))
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        Ok(Self { role: proven(request.role, services)? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        require_held(caller, &self.role.name, &self.role.permissions, None)?;
        tx.insert_role(&self.role, &caller.identity.actor)?;
        let done = Done::new(wire::CreateRoleResponse { role: Some(convert::role(&self.role)) });
        Ok(done.changed(None::<&Value>, Some(&shown(&self.role))))
    }
}

/// `UpdateRole`: the permissions given replace those of the role, for all who have it. The caller must hold all of them,
/// everywhere, those that the role has already included.
#[derive(Clone)]
pub struct UpdateRole {
    role: Role,
}

impl Op for UpdateRole {
    type Request = wire::UpdateRoleRequest;
    type Response = wire::UpdateRoleResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/UpdateRole";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(request.role.as_ref().map_or("", |role| &role.name))
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        if let Some(role) = &request.role {
            // A built-in role as it was listed is not malformed, it is just not to be changed.
            require_custom(&role.name, &services.store.access())?;
        }
        Ok(Self { role: proven(request.role, services)? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let access = tx.access()?;
        let before = access.roles.get(&self.role.name).ok_or_else(|| Error::not_found(resource_of(&self.role.name)))?;
        require_held(caller, &self.role.name, &self.role.permissions, None)?;
        tx.keeping_an_administrator(|tx| tx.update_role(&self.role))?;
        let done = Done::new(wire::UpdateRoleResponse { role: Some(convert::role(&self.role)) });
        Ok(done.changed(Some(&shown(before)), Some(&shown(&self.role))))
    }
}

/// `DeleteRole`: nobody has it any more, by a binding or by a key.
#[derive(Clone)]
pub struct DeleteRole {
    name: RoleName,
}

impl Op for DeleteRole {
    type Request = wire::DeleteRoleRequest;
    type Response = wire::DeleteRoleResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/DeleteRole";
    const SCOPE: Scope = Scope::Installation;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Installation)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { name: RoleName::parse("name", &request.name)? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let access = tx.access()?;
        require_custom(self.name.as_str(), &access)?;
        let unknown = || Error::not_found(resource_of(self.name.as_str()));
        let role = access.roles.get(self.name.as_str()).ok_or_else(unknown)?;
        let removed = tx.keeping_an_administrator(|tx| tx.delete_role(self.name.as_str()))?.ok_or_else(unknown)?;
        Ok(Done::new(wire::DeleteRoleResponse {})
            .changed(Some(&shown(role)), None::<&Value>)
            .detail("bindings", removed.bindings)
            .detail("keys", removed.keys))
    }
}

#[cfg(test)]
mod tests {
    use prism_rpc::Table;

    use super::*;

    fn checked(texts: &[&str]) -> Result<Vec<Pattern>> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        permissions(&texts, &Permissions::of(&Table::load().unwrap()))
    }

    #[test]
    fn permissions_are_kept_in_one_form() {
        let patterns = checked(&["config.read", "tokens:manage", "nodes.*"]).unwrap();
        let role = Role { name: "r".to_owned(), permissions: patterns.into(), built_in: false };
        assert_eq!(shown(&role).to_string(), r#"{"permissions":["config:read","tokens:manage","nodes:*"]}"#);
    }

    #[test]
    fn every_bad_permission_is_named_and_one_that_is_there_twice_too() {
        let error = checked(&["config:read", "config.read", "nothing:read", "config:*", "x"]).unwrap_err();
        let fields: Vec<&str> = error.fields().iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["role.permissions[1]", "role.permissions[2]", "role.permissions[4]"]);
        assert!(error.message().contains("is there twice"), "{}", error.message());
    }

    #[test]
    fn a_role_has_1_to_100_permissions() {
        assert_eq!(checked(&[]).unwrap_err().fields()[0].field, "role.permissions");
        assert_eq!(checked(&["config:read"; 101]).unwrap_err().fields()[0].field, "role.permissions");
        // A hundred are looked at one by one.
        assert_eq!(checked(&["config:read"; 100]).unwrap_err().fields().len(), 99);
    }

    #[test]
    fn built_in_roles_cannot_change_and_unknown_ones_are_answered_with_those_that_there_are() {
        let access = Access::default();
        assert_eq!(require_custom("admin", &access).unwrap_err().reason(), "ROLE_BUILT_IN");
        require_custom("mine", &access).unwrap();
        require_role("binding.role", "viewer", &access).unwrap();
        let error = require_role("binding.role", "wizard", &access).unwrap_err();
        assert_eq!(error.message(), "binding.role: is not a role; there are: admin, operator, viewer");
    }
}
