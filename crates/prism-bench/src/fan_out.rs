//! The bare limit of telling many: a tonic service over TLS that sends what one call brings to every open stream, with nothing
//! around it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http_body::Body as HttpBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::echo::Echo;

/// Opens a stream that is told everything.
pub const FOLLOW: &str = "/bench.FanOut/Follow";
/// Tells all streams.
pub const TELL: &str = "/bench.FanOut/Tell";
/// Worker threads; as many as serve the admin plane.
const THREADS: usize = 2;

/// The open streams.
#[derive(Clone, Default)]
struct FanOut(Arc<Mutex<Vec<UnboundedSender<Echo>>>>);

/// An open stream.
struct Followed {
    messages: UnboundedReceiver<Echo>,
    /// What the follower says, which is nothing.
    _incoming: Streaming<Echo>,
}

impl Stream for Followed {
    type Item = Result<Echo, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context).map(|message| message.map(Ok))
    }
}

impl StreamingService<Echo> for FanOut {
    type Response = Echo;
    type ResponseStream = Followed;
    type Future = BoxFuture<Response<Followed>, Status>;

    fn call(&mut self, request: Request<Streaming<Echo>>) -> Self::Future {
        let (follower, messages) = unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
        Box::pin(async move { Ok(Response::new(Followed { messages, _incoming: request.into_inner() })) })
    }
}

impl UnaryService<Echo> for FanOut {
    type Response = Echo;
    type Future = BoxFuture<Response<Echo>, Status>;

    fn call(&mut self, request: Request<Echo>) -> Self::Future {
        let message = request.into_inner();
        // Who has gone away is told nothing any more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|one| one.send(message.clone()).is_ok());
        Box::pin(async move { Ok(Response::new(message)) })
    }
}

impl<B> tower::Service<http::Request<B>> for FanOut
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<Echo, Echo>::default());
            Ok(match request.uri().path() {
                FOLLOW => grpc.streaming(service, request).await,
                _ => grpc.unary(service, request).await,
            })
        })
    }
}

/// A certificate for 127.0.0.1 and its key, in files of this folder.
pub fn server_certificate(folder: &Path) -> Result<[PathBuf; 2]> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])?.self_signed(&key)?;
    let paths = ["fan-out.pem", "fan-out.key"].map(|name| folder.join(name));
    for (path, pem) in paths.iter().zip([certificate.pem(), key.serialize_pem()]) {
        std::fs::write(path, pem)?;
    }
    Ok(paths)
}

/// Serves on `address` with a certificate from these files until the process ends.
pub fn serve(address: SocketAddr, certificate: &Path, key: &Path) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        let (listener, all) = (TcpListener::bind(address).await?, FanOut::default());
        loop {
            let (tcp, _) = listener.accept().await?;
            let (tls, all) = (tls.clone(), all.clone());
            tokio::spawn(async move {
                // How a connection ends shows in the calls on it.
                let _ = connection(tcp, &tls, all).await;
            });
        }
    })
}

async fn connection(tcp: TcpStream, tls: &TlsAcceptor, all: FanOut) -> Result<()> {
    tcp.set_nodelay(true)?;
    let io = TokioIo::new(tls.accept(tcp).await?);
    let served =
        Builder::new(TokioExecutor::new()).http2_only().serve_connection(io, TowerToHyperService::new(all)).await;
    served.map_err(|error| anyhow::anyhow!("{error}"))
}
