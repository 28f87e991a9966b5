//! What happens before a request is read: a bound on calls under way, authentication by the headers alone, and entries for
//! calls that never reach the door — unparsable requests and RPCs that are not served (contract §9 "audit, what").

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use prism_core::source::{Full, PlaceBounds, Places};
use prism_core::{Error, Kind, Result};
use prism_rpc::{HeldBody, Peer, RequestId, to_status};
use tonic::Code;
use tonic::body::Body;
use tower::Service;

use crate::audit_stream;
use crate::calls::Calls;
use crate::door::{Call, Door, draft, method_name};
use crate::identity::{Identity, Presented, Refused};
use crate::rates::Rates;
use crate::trailers::{AuditTrailers, CheckpointHeader};
use crate::unrecorded::cannot_record;

/// A request that is not read as a whole in this time is refused: its place is for others.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest name of an RPC that is not ours in an entry, in characters.
const MAX_NAME_LENGTH: usize = 128;
/// Health and reflection calls that are open, of everybody: they need no credential, and their streams end when the caller
/// likes.
const OPEN_CALLS: PlaceBounds = PlaceBounds { all: 256, per_source: 32, kept_for_loopback: 32 };
/// ErrorInfo domain of what no service answers.
const DOMAIN: &str = "prism.admin.v1";

/// Whether the door has taken a request over; it writes the entry then.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<AtomicBool>);

impl Recorded {
    /// The door takes over.
    pub fn take_over(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns when the request should have been read and is not; never when the door has it.
    async fn overdue(&self) {
        tokio::time::sleep(READ_TIMEOUT).await;
        if self.is_taken_over() {
            std::future::pending::<()>().await;
        }
    }

    fn is_taken_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Stands before the admin services.
#[derive(Clone)]
pub struct RecordService<S> {
    inner: S,
    door: Arc<Door>,
    calls: Calls,
    streams: Calls,
    rates: Arc<Rates>,
    open_calls: Places,
    checkpoint: CheckpointHeader,
}

impl<S> RecordService<S> {
    /// Wraps `inner`. One credential may make `calls_per_second`; 0 = any number.
    pub fn new(inner: S, door: Arc<Door>, calls_per_second: u32) -> Self {
        Self {
            inner,
            door,
            calls: Calls::under_way(),
            streams: Calls::streams(),
            rates: Arc::new(Rates::new(calls_per_second)),
            open_calls: Places::new(OPEN_CALLS),
            checkpoint: CheckpointHeader::default(),
        }
    }
}

/// Health and reflection are open and leave no entries.
fn is_open(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

impl<S, B> Service<Request<B>> for RecordService<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if is_open(request.uri().path()) {
            // Without an address it is a call of our own.
            let from =
                request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.address.ip());
            let place = match self.open_calls.take(from) {
                Ok(place) => place,
                Err(full) => {
                    let refused = Stray::of(&request).status(&too_many_open(full));
                    return Box::pin(async move { Ok(refused) });
                }
            };
            let answer = self.inner.call(request);
            return Box::pin(async move { Ok(answer.await?.map(|body| Body::new(HeldBody::new(body, place)))) });
        }
        let (stray, presented) = (Stray::of(&request), presented(&request));
        let door = Arc::clone(&self.door);
        let (calls, rates, checkpoint) = (self.calls.clone(), Arc::clone(&self.rates), self.checkpoint.clone());
        let streams = (request.uri().path() == audit_stream::PATH).then(|| self.streams.clone());
        // The service that was asked whether it is ready goes with the call; its clone stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let identity = match door.authenticator.authenticate(&presented).await {
                Ok(identity) => Arc::new(identity),
                // The body is not worth reading.
                Err(refused) => return Ok(door.refuse_stray(stray, refused).await),
            };
            let id = &identity.credential_id;
            let places = rates
                .count(id, Instant::now())
                .and_then(|()| Ok((calls.begin(id)?, streams.map(|streams| streams.begin(id)).transpose()?)));
            let (place, stream) = match places {
                Ok(places) => places,
                Err(refused) => {
                    // Who asks too much is not answered what he asks of the log besides.
                    let trailers = AuditTrailers::unasked(&door.services.store, checkpoint);
                    return Ok(trailers.attach(door.refuse_excessive(stray, &identity, refused).await).await);
                }
            };
            let trailers = AuditTrailers::of(&request, &door.services.store, checkpoint);
            let recorded = Recorded::default();
            request.extensions_mut().insert(recorded.clone());
            request.extensions_mut().insert(Arc::clone(&identity));
            let response = tokio::select! {
                response = inner.call(request) => response?,
                () = recorded.overdue() => {
                    return Ok(trailers.attach(door.record_stray(stray, &identity, too_slow()).await).await);
                }
            };
            drop(place);
            if recorded.is_taken_over() {
                let answer = trailers.attach(response).await;
                return Ok(match stream {
                    Some(stream) => answer.map(|body| Body::new(HeldBody::new(body, stream))),
                    None => answer,
                });
            }
            let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
            let refused = door.record_stray(stray, &identity, problem(code.map(Code::from_i32))).await;
            Ok(trailers.attach(refused).await)
        })
    }
}

