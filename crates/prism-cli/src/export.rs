//! Exports of the audit log: JSON lines, each an entry or a checkpoint in proto3 JSON, or either of them within an OCSF
//! event.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _},
    path::Path,
};

use prism_proto::admin::v1::AuditLogEntry;
use prost::{Message as _, Name as _};
use serde_json::Value;

use crate::{
    chain::{Plan, Walk},
    checkpoint::Checkpoint,
    error::{Failure, Result},
    exit::Exit,
    ocsf::{self, Mapping},
};

/// A line of an export.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// An entry.
    Entry(Box<AuditLogEntry>),
    /// A checkpoint with a good signature.
    Checkpoint(Box<Checkpoint>),
}

/// An export, read twice: its checkpoints say what its entries must be.
pub struct Export {
    name: String,
    file: File,
    mapping: Mapping,
}

impl Export {
    /// Opens a file, or standard input for `-`. What cannot be read twice, such as a pipe, is copied to a temporary file
    /// first.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let open = || -> io::Result<File> {
            let mut input: Box<dyn io::Read> = if path == Path::new("-") {
                Box::new(io::stdin().lock())
            } else {
                let file = File::open(path)?;
                if file.metadata()?.is_file() {
                    return Ok(file);
                }
                Box::new(file)
            };
            let mut copy = tempfile::tempfile()?;
            io::copy(&mut input, &mut copy)?;
            Ok(copy)
        };
        let file = open().map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
        let mapping = Mapping::new().map_err(|why| Failure::new(Exit::Failed, why))?;
        Ok(Self { name, file, mapping })
    }

    /// The checkpoints.
    pub fn checkpoints(&mut self) -> Result<Vec<Checkpoint>> {
        let mut checkpoints = Vec::new();
        // An entry may hold the word too; it is parsed for nothing then.
        self.lines(
            |line| line.contains("\"checkpoint\"") || line.contains("\\\"checkpoint\\\""),
            |line| {
                if let Line::Checkpoint(checkpoint) = line {
                    checkpoints.push(*checkpoint);
                }
                Ok(())
            },
        )?;
        Ok(checkpoints)
    }

    /// Checks every entry. Returns the last sequence and its hash.
    pub fn check(&mut self, plan: &Plan) -> Result<(u64, [u8; 32])> {
        let mut walk = plan.walk();
        self.lines(|_| true, |line| accept(&mut walk, &line))?;
        Ok((walk.next() - 1, walk.head().unwrap_or(plan.previous)))
    }

    fn lines(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        mut take: impl FnMut(Line) -> std::result::Result<(), String>,
    ) -> Result<()> {
        let name = &self.name;
        let failed = |error: io::Error| Failure::usage(format!("cannot read {name}: {error}"));
        self.file.rewind().map_err(failed)?;
        for (index, line) in BufReader::new(&self.file).lines().enumerate() {
            let line = line.map_err(failed)?;
            if !line.trim().is_empty() && wanted(&line) {
                parse_line(&line, &self.mapping)
                    .and_then(&mut take)
                    .map_err(|why| is_broken(format!("{name}, line {}: {why}", index + 1)))?;
            }
        }
        Ok(())
    }
}

fn accept(walk: &mut Walk<'_>, line: &Line) -> std::result::Result<(), String> {
    match line {
        Line::Entry(entry) => walk.accept(entry).map_err(|broken| broken.to_string()),
        Line::Checkpoint(_) => Ok(()),
    }
}

fn parse_line(line: &str, mapping: &Mapping) -> std::result::Result<Line, String> {
    let json: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    match ocsf::raw_data(&json) {
        Some(raw) => {
            let raw: Value = serde_json::from_str(raw).map_err(|error| format!("its raw_data is not JSON: {error}"))?;
            let inner = parse_json(&raw)?;
            mapping.agrees(&json, &inner)?;
            Ok(inner)
        }
        None => parse_json(&json),
    }
}

fn parse_json(json: &Value) -> std::result::Result<Line, String> {
    if let Some(checkpoint) = json.as_object().filter(|object| object.len() == 1).and_then(|it| it.get("checkpoint")) {
        return Checkpoint::from_json(checkpoint).map(Box::new).map(Line::Checkpoint);
    }
    let encoded = prism_proto::from_json(&AuditLogEntry::full_name(), json).map_err(|error| error.to_string())?;
    AuditLogEntry::decode(encoded.as_slice()).map(Box::new).map(Line::Entry).map_err(|error| error.to_string())
}

/// The line of an entry or a checkpoint, without its end.
pub fn line_of(line: &Line) -> std::result::Result<Value, String> {
    match line {
        Line::Entry(entry) => prism_proto::message_to_json(entry.as_ref()).map_err(|error| error.to_string()),
        Line::Checkpoint(checkpoint) => Ok(serde_json::json!({ "checkpoint": checkpoint.to_json()? })),
    }
}

