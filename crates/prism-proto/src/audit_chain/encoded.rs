//! The hash of an entry as it is stored: its bytes are walked once, and nothing is decoded or copied.

use sha2::{Digest as _, Sha256};

/// Wire types of protobuf; groups are not used by any message of the contract.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

/// Highest number of a field that this version of the contract knows. Later ones are hashed as they are.
const LAST_KNOWN: u32 = 16;

/// Bytes that are not an entry in deterministic encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an audit entry in deterministic encoding: {why}, {left} bytes before its end")]
pub struct MalformedEntry {
    why: &'static str,
    left: usize,
}

/// An entry in deterministic encoding, walked but not copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodedEntry<'a> {
    /// Field 1.
    pub id: &'a str,
    /// Field 2, as seconds and nanoseconds since 1970; zeros if absent.
    pub timestamp: (i64, i32),
    /// Field 3.
    pub actor: &'a str,
    /// Field 4.
    pub operation: &'a str,
    /// Field 6.
    pub namespace: &'a str,
    /// Field 10.
    pub sequence: u64,
    /// Field 11; none if absent.
    pub previous_hash: Option<&'a [u8; 32]>,
    /// Field 12; none if absent.
    pub hash: Option<&'a [u8; 32]>,
    before_hashes: &'a [u8],
    after_hashes: &'a [u8],
}

/// SHA-256 of `previous`, then `encoded` without fields 11 and 12: what [`hash`](super::hash) says of the entry that
/// `encoded` is. Fails if it is not in deterministic encoding.
pub fn hash_encoded(previous: &[u8; 32], encoded: &[u8]) -> Result<[u8; 32], MalformedEntry> {
    EncodedEntry::parse(encoded).map(|entry| entry.link(previous))
}

impl<'a> EncodedEntry<'a> {
    /// Walks the bytes of an entry. Refuses what the deterministic encoding of an entry never holds: fields out of
    /// order or twice, default values, overlong numbers, text that is not UTF-8, hashes that are not 32 bytes. Fields
    /// of a later version of the contract are accepted.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, MalformedEntry> {
        let mut reader = Reader(encoded);
        let mut entry = Self { before_hashes: encoded, ..Self::default() };
        let mut last = 0;
        let mut last_key: Option<&str> = None;
        while !reader.0.is_empty() {
            let field_at = reader.0.len();
            let (number, wire) = reader.tag()?;
            let may_repeat = number == 7 || number > LAST_KNOWN;
            if number < last || (number == last && !may_repeat) {
                return Err(reader.fault("its fields are not in order"));
            }
            last = number;
            match number {
                1 => entry.id = reader.text(wire)?,
                2 => entry.timestamp = timestamp(reader.delimited(wire)?)?,
                3 => entry.actor = reader.text(wire)?,
                4 => entry.operation = reader.text(wire)?,
                5 | 13 | 14 | 15 | 16 => drop(reader.text(wire)?),
                6 => entry.namespace = reader.text(wire)?,
                7 => last_key = Some(map_entry(reader.delimited(wire)?, last_key)?),
                8 if reader.number(wire)? != 1 => return Err(reader.fault("its success is neither absent nor true")),
                8 => {}
                9 => drop(reader.optional_text(wire)?),
                10 => entry.sequence = reader.number(wire)?,
                11 => entry.previous_hash = Some(reader.digest(wire)?),
                12 => entry.hash = Some(reader.digest(wire)?),
                _ => reader.skip(wire)?,
            }
            if matches!(number, 11 | 12) {
                // What is hashed ends where the first of the two begins, and goes on after the second.
                if entry.before_hashes.len() == encoded.len() {
                    entry.before_hashes = encoded.get(..encoded.len() - field_at).unwrap_or_default();
                }
                entry.after_hashes = reader.0;
            }
        }
        Ok(entry)
    }

    /// Its hash after the entry whose hash is `previous`, whatever its own fields 11 and 12 say.
    pub fn link(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(previous);
        digest.update(self.before_hashes);
        digest.update(self.after_hashes);
        digest.finalize().into()
    }
}

fn timestamp(encoded: &[u8]) -> Result<(i64, i32), MalformedEntry> {
    let mut reader = Reader(encoded);
    let (mut seconds, mut nanos) = (0, 0);
    let mut last = 0;
    while !reader.0.is_empty() {
        let (number, wire) = reader.tag()?;
        if number <= last {
            return Err(reader.fault("its time is not in order"));
        }
        last = number;
        match number {
            1 => seconds = reader.number(wire)?.cast_signed(),
            2 => {
                let count = reader.number(wire)?.cast_signed();
                nanos = i32::try_from(count).map_err(|_| reader.fault("its time has too many nanoseconds"))?;
            }
            _ => return Err(reader.fault("its time has an unknown field")),
        }
    }
    Ok((seconds, nanos))
}

