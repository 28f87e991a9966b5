//! Reading the audit log: entries as they are stored, chunk by chunk, by the index that fits the filter.

use bytes::Bytes;
use prism_core::permission::Reach;
use prism_core::{Error, Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, ToSql};

use crate::tx::{limited_to, one, present_only};

/// Most entries of one chunk.
const CHUNK_ENTRIES: usize = 2048;
/// A chunk ends with the entry that makes it this large, in bytes.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Most entries that are looked at for one chunk, whether they match or not, where no index narrows them down.
const WINDOW: i64 = 65_536;
/// A filter with fewer matches than this is served by sorting them.
const FEW: i64 = 10_000;

/// Which entries to read.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this actor.
    pub actor: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
    /// From this moment on.
    pub start: Option<UnixMillis>,
    /// Before this moment.
    pub end: Option<UnixMillis>,
}

/// In which order to read entries, and from where on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Entries before this place, newest first: by sequence, or by time where the filter has one. The two differ only where
    /// the clock was set back.
    NewestBefore {
        /// Sequence of the place.
        sequence: i64,
        /// Its time.
        timestamp: UnixMillis,
    },
    /// Entries after this sequence, oldest first.
    OldestAfter(i64),
}

impl Order {
    /// From whichever entry is the oldest when the first chunk is read.
    pub const OLDEST: Self = Self::OldestAfter(-1);
}

/// What to read.
#[derive(Clone, Debug)]
pub struct EntryQuery {
    /// Which entries.
    pub filter: EntryFilter,
    /// In which namespaces.
    pub reach: Reach,
    /// From where on.
    pub order: Order,
    /// Last sequence to look at; `None` = no end.
    pub until: Option<i64>,
    /// Most entries; a chunk has bounds of its own.
    pub limit: usize,
}

/// Entries as they are stored: `AuditLogEntry` in deterministic encoding.
#[derive(Debug)]
pub struct EntryChunk {
    /// The entries.
    pub entries: Vec<Bytes>,
    /// Where to go on.
    pub next: Order,
    /// Whether there was nothing beyond this chunk when it was read.
    pub end: bool,
}

/// What an entry is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    /// The table itself, by sequence.
    Sequence,
    Timestamp,
    Actor,
    Operation,
    Namespace,
}

impl Index {
    fn hint(self) -> &'static str {
        match self {
            Self::Sequence => "NOT INDEXED",
            Self::Timestamp => "INDEXED BY audit_by_timestamp",
            Self::Actor => "INDEXED BY audit_by_actor",
            Self::Operation => "INDEXED BY audit_by_operation",
            Self::Namespace => "INDEXED BY audit_by_namespace",
        }
    }
}

/// The namespaces that a query is limited to.
enum Limited {
    Nowhere,
    One(String),
    Several(String),
}

impl Limited {
    fn of(query: &EntryQuery) -> Option<Self> {
        let list = limited_to(&query.reach, query.filter.namespace.as_deref())?;
        let mut names: Vec<String> = serde_json::from_str(&list).unwrap_or_default();
        Some(match (names.pop(), names.is_empty()) {
            (None, _) => Self::Nowhere,
            (Some(name), true) => Self::One(name),
            (Some(_), false) => Self::Several(list),
        })
    }

    fn condition(&self) -> &'static str {
        match self {
            Self::Nowhere => "FALSE",
            Self::One(_) => "namespace = :namespace",
            Self::Several(_) => "namespace IN (SELECT value FROM json_each(:namespace))",
        }
    }

    fn value(&self) -> Option<&String> {
        match self {
            Self::Nowhere => None,
            Self::One(value) | Self::Several(value) => Some(value),
        }
    }
}

/// Conditions of a statement with their values; only those that the query has.
#[derive(Default)]
struct Conditions<'a> {
    texts: Vec<&'static str>,
    values: Vec<(&'static str, &'a dyn ToSql)>,
}

impl<'a> Conditions<'a> {
    fn add(&mut self, text: &'static str, name: &'static str, value: &'a dyn ToSql) {
        self.texts.push(text);
        self.bind(name, value);
    }

    fn bind(&mut self, name: &'static str, value: &'a dyn ToSql) {
        self.values.push((name, value));
    }
}

/// One chunk of what `query` asks for.
///
/// ABORTED `AUDIT_LOG_CUT` when retention removed entries between the place to go on from and the oldest entry left: what
/// came next would not be what followed.
pub(crate) fn read_chunk(connection: &Connection, query: &EntryQuery) -> Result<EntryChunk> {
    // One state of the log for all that is asked of it.
    let snapshot = connection.unchecked_transaction().map_err(error)?;
    let oldest = edge(&snapshot, "min")?;
    let newest = edge(&snapshot, "max")?;
    let last = query.until.map_or(newest, |until| until.min(newest));
    let from_oldest = EntryQuery { order: Order::OldestAfter(oldest - 1), ..query.clone() };
    let query = if query.order == Order::OLDEST { &from_oldest } else { query };
    if let Order::OldestAfter(at) = query.order
        && oldest > at + 1
    {
        let message = "retention has removed entries that come next; start again from the oldest that is left";
        return Err(Error::aborted("AUDIT_LOG_CUT", message).with("oldest_sequence", oldest.to_string()));
    }
    let limited = Limited::of(query);
    let chunk = Reading::prepare(&snapshot, query, limited.as_ref(), (oldest, last))?.chunk(&snapshot)?;
    snapshot.finish().map_err(error)?;
    Ok(chunk)
}

