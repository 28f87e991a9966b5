//! Checks that audit entries form one unbroken chain (contract §9, "audit, chain"), and that it goes through all that is
//! known of it from elsewhere: signed checkpoints, what was remembered, what was noted.

use std::fmt;

use prism_proto::{
    admin::v1::AuditLogEntry,
    audit_chain::{EncodedEntry, GENESIS},
    audit_checkpoint,
};
use prost::Message as _;

use crate::checkpoint::Checkpoint;

/// What is known of the chain from elsewhere: an entry's hash noted earlier. It shows a cut tail and a chain that was
/// computed anew, which the chain alone cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Sequence of the entry, from 1.
    pub sequence: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// Where and how the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// Sequence at which it shows.
    pub sequence: u64,
    why: String,
}

impl Break {
    /// A break that shows at this sequence.
    pub fn new(sequence: u64, why: impl Into<String>) -> Self {
        Self { sequence, why: why.into() }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the chain is broken at sequence {}: {}", self.sequence, self.why)
    }
}

/// Whose key signed the log, by the best that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// It was named on the command line.
    Named,
    /// It was remembered from earlier calls.
    Remembered,
    /// It is only what the log itself says.
    Log,
}

/// What is known of a log before its entries are read.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The checkpoints that are with the log, each with a good signature, in any order.
    pub checkpoints: Vec<Checkpoint>,
    /// The key that must have signed them, and how it is known.
    pub key: Option<([u8; 32], KeySource)>,
    /// What is remembered of this very log: it must hold that.
    pub remembered: Option<Checkpoint>,
    /// The newest checkpoint that was kept with this log when that was seen: it, or a newer one, must still be.
    pub kept: Option<Checkpoint>,
    /// What is remembered of any log. Where the key is the same, it is this log; it may be an older copy of it.
    pub others: Vec<Checkpoint>,
    /// The same, signed for a call and kept nowhere: a copy says nothing else, and is none the less complete without it, as
    /// whoever makes one has calls after its end.
    pub heads: Vec<Checkpoint>,
    /// What was noted elsewhere: the log must hold it.
    pub witness: Option<Witness>,
}

/// What the entries of a log must be, computed from what is known of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sequence of the first entry.
    pub start: u64,
    /// What the first entry follows.
    pub previous: [u8; 32],
    /// Number of checkpoints.
    pub checkpoints: usize,
    /// The newest checkpoint.
    pub newest: Option<Checkpoint>,
    /// The newest cut: entries up to there were removed.
    pub cut: Option<Checkpoint>,
    /// The key that signed the checkpoints.
    pub key: Option<([u8; 32], KeySource)>,
    /// By sequence, none before the start.
    expected: Vec<Expected>,
}

/// A hash that an entry must have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    sequence: u64,
    hash: [u8; 32],
    who: &'static str,
    /// Whether the log must reach so far.
    must_exist: bool,
    /// Whether a copy that does not is not complete.
    completes: bool,
}

const CHECKPOINT: &str = "a signed checkpoint";
const REMEMBERED: &str = "the checkpoint that was remembered from an earlier call";
const NOTED: &str = "the witness";

impl Plan {
    /// Fails with a sentence if what is known contradicts itself.
    pub fn new(known: Known) -> Result<Self, String> {
        let Known { mut checkpoints, key, remembered, kept, others, heads, witness } = known;
        checkpoints.sort_by_key(|checkpoint| checkpoint.sequence);
        let key = key.or_else(|| checkpoints.first().map(|first| (first.key, KeySource::Log)));
        if let Some((key, _)) = key
            && let Some(stranger) = checkpoints.iter().find(|checkpoint| checkpoint.key != key)
        {
            let (good, id) = (audit_checkpoint::key_id(&key), stranger.key_id());
            return Err(format!(
                "the checkpoint of sequence {} is signed with key {id}, not with {good}",
                stranger.sequence
            ));
        }
        let newest = checkpoints.last().map_or(0, |newest| newest.sequence);
        if let Some(kept) = kept.filter(|kept| kept.sequence > newest) {
            let sequence = kept.sequence;
            return Err(format!(
                "the checkpoint of sequence {sequence}, which is remembered, is no longer with the log"
            ));
        }
        let cut = checkpoints.iter().rfind(|checkpoint| checkpoint.cut).cloned();
        let (removed, previous) = cut.as_ref().map_or((0, GENESIS), |cut| (cut.sequence, cut.hash));
        let from_checkpoint = |checkpoint: &Checkpoint, who, must_exist| Expected {
            sequence: checkpoint.sequence,
            hash: checkpoint.hash,
            who,
            must_exist,
            completes: true,
        };
        let mut expected: Vec<_> =
            checkpoints.iter().map(|checkpoint| from_checkpoint(checkpoint, CHECKPOINT, true)).collect();
        expected.extend(remembered.iter().map(|checkpoint| from_checkpoint(checkpoint, REMEMBERED, true)));
        let same_log = |other: &&Checkpoint| key.is_some_and(|(key, _)| other.key == key);
        expected.extend(others.iter().filter(same_log).map(|other| from_checkpoint(other, REMEMBERED, false)));
        expected.extend(
            heads
                .iter()
                .filter(same_log)
                .map(|head| Expected { completes: false, ..from_checkpoint(head, REMEMBERED, false) }),
        );
        expected.extend(witness.map(|Witness { sequence, hash }| Expected {
            sequence,
            hash,
            who: NOTED,
            must_exist: true,
            completes: true,
        }));
        expected.sort_by_key(|expected| expected.sequence);
        // Of removed entries nothing is left to compare with but the checkpoints that were kept. For what was remembered, signed
        // with the same key, the cut stands.
        for gone in expected.iter().filter(|expected| expected.sequence <= removed && expected.must_exist) {
            let kept = checkpoints.iter().find(|kept| kept.sequence == gone.sequence);
            if kept.map_or(gone.who != REMEMBERED, |kept| kept.hash != gone.hash) {
                return Err(format!(
                    "entries up to sequence {removed} were removed, and no checkpoint that was kept has the hash that \
                     {} has at sequence {}",
                    gone.who, gone.sequence
                ));
            }
        }
        expected.retain(|expected| expected.sequence > removed);
        let (count, newest) = (checkpoints.len(), checkpoints.pop());
        Ok(Self { start: removed + 1, previous, checkpoints: count, newest, cut, key, expected })
    }

