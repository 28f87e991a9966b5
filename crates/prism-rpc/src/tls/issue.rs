//! Certificates for clients and nodes, of Prism's own CA, for a key that Prism never sees.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use prism_core::{Error, Result, UnixMillis};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA1WITHRSA,
    OID_SHA1_WITH_RSA, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509;

use super::authority::{BACKDATE, CertificateAuthority, parameters};
use super::rotation::to_pem;
use super::{fault, fingerprint};

/// Largest signing request, in bytes of PEM.
pub const MAX_CSR_BYTES: usize = 16 * 1024;
/// Longest common name that X.509 has room for, in characters.
const MAX_COMMON_NAME: usize = 64;
/// RSA keys, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// Field of the request, for errors.
const FIELD: &str = "csr_pem";

/// What a client's certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its only subject alternative name, which is its identity.
    pub uri: String,
    /// Its common name, for people; cut to 64 characters.
    pub common_name: String,
    /// Its life, in whole seconds, at least one; it ends with the CA at the latest.
    pub life: Duration,
}

/// What a node's certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    /// Its URI, which is its identity.
    pub uri: String,
    /// Its common name and its DNS name.
    pub node_id: String,
    /// Its life, in whole seconds, at least one; it ends with the CA at the latest.
    pub life: Duration,
}

/// The public key of a signing request that its owner has signed. Nothing else of the request is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    /// SubjectPublicKeyInfo in DER.
    key: Vec<u8>,
}

impl SigningRequest {
    /// Reads one signing request in PEM.
    ///
    /// INVALID_ARGUMENT on `csr_pem` when it is not one of at most [`MAX_CSR_BYTES`], not signed by its own key (without SHA-1), or
    /// the key is not P-256, P-384, Ed25519 or RSA of 2048 to 4096 bits.
    pub fn parse(csr_pem: &[u8]) -> Result<Self> {
        public_key(csr_pem).map(|key| Self { key })
    }

    /// SHA-256 of the public key (SubjectPublicKeyInfo in DER): two requests of one key are of one owner.
    pub fn key_hash(&self) -> [u8; 32] {
        hash_of(&self.key)
    }

    /// As [`SigningRequest::key_hash`], of any request whose key can be read, whoever has signed it and whatever kind of key it
    /// is: it says which key was shown, and proves nothing.
    pub fn key_hash_of(csr_pem: &[u8]) -> Option<[u8; 32]> {
        let der = one_block(csr_pem).filter(|_| csr_pem.len() <= MAX_CSR_BYTES)?;
        let (_, csr) = X509CertificationRequest::from_der(&der).ok()?;
        Some(hash_of(csr.certification_request_info.subject_pki.raw))
    }
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The certificate in PEM.
    pub pem: String,
    /// Its serial number in lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of its DER encoding in lower-case hexadecimal.
    pub fingerprint: String,
    /// When it begins, an hour ago.
    pub not_before: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// Its identity.
    pub uri: String,
    /// SHA-256 of the CA's certificate in lower-case hexadecimal.
    pub authority: String,
}

impl CertificateAuthority {
    /// Issues a certificate for a client: `request` says what is in it, `csr_pem` (one signing request in PEM, nothing else) gives
    /// the public key and nothing else. Nothing is stored.
    ///
    /// INVALID_ARGUMENT as [`SigningRequest::parse`] says; on `uri` when that cannot stand in a certificate. FAILED_PRECONDITION
    /// `CA_EXPIRED` when the CA itself has ended.
    pub fn issue_client(&self, request: &ClientCertificate, csr_pem: &[u8]) -> Result<IssuedCertificate> {
        let key = SigningRequest::parse(csr_pem)?;
        let common_name: String = request.common_name.chars().take(MAX_COMMON_NAME).collect();
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_for(&key, (&common_name, &request.uri, None), usages, request.life)
    }

