use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prism_core::{Error, Result, UnixMillis};
use prism_proto::admin::v1::AuditCheckpoint;
use prism_proto::audit_checkpoint::{key_id, signed_bytes};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::bootstrap::write_secret;

/// Name of the file with the key that signs checkpoints, in the data directory.
pub const AUDIT_KEY: &str = "audit.key";

/// What is signed to have a key for seals; no checkpoint has this form.
const SEALING: &[u8] = b"prism: key of seals, version 1";

/// The key with which an installation vouches for its audit log.
pub struct Signer {
    pair: Ed25519KeyPair,
    key_id: String,
    sealing: hmac::Key,
}

impl Signer {
    /// Loads `audit.key` (Ed25519, PKCS#8 in PEM, 0600) of `data_dir`, or makes it when there is none and nothing was ever
    /// signed.
    ///
    /// FAILED_PRECONDITION `AUDIT_KEY_UNUSABLE`, naming the file and what to do, when it is missing although `signed_before`,
    /// unreadable, or open to others: everyone who remembers the old key would take a new one for a forgery.
    pub fn load_or_create(data_dir: &Path, signed_before: bool) -> Result<Self> {
        let path = data_dir.join(AUDIT_KEY);
        let unusable = |why: fmt::Arguments<'_>| unusable(format!("{}: {why}", path.display()));
        match std::fs::read(&path) {
            Ok(pem) => {
                let mode = std::fs::metadata(&path).map_err(|error| unusable(format_args!("{error}")))?;
                if mode.permissions().mode() & 0o077 != 0 {
                    return Err(unusable(format_args!("it can be read by others; run: chmod 600 {}", path.display())));
                }
                Self::parse(&pem).map_err(|why| unusable(format_args!("{why}")))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && signed_before => Err(unusable(format_args!(
                "it is missing, and the audit log was signed with it; restore it from a backup; a new one \
                 (openssl genpkey -algorithm ed25519) would be taken for a forgery by everyone who remembers the old one"
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pair = Ed25519KeyPair::generate().map_err(Error::internal)?;
                let document = pair.to_pkcs8v1().map_err(Error::internal)?;
                write_secret(data_dir, AUDIT_KEY, &pem(document.as_ref()))?;
                Ok(Self::new(pair))
            }
            Err(error) => Err(unusable(format_args!("{error}"))),
        }
    }

    fn parse(pem: &[u8]) -> Result<Self, String> {
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| format!("it is not PKCS#8 in PEM: {error}"))?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        pair.map(Self::new).map_err(|error| format!("it is not an Ed25519 key: {error}"))
    }

    fn new(pair: Ed25519KeyPair) -> Self {
        let key_id = key_id(pair.public_key().as_ref());
        // Signatures of Ed25519 are always the same, and nobody is shown this one.
        let sealing = hmac::Key::new(hmac::HMAC_SHA256, pair.sign(SEALING).as_ref());
        Self { pair, key_id, sealing }
    }

    /// What proves later that this installation has said `words`, to itself.
    pub fn seal(&self, words: &[u8]) -> Vec<u8> {
        hmac::sign(&self.sealing, words).as_ref().to_vec()
    }

    /// Whether `seal` is that of `words`.
    pub fn has_sealed(&self, words: &[u8], seal: &[u8]) -> bool {
        hmac::verify(&self.sealing, words, seal).is_ok()
    }

    /// The public key, 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Signs that the entry with `sequence` has `hash`; `cut` when the entries up to it are removed with this.
    pub fn sign(&self, sequence: i64, hash: [u8; 32], at: UnixMillis, cut: bool) -> AuditCheckpoint {
        let mut checkpoint = AuditCheckpoint {
            sequence: sequence as u64,
            hash: hash.to_vec().into(),
            time: Some(prost_types::Timestamp {
                seconds: at.0.div_euclid(1000),
                nanos: (at.0.rem_euclid(1000) * 1_000_000) as i32,
            }),
            key_id: self.key_id.clone(),
            public_key: self.public_key().to_vec().into(),
            signature: bytes::Bytes::new(),
            cut,
        };
        checkpoint.signature = self.pair.sign(&signed_bytes(&checkpoint)).as_ref().to_vec().into();
        checkpoint
    }

    /// Whether `checkpoint` was signed with this key.
    pub fn signed(&self, checkpoint: &AuditCheckpoint) -> bool {
        checkpoint.public_key.as_ref() == self.public_key() && is_signed(checkpoint)
    }
}

/// Whether the signature of `checkpoint` is that of the key it names, whosever that is.
pub(crate) fn is_signed(checkpoint: &AuditCheckpoint) -> bool {
    let key = UnparsedPublicKey::new(&ED25519, &checkpoint.public_key);
    checkpoint.public_key.len() == 32
        && checkpoint.key_id == key_id(&checkpoint.public_key)
        && key.verify(&signed_bytes(checkpoint), &checkpoint.signature).is_ok()
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.key_id)
    }
}

