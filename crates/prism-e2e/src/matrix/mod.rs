//! The tables of seed A and contract §7 as this test suite reads them; callers with every kind of credential, good ones and dead
//! ones; and requests that aim at what the tables are about.

mod callers;
mod dead;
mod deeds;
mod reflection;
mod targets;
mod world;

pub use callers::{Caller, Kind, callers};
pub use dead::{Dead, dead};
pub use deeds::Deeds;
pub use reflection::{reflected_rules, served_rules};
pub use targets::{Target, Targets};
pub use world::World;

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
const PERMISSIONS: [(&str, &[&str]); 22] = [
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
    ("nodes:read", &["ListNodes", "GetNode", "GetLineage", "GetCaStatus"]),
    ("nodes:manage", &["RevokeNode", "RotateCa", "RetireCa"]),
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
    ("node:self", &["RenewCertificate", "Link"]),
];

/// Whether an operator's credential has anything to do with it: not where none is needed, and not where a node's is.
pub fn is_for_operators(permission: &str) -> bool {
    !["none", "node:self"].contains(&permission)
}

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
    "CreateJoinToken",
    "RevokeJoinToken",
    "ListJoinTokens",
    "ListNodes",
    "GetNode",
    "GetLineage",
    "RevokeNode",
    "GetCaStatus",
    "RotateCa",
    "RetireCa",
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
