//! How a node reaches a controller: one TLS connection with its certificate, and one stream over it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use http::Uri;
use hyper_util::rt::TokioIo;
use prism_core::{Clock, Error, Kind, Result};
use prism_link::bounds::{CONNECT_TIMEOUT, MAX_FRAME_BYTES};
use prism_link::{Closed, NodeEnd};
use prism_proto::cluster::v1::NodeFrame;
use prism_proto::cluster::v1::link_service_client::LinkServiceClient;
use prism_rpc::convert::timestamp;
use prism_rpc::tls::{CLUSTER_PROTOCOL, ControllerVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::renewal::way_back;
use crate::join::Controller;
use crate::join::identity::{CA, CERTIFICATE, KEY, NodeFiles};

/// ErrorInfo domain of what a controller says about a link.
const DOMAIN: &str = "prism.cluster.v1";
/// Frames that the connection has not taken yet; the link has a queue of its own.
const WAITING: usize = 16;
/// How long a connection without traffic is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How far the clocks of a node and a controller may be apart.
const CLOCK_SKEW: Duration = Duration::from_mins(5);
/// How often a link is asked for with a certificate that has ended.
const ASK_ENDED_EVERY: Duration = Duration::from_mins(1);

/// Connects with the identity in a folder, as it is there at that moment.
pub struct Connector {
    files: NodeFiles,
    node_id: String,
    /// When a link was asked for last with a certificate that has ended.
    asked: Mutex<Option<Instant>>,
}

impl Connector {
    /// With the identity of `node_id` in `files`.
    pub fn new(files: NodeFiles, node_id: &str) -> Self {
        Self { files, node_id: node_id.to_owned(), asked: Mutex::default() }
    }

    /// With a certificate that is past its end by every clock a link is asked for seldom: each try is an entry in the audit log.
    /// It is asked for, as a node that was revoked learns it by the answer.
    fn may_ask(&self) -> Result<()> {
        let ends = self.files.life().map_err(identity_unusable)?.expires_at;
        if Clock::system().now() <= ends + CLOCK_SKEW {
            return Ok(());
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_none_or(|asked| asked.elapsed() >= ASK_ENDED_EVERY) {
            *asked = Some(Instant::now());
            return Ok(());
        }
        let lost = way_back(&self.node_id, &self.files);
        Err(identity_unusable(format!("the node's certificate has ended at {}; {lost}", timestamp(ends))))
    }

    /// A connection to `controller`, with the node's certificate.
    pub async fn channel(&self, controller: &str) -> Result<Channel> {
        let controller = Controller::parse(controller).map_err(|why| Error::invalid("cluster.controllers", why))?;
        let tls = TlsConnector::from(Arc::new(client_config(self.files.folder()).map_err(identity_unusable)?));
        let connector = service_fn(move |_: Uri| {
            let (tls, controller) = (tls.clone(), controller.clone());
            async move {
                let name = ServerName::try_from(controller.host().to_owned()).map_err(std::io::Error::other)?;
                let stream = TcpStream::connect((controller.host(), controller.port())).await?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost").http2_keep_alive_interval(KEEP_ALIVE);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector)).await;
        match connected {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(unreachable_because(&explained(root_of(&error), &self.files))),
            Err(_) => Err(unreachable_because("it does not answer")),
        }
    }
}

#[async_trait]
impl prism_link::Connector for Connector {
    async fn connect(&self, controller: &str) -> Result<NodeEnd> {
        self.may_ask()?;
        let channel = self.channel(controller).await?;
        let mut client = LinkServiceClient::new(channel)
            .max_decoding_message_size(MAX_FRAME_BYTES)
            .max_encoding_message_size(MAX_FRAME_BYTES);
        let (frames, taken) = mpsc::channel::<NodeFrame>(WAITING);
        // The answer begins when the controller has seen the first frame, which comes after this returns.
        let opening = async move { client.link(ReceiverStream::new(taken)).await };
        let incoming = futures::stream::once(opening).flat_map(|opened| match opened {
            Ok(response) => response.into_inner().map(|frame| frame.map_err(|status| failed(&status))).boxed(),
            Err(status) => futures::stream::iter([Err(failed(&status))]).boxed(),
        });
        let outgoing = futures::sink::unfold(frames, |frames, frame| async move {
            frames.send(frame).await.map_err(|_| Closed)?;
            Ok(frames)
        });
        Ok(NodeEnd { incoming: incoming.boxed(), outgoing: Box::pin(outgoing) })
    }
}

/// What a controller said, with its reason.
fn failed(status: &Status) -> Error {
    use tonic_types::StatusExt as _;
    // A reason of somebody else's is none of a controller's.
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    let reason = info.map_or_else(|| "LINK_FAILED".to_owned(), |info| info.reason);
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == code_name(status.code()));
    Error::new(kind.unwrap_or(Kind::Unavailable), reason, status.message())
}

fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unimplemented => "UNIMPLEMENTED",
        _ => "UNAVAILABLE",
    }
}

fn unreachable_because(why: &str) -> Error {
    Error::unavailable("CONTROLLER_UNREACHABLE", format!("the controller cannot be reached: {why}"))
}

fn identity_unusable(why: String) -> Error {
    Error::precondition("NODE_IDENTITY", why)
}

/// TLS with the node's certificate; the controller's must be of the cluster's CA, and no node's.
fn client_config(folder: &Path) -> std::result::Result<ClientConfig, String> {
    let shown = |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", folder.join(name).display());
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(folder.join(CA)).map_err(|error| shown(CA, &error))? {
        roots.add(ca.map_err(|error| shown(CA, &error))?).map_err(|error| shown(CA, &error))?;
    }
    let chain = CertificateDer::pem_file_iter(folder.join(CERTIFICATE)).map_err(|error| shown(CERTIFICATE, &error))?;
    let chain = chain.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| shown(CERTIFICATE, &error))?;
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY)).map_err(|error| shown(KEY, &error))?;
    let verifier = ControllerVerifier::new(roots).map_err(|error| shown(CA, &error.message()))?;
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(|error| shown(CERTIFICATE, &error))?;
    config.alpn_protocols = vec![CLUSTER_PROTOCOL.to_vec(), b"h2".to_vec()];
    Ok(config)
}

