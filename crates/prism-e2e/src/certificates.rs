//! Certificate authorities of the test's own, and holders of certificates, good ones and odd ones.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

/// Who shows a certificate and can prove to have its key.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The certificate, and those between it and the CA, in PEM.
    pub chain_pem: String,
    /// The private key in PEM.
    pub key_pem: String,
}

impl Holder {
    /// From the two files that a command wrote.
    pub fn read(certificate: &Path, key: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { chain_pem: read(certificate), key_pem: read(key) }
    }

    /// Writes `<name>.crt` and `<name>.key` into a folder.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.chain_pem).expect("the certificate is written");
        std::fs::write(&key, &self.key_pem).expect("the key is written");
        (certificate, key)
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).map(|found| found.expect("PEM")).collect()
    }

    /// The private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("a key in PEM")
    }

    /// SHA-256 of the leaf in lower-case hex.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.chain()[0]))
    }
}

/// A CA whose key the test has.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// The certificates from this CA up to the root, without it.
    between: String,
}

impl Authority {
    /// A root with a new key.
    pub fn new(name: &str) -> Self {
        let (parameters, key) = (authority(name), key());
        let pem = parameters.self_signed(&key).expect("a CA").pem();
        Self { issuer: Issuer::new(parameters, key), pem, between: String::new() }
    }

    /// The CA of a server, with the key that lies in its data directory: for what the server itself would never sign.
    pub fn of_server(data_dir: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(data_dir.join(name)).expect("a file of the CA");
        let (pem, key) = (read("ca.pem"), KeyPair::from_pem(&read("ca.key")).expect("a key"));
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).expect("a CA"), pem, between: String::new() }
    }

    /// A CA below this one.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let (parameters, key) = (authority(name), key());
        let pem = parameters.signed_by(&key, &self.issuer).expect("a CA").pem();
        let between = pem.clone() + &self.between;
        Self { issuer: Issuer::new(parameters, key), pem, between }
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate to `<name>.pem` in a folder.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(format!("{name}.pem"));
        std::fs::write(&path, &self.pem).expect("the CA's certificate is written");
        path
    }

    /// A client's certificate with these names.
    pub fn client(&self, names: Vec<SanType>) -> Holder {
        self.issue(&leaf(names, ExtendedKeyUsagePurpose::ClientAuth))
    }

    /// A server's certificate for the loopback addresses and `localhost`.
    pub fn server(&self) -> Holder {
        let names = vec![
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(std::net::Ipv6Addr::LOCALHOST.into()),
            dns("localhost"),
        ];
        self.issue(&leaf(names, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// A certificate that says whatever it should.
    pub fn issue(&self, parameters: &CertificateParams) -> Holder {
        let key = key();
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        Holder { chain_pem: certificate.pem() + &self.between, key_pem: key.serialize_pem() }
    }
}

/// What a certificate for one purpose says; valid from 2020 to 2099.
pub fn leaf(names: Vec<SanType>, purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = names;
    parameters.distinguished_name.push(DnType::CommonName, "what nobody may rely on");
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![purpose];
    (parameters.not_before, parameters.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1));
    parameters
}

/// A DNS name, or what stands in the place of one.
pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// A URI, or what stands in the place of one.
pub fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

/// An email address, or what stands in the place of one.
pub fn email(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().expect("ASCII"))
}

/// A signing request for a new key, in PEM, and the key.
pub fn signing_request() -> (String, String) {
    let key = key();
    let request = CertificateParams::default().serialize_request(&key).expect("a signing request");
    (request.pem().expect("PEM"), key.serialize_pem())
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (parameters.not_before, parameters.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1));
    parameters
}
