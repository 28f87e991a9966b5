//! `prism.config.v1.ConfigService`: what a credential can find out about the configs of its namespaces.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use prism_core::config::{Config, ConfigDraft};
use prism_core::limits::MAX_VERSION_BYTES;
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

use crate::call::{self, Context};
use crate::cause;
use crate::credential::{Origin, Presented};
use crate::decision::{Act, Leaving};
use crate::fields::Fields;
use crate::gate::{Permit, TOKEN_HEADER};
use crate::namespaces::NamespaceRuntime;
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
        let wanted = request.get_ref().namespace.as_deref().and_then(named_namespace);
        let work = |scope, request| async move { self.list(&scope, &request) };
        self.call(Rpc::ListConfigs, wanted, request, work).await
    }

    async fn get_config(&self, request: Request<GetConfigRequest>) -> Result<Response<GetConfigResponse>, Status> {
        let current = self.current(&request.get_ref().name);
        let wanted = current.map(|config| config.namespace.clone());
        let work = |scope, request| async move { self.get(&scope, &request).await };
        self.call(Rpc::GetConfig, wanted, request, work).await
    }

    async fn validate_config(
        &self,
        request: Request<ValidateConfigRequest>,
    ) -> Result<Response<ValidateConfigResponse>, Status> {
        let wanted = request.get_ref().config.as_ref().and_then(|config| named_namespace(&config.namespace));
        let work = |scope, request: ValidateConfigRequest| async move { self.validate(&scope, request.config).await };
        self.call(Rpc::ValidateConfig, wanted, request, work).await
    }
}

/// Who asks.
enum Caller {
    Session(Permit),
    /// The owner of a credential, counted for this namespace.
    Client(Arc<NamespaceRuntime>, Instant),
}

/// The namespaces that a call may look at; sorted, never empty.
struct Scope {
    namespaces: Vec<NamespaceName>,
    /// The others of its credential, and why they are closed now.
    closed: Vec<(NamespaceName, Error)>,
}

impl Scope {
    /// Whether `namespace` may be looked at; an error when it is closed, `false` when it is none of the credential's.
    fn has(&self, namespace: &NamespaceName) -> Result<bool> {
        match self.closed.iter().find(|(name, _)| name == namespace) {
            Some((_, refusal)) => Err(refusal.clone()),
            None => Ok(self.namespaces.contains(namespace)),
        }
    }
}

impl Service {
    /// Carries out a call for the namespaces of its credential. It counts for the namespace that it is about, if that is one of
    /// them, else for the first.
    async fn call<Q, A, W, F>(
        &self,
        rpc: Rpc,
        wanted: Option<NamespaceName>,
        request: Request<Q>,
        work: W,
    ) -> Result<Response<A>, Status>
    where
        W: FnOnce(Scope, Q) -> F,
        F: Future<Output = Result<A>>,
    {
        let (metadata, extensions, message) = request.into_parts();
        let context = Context::new(rpc, &metadata, &extensions);
        let fail = |error: &Error| context.status(error);
        let caller = self.caller(rpc, wanted.as_ref(), &metadata, &Origin::of(&extensions), &context).await;
        let (mut caller, scope) = caller.map_err(|error| fail(&error))?;
        let outcome = call::within(context.deadline, work(scope, message)).await;
        match &mut caller {
            Caller::Session(permit) if outcome.is_ok() => permit.succeeded(),
            Caller::Session(_) => {}
            Caller::Client(runtime, started) => runtime.series(rpc).record(started.elapsed(), outcome.is_ok()),
        }
        outcome.map(Response::new).map_err(|error| fail(&error))
    }

    async fn caller(
        &self,
        rpc: Rpc,
        wanted: Option<&NamespaceName>,
        metadata: &MetadataMap,
        origin: &Origin,
        context: &Context,
    ) -> Result<(Caller, Scope)> {
        let started = Instant::now();
        let gate = &self.0.gate;
        if metadata.contains_key(TOKEN_HEADER) {
            let permit = gate.let_in("", metadata, context).await?;
            let namespaces = vec![permit.session().namespace().name().clone()];
            return Ok((Caller::Session(permit), Scope { namespaces, closed: Vec::new() }));
        }
        gate.follow();
        let identified = match presented(metadata, origin) {
            Some(presented) => call::within(context.deadline, self.0.credentials.identify(presented, origin)).await,
            None => Err(Error::unauthenticated(
                "CREDENTIAL_REQUIRED",
                "present a session token in x-session-token, a client key or a JWT as authorization: Bearer, or a client \
                 certificate",
            )),
        };
        let identity = identified.inspect_err(|_| gate.count_stranger(rpc, started.elapsed(), false))?;
        let (mut scope, mut counted) = (Scope { namespaces: Vec::new(), closed: Vec::new() }, None);
        for given in identity.grants {
            let runtime = gate.namespaces.runtime(&given.namespace);
            let admitted = gate.admit(Act::Catalog, &runtime, Leaving::No, gate.clock.now());
            if counted.is_none() || wanted == Some(&given.namespace) {
                counted = Some(runtime);
            }
            match admitted {
                Ok(()) => scope.namespaces.push(given.namespace),
                Err(refusal) => scope.closed.push((given.namespace, refusal)),
            }
        }
        let counted = counted.ok_or_else(|| Error::internal("a client without a namespace"))?;
        if scope.namespaces.is_empty()
            && let Some((_, refusal)) = scope.closed.first()
        {
            counted.series(rpc).record(started.elapsed(), false);
            return Err(refusal.clone());
        }
        Ok((Caller::Client(counted, started), scope))
    }

