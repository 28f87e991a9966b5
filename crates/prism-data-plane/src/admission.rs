//! How a session comes to be: credential, config, admission by the control plane, route.

use std::sync::Arc;
use std::time::Instant;

use prism_core::config::{AccessPattern, Config};
use prism_core::control::ClientIdentity;
use prism_core::secret::{self, SecretKind};
use prism_core::session::{AdmitRequest, SessionRecord};
use prism_core::{ConfigName, Error, Kind, NamespaceName, Result};
use prism_proto::config::v1::ClientConfig;
use prism_proto::session::v1::create_session_request::{Auth, Config as Wanted};
use prism_proto::session::v1::{CreateSessionRequest, CreateSessionResponse};
use prism_rpc::convert::{config_draft, config_to_proto, timestamp};

use crate::cause::{self, EndCause};
use crate::decision::{Act, Leaving};
use crate::fields::{Fields, MAX_CLIENT_TEXT};
use crate::plane::Plane;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::sessions::Verdict;

/// Carries out CreateSession, and counts it.
pub async fn create(
    plane: Arc<Plane>,
    request: CreateSessionRequest,
    started: Instant,
) -> Result<CreateSessionResponse> {
    let identified = identify(&plane, request.auth.as_ref()).await;
    match identified {
        Err(refusal) => {
            plane.gate.count_stranger(Rpc::CreateSession, started.elapsed(), false);
            Err(refusal)
        }
        Ok(identity) => {
            let namespace = identity.namespace.clone();
            let outcome = admit(&plane, request, identity).await;
            let runtime = plane.gate.namespaces.runtime(&namespace);
            runtime.series(Rpc::CreateSession).record(started.elapsed(), outcome.is_ok());
            outcome
        }
    }
}

/// Checks a client key; one answer for malformed, unknown, revoked and expired ones.
pub async fn client_identity(plane: &Plane, key: &str) -> Result<ClientIdentity> {
    let invalid = || Error::unauthenticated("CLIENT_KEY_INVALID", "the client key is not valid");
    let presented = secret::parse(SecretKind::ClientKey, key).ok_or_else(invalid)?;
    plane.control.authenticate_client(presented).await.map_err(|error| match error.kind() {
        Kind::Unauthenticated => invalid(),
        _ => error,
    })
}

async fn identify(plane: &Plane, auth: Option<&Auth>) -> Result<ClientIdentity> {
    plane.gate.follow();
    if plane.gate.is_leaving() {
        return Err(cause::draining().retry_after(cause::RETRY));
    }
    match auth {
        Some(Auth::ApiKey(key)) => client_identity(plane, key).await,
        Some(Auth::JwtToken(_)) => {
            Err(Error::unauthenticated("JWT_NOT_CONFIGURED", "this server has no issuer of JWTs for the data plane"))
        }
        Some(Auth::Mtls(_)) => Err(Error::unauthenticated(
            "CLIENT_CERTIFICATE_REQUIRED",
            "the connection has no client certificate, and one in the message alone proves nothing",
        )),
        None => Err(Error::unauthenticated("CREDENTIAL_REQUIRED", "api_key, jwt_token or mtls must be set")),
    }
}

async fn admit(
    plane: &Arc<Plane>,
    request: CreateSessionRequest,
    identity: ClientIdentity,
) -> Result<CreateSessionResponse> {
    let gate = &plane.gate;
    let runtime = gate.namespaces.runtime(&identity.namespace);
    gate.admit(Act::Open, &runtime, Leaving::No, gate.clock.now())?;
    if let Some(wait) = plane.drains.covering(&identity.namespace, &plane.node, &gate.namespaces.snapshot()) {
        return Err(cause::draining().retry_after(wait));
    }
    let mut fields = Fields::new();
    fields.text("client_id", &request.client_id, 0, MAX_CLIENT_TEXT);
    fields.text("client_version", &request.client_version, 0, MAX_CLIENT_TEXT);
    fields.map("metadata", &request.metadata);
    let (config, config_name) = match request.config {
        None => {
            fields.add("config", "config_name or inline_config must be set");
            return Err(fields.finish().err().unwrap_or_else(|| Error::internal("a violation was lost")));
        }
        Some(Wanted::ConfigName(name)) => {
            let name = fields.keep(ConfigName::parse("config_name", &name));
            fields.finish()?;
            let name = name.ok_or_else(|| Error::internal("a violation was lost"))?;
            (named(plane, &name, &identity.namespace)?, Some(name))
        }
        Some(Wanted::InlineConfig(config)) => {
            fields.finish()?;
            (inline(plane, config, &identity).await?, None)
        }
    };
    let route = plane.backends.open(&config, runtime.meter()).await?;
    let wanted = AdmitRequest {
        client_id: request.client_id,
        client_version: request.client_version,
        metadata: request.metadata,
        config: Arc::clone(&config),
        config_name,
        grant: identity.grant,
        credential_id: identity.credential_id,
        node: plane.node.clone(),
    };
    let (record, token) = plane.control.admit_session(wanted).await?;
    let answer = answer(&record, token.into_exposed());
    let session = plane.assemble(record, Ok(route));
    enrol(plane, &session)?;
    tracing::info!(session.id = %session.id(), namespace = %identity.namespace, pattern = %config.pattern, "session created");
    Ok(answer)
}

