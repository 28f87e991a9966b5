//! Bundles of CA certificates, as operators keep them in files.

use prism_core::Result;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::{MAX_CERTIFICATE_BYTES, Window, fault, leaf};

/// Most certificates of a bundle.
pub const MAX_BUNDLE_CERTIFICATES: usize = 1024;
/// Largest bundle, in bytes.
const MAX_BUNDLE_BYTES: usize = 4 * 1024 * 1024;

/// Reads CA certificates in PEM; text between them is passed over, repeats are left out.
///
/// FAILED_PRECONDITION, naming which by its place in the file, when one is not the certificate of a CA; when there is
/// something else in the file, a private key before all; when there is none, or more than 1024.
pub fn read_bundle(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    if pem.len() > MAX_BUNDLE_BYTES {
        return Err(fault(format!("a bundle has at most {MAX_BUNDLE_BYTES} bytes")));
    }
    let mut out: Vec<CertificateDer<'static>> = Vec::new();
    for (at, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).enumerate() {
        let number = at + 1;
        if number > MAX_BUNDLE_CERTIFICATES {
            return Err(fault(format!("a bundle has at most {MAX_BUNDLE_CERTIFICATES} certificates")));
        }
        let (kind, der) = section.map_err(|error| fault(format!("block {number} is not PEM: {error}")))?;
        if kind != SectionKind::Certificate {
            return Err(fault(format!(
                "block {number} is not a certificate but a {kind:?}; only CA certificates belong here"
            )));
        }
        let certificate = CertificateDer::from(der);
        authority(&certificate).map_err(|why| fault(format!("certificate {number}: {why}")))?;
        if !out.contains(&certificate) {
            out.push(certificate);
        }
    }
    if out.is_empty() {
        return Err(fault("there is no certificate in PEM".to_owned()));
    }
    Ok(out)
}

/// The trust that a certificate brings and when it is valid, if it is that of a CA.
pub(super) fn authority(certificate: &CertificateDer<'_>) -> Result<(TrustAnchor<'static>, Window), String> {
    if certificate.len() > MAX_CERTIFICATE_BYTES {
        return Err(format!("is larger than {MAX_CERTIFICATE_BYTES} bytes"));
    }
    let parsed = leaf::whole(certificate).ok_or("is not an X.509 certificate")?;
    let constraints = parsed.basic_constraints().map_err(|error| format!("has odd extensions: {error}"))?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("is not the certificate of a CA".to_owned());
    }
    let usage = parsed.key_usage().map_err(|error| format!("has odd extensions: {error}"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("must not sign certificates (key usage)".to_owned());
    }
    let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| format!("cannot be used: {error}"))?;
    Ok((anchor.to_owned(), leaf::validity(&parsed)))
}