    /// Whether the log is signed with this key.
    pub fn is_signed_by(&self, key: [u8; 32]) -> bool {
        self.key.is_some_and(|(signer, _)| signer == key)
    }

    /// Begins at the first entry.
    pub fn walk(&self) -> Walk<'_> {
        Walk { next: self.start, head: Some(self.previous), assumed: None, expected: &self.expected }
    }

    /// Begins at an entry within the log, whose predecessor is not known yet.
    pub fn walk_from(&self, sequence: u64) -> Walk<'_> {
        let skipped = self.expected.partition_point(|expected| expected.sequence < sequence);
        let expected = self.expected.get(skipped..).unwrap_or_default();
        Walk { next: sequence, head: None, assumed: None, expected }
    }

    /// The first thing known that lies after `last`, the end of the log.
    pub fn beyond(&self, last: u64) -> Result<(), Break> {
        match self.expected.iter().find(|expected| expected.sequence > last && expected.must_exist) {
            Some(beyond) => Err(Break::new(
                last + 1,
                format!(
                    "the log ends before it; its end was cut off, for {} has seen sequence {}",
                    beyond.who, beyond.sequence
                ),
            )),
            None => Ok(()),
        }
    }

    /// The latest sequence that was remembered of this log, where it lies after `last`, the end of a copy.
    pub fn newer_than(&self, last: u64) -> Option<u64> {
        let completing = self.expected.iter().rfind(|expected| expected.completes);
        completing.map(|expected| expected.sequence).filter(|sequence| *sequence > last)
    }
}

/// Walks entries in sequence, in constant memory.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    next: u64,
    head: Option<[u8; 32]>,
    assumed: Option<[u8; 32]>,
    expected: &'a [Expected],
}

impl Walk<'_> {
    /// Checks the next entry, as the contract has it.
    pub fn accept(&mut self, entry: &AuditLogEntry) -> Result<(), Break> {
        let encoded = entry.encode_to_vec();
        let parsed = EncodedEntry::parse(&encoded).map_err(|error| Break::new(self.next, error.to_string()))?;
        self.accept_encoded(&parsed)
    }

    /// Checks the next entry, as it is stored.
    pub fn accept_encoded(&mut self, entry: &EncodedEntry<'_>) -> Result<(), Break> {
        let sequence = self.next;
        let broken = |why: &str| Err(Break::new(sequence, why));
        if entry.sequence != sequence {
            return Err(self.missing(entry.sequence));
        }
        let Some(stated) = entry.previous_hash else { return broken("it has no previous_hash") };
        let previous = self.head.unwrap_or_else(|| *self.assumed.insert(*stated));
        if *stated != previous {
            return broken("it does not follow the entry before (previous_hash)");
        }
        let hash = entry.link(&previous);
        if entry.hash != Some(&hash) {
            return broken("the entry was changed after it was written (hash)");
        }
        while let Some((expected, rest)) = self.expected.split_first()
            && expected.sequence <= sequence
        {
            if expected.hash != hash {
                let hash = hex::encode(hash);
                return Err(Break::new(sequence, format!("its hash is {hash}, {} says otherwise", expected.who)));
            }
            self.expected = rest;
        }
        self.head = Some(hash);
        self.next += 1;
        Ok(())
    }

    /// The break where another sequence stands than the next.
    pub fn missing(&self, found: u64) -> Break {
        let expected = self.next;
        let why = if found > expected {
            format!("the entry is missing; the next one has sequence {found}")
        } else {
            format!("an entry with sequence {found} comes instead")
        };
        Break::new(expected, why)
    }

    /// Sequence of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Hash of the last entry, or what the first would follow. None only before the first entry of a walk that began
    /// within the log.
    pub fn head(&self) -> Option<[u8; 32]> {
        self.head
    }

    /// What a walk that began within the log took its first entry's predecessor to be.
    pub fn assumed(&self) -> Option<[u8; 32]> {
        self.assumed
    }
}

/// Reads `SEQUENCE:HASH`, the hash in hexadecimal.
pub fn parse_witness(text: &str) -> Result<Witness, String> {
    let wrong = || "write SEQUENCE:HASH as printed by `audit verify`".to_owned();
    let (sequence, hash) = text.split_once(':').ok_or_else(wrong)?;
    let sequence = sequence.parse().ok().filter(|sequence| *sequence > 0).ok_or_else(wrong)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(hash, &mut bytes).map_err(|_| wrong())?;
    Ok(Witness { sequence, hash: bytes })
}

/// Reads a public key in hexadecimal.
pub fn parse_key(text: &str) -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| "write the 32 bytes of the key in hexadecimal".to_owned())?;
    Ok(key)
}

/// Chains for tests.
#[cfg(test)]
pub mod samples {
    use prism_proto::audit_chain;

    use super::*;

    /// An unbroken chain.
    pub fn chain(length: u64) -> Vec<AuditLogEntry> {
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

    /// Hash of the entry of that sequence.
    pub fn hash_at(entries: &[AuditLogEntry], sequence: u64) -> [u8; 32] {
        entries[sequence as usize - 1].hash.as_ref().try_into().unwrap()
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
