//! Who calls: API keys, access tokens of configured issuers, and client certificates all yield one [`Identity`]. What it may do
//! is looked up at each use, in [`prism_store::Credential`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use prism_core::access::RoleGrant;
use prism_core::permission::{Grant, Reach};
use prism_core::secret::{self, SecretKind};
use prism_core::subject::Subject;
use prism_core::{Error, Kind, Result, UnixMillis};
use prism_identity::{
    CertificateKind, ClientTrust, FailureLimiter, Issuers, MAX_TOKEN_BYTES, Penalty, Plane, ProvenToken, TokenRefused,
    WaitPlace,
};
use prism_rpc::tls::CertificateFacts;
use prism_store::{ApiKeyRow, Credential, OPERATOR_ON_THE_BOX, Store};
use rustls_pki_types::CertificateDer;

use crate::door::reach_of;

/// Longest `x-admin-user`, in bytes.
const MAX_USER_BYTES: usize = 256;
/// Permission of an RPC that needs no credential.
const OPEN: &str = "none";
/// Permission of an RPC that is for a node's own certificate.
const NODE_ITSELF: &str = "node:self";
/// The role of a controller's certificate (contract §9 "certificates of the CA").
const CONTROLLER_ROLE: &str = "admin";

/// A caller whose credential proved valid. Only an [`Authenticator`] makes one, or the server for itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who acts, for the audit log.
    pub actor: String,
    /// `api_key`, `oidc` or `mtls`; `none` for the server itself.
    pub auth_method: &'static str,
    /// Public id of the credential.
    pub credential_id: String,
    /// What its rights stand on.
    pub credential: Credential,
    // Private, so that an identity is made here only.
    expires_at: Option<UnixMillis>,
    /// Id of the node of the data plane that it is: nothing here is for it, not even what any credential may, but what is for
    /// nodes alone.
    node: Option<String>,
}

impl Identity {
    /// The server itself, at a moment when no operator can be asked (`--dev`).
    pub fn server(actor: &str) -> Self {
        Self {
            actor: actor.to_owned(),
            auth_method: "none",
            credential_id: String::new(),
            credential: Credential::Server,
            expires_at: None,
            node: None,
        }
    }

    /// A caller who presents no credential, to an RPC that needs none.
    pub(crate) fn stranger() -> Self {
        Self {
            actor: "anonymous".to_owned(),
            auth_method: "none",
            credential_id: String::new(),
            credential: Credential::Stranger,
            expires_at: None,
            node: None,
        }
    }

    /// Whether it is nobody in particular.
    pub(crate) fn is_stranger(&self) -> bool {
        matches!(self.credential, Credential::Stranger)
    }

    /// The node that it is, and the fingerprint of the certificate that says so.
    pub(crate) fn node(&self) -> Option<(&str, &str)> {
        match (&self.node, &self.credential) {
            (Some(node), Credential::Vouched { certificate: Some(certificate), .. }) => Some((node, certificate)),
            _ => None,
        }
    }

    /// When the credential ends; `None` = it does not.
    pub fn expires_at(&self) -> Option<UnixMillis> {
        self.expires_at
    }

    /// Where it may do what asks for `permission`, as the descriptors spell it, while it holds `grants`.
    pub fn reach(&self, grants: &[Grant], permission: &str) -> Result<Reach> {
        let of = |may: bool| if may { Reach::Installation } else { Reach::Nowhere };
        match permission {
            OPEN => Ok(Reach::Installation),
            NODE_ITSELF => Ok(of(self.node.is_some())),
            _ if self.node.is_some() || self.is_stranger() => Ok(Reach::Nowhere),
            _ => reach_of(grants, permission),
        }
    }

    /// Whom bindings may name to reach this caller.
    pub fn subjects(&self) -> &[Subject] {
        match &self.credential {
            Credential::Vouched { subjects, .. } => subjects,
            Credential::Server | Credential::Stranger | Credential::ApiKey { .. } => &[],
        }
    }
}

