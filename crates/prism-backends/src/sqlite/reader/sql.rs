//! Statements of the reader: names checked and quoted, values bound, expressions shallow.

use prism_core::{Error, Result};
use rusqlite::types::ValueRef;

use super::cursor::{Position, Scalar};
use super::table::{self, Table, TableKind, quote};
use crate::driver::{Direction, Filter, LogicalOperator, Operator, Sort, Value};

/// Deepest nesting of filters.
const MAX_DEPTH: usize = 32;
/// Most values of one IN.
const MAX_LIST: usize = 1000;
/// Most values of a whole filter; SQLite binds at most 32,766.
const MAX_VALUES: usize = 20_000;
/// Longest operand of CONTAINS and STARTS_WITH, and longest operands of all CONTAINS of a filter together, in bytes: a search
/// takes time in proportion to the product of value and operand, and cannot be stopped within one row.
const MAX_PART_BYTES: usize = 4096;
/// Most CONTAINS of a filter.
const MAX_SEARCHES: usize = 32;
/// Most sort criteria.
const MAX_SORT: usize = 32;
/// Most columns of a view that break ties.
const MAX_TIE_BREAKERS: usize = 64;

/// An expression with the values of its parameters in their order.
#[derive(Default)]
pub(super) struct Condition<'a> {
    pub(super) sql: String,
    pub(super) values: Vec<ValueRef<'a>>,
}

/// Compiles a filter. INVALID_ARGUMENT `filter` for an unknown column or an operand that does not fit its operator.
///
/// NULL is as in SQL: a comparison with a NULL column neither holds nor fails, so NOT does not turn it into a match; ask for
/// NULL with EQUALS or NOT_EQUALS NULL, or IN with NULL among the values.
pub(super) fn filter<'a>(table: &Table, filter: &'a Filter) -> Result<Condition<'a>> {
    let (mut searches, mut bytes) = (0, 0);
    measure(filter, MAX_DEPTH, &mut |part| {
        searches += 1;
        bytes += part.len();
    });
    if searches > MAX_SEARCHES || bytes > MAX_PART_BYTES {
        return Err(invalid(format!(
            "has more than {MAX_SEARCHES} CONTAINS, or their texts are longer than {MAX_PART_BYTES} bytes together"
        )));
    }
    let mut values = Vec::new();
    let sql = compile(table, filter, MAX_DEPTH, &mut values)?;
    Ok(Condition { sql, values })
}

fn invalid(description: impl Into<String>) -> Error {
    Error::invalid("filter", description)
}

/// Shows the operands of CONTAINS to `each`. What is nested deeper than `depth` is refused later.
fn measure(filter: &Filter, depth: usize, each: &mut impl FnMut(&str)) {
    match filter {
        Filter::Field { operator: Operator::Contains, value: Value::Text(part), .. } => each(part),
        Filter::Composite { filters, .. } if depth > 0 => {
            for part in filters {
                measure(part, depth - 1, each);
            }
        }
        Filter::Field { .. } | Filter::Composite { .. } => {}
    }
}

fn compile<'a>(table: &Table, filter: &'a Filter, depth: usize, values: &mut Vec<ValueRef<'a>>) -> Result<String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(invalid(format!("is nested more than {MAX_DEPTH} levels deep")));
    };
    match filter {
        Filter::Field { field, operator, value } => {
            let sql = compare(&known(table, field, "filter")?, *operator, value, values)?;
            if values.len() > MAX_VALUES {
                return Err(invalid(format!("has more than {MAX_VALUES} values in all")));
            }
            Ok(sql)
        }
        Filter::Composite { operator, filters } => {
            let parts = filters.iter().map(|part| compile(table, part, depth, values)).collect::<Result<Vec<_>>>()?;
            match (operator, parts.as_slice()) {
                (_, []) => Err(invalid("a composite filter needs at least one filter")),
                (LogicalOperator::Not, [only]) => Ok(format!("(NOT {only})")),
                (LogicalOperator::Not, _) => Err(invalid("NOT takes exactly one filter")),
                (LogicalOperator::And, _) => Ok(table::join(parts, "AND")),
                (LogicalOperator::Or, _) => Ok(table::join(parts, "OR")),
            }
        }
    }
}

