//! The accept loop over real sockets: its bounds, and its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prism_core::secret::Random;
use prism_core::source::PlaceBounds;
use prism_rpc::{
    BoundListener, CertificateAuthority, Connections, Peer, RequestIdService, RequestIds, ServeOptions, Shutdown,
    ShutdownTrigger, serve, tls,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// A listener that answers `/` with the peer's address, `/fingerprint` with that of its certificate, `/slow` after 200 ms, and `/stuck` never.
struct Served {
    address: SocketAddr,
    trigger: ShutdownTrigger,
    task: JoinHandle<()>,
    /// Requests that are being answered.
    running: Arc<AtomicUsize>,
    connections: Connections,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn served(change: impl FnOnce(&mut ServeOptions)) -> Served {
    let listener = BoundListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr();
    let mut options = ServeOptions::new("test");
    change(&mut options);
    let connections = options.connections.clone();
    let (trigger, shutdown) = Shutdown::new();
    let running = Arc::new(AtomicUsize::new(0));
    let counter = running.clone();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        counter.fetch_add(1, Ordering::SeqCst);
        let running = Running(counter.clone());
        async move {
            let _running = running;
            match request.uri().path() {
                "/slow" => sleep(Duration::from_millis(200)).await,
                "/stuck" => std::future::pending().await,
                _ => {}
            }
            let peer = request.extensions().get::<Peer>().unwrap();
            let said = match request.uri().path() {
                "/fingerprint" => peer.fingerprint.as_deref().unwrap_or_default().to_owned(),
                _ => peer.address.to_string(),
            };
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said))))
        }
    });
    let service = RequestIdService::new(service, RequestIds::new(&Random::system()));
    let task = tokio::spawn(serve(listener, options, service, shutdown));
    Served { address, trigger, task, running, connections }
}

/// A client, its connection's end, and its own address.
async fn client(address: SocketAddr) -> (SendRequest<Empty<Bytes>>, JoinHandle<hyper::Result<()>>, SocketAddr) {
    let stream = TcpStream::connect(address).await.unwrap();
    let own = stream.local_addr().unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection), own)
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://test{path}")).body(Empty::new()).unwrap()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen");
}

#[tokio::test]
async fn a_request_knows_its_peer_and_gets_its_id() {
    let served = served(|_| {}).await;
    let (mut sender, _connection, own) = client(served.address).await;
    let response = sender.send_request(get("/")).await.unwrap();
    assert!(!response.headers()["x-request-id"].is_empty());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), own.to_string());
}

#[tokio::test]
async fn an_announced_end_lets_running_requests_finish() {
    let served = served(|_| {}).await;
    let (mut sender, connection, _) = client(served.address).await;
    let mut other = sender.clone();
    let slow = tokio::spawn(async move { other.send_request(get("/slow")).await });
    eventually("the request", || served.running.load(Ordering::SeqCst) == 1).await;
    let start = Instant::now();
    served.trigger.announce(start + Duration::from_secs(30));
    assert_eq!(slow.await.unwrap().unwrap().status(), StatusCode::OK);
    timeout(Duration::from_secs(5), served.task).await.expect("ends when nothing runs").unwrap();
    timeout(Duration::from_secs(5), connection).await.expect("GOAWAY ends the connection").unwrap().unwrap();
    assert!(sender.send_request(get("/")).await.is_err());
    assert!(TcpStream::connect(served.address).await.is_err());
    assert_eq!(served.connections.open(), 0);
}

