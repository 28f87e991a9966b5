//! Certificates of clients at the handshake: whose key is proven, and nothing more.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// Most certificates of a client's chain, its leaf included; a longer one ends the handshake.
pub const MAX_CHAIN: usize = 4;
/// Most bytes of a client's chain; a larger one ends the handshake.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// Asks every client for a certificate, and takes any or none.
///
/// The handshake proves one thing: that the client has the private key of the leaf it shows. Whether that certificate is within
/// its time, of a trusted CA, not revoked, and whom it names is decided for each call. So an expired or foreign one gets
/// UNAUTHENTICATED with an entry in the audit log, where a failed handshake would leave the client with a broken connection and
/// the investigator with nothing; and a change of whom to trust holds for connections that are open already.
///
/// Because of that a certificate in [`crate::Peer`] is a claim with a proven key, not an identity.
#[derive(Debug)]
pub(super) struct AnyClient(pub Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// Empty: which CAs are trusted changes while connections are open, and is nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bytes = intermediates.iter().map(|certificate| certificate.len()).sum::<usize>() + leaf.len();
        // The chain stays in memory as long as its connection.
        if intermediates.len() >= MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
