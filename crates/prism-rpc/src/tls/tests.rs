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
async fn seen(config: &Arc<ServerConfig>, pem: &str, name: &str) -> std::io::Result<CertificateDer<'static>> {
    let (client, server) = tokio::io::duplex(16 * 1024);
    let acceptor = TlsAcceptor::from(config.clone());
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
    let config = authority.server_config(&names, None).unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "prism.example", "a.wild.example", "10.1.2.3"] {
        seen(&config, authority.certificate_pem(), name).await.unwrap();
    }
    assert!(seen(&config, authority.certificate_pem(), "other.example").await.is_err());
    let stranger = tempfile::tempdir().unwrap();
    let stranger = CertificateAuthority::load_or_create(stranger.path()).unwrap();
    assert!(seen(&config, stranger.certificate_pem(), "localhost").await.is_err());
    assert!(authority.server_config(&["not a name".to_owned()], None).unwrap_err().message().contains("listen.names"));
    assert_eq!(http2_only(&config).alpn_protocols, [b"h2"]);
}

#[tokio::test]
async fn a_certificate_is_replaced_before_it_expires() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let authority = CertificateAuthority::load_or_create_at(directory.path(), clock.clone()).unwrap();
    let config = authority.server_config(&[], None).unwrap();
    let pem = authority.certificate_pem();
    let first = seen(&config, pem, "localhost").await.unwrap();
    clock.advance(Duration::from_hours(1416));
    assert_eq!(seen(&config, pem, "localhost").await.unwrap(), first);
    clock.advance(Duration::from_hours(48));
    // The client's clock is the system's, to which the new certificate is not yet valid; what counts is that it is new.
    assert!(seen(&config, pem, "localhost").await.is_err());
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
    assert!(authority.server_config(&[], None).is_ok());
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}
