//! `prism-admin audit verify`.

use std::path::PathBuf;

use clap::Args;
use prism_proto::audit_checkpoint::key_id;
use serde_json::{Value, json};

use super::{Console, live::LiveLog};
use crate::{
    chain::{KeySource, Known, Plan, Witness, parse_key, parse_witness},
    checkpoint::Checkpoint,
    client::Client,
    error::{Failure, Result},
    exit::Exit,
    export::{Export, is_broken},
    memory::Seen,
    output::{Grid, note},
    stopped::Stopped,
};

/// `audit verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Check an export (JSON lines) instead of the live log; - is standard input
    #[arg(long, value_name = "EXPORT")]
    file: Option<PathBuf>,
    /// The export must reach as far as what is remembered of the log, or the witness
    #[arg(long, requires = "file")]
    complete: bool,
    /// An entry and its hash noted earlier; the log must still hold it
    #[arg(long, value_name = "SEQUENCE:HASH", value_parser = parse_witness)]
    witness: Option<Witness>,
    /// The server's public key, with which the log must be signed [default: the one that is remembered]
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    public_key: Option<[u8; 32]>,
}

/// What was found in order.
struct Verdict {
    plan: Plan,
    last: u64,
    head: [u8; 32],
}

impl Verify {
    /// Checks the log that is meant, and prints what it found.
    pub async fn run(self, console: &Console) -> Result<()> {
        console.printer.refuse_token()?;
        let folder = console.global.connection.data_dir.as_deref();
        let verdict = match (&self.file, folder.map(Stopped::find).transpose()?.flatten()) {
            (Some(path), _) => self.check_file(console, path)?,
            (None, Some(stopped)) => self.check_stopped(console, &stopped)?,
            (None, None) => self.check_live(console).await?,
        };
        console.printer.value(&verdict.json(), || verdict.sheet())
    }

    async fn check_live(&self, console: &Console) -> Result<Verdict> {
        let known = self.known(console);
        let client = connect(console).await?;
        let LiveLog { checkpoints, mut entries } = LiveLog::open(&client).await?;
        let plan = Plan::new(Known { checkpoints, ..known }).map_err(of_another)?;
        let mut walk = plan.walk();
        while let Some(entry) = entries.next().await? {
            walk.accept(&entry).map_err(|broken| {
                is_broken(broken.to_string()).hint("a credential of one namespace sees only a part of the log")
            })?;
        }
        if walk.next() <= entries.last_sequence() {
            let (next, last) = (walk.next(), entries.last_sequence());
            return Err(is_broken(format!(
                "the chain is broken at sequence {next}: the log ends there, but listed {last}"
            )));
        }
        let (last, head) = (walk.next() - 1, walk.head().unwrap_or(plan.previous));
        Verdict::of(plan, last, head)
    }

    fn check_stopped(&self, console: &Console, stopped: &Stopped) -> Result<Verdict> {
        let known = Known { checkpoints: stopped.checkpoints()?, ..self.known(console) };
        let plan = Plan::new(known).map_err(of_another)?;
        let (last, head) = stopped.check(&plan)?;
        Verdict::of(plan, last, head)
    }

    fn check_file(&self, console: &Console, path: &std::path::Path) -> Result<Verdict> {
        let mut export = Export::open(path)?;
        let checkpoints = export.checkpoints()?;
        let mut known = Known { checkpoints, ..self.known(console) };
        // An export may be older than what is remembered; it must not say otherwise.
        known.heads.extend(known.remembered.take());
        known.kept = None;
        let (witness, others) = (known.witness, known.others.clone());
        let plan = Plan::new(known).map_err(of_another)?;
        if self.complete && witness.is_none() && !others.iter().any(|other| plan.is_signed_by(other.key)) {
            return Err(Failure::usage("nothing is remembered of this log that the export could be compared with")
                .hint("name its server with --context, --data-dir or --public-key, or give a --witness"));
        }
        let (last, head) = export.check(&plan)?;
        if last < plan.start {
            return Err(is_broken("there are no entries in the export".to_owned()));
        }
        match plan.newer_than(last) {
            Some(newer) if self.complete => {
                return Err(is_broken(format!(
                    "the export ends at sequence {last}, but the log was seen up to sequence {newer}"
                )));
            }
            Some(newer) => {
                note(&format!("note: the export ends at sequence {last}; the log was seen up to sequence {newer}"));
            }
            None => {}
        }
        if plan.checkpoints == 0 && plan.key.is_some() {
            note("note: there is no checkpoint in the export, so nothing in it is signed");
        }
        Verdict::of(plan, last, head)
    }

