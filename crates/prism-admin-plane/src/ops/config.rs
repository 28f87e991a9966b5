//! ListConfigs, GetConfig, CreateConfig, UpdateConfig, DeleteConfig.

use std::sync::Arc;

use async_trait::async_trait;
use prism_core::config::{AccessPattern, Config};
use prism_core::limits::MAX_VERSION_BYTES;
use prism_core::nodes::Nodes as _;
use prism_core::page::Page;
use prism_core::{ConfigName, Error, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert;
use prism_rpc::convert::timestamp;
use prism_store::{ConfigRow, Tx, Wanted};

use crate::convert::{all_of, namespace_filter, outcome, text};
use crate::op::{Caller, Done, Op, Place, Scope, Services};

fn resource_of(name: &str) -> String {
    format!("config:{name}")
}

/// Where a stored config is; nothing that a bound credential could tell from another's.
fn place_of(name: &str, tx: &Tx<'_>) -> Result<Place> {
    Ok(Place::of(tx.config_namespace(name)?))
}

fn require_name(name: &str) -> Result<()> {
    ConfigName::parse("name", name).map(|_| ())
}

/// Refuses when the caller's etag is not the current one.
pub(crate) fn check_etag(given: Option<&str>, current: &str) -> Result<()> {
    match given {
        Some(given) if given != current => Err(Error::aborted(
            "ETAG_MISMATCH",
            "it has changed since you read it; read it again and repeat the change on what you find",
        )),
        _ => Ok(()),
    }
}

/// `ListConfigs`.
#[derive(Clone)]
pub struct ListConfigs {
    namespace: Option<String>,
    pattern: Option<AccessPattern>,
    page: Page,
}

impl Op for ListConfigs {
    type Request = wire::ListConfigsRequest;
    type Response = wire::ListConfigsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/ListConfigs";
    const SCOPE: Scope = Scope::Filtered;

    fn resource(_: &Self::Request) -> String {
        "configs".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let unknown = || Error::invalid("pattern", "is not a known access pattern");
        // 0 = unspecified = any.
        let wanted = request.pattern.filter(|number| *number != 0);
        let pattern = wanted.map(|number| convert::pattern(number).ok_or_else(unknown)).transpose();
        let filter = format!("configs\n{:?}\n{wanted:?}", request.namespace);
        let page = Page::parse(&filter, request.page_size, request.page_token.as_deref());
        all_of([namespace_filter(request.namespace.as_deref()), outcome(&pattern), outcome(&page)])?;
        Ok(Self { namespace: request.namespace, pattern: pattern?, page: page? })
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) = tx.configs(&caller.reach, self.namespace.as_deref(), self.pattern, &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.config.name.to_string());
        Ok(Done::new(wire::ListConfigsResponse {
            configs: rows.iter().map(|row| convert::config_to_proto(&row.config)).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }
}

/// `GetConfig`.
#[derive(Clone)]
pub struct GetConfig {
    name: String,
    wanted: Wanted,
}

impl Op for GetConfig {
    type Request = wire::GetConfigRequest;
    type Response = wire::GetConfigResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetConfig";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        place_of(&request.name, tx)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        let wanted = match (request.version, request.revision) {
            (None, None) => Ok(Wanted::Current),
            (Some(version), None) => text("version", &version, MAX_VERSION_BYTES).map(|()| Wanted::Version(version)),
            (None, Some(revision)) if revision >= 1 => Ok(Wanted::Revision(revision)),
            (None, Some(_)) => Err(Error::invalid("revision", "must be at least 1")),
            (Some(_), Some(_)) => Err(Error::invalid("revision", "must not be given together with version")),
        };
        all_of([require_name(&request.name), outcome(&wanted)])?;
        Ok(Self { name: request.name, wanted: wanted? })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.config(&self.name, &self.wanted)?.ok_or_else(|| match &self.wanted {
            Wanted::Current => Error::not_found(resource_of(&self.name)),
            Wanted::Version(version) => Error::not_found(format!("version {version:?} of {}", resource_of(&self.name))),
            Wanted::Revision(revision) => {
                Error::not_found(format!("revision {revision} of {}", resource_of(&self.name)))
            }
        })?;
        Ok(Done::new(wire::GetConfigResponse {
            config: Some(convert::config_to_proto(&row.config)),
            created_at: Some(timestamp(row.created_at)),
            updated_at: Some(timestamp(row.updated_at)),
            etag: row.etag(),
            revision: row.revision,
        }))
    }
}

/// Proves a config against the server's backends and the namespaces there are.
fn proven(config: Option<prism_proto::config::v1::ClientConfig>, services: &Services) -> Result<Config> {
    if config.is_none() {
        return Err(Error::invalid("config", "must be set"));
    }
    let snapshot = services.snapshot();
    let draft = convert::config_draft(config);
    let catalog = services.catalog_for(draft.backend.as_ref());
    draft.validate("config", &catalog, |name| snapshot.namespaces.contains_key(name)).map_err(Error::invalid_fields)
}

/// The namespace may have gone since the request was proven.
fn require_namespace(tx: &Tx<'_>, config: &Config) -> Result<()> {
    if tx.has_namespace(config.namespace.as_str())? {
        return Ok(());
    }
    Err(Error::invalid("config.namespace", format!("namespace {} does not exist", config.namespace)))
}

fn require_same_namespace(existing: &ConfigRow, config: &Config) -> Result<()> {
    if existing.config.namespace == config.namespace {
        return Ok(());
    }
    Err(namespace_change())
}

fn namespace_change() -> Error {
    Error::invalid("config.namespace", "cannot change; make a config of another name there")
}

/// Only a config with tables of its own has effects when it is prepared.
fn changes_tables(config: &Config) -> bool {
    config.backend.options.contains_key("schema")
}

/// Lets the driver check a config, and makes what it needs unless the call only asks.
async fn prepare(config: &Config, validate_only: bool, services: &Services) -> Result<()> {
    services.fleet.check_config(config).await?;
    if !validate_only {
        // A node that is away makes what the config needs when it hears of it.
        services.fleet.prepare_config(config).await?;
    }
    Ok(())
}

/// What the audit entry of an accepted config says of it.
fn describe<R>(done: Done<R>, config: &Config, revision: Option<i64>) -> Done<R> {
    let done = done
        .detail("version", &config.version)
        .detail("pattern", config.pattern)
        .detail("backend", format!("{}/{}", config.backend.kind, config.instance));
    match revision {
        Some(revision) => done.detail("revision", revision),
        None => done.detail("validate_only", true),
    }
}

/// `CreateConfig`.
#[derive(Clone)]
pub struct CreateConfig {
    config: Arc<Config>,
    overwrite: bool,
    validate_only: bool,
}

#[async_trait]
impl Op for CreateConfig {
    type Request = wire::CreateConfigRequest;
    type Response = wire::CreateConfigResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/CreateConfig";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;
    const PROVES_FIRST: bool = true;

    fn resource(request: &Self::Request) -> String {
        resource_of(request.config.as_ref().map_or("", |config| &config.name))
    }

    fn namespace(request: &Self::Request) -> String {
        request.config.as_ref().map(|config| config.namespace.clone()).unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(Some(Self::namespace(request)).filter(|name| !name.is_empty())))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let config = Arc::new(proven(request.config, services)?);
        Ok(Self { config, overwrite: request.overwrite, validate_only: request.validate_only })
    }

    fn needs_rehearsal(&self) -> bool {
        changes_tables(&self.config)
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        prepare(&self.config, self.validate_only, services).await
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        require_namespace(tx, &self.config)?;
        let existing = tx.config(self.config.name.as_str(), &Wanted::Current)?;
        if let Some(existing) = &existing {
            if !self.overwrite {
                return Err(Error::already_exists(resource_of(self.config.name.as_str())));
            }
            require_same_namespace(existing, &self.config)?;
        }
        let mut response =
            wire::CreateConfigResponse { config: Some(convert::config_to_proto(&self.config)), created_at: None };
        if self.validate_only {
            return Ok(describe(Done::new(response), &self.config, None));
        }
        let row = tx.store_config(Arc::clone(&self.config))?;
        response.created_at = Some(timestamp(row.created_at));
        let before = existing.as_ref().map(|existing| &*existing.config);
        Ok(describe(Done::new(response), &row.config, Some(row.revision)).changed(before, Some(&*row.config)))
    }
}

