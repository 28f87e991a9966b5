//! JSON and query strings, read strictly: what is not known is not ignored.

use std::fmt;

use http::Request;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN};
use http_body_util::{BodyExt as _, Limited};
use prism_core::error::FieldViolation;
use prism_core::limits::MAX_JOIN_TOKEN_TTL;
use prism_core::page::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
use prism_core::{Error, Kind, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use tonic::body::Body;

use crate::MAX_SMALL_REQUEST_BYTES;

/// The fields of a JSON object, each at most once.
pub(super) struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Fields, M::Error> {
                let mut fields: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(M::Error::custom("a field is there twice"));
                    }
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Fields {
    /// Reads the body of a request. Its type must be said, so that no page of another site can have a browser send it.
    pub(super) async fn read(request: Request<Body>) -> Result<Self> {
        Self::read_as(request, false).await
    }

    /// As [`Fields::read`], where nothing at all stands for no fields. What a browser sends for a page has an `origin`; of that
    /// the type must be said all the same.
    pub(super) async fn read_if_any(request: Request<Body>) -> Result<Self> {
        let may_be_empty = !request.headers().contains_key(ORIGIN);
        Self::read_as(request, may_be_empty).await
    }

    async fn read_as(request: Request<Body>, may_be_empty: bool) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let read = Limited::new(body, MAX_SMALL_REQUEST_BYTES).collect().await;
        let bytes = read.map_err(|failed| unreadable(failed.as_ref()))?.to_bytes();
        if parts.headers.contains_key(CONTENT_ENCODING) {
            return Err(Error::invalid("content-encoding", "must not be set: the body is read as it is"));
        }
        if bytes.is_empty() && may_be_empty {
            return Ok(Self(Vec::new()));
        }
        let mut types = parts.headers.get_all(CONTENT_TYPE).iter();
        let is_json = types.next().and_then(|kind| kind.to_str().ok()).is_some_and(is_json) && types.next().is_none();
        if !is_json {
            return Err(Error::invalid("content-type", "must be application/json, in UTF-8"));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            // What the parser says of a place is safe to tell; what stands there is not, for it may be a secret.
            let (line, column) = (error.line(), error.column());
            Error::invalid(
                "body",
                format!(
                    "must be one JSON object in UTF-8, each field at most once; line {line}, column {column} is not"
                ),
            )
        })
    }

    /// Takes a field out; absent = `None`, and so is null, which our own answers hold.
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1).filter(|value| !value.is_null())
    }

    /// Takes a text out.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Error::invalid(name, "must be a string")),
        }
    }

    /// Takes a whole number of 32 bits out.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<i32>> {
        let wrong = || Error::invalid(name, "must be a whole number of 32 bits");
        match self.take(name) {
            None => Ok(None),
            Some(value) => value.as_i64().and_then(|number| i32::try_from(number).ok()).map(Some).ok_or_else(wrong),
        }
    }

    /// Whether a field is there, and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, value)| known == name && !value.is_null())
    }

    /// Refuses whatever was not taken out; `known` is what could have been.
    pub(super) fn end(self, known: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let unknown = |(name, _): (String, Value)| {
            FieldViolation::new(name, format!("is not a field of this request; it has {known}"))
        };
        Err(Error::invalid_fields(self.0.into_iter().map(unknown).collect()))
    }
}

fn is_json(kind: &str) -> bool {
    let mut parts = kind.split(';').map(str::trim);
    let media = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/json"));
    let is_utf8 = |part: &str| {
        part.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("charset") && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    };
    media && parts.all(|part| part.is_empty() || is_utf8(part))
}

fn unreadable(failed: &(dyn std::error::Error + 'static)) -> Error {
    if failed.is::<http_body_util::LengthLimitError>() {
        let message = format!("the body is larger than the {MAX_SMALL_REQUEST_BYTES} bytes that are read");
        return Error::new(Kind::ResourceExhausted, "MESSAGE_TOO_LARGE", message);
    }
    Error::invalid("body", "could not be read as a whole")
}

/// A life such as `30m`, in seconds: a whole number and one of s, m, h, d.
pub(super) fn life(text: &str) -> Result<i32> {
    let rule = || Error::invalid("ttl", "must be a whole number and a unit, s, m, h or d, such as 30m; 1s to 7d");
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(rule)?;
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(rule()),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(rule());
    }
    let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    let fits = seconds.filter(|seconds| (1..=MAX_JOIN_TOKEN_TTL.as_secs()).contains(seconds));
    fits.and_then(|seconds| i32::try_from(seconds).ok()).ok_or_else(rule)
}

