use std::collections::BTreeSet;

use prism_core::permission::Reach;
use prism_core::{Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, Params, Row};

/// One operation's view of the control state, inside the transaction that will make it durable.
///
/// What it changes is visible to later operations of the same batch, and to everyone else when the batch has committed.
pub struct Tx<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) touched: &'a mut Touched,
    /// The moment this operation happens.
    pub now: UnixMillis,
}

/// What a batch changed of the state that others follow in memory.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) configs: BTreeSet<String>,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) operations: bool,
    pub(crate) api_keys: BTreeSet<String>,
    pub(crate) client_keys: BTreeSet<String>,
    pub(crate) audit: bool,
}

impl Tx<'_> {
    /// Runs `work`; when it fails, what it changed is undone and the rest of this operation goes on.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.execute("SAVEPOINT attempt", [])?;
        let result = work(self);
        if result.is_err() && !self.connection.is_autocommit() {
            self.execute("ROLLBACK TO attempt", [])?;
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
