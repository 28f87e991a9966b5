//! `google.protobuf.Value` and the drivers' values.
//!
//! In: a whole number within ±2^53 is an integer, any other finite number a real. Out: an integer beyond ±2^53 is its decimal
//! text, since a double would change it; bytes are standard base64 text; a number that is not finite is its name as text.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prism_backends::driver::{Record, Value};
use prism_core::limits::Limits;
use prost_types::value::Kind;
use prost_types::{ListValue, NullValue};

use crate::fields::Fields;

/// The largest whole number that a double holds exactly, with all below it.
const MAX_EXACT: i64 = 1 << 53;
/// Most columns of a record.
pub const MAX_COLUMNS: usize = 1000;
/// Longest name of a column, table or collection, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// A single value from the wire; notes what is wrong with it under `field`.
pub fn scalar(fields: &mut Fields, field: &str, value: prost_types::Value, limits: &Limits) -> Option<Value> {
    match value.kind {
        Some(Kind::NullValue(_)) => Some(Value::Null),
        Some(Kind::BoolValue(value)) => Some(Value::Bool(value)),
        Some(Kind::NumberValue(number)) => {
            fields.require(number.is_finite(), field, "must be a finite number");
            number.is_finite().then(|| from_double(number))
        }
        Some(Kind::StringValue(text)) => {
            fields.payload(field, text.len(), limits);
            Some(Value::Text(text))
        }
        Some(Kind::StructValue(_) | Kind::ListValue(_)) => {
            fields.add(field, "must be null, a truth value, a number or text");
            None
        }
        None => {
            fields.add(field, "must be set");
            None
        }
    }
}

fn from_double(number: f64) -> Value {
    let whole = number.trunc();
    if (whole - number).abs() == 0.0 && number.abs() <= MAX_EXACT as f64 {
        Value::Integer(number as i64)
    } else {
        Value::Real(number)
    }
}

/// A record from the wire: column names 1 to [`MAX_NAME_BYTES`] bytes, at most [`MAX_COLUMNS`].
pub fn record(
    fields: &mut Fields,
    field: &str,
    record: BTreeMap<String, prost_types::Value>,
    limits: &Limits,
) -> Record {
    if !fields.count(field, record.len(), 0, MAX_COLUMNS) {
        return Record::new();
    }
    let mut columns = Record::new();
    for (column, value) in record {
        if column.is_empty() || column.len() > MAX_NAME_BYTES {
            fields.add(field, format!("column names must be 1 to {MAX_NAME_BYTES} bytes"));
            continue;
        }
        let path = format!("{field}.{column}");
        if let Some(value) = scalar(fields, &path, value, limits) {
            columns.insert(column, value);
        }
    }
    columns
}

/// A value for the wire.
pub fn to_proto(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Integer(number) if (-MAX_EXACT..=MAX_EXACT).contains(&number) => Kind::NumberValue(number as f64),
        Value::Integer(number) => Kind::StringValue(number.to_string()),
        Value::Real(number) if number.is_finite() => Kind::NumberValue(number),
        Value::Real(number) => Kind::StringValue(number.to_string()),
        Value::Text(text) => Kind::StringValue(text),
        Value::Bytes(bytes) => Kind::StringValue(STANDARD.encode(bytes)),
        Value::List(items) => Kind::ListValue(ListValue { values: items.into_iter().map(to_proto).collect() }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A record for the wire.
pub fn record_to_proto(record: Record) -> BTreeMap<String, prost_types::Value> {
    record.into_iter().map(|(column, value)| (column, to_proto(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind) -> Result<Value, String> {
        let mut fields = Fields::new();
        let value = scalar(&mut fields, "v", prost_types::Value { kind: Some(kind) }, &Limits::default());
        fields.finish().map_err(|error| error.message().to_owned())?;
        Ok(value.unwrap())
    }

    #[test]
    fn whole_numbers_are_integers_as_far_as_doubles_are_exact() {
        let exact = MAX_EXACT as f64;
        assert_eq!(read(Kind::NumberValue(3.0)), Ok(Value::Integer(3)));
        assert_eq!(read(Kind::NumberValue(-0.0)), Ok(Value::Integer(0)));
        assert_eq!(read(Kind::NumberValue(exact)), Ok(Value::Integer(MAX_EXACT)));
        assert_eq!(read(Kind::NumberValue(exact * 2.0)), Ok(Value::Real(exact * 2.0)));
        assert_eq!(read(Kind::NumberValue(0.5)), Ok(Value::Real(0.5)));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(read(Kind::NumberValue(bad)).is_err());
        }
    }

    #[test]
    fn structures_and_nothing_are_refused() {
        assert!(read(Kind::StructValue(prost_types::Struct::default())).is_err());
        assert!(read(Kind::ListValue(ListValue::default())).is_err());
        let mut fields = Fields::new();
        scalar(&mut fields, "v", prost_types::Value { kind: None }, &Limits::default());
        assert!(fields.finish().is_err());
    }

    #[test]
    fn nothing_is_lost_on_the_way_out() {
        let text = |value| match to_proto(value).kind {
            Some(Kind::StringValue(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(Value::Integer(i64::MAX)), i64::MAX.to_string());
        assert_eq!(text(Value::Integer(-MAX_EXACT - 1)), "-9007199254740993");
        assert_eq!(text(Value::Bytes(vec![0, 255])), "AP8=");
        assert_eq!(text(Value::Real(f64::INFINITY)), "inf");
        assert_eq!(to_proto(Value::Integer(MAX_EXACT)).kind, Some(Kind::NumberValue(MAX_EXACT as f64)));
        for value in [Value::Null, Value::Bool(true), Value::Integer(-5), Value::Real(1.5), Value::Text("x".into())] {
            assert_eq!(read(to_proto(value.clone()).kind.unwrap()), Ok(value));
        }
    }
}
