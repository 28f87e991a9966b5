//! The CA is replaced while everybody works: nobody is cut off before the old one is retired, and what stood on it is dead after.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Holder, signing_request};
use prism_e2e::enrol::Machine;
use prism_e2e::grants::cut;
use prism_e2e::node::{Files, join};
use prism_e2e::wait::{next, until};
use prism_e2e::{Admin, Cli, Failure, Headers, Options, Pattern, Prism, Site, data, dial, keys};
use prism_proto::admin::v1::{CertificateKind, ListCertificatesRequest};
use prism_proto::cluster::v1::{
    GetCaStatusRequest, GetCaStatusResponse, RetireCaRequest, RetireCaResponse, RotateCaRequest,
};
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{CreateSessionRequest, MtlsAuth};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tonic::Code;

async fn server() -> Prism {
    Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await
}

async fn issue(admin: &Admin, kind: CertificateKind, name: &str) -> (Holder, String) {
    let (request, key_pem) = signing_request();
    let answer = admin.issue_certificate(kind, name, &request).await;
    let chain_pem = String::from_utf8(answer.certificate_pem.to_vec()).unwrap();
    (Holder { chain_pem, key_pem }, answer.certificate.unwrap().serial_number)
}

async fn status(admin: &Admin) -> GetCaStatusResponse {
    admin.authority().get_ca_status(GetCaStatusRequest {}).await.unwrap().into_inner()
}

async fn rotate(admin: &Admin) -> Result<String, Failure> {
    let answer = admin.authority().rotate_ca(RotateCaRequest {}).await;
    answer.map(|answer| answer.into_inner().fingerprint).map_err(|status| Failure::from(&status))
}

async fn retire(admin: &Admin, force: bool) -> Result<RetireCaResponse, Failure> {
    let answer = admin.authority().retire_ca(RetireCaRequest { force }).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::from(&status))
}

fn fingerprints(pem: &[u8]) -> Vec<String> {
    let found = CertificateDer::pem_slice_iter(pem).map(|found| hex::encode(Sha256::digest(found.unwrap())));
    found.collect()
}

fn trusted(status: &GetCaStatusResponse) -> Vec<String> {
    status.authorities.iter().map(|ca| ca.fingerprint.clone()).collect()
}

/// `ca.pem` as it is now, kept in a file of its own.
fn pinned(server: &Prism, name: &str) -> PathBuf {
    let path = server.folder().join(name);
    std::fs::copy(server.data_dir().join("ca.pem"), &path).unwrap();
    path
}

/// A new connection of somebody with the first admin key who trusts these CAs.
fn trusting(server: &Prism, ca: &Path) -> Admin {
    let channel = dial::tls(&server.endpoints().admin, ca);
    Admin { channel, headers: Headers::bearer(&server.admin_token()) }
}

/// A new connection of somebody with a certificate.
fn holding(server: &Prism, holder: &Holder) -> Admin {
    Admin { channel: server.admin_channel_as(holder), headers: Headers::none() }
}

fn join_at(server: &Prism, data_dir: &Path, token: &str, id: &str) -> prism_e2e::cli::Outcome {
    let (endpoint, dir) = (server.endpoints().admin, data_dir.to_string_lossy().into_owned());
    join(&["-", "--controller", &endpoint, "--data-dir", &dir, "--node-id", id], token)
}

