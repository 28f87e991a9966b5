//! Rows and values of tables.

use std::collections::BTreeMap;

use prism_proto::reader::v1::filter::Filter as Kind;
use prism_proto::reader::v1::{CompositeFilter, FieldFilter, Filter, LogicalOperator, Operator};
use prism_proto::transact::v1::{DataWrite, WriteMode, WriteRequest};
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, NullValue, Value};

/// Text.
pub fn text(text: &str) -> Value {
    Value { kind: Some(ValueKind::StringValue(text.to_owned())) }
}

/// A number.
pub fn number(number: f64) -> Value {
    Value { kind: Some(ValueKind::NumberValue(number)) }
}

/// Nothing.
pub fn null() -> Value {
    Value { kind: Some(ValueKind::NullValue(NullValue::NullValue.into())) }
}

/// A list.
pub fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(ValueKind::ListValue(ListValue { values })) }
}

/// A record of the table `items`.
pub fn item(id: &str, name: &str, quantity: f64, price: f64) -> BTreeMap<String, Value> {
    [("id", text(id)), ("name", text(name)), ("quantity", number(quantity)), ("price", number(price))]
        .map(|(column, value)| (column.to_owned(), value))
        .into()
}

/// A write to the table `items`.
pub fn write(mode: WriteMode, record: BTreeMap<String, Value>) -> WriteRequest {
    let data = DataWrite { table: "items".to_owned(), record, mode: mode.into(), id_field: None };
    WriteRequest { data: Some(data), ..WriteRequest::default() }
}

/// A comparison.
pub fn compare(field: &str, op: Operator, value: Value) -> Filter {
    let field = FieldFilter { field: field.to_owned(), op: op.into(), value: Some(value) };
    Filter { filter: Some(Kind::Field(field)) }
}

/// Filters together.
pub fn composite(op: LogicalOperator, filters: Vec<Filter>) -> Filter {
    Filter { filter: Some(Kind::Composite(CompositeFilter { op: op.into(), filters })) }
}