fn edge(connection: &Connection, which: &str) -> Result<i64> {
    let sql = format!("SELECT coalesce({which}(sequence), 0) FROM audit");
    Ok(one(connection, &sql, [], |row| row.get(0))?.unwrap_or(0))
}

/// The index by which the fewest entries have to be looked at.
fn choose(connection: &Connection, query: &EntryQuery, limited: Option<&Limited>, last: i64) -> Result<Index> {
    let EntryFilter { actor, operation, start, end, .. } = &query.filter;
    let timed = match query.order {
        // What is new is few; only who goes on from far back is helped by an index.
        Order::OldestAfter(at) if last - at <= FEW => return Ok(Index::Sequence),
        Order::OldestAfter(_) => false,
        Order::NewestBefore { .. } => start.is_some() || end.is_some(),
    };
    let several = matches!(limited, Some(Limited::Several(_)));
    let candidates = [
        (Index::Actor, "actor = ?1", actor.as_ref()),
        (Index::Operation, "operation = ?1", operation.as_ref()),
        (Index::Namespace, "namespace = ?1", limited.filter(|_| !several).and_then(Limited::value)),
        (
            Index::Namespace,
            "namespace IN (SELECT value FROM json_each(?1))",
            limited.filter(|_| several).and_then(Limited::value),
        ),
    ];
    let mut best: Option<(i64, Index)> = None;
    for (index, condition, value) in candidates {
        let Some(value) = value else { continue };
        let sql = format!("SELECT count(*) FROM (SELECT 1 FROM audit {} WHERE {condition} LIMIT {FEW})", index.hint());
        let count = one(connection, &sql, [value], |row| row.get(0))?.unwrap_or(0);
        // What is in the order of an index already needs no sorting, however much it is; that of several namespaces is not.
        let sorted = !(timed || several && index == Index::Namespace);
        if (count < FEW || sorted) && best.is_none_or(|(least, _)| count < least) {
            best = Some((count, index));
        }
    }
    Ok(best.map_or(if timed { Index::Timestamp } else { Index::Sequence }, |(_, index)| index))
}

/// One chunk being read.
struct Reading<'a> {
    query: &'a EntryQuery,
    limited: Option<&'a Limited>,
    index: Index,
    /// Newest sequence to look at.
    last: i64,
    /// Oldest sequence there is.
    oldest: i64,
}

/// The values of what bounds a chunk.
struct Bounds {
    low: i64,
    high: i64,
    before: i64,
    before_sequence: i64,
    rows: i64,
}

impl<'a> Reading<'a> {
    fn prepare(
        connection: &Connection,
        query: &'a EntryQuery,
        limited: Option<&'a Limited>,
        (oldest, last): (i64, i64),
    ) -> Result<Self> {
        let index = choose(connection, query, limited, last)?;
        Ok(Self { query, limited, index, last, oldest })
    }

    /// Whether the order is that of time.
    fn timed(&self) -> bool {
        let EntryFilter { start, end, .. } = &self.query.filter;
        matches!(self.query.order, Order::NewestBefore { .. }) && (start.is_some() || end.is_some())
    }

    fn narrowed(&self) -> bool {
        let EntryFilter { actor, operation, start, end, .. } = &self.query.filter;
        actor.is_some() || operation.is_some() || start.is_some() || end.is_some() || self.limited.is_some()
    }

    fn bounds(&self) -> Bounds {
        let window = if self.index == Index::Sequence && self.narrowed() { WINDOW } else { i64::MAX };
        let rows = self.query.limit.min(CHUNK_ENTRIES) as i64;
        match self.query.order {
            Order::OldestAfter(at) => {
                let (low, high) = (at.saturating_add(1), self.last.min(at.saturating_add(window)));
                Bounds { low, high, before: 0, before_sequence: 0, rows }
            }
            Order::NewestBefore { sequence, timestamp } => {
                let high = if self.timed() { self.last } else { self.last.min(sequence.saturating_sub(1)) };
                let low = self.oldest.max(high.saturating_sub(window.saturating_sub(1)));
                Bounds { low, high, before: timestamp.0, before_sequence: sequence, rows }
            }
        }
    }

