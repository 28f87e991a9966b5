//! Every RPC of the admin plane × every kind of caller: the verdict is that of the tables in seed A and contract §7, and every
//! refusal is in the audit log with the missing permission.

use std::collections::BTreeMap;

use prism_e2e::{Admin, Failure, Headers, Options, Pattern, Prism, Site, raw};
use prism_proto::rules::{AuditClass, MethodRule, rules};
use serde_json::{Value, json};
use tonic::Code;

/// Seed A, "Authorization", letter for letter, and contract §7: "`admin` also has `tokens:manage`, `access:*` and `nodes:*`".
const ROLES: [(&str, &[&str]); 3] = [
    (
        "admin",
        &[
            "config:*",
            "session:*",
            "namespace:*",
            "backend:read",
            "operational:*",
            "audit:read",
            "tokens:manage",
            "access:*",
            "nodes:*",
        ],
    ),
    (
        "operator",
        &["config:read", "session:read", "session:terminate", "backend:read", "operational:maintenance", "audit:read"],
    ),
    ("viewer", &["config:read", "session:read", "backend:read", "audit:read"]),
];

/// Contract §7, the table of permissions.
const PERMISSIONS: [(&str, &[&str]); 19] = [
    ("config:read", &["ListConfigs", "GetConfig"]),
    ("config:create", &["CreateConfig"]),
    ("config:update", &["UpdateConfig"]),
    ("config:delete", &["DeleteConfig"]),
    ("session:read", &["ListSessions", "GetSession"]),
    ("session:terminate", &["TerminateSession"]),
    ("namespace:read", &["ListNamespaces", "GetNamespace"]),
    ("namespace:create", &["CreateNamespace"]),
    ("namespace:update", &["UpdateNamespace"]),
    ("namespace:delete", &["DeleteNamespace"]),
    ("backend:read", &["GetBackendStatus", "ListBackends", "GetMetrics", "GetMaintenanceStatus"]),
    ("operational:maintenance", &["SetMaintenanceMode"]),
    ("operational:drain", &["DrainConnections"]),
    ("audit:read", &["GetAuditLog"]),
    ("tokens:manage", &["CreateJoinToken", "RevokeJoinToken", "ListJoinTokens"]),
    (
        "access:manage",
        &[
            "CreateApiKey",
            "RotateApiKey",
            "RevokeApiKey",
            "CreateClientKey",
            "RevokeClientKey",
            "CreateRole",
            "UpdateRole",
            "DeleteRole",
            "CreateBinding",
            "DeleteBinding",
            "WhoCan",
        ],
    ),
    ("access:read", &["ListApiKeys", "ListClientKeys", "ListRoles", "ListBindings"]),
    ("authenticated", &["WhoAmI", "CanI"]),
    ("none", &["ExchangeJoinToken"]),
];

/// What concerns the installation, so that a grant in one namespace does not reach it.
const INSTALLATION: [&str; 10] = [
    "CreateNamespace",
    "RotateApiKey",
    "CreateRole",
    "UpdateRole",
    "DeleteRole",
    "ListRoles",
    "CreateBinding",
    "DeleteBinding",
    "ListBindings",
    "WhoCan",
];
/// What names no namespace and shows a bound caller its own part.
const FILTERED: [&str; 6] = ["ListNamespaces", "GetBackendStatus", "ListBackends", "ListApiKeys", "WhoAmI", "CanI"];

fn permission_of(method: &str) -> &'static str {
    PERMISSIONS.iter().find(|(_, methods)| methods.contains(&method)).map_or("?", |(permission, _)| permission)
}

fn holds(role: &str, permission: &str) -> bool {
    let (_, patterns) = ROLES.iter().find(|(name, _)| *name == role).unwrap();
    let any = format!("{}:*", permission.split(':').next().unwrap());
    permission == "authenticated" || patterns.iter().any(|pattern| *pattern == permission || *pattern == any)
}

/// What the requests aim at, in one namespace.
struct Targets {
    namespace: String,
    config: String,
    session: String,
    api_key: String,
    client_key: String,
}

