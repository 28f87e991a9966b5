//! Server certificates from the operator's files, read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prism_core::Result;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{ClientVerifier, fault, provider};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// TLS of a listener with the certificate chain of `certificate` (PEM, leaf first) and the private key of `key` (PEM). Changed
/// files are taken over within 10 s of a handshake; broken ones are logged and the last good pair stays in use.
///
/// FAILED_PRECONDITION naming the file when it cannot be read, or the two do not belong together.
pub fn server_config_from_files(
    certificate: &Path,
    key: &Path,
    client_ca: Option<ClientVerifier>,
) -> Result<Arc<ServerConfig>> {
    let paths = Paths { certificate: certificate.to_owned(), key: key.to_owned() };
    let seen = paths.modified();
    let certified = Arc::new(paths.load()?);
    let state = Mutex::new(State { certified, seen, looked: Instant::now() });
    super::server_config(Arc::new(Reloading { paths, state }), client_ca)
}

struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn load(&self) -> Result<CertifiedKey> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| fault(format!("{}: {error}", path.display())));
        let chain = CertificateDer::pem_slice_iter(&read(&self.certificate)?)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| fault(format!("{} is not a certificate in PEM: {error}", self.certificate.display())))?;
        if chain.is_empty() {
            return Err(fault(format!("{} holds no certificate in PEM", self.certificate.display())));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|error| fault(format!("{} is not a private key in PEM: {error}", self.key.display())))?;
        let signing = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| fault(format!("{} is not a usable private key: {error}", self.key.display())))?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(|_| {
            fault(format!("{} and {} do not belong together", self.certificate.display(), self.key.display()))
        })?;
        Ok(certified)
    }

    fn modified(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
    }
}

struct State {
    certified: Arc<CertifiedKey>,
    seen: [Option<SystemTime>; 2],
    looked: Instant,
}

struct Reloading {
    paths: Paths,
    state: Mutex<State>,
}

impl Reloading {
    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.looked) < LOOK_EVERY {
            return state.certified.clone();
        }
        state.looked = now;
        let modified = self.paths.modified();
        if modified != state.seen {
            match self.paths.load() {
                Ok(certified) => {
                    tracing::info!(file = %self.paths.certificate.display(), "the server certificate was read again");
                    state.certified = Arc::new(certified);
                    state.seen = modified;
                }
                // Not marked as seen: the second file of a pair may be on its way.
                Err(error) => tracing::error!(%error, "the changed server certificate cannot be used"),
            }
        }
        state.certified.clone()
    }
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("certificate", &self.paths.certificate).finish_non_exhaustive()
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
        let paths = || Paths { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        write_pair(directory.path(), &["one.example".to_owned()]);
        let first = Arc::new(paths().load().unwrap());
        let state = State { certified: first.clone(), seen: [None; 2], looked: Instant::now() };
        let reloading = Reloading { paths: paths(), state: Mutex::new(state) };
        let mut later = Instant::now();
        write_pair(directory.path(), &["two.example".to_owned()]);
        assert_eq!(reloading.current(later).cert, first.cert);
        later += LOOK_EVERY;
        let second = reloading.current(later);
        assert_ne!(second.cert, first.cert);
        std::fs::write(directory.path().join("key.pem"), "nonsense").unwrap();
        later += LOOK_EVERY;
        assert_eq!(reloading.current(later).cert, second.cert);
    }

    #[test]
    fn faults_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        let message = |certificate: &Path, key: &Path| {
            server_config_from_files(certificate, key, None).unwrap_err().message().to_owned()
        };
        assert!(message(&certificate, &key).contains("cert.pem"));
        write_pair(directory.path(), &["a.example".to_owned()]);
        let other = directory.path().join("other.pem");
        std::fs::copy(&key, &other).unwrap();
        assert!(server_config_from_files(&certificate, &key, None).is_ok());
        write_pair(directory.path(), &["a.example".to_owned()]);
        assert!(message(&certificate, &other).contains("do not belong together"));
        std::fs::write(&certificate, "").unwrap();
        assert!(message(&certificate, &key).contains("no certificate"));
    }
}
