//! Server certificates from the operator's files, read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prism_core::{Result, UnixMillis};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{CertificateAuthority, Renewing, is_host};
use super::{CertificateFacts, ServerTls, Source, facts, fault, provider};
use crate::watched::Watched;

/// What a client offers among its protocols (ALPN) to see a certificate of the cluster's CA; it is never agreed on.
pub const CLUSTER_PROTOCOL: &[u8] = b"prism-cluster";

/// A certificate chain and its key.
pub(super) struct Pair {
    pub certified: Arc<CertifiedKey>,
    pub expires_at: UnixMillis,
}

impl ServerTls {
    /// The certificate chain of `certificate` (PEM, leaf first) with the private key of `key` (PEM).
    ///
    /// FAILED_PRECONDITION naming the file when it cannot be read, or the two do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self> {
        let watched = Arc::new(open(certificate, key)?);
        Self::new(Arc::new(Current(watched.clone())), Source::Files(watched))
    }

    /// The same for an admin port: clients that offer [`CLUSTER_PROTOCOL`], which nodes and machines that join do, see a
    /// certificate of `authority` instead. They trust no other, and must not have to. It has the names of the files' certificate at
    /// the start, and those that every server of Prism has with `names`.
    ///
    /// INVALID_ARGUMENT when one of `names` is neither a DNS name nor an address.
    pub fn from_files_with(
        certificate: &Path,
        key: &Path,
        authority: &CertificateAuthority,
        names: &[String],
    ) -> Result<Self> {
        let watched = Arc::new(open(certificate, key)?);
        let shown = watched.current().certified.cert.first().map(CertificateFacts::of).transpose()?;
        let hosts = shown.into_iter().flat_map(|facts| facts.hosts).filter(|host| is_host(host));
        let names: Vec<String> = names.iter().cloned().chain(hosts).collect();
        let cluster = authority.renewing(&names)?;
        Self::new(Arc::new(ForNodes { files: Current(watched.clone()), cluster }), Source::Files(watched))
    }
}

fn open(certificate: &Path, key: &Path) -> Result<Watched<Pair>> {
    let paths = (certificate.to_owned(), key.to_owned());
    let both = vec![paths.0.clone(), paths.1.clone()];
    Watched::open("the server certificate", both, move |contents| parse(&paths, contents))
}

fn parse((certificate, key): &(PathBuf, PathBuf), contents: &[Vec<u8>]) -> Result<Pair> {
    let [chain_pem, key_pem] = contents else { return Err(fault("a certificate and a key are two files")) };
    let shown = (certificate.display(), key.display());
    let chain = CertificateDer::pem_slice_iter(chain_pem)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| fault(format!("{} is not a certificate in PEM: {error}", shown.0)))?;
    if chain.is_empty() {
        return Err(fault(format!("{} holds no certificate in PEM", shown.0)));
    }
    let expires_at = facts::first_end(&chain).map_err(|error| fault(format!("{}: {}", shown.0, error.message())))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| fault(format!("{} is not a private key in PEM: {error}", shown.1)))?;
    let signing = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| fault(format!("{} is not a usable private key: {error}", shown.1)))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| fault(format!("{} and {} do not belong together", shown.0, shown.1)))?;
    Ok(Pair { certified: Arc::new(certified), expires_at })
}

/// Hands out the last good pair.
struct Current(Arc<Watched<Pair>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified.clone())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hands out the pair, or a certificate of the cluster's CA to those who ask for one.
#[derive(Debug)]
struct ForNodes {
    files: Current,
    cluster: Arc<Renewing>,
}

impl ResolvesServerCert for ForNodes {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asks = hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == CLUSTER_PROTOCOL));
        if asks { self.cluster.resolve(hello) } else { self.files.resolve(hello) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(directory: &Path, names: &[String]) {
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_changed_pair_is_taken_over_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        write_pair(directory.path(), &["one.example".to_owned()]);
        let tls = ServerTls::from_files(&directory.path().join("cert.pem"), &directory.path().join("key.pem")).unwrap();
        let Source::Files(watched) = &tls.source else { panic!("not of files") };
        let current = || watched.current().certified.cert.clone();
        let first = current();
        write_pair(directory.path(), &["two.example".to_owned()]);
        assert_eq!(current(), first);
        watched.look();
        watched.look();
        let second = current();
        assert_ne!(second, first);
        std::fs::write(directory.path().join("key.pem"), "nonsense").unwrap();
        watched.look();
        watched.look();
        assert_eq!(current(), second);
    }

    #[test]
    fn faults_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let message =
            |certificate: &Path, key: &Path| ServerTls::from_files(certificate, key).unwrap_err().message().to_owned();
        assert!(message(&certificate, &key).contains("cert.pem"));
        write_pair(directory.path(), &["a.example".to_owned()]);
        let other = directory.path().join("other.pem");
        std::fs::copy(&key, &other).unwrap();
        assert!(ServerTls::from_files(&certificate, &key).is_ok());
        write_pair(directory.path(), &["a.example".to_owned()]);
        assert!(message(&certificate, &other).contains("do not belong together"));
        std::fs::write(&certificate, "").unwrap();
        assert!(message(&certificate, &key).contains("no certificate"));
    }
}
