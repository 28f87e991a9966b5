//! `prism.config.v1.ConfigService`: what a credential can find out about the configs of its namespace.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use prism_core::config::{Config, ConfigDraft};
use prism_core::limits::MAX_VERSION_BYTES;
use prism_core::secret::SecretKind;
use prism_core::{ConfigName, Error, Kind, NamespaceName, Result};
use prism_proto::config::v1::config_service_server::ConfigService;
use prism_proto::config::v1::{
    ClientConfig, GetConfigRequest, GetConfigResponse, ListConfigsRequest, ListConfigsResponse, ValidateConfigRequest,
    ValidateConfigResponse,
};
use prism_rpc::convert::{config_draft, config_to_proto, pattern};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::admission::client_identity;
use crate::call::{self, Context};
use crate::cause;
use crate::decision::{Act, Leaving};
use crate::fields::Fields;
use crate::gate::{Permit, TOKEN_HEADER};
use crate::plane::Plane;
use crate::rpc::Rpc;

/// The service.
pub struct Service(pub Arc<Plane>);

#[tonic::async_trait]
impl ConfigService for Service {
    async fn list_configs(
        &self,
        request: Request<ListConfigsRequest>,
    ) -> Result<Response<ListConfigsResponse>, Status> {
        self.call(Rpc::ListConfigs, request, |namespace, request| async move { self.list(&namespace, &request) }).await
    }

    async fn get_config(&self, request: Request<GetConfigRequest>) -> Result<Response<GetConfigResponse>, Status> {
        self.call(Rpc::GetConfig, request, |namespace, request| async move { self.get(&namespace, &request).await })
            .await
    }

    async fn validate_config(
        &self,
        request: Request<ValidateConfigRequest>,
    ) -> Result<Response<ValidateConfigResponse>, Status> {
        let work =
            |namespace, request: ValidateConfigRequest| async move { self.validate(&namespace, request.config).await };
        self.call(Rpc::ValidateConfig, request, work).await
    }
}

/// Who asks.
enum Caller {
    Session(Permit),
    Key(NamespaceName, Instant),
}

impl Service {
    /// Carries out a call for the namespace of its credential.
    async fn call<Q, A, W, F>(&self, rpc: Rpc, request: Request<Q>, work: W) -> Result<Response<A>, Status>
    where
        W: FnOnce(NamespaceName, Q) -> F,
        F: Future<Output = Result<A>>,
    {
        let (metadata, extensions, message) = request.into_parts();
        let context = Context::new(rpc, &metadata, &extensions);
        let fail = |error: &Error| context.status(error);
        let caller = self.caller(rpc, &metadata, context.deadline).await;
        let mut caller = caller.map_err(|error| fail(&error))?;
        let namespace = match &caller {
            Caller::Session(permit) => permit.session().namespace().name().clone(),
            Caller::Key(namespace, _) => namespace.clone(),
        };
        let outcome = call::within(context.deadline, work(namespace, message)).await;
        match &mut caller {
            Caller::Session(permit) if outcome.is_ok() => permit.succeeded(),
            Caller::Session(_) => {}
            Caller::Key(namespace, started) => {
                let latency = started.elapsed();
                self.0.gate.namespaces.runtime(namespace).series(rpc).record(latency, outcome.is_ok());
            }
        }
        outcome.map(Response::new).map_err(|error| fail(&error))
    }

    async fn caller(&self, rpc: Rpc, metadata: &MetadataMap, deadline: Option<Instant>) -> Result<Caller> {
        let started = Instant::now();
        let gate = &self.0.gate;
        if metadata.contains_key(TOKEN_HEADER) {
            return gate.enter("", metadata, rpc).map(Caller::Session);
        }
        gate.follow();
        let identified = match bearer(metadata) {
            Some(key) => call::within(deadline, client_identity(&self.0, key)).await,
            None => Err(Error::unauthenticated(
                "CREDENTIAL_REQUIRED",
                "present a session token in x-session-token, or a client key as authorization: Bearer",
            )),
        };
        let identity = identified.inspect_err(|_| gate.count_stranger(rpc, started.elapsed(), false))?;
        let runtime = gate.namespaces.runtime(&identity.namespace);
        let admitted = gate.admit(Act::Catalog, &runtime, Leaving::No, gate.clock.now());
        admitted.inspect_err(|_| runtime.series(rpc).record(started.elapsed(), false))?;
        Ok(Caller::Key(identity.namespace, started))
    }

