//! Client certificates and bundles of CA certificates.

use std::collections::HashSet;
use std::sync::LazyLock;

use prism_core::UnixMillis;
use prism_core::subject::Subject;
use prism_identity::{
    CertificateIdentity, CertificateKind, CertificateRefused, ClientTrust, own_identity, read_bundle,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// The trust domain.
pub const CLUSTER: &str = "fuzz";
/// 1 January 2026.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// First byte modulo 4: 0 a certificate; 1 a chain, each certificate behind its length in two bytes; 2 a bundle; 3 the
/// subject alternative name that a certificate is issued with, by Prism's own CA if the next byte is even.
pub fn run(input: &[u8]) {
    let Some((way, rest)) = input.split_first() else { return };
    match way % 4 {
        0 => presented(&[CertificateDer::from(rest)]),
        1 => presented(&chain(rest)),
        2 => bundle(rest),
        _ => issued(rest),
    }
}

/// Only what a CA issued is believed.
fn presented(chain: &[CertificateDer<'_>]) {
    let world = &*WORLD;
    if let Ok(identity) = identify(chain) {
        assert!(world.known.contains(&identity.fingerprint), "a forged certificate of {:?}", identity.identity);
    }
}

fn identify(chain: &[CertificateDer<'_>]) -> Result<CertificateIdentity, CertificateRefused> {
    let outcome = WORLD.trust.identify(chain, NOW);
    match &outcome {
        Ok(identity) => sound(identity),
        Err(CertificateRefused(why)) => assert!(why.len() < 4096 && !why.contains(char::is_control)),
    }
    outcome
}

/// Every identity is whole and plain, and says the same of itself in all its parts.
fn sound(found: &CertificateIdentity) {
    assert!(found.identity.is_ascii() && !found.identity.contains([' ', ',', '*', '%', '\0']));
    assert!(found.expires_at >= NOW);
    let certificate = format!("certificate:{}", found.identity);
    let subjects: Vec<&str> = found.subjects.iter().map(Subject::as_str).collect();
    if found.kind == CertificateKind::External {
        assert!(!found.identity.to_ascii_lowercase().starts_with(&format!("spiffe://{CLUSTER}/")));
        assert_eq!(subjects, [certificate]);
        assert_eq!(found.credential_id, format!("sha256:{}", found.fingerprint));
    } else {
        assert_eq!(own_identity(CLUSTER, found.kind, &found.name).as_deref(), Some(found.identity.as_str()));
        assert_eq!(found.credential_id, found.serial);
        assert_eq!(subjects.contains(&certificate.as_str()), found.kind != CertificateKind::Node);
    }
}

fn chain(mut bytes: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (certificate, rest) = rest.split_at(length);
        chain.push(CertificateDer::from(certificate));
        bytes = rest;
    }
    chain
}

fn bundle(pem: &[u8]) {
    if let Ok(authorities) = read_bundle(pem) {
        assert!((1..=1024).contains(&authorities.len()));
        let trust = ClientTrust::new(CLUSTER, Vec::new(), authorities.clone()).expect("each is usable");
        // Nobody is who vouches for them.
        assert!(trust.identify(&authorities[..1], NOW).is_err());
    }
}

fn issued(bytes: &[u8]) {
    let Some((by, names)) = bytes.split_first() else { return };
    let world = &*WORLD;
    let is_own = by % 2 == 0;
    let authority = if is_own { &world.own } else { &world.partner };
    let leaf = authority.leaf(&world.key, names);
    if let Ok(found) = identify(&[leaf]) {
        assert_eq!(found.kind != CertificateKind::External, is_own);
        let identity = found.identity.as_bytes();
        assert!(names.windows(identity.len()).any(|window| window == identity), "a name that is not there");
    }
}

/// Two CAs and what they issued; the same in every run.
pub struct World {
    /// Prism's own.
    pub own: Authority,
    /// A configured one.
    pub partner: Authority,
    /// A configured one's, below it.
    pub below: Authority,
    key: KeyPair,
    trust: ClientTrust,
    known: HashSet<String>,
}

/// A CA.
pub struct Authority {
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// The same in PEM.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl World {
    /// Makes it, always the same.
    pub fn new() -> Self {
        let (own, partner) = (Authority::root("Prism CA", 1), Authority::root("Partner CA", 2));
        let below = partner.below("Partner Issuing CA", 3);
        let trust =
            ClientTrust::new(CLUSTER, vec![own.certificate.clone()], vec![partner.certificate.clone()]).expect("CAs");
        let mut world = Self { own, partner, below, key: key(4), trust, known: HashSet::new() };
        for chain in world.chains() {
            let identity = world.trust.identify(&chain, NOW).expect("what is issued is believed");
            world.known.insert(identity.fingerprint);
        }
        world
    }

    /// Certificates that are believed.
    pub fn chains(&self) -> Vec<Vec<CertificateDer<'static>>> {
        let own = |identity: &str| vec![self.own.leaf(&self.key, &name(0x86, identity))];
        let partner = |tag: u8, identity: &str| vec![self.partner.leaf(&self.key, &name(tag, identity))];
        vec![
            own("spiffe://fuzz/user/alice"),
            own("spiffe://fuzz/controller/c1"),
            own("spiffe://fuzz/client/shop"),
            own("spiffe://fuzz/node/n-1"),
            partner(0x86, "spiffe://partner.example/shop"),
            partner(0x82, "shop.partner.example"),
            partner(0x81, "ops@partner.example"),
            vec![self.below.leaf(&self.key, &name(0x82, "shop.partner.example")), self.below.certificate.clone()],
        ]
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    fn root(name: &str, seed: u8) -> Self {
        let (params, key) = (authority(name), key(seed));
        let made = params.self_signed(&key).expect("a CA");
        Self { certificate: made.der().clone(), pem: made.pem(), issuer: Issuer::new(params, key) }
    }

    fn below(&self, name: &str, seed: u8) -> Self {
        let (params, key) = (authority(name), key(seed));
        let made = params.signed_by(&key, &self.issuer).expect("a CA");
        Self { certificate: made.der().clone(), pem: made.pem(), issuer: Issuer::new(params, key) }
    }

    fn leaf(&self, key: &KeyPair, names: &[u8]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], names.to_vec())];
        params.signed_by(key, &self.issuer).expect("a certificate").der().clone()
    }
}

/// A subject alternative name with one entry, shorter than 124 bytes.
pub fn name(tag: u8, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short name");
    [&[0x30, length + 2, tag, length], text.as_bytes()].concat()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A key that everybody can make: PKCS#8 around a seed.
fn key(seed: u8) -> KeyPair {
    let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    pkcs8.extend([seed; 32]);
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519).expect("a seed of 32 bytes")
}
