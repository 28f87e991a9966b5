//! Bad input to seed B and to enrolment, as tables: by gRPC, by the older package path and by REST the same words get the same
//! refusal, with the same entry.

use prism_e2e::certificates::{Authority, uri};
use prism_e2e::enrol::{Machine, forged_signing_request, signing_request_of, uri_of, without_key};
use prism_e2e::rest::{Answer, EXCHANGE, Rest, TOKENS};
use prism_e2e::transports::Transport::{Alias, Grpc, Rest as Http};
use prism_e2e::transports::{ALL, Caller, World, epoch_ms, is};
use prism_e2e::wait::until;
use prism_e2e::{Failure, Headers, Options, Prism, keys, raw};
use prism_proto::cluster::v1 as wire;
use prism_proto::cluster::v1::node_frame::Frame;
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P521_SHA512};
use serde_json::json;
use tonic::Code;

fn invalid(fields: &[&str]) -> prism_e2e::transports::Refusal {
    is("INVALID_ARGUMENT", "INVALID_ARGUMENT", fields)
}

fn failed(reason: &str) -> prism_e2e::transports::Refusal {
    is("FAILED_PRECONDITION", reason, &[])
}

#[tokio::test]
async fn names_that_no_node_can_have() {
    let world = World::new().await;
    let root = world.root();
    let token = world.create(Grpc, &root, "", 0).await.unwrap().token;
    let long = "x".repeat(64);
    for by in ALL {
        for name in
            ["a,b", "a.b", "Node", "-a", "a-", "a b", "ä", "a/b", "a\0", &long, "controller", "local", "localhost"]
        {
            assert_eq!(world.create(by, &root, name, 0).await.unwrap_err(), invalid(&["nodeId"]), "{by:?} {name:?}");
            assert_eq!(world.exchange(by, &token, name).await.unwrap_err(), invalid(&["nodeId"]), "{by:?} {name:?}");
        }
        assert_eq!(world.exchange(by, &token, "").await.unwrap_err(), invalid(&["nodeId"]), "{by:?}");
    }
    let names = world.entries("ExchangeJoinToken").await.into_iter().filter(|entry| !entry.success);
    assert_eq!(names.count(), 3 * 14);
}

#[tokio::test]
async fn the_name_of_another_node() {
    let world = World::new().await;
    let admin = world.server.admin();
    admin.create_role("minter", &["tokens.manage"]).await;
    let minter = Caller::bearer(&admin.create_api_key("minter", None, None).await.token);
    let unbound = world.create(Grpc, &world.root(), "", 0).await.unwrap().token;
    for by in ALL {
        // "first" is there.
        assert_eq!(world.exchange(by, &unbound, "first").await.unwrap_err(), failed("NODE_EXISTS"), "{by:?}");
        let denied = is("PERMISSION_DENIED", "PERMISSION_DENIED", &[]);
        assert_eq!(world.create(by, &minter, "first", 0).await.unwrap_err(), denied, "{by:?}");
        // Validation comes after the permission of the RPC, and before that of the name.
        assert_eq!(world.create(by, &minter, "first", -1).await.unwrap_err(), invalid(&["ttlSeconds"]), "{by:?}");
        let bound = world.create(by, &minter, "second", 0).await.unwrap();
        assert_eq!(world.exchange(by, &bound.token, "first").await.unwrap_err(), failed("NODE_MISMATCH"), "{by:?}");
        let bound = world.create(by, &world.root(), "first", 0).await.unwrap();
        world.exchange(by, &bound.token, "first").await.unwrap();
    }
    let denied = world.entries("CreateJoinToken").await.into_iter().filter(|entry| !entry.success);
    let denied: Vec<_> = denied.filter_map(|entry| entry.metadata.get("permission").cloned()).collect();
    assert_eq!(denied, ["nodes:manage"; 3]);
}

/// Signing requests for which there is no certificate.
fn bad_signing_requests() -> Vec<(&'static str, Vec<u8>)> {
    let good = String::from_utf8(Machine::new().signing_request()).unwrap();
    let p521 = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let p521 = CertificateParams::default().serialize_request(&p521).unwrap().pem().unwrap();
    let curve =
        |name: &str| signing_request_of(&["-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{name}")]);
    vec![
        ("signed by another key", forged_signing_request()),
        ("P-521", p521.into_bytes()),
        ("P-224", curve("P-224")),
        ("secp256k1", curve("secp256k1")),
        ("Ed448", signing_request_of(&["-algorithm", "Ed448"])),
        ("RSA-1024", signing_request_of(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])),
        ("RSA-8192", include_bytes!("../fixtures/rsa8192.csr.pem").to_vec()),
        ("two", format!("{good}{good}").into_bytes()),
        ("half", good.as_bytes()[..good.len() / 2].to_vec()),
        ("of another kind", good.replace("CERTIFICATE REQUEST", "CERTIFICATE").into_bytes()),
        ("with words before it", format!("a key: {good}").into_bytes()),
        ("large", vec![b'x'; 17 * 1024]),
        ("no PEM", b"x".to_vec()),
    ]
}

