//! The gate of architecture law 3: every call on data passes it and gets a [`Permit`], or a refusal. No lock is held and nothing
//! is awaited on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prism_backends::driver::Route;
use prism_core::control::Maintenance;
use prism_core::error::QuotaViolation;
use prism_core::limits::{Limits, SessionPolicy};
use prism_core::secret::{self, SecretKind, SecretProof};
use prism_core::session::ClientBasis;
use prism_core::{Clock, Error, Kind, Result, UnixMillis};
use prism_identity::ClientTrust;
use prism_rpc::{Metrics, Series};
use tonic::metadata::MetadataMap;

use crate::cause::{self, EndCause};
use crate::decision::{self, Act, Leaving, Refusal, State};
use crate::namespaces::{NamespaceRuntime, Namespaces, Policy};
use crate::plane::Plane;
use crate::rpc::{COUNT, Method, Methods, Needs, Rpc};
use crate::session::Session;
use crate::sessions::Sessions;

/// Header that may carry the session token.
pub const TOKEN_HEADER: &str = "x-session-token";

/// The gate.
pub struct Gate {
    /// The sessions of this node.
    pub sessions: Sessions,
    /// The namespaces of this node.
    pub namespaces: Namespaces,
    /// Where the time comes from.
    pub clock: Clock,
    /// Life of sessions.
    pub policy: SessionPolicy,
    /// Bounds.
    pub limits: Limits,
    methods: Methods,
    leaving: AtomicBool,
    revoked: AtomicBool,
    metrics: Metrics,
    /// Figures of calls without a session.
    strangers: [OnceLock<Arc<Series>>; COUNT],
    /// Whose client certificates are believed; `None` = the node has no TLS.
    trust: Option<Arc<ArcSwap<ClientTrust>>>,
    /// Who asks about sessions that are not here.
    plane: OnceLock<Weak<Plane>>,
}

impl Gate {
    /// A gate over `namespaces`, without sessions.
    pub fn new(
        methods: Methods,
        namespaces: Namespaces,
        metrics: Metrics,
        clock: Clock,
        policy: SessionPolicy,
        limits: Limits,
    ) -> Self {
        Self {
            sessions: Sessions::default(),
            namespaces,
            clock,
            policy,
            limits,
            methods,
            leaving: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            metrics,
            strangers: [const { OnceLock::new() }; COUNT],
            trust: None,
            plane: OnceLock::new(),
        }
    }

    /// Has `plane` ask about sessions that are not here.
    pub fn belongs_to(&self, plane: &Arc<Plane>) {
        let first = self.plane.set(Arc::downgrade(plane));
        debug_assert!(first.is_ok(), "a gate has one plane");
    }

    /// Who asks about sessions that are not here.
    pub fn plane(&self) -> Option<Arc<Plane>> {
        self.plane.get().and_then(Weak::upgrade)
    }

    /// Believes client certificates that `trust` vouches for.
    pub fn trusting(self, trust: Option<Arc<ArcSwap<ClientTrust>>>) -> Self {
        Self { trust, ..self }
    }

    /// Whose client certificates are believed now.
    pub fn client_trust(&self) -> Option<Arc<ClientTrust>> {
        self.trust.as_ref().map(|trust| trust.load_full())
    }

    /// Lets nothing new in: the node shuts down.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Whether the node shuts down.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// The node is revoked, or is not any more.
    pub fn set_revoked(&self, revoked: bool) {
        self.revoked.store(revoked, Ordering::SeqCst);
    }

    /// Whether the node is revoked: nothing may be in the map of sessions.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    /// The rule of `rpc`.
    pub fn method(&self, rpc: Rpc) -> Method {
        self.methods.of(rpc)
    }

    /// Counts a call that has no session.
    pub fn count_stranger(&self, rpc: Rpc, latency: Duration, ok: bool) {
        self.strangers[rpc as usize].get_or_init(|| self.metrics.operation("", rpc.label())).record(latency, ok);
    }