/// `UpdateConfig`.
#[derive(Clone)]
pub struct UpdateConfig {
    config: Arc<Config>,
    validate_only: bool,
    etag: Option<String>,
}

#[async_trait]
impl Op for UpdateConfig {
    type Request = wire::UpdateConfigRequest;
    type Response = wire::UpdateConfigResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/UpdateConfig";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;
    const PROVES_FIRST: bool = true;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        place_of(&request.name, tx)
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let name = require_name(&request.name);
        let snapshot = services.snapshot();
        let existing = snapshot.configs.get(request.name.as_str());
        let (mut same, mut stays) = (Ok(()), Ok(()));
        let config = request.config.map(|mut config| {
            if !config.name.is_empty() && config.name != request.name {
                same = Err(Error::invalid("config.name", "must be empty or equal to name"));
            }
            if let Some(existing) = existing
                && existing.config.namespace.as_str() != config.namespace
            {
                stays = Err(namespace_change());
                // Never looked up, so that nobody learns which namespaces there are.
                existing.config.namespace.as_str().clone_into(&mut config.namespace);
            }
            // A stand-in, so that a wrong name is told once, under `name`.
            config.name = if name.is_ok() { request.name } else { "placeholder".to_owned() };
            config
        });
        let config = proven(config, services);
        all_of([name, same, stays, outcome(&config)])?;
        Ok(Self { config: Arc::new(config?), validate_only: request.validate_only, etag: request.etag })
    }

    fn needs_rehearsal(&self) -> bool {
        changes_tables(&self.config)
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        prepare(&self.config, self.validate_only, services).await
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let existing = tx
            .config(self.config.name.as_str(), &Wanted::Current)?
            .ok_or_else(|| Error::not_found(resource_of(self.config.name.as_str())))?;
        check_etag(self.etag.as_deref(), &existing.etag())?;
        require_same_namespace(&existing, &self.config)?;
        let mut response =
            wire::UpdateConfigResponse { config: Some(convert::config_to_proto(&self.config)), updated_at: None };
        if self.validate_only {
            return Ok(describe(Done::new(response), &self.config, None));
        }
        let row = tx.store_config(Arc::clone(&self.config))?;
        response.updated_at = Some(timestamp(row.updated_at));
        let done = describe(Done::new(response), &row.config, Some(row.revision));
        Ok(done.changed(Some(&*existing.config), Some(&*row.config)))
    }
}

/// `DeleteConfig`.
#[derive(Clone)]
pub struct DeleteConfig {
    name: String,
    etag: Option<String>,
}

impl Op for DeleteConfig {
    type Request = wire::DeleteConfigRequest;
    type Response = wire::DeleteConfigResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/DeleteConfig";
    const SCOPE: Scope = Scope::Namespace;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.name)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        place_of(&request.name, tx)
    }

    fn parse(request: Self::Request, _: &Services) -> Result<Self> {
        require_name(&request.name)?;
        Ok(Self { name: request.name, etag: request.etag })
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let existing =
            tx.config(&self.name, &Wanted::Current)?.ok_or_else(|| Error::not_found(resource_of(&self.name)))?;
        check_etag(self.etag.as_deref(), &existing.etag())?;
        tx.delete_config(&self.name)?;
        let done = Done::new(wire::DeleteConfigResponse { success: true }).detail("revision", existing.revision);
        Ok(done.changed(Some(&*existing.config), None::<&Config>))
    }
}