/// The credentials that a call presents, as it presents them.
#[derive(Clone, Debug, Default)]
pub struct Presented {
    /// Values of `authorization`.
    pub authorization: Vec<String>,
    /// Values of `x-admin-token`.
    pub admin_token: Vec<String>,
    /// Values of `x-admin-user`.
    pub admin_user: Vec<String>,
    /// Certificates of the connection, leaf first; whoever presents them has the leaf's key.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Address of the caller.
    pub source: Option<IpAddr>,
}

/// A refused credential.
#[derive(Debug)]
pub struct Refused {
    /// What the caller is told.
    pub error: Error,
    /// Public id of the credential, where it proved valid but did not fit.
    pub credential_id: String,
    /// How long the caller has to wait for the answer.
    pub wait: Option<Wait>,
}

/// A refusal that is answered later.
#[derive(Debug)]
pub struct Wait {
    delay: std::time::Duration,
    _place: WaitPlace,
}

impl Wait {
    /// Waits for the time to answer.
    pub async fn over(self) {
        tokio::time::sleep(self.delay).await;
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, credential_id: String::new(), wait: None }
    }
}

/// Why a credential is no proof, for the server's log; the caller learns nothing of it.
struct Unproven {
    why: String,
    /// The public id that was presented, whether there is such a key or not.
    key: Option<String>,
}

impl Unproven {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), key: None }
    }
}

/// Finds out who calls.
pub struct Authenticator {
    store: Arc<Store>,
    issuers: Issuers,
    trust: Arc<ArcSwap<ClientTrust>>,
    failures: FailureLimiter,
}

impl Authenticator {
    /// Believes keys in `store`, tokens of `issuers`, and certificates that `trust` vouches for. `free` failed credentials of one
    /// source or key are answered at once.
    pub fn new(store: Arc<Store>, issuers: Issuers, trust: Arc<ArcSwap<ClientTrust>>, free: u32) -> Self {
        Self { store, issuers, trust, failures: FailureLimiter::new(free) }
    }

    /// The caller. A token in a header goes before the certificate of the connection.
    ///
    /// UNAUTHENTICATED: `CREDENTIAL_MISSING`, `CREDENTIAL_CONFLICT`, `ADMIN_USER_INVALID`, `ADMIN_USER_MISMATCH`, and
    /// `CREDENTIAL_INVALID` for everything unknown, wrong, expired, revoked and foreign alike. Failures have a growing price:
    /// the answer waits, or is RESOURCE_EXHAUSTED `TOO_MANY_FAILURES`. UNAVAILABLE `ISSUER_UNAVAILABLE` when the keys of a
    /// token's issuer were never reached.
    pub async fn authenticate(&self, presented: &Presented) -> Result<Identity, Refused> {
        let token = the_token(presented)?;
        let proven = match token {
            Some(token) if token.len() > MAX_TOKEN_BYTES => {
                // How long it is, its sender knows.
                let message = format!("the admin credential is not valid: it has more than {MAX_TOKEN_BYTES} bytes");
                let mut refused = self.refuse(presented, &Unproven::new("it is too long"));
                if refused.error.kind() == Kind::Unauthenticated {
                    refused.error = refused.error.with_message(message);
                }
                return Err(refused);
            }
            Some(token) if is_jwt(token) => self.access_token(token).await?,
            Some(token) => self.api_key(token, presented)?,
            None if presented.certificates.is_empty() => return Err(missing().into()),
            None => self.certificate(presented),
        };
        let identity = proven.map_err(|unproven| self.refuse(presented, &unproven))?;
        let named = named_user(presented)
            .map_err(|error| Refused { credential_id: identity.credential_id.clone(), ..error.into() })?;
        if named.is_some_and(|named| identity.auth_method != "api_key" && named != identity.actor) {
            return Err(mismatch(&identity.credential_id));
        }
        Ok(identity)
    }

    /// The caller of an RPC that asks for `permission`, as the descriptors spell it. One that needs no credential looks at none;
    /// one that is for nodes looks at the certificate of the connection only.
    pub(crate) async fn authenticate_for(&self, permission: &str, presented: &Presented) -> Result<Identity, Refused> {
        match permission {
            OPEN => Ok(Identity::stranger()),
            NODE_ITSELF if presented.certificates.is_empty() => Err(no_certificate().into()),
            NODE_ITSELF => self.certificate(presented).map_err(|unproven| self.refuse(presented, &unproven)),
            _ => self.authenticate(presented).await,
        }
    }

