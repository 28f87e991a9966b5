//! Answers to the questions of a node.

use std::sync::Arc;

use prism_core::config::Config;
use prism_core::control::{ClientCredential, ProvenClient};
use prism_core::secret::SecretProof;
use prism_core::session::{EndReason, SessionId, SessionRecord, SessionReport};
use prism_core::{ConfigName, Error, Kind, NodeId, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;
use wire::answer::Result as Answered;
use wire::ask::Ask;
use wire::controller_frame::Frame;

use super::Shared;
use super::link::Link;
use crate::bounds::{CERTIFY_RATE, MAX_REPORTS, MOVES};
use crate::convert::{
    admit_from_wire, bad, basis_from_wire, bounded, client_to_wire, config_to_wire, failure_to_wire, id_from_wire,
    need, proof_from_wire, record_to_wire, report_from_wire,
};

impl Shared {
    /// Answers a question.
    pub(super) async fn answer(self: &Arc<Self>, link: &Arc<Link>, ask: wire::Ask) {
        let id = ask.id;
        let outcome = self.work_out(link, ask.ask).await;
        let (result, admitted) = match outcome {
            Ok((result, admitted)) => (result, admitted),
            Err(error) => {
                if let Some(cause) = error.cause() {
                    tracing::warn!(node.id = %link.node(), reason = error.reason(), cause = %cause, "a question of a node failed");
                }
                (Answered::Failure(failure_to_wire(&error)), None)
            }
        };
        let sent = link.send(Frame::Answer(wire::Answer { id, result: Some(result) })).await;
        match admitted {
            Some(last) if sent => self.answered(link, last),
            Some(last) => self.withdraw(last).await,
            None => {}
        }
    }

    /// Ends a session whose token went nowhere, here and at the node, which may have been given it when it came back.
    async fn withdraw(&self, last: SessionReport) {
        let id = last.id;
        if let Err(error) = self.options.control.end_session(last, EndReason::Closed).await {
            tracing::warn!(session.id = %id, %error, "a session that nobody waits for is not ended");
            return;
        }
        self.terminate_everywhere(id, "nobody waits for it any more").await;
    }

    /// Ends sessions whose token went nowhere, before their node is told of them. One that is another node's by now was heard of,
    /// and goes on there.
    pub(super) async fn end_unheard(&self, link: &Link, lost: impl Iterator<Item = SessionReport>) {
        let ended = lost.map(|last| async {
            let id = last.id;
            tracing::info!(session.id = %id, "a session ends: the answer with its token was lost");
            if let Err(error) = self.options.control.end_of(link.node(), last, EndReason::Closed).await {
                tracing::warn!(session.id = %id, %error, "a session that nobody waits for is not ended");
            }
        });
        futures::future::join_all(ended).await;
    }

    /// The answer, and the session that goes with it if it is an admission.
    async fn work_out(&self, link: &Link, ask: Option<Ask>) -> Result<(Answered, Option<SessionReport>)> {
        let (control, node) = (&self.options.control, link.node());
        let answer = match need("the question", ask)? {
            Ask::Authenticate(ask) => Answered::Client(client_to_wire(&self.authenticate(ask).await?)),
            Ask::ConfigVersion(ask) => {
                let name = ConfigName::try_from(ask.name).map_err(bad)?;
                let found = control.config_version(&name, &ask.version).await?;
                let config_json = found.map(|config| config_to_wire(&config)).transpose()?;
                Answered::Config(wire::ConfigFound { config_json })
            }
            Ask::Admit(ask) => {
                let mut request = admit_from_wire(ask, node.clone())?;
                request.config = match &request.config_name {
                    Some(name) => self.own_config(name, &request.config.version).await?,
                    None => self.inline_config(link.catalog(), &request)?,
                };
                let (record, token) = control.admit_session(request).await?;
                let last =
                    SessionReport { id: record.id, last_activity: record.last_activity, figures: record.figures };
                let session = Some(record_to_wire(&record)?);
                return Ok((Answered::Admitted(wire::Admitted { session, token: token.into_exposed() }), Some(last)));
            }
            Ask::Extend(ask) => {
                let id = id_from_wire(&ask.id)?;
                self.own(node, id).await?;
                control.extend_of(node, id, UnixMillis(ask.expires_at_ms)).await?;
                Answered::Done(wire::Done {})
            }
            Ask::End(ask) => {
                let reason = EndReason::ALL.into_iter().find(|reason| reason.name() == ask.reason);
                let reason = reason.ok_or_else(|| bad(format_args!("{:?} is no reason to end", ask.reason)))?;
                let last = report_from_wire(&need("last", ask.last)?)?;
                self.own(node, last.id).await?;
                control.end_of(node, last, reason).await?;
                Answered::Done(wire::Done {})
            }
            Ask::Report(ask) => {
                let mut reports = Vec::new();
                for report in bounded("reports", ask.reports, MAX_REPORTS)? {
                    reports.push(report_from_wire(&report)?);
                }
                control.report_of(node, reports).await?;
                Answered::Done(wire::Done {})
            }
            Ask::Certify(ask) => {
                let certifier = self.options.certifier.as_ref().ok_or_else(|| {
                    Error::precondition(
                        "NO_CA",
                        "this controller makes no certificates for data ports; give the node files",
                    )
                })?;
                if !self.may_certify(node) {
                    let message =
                        format!("the node has had its certificates for now; there is one every {:?}", CERTIFY_RATE.1);
                    let error = Error::new(Kind::ResourceExhausted, "TOO_MANY_CERTIFICATES", message);
                    return Err(error.retry_after(CERTIFY_RATE.1));
                }
                let chain = certifier.server_certificate(node, &ask.csr_pem)?;
                tracing::info!(node.id = %node, "a certificate for a data port was made");
                Answered::Certified(wire::Certified { chain_pem: chain.into() })
            }
            Ask::Resolve(ask) => {
                let token = proof_from_wire(&need("token", ask.token)?)?;
                let record = self.resolve(node, &token).await?;
                if record.is_some() && !self.is_in_place(link) {
                    // Over this link nobody may hear of it, and the one in its place may have told before what there is.
                    self.cut(node);
                }
                Answered::Resolved(wire::Resolved { session: record.as_ref().map(record_to_wire).transpose()? })
            }
        };
        Ok((answer, None))
    }

    /// A version of a config as the control state has it, whatever a node says is in it.
    async fn own_config(&self, name: &ConfigName, version: &str) -> Result<Arc<Config>> {
        let snapshot = self.snapshot.get();
        let current = snapshot.configs.get(name).filter(|revision| revision.config.version == version);
        if let Some(current) = current {
            return Ok(Arc::clone(&current.config));
        }
        let found = self.options.control.config_version(name, version).await?;
        found.ok_or_else(|| Error::not_found(format!("version {version:?} of config:{name}")))
    }

    async fn authenticate(&self, ask: wire::AuthenticateAsk) -> Result<prism_core::control::ClientIdentity> {
        use wire::authenticate_ask::Credential;
        match need("the credential", ask.credential)? {
            Credential::Key(proof) => {
                self.options.control.authenticate_client(ClientCredential::Key(proof_from_wire(&proof)?)).await
            }
            Credential::Proven(proven) => {
                let basis = basis_from_wire(need("basis", proven.basis)?)?;
                // The control plane takes a client without subjects for a key.
                if basis.subjects.is_empty() {
                    return Err(bad("a client that proved itself names nobody"));
                }
                let client = ProvenClient { basis, ends: proven.ends_at_ms.map(UnixMillis) };
                self.options.control.authenticate_client(ClientCredential::Proven(&client)).await
            }
        }
    }

    /// A node may touch its own sessions only. One that is not known any more is over, which is no error.
    async fn own(&self, node: &NodeId, id: SessionId) -> Result<()> {
        match self.options.control.node_of(id).await? {
            Some(owner) if owner != *node => {
                let message = format!("the session {id} is on the node {owner}");
                Err(Error::new(Kind::PermissionDenied, "NODE_MISMATCH", message))
            }
            _ => Ok(()),
        }
    }

    /// Gives the session of a token to a node that a client brought it to, when its own node is away and both serve the same
    /// data.
    async fn resolve(&self, node: &NodeId, token: &SecretProof) -> Result<Option<SessionRecord>> {
        let control = &self.options.control;
        // Others may take it meanwhile; who has it then is looked at once more.
        for _ in 0..MOVES {
            let Some((owner, record)) = control.session_of(token).await? else { return Ok(None) };
            if owner == *node {
                return Ok(Some(record));
            }
            if self.is_reachable(&owner) {
                return Err(session_elsewhere(&owner));
            }
            let instance = record.config.instance.as_str();
            if !self.serve_the_same(&owner, node, instance) {
                return Err(backend_elsewhere(&owner, node, instance));
            }
            if control.move_session(record.id, &owner, node).await? {
                tracing::info!(session.id = %record.id, from = %owner, to = %node, "a session goes on on another node");
                // If its node came back while it was moved, that may have been told that it still has it. On a new link it is told
                // anew.
                self.cut(&owner);
                // It may have been marked since it was looked at.
                let now = control.session_of(token).await?;
                return Ok(now.filter(|(owner, _)| owner == node).map(|(_, record)| record));
            }
        }
        let message = "the session is being taken from node to node; retry";
        Err(Error::aborted("SESSION_MOVING", message))
    }
}

/// FAILED_PRECONDITION `SESSION_ELSEWHERE`.
fn session_elsewhere(owner: &NodeId) -> Error {
    let message = format!("the session is on the node {owner}, which can be reached; go there");
    Error::precondition("SESSION_ELSEWHERE", message).with("node", owner.as_str())
}

/// FAILED_PRECONDITION `BACKEND_ELSEWHERE`.
fn backend_elsewhere(owner: &NodeId, node: &NodeId, instance: &str) -> Error {
    let message = format!(
        "the session is on the node {owner}, which is away; the data of its backend {instance} is that node's own and not on {node}, \
         so it goes on on {owner} only: wait for {owner}, or open a new session"
    );
    Error::precondition("BACKEND_ELSEWHERE", message).with("node", owner.as_str()).with("instance", instance)
}