    /// The current revision of a config.
    fn current(&self, name: &str) -> Option<Arc<Config>> {
        let name = ConfigName::parse("name", name).ok()?;
        let snapshot = self.0.gate.namespaces.snapshot();
        snapshot.configs.get(&name).map(|revision| Arc::clone(&revision.config))
    }

    fn list(&self, scope: &Scope, request: &ListConfigsRequest) -> Result<ListConfigsResponse> {
        let mut fields = Fields::new();
        // 0 = unspecified = any.
        let wanted = request.pattern.filter(|number| *number != 0);
        let wanted_pattern = wanted.and_then(pattern);
        fields.require(wanted.is_none() || wanted_pattern.is_some(), "pattern", "is not a known access pattern");
        let filter = request.namespace.as_deref().filter(|name| !name.is_empty());
        let filter = filter.and_then(|name| fields.keep(NamespaceName::parse("namespace", name)));
        fields.finish()?;
        if let Some(asked) = &filter
            && !scope.has(asked)?
        {
            return Err(cause::other_namespace());
        }
        let is_wanted = |namespace: &NamespaceName| match &filter {
            Some(asked) => asked == namespace,
            None => scope.namespaces.contains(namespace),
        };
        let snapshot = self.0.gate.namespaces.snapshot();
        let mut found: Vec<&Config> = snapshot
            .configs
            .into_iter()
            .map(|(_, revision)| &*revision.config)
            .filter(|config| is_wanted(&config.namespace))
            .filter(|config| wanted_pattern.is_none_or(|pattern| config.pattern == pattern))
            .collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        let answer = ListConfigsResponse { configs: found.into_iter().map(config_to_proto).collect() };
        let most = self.0.gate.limits.max_message_bytes();
        if answer.encoded_len() > most {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "RESPONSE_TOO_LARGE",
                format!(
                    "the configs are more than {most} bytes together, the most of one answer; ask for one pattern or namespace"
                ),
            ));
        }
        Ok(answer)
    }

    async fn get(&self, scope: &Scope, request: &GetConfigRequest) -> Result<GetConfigResponse> {
        let mut fields = Fields::new();
        fields.keep(ConfigName::parse("name", &request.name));
        if let Some(version) = &request.version {
            fields.text("version", version, 0, MAX_VERSION_BYTES);
        }
        fields.finish()?;
        let absent = || Error::not_found(format_args!("config:{}", request.name));
        let version = request.version.as_deref().filter(|version| !version.is_empty());
        let current = self.current(&request.name).ok_or_else(absent)?;
        if !scope.has(&current.namespace)? {
            return Err(absent());
        }
        let found = match version {
            // An earlier revision, which only the control plane has.
            Some(version) if current.version != version => {
                self.0.control.config_version(&current.name, version).await?
            }
            _ => Some(Arc::clone(&current)),
        };
        let found = found.filter(|config| config.namespace == current.namespace).ok_or_else(absent)?;
        Ok(GetConfigResponse { config: Some(config_to_proto(&found)) })
    }

    async fn validate(&self, scope: &Scope, config: Option<ClientConfig>) -> Result<ValidateConfigResponse> {
        let draft = config_draft(config);
        if let Some(namespace) = named_namespace(&draft.namespace) {
            // Refused when it is closed; that it is another's is a finding like any other.
            scope.has(&namespace)?;
        }
        let warnings = warnings(&draft);
        let checked = match draft.validate("config", &self.0.backends.catalog(), |name| scope.namespaces.contains(name))
        {
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

fn named_namespace(name: &str) -> Option<NamespaceName> {
    NamespaceName::parse("namespace", name).ok()
}

/// The credential of a call: what its header says, or without such a header the certificate of its connection. A header that
/// cannot be used is not passed over in favour of the certificate.
fn presented<'a>(metadata: &'a MetadataMap, origin: &Origin) -> Option<Presented<'a>> {
    let mut headers = metadata.get_all("authorization").iter();
    let Some(header) = headers.next() else {
        return origin.has_certificate().then_some(Presented::Certificate { sent: &[] });
    };
    let (scheme, word) = header.to_str().ok()?.split_once(' ')?;
    let word = word.trim();
    if headers.next().is_some() || !scheme.eq_ignore_ascii_case("bearer") || word.is_empty() {
        return None;
    }
    // What looks like a secret of Prism's is a client key, or as bad as a wrong one.
    let is_own = matches!(word.as_bytes(), [b'p', b'r', _, b'_', ..]);
    Some(if is_own { Presented::Key(word) } else { Presented::Jwt(word) })
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
    fn only_a_bearer_key_or_jwt_is_a_credential() {
        let of = |values: &[&'static str]| {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append("authorization", value.parse().unwrap());
            }
            presented(&metadata, &Origin::of(&tonic::Extensions::new())).map(|presented| match presented {
                Presented::Key(word) => format!("key {word}"),
                Presented::Jwt(word) => format!("jwt {word}"),
                Presented::Certificate { .. } => "certificate".to_owned(),
            })
        };
        assert_eq!(of(&["Bearer prc_x"]).as_deref(), Some("key prc_x"));
        assert_eq!(of(&["bearer  prx_x "]).as_deref(), Some("key prx_x"));
        assert_eq!(of(&["Bearer e.y.J"]).as_deref(), Some("jwt e.y.J"));
        assert_eq!(of(&["Bearer eyJ"]).as_deref(), Some("jwt eyJ"));
        for bad in
            [&["prc_x"][..], &["Basic prc_x"], &["Bearer"], &["Bearer "], &[""], &["Bearer prc_x", "Bearer prc_x"]]
        {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
