//! Entries for calls that never reach the door: unparsable requests and RPCs that are not served (contract §9 "audit, what").

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use prism_core::{Error, Kind};
use prism_rpc::{Peer, RequestId};
use tonic::Code;
use tower::Service;

use crate::door::{Call, Door, draft, method_name};
use crate::identity::{Presented, authenticate};

/// Whether the door has taken a request over; it writes the entry then.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<AtomicBool>);

impl Recorded {
    /// The door takes over.
    pub fn take_over(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_taken_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Wraps the admin services: a request that came back without passing the door leaves an entry here.
#[derive(Clone)]
pub struct RecordService<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S> RecordService<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, door: Arc<Door>) -> Self {
        Self { inner, door }
    }
}

/// Health and reflection are open and leave no entries.
fn is_open(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

impl<S, B, R> Service<Request<B>> for RecordService<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if is_open(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let recorded = Recorded::default();
        request.extensions_mut().insert(recorded.clone());
        let call = call_of(&request);
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (answer, door) = (self.inner.call(request), Arc::clone(&self.door));
        Box::pin(async move {
            let response = answer.await?;
            if !recorded.is_taken_over() {
                door.record_stray(&call, &path, response.headers()).await;
            }
            Ok(response)
        })
    }
}

fn call_of<B>(request: &Request<B>) -> Call {
    let values = |name: &str| {
        request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}").to_owned()).collect()
    };
    Call {
        presented: Presented {
            authorization: values("authorization"),
            admin_token: values("x-admin-token"),
            admin_user: values("x-admin-user"),
        },
        request_id: request.extensions().get::<RequestId>().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        source_address: request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default(),
        idempotency_key: None,
    }
}

impl Door {
    /// Writes the entry of a request that no operation answered; its refusal is already on the way.
    async fn record_stray(&self, call: &Call, path: &str, headers: &http::HeaderMap) {
        let code = headers.get("grpc-status").and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
        let code = Code::from_i32(code.unwrap_or(Code::Unknown as i32));
        // A path is as long as its sender likes; a name that is not one of ours is cut.
        let known = self.table().rule(&format!("/{path}")).is_some();
        let operation: String = if known { method_name(path).to_owned() } else { path.chars().take(128).collect() };
        let mut draft = draft(call, &operation, String::new(), String::new());
        let problem = Error::new(Kind::InvalidArgument, "UNPARSABLE_REQUEST", format!("answered {code:?} before it reached an operation"));
        draft.metadata.insert("known_rpc".to_owned(), known.to_string());
        let written = match authenticate(&call.presented, &self.services.store, &self.services.roles) {
            Ok(identity) => {
                draft.actor = identity.actor;
                draft.auth_method = identity.auth_method.to_owned();
                draft.credential_id = identity.credential_id;
                draft.error = Some(problem.message().to_owned());
                draft.metadata.insert("reason".to_owned(), problem.reason().to_owned());
                self.services.store.write(move |tx| tx.append_entry(draft).map(|_| ())).await
            }
            Err(refused) => self.refuse_anonymous(draft, refused).await.map(|_| ()),
        };
        if let Err(failed) = written {
            tracing::error!(request.id = call.request_id, reason = failed.reason(), cause = ?failed.cause(), "an audit entry could not be written");
        }
    }
}
