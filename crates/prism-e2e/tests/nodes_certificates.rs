//! Certificates of running nodes: renewed, rotated with the cluster's CA, expired, and the way back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Authority, Holder, signing_request};
use prism_e2e::data::{self, Session, named};
use prism_e2e::grants::cut;
use prism_e2e::machines::{self, NAMESPACE, Node, provision};
use prism_e2e::wait::{next, until};
use prism_e2e::{Admin, Failure, Headers, Options, Prism, dial, http1};
use prism_proto::admin::v1::CertificateKind;
use prism_proto::cluster::v1::{GetCaStatusRequest, GetCaStatusResponse, RetireCaRequest, RotateCaRequest};
use prism_proto::queue::v1::Message;
use prism_proto::session::v1::create_session_request::Auth;
use prism_proto::session::v1::{CreateSessionRequest, MtlsAuth};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::{Code, Status, Streaming};

/// The config of [`provision`] for queues.
const QUEUE: &str = "queue";

/// Waits until the node could start without a controller and have this session.
async fn keeps(node: &Node, session: &Session) {
    let (path, id) = (node.files().path("state"), prism_e2e::keys::id(&session.token).to_owned());
    until("the session is written down", async || {
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(id.len()).any(|part| part == id.as_bytes()).then_some(())
    })
    .await;
}

async fn metric(node: &Node, certificate: &str) -> f64 {
    let (_, text) = http1::get(&node.prism.endpoints().metrics, "/metrics").await;
    let start = format!("prism_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {start} in\n{text}")).parse().unwrap()
}

async fn controller(config: &str) -> Prism {
    Prism::start(controller_with(config)).await
}

fn controller_with(config: &str) -> Options {
    machines::controller().config(&format!("[limits]\nauth_failures = 1000\n{config}"))
}

/// Has a controller start again where the nodes look for it.
fn stay(controller: &mut Prism, config: &str) {
    let options = machines::at(controller_with(config), &controller.endpoints().admin);
    controller.set_options(options.data_dir(&controller.data_dir()));
}

async fn client(admin: &Admin) -> Holder {
    let (request, key_pem) = signing_request();
    let answer = admin.issue_certificate(CertificateKind::Client, "app", &request).await;
    Holder { chain_pem: String::from_utf8(answer.certificate_pem.to_vec()).unwrap(), key_pem }
}

fn by_certificate() -> CreateSessionRequest {
    CreateSessionRequest { auth: Some(Auth::Mtls(MtlsAuth::default())), ..named("", QUEUE) }
}

async fn open_as(node: &Node, ca: &Path, holder: &Holder) -> Result<Session, Failure> {
    let channel = dial::tls_as(&node.prism.endpoints().data, ca, holder);
    data::create(&channel, by_certificate()).await.map_err(|status| Failure::from(&status))
}

async fn status(admin: &Admin) -> GetCaStatusResponse {
    admin.authority().get_ca_status(GetCaStatusRequest {}).await.unwrap().into_inner()
}

/// A message goes in and comes out of a stream that is open.
async fn passes(session: &Session, stream: &mut Streaming<Message>) {
    session.publish("t", b"x").await.unwrap();
    let message = next("a message", stream).await.unwrap().unwrap();
    session.acknowledge(&message.message_id).await.unwrap();
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().unwrap()
}

/// A file with the first certificate of a PEM text.
fn first_of(pem: &str, folder: &Path) -> PathBuf {
    const END: &str = "-----END CERTIFICATE-----\n";
    let path = folder.join("first.pem");
    std::fs::write(&path, &pem[..pem.find(END).unwrap() + END.len()]).unwrap();
    path
}

