//! TLS of the listeners: certificates of Prism's own CA, or of the operator's files, both renewed while the server runs; and
//! client certificates, which the handshake asks for and does not judge.

mod authority;
mod clients;
mod facts;
mod files;
mod issue;
mod node_key;
mod rotation;
mod servers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prism_core::{Error, Kind, Result, UnixMillis};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};

use crate::shutdown::Shutdown;
use crate::watched::Watched;
use authority::Renewing;
pub use authority::{CertificateAuthority, KEY_FILE as AUTHORITY_KEY_FILE, server_names};
pub use clients::{MAX_CHAIN, MAX_CHAIN_BYTES};
pub use facts::{CertificateFacts, fingerprint, first_end, vouches};
pub use files::CLUSTER_PROTOCOL;
use files::Pair;
pub use issue::{ClientCertificate, IssuedCertificate, MAX_CSR_BYTES, NodeCertificate, SigningRequest};
pub use node_key::NodeKey;
pub use rotation::{Plan, Standing};
pub use servers::{ControllerVerifier, not_a_controller, other_identity};

/// How often a certificate of Prism's CA is looked at when nobody connects.
const RENEWAL_CHECK: Duration = Duration::from_hours(1);
/// With less than this left of a certificate that a person has to renew, it is time to.
const RENEW_BY_HAND: Duration = Duration::from_hours(30 * 24);

/// TLS of a listener; a clone shares the certificate.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    source: Source,
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
enum Source {
    Own(Arc<Renewing>),
    Files(Arc<Watched<Pair>>),
}

impl ServerTls {
    /// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, with any client certificate or none.
    ///
    /// There is no resumption of sessions. A resumed connection shows the certificate of an earlier one: the old one although the
    /// client has a new one since, and without a proof that it still has the key. Connections live long, and a handshake costs
    /// one signature.
    fn new<R: ResolvesServerCert + 'static>(certificate: Arc<R>, source: Source) -> Result<Self> {
        let provider = provider();
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| fault(format!("TLS cannot be set up: {error}")))?
            .with_client_cert_verifier(Arc::new(clients::AnyClient(provider)))
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), source })
    }

    /// The same for a listener that speaks HTTP/2 only.
    #[must_use]
    pub fn http2_only(&self) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { config: Arc::new(config), source: self.source.clone() }
    }

    /// What the listener's handshakes go by.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// When the certificate in use ends, or one of the chain it comes with.
    pub fn expires_at(&self) -> UnixMillis {
        match &self.source {
            Source::Own(renewing) => renewing.current().expires_at,
            Source::Files(watched) => watched.current().expires_at,
        }
    }

    /// With less than this left something is wrong (a certificate of Prism's CA is renewed before) or has to be done (one of
    /// files is not).
    pub fn attention_below(&self) -> Duration {
        match &self.source {
            Source::Own(_) => authority::ATTENTION,
            Source::Files(_) => RENEW_BY_HAND,
        }
    }

    /// Keeps the certificate up to date until the end is announced: files are taken over within two seconds of a change, broken
    /// ones are logged while the last good pair stays; a certificate of Prism's CA is renewed in time even if nobody connects.
    pub async fn keep_fresh(self, until: Shutdown) {
        match self.source {
            Source::Files(watched) => watched.follow(until).await,
            Source::Own(renewing) => loop {
                tokio::select! {
                    () = tokio::time::sleep(RENEWAL_CHECK) => drop(renewing.current()),
                    () = until.announced() => return,
                }
            },
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What is wrong with a certificate, key or file, for the operator who starts the server.
fn fault(message: impl fmt::Display) -> Error {
    Error::new(Kind::FailedPrecondition, "TLS_SETUP", message.to_string())
}

#[cfg(test)]
mod tests;