    /// Checks everything, in the order of law 3, and counts the call; a refused call is counted here.
    ///
    /// A call whose session is not here is neither counted nor refused yet: see [`Gate::let_in`].
    pub fn enter(&self, field: &str, metadata: &MetadataMap, rpc: Rpc) -> Result<Permit, Turned> {
        let started = Instant::now();
        self.follow();
        let (now, method) = (self.clock.now(), self.methods.of(rpc));
        let session = match self.session(field, metadata, now) {
            Ok(session) => session,
            Err(Turned::Unknown(token)) if !self.is_leaving() => return Err(Turned::Unknown(token)),
            Err(turned) => {
                self.count_stranger(rpc, started.elapsed(), false);
                // At the end of the process its sessions are not here any more, but their tokens are good.
                let leaving = self.is_leaving().then(|| Turned::Away(cause::draining().retry_after(cause::RETRY)));
                return Err(leaving.unwrap_or(turned));
            }
        };
        session.heard(now);
        let mut permit = Permit::new(session, rpc, method, started);
        self.check(&mut permit, method, now, started)?;
        permit.stage = Stage::Admitted;
        Ok(permit)
    }

    /// Takes over what the control plane has published since the last call.
    pub fn follow(&self) {
        if self.namespaces.is_behind() {
            let changed = self.namespaces.refresh();
            if !changed.is_empty() {
                self.sessions.for_each(|session| {
                    if changed.contains(session.namespace().name()) {
                        session.bump();
                    }
                });
            }
        }
    }

    fn session(&self, field: &str, metadata: &MetadataMap, now: UnixMillis) -> Result<Arc<Session>, Turned> {
        let token = presented(field, metadata)?;
        let presented = secret::parse(SecretKind::Session, token).ok_or_else(cause::token_invalid)?;
        let session = self.sessions.find(&presented).ok_or_else(|| Turned::Unknown(presented.proof()))?;
        // The sweeper ends it soon; its token is dead from now on.
        if session.is_over(&self.policy, now) {
            return Err(cause::token_invalid().into());
        }
        Ok(session)
    }

    fn check(&self, permit: &mut Permit, method: Method, now: UnixMillis, started: Instant) -> Result<()> {
        let session = Arc::clone(&permit.session);
        // It may have ended between the lookup and the moment from which the permit counts.
        if session.has_ended() || !self.upholds(&session) {
            return Err(cause::token_invalid());
        }
        let namespace = session.namespace();
        self.admit(method.act, namespace, permit.leaving, now)?;
        if let Some(pattern) = method.pattern
            && pattern != session.config().pattern
        {
            return Err(Error::precondition(
                "WRONG_PATTERN",
                format!("the session is for {}, not for {pattern}", session.config().pattern),
            ));
        }
        let grant = session.record().grant;
        match method.needs {
            Needs::Read if !grant.read => return Err(cause::not_granted("read")),
            Needs::Write if !grant.write => return Err(cause::not_granted("write")),
            _ => {}
        }
        if method.act.is_operation() {
            take_token(&session, started)?;
        }
        if method.streams {
            permit.streaming = session.open_stream(self.limits.max_streams_per_session);
            if !permit.streaming {
                let most = self.limits.max_streams_per_session;
                return Err(Error::new(
                    Kind::ResourceExhausted,
                    "TOO_MANY_STREAMS",
                    format!("the session has {most} streams open, the most that it may have"),
                ));
            }
        }
        Ok(())
    }

    /// Checks what depends on states only: life cycle, maintenance, namespace status, and the session's own state.
    pub fn admit(&self, act: Act, namespace: &NamespaceRuntime, leaving: Leaving, now: UnixMillis) -> Result<()> {
        let policy = namespace.policy();
        let (freeze, told) = policy.freeze(now);
        let state = State { node_leaving: self.is_leaving(), freeze, namespace: policy.status, leaving };
        match decision::refuse(act, state) {
            None => Ok(()),
            Some(refusal) => Err(refused(refusal, namespace, told.map(AsRef::as_ref), now)),
        }
    }

    /// Whether the credential behind `session` still allows all that the session may do. It is looked at once after each
    /// change of keys, bindings, revoked certificates or trusted CAs, by the first call of the session or by [`crate::revocation`]; from the
    /// moment such a change is taken over, nothing starts under a session that it takes the ground from.
    pub fn upholds(&self, session: &Session) -> bool {
        let generation = self.namespaces.access_generation();
        session.is_upheld_at(generation) || self.looks_upheld(session, generation)
    }

