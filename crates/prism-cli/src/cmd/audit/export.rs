//! `prism-admin audit export`.

use clap::Args;
use serde_json::Value;

use super::{Console, live::LiveLog};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    export::{Line, is_broken, line_of},
    ocsf::Mapping,
    output::{self, Format},
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
    /// Prints the log: a cut first, then each entry, and right after it the checkpoint that covers it last.
    pub async fn run(self, console: &Console) -> Result<()> {
        if !matches!(console.global.output, Format::Table | Format::Json) {
            return Err(Failure::usage("an export is JSON lines; leave out -o"));
        }
        let client = console.client().await?;
        let mut log = LiveLog::open(&client).await?;
        let mut lines = Lines::new(self.ocsf)?;
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
        Ok(())
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
