//! `GetAuditLog` on the wire: entries leave as they are stored, neither decoded nor encoded again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use http::Request;
use prism_core::{Error, Kind};
use prism_proto::admin::v1::GetAuditLogRequest;
use prism_store::{EntryDraft, Store};
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

impl<B> Service<Request<B>> for AuditStreamService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
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

pin_project_lite::pin_project! {
    /// Entries to whom they may be told; when what the stream stands on is taken away, its end has an entry like any refusal.
    pub(crate) struct Ending<S> {
        #[pin]
        entries: S,
        store: Arc<Store>,
        draft: Option<EntryDraft>,
        writing: Option<Pin<Box<dyn Future<Output = Error> + Send>>>,
    }
}

impl<S> Ending<S> {
    /// `draft` says whose stream it is.
    pub(crate) fn new(entries: S, store: Arc<Store>, draft: EntryDraft) -> Self {
        Self { entries, store, draft: Some(draft), writing: None }
    }
}

impl<S: Stream<Item = Result<Bytes, Error>>> Stream for Ending<S> {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(writing) = this.writing {
                let ended = ready!(writing.as_mut().poll(context));
                *this.writing = None;
                return Poll::Ready(Some(Err(ended)));
            }
            let failed = match ready!(this.entries.as_mut().poll_next(context)) {
                Some(Err(failed)) if matches!(failed.kind(), Kind::Unauthenticated | Kind::PermissionDenied) => failed,
                other => return Poll::Ready(other),
            };
            let Some(draft) = this.draft.take() else { return Poll::Ready(Some(Err(failed))) };
            *this.writing = Some(Box::pin(recorded(Arc::clone(this.store), draft, failed)));
        }
    }
}

/// The refusal that ends a stream, with the id of its entry. Without one it ends all the same.
async fn recorded(store: Arc<Store>, mut draft: EntryDraft, ended: Error) -> Error {
    draft.error = Some(ended.message().to_owned());
    draft.metadata.insert("reason".to_owned(), ended.reason().to_owned());
    draft.metadata.insert("stream".to_owned(), "ended".to_owned());
    // Written also when the caller goes away meanwhile.
    let written = tokio::spawn(async move { store.write(move |tx| tx.append_entry(draft)).await });
    match written.await.unwrap_or_else(|cause| Err(Error::internal(cause))) {
        Ok(audit_id) => ended.with("audit_id", audit_id),
        Err(failed) => {
            tracing::warn!(reason = failed.reason(), cause = ?failed.cause(), "the end of a stream has no audit entry");
            ended
        }
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
