//! Both planes answer a real call over their real sockets before the server says that it is ready.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prism_rpc::CertificateAuthority;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::listeners::{PlaneTls, Security};
use crate::endpoints::reachable;

/// How long a plane may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Calls the data plane at `address`.
pub async fn data_plane(
    address: SocketAddr,
    security: &Security,
    authority: Option<&CertificateAuthority>,
) -> Result<(), String> {
    check("data plane", address, security.data.as_ref(), authority).await
}

/// Calls the admin plane at `address`.
pub async fn admin_plane(
    address: SocketAddr,
    security: &Security,
    authority: &CertificateAuthority,
) -> Result<(), String> {
    check("admin plane", address, security.admin.as_ref(), Some(authority)).await
}

async fn check(
    what: &str,
    address: SocketAddr,
    tls: Option<&PlaneTls>,
    authority: Option<&CertificateAuthority>,
) -> Result<(), String> {
    let tls = tls.map(|tls| client_config(tls, authority)).transpose()?;
    let answered = tokio::time::timeout(TIMEOUT, call(reachable(address), tls)).await;
    let answered = answered.unwrap_or_else(|_| Err(format!("no answer in {} s", TIMEOUT.as_secs())));
    answered.map_err(|error| format!("the {what} does not answer on {address}: {error}"))
}

async fn call(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<(), String> {
    let connector = service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(tls) => {
                    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
                    Box::new(TlsConnector::from(tls).connect(name, stream).await?)
                }
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| describe(&error))?;
    match HealthClient::new(channel).check(HealthCheckRequest::default()).await {
        Ok(_) => Ok(()),
        // Health can be switched off; an answer is an answer.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => Ok(()),
        Err(status) => Err(status.to_string()),
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

fn client_config(tls: &PlaneTls, authority: Option<&CertificateAuthority>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let own = authority.filter(|_| tls.own_authority);
    let verifier: Arc<dyn ServerCertVerifier> = if let Some(authority) = own {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate_der()).map_err(|error| error.to_string())?;
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        built.map_err(|error| error.to_string())?
    } else {
        Arc::new(OwnListener(provider.clone()))
    };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts the operator's certificate, whatever it is for: the other end is this very process, and nothing is told to it.
#[derive(Debug)]
struct OwnListener(Arc<CryptoProvider>);

impl ServerCertVerifier for OwnListener {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
