//! The chain of the audit log, computed from the words of contract §9 "audit, chain" and nothing else.

use prism_proto::admin::v1::AuditLogEntry;
use sha2::{Digest as _, Sha256};

/// Checks that `entries`, oldest first from the first one on, are one unbroken chain with sequences from 1 without gaps.
#[track_caller]
pub fn verify(entries: &[AuditLogEntry]) {
    verify_after(0, &[0; 32], entries);
}

/// Checks that `entries`, oldest first, are the unbroken chain that follows the entry of this sequence and hash.
#[track_caller]
pub fn verify_after(sequence: u64, hash: &[u8], entries: &[AuditLogEntry]) {
    let mut previous = hash.to_vec();
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.sequence, sequence + index as u64 + 1, "sequences have a gap: {entry:?}");
        assert_eq!(entry.previous_hash, previous, "previous_hash of {}", entry.sequence);
        let mut digest = Sha256::new();
        digest.update(&previous);
        digest.update(encode(entry));
        previous = digest.finalize().to_vec();
        assert_eq!(entry.hash, previous, "hash of {}", entry.sequence);
    }
}

/// The deterministic encoding without fields 11 and 12, written by hand: fields in number order, defaults left out, map keys
/// sorted.
pub fn encode(entry: &AuditLogEntry) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, &entry.id);
    if let Some(timestamp) = &entry.timestamp {
        let mut inner = Vec::new();
        number(&mut inner, 1, timestamp.seconds as u64);
        number(&mut inner, 2, i64::from(timestamp.nanos) as u64);
        bytes(&mut out, 2, &inner);
    }
    text(&mut out, 3, &entry.actor);
    text(&mut out, 4, &entry.operation);
    text(&mut out, 5, &entry.resource);
    text(&mut out, 6, &entry.namespace);
    let mut metadata: Vec<_> = entry.metadata.iter().collect();
    metadata.sort();
    for (key, value) in metadata {
        // An entry of a map has both its fields, even when they are empty: so write the libraries of other languages.
        let mut inner = Vec::new();
        bytes(&mut inner, 1, key.as_bytes());
        bytes(&mut inner, 2, value.as_bytes());
        bytes(&mut out, 7, &inner);
    }
    number(&mut out, 8, u64::from(entry.success));
    if let Some(error) = &entry.error {
        // An optional field is written even when it is empty.
        bytes(&mut out, 9, error.as_bytes());
    }
    number(&mut out, 10, entry.sequence);
    text(&mut out, 13, &entry.request_id);
    text(&mut out, 14, &entry.source_address);
    text(&mut out, 15, &entry.auth_method);
    text(&mut out, 16, &entry.credential_id);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

pub(crate) fn text(out: &mut Vec<u8>, field: u64, value: &str) {
    if !value.is_empty() {
        bytes(out, field, value.as_bytes());
    }
}

pub(crate) fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        varint(out, field << 3);
        varint(out, value);
    }
}
