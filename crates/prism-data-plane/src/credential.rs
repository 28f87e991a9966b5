//! Client credentials: client keys, JWTs and certificates, from what a call presents to what it may do.
//!
//! Only credentials are counted when they fail, and that is where something can be guessed at a price: a key, a token of an
//! issuer, a certificate. Session tokens are not counted here. They are looked up on every call, they hold 190 bits of chance like
//! a client key, nothing but a hash is compared, and a map of failures on that path would cost every caller what it makes an
//! attacker pay. Those that have to be asked about have a price of their own: [`crate::elsewhere`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use prism_core::control::{ClientCredential, ClientIdentity, ControlPlane, ProvenClient};
use prism_core::secret::{self, SecretKind, SecretProof};
use prism_core::session::ClientBasis;
use prism_core::{Clock, Error, Kind, Result};
use prism_identity::{CertificateKind, ClientTrust, FailureLimiter, Issuers, Penalty, Plane as Side, TokenRefused};
use prism_rpc::{Peer, RequestId};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tonic::Extensions;

/// A credential as a call presents it.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// The word of a client key.
    Key(&'a str),
    /// A JWT.
    Jwt(&'a str),
    /// The certificate of the connection; the message may repeat it.
    Certificate {
        /// As the message has it, PEM or DER; empty = it does not.
        sent: &'a [u8],
    },
}

impl Presented<'_> {
    /// The one answer for a credential of this kind that is not valid, whatever is wrong with it.
    pub fn invalid(&self) -> Error {
        match self {
            Self::Key(_) => Error::unauthenticated("CLIENT_KEY_INVALID", "the client key is not valid"),
            Self::Jwt(_) => Error::unauthenticated("JWT_INVALID", "the JWT is not valid"),
            Self::Certificate { .. } => {
                Error::unauthenticated("CLIENT_CERTIFICATE_INVALID", "the client certificate is not valid")
            }
        }
    }

    /// The proof of a well-formed client key.
    pub fn key(&self) -> Option<SecretProof> {
        match self {
            Self::Key(word) => secret::parse(SecretKind::ClientKey, word).map(|key| key.proof()),
            Self::Jwt(_) | Self::Certificate { .. } => None,
        }
    }

    /// Public id of a well-formed client key; nothing else names itself before it is proven.
    fn key_id(&self) -> Option<String> {
        match self {
            Self::Key(word) => secret::parse(SecretKind::ClientKey, word).map(|key| key.id.to_string()),
            Self::Jwt(_) | Self::Certificate { .. } => None,
        }
    }
}

/// Where a call comes from.
#[derive(Clone)]
pub struct Origin {
    peer: Option<Peer>,
    request_id: Option<RequestId>,
}

impl Origin {
    /// Of a request's extensions.
    pub fn of(extensions: &Extensions) -> Self {
        Self { peer: extensions.get().cloned(), request_id: extensions.get().cloned() }
    }

    /// Whether the connection has a client certificate.
    pub fn has_certificate(&self) -> bool {
        self.leaf().is_some()
    }

    fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.peer.as_ref().and_then(|peer| peer.certificates.first())
    }

    /// Whom failures are counted for; every request that comes through the listener has a peer.
    pub fn source(&self) -> IpAddr {
        self.peer.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip())
    }
}

