use std::cmp::Ordering;
use std::time::Duration;

use prism_core::storage::StorageMeter;
use prism_core::{Clock, NamespaceName};
use prism_sqlite::error;
use proptest::prelude::*;

use super::*;
use crate::conformance::reader::{read_all, record, text};
use crate::conformance::{self};
use crate::driver::{Direction, Operator, Record, Sort, Value};
use crate::sqlite::transact::SqliteTransact;

struct Fixture {
    _folder: tempfile::TempDir,
    space: Arc<Space>,
}

impl Fixture {
    async fn new(schema: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let namespace = NamespaceName::parse("namespace", "test").unwrap();
        let meter = StorageMeter::new(namespace.clone());
        let space = Arc::new(Space::open(&folder.path().join("test.db"), namespace, meter, Clock::system()).unwrap());
        let fixture = Self { _folder: folder, space };
        fixture.execute(schema).await;
        fixture
    }

    async fn execute(&self, sql: &str) {
        let sql = sql.to_owned();
        self.space
            .write(move |connection| connection.execute_batch(&sql).map(|()| ((), 0)).map_err(error))
            .await
            .unwrap();
    }

    fn reader(&self, collections: &[&str]) -> SqliteReader {
        SqliteReader::new(Arc::clone(&self.space), collections.iter().map(|name| (*name).to_owned()).collect())
    }

    async fn insert(&self, table: &str, values: &[Value]) {
        let marks = vec!["?"; values.len()].join(", ");
        let (sql, values) = (format!("INSERT INTO {table} VALUES ({marks})"), values.to_vec());
        self.space
            .write(move |connection| {
                let bound =
                    values.iter().map(|value| rusqlite::types::ToSqlOutput::Borrowed(table::bind(value).unwrap()));
                connection.execute(&sql, rusqlite::params_from_iter(bound)).map(|_| ((), 0)).map_err(error)
            })
            .await
            .unwrap();
    }
}

fn request(collection: &str) -> ReadRequest {
    ReadRequest { collection: collection.to_owned(), limit: 1000, ..ReadRequest::default() }
}

fn by(field: &str, direction: Direction) -> Sort {
    Sort { field: field.to_owned(), direction }
}

fn rows(text: &str, count: usize) -> String {
    format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) {text}")
}

#[tokio::test]
async fn conforms() {
    let items = "CREATE TABLE items (id TEXT PRIMARY KEY, name TEXT, quantity INTEGER, price REAL)";
    for kind in ["", "WITHOUT ROWID", "STRICT"] {
        let fixture = Fixture::new(&format!("{items} {kind}")).await;
        let transact = SqliteTransact::new(Arc::clone(&fixture.space), vec!["items".to_owned()]);
        conformance::reader::run(&fixture.reader(&["items", "_prism_usage", "sqlite_schema"]), &transact).await;
    }
}

#[tokio::test]
async fn names_are_only_names() {
    let fixture = Fixture::new(
        "CREATE TABLE \"a\"\"; DROP TABLE x; --\" (\"\"\"\" TEXT, \"select\" TEXT, \"a b\" TEXT, rowid TEXT, \"''\" TEXT);
         CREATE TABLE x (id INTEGER PRIMARY KEY);
         CREATE TABLE hidden (rowid, _rowid_, oid);",
    )
    .await;
    let name = "a\"; DROP TABLE x; --";
    let reader = fixture.reader(&[name, "x", "hidden", "missing", "pragma_table_list", "main.x"]);
    let quoted = "\"a\"\"; DROP TABLE x; --\"";
    for n in 0..5 {
        fixture.insert(quoted, &[text(&(n / 2).to_string()), text("s"), Value::Null, text("r"), text("q")]).await;
        fixture.insert("hidden", &[Value::Integer(1), Value::Null, text("same")]).await;
    }
    let sort =
        vec![by("\"", Direction::Descending), by("a b", Direction::Ascending), by("select", Direction::Descending)];
    let found = read_all(&reader, ReadRequest { sort, limit: 2, fields: vec!["\"".to_owned()], ..request(name) }).await;
    assert_eq!(found, ["2", "1", "1", "0", "0"].map(|value| record(&[("\"", text(value))])));
    assert_eq!(
        read_all(&reader, ReadRequest { limit: 2, ..request("hidden") }).await.len(),
        5,
        "rows without any identity"
    );
    for missing in ["missing", "pragma_table_list", "main.x"] {
        let refused = reader.read(request(missing)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.message().contains(missing)), (Kind::NotFound, true));
        assert_eq!(reader.count(missing, None).await.unwrap_err().kind(), Kind::NotFound);
    }
    assert_eq!(reader.count("x", None).await.unwrap(), 0);
}

