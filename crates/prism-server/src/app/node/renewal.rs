//! What a node renews while it runs: its identity, and the certificate of its data port. Each is asked for when half of its life is
//! over, and a little more, or when another CA issues; until it is there it is asked for again and again, and at once when a
//! controller is back.

use std::sync::Arc;
use std::time::Duration;

use prism_core::secret::Random;
use prism_core::{Clock, UnixMillis};
use prism_link::{Jitter, NodeLink};
use prism_proto::cluster::v1::bootstrap_service_client::BootstrapServiceClient;
use prism_proto::cluster::v1::{RenewCertificateRequest, RenewCertificateResponse};
use prism_rpc::Shutdown;
use prism_rpc::convert::timestamp;
use prism_rpc::files::write_atomically;
use prism_rpc::tls::{CertificateFacts, NodeKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::time::Instant;
use tonic::Code;

use super::authorities::Authorities;
use super::connector::Connector;
use super::data_port::DataPort;
use crate::join::identity::{CERTIFICATE, Identity, KEY, NodeFiles};

/// How often it is looked: at least, and at most.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a node renews, and by what.
pub struct Renewal<T> {
    /// The identity on the disk.
    pub files: NodeFiles,
    /// Who the node is.
    pub identity: Identity,
    /// Where it may ask.
    pub controllers: Vec<String>,
    /// How.
    pub connector: Arc<Connector>,
    /// The link that the data port's certificate comes over.
    pub link: Arc<NodeLink>,
    /// The data port, if its certificate is one of the cluster's CA.
    pub data: Option<DataPort>,
    /// Whom the node trusts.
    pub authorities: Authorities<T>,
    /// How pauses vary.
    pub jitter: Jitter,
}

impl<T: AsRef<[u8]> + Send + Sync> Renewal<T> {
    /// Keeps all up to date until the end is announced. The data port's certificate is the first, so that a node that a controller
    /// has given the next identity has done all that a change of the CA asks of it.
    pub async fn run(mut self, until: Shutdown) {
        let share = some_share();
        let (mut data, mut identity) = (Tended::default(), Tended::default());
        loop {
            let taken = self.authorities.take_over();
            if let Some(port) = &self.data {
                let life = port.life();
                let outdated = !port.stands_on(self.authorities.current());
                if data.is_due(life.as_ref(), outdated, share) {
                    let renewed = port.renew().await;
                    data.came(renewed, life.as_ref(), "the data port's certificate", "clients refuse it");
                }
            }
            let (life, outdated) = self.state();
            if identity.is_due(life.as_ref(), outdated, share) {
                let renewed = self.renew().await;
                let lost = way_back(&self.identity.node_id, &self.files);
                identity.came(renewed, life.as_ref(), "the node's certificate", &lost);
            }
            self.tell_if_lost();
            let is_well = taken && data.failures == 0 && identity.failures == 0;
            let is_alone = !self.link.is_connected();
            let pause = [data.pause, identity.pause].into_iter().min().unwrap_or(LOOK_EVERY.1);
            let pause = if taken { pause } else { pause.min(LOOK_EVERY.0) };
            let link = Arc::clone(&self.link);
            tokio::select! {
                () = tokio::time::sleep((self.jitter)(pause)) => {}
                () = until.announced() => return,
                () = self.authorities.changed() => {}
                () = link.connected(), if is_alone && !is_well => {}
            }
        }
    }

    /// What the identity says, and whether it is of a CA that does not issue any more.
    fn state(&self) -> (Option<CertificateFacts>, bool) {
        match self.files.certificate() {
            Ok(leaf) => (CertificateFacts::of(&leaf).ok(), !self.authorities.is_of_issuing(&leaf)),
            Err(why) => {
                tracing::error!(why, "the node's certificate cannot be read");
                (None, true)
            }
        }
    }

    /// A certificate of a CA that was retired opens nothing any more.
    fn tell_if_lost(&self) {
        if self.files.certificate().is_ok_and(|leaf| !self.authorities.is_of_trusted(&leaf)) {
            let what = way_back(&self.identity.node_id, &self.files);
            tracing::error!("the node's certificate is of a CA that is trusted no more; {what}");
        }
    }

    async fn renew(&mut self) -> Result<(), String> {
        let mut last = "there is no controller in the list".to_owned();
        for controller in &self.controllers {
            match self.ask(controller).await {
                Ok(answer) => {
                    // Without a link nobody else tells of another CA, which the certificate may be of. It is believed as over the
                    // link: who answers has shown to be of a CA that is trusted.
                    self.authorities.heard(&answer.ca_certificate_pem);
                    let path = self.files.folder().join(CERTIFICATE);
                    let written = write_atomically(&path, &answer.certificate_pem, 0o644);
                    return written.map_err(|error| format!("{}: {error}", path.display()));
                }
                Err(why) => last = format!("{controller}: {why}"),
            }
        }
        Err(last)
    }

    /// A certificate for the node's key, and the CAs.
    async fn ask(&self, controller: &str) -> Result<RenewCertificateResponse, String> {
        let folder = self.files.folder();
        let pem = std::fs::read_to_string(folder.join(KEY)).map_err(|error| error.to_string())?;
        let key = NodeKey::from_pem(&pem).map_err(|error| error.message().to_owned())?;
        let csr_pem = key.signing_request().map_err(|error| error.message().to_owned())?.into_bytes().into();
        let channel = self.connector.channel(controller).await.map_err(|error| error.message().to_owned())?;
        let mut client = BootstrapServiceClient::new(channel);
        let asked = client.renew_certificate(RenewCertificateRequest { csr_pem });
        let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await.map_err(|_| "no answer in time".to_owned())?;
        let answer = answer.map_err(|status| match status.code() {
            Code::Unauthenticated => {
                let lost = way_back(&self.identity.node_id, &self.files);
                format!("the controller does not take this node's certificate ({}); {lost}", status.message())
            }
            _ => status.message().to_owned(),
        });
        let answer = answer?.into_inner();
        let leaf = CertificateDer::from_pem_slice(&answer.certificate_pem).map_err(|error| error.to_string())?;
        let facts = CertificateFacts::of(&leaf).map_err(|error| error.message().to_owned())?;
        if facts.public_key != key.public_key() {
            return Err("the new certificate is for another key".to_owned());
        }
        Ok(answer)
    }
}

/// What to do on a machine whose certificate opens nothing any more.
pub fn way_back(node_id: &str, files: &NodeFiles) -> String {
    let data_dir = files.folder().parent().unwrap_or(files.folder()).display();
    format!(
        "if this machine's clock is right, stop this process, make a token with prism-admin token create --node {node_id}, run prism \
         join with it and --data-dir {data_dir} here, and start again: the node keeps its id, its data and its sessions"
    )
}

/// What is known of the renewal of one certificate.
struct Tended {
    failures: u32,
    pause: Duration,
    /// Renewals in a row after each of which another one was due.
    in_vain: u32,
    /// When the next one may be asked for, after one that was made.
    not_before: Option<Instant>,
}

impl Default for Tended {
    fn default() -> Self {
        Self { failures: 0, pause: LOOK_EVERY.1, in_vain: 0, not_before: None }
    }
}

impl Tended {
    /// Whether the next one is to be asked for now; how long to wait otherwise is in `pause`.
    fn is_due(&mut self, life: Option<&CertificateFacts>, is_outdated: bool, share: u8) -> bool {
        self.pause = life.map_or(LOOK_EVERY.0, look_again);
        let is_due = is_outdated
            || life.is_none_or(|life| Clock::system().now() >= due(life.issued_at(), life.expires_at, share));
        if !is_due {
            (self.in_vain, self.not_before) = (0, None);
            return false;
        }
        // One that was made and is not what was wanted: each costs the controller a transaction and an entry.
        let left = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return true;
        }
        self.pause = self.pause.min(left);
        false
    }

    /// Notes what came of it. `lost` is what is to be said when `life` is over.
    fn came(&mut self, renewed: Result<(), String>, life: Option<&CertificateFacts>, what: &str, lost: &str) {
        match renewed {
            Ok(()) => {
                tracing::info!("{what} was renewed");
                // It is looked whether it is what was wanted.
                let wait = (LOOK_EVERY.0 * 2_u32.saturating_pow(self.in_vain)).min(LOOK_EVERY.1);
                (self.failures, self.pause) = (0, LOOK_EVERY.0);
                (self.in_vain, self.not_before) = (self.in_vain.saturating_add(1), Some(Instant::now() + wait));
            }
            Err(why) => {
                self.pause = (LOOK_EVERY.0 * 2_u32.saturating_pow(self.failures)).min(self.pause);
                self.failures += 1;
                let Some(life) = life else {
                    tracing::warn!(why, "{what} was not renewed; trying again");
                    return;
                };
                let ends = timestamp(life.expires_at).to_string();
                let left = life.expires_at.since(Clock::system().now());
                if left.is_zero() {
                    tracing::error!(ends, why, "{what} has ended; {lost}");
                } else {
                    let left = humantime::format_duration(Duration::from_secs(left.as_secs())).to_string();
                    tracing::warn!(ends, left, why, "{what} was not renewed; trying again");
                }
            }
        }
    }
}

