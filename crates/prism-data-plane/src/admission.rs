//! How a session comes to be: credential, config, admission by the control plane, route.

use std::sync::Arc;
use std::time::Instant;

use prism_backends::driver::Route;
use prism_core::access::ClientGrant;
use prism_core::config::{AccessPattern, Config};
use prism_core::control::ClientIdentity;
use prism_core::session::{AdmitRequest, ClientBasis, EndReason, SessionRecord, SessionReport};
use prism_core::{ConfigName, Error, Kind, NamespaceName, Result, UnixMillis};
use prism_proto::config::v1::ClientConfig;
use prism_proto::session::v1::create_session_request::{Auth, Config as Wanted};
use prism_proto::session::v1::{CreateSessionRequest, CreateSessionResponse};
use prism_rpc::convert::{config_draft, config_to_proto, timestamp};
use tokio::sync::oneshot;

use crate::cause::{self, EndCause};
use crate::credential::{Origin, Presented};
use crate::decision::{Act, Leaving};
use crate::fields::{Fields, MAX_CLIENT_TEXT};
use crate::namespaces::NamespaceRuntime;
use crate::plane::Plane;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::sessions::Verdict;

/// Carries out CreateSession, and counts it. When nobody waits for the answer any more the session is ended again, as nobody
/// will ever know its token.
pub async fn create(
    plane: Arc<Plane>,
    mut request: CreateSessionRequest,
    origin: Origin,
    started: Instant,
    answer: oneshot::Sender<Result<CreateSessionResponse>>,
) {
    let auth = request.auth.take();
    let outcome = match identify(&plane, auth.as_ref(), request.config.as_ref(), &origin).await {
        Err(refusal) => {
            plane.gate.count_stranger(Rpc::CreateSession, started.elapsed(), false);
            Err(refusal)
        }
        Ok(client) => {
            let runtime = plane.gate.namespaces.runtime(&client.given.namespace);
            let outcome = admit(&plane, request, client, &runtime).await;
            let ok = outcome.is_ok() && !answer.is_closed();
            runtime.series(Rpc::CreateSession).record(started.elapsed(), ok);
            outcome
        }
    };
    let (session, outcome) = match outcome {
        Ok((session, response)) => (Some(session), Ok(response)),
        Err(error) => (None, Err(error)),
    };
    if answer.send(outcome).is_err()
        && let Some(session) = session
    {
        plane.end(&session, EndCause::Closed).await;
    }
}

/// Who opens a session.
struct Client<'a> {
    presented: Presented<'a>,
    basis: ClientBasis,
    ends: Option<UnixMillis>,
    /// Where the session will be, and what it may do there.
    given: ClientGrant,
}

async fn identify<'a>(
    plane: &Plane,
    auth: Option<&'a Auth>,
    wanted: Option<&Wanted>,
    origin: &Origin,
) -> Result<Client<'a>> {
    plane.gate.follow();
    if plane.gate.is_leaving() {
        return Err(cause::draining().retry_after(cause::RETRY));
    }
    let presented = match auth {
        Some(Auth::ApiKey(key)) => Presented::Key(key),
        Some(Auth::JwtToken(token)) => Presented::Jwt(token),
        Some(Auth::Mtls(mtls)) => Presented::Certificate { sent: &mtls.client_cert },
        None => {
            return Err(Error::unauthenticated("CREDENTIAL_REQUIRED", "api_key, jwt_token or mtls must be set"));
        }
    };
    let ClientIdentity { basis, grants, ends } = plane.credentials.identify(presented, origin).await?;
    let namespace = wanted.and_then(|wanted| namespace_of(plane, wanted));
    let given = grants.iter().find(|given| Some(&given.namespace) == namespace.as_ref());
    // Where none is wanted, or one that the credential is not for, the refusal comes with the config.
    let given = given.or(grants.first()).cloned().ok_or_else(|| Error::internal("a client without a namespace"))?;
    Ok(Client { presented, basis, ends, given })
}

/// The namespace of a wanted config, if it has one.
fn namespace_of(plane: &Plane, wanted: &Wanted) -> Option<NamespaceName> {
    match wanted {
        Wanted::ConfigName(name) => {
            let name = ConfigName::parse("config_name", name).ok()?;
            plane.gate.namespaces.snapshot().configs.get(&name).map(|revision| revision.config.namespace.clone())
        }
        Wanted::InlineConfig(config) => NamespaceName::parse("namespace", &config.namespace).ok(),
    }
}

/// The config that a session is to have, and its driver's handle if that can be opened before the admission.
struct Chosen {
    config: Arc<Config>,
    name: Option<ConfigName>,
    /// `None` = an inline config, which needs to be prepared first, and that is an effect.
    route: Option<Route>,
}

