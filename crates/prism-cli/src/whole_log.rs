//! The whole audit log of a live server, oldest entry first.
//!
//! The server lists newest first, at most 10,000 entries an answer, or oldest first after an entry that
//! is named. So the first entry is looked for backwards, and the rest streamed from there.

use std::vec;

use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use prost_types::Timestamp;

use crate::{
    client::{AuditLog, Client},
    error::{Failure, Result},
    exit::Exit,
};

/// Most entries of one answer without `resume_after`.
pub const LARGEST_LIMIT: i32 = 10_000;

/// The log from its first entry to the one that was the last when reading began.
pub struct WholeLog {
    rest: Option<AuditLog>,
    read: vec::IntoIter<AuditLogEntry>,
    first: u64,
    last: u64,
}

impl WholeLog {
    /// Finds the first entry and starts to read. `start` is the sequence that it should have.
    pub async fn open(client: &Client, start: u64) -> Result<Self> {
        let mut batch = fetch(client, None).await?;
        batch.sort_by_key(|entry| entry.sequence);
        let last = batch.last().map_or(0, |entry| entry.sequence);
        if is_complete(&batch, start) {
            let first = batch.first().map_or(0, |entry| entry.sequence);
            return Ok(Self { rest: None, read: batch.into_iter(), first, last });
        }
        let first = find_first(client, batch, start).await?;
        let request = GetAuditLogRequest { resume_after: Some(first.id.clone()), ..GetAuditLogRequest::default() };
        let rest = client.audit_log(request).await?;
        Ok(Self { rest: Some(rest), first: first.sequence, read: vec![first].into_iter(), last })
    }

    /// Sequence of the first entry; 0 for an empty log.
    pub fn first_sequence(&self) -> u64 {
        self.first
    }

    /// Sequence of the last entry when reading began; 0 for an empty log.
    pub fn last_sequence(&self) -> u64 {
        self.last
    }

    /// The next entry; none after the last.
    pub async fn next(&mut self) -> Result<Option<AuditLogEntry>> {
        if let Some(entry) = self.read.next() {
            return Ok(Some(entry));
        }
        let Some(rest) = &mut self.rest else { return Ok(None) };
        // What came after reading began is left out: reading the log itself adds to it.
        let next = rest.next().await?.filter(|entry| entry.sequence <= self.last);
        if next.is_none() {
            self.rest = None;
        }
        Ok(next)
    }
}

async fn find_first(client: &Client, mut batch: Vec<AuditLogEntry>, start: u64) -> Result<AuditLogEntry> {
    loop {
        let complete = is_complete(&batch, start);
        let Some(oldest) = batch.into_iter().min_by_key(|entry| entry.sequence) else {
            return Err(Failure::new(Exit::Failed, "the audit log changed while it was read; repeat"));
        };
        if complete {
            return Ok(oldest);
        }
        // Entries of the same moment belong to both batches.
        batch = fetch(client, oldest.timestamp.map(just_after)).await?;
        if !batch.iter().any(|entry| entry.sequence < oldest.sequence) {
            return Err(Failure::new(
                Exit::Failed,
                format!("entries before sequence {} cannot be listed by time", oldest.sequence),
            )
            .hint("check an export instead: `prism-admin audit verify --file EXPORT`"));
        }
    }
}

async fn fetch(client: &Client, end_time: Option<Timestamp>) -> Result<Vec<AuditLogEntry>> {
    let request = GetAuditLogRequest { end_time, limit: LARGEST_LIMIT, ..GetAuditLogRequest::default() };
    let mut stream = client.audit_log(request).await?;
    let mut batch = Vec::new();
    while let Some(entry) = stream.next().await? {
        batch.push(entry);
    }
    Ok(batch)
}

/// Nothing is older than this batch. One that does not reach the start though there was room is for
/// the reader to judge: a log that lost its beginning.
fn is_complete(batch: &[AuditLogEntry], start: u64) -> bool {
    batch.len() < LARGEST_LIMIT as usize || batch.iter().any(|entry| entry.sequence <= start)
}

fn just_after(at: Timestamp) -> Timestamp {
    const MILLISECOND: i32 = 1_000_000;
    if at.nanos < 1_000_000_000 - MILLISECOND {
        Timestamp { seconds: at.seconds, nanos: at.nanos + MILLISECOND }
    } else {
        Timestamp { seconds: at.seconds + 1, nanos: at.nanos + MILLISECOND - 1_000_000_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequences: std::ops::Range<u64>) -> Vec<AuditLogEntry> {
        sequences.map(|sequence| AuditLogEntry { sequence, ..AuditLogEntry::default() }).collect()
    }

    #[test]
    fn a_full_batch_without_the_first_entry_is_not_all() {
        assert!(is_complete(&[], 1));
        assert!(is_complete(&batch(1..4), 1));
        assert!(is_complete(&batch(5..9), 1));
        assert!(is_complete(&batch(1..10_001), 1));
        assert!(!is_complete(&batch(2..10_002), 1));
        assert!(is_complete(&batch(2..10_002), 2));
    }

    #[test]
    fn the_next_batch_overlaps_by_a_millisecond() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(just_after(at(5, 0)), at(5, 1_000_000));
        assert_eq!(just_after(at(5, 999_000_000)), at(6, 0));
        assert_eq!(just_after(at(5, 999_999_999)), at(6, 999_999));
    }
}
