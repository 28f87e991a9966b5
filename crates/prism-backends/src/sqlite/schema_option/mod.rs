//! The config option `schema` (contract §9 "tables"): what a config may do to the shape of its namespace's file.
//!
//! A config may come from any client, and its schema is SQL that runs in the file that also holds Prism's own tables. It is
//! checked twice: by its tokens, and by running it on a scratch database under an authorizer that denies by default.

mod rules;
mod tokens;

use std::collections::BTreeMap;
use std::path::Path;

use prism_core::config::{Config, is_table_name};
use prism_core::{Error, Result};
use prism_sqlite::error;
use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// Where a violation is reported.
const FIELD: &str = "config.backend.options.schema";
/// Most tables and indices of one namespace: an empty one takes disk space that no quota counts.
const MAX_OBJECTS: usize = 1024;

/// Most indices of one table, with those that constraints make, and most columns of all of them together: each keeps a copy
/// of its columns, which no quota counts.
const MAX_INDICES: i64 = 16;
const MAX_INDEXED_COLUMNS: i64 = 32;
/// Most columns and functions that the CHECKs and the index expressions of one table name: all are worked out for every row
/// written, by the namespace's one writer.
const MAX_OPERANDS: usize = 100;

/// Functions of CHECK, DEFAULT and index expressions: each takes time in proportion to what it gets, and makes no more bytes
/// than it gets, but for those that [`rules::check`] looks at.
const FUNCTIONS: &[&str] = &[
    "->",
    "->>",
    "abs",
    "coalesce",
    "current_date",
    "current_time",
    "current_timestamp",
    "date",
    "datetime",
    "hex",
    "ifnull",
    "iif",
    "json_extract",
    "json_type",
    "json_valid",
    "julianday",
    "length",
    "lower",
    "ltrim",
    "max",
    "min",
    "nullif",
    "random",
    "randomblob",
    "round",
    "rtrim",
    "sign",
    "strftime",
    "substr",
    "substring",
    "time",
    "trim",
    "typeof",
    "unixepoch",
    "upper",
];

/// A schema whose statements are of the allowed kinds.
pub(crate) struct Schema {
    statements: Vec<String>,
}

/// The schema of `config`, if it has one; INVALID_ARGUMENT when a statement is not of an allowed kind.
pub(crate) fn of(config: &Config) -> Result<Option<Schema>> {
    config.backend.options.get("schema").map(|script| Schema::parse(script)).transpose()
}

impl Schema {
    fn parse(script: &str) -> Result<Self> {
        let parsed = tokens::statements(script).map_err(|what| Error::invalid(FIELD, what))?;
        let mut statements = Vec::with_capacity(parsed.len());
        for (index, statement) in parsed.iter().enumerate() {
            rules::check(statement).map_err(|what| refused(index, what))?;
            statements.push(statement.sql.to_owned());
        }
        Ok(Self { statements })
    }
}

fn refused(index: usize, what: impl std::fmt::Display) -> Error {
    Error::invalid(FIELD, format!("statement {}: {what}", index + 1))
}

