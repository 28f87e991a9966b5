use std::sync::atomic::Ordering;
use std::time::Duration;

use prism_core::limits::MAX_NODES;
use prism_core::nodes::{JoinedNode, Told, ToldBackend};
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::session::EndReason;
use prism_core::{Error, InstanceName, Kind, NodeId, Result, UnixMillis};
use rusqlite::{Row, named_params};
use serde::{Deserialize, Serialize};

use crate::tx::{Tx, corrupt, limited_to, present_only};

/// A revoked node stays listed for this long.
const RETAIN_REVOKED: Duration = Duration::from_hours(30 * 24);

/// A machine that has joined the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub id: NodeId,
    /// The join token that it came in with.
    pub token_id: String,
    /// When.
    pub joined_at: UnixMillis,
    /// When it was put out.
    pub revoked_at: Option<UnixMillis>,
    /// By whom.
    pub revoked_by: Option<String>,
    /// When it was last heard of.
    pub last_seen_at: Option<UnixMillis>,
    /// Version that it says it runs.
    pub version: Option<String>,
    /// Where it says it serves the data plane.
    pub data_endpoint: Option<String>,
    /// The backends that it says it serves.
    pub backends: Vec<ToldBackend>,
    /// Its live sessions.
    pub live_sessions: i64,
    /// When the last of its valid certificates ends.
    pub certificate_expires_at: Option<UnixMillis>,
}

const NODE: &str = "SELECT nodes.*, (SELECT max(expires_at) FROM certificates
    WHERE certificates.node_id = nodes.id AND certificates.revoked_at IS NULL) AS certificate_expires_at,
    (SELECT count(*) FROM sessions WHERE sessions.node = nodes.id AND sessions.node <> 'local' AND ended_at IS NULL)
    AS live_sessions FROM nodes";

/// The stored form of [`ToldBackend`].
#[derive(Serialize, Deserialize)]
struct StoredBackend {
    instance: String,
    #[serde(rename = "type")]
    kind: String,
}

fn read_backends(stored: Option<String>) -> rusqlite::Result<Vec<ToldBackend>> {
    let Some(stored) = stored else { return Ok(Vec::new()) };
    let stored: Vec<StoredBackend> = serde_json::from_str(&stored).map_err(corrupt)?;
    let told = |StoredBackend { instance, kind }| {
        Ok(ToldBackend { instance: InstanceName::try_from(instance).map_err(corrupt)?, kind })
    };
    stored.into_iter().map(told).collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<NodeRow> {
    let time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(UnixMillis));
    Ok(NodeRow {
        id: NodeId::try_from(row.get::<_, String>("id")?).map_err(corrupt)?,
        token_id: row.get("token_id")?,
        joined_at: UnixMillis(row.get("joined_at")?),
        revoked_at: time("revoked_at")?,
        revoked_by: row.get("revoked_by")?,
        last_seen_at: time("last_seen_at")?,
        version: row.get("version")?,
        data_endpoint: row.get("data_endpoint")?,
        backends: read_backends(row.get("backends")?)?,
        live_sessions: row.get("live_sessions")?,
        certificate_expires_at: time("certificate_expires_at")?,
    })
}

