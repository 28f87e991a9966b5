//! Keys of nodes: those that a node makes for itself, and those that come in one file with their certificate, for whoever cannot
//! make a signing request.

use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKeyChain};
use prism_core::Result;
use prism_core::secret::Random;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::fault;

/// Rounds of PBKDF2 and of the MAC. The password has 192 random bits, so they add nothing; readers refuse silly numbers.
const ROUNDS: u64 = 10_000;

/// A private key of a node; `Debug` never shows it.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new P-256 key.
    pub fn generate() -> Result<Self> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|error| fault(format!("no key: {error}")))
    }

    /// Reads a key in PEM; FAILED_PRECONDITION when it is not one.
    pub fn from_pem(pem: &str) -> Result<Self> {
        KeyPair::from_pem(pem).map(Self).map_err(|error| fault(format!("is not a private key in PEM: {error}")))
    }

    /// The key itself in PEM, for a file that nobody else may read.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Its public key (SubjectPublicKeyInfo in DER), as [`super::CertificateFacts::public_key`] has it.
    pub fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// A signing request for it, in PEM.
    pub fn signing_request(&self) -> Result<String> {
        let request = CertificateParams::default().serialize_request(&self.0).and_then(|request| request.pem());
        request.map_err(|error| fault(format!("no signing request: {error}")))
    }

    /// PKCS#12 with the key, `certificate_pem` and its CA under `name`, and the password that opens it: AES-256 and SHA-256, which
    /// OpenSSL 3 and Java since 8u301 read.
    pub fn keystore(
        &self,
        name: &str,
        certificate_pem: &[u8],
        ca_pem: &[u8],
        random: &Random,
    ) -> Result<(Vec<u8>, String)> {
        let failed = |error: p12_keystore::error::Error| fault(format!("no keystore: {error}"));
        let certificate = |pem: &[u8]| {
            let der = CertificateDer::from_pem_slice(pem).map_err(|error| fault(format!("no certificate: {error}")))?;
            Certificate::from_der(&der).map_err(failed)
        };
        let chain = [certificate(certificate_pem)?, certificate(ca_pem)?];
        let mut password = [0; 24];
        random.fill(&mut password);
        let password = hex::encode(password);
        let key = self.0.serialize_der();
        let mut store = KeyStore::new();
        store.add_entry(name, KeyStoreEntry::PrivateKeyChain(PrivateKeyChain::new(key, name.as_bytes(), chain)));
        let written = store.writer(&password).encryption_iterations(ROUNDS).mac_iterations(ROUNDS).write();
        Ok((written.map_err(failed)?, password))
    }
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(…)")
    }
}