fn compare<'a>(column: &str, operator: Operator, value: &'a Value, values: &mut Vec<ValueRef<'a>>) -> Result<String> {
    let symbol = match operator {
        Operator::Equals if *value == Value::Null => return Ok(format!("({column} IS NULL)")),
        Operator::NotEquals if *value == Value::Null => return Ok(format!("({column} IS NOT NULL)")),
        Operator::In => return within(column, value, values),
        // By bytes: case counts, `%` and `_` are plain characters, and a NUL does not end the text.
        Operator::Contains | Operator::StartsWith => {
            let Value::Text(part) = value else { return Err(invalid("CONTAINS and STARTS_WITH take text")) };
            if part.len() > MAX_PART_BYTES {
                return Err(invalid(format!("CONTAINS and STARTS_WITH take at most {MAX_PART_BYTES} bytes")));
            }
            if operator == Operator::StartsWith {
                values.push(ValueRef::Integer(part.len() as i64));
            }
            values.push(ValueRef::Blob(part.as_bytes()));
            return Ok(match operator {
                Operator::Contains => format!("(instr(CAST({column} AS BLOB), ?) > 0)"),
                // `substr` of an empty value is NULL, which would be as good as an unknown one.
                _ => format!(
                    "(CASE WHEN {column} IS NOT NULL THEN ifnull(substr(CAST({column} AS BLOB), 1, ?), x'') = ? END)"
                ),
            });
        }
        Operator::Equals => "=",
        Operator::NotEquals => "<>",
        Operator::GreaterThan => ">",
        Operator::LessThan => "<",
        Operator::GreaterThanOrEquals => ">=",
        Operator::LessThanOrEquals => "<=",
    };
    if *value == Value::Null {
        return Err(invalid("only EQUALS, NOT_EQUALS and IN take null; nothing is larger or smaller than it"));
    }
    values.push(table::bind(value).ok_or_else(|| invalid("only IN takes a list"))?);
    Ok(format!("({column} {symbol} ?)"))
}

fn within<'a>(column: &str, value: &'a Value, values: &mut Vec<ValueRef<'a>>) -> Result<String> {
    let Value::List(list) = value else { return Err(invalid("IN takes a list")) };
    if list.is_empty() || list.len() > MAX_LIST {
        return Err(invalid(format!("IN takes 1 to {MAX_LIST} values")));
    }
    let before = values.len();
    for item in list.iter().filter(|item| **item != Value::Null) {
        values.push(table::bind(item).ok_or_else(|| invalid("a list within a list is not a value"))?);
    }
    let bound = values.len() - before;
    let marks = vec!["?"; bound].join(", ");
    Ok(match (bound, bound < list.len()) {
        (0, _) => format!("({column} IS NULL)"),
        (_, false) => format!("({column} IN ({marks}))"),
        (_, true) => format!("({column} IN ({marks}) OR {column} IS NULL)"),
    })
}

/// The quoted name of a column that the table has.
pub(super) fn known(table: &Table, column: &str, path: &str) -> Result<String> {
    match table.column(column) {
        Some(column) => Ok(quote(&column.name)),
        None => Err(Error::invalid(path, format!("{} has no column {column:?}", table.name))),
    }
}

/// One expression of the order.
struct Key {
    sql: String,
    descending: bool,
    /// It may be NULL, which SQLite sorts before everything.
    nullable: bool,
}

/// The order of a read: the sort criteria, then what makes it total.
pub(super) struct Order {
    keys: Vec<Key>,
    /// No two rows are equal in it.
    pub(super) unique: bool,
}

