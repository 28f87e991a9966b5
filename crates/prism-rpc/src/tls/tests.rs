use std::path::Path;
use std::time::Duration;

use prism_core::{Clock, UnixMillis};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const YEAR: u64 = 365 * 24 * 3600;

fn trusting(pem: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// The leaf certificate that a client which trusts `pem` sees when it asks for `name`.
async fn seen(tls: &ServerTls, pem: &str, name: &str) -> std::io::Result<CertificateDer<'static>> {
    let (client, server) = tokio::io::duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(tls.config());
    tokio::spawn(async move { acceptor.accept(server).await });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = trusting(pem).connect(name, client).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

#[tokio::test]
async fn clients_that_trust_the_ca_reach_every_name() {
    let directory = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(directory.path()).unwrap();
    let names = ["prism.example".to_owned(), "*.wild.example".to_owned(), "10.1.2.3".to_owned()];
    let tls = authority.server_tls(&names).unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "prism.example", "a.wild.example", "10.1.2.3"] {
        seen(&tls, &authority.certificate_pem(), name).await.unwrap();
    }
    assert!(seen(&tls, &authority.certificate_pem(), "other.example").await.is_err());
    let stranger = tempfile::tempdir().unwrap();
    let stranger = CertificateAuthority::load_or_create(stranger.path()).unwrap();
    assert!(seen(&tls, &stranger.certificate_pem(), "localhost").await.is_err());
    assert!(authority.server_tls(&["not a name".to_owned()]).unwrap_err().message().contains("listen.names"));
    assert_eq!(tls.http2_only().config().alpn_protocols, [b"h2"]);
}

#[tokio::test]
async fn a_certificate_is_replaced_before_it_expires() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let authority = CertificateAuthority::load_or_create_at(directory.path(), clock.clone()).unwrap();
    let tls = authority.server_tls(&[]).unwrap();
    let pem = &authority.certificate_pem();
    let first = seen(&tls, pem, "localhost").await.unwrap();
    clock.advance(Duration::from_hours(1416));
    assert_eq!(seen(&tls, pem, "localhost").await.unwrap(), first);
    let ends = tls.expires_at();
    assert_eq!(ends, CertificateFacts::of(&first).unwrap().expires_at);
    assert!(ends.since(clock.now()) > tls.attention_below());
    clock.advance(Duration::from_hours(48));
    assert_eq!(tls.expires_at(), ends + Duration::from_hours(1464), "asked for, it is renewed");
    // The client's clock is the system's, to which the new certificate is not yet valid; what counts is that it is new.
    assert!(seen(&tls, pem, "localhost").await.is_err());
}

#[test]
fn the_same_directory_is_the_same_authority() {
    let directory = tempfile::tempdir().unwrap();
    let first = CertificateAuthority::load_or_create(directory.path()).unwrap();
    let clock = Clock::manual(Clock::system().now() + Duration::from_secs(YEAR));
    let second = CertificateAuthority::load_or_create_at(directory.path(), clock).unwrap();
    assert_eq!(first.certificate_pem(), second.certificate_pem());
    assert_eq!(mode(&directory.path().join("ca.pem")), 0o644);
    assert_eq!(mode(&directory.path().join("ca.key")), 0o600);
}

#[test]
fn a_first_start_that_was_cut_short_is_completed() {
    let directory = tempfile::tempdir().unwrap();
    CertificateAuthority::load_or_create(directory.path()).unwrap();
    let key = std::fs::read(directory.path().join("ca.key")).unwrap();
    std::fs::remove_file(directory.path().join("ca.pem")).unwrap();
    CertificateAuthority::load_or_create(directory.path()).unwrap();
    assert_eq!(std::fs::read(directory.path().join("ca.key")).unwrap(), key);
}

#[test]
fn a_damaged_authority_is_refused_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (pem, key) = (directory.path().join("ca.pem"), directory.path().join("ca.key"));
    let refusal = || CertificateAuthority::load_or_create(directory.path()).unwrap_err().message().to_owned();
    CertificateAuthority::load_or_create(directory.path()).unwrap();
    let (good_pem, good_key) = (std::fs::read(&pem).unwrap(), std::fs::read(&key).unwrap());

    std::fs::remove_file(&key).unwrap();
    assert!(refusal().contains("ca.key is not"), "{}", refusal());
    let other = tempfile::tempdir().unwrap();
    CertificateAuthority::load_or_create(other.path()).unwrap();
    std::fs::copy(other.path().join("ca.key"), &key).unwrap();
    assert!(refusal().contains("does not belong"), "{}", refusal());
    std::fs::write(&key, &good_key).unwrap();
    std::fs::write(&pem, "").unwrap();
    assert!(refusal().contains("is not a certificate"), "{}", refusal());
    std::fs::write(&pem, &good_pem).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(refusal().contains("chmod 600"), "{}", refusal());
    assert_eq!(std::fs::read(&pem).unwrap(), good_pem);
}

