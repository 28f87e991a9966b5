use async_trait::async_trait;
use prism_core::Result;

use super::{Record, Value};

/// Comparison of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`; with NULL: is null.
    Equals,
    /// `<>`; with NULL: is not null.
    NotEquals,
    /// `>`.
    GreaterThan,
    /// `<`.
    LessThan,
    /// One of a list.
    In,
    /// Text contains text, case-sensitive.
    Contains,
    /// `>=`.
    GreaterThanOrEquals,
    /// `<=`.
    LessThanOrEquals,
    /// Text begins with text, case-sensitive.
    StartsWith,
}

/// How filters combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogicalOperator {
    /// All hold.
    And,
    /// At least one holds.
    Or,
    /// The only one does not hold.
    Not,
}

/// Which rows; at most 32 levels deep and 1000 comparisons in all, checked by the service.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// One comparison.
    Field {
        /// Column.
        field: String,
        /// Comparison.
        operator: Operator,
        /// Operand.
        value: Value,
    },
    /// Several filters combined.
    Composite {
        /// How.
        operator: LogicalOperator,
        /// What; never empty, exactly one for NOT.
        filters: Vec<Filter>,
    },
}

/// Ascending or descending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first.
    #[default]
    Ascending,
    /// Largest first.
    Descending,
}

/// One sort criterion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Column.
    pub field: String,
    /// Direction.
    pub direction: Direction,
}

/// One page to read.
#[derive(Clone, Debug, Default)]
pub struct ReadRequest {
    /// Table or view; PERMISSION_DENIED `COLLECTION_NOT_ALLOWED` when the config does not list it.
    pub collection: String,
    /// Which rows; `None` = all.
    pub filter: Option<Filter>,
    /// Order; the driver appends a unique tie-breaker.
    pub sort: Vec<Sort>,
    /// Columns to return; empty = all. INVALID_ARGUMENT naming `fields` when one does not exist.
    pub fields: Vec<String>,
    /// Most rows of the page, 1 to 1000.
    pub limit: usize,
    /// Where to go on: the cursor of the page before. INVALID_ARGUMENT `cursor` when it is not one of this query.
    pub cursor: Option<String>,
}

/// One page.
#[derive(Clone, Debug, Default)]
pub struct ReadPage {
    /// Rows in order.
    pub rows: Vec<Record>,
    /// Where to go on; `None` at the end. It names the last row by its sort values, so rows that are inserted meanwhile
    /// neither shift nor repeat others.
    pub next_cursor: Option<String>,
}

/// PAGED_READER: contract §4 `ReaderService`. Values are bound, names are checked against the table and quoted.
#[async_trait]
pub trait Reader: Send + Sync + 'static {
    /// Reads one page.
    async fn read(&self, request: ReadRequest) -> Result<ReadPage>;

    /// Counts rows.
    async fn count(&self, collection: &str, filter: Option<Filter>) -> Result<i64>;
}
