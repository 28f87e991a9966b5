//! `prism.reader.v1.ReaderService`.

use std::sync::Arc;

use prism_backends::driver::{
    Direction, Filter, LogicalOperator, Operator, ReadRequest as Read, Reader, Route, Sort, Value,
};
use prism_core::limits::Limits;
use prism_core::{Error, Kind, Result};
use prism_proto::reader::v1 as wire;
use prism_proto::reader::v1::reader_service_server::ReaderService;
use prost::Message;
use prost_types::value::Kind as ValueKind;
use tonic::{Request, Response, Status};

use super::{PAGE_BYTES, wrong_route};
use crate::fields::Fields;
use crate::gate::Gate;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::stream::{self, Kind as StreamKind, Outlet, Responses};
use crate::values::{self, MAX_COLUMNS, MAX_NAME_BYTES};

/// Rows of a page when a request asks for 0.
const DEFAULT_ROWS: usize = 100;
/// Most rows of a page; more is taken as this.
const MAX_ROWS: usize = 1000;
/// Longest cursor accepted, in bytes.
const MAX_CURSOR_BYTES: usize = 64 * 1024;
/// Most sort criteria.
const MAX_SORTS: usize = 32;
/// Deepest nesting of filters.
const MAX_DEPTH: usize = 32;
/// Most comparisons of a filter; each item of IN is one.
const MAX_COMPARISONS: usize = 1000;

/// The service.
pub struct Service(pub Arc<Gate>);

#[tonic::async_trait]
impl ReaderService for Service {
    type ReadStream = Responses<wire::Page>;
    type QueryStream = Responses<wire::Row>;

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (permit, context, request) = self.0.open(Rpc::Read, request).await?;
        let wanted = Wanted {
            collection: request.collection,
            filter: request.filter,
            sort: request.sort,
            fields: request.fields,
            page_size: request.page_size,
            cursor: request.cursor,
        };
        let prepared = self.prepare(permit.session(), wanted).map_err(|error| context.status(&error))?;
        Ok(stream::start(&self.0, permit, context, StreamKind::Finite, |outlet| send_pages(outlet, prepared)))
    }

    async fn query(&self, request: Request<wire::QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let (permit, context, request) = self.0.open(Rpc::Query, request).await?;
        let wanted = Wanted {
            collection: request.collection,
            filter: request.filter,
            sort: request.sort,
            fields: request.fields,
            page_size: request.page_size,
            cursor: None,
        };
        let prepared = self.prepare(permit.session(), wanted).map_err(|error| context.status(&error))?;
        Ok(stream::start(&self.0, permit, context, StreamKind::Finite, |outlet| send_rows(outlet, prepared)))
    }

    async fn count(&self, request: Request<wire::CountRequest>) -> Result<Response<wire::CountResponse>, Status> {
        let work = |session: Arc<Session>, request: wire::CountRequest| async move {
            let mut fields = Fields::new();
            fields.text("collection", &request.collection, 1, MAX_NAME_BYTES);
            let filter = request.filter.and_then(|filter| Filters::new(&mut fields, &self.0.limits).convert(filter));
            fields.finish()?;
            let count = reader(&session)?.count(&request.collection, filter).await?;
            Ok(wire::CountResponse { count })
        };
        self.0.unary(Rpc::Count, request, work).await
    }
}

/// What Read and Query ask for alike.
struct Wanted {
    collection: String,
    filter: Option<wire::Filter>,
    sort: Vec<wire::Sort>,
    fields: Vec<String>,
    page_size: i32,
    cursor: Option<String>,
}

/// A read whose every field is within its bounds.
struct Prepared {
    reader: Arc<dyn Reader>,
    request: Read,
    max_message_bytes: usize,
}