#[test]
fn certificates_of_any_time_can_be_made() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(UnixMillis(0));
    let authority = CertificateAuthority::load_or_create_at(directory.path(), clock).unwrap();
    assert!(authority.server_tls(&[]).is_ok());
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

/// A client that trusts `authority` and shows `chain`.
fn showing(
    authority: &CertificateAuthority,
    version: &'static rustls::SupportedProtocolVersion,
    chain: Vec<CertificateDer<'static>>,
    key: &rcgen::KeyPair,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder.with_root_certificates(roots);
    let certified = provider().key_provider.load_private_key(key).unwrap();
    // Without the check whether the two belong together, which a thief's client would not make either.
    let certified = rustls::sign::CertifiedKey::new(chain, certified);
    TlsConnector::from(Arc::new(config.with_client_cert_resolver(Arc::new(Always(Arc::new(certified))))))
}

#[derive(Debug)]
struct Always(Arc<rustls::sign::CertifiedKey>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What the server sees of a client's certificates, and whether the session was an earlier one taken up again.
async fn shown(tls: &ServerTls, client: &TlsConnector) -> std::io::Result<(Vec<CertificateDer<'static>>, bool)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (near, far) = tokio::io::duplex(256 * 1024);
    let acceptor = TlsAcceptor::from(tls.config());
    let server = tokio::spawn(async move {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        let connection = stream.get_ref().1;
        let certificates = connection.peer_certificates().unwrap_or_default().to_vec();
        Ok((certificates, connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed)))
    });
    // A client may be done before the server has judged it, and tickets come with the first bytes.
    if let Ok(mut stream) = client.connect(ServerName::try_from("localhost").unwrap(), near).await {
        let _ = stream.read(&mut [0]).await;
    }
    server.await.unwrap()
}

fn self_signed(valid: std::ops::Range<i32>) -> (CertificateDer<'static>, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["anyone.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(valid.start, 1, 1);
    params.not_after = rcgen::date_time_ymd(valid.end, 1, 1);
    (params.self_signed(&key).unwrap().der().clone(), key)
}

#[tokio::test]
async fn any_client_certificate_comes_in_with_a_proven_key_and_none_without() {
    let directory = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(directory.path()).unwrap();
    let tls = authority.server_tls(&[]).unwrap();
    let anonymous = shown(&tls, &trusting(&authority.certificate_pem())).await.unwrap();
    assert!(anonymous.0.is_empty());
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        for valid in [2020..4096, 1999..2001, 3000..3001] {
            let (leaf, key) = self_signed(valid);
            let client = showing(&authority, version, vec![leaf.clone()], &key);
            for _ in 0..3 {
                assert_eq!(shown(&tls, &client).await.unwrap(), (vec![leaf.clone()], false), "nothing is resumed");
            }
            let stranger = rcgen::KeyPair::generate().unwrap();
            assert!(shown(&tls, &showing(&authority, version, vec![leaf], &stranger)).await.is_err(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_chain_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(directory.path()).unwrap();
    let tls = authority.server_tls(&[]).unwrap();
    let (leaf, key) = self_signed(2020..4096);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let of = |count: usize, filler: CertificateDer<'static>| {
            let mut chain = vec![filler; count];
            chain[0] = leaf.clone();
            showing(&authority, version, chain, &key)
        };
        assert_eq!(shown(&tls, &of(MAX_CHAIN, leaf.clone())).await.unwrap().0.len(), MAX_CHAIN);
        assert!(shown(&tls, &of(MAX_CHAIN + 1, leaf.clone())).await.is_err());
        assert!(shown(&tls, &of(2, vec![0; MAX_CHAIN_BYTES].into())).await.is_err());
        let odd: CertificateDer<'static> = b"not a certificate".to_vec().into();
        assert!(shown(&tls, &showing(&authority, version, vec![odd], &key)).await.is_err());
    }
}

#[test]
fn facts_are_those_of_the_certificate_and_of_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(directory.path()).unwrap();
    let facts = CertificateFacts::of(&authority.certificate_der()).unwrap();
    assert_eq!((facts.subject.as_str(), facts.expires_at), ("CN=Prism CA", authority.expires_at()));
    let (short, _) = self_signed(2020..2030);
    let chain = [authority.certificate_der(), short.clone()];
    assert_eq!(first_end(&chain).unwrap(), CertificateFacts::of(&short).unwrap().expires_at);
    assert!(first_end(&[]).is_err());
    let mut longer = short.to_vec();
    longer.push(0);
    assert!(CertificateFacts::of(&longer.into()).is_err());
}
