//! What a spent token, a revoked node and a node's own certificate can still do: little, and not for long.

use prism_e2e::audit::verify;
use prism_e2e::enrol::{Machine, exchange};
use prism_e2e::rest::{EXCHANGE, Rest, TOKENS};
use prism_e2e::wait::within;
use prism_e2e::{Admin, Failure, Headers, Options, Prism, dial};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, RenewCertificateRequest};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tonic::Code;

async fn server() -> Prism {
    Prism::start(Options::new()).await
}

fn exchanges(log: Vec<AuditLogEntry>) -> Vec<AuditLogEntry> {
    verify(&log);
    log.into_iter().filter(|entry| entry.operation == "ExchangeJoinToken").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_token_does_not_fill_the_log() {
    // Without the time that failures cost, so that all of it is within a minute.
    let server = Prism::start(Options::new().config("[limits]\nauth_failures = 10000\n")).await;
    let admin = server.admin();
    let token = admin.create_join_token("").await;
    let (winner, thief, neighbour) = (Machine::new(), Machine::new(), Machine::new());
    let other = admin.create_join_token("").await;
    neighbour.exchange(&admin.channel, &other.join_token, "n2").await.unwrap();
    winner.exchange(&admin.channel, &token.join_token, "n1").await.unwrap();
    // A wrong request is no alarm, and hides none that follows.
    let wrong = ExchangeJoinTokenRequest {
        join_token: token.join_token.clone(),
        node_id: "n1".to_owned(),
        csr_pem: b"x".to_vec().into(),
    };
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (channel, request) = (server.admin_channel(), wrong.clone());
        tasks.spawn(async move {
            for _ in 0..130 {
                let refused = exchange(&channel, request.clone()).await.unwrap_err();
                assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
            }
        });
    }
    tasks.join_all().await;
    thief
        .exchange(&admin.channel, &token.join_token, "n1")
        .await
        .unwrap_err()
        .is(Code::FailedPrecondition, "TOKEN_REDEEMED");
    // Whoever has redeemed it is not locked out.
    winner.exchange(&admin.channel, &token.join_token, "n1").await.unwrap();
    let log = admin.whole_log().await;
    let of = |operation: &str, id: &str| {
        let resource = format!("token:{id}");
        let mut entries = log.iter().filter(|entry| entry.operation == operation && entry.resource == resource);
        entries.next().unwrap_or_else(|| panic!("{operation} of {id} is in the log")).id.clone()
    };
    let alarm = log.iter().find(|entry| entry.metadata.contains_key("alarm")).expect("an alarm").id.clone();
    // Nor does it push what was done out of any lineage, or the alarm.
    let lineage = admin.lineage(Link::NodeId("n2".to_owned())).await;
    assert_eq!(
        lineage.audit_entry_ids,
        [of("ExchangeJoinToken", &other.token_id), of("CreateJoinToken", &other.token_id)]
    );
    assert_eq!(lineage.left_out, []);
    let lineage = admin.lineage(Link::NodeId("n1".to_owned())).await;
    for id in [of("CreateJoinToken", &token.token_id), of("ExchangeJoinToken", &token.token_id), alarm] {
        assert!(lineage.audit_entry_ids.contains(&id), "{id}: {lineage:?}");
    }
    let left_out: Vec<_> = lineage.left_out.iter().map(|part| part.field.as_str()).collect();
    assert_eq!((lineage.audit_entry_ids.len(), left_out), (100, vec!["audit_entry_ids"]));
    let entries = exchanges(log);
    assert!((2000..2300).contains(&entries.len()), "{} entries", entries.len());
    let alarms: Vec<_> = entries.iter().filter(|entry| entry.metadata.contains_key("alarm")).collect();
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert_eq!(alarms[0].resource, format!("token:{}", token.token_id));
}

#[tokio::test]
async fn the_state_of_the_token_goes_before_a_wrong_request() {
    let server = server().await;
    let (admin, machine) = (server.admin(), Machine::new());
    let attempt = async |token: &str, node: &str, csr: &[u8]| -> Failure {
        let request = ExchangeJoinTokenRequest {
            join_token: token.to_owned(),
            node_id: node.to_owned(),
            csr_pem: csr.to_vec().into(),
        };
        exchange(&admin.channel, request).await.unwrap_err()
    };
    let (good, bad) = (machine.signing_request(), b"x".as_slice());
    let bound = admin.create_join_token("n1").await;
    for node in ["n2", "localhost", "N,1"] {
        attempt(&bound.join_token, node, &good).await.is(Code::FailedPrecondition, "NODE_MISMATCH");
        attempt(&bound.join_token, node, bad).await.is(Code::FailedPrecondition, "NODE_MISMATCH");
    }
    attempt(&bound.join_token, "n1", bad).await.names(&["csr_pem"]);
    attempt(&bound.join_token, "", bad).await.names(&["node_id", "csr_pem"]);
    machine.exchange(&admin.channel, &bound.join_token, "n1").await.unwrap();
    admin.revoke_join_token(&bound.token_id).await;
    attempt(&bound.join_token, "", bad).await.is(Code::FailedPrecondition, "TOKEN_REVOKED");
    // Redeemed, revoked, and shown with another key.
    let refused = attempt(&bound.join_token, "n1", &Machine::new().signing_request()).await;
    refused.is(Code::FailedPrecondition, "TOKEN_REVOKED");
    assert!(!refused.metadata.contains_key("alarm"), "whoever tries is not warned");
    let entries = exchanges(admin.whole_log().await);
    let alarms: Vec<_> = entries.iter().map(|entry| entry.metadata.get("alarm").map(String::as_str)).collect();
    assert_eq!(alarms.last().unwrap(), &Some("token_reuse"));
    assert_eq!(alarms.iter().flatten().count(), 1);
}