/// The key of an entry of the metadata, which follows `last`.
fn map_entry<'a>(encoded: &'a [u8], last: Option<&str>) -> Result<&'a str, MalformedEntry> {
    let mut reader = Reader(encoded);
    let mut key = "";
    let mut after = 0;
    while !reader.0.is_empty() {
        let (number, wire) = reader.tag()?;
        match number {
            1 if after < 1 => key = reader.text(wire)?,
            2 if after < 2 => drop(reader.text(wire)?),
            _ => return Err(reader.fault("its metadata are not in order")),
        }
        after = number;
    }
    match last {
        Some(last) if last >= key => Err(reader.fault("the keys of its metadata are not sorted")),
        _ => Ok(key),
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn fault(&self, why: &'static str) -> MalformedEntry {
        MalformedEntry { why, left: self.0.len() }
    }

    fn tag(&mut self) -> Result<(u32, u8), MalformedEntry> {
        let tag = self.varint()?;
        match u32::try_from(tag >> 3) {
            Ok(number @ 1..=0x1fff_ffff) => Ok((number, (tag & 7) as u8)),
            _ => Err(self.fault("a field has an impossible number")),
        }
    }

    fn varint(&mut self) -> Result<u64, MalformedEntry> {
        let mut value = 0;
        for (index, byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let overlong = *byte == 0 && index > 0;
                let too_large = index == 9 && *byte > 1;
                if overlong || too_large {
                    return Err(self.fault("a number is overlong"));
                }
                self.0 = self.0.get(index + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(self.fault("a number does not end"))
    }

    /// A number other than 0, which is left out.
    fn number(&mut self, wire: u8) -> Result<u64, MalformedEntry> {
        self.expect(wire, VARINT)?;
        match self.varint()? {
            0 => Err(self.fault("a number has its default value")),
            value => Ok(value),
        }
    }

    fn delimited(&mut self, wire: u8) -> Result<&'a [u8], MalformedEntry> {
        self.expect(wire, DELIMITED)?;
        let length = self.varint()?;
        self.take(length)
    }

    fn optional_text(&mut self, wire: u8) -> Result<&'a str, MalformedEntry> {
        let bytes = self.delimited(wire)?;
        std::str::from_utf8(bytes).map_err(|_| self.fault("a text is not UTF-8"))
    }

    /// Text that is not empty, which is left out.
    fn text(&mut self, wire: u8) -> Result<&'a str, MalformedEntry> {
        match self.optional_text(wire)? {
            "" => Err(self.fault("a text has its default value")),
            text => Ok(text),
        }
    }

    fn digest(&mut self, wire: u8) -> Result<&'a [u8; 32], MalformedEntry> {
        let bytes = self.delimited(wire)?;
        bytes.try_into().map_err(|_| self.fault("a hash is not 32 bytes"))
    }

    fn skip(&mut self, wire: u8) -> Result<(), MalformedEntry> {
        match wire {
            VARINT => self.varint().map(drop),
            FIXED64 => self.take(8).map(drop),
            DELIMITED => self.delimited(wire).map(drop),
            FIXED32 => self.take(4).map(drop),
            _ => Err(self.fault("a field has an unknown type")),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], MalformedEntry> {
        let split = usize::try_from(length).ok().and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = split.ok_or_else(|| self.fault("a field is longer than the entry"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn expect(&self, wire: u8, expected: u8) -> Result<(), MalformedEntry> {
        if wire == expected { Ok(()) } else { Err(self.fault("a field has another type")) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, option, prelude::*, sample::Index};
    use prost::Message as _;

    use super::*;
    use crate::{admin::v1::AuditLogEntry, audit_chain::hash};

    prop_compose! {
        fn texts()(texts in collection::vec(".{0,12}", 10)) -> Vec<String> { texts }
    }

    prop_compose! {
        fn entry()(
            texts in texts(),
            timestamp in option::of((any::<i64>(), any::<i32>())),
            metadata in collection::btree_map(".{0,4}", ".{0,4}", 0..5),
            success in any::<bool>(),
            error in option::of(".{0,9}"),
            sequence in prop_oneof![0..3_u64, any::<u64>()],
            hashes in option::of(any::<([u8; 32], [u8; 32])>()),
        ) -> AuditLogEntry {
            let text = |index: usize| texts[index].clone();
            AuditLogEntry {
                id: text(0),
                timestamp: timestamp.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                actor: text(1),
                operation: text(2),
                resource: text(3),
                namespace: text(4),
                metadata: metadata.into_iter().collect::<BTreeMap<_, _>>(),
                success,
                error,
                sequence,
                previous_hash: hashes.map(|(previous, _)| previous.to_vec()).unwrap_or_default().into(),
                hash: hashes.map(|(_, hash)| hash.to_vec()).unwrap_or_default().into(),
                request_id: text(5),
                source_address: text(6),
                auth_method: text(7),
                credential_id: text(8),
            }
        }
    }

    proptest! {
        #[test]
        fn the_bytes_hash_as_the_entry_does(entry in entry(), previous in any::<[u8; 32]>()) {
            prop_assert_eq!(hash_encoded(&previous, &entry.encode_to_vec()), Ok(hash(&previous, &entry)));
        }

        #[test]
        fn the_bytes_say_what_the_entry_says(entry in entry()) {
            let encoded = entry.encode_to_vec();
            let parsed = EncodedEntry::parse(&encoded).unwrap();
            let at = entry.timestamp.unwrap_or_default();
            prop_assert_eq!(parsed.id, entry.id.as_str());
            prop_assert_eq!(parsed.timestamp, (at.seconds, at.nanos));
            prop_assert_eq!(parsed.actor, entry.actor.as_str());
            prop_assert_eq!(parsed.operation, entry.operation.as_str());
            prop_assert_eq!(parsed.namespace, entry.namespace.as_str());
            prop_assert_eq!(parsed.sequence, entry.sequence);
            prop_assert_eq!(parsed.previous_hash.map_or(&[][..], |hash| &hash[..]), entry.previous_hash.as_ref());
            prop_assert_eq!(parsed.hash.map_or(&[][..], |hash| &hash[..]), entry.hash.as_ref());
        }

        /// Whatever is accepted is what the entry it decodes to is encoded as: there are no two forms of one entry.
        #[test]
        fn what_is_accepted_is_deterministic(
            entry in entry(),
            changes in collection::vec((any::<Index>(), 0..3_u8, any::<u8>()), 1..4),
        ) {
            let mut encoded = entry.encode_to_vec();
            for (index, kind, byte) in changes {
                let at = index.index(encoded.len() + 1);
                match kind {
                    0 if at < encoded.len() => encoded[at] = byte,
                    1 if at < encoded.len() => drop(encoded.remove(at)),
                    _ => encoded.insert(at, byte),
                }
            }
            if let Ok(parsed) = EncodedEntry::parse(&encoded) {
                let decoded = AuditLogEntry::decode(encoded.as_slice()).unwrap();
                let again = decoded.encode_to_vec();
                // What a later version added comes at the end.
                prop_assert!(encoded.starts_with(&again));
                if again.len() == encoded.len() {
                    prop_assert_eq!(parsed.link(&[7; 32]), hash(&[7; 32], &decoded));
                }
            }
        }

        #[test]
        fn bytes_never_panic(bytes in collection::vec(any::<u8>(), 0..80)) {
            let _ = EncodedEntry::parse(&bytes);
        }
    }

    fn refused(encoded: &[u8]) -> &'static str {
        EncodedEntry::parse(encoded).unwrap_err().why
    }

    #[test]
    fn other_encodings_are_refused() {
        assert_eq!(refused(&[10, 1, b'a', 10, 1, b'b']), "its fields are not in order");
        assert_eq!(refused(&[26, 1, b'a', 10, 1, b'b']), "its fields are not in order");
        assert_eq!(refused(&[10, 0]), "a text has its default value");
        assert_eq!(refused(&[80, 0]), "a number has its default value");
        assert_eq!(refused(&[80, 0x81, 0]), "a number is overlong");
        assert_eq!(refused(&[80, 0x81]), "a number does not end");
        assert_eq!(refused(&[64, 2]), "its success is neither absent nor true");
        assert_eq!(refused(&[90, 1, 0]), "a hash is not 32 bytes");
        assert_eq!(refused(&[10, 1, 0xff]), "a text is not UTF-8");
        assert_eq!(refused(&[10, 2, b'a']), "a field is longer than the entry");
        assert_eq!(refused(&[8, 1]), "a field has another type");
        assert_eq!(refused(&[0, 1]), "a field has an impossible number");
        assert_eq!(refused(&[58, 3, 10, 1, b'b', 58, 3, 10, 1, b'a']), "the keys of its metadata are not sorted");
        assert_eq!(refused(&[58, 6, 18, 1, b'b', 10, 1, b'a']), "its metadata are not in order");
        assert_eq!(refused(&[18, 2, 24, 1]), "its time has an unknown field");
    }

    #[test]
    fn fields_of_a_later_version_are_hashed() {
        let entry = AuditLogEntry { id: "e".to_owned(), hash: vec![1; 32].into(), ..Default::default() };
        let mut encoded = entry.encode_to_vec();
        let known = hash_encoded(&[0; 32], &encoded).unwrap();
        encoded.extend([0x8a, 0x01, 1, b'x']);
        assert_ne!(hash_encoded(&[0; 32], &encoded).unwrap(), known);
        assert_eq!(
            hash_encoded(&[0; 32], &[&[10, 1, b'e'][..], &[0x8a, 0x01, 1, b'x']].concat()).unwrap(),
            hash_encoded(&[0; 32], &encoded).unwrap()
        );
    }
}