#[tokio::test]
async fn signing_requests_that_are_none() {
    let world = World::new().await;
    let root = world.root();
    let token = world.create(Grpc, &root, "n1", 0).await.unwrap().token;
    let bad = bad_signing_requests();
    for (name, csr) in &bad {
        for by in ALL {
            let request = wire::ExchangeJoinTokenRequest {
                join_token: token.clone(),
                node_id: "n1".to_owned(),
                csr_pem: csr.clone().into(),
            };
            assert_eq!(world.exchange_with(by, request).await.unwrap_err(), invalid(&["csrPem"]), "{name} by {by:?}");
        }
    }
    // Nothing of it has spent the token, and a node gets its next certificate for no such thing either.
    let machine = Machine::new();
    let certificate = world.exchange_with(Http, machine.request(&token, "n1")).await.unwrap();
    let node = Caller::certificate(machine.holding(&certificate));
    let renew = async |by, csr: Vec<u8>| {
        let request = wire::RenewCertificateRequest { csr_pem: csr.into() };
        world.grpc::<wire::RenewCertificateResponse>(by, &node, "BootstrapService/RenewCertificate", &request).await
    };
    for (name, csr) in bad {
        for by in [Grpc, Alias] {
            assert_eq!(renew(by, csr.clone()).await.unwrap_err(), invalid(&["csrPem"]), "{name} by {by:?}");
        }
    }
    // What the request asks for beside its key is not in the certificate.
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["localhost".to_owned(), "controller".to_owned()]).unwrap();
    greedy.distinguished_name.push(rcgen::DnType::CommonName, "controller");
    greedy.subject_alt_names.push(uri(&format!("spiffe://{}/controller/c1", world.cluster)));
    let csr = greedy.serialize_request(&key).unwrap().pem().unwrap().into_bytes();
    for by in [Grpc, Alias] {
        let next = renew(by, csr.clone()).await.unwrap();
        let holder = machine.holding(&next.certificate_pem);
        assert_eq!(uri_of(&holder), format!("spiffe://{}/node/n1", world.cluster), "{by:?}");
    }
}

#[tokio::test]
async fn tokens_that_are_none() {
    let world = World::new().await;
    let token = world.create(Grpc, &world.root(), "", 0).await.unwrap().token;
    let other = Prism::start(Options::new()).await.admin().create_join_token("").await.join_token;
    let bad = [
        token[..token.len() - 1].to_owned(),
        token[1..].to_owned(),
        format!("{token}{token}"),
        format!("{token} "),
        token.to_uppercase(),
        token.to_lowercase(),
        other,
        keys::forged_join(&token, &keys::word(32)),
        keys::unknown("prx_"),
        "prj_".to_owned(),
        "ä\n".to_owned(),
    ];
    for by in ALL {
        for (number, token) in bad.iter().enumerate() {
            let refused = world.exchange(by, token, "n1").await.unwrap_err();
            assert_eq!(refused, is("UNAUTHENTICATED", "TOKEN_INVALID", &[]), "{number} by {by:?}");
        }
    }
    world.exchange(Alias, &token, "n1").await.unwrap();
    let entries = world.entries("ExchangeJoinToken").await;
    let refused: Vec<_> = entries.iter().filter(|entry| !entry.success).collect();
    assert_eq!(refused.len(), 3 * bad.len());
    assert!(refused.iter().all(|entry| entry.actor == "anonymous" && entry.metadata["reason"] == "TOKEN_INVALID"));
}

/// `{}`, packed with gzip.
const PACKED: [u8; 22] = [
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0xae, 0x05, 0x00, 0x43, 0xbf, 0xa6, 0xa3, 0x02,
    0x00, 0x00, 0x00,
];

/// Type, encoding, body, what is named.
type BadBody = (&'static str, Option<&'static str>, Vec<u8>, &'static [&'static str]);

