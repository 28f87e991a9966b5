use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prism_core::{Result, UnixMillis};

use super::Record;

/// What a data write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// A new row; ALREADY_EXISTS for a duplicate.
    Insert,
    /// Changes the row whose id field equals the record's; NOT an error when there is none (`rows_affected` 0).
    Update,
    /// Insert or update by the id field.
    Upsert,
    /// Deletes the row whose id field equals the record's.
    Delete,
}

/// A write to a table.
#[derive(Clone, Debug)]
pub struct DataWrite {
    /// Table; PERMISSION_DENIED `TABLE_NOT_ALLOWED` when the config does not list it.
    pub table: String,
    /// Column values.
    pub record: Record,
    /// What to do.
    pub mode: WriteMode,
    /// Column that identifies the row; `None` = the table's primary key.
    pub id_field: Option<String>,
}

/// A message to a mailbox.
#[derive(Clone, Debug)]
pub struct MailboxWrite {
    /// Mailbox.
    pub mailbox_id: String,
    /// Message.
    pub message: Bytes,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
}

/// One Write request: a table write, a mailbox message, or both.
#[derive(Clone, Debug, Default)]
pub struct WriteSet {
    /// Table write.
    pub data: Option<DataWrite>,
    /// Mailbox message.
    pub mailbox: Option<MailboxWrite>,
}

/// Wished isolation. The embedded backend is always serialisable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Default of the backend.
    #[default]
    Unspecified,
    /// Sees committed rows only.
    ReadCommitted,
    /// As if alone.
    Serializable,
    /// Sees one state.
    RepeatableRead,
}

/// Options of a transaction.
#[derive(Clone, Debug, Default)]
pub struct TransactOptions {
    /// Wished isolation.
    pub isolation: Isolation,
    /// Longest time it may take.
    pub timeout: Option<Duration>,
    /// Key under which the outcome is remembered for 24 h, and the fingerprint of the request: the same key with another
    /// fingerprint is INVALID_ARGUMENT, with the same one the stored outcome.
    pub idempotency: Option<(String, [u8; 32])>,
}

/// Outcome of a table write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataResult {
    /// Rows inserted, changed or deleted.
    pub rows_affected: i64,
    /// Columns whose values the database made: those of the written row that the record did not name (INSERT and UPSERT).
    pub generated_values: Record,
}

/// Outcome of a mailbox write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxResult {
    /// Id of the message.
    pub message_id: String,
    /// Sequence within the mailbox, from 1.
    pub sequence: i64,
}

/// Outcome of one write set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WriteOutcome {
    /// Id of the transaction.
    pub transaction_id: String,
    /// Of the table write.
    pub data: Option<DataResult>,
    /// Of the mailbox write.
    pub mailbox: Option<MailboxResult>,
}

/// A message in a mailbox.
#[derive(Clone, Debug)]
pub struct MailboxEntry {
    /// Id.
    pub message_id: String,
    /// Sequence within the mailbox, from 1.
    pub sequence: i64,
    /// Message.
    pub message: Bytes,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
    /// When it was written.
    pub created_at: UnixMillis,
}

/// TRANSACT_WRITE: contract §4 `TransactService`.
#[async_trait]
pub trait Transact: Send + Sync + 'static {
    /// Writes both parts, or neither.
    async fn write(&self, writes: WriteSet, options: TransactOptions) -> Result<WriteOutcome>;

    /// Runs the `earlier` writes of an open transaction, as they were rehearsed, and `next`, and keeps nothing; returns the
    /// outcome of `next`, or its refusal, which leaves the earlier ones as they are. What it returns is what
    /// [`Transact::commit`] will hold to. ABORTED `TRANSACTION_CONFLICT` when an earlier outcome no longer holds.
    async fn rehearse(
        &self,
        transaction_id: &str,
        earlier: &[(WriteSet, WriteOutcome)],
        next: &WriteSet,
    ) -> Result<WriteOutcome>;

    /// Commits `writes` in order, all or none; ABORTED `TRANSACTION_CONFLICT` when an outcome is no longer the one that
    /// was rehearsed.
    async fn commit(
        &self,
        transaction_id: &str,
        writes: Vec<(WriteSet, WriteOutcome)>,
        options: TransactOptions,
    ) -> Result<()>;

    /// Reads a mailbox after `since` (exclusive), at most `limit` entries.
    async fn read_mailbox(&self, mailbox_id: &str, since: i64, limit: usize) -> Result<Vec<MailboxEntry>>;
}