/// When it is looked at a certificate again.
fn look_again(life: &CertificateFacts) -> Duration {
    (life.expires_at.since(life.issued_at()) / 20).clamp(LOOK_EVERY.0, LOOK_EVERY.1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_joined_together_renew_apart_and_in_time() {
        let at = |share| due(UnixMillis(0), UnixMillis(1000), share).0;
        assert_eq!(at(0), 500);
        assert!(at(0) < at(100) && at(100) < at(255) && at(255) < 600);
    }

    #[test]
    fn what_fails_is_tried_again_later_and_later_and_not_too_late() {
        let mut tended = Tended::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            tended.pause = LOOK_EVERY.1;
            tended.came(Err("no controller".to_owned()), None, "a certificate", "");
            pauses.push(tended.pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        tended.came(Ok(()), None, "a certificate", "");
        assert_eq!((tended.failures, tended.pause), (0, LOOK_EVERY.0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_succeeds_and_is_not_what_was_wanted_is_tried_again_later_and_later() {
        let begins_at = Clock::system().now();
        let life = CertificateFacts {
            subject: String::new(),
            begins_at,
            expires_at: begins_at + Duration::from_hours(24_000),
            uri: None,
            uris: Vec::new(),
            hosts: Vec::new(),
            public_key: Vec::new(),
        };
        let life = Some(&life);
        let mut tended = Tended::default();
        let start = Instant::now();
        let mut asked = Vec::new();
        while start.elapsed() < Duration::from_mins(30) {
            if tended.is_due(life, true, 0) {
                asked.push(start.elapsed().as_secs());
                tended.came(Ok(()), life, "a certificate", "");
            }
            assert!(!tended.pause.is_zero());
            tokio::time::sleep(tended.pause).await;
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411, 1711]);
        // What was wanted once is wanted at once the next time.
        assert!(!tended.is_due(life, false, 0) && tended.is_due(life, true, 0));
    }
}