    fn statement<'b>(&'b self, bounds: &'b Bounds) -> (String, Conditions<'b>) {
        let conditions = self.conditions(bounds);
        let direction = match self.query.order {
            Order::OldestAfter(_) => "sequence",
            Order::NewestBefore { .. } if self.timed() => "timestamp DESC, sequence DESC",
            Order::NewestBefore { .. } => "sequence DESC",
        };
        let sql = format!(
            "SELECT sequence, timestamp, entry FROM audit {} WHERE {} ORDER BY {direction} LIMIT :limit",
            self.index.hint(),
            conditions.texts.join(" AND ")
        );
        (sql, conditions)
    }

    fn chunk(&self, connection: &Connection) -> Result<EntryChunk> {
        let bounds = self.bounds();
        let (sql, conditions) = self.statement(&bounds);
        let mut statement = connection.prepare_cached(&sql).map_err(error)?;
        let mut rows = statement.query(conditions.values.as_slice()).map_err(error)?;
        let (mut data, mut ends, mut at) = (Vec::new(), Vec::new(), None);
        let mut full = bounds.rows == 0;
        while let Some(row) = rows.next().map_err(error)? {
            let place = || -> rusqlite::Result<_> { Ok((row.get(0)?, UnixMillis(row.get(1)?))) };
            at = Some(place().map_err(error)?);
            let encoded = row.get_ref(2).map_err(error)?;
            data.extend_from_slice(encoded.as_blob().map_err(Error::internal)?);
            ends.push(data.len());
            full = ends.len() as i64 == bounds.rows || data.len() >= CHUNK_BYTES;
            if full {
                break;
            }
        }
        let (next, end) = self.after(at.filter(|_| full), full, &bounds);
        let data = Bytes::from(data);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let entries = starts.zip(&ends).map(|(start, end)| data.slice(start..*end)).collect();
        Ok(EntryChunk { entries, next, end })
    }

    /// Where to go on after a chunk that is full with the entry `at`, or after all that there was; and whether there was
    /// nothing left.
    fn after(&self, at: Option<(i64, UnixMillis)>, full: bool, bounds: &Bounds) -> (Order, bool) {
        match (self.query.order, at) {
            (Order::OldestAfter(_), Some((sequence, _))) => (Order::OldestAfter(sequence), false),
            (Order::NewestBefore { .. }, Some((sequence, timestamp))) => {
                (Order::NewestBefore { sequence, timestamp }, false)
            }
            (order, None) if full => (order, false),
            (Order::OldestAfter(from), None) => (Order::OldestAfter(from.max(bounds.high)), bounds.high >= self.last),
            (order @ Order::NewestBefore { .. }, None) if self.timed() => (order, true),
            (Order::NewestBefore { sequence, timestamp }, None) => {
                (Order::NewestBefore { sequence: bounds.low.min(sequence), timestamp }, bounds.low <= self.oldest)
            }
        }
    }

    /// Only what the query asks for: what says nothing would only be evaluated, or mislead the planner.
    fn conditions<'b>(&'b self, bounds: &'b Bounds) -> Conditions<'b> {
        let mut conditions = Conditions::default();
        let EntryFilter { actor, operation, start, end, .. } = &self.query.filter;
        conditions.bind(":limit", &bounds.rows);
        conditions.add("sequence <= :high", ":high", &bounds.high);
        if self.timed() {
            conditions.add("timestamp <= :before", ":before", &bounds.before);
            let rest = "(timestamp < :before OR sequence < :before_sequence)";
            conditions.add(rest, ":before_sequence", &bounds.before_sequence);
        } else {
            conditions.add("sequence >= :low", ":low", &bounds.low);
        }
        if let Some(limited) = self.limited {
            match limited.value() {
                Some(value) => conditions.add(limited.condition(), ":namespace", value),
                None => conditions.texts.push(limited.condition()),
            }
        }
        if let Some(actor) = actor {
            conditions.add("actor = :actor", ":actor", actor);
        }
        if let Some(operation) = operation {
            conditions.add("operation = :operation", ":operation", operation);
        }
        if let Some(start) = start {
            conditions.add("timestamp >= :start", ":start", &start.0);
        }
        if let Some(end) = end {
            conditions.add("timestamp < :end", ":end", &end.0);
        }
        if present_only(&self.query.reach) {
            conditions.texts.push(
                "EXISTS (SELECT 1 FROM namespaces n WHERE n.name = audit.namespace AND n.created_at <= audit.timestamp)",
            );
        }
        conditions
    }
}

/// What SQLite says that it does for a chunk.
#[cfg(test)]
pub(crate) fn plan(connection: &Connection, query: &EntryQuery) -> Result<String> {
    let (oldest, last) = (edge(connection, "min")?, edge(connection, "max")?);
    let limited = Limited::of(query);
    let reading = Reading::prepare(connection, query, limited.as_ref(), (oldest, last))?;
    let bounds = reading.bounds();
    let (sql, conditions) = reading.statement(&bounds);
    let explain = format!("EXPLAIN QUERY PLAN {sql}");
    let details = crate::tx::all(connection, &explain, conditions.values.as_slice(), |row| row.get::<_, String>(3))?;
    Ok(details.join("; "))
}
