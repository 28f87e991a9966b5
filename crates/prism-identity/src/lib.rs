//! Who presents what: access tokens of OIDC issuers, client certificates, and what a failed credential costs.
//!
//! Nothing here decides what a caller may do: an identity is a name and the subjects that bindings may name.

pub mod certificate;
pub mod failures;
pub mod oidc;

pub use certificate::{
    CertificateIdentity, CertificateKind, CertificateRefused, ClientTrust, own_identity, read_bundle,
};
pub use failures::{FailureLimiter, Penalty, WaitPlace};
pub use oidc::{
    Algorithm, IssuerSettings, Issuers, KeySet, MAX_TOKEN_BYTES, Plane, ProvenToken, RoleMapping, TokenRefused,
};

/// At most `bytes` bytes of text that somebody else wrote, quoted and escaped, for the server's log.
pub(crate) fn quoted(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let shown = prism_core::secret::redact(text.get(..end).unwrap_or_default()).into_owned();
    if end == text.len() { format!("{shown:?}") } else { format!("{shown:?}…") }
}
