//! Bad input on the admin plane: every field of every request is broken, one at a time, and named in the refusal.

use std::sync::Arc;

use prism_e2e::cases::{Rpc, entry, long};
use prism_e2e::{Options, Pattern, Prism, Refused as _, Site, audit};
use prism_proto::admin::v1 as wire;
use prism_proto::rules::rules;
use serde_json::{Value, json};
use tonic::Code;

const ADMIN: &str = "prism.admin.v1.AdminService";
const ACCESS: &str = "prism.admin.v1.AccessService";

/// Fields that take any value of their type, and why.
///
/// - `etag`: text that is not the current tag is ABORTED (`config.rs`, `namespace.rs`).
/// - `actor`, `operation`: text that nobody has matches nothing (`audit.rs`).
/// - `resume_after`: text that is no entry's id is NOT_FOUND (`audit.rs`).
/// - `binding_id`, `created_at`, `created_by` of what is to be made: made by the server, and not read (`access_service.proto`).
/// - `start_time`, `end_time`, `scheduled_end`: JSON cannot spell a malformed one; see `malformed_times` below.
const FREE: &[&str] = &[
    "etag",
    "actor",
    "operation",
    "resume_after",
    "binding.binding_id",
    "client_binding.binding_id",
    "client_binding.created_at",
    "client_binding.created_by",
    "start_time",
    "end_time",
    "scheduled_end",
];

/// A signing request (P-256), in PEM and that in base64, as proto3 JSON has bytes.
const CSR: &str = concat!(
    "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlISU1IRUNBUUF3RHpFTk1Bc0dBMVVFQXd3RWRHVnpkREJaTUJN",
    "R0J5cUdTTTQ5QWdFR0NDcUdTTTQ5QXdFSApBMElBQktRSVhZeFhJRTRvTFQ2RGlVeE1yVzlaUFJRSWFrSEN0UGgxUU00YjQ3dWFO",
    "dStRTFJ3VG91MW1DU29wClFaelpOYmpTc0VxOWlKYlBPYXg2RFZZaGdkV2dBREFLQmdncWhrak9QUVFEQWdOSEFEQkVBaUF3M2J5",
    "TVgrZ2cKZStBeDNzTW1Ed1hOZ1kzeHowd0h5VndjcXBsNGdycGNDUUlnTDJkalpocEdwYlQrL0Q1SHpLT2xzVldmeWR4ZgovaVdy",
    "c1FmVTdPcGd2TnM9Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=",
);

fn rpc(service: &str, method: &str, base: Value, bad: Vec<(&'static str, Value, &'static str)>) -> Rpc {
    Rpc { path: format!("/{service}/{method}"), base, bad }
}

/// What is wrong with a list's page.
fn page() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("page_size", json!(-1), ""),
        ("page_size", json!(i32::MIN), ""),
        ("page_token", json!("not a token"), ""),
        ("page_token", json!("AAAA"), ""),
        ("page_token", long(9000), ""),
    ]
}

fn name(field: &'static str, longest: usize) -> Vec<(&'static str, Value, &'static str)> {
    ["", "Upper", "-edge", "edge-", "white space", "ümlaut", "nul\0", "a/b"]
        .into_iter()
        .map(|bad| (field, json!(bad), ""))
        .chain([(field, long(longest + 1), "")])
        .collect()
}

fn text(field: &'static str, longest: usize) -> Vec<(&'static str, Value, &'static str)> {
    vec![(field, long(longest + 1), ""), (field, json!("bell\u{7}"), ""), (field, json!("nul\0"), "")]
}

