//! The gRPC transport of `prism.cluster.v1`: as [`crate::grpc`], under its own domain.

use std::sync::Arc;

use prism_core::Result;
use prism_proto::cluster::v1 as wire;
use prism_proto::cluster::v1::admin_service_server::AdminService;
use prism_proto::cluster::v1::bootstrap_service_server::BootstrapService;
use prism_proto::cluster::v1::ca_service_server::CaService;
use prism_proto::cluster::v1::node_service_server::NodeService;
use prism_rpc::to_status;
use tonic::{Request, Response, Status};

use crate::door::Door;
use crate::grpc::caller;
use crate::op::Op;
use crate::ops::{authority, bootstrap, join_token, lineage, node};

/// ErrorInfo domain of these services, under whichever path they are called.
pub(crate) const DOMAIN: &str = "prism.cluster.v1";
/// The older package, whose paths mean the same.
pub(crate) const ALIAS_PACKAGE: &str = "me.prexorjustin.prexorcloud.protocol";
/// Its services.
pub(crate) const ALIASED_SERVICES: [&str; 2] = ["AdminService", "BootstrapService"];

/// The path under which an RPC is served that was called by its older one.
pub(crate) fn canonical_path(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/')?.strip_prefix(ALIAS_PACKAGE)?.strip_prefix('.')?;
    let (service, _) = rest.split_once('/')?;
    ALIASED_SERVICES.contains(&service).then(|| format!("/{DOMAIN}.{rest}"))
}

/// The cluster's services on the one door.
#[derive(Clone)]
pub struct ClusterGrpc {
    door: Arc<Door>,
}

impl ClusterGrpc {
    /// Serves through `door`.
    pub fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    async fn serve<O: Op>(&self, request: Request<O::Request>) -> Result<Response<O::Response>, Status> {
        let (identity, call) = caller(&request)?;
        let id = call.request_id.clone();
        let result = self.door.call::<O>(identity, call, request.into_inner()).await;
        result.map(Response::new).map_err(|error| to_status(&error, DOMAIN, &id))
    }
}

macro_rules! unary {
    ($service:ident { $($method:ident($request:ident) -> $response:ident => $op:ty;)* } $($rest:tt)*) => {
        #[tonic::async_trait]
        impl $service for ClusterGrpc {
            $(async fn $method(&self, request: Request<wire::$request>) -> Result<Response<wire::$response>, Status> {
                self.serve::<$op>(request).await
            })*
            $($rest)*
        }
    };
}

unary! {
    AdminService {
        create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse => join_token::CreateJoinToken;
        revoke_join_token(RevokeJoinTokenRequest) -> RevokeJoinTokenResponse => join_token::RevokeJoinToken;
        list_join_tokens(ListJoinTokensRequest) -> ListJoinTokensResponse => join_token::ListJoinTokens;
    }
}

unary! {
    NodeService {
        list_nodes(ListNodesRequest) -> ListNodesResponse => node::ListNodes;
        get_node(GetNodeRequest) -> GetNodeResponse => node::GetNode;
        revoke_node(RevokeNodeRequest) -> RevokeNodeResponse => node::RevokeNode;
        get_lineage(GetLineageRequest) -> GetLineageResponse => lineage::GetLineage;
    }
}

unary! {
    CaService {
        get_ca_status(GetCaStatusRequest) -> GetCaStatusResponse => authority::GetCaStatus;
        rotate_ca(RotateCaRequest) -> RotateCaResponse => authority::RotateCa;
        retire_ca(RetireCaRequest) -> RetireCaResponse => authority::RetireCa;
    }
}

unary! {
    BootstrapService {
        renew_certificate(RenewCertificateRequest) -> RenewCertificateResponse => bootstrap::RenewCertificate;
    }

    async fn exchange_join_token(
        &self,
        request: Request<wire::ExchangeJoinTokenRequest>,
    ) -> Result<Response<wire::ExchangeJoinTokenResponse>, Status> {
        let (identity, call) = caller(&request)?;
        let id = call.request_id.clone();
        let exchanged = self.door.exchange(identity, call, request.into_inner()).await;
        exchanged.map(Response::new).map_err(|error| to_status(&error, DOMAIN, &id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_paths_of_two_services_are_taken_over() {
        let of = |rest: &str| canonical_path(&format!("/{ALIAS_PACKAGE}.{rest}"));
        assert_eq!(of("AdminService/X").as_deref(), Some("/prism.cluster.v1.AdminService/X"));
        assert_eq!(
            of("BootstrapService/ExchangeJoinToken").as_deref(),
            Some("/prism.cluster.v1.BootstrapService/ExchangeJoinToken")
        );
        for other in ["NodeService/ListNodes", "AdminService", "", "XAdminService/X", "../AdminService/X"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(canonical_path("/prism.cluster.v1.AdminService/X"), None);
    }
}
