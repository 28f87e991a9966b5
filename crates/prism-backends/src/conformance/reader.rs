//! What every [`Reader`] does, on a table `items` (`id` text primary key, `name` text, `quantity` integer, `price` real) that
//! is empty at first and that `transact` may write.

use prism_core::Kind;

use crate::driver::{
    DataWrite, Direction, Filter, LogicalOperator, Operator, ReadRequest, Reader, Record, Sort, Transact,
    TransactOptions, Value, WriteMode, WriteSet,
};

/// Runs all checks.
pub async fn run(reader: &dyn Reader, transact: &dyn Transact) {
    fill(transact).await;
    filters_let_the_right_rows_through(reader).await;
    pages_add_up_to_the_whole(reader).await;
    fields_choose_columns(reader).await;
    a_cursor_belongs_to_its_query(reader).await;
    what_does_not_exist_is_refused(reader).await;
    operands_fit_their_operators(reader).await;
    rows_that_come_and_go_shift_nothing(reader, transact).await;
}

/// Reads to the end, page by page.
pub async fn read_all(reader: &dyn Reader, mut request: ReadRequest) -> Vec<Record> {
    let mut rows = Vec::new();
    loop {
        let page = reader.read(request.clone()).await.unwrap();
        assert!(page.rows.len() <= request.limit, "a page is at most as long as asked");
        assert!(page.next_cursor.is_none() || !page.rows.is_empty(), "an empty page is the last");
        rows.extend(page.rows);
        request.cursor = page.next_cursor;
        if request.cursor.is_none() {
            return rows;
        }
    }
}