/// Runs the schema on a scratch copy of the tables in the namespace's file at `path`, which need not exist.
pub(crate) fn rehearse(schema: &Schema, path: &Path) -> Result<()> {
    let mut scratch = Connection::open_in_memory().map_err(error)?;
    for sql in defined(path)? {
        scratch.execute_batch(&sql).map_err(error)?;
    }
    scratch.authorizer(Some(authorize)).map_err(error)?;
    run(schema, &scratch)?;
    scratch.authorizer(None::<fn(AuthContext<'_>) -> Authorization>).map_err(error)?;
    check_objects(&scratch)?;
    check_costs(&scratch)
}

/// Runs the schema, which [`rehearse`] has accepted, where it is to stay.
pub(crate) fn apply(schema: &Schema, connection: &Connection) -> Result<()> {
    run(schema, connection)?;
    // Once more: another schema may have come in between.
    check_costs(connection)
}

fn run(schema: &Schema, connection: &Connection) -> Result<()> {
    for (index, sql) in schema.statements.iter().enumerate() {
        // One statement by construction; `execute` refuses to run a second one.
        connection.execute(sql, []).map_err(|cause| explain(index, cause))?;
    }
    Ok(())
}

/// A broken disk is not the client's fault; whatever else SQLite says of a statement is.
fn explain(index: usize, cause: rusqlite::Error) -> Error {
    let message = match &cause {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, offset, .. } => format!("{msg} at byte {offset}"),
        cause => cause.to_string(),
    };
    let known = error(cause);
    if known.reason() == "INTERNAL" { refused(index, message) } else { known }
}

/// The definitions of the users' tables and indices in the file.
fn defined(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let connection = prism_sqlite::open_reader(path).map_err(error)?;
    let objects = objects(&connection)?;
    Ok(objects.into_iter().filter(|object| is_table_name(&object.table)).filter_map(|object| object.sql).collect())
}

struct Object {
    kind: String,
    name: String,
    table: String,
    /// `None` for the indices of constraints.
    sql: Option<String>,
}

fn objects(connection: &Connection) -> Result<Vec<Object>> {
    let mut statement =
        connection.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid").map_err(error)?;
    statement
        .query_map([], |row| Ok(Object { kind: row.get(0)?, name: row.get(1)?, table: row.get(2)?, sql: row.get(3)? }))
        .and_then(Iterator::collect)
        .map_err(error)
}

/// Looks at what a schema has made, whatever its statements said.
fn check_objects(scratch: &Connection) -> Result<()> {
    let objects = objects(scratch)?;
    let own = |object: &&Object| object.sql.is_some() && object.table != "sqlite_sequence";
    for object in objects.iter().filter(own) {
        let allowed = matches!(object.kind.as_str(), "table" | "index");
        if !allowed || !is_table_name(&object.name) || !is_table_name(&object.table) {
            return Err(Error::invalid(FIELD, format!("the {} {:?} is not allowed", object.kind, object.name)));
        }
    }
    if objects.len() > MAX_OBJECTS {
        let message = format!("the namespace would have more than {MAX_OBJECTS} tables and indices");
        return Err(Error::invalid(FIELD, message));
    }
    Ok(())
}

/// Looks at what every write to a table costs beside the row itself, by all schemas together.
fn check_costs(connection: &Connection) -> Result<()> {
    let mut operands: BTreeMap<String, usize> = BTreeMap::new();
    for object in objects(connection)?.into_iter().filter(|object| is_table_name(&object.table)) {
        // What is not the user's own is not in a form that a schema may have.
        let statements = object.sql.as_deref().map_or(Ok(Vec::new()), tokens::statements);
        let cost =
            statements.unwrap_or_default().iter().map(|statement| rules::operands(&statement.tokens)).sum::<usize>();
        *operands.entry(object.table).or_default() += cost;
    }
    let mut select = connection
        .prepare(
            "SELECT count(DISTINCT l.name), count(*) FROM pragma_index_list(?1) l, pragma_index_xinfo(l.name) x WHERE x.cid <> -1",
        )
        .map_err(error)?;
    for (table, operands) in operands {
        let (indices, columns): (i64, i64) =
            select.query_row([&table], |row| Ok((row.get(0)?, row.get(1)?))).map_err(error)?;
        let too_much = if indices > MAX_INDICES || columns > MAX_INDEXED_COLUMNS {
            format!(
                "{table} would have {indices} indices of {columns} columns together; the most are {MAX_INDICES} and {MAX_INDEXED_COLUMNS}"
            )
        } else if operands > MAX_OPERANDS {
            format!(
                "the CHECKs and indices of {table} would name {operands} columns and functions; the most are {MAX_OPERANDS}"
            )
        } else {
            continue;
        };
        return Err(Error::invalid(FIELD, too_much));
    }
    Ok(())
}

/// Denies by default. What creating a table or an index does to the catalogue is all that is allowed.
fn authorize(context: AuthContext<'_>) -> Authorization {
    let catalogue = |table: &str| matches!(table, "sqlite_master" | "sqlite_schema");
    let allowed = match context.action {
        AuthAction::CreateTable { table_name } => is_table_name(table_name) || table_name == "sqlite_sequence",
        AuthAction::CreateIndex { index_name, table_name } => {
            is_table_name(table_name) && (is_table_name(index_name) || index_name.starts_with("sqlite_autoindex_"))
        }
        AuthAction::Reindex { index_name } => is_table_name(index_name),
        AuthAction::Insert { table_name } | AuthAction::Update { table_name, .. } => catalogue(table_name),
        AuthAction::Read { table_name, .. } => catalogue(table_name) || is_table_name(table_name),
        AuthAction::Function { function_name } => FUNCTIONS.contains(&function_name.to_ascii_lowercase().as_str()),
        AuthAction::Transaction { .. } => true,
        _ => false,
    };
    let here = matches!(context.database_name, None | Some("main"));
    if allowed && here { Authorization::Allow } else { Authorization::Deny }
}

#[cfg(test)]
mod tests;