    /// Issues a certificate for a node, which is client and server. Nothing is stored.
    ///
    /// FAILED_PRECONDITION `CA_EXPIRED` when the CA itself has ended.
    pub fn issue_node(&self, request: &NodeCertificate, key: &SigningRequest) -> Result<IssuedCertificate> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let names = (request.node_id.as_str(), request.uri.as_str(), Some(request.node_id.as_str()));
        self.issue_for(key, names, usages, request.life)
    }

    /// Issues a certificate for a node's data port, in PEM with this CA behind it: for this machine's own names and addresses
    /// and the node's id, as no node may pass for another host. By the node's identity in it nobody takes it for a controller.
    /// Nothing is stored.
    ///
    /// INVALID_ARGUMENT when the id or the identity cannot stand in a certificate. FAILED_PRECONDITION `CA_EXPIRED` when the CA itself has ended.
    pub fn issue_node_server(&self, request: &NodeCertificate, key: &SigningRequest) -> Result<String> {
        let NodeCertificate { uri, node_id, life } = request;
        let (inner, state) = (&self.0, self.0.state.load());
        let now = inner.clock.now();
        let expires_at = (now + *life).min(state.expires_at);
        if expires_at <= now {
            let message = "the CA has expired; it has to be made anew before it can issue a certificate";
            return Err(Error::precondition("CA_EXPIRED", message));
        }
        let key = SubjectPublicKeyInfo::from_der(&key.key).map_err(|error| fault(format!("a proven key: {error}")))?;
        let mut params = parameters(node_id, now, expires_at, &inner.random);
        let dns = |name: &str| {
            let name = name.try_into().map_err(|_| Error::invalid("node_id", "must be of ASCII characters"))?;
            Ok::<_, Error>(SanType::DnsName(name))
        };
        let uri = uri.as_str().try_into().map_err(|_| Error::invalid("uri", "must be of ASCII characters"))?;
        params.subject_alt_names = vec![
            SanType::URI(uri),
            dns("localhost")?,
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
            dns(node_id)?,
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issued = params.signed_by(&key, &state.issuer);
        let issued = issued.map_err(|error| fault(format!("the CA cannot issue a certificate: {error}")))?;
        Ok(state.chain(issued.der().clone()).iter().map(to_pem).collect())
    }

    fn issue_for(
        &self,
        key: &SigningRequest,
        (common_name, identity, dns): (&str, &str, Option<&str>),
        usages: Vec<ExtendedKeyUsagePurpose>,
        life: Duration,
    ) -> Result<IssuedCertificate> {
        let (inner, state) = (&self.0, self.0.state.load());
        let now = inner.clock.now();
        let whole = |at: UnixMillis| UnixMillis(at.0.div_euclid(1000).saturating_mul(1000));
        let expires_at = whole((now + life).min(state.expires_at));
        if expires_at <= now {
            let message = "the CA has expired; it has to be made anew before it can issue a certificate";
            return Err(Error::precondition("CA_EXPIRED", message));
        }
        let key = SubjectPublicKeyInfo::from_der(&key.key).map_err(|error| fault(format!("a proven key: {error}")))?;
        let mut params = parameters(common_name, now, expires_at, &inner.random);
        let uri = identity.try_into().map_err(|_| Error::invalid("uri", "must be of ASCII characters"))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        if let Some(dns) = dns {
            let dns = dns.try_into().map_err(|_| Error::invalid("node_id", "must be of ASCII characters"))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let serial = params.serial_number.as_ref().map(|serial| hex::encode(serial.to_bytes())).unwrap_or_default();
        let issued = params.signed_by(&key, &state.issuer);
        let issued = issued.map_err(|error| fault(format!("the CA cannot issue a certificate: {error}")))?;
        Ok(IssuedCertificate {
            pem: issued.pem(),
            serial,
            fingerprint: fingerprint(issued.der()),
            not_before: whole(now - BACKDATE),
            expires_at,
            uri: identity.to_owned(),
            authority: fingerprint(&state.certificate),
        })
    }
}

fn hash_of(key: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, key).as_ref());
    out
}

fn bad(description: &str) -> Error {
    Error::invalid(FIELD, description)
}

/// The public key of a signing request, whose owner has signed it; one that certificates can be made for.
fn public_key(pem: &[u8]) -> Result<Vec<u8>> {
    let not_one = || bad("must be one PKCS #10 signing request in PEM (BEGIN CERTIFICATE REQUEST) and nothing else");
    if pem.len() > MAX_CSR_BYTES {
        return Err(bad(&format!("must have at most {MAX_CSR_BYTES} bytes")));
    }
    let der = one_block(pem).ok_or_else(not_one)?;
    let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| not_one())?;
    if !rest.is_empty() {
        return Err(not_one());
    }
    let key = &csr.certification_request_info.subject_pki;
    let not_allowed = || bad("must have a key of P-256, P-384, Ed25519, or RSA with 2048 to 4096 bits");
    if !allowed(key) {
        return Err(not_allowed());
    }
    let algorithm = &csr.signature_algorithm.algorithm;
    if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(algorithm) || csr.verify_signature().is_err() {
        return Err(bad("must be signed by its own key, with SHA-256, SHA-384, SHA-512 or Ed25519"));
    }
    SubjectPublicKeyInfo::from_der(key.raw).map(|_| key.raw.to_vec()).map_err(|_| not_allowed())
}

/// The only PEM block of a text that holds nothing else.
fn one_block(pem: &[u8]) -> Option<CertificateSigningRequestDer<'static>> {
    let text = std::str::from_utf8(pem).ok()?.trim();
    let body = text.strip_prefix("-----BEGIN ")?.strip_suffix("-----")?;
    let begins = ["CERTIFICATE REQUEST-----", "NEW CERTIFICATE REQUEST-----"].iter().any(|kind| body.starts_with(kind));
    // What is between the first line and the last is base64, which has no dashes.
    let (_, rest) = body.split_once("-----")?;
    let (_, end) = rest.split_once("-----")?;
    let ends = end.starts_with("END ") && !end.contains("-----");
    if !begins || !ends {
        return None;
    }
    // The label with NEW is that of old tools, which the parser does not know.
    CertificateSigningRequestDer::from_pem_slice(text.replace(" NEW ", " ").as_bytes()).ok()
}

fn allowed(key: &x509::SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &key.algorithm.algorithm;
    let bytes: &[u8] = &key.subject_public_key.data;
    if key.subject_public_key.unused_bits != 0 {
        return false;
    }
    if *algorithm == OID_SIG_ED25519 {
        return bytes.len() == 32;
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        // Uncompressed points, which every TLS library reads.
        return bytes.first() == Some(&4)
            && curve.is_some_and(|curve| {
                (curve == OID_EC_P256 && bytes.len() == 65) || (curve == OID_NIST_EC_P384 && bytes.len() == 97)
            });
    }
    *algorithm == OID_PKCS1_RSAENCRYPTION
        && matches!(key.parsed(), Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&bits(key.modulus)))
}

/// Length of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros).map_or(0, |first| (number.len() - zeros) * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests;