/// What a failed connection means, where that is not plain.
fn explained(cause: String, files: &NodeFiles) -> String {
    // All CAs of Prism have one name, so another one's certificate looks like a bad one of this one.
    if !["UnknownIssuer", "BadSignature"].iter().any(|kind| cause.contains(kind)) {
        return cause;
    }
    format!(
        "{cause}: it is none of this cluster, or the cluster's CA may have been replaced while this node was away: then stop this \
         process, remove {} and join again with a new token; data of backends stays",
        files.folder().display()
    )
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
    fn with_a_certificate_that_has_ended_a_link_is_asked_for_seldom() {
        let folder = tempfile::tempdir().unwrap();
        let files = NodeFiles::open(folder.path()).unwrap();
        let ends = |year: i32| {
            let mut params = rcgen::CertificateParams::new(vec!["one".to_owned()]).unwrap();
            (params.not_before, params.not_after) =
                (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(year, 1, 1));
            let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
            std::fs::write(files.folder().join(CERTIFICATE), pem).unwrap();
        };
        let connector = Connector::new(files.clone(), "one");
        assert!(connector.may_ask().unwrap_err().message().contains(CERTIFICATE), "there is none");
        ends(2001);
        connector.may_ask().unwrap();
        let refused = connector.may_ask().unwrap_err();
        assert_eq!(refused.reason(), "NODE_IDENTITY");
        for part in ["has ended at 2001-01-01", "prism-admin token create --node one", "prism join"] {
            assert!(refused.message().contains(part), "{}", refused.message());
        }
        ends(4000);
        connector.may_ask().unwrap();
        connector.may_ask().unwrap();
    }
}
