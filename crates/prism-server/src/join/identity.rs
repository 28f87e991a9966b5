//! A node's identity on the disk: `node/key.pem`, `ca.pem`, `cert.pem`, and `node.json`, which is written last.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use prism_core::secret::AuthorityFingerprint;
use prism_core::{NodeId, UnixMillis};
use prism_identity::{CertificateKind, ClientTrust};
use prism_proto::cluster::v1::ExchangeJoinTokenResponse;
use prism_rpc::files::{is_open_to_others, write_atomically};
use prism_rpc::tls::{CertificateFacts, NodeKey, first_end};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

/// Folder of the identity, in the data directory.
pub const FOLDER: &str = "node";
/// The cluster's CA, or the two of a rotation.
pub const CA: &str = "ca.pem";
/// The node's key.
pub const KEY: &str = "key.pem";
/// The node's certificate.
pub const CERTIFICATE: &str = "cert.pem";
const IDENTITY: &str = "node.json";

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its id.
    pub node_id: String,
    /// Name of its cluster.
    pub cluster: String,
    /// Public id of the token that it joined with last.
    pub token_id: String,
    /// Admin ports of controllers, `host:port`.
    pub controllers: Vec<String>,
}

/// A controller's answer, proven to be what was asked for.
#[derive(Debug)]
pub struct Proven {
    /// Name of the cluster.
    pub cluster: String,
    certificate_pem: Vec<u8>,
    ca_pem: Vec<u8>,
}

impl Proven {
    /// Checks that the answer holds the CA that the token names, and a valid certificate of its CAs for this key and this node; says
    /// what is wrong otherwise.
    pub fn check(
        answer: &ExchangeJoinTokenResponse,
        key: &NodeKey,
        node_id: &NodeId,
        authority: AuthorityFingerprint,
        now: UnixMillis,
    ) -> Result<Self, String> {
        // During a rotation there are two.
        let authorities = bundle(&answer.ca_certificate_pem).ok_or("its CA is not a certificate in PEM")?;
        if !authorities.iter().any(|ca| fingerprint_of(ca) == authority) {
            return Err("its CA is not the one that the token names".to_owned());
        }
        let leaf = certificate(&answer.certificate_pem).ok_or("it holds no certificate in PEM")?;
        let facts = CertificateFacts::of(&leaf).map_err(|error| error.message().to_owned())?;
        if facts.public_key != key.public_key() {
            return Err("its certificate is for another key".to_owned());
        }
        if facts.expires_at <= now {
            return Err("its certificate has expired; check this machine's clock, or ask for another token".to_owned());
        }
        let cluster = cluster_of(&leaf).ok_or("its certificate names no cluster")?;
        let trust = ClientTrust::new(&cluster, authorities, Vec::new()).map_err(|error| error.message().to_owned())?;
        let found =
            trust.identify(&[leaf], now).map_err(|refused| format!("its certificate is not good: {refused}"))?;
        if found.kind != CertificateKind::Node || found.name != node_id.as_str() {
            return Err(format!("its certificate is for {}", found.identity));
        }
        Ok(Self {
            cluster,
            certificate_pem: answer.certificate_pem.to_vec(),
            ca_pem: answer.ca_certificate_pem.to_vec(),
        })
    }
}

/// The files of an identity.
#[derive(Clone, Debug)]
pub struct NodeFiles {
    folder: PathBuf,
}

impl NodeFiles {
    /// Whether the data directory holds an identity.
    pub fn are_in(data: &Path) -> bool {
        data.join(FOLDER).join(IDENTITY).is_file()
    }

