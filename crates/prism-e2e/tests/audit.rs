//! The audit log: contract §8 "audit", "audit order"; §9 "audit, what", "audit, chain", "audit, query", "audit, secrets".

use std::sync::Arc;

use prism_e2e::site::{ITEMS, config, unique, with_option};
use prism_e2e::wait::{next, silent};
use prism_e2e::{Admin, Options, Pattern, Prism, Refused as _, Shared, Site, audit, raw};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use prism_proto::config::v1::ClientConfig;
use serde_json::{Value, json};
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

/// Entries of one request id.
async fn entries_of(admin: &Admin, request_id: &str) -> Vec<AuditLogEntry> {
    admin.whole_log().await.into_iter().filter(|entry| entry.request_id == request_id).collect()
}

/// The one entry of a request id.
async fn entry_of(admin: &Admin, request_id: &str) -> AuditLogEntry {
    let mut entries = entries_of(admin, request_id).await;
    assert_eq!(entries.len(), 1, "exactly one entry for {request_id}: {entries:?}");
    entries.remove(0)
}

fn log(namespace: &str) -> GetAuditLogRequest {
    GetAuditLogRequest { namespace: Some(namespace.to_owned()), ..Default::default() }
}

#[tokio::test]
async fn every_kind_of_call_leaves_exactly_one_entry_before_its_answer_leaves() {
    let site = site().await;
    let (ns, name) = (site.namespace.clone(), unique("audited"));
    let as_alice = |id: &str| site.admin.and("x-request-id", id).and("x-admin-user", "alice@example.com");
    let created =
        wire::CreateConfigRequest { config: Some(config(&name, &ns, Pattern::KeyValue)), ..Default::default() };

    as_alice("success").service().create_config(created.clone()).await.unwrap();
    let entry = entry_of(&site.admin, "success").await;
    assert_eq!(
        (entry.operation.as_str(), entry.resource, entry.namespace),
        ("CreateConfig", format!("config:{name}"), ns.clone())
    );
    assert_eq!(
        (entry.actor.as_str(), entry.auth_method.as_str(), entry.success, entry.error),
        ("alice@example.com", "api_key", true, None)
    );
    assert!(
        entry.source_address.starts_with("127.0.0.1") && !entry.credential_id.is_empty() && entry.timestamp.is_some()
    );

    as_alice("failure").service().create_config(created.clone()).await.refused();
    let entry = entry_of(&site.admin, "failure").await;
    assert!(!entry.success && entry.error.is_some_and(|error| error.contains("exists")));

    let invalid = wire::CreateConfigRequest { config: None, ..Default::default() };
    as_alice("invalid").service().create_config(invalid).await.refused();
    assert!(!entry_of(&site.admin, "invalid").await.success);

    let dry = wire::CreateConfigRequest { validate_only: true, overwrite: true, ..created };
    as_alice("validated").service().create_config(dry).await.unwrap();
    assert!(entry_of(&site.admin, "validated").await.success);

    as_alice("read").service().list_configs(wire::ListConfigsRequest::default()).await.unwrap();
    assert_eq!(entry_of(&site.admin, "read").await.resource, "configs");

    as_alice("stream").audit(GetAuditLogRequest::default()).await;
    assert_eq!(entry_of(&site.admin, "stream").await.resource, "audit");

    let viewer = site.admin.with_role("viewer", None).await;
    let denied = viewer
        .and("x-request-id", "denied")
        .service()
        .create_namespace(wire::CreateNamespaceRequest { name: unique("no"), ..Default::default() })
        .await
        .refused();
    let entry = entry_of(&site.admin, "denied").await;
    assert_eq!(denied.metadata["audit_id"], entry.id);
    assert!(!entry.success && entry.metadata["permission"] == "namespace:create");

    let nobody = site.admin.with_key("prx_nonsense").and("x-request-id", "anonymous");
    nobody.service().list_configs(wire::ListConfigsRequest::default()).await.refused();
    let entry = entry_of(&site.admin, "anonymous").await;
    assert_eq!((entry.actor.as_str(), entry.auth_method.as_str(), entry.success), ("anonymous", "none", false));
    assert_eq!(entry.operation, "ListConfigs");
}

