//! What is done on the audit log from time to time: signing what it has grown by, and removing what is past its time.

use std::time::{Duration, Instant};

use prism_core::{Error, Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::Connection;

use crate::audit::EntryDraft;
use crate::audit_verify::{COLUMNS, Link, milliseconds, origin, signed_after};
use crate::tx::{Tx, one};
use crate::{Signer, Store};

/// Settings of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSettings {
    /// How long entries are kept; `None` = for ever.
    pub retention: Option<Duration>,
    /// How often the log is signed, if it has grown.
    pub checkpoint_interval: Duration,
    /// What becomes of reads that cannot be recorded.
    pub on_read_failure: OnReadFailure,
}

impl Default for AuditSettings {
    /// Entries are kept for ever, the log is signed every minute, nothing happens that cannot be recorded.
    fn default() -> Self {
        Self { retention: None, checkpoint_interval: Duration::from_mins(1), on_read_failure: OnReadFailure::default() }
    }
}

/// What becomes of a read while the log cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReadFailure {
    /// It is refused.
    #[default]
    Fail,
    /// It is carried out, and counted in an entry as soon as the log can be written.
    Allow,
}

/// Most entries that are removed in one transaction.
const CUT_ENTRIES: usize = 10_000;
/// A cut waits until the oldest entry is overdue by this part of the retention, and by [`MAX_OVERDUE`] at most: each cut is an
/// entry itself.
const OVERDUE_PART: u32 = 32;
/// The longest that an entry may be kept after its time, on a server that runs.
const MAX_OVERDUE: Duration = Duration::from_hours(1);
/// Name of a cut in the log.
const CUT: &str = "CutAuditLog";

/// How old entries are is told by a clock that follows the system's, at most this much faster than time passes. So no entry
/// that was written under a right clock is removed before the server has run for half of the retention since, however far the
/// system's clock jumps.
const CATCH_UP: u32 = 2;

/// The time that retention goes by after `elapsed`. What it was is `None` before the first time; `oldest` is the time of the
/// oldest entry, before which there is nothing to remove.
pub(crate) fn follow(
    before: Option<UnixMillis>,
    system: UnixMillis,
    oldest: UnixMillis,
    elapsed: Duration,
) -> UnixMillis {
    match before {
        None => system,
        Some(before) if before <= system => (before + elapsed * CATCH_UP).max(oldest).min(system),
        // The system's clock was set back; an error of a moment must not undo what was reached.
        Some(before) => (before - elapsed).max(system),
    }
}

/// The work that is done on a log from time to time.
#[derive(Debug)]
pub struct AuditUpkeep {
    settings: AuditSettings,
    last: Instant,
    clock: Option<UnixMillis>,
}

impl AuditUpkeep {
    /// Begins now.
    pub fn new(settings: AuditSettings) -> Self {
        Self { settings, last: Instant::now(), clock: None }
    }

    /// How often [`AuditUpkeep::run`] is due.
    pub fn interval(&self) -> Duration {
        self.settings.checkpoint_interval
    }

    /// Signs what the log has grown by, and removes what is past its time; the number of entries removed.
    pub async fn run(&mut self, store: &Store) -> Result<u64> {
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        self.run_after(store, elapsed).await
    }

    pub(crate) async fn run_after(&mut self, store: &Store, elapsed: Duration) -> Result<u64> {
        let (stored, oldest) =
            store.database.readers.run(|connection| Ok((clock(connection)?, oldest(connection)?))).await?;
        let system = store.clock.now();
        let reached = follow(self.clock.or(stored), system, oldest.unwrap_or(system), elapsed);
        self.clock = Some(reached);
        let newest = store.checkpoint().map_or(0, |checkpoint| checkpoint.sequence);
        if *store.audit_progress().borrow() as u64 > newest {
            let checkpoint = store.sign_checkpoint().await?;
            store
                .write(move |tx| {
                    tx.keep_clock(reached)?;
                    tx.store_checkpoint(&checkpoint)
                })
                .await?;
        }
        let Some(retention) = self.settings.retention else { return Ok(0) };
        let mut removed = 0;
        while let Some(cut) = store.cut_once(retention, reached.min(system)).await? {
            removed += cut as u64;
            if cut < CUT_ENTRIES {
                break;
            }
        }
        Ok(removed)
    }
}