    /// The node whose own certificate, valid or ended by now, was presented and is revoked. Its owner has proven in the handshake
    /// that it is his.
    pub(crate) fn revoked_node(&self, presented: &Presented) -> Option<String> {
        let leaf = presented.certificates.first()?;
        let facts = CertificateFacts::of(leaf).ok()?;
        let at = self.store.clock().now().min(UnixMillis(facts.expires_at.0.saturating_sub(1)));
        let found = self.trust.load().identify(&presented.certificates, at).ok()?;
        let is_revoked = self.store.access().revoked_certificates.contains(&found.fingerprint);
        (found.kind == CertificateKind::Node && is_revoked).then_some(found.name)
    }

    fn refuse(&self, presented: &Presented, unproven: &Unproven) -> Refused {
        tracing::debug!(source = ?presented.source, why = unproven.why, "an admin credential was refused");
        let error = Error::unauthenticated("CREDENTIAL_INVALID", "the admin credential is not valid");
        self.failed(error, presented.source, unproven.key.as_deref())
    }

    /// Counts a failure of `source` and of `key`, the public id that was presented; `error` is what the caller is told, now or
    /// later.
    pub(crate) fn failed(&self, error: Error, source: Option<IpAddr>, key: Option<&str>) -> Refused {
        let Some(source) = source else { return error.into() };
        match self.failures.failed(source, key, Instant::now()) {
            Penalty::None => error.into(),
            Penalty::Wait(delay, place) => Refused { wait: Some(Wait { delay, _place: place }), ..error.into() },
            Penalty::Refuse { retry_after } => too_many_failures(retry_after).into(),
        }
    }

    fn api_key(&self, token: &str, presented: &Presented) -> Result<Result<Identity, Unproven>, Refused> {
        let Some(secret) = secret::parse(SecretKind::AdminKey, token) else {
            return Ok(Err(Unproven::new("it has not the form of an admin key")));
        };
        let Some((key, credential)) = self.store.authenticate(&secret) else {
            return Ok(Err(Unproven {
                why: "the key is unknown, wrong, expired or revoked".to_owned(),
                key: Some(secret.id.to_string()),
            }));
        };
        let actor = actor_of_key(presented, &key)
            .map_err(|error| Refused { credential_id: key.id.to_string(), ..error.into() })?;
        Ok(Ok(Identity {
            actor,
            auth_method: "api_key",
            credential_id: key.id.to_string(),
            credential,
            expires_at: key.life.expires_at,
            node: None,
        }))
    }

    async fn access_token(&self, token: &str) -> Result<Result<Identity, Unproven>, Refused> {
        match self.issuers.verify(Plane::Admin, token).await {
            Ok(ProvenToken { actor, subjects, roles, credential_id, expires_at }) => {
                let roles = roles.into_iter().map(|(role, namespace)| RoleGrant { role, namespace }).collect();
                Ok(vouched(actor, "oidc", credential_id, (subjects, roles, None), expires_at))
            }
            Err(TokenRefused::Invalid(why)) => Ok(Err(Unproven::new(why))),
            Err(TokenRefused::Unavailable(issuer)) => {
                tracing::warn!(issuer, "a token cannot be checked: its issuer's keys were never reached");
                let message = "the keys of the token's issuer cannot be fetched now; retry, or use an admin key";
                Err(Error::unavailable("ISSUER_UNAVAILABLE", message).into())
            }
        }
    }

    fn certificate(&self, presented: &Presented) -> Result<Identity, Unproven> {
        let now = self.store.clock().now();
        let found = self.trust.load().identify(&presented.certificates, now);
        let found = found.map_err(|refused| Unproven::new(refused.0))?;
        let access = self.store.access();
        if access.revoked_certificates.contains(&found.fingerprint) {
            return Err(Unproven::new("the certificate is revoked"));
        }
        let node = (found.kind == CertificateKind::Node).then(|| found.name.clone());
        let (actor, roles) = match found.kind {
            CertificateKind::User | CertificateKind::External => (found.name, Vec::new()),
            CertificateKind::Controller => {
                (found.identity, vec![RoleGrant { role: CONTROLLER_ROLE.to_owned(), namespace: None }])
            }
            CertificateKind::Node => (found.identity, Vec::new()),
            CertificateKind::Client => {
                return Err(Unproven::new("the certificate is not for the admin plane"));
            }
        };
        let standing = (found.subjects, roles, Some(found.fingerprint));
        let identity = vouched(actor, "mtls", found.credential_id, standing, found.expires_at)?;
        Ok(Identity { node, ..identity })
    }
}