#[tokio::test]
async fn requests_that_cannot_be_parsed_and_rpcs_that_do_not_exist_leave_an_entry() {
    let site = site().await;
    let headers = |id: &str| site.admin.headers.clone().with("x-request-id", id);
    let call = async |id: &str, path: &str, bytes: &'static [u8]| {
        raw::call(&site.admin.channel, &headers(id), path, bytes).await
    };
    let create = "/prism.admin.v1.AdminService/CreateConfig";
    assert!(call("unparsable", create, &[0xff, 0xff, 0xff]).await.is_err());
    let entry = entry_of(&site.admin, "unparsable").await;
    assert_eq!(
        (entry.operation.as_str(), entry.success, entry.auth_method.as_str()),
        ("CreateConfig", false, "api_key")
    );
    // A name that is not UTF-8, which no generated client would send.
    assert!(call("not-text", "/prism.admin.v1.AdminService/GetConfig", &[10, 2, 0xc3, 0x28]).await.is_err());
    assert_eq!(entry_of(&site.admin, "not-text").await.operation, "GetConfig");
    assert_eq!(
        call("no-such-rpc", "/prism.admin.v1.AdminService/Nonsense", b"").await.refused().code,
        Code::Unimplemented
    );
    assert!(!entry_of(&site.admin, "no-such-rpc").await.success);
    assert!(call("no-such-service", "/nonsense.Service/Nonsense", b"").await.is_err());
    assert!(!entry_of(&site.admin, "no-such-service").await.success);
}

#[tokio::test]
async fn resources_are_named_as_the_contract_says() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let key = site.admin.create_api_key("viewer", Some(&site.namespace), None).await.api_key.unwrap().key_id;
    let admin = |id: &str| site.admin.and("x-request-id", id);
    let (ns, id) = (site.namespace.clone(), session.id.clone());
    admin("r-namespace").service().get_namespace(wire::GetNamespaceRequest { name: ns.clone() }).await.unwrap();
    admin("r-namespaces").service().list_namespaces(wire::ListNamespacesRequest::default()).await.unwrap();
    admin("r-session").service().get_session(wire::GetSessionRequest { session_id: id.clone() }).await.unwrap();
    admin("r-sessions").service().list_sessions(wire::ListSessionsRequest::default()).await.unwrap();
    admin("r-backend")
        .service()
        .get_backend_status(wire::GetBackendStatusRequest { backend_type: "sqlite".to_owned() })
        .await
        .unwrap();
    admin("r-backends").service().list_backends(wire::ListBackendsRequest::default()).await.unwrap();
    admin("r-metrics").service().get_metrics(wire::GetMetricsRequest::default()).await.unwrap();
    admin("r-maintenance")
        .service()
        .get_maintenance_status(wire::GetMaintenanceStatusRequest::default())
        .await
        .unwrap();
    let dry = wire::DrainConnectionsRequest { validate_only: true, namespace: Some(ns.clone()), ..Default::default() };
    admin("r-drain").service().drain_connections(dry).await.unwrap();
    admin("r-keys").access().list_api_keys(wire::ListApiKeysRequest::default()).await.unwrap();
    admin("r-key").access().revoke_api_key(wire::RevokeApiKeyRequest { key_id: key.clone() }).await.unwrap();
    let log = site.admin.whole_log().await;
    for (request, resource, namespace) in [
        ("r-namespace", format!("namespace:{ns}"), ns.as_str()),
        ("r-namespaces", "namespaces".to_owned(), ""),
        ("r-session", format!("session:{id}"), &ns),
        ("r-sessions", "sessions".to_owned(), ""),
        ("r-backend", "backend:sqlite".to_owned(), ""),
        ("r-backends", "backends".to_owned(), ""),
        ("r-metrics", "metrics".to_owned(), ""),
        ("r-maintenance", "maintenance".to_owned(), ""),
        ("r-drain", "sessions".to_owned(), &ns),
        ("r-keys", "keys".to_owned(), ""),
        ("r-key", format!("key:{key}"), &ns),
    ] {
        let entry = log.iter().find(|entry| entry.request_id == request).unwrap();
        assert_eq!((&entry.resource, entry.namespace.as_str()), (&resource, namespace), "{request}");
    }
    let created = log.iter().rfind(|entry| entry.operation == "CreateApiKey" && entry.namespace == ns).unwrap();
    assert_eq!(created.resource, format!("key:{key}"), "the id that was made");
}

