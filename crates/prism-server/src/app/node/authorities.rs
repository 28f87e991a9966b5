//! Whom a node trusts: the cluster's CAs as controllers tell them, on the disk and in its data plane.

use std::sync::Arc;

use prism_identity::ClientTrust;
use prism_rpc::Connections;
use prism_rpc::files::write_atomically;
use prism_rpc::tls::CertificateFacts;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::app::trust::Trust;
use crate::join::identity::{CA, NodeFiles, bundle};

/// The CAs that are in force.
pub struct Authorities<T> {
    files: NodeFiles,
    cluster: String,
    trust: Arc<Trust>,
    told: watch::Receiver<Option<T>>,
    /// The one that issues first.
    current: Vec<CertificateDer<'static>>,
}

impl<T: AsRef<[u8]>> Authorities<T> {
    /// Begins with those on the disk, which `trust` was loaded with; `told` are those of controllers.
    pub fn new(
        files: NodeFiles,
        cluster: &str,
        trust: Arc<Trust>,
        told: watch::Receiver<Option<T>>,
    ) -> Result<Self, String> {
        let current = files.authorities()?;
        Ok(Self { files, cluster: cluster.to_owned(), trust, told, current })
    }

    /// The CAs that are trusted, the one that issues first.
    pub fn current(&self) -> &[CertificateDer<'static>] {
        &self.current
    }

    /// Waits until a controller tells others.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            // The link is over, and with it the node.
            std::future::pending::<()>().await;
        }
    }

    /// Trusts what controllers told last, from now on and after a start; returns whether that is done. What was trusted before
    /// and is not told any more is trusted at once no more, also when the disk is full.
    pub fn take_over(&mut self) -> bool {
        let told = self.told.borrow_and_update().as_ref().map(|pem| pem.as_ref().to_vec());
        let Some(pem) = told else { return true };
        let taken = self.take(&pem);
        if let Err(why) = &taken {
            tracing::error!(why, "the cluster's CA, as a controller tells it, was not taken over; trying again");
        }
        taken.is_ok()
    }

    fn take(&mut self, pem: &[u8]) -> Result<(), String> {
        let own = bundle(pem).ok_or("it is not one or two certificates in PEM")?;
        if own != self.current {
            // Proven before anything is changed.
            ClientTrust::new(&self.cluster, own.clone(), Vec::new()).map_err(|error| error.message().to_owned())?;
            // Connections of the data plane are its own business.
            self.trust.rotate(&own, &Connections::default());
            self.current.clone_from(&own);
            tracing::info!(count = own.len(), "the cluster's CA has changed, and this node trusts what it is now");
        }
        let path = self.files.folder().join(CA);
        if std::fs::read(&path).is_ok_and(|text| text == pem) {
            return Ok(());
        }
        write_atomically(&path, pem, 0o644).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Whether a certificate is of the CA that issues.
    pub fn is_of_issuing(&self, leaf: &CertificateDer<'static>) -> bool {
        self.current.first().is_some_and(|issuing| self.vouches(issuing, leaf))
    }

    /// Whether a certificate is of a CA that is trusted.
    pub fn is_of_trusted(&self, leaf: &CertificateDer<'static>) -> bool {
        self.current.iter().any(|authority| self.vouches(authority, leaf))
    }

    /// Times are not looked at.
    fn vouches(&self, authority: &CertificateDer<'static>, leaf: &CertificateDer<'static>) -> bool {
        let Ok(facts) = CertificateFacts::of(leaf) else { return false };
        let trust = ClientTrust::new(&self.cluster, vec![authority.clone()], Vec::new());
        trust.is_ok_and(|trust| trust.identify(std::slice::from_ref(leaf), facts.begins_at).is_ok())
    }
}
