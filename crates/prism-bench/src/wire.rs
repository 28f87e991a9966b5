//! gRPC as the load generator speaks it: HTTP/2 frames, and messages that are bytes. What is measured is the server.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, Request};
use prost::Message;
use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::process::cpu_microseconds;

/// Bytes that a stream may send ahead; what hyper's clients allow.
const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes that a connection may send ahead; what hyper's clients allow.
const CONNECTION_WINDOW: u32 = 5 << 20;
/// Bytes before a message: whether it is compressed, and its length.
pub const PREFIX_BYTES: usize = 5;

/// A server on 127.0.0.1.
#[derive(Clone)]
pub struct Peer {
    /// Its port.
    pub port: u16,
    /// Whom to trust; `None` = clear text.
    pub tls: Option<TlsConnector>,
    /// The value of the header `authorization`, if one is sent.
    pub authorization: Option<String>,
    /// The processes behind it, whose processor time counts.
    pub pids: Vec<u32>,
}

impl Peer {
    /// A new connection, which lives until the last handle is dropped.
    pub async fn connect(&self) -> Result<SendRequest<Bytes>> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await?;
        tcp.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => speak(secured(tls, tcp).await?).await,
            None => speak(tcp).await,
        }
    }

    /// User and system time of its processes so far, in microseconds.
    pub fn cpu_microseconds(&self) -> Result<u64> {
        self.pids.iter().map(|pid| cpu_microseconds(*pid)).sum()
    }

    /// The head of a call of `path`.
    pub fn head(&self, path: &str) -> Result<Request<()>> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut head = Request::post(format!("{scheme}://127.0.0.1:{}{path}", self.port))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(authorization) = &self.authorization {
            head = head.header("authorization", authorization);
        }
        Ok(head.body(())?)
    }

    /// One call on a connection of its own, outside of what is measured.
    pub async fn call<M: Message + Default>(&self, path: &str, request: &impl Message) -> Result<M> {
        let message = framed(&request.encode_to_vec());
        let (answer, _) = unary(self.connect().await?, self.head(path)?, message.into()).await?;
        ensure!(answer.len() >= PREFIX_BYTES, "the answer of {path} has no message");
        Ok(M::decode(answer.slice(PREFIX_BYTES..))?)
    }

    /// Asks for a stream of messages and counts them to its end.
    pub async fn count(&self, path: &str, request: &impl Message) -> Result<u64> {
        let message = framed(&request.encode_to_vec());
        let (mut stream, _connection) = open(self.connect().await?, self.head(path)?, message.into()).await?;
        let mut messages = Messages::default();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            messages.take(&chunk);
        }
        require_ok(&stream.trailers().await?.context("the stream ended without a status")?)?;
        Ok(messages.ended)
    }
}

/// TLS over `tcp`, with HTTP/2 agreed on.
pub async fn secured(tls: &TlsConnector, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
    tls.connect(name, tcp).await
}

/// Trust in the certificates of the file `ca`, and nothing else.
pub fn trusting(ca: &Path) -> Result<TlsConnector> {
    Ok(connector(client(&std::fs::read(ca)?)?.with_no_client_auth()))
}

/// As [`trusting`], for certificates in PEM, and with a certificate of one's own and its key.
pub fn identified(ca_pem: &[u8], chain_pem: &[u8], key_pem: &[u8]) -> Result<TlsConnector> {
    let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>()?;
    Ok(connector(client(ca_pem)?.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key_pem)?)?))
}

fn client(ca_pem: &[u8]) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate?)?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

fn connector(mut config: ClientConfig) -> TlsConnector {
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn speak(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Bytes>> {
    let (send, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(io)
        .await?;
    // How a connection ends shows in the calls on it.
    tokio::spawn(connection);
    Ok(send)
}

async fn open(
    connection: SendRequest<Bytes>,
    head: Request<()>,
    message: Bytes,
) -> Result<(RecvStream, SendRequest<Bytes>)> {
    let mut connection = connection.ready().await?;
    let (response, mut body) = connection.send_request(head, false)?;
    body.send_data(message, true)?;
    let response = response.await?;
    ensure!(response.status() == http::StatusCode::OK, "HTTP status {}", response.status());
    // A refusal may come without a body, with its status in the head.
    if response.headers().contains_key("grpc-status") {
        require_ok(response.headers())?;
    }
    Ok((response.into_body(), connection))
}

/// One call on a connection: the framed answer, and the connection for the next call. An error unless the status is OK.
pub async fn unary(
    connection: SendRequest<Bytes>,
    head: Request<()>,
    message: Bytes,
) -> Result<(Bytes, SendRequest<Bytes>)> {
    let (mut stream, connection) = open(connection, head, message).await?;
    let mut answer = Bytes::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        answer = if answer.is_empty() { chunk } else { joined(&answer, &chunk) };
    }
    require_ok(&stream.trailers().await?.context("the call ended without a status")?)?;
    Ok((answer, connection))
}

fn joined(first: &Bytes, second: &Bytes) -> Bytes {
    let mut both = BytesMut::with_capacity(first.len() + second.len());
    both.extend_from_slice(first);
    both.extend_from_slice(second);
    both.freeze()
}

/// An error unless the status of a call is OK.
pub fn require_ok(headers: &HeaderMap) -> Result<()> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).unwrap_or("none");
    let status = text("grpc-status");
    ensure!(status == "0", "a call failed with gRPC status {status}: {}", text("grpc-message"));
    Ok(())
}

/// `message` with its length before it, as gRPC frames it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(message);
    body
}

/// Counts messages in the chunks of a stream, however they are cut.
#[derive(Default)]
struct Messages {
    prefix: Vec<u8>,
    left: usize,
    ended: u64,
}

impl Messages {
    fn take(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            if self.left == 0 {
                self.prefix.push(chunk.get_u8());
                let Ok([_, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(self.prefix.as_slice()) else { continue };
                self.prefix.clear();
                self.left = u32::from_be_bytes(length) as usize;
                self.ended += u64::from(self.left == 0);
            } else {
                let here = self.left.min(chunk.len());
                chunk.advance(here);
                self.left -= here;
                self.ended += u64::from(self.left == 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream: Vec<u8> = [&b"one"[..], b"", b"a longer one", b""].into_iter().flat_map(framed).collect();
        for size in 1..=stream.len() {
            let mut messages = Messages::default();
            stream.chunks(size).for_each(|chunk| messages.take(chunk));
            assert_eq!((messages.ended, messages.left), (4, 0), "chunks of {size}");
        }
        let mut cut = Messages::default();
        cut.take(&stream[..stream.len() - 1]);
        assert_eq!(cut.ended, 3);
    }

    #[test]
    fn only_status_0_is_good() {
        let mut headers = HeaderMap::new();
        assert!(require_ok(&headers).is_err());
        headers.insert("grpc-status", "7".parse().unwrap());
        assert!(require_ok(&headers).is_err());
        headers.insert("grpc-status", "0".parse().unwrap());
        assert!(require_ok(&headers).is_ok());
    }
}
