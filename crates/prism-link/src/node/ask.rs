//! Questions to the controller, and what is kept for it while there is none.

use std::sync::Arc;

use prism_core::config::Config;
use prism_core::control::{ClientCredential, ClientIdentity};
use prism_core::secret::{SecretKind, SecretProof, Token};
use prism_core::session::{AdmitRequest, EndReason, SessionId, SessionRecord, SessionReport};
use prism_core::{ConfigName, Error, Kind, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use tokio::time::Instant;
use wire::answer::Result as Answered;
use wire::ask::Ask;

use super::connection::Link;
use super::state::{Event, end_to_wire};
use super::{Shared, no_controller};
use crate::bounds::{BACKOFF, SHARE_TIMEOUT};
use crate::convert::{
    admit_to_wire, bad, basis_to_wire, client_from_wire, config_from_wire, id_to_wire, need, proof_to_wire,
    record_from_wire, report_to_wire,
};
use crate::shares::quota_of;

/// Ends that are handed over at a time; each costs the controller a commit that it shares with the others.
const ENDS_AT_ONCE: usize = 64;
/// Reports that are handed over at a time.
const REPORTS_AT_ONCE: usize = 1000;

/// Why a question has no answer.
pub enum Unanswered {
    /// The controller refused, or failed.
    Refused(Error),
    /// Nobody knows whether it got there.
    Lost,
}

impl From<Unanswered> for Error {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Refused(error) => error,
            Unanswered::Lost => no_controller(),
        }
    }
}

/// Whether the controller says that the session is another node's by now; then what happened to it here is nobody's.
fn is_of_another(error: &Error) -> bool {
    error.kind() == Kind::PermissionDenied && error.reason() == "NODE_MISMATCH"
}

fn unexpected() -> Error {
    bad("the answer is of another kind than the question")
}

impl Shared {
    fn open_link(&self) -> Result<Arc<Link>, Unanswered> {
        if self.is_revoked() {
            return Err(Unanswered::Refused(super::standing::revoked()));
        }
        self.link.get().ok_or(Unanswered::Lost)
    }

    async fn ask(&self, ask: Ask) -> Result<Answered, Unanswered> {
        self.open_link()?.ask(ask).await
    }

    /// The controller's time for one of this node.
    fn there(&self, at: UnixMillis) -> UnixMillis {
        UnixMillis(at.0.saturating_sub(self.offset()))
    }

    /// This node's time for one of the controller.
    pub(super) fn here(&self, at: UnixMillis) -> UnixMillis {
        UnixMillis(at.0.saturating_add(self.offset()))
    }

    /// A session of the controller with this node's times.
    pub(super) fn received(&self, entry: wire::SessionEntry) -> Result<SessionRecord> {
        let mut record = record_from_wire(entry)?;
        record.created_at = self.here(record.created_at);
        record.expires_at = self.here(record.expires_at);
        record.last_activity = self.here(record.last_activity);
        record.figures.last_request = record.figures.last_request.map(|at| self.here(at));
        Ok(record)
    }

    fn report_there(&self, report: &SessionReport) -> SessionReport {
        let mut report = report.clone();
        report.last_activity = self.there(report.last_activity);
        report.figures.last_request = report.figures.last_request.map(|at| self.there(at));
        report
    }

