//! `prism-admin audit`.

mod checkpoint;
mod export;
mod live;
mod verify;

use std::time::Duration;

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use tonic::Code;

use super::Console;
use crate::{
    client::Client,
    error::Result,
    exit::Exit,
    output::{Grid, note},
    text, whole_log,
};

/// Times a broken stream is taken up again before `tail` gives in.
const RESUMPTIONS: u32 = 5;
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print entries, newest first
    List(List),
    /// Print entries as they are written, oldest first, until interrupted
    Tail(Tail),
    /// Check that the log is one unbroken chain, and holds what was signed and what is remembered
    ///
    /// Reads the live server, with --data-dir also one that is stopped, or with --file an export. Exit code 11 and the
    /// sequence at the first break. Every checkpoint's signature is checked, and that the log has its hash; a log that
    /// was cut by retention begins after the signed cut. Neither can show what somebody did who has the server's key:
    /// that shows in what this computer remembers of earlier calls, and in the printed witness, if it is kept
    /// somewhere else and given to the next check. An export may be older than what is remembered, and end before it,
    /// unless --complete is given.
    Verify(verify::Verify),
    /// Print the log as far as this credential sees it, oldest first: an entry or a checkpoint per line, in proto3 JSON
    ///
    /// Exit code 11 if entries are missing though the credential sees the whole log. A part of the log, as a credential
    /// of one namespace sees it, cannot be verified.
    Export(export::Export),
    /// Have the server sign its log as it is now
    Checkpoint,
    /// Forget what is remembered of the server's log, after a change that is explained
    ///
    /// For instance when a backup was restored. The next call remembers the log anew.
    Forget,
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List(list) => list.run(console).await,
            Self::Tail(tail) => tail.run(console).await,
            Self::Verify(verify) => verify.run(console).await,
            Self::Export(export) => export.run(console).await,
            Self::Checkpoint => checkpoint::create(console).await,
            Self::Forget => checkpoint::forget(console).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// Which entries.
#[derive(Args, Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only this actor
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only this operation, such as CreateConfig
    #[arg(long, value_name = "RPC")]
    operation: Option<String>,
}

impl Filter {
    fn request(&self) -> GetAuditLogRequest {
        GetAuditLogRequest {
            namespace: self.namespace.clone(),
            actor: self.actor.clone(),
            operation: self.operation.clone(),
            ..GetAuditLogRequest::default()
        }
    }
}

/// `audit list`.
#[derive(Args, Debug)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    /// Only from this time on: a time, or how long ago (2h)
    #[arg(long, value_name = "TIME", value_parser = text::parse_past)]
    since: Option<prost_types::Timestamp>,
    /// Only before this time: a time, or how long ago (2h)
    #[arg(long, value_name = "TIME", value_parser = text::parse_past)]
    until: Option<prost_types::Timestamp>,
    /// Most entries, at most 10000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    limit: i32,
}

impl List {
    async fn run(self, console: &Console) -> Result<()> {
        let request = GetAuditLogRequest {
            start_time: self.since,
            end_time: self.until,
            limit: self.limit,
            ..self.filter.request()
        };
        let mut log = console.client().await?.audit_log(request).await?;
        if console.printer.is_for_programs() {
            while let Some(entry) = log.next().await? {
                console.printer.streamed(&entry, line)?;
            }
            return Ok(());
        }
        let header = ["SEQ", "TIME", "ACTOR", "OPERATION", "RESOURCE", "NAMESPACE", "RESULT"];
        let mut grid = Grid::new(header);
        while let Some(entry) = log.next().await? {
            grid = grid.row(cells(&entry));
        }
        crate::output::write(&grid.render("no entries"))
    }
}

/// `audit tail`.
#[derive(Args, Debug)]
pub struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin with this many entries that are there already
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=10_000))]
    last: i32,
}

impl Tail {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client().await?;
        // A stream that breaks before the first match must have a place to go on from, too.
        let mut place = whole_log::newest(&client).await?;
        for entry in self.present(&client).await?.into_iter().rev() {
            console.printer.streamed(&entry, line)?;
            if place.as_ref().is_none_or(|place| place.sequence < entry.sequence) {
                place = Some(entry);
            }
        }
        let mut resume_after = place.map(|place| place.id);
        let mut resumptions = 0;
        loop {
            match self.follow(console, &client, &mut resume_after, &mut resumptions).await {
                Err(failure) if goes_on(&client, failure.exit(), failure.code()) && resumptions < RESUMPTIONS => {
                    resumptions += 1;
                    note("note: the stream broke; going on after the last entry");
                    tokio::time::sleep(RESUME_AFTER).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn present(&self, client: &Client) -> Result<Vec<AuditLogEntry>> {
        let mut present = Vec::new();
        if self.last > 0 {
            let request = GetAuditLogRequest { limit: self.last, ..self.filter.request() };
            let mut log = client.audit_log(request).await?;
            while let Some(entry) = log.next().await? {
                present.push(entry);
            }
        }
        Ok(present)
    }

    async fn follow(
        &self,
        console: &Console,
        client: &Client,
        resume_after: &mut Option<String>,
        resumptions: &mut u32,
    ) -> Result<()> {
        // Where nothing was there yet, whatever comes is new.
        let request = GetAuditLogRequest {
            follow: true,
            oldest_first: true,
            resume_after: resume_after.clone(),
            ..self.filter.request()
        };
        let mut log = client.audit_log(request).await?;
        while let Some(entry) = log.next().await? {
            console.printer.streamed(&entry, line)?;
            *resume_after = Some(entry.id);
            *resumptions = 0;
        }
        Ok(())
    }
}

/// Whether a stream that ended so may be taken up again: the connection broke, or the token ended that it stood on,
/// and there is a login to get another from.
fn goes_on(client: &Client, exit: Exit, code: Option<Code>) -> bool {
    exit == Exit::Unreachable || (code == Some(Code::Unauthenticated) && client.renews())
}

fn cells(entry: &AuditLogEntry) -> [String; 7] {
    [
        entry.sequence.to_string(),
        text::precise_time(entry.timestamp.as_ref()),
        entry.actor.clone(),
        entry.operation.clone(),
        text::or_dash(&entry.resource),
        text::or_dash(&entry.namespace),
        if entry.success { "ok".to_owned() } else { format!("failed: {}", entry.error.as_deref().unwrap_or("-")) },
    ]
}

fn line(entry: &AuditLogEntry) -> String {
    cells(entry).join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_success_and_failure() {
        let entry = AuditLogEntry { success: true, ..AuditLogEntry::default() };
        assert!(line(&entry).ends_with("  ok"));
        let entry = AuditLogEntry { error: Some("no".to_owned()), ..AuditLogEntry::default() };
        assert!(line(&entry).ends_with("  failed: no"), "{}", line(&entry));
    }
}
