//! TRANSACT_WRITE on the embedded backend: every call is one savepoint of a group commit, run by the one writer and so
//! always serialisable.

mod idempotency;
mod mailbox;
mod statement;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::{Error, Kind, Result, UnixMillis};
use rusqlite::Connection;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::space::Space;
use crate::driver::{MailboxEntry, Record, Transact, TransactOptions, Value, WriteOutcome, WriteSet};
use idempotency::Outcome;

/// Mailboxes, and the outcomes of writes that carried an idempotency key.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE _prism_mailbox (
        mailbox TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        message_id TEXT NOT NULL,
        message BLOB NOT NULL,
        metadata TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (mailbox, sequence)
    ) STRICT;
    CREATE TABLE _prism_idempotency (
        key TEXT NOT NULL PRIMARY KEY,
        fingerprint BLOB NOT NULL,
        outcome TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX _prism_idempotency_age ON _prism_idempotency (created_at);
";

/// Most writes of one transaction: each is run again with every one that follows, and again at the commit.
const MAX_WRITES: usize = 256;
/// Most bytes of one transaction's writes and of what they generated, for the same reason.
const MAX_TRANSACTION_BYTES: usize = 4 * 1024 * 1024;

/// Writes to the allowed tables and the mailboxes of one namespace.
pub(crate) struct SqliteTransact {
    space: Arc<Space>,
    tables: Arc<[String]>,
}

impl SqliteTransact {
    /// Serves `tables` of `space`.
    pub(crate) fn new(space: Arc<Space>, tables: Vec<String>) -> Self {
        Self { space, tables: tables.into() }
    }

    /// Runs `work` once within the time and under the key that `options` give.
    async fn run(
        &self,
        options: TransactOptions,
        work: impl FnOnce(&Connection, UnixMillis) -> Result<(Outcome, i64)> + Send + 'static,
    ) -> Result<Outcome> {
        let TransactOptions { isolation: _, timeout, idempotency } = options;
        let claim = Claim::default();
        let claimed = claim.clone();
        let clock = self.space.clock.clone();
        let written = self.space.write(move |connection| {
            if !claimed.take() {
                return Err(late());
            }
            let now = clock.now();
            idempotency::once(connection, now, idempotency.as_ref(), || work(connection, now))
        });
        claim.within(timeout, written).await
    }
}

#[async_trait]
impl Transact for SqliteTransact {
    async fn write(&self, writes: WriteSet, options: TransactOptions) -> Result<WriteOutcome> {
        check(&writes)?;
        let tables = Arc::clone(&self.tables);
        let transaction_id = Uuid::now_v7().to_string();
        let work = move |connection: &Connection, now| {
            let step = Step { transaction_id: &transaction_id, index: 0, now, told: None };
            let (outcome, grown) = step.apply(connection, &tables, &writes)?;
            Ok((Outcome::Written((&outcome).into()), grown))
        };
        match self.run(options, work).await? {
            Outcome::Written(written) => written.try_into(),
            Outcome::Committed => Err(idempotency::reused()),
        }
    }

    async fn rehearse(
        &self,
        transaction_id: &str,
        earlier: &[(WriteSet, WriteOutcome)],
        next: &WriteSet,
    ) -> Result<WriteOutcome> {
        check_size(earlier, Some(next))?;
        check(next)?;
        let (transaction_id, earlier, next) = (transaction_id.to_owned(), earlier.to_vec(), next.clone());
        let tables = Arc::clone(&self.tables);
        let clock = self.space.clock.clone();
        let (answer, outcome) = oneshot::channel();
        let undone = self.space.write(move |connection| {
            // Nobody hears of a failure to send: then nobody waits.
            let _ = answer.send(rehearse(connection, &tables, &transaction_id, &earlier, &next, clock.now()));
            // A refusal rolls everything back, which is what a rehearsal is.
            Err::<((), i64), _>(Error::aborted("REHEARSED", "nothing was kept"))
        });
        let Err(ended) = undone.await else { return Err(Error::internal("a rehearsal was kept")) };
        // No outcome: the storage ended the operation before it ran, and `ended` says why.
        outcome.await.unwrap_or(Err(ended))
    }

    async fn commit(
        &self,
        transaction_id: &str,
        writes: Vec<(WriteSet, WriteOutcome)>,
        options: TransactOptions,
    ) -> Result<()> {
        check_size(&writes, None)?;
        writes.iter().try_for_each(|(writes, _)| check(writes))?;
        let transaction_id = transaction_id.to_owned();
        let tables = Arc::clone(&self.tables);
        let work = move |connection: &Connection, now| {
            let grown = replay(connection, &tables, &transaction_id, &writes, now)?;
            Ok((Outcome::Committed, grown))
        };
        match self.run(options, work).await? {
            Outcome::Committed => Ok(()),
            Outcome::Written(_) => Err(idempotency::reused()),
        }
    }

    async fn read_mailbox(&self, mailbox_id: &str, since: i64, limit: usize) -> Result<Vec<MailboxEntry>> {
        let mailbox_id = mailbox_id.to_owned();
        self.space.readers().run(move |connection| mailbox::read(connection, &mailbox_id, since, limit)).await
    }
}

fn check(writes: &WriteSet) -> Result<()> {
    if writes.data.is_none() && writes.mailbox.is_none() {
        return Err(Error::invalid("data", "give a table write, a mailbox message, or both"));
    }
    Ok(())
}

/// RESOURCE_EXHAUSTED `TRANSACTION_TOO_LARGE` when a transaction has more than the one writer may be asked to run again and
/// again.
fn check_size(writes: &[(WriteSet, WriteOutcome)], next: Option<&WriteSet>) -> Result<()> {
    let count = writes.len() + usize::from(next.is_some());
    let earlier = writes.iter().map(|(writes, outcome)| {
        let generated = outcome.data.as_ref().map_or(0, |data| record_bytes(&data.generated_values));
        write_bytes(writes) + generated
    });
    if count > MAX_WRITES || earlier.sum::<usize>() + next.map_or(0, write_bytes) > MAX_TRANSACTION_BYTES {
        return Err(Error::new(
            Kind::ResourceExhausted,
            "TRANSACTION_TOO_LARGE",
            format!("a transaction has at most {MAX_WRITES} writes of {MAX_TRANSACTION_BYTES} bytes together"),
        ));
    }
    Ok(())
}

fn write_bytes(writes: &WriteSet) -> usize {
    let data = writes.data.as_ref().map_or(0, |data| record_bytes(&data.record));
    let mailbox = writes.mailbox.as_ref().map_or(0, |message| {
        let metadata = message.metadata.iter().map(|(key, value)| key.len() + value.len());
        message.message.len() + metadata.sum::<usize>()
    });
    data + mailbox
}

fn record_bytes(record: &Record) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        // A list is refused before it is written.
        Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Real(_) | Value::List(_) => 8,
    };
    record.iter().map(|(name, cell)| name.len() + value(cell)).sum()
}