    pub(super) async fn authenticate(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity> {
        use wire::authenticate_ask::Credential;
        let credential = match credential {
            ClientCredential::Key(proof) => Credential::Key(proof_to_wire(&proof)),
            ClientCredential::Proven(client) => Credential::Proven(wire::ProvenClientEntry {
                basis: Some(basis_to_wire(&client.basis)),
                ends_at_ms: client.ends.map(|end| self.there(end).0),
            }),
        };
        match self.ask(Ask::Authenticate(wire::AuthenticateAsk { credential: Some(credential) })).await? {
            Answered::Client(client) => {
                let mut client = client_from_wire(client)?;
                client.ends = client.ends.map(|end| self.here(end));
                Ok(client)
            }
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn config_version(&self, name: &ConfigName, version: &str) -> Result<Option<Arc<Config>>> {
        let ask = wire::ConfigVersionAsk { name: name.to_string(), version: version.to_owned() };
        match self.ask(Ask::ConfigVersion(ask)).await? {
            Answered::Config(found) => found.config_json.map(|json| config_from_wire(&json).map(Arc::new)).transpose(),
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn admit(&self, mut request: AdmitRequest) -> Result<(SessionRecord, Token)> {
        let link = self.open_link()?;
        self.open_namespace(&request).await;
        request.credential_ends = request.credential_ends.map(|end| self.there(end));
        match link.ask(Ask::Admit(admit_to_wire(request)?)).await? {
            Answered::Admitted(admitted) => {
                // It is held since it arrived; see `Shared::given`.
                let record = self.received(need("session", admitted.session)?)?;
                let token = Token::received(SecretKind::Session, admitted.token);
                Ok((record, token.ok_or_else(|| bad("the token of a session has not its form"))?))
            }
            _ => Err(unexpected()),
        }
    }

    /// Asks for a share of the namespace's rate before its first session opens, and waits a little for it.
    async fn open_namespace(&self, request: &AdmitRequest) {
        let name = &request.config.namespace;
        let has_rate = quota_of(&self.snapshot.borrow(), name).is_some();
        let now = Instant::now();
        let is_new = {
            let mut memory = self.memory();
            memory.opening.retain(|_, since| now.saturating_duration_since(*since) < super::memory::OPENING);
            has_rate && {
                memory.opening.insert(name.clone(), now);
                !memory.state.shares.contains_key(name)
            }
        };
        if !is_new {
            return;
        }
        self.demand.notify_one();
        let has_share = self.shares_taken.wait_for(|()| self.memory().state.shares.contains_key(name));
        // Without one the first operations are told to retry.
        let _ = tokio::time::timeout(SHARE_TIMEOUT, has_share).await;
    }

    pub(super) async fn extend(&self, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        let ask = wire::ExtendAsk { id: id_to_wire(id), expires_at_ms: self.there(expires_at).0 };
        self.ask(Ask::Extend(ask)).await?;
        if let Some(record) = self.memory().state.held.get_mut(&id) {
            record.expires_at = record.expires_at.max(expires_at);
        }
        self.keeper.change();
        Ok(())
    }

    pub(super) async fn resolve(&self, token: &SecretProof) -> Result<Option<SessionRecord>> {
        match self.ask(Ask::Resolve(wire::ResolveAsk { token: Some(proof_to_wire(token)) })).await? {
            Answered::Resolved(wire::Resolved { session }) => {
                let record = session.map(|session| self.received(session)).transpose()?;
                // It was given to this node when it arrived, unless it has ended here, or was terminated on its way.
                Ok(record.and_then(|record| self.memory().state.held.get(&record.id).cloned()))
            }
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn certify(&self, csr_pem: Vec<u8>) -> Result<Vec<u8>> {
        match self.ask(Ask::Certify(wire::CertifyAsk { csr_pem: csr_pem.into() })).await? {
            Answered::Certified(certified) => Ok(certified.chain_pem.to_vec()),
            _ => Err(unexpected()),
        }
    }

    /// Ends a session: with the controller, or without it for now. Durable on return, one way or the other.
    pub(super) async fn end(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        match self.ask_end(&last, reason).await {
            Ok(()) => {
                self.memory().state.apply(Event::Gone(last.id));
                self.keeper.change();
                // The controller has it. On this disk it matters only for a start without one.
                if let Err(error) = self.keeper.record(Event::Gone(last.id)).await {
                    tracing::warn!(session.id = %last.id, %error, "the end of a session is not written down yet");
                }
                Ok(())
            }
            Err(Unanswered::Refused(error)) if is_of_another(&error) => {
                self.memory().state.apply(Event::Gone(last.id));
                self.keeper.change();
                Ok(())
            }
            Err(Unanswered::Refused(error)) => Err(error),
            Err(Unanswered::Lost) => {
                let event = Event::Ended(last, reason);
                self.memory().state.apply(event.clone());
                self.keeper.change();
                self.outbox.notify_one();
                self.keeper.record(event).await
            }
        }
    }

    async fn ask_end(&self, last: &SessionReport, reason: EndReason) -> Result<(), Unanswered> {
        self.ask(Ask::End(end_to_wire(&self.report_there(last), reason))).await.map(|_| ())
    }

    /// Reports sessions: to the controller, or for later. Durable on return, one way or the other.
    pub(super) async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        {
            let mut memory = self.memory();
            for report in &reports {
                memory.update(report);
            }
        }
        match self.ask_report(&reports).await {
            Ok(()) => Ok(()),
            Err(Unanswered::Refused(error)) => Err(error),
            Err(Unanswered::Lost) => {
                {
                    let mut memory = self.memory();
                    for report in reports {
                        memory.keep_report(report);
                    }
                }
                self.outbox.notify_one();
                self.keeper.keep().await
            }
        }
    }

    async fn ask_report(&self, reports: &[SessionReport]) -> Result<(), Unanswered> {
        for some in reports.chunks(REPORTS_AT_ONCE) {
            let reports = some.iter().map(|report| report_to_wire(&self.report_there(report))).collect();
            self.ask(Ask::Report(wire::ReportAsk { reports })).await?;
        }
        Ok(())
    }

    /// Hands over what was kept; `false` when there is something left.
    pub(super) async fn hand_over(&self) -> bool {
        let ends: Vec<_> = self.memory().state.ends.values().cloned().collect();
        for some in ends.chunks(ENDS_AT_ONCE) {
            let asked = futures::future::join_all(some.iter().map(|(last, reason)| self.ask_end(last, *reason))).await;
            let mut all = true;
            for ((last, _), answer) in some.iter().zip(asked) {
                match answer {
                    Ok(()) => drop(self.memory().state.ends.remove(&last.id)),
                    Err(Unanswered::Refused(error)) if is_of_another(&error) => {
                        tracing::warn!(session.id = %last.id, %error, "a session that ended here goes on on another node");
                        self.memory().state.ends.remove(&last.id);
                    }
                    Err(Unanswered::Lost) => all = false,
                    Err(Unanswered::Refused(error)) => {
                        tracing::warn!(session.id = %last.id, %error, "the controller did not take the end of a session yet");
                        all = false;
                    }
                }
            }
            self.keeper.change();
            if !all {
                return false;
            }
        }
        let reports: Vec<_> = self.memory().state.reports.values().cloned().collect();
        if reports.is_empty() {
            return true;
        }
        if let Err(unanswered) = self.ask_report(&reports).await {
            if let Unanswered::Refused(error) = unanswered {
                tracing::warn!(%error, "the controller did not take reports yet");
            }
            return false;
        }
        let mut memory = self.memory();
        for report in &reports {
            // A newer one may have come meanwhile.
            if memory.state.reports.get(&report.id) == Some(report) {
                memory.state.reports.remove(&report.id);
            }
        }
        drop(memory);
        self.keeper.change();
        true
    }
}

/// Hands over what was kept, whenever there is a controller.
pub async fn hand_over(shared: Arc<Shared>) {
    let mut done = true;
    loop {
        // A new link has somebody look, too.
        tokio::select! {
            biased;
            () = shared.outbox.notified() => {}
            () = tokio::time::sleep(BACKOFF.1), if !done => {}
        }
        shared.link.wait_for(Option::is_some).await;
        done = shared.hand_over().await;
    }
}
