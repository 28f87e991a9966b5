//! Values of `prism.toml` that prove their bounds while they are read, so that an error names its line.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A duration of `MIN` to `MAX` milliseconds, such as `"60s"`.
#[derive(Clone, Copy, Debug)]
pub struct Span<const MIN: u64, const MAX: u64>(pub Duration);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Span<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Text<MIN, MAX> {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
                write!(f, "a duration from {} to {}", humantime::format_duration(min), humantime::format_duration(max))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                let range = Duration::from_millis(MIN)..=Duration::from_millis(MAX);
                let parsed = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
                parsed.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text::<MIN, MAX>).map(Self)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug)]
pub struct Whole<const MIN: u64, const MAX: u64>(pub usize);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Clone, Copy)]
        struct Number<const MIN: u64, const MAX: u64>;
        impl<const MIN: u64, const MAX: u64> Visitor<'_> for Number<MIN, MAX> {
            type Value = usize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<usize, E> {
                let parsed = u64::try_from(number).ok().filter(|number| (MIN..=MAX).contains(number));
                let parsed = parsed.and_then(|number| usize::try_from(number).ok());
                parsed.ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<usize, E> {
                self.visit_i64(
                    i64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?,
                )
            }
        }
        deserializer.deserialize_i64(Number::<MIN, MAX>).map(Self)
    }
}

/// Text of `MIN` to `MAX` bytes without control characters.
#[derive(Clone, Debug)]
pub struct Text<const MIN: usize, const MAX: usize>(pub String);

impl<'de, const MIN: usize, const MAX: usize> Deserialize<'de> for Text<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if (MIN..=MAX).contains(&text.len()) && !text.chars().any(char::is_control) {
            return Ok(Self(text));
        }
        Err(D::Error::custom(format_args!("must have {MIN} to {MAX} bytes, without control characters")))
    }
}
