//! Whom a node trusts: the cluster's CAs as controllers tell them, on the disk and in its data plane.

use std::sync::Arc;

use prism_identity::ClientTrust;
use prism_link::bounds::MAX_AUTHORITIES_BYTES;
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
    /// Whether `told` is not looked at yet.
    is_news: bool,
    /// The one that issues first.
    current: Vec<CertificateDer<'static>>,
    /// What was told last and is not taken over yet.
    pending: Option<Vec<u8>>,
    /// What was told last and is of no use.
    unusable: Option<Vec<u8>>,
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
        Ok(Self {
            files,
            cluster: cluster.to_owned(),
            trust,
            told,
            is_news: true,
            current,
            pending: None,
            unusable: None,
        })
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
        self.is_news = true;
    }

    /// Trusts what controllers told last, from now on and after a start; returns whether nothing is left to be tried again. What was
    /// trusted before and is not told any more is trusted at once no more, also when the disk is full.
    pub fn take_over(&mut self) -> bool {
        if std::mem::take(&mut self.is_news) || self.told.has_changed().unwrap_or(false) {
            let told = self.told.borrow_and_update().as_ref().map(|pem| pem.as_ref().to_vec());
            self.pending = told.or(self.pending.take());
        }
        self.take_pending()
    }

    /// The same with what a controller told otherwise than over the link; what comes over the link later counts more.
    pub fn heard(&mut self, pem: &[u8]) -> bool {
        self.pending = Some(pem.to_vec());
        self.take_pending()
    }

    fn take_pending(&mut self) -> bool {
        let Some(pem) = self.pending.take() else { return true };
        if let Err(why) = self.trust(&pem) {
            // It will not be better the next time.
            if self.unusable.as_ref() != Some(&pem) {
                tracing::error!(
                    why,
                    "the cluster's CA, as a controller tells it, is of no use; this node trusts what it did"
                );
                self.unusable = Some(pem);
            }
            return true;
        }
        self.unusable = None;
        let kept = self.keep(&pem);
        if let Err(why) = &kept {
            tracing::error!(why, "the cluster's CA, as a controller tells it, is trusted, but not kept; trying again");
            self.pending = Some(pem);
        }
        kept.is_ok()
    }

    fn trust(&mut self, pem: &[u8]) -> Result<(), String> {
        if pem.len() > MAX_AUTHORITIES_BYTES {
            return Err(format!("it has more than {MAX_AUTHORITIES_BYTES} bytes"));
        }
        let own = bundle(pem).ok_or("it is not one or two certificates in PEM")?;
        if own != self.current {
            // Proven before anything is changed.
            ClientTrust::new(&self.cluster, own.clone(), Vec::new()).map_err(|error| error.message().to_owned())?;
            // Connections of the data plane are its own business.
            self.trust.rotate(&own, &Connections::default());
            self.current.clone_from(&own);
            tracing::info!(count = own.len(), "the cluster's CA has changed, and this node trusts what it is now");
        }
        Ok(())
    }

    fn keep(&self, pem: &[u8]) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use prism_rpc::CertificateAuthority;
    use prism_rpc::tls::{ClientCertificate, NodeKey};
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::settings::ClientCa;

    const CLUSTER: &str = "prism-0123456789abcdef";

    struct World {
        cluster: CertificateAuthority,
        trust: Arc<Trust>,
        tell: watch::Sender<Option<Vec<u8>>>,
        node: Authorities<Vec<u8>>,
        _folders: [tempfile::TempDir; 2],
    }

    impl World {
        fn new() -> Self {
            let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let cluster = CertificateAuthority::load_or_create(folders[0].path()).unwrap();
            let files = NodeFiles::open(folders[1].path()).unwrap();
            std::fs::write(files.folder().join(CA), cluster.certificate_pem()).unwrap();
            let trust = Arc::new(Trust::load(CLUSTER, files.authorities().unwrap(), &ClientCa::default()).unwrap());
            let (tell, told) = watch::channel(None);
            let node = Authorities::new(files, CLUSTER, trust.clone(), told).unwrap();
            Self { cluster, trust, tell, node, _folders: folders }
        }

        fn told(&mut self, pem: &str) -> bool {
            self.tell.send_replace(Some(pem.as_bytes().to_vec()));
            self.node.take_over()
        }

        fn told_now(&mut self) -> bool {
            self.told(&self.cluster.certificate_pem())
        }

        fn client(&self) -> CertificateDer<'static> {
            let uri = format!("spiffe://{CLUSTER}/client/app");
            let life = std::time::Duration::from_hours(1);
            let request = ClientCertificate { uri, common_name: "app".to_owned(), life };
            let csr = NodeKey::generate().unwrap().signing_request().unwrap();
            let issued = self.cluster.issue_client(&request, csr.as_bytes()).unwrap();
            CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap()
        }

        fn trusts(&self, leaf: &CertificateDer<'static>) -> bool {
            let now = prism_core::Clock::system().now();
            self.trust.data().load().identify(std::slice::from_ref(leaf), now).is_ok()
        }

        fn on_disk(&self) -> String {
            std::fs::read_to_string(self.node.files.folder().join(CA)).unwrap()
        }
    }

    #[test]
    fn what_a_controller_tells_is_trusted_and_what_it_does_not_is_not() {
        let mut world = World::new();
        let old = world.client();
        assert!(world.node.take_over(), "nobody has told anything");
        assert!(world.node.is_of_issuing(&old) && world.told_now());
        world.cluster.settle(&world.cluster.plan_rotation().unwrap().name).unwrap();
        let new = world.client();
        assert!(world.trusts(&old) && !world.trusts(&new));
        assert!(world.told_now());
        assert!(world.trusts(&old) && world.trusts(&new));
        assert!(world.node.is_of_issuing(&new) && !world.node.is_of_issuing(&old) && world.node.is_of_trusted(&old));
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
        world.cluster.settle(&world.cluster.plan_retirement().unwrap().name).unwrap();
        assert!(world.told_now());
        assert!(!world.trusts(&old) && world.trusts(&new) && !world.node.is_of_trusted(&old));
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
    }

    #[test]
    fn what_is_none_changes_nothing_and_a_full_disk_takes_no_trust_along() {
        let mut world = World::new();
        let (known, old) = (world.on_disk(), world.client());
        let leaf = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap().cert.pem();
        let long = format!("{known}{}", "\n".repeat(MAX_AUTHORITIES_BYTES));
        for bad in ["", "nonsense", &leaf, &known[..known.len() - 40], &known.repeat(3), &long] {
            assert!(world.told(bad), "there is nothing to try again: {bad}");
            assert!(world.trusts(&old) && world.on_disk() == known);
            assert_eq!(world.node.unusable.as_deref(), Some(bad.as_bytes()));
        }
        for plan in [CertificateAuthority::plan_rotation, CertificateAuthority::plan_retirement] {
            world.cluster.settle(&plan(&world.cluster).unwrap().name).unwrap();
        }
        // A folder in the place of the file cannot be written over.
        let path = world.node.files.folder().join(CA);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(!world.told_now());
        assert!(!world.trusts(&old) && world.trusts(&world.client()));
        std::fs::remove_dir(&path).unwrap();
        assert!(world.node.take_over(), "it is tried again");
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
    }

    #[tokio::test]
    async fn what_was_waited_for_and_what_was_told_before_are_taken_over() {
        let mut world = World::new();
        assert!(world.told_now());
        world.cluster.settle(&world.cluster.plan_rotation().unwrap().name).unwrap();
        world.tell.send_replace(Some(world.cluster.certificate_pem().into_bytes()));
        world.node.changed().await;
        assert!(world.node.take_over());
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
        // By a link that was there first.
        world.cluster.settle(&world.cluster.plan_retirement().unwrap().name).unwrap();
        world.tell.send_replace(Some(world.cluster.certificate_pem().into_bytes()));
        let (files, trust, told) = (world.node.files.clone(), world.trust.clone(), world.tell.subscribe());
        assert!(Authorities::new(files, CLUSTER, trust, told).unwrap().take_over());
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
    }

    #[test]
    fn what_came_with_a_renewal_stays_until_the_link_says_something_else() {
        let mut world = World::new();
        assert!(world.told_now());
        world.cluster.settle(&world.cluster.plan_rotation().unwrap().name).unwrap();
        let (new, pem) = (world.client(), world.cluster.certificate_pem());
        assert!(!world.trusts(&new));
        assert!(world.node.heard(pem.as_bytes()));
        assert!(world.node.take_over(), "what the link said before is over");
        assert!(world.trusts(&new) && world.node.is_of_issuing(&new) && world.on_disk() == pem);
        world.cluster.settle(&world.cluster.plan_retirement().unwrap().name).unwrap();
        assert!(world.told_now());
        assert_eq!(world.on_disk(), world.cluster.certificate_pem());
    }
}