fn quota(field: [&'static str; 3]) -> Vec<(&'static str, Value, &'static str)> {
    field.into_iter().flat_map(|field| [(field, json!("-1"), ""), (field, json!(i64::MAX.to_string()), "")]).collect()
}

/// Whatever can be wrong with a config.
fn config() -> Vec<(&'static str, Value, &'static str)> {
    let number = |field, beyond: i64| [(field, json!(-1), ""), (field, json!(beyond), "")];
    let mut bad = vec![
        ("config", Value::Null, ""),
        ("config.backend.options", entry("colour", json!("red")), "config.backend.options.colour"),
        ("config.backend.options", entry("partitions", json!("0")), "config.backend.options.partitions"),
        ("config.backend.options", entry("partitions", json!("1025")), "config.backend.options.partitions"),
        ("config.backend.options", entry("partitions", json!("many")), "config.backend.options.partitions"),
        ("config.backend.options", entry("ack_timeout_ms", json!("-1")), "config.backend.options.ack_timeout_ms"),
        ("config.backend.options", entry("instance", json!("nowhere")), "config.backend.options.instance"),
        ("config.version", json!(""), ""),
        ("config.version", long(129), ""),
        ("config.version", json!("bell\u{7}"), ""),
        ("config.pattern", json!(0), ""),
        ("config.pattern", json!(99), ""),
        ("config.pattern", json!("ACCESS_PATTERN_PUBSUB"), ""),
        ("config.backend", Value::Null, ""),
        ("config.backend.type", json!(0), ""),
        ("config.backend.type", json!(5), ""),
        ("config.backend.type", json!(99), ""),
        ("config.consistency.level", json!(99), ""),
        ("config.namespace", json!("nowhere"), ""),
    ];
    bad.extend(number("config.backend.pool.min_connections", 1001));
    bad.extend(number("config.backend.pool.max_connections", 1001));
    bad.extend(number("config.backend.pool.idle_timeout_seconds", 86_401));
    bad.extend(number("config.consistency.timeout_ms", 600_001));
    bad.extend(number("config.cache.ttl_seconds", 86_401));
    bad.extend(number("config.cache.max_size_mb", 65_537));
    bad.extend(number("config.rate_limit.requests_per_second", 10_000_001));
    bad.extend(number("config.rate_limit.burst", 10_000_001));
    bad.extend(name("config.namespace", 63));
    bad
}

fn config_rpcs(namespace: &str) -> Vec<Rpc> {
    let base = json!({"version": "1", "pattern": "ACCESS_PATTERN_QUEUE", "backend": {"type": "BACKEND_TYPE_SQLITE"}, "namespace": namespace});
    let mut named = base.clone();
    named["name"] = json!("c");
    let mut create = config();
    create.extend(name("config.name", 128));
    let mut update = config();
    update.extend(name("name", 128));
    update.push(("config.name", json!("another"), ""));
    // One or the other, so they are not neighbours.
    let get = [
        vec![("revision", json!("0"), ""), ("revision", json!("-1"), "")],
        name("name", 128),
        vec![("version", long(129), "")],
    ];
    vec![
        rpc(
            ADMIN,
            "ListConfigs",
            json!({}),
            [page(), name("namespace", 63), vec![("pattern", json!(99), ""), ("pattern", json!(-1), "")]].concat(),
        ),
        rpc(ADMIN, "GetConfig", json!({"name": "c"}), get.concat()),
        rpc(ADMIN, "CreateConfig", json!({"config": named, "overwrite": true, "validate_only": true}), create),
        rpc(ADMIN, "UpdateConfig", json!({"name": "c", "config": base, "validate_only": true}), update),
        rpc(ADMIN, "DeleteConfig", json!({"name": "c", "etag": "stale"}), name("name", 128)),
    ]
}

fn session_rpcs(session: &str) -> Vec<Rpc> {
    let id = || {
        let bad = ["", "nonsense", "0190A1B2-0000-7000-8000-000000000001", "{0190a1b2-0000-7000-8000-000000000001}"];
        bad.map(|bad| ("session_id", json!(bad), ""))
            .into_iter()
            .chain([("session_id", long(10_000), "")])
            .collect::<Vec<_>>()
    };
    vec![
        rpc(
            ADMIN,
            "ListSessions",
            json!({}),
            [page(), name("namespace", 63), vec![("status", json!(99), ""), ("status", json!(-1), "")]].concat(),
        ),
        rpc(ADMIN, "GetSession", json!({"session_id": session}), id()),
        rpc(
            ADMIN,
            "TerminateSession",
            json!({"session_id": session, "reason": "why"}),
            [id(), text("reason", 1024)].concat(),
        ),
    ]
}

fn namespace_rpcs(namespace: &str) -> Vec<Rpc> {
    let quotas = || quota(["quota.max_sessions", "quota.max_storage_bytes", "quota.max_rps"]);
    let base = || json!({"name": namespace, "description": "same"});
    vec![
        rpc(ADMIN, "ListNamespaces", json!({}), page()),
        rpc(ADMIN, "GetNamespace", base_name(namespace), name("name", 63)),
        rpc(
            ADMIN,
            "CreateNamespace",
            json!({"name": "made-by-bad-input"}),
            [name("name", 63), text("description", 4096), quotas()].concat(),
        ),
        rpc(
            ADMIN,
            "UpdateNamespace",
            base(),
            [
                name("name", 63),
                text("description", 4096),
                quotas(),
                vec![("status", json!(0), ""), ("status", json!(9), "")],
            ]
            .concat(),
        ),
        rpc(
            ADMIN,
            "DeleteNamespace",
            json!({"name": namespace, "force": true, "validate_only": true}),
            name("name", 63),
        ),
    ]
}

fn base_name(namespace: &str) -> Value {
    json!({ "name": namespace })
}

fn operation_rpcs() -> Vec<Rpc> {
    let duration = |field, beyond: &'static str| {
        vec![(field, json!("-1s"), ""), (field, json!("-0.5s"), ""), (field, json!(beyond), "")]
    };
    vec![
        rpc(ADMIN, "GetBackendStatus", json!({"backend_type": "sqlite"}), vec![("backend_type", json!(""), "")]),
        rpc(ADMIN, "ListBackends", json!({}), page()),
        rpc(ADMIN, "SetMaintenanceMode", json!({}), [text("message", 4096), name("namespace", 63)].concat()),
        rpc(ADMIN, "GetMaintenanceStatus", json!({}), name("namespace", 63)),
        rpc(
            ADMIN,
            "DrainConnections",
            json!({"validate_only": true}),
            [duration("timeout", "3601s"), name("namespace", 63), name("node_id", 63)].concat(),
        ),
        rpc(
            ADMIN,
            "GetMetrics",
            json!({}),
            [duration("window", "3601s"), vec![("window", json!("0s"), "")], name("namespace", 63)].concat(),
        ),
        rpc(ADMIN, "CreateAuditCheckpoint", json!({}), vec![]),
        rpc(ADMIN, "ListAuditCheckpoints", json!({}), page()),
        rpc(
            ADMIN,
            "GetAuditLog",
            json!({}),
            [vec![("limit", json!(-1), ""), ("limit", json!(i32::MIN), "")], name("namespace", 63)].concat(),
        ),
    ]
}

