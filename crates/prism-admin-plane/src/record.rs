//! What happens before a request is read: a bound on calls under way, authentication by the headers alone, and entries for
//! calls that never reach the door — unparsable requests and RPCs that are not served (contract §9 "audit, what").

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use http_body::Body as HttpBody;
use http_body_util::Full as Whole;
use prism_core::source::{Full, PlaceBounds, Places};
use prism_core::{Error, Kind, Result};
use prism_rpc::{HeldBody, Peer, RequestId, to_status};
use prost::bytes::Bytes;
use tonic::Code;
use tonic::body::Body;
use tower::Service;

use crate::audit_stream;
use crate::calls::Calls;
use crate::cluster::{self, canonical_path};
use crate::door::{Call, Door, draft, method_name};
use crate::identity::{Identity, Presented, Refused};
use crate::op::Op as _;
use crate::ops::bootstrap::{ExchangeJoinToken, RenewCertificate, resource_of_renewal};
use crate::ops::join_token::{CreateJoinToken, ListJoinTokens};
use crate::ops::link::{OpenLink, certificate_revoked};
use crate::rates::Rates;
use crate::rest::{self, Problem, Route};
use crate::strangers::{Strangers, Unread};
use crate::trailers::{AuditTrailers, CheckpointHeader};
use crate::unrecorded::cannot_record;

/// A request that is not read as a whole in this time is refused: its place is for others.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);
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
    node_rates: Arc<Rates>,
    open_calls: Places,
    checkpoint: CheckpointHeader,
    strangers: Strangers,
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
            node_rates: Arc::new(Rates::of_nodes()),
            open_calls: Places::new(OPEN_CALLS),
            checkpoint: CheckpointHeader::default(),
            strangers: Strangers::new(),
        }
    }
}

/// The ErrorInfo domain of a path without its leading slash.
fn domain_of(path: &str) -> &'static str {
    if path.strip_prefix(cluster::DOMAIN).is_some_and(|rest| rest.starts_with('.')) { cluster::DOMAIN } else { DOMAIN }
}

/// Where a request comes from; without an address it is one of our own.
fn address_of<B>(request: &Request<B>) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.address.ip())
}

/// Health and reflection are open and leave no entries.
fn is_open(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

impl<S, B> Service<Request<B>> for RecordService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if is_open(request.uri().path()) {
            let place = match self.open_calls.take(address_of(&request)) {
                Ok(place) => place,
                Err(full) => {
                    let refused = Stray::of(&request, None).status(&too_many_open(full));
                    return Box::pin(async move { Ok(refused) });
                }
            };
            let answer = self.inner.call(request.map(Body::new));
            return Box::pin(async move { Ok(answer.await?.map(|body| Body::new(HeldBody::new(body, place)))) });
        }
        take_alias(request.uri_mut());
        let route = rest::route(request.method(), request.uri().path());
        let permission = self.door.permission_at(route.as_ref(), request.uri().path());
        let (stray, presented) = (Stray::of(&request, route.as_ref()), presented(&request));
        let (door, strangers, from) = (Arc::clone(&self.door), self.strangers.clone(), address_of(&request));
        let (calls, rates, checkpoint) = (self.calls.clone(), Arc::clone(&self.rates), self.checkpoint.clone());
        let node_rates = Arc::clone(&self.node_rates);
        let is_link = request.uri().path().strip_prefix('/') == Some(OpenLink::RPC);
        let streams = (request.uri().path() == audit_stream::PATH).then(|| self.streams.clone());
        // The service that was asked whether it is ready goes with the call; its clone stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let identity = match door.authenticator.authenticate_for(&permission, &presented).await {
                Ok(identity) => Arc::new(identity),
                // The body is not worth reading.
                Err(refused) => {
                    let revoked = is_link.then(|| door.authenticator.revoked_node(&presented)).flatten();
                    let refused = revoked.map_or(refused, |node| certificate_revoked(&node).into());
                    return Ok(door.refuse_stray(stray, refused).await);
                }
            };
            if identity.is_stranger() {
                // It is told nothing of the log, and its entries are bounded in number.
                let (parts, body) = request.into_parts();
                let (whole, _place) = match strangers.read(body, from).await {
                    Ok(whole) => match strangers.begin(from) {
                        Ok(place) => (whole, place),
                        Err(full) => return Ok(door.refuse_stray(stray, full.into()).await),
                    },
                    Err(unread) => {
                        let refused = match unread {
                            Unread::Full(full) => full.into(),
                            Unread::TooLarge => problem(Some(Code::ResourceExhausted)).into(),
                            Unread::Broken => problem(None).into(),
                            // He has had a place all the time: like a wrong credential, that costs him his next ones.
                            Unread::TooSlow(slow) => door.authenticator.failed(slow, Some(from), None),
                        };
                        return Ok(door.refuse_stray(stray, refused).await);
                    }
                };
                let mut request = Request::from_parts(parts, Body::new(Whole::new(whole)));
                let recorded = Recorded::default();
                request.extensions_mut().insert(recorded.clone());
                request.extensions_mut().insert(Arc::clone(&identity));
                let response = inner.call(request).await?;
                if recorded.is_taken_over() {
                    return Ok(response);
                }
                return Ok(door.refuse_stray(stray, problem_of(&response).into()).await);
            }
            let mut request = request.map(Body::new);
            let id = &identity.credential_id;
            let now = Instant::now();
            let places = rates
                .count(id, now)
                .and_then(|()| identity.node().map_or(Ok(()), |(node_id, _)| node_rates.count(node_id, now)))
                .and_then(|()| Ok((calls.begin(id)?, streams.map(|streams| streams.begin(id)).transpose()?)));
            let (place, stream) = match places {
                Ok(places) => places,
                Err(refused) => {
                    // Who asks too much is not answered what he asks of the log besides.
                    let trailers = (!stray.rest).then(|| AuditTrailers::unasked(&door.services.store, checkpoint));
                    return Ok(attach(trailers, door.refuse_excessive(stray, &identity, refused).await).await);
                }
            };
            // Over HTTP/1.1 nobody would see them.
            let trailers = (!stray.rest).then(|| AuditTrailers::of(&request, &door.services.store, checkpoint));
            let recorded = Recorded::default();
            request.extensions_mut().insert(recorded.clone());
            request.extensions_mut().insert(Arc::clone(&identity));
            let response = tokio::select! {
                response = inner.call(request) => response?,
                () = recorded.overdue() => {
                    return Ok(attach(trailers, door.record_stray(stray, &identity, too_slow()).await).await);
                }
            };
            drop(place);
            if recorded.is_taken_over() {
                let answer = attach(trailers, response).await;
                return Ok(match stream {
                    Some(stream) => answer.map(|body| Body::new(HeldBody::new(body, stream))),
                    None => answer,
                });
            }
            let problem = problem_of(&response);
            Ok(attach(trailers, door.record_stray(stray, &identity, problem).await).await)
        })
    }
}

