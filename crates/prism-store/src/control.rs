use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use prism_core::access::ClientAccess;
use prism_core::config::Config;
use prism_core::control::{
    ClientCredential, ClientIdentity, ClusterState, ControlPlane, NamespaceStatus, Removal, Snapshot,
};
use prism_core::error::QuotaViolation;
use prism_core::nodes::JoinedNode;
use prism_core::secret::{SecretKind, SecretProof, Token};
use prism_core::session::{
    AdmitRequest, ClientBasis, EndReason, SessionFigures, SessionId, SessionRecord, SessionReport,
};
use prism_core::{ConfigName, Error, Kind, NamespaceName, NodeId, Result, UnixMillis};
use tokio::sync::watch;

use crate::Store;
use crate::config::Wanted;
use crate::tx::{Guard, Touched, Tx};

/// When to come back where nobody has said when it will be over (contract §8 "maintenance").
const RETRY: Duration = Duration::from_secs(30);

#[async_trait]
impl ControlPlane for Store {
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.snapshot.subscribe()
    }

    async fn authenticate_client(&self, credential: ClientCredential<'_>) -> Result<ClientIdentity> {
        let now = self.clock.now();
        let refused = || Error::unauthenticated("CLIENT_CREDENTIAL_INVALID", "the client credential is not valid");
        let (basis, ends) = match credential {
            ClientCredential::Key(key) => {
                let keys = self.published.client_keys.load();
                let matching = keys.get(&key.id).filter(|found| found.hash.is_of(&key) && found.life.is_valid(now));
                let found = matching.ok_or_else(refused)?;
                (ClientBasis { credential_id: found.id.to_string(), ..ClientBasis::default() }, found.life.expires_at)
            }
            ClientCredential::Proven(client) => (client.basis.clone(), client.ends),
        };
        let access = Arc::clone(&self.published.snapshot.borrow().client_access);
        if basis.certificate.as_ref().is_some_and(|fingerprint| access.revoked_certificates.contains(fingerprint)) {
            return Err(refused());
        }
        let grants = access.grants(&basis, now);
        if grants.is_empty() {
            // A key always has its namespace, unless it was revoked this very moment.
            return Err(if basis.subjects.is_empty() { refused() } else { no_namespace(&basis) });
        }
        Ok(ClientIdentity { basis, grants, ends })
    }

    async fn config_version(&self, name: &ConfigName, version: &str) -> Result<Option<Arc<Config>>> {
        let (name, wanted) = (name.clone(), Wanted::Version(version.to_owned()));
        let published = Arc::clone(&self.published);
        self.database
            .readers
            .run(move |connection| {
                // Nothing here depends on the time.
                let (touched, now) = (&mut Touched::default(), UnixMillis(0));
                let tx = Tx { connection, touched, published: &published, guard: Guard::Savepoint, now };
                Ok(tx.config(name.as_str(), &wanted)?.map(|row| row.config))
            })
            .await
    }

    async fn admit_session(&self, request: AdmitRequest) -> Result<(SessionRecord, Token)> {
        let secret = self.random.secret(SecretKind::Session);
        let max_age = self.policy.max_age;
        let token = secret.token.clone();
        let record = self
            .write(move |tx| {
                tx.may_admit(&request)?;
                let latest = tx.now + max_age;
                let record = SessionRecord {
                    id: SessionId::generate(),
                    token_id: secret.id,
                    token_hash: secret.hash,
                    client_id: request.client_id,
                    client_version: request.client_version,
                    metadata: request.metadata,
                    config: request.config,
                    config_name: request.config_name,
                    grant: request.grant,
                    basis: request.basis,
                    created_at: tx.now,
                    expires_at: request.credential_ends.map_or(latest, |ends| ends.min(latest)),
                    last_activity: tx.now,
                    terminating: None,
                    figures: SessionFigures::default(),
                };
                tx.insert_session(&record, &request.node)?;
                tx.touch_client_key(&record.basis)?;
                Ok(record)
            })
            .await?;
        Ok((record, token))
    }

    async fn live_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        let node = node.clone();
        self.write(move |tx| tx.revive_sessions(&node)).await
    }

    async fn extend_session(&self, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        let max_age = self.policy.max_age;
        self.write(move |tx| tx.extend_session(id, expires_at, max_age, None)).await
    }

    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        self.write(move |tx| tx.end_reported(&last, reason).map(|_| ())).await
    }

    async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        self.write(move |tx| tx.apply_reports(&reports)).await
    }

    fn may_be_elsewhere(&self) -> bool {
        self.published.has_nodes.load(Ordering::Relaxed)
    }

    /// The data plane of this process has all of its own sessions, and one that it has not is ending; the backends of another node
    /// are never its own.
    async fn resolve_session(&self, token: &SecretProof, node: &NodeId) -> Result<Option<SessionRecord>> {
        match self.session_of(token).await? {
            Some((owner, _)) if owner != *node => {
                let message = format!("the session is on the node {owner}; go there, or open a new session");
                Err(Error::precondition("SESSION_ELSEWHERE", message).with("node", owner.as_str()))
            }
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl ClusterState for Store {
    async fn held_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        let node = node.clone();
        self.read(move |tx| tx.held_sessions(&node)).await
    }

    async fn serving_nodes(&self) -> Result<Vec<NodeId>> {
        self.read(|tx| tx.serving_nodes()).await
    }

    async fn sharing_nodes(&self) -> Result<Vec<NodeId>> {
        let max_age = self.policy.max_age;
        // No session is older, whatever its node knows of it.
        self.read(move |tx| tx.sharing_nodes(tx.now - max_age)).await
    }

    async fn joined_nodes(&self) -> Result<Vec<JoinedNode>> {
        self.read(|tx| tx.joined_nodes()).await
    }

    async fn removals(&self, namespace: &NamespaceName) -> Result<Vec<(NodeId, Removal)>> {
        let namespace = namespace.clone();
        self.read(move |tx| tx.node_removals(&namespace)).await
    }

    async fn removals_of(&self, node: &NodeId) -> Result<Vec<Removal>> {
        let node = node.clone();
        self.read(move |tx| tx.removals_of_node(&node)).await
    }

    async fn removed(&self, node: &NodeId, removal: &Removal) -> Result<()> {
        let (node, removal) = (node.clone(), removal.clone());
        self.write(move |tx| tx.finish_node_removal(&node, &removal)).await
    }

    async fn report_of(&self, node: &NodeId, reports: Vec<SessionReport>) -> Result<()> {
        let node = node.clone();
        self.write(move |tx| tx.apply_reports_of(&node, &reports)).await
    }

    async fn extend_of(&self, node: &NodeId, id: SessionId, expires_at: UnixMillis) -> Result<()> {
        let (node, max_age) = (node.clone(), self.policy.max_age);
        self.write(move |tx| tx.extend_session(id, expires_at, max_age, Some(&node))).await
    }

    async fn end_of(&self, node: &NodeId, last: SessionReport, reason: EndReason) -> Result<()> {
        let node = node.clone();
        self.write(move |tx| tx.end_reported_of(&node, &last, reason)).await
    }

    async fn node_of(&self, id: SessionId) -> Result<Option<NodeId>> {
        self.read(move |tx| tx.node_of(id)).await
    }

    async fn session_of(&self, token: &SecretProof) -> Result<Option<(NodeId, SessionRecord)>> {
        let token = *token;
        self.read(move |tx| tx.session_of(&token)).await
    }

    fn seal(&self, words: &[u8]) -> Vec<u8> {
        self.signer.seal(words)
    }

    fn has_sealed(&self, words: &[u8], seal: &[u8]) -> bool {
        self.signer.has_sealed(words, seal)
    }

    async fn move_session(&self, id: SessionId, from: &NodeId, to: &NodeId) -> Result<bool> {
        let (from, to) = (from.clone(), to.clone());
        self.write(move |tx| tx.move_session(id, &from, &to)).await
    }
}

fn no_namespace(basis: &ClientBasis) -> Error {
    let subjects = basis.subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("no namespace is given to {subjects}; an operator can give one with a client binding");
    Error::new(Kind::PermissionDenied, "NO_NAMESPACE", message)
}

impl Tx<'_> {
    /// The client access with the changes of this batch.
    fn client_access(&self) -> Result<Arc<ClientAccess>> {
        if self.touched.client_access {
            // Rare: an admission in one batch with a change of keys or bindings.
            return Ok(Arc::new(self.load_client_access()?));
        }
        Ok(Arc::clone(&self.published.snapshot.borrow().client_access))
    }

    /// Whether `key` is the key that `basis` names.
    fn is_key_of(&self, basis: &ClientBasis, key: Option<&SecretProof>) -> Result<bool> {
        let Some(key) = key.filter(|key| key.id.as_str() == basis.credential_id) else { return Ok(false) };
        Ok(self.client_key(key.id.as_str())?.is_some_and(|row| row.hash.is_of(key)))
    }

    /// Decides on an admission inside the transaction that carries it out, so that quotas are exact.
    fn may_admit(&self, request: &AdmitRequest) -> Result<()> {
        let name = &request.config.namespace;
        let current = self.client_access()?;
        // A key is proven here, whoever says that it was: the one who asks may be a node.
        let is_proven = !request.basis.subjects.is_empty() || self.is_key_of(&request.basis, request.key.as_ref())?;
        if !is_proven || !current.upholds(&request.basis, name, request.grant, self.now) {
            return Err(Error::unauthenticated(
                "CLIENT_CREDENTIAL_INVALID",
                "the client credential is not valid any more",
            ));
        }
        let row = self.namespace(name.as_str())?.ok_or_else(|| Error::not_found(format!("namespace:{name}")))?;
        if let Some(config) = &request.config_name
            && self.config_namespace(config.as_str())?.is_none()
        {
            return Err(Error::not_found(format!("config:{config}")));
        }
        if self.has_to_remove(&request.node, name)? {
            let message = format!("the data of an earlier namespace {name} is still being removed here; retry later");
            return Err(Error::unavailable("NAMESPACE_BEING_REMOVED", message).retry_after(RETRY));
        }
        if self.drains()?.iter().any(|scope| scope.covers(name, &request.node)) {
            return Err(
                Error::unavailable("DRAINING", "sessions are being drained here; retry later").retry_after(RETRY)
            );
        }
        if let Some((_, maintenance)) =
            self.maintenance()?.into_iter().rev().find(|(scope, _)| scope.is_empty() || scope == name.as_str())
        {
            let left = maintenance.ends_at.map_or(RETRY, |end| end.since(self.now));
            let message =
                if maintenance.message.is_empty() { "under maintenance".to_owned() } else { maintenance.message };
            return Err(Error::unavailable("MAINTENANCE", message).retry_after(left));
        }
        if row.namespace.status == NamespaceStatus::Suspended {
            return Err(Error::precondition(
                "NAMESPACE_SUSPENDED",
                format!("namespace {name} is suspended by its operators"),
            ));
        }
        let limit = row.namespace.quota.max_sessions;
        if limit > 0 {
            let usage = self.dependants(name)?.sessions;
            if usage >= limit {
                return Err(Error::quota(QuotaViolation {
                    subject: format!("namespace:{name}"),
                    quota: "max_sessions",
                    limit,
                    usage,
                }));
            }
        }
        Ok(())
    }
}
