//! Mailboxes: messages in the order of their commits.

use std::collections::BTreeMap;

use prism_core::{Error, Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, params};

use crate::driver::{MailboxEntry, MailboxResult, MailboxWrite};

/// What a message is charged beside its content, in bytes.
const MESSAGE_BYTES: usize = 64;
/// A read ends before the message that would make it larger than this, in bytes; one message is always given.
const MAX_READ_BYTES: usize = 4 * 1024 * 1024;

/// Appends a message; returns its place and by how many bytes the mailbox grew.
pub(super) fn append(
    connection: &Connection,
    write: &MailboxWrite,
    message_id: String,
    now: UnixMillis,
) -> Result<(MailboxResult, i64)> {
    if write.mailbox_id.is_empty() {
        return Err(Error::invalid("mailbox.mailbox_id", "must not be empty"));
    }
    // Messages are never removed, so the numbers have no gaps.
    let sequence: i64 = connection
        .prepare_cached("SELECT coalesce(max(sequence), 0) + 1 FROM _prism_mailbox WHERE mailbox = ?1")
        .and_then(|mut statement| statement.query_row([&write.mailbox_id], |row| row.get(0)))
        .map_err(error)?;
    let metadata = serde_json::to_string(&write.metadata).map_err(Error::internal)?;
    connection
        .prepare_cached("INSERT INTO _prism_mailbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)")
        .and_then(|mut statement| {
            statement.execute(params![write.mailbox_id, sequence, message_id, write.message.as_ref(), metadata, now.0])
        })
        .map_err(error)?;
    let grown = write.message.len() + metadata.len() + MESSAGE_BYTES;
    Ok((MailboxResult { message_id, sequence }, grown as i64))
}

/// Reads the messages after `since`, at most `limit` and about 4 MiB; none = the end.
pub(super) fn read(connection: &Connection, mailbox: &str, since: i64, limit: usize) -> Result<Vec<MailboxEntry>> {
    let mut statement = connection
        .prepare_cached(
            "SELECT message_id, sequence, message, metadata, created_at FROM _prism_mailbox
             WHERE mailbox = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3",
        )
        .map_err(error)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![mailbox, since, limit]).map_err(error)?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(error)? {
        let message = row.get_ref(2).and_then(|found| Ok(found.as_blob()?)).map_err(error)?;
        let metadata = row.get_ref(3).and_then(|found| Ok(found.as_str()?)).map_err(error)?;
        bytes += message.len() + metadata.len();
        if bytes > MAX_READ_BYTES && !entries.is_empty() {
            break;
        }
        let metadata: BTreeMap<String, String> = serde_json::from_str(metadata).map_err(Error::internal)?;
        entries.push(MailboxEntry {
            message_id: row.get(0).map_err(error)?,
            sequence: row.get(1).map_err(error)?,
            message: message.to_vec().into(),
            metadata,
            created_at: UnixMillis(row.get(4).map_err(error)?),
        });
    }
    Ok(entries)
}
