//! Whose client certificates may come in on each plane: those of Prism's own CA, and of the operator's bundles, which may
//! change while the server runs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use prism_core::{Clock, Error, Result, UnixMillis};
use prism_identity::{ClientTrust, read_bundle};
use prism_rpc::tls::{CertificateFacts, first_end};
use prism_rpc::watched::LOOK_EVERY;
use prism_rpc::{Connections, Shutdown, Watched};
use rustls::pki_types::CertificateDer;

use crate::settings::ClientCa;

/// Keys of bundles.
const ADMIN: &str = "tls.admin.client_ca";
const DATA: &str = "tls.data.client_ca";

/// Whom each plane trusts now.
pub struct Trust {
    admin: Side,
    data: Side,
    ground: Ground,
    /// Held while either side changes.
    changing: Mutex<()>,
}

/// Whom one plane trusts.
struct Side {
    current: Arc<ArcSwap<ClientTrust>>,
    /// What its bundle holds, if there is one.
    bundle: Option<Watched<Bundle>>,
    keys: Arc<ArcSwap<Keys>>,
}

/// Public keys of a bundle's CAs.
type Keys = Vec<Vec<u8>>;

/// A bundle, proven.
struct Bundle {
    trust: Arc<ClientTrust>,
    certificates: Vec<CertificateDer<'static>>,
    keys: Arc<Keys>,
    /// `None` = it holds no CA.
    expires_at: Option<UnixMillis>,
}

/// What a bundle is proven against.
#[derive(Clone)]
struct Ground {
    cluster: String,
    /// Prism's own CAs.
    own: Arc<ArcSwap<Vec<CertificateDer<'static>>>>,
}

impl Trust {
    /// Trusts `own`, Prism's CAs, and reads the bundles for the first time; the error names the key and the file. No CA may be in both: its certificates would
    /// be valid on both planes, and what is made for one plane must not open the other.
    pub fn load(
        cluster: &str,
        own: Vec<CertificateDer<'static>>,
        bundles: &ClientCa,
    ) -> std::result::Result<Self, String> {
        let ground = Ground { cluster: cluster.to_owned(), own: Arc::new(ArcSwap::from_pointee(own)) };
        let [admin_keys, data_keys]: [Arc<ArcSwap<Keys>>; 2] = Default::default();
        let admin = Side::load(&ground, (ADMIN, bundles.admin.as_deref(), &admin_keys), (DATA, &data_keys))?;
        let data = Side::load(&ground, (DATA, bundles.data.as_deref(), &data_keys), (ADMIN, &admin_keys))?;
        Ok(Self { admin, data, ground, changing: Mutex::default() })
    }

    /// Whom the admin plane trusts, as it changes.
    pub fn admin(&self) -> Arc<ArcSwap<ClientTrust>> {
        self.admin.current.clone()
    }

    /// Whom the data plane trusts, as it changes.
    pub fn data(&self) -> Arc<ArcSwap<ClientTrust>> {
        self.data.current.clone()
    }

    /// When the first CA of the admin plane's bundle ends.
    pub fn admin_bundle_ends(&self) -> Option<UnixMillis> {
        self.admin.bundle.as_ref().and_then(|bundle| bundle.current().expires_at)
    }

    /// When the first CA of the data plane's bundle ends.
    pub fn data_bundle_ends(&self) -> Option<UnixMillis> {
        self.data.bundle.as_ref().and_then(|bundle| bundle.current().expires_at)
    }

