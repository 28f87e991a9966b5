//! The whole audit log of a live server as far as its credential sees it, oldest entry first.

use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};

use crate::{
    client::{AuditLog, Client},
    error::Result,
};

/// The log from its first entry to the one that was the last when reading began.
pub struct WholeLog {
    rest: AuditLog,
    first: Option<AuditLogEntry>,
    first_sequence: u64,
    last_sequence: u64,
}

impl WholeLog {
    /// Begins to read.
    pub async fn open(client: &Client) -> Result<Self> {
        // The end comes from another question than the entries: a log that is shorter than it said lost some.
        let last_sequence = newest(client).await?.map_or(0, |entry| entry.sequence);
        let request = GetAuditLogRequest { oldest_first: true, ..GetAuditLogRequest::default() };
        let mut rest = client.audit_log(request).await?;
        let first = rest.next().await?;
        let first_sequence = first.as_ref().map_or(0, |entry| entry.sequence);
        Ok(Self { rest, first, first_sequence, last_sequence })
    }

    /// Sequence of the first entry; 0 for an empty log.
    pub fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Sequence of the last entry when reading began; 0 for an empty log.
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// The next entry; none after the last. Whether none is missing is for the reader to see.
    pub async fn next(&mut self) -> Result<Option<AuditLogEntry>> {
        while let Some(entry) = self.receive().await? {
            // What came after reading began is left out: reading the log itself adds to it. It is read all the same, for
            // what the server says about its log comes last.
            if entry.sequence <= self.last_sequence {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    async fn receive(&mut self) -> Result<Option<AuditLogEntry>> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.rest.next().await,
        }
    }
}

/// The newest entry that the credential sees.
pub async fn newest(client: &Client) -> Result<Option<AuditLogEntry>> {
    let mut log = client.audit_log(GetAuditLogRequest { limit: 1, ..GetAuditLogRequest::default() }).await?;
    let mut newest = None;
    while let Some(entry) = log.next().await? {
        newest = Some(entry);
    }
    Ok(newest)
}