#[tokio::test]
async fn a_running_node_goes_along_with_a_new_ca_and_lets_the_old_one_go() {
    let mut controller = controller("").await;
    stay(&mut controller, "");
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    let old = controller.folder().join("old.pem");
    std::fs::copy(node.files().path("ca.pem"), &old).unwrap();
    let app = client(&admin).await;
    admin.bind_client(&format!("certificate:{}", prism_e2e::enrol::uri_of(&app)), NAMESPACE, &["read", "write"]).await;
    let (by_key, by_old) = (node.open(&key, QUEUE).await.unwrap(), open_as(&node, &old, &app).await.unwrap());
    let mut stream = by_key.subscribe("t", "keys").await.unwrap();
    let mut of_old = by_old.subscribe("t", "certificates").await.unwrap();
    passes(&by_key, &mut stream).await;

    // The node is told, does all that there is to do, and gets the next identity last.
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();
    until("the node to have a certificate of the new CA", async || {
        status(&admin).await.nodes_waiting.is_empty().then_some(())
    })
    .await;
    let both = std::fs::read_to_string(controller.data_dir().join("ca.pem")).unwrap();
    assert_eq!(node.files().read("ca.pem"), both);
    assert_eq!(certificates(both.as_bytes()).len(), 2);
    let new = first_of(&both, controller.folder());
    // Whoever trusts one of the two gets in, with a certificate of either, and what was open goes on.
    let newer = client(&admin).await;
    for ca in [&old, &new] {
        until("the data port shows a chain for both", async || {
            data::create(&node.trusting(ca), named(&key, QUEUE)).await.ok()
        })
        .await;
        for holder in [&app, &newer] {
            open_as(&node, ca, holder).await.unwrap();
        }
    }
    passes(&by_key, &mut stream).await;
    by_old.publish("t", b"y").await.unwrap();

    // A start in between: of the controller, which shows a certificate of the new CA, and of the node.
    controller.kill();
    controller.spawn();
    controller.ready().await;
    let admin = controller.admin();
    until("the node is linked again", async || node.open(&key, QUEUE).await.ok()).await;
    passes(&by_key, &mut stream).await;
    let second = Node::start(&controller, "two").await;
    second.prism.crash_and_restart().await;
    for (ca, holder) in [(&old, &app), (&new, &newer)] {
        open_as(&second, ca, holder).await.unwrap();
    }

    // The old one goes: trusted nowhere, shown nowhere, and nobody has touched the nodes.
    let newest = open_as(&node, &new, &newer).await.unwrap();
    let mut of_new = newest.subscribe("t", "newer").await.unwrap();
    let since = Instant::now();
    admin.authority().retire_ca(RetireCaRequest { force: true }).await.unwrap();
    cut("a client's certificate of a CA that was retired", &mut of_old, since).await;
    for node in [&node, &second] {
        until("the old CA is gone from the node", async || {
            (node.files().read("ca.pem") == std::fs::read_to_string(&new).unwrap()).then_some(())
        })
        .await;
        open_as(node, &new, &app).await.unwrap_err().is(Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
        open_as(node, &new, &newer).await.unwrap();
        until("the data port does not show the old CA", async || {
            certificates(node.files().read("data-cert.pem").as_bytes()).len().eq(&2).then_some(())
        })
        .await;
        until("who trusts the old CA alone is not deceived", async || {
            data::create(&node.trusting(&old), named(&key, QUEUE)).await.err()
        })
        .await;
        until("the node is linked", async || node.open(&key, QUEUE).await.ok()).await;
    }
    passes(&by_key, &mut stream).await;
    newest.publish("t", b"z").await.unwrap();
    assert!(next("a message", &mut of_new).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_client_does_not_notice_that_its_node_renews() {
    let controller = controller("[cluster]\ncertificate_ttl = \"20s\"\n").await;
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    let session = node.open(&key, QUEUE).await.unwrap();
    let mut stream = session.subscribe("t", "g").await.unwrap();
    let ca = node.files().path("ca.pem");
    let shown = async || dial::peer_certificate(&node.prism.endpoints().data, &ca).await;
    let mut seen = vec![shown().await];
    let mut identities = vec![node.files().read("cert.pem")];
    let first = metric(&node, "data").await;
    // Long enough for what there was at first to be over.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(22) || seen.len() < 3 || identities.len() < 3 {
        assert!(start.elapsed() < Duration::from_secs(90), "{} and {}", seen.len(), identities.len());
        passes(&session, &mut stream).await;
        let (certificate, identity) = (shown().await, node.files().read("cert.pem"));
        if seen.last() != Some(&certificate) {
            seen.push(certificate);
        }
        if identities.last() != Some(&identity) {
            identities.push(identity);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.ready().await, (200, "ready\n".to_owned()));
    assert!(metric(&node, "data").await > first + 5.0 && metric(&node, "node").await > first + 5.0);
    assert!(metric(&node, "ca").await > first + 1e6);
    // The link goes on as well, with what is new.
    until("a session", async || node.open(&key, QUEUE).await.ok()).await;
    let ended = until("an operator reaches it", async || {
        Some(admin.terminate(&session.id, true, "enough").await).filter(|ended| ended.unreachable_nodes.is_empty())
    })
    .await;
    assert!(ended.unreachable_nodes.is_empty());
    let refused = session.get("k").await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_node_that_could_not_renew_does_so_as_soon_as_a_controller_is_back() {
    const LIFE: &str = "[cluster]\ncertificate_ttl = \"1m\"\n";
    let mut controller = controller(LIFE).await;
    stay(&mut controller, LIFE);
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    let session = node.open(&key, QUEUE).await.unwrap();
    let (identity, port) = (node.files().read("cert.pem"), node.files().read("data-cert.pem"));
    controller.kill();
    // After half a minute and a little more.
    let told = Instant::now();
    let fails = ["the node's certificate was not renewed", "the data port's certificate was not renewed"];
    while !fails.iter().all(|fails| node.prism.log().contains(fails)) {
        assert!(told.elapsed() < Duration::from_secs(55), "the node says nothing of its certificate");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = node.prism.log();
    for fails in fails {
        let line = log.lines().find(|line| line.contains(fails)).unwrap();
        assert!(line.contains("ends") && line.contains("left"), "{line}");
    }
    assert_eq!((node.files().read("cert.pem"), node.files().read("data-cert.pem")), (identity.clone(), port.clone()));
    controller.spawn();
    controller.ready().await;
    for (name, before) in [("cert.pem", &identity), ("data-cert.pem", &port)] {
        until(name, async || (node.files().read(name) != **before).then_some(())).await;
    }
    session.publish("t", b"x").await.unwrap();
    until("a session", async || node.open(&key, QUEUE).await.ok()).await;
}

#[tokio::test]
async fn a_node_that_slept_past_its_end_says_so_and_comes_back_as_itself() {
    const LIFE: &str = "[cluster]\ncertificate_ttl = \"10s\"\n";
    let mut controller = controller(LIFE).await;
    stay(&mut controller, LIFE);
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    let session = node.open(&key, QUEUE).await.unwrap();
    session.publish("t", b"kept").await.unwrap();
    keeps(&node, &session).await;

    // Awake, without a controller: it serves what is connected, and says what is the matter.
    controller.kill();
    node.says("the node's certificate has ended").await;
    node.says("the data port's certificate has ended").await;
    let log = node.prism.log();
    let line = log.lines().find(|line| line.contains("the node's certificate has ended")).unwrap();
    assert!(line.contains("prism-admin token create --node one") && line.contains("prism join"), "{line}");
    session.publish("t", b"still").await.unwrap();
    let (code, why) = node.ready().await;
    assert!(code == 503 && why.contains("the certificate of the data port has ended at"), "{code} {why}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(metric(&node, "data").await < now && metric(&node, "node").await < now);

    // A start with it ends with the same words, with a controller and without.
    node.prism.kill();
    for with in [false, true] {
        if with {
            controller.spawn();
            controller.ready().await;
        }
        node.prism.spawn();
        assert_eq!(node.prism.exit().await.code(), Some(1), "{}", node.prism.log());
        node.says("prism-admin token create --node one").await;
    }

    // The documented way.
    let admin = controller.admin();
    let held = node.files().read("key.pem");
    node.join(&admin).await;
    assert_eq!(node.files().read("key.pem"), held);
    node.prism.spawn();
    node.prism.ready().await;
    let session = session.on(&node.channel());
    let mut stream = session.subscribe("t", "g").await.unwrap();
    for payload in [&b"kept"[..], b"still"] {
        let message = next("a message", &mut stream).await.unwrap().unwrap();
        assert_eq!(message.payload, payload, "its data");
        session.acknowledge(&message.message_id).await.unwrap();
    }
    until("a session", async || node.open(&key, QUEUE).await.ok()).await;
    let ended = admin.terminate(&session.id, true, "enough").await;
    assert!(ended.unreachable_nodes.is_empty(), "{ended:?}");
}

#[tokio::test]
async fn nodes_see_the_clusters_ca_where_operators_see_a_certificate_of_their_own() {
    let operators = tempfile::tempdir().unwrap();
    let ca = Authority::new("the operator's");
    let path = ca.write(operators.path(), "ca");
    let (certificate, key) = ca.server().write(operators.path(), "server");
    let files =
        format!("[tls.admin]\nmode = \"files\"\ncert = '{}'\nkey = '{}'\n", certificate.display(), key.display());
    let controller = Prism::start(controller_with(&files)).await;
    let admin = Admin {
        channel: dial::tls(&controller.endpoints().admin, &path),
        headers: Headers::bearer(&controller.admin_token()),
    };
    let key = provision(&admin).await;
    // Joins and links without a word about the operator's CA.
    let node = Node::start_by(&admin, &controller, "one", "").await;
    let session = node.open(&key, QUEUE).await.unwrap();
    session.publish("t", b"x").await.unwrap();
    // A rotation reaches it there, too.
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();
    until("the node to have a certificate of the new CA", async || {
        status(&admin).await.nodes_waiting.is_empty().then_some(())
    })
    .await;
    admin.authority().retire_ca(RetireCaRequest { force: true }).await.unwrap();
    until("the old CA is gone from the node", async || {
        (certificates(node.files().read("ca.pem").as_bytes()).len() == 1).then_some(())
    })
    .await;
    until("a session", async || node.open(&key, QUEUE).await.ok()).await;
    // Everybody else sees what the operator gave.
    let shown = dial::peer_certificate(&controller.endpoints().admin, &path).await;
    assert_eq!(shown, certificates(&std::fs::read(&certificate).unwrap())[0]);
    let ours = controller.data_dir().join("ca.pem");
    let refused: Status = Admin { channel: dial::tls(&controller.endpoints().admin, &ours), headers: admin.headers }
        .service()
        .list_namespaces(prism_proto::admin::v1::ListNamespacesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

/// Has a node join anew, and gives what its queue holds.
async fn comes_back(node: &Node, admin: &Admin, key: &str) -> Message {
    node.rejoin(admin).await;
    let session = until("a session", async || node.open(key, QUEUE).await.ok()).await;
    let mut stream = session.subscribe("t", "g").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_node_that_missed_a_change_of_the_ca_is_told_what_to_do() {
    let controller = controller("").await;
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    let session = node.open(&key, QUEUE).await.unwrap();
    session.publish("t", b"x").await.unwrap();
    let of_the_first = node.files().read("cert.pem");
    // Without what it has written down it would wait for a controller that it trusts.
    keeps(&node, &session).await;

    // Away from before its beginning until after its end: it cannot know the new CA for the cluster's.
    node.prism.kill();
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();
    assert_eq!(status(&admin).await.nodes_waiting, ["one"]);
    admin.authority().retire_ca(RetireCaRequest { force: true }).await.unwrap();
    node.prism.spawn();
    node.says("the cluster's CA may have been replaced while this node was away").await;
    node.prism.ready().await;
    node.open(&key, QUEUE).await.unwrap_err().is(Code::Unavailable, "NO_CONTROLLER");
    // What it serves stays, its identity is made anew.
    std::fs::remove_dir_all(node.files().path("")).unwrap();
    assert_eq!(comes_back(&node, &admin, &key).await.payload, &b"x"[..]);

    // It knows both, and its certificate is of the one that was retired meanwhile.
    let (before, key_before) = (node.files().read("cert.pem"), node.files().read("key.pem"));
    assert_ne!(before, of_the_first);
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();
    until("the node to have a certificate of the new CA", async || {
        status(&admin).await.nodes_waiting.is_empty().then_some(())
    })
    .await;
    until("the new one is there", async || (node.files().read("cert.pem") != before).then_some(())).await;
    node.prism.kill();
    std::fs::write(node.files().path("cert.pem"), &before).unwrap();
    admin.authority().retire_ca(RetireCaRequest { force: true }).await.unwrap();
    node.prism.spawn();
    node.says("the controller does not take this node's certificate").await;
    let log = node.prism.log();
    let line = log.lines().find(|line| line.contains("does not take this node's certificate")).unwrap();
    assert!(line.contains("prism-admin token create --node one"), "{line}");
    assert_eq!(comes_back(&node, &admin, &key).await.payload, &b"x"[..]);
    assert_eq!(node.files().read("key.pem"), key_before, "the same machine");
}

/// A copy of what a machine has on its disk.
fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copied(&path, &target);
        } else if !["endpoints.json", "lock"].iter().any(|name| entry.file_name() == *name) {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_node_without_a_link_learns_of_a_new_ca_when_it_renews_and_renews_once() {
    let controller = controller("[cluster]\ncertificate_ttl = \"40s\"\n").await;
    let admin = controller.admin();
    let key = provision(&admin).await;
    let node = Node::start(&controller, "one").await;
    keeps(&node, &node.open(&key, QUEUE).await.unwrap()).await;
    // While it stands still a copy of it takes its place; it serves, and is not linked any more.
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    copied(&node.prism.data_dir(), &data_dir);
    node.prism.signal("STOP");
    let twin = Prism::start(Options::new().arg("--role").arg("data").data_dir(&data_dir)).await;
    node.prism.signal("CONT");
    node.says("another process has this node's identity and is linked").await;
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();

    let ca = std::fs::read_to_string(controller.data_dir().join("ca.pem")).unwrap();
    assert_eq!(certificates(ca.as_bytes()).len(), 2);
    let of_the_old = node.files().read("cert.pem");
    until("a renewal", async || (node.files().read("cert.pem") != of_the_old).then_some(())).await;
    until("the new CA", async || (node.files().read("ca.pem") == ca).then_some(())).await;
    let renewals = || node.prism.log().matches("the node's certificate was renewed").count();
    let so_far = renewals();
    // Less than half of its life: nothing is due, but what was renewed may not be in the log before.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let log = node.prism.log();
    assert!(renewals() <= so_far + 1, "{log}");
    assert!(!log.contains("trusted no more"), "{log}");
    drop(twin);
}
