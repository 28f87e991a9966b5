//! The accept loop of both planes: bounded connections, bounded handshakes, and an end with a notice and a deadline.
//!
//! It is our own because tonic's has no deadline, and any open stream would hold it for ever.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prism_core::source::{Full, Place, PlaceBounds, Places};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::connections::{Certified, Connections};
use crate::idle::{Activity, HeldBody};
use crate::metrics::Counter;
use crate::request::Peer;
use crate::shutdown::Shutdown;

/// How long to wait when the machine has no more file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Largest header list of a request: an access token of 16 KiB, the longest that is looked at, and 8 KiB for all else.
const MAX_HEADER_BYTES: u32 = (16 + 8) * 1024;
/// Length of the first thing an HTTP/2 client says.
const PREFACE_BYTES: usize = 24;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A bound socket that nobody serves yet; it belongs to no runtime.
#[derive(Debug)]
pub struct BoundListener {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl BoundListener {
    /// Binds `address`; port 0 = any free port.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?.into_std()?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The address really bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

/// The bounds of a listener.
#[derive(Clone)]
pub struct ServeOptions {
    /// Name in the log, such as `data`.
    pub name: &'static str,
    /// TLS; `None` = clear text.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Whether HTTP/1.1 is spoken beside HTTP/2.
    pub http1: bool,
    /// Most open connections, in all and of one source; further ones are closed at once.
    pub places: PlaceBounds,
    /// Most concurrent requests of one connection.
    pub max_streams: u32,
    /// Largest header list of a request, in bytes.
    pub max_header_bytes: u32,
    /// A TLS handshake, and the first bytes after it, must be there in this time.
    pub handshake_timeout: Duration,
    /// A connection without an open request for this long is closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// A silent connection is asked for a sign of life this often.
    pub keepalive_interval: Duration,
    /// A connection that gives no sign of life for this long is closed.
    pub keepalive_timeout: Duration,
    /// A connection is cut with its certificate this much later, so that its streams can say why they end. Whoever is cut is
    /// refused at each call from the beginning.
    pub last_words: Duration,
    /// Open connections: their number, and how to cut those of a certificate.
    pub connections: Connections,
    /// Connections closed because there were too many.
    pub refused: Counter,
}

impl ServeOptions {
    /// HTTP/2 in clear text with the default bounds.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            tls: None,
            http1: false,
            places: PlaceBounds::shared(10_000),
            max_streams: 1000,
            max_header_bytes: MAX_HEADER_BYTES,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            last_words: Duration::ZERO,
            connections: Connections::default(),
            refused: Counter::default(),
        }
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_streams)
            .max_header_list_size(self.max_header_bytes)
            .keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.handshake_timeout.max(self.keepalive_interval))
            // hyper refuses buffers below 8 KiB.
            .max_buf_size((self.max_header_bytes as usize).max(8 * 1024));
        if self.http1 { builder } else { builder.http2_only() }
    }
}

impl fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeOptions")
            .field("name", &self.name)
            .field("tls", &self.tls.is_some())
            .field("http1", &self.http1)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

/// Serves `listener` until `shutdown` is announced, then tells every connection (GOAWAY), lets running requests finish, and
/// closes what is left at the deadline. Returns when all connections are closed.
///
/// Every request carries a [`Peer`] in its extensions. Needs a runtime, on which all connections run.
pub async fn serve<S, B>(listener: BoundListener, options: ServeOptions, service: S, shutdown: Shutdown)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let name = options.name;
    let listener = match TcpListener::from_std(listener.socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(listener = name, %error, "the listener cannot be served"),
    };
    let places = Places::new(options.places);
    let connections = TaskTracker::new();
    let server =
        Arc::new(Server { builder: options.builder(), acceptor: options.tls.clone().map(TlsAcceptor::from), options });
    let mut announced = pin!(shutdown.announced());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut announced => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(name, &error).await;
                continue;
            }
        };
        let place = match places.take(address.ip()) {
            Ok(place) => place,
            Err(full) => {
                server.options.refused.increment();
                let why = match full {
                    Full::All => "too many connections",
                    Full::Source => "too many connections of this source",
                };
                tracing::debug!(listener = name, peer = %address, "{why}");
                continue;
            }
        };
        connections.spawn(connection(server.clone(), stream, address, service.clone(), shutdown.clone(), place));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn pause_after(name: &str, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    // These concern the one connection only; anything else (no descriptors, no memory) would repeat at once.
    if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
        tracing::warn!(listener = name, %error, "no connection can be accepted");
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}