impl Order {
    /// INVALID_ARGUMENT `sort` for an unknown column or more than 32 criteria.
    ///
    /// The tie-breaker is the row id, or the primary key of a table without one. A view has neither: all its columns, the
    /// first 64 at most, break ties, and among rows that are equal in them a page goes on by their number.
    pub(super) fn new(table: &Table, sort: &[Sort]) -> Result<Self> {
        if sort.len() > MAX_SORT {
            return Err(Error::invalid("sort", format!("has more than {MAX_SORT} criteria")));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(sort.len() + 1);
        for criterion in sort {
            let sql = known(table, &criterion.field, "sort")?;
            // A column that is named again no longer changes the order.
            if keys.iter().all(|key| key.sql != sql) {
                let nullable = table.column(&criterion.field).is_none_or(|column| !column.not_null);
                keys.push(Key { sql, descending: criterion.direction == Direction::Descending, nullable });
            }
        }
        // The finest collation: what is unique in any is unique in this.
        let exact =
            |name: &str, nullable| Key { sql: format!("{} COLLATE BINARY", quote(name)), descending: false, nullable };
        let mut unique = true;
        if let Some(alias) = table.row_id() {
            keys.push(Key { sql: alias.to_owned(), descending: false, nullable: false });
        } else if table.kind == TableKind::WithoutRowId {
            keys.extend(table.primary_key().into_iter().map(|column| exact(&column.name, false)));
        } else {
            unique = false;
            keys.extend(
                table.columns.iter().take(MAX_TIE_BREAKERS).map(|column| exact(&column.name, !column.not_null)),
            );
        }
        Ok(Self { keys, unique })
    }

    /// How many values a position has.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The expressions, to select them.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.sql.as_str())
    }

    /// The ORDER BY.
    pub(super) fn clause(&self) -> String {
        let terms = self.keys.iter().map(|key| format!("{}{}", key.sql, if key.descending { " DESC" } else { "" }));
        terms.collect::<Vec<_>>().join(", ")
    }

    /// What holds for the rows after `position`, in SQLite's own order and with NULL in its place. Where the order is not
    /// unique it also holds for the rows equal to it, which the caller skips by number.
    pub(super) fn after<'a>(&self, position: &'a Position) -> Condition<'a> {
        let mut parts = Vec::new();
        let mut values = Vec::new();
        let pairs: Vec<_> = self.keys.iter().zip(&position.values).collect();
        if let Some((key, value)) = pairs.first() {
            // Follows from the rest; an index can use it.
            key.bound(value, &mut parts, &mut values);
        }
        let mut sql = String::new();
        let mut open = 0;
        for (index, (key, value)) in pairs.iter().enumerate() {
            sql.push_str(&key.beyond(value, &mut values));
            if index + 1 < pairs.len() || !self.unique {
                values.push(value.bind());
                sql.extend([" OR (", &key.sql, " IS ?"]);
                open += 1;
                if index + 1 < pairs.len() {
                    sql.push_str(" AND (");
                    open += 1;
                }
            }
        }
        sql.push_str(&")".repeat(open));
        parts.push(format!("({sql})"));
        Condition { sql: table::join(parts, "AND"), values }
    }
}

impl Key {
    /// Holds for what comes after `value`.
    fn beyond<'a>(&self, value: &'a Scalar, values: &mut Vec<ValueRef<'a>>) -> String {
        let column = &self.sql;
        match (value, self.descending) {
            (Scalar::Null, false) => return format!("{column} IS NOT NULL"),
            (Scalar::Null, true) => return "FALSE".to_owned(),
            _ => values.push(value.bind()),
        }
        match (self.descending, self.nullable) {
            (false, _) => format!("{column} > ?"),
            (true, false) => format!("{column} < ?"),
            (true, true) => format!("{column} < ? OR {column} IS NULL"),
        }
    }

    /// Holds for what does not come before `value`, where one comparison says it.
    fn bound<'a>(&self, value: &'a Scalar, parts: &mut Vec<String>, values: &mut Vec<ValueRef<'a>>) {
        let symbol = match (value, self.descending, self.nullable) {
            (Scalar::Null, true, _) => "IS",
            (Scalar::Null, false, _) | (_, true, true) => return,
            (_, true, false) => "<=",
            (_, false, _) => ">=",
        };
        values.push(value.bind());
        parts.push(format!("{} {symbol} ?", self.sql));
    }
}
