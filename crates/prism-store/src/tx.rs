use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prism_core::access::Access;
use prism_core::control::ConfigRevision;
use prism_core::permission::Reach;
use prism_core::secret::{Random, SecretId};
use prism_core::{Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, Params, Row};

use crate::hook::Published;

/// One operation's view of the control state, inside the transaction that will make it durable.
///
/// What it changes is visible to later operations of the same batch, and to everyone else when the batch has committed.
pub struct Tx<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) touched: &'a mut Touched,
    pub(crate) published: &'a Published,
    /// How what fails is undone.
    pub(crate) guard: Guard,
    /// The moment this operation happens.
    pub now: UnixMillis,
}

/// How an operation undoes what fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// With savepoints.
    Savepoint,
    /// It fails before it changes anything, or its whole batch is undone.
    Batch,
    /// Something failed after a change: the batch is to be undone.
    Broken,
}

/// What a batch changed of the state that others follow in memory.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "five facts that do not depend on each other")]
pub(crate) struct Touched {
    /// Configs by name, as they are after the last change; [`Change::Unknown`] has to be read back.
    pub(crate) configs: BTreeMap<String, Change<Arc<ConfigRevision>>>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) operations: bool,
    pub(crate) api_keys: BTreeSet<String>,
    pub(crate) client_keys: BTreeSet<String>,
    pub(crate) audit: bool,
    pub(crate) checkpoints: bool,
    /// Roles, bindings or revoked certificates of the admin plane.
    pub(crate) access: bool,
    /// Client keys, client bindings or revoked certificates of the data plane.
    pub(crate) client_access: bool,
    /// The access of this batch as it stands, read again after each change.
    pub(crate) current_access: Option<Arc<Access>>,
    /// What stays known from batch to batch.
    pub(crate) known: Known,
}

/// What the last change made of something.
#[derive(Clone, Debug)]
pub(crate) enum Change<T> {
    /// This.
    Stored(T),
    /// Nothing.
    Deleted,
    /// Not known any more, because something was undone.
    Unknown,
}

/// What the writer thread remembers of the database instead of asking for it at every operation.
#[derive(Default)]
pub(crate) struct Known {
    /// Sequence and hash of the newest audit entry.
    pub(crate) chain: Option<(i64, [u8; 32])>,
    /// When keys were last noted as used.
    pub(crate) used: HashMap<SecretId, UnixMillis>,
    /// How many there may be of what is bounded in number.
    pub(crate) at_most: AtMost,
    /// Randomness for the ids of audit entries.
    pub(crate) random: Pool,
}

/// How many there are at most of what is bounded in number. What goes away later leaves a number too high, and it is counted
/// anew before anything is refused for it; none is ever too low. `None` = not counted yet.
#[derive(Default)]
pub(crate) struct AtMost {
    /// Certificates that are not revoked.
    pub(crate) certificates: Option<i64>,
    /// Nodes that are not revoked.
    pub(crate) nodes: Option<i64>,
    /// Join tokens that can be redeemed.
    pub(crate) join_tokens: Option<i64>,
    /// Whether something was counted in this batch, where what was counted may still be undone.
    pub(crate) counted: bool,
}

/// Random bytes, of which the operating system is asked for many at once.
#[derive(Default)]
pub(crate) struct Pool {
    source: Random,
    bytes: Vec<[u8; 10]>,
}

impl Pool {
    /// Bytes that were never given before.
    pub(crate) fn take(&mut self) -> [u8; 10] {
        if self.bytes.is_empty() {
            self.bytes.resize(512, [0; 10]);
            self.source.fill(self.bytes.as_flattened_mut());
        }
        self.bytes.pop().unwrap_or_default()
    }
}

impl Touched {
    /// Forgets what may rest on changes that were undone; the names of what was touched stay.
    pub(crate) fn undone(&mut self) {
        self.configs.values_mut().for_each(|change| *change = Change::Unknown);
        self.current_access = None;
        self.known.chain = None;
        if self.known.at_most.counted {
            self.known.at_most = AtMost::default();
        }
    }

    /// Whether the data plane has to hear of it.
    pub(crate) fn changes_snapshot(&self) -> bool {
        !self.configs.is_empty() || !self.namespaces.is_empty() || self.operations || self.client_access
    }
}

impl Tx<'_> {
    /// Runs `work`; when it fails, what it changed is undone and the rest of this operation goes on. In
    /// [`crate::Store::write_unguarded`], `work` that fails after a change undoes the whole batch.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.guard != Guard::Savepoint {
            let changes = self.connection.total_changes();
            let result = work(self);
            if result.is_err() {
                self.touched.undone();
                if self.connection.total_changes() != changes {
                    self.guard = Guard::Broken;
                }
            }
            return result;
        }
        self.execute("SAVEPOINT attempt", [])?;
        let result = work(self);
        if result.is_err() && !self.connection.is_autocommit() {
            self.execute("ROLLBACK TO attempt", [])?;
        }
        if result.is_err() {
            self.touched.undone();
        }
        if !self.connection.is_autocommit() {
            self.execute("RELEASE attempt", [])?;
        }
        result
    }

    pub(crate) fn execute(&self, sql: &str, params: impl Params) -> Result<usize> {
        self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).map_err(error)
    }

    pub(crate) fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        one(self.connection, sql, params, read)
    }

    pub(crate) fn all<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        all(self.connection, sql, params, read)
    }

    pub(crate) fn count(&self, sql: &str, params: impl Params) -> Result<i64> {
        Ok(self.one(sql, params, |row| row.get(0))?.unwrap_or(0))
    }

    /// Whether there is room for one more of what `sql` counts and `number` remembers, and takes it: `most` is the most that may
    /// be.
    pub(crate) fn takes_room(
        &mut self,
        number: fn(&mut AtMost) -> &mut Option<i64>,
        most: i64,
        (sql, params): (&str, impl Params),
    ) -> Result<bool> {
        let known = *number(&mut self.touched.known.at_most);
        let there = if let Some(known) = known.filter(|known| *known < most) {
            known
        } else {
            self.touched.known.at_most.counted = true;
            self.count(sql, params)?
        };
        let room = there < most;
        *number(&mut self.touched.known.at_most) = Some(there + i64::from(room));
        Ok(room)
    }
}

pub(crate) fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    use rusqlite::OptionalExtension as _;
    connection.prepare_cached(sql).and_then(|mut statement| statement.query_row(params, read).optional()).map_err(error)
}

pub(crate) fn all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let rows = statement.query_map(params, read).map_err(error)?;
    rows.collect::<rusqlite::Result<_>>().map_err(error)
}

/// The namespaces a list is limited to, as a JSON array for `json_each`; `None` = all of them.
pub(crate) fn limited_to(reach: &Reach, namespace: Option<&str>) -> Option<String> {
    let names: Vec<&str> = match (reach, namespace) {
        (Reach::Installation, None) => return None,
        (Reach::Installation, Some(name)) => vec![name],
        (Reach::Namespaces(names), wanted) => names
            .iter()
            .map(prism_core::NamespaceName::as_str)
            .filter(|name| wanted.is_none_or(|wanted| wanted == *name))
            .collect(),
        (Reach::Nowhere, _) => Vec::new(),
    };
    Some(serde_json::Value::from(names).to_string())
}

/// Whether what a namespace of the same name left behind stays out of sight: for everybody but the installation's operators.
pub(crate) fn present_only(reach: &Reach) -> bool {
    *reach != Reach::Installation
}

/// A value that the database holds and this version cannot read: a defect or a damaged file.
pub(crate) fn corrupt(what: impl std::fmt::Display) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, format!("unreadable {what}").into())
}