impl Service {
    fn prepare(&self, session: &Session, wanted: Wanted) -> Result<Prepared> {
        let mut fields = Fields::new();
        fields.text("collection", &wanted.collection, 1, MAX_NAME_BYTES);
        fields.range("page_size", wanted.page_size.into(), 0, i64::MAX);
        if wanted.cursor.as_ref().is_some_and(|cursor| cursor.len() > MAX_CURSOR_BYTES) {
            fields.add("cursor", format!("must be at most {MAX_CURSOR_BYTES} bytes"));
        }
        if fields.count("fields", wanted.fields.len(), 0, MAX_COLUMNS) {
            for (number, name) in wanted.fields.iter().enumerate() {
                fields.text(format_args!("fields[{number}]"), name, 1, MAX_NAME_BYTES);
            }
        }
        let sort = sorts(&mut fields, wanted.sort);
        let filter = wanted.filter.and_then(|filter| Filters::new(&mut fields, &self.0.limits).convert(filter));
        fields.finish()?;
        let limit = match usize::try_from(wanted.page_size).unwrap_or(0) {
            0 => DEFAULT_ROWS,
            rows => rows.min(MAX_ROWS),
        };
        let cursor = wanted.cursor.filter(|cursor| !cursor.is_empty());
        let request = Read { collection: wanted.collection, filter, sort, fields: wanted.fields, limit, cursor };
        let max_message_bytes = self.0.limits.max_message_bytes();
        Ok(Prepared { reader: Arc::clone(reader(session)?), request, max_message_bytes })
    }
}

impl Prepared {
    /// Reads the next page and moves on behind it. A page that is too large for one message is read again with fewer rows.
    async fn next(&mut self) -> Result<(Vec<wire::Row>, Option<String>)> {
        loop {
            let page = self.reader.read(self.request.clone()).await?;
            let rows: Vec<_> =
                page.rows.into_iter().map(|row| wire::Row { fields: values::record_to_proto(row) }).collect();
            let bytes: usize = rows.iter().map(Message::encoded_len).sum();
            if rows.len() > 1 && bytes > PAGE_BYTES {
                self.request.limit = rows.len() / 2;
                continue;
            }
            if bytes > self.max_message_bytes {
                return Err(Error::new(
                    Kind::ResourceExhausted,
                    "ROW_TOO_LARGE",
                    format!(
                        "a row is more than {} bytes, the most of one answer; ask for fewer fields",
                        self.max_message_bytes
                    ),
                ));
            }
            self.request.cursor.clone_from(&page.next_cursor);
            return Ok((rows, page.next_cursor));
        }
    }
}

async fn send_pages(outlet: Outlet<wire::Page>, mut prepared: Prepared) -> Result<()> {
    loop {
        let (rows, next_cursor) = prepared.next().await?;
        let has_more = next_cursor.is_some();
        outlet.send(wire::Page { rows, next_cursor, has_more }).await;
        if !has_more {
            return Ok(());
        }
    }
}

async fn send_rows(outlet: Outlet<wire::Row>, mut prepared: Prepared) -> Result<()> {
    loop {
        let (rows, next_cursor) = prepared.next().await?;
        for row in rows {
            outlet.send(row).await;
        }
        if next_cursor.is_none() {
            return Ok(());
        }
    }
}

fn sorts(fields: &mut Fields, sorts: Vec<wire::Sort>) -> Vec<Sort> {
    if !fields.count("sort", sorts.len(), 0, MAX_SORTS) {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(sorts.len());
    for (number, sort) in sorts.into_iter().enumerate() {
        fields.text(format_args!("sort[{number}].field"), &sort.field, 1, MAX_NAME_BYTES);
        let direction = match wire::Direction::try_from(sort.direction) {
            Ok(wire::Direction::Unspecified | wire::Direction::Asc) => Direction::Ascending,
            Ok(wire::Direction::Desc) => Direction::Descending,
            Err(_) => {
                fields.add(format_args!("sort[{number}].direction"), "is not a known direction");
                continue;
            }
        };
        out.push(Sort { field: sort.field, direction });
    }
    out
}

/// Converts filters and counts what they cost.
struct Filters<'a> {
    fields: &'a mut Fields,
    limits: &'a Limits,
    comparisons: usize,
}

impl<'a> Filters<'a> {
    fn new(fields: &'a mut Fields, limits: &'a Limits) -> Self {
        Self { fields, limits, comparisons: 0 }
    }

