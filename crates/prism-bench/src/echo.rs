//! The bare limit: a unary echo on tonic, with nothing around it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What goes in and comes out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Echo {
    /// The value.
    #[prost(bytes = "bytes", tag = "1")]
    pub value: Bytes,
}

#[derive(Clone)]
struct EchoServer;

impl NamedService for EchoServer {
    const NAME: &'static str = "bench.Echo";
}

struct Method;

impl UnaryService<Echo> for Method {
    type Response = Echo;
    type Future = BoxFuture<Response<Echo>, Status>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl tower::Service<http::Request<Body>> for EchoServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<Echo, Echo>::default()).unary(Method, request).await) })
    }
}

/// Serves on `address` with one worker thread until the process ends.
pub fn serve(address: SocketAddr) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        // Served from a spawned task, as tonic's own examples end up: on the worker thread, not beside it.
        tokio::spawn(tonic::transport::Server::builder().tcp_nodelay(true).add_service(EchoServer).serve(address))
            .await??;
        Ok(())
    })
}
