//! A fake admin plane over real TLS and HTTP/2, and the binary run against it.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Status;

/// What the server answers: the messages of a stream, or one message, or a status.
pub type Reply = Result<Vec<Vec<u8>>, Status>;

/// One message.
#[allow(clippy::unnecessary_wraps)] // what a handler answers
pub fn one(message: &impl Message) -> Reply {
    Ok(vec![message.encode_to_vec()])
}

/// A call as it arrived.
#[derive(Clone)]
pub struct Call {
    pub method: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn message<M: Message + Default>(&self) -> M {
        M::decode(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A server and its data directory.
pub struct Fake {
    folder: tempfile::TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("prism-data");
        fs::create_dir(&data).unwrap();
        let tls = certificates(&data);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        fs::write(data.join("endpoints.json"), format!("{{\"admin\":\"{address}\",\"data\":\"-\",\"metrics\":\"-\"}}"))
            .unwrap();
        let token = data.join("admin.token");
        fs::write(&token, "prx_test\n").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        runtime.spawn(serve(listener, tls, Arc::new(handler), Arc::clone(&calls)));
        Self { folder, calls, _runtime: runtime }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Runs `prism-admin` with these arguments where the data directory is.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prism-admin"));
        command.args(arguments).current_dir(self.folder()).env_clear().env("HOME", self.folder()).stdin(Stdio::null());
        command
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn certificates(data: &Path) -> TlsAcceptor {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(data.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &Issuer::new(ca, ca_key))
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve<H: Fn(&Call) -> Reply + Send + Sync + 'static>(
    listener: TcpListener,
    tls: TlsAcceptor,
    handler: Arc<H>,
    calls: Arc<Mutex<Vec<Call>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, handler, calls) = (tls.clone(), Arc::clone(&handler), Arc::clone(&calls));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let (handler, calls) = (Arc::clone(&handler), Arc::clone(&calls));
                async move {
                    let call = read(request).await;
                    calls.lock().unwrap().push(call.clone());
                    Ok::<_, Infallible>(answer(handler(&call)))
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // A client that goes away in the middle is part of the tests.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn read(request: Request<Incoming>) -> Call {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // Five bytes of frame: compression flag and length.
    Call {
        method: parts.uri.path().rsplit('/').next().unwrap().to_owned(),
        headers: parts.headers,
        body: body.slice(5..),
    }
}

fn answer(reply: Reply) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let mut body = BytesMut::new();
    let mut trailers = HeaderMap::new();
    match reply {
        Ok(messages) => {
            for message in messages {
                body.put_u8(0);
                body.put_u32(u32::try_from(message.len()).unwrap());
                body.put_slice(&message);
            }
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        Err(status) => status.add_header(&mut trailers).unwrap(),
    }
    let trailers = std::future::ready(Some(Ok(trailers)));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Full::new(body.freeze()).with_trailers(trailers))
        .unwrap()
}
