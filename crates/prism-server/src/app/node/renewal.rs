//! A node's next certificate, asked for when half of the life of the one before is over, and a little more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prism_core::secret::Random;
use prism_core::{Clock, UnixMillis};
use prism_proto::cluster::v1::RenewCertificateRequest;
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_rpc::Shutdown;
use prism_rpc::files::write_atomically;
use prism_rpc::tls::{CertificateFacts, NodeKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::connector::Connector;
use crate::join::identity::{CERTIFICATE, FOLDER, KEY};

/// How often it is looked: at least, and at most.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Renews the certificate in the data directory until the end is announced. The link takes the new one when it connects next.
pub async fn keep_fresh(data: PathBuf, connector: Arc<Connector>, controllers: Vec<String>, until: Shutdown) {
    let folder = data.join(FOLDER);
    let clock = Clock::system();
    let mut pause = LOOK_EVERY.0;
    let share = some_share();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = until.announced() => return,
        }
        pause = match life(&folder) {
            Ok((begins, ends)) => {
                if clock.now() >= due(begins, ends, share) {
                    renew(&folder, &connector, &controllers).await;
                }
                (ends.since(begins) / 20).clamp(LOOK_EVERY.0, LOOK_EVERY.1)
            }
            Err(why) => {
                tracing::error!(why, "the node's certificate cannot be read");
                LOOK_EVERY.1
            }
        };
    }
}

/// When a certificate is to be renewed: after half of its life and up to a tenth of it more, as `share` of 256 says. Nodes that
/// joined together do not all come at once.
fn due(begins: UnixMillis, ends: UnixMillis, share: u8) -> UnixMillis {
    let life = ends.since(begins);
    begins + life / 2 + life / 10 * u32::from(share) / 256
}

/// A share that each process has of its own.
fn some_share() -> u8 {
    let mut share = [0];
    Random::system().fill(&mut share);
    share[0]
}

async fn renew(folder: &Path, connector: &Connector, controllers: &[String]) {
    for controller in controllers {
        match ask(folder, connector, controller).await {
            Ok(ends) => {
                tracing::info!(controller, ends = ends.0, "the node has a new certificate");
                return;
            }
            Err(why) => tracing::warn!(controller, why, "the node's certificate was not renewed; trying again"),
        }
    }
}

async fn ask(folder: &Path, connector: &Connector, controller: &str) -> Result<UnixMillis, String> {
    let pem = std::fs::read_to_string(folder.join(KEY)).map_err(|error| error.to_string())?;
    let key = NodeKey::from_pem(&pem).map_err(|error| error.message().to_owned())?;
    let csr_pem = key.signing_request().map_err(|error| error.message().to_owned())?.into_bytes().into();
    let channel = connector.channel(controller).await.map_err(|error| error.message().to_owned())?;
    let mut client = BootstrapServiceClient::new(channel);
    let asked = client.renew_certificate(RenewCertificateRequest { csr_pem });
    let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    let leaf = CertificateDer::from_pem_slice(&answer.certificate_pem).map_err(|error| error.to_string())?;
    let facts = CertificateFacts::of(&leaf).map_err(|error| error.message().to_owned())?;
    if facts.public_key != key.public_key() {
        return Err("the new certificate is for another key".to_owned());
    }
    write_atomically(&folder.join(CERTIFICATE), &answer.certificate_pem, 0o644).map_err(|error| error.to_string())?;
    Ok(facts.expires_at)
}

/// When the certificate in the folder began, and when it ends.
fn life(folder: &Path) -> Result<(UnixMillis, UnixMillis), String> {
    let leaf = CertificateDer::from_pem_file(folder.join(CERTIFICATE)).map_err(|error| error.to_string())?;
    let facts = CertificateFacts::of(&leaf).map_err(|error| error.message().to_owned())?;
    Ok((facts.begins_at, facts.expires_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_joined_together_renew_apart_and_in_time() {
        let at = |share| due(UnixMillis(0), UnixMillis(1000), share).0;
        assert_eq!(at(0), 500);
        assert!(at(0) < at(100) && at(100) < at(255) && at(255) < 600);
    }
}
