use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prism_core::config::Config;
use prism_core::control::{ClientIdentity, ControlPlane, NamespaceStatus, Snapshot};
use prism_core::error::QuotaViolation;
use prism_core::secret::{PresentedSecret, SecretKind, Token};
use prism_core::session::{AdmitRequest, EndReason, SessionFigures, SessionId, SessionRecord, SessionReport};
use prism_core::{ConfigName, Error, NodeId, Result, UnixMillis};
use tokio::sync::watch;

use crate::Store;
use crate::config::Wanted;
use crate::tx::{Touched, Tx};

/// When to come back where nobody has said when it will be over (contract §8 "maintenance").
const RETRY: Duration = Duration::from_secs(30);

#[async_trait]
impl ControlPlane for Store {
    fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.snapshot.subscribe()
    }

    async fn authenticate_client(&self, key: PresentedSecret<'_>) -> Result<ClientIdentity> {
        let keys = self.published.client_keys.load();
        keys.get(&key.id)
            .filter(|found| found.hash.matches(&key) && found.life.is_valid(self.clock.now()))
            .map(|found| ClientIdentity {
                credential_id: found.id.to_string(),
                namespace: found.namespace.clone(),
                grant: found.grant,
            })
            .ok_or_else(|| Error::unauthenticated("CLIENT_KEY_INVALID", "the client key is not valid"))
    }

    async fn config_version(&self, name: &ConfigName, version: &str) -> Result<Option<Arc<Config>>> {
        let (name, wanted) = (name.clone(), Wanted::Version(version.to_owned()));
        self.database
            .readers
            .run(move |connection| {
                // Nothing here depends on the time.
                let tx = Tx { connection, touched: &mut Touched::default(), now: UnixMillis(0) };
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
                    credential_id: request.credential_id,
                    created_at: tx.now,
                    expires_at: tx.now + max_age,
                    last_activity: tx.now,
                    terminating: None,
                    figures: SessionFigures::default(),
                };
                tx.insert_session(&record, &request.node)?;
                tx.touch_client_key(&record.credential_id)?;
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
        self.write(move |tx| {
            tx.execute(
                "UPDATE sessions SET expires_at = ?2 WHERE id = ?1 AND ended_at IS NULL",
                (id.to_string(), expires_at.0),
            )
            .map(|_| ())
        })
        .await
    }

    async fn end_session(&self, last: SessionReport, reason: EndReason) -> Result<()> {
        self.write(move |tx| tx.end_reported(&last, reason).map(|_| ())).await
    }

    async fn report(&self, reports: Vec<SessionReport>) -> Result<()> {
        self.write(move |tx| tx.apply_reports(&reports)).await
    }
}

impl Tx<'_> {
    /// Decides on an admission inside the transaction that carries it out, so that quotas are exact.
    fn may_admit(&self, request: &AdmitRequest) -> Result<()> {
        let name = &request.config.namespace;
        let row = self.namespace(name.as_str())?.ok_or_else(|| Error::not_found(format!("namespace:{name}")))?;
        if let Some(config) = &request.config_name
            && self.config_namespace(config.as_str())?.is_none()
        {
            return Err(Error::not_found(format!("config:{config}")));
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
