//! Who wants the place of another: with the right to make tokens, with a stolen key, with a request for a key of another kind.

use prism_e2e::audit::verify;
use prism_e2e::data::{self, named};
use prism_e2e::enrol::{Machine, exchange, signing_request_of};
use prism_e2e::node::{Files, join};
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Admin, Cli, Failure, Options, Prism, dial, http1};
use prism_proto::admin::v1::{AuditLogEntry, SessionStatus};
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_proto::cluster::v1::get_lineage_request::Link;
use prism_proto::cluster::v1::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, ExchangeJoinTokenRequest, GetCaStatusRequest,
    RenewCertificateRequest, RenewCertificateResponse, RetireCaRequest, RevokeNodeRequest, RotateCaRequest,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P521_SHA512};
use tonic::Code;

async fn server() -> Prism {
    Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await
}

/// A key of a role with these permissions.
async fn operator(server: &Prism, role: &str, permissions: &[&str]) -> Admin {
    let admin = server.admin();
    admin.create_role(role, permissions).await;
    admin.with_role(role, None).await
}

async fn create(admin: &Admin, node: &str) -> Result<CreateJoinTokenResponse, Failure> {
    let request = CreateJoinTokenRequest { node_id: node.to_owned(), ttl_seconds: 0 };
    let made = admin.tokens().create_join_token(request).await;
    made.map(tonic::Response::into_inner).map_err(|status| Failure::from(&status))
}

async fn revoke(admin: &Admin, node: &str) {
    admin.nodes().revoke_node(RevokeNodeRequest { node_id: node.to_owned() }).await.unwrap();
}

/// Asks for the next certificate of `holder`, for the key of `machine`.
async fn renew_for(
    server: &Prism,
    holder: &prism_e2e::certificates::Holder,
    machine: &Machine,
) -> Result<RenewCertificateResponse, Failure> {
    let request = RenewCertificateRequest { csr_pem: machine.signing_request().into() };
    let answer = BootstrapServiceClient::new(server.admin_channel_as(holder)).renew_certificate(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| Failure::from(&status))
}

async fn entries(admin: &Admin, operation: &str) -> Vec<AuditLogEntry> {
    let log = admin.whole_log().await;
    verify(&log);
    log.into_iter().filter(|entry| entry.operation == operation).collect()
}

fn alarm(entry: &AuditLogEntry) -> Option<&str> {
    entry.metadata.get("alarm").map(String::as_str)
}

#[track_caller]
fn lacks_nodes_manage(refused: &Failure) {
    refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(refused.metadata["permission"], "nodes:manage", "{refused:?}");
    assert!(refused.message.contains("nodes:manage") && refused.metadata.contains_key("audit_id"), "{refused:?}");
}

#[tokio::test]
async fn a_token_for_a_name_that_is_taken_needs_the_right_to_revoke_nodes() {
    let server = server().await;
    let (admin, owner) = (server.admin(), Machine::new());
    let minter = operator(&server, "minter", &["tokens:manage"]).await;
    let warden = operator(&server, "warden", &["tokens:manage", "nodes:manage"]).await;
    let token = admin.create_join_token("").await.join_token;
    let answer = owner.exchange(&admin.channel, &token, "n1").await.unwrap();
    let holder = owner.holding(&answer.certificate_pem);

    lacks_nodes_manage(&create(&minter, "n1").await.unwrap_err());
    create(&minter, "").await.unwrap();
    create(&minter, "n2").await.unwrap();
    // Made while the name was free, and kept until it is not.
    let early = create(&minter, "n3").await.unwrap();
    let by_warden = create(&warden, "n3").await.unwrap();
    let third = Machine::new();
    let unbound = admin.create_join_token("").await.join_token;
    let joined = third.exchange(&admin.channel, &unbound, "n3").await.unwrap();
    let thief = Machine::new();
    let refused = thief.exchange(&admin.channel, &early.join_token, "n3").await.unwrap_err();
    refused.is(Code::FailedPrecondition, "NODE_EXISTS");
    third.renew(&server, &third.holding(&joined.certificate_pem)).await.unwrap();
    thief.exchange(&admin.channel, &by_warden.join_token, "n3").await.unwrap();

    // A revoked node is not let in again by who could not have revoked it.
    revoke(&admin, "n1").await;
    lacks_nodes_manage(&create(&minter, "n1").await.unwrap_err());
    owner.renew(&server, &holder).await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    let back = create(&warden, "n1").await.unwrap();
    Machine::new().exchange(&admin.channel, &back.join_token, "n1").await.unwrap();
    let denied: Vec<_> = entries(&admin, "CreateJoinToken").await.into_iter().filter(|entry| !entry.success).collect();
    assert_eq!(denied.len(), 2);
    for entry in denied {
        assert_eq!((&*entry.metadata["permission"], &*entry.metadata["node_id"]), ("nodes:manage", "n1"));
    }
}

