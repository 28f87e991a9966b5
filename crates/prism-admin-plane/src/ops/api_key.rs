//! CreateApiKey, ListApiKeys, RotateApiKey, RevokeApiKey.

use std::time::Duration;

use prism_core::access::Access;
use prism_core::limits::{MAX_KEY_OVERLAP, MAX_KEY_TTL, MAX_TEXT_BYTES};
use prism_core::page::Page;
use prism_core::secret::{Random, SecretKind};
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_store::{ApiKeyRow, KeyLife, Tx};
use serde_json::{Value, json};

use super::held::require_roles_held;
use super::role::require_role;
use crate::convert;
use crate::identity::is_reserved;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Most roles of one key.
const MAX_ROLES: usize = 16;

fn resource_of(id: &str) -> String {
    super::named("key", id)
}

/// What the audit log shows of a key.
fn state(key: &ApiKeyRow) -> Value {
    json!({
        "name": key.name,
        "roles": key.roles,
        "namespace": key.namespace.as_ref().map(NamespaceName::as_str),
        "owner": key.owner,
        "expires_at_epoch_ms": key.life.expires_at,
        "revoked_at_epoch_ms": key.life.revoked_at,
    })
}

/// What the audit log shows of a key's tokens.
fn rotation(key: &ApiKeyRow) -> Value {
    json!({
        "rotated_at_epoch_ms": key.rotated_at,
        "overlap_ends_at_epoch_ms": key.previous.as_ref().map(|previous| previous.until),
    })
}

/// Where a stored key's roles hold.
fn place_of(id: &str, tx: &Tx<'_>) -> Result<Place> {
    Ok(Place::of(tx.api_key(id)?.and_then(|key| key.namespace).map(String::from)))
}

fn require_id(id: &str) -> Result<()> {
    if id.is_empty() { Err(Error::invalid("key_id", "must be set")) } else { Ok(()) }
}

/// `CreateApiKey`.
#[derive(Clone)]
pub struct CreateApiKey {
    name: String,
    roles: Vec<String>,
    namespace: Option<NamespaceName>,
    owner: Option<String>,
    ttl: Option<Duration>,
    random: Random,
}

impl Op for CreateApiKey {
    type Request = wire::CreateApiKeyRequest;
    type Response = wire::CreateApiKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateApiKey";
    const SCOPE: Scope = Scope::Namespace;

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
        convert::all_of([
            name(&request.name),
            require_roles(&request.roles, &services.store.access()),
            namespace.as_ref().map(|_| ()).map_err(Clone::clone),
            request.user.as_deref().map_or(Ok(()), user),
            ttl.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self {
            name: request.name,
            roles: request.roles,
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
        let access = tx.access()?;
        // A role may have gone since the request was proven.
        require_roles(&self.roles, &access)?;
        require_roles_held(caller, &access, &self.roles, self.namespace.as_ref().map(NamespaceName::as_str))?;
        let new = self.random.secret(SecretKind::AdminKey);
        let key = ApiKeyRow {
            id: new.id,
            hash: new.hash,
            name: self.name,
            roles: self.roles,
            namespace: self.namespace,
            owner: self.owner,
            life: KeyLife {
                created_at: tx.now,
                created_by: caller.identity.actor.clone(),
                expires_at: self.ttl.map(|ttl| tx.now + ttl),
                ..KeyLife::default()
            },
            rotated_at: None,
            previous: None,
        };
        tx.insert_api_key(&key)?;
        let response = wire::CreateApiKeyResponse {
            api_key: Some(convert::api_key(&key, tx.now)),
            token: new.token.into_exposed(),
        };
        let done = Done::new(response).detail("name", &key.name).detail("roles", key.roles.join(","));
        let mut done = done.changed(None::<&Value>, Some(&state(&key)));
        done.resource = Some(resource_of(key.id.as_str()));
        done.secret_of = Some(key.id.to_string());
        Ok(done)
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

fn require_roles(names: &[String], access: &Access) -> Result<()> {
    if names.is_empty() || names.len() > MAX_ROLES {
        return Err(Error::invalid("roles", format!("must name 1 to {MAX_ROLES} roles")));
    }
    for (index, name) in names.iter().enumerate() {
        let field = format!("roles[{index}]");
        require_role(&field, name, access)?;
        if names[..index].contains(name) {
            return Err(Error::invalid(field, "is named twice"));
        }
    }
    Ok(())
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
    const SCOPE: Scope = Scope::Filtered;

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
            api_keys: rows.iter().map(|key| convert::api_key(key, tx.now)).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

/// `RotateApiKey`. The key stays what it is and gets another token, so whoever rotates it gets all that it allows.
#[derive(Clone)]
pub struct RotateApiKey {
    id: String,
    /// `None` = the old token ends at once.
    overlap: Option<Duration>,
    random: Random,
}

impl Op for RotateApiKey {
    type Request = wire::RotateApiKeyRequest;
    type Response = wire::RotateApiKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/RotateApiKey";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.key_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        place_of(&request.key_id, tx)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let overlap = overlap(request.overlap.as_ref());
        convert::all_of([require_id(&request.key_id), convert::outcome(&overlap)])?;
        Ok(Self { id: request.key_id, overlap: overlap?, random: services.random().clone() })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let unknown = || Error::not_found(resource_of(&self.id));
        let key = tx.api_key(&self.id)?.ok_or_else(unknown)?;
        require_roles_held(caller, &*tx.access()?, &key.roles, key.namespace.as_ref().map(NamespaceName::as_str))?;
        if key.life.revoked_at.is_some() {
            return Err(Error::precondition("KEY_REVOKED", "the key is revoked; create another one"));
        }
        if !key.life.is_valid(tx.now) {
            return Err(Error::precondition("KEY_EXPIRED", "the key has expired; create another one"));
        }
        let new = self.random.secret_for(SecretKind::AdminKey, key.id);
        // No token outlives its key.
        let ends = |overlap| key.life.expires_at.map_or(tx.now + overlap, |end| end.min(tx.now + overlap));
        let overlap_ends = self.overlap.map(ends);
        let before = rotation(&key);
        let key = tx.rotate_api_key(&self.id, &new.hash, overlap_ends)?.ok_or_else(unknown)?;
        let response = wire::RotateApiKeyResponse {
            api_key: Some(convert::api_key(&key, tx.now)),
            token: new.token.into_exposed(),
        };
        let mut done = Done::new(response)
            .detail("name", &key.name)
            .detail("overlap_ms", self.overlap.unwrap_or_default().as_millis())
            .changed(Some(&before), Some(&rotation(&key)));
        done.secret_of = Some(key.id.to_string());
        Ok(done)
    }
}

/// How long the old token goes on; less than a millisecond is not at all.
fn overlap(given: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    let Some(given) = given else { return Ok(None) };
    let overlap = prism_rpc::convert::from_duration("overlap", given)?;
    if overlap > MAX_KEY_OVERLAP {
        return Err(Error::invalid("overlap", format!("must be at most {} s", MAX_KEY_OVERLAP.as_secs())));
    }
    Ok(Some(overlap).filter(|overlap| overlap.as_millis() > 0))
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
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.key_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        place_of(&request.key_id, tx)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        require_id(&request.key_id)?;
        Ok(Self { id: request.key_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let key = tx.api_key(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.keeping_an_administrator(|tx| tx.revoke_api_key(&self.id))?;
        let after = tx.api_key(&self.id)?;
        let done = Done::new(wire::RevokeApiKeyResponse {}).detail("name", &key.name);
        Ok(done.changed(Some(&state(&key)), after.as_ref().map(state).as_ref()))
    }
}
