//! `prism-admin audit export`.

use clap::Args;
use prism_proto::admin::v1::AuditLogEntry;
use serde_json::Value;

use super::{Console, live::LiveLog};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    export::{Line, is_broken, line_of},
    ocsf::Mapping,
    output::{self, Format, note},
};

/// Written at once when it has grown so far.
const BUFFER_BYTES: usize = 64 * 1024;

/// `audit export`.
#[derive(Args, Debug)]
pub struct Export {
    /// Each line as an OCSF event (API Activity); its raw_data are the entry
    #[arg(long)]
    ocsf: bool,
}

impl Export {
    /// Prints the log: a cut first, then each entry, and right after it the checkpoint that covers it last. Fails after
    /// that if entries are missing which the credential should see.
    pub async fn run(self, console: &Console) -> Result<()> {
        if !matches!(console.global.output, Format::Table | Format::Json) {
            return Err(Failure::usage("an export is JSON lines; leave out -o"));
        }
        let client = console.client().await?;
        let mut log = LiveLog::open(&client).await?;
        let mut lines = Lines::new(self.ocsf)?;
        let mut gaps = Gaps::from(log.start());
        let cut = log.cut().cloned();
        let mut last = cut.as_ref().map_or(0, |cut| cut.sequence);
        if let Some(cut) = cut {
            lines.push(&Line::Checkpoint(Box::new(cut)))?;
        }
        // What lies before the cut is covered by it.
        log.checkpoints.retain(|checkpoint| checkpoint.sequence > last);
        let mut checkpoints = log.checkpoints.into_iter().peekable();
        while let Some(entry) = log.entries.next().await? {
            last = entry.sequence;
            gaps.pass(&entry);
            lines.push(&Line::Entry(Box::new(entry)))?;
            while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.sequence <= last) {
                lines.push(&Line::Checkpoint(Box::new(checkpoint)))?;
            }
        }
        for checkpoint in checkpoints {
            lines.push(&Line::Checkpoint(Box::new(checkpoint)))?;
        }
        lines.flush()?;
        if last < log.entries.last_sequence() {
            let listed = log.entries.last_sequence();
            return Err(is_broken(format!("the log ends at sequence {last}, but listed {listed}")));
        }
        gaps.judge()
    }
}

/// What is missing between the entries.
struct Gaps {
    next: u64,
    first: Option<(u64, u64)>,
    sees_all: bool,
}

impl Gaps {
    fn from(start: u64) -> Self {
        Self { next: start, first: None, sees_all: false }
    }

    fn pass(&mut self, entry: &AuditLogEntry) {
        if entry.sequence != self.next {
            self.first.get_or_insert((self.next, entry.sequence));
        }
        self.next = entry.sequence.saturating_add(1);
        // Entries of no namespace are for those who see the whole log; listing the checkpoints has just made one.
        self.sees_all |= entry.namespace.is_empty();
    }

    fn judge(self) -> Result<()> {
        match self.first {
            None => Ok(()),
            Some((missing, found)) if self.sees_all => Err(is_broken(format!(
                "the log is broken at sequence {missing}: sequence {found} comes instead; what is there was exported"
            ))),
            Some(_) => {
                note("note: this credential sees only a part of the log; the export cannot be verified");
                Ok(())
            }
        }
    }
}

struct Lines {
    mapping: Option<Mapping>,
    buffer: String,
}

impl Lines {
    fn new(ocsf: bool) -> Result<Self> {
        let mapping = ocsf.then(Mapping::new).transpose().map_err(unprintable)?;
        Ok(Self { mapping, buffer: String::new() })
    }

    fn push(&mut self, line: &Line) -> Result<()> {
        let json: Value = match &self.mapping {
            Some(mapping) => mapping.event(line),
            None => line_of(line),
        }
        .map_err(unprintable)?;
        self.buffer.push_str(&json.to_string());
        self.buffer.push('\n');
        if self.buffer.len() < BUFFER_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        output::write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

fn unprintable(why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("the log cannot be printed: {why}"))
}
