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
use prism_rpc::tls::{CertificateFacts, NodeKey, first_end, vouches};
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
/// Certificates of CAs for each other that are looked at.
const MAX_LINKS: usize = 4;

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
        let named = authorities.iter().find(|ca| fingerprint_of(ca) == authority);
        let named = named.ok_or("its CA is not the one that the token names")?;
        let links = CertificateDer::pem_slice_iter(&answer.ca_links_pem).take(MAX_LINKS);
        let links = links.collect::<Result<Vec<_>, _>>().map_err(|_| "what its CAs say of each other is not in PEM")?;
        // Whom the token does not name, the one that it names must vouch for.
        for other in authorities.iter().filter(|ca| *ca != named) {
            if !links.iter().any(|link| vouches(named, other, link, now)) {
                return Err(
                    "it names a second CA that the one of the token does not vouch for; somebody stands in between, or the controller \
                     is older than this program"
                        .to_owned(),
                );
            }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prism_core::Clock;
    use prism_rpc::CertificateAuthority;
    use prism_rpc::tls::{NodeCertificate, SigningRequest};

    use super::*;

    const NODE: &str = "n1";

    /// A CA, the one that takes its place, and what a node gets for its key meanwhile.
    struct Rotation {
        old: AuthorityFingerprint,
        new: AuthorityFingerprint,
        key: NodeKey,
        answer: ExchangeJoinTokenResponse,
    }

    impl Rotation {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let authority = CertificateAuthority::load_or_create(folder.path()).unwrap();
            let old = authority.fingerprint();
            let plan = authority.plan_rotation().unwrap();
            authority.settle(&plan.name).unwrap();
            let key = NodeKey::generate().unwrap();
            let request = SigningRequest::parse(key.signing_request().unwrap().as_bytes()).unwrap();
            let (uri, node_id) = ("spiffe://prism-1/node/n1".to_owned(), NODE.to_owned());
            let wanted = NodeCertificate { uri, node_id, life: Duration::from_hours(1) };
            let issued = authority.issue_node(&wanted, &request).unwrap();
            let answer = ExchangeJoinTokenResponse {
                certificate_pem: issued.pem.into_bytes().into(),
                ca_certificate_pem: authority.certificate_pem().into_bytes().into(),
                ca_links_pem: authority.links_pem().into_bytes().into(),
                ..Default::default()
            };
            Self { old, new: authority.fingerprint(), key, answer }
        }

        fn check(&self, answer: &ExchangeJoinTokenResponse, named: AuthorityFingerprint) -> Result<(), String> {
            let node_id = NodeId::parse("node_id", NODE).unwrap();
            Proven::check(answer, &self.key, &node_id, named, Clock::system().now()).map(drop)
        }
    }

    fn certificates(pem: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(pem).unwrap();
        text.split_inclusive("-----END CERTIFICATE-----\n").map(ToOwned::to_owned).collect()
    }

    #[test]
    fn a_token_of_either_ca_of_a_rotation_proves_both() {
        let rotation = Rotation::new();
        rotation.check(&rotation.answer, rotation.old).unwrap();
        rotation.check(&rotation.answer, rotation.new).unwrap();
    }

    #[test]
    fn a_second_ca_that_the_first_does_not_vouch_for_is_refused() {
        let (rotation, stranger) = (Rotation::new(), Rotation::new());
        let (own, forged) =
            (certificates(&rotation.answer.ca_certificate_pem), certificates(&stranger.answer.ca_certificate_pem));
        let links = [rotation.answer.ca_links_pem.clone(), stranger.answer.ca_links_pem.clone()].concat();
        let refused = |ca: String, links: &[u8], named| {
            let answer = ExchangeJoinTokenResponse {
                ca_certificate_pem: ca.into_bytes().into(),
                ca_links_pem: links.to_vec().into(),
                ..rotation.answer.clone()
            };
            let said = rotation.check(&answer, named).unwrap_err();
            assert!(said.contains("does not vouch"), "{said}");
        };
        for other in &forged {
            refused(format!("{}{other}", own[0]), &links, rotation.new);
            // The certificate of the node is the forger's business as well, so he may have one of his own CA.
            refused(format!("{other}{}", own[1]), &links, rotation.old);
        }
        // Those that are right prove nothing to who is not given the proof.
        refused(own.concat(), b"", rotation.old);
        refused(own.concat(), &stranger.answer.ca_links_pem, rotation.new);
        refused(own.concat(), certificates(&rotation.answer.ca_links_pem)[1].as_bytes(), rotation.old);
    }
}
