//! Requests that do what they say, one for each RPC: whoever is refused with them was refused for who they are.

use prism_proto::admin::v1 as wire;
use serde_json::{Value, json};

use super::World;
use crate::certificates::signing_request;
use crate::enrol::Machine;
use crate::site::{Pattern, Site, unique};

/// What can be done in a namespace and with what is there.
pub struct Deeds(Vec<(&'static str, Value)>);

impl Deeds {
    /// Makes everything in the namespace of `site` that can be changed or deleted.
    pub async fn of(world: &World, site: &Site) -> Self {
        let (admin, namespace) = (&site.admin, site.namespace.as_str());
        let config = site.config(Pattern::KeyValue).await;
        let session = site.session_of(&config).await.id;
        let [key, rotated] = [admin.create_api_key("viewer", None, None), admin.create_api_key("viewer", None, None)];
        let (key, rotated) = (key.await.api_key.expect("a key").key_id, rotated.await.api_key.expect("a key").key_id);
        let filter = wire::ListClientKeysRequest { namespace: Some(namespace.to_owned()), ..Default::default() };
        let client_keys = admin.access().list_client_keys(filter).await.expect("client keys").into_inner().client_keys;
        let client_key = &client_keys.first().expect("the site's key").key_id;
        let (role, unused) = (unique("role"), unique("role"));
        for name in [&role, &unused] {
            admin.create_role(name, &["config:read"]).await;
        }
        let binding = admin.bind(&format!("user:{}", unique("bound")), "viewer", None).await;
        let client_binding = admin.bind_client(&format!("user:{}", unique("bound")), namespace, &["read"]).await;
        let (_, serial, _) = world.issue(wire::CertificateKind::User, &unique("holder")).await;
        let csr = {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(signing_request().0)
        };
        let (node, token) = (unique("node"), admin.create_join_token("").await);
        let unused_token = admin.create_join_token("").await.token_id;
        let joined = Machine::new().exchange(&admin.channel, &token.join_token, &node).await;
        joined.unwrap_or_else(|refused| panic!("a node joins: {refused:?}"));
        let draft = |name: &str, version: &str| {
            json!({
                "name": name, "version": version, "pattern": "ACCESS_PATTERN_KEY_VALUE",
                "backend": {"type": "BACKEND_TYPE_SQLITE"}, "namespace": namespace,
            })
        };
        let fresh = |subject: &str| json!({"subject": subject, "role": "viewer"});
        Self(vec![
            ("WhoAmI", json!({})),
            ("CanI", json!({"rpc": "prism.admin.v1.AdminService/CreateConfig"})),
            ("WhoCan", json!({"permission": "config:read"})),
            ("ListNamespaces", json!({})),
            ("GetNamespace", json!({"name": namespace})),
            ("CreateNamespace", json!({"name": unique("made")})),
            ("UpdateNamespace", json!({"name": namespace, "description": "changed"})),
            ("ListConfigs", json!({})),
            ("GetConfig", json!({"name": config})),
            ("CreateConfig", json!({"config": draft(&unique("made"), "1")})),
            ("UpdateConfig", json!({"name": config, "config": draft(&config, "2")})),
            ("ListSessions", json!({})),
            ("GetSession", json!({"sessionId": session})),
            ("GetBackendStatus", json!({"backendType": "sqlite"})),
            ("ListBackends", json!({})),
            ("GetMetrics", json!({})),
            ("GetMaintenanceStatus", json!({})),
            ("GetAuditLog", json!({"limit": 1})),
            ("GetAuditLog", json!({"follow": true})),
            ("CreateAuditCheckpoint", json!({})),
            ("ListAuditCheckpoints", json!({})),
            ("ListApiKeys", json!({})),
            ("CreateApiKey", json!({"name": "made", "roles": ["admin"]})),
            ("RotateApiKey", json!({"keyId": rotated})),
            ("RevokeApiKey", json!({"keyId": key})),
            ("ListClientKeys", json!({})),
            ("CreateClientKey", json!({"name": "made", "namespace": namespace, "permissions": ["read"]})),
            ("RevokeClientKey", json!({"keyId": client_key})),
            ("ListRoles", json!({})),
            ("CreateRole", json!({"role": {"name": unique("made"), "permissions": ["config:*"]}})),
            ("UpdateRole", json!({"role": {"name": role, "permissions": ["config:*"]}})),
            ("DeleteRole", json!({"name": unused})),
            ("ListBindings", json!({})),
            ("CreateBinding", json!({"binding": fresh(&format!("user:{}", unique("made")))})),
            ("DeleteBinding", json!({"bindingId": binding})),
            ("ListClientBindings", json!({})),
            (
                "CreateClientBinding",
                json!({"clientBinding": {"subject": format!("user:{}", unique("made")), "namespace": namespace, "permissions": ["read"]}}),
            ),
            ("DeleteClientBinding", json!({"bindingId": client_binding})),
            ("ListCertificates", json!({})),
            ("IssueCertificate", json!({"kind": "CERTIFICATE_KIND_USER", "name": unique("made"), "csrPem": csr})),
            ("RevokeCertificate", json!({"serialNumber": serial})),
            ("CreateJoinToken", json!({"nodeId": unique("node")})),
            ("ListJoinTokens", json!({})),
            ("RevokeJoinToken", json!({"tokenId": unused_token})),
            ("ListNodes", json!({})),
            ("GetNode", json!({"nodeId": node})),
            ("GetLineage", json!({"tokenId": token.token_id})),
            ("RevokeNode", json!({"nodeId": node})),
            ("GetCaStatus", json!({})),
            ("RotateCa", json!({})),
            ("RetireCa", json!({"force": true})),
            ("TerminateSession", json!({"sessionId": session, "force": true, "reason": "over"})),
            ("SetMaintenanceMode", json!({"namespace": namespace, "enabled": true})),
            ("DrainConnections", json!({"namespace": namespace, "timeout": "1s", "force": true})),
            ("DeleteConfig", json!({"name": config})),
            ("DeleteNamespace", json!({"name": namespace, "force": true})),
        ])
    }

    /// In an order in which they can be done one after the other.
    pub fn all(&self) -> &[(&'static str, Value)] {
        &self.0
    }

    /// The requests of one RPC.
    pub fn of_method(&self, method: &str) -> Vec<&Value> {
        self.0.iter().filter(|(name, _)| *name == method).map(|(_, request)| request).collect()
    }
}