#[tokio::test]
async fn views_and_computed_columns_are_read() {
    let fixture = Fixture::new(
        "CREATE TABLE t (a INTEGER, b TEXT COLLATE NOCASE, twice INTEGER AS (a * 2));
         CREATE VIEW v AS SELECT b, a % 2 AS odd FROM t;",
    )
    .await;
    for (a, b) in [(1, "x"), (3, "x"), (5, "X"), (2, "y"), (4, "y"), (7, "x")] {
        fixture.execute(&format!("INSERT INTO t VALUES ({a}, '{b}')")).await;
    }
    let reader = fixture.reader(&["t", "v"]);
    let sort = vec![by("b", Direction::Descending)];
    let whole = read_all(&reader, ReadRequest { sort: sort.clone(), ..request("v") }).await;
    for limit in 1..7 {
        let paged = read_all(&reader, ReadRequest { sort: sort.clone(), limit, ..request("v") }).await;
        assert_eq!(paged, whole, "equal rows are neither lost nor repeated");
    }
    assert_eq!(whole.len(), 6);
    let doubled =
        read_all(&reader, ReadRequest { sort: vec![by("twice", Direction::Descending)], limit: 4, ..request("t") })
            .await;
    assert_eq!(doubled[0]["twice"], Value::Integer(14));
}

#[tokio::test]
async fn values_come_as_they_are_stored() {
    let fixture = Fixture::new("CREATE TABLE t (x)").await;
    let values = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer((1 << 53) + 1),
        Value::Real(0.1),
        Value::Real(f64::MIN_POSITIVE),
        text("12"),
        text("nul\0inside"),
        Value::Bytes(vec![0, 255]),
        Value::Bytes(vec![]),
    ];
    for value in &values {
        fixture.insert("t", std::slice::from_ref(value)).await;
    }
    fixture.execute("INSERT INTO t VALUES (CAST(x'ff' AS TEXT)), (TRUE)").await;
    let reader = fixture.reader(&["t"]);
    let found: Vec<_> =
        read_all(&reader, ReadRequest { limit: 2, ..request("t") }).await.iter().map(|row| row["x"].clone()).collect();
    assert_eq!(found[..values.len()], values);
    assert_eq!(found[values.len()..], [Value::Bytes(vec![255]), Value::Integer(1)]);
    let sorted =
        read_all(&reader, ReadRequest { limit: 1, sort: vec![by("x", Direction::Descending)], ..request("t") }).await;
    assert_eq!(sorted.len(), values.len() + 2, "text that is not UTF-8 pages too");
    for (operator, value, count) in [
        (Operator::Contains, text("\0in"), 1),
        (Operator::StartsWith, text("nul\0i"), 1),
        (Operator::StartsWith, text("nul\0o"), 0),
        (Operator::Equals, Value::Bytes(vec![0, 255]), 1),
        (Operator::Equals, Value::Bool(true), 1),
        (Operator::Equals, text("12"), 1),
        (Operator::Equals, Value::Integer(12), 0),
    ] {
        let filter = Filter::Field { field: "x".to_owned(), operator, value };
        assert_eq!(reader.count("t", Some(filter.clone())).await.unwrap(), count, "{filter:?}");
    }
}

#[tokio::test]
async fn a_page_ends_before_it_grows_too_large() {
    let fixture = Fixture::new("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)").await;
    fixture.execute(&rows("INSERT INTO t SELECT i, zeroblob(1000000) FROM n", 8)).await;
    fixture.execute("INSERT INTO t VALUES (9, zeroblob(5000000)), (10, zeroblob(5000000))").await;
    let reader = fixture.reader(&["t"]);
    let (mut sizes, mut next) = (Vec::new(), request("t"));
    loop {
        let page = reader.read(next.clone()).await.unwrap();
        sizes.push(page.rows.len());
        next.cursor = page.next_cursor;
        if next.cursor.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [3, 3, 2, 1, 1]);
    let large = ReadRequest { sort: vec![by("body", Direction::Ascending)], limit: 1, ..request("t") };
    assert_eq!(reader.read(large).await.unwrap_err().reason(), "SORT_VALUE_TOO_LARGE");
}

