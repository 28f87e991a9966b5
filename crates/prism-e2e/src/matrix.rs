//! The tables of seed A and contract §7 as this test suite reads them, and requests that aim at what they are about.

use std::collections::BTreeSet;

use prism_proto::rules::{MethodRule, rules};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::site::{Pattern, Site};

/// Seed A, "Authorization", letter for letter, and contract §7: "`admin` also has `tokens:manage`, `access:*` and `nodes:*`".
pub const ROLES: [(&str, &[&str]); 3] = [
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

/// Contract §7, the table of permissions, with the RPCs that were added in its spirit.
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
    ("audit:read", &["GetAuditLog", "CreateAuditCheckpoint", "ListAuditCheckpoints"]),
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
            "CreateClientBinding",
            "DeleteClientBinding",
            "IssueCertificate",
            "RevokeCertificate",
            "WhoCan",
        ],
    ),
    (
        "access:read",
        &["ListApiKeys", "ListClientKeys", "ListRoles", "ListBindings", "ListClientBindings", "ListCertificates"],
    ),
    ("authenticated", &["WhoAmI", "CanI"]),
    ("none", &["ExchangeJoinToken"]),
];

/// The permission that a method needs.
pub fn permission_of(method: &str) -> &'static str {
    PERMISSIONS.iter().find(|(_, methods)| methods.contains(&method)).map_or("?", |(permission, _)| permission)
}

/// Whether someone with these permissions has `permission`.
pub fn holds(patterns: &[&str], permission: &str) -> bool {
    let any = format!("{}:*", permission.split(':').next().unwrap_or_default());
    permission == "authenticated" || patterns.iter().any(|pattern| *pattern == permission || *pattern == any)
}

/// Whom a grant in one namespace helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Nobody: it concerns the installation.
    Installation,
    /// Everybody: it names no namespace and shows the caller's own part.
    Filtered,
    /// A list that may name a namespace, and is filtered when it does not.
    List,
    /// It happens in the namespace it names, or whose thing it names; without one, in the installation.
    Namespace,
}

const INSTALLATION: &[&str] = &[
    "CreateNamespace",
    "CreateRole",
    "UpdateRole",
    "DeleteRole",
    "IssueCertificate",
    "ListCertificates",
    "RevokeCertificate",
];
const FILTERED: &[&str] = &[
    "ListNamespaces",
    "GetBackendStatus",
    "ListBackends",
    "ListApiKeys",
    "ListRoles",
    "ListBindings",
    "CreateAuditCheckpoint",
    "ListAuditCheckpoints",
    "WhoAmI",
    "CanI",
];
const LISTS: &[&str] = &[
    "ListConfigs",
    "ListSessions",
    "ListClientKeys",
    "ListClientBindings",
    "GetAuditLog",
    "GetMetrics",
    "GetMaintenanceStatus",
];
const NAMESPACED: &[&str] = &[
    "GetConfig",
    "CreateConfig",
    "UpdateConfig",
    "DeleteConfig",
    "GetSession",
    "TerminateSession",
    "GetNamespace",
    "UpdateNamespace",
    "DeleteNamespace",
    "SetMaintenanceMode",
    "DrainConnections",
    "CreateApiKey",
    "RotateApiKey",
    "RevokeApiKey",
    "CreateClientKey",
    "RevokeClientKey",
    "CreateBinding",
    "DeleteBinding",
    "CreateClientBinding",
    "DeleteClientBinding",
    "WhoCan",
];

/// Whether a table names the method; a new RPC must be thought about.
pub fn is_known(method: &str) -> bool {
    [INSTALLATION, FILTERED, LISTS, NAMESPACED].iter().any(|list| list.contains(&method))
}

/// Whom a grant in one namespace helps to call `method`.
pub fn scope_of(method: &str) -> Scope {
    if INSTALLATION.contains(&method) {
        Scope::Installation
    } else if FILTERED.contains(&method) {
        Scope::Filtered
    } else if LISTS.contains(&method) {
        Scope::List
    } else {
        Scope::Namespace
    }
}