impl Targets {
    async fn new(site: &Site) -> Self {
        let config = site.config(Pattern::KeyValue).await;
        let client_keys = prism_proto::admin::v1::ListClientKeysRequest {
            namespace: Some(site.namespace.clone()),
            ..Default::default()
        };
        Self {
            namespace: site.namespace.clone(),
            session: site.session_of(&config).await.id,
            config,
            api_key: site.admin.create_api_key("viewer", Some(&site.namespace), None).await.api_key.unwrap().key_id,
            client_key: site.admin.access().list_client_keys(client_keys).await.unwrap().into_inner().client_keys[0]
                .key_id
                .clone(),
        }
    }

    /// A request that aims at this namespace and, where it changes something, is refused or harmless once it is let in.
    fn request(&self, method: &str) -> Value {
        let namespace = &self.namespace;
        match method {
            "ListConfigs"
            | "ListSessions"
            | "ListClientKeys"
            | "GetMetrics"
            | "GetMaintenanceStatus"
            | "SetMaintenanceMode"
            | "CreateApiKey"
            | "CreateClientKey" => json!({"namespace": namespace}),
            "GetAuditLog" => json!({"namespace": namespace, "limit": 1}),
            "GetConfig" | "UpdateConfig" => json!({"name": self.config}),
            "CreateConfig" => json!({"config": {"namespace": namespace}}),
            "DeleteConfig" => json!({"name": self.config, "etag": "stale"}),
            "GetSession" => json!({"sessionId": self.session}),
            "TerminateSession" => json!({"sessionId": self.session, "reason": "\u{7}"}),
            "GetNamespace" | "CreateNamespace" => json!({"name": namespace}),
            "UpdateNamespace" => json!({"name": namespace, "etag": "stale"}),
            "DeleteNamespace" => json!({"name": namespace, "validateOnly": true}),
            "GetBackendStatus" => json!({"backendType": "sqlite"}),
            "DrainConnections" => json!({"namespace": namespace, "validateOnly": true}),
            "RevokeApiKey" => json!({"keyId": self.api_key}),
            "RevokeClientKey" => json!({"keyId": self.client_key}),
            _ => json!({}),
        }
    }
}

/// The verdicts of one kind of caller.
struct Caller<'a> {
    name: &'static str,
    admin: Admin,
    targets: &'a Targets,
    /// Whether an RPC is allowed.
    allowed: Box<dyn Fn(&MethodRule) -> bool>,
}

async fn call(caller: &Caller<'_>, rule: &MethodRule, id: &str) -> Result<(), Failure> {
    let message = prism_proto::from_json(&rule.input, &caller.targets.request(&rule.method)).unwrap();
    let headers = caller.admin.headers.clone().with("x-request-id", id);
    raw::call(&caller.admin.channel, &headers, &rule.path, message)
        .await
        .map(drop)
        .map_err(|status| Failure::from(&status))
}

#[test]
fn the_descriptors_say_what_the_contracts_table_says() {
    for rule in rules().unwrap().iter().filter(|rule| rule.audit != AuditClass::None) {
        let expected = if rule.method == "RenewCertificate" { "node:self" } else { permission_of(&rule.method) };
        assert_eq!(rule.permission, expected, "{}", rule.path);
    }
}