/// Why a credential is refused.
enum Refused {
    /// It is not valid, for a reason that the log may hear. Costs its caller.
    Invalid(String),
    /// Its caller is told something else than that it is not valid. Costs too.
    Failed(Error),
    /// The keys of this issuer are not there to check it with.
    Unavailable(String),
    /// There was nothing to check, or the control plane could not.
    Other(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// What client credentials are checked against.
pub struct Credentials {
    control: Arc<dyn ControlPlane>,
    issuers: Issuers,
    trust: Option<Arc<ArcSwap<ClientTrust>>>,
    failures: FailureLimiter,
    clock: Clock,
}

impl Credentials {
    /// Checks keys with `control`, JWTs with `issuers`, certificates with `trust`.
    pub fn new(
        control: Arc<dyn ControlPlane>,
        issuers: Issuers,
        trust: Option<Arc<ArcSwap<ClientTrust>>>,
        failures: FailureLimiter,
        clock: Clock,
    ) -> Self {
        Self { control, issuers, trust, failures, clock }
    }

    /// What the owner of a credential may do; the refusal of one that fails takes its time, when the source or the key has
    /// failed before.
    pub async fn identify(&self, presented: Presented<'_>, origin: &Origin) -> Result<ClientIdentity> {
        let request_id = origin.request_id.as_ref().map_or("", RequestId::as_str);
        let refusal = match self.check(presented, origin).await {
            Ok(identity) => return Ok(identity),
            Err(Refused::Other(error)) => return Err(error),
            Err(Refused::Unavailable(issuer)) => {
                tracing::debug!(request.id = request_id, issuer, "the keys of a JWT's issuer cannot be fetched");
                let message = "the keys of the JWT's issuer cannot be fetched now";
                return Err(Error::unavailable("ISSUER_UNAVAILABLE", message));
            }
            Err(Refused::Failed(error)) => error,
            Err(Refused::Invalid(why)) => {
                tracing::debug!(request.id = request_id, why, "a client credential is not valid");
                presented.invalid()
            }
        };
        let penalty = self.failures.failed(origin.source(), presented.key_id().as_deref(), Instant::now());
        Err(penalised(penalty, refusal).await)
    }

    async fn check(&self, presented: Presented<'_>, origin: &Origin) -> Result<ClientIdentity, Refused> {
        let proven = match presented {
            Presented::Key(word) => {
                let malformed = || Refused::Invalid("it has not the form of a client key".to_owned());
                let key = secret::parse(SecretKind::ClientKey, word).ok_or_else(malformed)?;
                return self.ask(ClientCredential::Key(key.proof())).await;
            }
            Presented::Jwt(token) => self.jwt(token).await?,
            Presented::Certificate { sent } => self.certificate(sent, origin)?,
        };
        // The control plane takes a client without subjects for a key.
        if proven.basis.subjects.is_empty() {
            return Err(Refused::Invalid("it names nobody".to_owned()));
        }
        self.ask(ClientCredential::Proven(&proven)).await
    }

    async fn ask(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity, Refused> {
        let identity = self.control.authenticate_client(credential).await.map_err(|error| match error.kind() {
            Kind::Unauthenticated => Refused::Invalid(error.message().to_owned()),
            _ => Refused::Other(error),
        })?;
        if identity.grants.is_empty() {
            return Err(Refused::Invalid("it is for no namespace".to_owned()));
        }
        Ok(identity)
    }

    async fn jwt(&self, token: &str) -> Result<ProvenClient, Refused> {
        if self.issuers.is_empty() {
            let message = "this server has no issuer of JWTs for the data plane";
            return Err(Error::unauthenticated("JWT_NOT_CONFIGURED", message).into());
        }
        let proven = self.issuers.verify(Side::Data, token).await.map_err(|refused| match refused {
            TokenRefused::Invalid(why) => Refused::Invalid(why),
            TokenRefused::Unavailable(issuer) => Refused::Unavailable(issuer),
        })?;
        let basis =
            ClientBasis { credential_id: proven.credential_id, subjects: proven.subjects, ..ClientBasis::default() };
        // It proves who opens a session. Its life of minutes is not that of the session; bindings are.
        Ok(ProvenClient { basis, ends: None })
    }

    fn is_revoked(&self, fingerprint: &str) -> bool {
        self.control.snapshot().borrow().client_access.revoked_certificates.contains(fingerprint)
    }

    fn certificate(&self, sent: &[u8], origin: &Origin) -> Result<ProvenClient, Refused> {
        let (Some(trust), Some(peer), Some(leaf)) = (&self.trust, &origin.peer, origin.leaf()) else {
            let message = "the connection has no client certificate, and one in the message alone proves nothing";
            return Err(Error::unauthenticated("CLIENT_CERTIFICATE_REQUIRED", message).into());
        };
        if !sent.is_empty() && !is_of(sent, leaf) {
            let message = "the certificate in the message is not that of the connection";
            return Err(Refused::Failed(Error::unauthenticated("CLIENT_CERTIFICATE_MISMATCH", message)));
        }
        let identity = trust.load().identify(&peer.certificates, self.clock.now());
        let identity = identity.map_err(|refused| Refused::Invalid(refused.to_string()))?;
        if identity.kind == CertificateKind::Node && !self.is_revoked(&identity.fingerprint) {
            return Err(node_not_allowed().into());
        }
        // A user's or controller's certificate belongs to the other plane.
        if !matches!(identity.kind, CertificateKind::Client | CertificateKind::External) {
            return Err(Refused::Invalid(format!("a certificate of kind {:?} is not for clients", identity.kind)));
        }
        let basis = ClientBasis {
            credential_id: identity.credential_id,
            subjects: identity.subjects,
            certificate: Some(identity.fingerprint),
            authority: Some(identity.authority),
        };
        Ok(ProvenClient { basis, ends: Some(identity.expires_at) })
    }
}

/// PERMISSION_DENIED: a node's certificate is good, and for other things.
fn node_not_allowed() -> Error {
    Error::new(
        Kind::PermissionDenied,
        "PERMISSION_DENIED",
        "the certificate is a node's; clients need one of their own",
    )
}

/// The refusal of a failed credential, after the time that it costs.
async fn penalised(penalty: Penalty, refusal: Error) -> Error {
    match penalty {
        Penalty::None => refusal,
        Penalty::Wait(delay, _place) => {
            tokio::time::sleep(delay).await;
            refusal
        }
        Penalty::Refuse { retry_after } => {
            let message = "too many credentials from here have failed; try again later, with a valid one";
            Error::new(Kind::ResourceExhausted, "TOO_MANY_FAILURES", message).retry_after(retry_after)
        }
    }
}

/// Whether `sent`, in PEM or DER, is `leaf`; of a PEM chain the first certificate counts.
fn is_of(sent: &[u8], leaf: &CertificateDer<'_>) -> bool {
    sent == leaf.as_ref() || CertificateDer::from_pem_slice(sent).is_ok_and(|first| first == *leaf)
}
