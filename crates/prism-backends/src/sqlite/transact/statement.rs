//! Writes to the users' tables: names checked and quoted, values bound, every refusal told in the terms of the table.

use prism_core::{Error, Kind, Result};
use prism_sqlite::error;
use rusqlite::ffi;
use rusqlite::types::{ToSqlOutput, Value as Sql};
use rusqlite::{Connection, params_from_iter};

use crate::driver::{DataResult, DataWrite, Record, Value, WriteMode};
use crate::sqlite::reader::table::{self, Column, Table, TableKind, is_internal, quote};

/// What a row is charged beside its values, in bytes: rows without content would otherwise cost nothing.
const ROW_BYTES: i64 = 32;
/// Most bytes of generated values in an answer; the first that would pass it and those after it are left out.
const MAX_GENERATED_BYTES: usize = 1024 * 1024;

/// Carries out a write to one of the `allowed` tables; returns its outcome and by how many bytes the table grew.
///
/// `told` are the generated values that a rehearsal told the caller: a new row takes them where the table's default would
/// give another one every time (the time, a random value).
pub(super) fn apply(
    connection: &Connection,
    allowed: &[String],
    write: &DataWrite,
    told: Option<&Record>,
) -> Result<(DataResult, i64)> {
    if !allowed.contains(&write.table) || is_internal(&write.table) {
        return Err(Error::new(
            Kind::PermissionDenied,
            "TABLE_NOT_ALLOWED",
            "the config's backend option `tables` does not list this table",
        ));
    }
    let table = Table::load(connection, &write.table)?
        .ok_or_else(|| Error::not_found(format_args!("table:{}", write.table)))?;
    if !matches!(table.kind, TableKind::Rows | TableKind::WithoutRowId) {
        return Err(Error::invalid("data.table", "is not an ordinary table; a view can only be read"));
    }
    check_record(&table, &write.record)?;
    let target = Target { connection, table: &table, record: &write.record };
    let id = match (&write.id_field, write.mode) {
        (Some(name), _) => Some(table.column(name).ok_or_else(|| unknown("data.id_field", &table, name))?),
        (None, WriteMode::Insert) => None,
        (None, _) => Some(single_key(&table)?),
    };
    match (write.mode, id) {
        (WriteMode::Insert, _) | (_, None) => target.insert(told),
        (WriteMode::Update, Some(id)) => target.update(target.identity(id)?, false),
        (WriteMode::Delete, Some(id)) => target.delete(target.identity(id)?),
        (WriteMode::Upsert, Some(id)) => {
            let identity = target.identity(id)?;
            match target.update(identity, true)? {
                (DataResult { rows_affected: 0, .. }, _) => target.insert(told),
                updated => Ok(updated),
            }
        }
    }
}

fn unknown(path: &str, table: &Table, column: &str) -> Error {
    Error::invalid(path, format!("{} has no column {column:?}", table.name))
}

