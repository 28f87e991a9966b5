use std::sync::Arc;

use prism_core::page::Page;
use prism_core::{Error, Result};
use prism_proto::admin::v1::AuditCheckpoint;
use prost::Message as _;
use rusqlite::{Connection, Row};

use crate::tx::{Tx, corrupt, one};
use crate::{Signer, Store};

/// Most checkpoints kept; the oldest make room, but never the newest cut.
pub const MAX_CHECKPOINTS: i64 = 100_000;

impl Store {
    /// The newest checkpoint that is stored; `None` only before the first.
    pub fn checkpoint(&self) -> Option<Arc<AuditCheckpoint>> {
        self.published.checkpoint.load_full()
    }

    /// The log signed as far as it is durable at this moment, the entry of any call that was answered included. It is not
    /// stored, and signed once for all who ask between two commits; `None` while there is no entry.
    pub fn signed_head(&self) -> Option<Arc<AuditCheckpoint>> {
        let (sequence, hash) = *self.published.head.load_full()?;
        let is_head =
            |signed: &Arc<AuditCheckpoint>| signed.sequence == sequence as u64 && signed.hash.as_ref() == hash;
        if let Some(signed) = self.signed_head.load_full().filter(is_head) {
            return Some(signed);
        }
        let signed = Arc::new(self.signer.sign(sequence, hash, self.clock.now(), false));
        self.signed_head.store(Some(Arc::clone(&signed)));
        Some(signed)
    }

    /// The key that signs the log.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Signs the log as far as it is committed, without storing what was signed.
    pub async fn sign_checkpoint(&self) -> Result<AuditCheckpoint> {
        let (sequence, hash) = self
            .database
            .readers
            .run(newest_entry)
            .await?
            .ok_or_else(|| Error::precondition("AUDIT_LOG_EMPTY", "the audit log has no entry to sign"))?;
        Ok(self.signer.sign(sequence, hash, self.clock.now(), false))
    }

    /// Signs the log as far as it is committed, and stores it.
    pub async fn make_checkpoint(&self) -> Result<AuditCheckpoint> {
        let checkpoint = self.sign_checkpoint().await?;
        let stored = checkpoint.clone();
        self.write(move |tx| tx.store_checkpoint(&stored)).await?;
        Ok(checkpoint)
    }

    /// What the log holds for an entry.
    pub async fn witness(&self, sequence: u64) -> Result<Witness> {
        let Ok(sequence) = i64::try_from(sequence) else { return Ok(Witness::Nothing) };
        self.database
            .readers
            .run(move |connection| {
                let snapshot = connection.unchecked_transaction().map_err(prism_sqlite::error)?;
                let hash = |sql: &str| one(&snapshot, sql, [sequence], |row| row.get::<_, [u8; 32]>(0));
                if let Some(hash) = hash("SELECT hash FROM audit WHERE sequence = ?1")? {
                    return Ok(Witness::Held(hash));
                }
                // What was signed is no proof of an entry that should be there.
                let Some(cut) = newest_cut(&snapshot)?.filter(|cut| sequence > 0 && sequence as u64 <= cut.sequence)
                else {
                    return Ok(Witness::Nothing);
                };
                let kept = hash("SELECT hash FROM checkpoints WHERE sequence = ?1")?;
                Ok(kept.map_or_else(|| Witness::Removed(Box::new(cut)), Witness::Held))
            })
            .await
    }
}

/// What the log holds for an entry that somebody remembers.
#[derive(Clone, Debug, PartialEq)]
pub enum Witness {
    /// This hash: the entry's own or, once it is removed, that of the checkpoint for it.
    Held([u8; 32]),
    /// It was removed and no checkpoint for it is kept; this cut stands for it.
    Removed(Box<AuditCheckpoint>),
    /// Nothing.
    Nothing,
}

