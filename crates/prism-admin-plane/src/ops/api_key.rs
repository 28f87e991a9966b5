//! CreateApiKey, ListApiKeys, RevokeApiKey.

use std::time::Duration;

use prism_core::limits::{MAX_KEY_TTL, MAX_TEXT_BYTES};
use prism_core::page::Page;
use prism_core::permission::{Pattern, Permission, reach};
use prism_core::secret::SecretKind;
use prism_core::{Error, Kind, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_store::{ApiKeyRow, KeyLife, Tx};

use crate::convert;
use crate::identity::is_reserved;
use crate::op::{Caller, Done, Op, Place, Services};

/// Most roles of one key.
const MAX_ROLES: usize = 16;

fn resource_of(id: &str) -> String {
    format!("key:{id}")
}

/// `CreateApiKey`.
#[derive(Clone)]
pub struct CreateApiKey {
    name: String,
    roles: Vec<(String, Vec<Pattern>)>,
    namespace: Option<NamespaceName>,
    owner: Option<String>,
    ttl: Option<Duration>,
    random: prism_core::secret::Random,
}

impl Op for CreateApiKey {
    type Request = wire::CreateApiKeyRequest;
    type Response = wire::CreateApiKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateApiKey";

    fn resource(_: &Self::Request) -> String {
        "keys".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(request.namespace.clone()))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let namespace = request.namespace.as_deref().map(|name| NamespaceName::parse("namespace", name)).transpose();
        let ttl = convert::life("ttl", request.ttl.as_ref(), MAX_KEY_TTL);
        let roles = known_roles(&request.roles, services);
        convert::all_of([
            name(&request.name),
            roles.as_ref().map(|_| ()).map_err(Clone::clone),
            namespace.as_ref().map(|_| ()).map_err(Clone::clone),
            request.user.as_deref().map_or(Ok(()), user),
            ttl.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self {
            name: request.name,
            roles: roles?,
            namespace: namespace?,
            owner: request.user,
            ttl: ttl?,
            random: services.random().clone(),
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        if let Some(name) = &self.namespace
            && tx.namespace(name.as_str())?.is_none()
        {
            return Err(Error::invalid("namespace", format!("namespace {name} does not exist")));
        }
        self.require_held(caller)?;
        let new = self.random.secret(SecretKind::AdminKey);
        let key = ApiKeyRow {
            id: new.id,
            hash: new.hash,
            name: self.name,
            roles: self.roles.into_iter().map(|(name, _)| name).collect(),
            namespace: self.namespace,
            owner: self.owner,
            life: KeyLife {
                created_at: tx.now,
                created_by: caller.identity.actor.clone(),
                expires_at: self.ttl.map(|ttl| tx.now + ttl),
                ..KeyLife::default()
            },
        };
        tx.insert_api_key(&key)?;
        let response =
            wire::CreateApiKeyResponse { api_key: Some(convert::api_key(&key)), token: new.token.into_exposed() };
        let mut done = Done::new(response).detail("name", &key.name).detail("roles", key.roles.join(","));
        done.resource = Some(resource_of(key.id.as_str()));
        done.secret_of = Some(key.id.to_string());
        Ok(done)
    }
}

impl CreateApiKey {
    /// Nobody hands out more than they hold: every permission of every role must be the caller's, as far as the key reaches.
    fn require_held(&self, caller: &Caller) -> Result<()> {
        let place = self.namespace.as_ref().map(NamespaceName::as_str);
        for (role, patterns) in &self.roles {
            for pattern in patterns {
                // A caller holds `x:*` only through `x:*`; no verb is called "any", so asking for it asks for the pattern.
                let probe = Permission::parse(&pattern.to_string().replace('*', "any"));
                if !probe.is_some_and(|permission| reach(&caller.identity.grants, &permission).includes(place)) {
                    return Err(Error::new(
                        Kind::PermissionDenied,
                        "PERMISSION_DENIED",
                        format!("the role {role} allows {pattern}, which your credential does not have here"),
                    )
                    .with("permission", pattern.to_string()));
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::invalid("name", "must be set"));
    }
    convert::text("name", name, MAX_TEXT_BYTES)
}

fn user(user: &str) -> Result<()> {
    if user.trim().is_empty() || user.len() > 256 || user.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(Error::invalid(
            "user",
            "must be 1 to 256 printable ASCII characters without spaces, such as an address",
        ));
    }
    if is_reserved(user) {
        return Err(Error::invalid("user", "is a name that Prism gives itself in the audit log"));
    }
    Ok(())
}

fn known_roles(names: &[String], services: &Services) -> Result<Vec<(String, Vec<Pattern>)>> {
    if names.is_empty() || names.len() > MAX_ROLES {
        return Err(Error::invalid("roles", format!("must name 1 to {MAX_ROLES} roles")));
    }
    let mut found: Vec<(String, Vec<Pattern>)> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let role = services.roles.iter().find(|role| role.name == *name).ok_or_else(|| {
            let known = services.roles.iter().map(|role| role.name.as_str()).collect::<Vec<_>>().join(", ");
            Error::invalid(format!("roles[{index}]"), format!("is not a role; there are: {known}"))
        })?;
        if found.iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::invalid(format!("roles[{index}]"), "is named twice"));
        }
        found.push((role.name.clone(), role.permissions.clone()));
    }
    Ok(found)
}

/// `ListApiKeys`.
#[derive(Clone)]
pub struct ListApiKeys {
    page: Page,
}

impl Op for ListApiKeys {
    type Request = wire::ListApiKeysRequest;
    type Response = wire::ListApiKeysResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListApiKeys";

    fn resource(_: &Self::Request) -> String {
        "keys".to_owned()
    }

    fn place(_: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::Visible)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        Ok(Self { page: Page::parse("api_keys", request.page_size, request.page_token.as_deref())? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.api_keys(&caller.reach, &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |key| key.id.to_string()).unwrap_or_default();
        Ok(Done::new(wire::ListApiKeysResponse {
            api_keys: rows.iter().map(convert::api_key).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

/// `RevokeApiKey`; revoking a revoked key changes nothing.
#[derive(Clone)]
pub struct RevokeApiKey {
    id: String,
}

impl Op for RevokeApiKey {
    type Request = wire::RevokeApiKeyRequest;
    type Response = wire::RevokeApiKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/RevokeApiKey";

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.key_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.api_key(&request.key_id)?.and_then(|key| key.namespace).map(String::from)))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        if request.key_id.is_empty() {
            return Err(Error::invalid("key_id", "must be set"));
        }
        Ok(Self { id: request.key_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let key = tx.api_key(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.revoke_api_key(&self.id)?;
        Ok(Done::new(wire::RevokeApiKeyResponse {}).detail("name", key.name))
    }
}