/// What a request aims at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The whole installation.
    Installation,
    /// This namespace.
    Namespace(String),
}

/// Things that requests can be about, in one place.
pub struct Targets {
    /// Where.
    pub target: Target,
    config: String,
    session: String,
    api_key: String,
    client_key: String,
    binding: String,
    client_binding: String,
}

impl Targets {
    /// One of each in the namespace of `site`.
    pub async fn of_namespace(site: &Site) -> Self {
        use prism_proto::admin::v1 as wire;
        let mut access = site.admin.access();
        let namespace = &site.namespace;
        let config = site.config(Pattern::KeyValue).await;
        let filter = wire::ListClientKeysRequest { namespace: Some(namespace.clone()), ..Default::default() };
        let client_keys = access.list_client_keys(filter).await.expect("client keys").into_inner().client_keys;
        let binding = wire::Binding {
            subject: format!("user:{namespace}"),
            role: "viewer".to_owned(),
            namespace: Some(namespace.clone()),
            ..wire::Binding::default()
        };
        let binding = access.create_binding(wire::CreateBindingRequest { binding: Some(binding) }).await;
        let client_binding = wire::ClientBinding {
            subject: format!("user:{namespace}"),
            namespace: namespace.clone(),
            permissions: vec!["read".to_owned()],
            ..wire::ClientBinding::default()
        };
        let request = wire::CreateClientBindingRequest { client_binding: Some(client_binding) };
        let client_binding = access.create_client_binding(request).await;
        Self {
            target: Target::Namespace(namespace.clone()),
            session: site.session_of(&config).await.id,
            config,
            api_key: site.admin.create_api_key("viewer", Some(namespace), None).await.api_key.expect("a key").key_id,
            client_key: client_keys.first().expect("the site's key").key_id.clone(),
            binding: binding.expect("a binding").into_inner().binding.expect("a binding").binding_id,
            client_binding: client_binding
                .expect("a client binding")
                .into_inner()
                .client_binding
                .expect("a client binding")
                .binding_id,
        }
    }

    /// What the installation as a whole has of these.
    pub async fn of_installation(site: &Site) -> Self {
        use prism_proto::admin::v1 as wire;
        let binding =
            wire::Binding { subject: "user:nobody".to_owned(), role: "viewer".to_owned(), ..wire::Binding::default() };
        let binding = site.admin.access().create_binding(wire::CreateBindingRequest { binding: Some(binding) }).await;
        Self {
            target: Target::Installation,
            config: String::new(),
            session: String::new(),
            api_key: site.admin.create_api_key("viewer", None, None).await.api_key.expect("a key").key_id,
            client_key: String::new(),
            binding: binding.expect("a binding").into_inner().binding.expect("a binding").binding_id,
            client_binding: String::new(),
        }
    }

    /// Requests of `method` that aim here and, where they change something, are refused or harmless once they are let in.
    /// `None` where a request can only name something of a namespace, or nothing of one.
    pub fn requests(&self, method: &str) -> Option<Vec<Value>> {
        let requests = match &self.target {
            Target::Namespace(namespace) => self.in_namespace(method, namespace)?,
            Target::Installation => self.in_installation(method)?,
        };
        Some(requests)
    }

