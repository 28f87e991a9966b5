//! Join tokens and what they are exchanged for: contract §6, §9 "exchange".

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Authority, uri};
use prism_e2e::enrol::{Machine, PACKAGES, exchange, uri_of};
use prism_e2e::wait::until;
use prism_e2e::{Admin, Headers, Options, Prism, Refused as _, dial, keys, raw};
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_proto::cluster::v1::{
    CreateJoinTokenRequest, ExchangeJoinTokenRequest, GetLineageRequest, GetNodeRequest, ListNodesRequest,
    RenewCertificateRequest, RevokeNodeRequest, bootstrap_service_client::BootstrapServiceClient,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P521_SHA512};
use tokio::io::AsyncReadExt as _;
use tonic::Code;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

async fn server() -> Prism {
    Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await
}

#[tokio::test]
async fn a_machine_with_a_token_gets_its_certificate_and_renews_it() {
    let server = server().await;
    let (admin, machine) = (server.admin(), Machine::new());
    let made = admin.create_join_token("node-1").await;
    assert_eq!(made.token_id, keys::id(&made.join_token));
    let channel = server.admin_channel();
    let answer = machine.exchange(&channel, &made.join_token, "node-1").await.unwrap();
    assert!(answer.pkcs12.is_empty() && answer.pkcs12_password.is_empty() && answer.cli_token.is_empty());
    assert_eq!(answer.ca_certificate_pem, std::fs::read(server.data_dir().join("ca.pem")).unwrap());

    let holder = machine.holding(&answer.certificate_pem);
    let chain = holder.chain();
    let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=node-1");
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    let uri = names.iter().find_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None }).unwrap();
    assert!(uri.starts_with("spiffe://prism-") && uri.ends_with("/node/node-1"), "{uri}");
    assert!(names.contains(&GeneralName::DNSName("node-1")) && names.len() == 2, "{names:?}");
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && !usage.code_signing);
    assert!(!certificate.is_ca());
    assert_eq!(certificate.validity().not_after.timestamp() * 1000, answer.expires_at_epoch_ms);

    let listed = admin.join_token(&made.token_id).await;
    assert_eq!((listed.status.as_str(), listed.redeemed_by.as_str()), ("REDEEMED", "node-1"));
    assert_eq!(listed.certificate_fingerprint, holder.fingerprint());
    let renewed = machine.renew(&server, &holder).await.unwrap();
    assert_ne!(renewed.certificate_pem, answer.certificate_pem);
    let lineage = admin.lineage(Link::TokenId(made.token_id.clone())).await;
    assert_eq!(lineage.node.as_ref().unwrap().node_id, "node-1");
    assert_eq!(lineage.certificates.len(), 2);
    let next = machine.holding(&renewed.certificate_pem).fingerprint();
    let next = lineage.certificates.iter().find(|certificate| certificate.fingerprint == next).unwrap();
    assert_eq!(next.renewed_from, holder.fingerprint());
    let entries: BTreeSet<&str> = lineage.audit_entry_ids.iter().map(String::as_str).collect();
    let log = admin.whole_log().await;
    prism_e2e::audit::verify(&log);
    for operation in ["CreateJoinToken", "ExchangeJoinToken", "RenewCertificate"] {
        let entry = log.iter().find(|entry| entry.operation == operation).unwrap();
        assert!(entry.success && entries.contains(entry.id.as_str()), "{entry:?}");
    }
    let exchanged = log.iter().find(|entry| entry.operation == "ExchangeJoinToken").unwrap();
    assert_eq!((exchanged.actor.as_str(), exchanged.auth_method.as_str()), ("anonymous", "none"));
    assert_eq!(exchanged.resource, format!("token:{}", made.token_id));
}

