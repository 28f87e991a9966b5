//! ReaderService on the embedded backend: contract §4, §9 "reader" and "tables".

use std::collections::BTreeMap;

use prism_e2e::rows::{compare, composite, item, list, null, number, text, write};
use prism_e2e::site::{config, unique, with_option};
use prism_e2e::wait::next;
use prism_e2e::{Options, Pattern, Refused as _, Session, Shared, Site};
use prism_proto::reader::v1::{
    CountRequest, Direction, Filter, LogicalOperator, Operator, Page, QueryRequest, ReadRequest, Sort,
};
use prism_proto::transact::v1::WriteMode;
use prost_types::value::Kind;
use tonic::{Code, Status};

static SERVER: Shared = Shared::new();

/// A reader of a table with `count` rows, and a session that can add more.
async fn table(count: u32) -> (Site, Session, Session) {
    let site = Site::new(SERVER.get(Options::new()).await).await;
    let writer = site.session(Pattern::Transact).await;
    for row in 0..count {
        insert(&writer, row).await;
    }
    let reader = site.session(Pattern::Reader).await;
    (site, reader, writer)
}

async fn insert(writer: &Session, row: u32) {
    let name = ["bolt", "nut", "screw"][row as usize % 3];
    let record = item(&format!("id-{row:04}"), name, f64::from(row), f64::from(row) / 4.0);
    writer.transact().write(write(WriteMode::Insert, record)).await.unwrap();
}

fn items() -> ReadRequest {
    ReadRequest { collection: "items".to_owned(), ..Default::default() }
}

fn sort(field: &str, direction: Direction) -> Sort {
    Sort { field: field.to_owned(), direction: direction.into() }
}

async fn pages(reader: &Session, request: ReadRequest) -> Result<Vec<Page>, Status> {
    let mut stream = reader.reader().read(request).await?.into_inner();
    let mut pages = Vec::new();
    while let Some(page) = next("a page", &mut stream).await {
        pages.push(page?);
    }
    Ok(pages)
}

