//! `prism-admin audit`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use serde_json::json;

use super::Console;
use crate::{
    chain::{Verifier, Witness, parse_witness},
    client::Client,
    error::{Failure, Result},
    exit::Exit,
    export::{check_file, is_broken},
    output::{Format, Grid, Printer, note},
    stopped, text,
    whole_log::WholeLog,
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
    /// Check that the log is one unbroken chain from its first entry on
    ///
    /// Reads the live server, with --data-dir also one that is stopped, or with --file an export. Exit code 11 and the
    /// sequence at the first break. A chain alone cannot show that its end was cut off: keep the printed witness
    /// somewhere else, and give it to the next check.
    Verify(Verify),
    /// Print the whole log, oldest first, one entry in proto3 JSON per line
    Export,
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List(list) => list.run(console).await,
            Self::Tail(tail) => tail.run(console).await,
            Self::Verify(verify) => verify.run(console).await,
            Self::Export => export(console).await,
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
        let mut resume_after = None;
        for entry in self.present(&client).await?.into_iter().rev() {
            console.printer.streamed(&entry, line)?;
            resume_after = Some(entry.id);
        }
        let mut resumptions = 0;
        loop {
            match self.follow(console, &client, &mut resume_after, &mut resumptions).await {
                Err(failure) if failure.exit() == Exit::Unreachable && resumptions < RESUMPTIONS => {
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
        let request = GetAuditLogRequest { follow: true, resume_after: resume_after.clone(), ..self.filter.request() };
        let mut log = client.audit_log(request).await?;
        while let Some(entry) = log.next().await? {
            console.printer.streamed(&entry, line)?;
            *resume_after = Some(entry.id);
            *resumptions = 0;
        }
        Ok(())
    }
}

/// `audit verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Check an export (JSON lines) instead of the live log; - is standard input
    #[arg(long, value_name = "EXPORT")]
    file: Option<PathBuf>,
    /// An entry and its hash noted earlier; the log must still hold it
    #[arg(long, value_name = "SEQUENCE:HASH", value_parser = parse_witness)]
    witness: Option<Witness>,
}

impl Verify {
    async fn run(self, console: &Console) -> Result<()> {
        console.printer.refuse_token()?;
        let mut verifier = Verifier::new(self.witness);
        let folder = console.global.connection.data_dir.as_deref();
        match (&self.file, folder.map(stopped::database).transpose()?.flatten()) {
            (Some(path), _) => check_file(path, &mut verifier)?,
            (None, Some(database)) => stopped::check(&database, &mut verifier)?,
            (None, None) => check_live(&Self::live(console).await?, &mut verifier).await?,
        }
        let (count, head) = verifier.finish().map_err(|broken| is_broken(broken.to_string()))?;
        let head = hex::encode(head);
        let json = json!({ "entries": count, "head": head, "witness": format!("{count}:{head}") });
        console.printer.value(&json, || {
            Grid::sheet()
                .field("entries", count.to_string())
                .field("head", &head)
                .field("witness", if count == 0 { "-".to_owned() } else { format!("{count}:{head}") })
                .render("")
        })
    }

    async fn live(console: &Console) -> Result<Client> {
        console.client().await.map_err(|failure| match failure.exit() {
            Exit::Unreachable => failure.hint("the log of a stopped server is checked with --data-dir DIR"),
            _ => failure,
        })
    }
}

async fn check_live(client: &Client, verifier: &mut Verifier) -> Result<()> {
    let mut log = WholeLog::open(client).await?;
    while let Some(entry) = log.next().await? {
        verifier.accept(&entry).map_err(|broken| {
            is_broken(broken.to_string()).hint("a credential of one namespace sees only a part of the log")
        })?;
    }
    if verifier.count() < log.last_sequence() {
        let (next, last) = (verifier.count() + 1, log.last_sequence());
        return Err(is_broken(format!(
            "the chain is broken at sequence {next}: the log ends there, but listed {last}"
        )));
    }
    Ok(())
}

async fn export(console: &Console) -> Result<()> {
    if !matches!(console.global.output, Format::Table | Format::Json) {
        return Err(Failure::usage("an export is JSON lines; leave out -o"));
    }
    let client = console.client().await?;
    let mut log = WholeLog::open(&client).await?;
    let printer = Printer::new(Format::Json);
    let mut last = 0;
    while let Some(entry) = log.next().await? {
        printer.streamed(&entry, line)?;
        last = entry.sequence;
    }
    if last < log.last_sequence() {
        return Err(is_broken(format!("the log ends at sequence {last}, but listed {}", log.last_sequence())));
    }
    Ok(())
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