#[tokio::test]
async fn nobody_is_cut_off_by_a_rotation_and_the_old_ca_ends_with_its_retirement() {
    let server = Arc::new(server().await);
    let (admin, cli) = (server.admin(), Cli::of(&server));
    let old = pinned(&server, "old.pem");
    cli.run("ca status").ok().prints("there is one CA");
    retire(&admin, true).await.unwrap_err().is(Code::FailedPrecondition, "CA_NOT_ROTATING");

    // What stands on the old CA: a user, an application with a session, a node, and a token that nobody has used.
    let (alice, _) = issue(&admin, CertificateKind::User, "alice").await;
    admin.bind("user:alice", "viewer", None).await;
    let site = Site::new(Arc::clone(&server)).await;
    let config = site.config(Pattern::KeyValue).await;
    let (app, _) = issue(&admin, CertificateKind::Client, "app").await;
    let cluster = prism_e2e::enrol::uri_of(&app);
    admin.bind_client(&format!("certificate:{cluster}"), &site.namespace, &["read", "write"]).await;
    let by_certificate = CreateSessionRequest {
        auth: Some(Auth::Mtls(MtlsAuth::default())),
        config: Some(Config::ConfigName(config.clone())),
        ..data::named("", &config)
    };
    let session = data::create(&server.data_channel_as(&app), by_certificate.clone()).await.unwrap();
    let (machine, token) = (Machine::new(), admin.create_join_token("").await.join_token);
    let joined = machine.exchange(&admin.channel, &token, "n1").await.unwrap();
    let node = machine.holding(&joined.certificate_pem);
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("n2");
    join_at(&server, &second, &admin.create_join_token("").await.join_token, "n2").ok();
    let unused = admin.create_join_token("").await.join_token;
    let by_alice = holding(&server, &alice);
    let (mut stream, mut of_alice) = (admin.follow().await.unwrap(), by_alice.follow().await.unwrap());

    let new = rotate(&admin).await.unwrap();
    let pem = std::fs::read(server.data_dir().join("ca.pem")).unwrap();
    let now = status(&admin).await;
    assert_eq!(now.ca_certificate_pem, pem);
    assert_eq!(trusted(&now), fingerprints(&pem));
    assert_eq!(trusted(&now), [new.clone(), fingerprints(&std::fs::read(&old).unwrap()).remove(0)]);
    let counts = now.authorities.iter().map(|ca| (ca.user_certificates, ca.client_certificates, ca.node_certificates));
    assert_eq!(counts.collect::<Vec<_>>(), [(0, 0, 0), (1, 1, 2)]);
    assert_eq!((now.can_retire, now.nodes_waiting), (false, vec!["n1".to_owned(), "n2".to_owned()]));
    rotate(&admin).await.unwrap_err().is(Code::FailedPrecondition, "CA_ROTATING");
    let refused = retire(&admin, false).await.unwrap_err();
    assert_eq!(refused.is(Code::FailedPrecondition, "CA_IN_USE").metadata["count"], "4");
    cli.run("ca status").ok().prints("cannot go yet: 1 user, 1 client and 2 node").prints("no new one yet: n1, n2");

    // Open connections go on, and new ones are there for whoever trusts either CA, on both planes.
    session.put("k", b"v").await.unwrap();
    by_alice.who_am_i().await.unwrap();
    holding(&server, &alice).who_am_i().await.unwrap();
    let only_new = server.folder().join("new.pem");
    let text = String::from_utf8(pem.clone()).unwrap();
    let end = "-----END CERTIFICATE-----\n";
    std::fs::write(&only_new, &text[..text.find(end).unwrap() + end.len()]).unwrap();
    assert_eq!(fingerprints(&std::fs::read(&only_new).unwrap()), [new.as_str()]);
    for ca in [&old, &only_new] {
        trusting(&server, ca).who_am_i().await.unwrap();
        session.on(&dial::tls_as(&server.endpoints().data, ca, &app)).get("k").await.unwrap();
    }
    // What is issued now stands on the new CA, and is good at once.
    let (bob, bobs) = issue(&admin, CertificateKind::User, "bob").await;
    holding(&server, &bob).who_am_i().await.unwrap();
    let (newer, _) = issue(&admin, CertificateKind::Client, "app").await;
    data::create(&server.data_channel_as(&newer), by_certificate).await.unwrap();
    let log = admin.whole_log().await;
    let entry = log.iter().find(|entry| entry.operation == "RotateCa" && entry.success).unwrap();
    assert_eq!((entry.resource.as_str(), &entry.metadata["fingerprint"]), ("ca", &new));

    // Nodes get the new CA with their next certificate, or with a token from before or after.
    let renewed = machine.renew(&server, &node).await.unwrap();
    assert_eq!(fingerprints(&renewed.ca_certificate_pem), fingerprints(&pem));
    assert_eq!(status(&admin).await.nodes_waiting, ["n2"]);
    let node = machine.holding(&renewed.certificate_pem);
    machine.renew(&server, &node).await.unwrap();
    let third = folder.path().join("n3");
    join_at(&server, &third, &unused, "n3").ok();
    assert_eq!(Files::of(&third).read("ca.pem"), text);
    let fresh = admin.create_join_token("n2").await.join_token;
    assert!(fresh.contains(&new), "it carries the new CA's fingerprint");
    join_at(&server, &second, &fresh, "n2").ok();
    assert_eq!(Files::of(&second).read("ca.pem"), text);
    assert_eq!(status(&admin).await.nodes_waiting, [""; 0]);
    let later = admin.create_join_token("n4").await.join_token;

    // The old CA goes.
    let since = Instant::now();
    let retired = retire(&admin, true).await.unwrap();
    // Those of alice, of the application, of n1, and of n2, which came in again with the same key and kept its first one.
    assert_eq!((retired.certificates_cut, fingerprints(&retired.ca_certificate_pem)), (4, vec![new.clone()]));
    cut("a CA that was retired", &mut of_alice, since).await;
    holding(&server, &alice).who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    until("the session to end", async || session.on(&server.data_channel()).get("k").await.err()).await;
    assert_eq!(std::fs::read(server.data_dir().join("ca.pem")).unwrap(), std::fs::read(&only_new).unwrap());
    trusting(&server, &old).who_am_i().await.unwrap_err();
    trusting(&server, &only_new).who_am_i().await.unwrap();
    holding(&server, &bob).who_am_i().await.unwrap();
    machine.renew(&server, &node).await.unwrap();
    admin.who_am_i().await.unwrap();
    while next("an entry", &mut stream).await.unwrap().unwrap().operation != "RetireCa" {}
    let late = Machine::new().exchange(&server.admin_channel(), &unused, "n3").await.unwrap_err();
    late.is(Code::Unauthenticated, "TOKEN_INVALID");
    join_at(&server, &folder.path().join("n4"), &later, "n4").ok();

    // The next time the old one is let go, and nothing has to be forced.
    rotate(&admin).await.unwrap();
    admin.revoke_serial(&bobs).await;
    let listed = admin.access().list_certificates(ListCertificatesRequest::default()).await.unwrap().into_inner();
    for certificate in listed.certificates.into_iter().filter(|certificate| !certificate.revoked) {
        admin.revoke_fingerprint(&certificate.fingerprint).await;
    }
    cli.run("ca status").ok().prints("the old CA can go");
    let done = cli.run("ca retire").ok();
    assert!(done.err.contains("is trusted no more"), "{done:?}");
    cli.run("ca status").ok().prints("there is one CA");
    assert!(!server.log().contains(keys::secret(&unused)), "the token is in the log");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Starts a server on a copy of `base` with files of `other` over it; gives what it trusts then.
async fn start_with(base: &Path, other: &Path, files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    copy(base, &data_dir);
    std::fs::set_permissions(&data_dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for (from, to) in files {
        std::fs::copy(other.join(from), data_dir.join(to)).unwrap();
    }
    let server = Prism::start(Options::new().data_dir(&data_dir)).await;
    let now = trusted(&status(&server.admin()).await);
    assert_eq!(fingerprints(&std::fs::read(data_dir.join("ca.pem")).unwrap()), now);
    assert!(!data_dir.join("ca.next").exists());
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(data_dir.join("ca.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Whatever it was, the next change can be made.
    let admin = server.admin();
    if now.len() == 1 {
        rotate(&admin).await.unwrap();
    } else {
        retire(&admin, true).await.unwrap();
    }
    now
}

#[tokio::test]
async fn a_crash_between_any_two_steps_leaves_one_state_or_the_other() {
    let server = server().await;
    let kept = tempfile::tempdir().unwrap();
    let save = |name: &str| {
        server.kill();
        let path = kept.path().join(name);
        copy(&server.data_dir(), &path);
        server.spawn();
        path
    };
    let first = save("first");
    server.ready().await;
    rotate(&server.admin()).await.unwrap();
    let two = save("two");
    server.ready().await;
    retire(&server.admin(), true).await.unwrap();
    let last = save("last");
    server.ready().await;
    let of = |path: &Path| fingerprints(&std::fs::read(path.join("ca.pem")).unwrap());
    for (before, after) in [(&first, &two), (&two, &last)] {
        assert_ne!(of(before), of(after));
        // Written and not decided; decided and not in force; in force and not published.
        assert_eq!(start_with(before, after, &[("ca.key", "ca.next")]).await, of(before));
        let decided = [("ca.key", "ca.key"), ("ca.pem", "ca.pem")];
        let next = kept.path().join("next");
        copy(before, &next);
        std::fs::copy(after.join("ca.key"), next.join("ca.next")).unwrap();
        let files = [&decided[..], &[("ca.next", "ca.next")]].concat();
        assert_eq!(start_with(after, &next, &files).await, of(after));
        assert_eq!(start_with(after, before, &[("ca.pem", "ca.pem")]).await, of(after));
        // A change that was cut short while it was written.
        std::fs::write(next.join("ca.next"), "-----BEGIN PRIVATE KEY-----\nM").unwrap();
        assert_eq!(start_with(before, &next, &[("ca.next", "ca.next")]).await, of(before));
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_with_a_ca_that_works() {
    let server = server().await;
    for round in 0..12_u64 {
        let admin = server.admin();
        let before = trusted(&status(&admin).await).len();
        let change = tokio::spawn(async move {
            if before == 1 { rotate(&admin).await.is_ok() } else { retire(&admin, true).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(round)).await;
        server.kill();
        let acknowledged = change.await.unwrap();
        server.spawn();
        server.ready().await;
        let admin = server.admin();
        let now = status(&admin).await;
        assert_eq!(trusted(&now), fingerprints(&std::fs::read(server.data_dir().join("ca.pem")).unwrap()));
        assert!(!acknowledged || trusted(&now).len() != before, "what was answered is lost");
        let changes = admin.whole_log().await;
        let done = changes
            .iter()
            .filter(|entry| entry.success && ["RotateCa", "RetireCa"].contains(&entry.operation.as_str()));
        assert_eq!(done.count() % 2, trusted(&now).len() - 1, "an entry for each change, and a change for each entry");
        let (alice, _) = issue(&admin, CertificateKind::User, "alice").await;
        holding(&server, &alice).who_am_i().await.unwrap();
    }
}