fn id(row: &BTreeMap<String, prost_types::Value>) -> String {
    match row["id"].kind.as_ref().unwrap() {
        Kind::StringValue(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

fn ids(pages: &[Page]) -> Vec<String> {
    pages.iter().flat_map(|page| &page.rows).map(|row| id(&row.fields)).collect()
}

async fn query(reader: &Session, filter: Filter) -> Result<Vec<String>, Status> {
    let request = QueryRequest {
        collection: "items".to_owned(),
        filter: Some(filter),
        sort: vec![sort("id", Direction::Asc)],
        ..Default::default()
    };
    let mut stream = reader.reader().query(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(row) = next("a row", &mut stream).await {
        found.push(id(&row?.fields));
    }
    Ok(found)
}

fn numbers(rows: &[u32]) -> Vec<String> {
    rows.iter().map(|row| format!("id-{row:04}")).collect()
}

#[tokio::test]
async fn read_streams_page_after_page_to_the_end() {
    let (_site, reader, _) = table(250).await;
    let default = pages(&reader, items()).await.unwrap();
    assert_eq!(default.iter().map(|page| page.rows.len()).collect::<Vec<_>>(), [100, 100, 50], "page_size 0 = 100");
    assert_eq!(ids(&default), numbers(&(0..250).collect::<Vec<_>>()));
    assert_eq!(default.iter().map(|page| page.has_more).collect::<Vec<_>>(), [true, true, false]);
    assert!(default[2].next_cursor.is_none() && default[0].next_cursor.is_some());
    let whole = pages(&reader, ReadRequest { page_size: 5000, ..items() }).await.unwrap();
    assert_eq!(whole.len(), 1);
    let resumed = pages(&reader, ReadRequest { cursor: default[0].next_cursor.clone(), ..items() }).await.unwrap();
    assert_eq!(ids(&resumed), numbers(&(100..250).collect::<Vec<_>>()));
    pages(&reader, ReadRequest { page_size: -1, ..items() }).await.refused().names(&["page_size"]);
}

#[tokio::test]
async fn a_cursor_survives_inserts_and_belongs_to_its_read() {
    let (_site, reader, writer) = table(0).await;
    for row in (0..40).step_by(2) {
        insert(&writer, row).await;
    }
    let mut request = ReadRequest { page_size: 10, sort: vec![sort("id", Direction::Asc)], ..items() };
    let mut stream = reader.reader().read(request.clone()).await.unwrap().into_inner();
    let first = next("a page", &mut stream).await.unwrap().unwrap();
    drop(stream);
    for row in [1, 19, 21] {
        insert(&writer, row).await;
    }
    request.cursor = first.next_cursor;
    let rest = pages(&reader, request.clone()).await.unwrap();
    assert_eq!(ids(&rest), numbers(&[19, 20, 21, 22, 24, 26, 28, 30, 32, 34, 36, 38]), "none lost, none twice");
    let sorted = ReadRequest { sort: vec![sort("quantity", Direction::Desc)], ..request.clone() };
    pages(&reader, sorted).await.refused().names(&["cursor"]);
    let filtered = ReadRequest { filter: Some(compare("name", Operator::Equals, text("nut"))), ..request.clone() };
    pages(&reader, filtered).await.refused().names(&["cursor"]);
    pages(&reader, ReadRequest { cursor: Some("nonsense".to_owned()), ..request }).await.refused().names(&["cursor"]);
}

#[tokio::test]
async fn every_operator_compares() {
    use Operator as O;

    let (_site, reader, writer) = table(6).await;
    let mut unnamed = item("id-0006", "", 6.0, 1.5);
    unnamed.insert("name".to_owned(), null());
    writer.transact().write(write(WriteMode::Insert, unnamed)).await.unwrap();
    for (field, op, value, expected) in [
        ("name", O::Equals, text("nut"), &[1, 4][..]),
        ("name", O::NotEquals, text("nut"), &[0, 2, 3, 5]),
        ("quantity", O::GreaterThan, number(3.0), &[4, 5, 6]),
        ("quantity", O::GreaterThanOrEquals, number(3.0), &[3, 4, 5, 6]),
        ("quantity", O::LessThan, number(2.0), &[0, 1]),
        ("quantity", O::LessThanOrEquals, number(2.0), &[0, 1, 2]),
        ("price", O::Equals, number(0.75), &[3]),
        ("quantity", O::In, list(vec![number(1.0), number(5.0), number(99.0)]), &[1, 5]),
        ("name", O::Contains, text("re"), &[2, 5]),
        ("name", O::Contains, text("%"), &[]),
        ("name", O::StartsWith, text("b"), &[0, 3]),
        ("name", O::StartsWith, text("_"), &[]),
        ("name", O::Equals, null(), &[6]),
        ("name", O::Equals, text("nut' OR '1'='1"), &[]),
    ] {
        let found = query(&reader, compare(field, op, value.clone())).await.unwrap();
        assert_eq!(found, numbers(expected), "{field} {op:?} {value:?}");
    }
}

#[tokio::test]
async fn filters_combine() {
    let (_site, reader, _) = table(9).await;
    let nuts = || compare("name", Operator::Equals, text("nut"));
    let many = || compare("quantity", Operator::GreaterThan, number(3.0));
    let and = composite(LogicalOperator::And, vec![nuts(), many()]);
    assert_eq!(query(&reader, and.clone()).await.unwrap(), numbers(&[4, 7]));
    let or = composite(LogicalOperator::Or, vec![nuts(), many()]);
    assert_eq!(query(&reader, or).await.unwrap(), numbers(&[1, 4, 5, 6, 7, 8]));
    let not = composite(LogicalOperator::Not, vec![and]);
    assert_eq!(query(&reader, not).await.unwrap(), numbers(&[0, 1, 2, 3, 5, 6, 8]));
    let request = CountRequest { collection: "items".to_owned(), filter: Some(nuts()), ..Default::default() };
    assert_eq!(reader.reader().count(request).await.unwrap().into_inner().count, 3);
    let request = CountRequest { collection: "items".to_owned(), ..Default::default() };
    assert_eq!(reader.reader().count(request).await.unwrap().into_inner().count, 9);
}

#[tokio::test]
async fn rows_are_sorted_and_cut_to_the_fields() {
    let (_site, reader, _) = table(9).await;
    let request = ReadRequest {
        sort: vec![sort("name", Direction::Desc), sort("quantity", Direction::Asc)],
        fields: vec!["id".to_owned()],
        page_size: 2,
        ..items()
    };
    let found = pages(&reader, request).await.unwrap();
    assert_eq!(ids(&found), numbers(&[2, 5, 8, 1, 4, 7, 0, 3, 6]));
    assert!(found.iter().flat_map(|page| &page.rows).all(|row| row.fields.len() == 1));
}

#[tokio::test]
async fn only_the_collections_of_the_config_can_be_read() {
    let (site, reader, _) = table(1).await;
    for other in ["others", "sqlite_master", "_prism_kv", "items; DROP TABLE items", "\"items\"", "main.items"] {
        let request = ReadRequest { collection: other.to_owned(), ..Default::default() };
        assert_eq!(pages(&reader, request).await.refused().code, Code::PermissionDenied, "{other}");
    }
    pages(&reader, ReadRequest::default()).await.refused().names(&["collection"]);
    // Allowed and not there.
    let absent =
        with_option(config(&unique("absent"), &site.namespace, Pattern::Reader), "collections", "items,absent");
    let name = site.configure(absent).await;
    let session = site.session_of(&name).await;
    let request = ReadRequest { collection: "absent".to_owned(), ..Default::default() };
    assert_eq!(pages(&session, request).await.refused().code, Code::NotFound);
    // Unknown columns name the field that asks for them; nothing of a name gets into SQL.
    let evil = "id\" FROM items; --";
    let filter = Some(compare(evil, Operator::Equals, text("x")));
    for (request, path) in [
        (ReadRequest { fields: vec![evil.to_owned()], ..items() }, "fields"),
        (ReadRequest { sort: vec![sort(evil, Direction::Asc)], ..items() }, "sort"),
        (ReadRequest { filter, ..items() }, "filter"),
    ] {
        let refused = pages(&reader, request).await.refused();
        assert_eq!(refused.code, Code::InvalidArgument);
        assert!(refused.fields.len() == 1 && refused.fields[0].starts_with(path), "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn malformed_filters_name_their_path() {
    let (_site, reader, _) = table(1).await;
    let nothing = || Filter { filter: None };
    let mut deep = compare("name", Operator::Equals, text("x"));
    for _ in 0..40 {
        deep = composite(LogicalOperator::Not, vec![deep]);
    }
    let wide = compare("name", Operator::In, list(vec![text("x"); 1001]));
    for (filter, path) in [
        (nothing(), "filter"),
        (compare("name", Operator::Unspecified, text("x")), "filter.field.op"),
        (compare("name", Operator::In, text("x")), "filter.field.value"),
        (compare("name", Operator::Equals, list(vec![])), "filter.field.value"),
        (compare("name", Operator::Equals, number(f64::NAN)), "filter.field.value"),
        (composite(LogicalOperator::Unspecified, vec![nothing()]), "filter.composite.op"),
        (composite(LogicalOperator::And, vec![]), "filter.composite.filters"),
        (composite(LogicalOperator::Or, vec![nothing()]), "filter.composite.filters[0]"),
        (deep, "filter"),
        (wide, "filter.field.value"),
    ] {
        let refused = query(&reader, filter).await.refused();
        assert_eq!(refused.code, Code::InvalidArgument, "{refused:?}");
        assert!(refused.fields.iter().any(|field| field == path), "{path}: {refused:?}");
    }
}

#[tokio::test]
async fn large_rows_come_in_pages_that_fit_a_message() {
    let (_site, reader, writer) = table(0).await;
    for row in 0..12 {
        let record = item(&format!("id-{row:04}"), &"x".repeat(1 << 20), 0.0, 0.0);
        writer.transact().write(write(WriteMode::Insert, record)).await.unwrap();
    }
    let found = pages(&reader, ReadRequest { page_size: 1000, ..items() }).await.unwrap();
    assert_eq!(ids(&found).len(), 12);
    assert!(found.len() > 1);
}