    fn convert(mut self, filter: wire::Filter) -> Option<Filter> {
        let converted = self.filter("filter", filter, 1);
        if self.comparisons > MAX_COMPARISONS {
            self.fields.add("filter", format!("must have at most {MAX_COMPARISONS} comparisons"));
        }
        converted
    }

    fn filter(&mut self, path: &str, filter: wire::Filter, depth: usize) -> Option<Filter> {
        if depth > MAX_DEPTH {
            self.fields.add("filter", format!("must be at most {MAX_DEPTH} levels deep"));
            return None;
        }
        match filter.filter {
            Some(wire::filter::Filter::Field(field)) => self.comparison(&format!("{path}.field"), field),
            Some(wire::filter::Filter::Composite(composite)) => {
                self.composite(&format!("{path}.composite"), composite, depth)
            }
            None => {
                self.fields.add(path, "must be a field or a composite filter");
                None
            }
        }
    }

    fn composite(&mut self, path: &str, composite: wire::CompositeFilter, depth: usize) -> Option<Filter> {
        let operator = match wire::LogicalOperator::try_from(composite.op) {
            Ok(wire::LogicalOperator::And) => LogicalOperator::And,
            Ok(wire::LogicalOperator::Or) => LogicalOperator::Or,
            Ok(wire::LogicalOperator::Not) => LogicalOperator::Not,
            Ok(wire::LogicalOperator::Unspecified) | Err(_) => {
                self.fields.add(format_args!("{path}.op"), "must be AND, OR or NOT");
                return None;
            }
        };
        let most = if operator == LogicalOperator::Not { 1 } else { MAX_COMPARISONS };
        if !self.fields.count(&format!("{path}.filters"), composite.filters.len(), 1, most) {
            return None;
        }
        let mut filters = Vec::with_capacity(composite.filters.len());
        for (number, filter) in composite.filters.into_iter().enumerate() {
            // Enough is known to refuse it.
            if self.comparisons > MAX_COMPARISONS {
                return None;
            }
            filters.push(self.filter(&format!("{path}.filters[{number}]"), filter, depth + 1)?);
        }
        Some(Filter::Composite { operator, filters })
    }

    fn comparison(&mut self, path: &str, comparison: wire::FieldFilter) -> Option<Filter> {
        self.comparisons += 1;
        self.fields.text(format_args!("{path}.field"), &comparison.field, 1, MAX_NAME_BYTES);
        let operator = operator(comparison.op);
        self.fields.require(operator.is_some(), format_args!("{path}.op"), "is not a known operator");
        let operator = operator?;
        let path = format!("{path}.value");
        let value = comparison.value.unwrap_or_default();
        let value = if operator == Operator::In {
            self.items(&path, value)?
        } else {
            values::scalar(self.fields, &path, value, self.limits)?
        };
        let fits = match operator {
            Operator::Contains | Operator::StartsWith => matches!(value, Value::Text(_)),
            Operator::Equals | Operator::NotEquals | Operator::In => true,
            _ => value != Value::Null,
        };
        self.fields.require(fits, &path, "does not fit the operator");
        fits.then_some(Filter::Field { field: comparison.field, operator, value })
    }

    fn items(&mut self, path: &str, value: prost_types::Value) -> Option<Value> {
        let Some(ValueKind::ListValue(list)) = value.kind else {
            self.fields.add(path, "must be a list");
            return None;
        };
        if !self.fields.count(path, list.values.len(), 1, MAX_COMPARISONS) {
            return None;
        }
        self.comparisons += list.values.len() - 1;
        let mut items = Vec::with_capacity(list.values.len());
        for (number, item) in list.values.into_iter().enumerate() {
            items.push(values::scalar(self.fields, &format!("{path}[{number}]"), item, self.limits)?);
        }
        Some(Value::List(items))
    }
}