#[tokio::test]
async fn checks_come_in_their_order() {
    let server = server().await;
    let (admin, channel) = (server.admin(), server.admin_channel());
    let (first, second) = (Machine::new(), Machine::new());
    let create = async |node: &str, ttl: i32| {
        let request = CreateJoinTokenRequest { node_id: node.to_owned(), ttl_seconds: ttl };
        admin.tokens().create_join_token(request).await.unwrap().into_inner()
    };
    // Bound to n1, redeemed, over, and asked for another node: each reason hides behind the one before it.
    let token = create("n1", 2).await;
    first.exchange(&channel, &token.join_token, "n1").await.unwrap();
    let reason = async |machine: &Machine, node: &str| {
        machine.exchange(&channel, &token.join_token, node).await.map_err(|failure| failure.reason)
    };
    assert_eq!(reason(&first, "n2").await.unwrap_err(), "NODE_MISMATCH");
    until("the token is over", async || (reason(&first, "n1").await.err()? == "TOKEN_EXPIRED").then_some(())).await;
    assert_eq!(reason(&first, "n2").await.unwrap_err(), "TOKEN_EXPIRED");
    assert_eq!(reason(&second, "n2").await.unwrap_err(), "TOKEN_REDEEMED");
    admin.revoke_join_token(&token.token_id).await;
    assert_eq!(reason(&second, "n2").await.unwrap_err(), "TOKEN_REVOKED");
    let forged = keys::forged_join(&token.join_token, &keys::word(32));
    first.exchange(&channel, &forged, "n1").await.unwrap_err().is(Code::Unauthenticated, "TOKEN_INVALID");

    // A wrong secret learns nothing, whatever state the token is in, and a token of another cluster neither.
    let other = Prism::start(Options::new()).await.admin().create_join_token("").await.join_token;
    let cut = &token.join_token[..token.join_token.len() - 1];
    let doubled = format!("{0}{0}", token.join_token);
    for token in [&forged, &other, cut, &doubled, &token.join_token.to_uppercase(), "prj_", "x", "ä\n"] {
        let refused = first.exchange(&channel, token, "n1").await.unwrap_err();
        refused.is(Code::Unauthenticated, "TOKEN_INVALID");
        assert_eq!((refused.message.as_str(), refused.metadata.len()), ("the join token is not valid", 0));
    }
    // Of these, the id is in the log where it could be read, and the rest never is.
    let log = admin.whole_log().await;
    let resources: BTreeSet<_> =
        log.iter().filter(|entry| entry.operation == "ExchangeJoinToken").map(|entry| entry.resource.clone()).collect();
    let id = |token: &str| format!("token:{}", keys::id(token));
    assert_eq!(resources, BTreeSet::from([id(&token.join_token), id(&other), "token".to_owned()]));
}

#[tokio::test]
async fn bad_names_and_bad_requests_are_named() {
    let server = server().await;
    let (admin, channel) = (server.admin(), server.admin_channel());
    let (token, machine) = (admin.create_join_token("").await.join_token, Machine::new());
    let long = "x".repeat(64);
    let names =
        ["", "a,b", "a.b", "Node", "-a", "a-", "a b", "ä", "a/b", "a\0", &long, "controller", "local", "localhost"];
    for name in names {
        machine.exchange(&channel, &token, name).await.unwrap_err().names(&["node_id"]);
        if !name.is_empty() {
            let request = CreateJoinTokenRequest { node_id: name.to_owned(), ttl_seconds: 0 };
            admin.tokens().create_join_token(request).await.refused().names(&["node_id"]);
        }
    }
    let csr = |key: &KeyPair, parameters: &CertificateParams| parameters.serialize_request(key).unwrap().pem().unwrap();
    let plain = CertificateParams::default();
    let weak = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let good = csr(&KeyPair::generate().unwrap(), &plain);
    let middle = good.len() / 2;
    let flipped: String = good
        .char_indices()
        .map(|(at, letter)| if at == middle { if letter == 'A' { 'B' } else { 'A' } } else { letter })
        .collect();
    for bad in
        ["x", &good[..good.len() / 2], &format!("{good}{good}"), &csr(&weak, &plain), &flipped, &"x".repeat(20_000)]
    {
        let request = ExchangeJoinTokenRequest {
            join_token: token.clone(),
            node_id: "n1".to_owned(),
            csr_pem: bad.as_bytes().to_vec().into(),
        };
        exchange(&channel, request).await.unwrap_err().names(&["csr_pem"]);
    }
    // A message that is too large for anybody without a credential.
    let request = ExchangeJoinTokenRequest { csr_pem: vec![b'x'; 100_000].into(), ..machine.request(&token, "n1") };
    exchange(&channel, request).await.unwrap_err().is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");

    // What the request asks for beside its key is not in the certificate.
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["controller.example".to_owned(), "localhost".to_owned()]).unwrap();
    greedy.distinguished_name.push(rcgen::DnType::CommonName, "controller");
    greedy.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Any];
    let request = ExchangeJoinTokenRequest {
        join_token: token.clone(),
        node_id: "n1".to_owned(),
        csr_pem: csr(&key, &greedy).into_bytes().into(),
    };
    let answer = exchange(&channel, request).await.unwrap();
    let holder = machine.holding(&answer.certificate_pem);
    assert!(uri_of(&holder).ends_with("/node/n1"));
    let chain = holder.chain();
    let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(certificate.subject().to_string(), "CN=n1");
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 2);
}

