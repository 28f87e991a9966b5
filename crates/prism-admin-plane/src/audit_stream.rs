//! `GetAuditLog` on the wire: entries leave as they are stored, neither decoded nor encoded again.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use futures::Stream;
use http::Request;
use prism_proto::admin::v1::GetAuditLogRequest;
use prost::bytes::{BufMut as _, Bytes};
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc as Server, ServerStreamingService};
use tonic::{Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower::Service;

use crate::MAX_REQUEST_BYTES;
use crate::grpc::Grpc;

/// Where it is served, before the service that the contract generates.
pub(crate) const PATH: &str = "/prism.admin.v1.AdminService/GetAuditLog";

/// Entries are gathered until they fill this many bytes, four frames of HTTP/2.
const BUFFER_BYTES: usize = 64 * 1024;

/// Encoded entries.
pub(crate) type EntryStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Serves [`PATH`].
#[derive(Clone)]
pub(crate) struct AuditStreamService(pub(crate) Grpc);

impl Service<Request<Body>> for AuditStreamService {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = Method(self.0.clone());
        let server = Server::new(EntryCodec).max_decoding_message_size(MAX_REQUEST_BYTES);
        Box::pin(async move {
            let mut server = server;
            Ok(server.server_streaming(method, request).await)
        })
    }
}

struct Method(Grpc);

impl ServerStreamingService<GetAuditLogRequest> for Method {
    type Response = Bytes;
    type ResponseStream = EntryStream;
    type Future = Pin<Box<dyn Future<Output = Result<Response<EntryStream>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<GetAuditLogRequest>) -> Self::Future {
        let grpc = self.0.clone();
        Box::pin(async move { grpc.audit_log(request).await })
    }
}

/// Requests as generated, answers as they are.
struct EntryCodec;

impl Codec for EntryCodec {
    type Encode = Bytes;
    type Decode = GetAuditLogRequest;
    type Encoder = EntryEncoder;
    type Decoder = ProstDecoder<GetAuditLogRequest>;

    fn encoder(&mut self) -> EntryEncoder {
        EntryEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<GetAuditLogRequest, GetAuditLogRequest>::default().decoder()
    }
}

struct EntryEncoder;

impl Encoder for EntryEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, entry: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(entry);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}
