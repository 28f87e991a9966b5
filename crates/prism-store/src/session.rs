use std::sync::Arc;

use prism_core::control::DrainScope;
use prism_core::limits::SessionPolicy;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::{SecretHash, SecretId, SecretProof};
use prism_core::session::{
    self, ClientBasis, DataGrant, EndReason, SessionFigures, SessionId, SessionRecord, SessionReport, SessionStatus,
};
use prism_core::subject::Subject;
use prism_core::{ConfigName, Error, NamespaceName, NodeId, Result, UnixMillis};
use rusqlite::{Row, named_params};
use serde::{Deserialize, Serialize};

use crate::tx::{Tx, corrupt, limited_to, present_only};

/// How long after its end a session of a node that is away counts.
pub(crate) const OVERDUE_GRACE: std::time::Duration = std::time::Duration::from_mins(5);

/// A session as operators see it: live, or ended and still listed. What its client chose freely — config and metadata, which
/// may be large — is not read for it.
#[derive(Clone, Debug)]
pub struct SessionSummary {
    /// Id.
    pub id: SessionId,
    /// Public id of its token.
    pub token_id: SecretId,
    /// What the client calls itself.
    pub client_id: String,
    /// Its namespace.
    pub namespace: String,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it ends at the latest.
    pub expires_at: UnixMillis,
    /// Its last request, as far as reported.
    pub last_activity: UnixMillis,
    /// Figures, as far as reported.
    pub figures: SessionFigures,
    /// Whether it is being drained or gently terminated.
    pub leaving: bool,
    /// When it ended.
    pub ended_at: Option<UnixMillis>,
}

impl SessionSummary {
    /// Its status at `now`.
    pub fn status(&self, policy: &SessionPolicy, now: UnixMillis) -> SessionStatus {
        session::status(policy, now, self.ended_at.is_some(), self.leaving, self.last_activity, self.expires_at)
    }
}

const SUMMARY: &str = "id, token_id, created_at, expires_at, last_activity, requests_total, bytes_sent, bytes_received,
    active_streams, last_request, client_id, namespace, draining OR terminating IS NOT NULL, ended_at";

fn read_summary(row: &Row<'_>) -> rusqlite::Result<SessionSummary> {
    let (id, token_id) = ids(row)?;
    Ok(SessionSummary {
        id,
        token_id,
        created_at: UnixMillis(row.get(2)?),
        expires_at: UnixMillis(row.get(3)?),
        last_activity: UnixMillis(row.get(4)?),
        figures: figures(row)?,
        client_id: row.get(10)?,
        namespace: row.get(11)?,
        leaving: row.get(12)?,
        ended_at: row.get::<_, Option<i64>>(13)?.map(UnixMillis),
    })
}

const RECORD: &str = "id, token_id, created_at, expires_at, last_activity, requests_total, bytes_sent, bytes_received,
    active_streams, last_request, client_id, client_version, metadata, config, config_name, may_read, may_write, credential_id,
    token_hash, terminating, basis";

fn read_record(row: &Row<'_>) -> rusqlite::Result<SessionRecord> {
    let (id, token_id) = ids(row)?;
    Ok(SessionRecord {
        id,
        token_id,
        created_at: UnixMillis(row.get(2)?),
        expires_at: UnixMillis(row.get(3)?),
        last_activity: UnixMillis(row.get(4)?),
        figures: figures(row)?,
        client_id: row.get(10)?,
        client_version: row.get(11)?,
        metadata: serde_json::from_str(row.get_ref(12)?.as_str()?).map_err(corrupt)?,
        config: Arc::new(serde_json::from_str(row.get_ref(13)?.as_str()?).map_err(corrupt)?),
        config_name: row.get::<_, Option<String>>(14)?.map(ConfigName::try_from).transpose().map_err(corrupt)?,
        grant: DataGrant { read: row.get(15)?, write: row.get(16)? },
        basis: basis(row.get(17)?, row.get(20)?)?,
        token_hash: SecretHash::from_bytes(row.get_ref(18)?.as_blob()?).ok_or_else(|| corrupt("token hash"))?,
        terminating: row.get(19)?,
    })
}

/// What a session stands on beside the id of its credential.
#[derive(Serialize, Deserialize)]
struct StoredBasis {
    subjects: Vec<Subject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
}

fn basis(credential_id: String, stored: Option<String>) -> rusqlite::Result<ClientBasis> {
    let Some(stored) = stored else { return Ok(ClientBasis { credential_id, ..ClientBasis::default() }) };
    let StoredBasis { subjects, certificate, authority } = serde_json::from_str(&stored).map_err(corrupt)?;
    Ok(ClientBasis { credential_id, subjects, certificate, authority })
}

