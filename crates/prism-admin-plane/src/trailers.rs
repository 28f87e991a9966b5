//! What every answer to a caller with a valid credential says of the audit log, in its trailers: the newest checkpoint and,
//! if the caller asks, the head of the log signed at this moment, and the hash that the log holds for an entry that the caller remembers, or the cut that stands for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use prism_proto::admin::v1::AuditCheckpoint;
use prism_store::{Store, Witness};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{Binary, MetadataValue};

/// Names the sequence of the entry that the caller remembers.
const WITNESS_REQUEST: &str = "prism-audit-witness";
/// Asks for the head of the log, signed: the entry of this call is covered, whatever becomes of the server before the next
/// checkpoint. It costs a signature, so only who remembers it asks.
const HEAD_REQUEST: &str = "prism-audit-head";
/// That head, a checkpoint that is not stored, encoded.
const HEAD: HeaderName = HeaderName::from_static("prism-audit-head-bin");
/// The newest checkpoint, encoded.
const CHECKPOINT: HeaderName = HeaderName::from_static("prism-audit-checkpoint-bin");
/// The hash for the entry that was asked for, 32 bytes; empty when the log holds none.
const WITNESS: HeaderName = HeaderName::from_static("prism-audit-witness-bin");
/// Where retention removed that entry and its hash, the checkpoint of the newest cut, encoded.
const CUT: HeaderName = HeaderName::from_static("prism-audit-cut-bin");

/// How long an answer waits for the hash, which is left out then.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest checkpoint as a header, encoded once for all answers that carry it.
#[derive(Clone, Default)]
pub(crate) struct CheckpointHeader(Arc<ArcSwapOption<(Arc<AuditCheckpoint>, HeaderValue)>>);

impl CheckpointHeader {
    fn newest(&self, store: &Store) -> Option<HeaderValue> {
        let newest = store.checkpoint()?;
        if let Some((of, value)) = self.0.load().as_deref()
            && Arc::ptr_eq(of, &newest)
        {
            return Some(value.clone());
        }
        let value = binary(&newest.encode_to_vec());
        self.0.store(Some(Arc::new((newest, value.clone()))));
        Some(value)
    }
}

/// What the trailers of one answer will say.
pub(crate) struct AuditTrailers {
    store: Arc<Store>,
    checkpoint: CheckpointHeader,
    witness: Option<Asked>,
    head: bool,
    streams: bool,
}

/// What the caller asked for an entry.
enum Asked {
    /// It is looked up while the call runs.
    Looking(AbortOnDropHandle<Option<Witness>>),
    /// What was found.
    Known(Witness),
}

impl AuditTrailers {
    /// Reads what `request` asks for.
    pub(crate) fn of<B>(request: &Request<B>, store: &Arc<Store>, checkpoint: CheckpointHeader) -> Self {
        let witness = request.headers().get(WITNESS_REQUEST).map(|value| {
            // What names no entry is answered like an entry that is not there.
            match value.to_str().ok().and_then(|text| text.parse().ok()) {
                Some(sequence) => {
                    Asked::Looking(AbortOnDropHandle::new(tokio::spawn(look_up(Arc::clone(store), sequence))))
                }
                None => Asked::Known(Witness::Nothing),
            }
        });
        let head = request.headers().contains_key(HEAD_REQUEST);
        let streams = request.uri().path().ends_with("/GetAuditLog");
        Self { store: Arc::clone(store), checkpoint, witness, head, streams }
    }

    /// As if nothing was asked.
    pub(crate) fn unasked(store: &Arc<Store>, checkpoint: CheckpointHeader) -> Self {
        Self { store: Arc::clone(store), checkpoint, witness: None, head: false, streams: false }
    }

    /// Adds itself to the trailers of `response`, or to its headers when these are all there is.
    pub(crate) async fn attach(mut self, mut response: Response<Body>) -> Response<Body> {
        if response.headers().contains_key("grpc-status") {
            std::future::poll_fn(|context| self.poll_witness(context)).await;
            self.write(response.headers_mut());
            return response;
        }
        if self.streams {
            // Who follows may never come to the trailers, so that a stream says it at its beginning as well.
            std::future::poll_fn(|context| self.poll_witness(context)).await;
            self.write(response.headers_mut());
        }
        response.map(|body| Body::new(TrailedBody { body, trailers: self, waiting: None }))
    }

    fn poll_witness(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(Asked::Looking(looking)) = &mut self.witness {
            let found = ready!(Pin::new(looking).poll(context));
            self.witness = found.unwrap_or_default().map(Asked::Known);
        }
        Poll::Ready(())
    }

    /// Checkpoint and head are the newest at this moment; the head, which is looked at later, is not behind.
    fn write(&self, trailers: &mut HeaderMap) {
        if let Some(checkpoint) = self.checkpoint.newest(&self.store) {
            trailers.insert(CHECKPOINT, checkpoint);
        }
        if let Some(head) = self.head.then(|| self.store.signed_head()).flatten() {
            trailers.insert(HEAD, binary(&head.encode_to_vec()));
        }
        if let Some(Asked::Known(witness)) = &self.witness {
            let hash: &[u8] = if let Witness::Held(hash) = witness { hash } else { &[] };
            trailers.insert(WITNESS, binary(hash));
            if let Witness::Removed(cut) = witness {
                trailers.insert(CUT, binary(&cut.encode_to_vec()));
            }
        }
    }
}

/// `None` when nothing is known, which is not the same as an entry that is not there.
async fn look_up(store: Arc<Store>, sequence: u64) -> Option<Witness> {
    let found = tokio::time::timeout(LOOK_UP_TIMEOUT, store.witness(sequence)).await.ok()?;
    found
        .inspect_err(|failed| {
            tracing::warn!(sequence, reason = failed.reason(), cause = ?failed.cause(), "an entry of the audit log could not be looked up");
        })
        .ok()
}

/// As gRPC writes bytes in headers: base64 without padding.
fn binary(bytes: &[u8]) -> HeaderValue {
    let encoded = MetadataValue::<Binary>::from_bytes(bytes);
    HeaderValue::from_bytes(encoded.as_encoded_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// A body whose trailers say more.
struct TrailedBody {
    body: Body,
    trailers: AuditTrailers,
    /// Trailers that wait until the witness is known.
    waiting: Option<HeaderMap>,
}

impl http_body::Body for TrailedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.waiting.is_none() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_trailers() {
                Ok(trailers) => self.waiting = Some(trailers),
                Err(data) => return Poll::Ready(Some(Ok(data))),
            }
        }
        ready!(self.trailers.poll_witness(context));
        let mut trailers = self.waiting.take().unwrap_or_default();
        self.trailers.write(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
