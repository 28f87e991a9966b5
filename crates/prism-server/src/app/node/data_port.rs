//! The certificate of a node's data port, from the cluster's CA over the link. It is on the disk, so that a start without a
//! controller has it too; whatever replaces it there is taken over live.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prism_core::Clock;
use prism_link::NodeLink;
use prism_rpc::files::write_atomically;
use prism_rpc::tls::{CertificateFacts, NodeKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::settings::Certificate;

const CERTIFICATE: &str = "data-cert.pem";
const KEY: &str = "data-key.pem";
/// How long to wait for a controller at the start before it is asked again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The certificate and its key.
pub struct DataPort {
    certificate: PathBuf,
    key: PathBuf,
    link: Arc<NodeLink>,
}

impl DataPort {
    /// In `folder`.
    pub fn new(folder: &Path, link: &Arc<NodeLink>) -> Self {
        Self { certificate: folder.join(CERTIFICATE), key: folder.join(KEY), link: Arc::clone(link) }
    }

    /// What is on the disk, or the first one from a controller; waits for a controller as long as it takes.
    pub async fn certificate(&self) -> Certificate {
        let mut told = false;
        while self.life().is_none_or(|life| life.expires_at <= Clock::system().now()) {
            match self.renew().await {
                Ok(()) => break,
                Err(why) if !told => {
                    tracing::warn!(why, "the data port has no certificate yet; waiting for a controller");
                    told = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Certificate::Files { cert: self.certificate.clone(), key: self.key.clone() }
    }

    /// Whether clients that trust any of `authorities`, the one that issues first, can verify what the port shows, and see no other
    /// CA than these.
    pub fn stands_on(&self, authorities: &[CertificateDer<'static>]) -> bool {
        let shown = CertificateDer::pem_file_iter(&self.certificate).and_then(Iterator::collect);
        let shown: Vec<CertificateDer<'static>> = shown.unwrap_or_default();
        stands_on(&shown, authorities)
    }

    /// Asks for the next one, and puts it where the port takes it over.
    pub async fn renew(&self) -> Result<(), String> {
        let said = |error: prism_core::Error| error.message().to_owned();
        let key = match std::fs::read_to_string(&self.key) {
            Ok(pem) => NodeKey::from_pem(&pem).map_err(said)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = NodeKey::generate().map_err(said)?;
                write_atomically(&self.key, key.to_pem().as_bytes(), 0o600).map_err(|error| error.to_string())?;
                key
            }
            Err(error) => return Err(error.to_string()),
        };
        let request = key.signing_request().map_err(said)?;
        let chain = self.link.server_certificate(request.into_bytes()).await.map_err(said)?;
        let leaf = CertificateDer::from_pem_slice(&chain).map_err(|error| error.to_string())?;
        if CertificateFacts::of(&leaf).map_err(said)?.public_key != key.public_key() {
            return Err("the certificate is for another key".to_owned());
        }
        write_atomically(&self.certificate, &chain, 0o644).map_err(|error| error.to_string())
    }

    /// What the certificate says; `None` = there is none that can be read.
    pub fn life(&self) -> Option<CertificateFacts> {
        let leaf = CertificateDer::from_pem_file(&self.certificate).ok()?;
        CertificateFacts::of(&leaf).ok()
    }
}

fn stands_on(shown: &[CertificateDer<'static>], authorities: &[CertificateDer<'static>]) -> bool {
    // The leaf, during a rotation the old CA's certificate of the new one, and the CAs.
    let before = if authorities.len() > 1 { 2 } else { 1 };
    shown.len() == before + authorities.len() && shown.ends_with(authorities)
}

#[cfg(test)]
mod tests {
    use prism_rpc::CertificateAuthority;
    use prism_rpc::tls::{NodeCertificate, SigningRequest};

    use super::*;

    #[test]
    fn what_the_port_shows_is_of_the_cas_that_are_in_force_and_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::load_or_create(folder.path()).unwrap();
        let key = SigningRequest::parse(NodeKey::generate().unwrap().signing_request().unwrap().as_bytes()).unwrap();
        let uri = "spiffe://prism-0123456789abcdef/node/n1".to_owned();
        let wanted = NodeCertificate { uri, node_id: "n1".to_owned(), life: Duration::from_hours(1) };
        let now = || {
            let chain = authority.issue_node_server(&wanted, &key).unwrap();
            let shown = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
            (shown, authority.trusted())
        };
        let mut states = vec![now()];
        authority.settle(&authority.plan_rotation().unwrap().name).unwrap();
        states.push(now());
        authority.settle(&authority.plan_retirement().unwrap().name).unwrap();
        states.push(now());
        for (at, (shown, _)) in states.iter().enumerate() {
            for (then, (_, authorities)) in states.iter().enumerate() {
                assert_eq!(stands_on(shown, authorities), at == then, "{at} {then}");
            }
        }
        assert!(!stands_on(&[], &states[0].1));
    }
}