#[tokio::test]
async fn the_chain_follows_from_the_contracts_definition_and_survives_a_restart() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let site = Site::new(Arc::clone(&server)).await;
    let session = site.session(Pattern::KeyValue).await;
    // Empty texts, every kind of value: encodings differ there first.
    site.admin.terminate(&session.id, true, "").await;
    let off = wire::SetMaintenanceModeRequest { message: Some(String::new()), ..Default::default() };
    site.admin.service().set_maintenance_mode(off).await.unwrap();
    site.admin.with_key("nonsense").service().list_configs(wire::ListConfigsRequest::default()).await.refused();
    let before = site.admin.whole_log().await;
    assert_eq!(before[0].sequence, 1, "the first sequence is 1");
    assert_eq!(before[0].previous_hash, vec![0; 32]);
    audit::verify(&before);
    server.crash_and_restart().await;
    let after = server.admin().whole_log().await;
    audit::verify(&after);
    assert_eq!(after[..before.len()], before);
}

#[tokio::test]
async fn newest_first_100_by_default_and_at_most_10000() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let many: Vec<_> = (0..64)
        .map(|_| {
            let mut service = admin.service();
            tokio::spawn(async move {
                for _ in 0..160 {
                    service.get_maintenance_status(wire::GetMaintenanceStatusRequest::default()).await.unwrap();
                }
            })
        })
        .collect();
    for calls in many {
        calls.await.unwrap();
    }
    let default = admin.audit(GetAuditLogRequest::default()).await;
    assert_eq!(default.len(), 100);
    assert!(default.is_sorted_by(|newer, older| newer.sequence == older.sequence + 1));
    let next = admin.audit(GetAuditLogRequest { limit: 1, ..Default::default() }).await.remove(0);
    assert_eq!(next.sequence, default[0].sequence + 1, "its own entry is written after what it shows");
    let limited = |limit| GetAuditLogRequest { limit, ..Default::default() };
    assert_eq!(admin.audit(limited(1)).await.len(), 1);
    assert_eq!(admin.audit(limited(20_000)).await.len(), 10_000);
    admin.service().get_audit_log(limited(-1)).await.refused().names(&["limit"]);
    // Oldest first, without a limit, from an entry on.
    let all = admin.audit(limited(10_000)).await;
    let oldest = all.last().unwrap();
    for _ in 0..5 {
        admin.audit(limited(1)).await;
    }
    let resumed = admin.audit(GetAuditLogRequest { resume_after: Some(oldest.id.clone()), ..Default::default() }).await;
    assert!(resumed.len() > 10_000, "0 = no limit: {}", resumed.len());
    assert_eq!(resumed[0].sequence, oldest.sequence + 1);
    assert!(resumed.is_sorted_by(|older, newer| older.sequence + 1 == newer.sequence));
}

