//! Whom the secret is sent to: a controller that proves to be of the cluster whose CA the token names.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prism_core::secret::AuthorityFingerprint;
use prism_rpc::tls::{CLUSTER_PROTOCOL, not_a_controller, other_identity};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::identity::fingerprint_of;

/// Decides whether a server is a controller of the right cluster.
#[derive(Clone, Debug)]
pub struct ServerTrust {
    verifier: Arc<Verifier>,
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// The CA that the token names.
    authority: AuthorityFingerprint,
    /// What the operator names beside it.
    given: Option<Arc<RootCertStore>>,
    /// CAs that must vouch for it as well, directly or by a certificate for its own CA.
    also: Option<Arc<RootCertStore>>,
    /// Why the last server was not the right one, in words for the operator.
    why: Mutex<Option<String>>,
}

impl ServerTrust {
    /// Trusts the CA of the token, or those of the PEM file `ca`; the error names the file.
    pub fn new(authority: AuthorityFingerprint, ca: Option<&Path>) -> Result<Self, String> {
        let given = ca.map(read_roots).transpose()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(Self { verifier: Arc::new(Verifier { provider, authority, given, also: None, why: Mutex::default() }) })
    }

    /// Asks in addition that the server's CA is one of `authorities`, or has a certificate of one of them: that it is the same
    /// cluster with a new CA.
    pub fn also(&self, authorities: &[CertificateDer<'static>]) -> Result<Self, String> {
        let Verifier { provider, authority, given, .. } = &*self.verifier;
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(certificate.clone()).map_err(|error| format!("the CA that this node knows: {error}"))?;
        }
        let (provider, given, also) = (provider.clone(), given.clone(), Some(Arc::new(roots)));
        Ok(Self {
            verifier: Arc::new(Verifier { provider, authority: *authority, given, also, why: Mutex::default() }),
        })
    }

    /// TLS of a client without a certificate.
    pub fn client_config(&self) -> Result<ClientConfig, String> {
        let builder = ClientConfig::builder_with_provider(self.verifier.provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let verifier = self.verifier.clone();
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        // A controller with a certificate of the operator's CA shows one of the cluster's to who asks.
        let cluster = self.verifier.given.is_none().then(|| CLUSTER_PROTOCOL.to_vec());
        config.alpn_protocols = cluster.into_iter().chain([b"h2".to_vec()]).collect();
        Ok(config)
    }

    /// Why the last server was not trusted, if it was not.
    pub fn why(&self) -> Option<String> {
        self.verifier.why.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, String> {
    let shown = path.display();
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| format!("--ca {shown}: {error}"))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| format!("--ca {shown}: {error}"))?;
        roots.add(certificate).map_err(|error| format!("--ca {shown}: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("--ca {shown}: holds no certificate in PEM"));
    }
    Ok(Arc::new(roots))
}

impl Verifier {
    fn refuse(&self, why: String) -> TlsError {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
    }

    /// The roots by which this server is judged.
    fn roots(&self, intermediates: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, TlsError> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let named = intermediates.iter().find(|certificate| fingerprint_of(certificate) == self.authority);
        let named = named.ok_or_else(|| {
            self.refuse(format!(
                "it does not show the CA that the token names (SHA-256 {}); it is not a controller of that cluster, or somebody stands \
                 in between; where that is meant to be so, say whose CA to trust with --ca FILE",
                self.authority.to_hex()
            ))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(named.clone().into_owned()).map_err(|error| self.refuse(format!("its CA is not one: {error}")))?;
        Ok(Arc::new(roots))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verifier = |roots: Arc<RootCertStore>| {
            let built = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone()).build();
            built.map_err(|error| TlsError::General(error.to_string()))
        };
        if let Some(also) = &self.also {
            verifier(also.clone())?.verify_server_cert(leaf, intermediates, name, ocsp, now).map_err(|_| {
                self.refuse(
                    "it is not a controller of the cluster whose node this data directory holds, so the token is of another cluster; \
                     use another --data-dir, or remove the folder node in it"
                        .to_owned(),
                )
            })?;
        }
        let verifier = verifier(self.roots(intermediates)?)?;
        let accepted = verifier.verify_server_cert(leaf, intermediates, name, ocsp, now).map_err(|error| match &error {
            TlsError::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
                self.refuse(format!(
                    "its certificate is not for the name {}; call it by one that it has, or add this one to listen.names of its \
                     prism.toml",
                    name.to_str()
                ))
            }
            other => self.refuse(format!("its certificate is not trusted: {other}")),
        })?;
        match other_identity(leaf) {
            Ok(None) => Ok(accepted),
            Ok(Some(uri)) => Err(self.refuse(not_a_controller(&uri))),
            Err(error) => Err(self.refuse(format!("its certificate is not trusted: {}", error.message()))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls12_signature(
            message,
            leaf,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls13_signature(
            message,
            leaf,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
