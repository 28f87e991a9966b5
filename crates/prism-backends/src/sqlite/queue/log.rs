//! The logs of the topics, as SQL: append, fetch, trim.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prism_core::{Error, Kind, Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::topic::Log;
use crate::driver::Publication;

/// Bits of a message's key that hold its offset; the ones above hold its partition's id.
const OFFSET_BITS: u32 = 40;
/// Offsets of a partition end here, after 10¹² messages.
const MAX_OFFSET: i64 = (1 << OFFSET_BITS) - 1;
/// What a message costs besides its payload and headers, in bytes.
const MESSAGE_OVERHEAD: usize = 64;
/// Most messages that one write removes, so that trimming does not hold up publishers.
const TRIM_BATCH: usize = 1000;

/// Key of a message: the order of keys is the order of a partition.
fn row_id(partition: i64, offset: i64) -> i64 {
    (partition << OFFSET_BITS) | offset
}

/// A message as the log holds it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) offset: i64,
    pub(super) timestamp: UnixMillis,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) payload: Bytes,
}

impl Stored {
    /// What it takes in memory and on disk, in bytes.
    pub(super) fn weight(&self) -> usize {
        weight(&self.headers, &self.payload)
    }
}

fn weight(headers: &BTreeMap<String, String>, payload: &Bytes) -> usize {
    let headers: usize = headers.iter().map(|(key, value)| key.len() + value.len()).sum();
    headers + payload.len() + MESSAGE_OVERHEAD
}

/// Messages for one topic, each with the index of its partition.
pub(super) struct Append<'a> {
    pub(super) log: &'a Log,
    pub(super) messages: &'a [(usize, Publication)],
}

/// Appends everything: the offsets, in order, and by how many bytes the log grew. Every message gets the timestamp `now`.
pub(super) fn append<'a>(
    connection: &Connection,
    appends: impl Iterator<Item = Append<'a>>,
    now: UnixMillis,
) -> Result<(Vec<Vec<i64>>, i64)> {
    let mut next_offsets: HashMap<i64, i64> = HashMap::new();
    let mut grown = 0;
    let mut insert = connection
        .prepare_cached(
            "INSERT INTO _prism_queue_messages (id, timestamp, bytes, headers, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .map_err(error)?;
    let mut offsets = Vec::new();
    for append in appends {
        let mut of_append = Vec::with_capacity(append.messages.len());
        for (index, message) in append.messages {
            let partition = append.log.partition(*index)?.id;
            let next = match next_offsets.get_mut(&partition) {
                Some(next) => next,
                None => next_offsets.entry(partition).or_insert(next_offset(connection, partition)?),
            };
            let offset = *next;
            if offset > MAX_OFFSET {
                return Err(Error::new(Kind::ResourceExhausted, "PARTITION_FULL", "the partition has no offset left"));
            }
            let bytes = weight(&message.headers, &message.payload) as i64;
            let headers = encode(&message.headers)?;
            insert
                .execute(params![row_id(partition, offset), now.0, bytes, headers, &*message.payload])
                .map_err(error)?;
            *next += 1;
            grown += bytes;
            of_append.push(offset);
        }
        offsets.push(of_append);
    }
    let mut advance =
        connection.prepare_cached("UPDATE _prism_queue_partitions SET next = ?2 WHERE id = ?1").map_err(error)?;
    for (partition, next) in next_offsets {
        advance.execute([partition, next]).map_err(error)?;
    }
    Ok((offsets, grown))
}

fn next_offset(connection: &Connection, partition: i64) -> Result<i64> {
    connection
        .prepare_cached("SELECT next FROM _prism_queue_partitions WHERE id = ?1")
        .and_then(|mut select| select.query_row([partition], |row| row.get(0)))
        .map_err(error)
}

fn encode(headers: &BTreeMap<String, String>) -> Result<Option<String>> {
    if headers.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(headers).map(Some).map_err(Error::internal)
}

/// Columns: offset, timestamp, headers, payload.
fn stored(row: &Row<'_>) -> Result<Stored> {
    let headers: Option<String> = row.get(2).map_err(error)?;
    let payload = row.get_ref(3).map_err(error)?.as_blob().map_err(Error::internal)?;
    Ok(Stored {
        offset: row.get(0).map_err(error)?,
        timestamp: UnixMillis(row.get(1).map_err(error)?),
        headers: headers.map_or(Ok(BTreeMap::new()), |json| serde_json::from_str(&json)).map_err(Error::internal)?,
        payload: Bytes::copy_from_slice(payload),
    })
}

/// What a group wants to read of one partition.
#[derive(Clone, Debug)]
pub(super) struct Want {
    /// Index of the partition in its topic.
    pub(super) index: usize,
    /// Its id.
    pub(super) partition: i64,
    /// Which position it was asked for; an answer after a seek is for nobody.
    pub(super) epoch: i64,
    /// Messages that must be delivered again.
    pub(super) again: Vec<i64>,
    /// New messages: from this offset,
    pub(super) from: i64,
    /// up to before this one,
    pub(super) to: i64,
    /// and at most so many; 0 = none.
    pub(super) limit: usize,
}

/// What was read of one partition.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) want: Want,
    /// Of `want.again`, what is still kept.
    pub(super) again: Vec<Stored>,
    /// Of `want.again`, what was trimmed meanwhile.
    pub(super) gone: Vec<i64>,
    /// New messages that the group has not settled, in order.
    pub(super) new: Vec<Stored>,
    /// Where the next read goes on.
    pub(super) cursor: i64,
}