#[tokio::test]
async fn pages_use_the_index() {
    let fixture =
        Fixture::new("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL); CREATE INDEX tn ON t (n)").await;
    fixture.execute(&rows("INSERT INTO t SELECT i, i / 10 FROM n", 2000)).await;
    let reader = fixture.reader(&["t"]);
    for direction in [Direction::Ascending, Direction::Descending] {
        let mut next = ReadRequest { sort: vec![by("n", direction)], limit: 500, ..request("t") };
        for _ in 0..3 {
            next.cursor = reader.read(next.clone()).await.unwrap().next_cursor;
        }
        let plan = reader
            .run(move |connection| {
                let table = table::Table::load(connection, "t")?.unwrap();
                let order = sql::Order::new(&table, &next.sort)?;
                let position =
                    cursor::decode(next.cursor.as_deref().unwrap(), cursor::fingerprint(&next), order.len())?;
                let sql = format!(
                    "EXPLAIN QUERY PLAN SELECT id FROM t WHERE {} ORDER BY {}",
                    order.after(&position).sql,
                    order.clause()
                );
                let mut statement = connection.prepare(&sql).map_err(error)?;
                let values = (0..statement.parameter_count()).map(|_| 1);
                let plan = statement
                    .query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3))
                    .map_err(error)?;
                plan.collect::<rusqlite::Result<Vec<_>>>().map_err(error)
            })
            .await
            .unwrap()
            .join("; ");
        assert!(
            plan.contains("SEARCH t USING COVERING INDEX tn (n") && !plan.contains("TEMP B-TREE FOR ORDER BY"),
            "{plan}"
        );
    }
}

#[tokio::test]
async fn a_query_stops_when_its_caller_has_gone() {
    let fixture = Fixture::new("CREATE TABLE t (x TEXT)").await;
    fixture.execute(&rows("INSERT INTO t SELECT hex(zeroblob(500)) FROM n", 40000)).await;
    let reader = fixture.reader(&["t"]);
    let needle = Filter::Field { field: "x".to_owned(), operator: Operator::Contains, value: text("1") };
    let slow = Filter::Composite { operator: crate::driver::LogicalOperator::Or, filters: vec![needle; 32] };
    let call = reader.count("t", Some(slow));
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    let given_back = async {
        while fixture.space.scans().idle() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), given_back).await.expect("nothing runs for those who left");
    assert_eq!(reader.count("t", None).await.unwrap(), 40000, "the connection is as good as new");
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_keep_nobody_else_waiting() {
    let fixture = Fixture::new("CREATE TABLE t (x TEXT)").await;
    fixture.execute(&rows("INSERT INTO t SELECT hex(zeroblob(500)) FROM n", 40000)).await;
    let needle = Filter::Field { field: "x".to_owned(), operator: Operator::Contains, value: text("1") };
    let slow = Filter::Composite { operator: crate::driver::LogicalOperator::Or, filters: vec![needle; 32] };
    let scans: Vec<_> = (0..20)
        .map(|_| {
            let (reader, slow) = (fixture.reader(&["t"]), slow.clone());
            tokio::spawn(async move { reader.count("t", Some(slow)).await })
        })
        .collect();
    while fixture.space.scans().active() < fixture.space.scans().capacity() {
        tokio::task::yield_now().await;
    }
    fixture.space.readers().run(|_| Ok(())).await.unwrap();
    assert!(scans.iter().all(|scan| !scan.is_finished()), "a quick read overtakes them all");
    scans.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_a_search_costs_is_bounded() {
    let fixture = Fixture::new("CREATE TABLE t (x TEXT)").await;
    fixture.insert("t", &[text(&"a".repeat(1 << 20))]).await;
    let reader = fixture.reader(&["t"]);
    let part = |operator, bytes: usize| Filter::Field {
        field: "x".to_owned(),
        operator,
        value: text(&("a".repeat(bytes - 1) + "b")),
    };
    let and = |filters| Filter::Composite { operator: crate::driver::LogicalOperator::And, filters };
    for accepted in [
        part(Operator::Contains, 4096),
        and(vec![part(Operator::StartsWith, 4096); 40]),
        and(vec![part(Operator::Contains, 128); 32]),
    ] {
        assert_eq!(reader.count("t", Some(accepted)).await.unwrap(), 0);
    }
    for bad in [
        part(Operator::Contains, 4097),
        part(Operator::StartsWith, 4097),
        and(vec![part(Operator::Contains, 1); 33]),
        and(vec![part(Operator::Contains, 2049); 2]),
    ] {
        let refused = reader.count("t", Some(bad)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.fields()[0].field.as_str()), (Kind::InvalidArgument, "filter"));
    }
}

