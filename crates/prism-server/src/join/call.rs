//! The call that exchanges the token.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_proto::cluster::v1::{ExchangeJoinTokenRequest, ExchangeJoinTokenResponse};
use prism_proto::text::safe;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::service_fn;

use super::trust::ServerTrust;

/// How long a controller may take to be reached.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to answer; a server that has seen many wrong tokens takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Largest answer, in bytes: two certificates.
const LARGEST_ANSWER: usize = 256 * 1024;

/// Where a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    host: String,
    port: u16,
}

/// Why there is no certificate.
pub enum Unanswered {
    /// A controller has said no, and another one would say the same.
    Refused(String),
    /// The key was revoked; another one may do.
    KeyRevoked(String),
    /// This one could not be reached, or was not the right one.
    Failed(String),
}

impl Controller {
    /// Parses `host:port`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rule = || format!("--controller {text:?}: must be HOST:PORT, such as gateway.example:8981 or [::1]:8981");
        let (host, port) = text.rsplit_once(':').ok_or_else(rule)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(rule)?;
        if (bare.contains(':') && bare == host) || ServerName::try_from(bare).is_err() {
            return Err(rule());
        }
        Ok(Self { host: bare.to_owned(), port })
    }

    /// Its host: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Exchanges a token. The request leaves this machine only after the server has proven who it is.
    pub async fn exchange(
        &self,
        trust: &ServerTrust,
        request: ExchangeJoinTokenRequest,
    ) -> Result<ExchangeJoinTokenResponse, Unanswered> {
        let failed = |why: String| Unanswered::Failed(format!("{}:{}: {}", self.host, self.port, safe(&why)));
        let tls = TlsConnector::from(Arc::new(trust.client_config().map_err(failed)?));
        let (host, port) = (self.host.clone(), self.port);
        let connector = service_fn(move |_: Uri| {
            let (tls, host) = (tls.clone(), host.clone());
            async move {
                let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let connected = tokio::time::timeout(CONNECT_WITHIN, endpoint.connect_with_connector(connector)).await;
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(failed(trust.why().unwrap_or_else(|| root_of(&error)))),
            Err(_) => return Err(failed(format!("no connection within {} s", CONNECT_WITHIN.as_secs()))),
        };
        let mut client = BootstrapServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        match tokio::time::timeout(ANSWER_WITHIN, client.exchange_join_token(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.unanswered(&status)),
            Err(_) => Err(failed(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    fn unanswered(&self, status: &Status) -> Unanswered {
        // It goes to a terminal, and whoever answers is not believed yet.
        let (code, said) = (status.code(), safe(status.message()));
        let at = format!("{}:{}", self.host, self.port);
        match code {
            Code::Unauthenticated => Unanswered::Refused(format!(
                "{at} refuses: {said}; a token is of one cluster, and is forgotten a month after its end"
            )),
            Code::FailedPrecondition if reason_of(status).as_deref() == Some("KEY_REVOKED") => {
                Unanswered::KeyRevoked(format!("{at} refuses: {said}"))
            }
            Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied => {
                Unanswered::Refused(format!("{at} refuses: {said}"))
            }
            Code::Unimplemented => Unanswered::Failed(format!("{at}: this is not the admin port of a controller")),
            _ => Unanswered::Failed(format!("{at}: {said} ({code:?})")),
        }
    }
}

/// The reason that a refusal gives.
fn reason_of(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// The last cause of an error, which names what happened.
fn root_of(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_a_host_and_a_port() {
        let of = |host: &str, port| Controller { host: host.to_owned(), port };
        assert_eq!(Controller::parse("gateway.example:8981"), Ok(of("gateway.example", 8981)));
        assert_eq!(Controller::parse("127.0.0.1:1"), Ok(of("127.0.0.1", 1)));
        assert_eq!(Controller::parse("[::1]:8981"), Ok(of("::1", 8981)));
        for bad in ["", "a", "a:", ":1", "a:0", "a:65536", "::1:8981", "https://a:1", "a b:1", "[a:1"] {
            let said = Controller::parse(bad).unwrap_err();
            assert!(said.starts_with("--controller "), "{bad}: {said}");
        }
    }

    #[test]
    fn what_a_controller_says_does_not_steer_the_terminal() {
        let controller = Controller::parse("gateway.example:8981").unwrap();
        for code in [
            Code::Unauthenticated,
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::PermissionDenied,
            Code::Unimplemented,
            Code::Internal,
            Code::Unknown,
        ] {
            let status = Status::new(code, "no\u{1b}]0;owned\u{7}\r\n\u{202e}done");
            let (Unanswered::Refused(said) | Unanswered::KeyRevoked(said) | Unanswered::Failed(said)) =
                controller.unanswered(&status);
            assert!(said.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{said:?}");
            assert!(code == Code::Unimplemented || said.contains("no\\u{1b}]0;owned"), "{said:?}");
        }
    }
}
