//! The bounds of request fields. Every violation of a request comes in one answer, each with its field path.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;

use prism_backends::driver::{validate_topic, validate_topic_pattern};
use prism_core::error::FieldViolation;
use prism_core::limits::{
    Limits, MAX_MAP_ENTRIES, MAX_MAP_KEY_BYTES, MAX_MAP_VALUE_BYTES, MAX_TEXT_BYTES, MAX_TOPIC_BYTES, MAX_TTL_SECONDS,
};
use prism_core::{Error, Result, UnixMillis};

/// Collects the violations of one request.
#[derive(Default)]
pub struct Fields(Vec<FieldViolation>);

impl Fields {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a violation.
    pub fn add(&mut self, field: impl Display, description: impl Into<String>) {
        self.0.push(FieldViolation::new(field.to_string(), description));
    }

    /// Notes a violation unless `holds`.
    pub fn require(&mut self, holds: bool, field: impl Display, description: &str) {
        if !holds {
            self.add(field, description);
        }
    }

    /// Takes over the violations of an error.
    pub fn absorb(&mut self, error: &Error) {
        self.0.extend_from_slice(error.fields());
    }

    /// Takes over the violations of a failed check; gives the value otherwise.
    pub fn keep<T>(&mut self, checked: Result<T>) -> Option<T> {
        checked.map_err(|error| self.absorb(&error)).ok()
    }

    /// INVALID_ARGUMENT with all violations, if there are any.
    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::invalid_fields(self.0)) }
    }

    /// A key: 1 byte to `max_key_bytes`, without NUL, which not every backend can keep.
    pub fn key(&mut self, field: impl Display, key: &str, limits: &Limits) {
        if key.is_empty() || key.len() > limits.max_key_bytes {
            self.add(field, format!("must be 1 to {} bytes, is {}", limits.max_key_bytes, key.len()));
        } else if key.contains('\0') {
            self.add(field, "must not contain NUL");
        }
    }

    /// What keys begin with: as a key, and may be empty.
    pub fn prefix(&mut self, field: impl Display, prefix: &str, limits: &Limits) {
        if !prefix.is_empty() {
            self.key(field, prefix, limits);
        }
    }

    /// A value or message: at most `max_value_bytes`.
    pub fn payload(&mut self, field: impl Display, bytes: usize, limits: &Limits) {
        if bytes > limits.max_value_bytes {
            self.add(field, format!("must be at most {} bytes, is {bytes}", limits.max_value_bytes));
        }
    }

    /// A time to live, 1 s to [`MAX_TTL_SECONDS`], as the moment at which it is up.
    pub fn ttl(&mut self, field: impl Display, ttl_seconds: Option<i64>, now: UnixMillis) -> Option<UnixMillis> {
        let ttl = ttl_seconds?;
        if !(1..=MAX_TTL_SECONDS).contains(&ttl) {
            self.add(field, format!("must be 1 to {MAX_TTL_SECONDS} seconds"));
            return None;
        }
        Some(UnixMillis(now.0.saturating_add(ttl * 1000)))
    }

    /// A name of letters, digits, '.', '_' and '-', 1 to [`MAX_TOPIC_BYTES`] bytes: queue topics and groups.
    pub fn word(&mut self, field: impl Display, word: &str) {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if word.is_empty() || word.len() > MAX_TOPIC_BYTES || !word.bytes().all(valid) {
            self.add(field, format!("must be 1 to {MAX_TOPIC_BYTES} of A-Z, a-z, 0-9, '.', '_' and '-'"));
        }
    }

    /// A topic of pub/sub.
    pub fn topic(&mut self, field: &str, topic: &str) {
        self.keep(validate_topic(field, topic));
    }

    /// A topic pattern of pub/sub.
    pub fn topic_pattern(&mut self, field: &str, pattern: &str) {
        self.keep(validate_topic_pattern(field, pattern));
    }

    /// Text for people or an id, `min` to `max` bytes without control characters.
    pub fn text(&mut self, field: impl Display, text: &str, min: usize, max: usize) {
        if !(min..=max).contains(&text.len()) {
            self.add(field, format!("must be {min} to {max} bytes, is {}", text.len()));
        } else if text.chars().any(char::is_control) {
            self.add(field, "must not contain control characters");
        }
    }

    /// A map of headers or metadata.
    pub fn map(&mut self, field: &str, map: &BTreeMap<String, String>) {
        if map.len() > MAX_MAP_ENTRIES {
            self.add(field, format!("must have at most {MAX_MAP_ENTRIES} entries, has {}", map.len()));
            return;
        }
        for (key, value) in map {
            if key.is_empty() || key.len() > MAX_MAP_KEY_BYTES {
                self.add(field, format!("keys must be 1 to {MAX_MAP_KEY_BYTES} bytes"));
            } else if value.len() > MAX_MAP_VALUE_BYTES {
                self.add(format_args!("{field}[{key:?}]"), format!("must be at most {MAX_MAP_VALUE_BYTES} bytes"));
            }
        }
    }

    /// The length of a list, `min` to `max`; `false` when it is not worth looking at its items.
    pub fn count(&mut self, field: &str, count: usize, min: usize, max: usize) -> bool {
        let valid = (min..=max).contains(&count);
        if !valid {
            self.add(field, format!("must have {min} to {max} items, has {count}"));
        }
        valid
    }

    /// A number from `min` to `max`.
    pub fn range(&mut self, field: impl Display, number: i64, min: i64, max: i64) {
        if !(min..=max).contains(&number) {
            let bound =
                if max == i64::MAX { format!("must be {min} or more") } else { format!("must be {min} to {max}") };
            self.add(field, bound);
        }
    }

    /// Items that must differ: `field[n]` names each that was there before.
    pub fn distinct<'a>(&mut self, list: &str, item: &str, items: impl Iterator<Item = &'a str>) {
        let mut seen = HashSet::new();
        for (number, value) in items.enumerate() {
            if !seen.insert(value) {
                self.add(format_args!("{list}[{number}]{item}"), "is there twice");
            }
        }
    }
}

