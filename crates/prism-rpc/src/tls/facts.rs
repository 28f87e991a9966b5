//! What a certificate says of itself, without asking whether it is true.

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use prism_core::{Error, Kind, Result, UnixMillis};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::authority::BACKDATE;

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it names, for people.
    pub subject: String,
    /// When it begins.
    pub begins_at: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// The first URI of its subject alternative name.
    pub uri: Option<String>,
    /// All URIs of it.
    pub uris: Vec<String>,
    /// DNS names and addresses of its subject alternative name.
    pub hosts: Vec<String>,
    /// Its public key (SubjectPublicKeyInfo in DER): two certificates of one key are of one owner.
    pub public_key: Vec<u8>,
}

impl CertificateFacts {
    /// When Prism's CA made it: such certificates begin earlier, for those whose clock is slow.
    pub fn issued_at(&self) -> UnixMillis {
        (self.begins_at + BACKDATE).min(self.expires_at)
    }

    /// Reads a certificate; FAILED_PRECONDITION when it is not one.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let bad = || Error::new(Kind::FailedPrecondition, "CERTIFICATE_UNREADABLE", "is not a certificate of X.509");
        let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
        if !rest.is_empty() {
            return Err(bad());
        }
        let names = certificate.subject_alternative_name().ok().flatten().map(|names| names.value);
        let names = || names.into_iter().flat_map(|names| &names.general_names);
        let uris: Vec<String> = names()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect();
        let hosts = names().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        Ok(Self {
            hosts: hosts.collect(),
            uri: uris.first().cloned(),
            uris,
            subject: certificate.subject().to_string(),
            begins_at: UnixMillis(certificate.validity().not_before.timestamp().saturating_mul(1000)),
            expires_at: UnixMillis(certificate.validity().not_after.timestamp().saturating_mul(1000)),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// An address as it stands in a certificate.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// When the first of `certificates` ends; FAILED_PRECONDITION when one is not a certificate, or there is none.
pub fn first_end(certificates: &[CertificateDer<'_>]) -> Result<UnixMillis> {
    let ends: Vec<UnixMillis> = certificates
        .iter()
        .map(|certificate| CertificateFacts::of(certificate).map(|facts| facts.expires_at))
        .collect::<Result<_>>()?;
    ends.into_iter().min().ok_or_else(|| super::fault("there is no certificate"))
}

/// Whether `link` is a certificate by which the CA `by` vouches for the CA `of`: a CA's, for its name and key, signed by the other's,
/// and valid at `now`.
pub fn vouches(by: &CertificateDer<'_>, of: &CertificateDer<'_>, link: &CertificateDer<'_>, now: UnixMillis) -> bool {
    let read = |certificate: &CertificateDer<'_>| CertificateFacts::of(certificate).is_ok();
    if ![by, of, link].into_iter().all(read) {
        return false;
    }
    let parsed = (X509Certificate::from_der(by), X509Certificate::from_der(of), X509Certificate::from_der(link));
    let (Ok((_, by)), Ok((_, of)), Ok((_, link))) = parsed else { return false };
    let at = now.0.div_euclid(1000);
    let (begins, ends) = (link.validity().not_before.timestamp(), link.validity().not_after.timestamp());
    (begins..=ends).contains(&at)
        && link.is_ca()
        && link.public_key().raw == of.public_key().raw
        && (link.subject(), link.issuer()) == (of.subject(), by.subject())
        && link.verify_signature(Some(by.public_key())).is_ok()
}

/// SHA-256 of a certificate's DER encoding in lower-case hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(digest(&SHA256, certificate))
}
