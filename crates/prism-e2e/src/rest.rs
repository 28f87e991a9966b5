//! REST on the admin port, over HTTP/1.1 and HTTP/2, byte by byte where it matters.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::Holder;
use crate::dial;
use crate::server::Prism;
use crate::wait::within;

/// Where the tokens are.
pub const TOKENS: &str = "/api/v1/admin/tokens";
/// Where a token is exchanged.
pub const EXCHANGE: &str = "/api/v1/bootstrap/exchange";

/// A caller.
#[derive(Clone, Debug)]
pub struct Rest {
    address: String,
    ca: PathBuf,
    headers: Vec<(String, String)>,
    holder: Option<Holder>,
    http2: bool,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body; null when it is empty.
    pub body: Value,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Asserts that it is an error of this status, code and reason, in the form of the contract.
    #[track_caller]
    pub fn refuses(&self, status: u16, code: &str, reason: &str) -> &Self {
        let error = &self.body["error"];
        let told = (self.status, error["status"].as_u64(), error["code"].as_str(), self.reason());
        assert_eq!(told, (status, Some(u64::from(status)), Some(code), reason), "{self:?}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        assert_eq!(error["details"][0]["domain"], "prism.cluster.v1", "{self:?}");
        self
    }

    /// Reason of an error.
    pub fn reason(&self) -> &str {
        self.body["error"]["details"][0]["reason"].as_str().unwrap_or_default()
    }

    /// The fields that an error names.
    pub fn fields(&self) -> Vec<&str> {
        let violations = self.body["error"]["details"][1]["fieldViolations"].as_array();
        violations.into_iter().flatten().filter_map(|violation| violation["field"].as_str()).collect()
    }
}

impl Rest {
    /// Somebody without a credential.
    pub fn of(server: &Prism) -> Self {
        let (address, ca) = (server.endpoints().admin, server.data_dir().join("ca.pem"));
        Self { address, ca, headers: Vec::new(), holder: None, http2: false }
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With an admin key.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", &format!("Bearer {token}"))
    }

    /// With a client certificate.
    #[must_use]
    pub fn holding(mut self, holder: &Holder) -> Self {
        self.holder = Some(holder.clone());
        self
    }

    /// Over HTTP/2.
    #[must_use]
    pub fn over_http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Sends JSON.
    pub async fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.clone().with("content-type", "application/json").send(method, path, body.to_string().as_bytes()).await
    }

    /// Sends without a body.
    pub async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, b"").await
    }

    /// Sends these bytes.
    pub async fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let stream = self.connect().await;
        let sent = async {
            if self.http2 {
                self.over_2(stream, method, path, body).await
            } else {
                self.over_1(stream, method, path, body).await
            }
        };
        within("an answer", sent).await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut config = match &self.holder {
            Some(holder) => dial::tls_config_as(&self.ca, holder),
            None => dial::tls_config(&self.ca),
        };
        config.alpn_protocols = vec![if self.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let tcp = TcpStream::connect(&self.address).await.expect("the port answers");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a TLS connection")
    }

    async fn over_1(&self, mut stream: TlsStream<TcpStream>, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if !body.is_empty() {
            let _ = write!(head, "content-length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.expect("the request is sent");
        // A server that refuses early may have closed its side.
        let _ = stream.write_all(body).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        // Without the notice at the end of TLS the answer is still whole: its length is in its head.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).expect("the answer is text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Answer { status: status.expect("a status"), headers, body: parsed(body.as_bytes()) }
    }

    async fn over_2(&self, stream: TlsStream<TcpStream>, method: &str, path: &str, body: &[u8]) -> Answer {
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(format!("https://localhost{path}"));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("a request");
        let (response, mut sending) = client.send_request(request, body.is_empty()).expect("it is sent");
        if !body.is_empty() {
            sending.send_data(Bytes::copy_from_slice(body), true).expect("the body is sent");
        }
        let response = response.await.expect("an answer");
        let status = response.status().as_u16();
        let headers = response.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned())).collect();
        let (mut receiving, mut bytes) = (response.into_body(), Vec::new());
        while let Some(chunk) = receiving.data().await {
            let chunk = chunk.expect("data");
            let _ = receiving.flow_control().release_capacity(chunk.len());
            bytes.extend_from_slice(&chunk);
        }
        Answer { status, headers, body: parsed(&bytes) }
    }
}

fn parsed(body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(body)))
}