struct Server {
    options: ServeOptions,
    builder: auto::Builder<TokioExecutor>,
    acceptor: Option<TlsAcceptor>,
}

async fn connection<S, B>(
    server: Arc<Server>,
    stream: TcpStream,
    address: SocketAddr,
    service: S,
    shutdown: Shutdown,
    place: Place,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let _open = server.options.connections.enter(place);
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(peer = %address, %error, "the connection is gone");
    }
    let Some(acceptor) = &server.acceptor else {
        return drive(&server, stream, Peer::new(address, &[]), service, shutdown).await;
    };
    let handshake = tokio::time::timeout(server.options.handshake_timeout, acceptor.accept(stream));
    let stream = tokio::select! {
        result = handshake => match result {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(peer = %address, %error, "the TLS handshake failed"),
            Err(_) => return tracing::debug!(peer = %address, "the TLS handshake took too long"),
        },
        () = shutdown.announced() => return,
    };
    let peer = Peer::new(address, stream.get_ref().1.peer_certificates().unwrap_or_default());
    // Noted before the first request: who finds a certificate good could not find its connection otherwise.
    let certified = peer
        .fingerprint
        .as_ref()
        .map(|fingerprint| server.options.connections.certify(fingerprint, &peer.certificates));
    let driven = drive(&server, stream, peer, service, shutdown);
    let cut = async |certified: &Certified| {
        certified.cut().await;
        tokio::time::sleep(server.options.last_words).await;
    };
    match &certified {
        None => driven.await,
        Some(certified) => tokio::select! {
            () = driven => {}
            () = cut(certified) => tracing::debug!(peer = %address, "the connection was cut with its certificate"),
        },
    }
}

/// Serves one connection in up to three steps: it has to say something in time; it serves; it ends.
async fn drive<I, S, B>(server: &Server, io: I, peer: Peer, service: S, shutdown: Shutdown)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let address = peer.address;
    let received = Arc::new(AtomicUsize::new(0));
    let io = TokioIo::new(Counted { io, received: received.clone() });
    let activity = Activity::new(server.options.idle_timeout);
    let requests = activity.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (mut service, busy) = (service.clone(), requests.begin());
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await?;
            let response = service.call(request).await?;
            Ok::<_, Infallible>(response.map(|body| HeldBody::new(body, busy)))
        }
    });
    let mut connection = pin!(server.builder.serve_connection(io, service));
    let ended = |result: Result<(), BoxError>| {
        if let Err(error) = result {
            tracing::debug!(peer = %address, error, "the connection failed");
        }
    };
    let mut announced = pin!(shutdown.announced());
    let early = tokio::select! {
        result = connection.as_mut() => return ended(result),
        () = &mut announced => true,
        () = tokio::time::sleep(server.options.handshake_timeout) => false,
    };
    if !early {
        if received.load(Ordering::Relaxed) < PREFACE_BYTES {
            return tracing::debug!(peer = %address, "the connection said nothing");
        }
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            () = announced => {}
            () = activity.ceased() => {
                connection.as_mut().graceful_shutdown();
                // A request that came at the last moment is answered; who only waits is cut.
                let grace = tokio::time::timeout(server.options.handshake_timeout, connection.as_mut());
                return grace.await.map_or_else(|_| tracing::debug!(peer = %address, "an idle connection was cut"), ended);
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection.as_mut() => ended(result),
        () = shutdown.deadline_passed() => tracing::debug!(peer = %address, "the connection was cut at the deadline"),
    }
}

/// Counts the bytes that come in.
struct Counted<I> {
    io: I,
    received: Arc<AtomicUsize>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.received.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