/// Reads what `consumer` (a group's id) wants, and stops after about `max_bytes`; at least one message is read, if there is one.
pub(super) fn fetch(
    connection: &Connection,
    consumer: i64,
    wants: Vec<Want>,
    max_bytes: usize,
) -> Result<Vec<Fetched>> {
    let mut left = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let mut all = Vec::with_capacity(wants.len());
    for want in wants {
        if left <= 0 {
            break;
        }
        let cursor = want.from;
        let mut fetched = Fetched { want, again: Vec::new(), gone: Vec::new(), new: Vec::new(), cursor };
        fetch_again(connection, &mut fetched, &mut left)?;
        if fetched.want.limit > 0 && left > 0 {
            fetch_new(connection, consumer, &mut fetched, &mut left)?;
        }
        all.push(fetched);
    }
    Ok(all)
}

fn fetch_again(connection: &Connection, fetched: &mut Fetched, left: &mut i64) -> Result<()> {
    let mut select = connection
        .prepare_cached("SELECT ?2, timestamp, headers, payload FROM _prism_queue_messages WHERE id = ?1")
        .map_err(error)?;
    for offset in &fetched.want.again {
        if *left <= 0 {
            break;
        }
        let mut rows = select.query([row_id(fetched.want.partition, *offset), *offset]).map_err(error)?;
        match rows.next().map_err(error)? {
            Some(row) => {
                let message = stored(row)?;
                *left -= message.weight() as i64;
                fetched.again.push(message);
            }
            None => fetched.gone.push(*offset),
        }
    }
    Ok(())
}

fn fetch_new(connection: &Connection, consumer: i64, fetched: &mut Fetched, left: &mut i64) -> Result<()> {
    let mut select = connection
        .prepare_cached(
            "SELECT id - ?1, timestamp, headers, payload FROM _prism_queue_messages
             WHERE id >= ?1 + ?2 AND id < ?1 + ?3 AND NOT EXISTS (
                 SELECT 1 FROM _prism_queue_acks WHERE consumer = ?4 AND partition = ?5 AND offset = id - ?1)
             ORDER BY id LIMIT ?6",
        )
        .map_err(error)?;
    let Want { partition, from, to, limit, .. } = fetched.want;
    let mut rows =
        select.query(params![row_id(partition, 0), from, to, consumer, partition, limit as i64]).map_err(error)?;
    while let Some(row) = rows.next().map_err(error)? {
        let message = stored(row)?;
        *left -= message.weight() as i64;
        fetched.cursor = message.offset + 1;
        fetched.new.push(message);
        if *left <= 0 {
            return Ok(());
        }
    }
    if fetched.new.len() < limit {
        // Whatever lies between is trimmed or settled.
        fetched.cursor = to;
    }
    Ok(())
}

/// A partition whose earliest message is past its topic's retention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) topic: i64,
    pub(super) partition: i64,
}

/// Partitions with something to trim at `now`, at most 64, and the shortest retention of all topics, if there is one.
pub(super) fn stale(connection: &Connection, now: UnixMillis) -> Result<(Vec<Stale>, Option<i64>)> {
    let shortest = connection
        .query_row("SELECT min(retention_ms) FROM _prism_queue_topics WHERE retention_ms > 0", [], |row| row.get(0))
        .map_err(error)?;
    let mut select = connection
        .prepare_cached(
            "SELECT t.id, p.id FROM _prism_queue_topics t
             JOIN _prism_queue_partitions p ON p.topic = t.id AND p.earliest < p.next
             JOIN _prism_queue_messages m ON m.id = (p.id << ?2) + p.earliest
             WHERE t.retention_ms > 0 AND m.timestamp < ?1 - t.retention_ms LIMIT 64",
        )
        .map_err(error)?;
    let rows = select
        .query_map([now.0, i64::from(OFFSET_BITS)], |row| Ok(Stale { topic: row.get(0)?, partition: row.get(1)? }))
        .map_err(error)?;
    Ok((rows.collect::<rusqlite::Result<_>>().map_err(error)?, shortest))
}