fn access_rpcs(namespace: &str) -> Vec<Rpc> {
    let ttl = || [json!("0s"), json!("-1s"), json!("315576000000s")].map(|bad| ("ttl", bad, "")).to_vec();
    let key_name = || [vec![("name", json!(""), ""), ("name", json!("  "), "")], text("name", 1024)].concat();
    let roles: Vec<String> = (0..17).map(|number| format!("r{number}")).collect();
    vec![
        rpc(
            ACCESS,
            "CreateApiKey",
            json!({"name": "k", "roles": ["viewer"]}),
            [
                key_name(),
                ttl(),
                vec![
                    ("roles", json!([]), ""),
                    ("roles", json!(roles), ""),
                    ("roles", json!(["viewer", "nobody"]), "roles[1]"),
                    ("roles", json!(["viewer", "viewer"]), "roles[1]"),
                    ("user", json!(""), ""),
                    ("user", json!("two words"), ""),
                    ("user", json!("ümlaut"), ""),
                    ("user", long(257), ""),
                ],
                name("namespace", 63),
                vec![("namespace", json!("nowhere"), "")],
            ]
            .concat(),
        ),
        rpc(ACCESS, "ListApiKeys", json!({}), page()),
        rpc(ACCESS, "RevokeApiKey", json!({"key_id": "0000000000000000"}), vec![("key_id", json!(""), "")]),
        rpc(
            ACCESS,
            "CreateClientKey",
            json!({"name": "k", "namespace": namespace, "permissions": ["read"]}),
            [
                key_name(),
                ttl(),
                name("namespace", 63),
                vec![
                    ("namespace", json!("nowhere"), ""),
                    ("permissions", json!([]), ""),
                    ("permissions", json!(["read", "admin"]), "permissions[1]"),
                    ("permissions", json!(["read", "read"]), "permissions[1]"),
                ],
            ]
            .concat(),
        ),
        rpc(ACCESS, "ListClientKeys", json!({}), [page(), name("namespace", 63)].concat()),
        rpc(ACCESS, "RevokeClientKey", json!({"key_id": "0000000000000000"}), vec![("key_id", json!(""), "")]),
        rpc(ACCESS, "WhoAmI", json!({}), vec![]),
        rpc(
            ACCESS,
            "CanI",
            json!({"rpc": "prism.admin.v1.AdminService/GetConfig"}),
            [
                vec![("rpc", json!(""), ""), ("rpc", json!("nonsense"), ""), ("rpc", long(10_000), "")],
                name("namespace", 63),
            ]
            .concat(),
        ),
    ]
}