#[tokio::test]
async fn who_held_the_key_of_the_name_first_keeps_nothing_by_a_token_that_waited() {
    let server = server().await;
    let admin = server.admin();
    let token = admin.create_join_token("").await.join_token;
    Machine::new().exchange(&admin.channel, &token, "n1").await.unwrap();
    let (waiting, other, unbound) =
        (create(&admin, "n1").await.unwrap(), create(&admin, "n2").await.unwrap(), create(&admin, "").await.unwrap());
    revoke(&admin, "n1").await;
    let thief = Machine::new();
    let refused = thief.exchange(&admin.channel, &waiting.join_token, "n1").await.unwrap_err();
    refused.is(Code::FailedPrecondition, "TOKEN_REVOKED");
    let status = async |id: &str| admin.join_token(id).await.status;
    assert_eq!(status(&waiting.token_id).await, "REVOKED");
    assert_eq!((status(&other.token_id).await, status(&unbound.token_id).await), ("ACTIVE".into(), "ACTIVE".into()));
    let entry = entries(&admin, "RevokeNode").await.pop().unwrap();
    assert_eq!(entry.metadata["tokens_revoked"], "1");
    // The way back is a token that is made after it.
    let fresh = create(&admin, "n1").await.unwrap();
    Machine::new().exchange(&admin.channel, &fresh.join_token, "n1").await.unwrap();
}

