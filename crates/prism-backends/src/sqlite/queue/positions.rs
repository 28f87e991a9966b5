//! Where the groups stand, as SQL: acknowledge, commit, seek.

use prism_core::{Error, Kind, Result};
use prism_sqlite::error;
use rusqlite::{Connection, OptionalExtension, params};

/// Position of a group in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The lowest offset that is not settled; never below the earliest message.
    pub(super) committed: i64,
    /// Counts seeks.
    pub(super) epoch: i64,
}

/// Where a seek goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To the earliest message.
    Earliest,
    /// After the latest message.
    Latest,
    /// To this offset, or the nearest one that the log has.
    Nearest(i64),
    /// To this offset; below the earliest message means the earliest, beyond the latest is an error that names `field`.
    Exact { offset: i64, field: String },
}

/// The id of the group, if it exists.
pub(super) fn find_group(connection: &Connection, topic: i64, name: &str) -> Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM _prism_queue_groups WHERE topic = ?1 AND name = ?2")
        .and_then(|mut select| select.query_row(params![topic, name], |row| row.get(0)).optional())
        .map_err(error)
}

/// The id of the group, made when it does not exist; RESOURCE_EXHAUSTED when the topic has `max` groups.
pub(super) fn find_or_make_group(connection: &Connection, topic: i64, name: &str, max: i64) -> Result<i64> {
    if let Some(found) = find_group(connection, topic, name)? {
        return Ok(found);
    }
    let made: i64 = connection
        .query_row("SELECT count(*) FROM _prism_queue_groups WHERE topic = ?1", [topic], |row| row.get(0))
        .map_err(error)?;
    if made >= max {
        let message = format!("the topic has {made} consumer groups, and no more are allowed; use one of them");
        return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_CONSUMER_GROUPS", message));
    }
    connection
        .execute("INSERT INTO _prism_queue_groups (topic, name) VALUES (?1, ?2)", params![topic, name])
        .map_err(error)?;
    Ok(connection.last_insert_rowid())
}

/// Position of group `consumer` in `partition`; a group without one stands at the earliest message.
pub(super) fn position(connection: &Connection, consumer: i64, partition: i64) -> Result<Position> {
    connection
        .prepare_cached(
            "SELECT max(coalesce(q.committed, 0), p.earliest), coalesce(q.epoch, 0) FROM _prism_queue_partitions p
             LEFT JOIN _prism_queue_positions q ON q.consumer = ?1 AND q.partition = p.id WHERE p.id = ?2",
        )
        .and_then(|mut select| {
            select.query_row([consumer, partition], |row| Ok(Position { committed: row.get(0)?, epoch: row.get(1)? }))
        })
        .map_err(error)
}

fn store(connection: &Connection, consumer: i64, partition: i64, position: Position) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO _prism_queue_positions (consumer, partition, committed, epoch) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (consumer, partition) DO UPDATE SET committed = excluded.committed, epoch = excluded.epoch",
        )
        .and_then(|mut upsert| upsert.execute([consumer, partition, position.committed, position.epoch]))
        .map_err(error)?;
    Ok(())
}

fn forget_acks(connection: &Connection, consumer: i64, partition: i64, below: i64) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM _prism_queue_acks WHERE consumer = ?1 AND partition = ?2 AND offset < ?3")
        .and_then(|mut delete| delete.execute([consumer, partition, below]))
        .map_err(error)?;
    Ok(())
}

/// Moves `committed` over what is settled directly above it.
fn absorb(connection: &Connection, consumer: i64, partition: i64, mut committed: i64) -> Result<i64> {
    let first = committed;
    {
        let mut select = connection
            .prepare_cached(
                "SELECT offset FROM _prism_queue_acks WHERE consumer = ?1 AND partition = ?2 AND offset >= ?3 ORDER BY offset",
            )
            .map_err(error)?;
        let mut rows = select.query([consumer, partition, committed]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            if row.get::<_, i64>(0).map_err(error)? != committed {
                break;
            }
            committed += 1;
        }
    }
    if committed > first {
        forget_acks(connection, consumer, partition, committed)?;
    }
    Ok(committed)
}

/// Settles `offsets`, ascending; `false` and no effect when a seek came in between.
pub(super) fn acknowledge(
    connection: &Connection,
    consumer: i64,
    partition: i64,
    epoch: i64,
    offsets: &[i64],
) -> Result<bool> {
    let found = position(connection, consumer, partition)?;
    if found.epoch != epoch {
        return Ok(false);
    }
    let mut committed = found.committed;
    for offset in offsets {
        if *offset == committed {
            committed += 1;
        } else if *offset > committed {
            connection
                .prepare_cached(
                    "INSERT OR IGNORE INTO _prism_queue_acks (consumer, partition, offset) VALUES (?1, ?2, ?3)",
                )
                .and_then(|mut insert| insert.execute([consumer, partition, *offset]))
                .map_err(error)?;
        }
    }
    // Also when none of them moved it: a trim may have moved it to where something is settled already.
    let committed = absorb(connection, consumer, partition, committed)?;
    if committed > found.committed {
        store(connection, consumer, partition, Position { committed, epoch })?;
    }
    Ok(true)
}

fn bounds(connection: &Connection, partition: i64) -> Result<(i64, i64)> {
    connection
        .prepare_cached("SELECT earliest, next FROM _prism_queue_partitions WHERE id = ?1")
        .and_then(|mut select| select.query_row([partition], |row| Ok((row.get(0)?, row.get(1)?))))
        .map_err(error)
}

fn beyond(field: &str, latest: i64) -> Error {
    Error::invalid(field, format!("must be 0 to {latest}, the offset that the next message gets"))
}

/// Settles everything before `offset`; what is settled stays so. The position after it.
pub(super) fn commit(connection: &Connection, consumer: i64, partition: i64, offset: i64) -> Result<Position> {
    let (_, latest) = bounds(connection, partition)?;
    if !(0..=latest).contains(&offset) {
        return Err(beyond("offset", latest));
    }
    let Position { committed, epoch } = position(connection, consumer, partition)?;
    if offset <= committed {
        return Ok(Position { committed, epoch });
    }
    forget_acks(connection, consumer, partition, offset)?;
    let moved = Position { committed: absorb(connection, consumer, partition, offset)?, epoch };
    store(connection, consumer, partition, moved)?;
    Ok(moved)
}

/// Moves the position to `target`: everything before it is settled, nothing from there on. The position after it.
pub(super) fn seek(connection: &Connection, consumer: i64, partition: i64, target: &Target) -> Result<Position> {
    let (earliest, latest) = bounds(connection, partition)?;
    let committed = match target {
        Target::Earliest => earliest,
        Target::Latest => latest,
        Target::Nearest(offset) => (*offset).clamp(earliest, latest),
        Target::Exact { offset, .. } if (0..=latest).contains(offset) => (*offset).max(earliest),
        Target::Exact { field, .. } => return Err(beyond(field, latest)),
    };
    let Position { epoch, .. } = position(connection, consumer, partition)?;
    let moved = Position { committed, epoch: epoch + 1 };
    forget_acks(connection, consumer, partition, i64::MAX)?;
    store(connection, consumer, partition, moved)?;
    Ok(moved)
}
