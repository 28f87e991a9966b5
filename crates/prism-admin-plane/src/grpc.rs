//! The gRPC transport: reads a call off the wire, hands it to the door, maps the answer.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use prism_core::{Error, Result};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::access_service_server::AccessService;
use prism_proto::admin::v1::admin_service_server::AdminService;
use prism_rpc::request::{peer, request_id};
use prism_rpc::shutdown::Shutdown;
use prism_rpc::to_status;
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::audit_stream::{Ending, EntryStream};
use crate::door::{Call, Door, draft_of};
use crate::identity::Identity;
use crate::op::Op;
use crate::ops::{
    access, api_key, audit, backend, binding, certificate, checkpoint, client_binding, client_key, config, drain,
    maintenance, metrics, namespace, role, session,
};
use crate::record::Recorded;

/// ErrorInfo domain of both services.
const DOMAIN: &str = "prism.admin.v1";

/// Both admin services on one door.
#[derive(Clone)]
pub struct Grpc {
    door: Arc<Door>,
    shutdown: Shutdown,
}

impl Grpc {
    /// Serves through `door` until `shutdown` is announced, which ends streams that follow.
    pub fn new(door: Arc<Door>, shutdown: Shutdown) -> Self {
        Self { door, shutdown }
    }

    async fn serve<O: Op>(&self, request: Request<O::Request>) -> Result<Response<O::Response>, Status> {
        let (identity, call) = caller(&request)?;
        let id = call.request_id.clone();
        let result = self.door.call::<O>(identity, call, request.into_inner()).await;
        result.map(Response::new).map_err(|error| to_status(&error, DOMAIN, &id))
    }
}

impl Grpc {
    /// `GetAuditLog`, with entries as they are stored. The server's end is the end of a stream that follows.
    pub(crate) async fn audit_log(
        &self,
        request: Request<wire::GetAuditLogRequest>,
    ) -> Result<Response<EntryStream>, Status> {
        let id = request_id(&request);
        let (identity, call) = caller(&request)?;
        let draft = draft_of::<audit::GetAuditLog>(&identity, &call, request.get_ref());
        let cursor = self.serve::<audit::GetAuditLog>(request).await?.into_inner();
        let shutdown = self.shutdown.clone();
        let store = &self.door.services.store;
        let entries = Ending::new(cursor.stream(Arc::clone(store)), Arc::clone(store), draft);
        let entries = entries
            .take_until(async move { shutdown.announced().await })
            .map(move |entry| entry.map_err(|error| to_status(&error, DOMAIN, &id)));
        Ok(Response::new(Box::pin(entries)))
    }
}

/// Who calls, and what the transport knows of the call; from here on the door owns its audit entry.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<(Arc<Identity>, Call), Status> {
    let known = announced(request)?;
    if let Some(recorded) = request.extensions().get::<Recorded>() {
        recorded.take_over();
    }
    Ok(known)
}

/// The same of a call whose request is still to be read; its entry stays with [`crate::record`] until then.
pub(crate) fn announced<T>(request: &Request<T>) -> Result<(Arc<Identity>, Call), Status> {
    let request_id = request_id(request);
    let Some(identity) = request.extensions().get::<Arc<Identity>>().cloned() else {
        // Only a service that was put in front of the door without authentication could get here.
        return Err(to_status(&Error::internal("a call that nobody authenticated"), DOMAIN, &request_id));
    };
    let call = Call {
        request_id,
        source_address: peer(request).map(|peer| peer.address.to_string()).unwrap_or_default(),
        idempotency_keys: values(request.metadata(), "x-idempotency-key"),
    };
    Ok((identity, call))
}

/// All values of a header; one that is not ASCII counts as present and unreadable.
fn values(metadata: &MetadataMap, name: &str) -> Vec<String> {
    metadata.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned()).collect()
}

macro_rules! unary {
    ($service:ident { $($method:ident($request:ident) -> $response:ident => $op:ty;)* } $($rest:tt)*) => {
        #[tonic::async_trait]
        impl $service for Grpc {
            $(async fn $method(&self, request: Request<wire::$request>) -> Result<Response<wire::$response>, Status> {
                self.serve::<$op>(request).await
            })*
            $($rest)*
        }
    };
}