fn stored_basis(basis: &ClientBasis) -> Result<Option<String>> {
    if basis.subjects.is_empty() {
        return Ok(None);
    }
    let ClientBasis { subjects, certificate, authority, .. } = basis.clone();
    serde_json::to_string(&StoredBasis { subjects, certificate, authority }).map(Some).map_err(Error::internal)
}

fn ids(row: &Row<'_>) -> rusqlite::Result<(SessionId, SecretId)> {
    Ok((
        SessionId::parse(row.get_ref(0)?.as_str()?).ok_or_else(|| corrupt("session id"))?,
        SecretId::parse(row.get_ref(1)?.as_str()?).ok_or_else(|| corrupt("token id"))?,
    ))
}

/// Columns 5 to 9 of both.
fn figures(row: &Row<'_>) -> rusqlite::Result<SessionFigures> {
    Ok(SessionFigures {
        requests_total: row.get(5)?,
        bytes_sent: row.get(6)?,
        bytes_received: row.get(7)?,
        active_streams: row.get(8)?,
        last_request: row.get::<_, Option<i64>>(9)?.map(UnixMillis),
    })
}

/// The SQL of [`session::status`], for filters over many rows.
const STATUS: &str = "CASE WHEN ended_at IS NOT NULL THEN 4
    WHEN draining = 1 OR terminating IS NOT NULL OR expires_at - :now < :expiring THEN 3
    WHEN :now - last_activity >= :idle THEN 2 ELSE 1 END";

