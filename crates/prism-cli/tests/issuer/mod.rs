//! A fake OIDC issuer: the endpoints a login needs, over HTTP/1.1, with or without TLS.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use crate::fake::Ca;

/// A request to an endpoint: its form, and its `authorization`.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub form: BTreeMap<String, String>,
    pub authorization: Option<String>,
}

impl Asked {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.form.get(name).map(String::as_str)
    }
}

/// What an endpoint answers: status and JSON.
pub type Told = (u16, Value);
type Handler = Arc<dyn Fn(&Asked) -> Told + Send + Sync>;

pub struct Issuer {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Issuer {
    /// An issuer on this machine without TLS.
    pub fn start(handler: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> Self {
        Self::start_with(None, handler)
    }

    /// An issuer with a certificate of that CA, if one is given.
    pub fn start_with(ca: Option<&Ca>, handler: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if ca.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, handler, tls) =
            (Arc::clone(&asked), Arc::new(handler) as Handler, ca.map(|ca| ca.acceptor(b"http/1.1")));
        let own = url.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, handler, tls, own) = (Arc::clone(&log), Arc::clone(&handler), tls.clone(), own.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, own, handler, log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, own, handler, log).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, asked, _runtime: runtime }
    }

    /// The requests but those for the configuration.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    own: String,
    handler: Handler,
    log: Arc<Mutex<Vec<Asked>>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (own, handler, log) = (own.clone(), Arc::clone(&handler), Arc::clone(&log));
        async move {
            let asked = read(request).await;
            let (status, json) = if asked.path.starts_with("/.well-known/") {
                (200, document(&own))
            } else {
                log.lock().unwrap().push(asked.clone());
                handler(&asked)
            };
            let response = Response::builder().status(status).header("content-type", "application/json");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(json.to_string()))).unwrap())
        }
    });
    // A client that goes away is none of its business.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn document(own: &str) -> Value {
    json!({
        "issuer": own,
        "token_endpoint": format!("{own}/token"),
        "device_authorization_endpoint": format!("{own}/device"),
        "revocation_endpoint": format!("{own}/revoke"),
    })
}

async fn read(request: Request<Incoming>) -> Asked {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let url = reqwest::Url::parse(&format!("http://a/?{}", std::str::from_utf8(&body).unwrap())).unwrap();
    Asked {
        path: parts.uri.path().to_owned(),
        form: url.query_pairs().into_owned().collect(),
        authorization: parts.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned()),
    }
}