/// Removes the oldest messages of `stale` that are past the retention, up to a bound: whether there may be more, and by how
/// many bytes the log grew (a negative number).
pub(super) fn trim(connection: &Connection, stale: Stale, now: UnixMillis) -> Result<(bool, i64)> {
    let Stale { topic, partition, .. } = stale;
    let (mut earliest, next, retention): (i64, i64, i64) = connection
        .prepare_cached(
            "SELECT p.earliest, p.next, t.retention_ms FROM _prism_queue_partitions p
             JOIN _prism_queue_topics t ON t.id = p.topic WHERE p.id = ?1",
        )
        .and_then(|mut select| select.query_row([partition], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))))
        .map_err(error)?;
    let first = earliest;
    let mut freed = 0;
    {
        let mut select = connection
            .prepare_cached("SELECT id, timestamp, bytes FROM _prism_queue_messages WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3")
            .map_err(error)?;
        let mut rows = select
            .query(params![row_id(partition, earliest), row_id(partition, next), TRIM_BATCH as i64])
            .map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            if row.get::<_, i64>(1).map_err(error)? >= now.0.saturating_sub(retention) {
                break;
            }
            earliest = row.get::<_, i64>(0).map_err(error)? - row_id(partition, 0) + 1;
            freed += row.get::<_, i64>(2).map_err(error)?;
        }
    }
    let execute = |sql: &str, values: &[i64]| {
        connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(rusqlite::params_from_iter(values)))
            .map_err(error)
    };
    execute(
        "DELETE FROM _prism_queue_messages WHERE id >= ?1 AND id < ?2",
        &[row_id(partition, first), row_id(partition, earliest)],
    )?;
    execute("UPDATE _prism_queue_partitions SET earliest = ?2 WHERE id = ?1", &[partition, earliest])?;
    execute(
        "DELETE FROM _prism_queue_acks WHERE partition = ?2 AND offset < ?3
         AND consumer IN (SELECT id FROM _prism_queue_groups WHERE topic = ?1)",
        &[topic, partition, earliest],
    )?;
    Ok((earliest - first == TRIM_BATCH as i64, -freed))
}

/// Where a topic's log is kept: its id, and for each partition id, earliest and next offset.
pub(super) struct LogRecord {
    pub(super) id: i64,
    pub(super) partitions: Vec<(i64, i64, i64)>,
}

/// The topic called `name`, if there is one.
pub(super) fn find(connection: &Connection, name: &str) -> Result<Option<LogRecord>> {
    let found = connection
        .prepare_cached("SELECT id FROM _prism_queue_topics WHERE name = ?1")
        .and_then(|mut select| select.query_row([name], |row| row.get(0)).optional())
        .map_err(error)?;
    let Some(id) = found else { return Ok(None) };
    let mut select = connection
        .prepare_cached("SELECT id, earliest, next FROM _prism_queue_partitions WHERE topic = ?1 ORDER BY number")
        .map_err(error)?;
    let rows = select.query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).map_err(error)?;
    let partitions = rows.collect::<rusqlite::Result<_>>().map_err(error)?;
    Ok(Some(LogRecord { id, partitions }))
}

/// The topic called `name`; when it does not exist it is made with `partitions` and `retention_ms` (0 = keeps everything),
/// which it has for ever.
///
/// RESOURCE_EXHAUSTED when the namespace would have more than `max_partitions` partitions in all topics together.
pub(super) fn find_or_make(
    connection: &Connection,
    name: &str,
    partitions: usize,
    retention_ms: i64,
    max_partitions: i64,
) -> Result<LogRecord> {
    if let Some(found) = find(connection, name)? {
        return Ok(found);
    }
    // Partitions are never removed, so the highest id is their number.
    let made: i64 = connection
        .query_row("SELECT coalesce(max(id), 0) FROM _prism_queue_partitions", [], |row| row.get(0))
        .map_err(error)?;
    if made + partitions as i64 > max_partitions {
        return Err(Error::new(
            Kind::ResourceExhausted,
            "TOO_MANY_PARTITIONS",
            format!(
                "the topics of this namespace have {made} partitions of {max_partitions}; this one would have {partitions} more"
            ),
        ));
    }
    connection
        .execute("INSERT INTO _prism_queue_topics (name, retention_ms) VALUES (?1, ?2)", params![name, retention_ms])
        .map_err(error)?;
    let id = connection.last_insert_rowid();
    let mut insert = connection
        .prepare_cached("INSERT INTO _prism_queue_partitions (topic, number) VALUES (?1, ?2)")
        .map_err(error)?;
    for number in 0..partitions {
        insert.execute([id, number as i64]).map_err(error)?;
    }
    find(connection, name)?.ok_or_else(|| Error::internal("a topic that was just made is not there"))
}
