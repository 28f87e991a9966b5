//! The client certificate and its key, from files.

use std::{fs, path::Path, sync::Arc};

use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{
    error::{Failure, Result},
    private_file,
    target::Identity,
};

/// Reads certificate and key, and checks that they belong together. As with ssh, a key that others can read is no key.
pub fn load(identity: &Identity, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>> {
    let (cert, key) = (&identity.cert, &identity.key);
    let chain = chain(cert)?;
    let metadata = fs::metadata(key).map_err(|error| cannot("read the key in", key, &error))?;
    if private_file::is_open_to_others(&metadata) {
        return Err(Failure::usage(format!("the key in {} is not used: others can read it", key.display()))
            .hint(format!("chmod 600 {}", key.display())));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot("use the key in", key, &error))?;
    CertifiedKey::from_der(chain, private, provider).map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Failure::usage(format!(
            "the key in {} does not belong to the certificate in {}",
            key.display(),
            cert.display()
        )),
        error => cannot("use the certificate in", cert, &error),
    })
}

fn chain(cert: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error: &dyn std::fmt::Display| cannot("use the certificate in", cert, error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .map_err(|error| wrong(&error))?
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| wrong(&error))?;
    if chain.is_empty() { Err(wrong(&"there is none")) } else { Ok(chain) }
}

fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs;

    use super::*;
    use crate::exit::Exit;

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            let key = KeyPair::generate().unwrap();
            let cert = CertificateParams::default().self_signed(&key).unwrap();
            files.write("alice.pem", &cert.pem(), 0o644);
            files.write("alice.key", &key.serialize_pem(), 0o600);
            files
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn load(&self) -> Result<Arc<CertifiedKey>> {
            let identity = Identity { cert: self.0.path().join("alice.pem"), key: self.0.path().join("alice.key") };
            load(&identity, &aws_lc_rs::default_provider())
        }

        fn fault(&self) -> String {
            let failure = self.load().unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage);
            failure.to_string()
        }
    }

    #[test]
    fn a_certificate_and_its_key_are_used() {
        assert_eq!(Files::new().load().unwrap().cert.len(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o660] {
            let files = Files::new();
            let path = files.0.path().join("alice.key");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(files.fault().contains("chmod 600"), "{mode:o}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let files = Files::new();
        files.write("alice.key", &KeyPair::generate().unwrap().serialize_pem(), 0o600);
        assert!(files.fault().contains("does not belong"));
        files.write("alice.key", "nonsense", 0o600);
        assert!(files.fault().contains("alice.key"));
        files.write("alice.pem", "nonsense", 0o600);
        assert!(files.fault().contains("alice.pem: there is none"));
        fs::remove_file(files.0.path().join("alice.pem")).unwrap();
        assert!(files.fault().contains("alice.pem"));
        let files = Files::new();
        fs::remove_file(files.0.path().join("alice.key")).unwrap();
        assert!(files.fault().contains("cannot read the key"));
    }
}
