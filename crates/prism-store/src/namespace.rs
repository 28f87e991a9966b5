use prism_core::control::{Namespace, NamespaceStatus, Quota, Removal};
use prism_core::limits::MAX_NAMESPACES;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::{Error, Kind, NamespaceName, NodeId, Result, UnixMillis};
use rusqlite::{Row, named_params};

use crate::tx::{Tx, corrupt, limited_to};

/// Most pairs of a node and a deleted namespace whose data it has still to remove.
const MAX_NODE_REMOVALS: i64 = 1_000_000;

/// A namespace as stored.
#[derive(Clone, Debug)]
pub struct NamespaceRow {
    /// What the data plane follows.
    pub namespace: Namespace,
    /// Description for people.
    pub description: String,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it last changed.
    pub updated_at: UnixMillis,
    /// Grows with every change; what its etag is made of, with the generation.
    pub revision: i64,
}

impl NamespaceRow {
    /// The etag of this state.
    pub fn etag(&self) -> String {
        // The generation keeps a namespace apart from an earlier one of the same name.
        format!("{:x}-{}", self.namespace.generation, self.revision)
    }
}

const COLUMNS: &str =
    "name, description, status, max_sessions, max_storage_bytes, max_rps, created_at, updated_at, revision, generation";

fn read(row: &Row<'_>) -> rusqlite::Result<NamespaceRow> {
    Ok(NamespaceRow {
        namespace: Namespace {
            name: NamespaceName::try_from(row.get::<_, String>(0)?).map_err(corrupt)?,
            status: match row.get(2)? {
                1 => NamespaceStatus::Active,
                2 => NamespaceStatus::ReadOnly,
                3 => NamespaceStatus::Suspended,
                other => return Err(corrupt(format!("namespace status {other}"))),
            },
            quota: Quota { max_sessions: row.get(3)?, max_storage_bytes: row.get(4)?, max_rps: row.get(5)? },
            generation: row.get(9)?,
        },
        description: row.get(1)?,
        created_at: UnixMillis(row.get(6)?),
        updated_at: UnixMillis(row.get(7)?),
        revision: row.get(8)?,
    })
}

fn status_number(status: NamespaceStatus) -> i64 {
    match status {
        NamespaceStatus::Active => 1,
        NamespaceStatus::ReadOnly => 2,
        NamespaceStatus::Suspended => 3,
    }
}

/// What depends on a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dependants {
    /// Live configs.
    pub configs: i64,
    /// Live sessions.
    pub sessions: i64,
}

