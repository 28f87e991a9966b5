//! Who may answer on the admin port: a server with a certificate of its own, and none of a node, a client or a user.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, OtherError, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::error::{Failure, Result};
use crate::exit::Exit;

/// Kinds of identities that a cluster's CA gives to others than its servers.
const OTHERS: [&str; 3] = ["node", "client", "user"];

/// Verifies a server by the CA and the name, and by its being none of a node, client or user.
#[derive(Debug)]
pub struct ControllerVerifier(Arc<WebPkiServerVerifier>);

impl ControllerVerifier {
    /// Trusts `roots`, of which there is at least one.
    pub fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<Arc<Self>> {
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        built.map(|verifier| Arc::new(Self(verifier))).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
    }
}

/// The URIs of a certificate; `None` when they cannot be read.
fn uris(leaf: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Some(uris.collect())
}

/// Whether a URI is `spiffe://<any cluster>/node/<name>`, or with `client` or `user`; scheme and kind in any case.
fn is_of_another(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let kind = rest.split('/').nth(1).unwrap_or_default();
    scheme.eq_ignore_ascii_case("spiffe") && OTHERS.iter().any(|other| kind.eq_ignore_ascii_case(other))
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
        let uris = uris(leaf).ok_or(TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        let Some(uri) = uris.into_iter().find(|uri| is_of_another(uri)) else { return Ok(verified) };
        let why = format!("it is that of {uri}, and only a server's own certificate may answer on the admin port");
        let why = OtherError(Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)));
        Err(TlsError::InvalidCertificate(CertificateError::Other(why)))
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
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

    use super::*;

    /// The verdict over a server's certificate for `localhost` with these URIs.
    fn verdict(uris: &[&str]) -> std::result::Result<(), TlsError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &ca).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let verifier = ControllerVerifier::new(roots, Arc::new(rustls::crypto::aws_lc_rs::default_provider())).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now()).map(drop)
    }

    #[test]
    fn only_a_servers_own_certificate_is_taken() {
        verdict(&[]).unwrap();
        verdict(&["spiffe://prism-0/controller/a", "https://x/node/a"]).unwrap();
        for uri in ["spiffe://prism-0/node/a", "SPIFFE://x/Node/a", "spiffe://x/client/a", "spiffe://x/user/a"] {
            let said = verdict(&["spiffe://prism-0/controller/a", uri]).unwrap_err().to_string();
            assert!(said.contains(uri) && said.contains("only a server's own"), "{said}");
        }
    }
}