async fn admit(
    plane: &Arc<Plane>,
    request: CreateSessionRequest,
    client: Client<'_>,
    runtime: &NamespaceRuntime,
) -> Result<(Arc<Session>, CreateSessionResponse)> {
    let gate = &plane.gate;
    gate.admit(Act::Open, runtime, Leaving::No, gate.clock.now())?;
    if let Some(wait) = plane.drains.covering(runtime.name(), &plane.node, &gate.namespaces.snapshot()) {
        return Err(cause::draining().retry_after(wait));
    }
    // Held until the session is in the map.
    let _place = gate.sessions.reserve(gate.limits.max_sessions).ok_or_else(|| too_many(gate.limits.max_sessions))?;
    let chosen = choose(plane, &request, &client.given, runtime).await?;
    let wanted = AdmitRequest {
        client_id: request.client_id,
        client_version: request.client_version,
        metadata: request.metadata,
        config: Arc::clone(&chosen.config),
        config_name: chosen.name,
        grant: client.given.grant,
        basis: client.basis,
        credential_ends: client.ends,
        key: client.presented.key(),
        node: plane.node.clone(),
    };
    let (record, token) = plane.control.admit_session(wanted).await.map_err(|error| match error.kind() {
        // It fell between its check and the admission.
        Kind::Unauthenticated => client.presented.invalid(),
        _ => error,
    })?;
    let route = match chosen.route {
        Some(route) => Ok(route),
        None => prepare(plane, &chosen.config, runtime).await,
    };
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            let last = SessionReport { id: record.id, last_activity: record.last_activity, figures: record.figures };
            plane.save_end(last, EndReason::Closed).await;
            return Err(error);
        }
    };
    let answer = answer(&record, token.into_exposed());
    let session = plane.assemble(record, Ok(route));
    enrol(plane, &session).await?;
    let (namespace, pattern) = (runtime.name(), session.config().pattern);
    tracing::info!(session.id = %session.id(), %namespace, %pattern, "session created");
    Ok((session, answer))
}

/// RESOURCE_EXHAUSTED: the node has no room for one more session.
pub fn too_many(most: usize) -> Error {
    let message = format!("{most} sessions are live, the most that this node takes");
    Error::new(Kind::ResourceExhausted, "TOO_MANY_SESSIONS", message)
}

/// Checks the fields of a request and finds its config; without any effect.
async fn choose(
    plane: &Plane,
    request: &CreateSessionRequest,
    given: &ClientGrant,
    runtime: &NamespaceRuntime,
) -> Result<Chosen> {
    let mut fields = Fields::new();
    fields.text("client_id", &request.client_id, 0, MAX_CLIENT_TEXT);
    fields.text("client_version", &request.client_version, 0, MAX_CLIENT_TEXT);
    fields.map("metadata", &request.metadata);
    match &request.config {
        None => {
            fields.add("config", "config_name or inline_config must be set");
            Err(fields.finish().err().unwrap_or_else(|| Error::internal("a violation was lost")))
        }
        Some(Wanted::ConfigName(name)) => {
            let name = fields.keep(ConfigName::parse("config_name", name));
            fields.finish()?;
            let name = name.ok_or_else(|| Error::internal("a violation was lost"))?;
            let config = named(plane, &name, &given.namespace)?;
            let route = plane.backends.open(&config, runtime.meter()).await?;
            Ok(Chosen { config, name: Some(name), route: Some(route) })
        }
        Some(Wanted::InlineConfig(config)) => {
            let config = inline(plane, fields, config.clone(), given, runtime).await?;
            Ok(Chosen { config, name: None, route: None })
        }
    }
}

/// Makes what an inline config needs, unless that has been forbidden meanwhile, and opens its route.
async fn prepare(plane: &Plane, config: &Config, runtime: &NamespaceRuntime) -> Result<Route> {
    if changes_tables(config) {
        plane.gate.follow();
        plane.gate.admit(Act::Write, runtime, Leaving::No, plane.gate.clock.now())?;
    }
    plane.backends.prepare(config, runtime.meter()).await?;
    plane.backends.open(config, runtime.meter()).await
}

/// Puts a session into the map. What was decided about it or its namespace between its admission and now holds for it too.
async fn enrol(plane: &Arc<Plane>, session: &Arc<Session>) -> Result<()> {
    let verdict = plane.gate.sessions.insert(session);
    if plane.gate.is_revoked() {
        plane.let_go(session, EndCause::NodeRevoked);
        return Err(EndCause::NodeRevoked.error());
    }
    // After it is in the map: a deletion that is published later finds it there.
    plane.gate.follow();
    let namespace = session.namespace().name();
    if !plane.gate.namespaces.snapshot().namespaces.contains_key(namespace) {
        plane.end(session, EndCause::NamespaceDeleted).await;
        return Err(EndCause::NamespaceDeleted.error());
    }
    if !plane.gate.upholds(session) {
        plane.end(session, EndCause::CredentialRevoked).await;
        return Err(EndCause::CredentialRevoked.error());
    }
    match verdict {
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
    if plane.gate.is_leaving() || plane.drains.covers(namespace, &plane.node) {
        session.drain();
        // The drain may have been over before its mark was set.
        plane.undrain(session);
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

/// An inline config is held to the rules of a named one, and to the namespace of its credential. What is wrong with it joins what
/// `fields` has found.
async fn inline(
    plane: &Plane,
    mut fields: Fields,
    config: ClientConfig,
    given: &ClientGrant,
    runtime: &NamespaceRuntime,
) -> Result<Arc<Config>> {
    // Before anything else, so that nobody learns which other namespaces exist.
    if NamespaceName::parse("namespace", &config.namespace).is_ok_and(|namespace| namespace != given.namespace) {
        return Err(cause::other_namespace());
    }
    let snapshot = plane.gate.namespaces.snapshot();
    let proven = config_draft(Some(config))
        .validate("inline_config", &plane.backends.catalog(), |name| snapshot.namespaces.contains_key(name))
        .map_err(Error::invalid_fields);
    let config = fields.keep(proven);
    fields.finish()?;
    let config = config.ok_or_else(|| Error::internal("a violation was lost"))?;
    if changes_tables(&config) {
        plane.gate.admit(Act::Write, runtime, Leaving::No, plane.gate.clock.now())?;
        if !given.grant.write {
            return Err(cause::not_granted("write"));
        }
    }
    plane.backends.check(&config).await?;
    Ok(Arc::new(config))
}

/// Whether preparing `config` writes to its namespace.
fn changes_tables(config: &Config) -> bool {
    config.backend.options.contains_key("schema")
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