impl Tx<'_> {
    /// One session, live or ended.
    pub fn session(&self, id: SessionId) -> Result<Option<SessionSummary>> {
        self.one(&format!("SELECT {SUMMARY} FROM sessions WHERE id = ?1"), [id.to_string()], read_summary)
    }

    /// The namespace of a session.
    pub fn session_namespace(&self, id: &str) -> Result<Option<String>> {
        self.one("SELECT namespace FROM sessions WHERE id = ?1", [id], |row| row.get(0))
    }

    /// Sessions within `reach`, oldest first, and how many there are.
    pub fn sessions(
        &self,
        reach: &Reach,
        namespace: Option<&str>,
        status: Option<SessionStatus>,
        policy: &SessionPolicy,
        page: &Page,
    ) -> Result<(Vec<SessionSummary>, i64)> {
        let limited = limited_to(reach, namespace);
        let status = status.map(|status| match status {
            SessionStatus::Active => 1,
            SessionStatus::Idle => 2,
            SessionStatus::Expiring => 3,
            SessionStatus::Terminated => 4,
        });
        let present = present_only(reach);
        let filter = format!(
            "(:limited IS NULL OR namespace IN (SELECT value FROM json_each(:limited)))
             AND (NOT :present OR EXISTS (
                SELECT 1 FROM namespaces n WHERE n.name = sessions.namespace AND n.created_at <= sessions.created_at))
             AND (:status IS NULL OR {STATUS} = :status)"
        );
        let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let (now, expiring, idle) = (self.now.0, millis(policy.expiring_within), millis(policy.idle_after));
        let rows = self.all(
            &format!("SELECT {SUMMARY} FROM sessions WHERE {filter} AND id > :after ORDER BY id LIMIT :limit"),
            named_params! {
                ":limited": limited, ":present": present, ":status": status, ":now": now, ":expiring": expiring, ":idle": idle,
                ":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1,
            },
            read_summary,
        )?;
        let total = self.count(
            &format!("SELECT count(*) FROM sessions WHERE {filter}"),
            named_params! {":limited": limited, ":present": present, ":status": status, ":now": now, ":expiring": expiring, ":idle": idle},
        )?;
        Ok((rows, total))
    }

    /// Live sessions in `scope`.
    pub fn live_session_count(&self, scope: &DrainScope) -> Result<i64> {
        self.count(
            "SELECT count(*) FROM sessions WHERE ended_at IS NULL AND (?1 IS NULL OR namespace = ?1) AND (?2 IS NULL OR node = ?2)",
            (scope.namespace.as_ref().map(NamespaceName::as_str), scope.node.as_ref().map(NodeId::as_str)),
        )
    }

    /// Takes over what a node reported; reports of sessions that are over change nothing.
    pub fn apply_reports(&mut self, reports: &[SessionReport]) -> Result<()> {
        reports.iter().try_for_each(|report| self.apply_report(report, None))
    }

    /// The same, of sessions of one node only.
    pub(crate) fn apply_reports_of(&mut self, node: &NodeId, reports: &[SessionReport]) -> Result<()> {
        reports.iter().try_for_each(|report| self.apply_report(report, Some(node)))
    }

    fn apply_report(&self, report: &SessionReport, node: Option<&NodeId>) -> Result<()> {
        let figures = &report.figures;
        self.execute(
            "UPDATE sessions SET last_activity = max(last_activity, min(?2, ?9)), requests_total = max(requests_total, ?3),
                bytes_sent = max(bytes_sent, ?4), bytes_received = max(bytes_received, ?5), active_streams = max(?6, 0),
                last_request = coalesce(min(?7, ?9), last_request)
             WHERE id = ?1 AND ended_at IS NULL AND (?8 IS NULL OR node = ?8)",
            (
                report.id.to_string(),
                report.last_activity.0,
                figures.requests_total,
                figures.bytes_sent,
                figures.bytes_received,
                figures.active_streams,
                figures.last_request.map(|at| at.0),
                node.map(NodeId::as_str),
                self.now.0,
            ),
        )?;
        Ok(())
    }

    /// Moves the end of a live session, to `max_age` after its beginning at the latest; of `node` only, if there is one.
    pub(crate) fn extend_session(
        &mut self,
        id: SessionId,
        expires_at: UnixMillis,
        max_age: std::time::Duration,
        node: Option<&NodeId>,
    ) -> Result<()> {
        let max_age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX / 2);
        self.execute(
            "UPDATE sessions SET expires_at = min(?2, created_at + ?3)
             WHERE id = ?1 AND ended_at IS NULL AND (?4 IS NULL OR node = ?4)",
            (id.to_string(), expires_at.0, max_age, node.map(NodeId::as_str)),
        )?;
        Ok(())
    }

    /// Marks a live session as being terminated gently; `false` when it is over or unknown.
    pub fn mark_terminating(&mut self, id: SessionId, reason: &str) -> Result<bool> {
        let changed = self.execute(
            "UPDATE sessions SET terminating = ?2 WHERE id = ?1 AND ended_at IS NULL",
            (id.to_string(), reason),
        )?;
        Ok(changed > 0)
    }

    /// Ends a live session; `false` when it is over or unknown.
    pub fn end_session(&mut self, id: SessionId, reason: EndReason) -> Result<bool> {
        let reason = serde_json::to_string(&reason).map_err(prism_core::Error::internal)?;
        let changed = self.execute(
            "UPDATE sessions SET ended_at = ?2, end_reason = ?3, active_streams = 0 WHERE id = ?1 AND ended_at IS NULL",
            (id.to_string(), self.now.0, reason),
        )?;
        Ok(changed > 0)
    }

    /// Ends the sessions of nodes whose end has come and that their node has not ended: it is away. No node moves that end without
    /// the controller, and each ends a session there by itself; how long it was idle, only the node knows. The grace is for a
    /// clock that was set while the node was alone.
    pub(crate) fn end_overdue_sessions(&mut self) -> Result<usize> {
        let reason = serde_json::to_string(&EndReason::Expired).map_err(prism_core::Error::internal)?;
        self.execute(
            "UPDATE sessions SET ended_at = ?1, end_reason = ?2, active_streams = 0
             WHERE ended_at IS NULL AND node <> 'local' AND expires_at <= ?3",
            (self.now.0, reason, (self.now - OVERDUE_GRACE).0),
        )
    }

    /// Takes over the last report of a session and ends it.
    pub fn end_reported(&mut self, last: &SessionReport, reason: EndReason) -> Result<bool> {
        self.apply_report(last, None)?;
        self.end_session(last.id, reason)
    }

    /// The same, of a session of one node only.
    pub(crate) fn end_reported_of(&mut self, node: &NodeId, last: &SessionReport, reason: EndReason) -> Result<()> {
        if self.node_of(last.id)?.as_ref() == Some(node) {
            self.end_reported(last, reason)?;
        }
        Ok(())
    }

    pub(crate) fn insert_session(&mut self, record: &SessionRecord, node: &NodeId) -> Result<()> {
        let json = |value: serde_json::Result<String>| value.map_err(prism_core::Error::internal);
        self.execute(
            "INSERT INTO sessions (id, token_id, token_hash, namespace, node, client_id, client_version, metadata, config, config_name,
                may_read, may_write, credential_id, basis, created_at, expires_at, last_activity)
             VALUES (:id, :token_id, :token_hash, :namespace, :node, :client_id, :client_version, :metadata, :config, :config_name,
                :may_read, :may_write, :credential_id, :basis, :created_at, :expires_at, :created_at)",
            named_params! {
                ":id": record.id.to_string(), ":token_id": record.token_id.as_str(), ":token_hash": record.token_hash.as_bytes(),
                ":namespace": record.config.namespace.as_str(), ":node": node.as_str(), ":client_id": record.client_id,
                ":client_version": record.client_version, ":metadata": json(serde_json::to_string(&record.metadata))?,
                ":config": json(serde_json::to_string(&*record.config))?,
                ":config_name": record.config_name.as_ref().map(ConfigName::as_str), ":may_read": record.grant.read,
                ":may_write": record.grant.write, ":credential_id": record.basis.credential_id,
                ":basis": stored_basis(&record.basis)?, ":created_at": record.created_at.0,
                ":expires_at": record.expires_at.0,
            },
        )?;
        Ok(())
    }

    /// The live sessions of a node, as they are.
    pub(crate) fn held_sessions(&self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        let sql = format!("SELECT {RECORD} FROM sessions WHERE node = ?1 AND ended_at IS NULL");
        self.all(&sql, [node.as_str()], read_record)
    }

    /// The nodes that have live sessions.
    pub(crate) fn serving_nodes(&self) -> Result<Vec<NodeId>> {
        let names: Vec<String> =
            self.all("SELECT DISTINCT node FROM sessions WHERE ended_at IS NULL ORDER BY node", [], |row| row.get(0))?;
        names.into_iter().map(|name| NodeId::parse("node", &name)).collect()
    }

    /// The same, with those that may not know what became of sessions of theirs: of those that were terminated since `since`, and of
    /// those that went on on another node and may have been alive then.
    pub(crate) fn sharing_nodes(&self, since: UnixMillis) -> Result<Vec<NodeId>> {
        let names: Vec<String> = self.all(
            "SELECT node FROM sessions WHERE ended_at IS NULL
             UNION SELECT node FROM sessions WHERE ended_at > ?1 AND end_reason = '\"terminated\"'
             UNION SELECT value FROM sessions, json_each(moved_from) WHERE moved_from IS NOT NULL AND created_at > ?1
             ORDER BY node",
            [since.0],
            |row| row.get(0),
        )?;
        names.into_iter().map(|name| NodeId::parse("node", &name)).collect()
    }

    /// The node of a session, live or ended.
    pub(crate) fn node_of(&self, id: SessionId) -> Result<Option<NodeId>> {
        let sql = "SELECT node FROM sessions WHERE id = ?1";
        let name: Option<String> = self.one(sql, [id.to_string()], |row| row.get(0))?;
        name.map(|name| NodeId::parse("node", &name)).transpose()
    }

    /// The live session with this token, and its node.
    pub(crate) fn session_of(&self, token: &SecretProof) -> Result<Option<(NodeId, SessionRecord)>> {
        let sql = format!("SELECT {RECORD}, node FROM sessions WHERE token_id = ?1 AND ended_at IS NULL");
        let found = self.one(&sql, [token.id.as_str()], |row| Ok((row.get::<_, String>(21)?, read_record(row)?)))?;
        let found = found.filter(|(_, record)| record.token_hash.is_of(token));
        found.map(|(node, record)| Ok((NodeId::parse("node", &node)?, record))).transpose()
    }

    /// Gives a live session to another node, where it counts as used now, as its own node cannot tell when it was; `false` when it
    /// is not live or not there any more.
    pub(crate) fn move_session(&mut self, id: SessionId, from: &NodeId, to: &NodeId) -> Result<bool> {
        let changed = self.execute(
            "UPDATE sessions SET node = ?3, active_streams = 0, last_activity = max(last_activity, ?4),
                moved_from = CASE
                    WHEN moved_from IS NULL THEN json_array(?2)
                    WHEN ?2 IN (SELECT value FROM json_each(moved_from)) THEN moved_from
                    ELSE json_insert(moved_from, '$[#]', ?2) END
             WHERE id = ?1 AND node = ?2 AND ended_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM node_removals r WHERE r.node = ?3 AND r.namespace = sessions.namespace)",
            (id.to_string(), from.as_str(), to.as_str(), self.now.0),
        )?;
        Ok(changed > 0)
    }

    /// What a start finds: no drain is in progress, and the time the server was down counts for nobody's idleness.
    pub(crate) fn revive_sessions(&mut self, node: &NodeId) -> Result<Vec<SessionRecord>> {
        self.execute(
            "UPDATE sessions SET ended_at = ?2, end_reason = '\"expired\"' WHERE node = ?1 AND ended_at IS NULL AND expires_at <= ?2",
            (node.as_str(), self.now.0),
        )?;
        // Nothing is running after a start, so a gentle termination has nothing left to wait for.
        self.execute(
            "UPDATE sessions SET ended_at = ?2, end_reason = '\"terminated\"'
             WHERE node = ?1 AND ended_at IS NULL AND terminating IS NOT NULL",
            (node.as_str(), self.now.0),
        )?;
        self.execute(
            "UPDATE sessions SET draining = 0, active_streams = 0, last_activity = max(last_activity, ?2) WHERE node = ?1 AND ended_at IS NULL",
            (node.as_str(), self.now.0),
        )?;
        self.all(
            &format!("SELECT {RECORD} FROM sessions WHERE node = ?1 AND ended_at IS NULL"),
            [node.as_str()],
            read_record,
        )
    }
}
