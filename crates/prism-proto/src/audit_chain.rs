//! The hash chain of the audit log (contract §9, "audit, chain").

mod encoded;

use prost::Message;
use sha2::{Digest, Sha256};

pub use self::encoded::{EncodedEntry, MalformedEntry, hash_encoded};
use crate::admin::v1::AuditLogEntry;

/// `previous_hash` of the first entry.
pub const GENESIS: [u8; 32] = [0; 32];

/// Bytes of both hashes in an encoded entry, each with its tag and its length.
const HASHES_LENGTH: usize = 2 * (1 + 1 + 32);

/// Why an entry does not continue the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenLink {
    /// The entry names another predecessor: entries were removed, added or reordered before it.
    #[error("previous_hash is not the hash of the entry before")]
    PreviousHash,
    /// The entry was changed after it was written.
    #[error("hash is not the hash of the entry")]
    Hash,
}

/// SHA-256 of `previous`, then `entry` in deterministic encoding: fields in number order, map keys
/// sorted, fields 11 and 12 absent.
pub fn hash(previous: &[u8; 32], entry: &AuditLogEntry) -> [u8; 32] {
    let mut bare = entry.clone();
    bare.previous_hash.clear();
    bare.hash.clear();
    let mut digest = Sha256::new();
    digest.update(previous);
    digest.update(bare.encode_to_vec());
    digest.finalize().into()
}

/// The hash of `entry` after the entry whose hash is `previous`, and `entry` with both in deterministic encoding; what it
/// holds in their fields does not matter.
pub fn seal(previous: &[u8; 32], mut entry: AuditLogEntry) -> ([u8; 32], Vec<u8>) {
    // The fields after the hashes; all others are before them.
    let after = AuditLogEntry {
        request_id: std::mem::take(&mut entry.request_id),
        source_address: std::mem::take(&mut entry.source_address),
        auth_method: std::mem::take(&mut entry.auth_method),
        credential_id: std::mem::take(&mut entry.credential_id),
        ..AuditLogEntry::default()
    };
    entry.previous_hash.clear();
    entry.hash.clear();
    let (at, length) = (entry.encoded_len(), after.encoded_len());
    let mut sealed = Vec::with_capacity(at + HASHES_LENGTH + length);
    // A vector always has room.
    let _ = (entry.encode(&mut sealed), after.encode(&mut sealed));
    let hash: [u8; 32] = Sha256::new().chain_update(previous).chain_update(&sealed).finalize().into();
    let hashes = AuditLogEntry {
        previous_hash: previous.to_vec().into(),
        hash: hash.to_vec().into(),
        ..AuditLogEntry::default()
    };
    sealed.splice(at..at, hashes.encode_to_vec());
    (hash, sealed)
}