    fn list(&self, namespace: &NamespaceName, request: &ListConfigsRequest) -> Result<ListConfigsResponse> {
        let mut fields = Fields::new();
        // 0 = unspecified = any.
        let wanted = request.pattern.filter(|number| *number != 0);
        let wanted_pattern = wanted.and_then(pattern);
        fields.require(wanted.is_none() || wanted_pattern.is_some(), "pattern", "is not a known access pattern");
        let filter = request.namespace.as_deref().filter(|name| !name.is_empty());
        let filter = filter.and_then(|name| fields.keep(NamespaceName::parse("namespace", name)));
        fields.finish()?;
        if filter.is_some_and(|asked| asked != *namespace) {
            return Err(cause::other_namespace());
        }
        let snapshot = self.0.gate.namespaces.snapshot();
        let mut found: Vec<&Config> = snapshot
            .configs
            .values()
            .map(|revision| &*revision.config)
            .filter(|config| config.namespace == *namespace)
            .filter(|config| wanted_pattern.is_none_or(|pattern| config.pattern == pattern))
            .collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        let answer = ListConfigsResponse { configs: found.into_iter().map(config_to_proto).collect() };
        let most = self.0.gate.limits.max_message_bytes();
        if answer.encoded_len() > most {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "RESPONSE_TOO_LARGE",
                format!("the configs are more than {most} bytes together, the most of one answer; ask for one pattern"),
            ));
        }
        Ok(answer)
    }

    async fn get(&self, namespace: &NamespaceName, request: &GetConfigRequest) -> Result<GetConfigResponse> {
        let mut fields = Fields::new();
        let name = fields.keep(ConfigName::parse("name", &request.name));
        if let Some(version) = &request.version {
            fields.text("version", version, 0, MAX_VERSION_BYTES);
        }
        fields.finish()?;
        let absent = || Error::not_found(format_args!("config:{}", request.name));
        let version = request.version.as_deref().filter(|version| !version.is_empty());
        let snapshot = self.0.gate.namespaces.snapshot();
        let current =
            name.as_ref().and_then(|name| snapshot.configs.get(name)).map(|revision| Arc::clone(&revision.config));
        let current = current.filter(|config| config.namespace == *namespace).ok_or_else(absent)?;
        let found = match version {
            // An earlier revision, which only the control plane has.
            Some(version) if current.version != version => {
                self.0.control.config_version(&current.name, version).await?
            }
            _ => Some(current),
        };
        let found = found.filter(|config| config.namespace == *namespace).ok_or_else(absent)?;
        Ok(GetConfigResponse { config: Some(config_to_proto(&found)) })
    }

    async fn validate(
        &self,
        namespace: &NamespaceName,
        config: Option<ClientConfig>,
    ) -> Result<ValidateConfigResponse> {
        let draft = config_draft(config);
        let warnings = warnings(&draft);
        let checked = match draft.validate("config", &self.0.backends.catalog(), |name| name == namespace) {
            Err(violations) => Err(Error::invalid_fields(violations)),
            Ok(config) => self.0.backends.check(&config).await,
        };
        let errors = match checked {
            Ok(()) => Vec::new(),
            Err(error) if error.kind() == Kind::InvalidArgument => error
                .fields()
                .iter()
                .map(|violation| format!("{}: {}", violation.field, violation.description))
                .collect(),
            Err(error) => return Err(error),
        };
        Ok(ValidateConfigResponse { valid: errors.is_empty(), errors, warnings })
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, word) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && word.starts_with(SecretKind::ClientKey.prefix())).then_some(word.trim())
}

/// What would be accepted and has no effect.
fn warnings(draft: &ConfigDraft) -> Vec<String> {
    let mut warnings = Vec::new();
    let embedded = draft.backend.as_ref().and_then(|backend| backend.kind).is_some_and(|kind| {
        matches!(kind, prism_core::config::BackendType::Sqlite | prism_core::config::BackendType::Memory)
    });
    if embedded && draft.cache.is_some_and(|cache| cache.enabled) {
        warnings.push(
            "config.cache: has no effect on an embedded backend, which answers from memory or a local file".to_owned(),
        );
    }
    if embedded && draft.backend.as_ref().is_some_and(|backend| backend.pool.is_some()) {
        warnings.push("config.backend.pool: has no effect on an embedded backend".to_owned());
    }
    if embedded
        && draft.consistency.is_some_and(|(level, _)| {
            level.is_some_and(|level| level != prism_core::config::ConsistencyLevel::Unspecified)
        })
    {
        warnings.push(
            "config.consistency.level: has no effect on an embedded backend, where every read is strong".to_owned(),
        );
    }
    if draft.rate_limit.is_some_and(|limit| limit.requests_per_second == 0 && limit.burst > 0) {
        warnings.push("config.rate_limit.burst: has no effect without requests_per_second".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_client_key_is_a_credential() {
        let of = |value: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", value.parse().unwrap());
            bearer(&metadata).map(str::to_owned)
        };
        assert_eq!(of("Bearer prc_x").as_deref(), Some("prc_x"));
        assert_eq!(of("bearer prc_x").as_deref(), Some("prc_x"));
        for bad in ["prc_x", "Basic prc_x", "Bearer prx_x", "Bearer", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
