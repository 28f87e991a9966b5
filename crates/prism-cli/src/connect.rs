//! A TLS connection to the admin plane.

use std::{io, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName, sign::SingleCertAndKey,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::{
    controller_cert::ControllerVerifier,
    error::{Failure, Result},
    exit::Exit,
    identity,
    target::{Credential, Identity, Target},
};

/// Time for the connection to stand, name lookup and TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the second and last attempt.
const SECOND_ATTEMPT_AFTER: Duration = Duration::from_millis(300);
/// A stream that follows the audit log is quiet for long; this finds out that its server is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Connects, and tries once more if the connection fails at once. Waits no longer than `patience`, and 5 s at most.
pub async fn connect(target: &Target, patience: Duration) -> Result<Channel> {
    let dialer = Dialer::new(target, patience.min(CONNECT_TIMEOUT))?;
    // The first connection is made here rather than by the channel, so that its error is at hand.
    let first = match dialer.dial().await {
        Ok(stream) => stream,
        Err(error) if is_certificate_problem(&error) || error.kind() == io::ErrorKind::TimedOut => {
            return Err(dialer.failure(&error));
        }
        Err(_) => {
            tokio::time::sleep(SECOND_ATTEMPT_AFTER).await;
            dialer.dial().await.map_err(|error| dialer.failure(&error))?
        }
    };
    let authority = target.authority();
    // The connector below speaks TLS already; `http` keeps the channel from adding its own.
    let unusable = |_| Failure::usage(format!("{authority:?} cannot be used as an address"));
    let origin: Uri = format!("https://{authority}").parse().map_err(unusable)?;
    let endpoint = format!("http://{authority}")
        .parse()
        .map(<Endpoint as From<Uri>>::from)
        .map_err(unusable)?
        .origin(origin)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_while_idle(true)
        .user_agent(concat!("prism-admin/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let dialer = Arc::new(dialer);
    let mut first = Some(first);
    let connector = service_fn(move |_: Uri| {
        let dialer = Arc::clone(&dialer);
        let ready = first.take();
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => dialer.dial().await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        Failure::new(Exit::Unreachable, format!("cannot connect to {authority}"))
            .detail(crate::error::deepest(&error).unwrap_or_else(|| error.to_string()))
    })
}

struct Dialer {
    tls: TlsConnector,
    name: ServerName<'static>,
    target: Target,
    wait: Duration,
}

impl Dialer {
    fn new(target: &Target, wait: Duration) -> Result<Self> {
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| Failure::usage(format!("{:?} is neither a host name nor an address", target.host)))?;
        let identity = match &target.credential {
            Credential::Certificate(identity) => Some(identity),
            Credential::Token(_) | Credential::Login(_) => None,
        };
        let tls = TlsConnector::from(Arc::new(tls_config(&target.ca, identity)?));
        Ok(Self { tls, name, target: target.clone(), wait })
    }

    async fn dial(&self) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let tcp = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
            tcp.set_nodelay(true)?;
            let stream = self.tls.connect(self.name.clone(), tcp).await?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not speak HTTP/2"));
            }
            Ok(stream)
        };
        timeout(self.wait, handshake).await.unwrap_or_else(|_| {
            let waited = humantime::format_duration(self.wait);
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {waited}")))
        })
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let failure =
            Failure::new(Exit::Unreachable, format!("cannot connect to {}: {error}", self.target.authority()));
        if is_of_another(error) {
            failure.hint(
                "is this the admin port of a server? If it is, stop: somebody with that certificate stands in its place",
            )
        } else if is_certificate_problem(error) {
            failure.hint(format!(
                "the server's certificate does not fit {}; is that the ca.pem of this server, and this its name?",
                self.target.ca.display()
            ))
        } else if error.kind() == io::ErrorKind::InvalidData {
            failure.hint("is this the admin port (8981), not the data or metrics port?")
        } else {
            failure.hint(
                "is the server running, and is this its admin port? `prism serve` writes endpoints.json when ready",
            )
        }
    }
}

fn tls_config(ca: &Path, identity: Option<&Identity>) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = identity.map(|identity| identity::load(identity, &provider)).transpose()?;
    let verifier = ControllerVerifier::new(roots(ca, "--ca")?, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certified {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Reads the CA certificates in a file, which `flag` names.
pub fn roots(ca: &Path, flag: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let wrong = |why: &dyn std::fmt::Display| {
        let failure = Failure::usage(format!("cannot use the CA certificates in {}: {why}", ca.display()));
        match flag {
            "--ca" => failure.hint("copy ca.pem from the server's data directory and name it with --ca"),
            flag => failure.hint(format!("name a file with CA certificates in PEM with {flag}")),
        }
    };
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(&error))? {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() { Err(wrong(&"there is none")) } else { Ok(roots) }
}

/// Whether the certificate is that of a node, client or user, which [`ControllerVerifier`] refuses.
fn is_of_another(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(CertificateError::Other(_))))
}

fn is_certificate_problem(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_ca_is_a_usage_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert_eq!(tls_config(&path, None).unwrap_err().exit(), Exit::Usage);
        std::fs::write(&path, "not a certificate").unwrap();
        assert!(tls_config(&path, None).unwrap_err().to_string().contains("there is none"));
    }

    #[test]
    fn certificate_problems_are_told_apart() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(is_certificate_problem(&io::Error::new(io::ErrorKind::InvalidData, inner)));
        assert!(!is_certificate_problem(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
