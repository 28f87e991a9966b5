use std::collections::BTreeMap;

/// A column's value, with the meaning of `google.protobuf.Value` plus exact integers.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A truth value; stored as 0 or 1.
    Bool(bool),
    /// A whole number within ±2^53 when it came over the wire, any 64-bit integer when it comes from the backend.
    Integer(i64),
    /// Any other finite number.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes; on the wire as base64 text.
    Bytes(Vec<u8>),
    /// A list; only as the operand of IN.
    List(Vec<Value>),
}

/// A row: column name to value.
pub type Record = BTreeMap<String, Value>;