/// What a request presents to prove who calls.
fn presented<B>(request: &Request<B>) -> Presented {
    // One that is not ASCII counts as present and unreadable.
    let values = |name: &str| {
        let values = request.headers().get_all(name).iter();
        values.map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned()).collect()
    };
    let peer = request.extensions().get::<Peer>();
    Presented {
        authorization: values("authorization"),
        admin_token: values("x-admin-token"),
        admin_user: values("x-admin-user"),
        certificates: peer.map(|peer| Arc::clone(&peer.certificates)).unwrap_or_default(),
        source: peer.map(|peer| peer.address.ip()),
    }
}

/// Why a request that came back with this code did not reach an operation.
fn problem(code: Option<Code>) -> Error {
    match code {
        Some(Code::Unimplemented) => Error::new(
            Kind::Unimplemented,
            "UNKNOWN_RPC",
            "the admin plane serves no such RPC over this kind of request",
        ),
        Some(Code::OutOfRange | Code::ResourceExhausted) => {
            Error::new(Kind::ResourceExhausted, "MESSAGE_TOO_LARGE", "the request is larger than the admin plane reads")
        }
        _ => {
            Error::new(Kind::InvalidArgument, "MALFORMED_MESSAGE", "the request is not the message that this RPC takes")
        }
    }
}

fn too_many_open(full: Full) -> Error {
    let message = match full {
        Full::Source => {
            format!(
                "{} health and reflection calls of this address are open, the most that may be",
                OPEN_CALLS.per_source
            )
        }
        Full::All => {
            format!("{} health and reflection calls are open, the most that may be; retry", OPEN_CALLS.all)
        }
    };
    Error::new(Kind::ResourceExhausted, "TOO_MANY_OPEN_CALLS", message).retry_after(Duration::from_secs(1))
}

fn too_slow() -> Error {
    let message = format!("the request was not there as a whole within {} s", READ_TIMEOUT.as_secs());
    Error::new(Kind::DeadlineExceeded, "REQUEST_TOO_SLOW", message)
}

/// A request that no operation may come to see.
struct Stray {
    call: Call,
    /// Path without the leading slash.
    path: String,
}

impl Stray {
    fn of<B>(request: &Request<B>) -> Self {
        let call = Call {
            request_id: request.extensions().get::<RequestId>().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            source_address: request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default(),
            idempotency_keys: Vec::new(),
        };
        Self { call, path: request.uri().path().trim_start_matches('/').to_owned() }
    }

    fn status(&self, error: &Error) -> Response<Body> {
        to_status(error, DOMAIN, &self.call.request_id).into_http()
    }
}

impl Door {
    fn stray_draft(&self, stray: &Stray) -> prism_store::EntryDraft {
        let known = self.table().rule(&format!("/{}", stray.path)).is_some();
        // A path is as long as its sender likes.
        let operation = if known {
            method_name(&stray.path).to_owned()
        } else {
            format!("/{}", stray.path.chars().take(MAX_NAME_LENGTH).collect::<String>())
        };
        draft(&stray.call, &operation, String::new(), String::new())
    }

    /// Answers a request that may not come in, with its entry. It is written also when the caller goes away, who may have to
    /// wait for the answer.
    async fn refuse_stray(self: Arc<Self>, stray: Stray, mut refused: Refused) -> Response<Body> {
        let draft = self.stray_draft(&stray);
        let wait = refused.wait.take();
        let written = tokio::spawn(async move { self.refuse_anonymous(draft, refused).await });
        let error = match written.await {
            Ok(Ok(error) | Err(error)) => error,
            Err(cause) => Error::internal(cause),
        };
        if let Some(wait) = wait {
            wait.over().await;
        }
        stray.status(&error)
    }

    fn draft_of(&self, stray: &Stray, identity: &Identity) -> prism_store::EntryDraft {
        let mut draft = self.stray_draft(stray);
        draft.actor.clone_from(&identity.actor);
        identity.auth_method.clone_into(&mut draft.auth_method);
        draft.credential_id.clone_from(&identity.credential_id);
        draft
    }

    /// Answers a request that is one too many of its credential, with its entry, of which there is a bounded number.
    async fn refuse_excessive(self: Arc<Self>, stray: Stray, identity: &Identity, refused: Error) -> Response<Body> {
        let draft = self.draft_of(&stray, identity);
        let written = tokio::spawn(async move { self.refuse_excess(draft, refused).await });
        match written.await {
            Ok(Ok(error) | Err(error)) => stray.status(&error),
            Err(cause) => stray.status(&Error::internal(cause)),
        }
    }

    /// Answers a request that reaches no operation though its credential is valid, with its entry.
    async fn record_stray(self: Arc<Self>, stray: Stray, identity: &Identity, problem: Error) -> Response<Body> {
        let mut draft = self.draft_of(&stray, identity);
        draft.error = Some(problem.message().to_owned());
        draft.metadata.insert("reason".to_owned(), problem.reason().to_owned());
        let written = tokio::spawn(async move { self.services.store.write(move |tx| tx.append_entry(draft)).await });
        match written.await {
            Ok(Ok(_)) => stray.status(&problem),
            Ok(Err(failed)) => stray.status(&cannot_record(failed)),
            Err(cause) => stray.status(&Error::internal(cause)),
        }
    }
}