#[tokio::test]
async fn a_taken_name_is_taken_over_with_a_token_bound_to_it_only() {
    let server = server().await;
    let (admin, channel) = (server.admin(), server.admin_channel());
    let (old, new) = (Machine::new(), Machine::new());
    let first = admin.create_join_token("").await.join_token;
    let answer = old.exchange(&channel, &first, "n1").await.unwrap();
    let holder = old.holding(&answer.certificate_pem);
    let unbound = admin.create_join_token("").await;
    let refused = new.exchange(&channel, &unbound.join_token, "n1").await.unwrap_err();
    refused.is(Code::FailedPrecondition, "NODE_EXISTS");
    assert!(refused.message.contains("prism-admin token create --node n1"), "{}", refused.message);
    assert_eq!(admin.join_token(&unbound.token_id).await.status, "ACTIVE");

    let mut live = dial::connect_as(&server.endpoints().admin, &server.data_dir().join("ca.pem"), &holder).await;
    let bound = admin.create_join_token("n1").await;
    let begun = Instant::now();
    new.exchange(&channel, &bound.join_token, "n1").await.unwrap();
    // The one before is out: its connection, its certificate, its token.
    let mut rest = Vec::new();
    let _ = live.read_to_end(&mut rest).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    old.renew(&server, &holder).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    old.exchange(&channel, &first, "n1").await.unwrap_err().is(Code::FailedPrecondition, "CERTIFICATE_REVOKED");
    let node =
        admin.nodes().get_node(GetNodeRequest { node_id: "n1".to_owned() }).await.unwrap().into_inner().node.unwrap();
    assert_eq!((node.token_id.as_str(), node.revoked), (bound.token_id.as_str(), false));
    let lineage = admin.lineage(Link::NodeId("n1".to_owned())).await;
    assert_eq!(lineage.certificates.iter().filter(|certificate| !certificate.revoked).count(), 1);
}