/// Puts a session into the map. What was decided about it or its namespace between its admission and now holds for it too.
fn enrol(plane: &Arc<Plane>, session: &Arc<Session>) -> Result<()> {
    match plane.gate.sessions.insert(session) {
        Some(Verdict { force: true, reason }) => {
            let cause = EndCause::Terminated(reason);
            plane.cut(session, cause.clone());
            return Err(cause.error());
        }
        Some(Verdict { force: false, reason }) => {
            session.terminate_gently(reason);
            plane.end_when_settled(session, session.termination());
        }
        None => {}
    }
    let node_leaves = plane.gate.is_leaving();
    if node_leaves || plane.drains.covers(session.namespace().name(), &plane.node) {
        session.drain();
    }
    Ok(())
}

fn answer(record: &SessionRecord, session_token: String) -> CreateSessionResponse {
    CreateSessionResponse {
        session_token,
        session_id: record.id.to_string(),
        created_at: Some(timestamp(record.created_at)),
        expires_at: Some(timestamp(record.expires_at)),
        config: Some(config_to_proto(&record.config)),
        supported_features: features(record.config.pattern).iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn named(plane: &Plane, name: &ConfigName, namespace: &NamespaceName) -> Result<Arc<Config>> {
    let snapshot = plane.gate.namespaces.snapshot();
    let revision = snapshot.configs.get(name).ok_or_else(|| Error::not_found(format_args!("config:{name}")))?;
    if revision.config.namespace != *namespace {
        return Err(cause::other_namespace());
    }
    Ok(Arc::clone(&revision.config))
}

/// An inline config is held to the rules of a named one, and to the namespace of its key.
async fn inline(plane: &Plane, config: ClientConfig, identity: &ClientIdentity) -> Result<Arc<Config>> {
    // Before anything else, so that nobody learns which other namespaces exist.
    if NamespaceName::parse("namespace", &config.namespace).is_ok_and(|namespace| namespace != identity.namespace) {
        return Err(cause::other_namespace());
    }
    let snapshot = plane.gate.namespaces.snapshot();
    let config = config_draft(Some(config))
        .validate("inline_config", &plane.backends.catalog(), |name| snapshot.namespaces.contains_key(name))
        .map_err(Error::invalid_fields)?;
    if config.backend.options.contains_key("schema") && !identity.grant.write {
        return Err(cause::not_granted("write"));
    }
    plane.backends.check(&config).await?;
    let runtime = plane.gate.namespaces.runtime(&config.namespace);
    plane.backends.prepare(&config, runtime.meter()).await?;
    Ok(Arc::new(config))
}

/// What a session of `pattern` can do beyond the obvious.
fn features(pattern: AccessPattern) -> &'static [&'static str] {
    match pattern {
        AccessPattern::KeyValue => &["batch", "compare-and-set", "prefix-list", "ttl"],
        AccessPattern::Queue => &["batch", "commit", "consumer-groups", "headers", "partitions", "seek"],
        AccessPattern::PubSub => &["metadata", "queue-groups", "wildcards"],
        AccessPattern::PagedReader => &["count", "cursors", "filters", "sort"],
        AccessPattern::TransactWrite => &["idempotency-keys", "mailbox", "transactions", "upsert"],
    }
}
