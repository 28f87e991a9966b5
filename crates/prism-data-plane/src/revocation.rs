//! Revocations: what the sessions of this node stand on is looked at again whenever keys, bindings, revoked certificates or
//! trusted CAs change, and sessions that have lost their ground end.
//!
//! Two parts, so that calls pay next to nothing. The gate compares a number for each call, and looks a session over when the
//! number is new: from the moment a change is taken over, nothing starts under a credential that fell
//! ([`crate::gate::Gate::upholds`]). The walk here, off the calls' path, finds all the others and cuts what runs under them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prism_identity::ClientTrust;
use prism_rpc::Connections;
use tokio_util::sync::CancellationToken;

use crate::cause::EndCause;
use crate::plane::Plane;

/// Sessions that are looked over before other tasks get their turn.
const AT_ONCE: usize = 256;
/// How often the trusted CAs are compared with those that were there before.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a connection with a revoked certificate is left, for its streams to hear why they end.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What follows the changes of client access.
pub struct Revocations {
    plane: Arc<Plane>,
    connections: Connections,
    /// Fingerprints of certificates whose connections were cut, or could not be there yet.
    revoked: Arc<HashSet<String>>,
    /// The CAs that were trusted at the last look.
    trust: Option<Arc<ClientTrust>>,
}

impl Revocations {
    /// To be made before the first connection of `connections` can be there.
    pub fn new(plane: &Arc<Plane>, connections: Connections) -> Self {
        let revoked = Arc::clone(&plane.gate.namespaces.snapshot().client_access.revoked_certificates);
        let trust = plane.gate.client_trust();
        Self { plane: Arc::clone(plane), connections, revoked, trust }
    }

    /// Ends sessions whose credential fell, and cuts connections whose certificate did, until `stop`.
    pub async fn enforce(mut self, stop: CancellationToken) {
        let plane = Arc::clone(&self.plane);
        let changed = || tokio::time::timeout(LOOK_EVERY, plane.gate.namespaces.access_changed());
        while let Some(outcome) = stop.run_until_cancelled(changed()).await {
            let before = self.trust_before();
            if before.is_some() {
                plane.gate.namespaces.access_moved();
            }
            if outcome.is_ok() || before.is_some() {
                self.end_fallen().await;
                self.cut_connections().await;
            }
            if let Some(before) = before {
                self.cut_distrusted(&before).await;
            }
        }
    }

    /// The CAs that were trusted before, when they are others now.
    fn trust_before(&mut self) -> Option<Arc<ClientTrust>> {
        let now = self.plane.gate.client_trust();
        let same = match (&now, &self.trust) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (now, before) => now.is_none() && before.is_none(),
        };
        if same { None } else { std::mem::replace(&mut self.trust, now) }
    }

    async fn cut_distrusted(&self, before: &ClientTrust) {
        tokio::time::sleep(LAST_WORDS).await;
        let now = self.plane.gate.clock.now();
        let cut = self.connections.cut_where(|chain| {
            let still = self.trust.as_ref().is_some_and(|trust| trust.identify(chain, now).is_ok());
            !still && before.identify(chain, now).is_ok()
        });
        if cut > 0 {
            tracing::info!(cut, "connections were cut, as the CA of their certificate is not trusted any more");
        }
    }

    async fn end_fallen(&self) {
        let (gate, mut fallen) = (&self.plane.gate, Vec::new());
        for (number, session) in gate.sessions.all().into_iter().enumerate() {
            if number % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            // What is over by its own time is the sweeper's.
            let stands = gate.upholds(&session) || session.is_over(&gate.policy, gate.clock.now());
            if !stands && self.plane.cut(&session, EndCause::CredentialRevoked) {
                let credential = session.record().basis.credential_id.as_str();
                tracing::debug!(session.id = %session.id(), credential, "a session ends with its credential");
                fallen.push(session);
            }
        }
        if !fallen.is_empty() {
            tracing::info!(
                count = fallen.len(),
                "sessions end, as their credential was revoked or lost their namespace"
            );
            // Not waited for: the next revocation must not wait for the control plane.
            self.plane.save_ends_of(fallen, EndCause::CredentialRevoked.reason());
        }
    }

    async fn cut_connections(&mut self) {
        let now = Arc::clone(&self.plane.gate.namespaces.snapshot().client_access.revoked_certificates);
        if Arc::ptr_eq(&now, &self.revoked) {
            return;
        }
        let new: Vec<&String> = now.difference(&self.revoked).collect();
        if !new.is_empty() {
            tokio::time::sleep(LAST_WORDS).await;
            for fingerprint in new {
                self.connections.cut(fingerprint);
            }
        }
        self.revoked = now;
    }
}