/// SQLite's order of storage classes, for values that are not text of a special collation.
fn order(a: &Value, b: &Value) -> Ordering {
    let class = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        _ => 3,
    };
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Real(a), Value::Real(b)) => a.total_cmp(b),
        // Small numbers only: exact as f64.
        (Value::Integer(a), Value::Real(b)) => (*a as f64).total_cmp(b),
        (Value::Real(a), Value::Integer(b)) => a.total_cmp(&(*b as f64)),
        (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        _ => class(a).cmp(&class(b)),
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => Just(Value::Null),
        4 => (-2i64..3).prop_map(Value::Integer),
        2 => (-4i32..5).prop_map(|n| Value::Real(f64::from(n) / 2.0 + 0.25)),
        3 => "[a-c0-1]{0,2}".prop_map(Value::Text),
        1 => prop::collection::vec(0u8..3, 0..2).prop_map(Value::Bytes),
    ]
}

fn sorts() -> impl Strategy<Value = Vec<Sort>> {
    let direction = prop_oneof![Just(Direction::Ascending), Just(Direction::Descending)];
    let one =
        (prop::sample::select(vec!["a", "b", "id"]), direction).prop_map(|(field, direction)| by(field, direction));
    prop::collection::vec(one, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Columns without a type hold anything; the pages are the whole list in SQLite's order, and rows that arrive between
    /// them neither repeat nor hide those that were there.
    #[test]
    fn pages_are_the_sorted_list(
        cells in prop::collection::vec((value(), value()), 0..40),
        late in prop::collection::vec((value(), value()), 0..20),
        sort in sorts(),
        limit in prop::sample::select(vec![1usize, 7]),
        keyed: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let (key, kind) = if keyed { ("PRIMARY KEY", "WITHOUT ROWID") } else { ("", "") };
            let fixture = Fixture::new(&format!("CREATE TABLE t (id INTEGER {key}, a, b) {kind}")).await;
            for (id, (a, b)) in cells.iter().enumerate() {
                fixture.insert("t", &[Value::Integer(id as i64), a.clone(), b.clone()]).await;
            }
            let reader = fixture.reader(&["t"]);
            let paged = read_all(&reader, ReadRequest { sort: sort.clone(), limit, ..request("t") }).await;
            prop_assert_eq!(&paged, &sorted(&cells, &sort));

            let mut late = late.into_iter().enumerate();
            let mut next = ReadRequest { sort: sort.clone(), limit, ..request("t") };
            let mut seen: Vec<Record> = Vec::new();
            loop {
                let page = reader.read(next.clone()).await.unwrap();
                seen.extend(page.rows);
                next.cursor = page.next_cursor;
                if next.cursor.is_none() {
                    break;
                }
                if let Some((index, (a, b))) = late.next() {
                    fixture.insert("t", &[Value::Integer(1000 - index as i64), a, b]).await;
                }
            }
            let old: Vec<_> = seen.iter().filter(|row| order(&row["id"], &Value::Integer(900)).is_lt()).cloned().collect();
            prop_assert_eq!(old, paged, "what was there keeps its order and is given once");
            let mut ids: Vec<_> = seen.iter().map(|row| format!("{:?}", row["id"])).collect();
            ids.sort();
            ids.dedup();
            prop_assert_eq!(ids.len(), seen.len(), "nothing twice");
            Ok(())
        })?;
    }
}

fn sorted(cells: &[(Value, Value)], sort: &[Sort]) -> Vec<Record> {
    let numbered = cells.iter().enumerate();
    let row = |(id, (a, b)): (usize, &(Value, Value))| {
        record(&[("id", Value::Integer(id as i64)), ("a", a.clone()), ("b", b.clone())])
    };
    let mut rows: Vec<_> = numbered.map(row).collect();
    // Stable, and rows start in the order of the tie-breaker.
    rows.sort_by(|x, y| {
        sort.iter().fold(Ordering::Equal, |so_far, criterion| {
            let here = order(&x[&criterion.field], &y[&criterion.field]);
            so_far.then(if criterion.direction == Direction::Descending { here.reverse() } else { here })
        })
    });
    rows
}
