//! JSON as RFC 7519 §4 asks for it: an object whose names are unique, at every depth.
//!
//! Parsers differ in which of two equal names they take, so a token that has two would say different things to different
//! readers.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses an object. `None` for anything else: other values, repeated names, nesting beyond 127 levels, text behind it.
pub fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice::<Unique>(bytes) {
        Ok(Unique(Value::Object(object))) => Some(object),
        _ => None,
    }
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
            if out.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_unique_at_every_depth() {
        assert!(object(br#"{"a":1,"b":[true,null,1.5,-3,"x",{"a":1}]}"#).is_some());
        for twice in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"{"x":{"a":1,"a":2}}"#, r#"{"x":[{"a":1,"a":2}]}"#]
        {
            assert!(object(twice.as_bytes()).is_none(), "{twice}");
        }
    }

    #[test]
    fn only_a_whole_object_is_one() {
        for bad in
            ["", "{", "[]", "1", "null", "\"a\"", "{}x", "{\"a\":1,}", "{\"a\":NaN}", "{\"a\":\"\u{1}\"}", "\u{feff}{}"]
        {
            assert!(object(bad.as_bytes()).is_none(), "{bad:?}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_none());
        assert!(object(br#"{"a":"\ud800"}"#).is_none());
        assert!(object(b" {} ").is_some());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(100).as_bytes()).is_some());
        assert!(object(nested(128).as_bytes()).is_none());
        assert!(object(nested(1_000_000).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn what_serde_json_writes_is_read_back(names in proptest::collection::btree_map(".{0,8}", any::<i64>(), 0..8)) {
            let written = serde_json::to_vec(&names).unwrap();
            prop_assert_eq!(serde_json::to_vec(&object(&written).unwrap()).unwrap(), written);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = object(&bytes);
        }
    }
}