    /// Makes the folder, for its owner only, in the data directory `data`.
    pub fn open(data: &Path) -> Result<Self, String> {
        let folder = data.join(FOLDER);
        let failed = |error: io::Error| format!("{} cannot be made: {error}", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        Ok(Self { folder })
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The identity that is there, if one is there as a whole.
    pub fn read(&self) -> Result<Option<Identity>, String> {
        let path = self.path(IDENTITY);
        let shown = path.display();
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{shown}: {error}")),
            Ok(text) => {
                let parsed = serde_json::from_slice(&text);
                parsed.map(Some).map_err(|error| format!("{shown} is damaged: {error}; remove the folder to join anew"))
            }
        }
    }

    /// Whether the certificate that is there is valid at `now`.
    pub fn is_valid(&self, now: UnixMillis) -> bool {
        self.life().is_ok_and(|facts| now < facts.expires_at)
    }

    /// The certificate that is there.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, String> {
        let path = self.path(CERTIFICATE);
        let pem = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        certificate(&pem).ok_or_else(|| format!("{} is not one certificate in PEM", path.display()))
    }

    /// What the certificate that is there says, and with it when it ends.
    pub fn life(&self) -> Result<CertificateFacts, String> {
        let facts = CertificateFacts::of(&self.certificate()?);
        facts.map_err(|error| format!("{}: {}", self.path(CERTIFICATE).display(), error.message()))
    }

    /// The cluster's CAs as they are known, the one that issues first.
    pub fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        authorities_of(&self.path(CA))
    }

    /// When the first of them ends; `None` when they cannot be read.
    pub fn authorities_end(&self) -> Option<UnixMillis> {
        first_end(&self.authorities().ok()?).ok()
    }

    /// The node's key: the one that is there, or a new one, which is on the disk before this returns.
    pub fn key(&self) -> Result<NodeKey, String> {
        let path = self.path(KEY);
        let shown = path.display();
        match fs::read_to_string(&path) {
            Ok(pem) => {
                if is_open_to_others(&path).map_err(|error| format!("{shown}: {error}"))? {
                    return Err(format!("{shown} can be read by others; run: chmod 600 {shown}"));
                }
                NodeKey::from_pem(&pem)
                    .map_err(|error| format!("{shown} {}; remove the folder to join anew", error.message()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.new_key(),
            Err(error) => Err(format!("{shown}: {error}")),
        }
    }

    /// A new key in place of the one that is there, on the disk before this returns.
    pub fn new_key(&self) -> Result<NodeKey, String> {
        let path = self.path(KEY);
        let key = NodeKey::generate().map_err(|error| error.message().to_owned())?;
        let written = write_atomically(&path, key.to_pem().as_bytes(), 0o600);
        written.map(|()| key).map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }

    /// Writes what was proven; whole is what has a `node.json`.
    pub fn write(&self, identity: &Identity, proven: &Proven) -> Result<(), String> {
        let json = serde_json::to_vec_pretty(identity).map_err(|error| error.to_string())?;
        for (name, contents) in [(CA, &proven.ca_pem), (CERTIFICATE, &proven.certificate_pem), (IDENTITY, &json)] {
            let path = self.path(name);
            write_atomically(&path, contents, 0o644)
                .map_err(|error| format!("{} cannot be written: {error}; repeat the same command", path.display()))?;
        }
        Ok(())
    }
}

/// The only certificate of a PEM text.
fn certificate(pem: &[u8]) -> Option<CertificateDer<'static>> {
    let mut found = CertificateDer::pem_slice_iter(pem);
    let first = found.next()?.ok()?;
    found.next().is_none().then_some(first)
}

/// The fingerprint of a CA's certificate as tokens carry it.
pub fn fingerprint_of(certificate: &CertificateDer<'_>) -> AuthorityFingerprint {
    AuthorityFingerprint::of_certificate(certificate)
}

/// The CAs in a file.
pub fn authorities_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    bundle(&pem).ok_or_else(|| format!("{} is not one or two certificates in PEM", path.display()))
}

/// The certificates of a PEM text, at least one and at most those of a rotation.
pub fn bundle(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).take(3).collect::<Result<Vec<_>, _>>().ok()?;
    (1..=2).contains(&found.len()).then_some(found)
}

/// The cluster in the URI of a certificate.
fn cluster_of(leaf: &CertificateDer<'_>) -> Option<String> {
    let uri = CertificateFacts::of(leaf).ok()?.uri?;
    let (cluster, _) = uri.strip_prefix("spiffe://")?.split_once('/')?;
    Some(cluster.to_owned())
}
