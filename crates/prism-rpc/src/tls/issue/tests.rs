use std::sync::Arc;

use prism_core::{Clock, Kind};
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
    PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::super::{CertificateFacts, provider};
use super::*;

const URI: &str = "spiffe://prism-0123456789abcdef/user/alice";
const DAY: Duration = Duration::from_hours(24);

fn authority_at(clock: Clock) -> (TempDir, CertificateAuthority) {
    let folder = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create_at(folder.path(), clock).unwrap();
    (folder, authority)
}

fn authority() -> (TempDir, CertificateAuthority) {
    authority_at(Clock::system())
}

fn request() -> ClientCertificate {
    ClientCertificate { uri: URI.to_owned(), common_name: "alice".to_owned(), life: DAY }
}

/// A signing request that asks for far more than a key.
fn csr(key: &KeyPair) -> String {
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.subject_alt_names.push(SanType::URI("spiffe://prism-0123456789abcdef/controller/x".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn good_csr() -> String {
    csr(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
}

fn refusal(csr: &[u8]) -> String {
    let (_folder, authority) = authority();
    let error = authority.issue_client(&request(), csr).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(error.fields().len(), 1);
    assert_eq!(error.fields()[0].field, "csr_pem");
    error.fields()[0].description.clone()
}

fn verify(authority: &CertificateAuthority, issued: &IssuedCertificate, at: UnixMillis) -> Result<(), rustls::Error> {
    let leaf = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(at.0).unwrap()));
    verifier.verify_client_cert(&leaf, &[], at).map(drop)
}

#[test]
fn only_the_key_of_the_request_gets_into_the_certificate() {
    let (_folder, authority) = authority();
    for key in [
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096).unwrap(),
    ] {
        let issued = authority.issue_client(&request(), csr(&key).as_bytes()).unwrap();
        verify(&authority, &issued, issued.not_before + Duration::from_secs(1)).unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
        assert_eq!(parsed.subject().to_string(), "CN=alice");
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [GeneralName::URI(URI)]);
        let usages = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.client_auth && !usages.server_auth && !usages.any && usages.other.is_empty());
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.flags.is_power_of_two());
        assert!(!parsed.is_ca());
        assert!(parsed.extensions().iter().any(|extension| extension.oid.to_id_string() == "2.5.29.35"));
        assert_eq!(parsed.raw_serial(), hex::decode(&issued.serial).unwrap());
        assert_eq!(issued.serial.len(), 32);
        assert_eq!(issued.fingerprint, fingerprint(&leaf));
        assert_eq!(issued.uri, URI);
        let validity = parsed.validity();
        assert_eq!(validity.not_before.timestamp() * 1000, issued.not_before.0);
        assert_eq!(validity.not_after.timestamp() * 1000, issued.expires_at.0);
    }
}

#[test]
fn it_lives_as_long_as_it_was_asked_to_but_not_longer_than_its_authority() {
    let start = UnixMillis(1_800_000_000_500);
    let clock = Clock::manual(start);
    let (_folder, authority) = authority_at(clock.clone());
    let issue = |life| {
        let request = ClientCertificate { life, ..request() };
        authority.issue_client(&request, good_csr().as_bytes())
    };
    let issued = issue(DAY).unwrap();
    assert_eq!(issued.not_before, UnixMillis(1_800_000_000_000) - BACKDATE);
    assert_eq!(issued.expires_at, UnixMillis(1_800_000_000_000) + DAY);
    verify(&authority, &issued, start).unwrap();
    assert!(verify(&authority, &issued, issued.expires_at + Duration::from_secs(1)).is_err());
    assert!(verify(&authority, &issued, issued.not_before - Duration::from_secs(1)).is_err());

    assert_eq!(issue(100 * 366 * DAY).unwrap().expires_at, authority.expires_at());
    clock.advance((authority.expires_at() - DAY).since(start));
    assert_eq!(issue(2 * DAY).unwrap().expires_at, authority.expires_at());
    clock.advance(DAY);
    assert_eq!(issue(DAY).unwrap_err().reason(), "CA_EXPIRED");
}