    /// Whether the CA that vouched for the certificate behind a session is still trusted; true for every other basis.
    fn trusts(&self, basis: &ClientBasis) -> bool {
        match (&basis.authority, &self.trust) {
            (None, _) => true,
            (Some(authority), Some(trust)) => trust.load().trusts(authority),
            // This node cannot check certificates any more: it was started without TLS.
            (Some(_), None) => false,
        }
    }

    fn looks_upheld(&self, session: &Session, generation: u64) -> bool {
        let (snapshot, record) = (self.namespaces.snapshot(), session.record());
        let namespace = session.namespace().name();
        if !snapshot.namespaces.contains_key(namespace) {
            // Its keys and bindings went with it. The session is about to be ended with that reason, and refused meanwhile.
            return true;
        }
        let trusted = self.trusts(&record.basis);
        let upheld =
            trusted && snapshot.client_access.upholds(&record.basis, namespace, record.grant, self.clock.now());
        if upheld {
            session.uphold_at(generation);
        }
        upheld
    }

    /// When the credential behind `session` ends, and the session with it.
    pub fn credential_ends(&self, session: &Session) -> Option<UnixMillis> {
        let (snapshot, record) = (self.namespaces.snapshot(), session.record());
        if record.basis.certificate.is_some() {
            // Nobody keeps the certificate; the end that the admission gave lies within its time.
            return Some(record.expires_at);
        }
        let key = snapshot.client_access.keys.get(&record.basis.credential_id);
        key.filter(|_| record.basis.subjects.is_empty()).and_then(|key| key.expires_at)
    }

    /// Why a stream of `act` must end now; `None` while it may go on. A session on its way out is not a reason here: what that
    /// means depends on the kind of stream.
    pub fn stream_end(&self, act: Act, session: &Session) -> Option<Error> {
        if let Some(error) = session.end_error() {
            return Some(error);
        }
        let policy = session.namespace().policy();
        // Sessions of a deleted namespace are about to be ended with the better reason.
        if !policy.exists {
            return None;
        }
        if !self.upholds(session) {
            return Some(EndCause::CredentialRevoked.error());
        }
        self.stream_frozen(act, session, &policy)
    }

    fn stream_frozen(&self, act: Act, session: &Session, policy: &Policy) -> Option<Error> {
        let now = self.clock.now();
        let (freeze, told) = policy.freeze(now);
        let state = State { node_leaving: false, freeze, namespace: policy.status, leaving: Leaving::No };
        let refusal = decision::refuse(act, state)?;
        Some(refused(refusal, session.namespace(), told.map(AsRef::as_ref), now))
    }
}

fn refused(refusal: Refusal, namespace: &NamespaceRuntime, told: Option<&Maintenance>, now: UnixMillis) -> Error {
    match (refusal, told) {
        (Refusal::Maintenance, Some(maintenance)) => cause::maintenance(maintenance, now),
        (Refusal::Suspended, _) => cause::suspended(namespace.name()),
        (Refusal::ReadOnly, _) => cause::read_only(namespace.name()),
        (Refusal::Closing, _) => cause::closing(),
        (Refusal::NodeLeaving | Refusal::Draining | Refusal::Maintenance, _) => {
            cause::draining().retry_after(cause::RETRY)
        }
    }
}

/// Takes one operation from the namespace's `max_rps` and the config's rate limit.
pub fn take_token(session: &Session, now: Instant) -> Result<()> {
    let namespace = session.namespace();
    if let Err(wait) = namespace.take(now) {
        let limit = namespace.policy().quota.max_rps;
        let subject = format!("namespace:{}", namespace.name());
        return Err(Error::quota(QuotaViolation { subject, quota: "max_rps", limit, usage: limit }).retry_after(wait));
    }
    if let Some(Err(wait)) = session.rate().map(|rate| rate.take(now)) {
        let limit = session.config().rate_limit.map_or(0, |limit| i64::from(limit.requests_per_second));
        let subject = format!("config:{}", session.config().name);
        return Err(
            Error::quota(QuotaViolation { subject, quota: "rate_limit", limit, usage: limit }).retry_after(wait)
        );
    }
    Ok(())
}

