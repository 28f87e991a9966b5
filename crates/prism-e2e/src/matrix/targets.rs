//! Requests that aim at an installation or at one namespace.

use serde_json::{Value, json};

use super::{Scope, scope_of};
use crate::admin::Admin;
use crate::site::{Pattern, Site, unique};

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
    admin: Admin,
    config: String,
    session: String,
    api_key: String,
    client_key: String,
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
        Self {
            target: Target::Namespace(namespace.clone()),
            admin: site.admin.clone(),
            session: site.session_of(&config).await.id,
            config,
            api_key: site.admin.create_api_key("viewer", Some(namespace), None).await.api_key.expect("a key").key_id,
            client_key: client_keys.first().expect("the site's key").key_id.clone(),
        }
    }

    /// What the installation as a whole has of these.
    pub async fn of_installation(site: &Site) -> Self {
        Self {
            target: Target::Installation,
            admin: site.admin.clone(),
            config: String::new(),
            session: String::new(),
            api_key: site.admin.create_api_key("viewer", None, None).await.api_key.expect("a key").key_id,
            client_key: String::new(),
        }
    }

    /// By what an answer that shows something of here is known.
    pub fn names(&self) -> Vec<&str> {
        let namespace = match &self.target {
            Target::Namespace(namespace) => namespace.as_str(),
            Target::Installation => "",
        };
        let names = [namespace, &self.config, &self.session, &self.api_key, &self.client_key];
        names.into_iter().filter(|name| !name.is_empty()).collect()
    }

    /// Requests of `method` that aim here and, where they change something, are refused or harmless once they are let in.
    /// `None` where a request can only name something of a namespace, or nothing of one.
    pub async fn requests(&self, method: &str) -> Option<Vec<Value>> {
        let namespace = match &self.target {
            Target::Namespace(namespace) => Some(namespace.as_str()),
            Target::Installation => None,
        };
        match (method, namespace) {
            // What these delete is gone once they are let in: each has one of its own.
            ("DeleteBinding", _) => {
                let id = self.admin.bind(&format!("user:{}", unique("bound")), "viewer", namespace).await;
                Some(vec![json!({"bindingId": id})])
            }
            ("DeleteClientBinding", Some(namespace)) => {
                let id = self.admin.bind_client(&format!("user:{}", unique("bound")), namespace, &["read"]).await;
                Some(vec![json!({"bindingId": id})])
            }
            (_, Some(namespace)) => self.in_namespace(method, namespace),
            (_, None) => self.in_installation(method),
        }
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
            _ if scope_of(method) == Scope::Namespace
                && !matches!(method, "SetMaintenanceMode" | "CreateApiKey" | "CreateBinding") =>
            {
                return None;
            }
            _ => json!({}),
        };
        Some(vec![one])
    }
}
