use prism_core::control::{DrainScope, Maintenance};
use prism_core::{NamespaceName, NodeId, Result, UnixMillis};
use rusqlite::Row;

use crate::audit::EntryDraft;
use crate::tx::{Tx, corrupt};

/// The intent of a drain, held in the store until its outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainId(i64);

pub(crate) fn read_maintenance(row: &Row<'_>) -> rusqlite::Result<(String, Maintenance)> {
    Ok((
        row.get(0)?,
        Maintenance {
            message: row.get(1)?,
            started_at: UnixMillis(row.get(2)?),
            ends_at: row.get::<_, Option<i64>>(3)?.map(UnixMillis),
            allow_reads: row.get(4)?,
        },
    ))
}

pub(crate) const MAINTENANCE: &str = "SELECT scope, message, started_at, ends_at, allow_reads FROM maintenance";

impl Tx<'_> {
    /// The maintenance that is in force: of the gateway (scope ""), and of namespaces, by scope.
    pub fn maintenance(&self) -> Result<Vec<(String, Maintenance)>> {
        let mut rows = self.all(&format!("{MAINTENANCE} ORDER BY scope"), [], read_maintenance)?;
        rows.retain(|(_, maintenance)| maintenance.in_force(self.now));
        Ok(rows)
    }

    /// Starts maintenance, or replaces its terms; maintenance in force keeps its start.
    pub fn start_maintenance(&mut self, scope: Option<&NamespaceName>, mut terms: Maintenance) -> Result<Maintenance> {
        let scope = scope.map_or("", NamespaceName::as_str);
        if let Some((_, current)) = self.maintenance()?.into_iter().find(|(found, _)| found == scope) {
            terms.started_at = current.started_at;
        }
        self.execute(
            "INSERT OR REPLACE INTO maintenance (scope, message, started_at, ends_at, allow_reads) VALUES (?1, ?2, ?3, ?4, ?5)",
            (scope, &terms.message, terms.started_at.0, terms.ends_at.map(|at| at.0), terms.allow_reads),
        )?;
        self.touched.operations = true;
        Ok(terms)
    }

    /// Ends maintenance; ending what is over is no error.
    pub fn end_maintenance(&mut self, scope: Option<&NamespaceName>) -> Result<()> {
        self.execute("DELETE FROM maintenance WHERE scope = ?1", [scope.map_or("", NamespaceName::as_str)])?;
        self.touched.operations = true;
        Ok(())
    }

    /// Writes the intent of a drain: sessions in scope count as draining, and none is admitted, until [`Tx::end_drain`].
    pub fn begin_drain(&mut self, scope: &DrainScope, draft: &EntryDraft) -> Result<DrainId> {
        let (namespace, node) =
            (scope.namespace.as_ref().map(NamespaceName::as_str), scope.node.as_ref().map(NodeId::as_str));
        let draft = serde_json::to_string(draft).map_err(prism_core::Error::internal)?;
        self.execute("INSERT INTO drains (namespace, node, draft) VALUES (?1, ?2, ?3)", (namespace, node, draft))?;
        let id = self.connection.last_insert_rowid();
        self.execute(
            "UPDATE sessions SET draining = 1 WHERE ended_at IS NULL AND (?1 IS NULL OR namespace = ?1) AND (?2 IS NULL OR node = ?2)",
            (namespace, node),
        )?;
        self.touched.operations = true;
        Ok(DrainId(id))
    }

    /// Removes the intent of a drain; sessions left that no other drain covers are as before.
    pub fn end_drain(&mut self, id: DrainId) -> Result<()> {
        self.execute("DELETE FROM drains WHERE id = ?1", [id.0])?;
        self.execute(
            "UPDATE sessions SET draining = 0 WHERE draining = 1 AND NOT EXISTS (
                SELECT 1 FROM drains d WHERE (d.namespace IS NULL OR d.namespace = sessions.namespace)
                AND (d.node IS NULL OR d.node = sessions.node))",
            [],
        )?;
        self.touched.operations = true;
        Ok(())
    }

    /// Answers in the audit log for drains that a crash interrupted.
    pub(crate) fn settle_interrupted_drains(&mut self) -> Result<usize> {
        let left = self.all("DELETE FROM drains RETURNING draft", [], |row| row.get::<_, String>(0))?;
        for draft in &left {
            let mut draft: EntryDraft = serde_json::from_str(draft).map_err(prism_core::Error::internal)?;
            draft.error = Some(
                "interrupted: the server stopped before the drain was over; sessions left are active again".to_owned(),
            );
            self.append_entry(draft)?;
        }
        self.touched.operations = true;
        Ok(left.len())
    }

    pub(crate) fn drains(&self) -> Result<Vec<DrainScope>> {
        self.all("SELECT namespace, node FROM drains ORDER BY id", [], |row| {
            Ok(DrainScope {
                namespace: row
                    .get::<_, Option<String>>(0)?
                    .map(NamespaceName::try_from)
                    .transpose()
                    .map_err(corrupt)?,
                node: row.get::<_, Option<String>>(1)?.map(NodeId::try_from).transpose().map_err(corrupt)?,
            })
        })
    }
}