/// Longest `client_id` and `client_version`, in bytes.
pub const MAX_CLIENT_TEXT: usize = MAX_TEXT_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(check: impl FnOnce(&mut Fields)) -> Vec<String> {
        let mut fields = Fields::new();
        check(&mut fields);
        fields.finish().err().map(|error| error.fields().iter().map(|v| v.field.clone()).collect()).unwrap_or_default()
    }

    #[test]
    fn every_bound_holds_on_both_sides() {
        let limits = Limits { max_key_bytes: 8, max_value_bytes: 8, ..Limits::default() };
        let now = UnixMillis(0);
        assert!(violations(|f| f.key("key", "12345678", &limits)).is_empty());
        for bad in ["", "123456789", "a\0b"] {
            assert_eq!(violations(|f| f.key("key", bad, &limits)), ["key"], "{bad:?}");
        }
        assert!(violations(|f| f.prefix("prefix", "", &limits)).is_empty());
        assert!(violations(|f| f.payload("value", 8, &limits)).is_empty());
        assert_eq!(violations(|f| f.payload("value", 9, &limits)), ["value"]);
        for (ttl, good) in [(0, false), (-1, false), (1, true), (MAX_TTL_SECONDS, true), (MAX_TTL_SECONDS + 1, false)] {
            assert_eq!(violations(|f| _ = f.ttl("ttl_seconds", Some(ttl), now)).is_empty(), good, "{ttl}");
        }
        for (word, good) in [("a.B_c-9", true), ("", false), ("a b", false), ("a*", false), (">", false), ("ä", false)]
        {
            assert_eq!(violations(|f| f.word("topic", word)).is_empty(), good, "{word}");
        }
        assert!(violations(|f| f.word("topic", &"x".repeat(255))).is_empty());
        assert_eq!(violations(|f| f.word("topic", &"x".repeat(256))), ["topic"]);
        assert_eq!(violations(|f| f.text("client_id", "a\nb", 1, 9)), ["client_id"]);
        assert_eq!(violations(|f| f.range("offset", -1, 0, i64::MAX)), ["offset"]);
    }

    #[test]
    fn maps_are_bounded_in_number_and_size() {
        let map = |count: usize, key: usize, value: usize| -> BTreeMap<String, String> {
            (0..count).map(|n| (format!("{n:0key$}"), "v".repeat(value))).collect()
        };
        assert!(violations(|f| f.map("headers", &map(64, 256, 8192))).is_empty());
        assert_eq!(violations(|f| f.map("headers", &map(65, 2, 1))), ["headers"]);
        assert_eq!(violations(|f| f.map("headers", &map(1, 257, 1))), ["headers"]);
        assert_eq!(violations(|f| f.map("headers", &map(1, 1, 8193))), ["headers[\"0\"]"]);
        assert_eq!(violations(|f| f.map("headers", &BTreeMap::from([(String::new(), String::new())]))), ["headers"]);
    }

    #[test]
    fn all_violations_come_in_one_answer() {
        let found = violations(|f| {
            f.word("topic", "");
            f.word("consumer_group", "");
            f.distinct("entries", ".key", ["a", "b", "a"].into_iter());
        });
        assert_eq!(found, ["topic", "consumer_group", "entries[2].key"]);
    }
}