/// A row of these columns.
pub fn record(values: &[(&str, Value)]) -> Record {
    values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// A text value.
pub fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn all() -> ReadRequest {
    ReadRequest { collection: "items".to_owned(), limit: 1000, ..ReadRequest::default() }
}

fn item(id: &str, name: Value, quantity: Value, price: Value) -> Record {
    record(&[("id", text(id)), ("name", name), ("quantity", quantity), ("price", price)])
}

async fn write(transact: &dyn Transact, mode: WriteMode, record: Record) {
    let data = DataWrite { table: "items".to_owned(), record, mode, id_field: None };
    transact.write(WriteSet { data: Some(data), mailbox: None }, TransactOptions::default()).await.unwrap();
}

async fn fill(transact: &dyn Transact) {
    let rows = [
        item("a", text("Apple"), Value::Integer(3), Value::Real(1.5)),
        item("b", text("apple pie"), Value::Integer(3), Value::Null),
        item("c", text("100% juice_x"), Value::Integer((1 << 53) + 1), Value::Real(-0.25)),
        item("d", Value::Null, Value::Null, Value::Real(1.5)),
        item("e", text("'; DROP TABLE items; --"), Value::Integer(i64::MIN), Value::Null),
        item("f", text("a\u{301}pfel \u{1f34f}"), Value::Integer(i64::MAX), Value::Real(1e300)),
        item("g", text(""), Value::Integer(0), Value::Real(0.0)),
    ];
    for row in rows {
        write(transact, WriteMode::Insert, row).await;
    }
}

fn field(name: &str, operator: Operator, value: Value) -> Filter {
    Filter::Field { field: name.to_owned(), operator, value }
}

fn composite(operator: LogicalOperator, filters: Vec<Filter>) -> Filter {
    Filter::Composite { operator, filters }
}

async fn filters_let_the_right_rows_through(reader: &dyn Reader) {
    use Operator::{
        Contains, Equals, GreaterThan, GreaterThanOrEquals, In, LessThan, LessThanOrEquals, NotEquals, StartsWith,
    };
    let not = |filter| composite(LogicalOperator::Not, vec![filter]);
    let list = |values: &[Value]| Value::List(values.to_vec());
    let cases = [
        ("ab", field("quantity", Equals, Value::Integer(3))),
        ("c", field("quantity", Equals, Value::Integer((1 << 53) + 1))),
        ("", field("quantity", Equals, Value::Integer(1 << 53))),
        ("ceg", field("quantity", NotEquals, Value::Integer(3)).also(field("id", NotEquals, text("f")))),
        ("cf", field("quantity", GreaterThan, Value::Integer(3))),
        ("abcf", field("quantity", GreaterThanOrEquals, Value::Integer(3))),
        ("eg", field("quantity", LessThan, Value::Integer(3))),
        ("abeg", field("quantity", LessThanOrEquals, Value::Integer(3))),
        ("adf", field("price", GreaterThan, Value::Real(1.25))),
        ("d", field("name", Equals, Value::Null)),
        ("acdfg", field("price", NotEquals, Value::Null)),
        ("ad", field("id", In, list(&[text("a"), text("d"), text("z")]))),
        ("abd", field("quantity", In, list(&[Value::Integer(3), Value::Null]))),
        ("a", field("name", Contains, text("App"))),
        ("b", field("name", Contains, text("e p"))),
        ("c", field("name", Contains, text("%"))),
        ("c", field("name", Contains, text("_"))),
        ("e", field("name", Contains, text("DROP TABLE"))),
        ("f", field("name", Contains, text("\u{1f34f}"))),
        ("abcefg", field("name", Contains, text(""))),
        ("b", field("name", StartsWith, text("apple"))),
        ("f", field("name", StartsWith, text("a\u{301}"))),
        ("", field("name", StartsWith, text("%"))),
        ("abcefg", field("name", StartsWith, text(""))),
        ("g", field("name", Equals, text(""))),
        ("e", field("name", Equals, text("'; DROP TABLE items; --"))),
        ("cefg", not(field("quantity", Equals, Value::Integer(3)))),
        ("acefg", not(field("name", StartsWith, text("apple")))),
        ("cdefg", not(field("quantity", In, list(&[Value::Integer(3)]))).or(field("quantity", Equals, Value::Null))),
        ("bg", field("id", Equals, text("g")).or(field("name", StartsWith, text("apple")))),
        ("abcdefg", composite(LogicalOperator::And, vec![not(field("id", Equals, text("nobody")))])),
    ];
    for (expected, filter) in cases {
        let rows = read_all(reader, ReadRequest { filter: Some(filter.clone()), ..all() }).await;
        let mut ids: Vec<_> = rows.iter().map(|row| format!("{:?}", row["id"])).collect();
        ids.sort();
        let wanted: Vec<_> = expected.chars().map(|id| format!("{:?}", text(&id.to_string()))).collect();
        assert_eq!(ids, wanted, "{filter:?}");
        assert_eq!(reader.count("items", Some(filter.clone())).await.unwrap(), wanted.len() as i64, "{filter:?}");
    }
    assert_eq!(reader.count("items", None).await.unwrap(), 7);
}

impl Filter {
    fn also(self, other: Self) -> Self {
        composite(LogicalOperator::And, vec![self, other])
    }
    fn or(self, other: Self) -> Self {
        composite(LogicalOperator::Or, vec![self, other])
    }
}

async fn pages_add_up_to_the_whole(reader: &dyn Reader) {
    let directions = [Direction::Ascending, Direction::Descending];
    let by = |field: &str, direction| Sort { field: field.to_owned(), direction };
    let mut sorts = vec![vec![]];
    for field in ["id", "name", "quantity", "price"] {
        for direction in directions {
            sorts.push(vec![by(field, direction)]);
            sorts.extend(directions.map(|second| vec![by("price", direction), by(field, second)]));
        }
    }
    for sort in sorts {
        let whole = reader.read(ReadRequest { sort: sort.clone(), ..all() }).await.unwrap();
        assert!(whole.next_cursor.is_none(), "seven rows fit in one page");
        assert_eq!(whole.rows.len(), 7);
        for limit in [1, 2, 6, 7] {
            let rows = read_all(reader, ReadRequest { sort: sort.clone(), limit, ..all() }).await;
            assert_eq!(rows, whole.rows, "{sort:?} in pages of {limit}");
        }
    }
    let sort = vec![by("quantity", Direction::Ascending)];
    let known = field("quantity", Operator::NotEquals, Value::Null);
    let rows = read_all(reader, ReadRequest { sort, filter: Some(known), limit: 2, ..all() }).await;
    let quantities: Vec<_> = rows.iter().map(|row| row["quantity"].clone()).collect();
    let sorted = [i64::MIN, 0, 3, 3, (1 << 53) + 1, i64::MAX].map(Value::Integer);
    assert_eq!(quantities, sorted, "64-bit integers keep their value and order");
}

async fn fields_choose_columns(reader: &dyn Reader) {
    let fields = ["price", "id", "price"].map(str::to_owned).to_vec();
    let by_name = vec![Sort { field: "name".to_owned(), direction: Direction::Ascending }];
    let rows = read_all(reader, ReadRequest { fields, sort: by_name, limit: 2, ..all() }).await;
    assert_eq!(rows.len(), 7);
    assert!(rows.contains(&record(&[("id", text("a")), ("price", Value::Real(1.5))])));
    assert!(rows.iter().all(|row| row.len() == 2), "only the columns that were asked for");
}

async fn a_cursor_belongs_to_its_query(reader: &dyn Reader) {
    let first = ReadRequest { limit: 2, ..all() };
    let cursor = reader.read(first.clone()).await.unwrap().next_cursor;
    assert!(cursor.is_some());
    let others = [
        ReadRequest { sort: vec![Sort { field: "name".to_owned(), direction: Direction::Ascending }], ..first.clone() },
        ReadRequest { filter: Some(field("id", Operator::NotEquals, text("z"))), ..first.clone() },
    ];
    for other in others {
        let refused = reader.read(ReadRequest { cursor: cursor.clone(), ..other }).await.unwrap_err();
        assert_eq!(refused.fields()[0].field, "cursor");
    }
    for malformed in ["", "x", "AAAA", "!!", &"A".repeat(100_000)] {
        let request = ReadRequest { cursor: Some(malformed.to_owned()), ..first.clone() };
        assert_eq!(reader.read(request).await.unwrap_err().fields()[0].field, "cursor", "{malformed:.10}");
    }
}

async fn what_does_not_exist_is_refused(reader: &dyn Reader) {
    for name in
        ["", "other", "ITEMS ", "items; DROP TABLE items", "main.items", "\"items\"", "sqlite_schema", "_prism_usage"]
    {
        let refused = reader.read(ReadRequest { collection: name.to_owned(), ..all() }).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::PermissionDenied, "COLLECTION_NOT_ALLOWED"), "{name}");
        assert_eq!(reader.count(name, None).await.unwrap_err().reason(), "COLLECTION_NOT_ALLOWED", "{name}");
    }
    for name in ["", "*", "rowid", "oid", "ctid", "nope", "\"", "id\"", "name, price", "1", "count(*)", "id\0"] {
        let by = vec![Sort { field: name.to_owned(), direction: Direction::Ascending }];
        let requests = [
            ("fields", ReadRequest { fields: vec!["id".to_owned(), name.to_owned()], ..all() }),
            ("filter", ReadRequest { filter: Some(field(name, Operator::Equals, Value::Null)), ..all() }),
            ("sort", ReadRequest { sort: by, ..all() }),
        ];
        for (path, request) in requests {
            assert_eq!(reader.read(request).await.unwrap_err().fields()[0].field, path, "{name:?}");
        }
    }
}

