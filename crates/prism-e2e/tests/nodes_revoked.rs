//! Nodes that their operators have revoked: they stop, they stay stopped, and nobody but a controller can say so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prism_e2e::certificates::{Authority, Holder, leaf, uri};
use prism_e2e::enrol::{Machine, uri_of};
use prism_e2e::machines::{Node, bring_back, controller, provision, refused};
use prism_e2e::{Failure, Options, Prism, Refused as _, wait};
use prism_proto::cluster::v1::link_service_client::LinkServiceClient;
use prism_proto::cluster::v1::node_frame::Frame;
use prism_proto::cluster::v1::{Hello, NodeFrame, RevokeNodeRequest};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

#[tokio::test]
async fn a_revoked_node_stops_and_stays_stopped_until_it_joins_again() {
    let mut server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let admin = server.admin();
    let key = provision(&admin).await;
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);
    let (first, second) = (one.open(&key, "kv").await.unwrap(), two.open(&key, "kv").await.unwrap());
    first.put("a", b"1").await.unwrap();
    let consumer = one.open(&key, "queue").await.unwrap();
    let mut stream = consumer.subscribe("jobs", "g").await.unwrap();

    let revoked = admin.nodes().revoke_node(RevokeNodeRequest { node_id: "one".to_owned() }).await.unwrap();
    assert_eq!(revoked.into_inner().certificates_revoked, 1);
    let cut = wait::next("the end of the stream", &mut stream).await.refused();
    cut.is(Code::Aborted, "SESSION_TERMINATED");
    assert_eq!(cut.metadata["reason"], "its node was revoked", "{cut:?}");
    refused(first.get("a").await).is(Code::Unavailable, "NODE_REVOKED");
    one.open(&key, "kv").await.unwrap_err().is(Code::Unavailable, "NODE_REVOKED");
    let put_out = (503, "revoked\n".to_owned());
    wait::until("it is not ready", || async { (one.ready().await == put_out).then_some(()) }).await;
    one.says("join again with a new token").await;
    second.put("b", b"2").await.unwrap();
    two.keeps(&second).await;
    assert_eq!(two.ready().await.0, 200);

    // Neither starts with a controller now; the one that was revoked does not start at all.
    server.kill();
    for node in [&one, &two] {
        node.prism.kill();
        node.prism.spawn();
    }
    two.prism.ready().await;
    let second = second.on(&two.channel());
    assert_eq!(second.get("b").await.unwrap().value, b"2".as_slice());
    one.says("this node is revoked").await;
    assert!(!one.prism.data_dir().join("endpoints.json").exists(), "a revoked node serves:\n{}", one.prism.log());

    // A controller alone changes nothing, and a new token does.
    bring_back(&mut server, &endpoint).await;
    let admin = server.admin();
    wait::until("the other is back", || async { two.open(&key, "kv").await.ok() }).await;
    assert!(!one.prism.data_dir().join("endpoints.json").exists(), "a revoked node serves:\n{}", one.prism.log());
    one.rejoin(&admin).await;
    assert_eq!(one.ready().await.0, 200);
    refused(first.on(&one.channel()).get("a").await).is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    let again = wait::until("a session is admitted", || async { one.open(&key, "kv").await.ok() }).await;
    again.put("c", b"3").await.unwrap();
    assert_eq!(again.get("a").await.unwrap().value, b"1".as_slice(), "what is on its disk is there");
    one.keeps(&again).await;
    server.kill();
    one.prism.crash_and_restart().await;
    assert_eq!(again.on(&one.channel()).get("c").await.unwrap().value, b"3".as_slice(), "a node as any other");
}