async fn attach(trailers: Option<AuditTrailers>, response: Response<Body>) -> Response<Body> {
    match trailers {
        Some(trailers) => trailers.attach(response).await,
        None => response,
    }
}

/// An RPC that is called by its older path goes on under the one that it is served at: authenticated, recorded and answered as
/// that.
fn take_alias(uri: &mut Uri) {
    let Some(path) = canonical_path(uri.path()).and_then(|path| path.parse().ok()) else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path);
    // The rest is as it came, so this cannot fail; what did would be answered as an unknown RPC.
    *uri = Uri::from_parts(parts).unwrap_or_default();
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

/// Why a request that came back like this did not reach an operation.
fn problem_of(response: &Response<Body>) -> Error {
    if let Some(Problem(error)) = response.extensions().get() {
        return error.clone();
    }
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
    problem(code.map(Code::from_i32))
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

pub(crate) fn too_slow() -> Error {
    let message = format!("the request was not there as a whole within {} s", READ_TIMEOUT.as_secs());
    Error::new(Kind::DeadlineExceeded, "REQUEST_TOO_SLOW", message)
}

/// A request that no operation may come to see.
struct Stray {
    call: Call,
    /// Path without the leading slash; of a REST request, the RPC that it stands for, if there is one.
    path: String,
    /// Whether it is answered in JSON.
    rest: bool,
}

impl Stray {
    fn of<B>(request: &Request<B>, route: Option<&Route>) -> Self {
        let call = Call {
            request_id: request.extensions().get::<RequestId>().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            source_address: request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default(),
            idempotency_keys: Vec::new(),
        };
        let path = route.and_then(Route::rpc).unwrap_or_else(|| request.uri().path().trim_start_matches('/'));
        Self { call, path: path.to_owned(), rest: route.is_some() }
    }

    fn status(&self, error: &Error) -> Response<Body> {
        if self.rest {
            return rest::refusal(error, &self.call.request_id);
        }
        to_status(error, domain_of(&self.path), &self.call.request_id).into_http()
    }
}

/// What an RPC of join tokens is about, as far as that can be told without the request.
fn resource_unread(rpc: &str) -> &'static str {
    match rpc {
        ExchangeJoinToken::RPC => "token",
        CreateJoinToken::RPC | ListJoinTokens::RPC => "tokens",
        _ => "",
    }
}

impl Door {
    /// What a caller of `path` needs. What is served nowhere is for no stranger to know.
    fn permission_at(&self, route: Option<&Route>, path: &str) -> String {
        let rule = match route {
            None => self.table().rule(path),
            Some(route) => route.rpc().and_then(|rpc| self.table().rule(&format!("/{rpc}"))),
        };
        rule.map_or("authenticated", |rule| &rule.permission).to_owned()
    }

    fn stray_draft(&self, stray: &Stray) -> prism_store::EntryDraft {
        let known = self.table().rule(&format!("/{}", stray.path)).is_some();
        // A path is as long as its sender likes.
        let operation = if known {
            method_name(&stray.path).to_owned()
        } else {
            format!("/{}", stray.path.chars().take(MAX_NAME_LENGTH).collect::<String>())
        };
        draft(&stray.call, &operation, resource_unread(&stray.path).to_owned(), String::new())
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
        if stray.path == RenewCertificate::RPC {
            draft.resource = resource_of_renewal(identity);
        }
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
