//! The audit log in the data directory of a server that is not running (contract §9).
//!
//! Entries are checked as they are stored: their bytes are walked once, nothing is decoded or copied, and ranges of the
//! log are read side by side.

use std::{
    fs::{File, TryLockError},
    ops::Range,
    path::{Path, PathBuf},
    thread,
};

use prism_proto::audit_chain::EncodedEntry;
use rusqlite::{Connection, OpenFlags, types::ValueRef};

use crate::{
    chain::{Break, Plan, Walk},
    checkpoint::Checkpoint,
    error::{Failure, Result},
    export::is_broken,
};

/// More readers than this gain nothing: the disk or the memory is the bound.
const MOST_READERS: u64 = 16;
/// Shorter ranges are not worth a reader.
const SHORTEST_RANGE: u64 = 4096;
/// How much of the database may be mapped into memory, rather than read.
const MAPPED_BYTES: i64 = 1 << 40;

const ENTRIES: &str = "SELECT sequence, id, timestamp, actor, operation, namespace, hash, entry FROM audit \
                       WHERE sequence >= ?1 AND sequence < ?2 ORDER BY sequence";

/// The database of a server that is not running. While this lives, none can be started on it.
#[derive(Debug)]
pub struct Stopped {
    database: PathBuf,
    _lock: Option<File>,
}