fn clock(connection: &Connection) -> Result<Option<UnixMillis>> {
    let value =
        one(connection, "SELECT value FROM facts WHERE name = 'audit_clock'", [], |row| row.get::<_, String>(0))?;
    Ok(value.and_then(|value| value.parse().ok()).map(UnixMillis))
}

fn oldest(connection: &Connection) -> Result<Option<UnixMillis>> {
    one(connection, "SELECT timestamp FROM audit ORDER BY sequence LIMIT 1", [], |row| row.get(0).map(UnixMillis))
}

/// Entries that are past their time.
struct Due {
    /// The last of them.
    through: Link,
    /// How many.
    count: usize,
}

/// The oldest entries that are all older than `retention`, at most [`CUT_ENTRIES`]; `None` when it is too early for a cut.
///
/// Every one of them is verified first, and that the next one follows: a cut must not be what hides that the log was changed.
fn due(connection: &Connection, signer: &Signer, retention: Duration, now: UnixMillis) -> Result<Option<Due>> {
    let kept_from = (now - retention).0;
    let overdue = (retention / OVERDUE_PART).min(MAX_OVERDUE);
    match oldest(connection)? {
        Some(oldest) if oldest.0 <= (now - retention - overdue).0 => {}
        _ => return Ok(None),
    }
    let snapshot = connection.unchecked_transaction().map_err(error)?;
    let start = origin(&snapshot, signer)?;
    let mut witnesses = signed_after(&snapshot, start.sequence, start.sequence.saturating_add(CUT_ENTRIES as i64))?;
    let sql = format!("SELECT {COLUMNS} FROM audit ORDER BY sequence LIMIT {}", CUT_ENTRIES + 1);
    let mut statement = snapshot.prepare_cached(&sql).map_err(error)?;
    let mut rows = statement.query([]).map_err(error)?;
    let (mut due, mut worth_it) = (Due { through: start, count: 0 }, false);
    while let Some(row) = rows.next().map_err(error)? {
        let linked = due.through.follow(row)?;
        if due.count == CUT_ENTRIES || milliseconds(&linked.entry) > kept_from {
            break;
        }
        witnesses.agree(linked.link)?;
        // A cut that removes nothing but the entries of earlier ones would go on for ever on a log at rest.
        worth_it |= linked.entry.operation != CUT;
        due = Due { through: linked.link, count: due.count + 1 };
    }
    Ok((worth_it && due.count > 0).then_some(due))
}

impl Store {
    /// Removes the oldest entries that are older than `retention` at `now`, and how many they were; `None` when there was
    /// nothing to do. In one transaction: the entry that says so, the signed checkpoint for what is removed, the removal.
    async fn cut_once(&self, retention: Duration, now: UnixMillis) -> Result<Option<usize>> {
        let signer = std::sync::Arc::clone(&self.signer);
        let due = self.database.readers.run(move |connection| due(connection, &signer, retention, now)).await?;
        let Some(Due { through, count }) = due else { return Ok(None) };
        let cut = self.signer.sign(through.sequence, through.hash, self.clock.now(), true);
        self.write(move |tx| {
            tx.append_entry(cut_entry(through.sequence, count))?;
            tx.store_checkpoint(&cut)?;
            tx.cut_lineage(through.sequence)?;
            let removed = tx.execute("DELETE FROM audit WHERE sequence <= ?1", [through.sequence])?;
            if removed == count { Ok(Some(count)) } else { Err(Error::internal("the audit log changed during a cut")) }
        })
        .await
    }
}

fn cut_entry(through: i64, removed: usize) -> EntryDraft {
    EntryDraft {
        actor: "prism".to_owned(),
        operation: CUT.to_owned(),
        resource: "audit".to_owned(),
        metadata: [("through".to_owned(), through.to_string()), ("removed".to_owned(), removed.to_string())].into(),
        auth_method: "none".to_owned(),
        ..EntryDraft::default()
    }
}

impl Tx<'_> {
    /// Keeps the time that retention goes by for the next start.
    fn keep_clock(&self, reached: UnixMillis) -> Result<()> {
        self.execute(
            "INSERT INTO facts (name, value) VALUES ('audit_clock', ?1) ON CONFLICT (name) DO UPDATE SET value = ?1",
            [reached.0.to_string()],
        )
        .map(|_| ())
    }
}