fn operator(number: i32) -> Option<Operator> {
    Some(match wire::Operator::try_from(number).ok()? {
        wire::Operator::Unspecified => return None,
        wire::Operator::Equals => Operator::Equals,
        wire::Operator::NotEquals => Operator::NotEquals,
        wire::Operator::GreaterThan => Operator::GreaterThan,
        wire::Operator::LessThan => Operator::LessThan,
        wire::Operator::In => Operator::In,
        wire::Operator::Contains => Operator::Contains,
        wire::Operator::GreaterThanOrEquals => Operator::GreaterThanOrEquals,
        wire::Operator::LessThanOrEquals => Operator::LessThanOrEquals,
        wire::Operator::StartsWith => Operator::StartsWith,
    })
}

fn reader(session: &Session) -> Result<&Arc<dyn Reader>> {
    match session.route()? {
        Route::Reader(reader) => Ok(reader),
        _ => Err(wrong_route()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: f64) -> prost_types::Value {
        prost_types::Value { kind: Some(ValueKind::NumberValue(number)) }
    }

    fn field(op: i32, value: prost_types::Value) -> wire::Filter {
        let field = wire::FieldFilter { field: "a".to_owned(), op, value: Some(value) };
        wire::Filter { filter: Some(wire::filter::Filter::Field(field)) }
    }

    fn composite(op: i32, filters: Vec<wire::Filter>) -> wire::Filter {
        wire::Filter { filter: Some(wire::filter::Filter::Composite(wire::CompositeFilter { op, filters })) }
    }

    fn convert(filter: wire::Filter) -> Result<Filter, Vec<String>> {
        let mut fields = Fields::new();
        let limits = Limits::default();
        let converted = Filters::new(&mut fields, &limits).convert(filter);
        fields.finish().map_err(|error| error.fields().iter().map(|v| v.field.clone()).collect::<Vec<_>>())?;
        Ok(converted.unwrap())
    }

    fn list(count: usize) -> prost_types::Value {
        let values = (0..count).map(|n| number(n as f64)).collect();
        prost_types::Value { kind: Some(ValueKind::ListValue(prost_types::ListValue { values })) }
    }

    #[test]
    fn filters_have_a_bounded_depth() {
        let nested = |depth: usize| (1..depth).fold(field(1, number(1.0)), |inner, _| composite(3, vec![inner]));
        assert!(convert(nested(MAX_DEPTH)).is_ok());
        assert_eq!(convert(nested(MAX_DEPTH + 1)).unwrap_err(), ["filter"]);
    }

    #[test]
    fn filters_have_a_bounded_number_of_comparisons() {
        let wide = |count: usize| composite(1, vec![field(1, number(1.0)); count]);
        assert!(convert(wide(MAX_COMPARISONS)).is_ok());
        assert!(convert(wide(MAX_COMPARISONS + 1)).is_err());
        assert_eq!(convert(composite(2, vec![wide(600), wide(600)])).unwrap_err(), ["filter"]);
        assert!(convert(field(5, list(1000))).is_ok());
        assert!(convert(field(5, list(1001))).is_err());
        assert_eq!(convert(composite(1, vec![field(5, list(600)), field(5, list(600))])).unwrap_err(), ["filter"]);
    }

    #[test]
    fn operands_fit_their_operators() {
        let null = prost_types::Value { kind: Some(ValueKind::NullValue(0)) };
        assert!(convert(field(1, null.clone())).is_ok());
        for (filter, wrong) in [
            (field(3, null), "filter.field.value"),
            (field(6, number(1.0)), "filter.field.value"),
            (field(5, number(1.0)), "filter.field.value"),
            (field(1, list(1)), "filter.field.value"),
            (field(0, number(1.0)), "filter.field.op"),
            (field(99, number(1.0)), "filter.field.op"),
            (composite(0, vec![]), "filter.composite.op"),
            (composite(1, vec![]), "filter.composite.filters"),
            (composite(3, vec![field(1, number(1.0)); 2]), "filter.composite.filters"),
            (wire::Filter { filter: None }, "filter"),
        ] {
            assert_eq!(convert(filter).unwrap_err(), [wrong]);
        }
    }
}