#[tokio::test]
async fn the_deadline_cuts_what_does_not_finish() {
    let served = served(|_| {}).await;
    let (mut sender, _connection, _) = client(served.address).await;
    let stuck = tokio::spawn(async move { sender.send_request(get("/stuck")).await });
    eventually("the request", || served.running.load(Ordering::SeqCst) == 1).await;
    let start = Instant::now();
    served.trigger.announce(start + Duration::from_millis(300));
    timeout(Duration::from_secs(5), served.task).await.expect("ends at the deadline").unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(stuck.await.unwrap().is_err());
    eventually("the end of the request", || served.running.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_slots_come_back() {
    let served = served(|options| options.places = PlaceBounds::shared(1)).await;
    let (mut sender, connection, _) = client(served.address).await;
    sender.send_request(get("/")).await.unwrap();
    let mut refused = TcpStream::connect(served.address).await.unwrap();
    let ended = timeout(Duration::from_secs(5), refused.read(&mut [0; 64])).await.expect("closed at once");
    assert!(matches!(ended, Ok(0) | Err(_)));
    sender.send_request(get("/")).await.unwrap();
    drop(sender);
    connection.await.unwrap().unwrap();
    eventually("the slot", || served.connections.open() == 0).await;
    let (mut sender, _connection, _) = client(served.address).await;
    assert_eq!(sender.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let served = served(|options| options.handshake_timeout = Duration::from_millis(200)).await;
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut half = TcpStream::connect(served.address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0").await.unwrap();
    for stream in [&mut silent, &mut half] {
        let ended = timeout(Duration::from_secs(5), async {
            let mut buffer = [0; 256];
            while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
        });
        ended.await.expect("closed in time");
    }
    let (mut sender, _connection, _) = client(served.address).await;
    sender.send_request(get("/")).await.unwrap();
    sleep(Duration::from_millis(400)).await;
    sender.send_request(get("/")).await.expect("a connection that spoke stays");
}

#[tokio::test]
async fn header_lists_are_bounded() {
    let served = served(|_| {}).await;
    let (mut sender, _connection, _) = client(served.address).await;
    let mut request = get("/");
    request.headers_mut().insert("x-large", "x".repeat(30_000).parse().unwrap());
    if let Ok(response) = sender.send_request(request).await {
        assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert_eq!(served.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn http1_is_spoken_only_where_it_is_asked_for() {
    for http1 in [true, false] {
        let served = served(|options| options.http1 = http1).await;
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer.starts_with(b"HTTP/1.1 200 OK"), http1, "{}", String::from_utf8_lossy(&answer));
        if http1 {
            let (mut sender, _connection, _) = client(served.address).await;
            assert_eq!(sender.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
        }
    }
}

/// A TLS client with a certificate of its own making.
async fn certified(served: &Served, authority: &CertificateAuthority) -> (SendRequest<Empty<Bytes>>, String) {
    let made = rcgen::generate_simple_self_signed(["client.example".to_owned()]).unwrap();
    let fingerprint = tls::fingerprint(made.cert.der());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    (over_tls(served, &connector).await, fingerprint)
}

async fn over_tls(served: &Served, connector: &tokio_rustls::TlsConnector) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(served.address).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn the_connections_of_a_certificate_can_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    let authority = CertificateAuthority::load_or_create(folder.path()).unwrap();
    let served = served(|options| options.tls = Some(authority.server_tls(&[]).unwrap().config())).await;
    let (mut cut, fingerprint) = certified(&served, &authority).await;
    let (mut other, _) = certified(&served, &authority).await;
    for sender in [&mut cut, &mut other] {
        assert_eq!(sender.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
    }
    let seen = cut.send_request(get("/fingerprint")).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(seen, fingerprint);

    let mut sender = cut.clone();
    let stuck = tokio::spawn(async move { sender.send_request(get("/stuck")).await });
    eventually("the request", || served.running.load(Ordering::SeqCst) == 1).await;
    assert_eq!(served.connections.cut(&fingerprint), 1);
    let ended = timeout(Duration::from_secs(5), stuck).await.expect("the request ends with its connection");
    assert!(ended.unwrap().is_err());
    eventually("the end of the request", || served.running.load(Ordering::SeqCst) == 0).await;
    eventually("the slot", || served.connections.open() == 1).await;
    assert!(cut.send_request(get("/")).await.is_err());
    assert_eq!(other.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
    assert_eq!(served.connections.cut(&fingerprint), 0);
}