/// Checks that `entry` follows the entry whose hash is `previous`, and returns the hash of `entry`
/// for the next link.
pub fn verify_link(previous: &[u8; 32], entry: &AuditLogEntry) -> Result<[u8; 32], BrokenLink> {
    if entry.previous_hash.as_ref() != previous {
        return Err(BrokenLink::PreviousHash);
    }
    let expected = hash(previous, entry);
    if entry.hash.as_ref() != expected {
        return Err(BrokenLink::Hash);
    }
    Ok(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditLogEntry {
        AuditLogEntry {
            id: "0190a1b2-0000-7000-8000-000000000001".to_owned(),
            timestamp: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 5 }),
            actor: "alice@example.com".to_owned(),
            operation: "CreateConfig".to_owned(),
            resource: "config:orders".to_owned(),
            namespace: "production".to_owned(),
            metadata: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            success: true,
            sequence: 1,
            request_id: "r-1".to_owned(),
            source_address: "127.0.0.1".to_owned(),
            auth_method: "api_key".to_owned(),
            credential_id: "k1".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn hash_is_stable() {
        assert_eq!(
            hash(&GENESIS, &entry()).map(|byte| format!("{byte:02x}")).concat(),
            "438052f53bdcf56932ab63087f9f04d2a14e6690cb58c30b34554366bf8ea837"
        );
    }

    #[test]
    fn encoding_is_in_number_order() {
        assert_eq!(entry().encode_to_vec(), by_hand());
    }

    #[test]
    fn a_sealed_entry_is_what_its_parts_say() {
        let mut failed = AuditLogEntry { success: false, error: Some(String::new()), ..entry() };
        failed.hash = vec![9_u8; 5].into();
        for (previous, mut entry) in [(GENESIS, entry()), ([7; 32], failed), ([8; 32], AuditLogEntry::default())] {
            let (hash, sealed) = seal(&previous, entry.clone());
            assert_eq!(hash, super::hash(&previous, &entry));
            entry.previous_hash = previous.to_vec().into();
            entry.hash = hash.to_vec().into();
            assert_eq!(sealed, entry.encode_to_vec());
            assert_eq!(hash_encoded(&previous, &sealed), Ok(hash));
        }
    }

    #[test]
    fn stored_hashes_do_not_matter() {
        let mut stored = entry();
        stored.previous_hash = vec![7_u8; 32].into();
        stored.hash = vec![9_u8; 32].into();
        assert_eq!(hash(&GENESIS, &stored), hash(&GENESIS, &entry()));
    }

    #[test]
    fn map_order_does_not_matter() {
        let mut other = entry();
        other.metadata.clear();
        other.metadata.insert("a".to_owned(), "1".to_owned());
        other.metadata.insert("b".to_owned(), "2".to_owned());
        assert_eq!(hash(&GENESIS, &other), hash(&GENESIS, &entry()));
    }

    #[test]
    fn predecessor_and_content_matter() {
        let mut changed = entry();
        changed.success = false;
        assert_ne!(hash(&GENESIS, &changed), hash(&GENESIS, &entry()));
        assert_ne!(hash(&[1; 32], &entry()), hash(&GENESIS, &entry()));
    }

    #[test]
    fn link_is_verified() {
        let mut first = entry();
        first.previous_hash = GENESIS.to_vec().into();
        assert_eq!(verify_link(&GENESIS, &first), Err(BrokenLink::Hash));
        first.hash = hash(&GENESIS, &first).to_vec().into();
        assert_eq!(verify_link(&GENESIS, &first), Ok(hash(&GENESIS, &first)));
        assert_eq!(verify_link(&[1; 32], &first), Err(BrokenLink::PreviousHash));
        first.actor = "mallory".to_owned();
        assert_eq!(verify_link(&GENESIS, &first), Err(BrokenLink::Hash));
    }

    /// The entry as another implementation would encode it: tag, length, bytes.
    fn by_hand() -> Vec<u8> {
        fn text(out: &mut Vec<u8>, tag: u8, value: &str) {
            out.push(tag << 3 | 2);
            out.push(u8::try_from(value.len()).unwrap());
            out.extend_from_slice(value.as_bytes());
        }
        let entry = entry();
        let mut out = Vec::new();
        text(&mut out, 1, &entry.id);
        out.extend([2 << 3 | 2, 8, 1 << 3, 0x80, 0xf0, 0x9d, 0xc7, 0x06, 2 << 3, 5]);
        text(&mut out, 3, &entry.actor);
        text(&mut out, 4, &entry.operation);
        text(&mut out, 5, &entry.resource);
        text(&mut out, 6, &entry.namespace);
        out.extend([7 << 3 | 2, 6, 10, 1, b'a', 18, 1, b'1']);
        out.extend([7 << 3 | 2, 6, 10, 1, b'b', 18, 1, b'2']);
        out.extend([8 << 3, 1]);
        out.extend([10 << 3, 1]);
        text(&mut out, 13, &entry.request_id);
        text(&mut out, 14, &entry.source_address);
        text(&mut out, 15, &entry.auth_method);
        // Tags above 15 take two bytes: 16 << 3 | 2 = 130.
        out.extend([0x82, 0x01, 2, b'k', b'1']);
        out
    }
}
