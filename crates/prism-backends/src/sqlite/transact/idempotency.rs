//! Outcomes that are remembered under the caller's key, in the transaction that made them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prism_core::limits::IDEMPOTENCY_WINDOW;
use prism_core::{Error, Result, UnixMillis};
use prism_sqlite::error;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use crate::driver::{DataResult, MailboxResult, Value, WriteOutcome};

/// Most expired keys removed by one write, so that none pays for all.
const PURGED_AT_ONCE: u32 = 64;

/// The outcome of one call, as it is remembered.
#[derive(Serialize, Deserialize)]
pub(super) enum Outcome {
    /// Of Write.
    Written(Written),
    /// Of the commit of a Transaction.
    Committed,
}

/// The parts of a [`WriteOutcome`] with their values exact.
#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    transaction_id: String,
    data: Option<(i64, Vec<(String, Kept)>)>,
    mailbox: Option<(String, i64)>,
}

/// A value in JSON without loss.
#[derive(Serialize, Deserialize)]
enum Kept {
    Null,
    Bool(bool),
    Integer(i64),
    /// The number's bits.
    Real(u64),
    Text(String),
    /// Base64.
    Bytes(String),
    List(Vec<Kept>),
}

impl From<&Value> for Kept {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Integer(number) => Self::Integer(*number),
            Value::Real(number) => Self::Real(number.to_bits()),
            Value::Text(text) => Self::Text(text.clone()),
            Value::Bytes(bytes) => Self::Bytes(STANDARD_NO_PAD.encode(bytes)),
            Value::List(list) => Self::List(list.iter().map(Self::from).collect()),
        }
    }
}

impl TryFrom<Kept> for Value {
    type Error = Error;

    fn try_from(kept: Kept) -> Result<Self> {
        Ok(match kept {
            Kept::Null => Self::Null,
            Kept::Bool(truth) => Self::Bool(truth),
            Kept::Integer(number) => Self::Integer(number),
            Kept::Real(bits) => Self::Real(f64::from_bits(bits)),
            Kept::Text(text) => Self::Text(text),
            Kept::Bytes(bytes) => Self::Bytes(STANDARD_NO_PAD.decode(bytes).map_err(Error::internal)?),
            Kept::List(list) => Self::List(list.into_iter().map(Self::try_from).collect::<Result<_>>()?),
        })
    }
}

impl From<&WriteOutcome> for Written {
    fn from(outcome: &WriteOutcome) -> Self {
        let values = |data: &DataResult| {
            data.generated_values.iter().map(|(name, value)| (name.clone(), value.into())).collect()
        };
        Self {
            transaction_id: outcome.transaction_id.clone(),
            data: outcome.data.as_ref().map(|data| (data.rows_affected, values(data))),
            mailbox: outcome.mailbox.as_ref().map(|mailbox| (mailbox.message_id.clone(), mailbox.sequence)),
        }
    }
}

impl TryFrom<Written> for WriteOutcome {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        let data = match written.data {
            None => None,
            Some((rows_affected, values)) => {
                let values = values.into_iter().map(|(name, value)| Ok((name, value.try_into()?)));
                Some(DataResult { rows_affected, generated_values: values.collect::<Result<_>>()? })
            }
        };
        let mailbox = written.mailbox.map(|(message_id, sequence)| MailboxResult { message_id, sequence });
        Ok(Self { transaction_id: written.transaction_id, data, mailbox })
    }
}

/// Runs `work` unless its key is known: then the outcome of the first time comes again. Returns it and by how many bytes the
/// data grew.
///
/// INVALID_ARGUMENT `options.idempotency_key` when the key was used for something else within 24 h.
pub(super) fn once(
    connection: &Connection,
    now: UnixMillis,
    idempotency: Option<&(String, [u8; 32])>,
    work: impl FnOnce() -> Result<(Outcome, i64)>,
) -> Result<(Outcome, i64)> {
    let Some((key, fingerprint)) = idempotency else { return work() };
    let oldest = now - IDEMPOTENCY_WINDOW;
    let freed = purge(connection, key, oldest).map_err(error)?;
    let known = connection
        .prepare_cached("SELECT fingerprint, outcome FROM _prism_idempotency WHERE key = ?1")
        .and_then(|mut statement| {
            statement.query_row([key], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?))).optional()
        })
        .map_err(error)?;
    if let Some((known, outcome)) = known {
        if known != fingerprint {
            return Err(reused());
        }
        return Ok((serde_json::from_str(&outcome).map_err(Error::internal)?, -freed));
    }
    let (outcome, grown) = work()?;
    let kept = serde_json::to_string(&outcome).map_err(Error::internal)?;
    connection
        .prepare_cached("INSERT INTO _prism_idempotency VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut statement| statement.execute(params![key, fingerprint, kept, now.0]))
        .map_err(error)?;
    let stored = key.len() + fingerprint.len() + kept.len();
    Ok((outcome, grown + stored as i64 - freed))
}

/// INVALID_ARGUMENT: the key stands for another request.
pub(super) fn reused() -> Error {
    Error::invalid("options.idempotency_key", "was used for another request within 24 hours; use a new key")
}

/// Removes `key` if it expired, and some others that did. Returns the bytes that are free.
fn purge(connection: &Connection, key: &str, oldest: UnixMillis) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM _prism_idempotency
         WHERE created_at <= ?1 AND key IN (
             SELECT ?2 UNION ALL
             SELECT key FROM (SELECT key FROM _prism_idempotency WHERE created_at <= ?1 ORDER BY created_at LIMIT ?3))
         RETURNING octet_length(key) + octet_length(fingerprint) + octet_length(outcome)",
    )?;
    let freed = statement.query_map(params![oldest.0, key, PURGED_AT_ONCE], |row| row.get::<_, i64>(0))?;
    freed.sum()
}
