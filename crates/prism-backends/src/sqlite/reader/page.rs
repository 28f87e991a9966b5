//! One page, and one count.

use prism_core::{Error, Result};
use prism_sqlite::error;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, Row, Statement, params_from_iter};

use super::cursor::{self, Fingerprint, Position, Scalar};
use super::sql::{self, Condition, Order};
use super::table::{self, Table, TableKind, quote};
use crate::driver::{Filter, ReadPage, ReadRequest, Record};

/// A page ends before the row that would make it larger than this, in bytes; one row is always given.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Longest statement that is kept compiled, in bytes: a caller's large filters do not fill the memory.
const MAX_KEPT_STATEMENT: usize = 4096;

fn load(connection: &Connection, collection: &str) -> Result<Table> {
    Table::load(connection, collection)?
        .filter(|table| table.kind != TableKind::Foreign)
        .ok_or_else(|| Error::not_found(format_args!("collection:{collection}")))
}

fn condition<'a>(table: &Table, filter: Option<&'a Filter>) -> Result<Option<Condition<'a>>> {
    filter.map(|filter| sql::filter(table, filter)).transpose()
}

/// Counts the rows that `filter` lets through.
pub(super) fn count(connection: &Connection, collection: &str, filter: Option<&Filter>) -> Result<i64> {
    let table = load(connection, collection)?;
    let condition = condition(&table, filter)?.unwrap_or_default();
    let mut text = format!("SELECT count(*) FROM {}", table.quoted());
    if !condition.sql.is_empty() {
        text.push_str(" WHERE ");
        text.push_str(&condition.sql);
    }
    let mut statement = Prepared::new(connection, &text)?;
    statement.get().query_row(params_from_iter(bound(&condition.values)), |row| row.get(0)).map_err(error)
}

/// Reads the page after the request's cursor.
pub(super) fn read(connection: &Connection, request: &ReadRequest) -> Result<ReadPage> {
    let table = load(connection, &request.collection)?;
    let fields = fields(&table, &request.fields)?;
    let order = Order::new(&table, &request.sort)?;
    let mut conditions: Vec<_> = condition(&table, request.filter.as_ref())?.into_iter().collect();
    let fingerprint = cursor::fingerprint(request);
    let start = match &request.cursor {
        Some(text) => Some(cursor::decode(text, fingerprint, order.len())?),
        None => None,
    };
    conditions.extend(start.as_ref().map(|position| order.after(position)));

    let selected = fields.iter().map(|field| quote(field));
    let selected: Vec<_> = selected.chain(order.expressions().map(str::to_owned)).collect();
    let mut text = format!("SELECT {} FROM {}", selected.join(", "), table.quoted());
    let mut values = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        text.push_str(if index == 0 { " WHERE " } else { " AND " });
        text.push_str(&condition.sql);
        values.extend_from_slice(&condition.values);
    }
    text.push_str(" ORDER BY ");
    text.push_str(&order.clause());
    text.push_str(" LIMIT ? OFFSET ?");
    let limit = request.limit.max(1);
    // One more than asked for tells whether there is another page.
    values.push(ValueRef::Integer(limit as i64 + 1));
    values.push(ValueRef::Integer(start.as_ref().map_or(0, |position| i64::from(position.given))));

    let mut statement = Prepared::new(connection, &text)?;
    let mut found = statement.get().query(params_from_iter(bound(&values))).map_err(error)?;
    let mut page =
        Page { fingerprint, limit, unique: order.unique, last: start.unwrap_or_default(), rows: Vec::new(), bytes: 0 };
    while let Some(row) = found.next().map_err(error)? {
        if !page.add(row, &fields, order.len())? {
            return page.unfinished();
        }
    }
    Ok(ReadPage { rows: page.rows, next_cursor: None })
}

/// Columns to return, each once.
fn fields<'a>(table: &'a Table, asked: &[String]) -> Result<Vec<&'a str>> {
    if asked.is_empty() {
        return Ok(table.columns.iter().map(|column| column.name.as_str()).collect());
    }
    let mut fields = Vec::with_capacity(asked.len().min(table.columns.len()));
    for field in asked {
        sql::known(table, field, "fields")?;
    }
    for column in &table.columns {
        if asked.contains(&column.name) {
            fields.push(column.name.as_str());
        }
    }
    Ok(fields)
}

/// The page that is being filled.
struct Page {
    fingerprint: Fingerprint,
    limit: usize,
    unique: bool,
    last: Position,
    rows: Vec<Record>,
    bytes: usize,
}

impl Page {
    /// Adds a row; `false` when the page is full without it.
    fn add(&mut self, row: &Row<'_>, fields: &[&str], keys: usize) -> Result<bool> {
        if self.rows.len() >= self.limit {
            return Ok(false);
        }
        let mut bytes = 0;
        let mut record = Record::new();
        for (index, field) in fields.iter().enumerate() {
            let found = row.get_ref(index).map_err(error)?;
            bytes += field.len() + table::size(found);
            if !self.rows.is_empty() && self.bytes + bytes > MAX_PAGE_BYTES {
                return Ok(false);
            }
            record.insert((*field).to_owned(), table::value(found));
        }
        let values = (fields.len()..fields.len() + keys).map(|index| row.get_ref(index).map(Scalar::from));
        let values = values.collect::<rusqlite::Result<Vec<_>>>().map_err(error)?;
        let given = match self.unique {
            true => 0,
            false if same(&self.last.values, &values) => self.last.given.saturating_add(1),
            false => 1,
        };
        self.last = Position { values, given };
        self.bytes += bytes;
        self.rows.push(record);
        Ok(true)
    }

    /// The page with the cursor of its last row.
    fn unfinished(self) -> Result<ReadPage> {
        let next_cursor = cursor::encode(self.fingerprint, &self.last)?;
        Ok(ReadPage { rows: self.rows, next_cursor: Some(next_cursor) })
    }
}

fn same(a: &[Scalar], b: &[Scalar]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b))
}

fn bound<'a>(values: &'a [ValueRef<'a>]) -> impl Iterator<Item = ToSqlOutput<'a>> {
    values.iter().map(|value| ToSqlOutput::Borrowed(*value))
}

/// A statement, kept for the next time unless it is long.
enum Prepared<'c> {
    Kept(CachedStatement<'c>),
    Once(Statement<'c>),
}

impl<'c> Prepared<'c> {
    fn new(connection: &'c Connection, text: &str) -> Result<Self> {
        match text.len() {
            0..=MAX_KEPT_STATEMENT => connection.prepare_cached(text).map(Self::Kept),
            _ => connection.prepare(text).map(Self::Once),
        }
        .map_err(error)
    }

    fn get(&mut self) -> &mut Statement<'c> {
        match self {
            Self::Kept(statement) => statement,
            Self::Once(statement) => statement,
        }
    }
}