    /// Takes changed bundles over until the end is announced; a broken one is logged, and the last good one stays.
    ///
    /// Connections of the admin plane that stand on a CA which is gone are cut; the data plane sees to its own.
    pub async fn follow(self: Arc<Self>, admin: Connections, until: Shutdown) {
        if self.admin.bundle.is_none() && self.data.bundle.is_none() {
            return;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = until.announced() => return,
            }
            let (trust, admin) = (self.clone(), admin.clone());
            if let Err(error) = tokio::task::spawn_blocking(move || trust.look(&admin)).await {
                tracing::error!(%error, "the bundles of client CAs could not be looked at");
            }
        }
    }

    /// One after the other, as each is proven against the other. A CA that moves from one to the other is taken over with the
    /// next look.
    fn look(&self, admin: &Connections) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = self.admin.look() {
            self.cut_distrusted(&before, admin);
        }
        self.data.look();
    }

    /// Trusts `own` as Prism's own CAs from now on, and no others. Connections of the admin plane that stand on another are cut; the
    /// data plane sees to its own.
    pub fn rotate(&self, own: &[CertificateDer<'static>], admin: &Connections) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.ground.own.store(Arc::new(own.to_vec()));
        for (side, cuts) in [(&self.admin, true), (&self.data, false)] {
            let bundle = side.bundle.as_ref().map(Watched::current);
            let external = bundle.map(|bundle| bundle.certificates.clone()).unwrap_or_default();
            match self.ground.trust(external) {
                Ok(trust) => {
                    let before = side.current.swap(Arc::new(trust));
                    if cuts {
                        self.cut_distrusted(&before, admin);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the CAs of clients could not be replaced; the last good ones stay");
                }
            }
        }
    }

    fn cut_distrusted(&self, before: &ClientTrust, admin: &Connections) {
        let (now, after) = (Clock::system().now(), self.admin.current.load());
        let cut = admin.cut_where(|chain| before.identify(chain, now).is_ok() && after.identify(chain, now).is_err());
        if cut > 0 {
            tracing::info!(cut, "admin connections were cut, as the CA of their certificate is not trusted any more");
        }
    }
}

impl Side {
    fn load(
        ground: &Ground,
        (key, path, keys): (&'static str, Option<&Path>, &Arc<ArcSwap<Keys>>),
        (other, other_keys): (&'static str, &Arc<ArcSwap<Keys>>),
    ) -> std::result::Result<Self, String> {
        let bundle = path.map(|path| {
            let (ground, other_keys, shown) = (ground.clone(), other_keys.clone(), path.display().to_string());
            let first = AtomicBool::new(true);
            let parse = move |contents: &[Vec<u8>]| {
                let pem = contents.first().map(Vec::as_slice).unwrap_or_default();
                // Emptied later it takes the trust away; at the start it is more likely the wrong file.
                if first.swap(false, Ordering::Relaxed) {
                    read_bundle(pem)
                        .map_err(|error| Error::precondition("CLIENT_CA", format!("{shown}: {}", error.message())))?;
                }
                let bundle = ground.prove(pem, other, &other_keys.load());
                bundle.map_err(|error| Error::precondition("CLIENT_CA", format!("{shown}: {}", error.message())))
            };
            Watched::open(key, vec![path.to_owned()], parse).map_err(|error| format!("{key}: {}", error.message()))
        });
        let bundle = bundle.transpose()?;
        let trust = match &bundle {
            None => Arc::new(ground.trust(Vec::new()).map_err(|error| error.message().to_owned())?),
            Some(bundle) => {
                let bundle = bundle.current();
                keys.store(bundle.keys.clone());
                bundle.trust.clone()
            }
        };
        Ok(Self { current: Arc::new(ArcSwap::new(trust)), bundle, keys: keys.clone() })
    }

    /// What was trusted before, if it changed.
    fn look(&self) -> Option<Arc<ClientTrust>> {
        let changed = self.bundle.as_ref().and_then(Watched::look)?;
        self.keys.store(changed.keys.clone());
        Some(self.current.swap(changed.trust.clone()))
    }
}

impl Ground {
    fn trust(&self, external: Vec<CertificateDer<'static>>) -> Result<ClientTrust> {
        ClientTrust::new(&self.cluster, self.own.load().to_vec(), external)
    }

    fn prove(&self, pem: &[u8], other: &str, other_keys: &Keys) -> Result<Bundle> {
        if pem.trim_ascii().is_empty() {
            let trust = Arc::new(self.trust(Vec::new())?);
            return Ok(Bundle { trust, certificates: Vec::new(), keys: Arc::default(), expires_at: None });
        }
        let certificates = read_bundle(pem)?;
        let facts = certificates.iter().map(CertificateFacts::of).collect::<Result<Vec<_>>>()?;
        let own =
            self.own.load().iter().map(|own| Ok(CertificateFacts::of(own)?.public_key)).collect::<Result<Vec<_>>>()?;
        for fact in &facts {
            let whose = &fact.subject;
            if own.contains(&fact.public_key) {
                let message = format!("{whose:?} is Prism's own CA, which is trusted already; remove it from the file");
                return Err(Error::precondition("CLIENT_CA", message));
            }
            if other_keys.contains(&fact.public_key) {
                let message = format!("{whose:?} is in {other} too; a CA is for one plane only");
                return Err(Error::precondition("CLIENT_CA", message));
            }
        }
        let expires_at = Some(first_end(&certificates)?);
        let keys = facts.into_iter().map(|fact| fact.public_key).collect();
        let trust = Arc::new(self.trust(certificates.clone())?);
        Ok(Bundle { trust, certificates, keys: Arc::new(keys), expires_at })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use prism_rpc::CertificateAuthority;
    use prism_rpc::tls::ClientCertificate;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls::pki_types::pem::PemObject as _;
    use tempfile::TempDir;

    use super::*;

    const CLUSTER: &str = "prism-0123456789abcdef";
    const PEER: &str = "client.example";

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(ca: &Ca) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![PEER.to_owned()]).unwrap();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    struct Fixture {
        folder: TempDir,
        authority: CertificateAuthority,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let authority = CertificateAuthority::load_or_create(folder.path()).unwrap();
            Self { folder, authority }
        }

        fn file(&self, name: &str, contents: &[&str]) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, contents.concat()).unwrap();
            path
        }

        fn load(&self, admin: Option<PathBuf>, data: Option<PathBuf>) -> std::result::Result<Trust, String> {
            Trust::load(CLUSTER, self.authority.trusted(), &ClientCa { admin, data })
        }

        fn refusal(&self, admin: Option<PathBuf>, data: Option<PathBuf>) -> String {
            self.load(admin, data).err().expect("it is refused")
        }
    }

    fn trusts(side: &ArcSwap<ClientTrust>, leaf: &CertificateDer<'static>) -> bool {
        let identified = side.load().identify(std::slice::from_ref(leaf), Clock::system().now());
        identified.is_ok_and(|identity| identity.identity == PEER)
    }

    #[test]
    fn the_own_ca_is_trusted_everywhere_and_a_bundle_on_its_plane() {
        let fixture = Fixture::new();
        let (one, two) = (ca("one"), ca("two"));
        let bundle = fixture.file("admin.pem", &[&one.pem()]);
        let trust = fixture.load(Some(bundle), None).unwrap();
        assert!(trusts(&trust.admin(), &leaf(&one)) && !trusts(&trust.data(), &leaf(&one)));
        assert!(!trusts(&trust.admin(), &leaf(&two)));
        assert!(trust.admin_bundle_ends().is_some() && trust.data_bundle_ends().is_none());

        let request = ClientCertificate {
            uri: format!("spiffe://{CLUSTER}/user/alice"),
            common_name: "alice".to_owned(),
            life: std::time::Duration::from_hours(1),
        };
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let issued = fixture.authority.issue_client(&request, csr.pem().unwrap().as_bytes()).unwrap();
        let own = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        for side in [trust.admin(), trust.data()] {
            let identity = side.load().identify(std::slice::from_ref(&own), Clock::system().now()).unwrap();
            assert_eq!((identity.name.as_str(), identity.serial.as_str()), ("alice", issued.serial.as_str()));
            assert_eq!((identity.fingerprint, identity.expires_at), (issued.fingerprint.clone(), issued.expires_at));
        }
    }

    #[test]
    fn a_ca_is_for_one_plane_and_prisms_own_is_in_no_file() {
        let fixture = Fixture::new();
        let (one, two) = (ca("one"), ca("two"));
        let admin = fixture.file("admin.pem", &[&one.pem()]);
        let both = fixture.file("both.pem", &[&two.pem(), &one.pem()]);
        let said = fixture.refusal(Some(admin.clone()), Some(both));
        for part in ["tls.data.client_ca", "both.pem", "CN=one", "tls.admin.client_ca", "one plane only"] {
            assert!(said.contains(part), "{said}");
        }
        let own = fixture.file("own.pem", &[&two.pem(), &fixture.authority.certificate_pem()]);
        for (admin, data, key) in [(Some(own.clone()), None, ADMIN), (Some(admin), Some(own), DATA)] {
            let said = fixture.refusal(admin, data);
            assert!(said.contains(key) && said.contains("own.pem") && said.contains("own CA"), "{said}");
        }
    }

    #[test]
    fn a_bundle_that_is_none_is_refused_with_its_file() {
        let fixture = Fixture::new();
        let leaf_pem = rcgen::generate_simple_self_signed([PEER.to_owned()]).unwrap().cert.pem();
        for bad in ["", "nonsense", &leaf_pem] {
            let path = fixture.file("cas.pem", &[bad]);
            let said = fixture.refusal(None, Some(path));
            assert!(said.contains(DATA) && said.contains("cas.pem"), "{bad}: {said}");
        }
        let missing = fixture.refusal(Some(fixture.folder.path().join("missing.pem")), None);
        assert!(missing.starts_with(ADMIN) && missing.contains("missing.pem"), "{missing}");
    }

    #[test]
    fn changes_are_taken_over_and_faults_are_not() {
        let fixture = Fixture::new();
        let (one, two, three) = (ca("one"), ca("two"), ca("three"));
        let admin = fixture.file("admin.pem", &[&one.pem()]);
        let data = fixture.file("data.pem", &[&two.pem()]);
        let trust = fixture.load(Some(admin), Some(data)).unwrap();
        let looked = || (0..3).for_each(|_| trust.look(&Connections::default()));
        let (held, leaf_of_three) = (trust.admin(), leaf(&three));
        assert!(!trusts(&held, &leaf_of_three));

        fixture.file("admin.pem", &[&one.pem(), &three.pem()]);
        looked();
        assert!(trusts(&held, &leaf_of_three) && trusts(&held, &leaf(&one)));
        fixture.file("admin.pem", &[&one.pem(), "-----BEGIN CERTIFICATE-----\n"]);
        looked();
        assert!(trusts(&held, &leaf_of_three), "the last good one stays");
        fixture.file("data.pem", &[&two.pem(), &three.pem()]);
        looked();
        assert!(!trusts(&trust.data(), &leaf_of_three), "it is the other plane's");

        fixture.file("admin.pem", &["\n"]);
        looked();
        assert!(!trusts(&held, &leaf(&one)), "an emptied bundle trusts nobody");
        // The CA moves from one plane to the other, whichever file is written first.
        fixture.file("admin.pem", &[&one.pem()]);
        looked();
        assert!(!trusts(&held, &leaf_of_three));
        assert!(trusts(&trust.data(), &leaf_of_three));
    }

    #[tokio::test]
    async fn bundles_are_followed_until_the_end() {
        let fixture = Fixture::new();
        let (one, two) = (ca("one"), ca("two"));
        let data = fixture.file("data.pem", &[&one.pem()]);
        let trust = Arc::new(fixture.load(None, Some(data)).unwrap());
        let (trigger, until) = Shutdown::new();
        let following = tokio::spawn(trust.clone().follow(Connections::default(), until));
        fixture.file("data.pem", &[&two.pem()]);
        while !trusts(&trust.data(), &leaf(&two)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(!trusts(&trust.data(), &leaf(&one)));
        trigger.now();
        following.await.unwrap();
    }
}