impl Stopped {
    /// The database in `folder`, if no server runs on it. A server holds `prism.lock` while it lives, also when it left
    /// an old `endpoints.json` behind.
    pub fn find(folder: &Path) -> Result<Option<Self>> {
        let database = folder.join("prism.db");
        if !database.is_file() {
            return Ok(None);
        }
        let path = folder.join("prism.lock");
        let lock = match File::open(&path) {
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(Failure::usage(format!("cannot lock {}: {error}", path.display())));
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::usage(format!("cannot read {}: {error}", path.display()))),
        };
        Ok(Some(Self { database, _lock: lock }))
    }

    /// The checkpoints, each with a good signature. A database of an older server has no table of them.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let failed = |error| self.unreadable(&error);
        let connection = self.connect().map_err(failed)?;
        if !connection.table_exists(None, "checkpoints").map_err(failed)? {
            return Ok(Vec::new());
        }
        let mut statement =
            connection.prepare("SELECT sequence, hash, cut, checkpoint FROM checkpoints").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut checkpoints = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let sequence: i64 = row.get(0).map_err(failed)?;
            let encoded = row.get_ref(3).map_err(failed)?.as_blob().unwrap_or_default();
            let unsigned = |why| is_broken(format!("the checkpoint stored for sequence {sequence}: {why}"));
            let checkpoint = Checkpoint::decode(encoded).map_err(unsigned)?;
            let agrees = sequence == checkpoint.sequence as i64
                && row.get_ref(1).map_err(failed)? == ValueRef::Blob(&checkpoint.hash)
                && row.get_ref(2).map_err(failed)? == ValueRef::Integer(checkpoint.cut.into());
            if !agrees {
                let why = "was changed: its columns no longer say what was signed";
                return Err(is_broken(format!("the checkpoint of sequence {sequence} {why}")));
            }
            checkpoints.push(checkpoint);
        }
        Ok(checkpoints)
    }

    /// Checks every entry, and that the columns the server filters by and goes on from say what the entry says. Returns
    /// the last sequence and its hash.
    pub fn check(&self, plan: &Plan) -> Result<(u64, [u8; 32])> {
        let readers = thread::available_parallelism().map_or(1, |count| count.get() as u64).min(MOST_READERS);
        let (first, last) = self.bounds().map_err(|error| self.unreadable(&error))?;
        let Some((first, last)) = first.zip(last) else { return Ok((plan.start - 1, plan.previous)) };
        if first != plan.start as i64 {
            return Err(is_broken(plan.walk().missing(u64::try_from(first).unwrap_or(0)).to_string()));
        }
        let ranges = split(plan.start, last as u64 + 1, readers);
        let walked: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = ranges.into_iter().map(|range| scope.spawn(move || self.walk(plan, range))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let (mut next, mut head) = (plan.start, plan.previous);
        // In order, so that the first break is the one that is told.
        for walk in walked {
            let walk = walk?;
            if walk.assumed().is_some_and(|assumed| assumed != head) {
                let why = "it does not follow the entry before (previous_hash)";
                return Err(is_broken(Break::new(next, why).to_string()));
            }
            head = walk.head().unwrap_or(head);
            next = walk.next();
        }
        Ok((next - 1, head))
    }

    fn bounds(&self) -> rusqlite::Result<(Option<i64>, Option<i64>)> {
        self.connect()?
            .query_row("SELECT min(sequence), max(sequence) FROM audit", [], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Walks one range of the log, of which every sequence must be there.
    fn walk<'plan>(&self, plan: &'plan Plan, range: Range<u64>) -> Result<Walk<'plan>> {
        let failed = |error| self.unreadable(&error);
        let mut walk = if range.start == plan.start { plan.walk() } else { plan.walk_from(range.start) };
        let broken = |broken: &Break| is_broken(broken.to_string());
        let connection = self.connect().map_err(failed)?;
        let mut statement = connection.prepare(ENTRIES).map_err(failed)?;
        let mut rows = statement.query([range.start as i64, range.end as i64]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let sequence = row.get_ref(0).map_err(failed)?;
            if sequence != ValueRef::Integer(walk.next() as i64) {
                return Err(broken(
                    &walk.missing(sequence.as_i64().ok().and_then(|found| found.try_into().ok()).unwrap_or(0)),
                ));
            }
            let here = |why: &str| broken(&Break::new(walk.next(), why));
            let encoded = row.get_ref(7).map_err(failed)?.as_blob().map_err(|_| here("its entry is no bytes"))?;
            let entry = EncodedEntry::parse(encoded).map_err(|error| here(&error.to_string()))?;
            walk.accept_encoded(&entry).map_err(|why| broken(&why))?;
            if !columns_agree(row, &entry).map_err(failed)? {
                let why = "its columns were changed and no longer say what the entry says";
                return Err(broken(&Break::new(entry.sequence, why)));
            }
        }
        if walk.next() == range.end { Ok(walk) } else { Err(broken(&walk.missing(range.end))) }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.database, flags)?;
        // The answer is how much may be mapped in fact, which is nothing to act on.
        connection.pragma_update_and_check(None, "mmap_size", MAPPED_BYTES, |_| Ok(()))?;
        Ok(connection)
    }

    fn unreadable(&self, error: &rusqlite::Error) -> Failure {
        Failure::usage(format!("cannot read the audit log in {}: {error}", self.database.display()))
    }
}

/// The log in ranges of about equal length, one per reader.
fn split(start: u64, end: u64, readers: u64) -> Vec<Range<u64>> {
    let length = (end - start).div_ceil(readers.max(1)).max(SHORTEST_RANGE);
    let mut ranges = Vec::new();
    let mut begin = start;
    while begin < end {
        ranges.push(begin..(begin + length).min(end));
        begin += length;
    }
    ranges
}

fn columns_agree(row: &rusqlite::Row<'_>, entry: &EncodedEntry<'_>) -> rusqlite::Result<bool> {
    let (seconds, nanos) = entry.timestamp;
    let milliseconds = seconds.saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000));
    Ok(row.get_ref(1)? == ValueRef::Text(entry.id.as_bytes())
        && row.get_ref(2)? == ValueRef::Integer(milliseconds)
        && row.get_ref(3)? == ValueRef::Text(entry.actor.as_bytes())
        && row.get_ref(4)? == ValueRef::Text(entry.operation.as_bytes())
        && row.get_ref(5)? == ValueRef::Text(entry.namespace.as_bytes())
        && row.get_ref(6)? == entry.hash.map_or(ValueRef::Null, |hash| ValueRef::Blob(hash)))
}

#[cfg(test)]
#[path = "stopped_tests.rs"]
mod tests;
