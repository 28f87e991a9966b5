//! What a certificate says of itself, read strictly.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use super::name::Names;
use super::{CertificateRefused, Window, refused};

/// A certificate that is fit for client authentication; proves nothing until its chain is verified.
pub struct Leaf {
    /// When it is valid.
    pub window: Window,
    /// Serial number in lower-case hex.
    pub serial: String,
    /// Its subject alternative names.
    pub names: Names,
}

impl Leaf {
    /// Reads a certificate, or says why it cannot be a client's.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateRefused> {
        let certificate = whole(der).ok_or_else(|| refused("it is not an X.509 certificate of version 3"))?;
        let odd = |_| refused("it has odd or repeated extensions");
        if certificate.basic_constraints().map_err(odd)?.is_some_and(|constraints| constraints.value.ca) {
            return Err(refused("it is that of a CA"));
        }
        let usage = certificate.extended_key_usage().map_err(odd)?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(refused("it is not for client authentication"));
        }
        if certificate.key_usage().map_err(odd)?.is_some_and(|usage| !usage.value.digital_signature()) {
            return Err(refused("its key must not sign (key usage)"));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(odd)?
            .ok_or_else(|| refused("it has no subject alternative name"))?;
        Ok(Self {
            window: validity(&certificate),
            serial: serial(certificate.raw_serial()),
            names: read_names(&names.value.general_names)?,
        })
    }
}

fn read_names(names: &[GeneralName<'_>]) -> Result<Names, CertificateRefused> {
    let mut out = Names::default();
    for name in names {
        match name {
            GeneralName::URI(uri) => out.uris.push((*uri).to_owned()),
            GeneralName::DNSName(dns) => out.dns.push((*dns).to_owned()),
            GeneralName::RFC822Name(email) => out.emails.push((*email).to_owned()),
            GeneralName::Invalid(..) => return Err(refused("one of its names cannot be read")),
            _ => {}
        }
    }
    Ok(out)
}

fn serial(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    hex::encode(bytes.get(zeros..).unwrap_or_default())
}

/// Parses a certificate of version 3 with nothing behind it.
pub fn whole<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    (rest.is_empty() && certificate.version() == X509Version::V3).then_some(certificate)
}

/// When a parsed certificate is valid.
pub fn validity(certificate: &X509Certificate<'_>) -> Window {
    let validity = certificate.validity();
    Window { begin: validity.not_before.timestamp(), end: validity.not_after.timestamp() }
}

/// When a certificate is valid.
pub fn window(der: &CertificateDer<'_>) -> Option<Window> {
    whole(der).as_ref().map(validity)
}
