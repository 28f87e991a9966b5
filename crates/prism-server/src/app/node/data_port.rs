//! The certificate of a node's data port, from the cluster's CA over the link. It is on the disk, so that a start without a
//! controller has it too; whatever replaces it there is taken over live.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prism_core::{Clock, UnixMillis};
use prism_link::NodeLink;
use prism_rpc::Shutdown;
use prism_rpc::files::write_atomically;
use prism_rpc::tls::{CertificateFacts, NodeKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::settings::Certificate;

const CERTIFICATE: &str = "data-cert.pem";
const KEY: &str = "data-key.pem";
/// How often it is looked, and asked again.
const LOOK_EVERY: Duration = Duration::from_mins(5);
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
    pub async fn certificate(&self) -> Result<Certificate, String> {
        let mut told = false;
        while self.life().is_none_or(|(_, ends)| ends <= Clock::system().now()) {
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
        Ok(Certificate::Files { cert: self.certificate.clone(), key: self.key.clone() })
    }

    /// Asks for the next one when half of its life is over, until the end is announced.
    pub async fn keep_fresh(self, until: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = until.announced() => return,
            }
            let is_due =
                self.life().is_none_or(|(begins, ends)| Clock::system().now() >= begins + ends.since(begins) / 2);
            if is_due && let Err(why) = self.renew().await {
                tracing::warn!(why, "the certificate of the data port was not renewed; trying again");
            }
        }
    }

    async fn renew(&self) -> Result<(), String> {
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

    /// When it began, and when it ends; `None` = there is none that can be read.
    fn life(&self) -> Option<(UnixMillis, UnixMillis)> {
        let leaf = CertificateDer::from_pem_file(&self.certificate).ok()?;
        let facts = CertificateFacts::of(&leaf).ok()?;
        Some((facts.begins_at, facts.expires_at))
    }
}