#[tokio::test]
async fn filters_by_namespace_actor_operation_and_time() {
    let site = site().await;
    for user in ["ann", "bob", "ann"] {
        let admin = site.admin.and("x-admin-user", user);
        admin.service().get_namespace(wire::GetNamespaceRequest { name: site.namespace.clone() }).await.unwrap();
        admin
            .service()
            .list_configs(wire::ListConfigsRequest { namespace: Some(site.namespace.clone()), ..Default::default() })
            .await
            .unwrap();
        // Times are in milliseconds; the test needs them to differ.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    let count = async |request: GetAuditLogRequest| site.admin.audit(request).await.len();
    let actor = |name: &str| GetAuditLogRequest { actor: Some(name.to_owned()), ..log(&site.namespace) };
    assert_eq!(count(actor("ann")).await, 4);
    assert_eq!(count(actor("carl")).await, 0);
    assert_eq!(count(GetAuditLogRequest { operation: Some("ListConfigs".to_owned()), ..actor("ann") }).await, 2);
    assert_eq!(count(log("nowhere")).await, 0);

    let all = site
        .admin
        .audit(GetAuditLogRequest { operation: Some("GetNamespace".to_owned()), ..log(&site.namespace) })
        .await;
    let [third, second, first] = all.as_slice() else { panic!("{all:?}") };
    let between = GetAuditLogRequest {
        operation: Some("GetNamespace".to_owned()),
        start_time: first.timestamp,
        end_time: third.timestamp,
        ..log(&site.namespace)
    };
    let found: Vec<_> = site.admin.audit(between).await.into_iter().map(|entry| entry.id).collect();
    assert_eq!(found, [second.id.as_str(), first.id.as_str()], "start inclusive, end exclusive");
    let reversed = GetAuditLogRequest { start_time: third.timestamp, end_time: first.timestamp, ..Default::default() };
    site.admin.service().get_audit_log(reversed).await.refused().names(&["end_time"]);
}

#[tokio::test]
async fn follow_starts_now_and_resumes_after_an_entry() {
    let site = site().await;
    let act = async |id: &str| {
        let request = wire::GetNamespaceRequest { name: site.namespace.clone() };
        site.admin.and("x-request-id", id).service().get_namespace(request).await.unwrap();
    };
    act("f-before").await;
    let request =
        GetAuditLogRequest { follow: true, operation: Some("GetNamespace".to_owned()), ..log(&site.namespace) };
    let mut stream = site.admin.service().get_audit_log(request.clone()).await.unwrap().into_inner();
    assert!(silent(&mut stream, std::time::Duration::from_millis(150)).await, "follow alone starts now");
    act("f-1").await;
    let first = next("an entry", &mut stream).await.unwrap().unwrap();
    assert_eq!(first.request_id, "f-1");
    act("f-2").await;
    act("f-3").await;
    let resumed = GetAuditLogRequest { resume_after: Some(first.id.clone()), limit: 3, ..request };
    let mut stream = site.admin.service().get_audit_log(resumed.clone()).await.unwrap().into_inner();
    for id in ["f-2", "f-3"] {
        assert_eq!(next("an entry", &mut stream).await.unwrap().unwrap().request_id, id);
    }
    act("f-4").await;
    assert_eq!(next("an entry", &mut stream).await.unwrap().unwrap().request_id, "f-4");
    assert!(next("the end at its limit", &mut stream).await.is_none());
    let unknown = GetAuditLogRequest {
        resume_after: Some("0190a1b2-0000-7000-8000-000000000001".to_owned()),
        ..Default::default()
    };
    assert_eq!(site.admin.service().get_audit_log(unknown).await.refused().code, Code::NotFound);
    let ended = site.admin.audit(GetAuditLogRequest { follow: false, limit: 0, ..resumed }).await;
    assert_eq!(ended.iter().map(|entry| entry.request_id.as_str()).collect::<Vec<_>>(), ["f-2", "f-3", "f-4"]);
}

#[tokio::test]
async fn calls_without_a_credential_leave_a_bounded_number_of_entries() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let nobody = admin.with_headers(prism_e2e::Headers::none());
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        nobody
            .service()
            .list_configs(wire::ListConfigsRequest::default())
            .await
            .refused()
            .is(Code::Unauthenticated, "CREDENTIAL_MISSING");
    }
    let seconds = start.elapsed().as_secs() as usize + 1;
    let log = admin.whole_log().await;
    let anonymous = log.iter().filter(|entry| entry.actor == "anonymous").count();
    assert!(anonymous >= 100 && anonymous <= 200 + 20 * seconds, "{anonymous} in {seconds} s");
    // A valid credential is never counted out.
    admin.and("x-request-id", "after").service().list_configs(wire::ListConfigsRequest::default()).await.unwrap();
    entry_of(&admin, "after").await;
    audit::verify(&admin.whole_log().await);
}

#[tokio::test]
async fn secrets_are_masked_wherever_they_would_be_recorded() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let key = site.admin.create_api_key("viewer", None, None).await.token;
    let secrets =
        [site.admin_key(), site.key.clone(), session.token.clone(), key, "prj_0123456789abcdefghijklmnop".to_owned()];
    for secret in &secrets {
        let admin = site
            .admin
            .and("x-admin-user", &format!("{secret}@example.com"))
            .and("x-request-id", &format!("id-{secret}"));
        let request = wire::GetConfigRequest { name: secret.clone(), ..Default::default() };
        admin.service().get_config(request).await.refused();
        let namespace = wire::CreateNamespaceRequest { name: secret.clone(), description: secret.clone(), quota: None };
        admin.service().create_namespace(namespace).await.refused();
        let request = wire::TerminateSessionRequest {
            session_id: session.id.clone(),
            force: false,
            reason: format!("see {secret}, please"),
        };
        admin.service().terminate_session(request).await.unwrap();
        let request = wire::CreateApiKeyRequest {
            name: format!("for {secret}"),
            roles: vec![secret.clone()],
            ..Default::default()
        };
        admin.access().create_api_key(request).await.refused();
        let request =
            wire::CreateApiKeyRequest { name: secret.clone(), roles: vec!["viewer".to_owned()], ..Default::default() };
        admin.access().create_api_key(request).await.unwrap();
        let path = format!("/{secret}/{secret}");
        raw::call(&site.admin.channel, &admin.headers, &path, &b""[..]).await.refused();
    }
    let log = format!("{:?}", site.admin.whole_log().await);
    for secret in &secrets {
        // Prefix and public id may stay, the secret part may not.
        assert!(!log.contains(&secret[4..]) && !log.contains(&secret[20..]), "{secret} is in the log");
    }
}