/// Runs writes that were rehearsed, with the values they were told, and returns the growth; each must come out as it did.
fn replay(
    connection: &Connection,
    tables: &[String],
    transaction_id: &str,
    writes: &[(WriteSet, WriteOutcome)],
    now: UnixMillis,
) -> Result<i64> {
    let mut grown = 0;
    for (index, (writes, rehearsed)) in writes.iter().enumerate() {
        let told = rehearsed.data.as_ref().map(|data| &data.generated_values);
        let step = Step { transaction_id, index, now, told };
        let (outcome, bytes) = step.apply(connection, tables, writes).map_err(conflict)?;
        if (&outcome.data, &outcome.mailbox) != (&rehearsed.data, &rehearsed.mailbox) {
            return Err(changed());
        }
        grown += bytes;
    }
    Ok(grown)
}

/// Runs `next` after the `earlier` writes of its transaction.
fn rehearse(
    connection: &Connection,
    tables: &[String],
    transaction_id: &str,
    earlier: &[(WriteSet, WriteOutcome)],
    next: &WriteSet,
    now: UnixMillis,
) -> Result<WriteOutcome> {
    replay(connection, tables, transaction_id, earlier, now)?;
    let step = Step { transaction_id, index: earlier.len(), now, told: None };
    step.apply(connection, tables, next).map(|(outcome, _)| outcome)
}

/// One write set in its transaction.
struct Step<'a> {
    transaction_id: &'a str,
    index: usize,
    now: UnixMillis,
    /// What a rehearsal said the database would generate.
    told: Option<&'a Record>,
}

impl Step<'_> {
    fn apply(&self, connection: &Connection, tables: &[String], writes: &WriteSet) -> Result<(WriteOutcome, i64)> {
        let mut outcome = WriteOutcome { transaction_id: self.transaction_id.to_owned(), data: None, mailbox: None };
        let mut grown = 0;
        if let Some(data) = &writes.data {
            let (result, bytes) = statement::apply(connection, tables, data, self.told)?;
            outcome.data = Some(result);
            grown += bytes;
        }
        if let Some(message) = &writes.mailbox {
            // Made from what does not change between the rehearsal and the commit.
            let message_id = format!("{}-{}", self.transaction_id, self.index);
            let (result, bytes) = mailbox::append(connection, message, message_id, self.now)?;
            outcome.mailbox = Some(result);
            grown += bytes;
        }
        Ok((outcome, grown))
    }
}

fn changed() -> Error {
    Error::aborted(
        "TRANSACTION_CONFLICT",
        "another write changed what this transaction was told; nothing was kept; begin again",
    )
}

/// A write that was accepted before and is now refused met another's change. What the storage or a quota says stays as it is.
fn conflict(refused: Error) -> Error {
    match refused.kind() {
        Kind::InvalidArgument | Kind::NotFound | Kind::AlreadyExists | Kind::FailedPrecondition => {
            changed().caused_by(refused)
        }
        _ => refused,
    }
}

fn late() -> Error {
    Error::new(
        Kind::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "the transaction's timeout passed before it began; nothing was changed",
    )
}

/// Taken once: by the writer that begins the work, or by the caller that no longer waits for it. So work that was reported
/// as late never happens, and work that has begun is reported as it ends.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Awaits `work`; DEADLINE_EXCEEDED when it has not begun after `timeout`.
    async fn within<T>(&self, timeout: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(timeout) = timeout else { return work.await };
        let mut work = std::pin::pin!(work);
        match tokio::time::timeout(timeout, &mut work).await {
            Ok(result) => result,
            Err(_) if self.take() => Err(late()),
            Err(_) => work.await,
        }
    }
}
