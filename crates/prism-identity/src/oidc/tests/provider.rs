//! An issuer on this machine that does what a test tells it to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What it answers with.
#[derive(Clone)]
pub enum Answer {
    /// This, with the status 200.
    Body(String),
    /// This, with the status 200 and a cache-control header.
    Cached(String, &'static str),
    /// A status and a header.
    Status(&'static str, String),
    /// Bytes for as long as the caller takes them.
    Endless,
    /// The connection closes.
    Nothing,
    /// Nothing, and the connection stays open.
    Silence,
}

/// A running issuer; it ends with its runtime.
#[derive(Clone)]
pub struct Provider {
    pub issuer: String,
    state: Arc<State>,
}

struct State {
    discovery: Mutex<Answer>,
    keys: Mutex<Answer>,
    asked_for_keys: AtomicUsize,
    asked: AtomicUsize,
    /// While false, answers wait.
    open: watch::Sender<bool>,
}

impl Provider {
    pub async fn start(keys: &[&Signer]) -> Self {
        Self::start_over(keys, None).await
    }

    /// Over TLS when there is an acceptor; its certificate must be for `localhost`.
    pub async fn start_over(keys: &[&Signer], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let issuer =
            if tls.is_some() { format!("https://localhost:{}", address.port()) } else { format!("http://{address}") };
        let state = Arc::new(State {
            discovery: Mutex::new(Answer::Body(discovery(&issuer, &format!("{issuer}/keys")))),
            keys: Mutex::new(Answer::Nothing),
            asked_for_keys: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            open: watch::Sender::new(true),
        });
        let provider = Self { issuer, state: Arc::clone(&state) };
        provider.publishes(keys);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, tls) = (Arc::clone(&state), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => state.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                state.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        provider
    }

    /// From now on these are its keys.
    pub fn publishes(&self, keys: &[&Signer]) {
        self.answers_keys(Answer::Body(jwks(keys)));
    }

    pub fn answers_keys(&self, answer: Answer) {
        *self.state.keys.lock().unwrap() = answer;
    }

    pub fn answers_discovery(&self, answer: Answer) {
        *self.state.discovery.lock().unwrap() = answer;
    }

    /// From now on every connection closes.
    pub fn goes_down(&self) {
        self.answers_discovery(Answer::Nothing);
        self.answers_keys(Answer::Nothing);
    }

    pub fn comes_back(&self, keys: &[&Signer]) {
        self.answers_discovery(Answer::Body(discovery(&self.issuer, &format!("{}/keys", self.issuer))));
        self.publishes(keys);
    }

    /// Answers wait until it is let go on.
    pub fn holds_back(&self) {
        self.state.open.send_replace(false);
    }

    pub fn goes_on(&self) {
        self.state.open.send_replace(true);
    }

    /// How often it was asked for its keys.
    pub fn asked_for_keys(&self) -> usize {
        self.state.asked_for_keys.load(Ordering::SeqCst)
    }

    /// How often it was asked for anything.
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }
}

pub fn jwks(keys: &[&Signer]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<Value>>()}).to_string()
}

pub fn discovery(issuer: &str, jwks_uri: &str) -> String {
    json!({"issuer": issuer, "jwks_uri": jwks_uri, "token_endpoint": format!("{issuer}/token")}).to_string()
}

impl State {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            request.push(byte);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = if request.starts_with(b"GET /.well-known/openid-configuration ") {
            self.discovery.lock().unwrap().clone()
        } else if request.starts_with(b"GET /keys ") {
            self.asked_for_keys.fetch_add(1, Ordering::SeqCst);
            self.keys.lock().unwrap().clone()
        } else {
            Answer::Status("404 Not Found", String::new())
        };
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        // A caller who has hung up is no failure of the issuer.
        let _ = write(&mut stream, answer).await;
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), answer: Answer) -> std::io::Result<()> {
    let ok = |header: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n{header}\r\n{body}", body.len())
    };
    match answer {
        Answer::Body(body) => stream.write_all(ok("", &body).as_bytes()).await?,
        Answer::Cached(body, control) => {
            stream.write_all(ok(&format!("cache-control: {control}\r\n"), &body).as_bytes()).await?;
        }
        Answer::Status(status, header) => {
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n{header}\r\n");
            stream.write_all(text.as_bytes()).await?;
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 4096]).await?;
            }
        }
        Answer::Nothing => {}
        Answer::Silence => std::future::pending().await,
    }
    stream.shutdown().await
}