impl Tx<'_> {
    /// One namespace.
    pub fn namespace(&self, name: &str) -> Result<Option<NamespaceRow>> {
        self.one(&format!("SELECT {COLUMNS} FROM namespaces WHERE name = ?1"), [name], read)
    }

    /// Whether there is a namespace of this name, as a rule from memory.
    pub fn has_namespace(&self, name: &str) -> Result<bool> {
        if self.touched.namespaces.contains(name) {
            return Ok(self.namespace(name)?.is_some());
        }
        Ok(self.published.snapshot.borrow().namespaces.contains_key(name))
    }

    /// All namespaces within `reach`, by name, and how many there are.
    pub fn namespaces(&self, reach: &Reach, page: &Page) -> Result<(Vec<NamespaceRow>, i64)> {
        let limited = limited_to(reach, None);
        let filter = "(:limited IS NULL OR name IN (SELECT value FROM json_each(:limited)))";
        let rows = self.all(
            &format!("SELECT {COLUMNS} FROM namespaces WHERE {filter} AND name > :after ORDER BY name LIMIT :limit"),
            named_params! {":limited": limited, ":after": page.after.as_deref().unwrap_or(""), ":limit": page.size as i64 + 1},
            read,
        )?;
        let total = self
            .count(&format!("SELECT count(*) FROM namespaces WHERE {filter}"), named_params! {":limited": limited})?;
        Ok((rows, total))
    }

    /// Makes a namespace; ALREADY_EXISTS when there is one of this name, FAILED_PRECONDITION `NAMESPACE_BEING_REMOVED` while
    /// the data of an earlier one is still there.
    pub fn create_namespace(&mut self, name: &NamespaceName, description: &str, quota: Quota) -> Result<NamespaceRow> {
        if self.namespace(name.as_str())?.is_some() {
            return Err(Error::already_exists(format!("namespace:{name}")));
        }
        if self.count("SELECT count(*) FROM namespaces", [])? >= MAX_NAMESPACES {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "TOO_MANY_NAMESPACES",
                format!("an installation holds at most {MAX_NAMESPACES} namespaces"),
            ));
        }
        if self.count("SELECT count(*) FROM removals WHERE namespace = ?1", [name.as_str()])? > 0 {
            // Its data must not come back to life under a new owner.
            return Err(Error::precondition(
                "NAMESPACE_BEING_REMOVED",
                format!("the data of an earlier namespace {name} is still being removed; retry later"),
            )
            .retry_after(std::time::Duration::from_secs(10)));
        }
        let generation = self.next_generation()?;
        let namespace = Namespace { name: name.clone(), status: NamespaceStatus::Active, quota, generation };
        let row = NamespaceRow {
            namespace,
            description: description.to_owned(),
            created_at: self.now,
            updated_at: self.now,
            revision: 1,
        };
        self.store_namespace(&row)?;
        Ok(row)
    }

    /// The time, or what comes after the largest that was ever given: the clock may have been set back.
    fn next_generation(&mut self) -> Result<i64> {
        let sql = "SELECT CAST(value AS INTEGER) FROM facts WHERE name = 'generation'";
        let generation = self.now.0.max(self.count(sql, [])?.saturating_add(1));
        self.execute(
            "INSERT INTO facts (name, value) VALUES ('generation', ?1) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [generation.to_string()],
        )?;
        Ok(generation)
    }

    /// Stores `row` as the next revision.
    pub fn update_namespace(&mut self, mut row: NamespaceRow) -> Result<NamespaceRow> {
        row.revision += 1;
        row.updated_at = self.now;
        self.store_namespace(&row)?;
        Ok(row)
    }

    fn store_namespace(&mut self, row: &NamespaceRow) -> Result<()> {
        let NamespaceRow { namespace, description, created_at, updated_at, revision } = row;
        self.execute(
            "INSERT INTO namespaces (name, description, status, max_sessions, max_storage_bytes, max_rps, created_at, updated_at, revision, generation)
             VALUES (:name, :description, :status, :max_sessions, :max_storage_bytes, :max_rps, :created_at, :updated_at, :revision, :generation)
             ON CONFLICT (name) DO UPDATE SET description = :description, status = :status, max_sessions = :max_sessions,
                max_storage_bytes = :max_storage_bytes, max_rps = :max_rps, updated_at = :updated_at, revision = :revision",
            named_params! {
                ":name": namespace.name.as_str(), ":description": description, ":status": status_number(namespace.status),
                ":max_sessions": namespace.quota.max_sessions, ":max_storage_bytes": namespace.quota.max_storage_bytes,
                ":max_rps": namespace.quota.max_rps, ":created_at": created_at.0, ":updated_at": updated_at.0, ":revision": revision,
                ":generation": namespace.generation,
            },
        )?;
        self.touched.namespaces.insert(namespace.name.as_str().to_owned());
        Ok(())
    }

    /// What depends on a namespace.
    pub fn dependants(&self, name: &NamespaceName) -> Result<Dependants> {
        Ok(Dependants {
            configs: self.count("SELECT count(*) FROM configs WHERE namespace = ?1", [name.as_str()])?,
            sessions: self
                .count("SELECT count(*) FROM sessions WHERE namespace = ?1 AND ended_at IS NULL", [name.as_str()])?,
        })
    }

    /// Removes a namespace with everything that depends on it: configs are deleted, sessions end, client keys die, bound
    /// API keys are revoked, bindings are gone, its maintenance is over. Its data is to be removed until [`Tx::finish_removal`].
    ///
    /// RESOURCE_EXHAUSTED `TOO_MANY_REMOVALS` when nodes that are away have too much to remove already.
    pub fn delete_namespace(&mut self, name: &NamespaceName) -> Result<()> {
        self.begin_node_removals(name)?;
        for config in
            self.all("SELECT name FROM configs WHERE namespace = ?1", [name.as_str()], |row| row.get::<_, String>(0))?
        {
            self.delete_config(&config)?;
        }
        self.execute(
            "UPDATE sessions SET ended_at = ?2, end_reason = '\"namespace_deleted\"' WHERE namespace = ?1 AND ended_at IS NULL",
            (name.as_str(), self.now.0),
        )?;
        for table in ["client_keys", "api_keys"] {
            let ids = self.all(
                &format!("UPDATE {table} SET revoked_at = ?2 WHERE namespace = ?1 AND revoked_at IS NULL RETURNING id"),
                (name.as_str(), self.now.0),
                |row| row.get::<_, String>(0),
            )?;
            let touched = if table == "api_keys" { &mut self.touched.api_keys } else { &mut self.touched.client_keys };
            touched.extend(ids);
        }
        for table in ["bindings", "client_bindings"] {
            self.execute(&format!("DELETE FROM {table} WHERE namespace = ?1"), [name.as_str()])?;
        }
        self.access_changed();
        self.touched.client_access = true;
        self.execute("DELETE FROM maintenance WHERE scope = ?1", [name.as_str()])?;
        self.execute("DELETE FROM namespaces WHERE name = ?1", [name.as_str()])?;
        self.execute("INSERT INTO removals (namespace, since) VALUES (?1, ?2)", (name.as_str(), self.now.0))?;
        self.touched.namespaces.insert(name.as_str().to_owned());
        self.touched.operations = true;
        Ok(())
    }

    /// Every node that may have data of it has to remove it, also one that is revoked: it may join again with what it has.
    fn begin_node_removals(&self, name: &NamespaceName) -> Result<()> {
        let Some(row) = self.namespace(name.as_str())? else { return Ok(()) };
        if self.count("SELECT count(*) FROM node_removals", [])? >= MAX_NODE_REMOVALS {
            let message = format!(
                "nodes that are away have the data of {MAX_NODE_REMOVALS} deleted namespaces still to remove, the most that is \
                 kept; bring them back, or revoke them, which forgets them after a month"
            );
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_REMOVALS", message));
        }
        self.execute(
            "INSERT INTO node_removals (node, namespace, generation) SELECT id, ?1, ?2 FROM nodes WHERE linked = 1
             ON CONFLICT (node, namespace) DO UPDATE SET generation = max(generation, excluded.generation)",
            (name.as_str(), row.namespace.generation),
        )?;
        Ok(())
    }

    /// The nodes that have still to remove a namespace of this name.
    pub(crate) fn node_removals(&self, namespace: &NamespaceName) -> Result<Vec<(NodeId, Removal)>> {
        let sql = "SELECT node, generation FROM node_removals WHERE namespace = ?1 ORDER BY node";
        self.all(sql, [namespace.as_str()], |row| {
            let node = NodeId::try_from(row.get::<_, String>(0)?).map_err(corrupt)?;
            Ok((node, Removal { namespace: namespace.clone(), generation: row.get(1)? }))
        })
    }

    /// What a node has still to remove.
    pub(crate) fn removals_of_node(&self, node: &NodeId) -> Result<Vec<Removal>> {
        let sql = "SELECT namespace, generation FROM node_removals WHERE node = ?1 ORDER BY namespace";
        self.all(sql, [node.as_str()], |row| {
            let namespace = NamespaceName::try_from(row.get::<_, String>(0)?).map_err(corrupt)?;
            Ok(Removal { namespace, generation: row.get(1)? })
        })
    }

    /// A node has removed the data of a deleted namespace.
    pub(crate) fn finish_node_removal(&mut self, node: &NodeId, removal: &Removal) -> Result<()> {
        self.execute(
            "DELETE FROM node_removals WHERE node = ?1 AND namespace = ?2 AND generation <= ?3",
            (node.as_str(), removal.namespace.as_str(), removal.generation),
        )?;
        Ok(())
    }

    /// Whether a node may still have data of an earlier namespace of this name.
    pub(crate) fn has_to_remove(&self, node: &NodeId, name: &NamespaceName) -> Result<bool> {
        let sql = "SELECT count(*) FROM node_removals WHERE node = ?1 AND namespace = ?2";
        Ok(self.count(sql, (node.as_str(), name.as_str()))? > 0)
    }

    /// Deleted namespaces whose data is still to be removed.
    pub fn pending_removals(&self) -> Result<Vec<NamespaceName>> {
        self.all("SELECT namespace FROM removals ORDER BY since", [], |row| {
            NamespaceName::try_from(row.get::<_, String>(0)?).map_err(corrupt)
        })
    }

    /// The data of a deleted namespace is gone.
    pub fn finish_removal(&mut self, name: &NamespaceName) -> Result<()> {
        self.execute("DELETE FROM removals WHERE namespace = ?1", [name.as_str()]).map(|_| ())
    }
}
