use prism_core::{Result, UnixMillis};

use crate::tx::Tx;

/// Most names of [`Tx::nodes_waiting`].
const MAX_WAITING: i64 = 100;

/// Certificates that stand on a CA and are valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandingCertificates {
    /// Of users.
    pub users: i64,
    /// Of applications.
    pub clients: i64,
    /// Of nodes.
    pub nodes: i64,
    /// When the last of them ends.
    pub last_ends: Option<UnixMillis>,
}

impl StandingCertificates {
    /// How many there are.
    pub fn total(&self) -> i64 {
        self.users + self.clients + self.nodes
    }
}

impl Tx<'_> {
    /// Name of the state of the CA that was decided on last; `None` while nothing was ever decided.
    pub fn authority_state(&self) -> Result<Option<String>> {
        self.one("SELECT value FROM facts WHERE name = 'authority'", [], |row| row.get(0))
    }

    /// Decides on a state of the CA.
    pub fn set_authority_state(&mut self, name: &str) -> Result<()> {
        self.execute(
            "INSERT INTO facts (name, value) VALUES ('authority', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1",
            [name],
        )?;
        Ok(())
    }

    /// Notes on certificates that do not say so that they are of this CA: they were issued when there was no other.
    pub fn attribute_certificates(&mut self, authority: &str) -> Result<()> {
        let sql = "UPDATE certificates SET authority = ?1 WHERE authority IS NULL AND serial IS NOT NULL";
        self.execute(sql, [authority])?;
        Ok(())
    }

    /// Certificates that stand on the CA with this fingerprint and are valid now; if it is `alone`, also those that do not say which CA
    /// they are of.
    pub fn standing_certificates(&self, authority: &str, alone: bool) -> Result<StandingCertificates> {
        let rows = self.all(
            "SELECT kind, count(*), max(expires_at) FROM certificates
             WHERE (authority = ?1 OR (?3 AND authority IS NULL AND serial IS NOT NULL)) AND revoked_at IS NULL AND expires_at > ?2
             GROUP BY kind",
            (authority, self.now.0, alone),
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, Option<i64>>(2)?)),
        )?;
        let mut found = StandingCertificates::default();
        for (kind, count, last) in rows {
            match kind.as_str() {
                "user" => found.users += count,
                "node" => found.nodes += count,
                _ => found.clients += count,
            }
            found.last_ends = found.last_ends.max(last.map(UnixMillis));
        }
        Ok(found)
    }

    /// Nodes with a valid certificate of the CA `old` and none of `new`: the first hundred by name, and how many there are.
    pub fn nodes_waiting(&self, old: &str, new: &str) -> Result<(Vec<String>, i64)> {
        let from = "FROM certificates AS had WHERE node_id IS NOT NULL AND authority = ?1 AND revoked_at IS NULL AND expires_at > ?3
            AND NOT EXISTS (SELECT 1 FROM certificates AS has WHERE has.node_id = had.node_id AND has.authority = ?2
                AND has.revoked_at IS NULL AND has.expires_at > ?3)";
        let names = self.all(
            &format!("SELECT DISTINCT node_id {from} ORDER BY node_id LIMIT ?4"),
            (old, new, self.now.0, MAX_WAITING),
            |row| row.get(0),
        )?;
        let count = self.count(&format!("SELECT count(DISTINCT node_id) {from}"), (old, new, self.now.0))?;
        Ok((names, count))
    }
}