    fn in_namespace(&self, method: &str, namespace: &str) -> Option<Vec<Value>> {
        let one = match method {
            "ListConfigs"
            | "ListSessions"
            | "ListClientKeys"
            | "ListClientBindings"
            | "GetMetrics"
            | "GetMaintenanceStatus"
            | "SetMaintenanceMode"
            | "CreateApiKey"
            | "CreateClientKey" => json!({"namespace": namespace}),
            "GetAuditLog" => {
                let list = json!({"namespace": namespace, "limit": 1});
                return Some(vec![list, json!({"namespace": namespace, "follow": true, "limit": 1})]);
            }
            "GetConfig" | "UpdateConfig" => json!({"name": self.config}),
            "CreateConfig" => json!({"config": {"namespace": namespace}}),
            "DeleteConfig" => json!({"name": self.config, "etag": "stale"}),
            "GetSession" => json!({"sessionId": self.session}),
            "TerminateSession" => json!({"sessionId": self.session, "reason": "\u{7}"}),
            "GetNamespace" | "CreateNamespace" => json!({"name": namespace}),
            "UpdateNamespace" => json!({"name": namespace, "etag": "stale"}),
            "DeleteNamespace" => json!({"name": namespace, "validateOnly": true}),
            "DrainConnections" => json!({"namespace": namespace, "validateOnly": true}),
            // An overlap that is refused.
            "RotateApiKey" => json!({"keyId": self.api_key, "overlap": "-1s"}),
            "RevokeApiKey" => json!({"keyId": self.api_key}),
            "RevokeClientKey" => json!({"keyId": self.client_key}),
            "CreateBinding" => json!({"binding": {"namespace": namespace}}),
            "CreateClientBinding" => json!({"clientBinding": {"namespace": namespace}}),
            "WhoCan" => json!({"permission": "config:read", "namespace": namespace}),
            "CanI" => json!({"rpc": "prism.admin.v1.AdminService/CreateConfig", "namespace": namespace}),
            _ => return None,
        };
        Some(vec![one])
    }

    fn in_installation(&self, method: &str) -> Option<Vec<Value>> {
        let one = match method {
            "DrainConnections" => json!({"validateOnly": true}),
            "RotateApiKey" => json!({"keyId": self.api_key, "overlap": "-1s"}),
            "RevokeApiKey" => json!({"keyId": self.api_key}),
            "GetBackendStatus" => json!({"backendType": "sqlite"}),
            "WhoCan" => json!({"permission": "config:read"}),
            "CanI" => json!({"rpc": "prism.admin.v1.AdminService/CreateConfig"}),
            "GetAuditLog" => return Some(vec![json!({"limit": 1}), json!({"follow": true, "limit": 1})]),
            "DeleteBinding" => return None,
            _ if scope_of(method) == Scope::Namespace
                && !matches!(method, "SetMaintenanceMode" | "CreateApiKey" | "CreateBinding") =>
            {
                return None;
            }
            _ => json!({}),
        };
        Some(vec![one])
    }

    /// The binding and the client binding made here, to be deleted once.
    pub fn bindings(&self) -> (&str, &str) {
        (&self.binding, &self.client_binding)
    }
}

/// An admin key that is well formed and that nobody has.
pub fn unknown_key() -> String {
    crate::keys::unknown("prx_")
}

/// The rules of every RPC that the server says it serves on this port, health and reflection left out. The methods that it
/// lists and those in the descriptors must be the same.
pub async fn reflected_rules(channel: &Channel) -> Vec<MethodRule> {
    let listed = match ask(channel, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name),
        other => panic!("{other:?}"),
    };
    let services: Vec<String> = listed.filter(|name| !name.starts_with("grpc.")).collect();
    let mut found = BTreeSet::new();
    for name in &services {
        let answer = ask(channel, MessageRequest::FileContainingSymbol(name.clone())).await;
        let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
        for file in &files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).expect("a descriptor");
            for service in &file.service {
                if format!("{}.{}", file.package(), service.name()) == *name {
                    found.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
                }
            }
        }
    }
    let rules: Vec<_> = rules().expect("rules").into_iter().filter(|rule| found.contains(&rule.path)).collect();
    assert!(!rules.is_empty() && rules.len() == found.len(), "{} rules for {found:?}", rules.len());
    rules
}

async fn ask(channel: &Channel, message: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await;
    let answer = answers.expect("reflection").into_inner().message().await.expect("an answer");
    answer.and_then(|answer| answer.message_response).expect("an answer")
}