    /// What is known of the log before it is read.
    fn known(&self, console: &Console) -> Known {
        // Where no server is named, an export can still be checked.
        let Ok(memory) = console.memory() else {
            return self.with(None, Vec::new());
        };
        match memory.recall().and_then(|remembered| Ok((remembered, memory.recall_all()?))) {
            Ok((remembered, others)) => self.with(remembered, others),
            Err(why) => {
                note(&format!("note: {why}; the log is not compared with what was remembered"));
                self.with(None, Vec::new())
            }
        }
    }

    fn with(&self, seen: Option<Seen>, all: Vec<Seen>) -> Known {
        let heads = all.iter().map(|seen| seen.checkpoint.clone()).collect();
        let others = all.into_iter().map(|seen| seen.stored.unwrap_or(seen.checkpoint)).collect();
        let (remembered, kept) = seen.map_or((None, None), |seen| (Some(seen.checkpoint), seen.stored));
        let key = match (self.public_key, &remembered) {
            (Some(key), _) => Some((key, KeySource::Named)),
            (None, Some(remembered)) => Some((remembered.key, KeySource::Remembered)),
            (None, None) => None,
        };
        // A key that was named says which server it is; what is remembered of another says nothing then.
        let same_server = |checkpoint: &Checkpoint| key.is_some_and(|(key, _)| key == checkpoint.key);
        let (remembered, kept) = (remembered.filter(same_server), kept.filter(same_server));
        Known { checkpoints: Vec::new(), key, remembered, kept, others, heads, witness: self.witness }
    }
}

async fn connect(console: &Console) -> Result<Client> {
    console.client().await.map_err(|failure| match failure.exit() {
        Exit::Unreachable => failure.hint("the log of a stopped server is checked with --data-dir DIR"),
        _ => failure,
    })
}

fn of_another(why: String) -> Failure {
    is_broken(why).hint("a log of another server is checked with --context, --data-dir or --public-key of that server")
}

impl Verdict {
    fn of(plan: Plan, last: u64, head: [u8; 32]) -> Result<Self> {
        if plan.checkpoints == 0 && matches!(plan.key, Some((_, KeySource::Named))) {
            return Err(is_broken("nothing in the log is signed, though a key was named".to_owned()));
        }
        plan.beyond(last).map_err(|broken| is_broken(broken.to_string()))?;
        Ok(Self { plan, last, head })
    }

    fn entries(&self) -> u64 {
        self.last + 1 - self.plan.start
    }

    fn json(&self) -> Value {
        let head = hex::encode(self.head);
        json!({
            "entries": self.entries(),
            "first": self.plan.start,
            "head": head,
            "witness": format!("{}:{head}", self.last),
            "checkpoints": self.plan.checkpoints,
            "lastCheckpoint": self.plan.newest.as_ref().map(|newest| newest.sequence),
            "cut": self.plan.cut.as_ref().map(|cut| cut.sequence),
            "keyId": self.plan.key.map(|(key, _)| key_id(&key)),
            "publicKey": self.plan.key.map(|(key, _)| hex::encode(key)),
            "keySource": self.plan.key.map(|(_, source)| match source {
                KeySource::Named => "named",
                KeySource::Remembered => "remembered",
                KeySource::Log => "log",
            }),
        })
    }

    fn sheet(&self) -> String {
        let head = hex::encode(self.head);
        let checkpoints = match &self.plan.newest {
            Some(newest) => format!("{}, the last of sequence {}", self.plan.checkpoints, newest.sequence),
            None => "none".to_owned(),
        };
        let mut sheet = Grid::sheet().field("entries", self.entries().to_string());
        if let Some(cut) = &self.plan.cut {
            sheet = sheet.field("cut", format!("up to sequence {}, signed", cut.sequence));
        }
        sheet = sheet
            .field("head", &head)
            .field("witness", if self.last == 0 { "-".to_owned() } else { format!("{}:{head}", self.last) })
            .field("checkpoints", checkpoints);
        if let Some((key, source)) = self.plan.key {
            let how = match source {
                KeySource::Named => "as named",
                KeySource::Remembered => "as remembered",
                KeySource::Log => "by the log itself alone",
            };
            sheet = sheet.field("key", format!("{}, {how}", key_id(&key))).field("public key", hex::encode(key));
        }
        sheet.render("")
    }
}
