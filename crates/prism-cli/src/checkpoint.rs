//! Checkpoints of the audit log: what the server signed, and whether it did.

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use prism_proto::{admin::v1::AuditCheckpoint, audit_checkpoint};
use prost::{Message as _, Name as _};
use serde_json::Value;

use crate::text;

/// A checkpoint whose signature is that of its public key. Whose key that is, is for the reader to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Sequence of the newest entry covered.
    pub sequence: u64,
    /// Hash of that entry.
    pub hash: [u8; 32],
    /// The server's public key.
    pub key: [u8; 32],
    /// Whether the entries up to the sequence were removed.
    pub cut: bool,
    message: AuditCheckpoint,
}

impl Checkpoint {
    /// Checks a checkpoint's form and signature, and says in a sentence what is wrong.
    pub fn verify(message: AuditCheckpoint) -> Result<Self, String> {
        let at = |why: &str| format!("the checkpoint of sequence {} {why}", message.sequence);
        let hash = message.hash.as_ref().try_into().map_err(|_| at("has no hash of 32 bytes"))?;
        let key: [u8; 32] = message.public_key.as_ref().try_into().map_err(|_| at("has no public key of 32 bytes"))?;
        if message.key_id != audit_checkpoint::key_id(&key) {
            return Err(at("names another key than it holds"));
        }
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&audit_checkpoint::signed_bytes(&message), &message.signature)
            .map_err(|_| at("was changed after it was signed: its signature is wrong"))?;
        Ok(Self { sequence: message.sequence, hash, key, cut: message.cut, message })
    }

    /// Reads a checkpoint from its encoding, and checks it.
    pub fn decode(encoded: &[u8]) -> Result<Self, String> {
        AuditCheckpoint::decode(encoded)
            .map_err(|error| format!("what should be a checkpoint is none: {error}"))
            .and_then(Self::verify)
    }

    /// Reads a checkpoint in proto3 JSON, and checks it.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        prism_proto::from_json(&AuditCheckpoint::full_name(), json)
            .map_err(|error| error.to_string())
            .and_then(|encoded| Self::decode(&encoded))
    }

    /// The checkpoint in proto3 JSON.
    pub fn to_json(&self) -> Result<Value, String> {
        prism_proto::message_to_json(&self.message).map_err(|error| error.to_string())
    }

    /// Id of the key.
    pub fn key_id(&self) -> &str {
        &self.message.key_id
    }

    /// The message as it was signed.
    pub fn message(&self) -> &AuditCheckpoint {
        &self.message
    }
}

/// One line for people.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, at) = (hex::encode(self.hash), text::time(self.message.time.as_ref()));
        write!(f, "sequence {}, hash {hash}, signed {at} with key {}", self.sequence, self.key_id())
    }
}

/// Checkpoints for tests, signed with a key of their own.
#[cfg(test)]
pub mod samples {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    use super::*;

    /// A key whose seed is 32 times this byte.
    pub fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    /// A signed checkpoint.
    pub fn signed(seed: u8, sequence: u64, hash: [u8; 32], cut: bool) -> Checkpoint {
        let key = key(seed);
        let public = key.public_key().as_ref().to_vec();
        let mut message = AuditCheckpoint {
            sequence,
            hash: hash.to_vec().into(),
            time: Some(prost_types::Timestamp { seconds: 1_760_000_000 + sequence as i64, nanos: 0 }),
            key_id: audit_checkpoint::key_id(&public),
            public_key: public.into(),
            cut,
            ..AuditCheckpoint::default()
        };
        message.signature = key.sign(&audit_checkpoint::signed_bytes(&message)).as_ref().to_vec().into();
        Checkpoint::verify(message).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_breaks_the_signature() {
        let good = samples::signed(1, 7, [2; 32], false);
        assert_eq!(Checkpoint::decode(&good.message().encode_to_vec()).unwrap(), good);
        assert_eq!(Checkpoint::from_json(&good.to_json().unwrap()).unwrap(), good);
        let changes: [fn(&mut AuditCheckpoint); 7] = [
            |message| message.sequence = 8,
            |message| message.hash = vec![3; 32].into(),
            |message| message.time = None,
            |message| message.cut = true,
            |message| message.signature = vec![0; 64].into(),
            |message| message.key_id = "0000000000000000".to_owned(),
            |message| message.hash = vec![2; 31].into(),
        ];
        for change in changes {
            let mut message = good.message().clone();
            change(&mut message);
            assert!(Checkpoint::verify(message).is_err());
        }
    }

    #[test]
    fn another_key_is_another_signature() {
        let (mut message, other) =
            (samples::signed(1, 7, [2; 32], false).message().clone(), samples::signed(2, 7, [2; 32], false));
        message.public_key = other.message().public_key.clone();
        message.key_id = other.key_id().to_owned();
        assert!(Checkpoint::verify(message).unwrap_err().contains("signature is wrong"));
    }
}
