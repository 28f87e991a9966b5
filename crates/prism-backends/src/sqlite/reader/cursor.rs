//! Where a page ends: the sort values of its last row, exactly as SQLite holds them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prism_core::{Error, Result};
use rusqlite::types::ValueRef;
use sha2::{Digest as _, Sha256};

use crate::driver::ReadRequest;

/// Longest cursor, in characters.
const MAX_CURSOR_BYTES: usize = 64 * 1024;
/// Layout of a cursor: version, fingerprint, rows to skip, then the values, each as a tag and its content.
const VERSION: u8 = 1;

/// A position after the row that has these sort values.
#[derive(Clone, Debug, Default)]
pub(super) struct Position {
    /// Values of the sort criteria and of the tie-breaker.
    pub(super) values: Vec<Scalar>,
    /// How many rows with these values were given; 0 where the values are unique.
    pub(super) given: u32,
}

/// A value with SQLite's own type. Text is kept as bytes, because SQLite does not promise that it is UTF-8.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl From<ValueRef<'_>> for Scalar {
    fn from(found: ValueRef<'_>) -> Self {
        match found {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(text) => Self::Text(text.to_owned()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_owned()),
        }
    }
}

impl Scalar {
    pub(super) fn bind(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }

    /// Equal where SQLite's order says so.
    #[expect(clippy::float_cmp, reason = "SQLite compares exactly")]
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Real(a), Self::Real(b)) => a == b,
            (Self::Integer(a), Self::Real(b)) | (Self::Real(b), Self::Integer(a)) => *a as f64 == *b && *b as i64 == *a,
            (Self::Text(a), Self::Text(b)) | (Self::Blob(a), Self::Blob(b)) => a == b,
            _ => false,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0),
            Self::Integer(number) => {
                out.push(1);
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::Real(number) => {
                out.push(2);
                out.extend_from_slice(&number.to_bits().to_be_bytes());
            }
            Self::Text(bytes) | Self::Blob(bytes) => {
                out.push(if matches!(self, Self::Text(_)) { 3 } else { 4 });
                out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }

    fn read(body: &mut &[u8]) -> Option<Self> {
        Some(match take::<1>(body)? {
            [0] => Self::Null,
            [1] => Self::Integer(i64::from_be_bytes(take(body)?)),
            [2] => Self::Real(f64::from_bits(u64::from_be_bytes(take(body)?))),
            [tag @ (3 | 4)] => {
                let length = u32::from_be_bytes(take(body)?) as usize;
                let (bytes, rest) = body.split_at_checked(length)?;
                *body = rest;
                if tag == 3 { Self::Text(bytes.to_owned()) } else { Self::Blob(bytes.to_owned()) }
            }
            _ => return None,
        })
    }
}

fn take<const N: usize>(body: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(*bytes)
}

/// Identifies a query: a cursor is good for the one that made it only.
pub(super) type Fingerprint = [u8; 16];

/// The fingerprint of a request. `fields` and `limit` may change from page to page.
pub(super) fn fingerprint(request: &ReadRequest) -> Fingerprint {
    // The debug form is unambiguous: it quotes text and names every variant.
    let query = format!("{:?}", (&request.collection, &request.filter, &request.sort));
    let digest: [u8; 32] = Sha256::digest(query).into();
    let mut out = Fingerprint::default();
    out.copy_from_slice(&digest[..16]);
    out
}

/// Makes a cursor. FAILED_PRECONDITION `SORT_VALUE_TOO_LARGE` when it would be longer than 64 KiB.
pub(super) fn encode(fingerprint: Fingerprint, position: &Position) -> Result<String> {
    let mut body = vec![VERSION];
    body.extend_from_slice(&fingerprint);
    body.extend_from_slice(&position.given.to_be_bytes());
    for value in &position.values {
        value.write(&mut body);
    }
    if base64::encoded_len(body.len(), false).is_none_or(|length| length > MAX_CURSOR_BYTES) {
        return Err(Error::precondition(
            "SORT_VALUE_TOO_LARGE",
            "the values that order the last row of the page are larger than a cursor may be (48 KiB); sort by smaller columns",
        ));
    }
    Ok(URL_SAFE_NO_PAD.encode(body))
}

/// Reads a cursor of `count` values. INVALID_ARGUMENT `cursor` when it is malformed or of another query.
pub(super) fn decode(cursor: &str, fingerprint: Fingerprint, count: usize) -> Result<Position> {
    let malformed = || Error::invalid("cursor", "is not a cursor of this collection; start again without one");
    if cursor.len() > MAX_CURSOR_BYTES {
        return Err(malformed());
    }
    let body = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| malformed())?;
    let (found, position) = parse(&body, count).ok_or_else(malformed)?;
    if found != fingerprint {
        return Err(Error::invalid(
            "cursor",
            "belongs to another collection, filter or sort; repeat those it was made with, or start again without it",
        ));
    }
    if position.values.len() != count {
        return Err(malformed());
    }
    Ok(position)
}

fn parse(mut body: &[u8], most: usize) -> Option<(Fingerprint, Position)> {
    let body = &mut body;
    if take(body)? != [VERSION] {
        return None;
    }
    let fingerprint = take(body)?;
    let given = u32::from_be_bytes(take(body)?);
    let mut values = Vec::new();
    // A cursor of another query may have more values; they are not needed to say so.
    while !body.is_empty() && values.len() <= most {
        values.push(Scalar::read(body)?);
    }
    Some((fingerprint, Position { values, given }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scalar() -> impl Strategy<Value = Scalar> {
        prop_oneof![
            Just(Scalar::Null),
            any::<i64>().prop_map(Scalar::Integer),
            any::<f64>().prop_map(Scalar::Real),
            any::<Vec<u8>>().prop_map(Scalar::Text),
            any::<Vec<u8>>().prop_map(Scalar::Blob),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_cursor_keeps_every_value_exactly(values in prop::collection::vec(scalar(), 0..6), given: u32) {
            let count = values.len();
            let made = encode([7; 16], &Position { values, given }).unwrap();
            let read = decode(&made, [7; 16], count).unwrap();
            prop_assert_eq!(read.given, given);
            prop_assert_eq!(encode([7; 16], &read).unwrap(), made.clone());
            prop_assert!(decode(&made, [8; 16], count).is_err());
            prop_assert!(decode(&made, [7; 16], count + 1).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes: Vec<u8>, text in ".{0,40}") {
            prop_assert!(decode(&text, [7; 16], 2).is_err());
            prop_assert!(decode(&URL_SAFE_NO_PAD.encode(bytes), [7; 16], 2).is_err());
        }
    }

    #[test]
    fn a_cursor_is_never_too_long() {
        let position = Position { values: vec![Scalar::Text(vec![b'x'; 50 * 1024])], given: 0 };
        assert_eq!(encode([7; 16], &position).unwrap_err().reason(), "SORT_VALUE_TOO_LARGE");
        assert!(decode(&"A".repeat(MAX_CURSOR_BYTES + 1), [7; 16], 1).is_err());
    }
}
