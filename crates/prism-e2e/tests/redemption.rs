//! One token, a thousand who want it: exactly one gets it, and every other one is in the audit log.

use std::collections::BTreeSet;
use std::sync::Arc;

use prism_e2e::enrol::{Machine, exchange};
use prism_e2e::{Admin, Failure, Options, Prism};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, ExchangeJoinTokenResponse};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::Code;

const MACHINES: usize = 1000;
const CONNECTIONS: usize = 10;

type Outcome = Result<ExchangeJoinTokenResponse, Failure>;

/// Sends all requests at the same moment.
async fn all_at_once(server: &Prism, requests: Vec<ExchangeJoinTokenRequest>) -> Vec<Outcome> {
    let channels: Vec<_> = (0..CONNECTIONS).map(|_| server.admin_channel()).collect();
    let start = Arc::new(Barrier::new(requests.len()));
    let mut tasks = JoinSet::new();
    for (number, request) in requests.into_iter().enumerate() {
        let (channel, start) = (channels[number % CONNECTIONS].clone(), Arc::clone(&start));
        tasks.spawn(async move {
            start.wait().await;
            exchange(&channel, request).await
        });
    }
    tasks.join_all().await
}

async fn entries(admin: &Admin, token_id: &str) -> Vec<AuditLogEntry> {
    let log = admin.whole_log().await;
    prism_e2e::audit::verify(&log);
    let resource = format!("token:{token_id}");
    log.into_iter().filter(|entry| entry.operation == "ExchangeJoinToken" && entry.resource == resource).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_keys_one_wins() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let token = admin.create_join_token("").await;
    // Every machine would be a node of its own, too.
    let request = |number| Machine::new().request(&token.join_token, &format!("node-{number}"));
    let outcomes = all_at_once(&server, (0..MACHINES).map(request).collect()).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), MACHINES - 1);
    for failure in refused {
        failure.is(Code::FailedPrecondition, "TOKEN_REDEEMED");
        assert!(!failure.metadata.contains_key("alarm"), "whoever tries is not warned");
    }
    let winner = admin.join_token(&token.token_id).await;
    assert_eq!(winner.status, "REDEEMED");
    let lineage = admin.lineage(Link::TokenId(token.token_id.clone())).await;
    assert_eq!((lineage.tokens.len(), lineage.certificates.len()), (1, 1));
    assert_eq!(lineage.node.unwrap().node_id, winner.redeemed_by);
    assert_eq!(lineage.certificates[0].fingerprint, winner.certificate_fingerprint);

    let entries = entries(&admin, &token.token_id).await;
    assert_eq!(entries.len(), MACHINES);
    assert_eq!(entries.iter().filter(|entry| entry.success).count(), 1);
    let names: BTreeSet<&String> = entries.iter().map(|entry| &entry.metadata["node_id"]).collect();
    assert_eq!(names.len(), MACHINES, "each entry says which node was to be");
    for entry in entries.iter().filter(|entry| !entry.success) {
        let told = (entry.metadata["reason"].as_str(), entry.metadata["alarm"].as_str(), entry.actor.as_str());
        assert_eq!(told, ("TOKEN_REDEEMED", "token_reuse", "anonymous"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_times_the_same_key_gets_the_same_certificate() {
    let server = Prism::start(Options::new()).await;
    let (admin, machine) = (server.admin(), Machine::new());
    let token = admin.create_join_token("").await;
    let requests = (0..MACHINES).map(|_| machine.request(&token.join_token, "node-1")).collect();
    let outcomes = all_at_once(&server, requests).await;
    let certificates: BTreeSet<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().certificate_pem).collect();
    assert_eq!(certificates.len(), 1);
    let lineage = admin.lineage(Link::TokenId(token.token_id.clone())).await;
    assert_eq!(lineage.certificates.len(), 1);
    let entries = entries(&admin, &token.token_id).await;
    assert_eq!(entries.iter().filter(|entry| entry.success).count(), MACHINES);
    let repeated = entries.iter().filter(|entry| entry.metadata.contains_key("repeated")).count();
    assert_eq!(repeated, MACHINES - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tokens_for_one_name_one_wins() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let mut requests = Vec::new();
    for _ in 0..50 {
        let token = admin.create_join_token("").await.join_token;
        requests.push(Machine::new().request(&token, "node-1"));
    }
    let outcomes = all_at_once(&server, requests).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for failure in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        failure.is(Code::FailedPrecondition, "NODE_EXISTS");
    }
    let lineage = admin.lineage(Link::NodeId("node-1".to_owned())).await;
    assert_eq!((lineage.tokens.len(), lineage.certificates.len()), (1, 1));
    // A token that lost is as good as before, for another name.
    let tokens = admin.tokens().list_join_tokens(prism_proto::cluster::v1::ListJoinTokensRequest {}).await.unwrap();
    assert_eq!(tokens.into_inner().tokens.iter().filter(|token| token.status == "ACTIVE").count(), 49);
}