/// What an entry says was there before and after, as JSON; nothing where it says nothing.
fn sides(entry: &AuditLogEntry) -> (Value, Value) {
    let side = |name: &str| {
        let text = entry.metadata.get(name);
        text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")))
    };
    (side("before"), side("after"))
}

#[tokio::test]
async fn a_change_tells_what_was_before_and_after_it_and_nothing_that_stayed() {
    let site = site().await;
    let (name, role, draft) = (unique("changed"), unique("role"), unique("config"));
    let made = config(&draft, &site.namespace, Pattern::Queue);
    let changed = ClientConfig { version: "2".to_owned(), ..with_option(made.clone(), "partitions", "3") };
    let made = prism_proto::message_to_json(&made).unwrap();
    let changed = prism_proto::message_to_json(&changed).unwrap();
    let (namespace, permissions) =
        (&site.namespace, |permissions: &[&str]| json!({"name": role, "permissions": permissions}));
    let steps = [
        ("CreateNamespace", json!({"name": name, "description": "one"})),
        ("UpdateNamespace", json!({"name": name, "description": "two", "quota": {"maxRps": "7"}})),
        ("UpdateNamespace", json!({"name": name, "status": "NAMESPACE_STATUS_READ_ONLY"})),
        ("UpdateNamespace", json!({"name": name, "description": "two"})),
        ("DeleteNamespace", json!({"name": name, "validateOnly": true})),
        ("DeleteNamespace", json!({"name": name})),
        ("CreateConfig", json!({"config": made})),
        ("UpdateConfig", json!({"name": draft, "config": changed})),
        ("UpdateConfig", json!({"name": draft, "config": changed, "etag": "another"})),
        ("DeleteConfig", json!({"name": draft})),
        ("SetMaintenanceMode", json!({"namespace": namespace, "enabled": true, "message": "soon"})),
        ("SetMaintenanceMode", json!({"namespace": namespace, "enabled": true, "message": "now", "allowReads": true})),
        ("SetMaintenanceMode", json!({"namespace": namespace})),
        ("CreateRole", json!({"role": permissions(&["config:read"])})),
        ("UpdateRole", json!({"role": permissions(&["config:read", "audit:read"])})),
        ("DeleteRole", json!({"name": role})),
    ];
    let mut told = Vec::new();
    for (method, request) in &steps {
        let id = unique("step");
        let outcome = site.admin.and("x-request-id", &id).ask(method, request).await;
        assert_eq!(outcome.is_err(), request["etag"] == "another", "{method}: {outcome:?}");
        told.push(sides(&entry_of(&site.admin, &id).await));
    }
    let at = |step: usize, pointer: &str| {
        let (before, after) = &told[step];
        let value = |side: &Value| side.pointer(pointer).cloned().unwrap_or_default();
        (value(before), value(after))
    };
    let nothing = Value::Null;
    assert_eq!(at(0, "/description"), (nothing.clone(), json!("one")));
    assert_eq!(
        told[1],
        (
            json!({"description": "one", "quota": {"max_rps": 0}}),
            json!({"description": "two", "quota": {"max_rps": 7}})
        )
    );
    assert_eq!(told[2], (json!({"status": "ACTIVE"}), json!({"status": "READ_ONLY"})));
    for (step, why) in [(3, "it changed nothing"), (4, "it was a rehearsal"), (8, "it was refused")] {
        assert_eq!(told[step], (nothing.clone(), nothing.clone()), "{why}");
    }
    assert_eq!(
        (at(5, "/description"), at(5, "/status")),
        ((json!("two"), nothing.clone()), (json!("READ_ONLY"), nothing.clone()))
    );
    assert_eq!(at(6, "/version"), (nothing.clone(), json!("1")));
    assert_eq!(at(7, "/version"), (json!("1"), json!("2")));
    assert_eq!(at(7, "/backend/options/partitions"), (nothing.clone(), json!("3")));
    assert_eq!(at(7, "/namespace"), (nothing.clone(), nothing.clone()), "what stayed");
    assert_eq!(at(9, "/version"), (json!("2"), nothing.clone()));
    assert_eq!(at(10, "/message"), (nothing.clone(), json!("soon")));
    assert_eq!(
        (at(11, "/message"), at(11, "/allow_reads")),
        ((json!("soon"), json!("now")), (json!(false), json!(true)))
    );
    assert_eq!(at(12, "/message"), (json!("now"), nothing.clone()));
    let (one, two) = (json!({"permissions": ["config:read"]}), json!({"permissions": ["config:read", "audit:read"]}));
    assert_eq!(told[13..], [(nothing.clone(), one.clone()), (one, two.clone()), (two, nothing)]);
}

