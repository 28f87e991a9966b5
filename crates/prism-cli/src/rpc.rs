//! The operations: a request struct *is* the operation, and this table says where it goes.

use prism_proto::{admin::v1 as admin, cluster::v1 as cluster};
use prost::{Message, Name};

/// A unary RPC of the admin plane, named by its request.
pub trait Rpc: Message + Name + Default + Clone + 'static {
    /// Its answer.
    type Response: Message + Name + Default + 'static;
    /// Path of the request, such as `/prism.admin.v1.AdminService/CreateConfig`.
    const PATH: &'static str;
    /// Whether it changes something, and so needs an idempotency key to be repeated safely.
    const CHANGES: bool;

    /// Name of the method, such as `CreateConfig`.
    fn method() -> &'static str {
        Self::PATH.rsplit('/').next().unwrap_or(Self::PATH)
    }
}

macro_rules! rpcs {
    ($($package:ident $service:literal { $($request:ident -> $response:ident = $method:literal $kind:ident,)* })*) => {
        $($(
            impl Rpc for $package::$request {
                type Response = $package::$response;
                const PATH: &'static str = concat!("/prism.", stringify!($package), ".v1.", $service, "/", $method);
                const CHANGES: bool = changes!($kind);
            }
        )*)*

        /// Path, request, response and kind of every row, for the test against the descriptors.
        #[cfg(test)]
        fn rows() -> Vec<(&'static str, String, String, bool)> {
            vec![$($((
                $package::$request::PATH,
                $package::$request::full_name(),
                $package::$response::full_name(),
                $package::$request::CHANGES,
            )),*),*]
        }
    };
}

macro_rules! changes {
    (read) => {
        false
    };
    (change) => {
        true
    };
}

rpcs! {
    admin "AdminService" {
        ListConfigsRequest -> ListConfigsResponse = "ListConfigs" read,
        GetConfigRequest -> GetConfigResponse = "GetConfig" read,
        CreateConfigRequest -> CreateConfigResponse = "CreateConfig" change,
        UpdateConfigRequest -> UpdateConfigResponse = "UpdateConfig" change,
        DeleteConfigRequest -> DeleteConfigResponse = "DeleteConfig" change,
        ListSessionsRequest -> ListSessionsResponse = "ListSessions" read,
        GetSessionRequest -> GetSessionResponse = "GetSession" read,
        TerminateSessionRequest -> TerminateSessionResponse = "TerminateSession" change,
        ListNamespacesRequest -> ListNamespacesResponse = "ListNamespaces" read,
        GetNamespaceRequest -> GetNamespaceResponse = "GetNamespace" read,
        CreateNamespaceRequest -> CreateNamespaceResponse = "CreateNamespace" change,
        UpdateNamespaceRequest -> UpdateNamespaceResponse = "UpdateNamespace" change,
        DeleteNamespaceRequest -> DeleteNamespaceResponse = "DeleteNamespace" change,
        ListBackendsRequest -> ListBackendsResponse = "ListBackends" read,
        GetBackendStatusRequest -> GetBackendStatusResponse = "GetBackendStatus" read,
        SetMaintenanceModeRequest -> SetMaintenanceModeResponse = "SetMaintenanceMode" change,
        GetMaintenanceStatusRequest -> GetMaintenanceStatusResponse = "GetMaintenanceStatus" read,
        DrainConnectionsRequest -> DrainConnectionsResponse = "DrainConnections" change,
        GetMetricsRequest -> GetMetricsResponse = "GetMetrics" read,
        CreateAuditCheckpointRequest -> CreateAuditCheckpointResponse = "CreateAuditCheckpoint" change,
        ListAuditCheckpointsRequest -> ListAuditCheckpointsResponse = "ListAuditCheckpoints" read,
    }
    admin "AccessService" {
        CreateApiKeyRequest -> CreateApiKeyResponse = "CreateApiKey" change,
        ListApiKeysRequest -> ListApiKeysResponse = "ListApiKeys" read,
        RotateApiKeyRequest -> RotateApiKeyResponse = "RotateApiKey" change,
        RevokeApiKeyRequest -> RevokeApiKeyResponse = "RevokeApiKey" change,
        CreateClientKeyRequest -> CreateClientKeyResponse = "CreateClientKey" change,
        ListClientKeysRequest -> ListClientKeysResponse = "ListClientKeys" read,
        RevokeClientKeyRequest -> RevokeClientKeyResponse = "RevokeClientKey" change,
        CreateRoleRequest -> CreateRoleResponse = "CreateRole" change,
        UpdateRoleRequest -> UpdateRoleResponse = "UpdateRole" change,
        DeleteRoleRequest -> DeleteRoleResponse = "DeleteRole" change,
        ListRolesRequest -> ListRolesResponse = "ListRoles" read,
        CreateBindingRequest -> CreateBindingResponse = "CreateBinding" change,
        DeleteBindingRequest -> DeleteBindingResponse = "DeleteBinding" change,
        ListBindingsRequest -> ListBindingsResponse = "ListBindings" read,
        CreateClientBindingRequest -> CreateClientBindingResponse = "CreateClientBinding" change,
        DeleteClientBindingRequest -> DeleteClientBindingResponse = "DeleteClientBinding" change,
        ListClientBindingsRequest -> ListClientBindingsResponse = "ListClientBindings" read,
        IssueCertificateRequest -> IssueCertificateResponse = "IssueCertificate" change,
        ListCertificatesRequest -> ListCertificatesResponse = "ListCertificates" read,
        RevokeCertificateRequest -> RevokeCertificateResponse = "RevokeCertificate" change,
        WhoAmIRequest -> WhoAmIResponse = "WhoAmI" read,
        CanIRequest -> CanIResponse = "CanI" read,
        WhoCanRequest -> WhoCanResponse = "WhoCan" read,
    }
    cluster "AdminService" {
        CreateJoinTokenRequest -> CreateJoinTokenResponse = "CreateJoinToken" change,
        ListJoinTokensRequest -> ListJoinTokensResponse = "ListJoinTokens" read,
        RevokeJoinTokenRequest -> RevokeJoinTokenResponse = "RevokeJoinToken" change,
    }
    cluster "NodeService" {
        ListNodesRequest -> ListNodesResponse = "ListNodes" read,
        GetNodeRequest -> GetNodeResponse = "GetNode" read,
        RevokeNodeRequest -> RevokeNodeResponse = "RevokeNode" change,
        GetLineageRequest -> GetLineageResponse = "GetLineage" read,
    }
    cluster "CaService" {
        GetCaStatusRequest -> GetCaStatusResponse = "GetCaStatus" read,
        RotateCaRequest -> RotateCaResponse = "RotateCa" change,
        RetireCaRequest -> RetireCaResponse = "RetireCa" change,
    }
}

#[cfg(test)]
mod tests {
    use prism_proto::rules::{AuditClass, rules};

    use super::*;

    #[test]
    fn the_table_says_what_the_descriptors_say() {
        let rules = rules().unwrap();
        for (path, request, response, changes) in rows() {
            let rule = rules.iter().find(|rule| rule.path == path).unwrap_or_else(|| panic!("{path} does not exist"));
            assert_eq!((&rule.input, &rule.output), (&request, &response), "{path}");
            assert_eq!(rule.audit == AuditClass::Change, changes, "{path}");
            assert!(!rule.server_streaming && !rule.client_streaming, "{path}");
        }
    }

    #[test]
    fn method_is_the_last_part() {
        assert_eq!(admin::WhoAmIRequest::method(), "WhoAmI");
    }
}
