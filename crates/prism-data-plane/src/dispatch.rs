//! From a request's path to its service, without a router on the hot path; the bound on operations in flight; the end of
//! panics.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response};
use prism_core::{Error, Kind};
use prism_proto::config::v1::config_service_server::ConfigServiceServer;
use prism_proto::keyvalue::v1::key_value_service_server::KeyValueServiceServer;
use prism_proto::pubsub::v1::pub_sub_service_server::PubSubServiceServer;
use prism_proto::queue::v1::queue_service_server::QueueServiceServer;
use prism_proto::reader::v1::reader_service_server::ReaderServiceServer;
use prism_proto::session::v1::session_service_server::SessionServiceServer;
use prism_proto::transact::v1::transact_service_server::TransactServiceServer;
use prism_rpc::RequestId;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;

use crate::call::{self, Counted};
use crate::gate::Gate;
use crate::plane::Plane;
use crate::rpc::Rpc;
use crate::services;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Names of the data plane's services, as their health is reported.
pub const SERVICES: [&str; 7] = [
    SessionServiceServer::<services::session::Service>::NAME,
    KeyValueServiceServer::<services::key_value::Service>::NAME,
    QueueServiceServer::<services::queue::Service>::NAME,
    PubSubServiceServer::<services::pub_sub::Service>::NAME,
    ReaderServiceServer::<services::reader::Service>::NAME,
    TransactServiceServer::<services::transact::Service>::NAME,
    ConfigServiceServer::<services::config::Service>::NAME,
];

/// All services of the data plane as one; a clone is the same services.
#[derive(Clone)]
pub struct DataService(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    in_flight: AtomicUsize,
    session: SessionServiceServer<services::session::Service>,
    key_value: KeyValueServiceServer<services::key_value::Service>,
    queue: QueueServiceServer<services::queue::Service>,
    pub_sub: PubSubServiceServer<services::pub_sub::Service>,
    reader: ReaderServiceServer<services::reader::Service>,
    transact: TransactServiceServer<services::transact::Service>,
    config: ConfigServiceServer<services::config::Service>,
    /// Health and reflection.
    others: Routes,
}

impl DataService {
    /// The services of `plane`, and `others` beside them.
    pub fn new(plane: &Arc<Plane>, others: Routes) -> Self {
        let gate = &plane.gate;
        let most = gate.limits.max_message_bytes();
        macro_rules! bounded {
            ($server:ident, $service:expr) => {
                // What goes out is bounded by the services; a margin keeps the transport from refusing what they allow.
                $server::new($service).max_decoding_message_size(most).max_encoding_message_size(most.saturating_mul(2))
            };
        }
        Self(Arc::new(Inner {
            gate: Arc::clone(gate),
            in_flight: AtomicUsize::new(0),
            session: bounded!(SessionServiceServer, services::session::Service(Arc::clone(plane))),
            key_value: bounded!(KeyValueServiceServer, services::key_value::Service(Arc::clone(gate))),
            queue: bounded!(QueueServiceServer, services::queue::Service(Arc::clone(gate))),
            pub_sub: bounded!(PubSubServiceServer, services::pub_sub::Service(Arc::clone(gate))),
            reader: bounded!(ReaderServiceServer, services::reader::Service(Arc::clone(gate))),
            transact: bounded!(TransactServiceServer, services::transact::Service(Arc::clone(gate))),
            config: bounded!(ConfigServiceServer, services::config::Service(Arc::clone(plane))),
            others,
        }))
    }

    fn route<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let inner = &self.0;
        let service =
            request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(name, _)| name);
        match service {
            KeyValueServiceServer::<services::key_value::Service>::NAME => inner.key_value.clone().call(request),
            QueueServiceServer::<services::queue::Service>::NAME => inner.queue.clone().call(request),
            PubSubServiceServer::<services::pub_sub::Service>::NAME => inner.pub_sub.clone().call(request),
            SessionServiceServer::<services::session::Service>::NAME => inner.session.clone().call(request),
            ReaderServiceServer::<services::reader::Service>::NAME => inner.reader.clone().call(request),
            TransactServiceServer::<services::transact::Service>::NAME => inner.transact.clone().call(request),
            ConfigServiceServer::<services::config::Service>::NAME => inner.config.clone().call(request),
            _ => Box::pin(inner.others.clone().call(request)),
        }
    }
}

impl<B> Service<Request<B>> for DataService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Call {
        let started = Instant::now();
        let path = request.uri().path_and_query().cloned();
        let request_id = request.extensions().get::<RequestId>().cloned();
        let before = self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        // From here on the slot is given back by `Call`.
        let answer = (before < self.0.gate.limits.max_in_flight).then(|| self.route(request));
        Call { answer, service: self.clone(), path, request_id, started }
    }
}

/// A call on its way through its service.
pub struct Call {
    /// `None` = there are too many in flight.
    answer: Option<Answer>,
    service: DataService,
    path: Option<PathAndQuery>,
    request_id: Option<RequestId>,
    started: Instant,
}

impl Future for Call {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(answer) = &mut this.answer else {
            let most = this.service.0.gate.limits.max_in_flight;
            let message = format!("{most} operations are in flight, the most that this node takes");
            let error = Error::new(Kind::ResourceExhausted, "TOO_MANY_IN_FLIGHT", message);
            if let Some(rpc) = this.rpc() {
                this.service.0.gate.count_stranger(rpc, this.started.elapsed(), false);
            }
            return Poll::Ready(Ok(this.status(&error).into_http()));
        };
        // A defect in a handler is one failed call, not the end of a connection with others on it.
        match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(response))) => Poll::Ready(Ok(this.counted(response))),
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_) => {
                let mut status = this.status(&Error::internal("a handler panicked; the panic is in the log"));
                // Its permit, dropped while unwinding, has counted it.
                status.set_source(Arc::new(Counted));
                Poll::Ready(Ok(status.into_http()))
            }
        }
    }
}

impl Call {
    fn status(&self, error: &Error) -> Status {
        let domain = self.rpc().map_or("prism", Rpc::domain);
        prism_rpc::to_status(error, domain, self.request_id.as_ref().map_or("", RequestId::as_str))
    }

    fn rpc(&self) -> Option<Rpc> {
        let path = self.path.as_ref()?.path();
        Rpc::ALL.iter().copied().find(|rpc| rpc.path() == path)
    }

    /// Counts an error that came before any handler, an undecodable message for one, and gives it a reason.
    fn counted(&self, response: Response<Body>) -> Response<Body> {
        let Some(status) = response.extensions().get::<Status>() else { return response };
        let counted = status.source().is_some_and(<dyn std::error::Error>::is::<Counted>);
        let ours = self.path.as_ref().is_some_and(|path| path.path().starts_with("/prism."));
        if counted || !ours || status.code() == Code::Ok {
            return response;
        }
        let gate = &self.service.0.gate;
        if let Some(rpc) = self.rpc() {
            gate.count_stranger(rpc, self.started.elapsed(), false);
        }
        self.status(&call::unreadable(status, gate.limits.max_message_bytes())).into_http()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.service.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