#[tokio::test]
async fn a_revoked_node_is_out_at_once_and_comes_back_with_a_token() {
    let server = server().await;
    let (admin, channel, machine) = (server.admin(), server.admin_channel(), Machine::new());
    let token = admin.create_join_token("").await;
    let answer = machine.exchange(&channel, &token.join_token, "n1").await.unwrap();
    let holder = machine.holding(&answer.certificate_pem);
    let renewed = machine.renew(&server, &holder).await.unwrap();
    let next = machine.holding(&renewed.certificate_pem);

    // A node's certificate is for the node's own business only.
    let node = Admin { channel: server.admin_channel_as(&holder), headers: Headers::none() };
    node.who_am_i().await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
    node.nodes()
        .list_nodes(ListNodesRequest::default())
        .await
        .refused()
        .is(Code::PermissionDenied, "PERMISSION_DENIED");

    let ca = server.data_dir().join("ca.pem");
    let mut live = dial::connect_as(&server.endpoints().admin, &ca, &next).await;
    let revoke = || RevokeNodeRequest { node_id: "n1".to_owned() };
    let begun = Instant::now();
    let done = admin.nodes().revoke_node(revoke()).await.unwrap().into_inner();
    assert_eq!((done.certificates_revoked, done.node.unwrap().revoked), (2, true));
    let mut rest = Vec::new();
    let _ = live.read_to_end(&mut rest).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for holder in [&holder, &next] {
        machine.renew(&server, holder).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    let again = admin.nodes().revoke_node(revoke()).await.unwrap().into_inner();
    assert_eq!(again.certificates_revoked, 0);
    let retried = machine.exchange(&channel, &token.join_token, "n1").await.unwrap_err();
    retried.is(Code::FailedPrecondition, "CERTIFICATE_REVOKED");
    // It comes back with a token that is bound to its name, and with a new key.
    let unbound = admin.create_join_token("").await.join_token;
    let retried = Machine::new().exchange(&channel, &unbound, "n1").await.unwrap_err();
    retried.is(Code::FailedPrecondition, "NODE_EXISTS");
    let fresh = admin.create_join_token("n1").await.join_token;
    let retried = machine.exchange(&channel, &fresh, "n1").await.unwrap_err();
    retried.is(Code::FailedPrecondition, "KEY_REVOKED");
    let (old, machine) = (machine, Machine::new());
    let back = machine.exchange(&channel, &fresh, "n1").await.unwrap();
    let with_old_key = BootstrapServiceClient::new(server.admin_channel_as(&machine.holding(&back.certificate_pem)))
        .renew_certificate(RenewCertificateRequest { csr_pem: old.signing_request().into() })
        .await;
    with_old_key.refused().is(Code::FailedPrecondition, "KEY_REVOKED");
    machine.renew(&server, &machine.holding(&back.certificate_pem)).await.unwrap();
    machine.renew(&server, &next).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    // All of it survives a restart.
    server.crash_and_restart().await;
    machine.renew(&server, &next).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    machine.renew(&server, &machine.holding(&back.certificate_pem)).await.unwrap();
    for id in ["nobody", "local"] {
        let refused = server.admin().nodes().revoke_node(RevokeNodeRequest { node_id: id.to_owned() }).await;
        refused.refused().is(Code::NotFound, "NOT_FOUND");
    }
    let refused = server.admin().nodes().get_node(GetNodeRequest { node_id: "N,1".to_owned() }).await;
    refused.refused().names(&["node_id"]);
}

#[tokio::test]
async fn renewals_are_a_chain_of_bounded_length() {
    let config = "[cluster]\ncertificate_ttl = \"1h\"\n";
    let server = Prism::start(Options::new().config(config)).await;
    let (admin, machine) = (server.admin(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = machine.exchange(&server.admin_channel(), &token, "n1").await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert!((3_500_000..=3_600_000).contains(&(answer.expires_at_epoch_ms - now)));
    let holder = machine.holding(&answer.certificate_pem);
    // The same key gets the same answer while that is fresh; another key another one.
    let first = machine.renew(&server, &holder).await.unwrap();
    let second = machine.renew(&server, &holder).await.unwrap();
    assert_eq!(first.certificate_pem, second.certificate_pem);
    let other = Machine::new();
    let client = BootstrapServiceClient::new(server.admin_channel_as(&holder));
    let renew =
        async |csr: Vec<u8>| client.clone().renew_certificate(RenewCertificateRequest { csr_pem: csr.into() }).await;
    let with_new_key = renew(other.signing_request()).await.unwrap().into_inner();
    other.renew(&server, &other.holding(&with_new_key.certificate_pem)).await.unwrap();
    renew(Vec::new()).await.refused().names(&["csr_pem"]);
    // Two links, a second key with its own two.
    let lineage = admin.lineage(Link::NodeId("n1".to_owned())).await;
    assert_eq!(lineage.certificates.len(), 4);
    let roots = lineage.certificates.iter().filter(|certificate| certificate.renewed_from.is_empty());
    assert_eq!(roots.count(), 1);
    for _ in lineage.certificates.len()..16 {
        renew(Machine::new().signing_request()).await.unwrap();
    }
    let refused = renew(Machine::new().signing_request()).await.refused();
    refused.is(Code::ResourceExhausted, "TOO_MANY_NODE_CERTIFICATES");

    // A certificate of the CA that the cluster did not give out: the name alone is worth nothing.
    let ca = Authority::of_server(&server.data_dir());
    let forged = ca.client(vec![uri(&uri_of(&holder))]);
    machine.renew(&server, &forged).await.unwrap_err().is(Code::FailedPrecondition, "CERTIFICATE_UNKNOWN");
    let stranger = ca.client(vec![uri(&uri_of(&holder).replace("/n1", "/n2"))]);
    machine.renew(&server, &stranger).await.unwrap_err().is(Code::FailedPrecondition, "NODE_UNKNOWN");
}

#[tokio::test]
async fn lineage_leads_from_any_link_to_all_others() {
    let server = server().await;
    let (admin, channel) = (server.admin(), server.admin_channel());
    let unused = admin.create_join_token("n9").await;
    let lineage = admin.lineage(Link::TokenId(unused.token_id.clone())).await;
    assert!(lineage.node.is_none() && lineage.certificates.is_empty() && lineage.tokens.len() == 1);
    let token = admin.create_join_token("").await;
    let machine = Machine::new();
    let answer = machine.exchange(&channel, &token.join_token, "n1").await.unwrap();
    let fingerprint = machine.holding(&answer.certificate_pem).fingerprint();
    let by_token = admin.lineage(Link::TokenId(token.token_id.clone())).await;
    let certificate = &by_token.certificates[0];
    assert_eq!((&certificate.fingerprint, &certificate.token_id), (&fingerprint, &token.token_id));
    assert_eq!(by_token.tokens[0].key_hash, certificate.key_hash);
    for link in [
        Link::NodeId("n1".to_owned()),
        Link::Certificate(fingerprint.to_uppercase()),
        Link::Certificate(certificate.serial_number.clone()),
    ] {
        let found = admin.lineage(link).await;
        assert_eq!((&found.node, &found.certificates), (&by_token.node, &by_token.certificates));
    }
    let ask = async |link: Option<Link>| admin.nodes().get_lineage(GetLineageRequest { link }).await.refused();
    ask(None).await.names(&["link"]);
    ask(Some(Link::TokenId(String::new()))).await.names(&["token_id"]);
    ask(Some(Link::NodeId("N".to_owned()))).await.names(&["node_id"]);
    ask(Some(Link::Certificate("xyz".to_owned()))).await.names(&["certificate"]);
    ask(Some(Link::SessionId("1".to_owned()))).await.names(&["session_id"]);
    for link in [
        Link::TokenId("0123456789abcdef".to_owned()),
        Link::NodeId("n2".to_owned()),
        Link::Certificate("ab".repeat(32)),
        Link::SessionId("0190a5f0-0000-7000-8000-000000000000".to_owned()),
    ] {
        ask(Some(link)).await.is(Code::NotFound, "NOT_FOUND");
    }
    // Nodes come in pages.
    for number in 2..=5 {
        let token = admin.create_join_token("").await.join_token;
        Machine::new().exchange(&channel, &token, &format!("n{number}")).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), None);
    loop {
        let request = ListNodesRequest { page_size: 2, page_token };
        let page = admin.nodes().list_nodes(request).await.unwrap().into_inner();
        assert_eq!(page.total_count, 5);
        seen.extend(page.nodes.into_iter().map(|node| node.node_id));
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = Some(page.next_page_token);
    }
    assert_eq!(seen, ["n1", "n2", "n3", "n4", "n5"]);
}

#[tokio::test]
async fn a_node_that_slept_past_its_certificate_comes_back_with_a_token_for_it() {
    let server = Prism::start(Options::new().config("[cluster]\ncertificate_ttl = \"10s\"\n")).await;
    let (admin, channel, machine) = (server.admin(), server.admin_channel(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = machine.exchange(&channel, &token, "n1").await.unwrap();
    let holder = machine.holding(&answer.certificate_pem);
    machine.renew(&server, &holder).await.unwrap();
    let refused = until("the certificate ends", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        machine.renew(&server, &holder).await.err()
    });
    refused.await.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    // The name is still its own: an unbound token does not open it.
    let unbound = admin.create_join_token("").await.join_token;
    machine.exchange(&channel, &unbound, "n1").await.unwrap_err().is(Code::FailedPrecondition, "NODE_EXISTS");
    let bound = admin.create_join_token("n1").await.join_token;
    let back = machine.exchange(&channel, &bound, "n1").await.unwrap();
    machine.renew(&server, &machine.holding(&back.certificate_pem)).await.unwrap();
}

#[tokio::test]
async fn strangers_hear_nothing_of_the_log() {
    let server = server().await;
    let admin = server.admin();
    let token = admin.create_join_token("").await.join_token;
    for package in PACKAGES {
        let path = format!("/{package}.BootstrapService/ExchangeJoinToken");
        let request = Machine::new().request(&token, "n1").encode_to_vec();
        let headers = Headers::none().with("prism-audit-witness", "1");
        let (_, trailers) = raw::call_to_the_end(&admin.channel, &headers, &path, request).await;
        assert!(trailers.keys().all(|key| !format!("{key:?}").contains("prism-audit")), "{trailers:?}");
        // What the package does not have is refused as such, under its own name.
        let path = format!("/{package}.AdminService/CreateConfig");
        let refused = raw::call(&admin.channel, &admin.headers, &path, Vec::new()).await.refused();
        refused.is(Code::Unimplemented, "UNKNOWN_RPC");
        assert_eq!(refused.domain, "prism.cluster.v1");
        let path = format!("/{package}.AdminService/ListJoinTokens");
        let (_, trailers) = raw::call_to_the_end(&admin.channel, &admin.headers, &path, Vec::new()).await;
        assert!(trailers.contains_key("prism-audit-checkpoint-bin"), "{trailers:?}");
    }
}
