//! The REST transport (contract §6, §9 "REST"): reads a request off HTTP, hands it to the door, and writes JSON. Which RPC a
//! request stands for, [`route`] says, before anything of it is authenticated.

mod body;
mod calls;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use prism_core::{Error, Kind};
use prism_rpc::http_status::{http_status, to_json};
use serde_json::Value;
use tonic::body::Body;
use tower::Service;

use crate::cluster::DOMAIN;
use crate::door::Door;
use crate::op::Op as _;
use crate::ops::bootstrap::ExchangeJoinToken;
use crate::ops::join_token::{CreateJoinToken, ListJoinTokens, RevokeJoinToken};

/// Where all of it is.
const ROOT: &str = "/api";

const TOKENS: &str = "/api/v1/admin/tokens";
const EXCHANGE: &str = "/api/v1/bootstrap/exchange";
const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";

/// What a request stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `POST /api/v1/admin/tokens`.
    CreateToken,
    /// `GET /api/v1/admin/tokens`.
    ListTokens,
    /// `DELETE /api/v1/admin/tokens/{id}`, with the id as it stands in the path.
    RevokeToken(String),
    /// `POST /api/v1/bootstrap/exchange`.
    Exchange,
    /// A path that is there, but not for this method.
    OtherMethod {
        /// The methods it is for.
        allow: &'static str,
    },
    /// Nothing.
    Unknown,
}

/// Whether a path is of this transport.
pub(crate) fn is_below(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What a request stands for; `None` = it is not of this transport.
pub(crate) fn route(method: &Method, path: &str) -> Option<Route> {
    if !is_below(path) {
        return None;
    }
    let of = |wanted: Method, route: Route, allow: &'static str| {
        if *method == wanted { route } else { Route::OtherMethod { allow } }
    };
    Some(match path {
        TOKENS if *method == Method::GET => Route::ListTokens,
        TOKENS => of(Method::POST, Route::CreateToken, "GET, POST"),
        EXCHANGE => of(Method::POST, Route::Exchange, "POST"),
        _ => match path.strip_prefix(TOKENS).and_then(|rest| rest.strip_prefix('/')) {
            Some(id) if !id.contains('/') => of(Method::DELETE, Route::RevokeToken(id.to_owned()), "DELETE"),
            _ => Route::Unknown,
        },
    })
}

impl Route {
    /// The RPC it stands for, as the descriptors name it.
    pub(crate) fn rpc(&self) -> Option<&'static str> {
        Some(match self {
            Self::CreateToken => CreateJoinToken::RPC,
            Self::ListTokens => ListJoinTokens::RPC,
            Self::RevokeToken(_) => RevokeJoinToken::RPC,
            Self::Exchange => ExchangeJoinToken::RPC,
            Self::OtherMethod { .. } | Self::Unknown => return None,
        })
    }
}

/// Why a request reached no operation, for whoever writes its entry and its answer.
#[derive(Clone, Debug)]
pub(crate) struct Problem(pub(crate) Error);

impl Problem {
    /// An answer that says it; [`crate::record`] replaces it.
    fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(self);
        response
    }
}

/// Serves everything under [`ROOT`].
#[derive(Clone)]
pub(crate) struct Rest(Arc<Door>);

impl Rest {
    /// Serves through `door`.
    pub(crate) fn new(door: Arc<Door>) -> Self {
        Self(door)
    }
}

impl Service<Request<Body>> for Rest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = Arc::clone(&self.0);
        Box::pin(async move {
            let route = route(request.method(), request.uri().path()).unwrap_or(Route::Unknown);
            Ok(match route {
                Route::CreateToken => calls::create_token(&door, request).await,
                Route::ListTokens => calls::list_tokens(&door, request).await,
                Route::RevokeToken(id) => calls::revoke_token(&door, request, &id).await,
                Route::Exchange => calls::exchange(&door, request).await,
                Route::OtherMethod { allow } => Problem(other_method(allow)).response(),
                Route::Unknown => Problem(Error::not_found("the path")).response(),
            })
        })
    }
}

fn other_method(allow: &'static str) -> Error {
    let message = format!("the path is for other methods: {allow}");
    Error::new(Kind::Unimplemented, METHOD_NOT_ALLOWED, message).with("allow", allow)
}

/// An answer in JSON. None of them is for a cache: some hold secrets, and all are about now.
fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An error in JSON.
pub(crate) fn refusal(error: &Error, request_id: &str) -> Response<Body> {
    let status =
        if error.reason() == METHOD_NOT_ALLOWED { StatusCode::METHOD_NOT_ALLOWED } else { http_status(error.kind()) };
    let mut response = answer(status, &to_json(error, status, DOMAIN, request_id));
    let headers = response.headers_mut();
    if let Some(allow) = error.metadata().get("allow").and_then(|allow| HeaderValue::from_str(allow).ok()) {
        headers.insert(ALLOW, allow);
    }
    if let Some(delay) = error.retry_delay() {
        // Whole seconds, and not too early.
        headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_stands_for_one_rpc_or_none() {
        let of = |method: Method, path: &str| route(&method, path);
        assert_eq!(of(Method::POST, TOKENS), Some(Route::CreateToken));
        assert_eq!(of(Method::GET, TOKENS), Some(Route::ListTokens));
        assert_eq!(of(Method::DELETE, "/api/v1/admin/tokens/x"), Some(Route::RevokeToken("x".to_owned())));
        assert_eq!(of(Method::DELETE, "/api/v1/admin/tokens/"), Some(Route::RevokeToken(String::new())));
        assert_eq!(of(Method::POST, EXCHANGE), Some(Route::Exchange));
        for (method, path) in [
            (Method::PUT, TOKENS),
            (Method::HEAD, TOKENS),
            (Method::GET, EXCHANGE),
            (Method::GET, "/api/v1/admin/tokens/x"),
        ] {
            assert!(matches!(of(method, path), Some(Route::OtherMethod { .. })), "{path}");
        }
        for path in ["/api", "/api/", "/api/v2/admin/tokens", "/api/v1/admin/tokens/a/b", "/api/v1/admin/tokensx"] {
            assert_eq!(of(Method::GET, path), Some(Route::Unknown), "{path}");
        }
        for path in ["/", "/apix", "/prism.admin.v1.AdminService/GetConfig"] {
            assert_eq!(of(Method::GET, path), None, "{path}");
        }
    }
}