impl Tx<'_> {
    /// One node.
    pub fn node(&self, id: &str) -> Result<Option<NodeRow>> {
        self.one(&format!("{NODE} WHERE id = ?1"), [id], read)
    }

    /// The node that stands on a join token.
    pub fn node_of_token(&self, token_id: &str) -> Result<Option<NodeRow>> {
        self.one(&format!("{NODE} WHERE token_id = ?1"), [token_id], read)
    }

    /// All nodes, by name, and how many there are.
    pub fn nodes(&self, page: &Page) -> Result<(Vec<NodeRow>, i64)> {
        let rows = self.all(
            &format!("{NODE} WHERE id > :after ORDER BY id LIMIT :limit"),
            named_params! {":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1},
            read,
        )?;
        Ok((rows, self.count("SELECT count(*) FROM nodes", [])?))
    }

    /// Takes a node in, or in again under another token; RESOURCE_EXHAUSTED `TOO_MANY_NODES` when there are too many.
    pub fn enrol_node(&mut self, id: &NodeId, token_id: &str) -> Result<()> {
        // Before it has, which is too early by a commit at most.
        self.published.has_nodes.store(true, Ordering::Relaxed);
        let live = self.count("SELECT count(*) FROM nodes WHERE id = ?1 AND revoked_at IS NULL", [id.as_str()])? > 0;
        let all = ("SELECT count(*) FROM nodes WHERE revoked_at IS NULL", []);
        if !live && !self.takes_room(|at_most| &mut at_most.nodes, MAX_NODES, all)? {
            let message = format!("a cluster has at most {MAX_NODES} nodes; revoke those that are gone");
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_NODES", message));
        }
        let again = self.execute(
            "UPDATE nodes SET token_id = ?2, joined_at = ?3, last_seen_at = ?3, revoked_at = NULL, revoked_by = NULL,
                version = NULL, data_endpoint = NULL, backends = NULL
             WHERE id = ?1",
            (id.as_str(), token_id, self.now.0),
        )?;
        if again > 0 {
            return Ok(());
        }
        self.execute(
            "INSERT INTO nodes (id, token_id, joined_at, last_seen_at) VALUES (?1, ?2, ?3, ?3)",
            (id.as_str(), token_id, self.now.0),
        )?;
        Ok(())
    }

    /// Puts a node out; one that is out already stays as it was. Its certificates are another matter:
    /// [`Tx::revoke_node_certificates`].
    pub fn revoke_node(&mut self, id: &str, by: &str) -> Result<()> {
        self.execute(
            "UPDATE nodes SET revoked_at = ?2, revoked_by = ?3 WHERE id = ?1 AND revoked_at IS NULL",
            (id, self.now.0, by),
        )?;
        Ok(())
    }

    /// Notes that a node has opened its link, and what it says of itself.
    pub fn node_linked(&mut self, id: &str, told: &Told) -> Result<()> {
        let stored =
            |told: &ToldBackend| StoredBackend { instance: told.instance.to_string(), kind: told.kind.clone() };
        let backends: Vec<StoredBackend> = told.backends.iter().map(stored).collect();
        let backends = serde_json::to_string(&backends).map_err(Error::internal)?;
        let endpoint = Some(&told.data_endpoint).filter(|endpoint| !endpoint.is_empty());
        self.execute(
            "UPDATE nodes SET last_seen_at = ?2, version = ?3, data_endpoint = ?4, backends = ?5, linked = 1 WHERE id = ?1",
            (id, self.now.0, &told.version, endpoint, backends),
        )?;
        Ok(())
    }

    /// The nodes that have joined, are not revoked and have had a link, and what they said of themselves.
    pub(crate) fn joined_nodes(&self) -> Result<Vec<JoinedNode>> {
        self.all(
            "SELECT id, version, data_endpoint, backends FROM nodes WHERE linked = 1 AND revoked_at IS NULL ORDER BY id",
            [],
            |row| {
                let told = Told {
                    version: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                    data_endpoint: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                    backends: read_backends(row.get(3)?)?,
                };
                Ok(JoinedNode { node: NodeId::try_from(row.get::<_, String>(0)?).map_err(corrupt)?, told })
            },
        )
    }

    /// Notes that a node was heard of.
    pub fn node_seen(&mut self, id: &str) -> Result<()> {
        self.execute("UPDATE nodes SET last_seen_at = ?2 WHERE id = ?1", (id, self.now.0))?;
        Ok(())
    }

    /// Sessions of a node that has joined, within `reach`, newest first, at most `limit`, and how many there are.
    pub fn sessions_of_node(&self, id: &str, reach: &Reach, limit: usize) -> Result<(Vec<String>, i64)> {
        let filter = "node = :node AND node <> 'local'
            AND (:limited IS NULL OR namespace IN (SELECT value FROM json_each(:limited)))
            AND (NOT :present OR EXISTS (
                SELECT 1 FROM namespaces n WHERE n.name = sessions.namespace AND n.created_at <= sessions.created_at))";
        let (limited, present) = (limited_to(reach, None), present_only(reach));
        let ids = self.all(
            &format!("SELECT id FROM sessions WHERE {filter} ORDER BY id DESC LIMIT :limit"),
            named_params! {":node": id, ":limited": limited, ":present": present, ":limit": limit as i64},
            |row| row.get(0),
        )?;
        let count = self.count(
            &format!("SELECT count(*) FROM sessions WHERE {filter}"),
            named_params! {":node": id, ":limited": limited, ":present": present},
        )?;
        Ok((ids, count))
    }

    /// Ends the live sessions of a node, and returns how many that were.
    pub fn end_sessions_of_node(&mut self, id: &str, reason: EndReason) -> Result<usize> {
        let reason = serde_json::to_string(&reason).map_err(Error::internal)?;
        self.execute(
            "UPDATE sessions SET ended_at = ?2, end_reason = ?3, active_streams = 0
             WHERE node = ?1 AND node <> 'local' AND ended_at IS NULL",
            (id, self.now.0, reason),
        )
    }

    /// The node that a session is on; `None` when there is no such session.
    pub fn node_of_session(&self, session_id: &str) -> Result<Option<String>> {
        self.one("SELECT node FROM sessions WHERE id = ?1", [session_id], |row| row.get(0))
    }

    /// Forgets nodes that were put out a month ago.
    pub(crate) fn forget_nodes(&mut self) -> Result<()> {
        let forgotten = self.execute("DELETE FROM nodes WHERE revoked_at <= ?1", [(self.now - RETAIN_REVOKED).0])?;
        if forgotten > 0 {
            self.execute("DELETE FROM node_removals WHERE node NOT IN (SELECT id FROM nodes)", [])?;
        }
        Ok(())
    }
}
