//! Client certificates: of Prism's own CA, and of the CAs that the operator configures.
//!
//! A certificate is believed for what its subject alternative name says, whole. The subject's common name is never read.

mod bundle;
mod cache;
mod leaf;
mod name;
#[cfg(test)]
mod tests;

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use prism_core::subject::Subject;
use prism_core::{Error, Result, UnixMillis};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

pub use bundle::{MAX_BUNDLE_CERTIFICATES, read_bundle};
pub use name::own_identity;

use cache::Cache;
use leaf::Leaf;

/// Most certificates that a caller may present: one of its own and those that lead to a CA.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 64 * 1024;
/// How many certificates are remembered as verified.
const REMEMBERED: usize = 1024;

/// What a certificate's holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateKind {
    /// `spiffe://<cluster>/controller/<name>` of Prism's own CA.
    Controller,
    /// `spiffe://<cluster>/user/<name>` of Prism's own CA.
    User,
    /// `spiffe://<cluster>/client/<name>` of Prism's own CA: the data plane's.
    Client,
    /// `spiffe://<cluster>/node/<name>` of Prism's own CA.
    Node,
    /// Of a CA that the operator configures.
    External,
}

/// What a valid certificate proves at this moment, of a peer that has proven in the TLS handshake to hold its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// What its holder is.
    pub kind: CertificateKind,
    /// The name behind the kind; of external certificates, the identity.
    pub name: String,
    /// The subject alternative name, whole.
    pub identity: String,
    /// Whom bindings may name. A node has none.
    pub subjects: Vec<Subject>,
    /// Serial number in lower-case hex, without zeros before it.
    pub serial: String,
    /// SHA-256 of the certificate, in lower-case hex.
    pub fingerprint: String,
    /// The serial number; of external certificates `sha256:<fingerprint>`, as their numbers are not ours to keep apart.
    pub credential_id: String,
    /// SHA-256 of the public key of the CA that vouches for it, in lower-case hex; see [`ClientTrust::trusts`].
    pub authority: String,
    /// After this moment the certificate is refused: the earliest end in its chain.
    pub expires_at: UnixMillis,
}

/// Why a certificate proves nothing; for the server's log only. What the certificate says stands in it quoted, if at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRefused(pub String);

impl fmt::Display for CertificateRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CertificateRefused {}

/// When certificates are valid, in seconds since the epoch, both ends included.
#[derive(Clone, Copy)]
struct Window {
    begin: i64,
    end: i64,
}

impl Window {
    /// In milliseconds; what does not fit is the far past or future.
    fn check(self, now: UnixMillis) -> Result<(), CertificateRefused> {
        if now.0 < self.begin.saturating_mul(1000) {
            return Err(refused("it is not valid yet"));
        }
        if now.0 > self.end.saturating_mul(1000) {
            return Err(refused("it has expired"));
        }
        Ok(())
    }

    fn and(self, other: Self) -> Self {
        Self { begin: self.begin.max(other.begin), end: self.end.min(other.end) }
    }
}

/// CAs of one side, and when each is valid.
struct Authorities {
    anchors: Vec<TrustAnchor<'static>>,
    windows: Vec<Window>,
    /// SHA-256 of their public keys, in hex.
    keys: Vec<String>,
}

/// Whose certificates are accepted. Never changes: when something does, another one takes its place.
pub struct ClientTrust {
    cluster: String,
    own: Authorities,
    external: Authorities,
    verified: Cache<Verified>,
}

/// What stays true of a certificate while its chain is valid.
#[derive(Clone)]
struct Verified {
    identity: CertificateIdentity,
    window: Window,
}

impl ClientTrust {
    /// Trusts the `own` CA for identities of the trust domain `cluster`, and `external` ones for all others.
    ///
    /// FAILED_PRECONDITION when `cluster` is no trust domain of SPIFFE (1 to 255 of a-z, 0-9, `.`, `_`, `-`), a certificate
    /// is not that of a CA, or an external CA has the key of an own one.
    pub fn new(
        cluster: &str,
        own: Vec<CertificateDer<'static>>,
        external: Vec<CertificateDer<'static>>,
    ) -> Result<Self> {
        if !name::is_trust_domain(cluster) {
            let shown = crate::quoted(cluster, 255);
            return Err(fault(format!("the cluster's name {shown} must be 1 to 255 of a-z, 0-9, '.', '_' and '-'")));
        }
        let (own, external) = (Authorities::new(own)?, Authorities::new(external)?);
        for anchor in &external.anchors {
            let key = &anchor.subject_public_key_info;
            if own.anchors.iter().any(|own| own.subject_public_key_info == *key) {
                return Err(fault("Prism's own CA must not be among the configured ones".to_owned()));
            }
        }
        Ok(Self { cluster: cluster.to_owned(), own, external, verified: Cache::new(REMEMBERED) })
    }