fn pem(document: &[u8]) -> String {
    // 48 bytes: one line.
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", STANDARD.encode(document))
}

fn unusable(message: String) -> Error {
    Error::precondition("AUDIT_KEY_UNUSABLE", message)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_760_000_000_123);

    #[test]
    fn the_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = Signer::load_or_create(folder.path(), false).unwrap();
        let again = Signer::load_or_create(folder.path(), true).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        let path = folder.path().join(AUDIT_KEY);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().all(|line| line.len() <= 64), "{text}");
        let secret = text.lines().nth(1).unwrap();
        assert!(!format!("{first:?}").contains(&secret[24..]) && format!("{first:?}").len() < 40);
    }

    #[test]
    fn a_seal_is_of_one_installation_and_of_what_was_said() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let seal = Signer::load_or_create(folder.path(), false).unwrap().seal(b"words");
        let again = Signer::load_or_create(folder.path(), true).unwrap();
        assert!(again.has_sealed(b"words", &seal), "a later life of it knows");
        assert!(!again.has_sealed(b"other words", &seal) && !again.has_sealed(b"words", &seal[..31]));
        assert!(!again.has_sealed(b"words", b""));
        let other = Signer::load_or_create(other.path(), false).unwrap();
        assert!(!other.has_sealed(b"words", &seal) && other.seal(b"words") != seal);
    }

    #[test]
    fn a_key_of_openssl_is_taken() {
        // RFC 8410, section 10.3.
        let pem = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let signer = Signer::parse(pem).unwrap();
        assert_eq!(signer.public_key()[..4], [0x19, 0xbf, 0x44, 0x09]);
    }

    #[test]
    fn what_is_no_safe_key_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |signed_before| Signer::load_or_create(folder.path(), signed_before).unwrap_err();
        assert!(refused(true).message().contains("restore it from a backup"));
        drop(Signer::load_or_create(folder.path(), false).unwrap());
        let path = folder.path().join(AUDIT_KEY);
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(refused(true).message().contains("chmod 600"));
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for nonsense in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            std::fs::write(&path, nonsense).unwrap();
            assert_eq!(refused(true).reason(), "AUDIT_KEY_UNUSABLE", "{nonsense}");
        }
    }

    #[test]
    fn every_field_is_signed() {
        let signer = Signer::new(Ed25519KeyPair::generate().unwrap());
        let other = Signer::new(Ed25519KeyPair::generate().unwrap());
        let good = signer.sign(7, [1; 32], NOW, false);
        assert!(signer.signed(&good) && is_signed(&good));
        assert!(!other.signed(&good));
        let mut bad = vec![good.clone(); 7];
        bad[0].sequence = 8;
        bad[1].hash = vec![2; 32].into();
        bad[2].time = None;
        bad[3].key_id = "0".repeat(16);
        bad[4].public_key = other.public_key().to_vec().into();
        bad[5].signature = vec![0; 64].into();
        bad[6].cut = true;
        for (field, bad) in bad.iter().enumerate() {
            assert!(!is_signed(bad) && !signer.signed(bad), "{field}");
        }
    }
}
