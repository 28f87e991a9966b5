//! Connections, with TLS that trusts one CA, or in clear text.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Longest time until the headers of an answer; nothing here takes this long unless it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// A channel to `address` (`host:port`) over TLS that trusts the certificates in the PEM file `ca`.
pub fn tls(address: &str, ca: &Path) -> Channel {
    let connector = TlsConnector::from(Arc::new(tls_config(ca)));
    let address = address.to_owned();
    let name = host(&address);
    let origin: Uri = format!("https://{address}").parse().expect("an address makes a URI");
    let dial = service_fn({
        let address = address.clone();
        move |_: Uri| {
            let (connector, address, name) = (connector.clone(), address.clone(), name.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
            }
        }
    });
    // The connector speaks TLS; `http` keeps the channel from adding its own.
    endpoint(&address).origin(origin).connect_with_connector_lazy(dial)
}

/// A channel to `address` in clear text.
pub fn clear(address: &str) -> Channel {
    endpoint(address).connect_lazy()
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URI").timeout(ANSWER_WITHIN)
}

/// A TLS client that trusts the certificates in the PEM file `ca` and speaks HTTP/2.
pub fn tls_config(ca: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("ca.pem can be read") {
        roots.add(certificate.expect("ca.pem holds certificates")).expect("ca.pem holds CA certificates");
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn host(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).expect("a host name or an address")
}