    /// Says whom a certificate names, when it leads to a CA of the right side, is for client authentication, and is valid
    /// at `now`. `chain` begins with the peer's own; signatures are checked once per certificate, times on every call.
    pub fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixMillis,
    ) -> Result<CertificateIdentity, CertificateRefused> {
        let (leaf, intermediates) = chain.split_first().ok_or_else(|| refused("there is none"))?;
        if chain.len() > MAX_CHAIN || chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE_BYTES) {
            return Err(refused("its chain is too long"));
        }
        let fingerprint = digest(&SHA256, leaf);
        if let Some(known) = self.verified.get(fingerprint.as_ref()) {
            // Another chain may be valid for longer.
            if known.window.check(now).is_ok() {
                return Ok(known.identity);
            }
        }
        let verified = self.verify(leaf, intermediates, &hex::encode(fingerprint), now)?;
        self.verified.insert(fingerprint.as_ref(), verified.clone());
        Ok(verified.identity)
    }

    /// Whether the CA that was found for a certificate, [`CertificateIdentity::authority`], is still among those trusted.
    pub fn trusts(&self, authority: &str) -> bool {
        [&self.own, &self.external].iter().any(|side| side.keys.iter().any(|key| key == authority))
    }

    fn verify(
        &self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        fingerprint: &str,
        now: UnixMillis,
    ) -> Result<Verified, CertificateRefused> {
        let leaf = Leaf::parse(der)?;
        leaf.window.check(now)?;
        let parsed = EndEntityCert::try_from(der).map_err(|error| refused(format!("it cannot be read: {error}")))?;
        // Own certificates are issued by the CA itself: nothing may stand between them.
        let ((window, authority), is_own) = match self.own.verify(&parsed, &[], now) {
            Ok(found) => (found, true),
            Err(own) => match self.external.verify(&parsed, intermediates, now) {
                Ok(found) => (found, false),
                Err(external) => {
                    return Err(refused(format!("Prism's CA: {own}; configured CAs: {external}")));
                }
            },
        };
        let window = window.and(leaf.window);
        window.check(now)?;
        let identity = if is_own { self.own_holder(&leaf)? } else { self.external_holder(&leaf)? };
        let (kind, name, identity) = identity;
        let serial = leaf.serial;
        let credential_id =
            if kind == CertificateKind::External { format!("sha256:{fingerprint}") } else { serial.clone() };
        let subjects = subjects(kind, &name, &identity)?;
        let expires_at = UnixMillis(window.end.saturating_mul(1000));
        let fingerprint = fingerprint.to_owned();
        let identity = CertificateIdentity {
            kind,
            name,
            identity,
            subjects,
            serial,
            fingerprint,
            credential_id,
            authority,
            expires_at,
        };
        Ok(Verified { identity, window })
    }

    fn own_holder(&self, leaf: &Leaf) -> Result<(CertificateKind, String, String), CertificateRefused> {
        let uri = leaf.names.single_uri()?.ok_or_else(|| refused("it has no URI that says whose it is"))?;
        let (kind, name) = name::own_parts(&self.cluster, uri)
            .ok_or_else(|| refused(format!("{} is no identity of this cluster", crate::quoted(uri, 128))))?;
        Ok((kind, name.to_owned(), uri.to_owned()))
    }

    fn external_holder(&self, leaf: &Leaf) -> Result<(CertificateKind, String, String), CertificateRefused> {
        let identity = leaf.names.external_identity(&self.cluster)?;
        Ok((CertificateKind::External, identity.to_owned(), identity.to_owned()))
    }
}

impl fmt::Debug for ClientTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTrust")
            .field("cluster", &self.cluster)
            .field("own", &self.own.anchors.len())
            .field("external", &self.external.anchors.len())
            .finish_non_exhaustive()
    }
}

impl Authorities {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self> {
        let (mut anchors, mut windows) = (Vec::new(), Vec::new());
        for (at, certificate) in certificates.into_iter().enumerate() {
            let (anchor, window) =
                bundle::authority(&certificate).map_err(|why| fault(format!("CA certificate {}: {why}", at + 1)))?;
            anchors.push(anchor);
            windows.push(window);
        }
        let keys = anchors.iter().map(|anchor| hex::encode(digest(&SHA256, &anchor.subject_public_key_info))).collect();
        Ok(Self { anchors, windows, keys })
    }

    /// Builds a chain to one of the CAs that are valid, and says when the whole of it is, and which CA it was.
    fn verify(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixMillis,
    ) -> Result<(Window, String), webpki::Error> {
        let seconds = u64::try_from(now.0.div_euclid(1000)).unwrap_or(0);
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let is_valid = |path: &webpki::VerifiedPath<'_>| match self.window(path) {
            Some((window, _)) if window.check(now).is_ok() => Ok(()),
            _ => Err(webpki::Error::UnknownIssuer),
        };
        let path = leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &self.anchors,
            intermediates,
            time,
            KeyUsage::client_auth(),
            None,
            Some(&is_valid),
        )?;
        self.window(&path).ok_or(webpki::Error::UnknownIssuer)
    }

    /// When the CA and what lies between it and the leaf are valid, and which CA it is.
    fn window(&self, path: &webpki::VerifiedPath<'_>) -> Option<(Window, String)> {
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()))?;
        let mut window = *self.windows.get(at)?;
        for intermediate in path.intermediate_certificates() {
            window = window.and(leaf::window(&intermediate.der())?);
        }
        Some((window, self.keys.get(at)?.clone()))
    }
}

fn subjects(kind: CertificateKind, name: &str, identity: &str) -> Result<Vec<Subject>, CertificateRefused> {
    let certificate = Subject::certificate(identity).ok_or_else(|| refused("its identity is too long"))?;
    Ok(match kind {
        CertificateKind::Node => Vec::new(),
        CertificateKind::User => {
            vec![Subject::user(name).ok_or_else(|| refused("its user has an unusable name"))?, certificate]
        }
        CertificateKind::Controller | CertificateKind::Client | CertificateKind::External => vec![certificate],
    })
}

fn refused(why: impl Into<String>) -> CertificateRefused {
    CertificateRefused(why.into())
}

/// FAILED_PRECONDITION for CA certificates that cannot be used.
fn fault(why: String) -> Error {
    Error::precondition("CLIENT_CA", why)
}
