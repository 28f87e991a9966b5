//! What the server signs about its audit log (audit.proto, `AuditCheckpoint`). Signing and checking are left to those
//! who have a cryptography provider.

use std::fmt::Write as _;

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::admin::v1::AuditCheckpoint;

/// What every signed message begins with, so that the key's signatures cannot be taken for others.
pub const PREFIX: &[u8] = b"prism audit checkpoint\n";

/// The bytes that the signature of `checkpoint` is made over: [`PREFIX`], then the checkpoint in deterministic encoding
/// without field 6.
pub fn signed_bytes(checkpoint: &AuditCheckpoint) -> Vec<u8> {
    let unsigned = AuditCheckpoint { signature: Vec::new().into(), ..checkpoint.clone() };
    [PREFIX, &unsigned.encode_to_vec()].concat()
}

/// Id of a public key: the first 16 characters of its SHA-256 in lower-case hexadecimal.
pub fn key_id(public_key: &[u8]) -> String {
    Sha256::digest(public_key).iter().take(8).fold(String::with_capacity(16), |mut id, byte| {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_not_signed() {
        let checkpoint = AuditCheckpoint {
            sequence: 7,
            hash: vec![1; 32].into(),
            time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            key_id: key_id(&[2; 32]),
            public_key: vec![2; 32].into(),
            signature: Vec::new().into(),
            cut: true,
        };
        let unsigned = signed_bytes(&checkpoint);
        assert_eq!(unsigned, signed_bytes(&AuditCheckpoint { signature: vec![3; 64].into(), ..checkpoint.clone() }));
        let expected = [b"prism audit checkpoint\n\x08\x07\x12\x20".as_slice(), &[1; 32], b"\x1a\x02\x08\x01\x22\x10"]
            .into_iter()
            .chain([key_id(&[2; 32]).as_bytes(), b"\x2a\x20", &[2; 32], b"\x38\x01"])
            .collect::<Vec<_>>()
            .concat();
        assert_eq!(unsigned, expected);
    }

    #[test]
    fn ids_are_sixteen_characters() {
        // SHA-256 of nothing begins with e3b0c44298fc1c14.
        assert_eq!(key_id(&[]), "e3b0c44298fc1c14");
    }
}
