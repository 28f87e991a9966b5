//! CreateClientKey, ListClientKeys, RevokeClientKey: credentials of the data plane.

use std::time::Duration;

use prism_core::limits::MAX_KEY_TTL;
use prism_core::page::Page;
use prism_core::secret::{Random, SecretKind};
use prism_core::session::DataGrant;
use prism_core::{Error, NamespaceName, Result};
use prism_proto::admin::v1 as wire;
use prism_store::{ClientKeyRow, KeyLife, Tx};
use serde_json::{Value, json};

use super::api_key::name;
use crate::convert;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

fn resource_of(id: &str) -> String {
    super::named("key", id)
}

/// What the audit log shows of a key.
fn state(key: &ClientKeyRow) -> Value {
    json!({
        "name": key.name,
        "namespace": key.namespace.as_str(),
        "permissions": convert::data_permissions(key.grant),
        "expires_at_epoch_ms": key.life.expires_at,
        "revoked_at_epoch_ms": key.life.revoked_at,
    })
}

/// `CreateClientKey`.
#[derive(Clone)]
pub struct CreateClientKey {
    name: String,
    namespace: NamespaceName,
    grant: DataGrant,
    ttl: Option<Duration>,
    random: Random,
}

impl Op for CreateClientKey {
    type Request = wire::CreateClientKeyRequest;
    type Response = wire::CreateClientKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/CreateClientKey";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(_: &Self::Request) -> String {
        "keys".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(Some(request.namespace.clone()).filter(|name| !name.is_empty())))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let namespace = NamespaceName::parse("namespace", &request.namespace);
        let grant = convert::data_grant("permissions", &request.permissions);
        let ttl = convert::life("ttl", request.ttl.as_ref(), MAX_KEY_TTL);
        convert::all_of([
            name(&request.name),
            namespace.as_ref().map(|_| ()).map_err(Clone::clone),
            grant.as_ref().map(|_| ()).map_err(Clone::clone),
            ttl.as_ref().map(|_| ()).map_err(Clone::clone),
        ])?;
        Ok(Self {
            name: request.name,
            namespace: namespace?,
            grant: grant?,
            ttl: ttl?,
            random: services.random().clone(),
        })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        if tx.namespace(self.namespace.as_str())?.is_none() {
            return Err(Error::invalid("namespace", format!("namespace {} does not exist", self.namespace)));
        }
        let new = self.random.secret(SecretKind::ClientKey);
        let key = ClientKeyRow {
            id: new.id,
            hash: new.hash,
            name: self.name,
            namespace: self.namespace,
            grant: self.grant,
            life: KeyLife {
                created_at: tx.now,
                created_by: caller.identity.actor.clone(),
                expires_at: self.ttl.map(|ttl| tx.now + ttl),
                ..KeyLife::default()
            },
        };
        tx.insert_client_key(&key)?;
        let client_key = convert::client_key(&key);
        let permissions = client_key.permissions.join(",");
        let response = wire::CreateClientKeyResponse { client_key: Some(client_key), token: new.token.into_exposed() };
        let done = Done::new(response).detail("name", &key.name).detail("permissions", permissions);
        let mut done = done.changed(None::<&Value>, Some(&state(&key)));
        done.resource = Some(resource_of(key.id.as_str()));
        done.secret_of = Some(key.id.to_string());
        Ok(done)
    }
}

/// `ListClientKeys`.
#[derive(Clone)]
pub struct ListClientKeys {
    namespace: Option<String>,
    page: Page,
}

impl Op for ListClientKeys {
    type Request = wire::ListClientKeysRequest;
    type Response = wire::ListClientKeysResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/ListClientKeys";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "keys".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let filter = format!("client_keys\n{:?}", request.namespace);
        let page = Page::parse(&filter, request.page_size, request.page_token.as_deref());
        convert::all_of([convert::namespace_filter(request.namespace.as_deref()), convert::outcome(&page)])?;
        Ok(Self { namespace: request.namespace, page: page? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.client_keys(&caller.reach, self.namespace.as_deref(), &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |key| key.id.to_string()).unwrap_or_default();
        Ok(Done::new(wire::ListClientKeysResponse {
            client_keys: rows.iter().map(convert::client_key).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

/// `RevokeClientKey`; the data plane ends the sessions that stand on the key. Revoking a revoked key changes nothing.
#[derive(Clone)]
pub struct RevokeClientKey {
    id: String,
}

impl Op for RevokeClientKey {
    type Request = wire::RevokeClientKeyRequest;
    type Response = wire::RevokeClientKeyResponse;
    const RPC: &'static str = "prism.admin.v1.AccessService/RevokeClientKey";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.key_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.client_key(&request.key_id)?.map(|key| key.namespace.into())))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        if request.key_id.is_empty() {
            return Err(Error::invalid("key_id", "must be set"));
        }
        Ok(Self { id: request.key_id })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let key = tx.client_key(&self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id)))?;
        tx.revoke_client_key(&self.id)?;
        let after = tx.client_key(&self.id)?;
        let done = Done::new(wire::RevokeClientKeyResponse {}).detail("name", &key.name);
        Ok(done.changed(Some(&state(&key)), after.as_ref().map(state).as_ref()))
    }
}