#[tokio::test]
async fn a_revoked_certificate_takes_along_what_it_was_renewed_for() {
    let server = server().await;
    let (admin, machine, thief) = (server.admin(), Machine::new(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = machine.exchange(&admin.channel, &token, "n1").await.unwrap();
    let first = machine.holding(&answer.certificate_pem);
    let stolen = machine.holding(&machine.renew(&server, &first).await.unwrap().certificate_pem);
    let mut client = BootstrapServiceClient::new(server.admin_channel_as(&stolen));
    let request = RenewCertificateRequest { csr_pem: thief.signing_request().into() };
    let captured = thief.holding(&client.renew_certificate(request).await.unwrap().into_inner().certificate_pem);
    let last = thief.holding(&thief.renew(&server, &captured).await.unwrap().certificate_pem);
    let other = admin.create_join_token("").await.join_token;
    let neighbour = Machine::new();
    let answer = neighbour.exchange(&admin.channel, &other, "n2").await.unwrap();

    let mut live = dial::connect_as(&server.endpoints().admin, &server.data_dir().join("ca.pem"), &last).await;
    admin.revoke_fingerprint(&stolen.fingerprint()).await;
    let mut rest = Vec::new();
    let _ = within("the connection is cut", live.read_to_end(&mut rest)).await;
    for holder in [&captured, &last] {
        thief.renew(&server, holder).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    machine.renew(&server, &stolen).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    // What came before stays good, but not for the key that was revoked.
    machine.renew(&server, &first).await.unwrap_err().is(Code::FailedPrecondition, "KEY_REVOKED");
    let mut client = BootstrapServiceClient::new(server.admin_channel_as(&first));
    let request = RenewCertificateRequest { csr_pem: Machine::new().signing_request().into() };
    client.renew_certificate(request).await.unwrap();
    neighbour.renew(&server, &neighbour.holding(&answer.certificate_pem)).await.unwrap();

    let log = admin.whole_log().await;
    let revoked = log.iter().find(|entry| entry.operation == "RevokeCertificate").unwrap();
    assert_eq!(revoked.metadata["renewals_revoked"], "2");
    let refused = log.iter().find(|entry| entry.metadata.get("reason").is_some_and(|reason| reason == "KEY_REVOKED"));
    assert_eq!(refused.unwrap().resource, "node:n1");
    let lineage = admin.lineage(Link::NodeId("n1".to_owned())).await;
    assert!(lineage.audit_entry_ids.contains(&revoked.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_asks_little() {
    let server = server().await;
    let (admin, machine) = (server.admin(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = machine.exchange(&admin.channel, &token, "n1").await.unwrap();
    let node =
        Admin { channel: server.admin_channel_as(&machine.holding(&answer.certificate_pem)), headers: Headers::none() };
    let mut tasks = JoinSet::new();
    for _ in 0..500 {
        let node = node.clone();
        tasks.spawn(async move { node.who_am_i().await.unwrap_err() });
    }
    let refused = tasks.join_all().await;
    let (denied, excess): (Vec<_>, Vec<_>) = refused.iter().partition(|refused| refused.code == Code::PermissionDenied);
    assert!(denied.len() >= 100, "{} denied", denied.len());
    assert!(!excess.is_empty());
    for refused in excess {
        refused.is(Code::ResourceExhausted, "QUOTA_EXCEEDED");
        assert!(refused.retry.is_some(), "{refused:?}");
    }
    // An operator has no such bound.
    for _ in 0..100 {
        admin.who_am_i().await.unwrap();
    }
    verify(&admin.whole_log().await);
}

#[tokio::test]
async fn what_cannot_be_read_has_its_resource() {
    let server = server().await;
    let admin = server.admin();
    let root = Rest::of(&server).bearer(&server.admin_token());
    Rest::of(&server).json("POST", EXCHANGE, &json!([1])).await.refuses(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
    Rest::of(&server).ask("POST", EXCHANGE).await.refuses(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
    root.json("POST", TOKENS, &json!({"nodeId": 1})).await.refuses(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
    let log = admin.whole_log().await;
    let found = |operation: &str| {
        let entries = log.iter().filter(|entry| entry.operation == operation && !entry.success);
        entries.map(|entry| entry.resource.clone()).collect::<Vec<_>>()
    };
    assert_eq!(found("ExchangeJoinToken"), ["token", "token"]);
    assert_eq!(found("CreateJoinToken"), ["tokens"]);
}