unary! {
    AdminService {
        list_configs(ListConfigsRequest) -> ListConfigsResponse => config::ListConfigs;
        get_config(GetConfigRequest) -> GetConfigResponse => config::GetConfig;
        create_config(CreateConfigRequest) -> CreateConfigResponse => config::CreateConfig;
        update_config(UpdateConfigRequest) -> UpdateConfigResponse => config::UpdateConfig;
        delete_config(DeleteConfigRequest) -> DeleteConfigResponse => config::DeleteConfig;
        list_sessions(ListSessionsRequest) -> ListSessionsResponse => session::ListSessions;
        get_session(GetSessionRequest) -> GetSessionResponse => session::GetSession;
        terminate_session(TerminateSessionRequest) -> TerminateSessionResponse => session::TerminateSession;
        list_namespaces(ListNamespacesRequest) -> ListNamespacesResponse => namespace::ListNamespaces;
        get_namespace(GetNamespaceRequest) -> GetNamespaceResponse => namespace::GetNamespace;
        create_namespace(CreateNamespaceRequest) -> CreateNamespaceResponse => namespace::CreateNamespace;
        update_namespace(UpdateNamespaceRequest) -> UpdateNamespaceResponse => namespace::UpdateNamespace;
        delete_namespace(DeleteNamespaceRequest) -> DeleteNamespaceResponse => namespace::DeleteNamespace;
        get_backend_status(GetBackendStatusRequest) -> GetBackendStatusResponse => backend::GetBackendStatus;
        list_backends(ListBackendsRequest) -> ListBackendsResponse => backend::ListBackends;
        set_maintenance_mode(SetMaintenanceModeRequest) -> SetMaintenanceModeResponse => maintenance::SetMaintenanceMode;
        get_maintenance_status(GetMaintenanceStatusRequest) -> GetMaintenanceStatusResponse => maintenance::GetMaintenanceStatus;
        get_metrics(GetMetricsRequest) -> GetMetricsResponse => metrics::GetMetrics;
        create_audit_checkpoint(CreateAuditCheckpointRequest) -> CreateAuditCheckpointResponse => checkpoint::CreateAuditCheckpoint;
        list_audit_checkpoints(ListAuditCheckpointsRequest) -> ListAuditCheckpointsResponse => checkpoint::ListAuditCheckpoints;
    }

    async fn drain_connections(
        &self,
        request: Request<wire::DrainConnectionsRequest>,
    ) -> Result<Response<wire::DrainConnectionsResponse>, Status> {
        let (identity, call) = caller(&request)?;
        let id = call.request_id.clone();
        let drained = self.door.run::<drain::DrainConnections, _, _>(identity, call, request.into_inner(), |door, identity, call, request| async move {
            door.drain(identity, call, request).await
        });
        drained.await.map(Response::new).map_err(|error| to_status(&error, DOMAIN, &id))
    }

    type GetAuditLogStream = Pin<Box<dyn Stream<Item = Result<wire::AuditLogEntry, Status>> + Send>>;

    async fn get_audit_log(&self, request: Request<wire::GetAuditLogRequest>) -> Result<Response<Self::GetAuditLogStream>, Status> {
        // What the contract generates asks for messages; `audit_stream` is served before it, and decodes nothing.
        let unreadable = |error| to_status(&Error::internal(error), DOMAIN, "");
        let entries = self.audit_log(request).await?.into_inner();
        Ok(Response::new(Box::pin(entries.map(move |entry| wire::AuditLogEntry::decode(entry?).map_err(unreadable)))))
    }
}

unary! {
    AccessService {
        create_api_key(CreateApiKeyRequest) -> CreateApiKeyResponse => api_key::CreateApiKey;
        list_api_keys(ListApiKeysRequest) -> ListApiKeysResponse => api_key::ListApiKeys;
        rotate_api_key(RotateApiKeyRequest) -> RotateApiKeyResponse => api_key::RotateApiKey;
        revoke_api_key(RevokeApiKeyRequest) -> RevokeApiKeyResponse => api_key::RevokeApiKey;
        create_client_key(CreateClientKeyRequest) -> CreateClientKeyResponse => client_key::CreateClientKey;
        list_client_keys(ListClientKeysRequest) -> ListClientKeysResponse => client_key::ListClientKeys;
        revoke_client_key(RevokeClientKeyRequest) -> RevokeClientKeyResponse => client_key::RevokeClientKey;
        create_role(CreateRoleRequest) -> CreateRoleResponse => role::CreateRole;
        update_role(UpdateRoleRequest) -> UpdateRoleResponse => role::UpdateRole;
        delete_role(DeleteRoleRequest) -> DeleteRoleResponse => role::DeleteRole;
        list_roles(ListRolesRequest) -> ListRolesResponse => role::ListRoles;
        create_binding(CreateBindingRequest) -> CreateBindingResponse => binding::CreateBinding;
        delete_binding(DeleteBindingRequest) -> DeleteBindingResponse => binding::DeleteBinding;
        list_bindings(ListBindingsRequest) -> ListBindingsResponse => binding::ListBindings;
        create_client_binding(CreateClientBindingRequest) -> CreateClientBindingResponse => client_binding::CreateClientBinding;
        delete_client_binding(DeleteClientBindingRequest) -> DeleteClientBindingResponse => client_binding::DeleteClientBinding;
        list_client_bindings(ListClientBindingsRequest) -> ListClientBindingsResponse => client_binding::ListClientBindings;
        issue_certificate(IssueCertificateRequest) -> IssueCertificateResponse => certificate::IssueCertificate;
        list_certificates(ListCertificatesRequest) -> ListCertificatesResponse => certificate::ListCertificates;
        revoke_certificate(RevokeCertificateRequest) -> RevokeCertificateResponse => certificate::RevokeCertificate;
        who_am_i(WhoAmIRequest) -> WhoAmIResponse => access::WhoAmI;
        can_i(CanIRequest) -> CanIResponse => access::CanI;
        who_can(WhoCanRequest) -> WhoCanResponse => access::WhoCan;
    }
}