#[tokio::test]
async fn every_verdict_equals_the_table_and_every_refusal_is_in_the_audit_log() {
    let site = Site::new(std::sync::Arc::new(Prism::start(Options::new()).await)).await;
    let other = Site::new(std::sync::Arc::clone(&site.server)).await;
    let (mine, theirs) = (Targets::new(&site).await, Targets::new(&other).await);
    let bound = site.admin.with_role("admin", Some(&site.namespace)).await;
    let mut callers = vec![
        Caller {
            name: "nobody",
            admin: site.admin.with_headers(Headers::none()),
            targets: &mine,
            allowed: Box::new(|_| false),
        },
        Caller {
            name: "bound admin, its namespace",
            admin: bound.clone(),
            targets: &mine,
            allowed: Box::new(|rule| !INSTALLATION.contains(&rule.method.as_str())),
        },
        Caller {
            name: "bound admin, another namespace",
            admin: bound,
            targets: &theirs,
            allowed: Box::new(|rule| FILTERED.contains(&rule.method.as_str())),
        },
    ];
    for (role, _) in ROLES {
        let admin = site.admin.with_role(role, None).await;
        callers.push(Caller {
            name: role,
            admin,
            targets: &mine,
            allowed: Box::new(move |rule| holds(role, permission_of(&rule.method))),
        });
    }

    let rules: Vec<_> =
        rules().unwrap().into_iter().filter(|rule| rule.service.starts_with("prism.admin.v1.")).collect();
    assert_eq!(rules.len(), 37, "AdminService has 20 RPCs, AccessService 17");
    let (mut verdicts, mut refusals, mut wrong) = (0, BTreeMap::new(), Vec::new());
    for caller in &callers {
        for rule in &rules {
            let id = format!("matrix-{verdicts}");
            let outcome = call(caller, rule, &id).await;
            let code = outcome.as_ref().map_or_else(|failure| failure.code, |()| Code::Ok);
            let allowed = !matches!(code, Code::PermissionDenied | Code::Unauthenticated);
            if allowed != (caller.allowed)(rule) {
                wrong.push(format!("{}: {} answered {code:?}", caller.name, rule.path));
            }
            if !allowed {
                refusals.insert(id, (caller.name, rule.clone(), outcome.unwrap_err()));
            }
            verdicts += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {verdicts} verdicts differ from the table:\n{}", wrong.len(), wrong.join("\n"));
    println!(
        "{verdicts} verdicts of {} RPCs × {} kinds of callers, {} refusals",
        rules.len(),
        callers.len(),
        refusals.len()
    );

    let log = site.admin.whole_log().await;
    prism_e2e::audit::verify(&log);
    for (id, (caller, rule, failure)) in &refusals {
        let entries: Vec<_> = log.iter().filter(|entry| entry.request_id == *id).collect();
        let [entry] = entries.as_slice() else { panic!("{caller}: {} left {} entries", rule.path, entries.len()) };
        assert_eq!((entry.operation.as_str(), entry.success), (rule.method.as_str(), false), "{caller}");
        if *caller == "nobody" {
            assert_eq!((failure.code, entry.actor.as_str()), (Code::Unauthenticated, "anonymous"));
            continue;
        }
        failure.is(Code::PermissionDenied, "PERMISSION_DENIED");
        assert_eq!(failure.metadata["permission"], rule.permission, "{caller}: {}", rule.path);
        assert_eq!(failure.metadata["audit_id"], entry.id, "{caller}: {}", rule.path);
        assert_eq!(entry.metadata["permission"], rule.permission, "{caller}: {}", rule.path);
        assert!(failure.message.contains(&rule.permission), "{}", failure.message);
    }
}

/// They belong to a later version; until then nobody gets anywhere with them, strangers learn nothing, and every try is
/// recorded.
#[tokio::test]
async fn rpcs_of_later_versions_lead_nobody_anywhere() {
    let server = Prism::start(Options::new()).await;
    let admin = server.admin();
    let rules: Vec<_> =
        rules().unwrap().into_iter().filter(|rule| rule.service.starts_with("prism.cluster.v1.")).collect();
    assert_eq!(rules.len(), 5);
    for rule in &rules {
        for (headers, code) in [(admin.headers.clone(), Code::Unimplemented), (Headers::none(), Code::Unauthenticated)]
        {
            let refused = raw::call(&admin.channel, &headers, &rule.path, Vec::new()).await.unwrap_err();
            assert_eq!(refused.code(), code, "{}", rule.path);
        }
    }
    let log = admin.whole_log().await;
    let tries = log.iter().filter(|entry| rules.iter().any(|rule| rule.method == entry.operation)).count();
    assert_eq!(tries, 10);
}