#[tokio::test]
async fn bodies_that_are_no_json() {
    let world = World::new().await;
    let utf16 = |text: &str, mark: bool| -> Vec<u8> {
        let marked = mark.then_some('\u{feff}').into_iter().chain(text.chars()).collect::<String>();
        marked.encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let (json_type, object) = ("application/json", b"{}".to_vec());
    let nested = |open: &str, close: &str| format!("{{\"nodeId\":{}{}}}", open.repeat(9000), close.repeat(9000));
    let cases: Vec<BadBody> = vec![
        (json_type, None, br#"{"node_id":"n1","extra":1}"#.to_vec(), &["node_id", "extra"]),
        (json_type, None, br#"{"nodeId":{}}"#.to_vec(), &["nodeId"]),
        (json_type, None, br#"{"nodeId":"a","nodeId":"a"}"#.to_vec(), &["body"]),
        (json_type, None, br#"{"nodeId":"a","node\u0049d":"a"}"#.to_vec(), &["body"]),
        (json_type, None, br#"{"nodeId":"\ud800"}"#.to_vec(), &["body"]),
        (json_type, None, b"{\"nodeId\":\"\xff\"}".to_vec(), &["body"]),
        (json_type, None, [b"\xef\xbb\xbf".to_vec(), object.clone()].concat(), &["body"]),
        (json_type, None, utf16("{}", false), &["body"]),
        (json_type, None, utf16("{}", true), &["body"]),
        (json_type, None, nested("[", "]").into_bytes(), &["body"]),
        (json_type, None, nested("{\"a\":", "}").as_bytes()[..30_000].to_vec(), &["body"]),
        (json_type, None, PACKED.to_vec(), &["body"]),
        (json_type, Some("gzip"), PACKED.to_vec(), &["content-encoding"]),
        (json_type, Some("identity"), object.clone(), &["content-encoding"]),
        ("application/json; charset=utf-16", None, utf16("{}", true), &["content-type"]),
        ("application/json; charset=latin1", None, object.clone(), &["content-type"]),
        ("application/json; charset=utf-8; charset=utf-16", None, object.clone(), &["content-type"]),
        ("text/json", None, object.clone(), &["content-type"]),
    ];
    let root = Rest::of(&world.server).bearer(&world.server.admin_token());
    let send = async |caller: &Rest, kind: &str, encoding: Option<&str>, path: &str, body: &[u8]| -> Answer {
        let caller = caller.clone().with("content-type", kind);
        let caller = encoding.into_iter().fold(caller, |caller, name| caller.with("content-encoding", name));
        caller.send("POST", path, body).await
    };
    for (path, caller) in [(TOKENS, root.clone()), (EXCHANGE, Rest::of(&world.server))] {
        for caller in [caller.clone(), caller.over_http2()] {
            for (number, (kind, encoding, body, fields)) in cases.iter().enumerate() {
                let answer = send(&caller, kind, *encoding, path, body).await;
                answer.refuses(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
                assert_eq!(answer.fields(), *fields, "{path} {number}");
            }
        }
    }
    // The one parameter that is right.
    let kind = "application/json; charset=\"UTF-8\"";
    assert_eq!(send(&root, kind, None, TOKENS, &object).await.status, 201);
    let told = send(&Rest::of(&world.server), kind, None, EXCHANGE, &object).await;
    assert_eq!(told.fields(), ["joinToken"], "it was read: {told:?}");
    for operation in ["CreateJoinToken", "ExchangeJoinToken"] {
        let entries = world.entries(operation).await;
        let refused = entries.iter().filter(|entry| !entry.success).count();
        assert!(refused >= 2 * cases.len(), "{operation}: {refused}");
    }
}

#[tokio::test]
async fn a_second_key_is_an_alarm_by_every_transport() {
    let world = World::new().await;
    for (by, number) in ALL.into_iter().zip(1..) {
        let node = format!("n{number}");
        let token = world.create(by, &world.root(), &node, 0).await.unwrap();
        let winner = Machine::new();
        let first = world.exchange_with(by, winner.request(&token.token, &node)).await.unwrap();
        for again in ALL {
            let same = world.exchange_with(again, winner.request(&token.token, &node)).await.unwrap();
            assert_eq!(same, first, "{by:?} and {again:?}");
            assert_eq!(world.exchange(again, &token.token, &node).await.unwrap_err(), failed("TOKEN_REDEEMED"));
        }
    }
    let entries = world.entries("ExchangeJoinToken").await;
    let alarms = entries.iter().filter(|entry| entry.metadata.get("alarm").is_some_and(|alarm| alarm == "token_reuse"));
    assert_eq!(alarms.count(), 9);
    // The node that is there, and each winner once and three times again.
    assert_eq!(entries.iter().filter(|entry| entry.success).count(), 1 + 3 * 4);
}

#[tokio::test]
async fn keystores_are_for_good_tokens_only() {
    let world = World::new().await;
    let root = world.root();
    for by in ALL {
        let ask = async |token: &str, node: &str| world.exchange_with(by, without_key(token, node)).await;
        let name = format!("k-{by:?}").to_lowercase();
        let bound = world.create(by, &root, &name, 0).await.unwrap();
        assert_eq!(ask(&bound.token, "other").await.unwrap_err(), failed("NODE_MISMATCH"), "{by:?}");
        assert_eq!(ask(&keys::forged_join(&bound.token, &keys::word(32)), &name).await.unwrap_err(), {
            is("UNAUTHENTICATED", "TOKEN_INVALID", &[])
        });
        // The keystore is there, and a second one would be of another key.
        match by {
            Grpc | Alias => {
                let request = without_key(&bound.token, &name);
                let nobody = Caller::nobody();
                let made: wire::ExchangeJoinTokenResponse =
                    world.grpc(by, &nobody, "BootstrapService/ExchangeJoinToken", &request).await.unwrap();
                assert!(!made.pkcs12.is_empty() && !made.pkcs12_password.is_empty(), "{by:?}");
            }
            Http => {
                let body = json!({"joinToken": bound.token, "nodeId": name});
                let made = Rest::of(&world.server).json("POST", EXCHANGE, &body).await;
                assert!(made.status == 200 && made.body["pkcs12Base64"].is_string(), "{made:?}");
                assert!(made.body["pkcs12Password"].is_string());
            }
        }
        assert_eq!(ask(&bound.token, &name).await.unwrap_err(), failed("TOKEN_REDEEMED"), "{by:?}");
        let revoked = world.create(by, &root, "", 0).await.unwrap();
        world.revoke(by, &root, &revoked.id).await.unwrap();
        assert_eq!(ask(&revoked.token, "other").await.unwrap_err(), failed("TOKEN_REVOKED"), "{by:?}");
        let short = world.create(by, &root, "x1", 1).await.unwrap();
        let refused = until("the token expires", async || {
            ask(&short.token, "x2").await.err().filter(|refused| refused.1 != "NODE_MISMATCH")
        });
        assert_eq!(refused.await, failed("TOKEN_EXPIRED"), "{by:?}");
    }
    let alarms = world.entries("ExchangeJoinToken").await;
    let alarms = alarms.iter().filter(|entry| entry.metadata.contains_key("alarm")).count();
    assert_eq!(alarms, 3);
}

#[tokio::test]
async fn the_older_path_renews_as_well() {
    let world = World::new().await;
    let token = world.create(Alias, &world.root(), "n1", 0).await.unwrap().token;
    let machine = Machine::new();
    let certificate = world.exchange_with(Alias, machine.request(&token, "n1")).await.unwrap();
    let node = Caller::certificate(machine.holding(&certificate));
    let renew = async |by, caller: &Caller| {
        let request = wire::RenewCertificateRequest { csr_pem: machine.signing_request().into() };
        world.grpc::<wire::RenewCertificateResponse>(by, caller, "BootstrapService/RenewCertificate", &request).await
    };
    let (first, second) = (renew(Alias, &node).await.unwrap(), renew(Grpc, &node).await.unwrap());
    assert_eq!(first.certificate_pem, second.certificate_pem, "it is one operation");
    for caller in [Caller::nobody(), world.root()] {
        for by in [Grpc, Alias] {
            let refused = renew(by, &caller).await.unwrap_err();
            assert_eq!(refused.0, "UNAUTHENTICATED", "{by:?} {refused:?}");
        }
    }
    let entries = world.entries("RenewCertificate").await;
    assert_eq!((entries.len(), entries.iter().filter(|entry| entry.success).count()), (6, 2));
}

#[tokio::test]
async fn a_key_of_idempotency_is_for_one_token() {
    let world = World::new().await;
    for by in [Grpc, Alias] {
        let mut caller = world.root();
        caller.headers = caller.headers.with("x-idempotency-key", &format!("once-{by:?}"));
        let made = world.create(by, &caller, "n1", 0).await.unwrap();
        let again = world.create(by, &caller, "n1", 0).await.unwrap_err();
        assert_eq!(again, is("ALREADY_EXISTS", "SECRET_ALREADY_ISSUED", &[]), "{by:?}");
        // By the other path it is the same call.
        let other = if by == Grpc { Alias } else { Grpc };
        let across = world.create(other, &caller, "n1", 0).await.unwrap_err();
        assert_eq!(across, is("ALREADY_EXISTS", "SECRET_ALREADY_ISSUED", &[]), "{by:?}");
        assert_eq!(world.create(by, &caller, "n2", 0).await.unwrap_err(), invalid(&["x-idempotency-key"]));
        assert!(world.list(by, &world.root()).await.unwrap().iter().any(|(id, _)| *id == made.id));
    }
    let bound = world.list(Http, &world.root()).await.unwrap().into_iter().filter(|(_, listed)| listed.0 == "n1");
    assert_eq!(bound.count(), 2);
}

#[tokio::test]
async fn a_listing_by_rest_has_all_of_a_token() {
    let world = World::new().await;
    let admin = world.server.admin();
    let alice = admin.create_api_key("admin", None, Some("alice@example.com")).await.token;
    let made = world.create(Http, &Caller::bearer(&alice), "n1", 600).await.unwrap();
    let root = Rest::of(&world.server).bearer(&world.server.admin_token());
    let found = async |id: &str| {
        let list = root.ask("GET", TOKENS).await.body;
        list["data"].as_array().unwrap().iter().find(|token| token["tokenId"] == id).cloned().unwrap()
    };
    let at = |token: &serde_json::Value, name: &str| epoch_ms(token[name].as_str().unwrap());
    let open = found(&made.id).await;
    let told = admin.join_token(&made.id).await;
    assert_eq!((&open["createdBy"], &open["nodeId"]), (&json!("alice@example.com"), &json!("n1")));
    assert_eq!((at(&open, "createdAt"), at(&open, "expiresAt")), (told.created_at_epoch_ms, told.expires_at_epoch_ms));
    assert_eq!(open["expiresAtEpochMs"], told.expires_at_epoch_ms);
    assert!(open["redeemedAt"].is_null() && open["redeemedBy"].is_null(), "{open}");
    world.exchange(Http, &made.token, "n1").await.unwrap();
    let (spent, told) = (found(&made.id).await, admin.join_token(&made.id).await);
    assert_eq!((&spent["redeemedBy"], &spent["status"]), (&json!("n1"), &json!("REDEEMED")));
    assert_eq!(at(&spent, "redeemedAt"), told.redeemed_at_epoch_ms);
}

#[tokio::test]
async fn the_link_is_for_nodes() {
    let world = World::new().await;
    let admin = world.server.admin();
    let machine = Machine::new();
    let token = world.create(Grpc, &world.root(), "n1", 0).await.unwrap().token;
    let certificate = world.exchange_with(Grpc, machine.request(&token, "n1")).await.unwrap();
    let revoked = machine.holding(&certificate);
    admin.nodes().revoke_node(wire::RevokeNodeRequest { node_id: "n1".to_owned() }).await.unwrap();
    let ca = Authority::of_server(&world.server.data_dir());
    let named = |kind: &str, name: &str| ca.client(vec![uri(&format!("spiffe://{}/{kind}/{name}", world.cluster))]);
    admin.bind("user:alice", "admin", None).await;
    let open_as = async |node: &str, channel, headers: &Headers| {
        let hello = Frame::Hello(wire::Hello { node_id: node.to_owned(), ..Default::default() });
        let hello = wire::NodeFrame { frame: Some(hello) }.encode_to_vec();
        let opened = raw::call(&channel, headers, "/prism.cluster.v1.LinkService/Link", hello).await;
        Failure::from(&opened.expect_err("a refusal"))
    };
    let open = async |channel, headers: &Headers| open_as("n1", channel, headers).await;
    let nobody = Headers::none();
    open(world.server.admin_channel(), &nobody).await.is(Code::Unauthenticated, "CREDENTIAL_MISSING");
    let refused = open(world.server.admin_channel(), &admin.headers).await;
    assert_eq!(refused.code, Code::Unauthenticated, "{refused:?}");
    for (kind, name) in [("user", "alice"), ("controller", "c2")] {
        let refused = open(world.server.admin_channel_as(&named(kind, name)), &nobody).await;
        refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
    }
    let refused = open(world.server.admin_channel_as(&revoked), &nobody).await;
    assert!(refused.code == Code::Unauthenticated || refused.code == Code::FailedPrecondition, "{refused:?}");
    // A certificate of the CA for a node that nobody has enrolled.
    let stranger = world.server.admin_channel_as(&named("node", "n9"));
    open(stranger.clone(), &nobody).await.is(Code::PermissionDenied, "NODE_MISMATCH");
    let refused = open_as("n9", stranger, &nobody).await;
    assert_eq!(refused.code, Code::FailedPrecondition, "{refused:?}");
    let log = admin.whole_log().await;
    let links: Vec<_> = log.iter().filter(|entry| ["Link", "OpenLink"].contains(&&*entry.operation)).collect();
    assert_eq!(links.len(), 7, "{links:?}");
    assert!(links.iter().all(|entry| !entry.success), "{links:?}");
}