pub(crate) fn newest_entry(connection: &Connection) -> Result<Option<(i64, [u8; 32])>> {
    one(connection, "SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1", [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

/// Whether the log was ever signed, and what of that the log contradicts: the first sequence whose hash it does not hold.
pub(crate) fn signed_before(connection: &Connection) -> Result<(bool, Option<i64>)> {
    let sql = "SELECT c.sequence, a.hash IS c.hash FROM checkpoints c LEFT JOIN audit a ON a.sequence = c.sequence
               WHERE c.cut = 0 ORDER BY c.sequence DESC LIMIT 1";
    let newest = one(connection, sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?)))?;
    let cut = newest_cut(connection)?;
    let removed = cut.as_ref().map_or(0, |cut| cut.sequence as i64);
    let contradicted = newest.filter(|(sequence, agrees)| !agrees && *sequence > removed).map(|(sequence, _)| sequence);
    Ok((newest.is_some() || cut.is_some(), contradicted))
}

/// The checkpoint that stands for the entries that retention removed.
pub(crate) fn newest_cut(connection: &Connection) -> Result<Option<AuditCheckpoint>> {
    let sql = "SELECT checkpoint FROM checkpoints WHERE cut = 1 ORDER BY sequence DESC LIMIT 1";
    one(connection, sql, [], read_checkpoint)
}

pub(crate) fn read_checkpoint(row: &Row<'_>) -> rusqlite::Result<AuditCheckpoint> {
    AuditCheckpoint::decode(row.get_ref(0)?.as_bytes()?).map_err(corrupt)
}

impl Tx<'_> {
    /// Stores a checkpoint; one for the same entry is replaced, unless it is a cut.
    ///
    /// INTERNAL when another hash was signed for this entry before: somebody changed the log, and what was signed is the proof.
    pub fn store_checkpoint(&mut self, checkpoint: &AuditCheckpoint) -> Result<()> {
        let sequence = checkpoint.sequence as i64;
        let earlier = self.one("SELECT hash FROM checkpoints WHERE sequence = ?1", [sequence], |row| {
            Ok(row.get_ref(0)?.as_bytes()? == checkpoint.hash.as_ref())
        })?;
        if earlier == Some(false) {
            return Err(Error::internal(format!(
                "the audit log holds another entry {sequence} than the one that was signed"
            )));
        }
        self.execute(
            "INSERT INTO checkpoints (sequence, hash, checkpoint, cut) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (sequence) DO UPDATE SET checkpoint = ?3, cut = ?4 WHERE cut = 0",
            (sequence, checkpoint.hash.as_ref(), checkpoint.encode_to_vec(), checkpoint.cut),
        )?;
        let excess = self.count("SELECT count(*) FROM checkpoints", [])? - MAX_CHECKPOINTS;
        if excess > 0 {
            self.execute(
                "DELETE FROM checkpoints WHERE sequence IN (
                    SELECT sequence FROM checkpoints
                    WHERE sequence IS NOT (SELECT max(sequence) FROM checkpoints WHERE cut = 1)
                    ORDER BY sequence LIMIT ?1)",
                [excess],
            )?;
        }
        self.touched.checkpoints = true;
        Ok(())
    }

    /// Checkpoints by sequence, oldest first, and how many there are.
    pub fn checkpoints(&self, page: &Page) -> Result<(Vec<AuditCheckpoint>, i64)> {
        let after: i64 = page
            .after
            .as_deref()
            .map_or(Ok(0), str::parse)
            .map_err(|_| Error::invalid("page_token", "is not a token of this list; start again without one"))?;
        let rows = self.all(
            "SELECT checkpoint FROM checkpoints WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
            (after, page.size as i64 + 1),
            read_checkpoint,
        )?;
        Ok((rows, self.count("SELECT count(*) FROM checkpoints", [])?))
    }

    /// The newest checkpoint; `None` before the first. What somebody made unreadable is found by verification, and does not
    /// keep the server from working.
    pub(crate) fn newest_checkpoint(&self) -> Result<Option<AuditCheckpoint>> {
        let sql = "SELECT checkpoint FROM checkpoints ORDER BY sequence DESC LIMIT 1";
        let newest = self.one(sql, [], |row| row.get::<_, Vec<u8>>(0))?;
        Ok(newest.and_then(|encoded| {
            AuditCheckpoint::decode(encoded.as_slice())
                .inspect_err(|error| tracing::error!(%error, "the newest checkpoint of the audit log cannot be read"))
                .ok()
        }))
    }
}