#[test]
fn serial_numbers_differ_and_a_long_name_is_cut() {
    let (_folder, authority) = authority();
    let request = ClientCertificate { common_name: "ä".repeat(100), ..request() };
    let (first, second) = (
        authority.issue_client(&request, good_csr().as_bytes()).unwrap(),
        authority.issue_client(&request, good_csr().as_bytes()).unwrap(),
    );
    assert_ne!(first.serial, second.serial);
    let leaf = CertificateDer::from_pem_slice(first.pem.as_bytes()).unwrap();
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(parsed.subject().iter_common_name().next().unwrap().as_str().unwrap(), "ä".repeat(64));
    let request = ClientCertificate { uri: "spiffe://prism/user/ä".to_owned(), ..request };
    let error = authority.issue_client(&request, good_csr().as_bytes()).unwrap_err();
    assert_eq!((error.kind(), error.fields()[0].field.as_str()), (Kind::InvalidArgument, "uri"));
}

#[test]
fn other_keys_are_refused_with_those_that_are_not() {
    let p521 = csr(&KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap());
    for bad in [
        p521.as_str(),
        include_str!("requests/rsa1024.pem"),
        include_str!("requests/rsa4224.pem"),
        include_str!("requests/secp256k1.pem"),
        include_str!("requests/compressed.pem"),
        include_str!("requests/ed448.pem"),
        include_str!("requests/pss.pem"),
    ] {
        let said = refusal(bad.as_bytes());
        assert!(said.contains("P-256, P-384, Ed25519, or RSA with 2048 to 4096 bits"), "{bad}: {said}");
    }
    let (_folder, authority) = authority();
    let issued = authority.issue_client(&request(), include_bytes!("requests/p384-sha256.pem")).unwrap();
    verify(&authority, &issued, Clock::system().now()).unwrap();
}

#[test]
fn a_request_must_be_signed_by_its_own_key() {
    assert!(refusal(include_bytes!("requests/sha1.pem")).contains("SHA-256"));
    // The key of one request under the signature of another, which has the same length.
    let (ours, theirs) = (good_der(), good_der());
    let key = |der: &[u8]| {
        let (_, csr) = X509CertificationRequest::from_der(der).unwrap();
        csr.certification_request_info.subject_pki.raw.to_vec()
    };
    let (wanted, unwanted) = (key(&ours), key(&theirs));
    let position = ours.windows(wanted.len()).position(|window| window == wanted).unwrap();
    let mut forged = ours;
    forged[position..position + unwanted.len()].copy_from_slice(&unwanted);
    assert!(refusal(pem(&forged).as_bytes()).contains("signed by its own key"));
}

#[test]
fn anything_but_one_request_is_refused() {
    let good = good_csr();
    let (_folder, authority) = authority();
    for fine in [
        good.clone(),
        format!("\n {}\n\n", good.trim()),
        good.replace('\n', "\r\n"),
        good.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
    ] {
        authority.issue_client(&request(), fine.as_bytes()).unwrap();
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    let mut longer = good_der();
    longer.push(0);
    let mut cut = good_der();
    cut.pop();
    for bad in [
        String::new(),
        "nonsense".to_owned(),
        format!("{good}{good}"),
        format!("{good}{key}"),
        format!("{key}{good}"),
        format!("{good}more"),
        format!("more{good}"),
        key.clone(),
        authority.certificate_pem(),
        good.replace("END CERTIFICATE REQUEST", "END CERTIFICATE"),
        good.replacen('M', "!", 1),
        pem(&longer),
        pem(&cut),
        pem(b""),
    ] {
        let said = refusal(bad.as_bytes());
        assert!(said.contains("one PKCS #10 signing request"), "{bad}: {said}");
    }
    assert!(refusal(&[0xff; 100]).contains("PKCS #10"));
    assert!(refusal(good.replace('\n', &"\n".repeat(10_000)).as_bytes()).contains("at most 16384 bytes"));
}

#[test]
fn any_bytes_give_an_error_and_no_more() {
    let good = good_der();
    let (_folder, authority) = authority();
    let issued = authority.issue_client(&request(), pem(&good).as_bytes()).unwrap();
    let key_of = |leaf: &CertificateDer<'_>| CertificateFacts::of(leaf).unwrap().public_key;
    let key = key_of(&CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap());
    for position in 0..good.len() {
        for flipped in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[position] ^= flipped;
            // What is outside the signature (a tag's class) may be read generously; what is signed may not.
            if let Ok(issued) = authority.issue_client(&request(), pem(&bytes).as_bytes()) {
                let leaf = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
                assert_eq!(key_of(&leaf), key, "byte {position} ^ {flipped}");
            }
        }
    }
}