/// The failure of a check.
pub fn is_broken(why: String) -> Failure {
    Failure::new(Exit::ChainBroken, why)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        chain::{
            Known,
            samples::{chain, hash_at},
        },
        checkpoint::samples::signed,
    };

    /// An export with checkpoints at these sequences, plain or as OCSF events.
    fn export_of(entries: &[AuditLogEntry], checkpoints: &[u64], ocsf: bool) -> String {
        let (mapping, mut text) = (Mapping::new().unwrap(), String::new());
        let mut push = |line: &Line| {
            let json = if ocsf { mapping.event(line).unwrap() } else { line_of(line).unwrap() };
            text.push_str(&json.to_string());
            text.push('\n');
        };
        for entry in entries {
            push(&Line::Entry(Box::new(entry.clone())));
            if checkpoints.contains(&entry.sequence) {
                let hash = entry.hash.as_ref().try_into().unwrap();
                push(&Line::Checkpoint(Box::new(signed(1, entry.sequence, hash, false))));
            }
        }
        text
    }

    fn check(text: &str) -> Result<(u64, [u8; 32])> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let mut export = Export::open(file.path())?;
        let known = Known { checkpoints: export.checkpoints()?, ..Known::default() };
        let plan = Plan::new(known).map_err(is_broken)?;
        let (last, head) = export.check(&plan)?;
        plan.beyond(last).map_err(|broken| is_broken(broken.to_string()))?;
        Ok((last, head))
    }

    #[test]
    fn an_export_is_checked() {
        let entries = chain(3);
        for ocsf in [false, true] {
            let text = export_of(&entries, &[2, 3], ocsf) + "\n";
            assert_eq!(check(&text).unwrap(), (3, hash_at(&entries, 3)), "{text}");
        }
    }

    #[test]
    fn a_changed_export_is_broken_at_its_line() {
        for ocsf in [false, true] {
            let export = export_of(&chain(3), &[2], ocsf);
            let failure = check(&export.replacen("alice", "mallory", 2)).unwrap_err();
            assert_eq!(failure.exit(), Exit::ChainBroken);
            let text = failure.to_string();
            assert!(text.contains("line 1") && (ocsf || text.contains("sequence 1")), "{text}");
            let without = |line: usize| {
                let lines = export.lines().enumerate().filter(|(n, _)| *n != line);
                lines.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
            };
            assert!(check(&without(1)).unwrap_err().to_string().contains("sequence 2"));
            assert!(check(&without(0)).unwrap_err().to_string().contains("sequence 1"));
        }
    }

    #[test]
    fn a_checkpoint_shows_that_the_end_was_cut_off() {
        let export = export_of(&chain(4), &[4], false);
        let lines: Vec<&str> = export.lines().collect();
        let cut = [lines[0], lines[1], lines[4]].join("\n");
        assert!(check(&cut).unwrap_err().to_string().contains("sequence 3: the log ends"));
        // Its place does not matter.
        assert!(check(&[lines[4], lines[0], lines[1], lines[2], lines[3]].join("\n")).is_ok());
    }

    #[test]
    fn a_forged_checkpoint_is_found() {
        let export = export_of(&chain(4), &[3], false).replace("\"keyId\":\"", "\"keyId\":\"0");
        assert!(check(&export).unwrap_err().to_string().contains("line 4: the checkpoint of sequence 3"));
    }

    #[test]
    fn a_cut_export_begins_after_its_cut() {
        let entries = chain(5);
        let cut = Line::Checkpoint(Box::new(signed(1, 2, hash_at(&entries, 2), true)));
        let rest = export_of(&entries[2..], &[], false);
        assert!(check(&rest).is_err());
        assert_eq!(check(&format!("{}\n{rest}", line_of(&cut).unwrap())).unwrap().0, 5);
    }

    #[test]
    fn an_event_must_say_what_its_raw_data_say() {
        let export = export_of(&chain(1), &[], true);
        let mut event: Value = serde_json::from_str(&export).unwrap();
        event["actor"]["user"]["name"] = "mallory".into();
        assert!(check(&event.to_string()).unwrap_err().to_string().contains("actor"));
    }

    #[test]
    fn what_is_no_entry_is_broken() {
        for text in ["nonsense", "[]", "{\"unknown\": 1}", "{\"checkpoint\": 1, \"id\": \"e\"}", "{\"checkpoint\": 1}"]
        {
            assert_eq!(check(text).unwrap_err().exit(), Exit::ChainBroken, "{text}");
        }
    }
}
