//! Checks that audit entries form one unbroken chain (contract §9, "audit, chain").

use std::fmt;

use prism_proto::{
    admin::v1::AuditLogEntry,
    audit_chain::{self, BrokenLink, GENESIS},
};

/// Walks the entries in sequence, from the first one on, in constant memory.
#[derive(Debug, Clone)]
pub struct Verifier {
    count: u64,
    head: [u8; 32],
    witness: Option<Witness>,
}

/// What is known of the chain from elsewhere: an entry's hash noted earlier. It shows a cut tail and a
/// chain that was computed anew, which the chain alone cannot.
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

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the chain is broken at sequence {}: {}", self.sequence, self.why)
    }
}

impl Verifier {
    /// Starts before the first entry.
    pub fn new(witness: Option<Witness>) -> Self {
        Self { count: 0, head: GENESIS, witness }
    }

    /// Checks the next entry.
    pub fn accept(&mut self, entry: &AuditLogEntry) -> Result<(), Break> {
        let expected = self.count + 1;
        if entry.sequence != expected {
            let why = if entry.sequence > expected {
                format!("the entry is missing; the next one has sequence {}", entry.sequence)
            } else {
                format!("an entry with sequence {} comes instead", entry.sequence)
            };
            return Err(Break { sequence: expected, why });
        }
        self.head = audit_chain::verify_link(&self.head, entry).map_err(|broken| Break {
            sequence: expected,
            why: match broken {
                BrokenLink::PreviousHash => "it does not follow the entry before (previous_hash)".to_owned(),
                BrokenLink::Hash => "the entry was changed after it was written (hash)".to_owned(),
            },
        })?;
        self.count = expected;
        match self.witness {
            Some(witness) if witness.sequence == expected && witness.hash != self.head => Err(Break {
                sequence: expected,
                why: format!("its hash is {}, the witness says otherwise", hex::encode(self.head)),
            }),
            _ => Ok(()),
        }
    }

    /// Entries accepted so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Ends the check: number of entries and hash of the last one.
    pub fn finish(&self) -> Result<(u64, [u8; 32]), Break> {
        match self.witness {
            Some(witness) if witness.sequence > self.count => Err(Break {
                sequence: self.count + 1,
                why: format!("the log ends before sequence {}, which the witness has seen", witness.sequence),
            }),
            _ => Ok((self.count, self.head)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: u64) -> Vec<AuditLogEntry> {
        let mut previous = GENESIS;
        (1..=length)
            .map(|sequence| {
                let mut entry = AuditLogEntry {
                    id: format!("e{sequence}"),
                    sequence,
                    previous_hash: previous.to_vec().into(),
                    ..AuditLogEntry::default()
                };
                previous = audit_chain::hash(&previous, &entry);
                entry.hash = previous.to_vec().into();
                entry
            })
            .collect()
    }

    fn verify(entries: &[AuditLogEntry], witness: Option<Witness>) -> Result<(u64, [u8; 32]), Break> {
        let mut verifier = Verifier::new(witness);
        entries.iter().try_for_each(|entry| verifier.accept(entry))?;
        verifier.finish()
    }

    #[test]
    fn an_unbroken_chain_passes() {
        assert_eq!(verify(&[], None), Ok((0, GENESIS)));
        let entries = chain(3);
        let (count, head) = verify(&entries, None).unwrap();
        assert_eq!((count, head.as_slice()), (3, entries[2].hash.as_ref()));
    }

    #[test]
    fn every_break_names_its_sequence() {
        let at = |entries: &[AuditLogEntry]| verify(entries, None).unwrap_err().sequence;
        let mut changed = chain(4);
        changed[2].actor = "mallory".to_owned();
        assert_eq!(at(&changed), 3);
        let mut removed = chain(4);
        removed.remove(1);
        assert_eq!(at(&removed), 2);
        let mut swapped = chain(4);
        swapped.swap(1, 2);
        assert_eq!(at(&swapped), 2);
        assert_eq!(at(&chain(4)[1..]), 1);
        let mut doubled = chain(2);
        doubled.push(doubled[1].clone());
        assert_eq!(at(&doubled), 3);
        let mut renumbered = chain(4);
        renumbered.remove(1);
        renumbered[1].sequence = 2;
        assert_eq!(at(&renumbered), 2);
    }

    #[test]
    fn a_witness_shows_what_the_chain_cannot() {
        let entries = chain(4);
        let hash: [u8; 32] = entries[2].hash.as_ref().try_into().unwrap();
        assert!(verify(&entries, Some(Witness { sequence: 3, hash })).is_ok());
        assert_eq!(verify(&entries, Some(Witness { sequence: 3, hash: [1; 32] })).unwrap_err().sequence, 3);
        assert_eq!(verify(&entries[..2], Some(Witness { sequence: 3, hash })).unwrap_err().sequence, 3);
    }

    #[test]
    fn witnesses_are_read() {
        let hash = "ab".repeat(32);
        assert_eq!(parse_witness(&format!("7:{hash}")), Ok(Witness { sequence: 7, hash: [0xab; 32] }));
        for bad in ["", "7", "7:", "0:ab", "x:ab", "7:abc"] {
            assert!(parse_witness(bad).is_err(), "{bad:?}");
        }
    }
}