#[tokio::test]
async fn two_keys_that_renew_one_certificate_are_an_alarm() {
    let server = server().await;
    let (admin, owner, thief) = (server.admin(), Machine::new(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = owner.exchange(&admin.channel, &token, "n1").await.unwrap();
    let first = owner.holding(&answer.certificate_pem);
    // Whoever has lost the answer asks again, with the same key.
    let next = owner.renew(&server, &first).await.unwrap();
    assert_eq!(owner.renew(&server, &first).await.unwrap().certificate_pem, next.certificate_pem);
    assert!(entries(&admin, "RenewCertificate").await.iter().all(|entry| alarm(entry).is_none()));
    // Who has stolen the key makes one of his own.
    let forked = renew_for(&server, &first, &thief).await.unwrap();
    let last = entries(&admin, "RenewCertificate").await.pop().unwrap();
    assert_eq!((last.success, alarm(&last), last.resource.as_str()), (true, Some("renewal_fork"), "node:n1"));
    assert_eq!(last.metadata["renewed_from"], first.fingerprint());
    // The other way round as well: the thief was first, and the owner's renewal says so.
    let stolen = owner.holding(&next.certificate_pem);
    renew_for(&server, &stolen, &thief).await.unwrap();
    assert_eq!(alarm(&entries(&admin, "RenewCertificate").await.pop().unwrap()), None);
    owner.renew(&server, &stolen).await.unwrap();
    assert_eq!(alarm(&entries(&admin, "RenewCertificate").await.pop().unwrap()), Some("renewal_fork"));
    // A line of one key has none, and what was revoked is not counted.
    let captured = thief.holding(&forked.certificate_pem);
    thief.renew(&server, &captured).await.unwrap();
    assert_eq!(alarm(&entries(&admin, "RenewCertificate").await.pop().unwrap()), None);
}

#[tokio::test]
async fn a_thief_of_the_key_does_not_take_all_places_of_the_owner() {
    let server = server().await;
    let (admin, owner) = (server.admin(), Machine::new());
    let token = admin.create_join_token("").await.join_token;
    let answer = owner.exchange(&admin.channel, &token, "n1").await.unwrap();
    let first = owner.holding(&answer.certificate_pem);
    let refused = loop {
        if let Err(refused) = renew_for(&server, &first, &Machine::new()).await {
            break refused;
        }
    };
    refused.is(Code::ResourceExhausted, "TOO_MANY_NODE_CERTIFICATES");
    let next = owner.renew(&server, &first).await.unwrap();
    assert_ne!(next.certificate_pem, answer.certificate_pem);
    // Neither by the owner's own key: beyond the places of a key everybody is given what there is.
    let mut line = vec![owner.holding(&next.certificate_pem)];
    for _ in 0..20 {
        let next = owner.renew(&server, line.last().unwrap()).await.unwrap();
        line.push(owner.holding(&next.certificate_pem));
    }
    let certificates = admin.lineage(Link::NodeId("n1".to_owned())).await.certificates;
    assert!(certificates.len() <= 32, "{}", certificates.len());
    for holder in [&first, &line[0], &line[20]] {
        owner.renew(&server, holder).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_key_is_an_alarm_of_whatever_kind_it_is() {
    let server = server().await;
    let (admin, owner) = (server.admin(), Machine::new());
    let token = admin.create_join_token("n1").await;
    owner.exchange(&admin.channel, &token.join_token, "n1").await.unwrap();
    let strange = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    let strange = CertificateParams::default().serialize_request(&strange).unwrap().pem().unwrap().into_bytes();
    let kinds = [
        strange,
        signing_request_of(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
        signing_request_of(&["-algorithm", "Ed448"]),
    ];
    let attempt = async |csr: &[u8]| {
        let request = ExchangeJoinTokenRequest {
            join_token: token.join_token.clone(),
            node_id: "n1".to_owned(),
            csr_pem: csr.to_vec().into(),
        };
        exchange(&admin.channel, request).await.unwrap_err()
    };
    for csr in &kinds {
        attempt(csr).await.is(Code::FailedPrecondition, "TOKEN_REDEEMED");
    }
    admin.revoke_join_token(&token.token_id).await;
    attempt(&kinds[0]).await.is(Code::FailedPrecondition, "TOKEN_REVOKED");
    let entries = entries(&admin, "ExchangeJoinToken").await;
    let alarms = entries.iter().filter(|entry| alarm(entry) == Some("token_reuse"));
    assert_eq!(alarms.count(), kinds.len() + 1);
    // With a token that nobody has redeemed they are what they are: keys that nothing is issued for.
    let fresh = admin.create_join_token("n2").await.join_token;
    for csr in kinds {
        let request =
            ExchangeJoinTokenRequest { join_token: fresh.clone(), node_id: "n2".to_owned(), csr_pem: csr.into() };
        exchange(&admin.channel, request).await.unwrap_err().names(&["csr_pem"]);
    }
}

async fn refused_credentials(server: &Prism) -> String {
    let (_, metrics) = http1::get(&server.endpoints().metrics, "/metrics").await;
    let found = metrics.lines().find_map(|line| line.strip_prefix("prism_admin_credentials_refused_total "));
    found.expect("the metric").to_owned()
}

/// Sessions are those of whoever holds the key of the node.
#[tokio::test]
async fn who_takes_a_name_over_does_not_get_its_sessions() {
    let server = Prism::start(Options::new().arg("--role").arg("admin")).await;
    let (admin, folder) = (server.admin(), tempfile::tempdir().unwrap());
    admin.create_namespace("orders").await;
    admin.create_config(config("kv", "orders", Pattern::KeyValue)).await;
    let key = admin.create_client_key("orders", &["read", "write"]).await;
    let data_dir = folder.path().join("data");
    let (dir, endpoint) = (data_dir.to_string_lossy().into_owned(), server.endpoints().admin);
    let token = admin.create_join_token("one").await.join_token;
    join(&["-", "--controller", &endpoint, "--node-id", "one", "--data-dir", &dir], &token).ok();
    let node = Prism::start(Options::new().arg("--role").arg("data").data_dir(&data_dir)).await;
    let files = Files::of(&data_dir);
    let channel = dial::tls(&node.endpoints().data, &files.path("ca.pem"));
    let session = data::create(&channel, named(&key, "kv")).await.unwrap();
    session.put("a", b"1").await.unwrap();
    // The way back of a node that has its key.
    let machine = Machine::with_key(&files.read("key.pem"));
    let bound = create(&admin, "one").await.unwrap();
    machine.exchange(&admin.channel, &bound.join_token, "one").await.unwrap();
    assert_eq!(admin.session(&session.id).await.status(), SessionStatus::Active);
    session.put("a", b"2").await.unwrap();
    // Another machine with its name.
    let bound = create(&admin, "one").await.unwrap();
    Machine::new().exchange(&admin.channel, &bound.join_token, "one").await.unwrap();
    assert_eq!(admin.session(&session.id).await.status(), SessionStatus::Terminated);
    let exchanged = entries(&admin, "ExchangeJoinToken").await;
    let ended: Vec<_> = exchanged.iter().map(|entry| entry.metadata["sessions_ended"].as_str()).collect();
    assert_eq!(ended, ["0", "0", "1"]);
}

#[tokio::test]
async fn tokens_of_the_old_ca_are_counted() {
    let server = server().await;
    let admin = server.admin();
    let (first, second) = (create(&admin, "").await.unwrap(), create(&admin, "n1").await.unwrap());
    create(&admin, "").await.unwrap();
    Machine::new().exchange(&admin.channel, &second.join_token, "n1").await.unwrap();
    admin.authority().rotate_ca(RotateCaRequest {}).await.unwrap();
    let counted = async || {
        let status = admin.authority().get_ca_status(GetCaStatusRequest {}).await.unwrap().into_inner();
        status.authorities.iter().map(|ca| ca.join_tokens).collect::<Vec<_>>()
    };
    assert_eq!(counted().await, [0, 2]);
    create(&admin, "").await.unwrap();
    admin.revoke_join_token(&first.token_id).await;
    assert_eq!(counted().await, [0, 1]);
    Cli::of(&server).run("ca status").ok().prints("1 join tokens");
    admin.authority().retire_ca(RetireCaRequest { force: true }).await.unwrap();
    let retired = entries(&admin, "RetireCa").await.pop().unwrap();
    assert_eq!(retired.metadata["join_tokens_cut"], "1");
}

/// What is broken is not who asks: the table that secrets are compared with is taken away under the running server.
#[tokio::test]
async fn a_store_that_fails_is_no_fault_of_who_asks() {
    let server = Prism::start(Options::new().config("[limits]\nauth_failures = 3\n")).await;
    let admin = server.admin();
    let token = admin.create_join_token("").await.join_token;
    let machine = Machine::new();
    let before = refused_credentials(&server).await;
    let database = rusqlite::Connection::open(server.data_dir().join("prism.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    database.execute_batch("ALTER TABLE join_tokens RENAME TO away").unwrap();
    for _ in 0..20 {
        let refused = machine.exchange(&admin.channel, &token, "n1").await.unwrap_err();
        refused.is(Code::Internal, "INTERNAL");
        assert!(!refused.message.contains("join_tokens"), "{refused:?}");
    }
    assert_eq!(refused_credentials(&server).await, before);
    database.execute_batch("ALTER TABLE away RENAME TO join_tokens").unwrap();
    machine.exchange(&admin.channel, &token, "n1").await.unwrap();
    let entries = entries(&admin, "ExchangeJoinToken").await;
    let failed = entries.iter().filter(|entry| !entry.success);
    assert_eq!(failed.clone().count(), 20, "{entries:?}");
    assert!(failed.clone().all(|entry| entry.metadata["reason"] == "INTERNAL"), "{entries:?}");
}