fn check_record(table: &Table, record: &Record) -> Result<()> {
    if record.is_empty() {
        return Err(Error::invalid("data.record", "is empty; name at least one column"));
    }
    for (name, value) in record {
        let column = table.column(name).ok_or_else(|| unknown("data.record", table, name))?;
        if column.generated {
            return Err(Error::invalid(
                "data.record",
                format!("column {name:?} is computed by the table and cannot be written"),
            ));
        }
        match value {
            Value::List(_) => {
                return Err(Error::invalid("data.record", format!("column {name:?}: a list cannot be stored")));
            }
            Value::Real(number) if !number.is_finite() => {
                return Err(Error::invalid("data.record", format!("column {name:?}: the number is not finite")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The column that is the whole primary key.
fn single_key(table: &Table) -> Result<&Column> {
    match table.primary_key().as_slice() {
        [only] => Ok(only),
        [] => Err(Error::invalid("data.id_field", format!("is needed: {} has no primary key", table.name))),
        _ => Err(Error::invalid(
            "data.id_field",
            format!("is needed: the primary key of {} has several columns", table.name),
        )),
    }
}

/// The rows whose `column` equals `value`.
#[derive(Clone, Copy)]
struct Identity<'a> {
    column: &'a str,
    value: &'a Value,
}

/// A checked write.
struct Target<'a> {
    connection: &'a Connection,
    table: &'a Table,
    record: &'a Record,
}

/// What a statement did.
#[derive(Default)]
struct Effect {
    rows: i64,
    /// Bytes of these rows as they are now, or were before a DELETE.
    bytes: i64,
    /// Columns of the first row that the record does not name.
    unnamed: Record,
}

impl<'a> Target<'a> {
    fn identity(&self, id: &'a Column) -> Result<Identity<'a>> {
        match self.record.get(&id.name) {
            Some(Value::Null) => Err(Error::invalid(
                "data.record",
                format!("column {:?} identifies the row and must not be null", id.name),
            )),
            Some(value) => Ok(Identity { column: &id.name, value }),
            None => {
                Err(Error::invalid("data.record", format!("column {:?} identifies the row and is missing", id.name)))
            }
        }
    }

    fn insert(&self, told: Option<&Record>) -> Result<(DataResult, i64)> {
        let repeated = told.into_iter().flatten().filter(|(name, _)| {
            !self.record.contains_key(*name)
                && self.table.column(name).is_some_and(|column| !column.generated && varies(column))
        });
        let cells: Vec<_> = self.record.iter().chain(repeated).collect();
        let names: Vec<_> = cells.iter().map(|(name, _)| quote(name)).collect();
        // OR ABORT, here and below, overrules the table's own conflict clauses: REPLACE would remove other rows unseen, and
        // ROLLBACK would undo the writes of others that wait for the same commit.
        let text = format!(
            "INSERT OR ABORT INTO {} ({}) VALUES ({})",
            self.table.quoted(),
            names.join(", "),
            vec!["?"; names.len()].join(", ")
        );
        let effect = self.execute(&text, cells.iter().map(|(_, value)| *value), true)?;
        Ok((DataResult { rows_affected: effect.rows, generated_values: effect.unnamed }, effect.bytes))
    }

    /// Changes the rows of `identity`. `upsert`: a record that names nothing else still counts as a change of its row, and
    /// the row's other values are read back.
    fn update(&self, identity: Identity<'_>, upsert: bool) -> Result<(DataResult, i64)> {
        let mut cells: Vec<_> = self.record.iter().filter(|(name, _)| *name != identity.column).collect();
        if cells.is_empty() && !upsert {
            return Err(Error::invalid(
                "data.record",
                "names no column to change beside the one that identifies the row",
            ));
        }
        let before = self.stored(identity)?;
        if cells.is_empty() {
            cells.extend(self.record.get_key_value(identity.column));
        }
        let changes: Vec<_> = cells.iter().map(|(name, _)| format!("{} = ?", quote(name))).collect();
        let text = format!(
            "UPDATE OR ABORT {} SET {} WHERE {} = ?",
            self.table.quoted(),
            changes.join(", "),
            quote(identity.column)
        );
        let values = cells.iter().map(|(_, value)| *value).chain([identity.value]);
        let effect = self.execute(&text, values, upsert)?;
        Ok((DataResult { rows_affected: effect.rows, generated_values: effect.unnamed }, effect.bytes - before))
    }

    fn delete(&self, identity: Identity<'_>) -> Result<(DataResult, i64)> {
        let text = format!("DELETE FROM {} WHERE {} = ?", self.table.quoted(), quote(identity.column));
        let effect = self.execute(&text, [identity.value], false)?;
        Ok((DataResult { rows_affected: effect.rows, generated_values: Record::new() }, -effect.bytes))
    }

    /// Bytes stored in the rows of `identity`.
    fn stored(&self, identity: Identity<'_>) -> Result<i64> {
        let (size, table, column) = (self.size(), self.table.quoted(), quote(identity.column));
        let text = format!("SELECT coalesce(sum({size}), 0) FROM {table} WHERE {column} = ?");
        let mut statement = self.connection.prepare_cached(&text).map_err(error)?;
        statement.query_row(params_from_iter(bind([identity.value])), |row| row.get(0)).map_err(error)
    }

    /// The size of a row, as an expression; `octet_length` does not read the value.
    fn size(&self) -> String {
        let columns = self.table.columns.iter().filter(|column| column.stored);
        let mut parts: Vec<_> =
            columns.map(|column| format!("coalesce(octet_length({}), 0)", quote(&column.name))).collect();
        parts.push(ROW_BYTES.to_string());
        table::join(parts, "+")
    }

    /// Runs a statement with what it returns: sizes, and with `read_back` the columns that the record does not name.
    fn execute<'v>(&self, text: &str, values: impl IntoIterator<Item = &'v Value>, read_back: bool) -> Result<Effect> {
        let unnamed = self.table.columns.iter().filter(|column| read_back && !self.record.contains_key(&column.name));
        let unnamed: Vec<_> = unnamed.map(|column| column.name.as_str()).collect();
        let returned: Vec<_> = [self.size()].into_iter().chain(unnamed.iter().map(|name| quote(name))).collect();
        let text = format!("{text} RETURNING {}", returned.join(", "));
        let mut statement = self.connection.prepare_cached(&text).map_err(error)?;
        let refused = |cause| self.refused(cause);
        let mut rows = statement.query(params_from_iter(bind(values))).map_err(refused)?;
        let mut effect = Effect::default();
        while let Some(row) = rows.next().map_err(refused)? {
            effect.bytes += row.get::<_, i64>(0).map_err(error)?;
            effect.rows += 1;
            if effect.rows > 1 {
                continue;
            }
            let mut bytes = 0;
            for (index, name) in unnamed.iter().enumerate() {
                let found = row.get_ref(index + 1).map_err(error)?;
                bytes += name.len() + table::size(found);
                if bytes > MAX_GENERATED_BYTES {
                    break;
                }
                effect.unnamed.insert((*name).to_owned(), table::value(found));
            }
        }
        Ok(effect)
    }

    /// Says what the table did not accept.
    fn refused(&self, cause: rusqlite::Error) -> Error {
        let rusqlite::Error::SqliteFailure(failure, message) = &cause else { return error(cause) };
        let name = &self.table.name;
        // SQLite names what was violated after a colon: `UNIQUE constraint failed: items.id`.
        let what = message.as_deref().and_then(|message| message.split_once(": ")).map_or("", |(_, what)| what);
        let refusal = match failure.extended_code {
            ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_ROWID => {
                let what = if what.is_empty() { name } else { what };
                Error::new(
                    Kind::AlreadyExists,
                    "ALREADY_EXISTS",
                    format!("another row of {name} has the same value: {what}"),
                )
            }
            ffi::SQLITE_CONSTRAINT_NOTNULL => Error::invalid("data.record", format!("must not be null: {what}")),
            ffi::SQLITE_CONSTRAINT_CHECK => {
                Error::invalid("data.record", format!("does not satisfy the check of {name}: {what}"))
            }
            ffi::SQLITE_CONSTRAINT_DATATYPE => Error::invalid(
                "data.record",
                format!("has a value of the wrong type: {}", message.as_deref().unwrap_or_default()),
            ),
            ffi::SQLITE_MISMATCH => {
                Error::invalid("data.record", format!("the primary key of {name} takes whole numbers only"))
            }
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY => Error::precondition(
                "FOREIGN_KEY_VIOLATED",
                format!("the row of {name} refers to one that does not exist, or others refer to it"),
            ),
            ffi::SQLITE_TOOBIG => Error::invalid("data.record", "is larger than a row may be"),
            // Raised by an expression of the table itself: a computed column, a check, a default.
            ffi::SQLITE_ERROR => Error::invalid("data.record", format!("an expression of {name} does not accept it")),
            code if code & 0xff == ffi::SQLITE_CONSTRAINT => {
                Error::precondition("CONSTRAINT_VIOLATED", format!("a constraint of {name} does not hold: {what}"))
            }
            _ => return error(cause),
        };
        refusal.caused_by(cause)
    }
}

/// Whether a column's default may give another value every time. A call or CURRENT_TIMESTAMP may; text that only looks like
/// one does no harm.
fn varies(column: &Column) -> bool {
    let default = column.default.as_deref().unwrap_or_default();
    default.contains('(') || default.to_ascii_uppercase().contains("CURRENT_")
}

/// Binds values that [`check_record`] let through.
fn bind<'v>(values: impl IntoIterator<Item = &'v Value>) -> impl Iterator<Item = ToSqlOutput<'v>> {
    values.into_iter().map(|value| table::bind(value).map_or(ToSqlOutput::Owned(Sql::Null), ToSqlOutput::Borrowed))
}