fn role_rpcs() -> Vec<Rpc> {
    let many: Vec<String> = (0..101).map(|_| "config:read".to_owned()).collect();
    let bad = || {
        vec![
            ("role", json!(null), ""),
            ("role.name", json!(""), ""),
            ("role.name", json!("Upper"), ""),
            ("role.name", json!("-edge"), ""),
            ("role.name", json!("white space"), ""),
            ("role.name", json!("nul\0"), ""),
            ("role.name", long(65), ""),
            ("role.permissions", json!([]), ""),
            ("role.permissions", json!(many), ""),
            ("role.permissions", json!(["config"]), "role.permissions[0]"),
            ("role.permissions", json!(["config:read", "config.read"]), "role.permissions[1]"),
            ("role.permissions", json!(["config:read", "nothing:read"]), "role.permissions[1]"),
            ("role.permissions", json!(["config:paint"]), "role.permissions[0]"),
            ("role.permissions", json!(["*:*"]), "role.permissions[0]"),
            ("role.built_in", json!(true), ""),
        ]
    };
    let role = |name: &str| json!({"role": {"name": name, "permissions": ["config:read"]}});
    vec![
        rpc(ACCESS, "CreateRole", role("painter"), bad()),
        rpc(ACCESS, "UpdateRole", role("nobody"), bad()),
        rpc(ACCESS, "DeleteRole", json!({"name": "nobody"}), vec![("name", json!(""), ""), ("name", json!("No"), "")]),
        rpc(ACCESS, "ListRoles", json!({}), page()),
        rpc(
            ACCESS,
            "RotateApiKey",
            json!({"key_id": "0000000000000000"}),
            vec![("key_id", json!(""), ""), ("overlap", json!("-1s"), ""), ("overlap", json!("2592001s"), "")],
        ),
        rpc(
            ACCESS,
            "WhoCan",
            json!({"permission": "config:read"}),
            [
                vec![
                    ("permission", json!(""), ""),
                    ("permission", json!("config:*"), ""),
                    ("permission", json!("nothing:read"), ""),
                    ("permission", json!("config:paint"), ""),
                    ("permission", long(10_000), ""),
                ],
                name("namespace", 63),
            ]
            .concat(),
        ),
    ]
}

/// What is wrong with a subject.
fn subject(field: &'static str) -> Vec<(&'static str, Value, &'static str)> {
    ["", "alice", "key:a", "user:", "User:a", "user: a", "user:a\0", "group:a\nb"]
        .into_iter()
        .map(|bad| (field, json!(bad), ""))
        .chain([(field, json!(format!("user:{}", "x".repeat(513))), "")])
        .collect()
}

