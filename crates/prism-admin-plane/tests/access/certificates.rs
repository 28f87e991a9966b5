//! IssueCertificate, ListCertificates, RevokeCertificate.

use std::time::Duration;

use prism_admin_plane::ops::certificate;
use prism_core::Kind;
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::{duration, timestamp};
use prism_rpc::tls::ClientCertificate;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::world::{DAY, Shown, World, denied, invalid, issue, refusal};

use wire::CertificateKind::{Client, User};

fn by_serial(serial: &str) -> wire::RevokeCertificateRequest {
    wire::RevokeCertificateRequest { serial_number: serial.to_owned(), fingerprint: String::new() }
}

fn by_fingerprint(fingerprint: &str) -> wire::RevokeCertificateRequest {
    wire::RevokeCertificateRequest { serial_number: String::new(), fingerprint: fingerprint.to_owned() }
}

#[tokio::test]
async fn a_users_certificate_names_her_and_what_she_may_do_comes_from_bindings() {
    let world = World::new().await;
    world.bind("user:alice@example.com", "viewer", Some("a")).await;
    let (issued, alice) = world.certificate(User, "alice@example.com").await;
    let uri = format!("spiffe://{}/user/alice@example.com", world.store.cluster());
    assert_eq!((issued.uri.as_str(), issued.kind), (uri.as_str(), User.into()));
    assert_eq!(issued.expires_at, Some(timestamp(world.clock.now() + 90 * DAY)));
    let entry = world.entry().await;
    assert_eq!(entry.resource, format!("certificate:{}", issued.serial_number));
    assert_eq!((entry.metadata["kind"].as_str(), entry.metadata["uri"].as_str()), ("user", uri.as_str()));
    assert_eq!(entry.metadata["serial_number"], issued.serial_number);

    let answer = world.who_am_i(&alice).await.unwrap();
    assert_eq!((answer.actor.as_str(), answer.auth_method.as_str()), ("alice@example.com", "mtls"));
    assert_eq!(answer.credential_id, issued.serial_number);
    assert_eq!(answer.subjects, ["user:alice@example.com".to_owned(), format!("certificate:{uri}")]);
    assert_eq!(answer.expires_at, issued.expires_at);
    assert_eq!(world.held(&alice).await, [("viewer".to_owned(), Some("a".to_owned()))]);
    world.clock.advance(90 * DAY + Duration::from_secs(1));
    assert_eq!(refusal(world.who_am_i(&alice).await).reason(), "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn an_applications_certificate_is_nothing_on_the_admin_plane() {
    let world = World::new().await;
    world.bind(&format!("certificate:spiffe://{}/client/app", world.store.cluster()), "admin", None).await;
    let (issued, app) = world.certificate(Client, "app").await;
    assert_eq!(issued.expires_at, Some(timestamp(world.clock.now() + 30 * DAY)));
    assert_eq!(refusal(world.who_am_i(&app).await).reason(), "CREDENTIAL_INVALID");
}

/// A certificate for a node, as later versions issue them, and its fingerprint.
fn node(world: &World) -> (Shown, String) {
    let uri = format!("spiffe://{}/node/n-1", world.store.cluster());
    let wanted = ClientCertificate { uri, common_name: "n-1".to_owned(), life: DAY };
    let issued = world.authority.issue_client(&wanted, &issue(Client, "n-1").csr_pem).unwrap();
    (Shown::Certificate(CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap()), issued.fingerprint)
}

#[tokio::test]
async fn a_node_is_known_and_may_do_nothing_on_the_admin_plane() {
    let world = World::new().await;
    let uri = format!("spiffe://{}/node/n-1", world.store.cluster());
    for subject in [format!("certificate:{uri}"), "user:n-1".to_owned()] {
        world.bind(&subject, "admin", None).await;
    }
    let (node, fingerprint) = node(&world);
    denied(world.who_am_i(&node).await, "authenticated");
    let entry = world.entry().await;
    assert_eq!((entry.actor, entry.auth_method.as_str(), entry.success), (uri, "mtls", false));
    assert_eq!(entry.metadata["permission"], "authenticated");
    denied(
        world.call::<certificate::ListCertificates>(&node, wire::ListCertificatesRequest::default()).await,
        "access:read",
    );
    denied(world.call::<certificate::IssueCertificate>(&node, issue(User, "x")).await, "access:manage");
    world.root::<certificate::RevokeCertificate>(by_fingerprint(&fingerprint)).await.unwrap();
    assert_eq!(refusal(world.who_am_i(&node).await).reason(), "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn a_revoked_certificate_is_dead_and_stays_listed() {
    let world = World::new().await;
    let (first, alice) = world.certificate(User, "alice").await;
    let (second, again) = world.certificate(User, "alice").await;
    world.who_am_i(&alice).await.unwrap();
    let loud = first.serial_number.to_ascii_uppercase();
    world.root::<certificate::RevokeCertificate>(by_serial(&loud)).await.unwrap();
    let entry = world.entry().await;
    assert_eq!(entry.resource, format!("certificate:{}", first.serial_number));
    assert_eq!(entry.metadata["fingerprint"], first.fingerprint);
    assert_eq!(refusal(world.who_am_i(&alice).await).reason(), "CREDENTIAL_INVALID");
    world.who_am_i(&again).await.unwrap();
    for request in [by_serial(&first.serial_number), by_fingerprint(&second.fingerprint.to_ascii_uppercase())] {
        world.root::<certificate::RevokeCertificate>(request).await.unwrap();
    }
    assert_eq!(refusal(world.who_am_i(&again).await).reason(), "CREDENTIAL_INVALID");

    let foreign = "ab".repeat(32);
    world.root::<certificate::RevokeCertificate>(by_fingerprint(&foreign)).await.unwrap();
    world.root::<certificate::RevokeCertificate>(by_fingerprint(&foreign)).await.unwrap();
    assert!(world.store.access().revoked_certificates.contains(&foreign));
    let listed = world.root::<certificate::ListCertificates>(wire::ListCertificatesRequest::default()).await.unwrap();
    assert_eq!((listed.certificates.len(), listed.total_count), (3, 3));
    assert!(listed.certificates.iter().all(|certificate| certificate.revoked));
    let other = listed.certificates.iter().find(|certificate| certificate.fingerprint == foreign).unwrap();
    assert_eq!((other.kind, other.serial_number.as_str(), other.created_at), (0, "", None));
}

#[tokio::test]
async fn what_cannot_be_revoked_is_said() {
    let world = World::new().await;
    let revoke = |request| world.root::<certificate::RevokeCertificate>(request);
    assert_eq!(refusal(revoke(by_serial("4a")).await).kind(), Kind::NotFound);
    invalid(revoke(wire::RevokeCertificateRequest::default()).await, &["serial_number"]);
    invalid(revoke(by_serial("xyz")).await, &["serial_number"]);
    invalid(revoke(by_fingerprint("ab")).await, &["fingerprint"]);
    let both = wire::RevokeCertificateRequest { serial_number: "4a".to_owned(), ..by_fingerprint(&"ab".repeat(32)) };
    invalid(revoke(both).await, &["fingerprint"]);
}

#[tokio::test]
async fn every_fault_of_a_request_is_named_and_nothing_is_issued() {
    let world = World::new().await;
    let ask = |request| world.root::<certificate::IssueCertificate>(request);
    let empty = wire::IssueCertificateRequest { ttl: Some(duration(Duration::from_secs(59))), ..Default::default() };
    invalid(ask(empty).await, &["kind", "name", "csr_pem", "ttl"]);
    let bad = wire::IssueCertificateRequest { csr_pem: b"no request".to_vec().into(), ..issue(User, "alice") };
    invalid(ask(bad).await, &["csr_pem"]);
    invalid(ask(issue(User, "prism-dev")).await, &["name"]);
    invalid(ask(wire::IssueCertificateRequest { ttl: Some(duration(367 * DAY)), ..issue(User, "a") }).await, &["ttl"]);
    let listed = world.root::<certificate::ListCertificates>(wire::ListCertificatesRequest::default()).await.unwrap();
    assert_eq!(listed.total_count, 0);
    let minute = wire::IssueCertificateRequest { ttl: Some(duration(Duration::from_mins(1))), ..issue(Client, "a") };
    let issued = ask(minute).await.unwrap().certificate.unwrap();
    assert_eq!(issued.expires_at, Some(timestamp(world.clock.now() + Duration::from_mins(1))));
}

#[tokio::test]
async fn an_answer_is_given_again_and_the_list_is_the_installations() {
    let world = World::new().await;
    let request = issue(User, "alice");
    let ask = || world.keyed::<certificate::IssueCertificate>(&world.root, request.clone(), Some("k"));
    let (first, again) = (ask().await.unwrap(), ask().await.unwrap());
    assert_eq!(first, again);
    assert!(!first.ca_certificate_pem.is_empty());
    let (_, bound) = world.key("admin", Some("a")).await;
    let list = wire::ListCertificatesRequest::default;
    denied(world.call::<certificate::ListCertificates>(&bound, list()).await, "access:read");
    let revoke = by_serial(&first.certificate.unwrap().serial_number);
    denied(world.call::<certificate::RevokeCertificate>(&bound, revoke).await, "access:manage");
    assert_eq!(world.root::<certificate::ListCertificates>(list()).await.unwrap().total_count, 1);
}
