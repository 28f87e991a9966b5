//! Certificates as CAs, and people who would like to be somebody else, make them.

mod bundles;
mod chains;
mod names;

use prism_core::UnixMillis;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;

use super::*;

pub const CLUSTER: &str = "prism-test";
/// 1 January 2026, in the middle of what [`Authority::leaf`] issues.
pub const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// One entry of a subject alternative name, with whatever bytes it is to have.
#[derive(Clone, Copy)]
pub enum San<'a> {
    Uri(&'a [u8]),
    Dns(&'a [u8]),
    Email(&'a [u8]),
    Address,
}

pub fn uri(text: &str) -> San<'_> {
    San::Uri(text.as_bytes())
}

pub fn dns(text: &str) -> San<'_> {
    San::Dns(text.as_bytes())
}

pub fn email(text: &str) -> San<'_> {
    San::Email(text.as_bytes())
}

/// A CA that signs whatever it is asked to.
pub struct Authority {
    pub certificate: CertificateDer<'static>,
    pub pem: String,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    pub fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let params = authority_params(name, change);
        let key = key();
        let made = params.self_signed(&key).unwrap();
        Self { certificate: made.der().clone(), pem: made.pem(), issuer: Issuer::new(params, key) }
    }

    /// A CA below this one.
    pub fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let params = authority_params(name, change);
        let key = key();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate: made.der().clone(), pem: made.pem(), issuer: Issuer::new(params, key) }
    }

    /// A client certificate of 2025 and 2026.
    pub fn leaf(&self, names: &[San<'_>]) -> CertificateDer<'static> {
        self.leaf_with(names, |_| {})
    }

    pub fn leaf_with(&self, names: &[San<'_>], change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        // What the common name says must never count.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("spiffe://{CLUSTER}/controller/root"));
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0xbc, 0x01]));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = vec![alternative_names(names)];
        change(&mut params);
        params.signed_by(&key(), &self.issuer).unwrap().der().clone()
    }
}

fn authority_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    params
}

pub fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// The extension, byte by byte: libraries refuse to write some of what is needed here.
pub fn alternative_names(names: &[San<'_>]) -> CustomExtension {
    let mut entries = Vec::new();
    for name in names {
        let (tag, bytes): (u8, &[u8]) = match name {
            San::Email(bytes) => (0x81, bytes),
            San::Dns(bytes) => (0x82, bytes),
            San::Uri(bytes) => (0x86, bytes),
            San::Address => (0x87, &[127, 0, 0, 1]),
        };
        entries.extend(element(tag, bytes));
    }
    CustomExtension::from_oid_content(&[2, 5, 29, 17], element(0x30, &entries))
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut out = match content.len() {
        0..=127 => vec![tag, length[1]],
        128..=255 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    out.extend_from_slice(content);
    out
}

/// A trust in one own CA and one that was configured.
pub struct Trusted {
    pub own: Authority,
    pub partner: Authority,
    pub trust: ClientTrust,
}

impl Trusted {
    pub fn new() -> Self {
        let (own, partner) = (Authority::new("Prism CA"), Authority::new("Partner CA"));
        let trust =
            ClientTrust::new(CLUSTER, vec![own.certificate.clone()], vec![partner.certificate.clone()]).unwrap();
        Self { own, partner, trust }
    }

    pub fn own(&self, names: &[San<'_>]) -> Result<CertificateIdentity, CertificateRefused> {
        self.trust.identify(&[self.own.leaf(names)], NOW)
    }

    pub fn partner(&self, names: &[San<'_>]) -> Result<CertificateIdentity, CertificateRefused> {
        self.trust.identify(&[self.partner.leaf(names)], NOW)
    }
}
