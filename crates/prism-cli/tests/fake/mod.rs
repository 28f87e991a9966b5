//! A fake admin plane over real TLS and HTTP/2, and the binary run against it.

#![allow(dead_code)] // each test uses a part of it

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
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

/// A reply, and metadata after it.
pub struct Answer {
    pub reply: Reply,
    /// Names and values; of a name that ends in `-bin` the value is encoded.
    pub trailers: Vec<(&'static str, Vec<u8>)>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, trailers: Vec::new() }
    }
}

/// A call as it arrived.
#[derive(Clone)]
pub struct Call {
    pub method: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The client certificate of its connection, in DER.
    pub peer: Option<Vec<u8>>,
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
    ca: Arc<Ca>,
    calls: Arc<Mutex<Vec<Call>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start<R: Into<Answer>>(handler: impl Fn(&Call) -> R + Send + Sync + 'static) -> Self {
        Self::start_with_ca(move |_, call| handler(call))
    }

    /// A server whose handler can issue certificates.
    pub fn start_with_ca<R: Into<Answer>>(handler: impl Fn(&Ca, &Call) -> R + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("prism-data");
        fs::create_dir(&data).unwrap();
        let ca = Arc::new(Ca::new());
        fs::write(data.join("ca.pem"), &ca.pem).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        fs::write(data.join("endpoints.json"), format!("{{\"admin\":\"{address}\",\"data\":\"-\",\"metrics\":\"-\"}}"))
            .unwrap();
        let token = data.join("admin.token");
        fs::write(&token, "prx_test\n").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let issuer = Arc::clone(&ca);
        let handler = Arc::new(move |call: &Call| handler(&issuer, call).into());
        runtime.spawn(serve(listener, ca.acceptor(b"h2"), handler, Arc::clone(&calls)));
        Self { folder, ca, calls, _runtime: runtime }
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder().join("prism-data")
    }

    /// `host:port` of the server.
    pub fn endpoint(&self) -> String {
        let text = fs::read_to_string(self.data_dir().join("endpoints.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["admin"].as_str().unwrap().to_owned()
    }

    /// Where the command keeps its files.
    pub fn config_dir(&self) -> PathBuf {
        self.folder().join(".config/prism")
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

/// A certification authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A client certificate for the key of a signing request.
    pub fn issue(&self, request: &[u8], uri: &str) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(std::str::from_utf8(request).unwrap()).unwrap();
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// TLS for a server on this machine, which asks its clients for certificates of this CA.
    pub fn acceptor(&self, protocol: &[u8]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn serve<H: Fn(&Call) -> Answer + Send + Sync + 'static>(
    listener: TcpListener,
    tls: TlsAcceptor,
    handler: Arc<H>,
    calls: Arc<Mutex<Vec<Call>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, handler, calls) = (tls.clone(), Arc::clone(&handler), Arc::clone(&calls));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|der| der.to_vec());
            let service = service_fn(move |request: Request<Incoming>| {
                let (handler, calls, peer) = (Arc::clone(&handler), Arc::clone(&calls), peer.clone());
                async move {
                    let call = read(request, peer).await;
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

async fn read(request: Request<Incoming>, peer: Option<Vec<u8>>) -> Call {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // Five bytes of frame: compression flag and length.
    Call {
        method: parts.uri.path().rsplit('/').next().unwrap().to_owned(),
        headers: parts.headers,
        body: body.slice(5..),
        peer,
    }
}

fn answer(answer: Answer) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let mut body = BytesMut::new();
    let mut trailers = HeaderMap::new();
    match answer.reply {
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
    for (name, value) in answer.trailers {
        let value = if name.ends_with("-bin") { BASE64_STANDARD_NO_PAD.encode(value).into_bytes() } else { value };
        trailers.insert(name, HeaderValue::from_bytes(&value).unwrap());
    }
    let trailers = std::future::ready(Some(Ok(trailers)));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(Full::new(body.freeze()).with_trailers(trailers))
        .unwrap()
}