async fn operands_fit_their_operators(reader: &dyn Reader) {
    let list = || Value::List(vec![Value::Integer(1)]);
    let wrong = [
        field("name", Operator::Contains, Value::Integer(1)),
        field("name", Operator::StartsWith, Value::Null),
        field("name", Operator::Contains, list()),
        field("name", Operator::GreaterThan, Value::Null),
        field("quantity", Operator::Equals, list()),
        field("quantity", Operator::In, Value::Integer(1)),
        field("quantity", Operator::In, Value::List(vec![])),
        field("quantity", Operator::In, Value::List(vec![list()])),
        field("quantity", Operator::In, Value::List(vec![Value::Integer(1); 1001])),
        composite(LogicalOperator::And, vec![]),
        composite(LogicalOperator::Not, vec![]),
        composite(
            LogicalOperator::Not,
            vec![field("id", Operator::Equals, text("a")), field("id", Operator::Equals, text("a"))],
        ),
        nested(40, 1),
    ];
    for filter in wrong {
        assert_eq!(
            reader.count("items", Some(filter.clone())).await.unwrap_err().fields()[0].field,
            "filter",
            "{filter:?}"
        );
    }
    // The largest that the service lets through.
    let wide = composite(
        LogicalOperator::Or,
        (0..1000).map(|n| field("quantity", Operator::Equals, Value::Integer(n))).collect(),
    );
    assert_eq!(reader.count("items", Some(wide)).await.unwrap(), 3);
    assert_eq!(reader.count("items", Some(nested(31, 30))).await.unwrap(), 7);
    let long = Value::List((0..1000).map(Value::Integer).collect());
    assert_eq!(reader.count("items", Some(field("quantity", Operator::In, long))).await.unwrap(), 3);
}

/// `levels` of composites, each with `width` comparisons that hold beside the next level.
fn nested(levels: usize, width: usize) -> Filter {
    (0..levels).fold(field("id", Operator::NotEquals, Value::Null), |inner, level| {
        let mut filters: Vec<_> = (0..width).map(|_| field("id", Operator::NotEquals, Value::Null)).collect();
        filters.push(inner);
        composite(if level % 2 == 0 { LogicalOperator::And } else { LogicalOperator::Or }, filters)
    })
}

async fn rows_that_come_and_go_shift_nothing(reader: &dyn Reader, transact: &dyn Transact) {
    for direction in [Direction::Ascending, Direction::Descending] {
        let by = vec![Sort { field: "quantity".to_owned(), direction }];
        let before = read_all(reader, ReadRequest { sort: by.clone(), ..all() }).await;
        let mut request = ReadRequest { sort: by, limit: 1, ..all() };
        let mut seen = Vec::new();
        let mut added = Vec::new();
        loop {
            let page = reader.read(request.clone()).await.unwrap();
            seen.extend(page.rows);
            // One row in every place: before, beside and behind where the reader stands.
            for (index, quantity) in
                [Value::Null, Value::Integer(i64::MIN), Value::Integer(3), Value::Integer(i64::MAX)]
                    .into_iter()
                    .enumerate()
            {
                let id = format!("new-{}-{index}", added.len());
                if added.len() < 24 {
                    write(transact, WriteMode::Insert, item(&id, Value::Null, quantity, Value::Null)).await;
                    added.push(id);
                }
            }
            request.cursor = page.next_cursor;
            if request.cursor.is_none() {
                break;
            }
        }
        for row in &before {
            assert_eq!(seen.iter().filter(|found| *found == row).count(), 1, "{row:?} is given exactly once");
        }
        let mut ids: Vec<_> = seen.iter().map(|row| format!("{:?}", row["id"])).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), seen.len(), "no row is given twice");
        for id in added {
            write(transact, WriteMode::Delete, record(&[("id", text(&id))])).await;
        }
    }
}
