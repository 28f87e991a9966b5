//! Connections, with TLS that trusts one CA, or in clear text.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::certificates::Holder;

/// Longest time until the headers of an answer; nothing here takes this long unless it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(90);

/// A channel to `address` (`host:port`) over TLS that trusts the certificates in the PEM file `ca`.
pub fn tls(address: &str, ca: &Path) -> Channel {
    tls_channel(address, tls_config(ca), None)
}

/// The same to a server that is called `name` in its certificate.
pub fn tls_named(address: &str, name: &str, ca: &Path) -> Channel {
    let name = ServerName::try_from(name.to_owned()).expect("a host name or an address");
    channel(address, name, tls_config(ca), None)
}

/// The same from another address of the loopback network, as from another machine.
pub fn tls_from(source: Ipv4Addr, address: &str, ca: &Path) -> Channel {
    tls_channel(address, tls_config(ca), Some(source))
}

/// The same with a client certificate.
pub fn tls_as(address: &str, ca: &Path, holder: &Holder) -> Channel {
    tls_channel(address, tls_config_as(ca, holder), None)
}

/// A connection with a client certificate, over which HTTP/2 is agreed and nothing has been said.
pub async fn connect_as(address: &str, ca: &Path, holder: &Holder) -> TlsStream<TcpStream> {
    connect(address, tls_config_as(ca, holder)).await
}

/// The certificate that a server shows to a new connection.
pub async fn peer_certificate(address: &str, ca: &Path) -> CertificateDer<'static> {
    let stream = connect(address, tls_config(ca)).await;
    let certificates = stream.get_ref().1.peer_certificates().expect("a server has certificates");
    certificates[0].clone().into_owned()
}

async fn connect(address: &str, config: ClientConfig) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(address).await.expect("the port answers");
    TlsConnector::from(Arc::new(config)).connect(host(address), tcp).await.expect("a TLS connection")
}

/// A channel to `address` with a TLS client of the test's own, from a loopback address if one is given.
pub fn tls_channel(address: &str, config: ClientConfig, source: Option<Ipv4Addr>) -> Channel {
    channel(address, host(address), config, source)
}

fn channel(address: &str, name: ServerName<'static>, config: ClientConfig, source: Option<Ipv4Addr>) -> Channel {
    let connector = TlsConnector::from(Arc::new(config));
    let address = address.to_owned();
    let origin: Uri = format!("https://{address}").parse().expect("an address makes a URI");
    let dial = service_fn({
        let address = address.clone();
        move |_: Uri| {
            let (connector, address, name) = (connector.clone(), address.clone(), name.clone());
            async move {
                let tcp = match source {
                    None => TcpStream::connect(address).await?,
                    Some(source) => {
                        let socket = TcpSocket::new_v4()?;
                        socket.bind((source, 0).into())?;
                        socket.connect(address.parse().map_err(io::Error::other)?).await?
                    }
                };
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
    tls_config_of(ca, rustls::DEFAULT_VERSIONS)
}

/// The same with only these versions of TLS.
pub fn tls_config_of(ca: &Path, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    http2(builder(ca, versions).with_no_client_auth())
}

/// The same with a client certificate.
pub fn tls_config_as(ca: &Path, holder: &Holder) -> ClientConfig {
    let builder = builder(ca, rustls::DEFAULT_VERSIONS);
    http2(builder.with_client_auth_cert(holder.chain(), holder.key()).expect("a certificate and its key"))
}

fn builder(ca: &Path, versions: &[&'static SupportedProtocolVersion]) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("ca.pem can be read") {
        roots.add(certificate.expect("ca.pem holds certificates")).expect("ca.pem holds CA certificates");
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .expect("the provider has these versions")
        .with_root_certificates(roots)
}

fn http2(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn host(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    ServerName::try_from(host).expect("a host name or an address")
}
