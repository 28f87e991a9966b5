//! TLS of the listeners: certificates of Prism's own CA, or of the operator's files, both renewed while the server runs.

mod authority;
mod files;

use std::fmt;
use std::sync::Arc;

use prism_core::{Error, Kind, Result};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier;

pub use authority::CertificateAuthority;
pub use files::server_config_from_files;

/// Checks the certificates of clients; `None` = clients show none.
pub type ClientVerifier = Arc<dyn ClientCertVerifier>;

/// The same TLS settings for a listener that speaks HTTP/2 only.
pub fn http2_only(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    clients: Option<ClientVerifier>,
) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| fault(format!("TLS cannot be set up: {error}")))?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What is wrong with a certificate, key or file, for the operator who starts the server.
fn fault(message: impl fmt::Display) -> Error {
    Error::new(Kind::FailedPrecondition, "TLS_SETUP", message.to_string())
}

#[cfg(test)]
mod tests;
