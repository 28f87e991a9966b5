//! Whom a session is opened for, by key, JWT and certificate; what each may see; what a failed one costs and is told.

mod common;

use std::time::{Duration, Instant};

use common::proofs::{Authority, Signer, Tls, claims, settings, spiffe, trust};
use common::{Node, Setup, create, fields, given, open, refused};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prism_core::control::{NamespaceStatus, Quota};
use prism_core::secret::{Random, SecretKind};
use prism_core::session::DataGrant;
use prism_core::{Clock, UnixMillis};
use prism_identity::Issuers;
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::config::v1::{
    AccessPattern, BackendConfig, BackendType, ClientConfig, GetConfigRequest, ListConfigsRequest,
    ValidateConfigRequest,
};
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{HeartbeatRequest, MtlsAuth};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

fn mtls(sent: &[u8]) -> Auth {
    Auth::Mtls(MtlsAuth { client_cert: sent.to_vec().into() })
}

fn inline(namespace: &str) -> ClientConfig {
    ClientConfig {
        name: "mine".to_owned(),
        version: "1".to_owned(),
        pattern: AccessPattern::KeyValue.into(),
        backend: Some(BackendConfig { r#type: BackendType::Memory.into(), options: [].into(), pool: None }),
        namespace: namespace.to_owned(),
        ..ClientConfig::default()
    }
}

fn with_header<T>(message: T, header: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(header) = header {
        request.metadata_mut().insert("authorization", header.parse().unwrap());
    }
    request
}

/// Names of the configs that a caller sees, or why it sees none.
async fn list(channel: &Channel, header: Option<&str>, namespace: Option<&str>) -> Result<Vec<String>, Status> {
    let request = ListConfigsRequest { pattern: Some(1), namespace: namespace.map(str::to_owned) };
    let answer = ConfigServiceClient::new(channel.clone()).list_configs(with_header(request, header)).await?;
    Ok(answer.into_inner().configs.into_iter().map(|config| config.name).collect())
}

struct Trusting {
    node: Node,
    signer: Signer,
    clock: Clock,
}

/// A node that trusts an issuer, to whose alice two namespaces are given.
async fn trusting() -> Trusting {
    let (signer, clock) = (Signer::new(), Clock::system());
    let node = Node::start_with(Setup { issuers: signer.issuers(&clock), ..Setup::default() }).await;
    node.control.bind("user:alice", &[given("default", true, false)]);
    node.control.bind("group:team", &[given("other", true, true)]);
    Trusting { node, signer, clock }
}

impl Trusting {
    fn alice(&self) -> String {
        self.signer.token("alice", &["team"], self.clock.now())
    }
}

#[tokio::test]
async fn a_jwt_opens_sessions_in_each_of_its_namespaces_with_the_rights_it_has_there() {
    let trusting = trusting().await;
    let (node, token) = (&trusting.node, || Auth::JwtToken(trusting.alice()));
    let here = node.session_of(token(), "kv").await.unwrap();
    let there = node.session_of(token(), "kv-other").await.unwrap();
    let grant_of = |id: &str| {
        let live = node.control.live.lock().unwrap();
        let record = live.values().find(|record| record.id.to_string() == id).unwrap();
        assert_eq!(record.basis.credential_id, "https://id.example.org#alice");
        assert_eq!((record.basis.subjects.len(), record.basis.certificate.is_none()), (2, true));
        record.grant
    };
    assert_eq!(grant_of(&here.session_id), DataGrant { read: true, write: false });
    assert_eq!(grant_of(&there.session_id), DataGrant { read: true, write: true });
    for (namespace, allowed) in [("default", true), ("other", true), ("third", false)] {
        let request = create(Some(token()), Some(Config::InlineConfig(inline(namespace))));
        let outcome = node.sessions().create_session(request).await;
        if allowed {
            assert_eq!(outcome.unwrap().into_inner().config.unwrap().namespace, namespace);
        } else {
            refused(outcome, Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
        }
    }
    refused(node.session_of(token(), "absent").await, Code::NotFound, "NOT_FOUND");
    let outcome = node.sessions().create_session(create(Some(token()), None)).await;
    assert_eq!(fields(&refused(outcome, Code::InvalidArgument, "INVALID_ARGUMENT")), ["config"]);
    // A namespace that is closed closes nothing else.
    node.control.namespace("other", NamespaceStatus::Suspended, Quota::default());
    refused(node.session_of(token(), "kv-other").await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    node.session_of(token(), "kv").await.unwrap();
    // Calls count where the session was to be.
    let figures = |namespace: &str| node.metrics.namespace_figures(Duration::from_mins(1))[namespace];
    let [of_default, of_other] = ["default", "other"].map(figures);
    assert_eq!((of_other.requests_total, of_other.errors_total), (3, 1));
    assert_eq!((of_default.requests_total, of_default.errors_total), (6, 3));
}

#[tokio::test]
async fn an_invalid_jwt_is_told_nothing_but_that() {
    let trusting = trusting().await;
    let (node, now) = (&trusting.node, trusting.clock.now());
    let good = claims("alice", &[], now);
    let changed = |name: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[name] = value;
        trusting.signer.sign(&claims)
    };
    let seconds = now.0 / 1000;
    let mut messages = Vec::new();
    for token in [
        String::new(),
        "eyJ".to_owned(),
        "e30.e30.".to_owned(),
        "x".repeat(100_000),
        node.key.clone(),
        Signer::new().token("alice", &[], now),
        changed("exp", json!(seconds - 3600)),
        changed("nbf", json!(seconds + 3600)),
        changed("aud", json!("prism-admin")),
        changed("aud", json!(["prism-data", "prism-admin"])),
        changed("iss", json!("https://other.example.org")),
    ] {
        let status = node.session_of(Auth::JwtToken(token), "kv").await;
        let status = refused(status, Code::Unauthenticated, "JWT_INVALID");
        assert!(status.get_details_error_info().unwrap().metadata.is_empty());
        messages.push(status.message().to_owned());
    }
    messages.dedup();
    assert_eq!(messages, ["the JWT is not valid"]);
    node.session_of(Auth::JwtToken(trusting.signer.sign(&good)), "kv").await.unwrap();
    // Valid, but nobody has given it anything.
    let mallory = || trusting.signer.token("mallory", &["nobody"], now);
    let status = node.session_of(Auth::JwtToken(mallory()), "kv").await;
    let status = refused(status, Code::PermissionDenied, "NO_NAMESPACE");
    assert!(status.message().contains("user:mallory") && status.message().contains("group:nobody"), "{status:?}");
    let status = list(&node.channel, Some(&format!("Bearer {}", mallory())), None).await;
    refused(status, Code::PermissionDenied, "NO_NAMESPACE");
}

#[tokio::test]
async fn a_jwt_whose_issuer_never_answered_may_be_good() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let issuer = format!("http://127.0.0.1:{port}");
    let clock = Clock::system();
    let issuers = Issuers::new(vec![settings(&issuer)], clock.clone()).unwrap();
    let node = Node::start_with(Setup { issuers, ..Setup::default() }).await;
    let mut claims = claims("alice", &[], clock.now());
    claims["iss"] = json!(issuer);
    let outcome = node.session_of(Auth::JwtToken(Signer::new().sign(&claims)), "kv").await;
    let status = refused(outcome, Code::Unavailable, "ISSUER_UNAVAILABLE");
    assert!(!status.message().contains("127.0.0.1"), "{status:?}");
    let trustless = Node::start().await;
    let outcome = trustless.session_of(Auth::JwtToken(Signer::new().sign(&claims)), "kv").await;
    refused(outcome, Code::Unauthenticated, "JWT_NOT_CONFIGURED");
}

#[tokio::test]
async fn configs_are_seen_in_all_namespaces_of_a_credential() {
    let trusting = trusting().await;
    let node = &trusting.node;
    let header = format!("Bearer {}", trusting.alice());
    let header = Some(header.as_str());
    let seen = async |namespace| list(&node.channel, header, namespace).await;
    assert_eq!(seen(None).await.unwrap(), ["kv", "kv-limited", "kv-other"]);
    assert_eq!(seen(Some("other")).await.unwrap(), ["kv-other"]);
    refused(seen(Some("third")).await, Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
    let mut client = ConfigServiceClient::new(node.channel.clone());
    let get = |name: &str| with_header(GetConfigRequest { name: name.to_owned(), version: None }, header);
    for name in ["kv", "kv-other"] {
        assert_eq!(client.get_config(get(name)).await.unwrap().into_inner().config.unwrap().name, name);
    }
    let validate = |namespace: &str| with_header(ValidateConfigRequest { config: Some(inline(namespace)) }, header);
    for (namespace, valid) in [("default", true), ("other", true), ("third", false)] {
        assert_eq!(client.validate_config(validate(namespace)).await.unwrap().into_inner().valid, valid, "{namespace}");
    }
    let calls = |namespace: &str| {
        let figures = node.metrics.namespace_figures(Duration::from_mins(1));
        figures.get(namespace).map_or(0, |figures| figures.requests_total)
    };
    assert_eq!((calls("default"), calls("other")), (5, 3), "those about no namespace of it count for the first");

    // A closed namespace is left out where all are asked for, and says why where it is named.
    node.control.namespace("other", NamespaceStatus::Suspended, Quota::default());
    assert_eq!(seen(None).await.unwrap(), ["kv", "kv-limited"]);
    refused(seen(Some("other")).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    refused(client.get_config(get("kv-other")).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    refused(client.validate_config(validate("other")).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    node.control.namespace("default", NamespaceStatus::Suspended, Quota::default());
    refused(seen(None).await, Code::FailedPrecondition, "NAMESPACE_SUSPENDED");

    // What is presented and bad is refused, whatever it is.
    let admin = Random::system().secret(SecretKind::AdminKey).token.into_exposed();
    for (header, reason) in [
        (format!("Bearer {admin}"), "CLIENT_KEY_INVALID"),
        ("Bearer e30.e30.".to_owned(), "JWT_INVALID"),
        ("Basic YTpi".to_owned(), "CREDENTIAL_REQUIRED"),
    ] {
        refused(list(&node.channel, Some(&header), None).await, Code::Unauthenticated, reason);
    }
}

#[tokio::test]
async fn a_certificate_is_taken_from_the_connection_and_nowhere_else() {
    let (tls, clock) = (Tls::new(), Clock::system());
    let (own, partner, stranger) =
        (Authority::new("own", &clock), Authority::new("partner", &clock), Authority::new("stranger", &clock));
    let trust = trust(&own, &[&partner]);
    let setup = Setup { trust: Some(trust), tls: Some(tls.server.clone()), ..Setup::default() };
    let node = Node::start_with(setup).await;
    let hour = Duration::from_hours(1);
    let (agent, external) = (spiffe("client", "agent"), "spiffe://partner.example/job");
    for identity in [agent.as_str(), external, &spiffe("user", "alice"), &spiffe("controller", "a")] {
        node.control.bind(&format!("certificate:{identity}"), &[given("default", true, true)]);
    }
    let holder = own.issue(&agent, hour);
    let channel = tls.connect(node.address, Some(&holder)).await;
    for sent in [&b""[..], &holder.certificate, holder.pem().as_bytes()] {
        open(&channel, mtls(sent), "kv").await.unwrap();
    }
    let basis = node.control.live.lock().unwrap().values().next().unwrap().basis.clone();
    assert_eq!(basis.certificate, Some(holder.fingerprint()));
    assert_eq!(basis.subjects[0].as_str(), format!("certificate:{agent}"));
    open(&tls.connect(node.address, Some(&partner.issue(external, hour))).await, mtls(b""), "kv").await.unwrap();

    let other = own.issue(&agent, hour);
    for sent in [&other.certificate[..], other.pem().as_bytes(), b"PEM"] {
        refused(open(&channel, mtls(sent), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_MISMATCH");
    }
    let bare = tls.connect(node.address, None).await;
    let outcome = open(&bare, mtls(&holder.certificate), "kv").await;
    refused(outcome, Code::Unauthenticated, "CLIENT_CERTIFICATE_REQUIRED");
    // Of other planes, of nobody's CA, of a CA that may not speak for this cluster.
    for bad in [
        own.issue(&spiffe("user", "alice"), hour),
        own.issue(&spiffe("controller", "a"), hour),
        own.issue(external, hour),
        stranger.issue(&agent, hour),
        stranger.issue(external, hour),
        partner.issue(&agent, hour),
    ] {
        let channel = tls.connect(node.address, Some(&bad)).await;
        let status =
            refused(open(&channel, mtls(b""), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
        assert_eq!(status.message(), "the client certificate is not valid");
        refused(list(&channel, None, None).await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
    }
    // A node's is good, for other things.
    let of_node = own.issue(&spiffe("node", "n"), hour);
    let channel_of_node = tls.connect(node.address, Some(&of_node)).await;
    refused(open(&channel_of_node, mtls(b""), "kv").await, Code::PermissionDenied, "PERMISSION_DENIED");
    refused(list(&channel_of_node, None, None).await, Code::PermissionDenied, "PERMISSION_DENIED");
    node.control.revoke_certificate(&of_node.fingerprint());
    refused(open(&channel_of_node, mtls(b""), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
    let unbound = tls.connect(node.address, Some(&own.issue(&spiffe("client", "b"), hour))).await;
    let status = refused(open(&unbound, mtls(b""), "kv").await, Code::PermissionDenied, "NO_NAMESPACE");
    assert!(status.message().contains(&spiffe("client", "b")), "{status:?}");

    // Without a header the certificate is the credential, and never in place of a bad one.
    assert_eq!(list(&channel, None, None).await.unwrap(), ["kv", "kv-limited"]);
    refused(list(&channel, Some("Basic YTpi"), None).await, Code::Unauthenticated, "CREDENTIAL_REQUIRED");
    refused(list(&channel, Some("Bearer prc_x"), None).await, Code::Unauthenticated, "CLIENT_KEY_INVALID");
    refused(list(&bare, None, None).await, Code::Unauthenticated, "CREDENTIAL_REQUIRED");
}

#[tokio::test]
async fn certificates_end_with_their_time_and_with_the_trust_in_their_ca() {
    let clock = Clock::manual(UnixMillis(1_800_000_000_000));
    let tls = Tls::new();
    let (own, renewed) = (Authority::new("own", &clock), Authority::new("renewed", &clock));
    let trusted = trust(&own, &[]);
    let node = Node::start_with(Setup {
        clock: clock.clone(),
        trust: Some(trusted.clone()),
        tls: Some(tls.server.clone()),
        ..Setup::default()
    })
    .await;
    let uri = spiffe("client", "agent");
    node.control.bind(&format!("certificate:{uri}"), &[given("default", true, true)]);
    let short = tls.connect(node.address, Some(&own.issue(&uri, Duration::from_mins(1)))).await;
    let long = tls.connect(node.address, Some(&own.issue(&uri, Duration::from_hours(1)))).await;
    open(&short, mtls(b""), "kv").await.unwrap();
    clock.advance(Duration::from_secs(61));
    // The connection is the same.
    refused(open(&short, mtls(b""), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
    open(&long, mtls(b""), "kv").await.unwrap();
    trusted.store(trust(&renewed, &[]).load_full());
    refused(open(&long, mtls(b""), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_INVALID");
}

#[tokio::test]
async fn failed_credentials_cost_time_and_then_an_answer() {
    let node = Node::start_with(Setup { auth_failures: 2, ..Setup::default() }).await;
    let bad = || Random::system().secret(SecretKind::ClientKey).token.into_exposed();
    let header = || format!("Bearer {}", bad());
    for _ in 0..2 {
        refused(list(&node.channel, Some(&header()), None).await, Code::Unauthenticated, "CLIENT_KEY_INVALID");
    }
    let begun = Instant::now();
    refused(node.session_of(Auth::ApiKey(bad()), "kv").await, Code::Unauthenticated, "CLIENT_KEY_INVALID");
    assert!(begun.elapsed() >= prism_identity::failures::FIRST_DELAY, "the third is answered without a delay");
    // More than may wait at a time.
    let mut calls: FuturesUnordered<_> = (0..32).map(|_| node.session_of(Auth::ApiKey(bad()), "kv")).collect();
    let refusal = loop {
        let status = calls.next().await.expect("all are answered late").unwrap_err();
        if status.code() == Code::ResourceExhausted {
            break status;
        }
        refused::<()>(Err(status), Code::Unauthenticated, "CLIENT_KEY_INVALID");
    };
    let refusal = refused::<()>(Err(refusal), Code::ResourceExhausted, "TOO_MANY_FAILURES");
    assert!(refusal.get_details_retry_info().unwrap().retry_delay.is_some());
    // Who has a valid one is not among them.
    node.session("kv").await;
    list(&node.channel, Some(&format!("Bearer {}", node.key)), None).await.unwrap();
}

#[tokio::test]
async fn session_tokens_and_absent_credentials_are_not_counted() {
    let node = Node::start_with(Setup { auth_failures: 0, ..Setup::default() }).await;
    let calls = (0..64).map(|_| async {
        let session_token = Random::system().secret(SecretKind::Session).token.into_exposed();
        let outcome = node.sessions().heartbeat(HeartbeatRequest { session_token }).await;
        refused(outcome, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
        refused(list(&node.channel, None, None).await, Code::Unauthenticated, "CREDENTIAL_REQUIRED");
        refused(node.session_of(mtls(b""), "kv").await, Code::Unauthenticated, "CLIENT_CERTIFICATE_REQUIRED");
        let jwt = Auth::JwtToken("eyJ".to_owned());
        refused(node.session_of(jwt, "kv").await, Code::Unauthenticated, "JWT_NOT_CONFIGURED");
    });
    futures::future::join_all(calls).await;
}