fn good_der() -> Vec<u8> {
    CertificateSigningRequestDer::from_pem_slice(good_csr().as_bytes()).unwrap().to_vec()
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

#[test]
fn a_nodes_certificate_is_for_both_ends_and_for_its_names_only() {
    let (_folder, authority) = authority();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = SigningRequest::parse(csr(&key).as_bytes()).unwrap();
    assert_eq!(request, SigningRequest::parse(csr(&key).as_bytes()).unwrap());
    assert_ne!(request.key_hash(), SigningRequest::parse(good_csr().as_bytes()).unwrap().key_hash());
    let uri = "spiffe://prism-0123456789abcdef/node/n1";
    let wanted = NodeCertificate { uri: uri.to_owned(), node_id: "n1".to_owned(), life: DAY };
    let issued = authority.issue_node(&wanted, &request).unwrap();
    let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=n1");
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names, &[GeneralName::URI(uri), GeneralName::DNSName("n1")]);
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && usage.other.is_empty());
    let facts = CertificateFacts::of(&der).unwrap();
    assert_eq!((facts.uri.as_deref(), facts.expires_at), (Some(uri), issued.expires_at));
    assert_eq!(facts.public_key, key.subject_public_key_info());
}

#[test]
fn a_data_ports_certificate_is_not_taken_for_a_controllers() {
    use rustls::client::danger::ServerCertVerifier as _;
    let (_folder, authority) = authority();
    let request = SigningRequest::parse(good_csr().as_bytes()).unwrap();
    let uri = "spiffe://prism-0123456789abcdef/node/n1";
    let wanted = NodeCertificate { uri: uri.to_owned(), node_id: "n1".to_owned(), life: Duration::from_hours(24) };
    let chain = authority.issue_node_server(&wanted, &request).unwrap();
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let roots = || {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate_der().clone()).unwrap();
        roots
    };
    let name = "localhost".try_into().unwrap();
    let now = UnixTime::now();
    let clients = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots()), provider());
    clients.build().unwrap().verify_server_cert(&leaf, &[], &name, &[], now).unwrap();
    let controllers = super::super::ControllerVerifier::new(roots()).unwrap();
    let refused = controllers.verify_server_cert(&leaf, &[], &name, &[], now).unwrap_err().to_string();
    assert!(refused.contains(uri), "{refused}");
}

#[test]
fn everything_holds_at_once_by_a_clock_that_is_five_minutes_off() {
    use rustls::client::danger::ServerCertVerifier as _;
    const SKEW: Duration = Duration::from_mins(5);
    let (_folder, authority) = authority();
    let key = SigningRequest::parse(good_csr().as_bytes()).unwrap();
    let uri = "spiffe://prism-0123456789abcdef/node/n1".to_owned();
    let wanted = NodeCertificate { uri, node_id: "n1".to_owned(), life: Duration::from_hours(24) };
    let (old, now) = (authority.certificate_der(), Clock::system().now());
    // Of a CA that was made a moment ago, and of one that took its place a moment ago.
    for _ in 0..2 {
        let chain = authority.issue_node_server(&wanted, &key).unwrap();
        let port: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|found| found.unwrap()).collect();
        let own = authority.renewing(&[]).unwrap().current().certified.cert.clone();
        for at in [now - SKEW, now + SKEW] {
            verify(&authority, &authority.issue_client(&request(), good_csr().as_bytes()).unwrap(), at).unwrap();
            verify(&authority, &authority.issue_node(&wanted, &key).unwrap(), at).unwrap();
            let at = UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(at.0).unwrap()));
            for (root, shown) in
                [&old, &authority.certificate_der()].into_iter().flat_map(|root| [(root, &port), (root, &own)])
            {
                let mut roots = RootCertStore::empty();
                roots.add(root.clone()).unwrap();
                let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
                let name = "localhost".try_into().unwrap();
                verifier.build().unwrap().verify_server_cert(&shown[0], &shown[1..], &name, &[], at).unwrap();
            }
        }
        if authority.trusted().len() == 1 {
            authority.settle(&authority.plan_rotation().unwrap().name).unwrap();
        }
    }
    let facts = CertificateFacts::of(&old).unwrap();
    assert!(facts.issued_at() <= now && facts.begins_at < now - SKEW);
}