fn binding_rpcs(namespace: &str) -> Vec<Rpc> {
    vec![
        rpc(
            ACCESS,
            "CreateBinding",
            json!({"binding": {"subject": "user:a", "role": "viewer", "namespace": namespace}}),
            [
                vec![("binding", json!(null), "")],
                subject("binding.subject"),
                vec![("binding.role", json!(""), ""), ("binding.role", json!("nobody"), "")],
                name("binding.namespace", 63),
                vec![("binding.namespace", json!("nowhere"), "")],
            ]
            .concat(),
        ),
        rpc(ACCESS, "DeleteBinding", json!({"binding_id": "0000000000000000"}), vec![("binding_id", json!(""), "")]),
        rpc(ACCESS, "ListBindings", json!({}), [page(), subject("subject")].concat()),
        rpc(
            ACCESS,
            "CreateClientBinding",
            json!({"client_binding": {"subject": "user:a", "namespace": namespace, "permissions": ["read"]}}),
            [
                vec![("client_binding", json!(null), "")],
                subject("client_binding.subject"),
                name("client_binding.namespace", 63),
                vec![
                    ("client_binding.namespace", json!("nowhere"), ""),
                    ("client_binding.permissions", json!([]), ""),
                    ("client_binding.permissions", json!(["read", "admin"]), "client_binding.permissions[1]"),
                    ("client_binding.permissions", json!(["read", "read"]), "client_binding.permissions[1]"),
                ],
            ]
            .concat(),
        ),
        rpc(
            ACCESS,
            "DeleteClientBinding",
            json!({"binding_id": "0000000000000000"}),
            vec![("binding_id", json!(""), "")],
        ),
        rpc(ACCESS, "ListClientBindings", json!({}), [page(), name("namespace", 63), subject("subject")].concat()),
    ]
}

fn certificate_rpcs() -> Vec<Rpc> {
    vec![
        rpc(
            ACCESS,
            "IssueCertificate",
            json!({"kind": "CERTIFICATE_KIND_USER", "name": "a", "csr_pem": CSR}),
            vec![
                ("kind", json!("CERTIFICATE_KIND_UNSPECIFIED"), ""),
                ("kind", json!(7), ""),
                ("name", json!(""), ""),
                ("name", json!("a/b"), ""),
                ("name", json!("a,b"), ""),
                ("name", json!("*"), ""),
                ("name", json!("nul\0"), ""),
                ("name", json!("prism"), ""),
                ("name", long(65), ""),
                ("csr_pem", json!(""), ""),
                ("ttl", json!("0s"), ""),
                ("ttl", json!("59s"), ""),
                ("ttl", json!("31622401s"), ""),
            ],
        ),
        rpc(ACCESS, "ListCertificates", json!({}), page()),
        rpc(
            ACCESS,
            "RevokeCertificate",
            json!({"serial_number": "00"}),
            vec![
                ("serial_number", json!("no hex"), ""),
                ("serial_number", json!(""), ""),
                ("serial_number", long(200), ""),
                ("fingerprint", json!("00"), ""),
            ],
        ),
    ]
}

/// Signing requests that are none, or not good enough.
#[tokio::test]
async fn bad_signing_requests_are_refused_by_their_field() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let good = String::from_utf8(base64_of(CSR)).unwrap();
    let flipped = good.replacen("MI", "MJ", 1);
    let cut = &good[..good.len() / 2];
    let twice = format!("{good}{good}");
    for csr in ["nonsense", flipped.as_str(), cut, twice.as_str(), &"x".repeat(1 << 20)] {
        let request = wire::IssueCertificateRequest {
            kind: wire::CertificateKind::User.into(),
            name: "a".to_owned(),
            csr_pem: csr.to_owned().into(),
            ttl: None,
        };
        admin.access().issue_certificate(request).await.refused().names(&["csr_pem"]);
    }
}

fn base64_of(text: &str) -> Vec<u8> {
    let message = prism_proto::from_json("prism.admin.v1.IssueCertificateRequest", &json!({"csr_pem": text})).unwrap();
    let request: wire::IssueCertificateRequest = prost::Message::decode(message.as_slice()).unwrap();
    request.csr_pem.to_vec()
}

fn all(namespace: &str, session: &str) -> Vec<Rpc> {
    let parts = [
        config_rpcs(namespace),
        session_rpcs(session),
        namespace_rpcs(namespace),
        operation_rpcs(),
        access_rpcs(namespace),
        role_rpcs(),
        binding_rpcs(namespace),
        certificate_rpcs(),
    ];
    parts.into_iter().flatten().collect()
}

#[test]
fn the_tables_leave_no_field_of_no_request_out() {
    let tables = all("a", "b");
    let untested: Vec<_> = tables.iter().flat_map(|rpc| rpc.untested(FREE)).collect();
    assert!(untested.is_empty(), "no case breaks these fields:\n{}", untested.join("\n"));
    for rule in rules().unwrap().iter().filter(|rule| rule.service.starts_with("prism.admin.v1.")) {
        assert!(tables.iter().any(|rpc| rpc.path == rule.path), "{} has no table", rule.path);
    }
}