/// A page by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NumberedPage {
    /// From 1.
    pub number: usize,
    /// Entries of a page.
    pub size: usize,
}

impl NumberedPage {
    /// Reads `page` and `pageSize` from a query; all that is wrong in one answer.
    pub(super) fn parse(query: &str) -> Result<Self> {
        let (mut number, mut size, mut wrong) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let parsed = value.parse::<usize>().ok().filter(|_| value.bytes().all(|digit| digit.is_ascii_digit()));
            let (place, least) = match name {
                "page" => (&mut number, 1),
                "pageSize" => (&mut size, 0),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    wrong.push(FieldViolation::new(
                        name,
                        "is not a parameter of this request; it has page and pageSize",
                    ));
                    continue;
                }
            };
            match parsed {
                Some(value) if value >= least && place.is_none() => *place = Some(value),
                _ => wrong.push(FieldViolation::new(name, format!("must be one whole number, at least {least}"))),
            }
        }
        if !wrong.is_empty() {
            return Err(Error::invalid_fields(wrong));
        }
        let size = size.filter(|size| *size > 0).unwrap_or(DEFAULT_PAGE_SIZE).min(MAX_PAGE_SIZE);
        Ok(Self { number: number.unwrap_or(1), size })
    }

    /// How many entries come before it.
    pub(super) fn offset(self) -> u64 {
        (self.number as u64 - 1).saturating_mul(self.size as u64)
    }
}

/// A segment of a path without its escapes.
pub(super) fn unescaped(segment: &str) -> Result<String> {
    let wrong = || Error::invalid("tokenId", "has a broken escape in the path");
    let mut bytes = segment.bytes();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        out.push(match byte {
            b'%' => (digit(bytes.next()).ok_or_else(wrong)? * 16 + digit(bytes.next()).ok_or_else(wrong)?) as u8,
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| wrong())
}

/// An error of an operation, whose fields have their names in the contract, with those of JSON.
pub(super) fn in_json_names(error: &Error) -> Error {
    if error.fields().is_empty() {
        return error.clone();
    }
    let renamed =
        |violation: &FieldViolation| FieldViolation::new(camel(&violation.field), violation.description.clone());
    let fields: Vec<_> = error.fields().iter().map(renamed).collect();
    error.metadata().iter().fold(Error::invalid_fields(fields), |error, (key, value)| error.with(key, value))
}

/// `csrPem` of `csr_pem`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut name, part| {
        let mut characters = part.chars();
        name.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        name.extend(characters);
        name
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lives_have_a_unit() {
        assert_eq!([life("90s"), life("30m"), life("2h"), life("7d")].map(Result::unwrap), [90, 1800, 7200, 604_800]);
        for bad in [
            "",
            "s",
            "30",
            "30 m",
            "-1s",
            "+1s",
            "1.5h",
            "1w",
            "1hm",
            "0s",
            "8d",
            "604801s",
            "99999999999999999999d",
            "m30",
            "٣m",
            "1ä",
        ] {
            assert_eq!(life(bad).unwrap_err().fields()[0].field, "ttl", "{bad}");
        }
    }

    #[test]
    fn pages_are_numbered_from_one() {
        let page = |query: &str| NumberedPage::parse(query).map(|page| (page.number, page.size));
        assert_eq!(page("").unwrap(), (1, 50));
        assert_eq!(page("page=3&pageSize=0").unwrap(), (3, 50));
        assert_eq!(page("pageSize=5000").unwrap(), (1, 1000));
        for bad in ["page=0", "page=-1", "page=1&page=2", "page=x", "page", "size=1", "pageSize=+1", "page=%31"] {
            assert!(page(bad).is_err(), "{bad}");
        }
        assert_eq!(NumberedPage { number: 1, size: 2 }.offset(), 0);
        assert_eq!(NumberedPage { number: 3, size: 2 }.offset(), 4);
        assert_eq!(NumberedPage { number: usize::MAX, size: 1000 }.offset(), u64::MAX);
    }

    #[test]
    fn only_json_in_utf8_is_read() {
        for good in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\""] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "application/json; charset=utf-16", "application/json; q=1", "application/jsonx"]
        {
            assert!(!is_json(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_those_of_json() {
        assert_eq!(["csr_pem", "ttl_seconds", "a", ""].map(camel), ["csrPem", "ttlSeconds", "a", ""]);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = (life(&text), NumberedPage::parse(&text), unescaped(&text), serde_json::from_str::<Fields>(&text).is_ok());
        }
    }
}