#[tokio::test]
async fn what_a_change_tells_is_short_and_without_secrets() {
    let site = site().await;
    let id = unique("long");
    let secret = prism_e2e::keys::unknown("prx_");
    let schema = format!("{ITEMS} -- {secret} {}", "x".repeat(50_000));
    let draft = with_option(config(&unique("config"), &site.namespace, Pattern::Transact), "schema", &schema);
    site.admin.and("x-request-id", &id).create_config(draft).await;
    let entry = entry_of(&site.admin, &id).await;
    assert!(!format!("{entry:?}").contains(prism_e2e::keys::secret(&secret)), "{entry:?}");
    let (_, after) = sides(&entry);
    let told = after.pointer("/backend/options/schema").and_then(Value::as_str).expect("a schema");
    assert!(told.starts_with("CREATE TABLE") && told.ends_with('…') && told.len() < 1000, "{told}");
}

trait AdminKey {
    fn admin_key(&self) -> String;
}

impl AdminKey for Site {
    fn admin_key(&self) -> String {
        self.server.admin_token()
    }
}

#[tokio::test]
async fn health_leaves_no_entry() {
    let site = site().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(site.admin.channel.clone());
    let mut request = tonic::Request::new(tonic_health::pb::HealthCheckRequest::default());
    site.admin.and("x-request-id", "of-health").headers.apply(&mut request);
    health.check(request).await.unwrap();
    assert!(entries_of(&site.admin, "of-health").await.is_empty());
}

#[tokio::test]
async fn the_request_id_is_in_the_answer_and_in_the_entry() {
    let site = site().await;
    let ask = async |admin: &Admin| {
        let answer = admin.service().list_configs(wire::ListConfigsRequest::default()).await.unwrap();
        answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(ask(&site.admin.and("x-request-id", "given by the caller")).await, "given by the caller");
    entry_of(&site.admin, "given by the caller").await;
    let made = ask(&site.admin).await;
    entry_of(&site.admin, &made).await;
    let long = "x".repeat(129);
    let replaced = ask(&site.admin.and("x-request-id", &long)).await;
    assert_ne!(replaced, long);
    entry_of(&site.admin, &replaced).await;
}

/// A caller that goes away does not stop a change half way, nor take its entry with it.
#[tokio::test]
async fn a_cancelled_call_leaves_a_change_with_its_entry_or_neither() {
    let site = site().await;
    let names: Vec<String> = (0..60).map(|_| unique("cancelled")).collect();
    for (number, name) in names.iter().enumerate() {
        let request = wire::CreateNamespaceRequest { name: name.clone(), ..Default::default() };
        let mut service = site.admin.service();
        let call = service.create_namespace(request);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(number as u64 * 100), call).await;
    }
    // What was sent before it was dropped may still be on its way through the server.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let log = site.admin.whole_log().await;
    for name in names {
        let exists = site.admin.service().get_namespace(wire::GetNamespaceRequest { name: name.clone() }).await.is_ok();
        let entries = log
            .iter()
            .filter(|entry| entry.operation == "CreateNamespace" && entry.namespace == name && entry.success)
            .count();
        assert_eq!(entries, usize::from(exists), "{name}");
    }
}

#[tokio::test]
async fn a_bound_viewer_sees_the_entries_of_its_namespace_only() {
    let site = site().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let viewer = site.admin.with_role("viewer", Some(&site.namespace)).await;
    let seen = viewer.audit(GetAuditLogRequest { limit: 10_000, ..Default::default() }).await;
    assert!(!seen.is_empty() && seen.iter().all(|entry| entry.namespace == site.namespace));
    let refused = viewer.service().get_audit_log(log(&other.namespace)).await.refused();
    refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
    let theirs = other.admin.audit(log(&other.namespace)).await.remove(0);
    let request = GetAuditLogRequest { resume_after: Some(theirs.id), ..Default::default() };
    assert_eq!(viewer.service().get_audit_log(request).await.refused().code, Code::NotFound);
}
