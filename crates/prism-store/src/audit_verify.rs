//! Checking the chain of the audit log against itself and against what was signed of it.

use std::iter::Peekable;

use prism_core::{Error, Result};
use prism_proto::audit_chain::{EncodedEntry, GENESIS};
use prism_sqlite::error;
use rusqlite::{Connection, Row};

use crate::Signer;
use crate::checkpoint::{newest_cut, read_checkpoint};
use crate::signer::is_signed;
use crate::tx::all;

/// What is known of the chain up to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Sequence of the entry; 0 before the first.
    pub(crate) sequence: i64,
    /// Its hash.
    pub(crate) hash: [u8; 32],
}

/// An entry that follows the link before it.
pub(crate) struct Linked<'a> {
    pub(crate) link: Link,
    pub(crate) entry: EncodedEntry<'a>,
}

/// Where the log begins: after the entries that retention removed, which a signed cut stands for.
pub(crate) fn origin(connection: &Connection, signer: &Signer) -> Result<Link> {
    let Some(cut) = newest_cut(connection)? else { return Ok(Link { sequence: 0, hash: GENESIS }) };
    let sequence = cut.sequence as i64;
    match cut.hash.as_ref().try_into() {
        Ok(hash) if cut.cut && signer.signed(&cut) => Ok(Link { sequence, hash }),
        _ => Err(broken(sequence, "the cut up to here is not signed with this server's key")),
    }
}

/// Columns of an entry, in the order that [`Link::follow`] reads them.
pub(crate) const COLUMNS: &str = "sequence, id, timestamp, actor, operation, namespace, hash, entry";

impl Link {
    /// Checks that the entry in `row` follows this one, and that its columns say what it says.
    pub(crate) fn follow<'a>(self, row: &'a Row<'_>) -> Result<Linked<'a>> {
        let sequence = self.sequence + 1;
        let found: i64 = row.get(0).map_err(error)?;
        if found != sequence {
            return Err(broken(sequence, "an entry is missing, or there is one too many"));
        }
        let unreadable = |_| broken(sequence, "it cannot be read");
        let encoded = row.get_ref(7).map_err(error)?.as_blob().map_err(|_| broken(sequence, "it cannot be read"))?;
        let entry = EncodedEntry::parse(encoded).map_err(unreadable)?;
        if entry.sequence != sequence as u64 || entry.previous_hash != Some(&self.hash) {
            return Err(broken(sequence, "it does not follow the entry before"));
        }
        let hash = entry.link(&self.hash);
        if entry.hash != Some(&hash) {
            return Err(broken(sequence, "it was changed after it was written"));
        }
        if !columns_agree(row, &entry, &hash).unwrap_or(false) {
            return Err(broken(sequence, "its columns do not say what the entry says"));
        }
        Ok(Linked { link: Link { sequence, hash }, entry })
    }
}

fn columns_agree(
    row: &Row<'_>,
    entry: &EncodedEntry<'_>,
    hash: &[u8; 32],
) -> Result<bool, rusqlite::types::FromSqlError> {
    let text = |index| row.get_ref(index).map_err(|_| rusqlite::types::FromSqlError::InvalidType)?.as_str();
    let column = |index| row.get_ref(index).map_err(|_| rusqlite::types::FromSqlError::InvalidType);
    Ok(text(1)? == entry.id
        && column(2)?.as_i64()? == milliseconds(entry)
        && text(3)? == entry.actor
        && text(4)? == entry.operation
        && text(5)? == entry.namespace
        && column(6)?.as_blob()? == hash)
}

/// Time of an entry, in milliseconds since the Unix epoch.
pub(crate) fn milliseconds(entry: &EncodedEntry<'_>) -> i64 {
    let (seconds, nanos) = entry.timestamp;
    seconds.saturating_mul(1000).saturating_add(i64::from(nanos / 1_000_000))
}

/// What was signed of the entries in a range, by sequence.
pub(crate) struct Signed<I: Iterator<Item = Link>>(Peekable<I>);

/// The checkpoints after `origin`, each of which must bear the signature of the key it names.
pub(crate) fn signed_after(
    connection: &Connection,
    origin: i64,
    through: i64,
) -> Result<Signed<impl Iterator<Item = Link> + use<>>> {
    let rows = all(
        connection,
        "SELECT checkpoint, sequence FROM checkpoints WHERE sequence > ?1 AND sequence <= ?2 ORDER BY sequence",
        [origin, through],
        |row| Ok((read_checkpoint(row).ok(), row.get::<_, i64>(1)?)),
    )?;
    let links = rows.into_iter().map(|(checkpoint, sequence)| {
        let checkpoint = checkpoint.filter(|found| found.sequence == sequence as u64 && is_signed(found));
        let hash = checkpoint.and_then(|found| found.hash.as_ref().try_into().ok());
        let hash = hash.ok_or_else(|| broken(sequence, "the checkpoint for it is not signed"))?;
        Ok(Link { sequence, hash })
    });
    Ok(Signed(links.collect::<Result<Vec<_>>>()?.into_iter().peekable()))
}

impl<I: Iterator<Item = Link>> Signed<I> {
    /// Checks an entry against what was signed of it, if anything was.
    pub(crate) fn agree(&mut self, link: Link) -> Result<()> {
        match self.0.next_if(|signed| signed.sequence <= link.sequence) {
            Some(signed) if signed != link => Err(broken(signed.sequence, "another entry was signed here")),
            _ => Ok(()),
        }
    }

    /// Checks that nothing was signed beyond the entries that there were.
    pub(crate) fn finish(mut self) -> Result<()> {
        match self.0.next() {
            Some(signed) => Err(broken(signed.sequence, "it was signed, and is not there")),
            None => Ok(()),
        }
    }
}

/// Checks the whole chain from the newest cut on, against itself, against the columns, and against every checkpoint, and
/// returns the number of entries; INTERNAL names the first bad `sequence` in its metadata.
pub(crate) fn verify(connection: &Connection, signer: &Signer) -> Result<i64> {
    let snapshot = connection.unchecked_transaction().map_err(error)?;
    let start = origin(&snapshot, signer)?;
    let mut witnesses = signed_after(&snapshot, start.sequence, i64::MAX)?;
    let mut link = start;
    {
        let sql = format!("SELECT {COLUMNS} FROM audit ORDER BY sequence");
        let mut statement = snapshot.prepare_cached(&sql).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            link = link.follow(row)?.link;
            witnesses.agree(link)?;
        }
    }
    witnesses.finish()?;
    snapshot.finish().map_err(error)?;
    Ok(link.sequence - start.sequence)
}

fn broken(sequence: i64, why: &str) -> Error {
    Error::internal(format!("the audit chain is broken at sequence {sequence}: {why}"))
        .with("sequence", sequence.to_string())
}
