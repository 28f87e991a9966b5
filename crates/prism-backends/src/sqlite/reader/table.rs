//! What the database itself says of a table: every name that gets into a statement comes from here, never from a request.

use prism_core::Result;
use prism_sqlite::error;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _};

use crate::driver::Value;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sqlite) enum TableKind {
    /// An ordinary table whose rows have a row id.
    Rows,
    /// A table that is its primary key's index.
    WithoutRowId,
    /// A view.
    View,
    /// A virtual table or the shadow of one: readable through its owner only.
    Foreign,
}

/// One column.
#[derive(Clone, Debug)]
pub(in crate::sqlite) struct Column {
    pub(in crate::sqlite) name: String,
    /// It never holds NULL.
    pub(in crate::sqlite) not_null: bool,
    /// Place in the primary key, from 1; 0 = not in it.
    pub(in crate::sqlite) key: u32,
    /// The text of its default.
    pub(in crate::sqlite) default: Option<String>,
    /// Computed from the others; cannot be written.
    pub(in crate::sqlite) generated: bool,
    /// Kept in the row; a computed column may not be.
    pub(in crate::sqlite) stored: bool,
}

/// A table or a view.
#[derive(Clone, Debug)]
pub(in crate::sqlite) struct Table {
    pub(in crate::sqlite) name: String,
    pub(in crate::sqlite) kind: TableKind,
    pub(in crate::sqlite) columns: Vec<Column>,
}

impl Table {
    /// Looks `name` up; `None` when there is no such table or view, or it is one of SQLite's or Prism's own.
    pub(in crate::sqlite) fn load(connection: &Connection, name: &str) -> Result<Option<Self>> {
        if is_internal(name) {
            return Ok(None);
        }
        let found = connection
            .prepare_cached("SELECT name, type, wr FROM pragma_table_list(?1) WHERE schema = 'main'")
            .and_then(|mut statement| {
                let row = statement.query_row([name], |row| {
                    let (kind, without_row_id): (String, bool) = (row.get(1)?, row.get(2)?);
                    let kind = match (kind.as_str(), without_row_id) {
                        ("table", false) => TableKind::Rows,
                        ("table", true) => TableKind::WithoutRowId,
                        ("view", _) => TableKind::View,
                        _ => TableKind::Foreign,
                    };
                    Ok((row.get::<_, String>(0)?, kind))
                });
                row.optional()
            })
            .map_err(error)?;
        let Some((name, kind)) = found else { return Ok(None) };
        let columns = columns(connection, &name).map_err(error)?;
        Ok(Some(Self { name, kind, columns }))
    }

    /// The column of exactly this name.
    pub(in crate::sqlite) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Columns of the primary key in its order.
    pub(in crate::sqlite) fn primary_key(&self) -> Vec<&Column> {
        let mut key: Vec<_> = self.columns.iter().filter(|column| column.key > 0).collect();
        key.sort_by_key(|column| column.key);
        key
    }

    /// A name under which the row id can be read; `None` when there is none, or columns of the table hide all three.
    pub(in crate::sqlite) fn row_id(&self) -> Option<&'static str> {
        let hidden = |alias: &str| self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(alias));
        match self.kind {
            TableKind::Rows => ["rowid", "_rowid_", "oid"].into_iter().find(|alias| !hidden(alias)),
            _ => None,
        }
    }

    /// The name for a statement: quoted, and of the main database.
    pub(in crate::sqlite) fn quoted(&self) -> String {
        format!("main.{}", quote(&self.name))
    }
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Column>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, \"notnull\", pk, dflt_value, hidden FROM pragma_table_xinfo(?1) WHERE hidden <> 1",
    )?;
    let columns = statement.query_map([table], |row| {
        let hidden: u32 = row.get(4)?;
        Ok(Column {
            name: row.get(0)?,
            not_null: row.get(1)?,
            key: row.get(2)?,
            default: row.get(3)?,
            generated: hidden != 0,
            stored: hidden != 2,
        })
    })?;
    columns.collect()
}

/// SQLite's and Prism's own tables; they cannot be reached whatever a config allows.
pub(in crate::sqlite) fn is_internal(name: &str) -> bool {
    let starts_with = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    starts_with("_prism_") || starts_with("sqlite_")
}

/// Quotes a name.
pub(in crate::sqlite) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Joins expressions as a balanced tree, because SQLite bounds the depth of an expression, and a chain is as deep as it is long.
pub(in crate::sqlite) fn join(mut parts: Vec<String>, operator: &str) -> String {
    match parts.len() {
        0 | 1 => parts.pop().unwrap_or_default(),
        length => {
            let right = parts.split_off(length / 2);
            format!("({} {operator} {})", join(parts, operator), join(right, operator))
        }
    }
}

/// A value as SQLite binds it; `None` for a list, which is not one.
pub(in crate::sqlite) fn bind(value: &Value) -> Option<ValueRef<'_>> {
    Some(match value {
        Value::Null => ValueRef::Null,
        Value::Bool(truth) => ValueRef::Integer(i64::from(*truth)),
        Value::Integer(number) => ValueRef::Integer(*number),
        Value::Real(number) => ValueRef::Real(*number),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Bytes(bytes) => ValueRef::Blob(bytes),
        Value::List(_) => return None,
    })
}

/// A value as SQLite holds it. Text that is not UTF-8 (a cast can make it) comes as bytes.
pub(in crate::sqlite) fn value(found: ValueRef<'_>) -> Value {
    match found {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.to_owned()),
        },
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_owned()),
    }
}

/// Bytes a value takes in a page.
pub(in crate::sqlite) fn size(found: ValueRef<'_>) -> usize {
    match found {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
        _ => 8,
    }
}