/// The token of a call, from its field or its header; INVALID_ARGUMENT when both are there and differ.
pub fn presented<'a>(field: &'a str, metadata: &'a MetadataMap) -> Result<&'a str> {
    let Some(header) = metadata.get(TOKEN_HEADER) else {
        return Ok(field);
    };
    // What is not text cannot be a token, and must not pass as "absent" either.
    let header = header.to_str().unwrap_or("\u{fffd}");
    match (field, header) {
        ("", _) => Ok(header),
        (_, "") => Ok(field),
        _ if field == header => Ok(field),
        _ => Err(Error::invalid("session_token", "differs from the header x-session-token")),
    }
}

/// Why a call is not let in.
pub enum Turned {
    /// It is refused.
    Away(Error),
    /// There is no live session with this token here.
    Unknown(SecretProof),
}

impl From<Error> for Turned {
    fn from(error: Error) -> Self {
        Self::Away(error)
    }
}

/// The right to carry out one call. Counts the call as running until it is dropped, and counts it in the figures then; a permit
/// that is dropped without [`Permit::succeeded`] counts as an error.
pub struct Permit {
    session: Arc<Session>,
    rpc: Rpc,
    act: Act,
    leaving: Leaving,
    started: Instant,
    latency: Option<Duration>,
    running: bool,
    streaming: bool,
    stage: Stage,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// At the gate.
    Checked,
    /// Past the gate: what comes of it is the backend's.
    Admitted,
    /// Done, with OK.
    Succeeded,
}

impl Permit {
    fn new(session: Arc<Session>, rpc: Rpc, method: Method, started: Instant) -> Self {
        let running = method.act.is_operation();
        let leaving = if running { session.begin() } else { session.leaving() };
        Self {
            session,
            rpc,
            act: method.act,
            leaving,
            started,
            latency: None,
            running,
            streaming: false,
            stage: Stage::Checked,
        }
    }

    /// The session.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The driver's handle.
    pub fn route(&self) -> Result<&Route> {
        self.session.route()
    }

    /// What the call is to the gate.
    pub fn act(&self) -> Act {
        self.act
    }

    /// Which RPC it is for.
    pub fn rpc(&self) -> Rpc {
        self.rpc
    }

    /// When the call came.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The stream is open: its latency is that until here. With `idle` it does not count as running from now on.
    pub fn opened(&mut self, idle: bool) {
        self.latency = Some(self.started.elapsed());
        if idle && std::mem::take(&mut self.running) {
            self.session.finish();
        }
    }

    /// The call ends with OK.
    pub fn succeeded(&mut self) {
        self.stage = Stage::Succeeded;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.streaming {
            self.session.close_stream();
        }
        if self.running {
            self.session.finish();
        }
        let latency = self.latency.unwrap_or_else(|| self.started.elapsed());
        let ok = self.stage == Stage::Succeeded;
        self.session.namespace().series(self.rpc).record(latency, ok);
        if self.stage != Stage::Checked && self.act.is_operation() {
            self.session.backend().record(latency, ok);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: &[u8]) -> MetadataMap {
        let mut headers = http::HeaderMap::new();
        headers.insert(TOKEN_HEADER, http::HeaderValue::from_bytes(value).unwrap());
        MetadataMap::from_headers(headers)
    }

    #[test]
    fn a_token_comes_from_field_or_header_and_not_from_two_minds() {
        let none = MetadataMap::new();
        assert_eq!(presented("", &none).unwrap(), "");
        assert_eq!(presented("a", &none).unwrap(), "a");
        assert_eq!(presented("", &metadata(b"a")).unwrap(), "a");
        assert_eq!(presented("a", &metadata(b"a")).unwrap(), "a");
        assert_eq!(presented("a", &metadata(b"")).unwrap(), "a");
        let refused = presented("a", &metadata(b"b")).unwrap_err();
        assert_eq!(refused.fields()[0].field, "session_token");
        assert!(presented("a", &metadata("ä".as_bytes())).is_err());
        assert!(secret::parse(SecretKind::Session, presented("", &metadata("ä".as_bytes())).unwrap()).is_none());
    }
}