#[tokio::test]
async fn every_wrong_field_is_invalid_argument_and_named_and_so_are_two() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let config = prism_e2e::site::config("c", &site.namespace, Pattern::Queue);
    site.configure(config).await;
    let session = site.session_of("c").await;
    let (mut faults, mut count) = (Vec::new(), 0);
    for rpc in all(&site.namespace, &session.id) {
        count += rpc.bad.len();
        faults.extend(rpc.faults(&site.admin.channel, &site.admin.headers).await);
        faults.extend(rpc.faults_of_pairs(&site.admin.channel, &site.admin.headers).await);
        // The base itself must be in order, or the cases prove nothing.
        if let Err(failure) = rpc.send_base(&site.admin.channel, &site.admin.headers).await {
            let expected = matches!(failure.code, Code::Aborted | Code::NotFound);
            assert!(expected, "{}: {failure:?}", rpc.path);
        }
    }
    assert!(faults.is_empty(), "{} of {count} cases:\n{}", faults.len(), faults.join("\n"));
    println!("{count} wrong fields");
    audit::verify(&site.admin.whole_log().await);
}

#[tokio::test]
async fn malformed_times_are_invalid_argument_and_named() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    for (seconds, nanos) in
        [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0), (-62_135_596_801, 0)]
    {
        let time = Some(prost_types::Timestamp { seconds, nanos });
        let mut service = admin.service();
        let request = wire::GetAuditLogRequest { start_time: time, ..Default::default() };
        service.get_audit_log(request).await.refused().names(&["start_time"]);
        let request = wire::GetAuditLogRequest { end_time: time, ..Default::default() };
        service.get_audit_log(request).await.refused().names(&["end_time"]);
        let request = wire::SetMaintenanceModeRequest { enabled: true, scheduled_end: time, ..Default::default() };
        service.set_maintenance_mode(request).await.refused().names(&["scheduled_end"]);
    }
    for (seconds, nanos) in [(1, -1), (-1, 1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0)] {
        let time = Some(prost_types::Duration { seconds, nanos });
        let mut service = admin.service();
        let request = wire::GetMetricsRequest { window: time, namespace: None };
        service.get_metrics(request).await.refused().names(&["window"]);
        let request = wire::DrainConnectionsRequest { timeout: time, ..Default::default() };
        service.drain_connections(request).await.refused().names(&["timeout"]);
        let request = wire::CreateApiKeyRequest {
            name: "k".to_owned(),
            roles: vec!["viewer".to_owned()],
            ttl: time,
            ..Default::default()
        };
        admin.access().create_api_key(request).await.refused().names(&["ttl"]);
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_recorded() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin().and("x-request-id", "too-large");
    let description = "x".repeat(5 << 20);
    let request = wire::CreateNamespaceRequest { name: "n".to_owned(), description, quota: None };
    let refused = admin.service().create_namespace(request).await.refused();
    assert!(matches!(refused.code, Code::OutOfRange | Code::ResourceExhausted), "{refused:?}");
    let log = server.admin().whole_log().await;
    let entries: Vec<_> = log.iter().filter(|entry| entry.request_id == "too-large").collect();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].operation.as_str(), entries[0].success), ("CreateNamespace", false));
}

/// A stranger must not be able to fill the disk: what an entry holds of a request is bounded.
#[tokio::test]
async fn entries_of_large_requests_are_small() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let large = "x".repeat(3 << 20);
    let nobody = admin.with_headers(prism_e2e::Headers::none());
    let request = wire::GetConfigRequest { name: large.clone(), ..Default::default() };
    nobody.service().get_config(request.clone()).await.refused();
    admin.service().get_config(request).await.refused();
    let request = wire::ListConfigsRequest { namespace: Some(large.clone()), ..Default::default() };
    nobody.service().list_configs(request.clone()).await.refused();
    admin.service().list_configs(request).await.refused().names(&["namespace"]);
    let request = wire::CreateApiKeyRequest { name: large.clone(), roles: vec![large], ..Default::default() };
    admin.access().create_api_key(request).await.refused();
    for entry in server.admin().whole_log().await {
        let size = prost::Message::encoded_len(&entry);
        assert!(size < 16 * 1024, "{} bytes of {}", size, entry.operation);
    }
}