/// Somebody who answers every call on a controller's address with one status.
struct Standin {
    answer: Arc<Mutex<Status>>,
    calls: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Standin {
    async fn at(address: &str, holder: &Holder, answer: Status) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(holder.chain(), holder.key())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind(address).await.unwrap());
        let (answer, calls) = (Arc::new(Mutex::new(answer)), Arc::new(Mutex::new(0)));
        let (given, counted) = (Arc::clone(&answer), Arc::clone(&calls));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Who does not like the certificate goes away.
                let Ok(stream) = acceptor.accept(stream).await else {
                    *counted.lock().unwrap() += 1;
                    continue;
                };
                let (given, counted) = (Arc::clone(&given), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let response = given.lock().unwrap().clone().into_http::<Body>().map(drop);
                        let _ = respond.send_response(response, true);
                        *counted.lock().unwrap() += 1;
                    }
                });
            }
        });
        Self { answer, calls, task }
    }

    /// Answers otherwise, and waits until the node has heard it, and been there once more.
    async fn says(&self, answer: Status) {
        *self.answer.lock().unwrap() = answer;
        self.is_heard().await;
    }

    async fn is_heard(&self) {
        let before = *self.calls.lock().unwrap();
        wait::until("the node has come again", || async { (*self.calls.lock().unwrap() >= before + 3).then_some(()) })
            .await;
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn status(code: Code, reason: &str, domain: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
    Status::with_error_details(code, "go away", details)
}

#[tokio::test]
async fn only_a_controller_can_say_that_a_node_is_revoked() {
    const DOMAIN: &str = "prism.cluster.v1";
    let server = Prism::start(controller()).await;
    let endpoint = server.endpoints().admin;
    let key = provision(&server.admin()).await;
    let (one, two) = (Node::start(&server, "one").await, Node::start(&server, "two").await);
    let session = one.open(&key, "kv").await.unwrap();
    server.kill();
    let revoked = || status(Code::Unauthenticated, "CERTIFICATE_REVOKED", DOMAIN);

    // Another machine of the cluster in the controller's place, with a good certificate for servers.
    let folder = two.prism.data_dir().join("node");
    let holder = Holder::read(&folder.join("data-cert.pem"), &folder.join("data-key.pem"));
    let standin = Standin::at(&endpoint, &holder, revoked()).await;
    standin.is_heard().await;
    session.put("a", b"1").await.unwrap();
    drop(standin);
    // One with a CA of its own.
    let standin = wait_for_port(&endpoint, &Authority::new("Prism").server(), revoked()).await;
    standin.is_heard().await;
    session.put("a", b"2").await.unwrap();
    drop(standin);

    // A controller that says something else.
    let holder = Authority::of_server(&server.data_dir()).server();
    let standin = wait_for_port(&endpoint, &holder, Status::unauthenticated("revoked")).await;
    standin.is_heard().await;
    for said in [
        status(Code::Unauthenticated, "CREDENTIAL_INVALID", DOMAIN),
        status(Code::Unauthenticated, "CERTIFICATE_EXPIRED", DOMAIN),
        status(Code::FailedPrecondition, "NODE_UNKNOWN", DOMAIN),
        status(Code::FailedPrecondition, "CERTIFICATE_UNKNOWN", DOMAIN),
        status(Code::Unavailable, "NODE_REVOKED", DOMAIN),
        status(Code::FailedPrecondition, "NODE_REVOKED", "example.com"),
        status(Code::Unimplemented, "UNIMPLEMENTED", DOMAIN),
    ] {
        standin.says(said.clone()).await;
        session.put("a", b"3").await.unwrap_or_else(|refused| panic!("{said:?}: {refused:?}"));
    }
    assert_eq!(one.ready().await.0, 200);

    // And one that says it.
    *standin.answer.lock().unwrap() = status(Code::FailedPrecondition, "NODE_REVOKED", DOMAIN);
    wait::until("it is not ready", || async { (one.ready().await.0 == 503).then_some(()) }).await;
    refused(session.get("a").await).is(Code::Unavailable, "NODE_REVOKED");
}

/// The port of the one before is free in a moment.
async fn wait_for_port(address: &str, holder: &Holder, answer: Status) -> Standin {
    wait::until("the port is free", || async { TcpListener::bind(address).await.ok() }).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    Standin::at(address, holder, answer).await
}

/// Opens a link as the node `one`, and says how that ended.
async fn link(server: &Prism, holder: &Holder) -> Failure {
    let hello = Hello { oldest_protocol: 1, newest_protocol: 1, node_id: "one".to_owned(), ..Hello::default() };
    let frames = tokio_stream::once(NodeFrame { frame: Some(Frame::Hello(hello)) });
    let mut client = LinkServiceClient::new(server.admin_channel_as(holder));
    match wait::within("an answer", client.link(frames)).await {
        Err(refused) => Failure::from(&refused),
        Ok(opened) => {
            let mut incoming = opened.into_inner();
            loop {
                match wait::next("the end of the link", &mut incoming).await {
                    Some(Ok(_)) => {}
                    end => return end.refused(),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_link_asks_for_a_certificate_that_is_remembered_and_tells_a_revoked_one() {
    let server = Prism::start(Options::new()).await;
    let (admin, machine) = (server.admin(), Machine::new());
    let token = admin.create_join_token("one").await.join_token;
    let answer = machine.exchange(&admin.channel, &token, "one").await.unwrap();
    let holder = machine.holding(&answer.certificate_pem);
    let renewed = machine.holding(&machine.renew(&server, &holder).await.unwrap().certificate_pem);
    // It is let in, and is asked for what comes next.
    for good in [&holder, &renewed] {
        let ended = link(&server, good).await;
        assert_eq!(ended.reason, "LINK_CLOSED", "{ended:?}");
    }

    let name = uri_of(&holder);
    let own_ca = Authority::of_server(&server.data_dir());
    let forged = own_ca.client(vec![uri(&name)]);
    link(&server, &forged).await.is(Code::FailedPrecondition, "CERTIFICATE_UNKNOWN");
    let mut parameters = leaf(vec![uri(&name)], ExtendedKeyUsagePurpose::ClientAuth);
    let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    parameters.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(soon);
    let expired = own_ca.issue(&parameters);
    tokio::time::sleep(Duration::from_secs(3)).await;
    link(&server, &expired).await.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    let user = own_ca.client(vec![uri(&name.replace("/node/", "/user/"))]);
    let strange = Authority::new("Prism").client(vec![uri(&name)]);
    for revoked in [&renewed, &forged, &expired, &user, &strange] {
        admin.revoke_fingerprint(&revoked.fingerprint()).await;
    }
    for revoked in [&renewed, &forged, &expired] {
        let told = link(&server, revoked).await;
        told.is(Code::Unauthenticated, "CERTIFICATE_REVOKED");
        assert_eq!(told.domain, "prism.cluster.v1", "{told:?}");
    }
    // It is told to nodes of this cluster, and about links.
    for other in [&user, &strange] {
        link(&server, other).await.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    machine.renew(&server, &renewed).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    let refusals = admin.whole_log().await;
    let refusals: Vec<_> = refusals.iter().filter(|entry| entry.operation == "Link" && !entry.success).collect();
    assert!(refusals.len() >= 6, "each has its entry: {refusals:?}");
}
