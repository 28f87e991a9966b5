//! Who may answer as a controller: a server with a certificate of its own, and none of a node, a client or a user.

use std::sync::Arc;

use prism_core::{Error, Kind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, OtherError, RootCertStore, SignatureScheme};

use super::{CertificateFacts, provider};

/// Kinds of identities that a cluster's CA gives to others than its servers.
const OTHERS: [&str; 3] = ["node", "client", "user"];

/// The identity in a server's certificate by which it is not a controller's: `spiffe://<any cluster>/node/<name>`, or with
/// `client` or `user`.
///
/// FAILED_PRECONDITION `CERTIFICATE_UNREADABLE` when it is not a certificate.
pub fn other_identity(leaf: &CertificateDer<'_>) -> Result<Option<String>> {
    let facts = CertificateFacts::of(leaf)?;
    Ok(facts.uris.into_iter().find(|uri| is_of_another(uri)))
}

/// Whether a URI is the identity of a node, client or user, of whichever cluster; scheme and kind in any case.
fn is_of_another(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let kind = rest.split('/').nth(1).unwrap_or_default();
    scheme.eq_ignore_ascii_case("spiffe") && OTHERS.iter().any(|other| kind.eq_ignore_ascii_case(other))
}

/// Verifies a controller for its clients: by the CA and the name, and by its being none of a node, client or user.
#[derive(Debug)]
pub struct ControllerVerifier(Arc<WebPkiServerVerifier>);

impl ControllerVerifier {
    /// Trusts `roots`; FAILED_PRECONDITION when there are none.
    pub fn new(roots: RootCertStore) -> Result<Arc<Self>> {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = built.map_err(|error| Error::new(Kind::FailedPrecondition, "NO_ROOTS", error.to_string()))?;
        Ok(Arc::new(Self(verifier)))
    }
}

/// Why a certificate with this identity is refused.
pub fn not_a_controller(uri: &str) -> String {
    format!(
        "its certificate is that of {uri}, and only a controller's own certificate may answer on the admin port; somebody with \
         that certificate stands in the controller's place, or the address is not that of an admin port"
    )
}

impl ServerCertVerifier for ControllerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let verified = self.0.verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        match other_identity(leaf) {
            Ok(None) => Ok(verified),
            Ok(Some(uri)) => {
                let why =
                    OtherError(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(not_a_controller(&uri))));
                Err(TlsError::InvalidCertificate(CertificateError::Other(why)))
            }
            Err(_) => Err(TlsError::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_of_others_are_told_in_any_case() {
        for uri in [
            "spiffe://prism-0/node/a",
            "SPIFFE://x/Node/a",
            "spiffe://x/client/a/b",
            "spiffe://x/user/",
            "spiffe:///node",
        ] {
            assert!(is_of_another(uri), "{uri}");
        }
        for uri in ["spiffe://prism-0/controller/a", "spiffe://node/x", "https://x/node/a", "spiffe://x/nodes/a", ""] {
            assert!(!is_of_another(uri), "{uri}");
        }
    }
}