fn vouched(
    actor: String,
    auth_method: &'static str,
    credential_id: String,
    (subjects, roles, certificate): (Vec<Subject>, Vec<RoleGrant>, Option<String>),
    ends: UnixMillis,
) -> Result<Identity, Unproven> {
    if is_reserved(&actor) {
        return Err(Unproven::new("it names an actor that Prism gives itself"));
    }
    let credential = Credential::Vouched { subjects, roles, certificate, ends };
    Ok(Identity { actor, auth_method, credential_id, credential, expires_at: Some(ends), node: None })
}

/// Keys of Prism have a prefix and no dots.
fn is_jwt(token: &str) -> bool {
    token.contains('.') || token.starts_with("eyJ")
}

fn missing() -> Error {
    Error::unauthenticated(
        "CREDENTIAL_MISSING",
        "the admin plane needs a credential: authorization: Bearer with an admin key (prx_…) or an access token, x-admin-token: \
         prx_…, or a client certificate",
    )
}

fn no_certificate() -> Error {
    let message = "this is for a node: it needs the node's certificate in the TLS handshake, and nothing else will do";
    Error::unauthenticated("CREDENTIAL_MISSING", message)
}

fn too_many_failures(retry_after: std::time::Duration) -> Error {
    let message = "too many credentials of this source or key failed; retry later";
    Error::new(Kind::ResourceExhausted, "TOO_MANY_FAILURES", message).retry_after(retry_after)
}

fn mismatch(credential_id: &str) -> Refused {
    let message = "x-admin-user is not the person this credential belongs to";
    let error = Error::unauthenticated("ADMIN_USER_MISMATCH", message);
    Refused { credential_id: credential_id.to_owned(), ..error.into() }
}

fn the_token(presented: &Presented) -> Result<Option<&str>> {
    let mut bearer = presented.authorization.iter().map(|value| {
        value
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map_or("", |(_, token)| token.trim())
    });
    let mut all = presented.admin_token.iter().map(String::as_str);
    let Some(first) = bearer.next().or_else(|| all.next()) else { return Ok(None) };
    if bearer.chain(all).any(|other| other != first) {
        return Err(Error::unauthenticated(
            "CREDENTIAL_CONFLICT",
            "the call presents several different credentials; present one",
        ));
    }
    Ok(Some(first))
}

fn named_user(presented: &Presented) -> Result<Option<&str>> {
    match presented.admin_user.as_slice() {
        [] => Ok(None),
        [one] if one.is_empty() => Ok(None),
        [one] if one.len() <= MAX_USER_BYTES && is_readable(one) && !is_reserved(one) => Ok(Some(one.as_str())),
        _ => Err(Error::unauthenticated(
            "ADMIN_USER_INVALID",
            format!(
                "x-admin-user must be one name of at most {MAX_USER_BYTES} printable ASCII characters, and not one that Prism gives itself"
            ),
        )),
    }
}

fn actor_of_key(presented: &Presented, key: &ApiKeyRow) -> Result<String> {
    match (&key.owner, named_user(presented)?) {
        (Some(owner), Some(named)) if owner != named => {
            Err(Error::unauthenticated("ADMIN_USER_MISMATCH", "x-admin-user is not the person this key belongs to"))
        }
        (Some(owner), _) => Ok(owner.clone()),
        (None, Some(named)) => Ok(named.to_owned()),
        (None, None) => Ok(format!("key:{}", key.id)),
    }
}

fn is_readable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Actors that Prism writes into the audit log itself; nobody may pass for them.
pub(crate) fn is_reserved(name: &str) -> bool {
    matches!(name, "anonymous" | "prism" | "prism-dev" | OPERATOR_ON_THE_BOX) || name.starts_with("key:")
}
