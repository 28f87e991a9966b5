//! Exports of the audit log: JSON lines, each an entry in proto3 JSON or a checkpoint.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use prism_proto::admin::v1::AuditLogEntry;
use prost::{Message as _, Name as _};
use serde_json::Value;

use crate::{
    chain::Verifier,
    error::{Failure, Result},
    exit::Exit,
    output::note,
};

/// Checks every entry of a file, or of standard input for `-`.
pub fn check_file(path: &Path, verifier: &mut Verifier) -> Result<()> {
    let failed = |error: std::io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let input: Box<dyn std::io::Read> =
        if path == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(File::open(path).map_err(failed)?) };
    let mut checkpoints = 0_u64;
    for (index, line) in BufReader::new(input).lines().enumerate() {
        let line = line.map_err(failed)?;
        let at = |why: String| is_broken(format!("{}, line {}: {why}", path.display(), index + 1));
        if line.trim().is_empty() {
            continue;
        }
        match parse_line(&line).map_err(at)? {
            Some(entry) => verifier.accept(&entry).map_err(|broken| at(broken.to_string()))?,
            None => checkpoints += 1,
        }
    }
    if checkpoints > 0 {
        note(&format!("note: {checkpoints} checkpoints were passed over; their signatures are not checked here"));
    }
    Ok(())
}

/// An entry, or none for a checkpoint.
fn parse_line(line: &str) -> std::result::Result<Option<AuditLogEntry>, String> {
    let json: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    if json.as_object().is_some_and(|object| object.len() == 1 && object.contains_key("checkpoint")) {
        return Ok(None);
    }
    let encoded = prism_proto::from_json(&AuditLogEntry::full_name(), &json).map_err(|error| error.to_string())?;
    AuditLogEntry::decode(encoded.as_slice()).map(Some).map_err(|error| error.to_string())
}

/// The failure of a check.
pub fn is_broken(why: String) -> Failure {
    Failure::new(Exit::ChainBroken, why)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use prism_proto::audit_chain::{self, GENESIS};

    use super::*;

    fn chain(length: u64) -> Vec<AuditLogEntry> {
        let mut previous = GENESIS;
        (1..=length)
            .map(|sequence| {
                let mut entry = AuditLogEntry {
                    id: format!("e{sequence}"),
                    timestamp: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 7_000_000 }),
                    actor: "alice".to_owned(),
                    operation: "CreateConfig".to_owned(),
                    metadata: [("k".to_owned(), "v".to_owned())].into(),
                    sequence,
                    error: (sequence == 2).then(|| "no".to_owned()),
                    previous_hash: previous.to_vec().into(),
                    ..AuditLogEntry::default()
                };
                previous = audit_chain::hash(&previous, &entry);
                entry.hash = previous.to_vec().into();
                entry
            })
            .collect()
    }

    fn export_of(entries: &[AuditLogEntry]) -> String {
        let lines: Vec<String> =
            entries.iter().map(|entry| prism_proto::message_to_json(entry).unwrap().to_string()).collect();
        lines.join("\n") + "\n"
    }

    fn check(text: &str) -> Result<(u64, [u8; 32])> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let mut verifier = Verifier::new(None);
        check_file(file.path(), &mut verifier)?;
        verifier.finish().map_err(|broken| is_broken(broken.to_string()))
    }

    #[test]
    fn an_export_is_checked() {
        let entries = chain(3);
        let (count, head) = check(&export_of(&entries)).unwrap();
        assert_eq!((count, head.as_slice()), (3, entries[2].hash.as_ref()));
    }

    #[test]
    fn checkpoints_and_blank_lines_are_passed_over() {
        let text = export_of(&chain(2)) + "\n{\"checkpoint\": {\"sequence\": \"2\"}}\n";
        assert_eq!(check(&text).unwrap().0, 2);
    }

    #[test]
    fn a_changed_export_is_broken_at_its_line() {
        let text = export_of(&chain(3)).replacen("alice", "mallory", 2);
        let failure = check(&text).unwrap_err();
        assert_eq!(failure.exit(), Exit::ChainBroken);
        assert!(failure.to_string().contains("line 1") && failure.to_string().contains("sequence 1"), "{failure}");
        let export = export_of(&chain(3));
        let removed: Vec<&str> = export.lines().enumerate().filter(|(n, _)| *n != 1).map(|(_, line)| line).collect();
        assert!(check(&removed.join("\n")).unwrap_err().to_string().contains("sequence 2"));
    }

    #[test]
    fn what_is_no_entry_is_broken() {
        for text in ["nonsense", "[]", "{\"unknown\": 1}", "{\"checkpoint\": 1, \"id\": \"e\"}"] {
            assert_eq!(check(text).unwrap_err().exit(), Exit::ChainBroken, "{text}");
        }
    }
}
