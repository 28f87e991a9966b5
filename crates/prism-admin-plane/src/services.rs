//! From a request's path to its service, without a router on the way.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body as HttpBody;
use prism_proto::admin::v1::access_service_server::AccessServiceServer;
use prism_proto::admin::v1::admin_service_server::AdminServiceServer;
use prism_proto::cluster::v1::admin_service_server::AdminServiceServer as ClusterAdminServer;
use prism_proto::cluster::v1::bootstrap_service_server::BootstrapServiceServer;
use prism_proto::cluster::v1::ca_service_server::CaServiceServer;
use prism_proto::cluster::v1::node_service_server::NodeServiceServer;
use prost::bytes::Bytes;
use tonic::body::Body;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tower::Service;

use crate::audit_stream::{self, AuditStreamService};
use crate::cluster::ClusterGrpc;
use crate::grpc::Grpc;
use crate::rest::{self, Rest};

/// All services of the admin plane as one; a clone is the same services.
#[derive(Clone)]
pub struct AdminServices {
    pub(crate) admin: AdminServiceServer<Grpc>,
    pub(crate) access: AccessServiceServer<Grpc>,
    pub(crate) tokens: ClusterAdminServer<ClusterGrpc>,
    pub(crate) nodes: NodeServiceServer<ClusterGrpc>,
    pub(crate) ca: CaServiceServer<ClusterGrpc>,
    pub(crate) bootstrap: BootstrapServiceServer<ClusterGrpc>,
    pub(crate) rest: Rest,
    pub(crate) audit: AuditStreamService,
    /// Health and reflection, and the answer to what nobody serves.
    pub(crate) others: Routes,
}

impl<B> Service<Request<B>> for AdminServices
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        if path == audit_stream::PATH {
            return self.audit.call(request);
        }
        match path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service) {
            AdminServiceServer::<Grpc>::NAME => self.admin.call(request),
            AccessServiceServer::<Grpc>::NAME => self.access.call(request),
            ClusterAdminServer::<ClusterGrpc>::NAME => self.tokens.call(request),
            NodeServiceServer::<ClusterGrpc>::NAME => self.nodes.call(request),
            CaServiceServer::<ClusterGrpc>::NAME => self.ca.call(request),
            BootstrapServiceServer::<ClusterGrpc>::NAME => self.bootstrap.call(request),
            _ if rest::is_below(path) => self.rest.call(request.map(Body::new)),
            _ => Box::pin(self.others.clone().call(request)),
        }
    }
}
