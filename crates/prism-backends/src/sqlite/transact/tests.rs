use std::collections::BTreeMap;

use prism_core::limits::IDEMPOTENCY_WINDOW;
use prism_core::storage::StorageMeter;
use prism_core::{Clock, NamespaceName};
use prism_sqlite::error;
use proptest::prelude::*;

use super::*;
use crate::conformance;
use crate::conformance::reader::{record, text};
use crate::conformance::transact::{data, message, rehearsed};
use crate::driver::{DataWrite, Value, WriteMode};
use crate::sqlite::reader::SqliteReader;

struct Fixture {
    _folder: tempfile::TempDir,
    space: Arc<Space>,
    meter: Arc<StorageMeter>,
    clock: Clock,
}

impl Fixture {
    async fn new(schema: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let namespace = NamespaceName::parse("namespace", "test").unwrap();
        let meter = StorageMeter::new(namespace.clone());
        let clock = Clock::manual(UnixMillis(1_700_000_000_000));
        let file = folder.path().join("test.db");
        let space = Arc::new(Space::open(&file, namespace, Arc::clone(&meter), clock.clone()).unwrap());
        let schema = schema.to_owned();
        space
            .write(move |connection| connection.execute_batch(&schema).map(|()| ((), 0)).map_err(error))
            .await
            .unwrap();
        Self { _folder: folder, space, meter, clock }
    }

    fn transact(&self, tables: &[&str]) -> SqliteTransact {
        SqliteTransact::new(Arc::clone(&self.space), tables.iter().map(|name| (*name).to_owned()).collect())
    }

    async fn ask(&self, sql: &str) -> i64 {
        let sql = sql.to_owned();
        self.space
            .readers()
            .run(move |connection| connection.query_row(&sql, [], |row| row.get(0)).map_err(error))
            .await
            .unwrap()
    }
}

fn to(table: &str, id_field: Option<&str>, writes: WriteSet) -> WriteSet {
    let data =
        writes.data.map(|data| DataWrite { table: table.to_owned(), id_field: id_field.map(str::to_owned), ..data });
    WriteSet { data, ..writes }
}

async fn write(transact: &SqliteTransact, writes: WriteSet) -> Result<WriteOutcome> {
    transact.write(writes, TransactOptions::default()).await
}

#[tokio::test]
async fn conforms() {
    let items = "CREATE TABLE items (
        id TEXT PRIMARY KEY, name TEXT NOT NULL DEFAULT 'unnamed', quantity INTEGER CHECK (quantity >= 0), price REAL)";
    for kind in ["", "WITHOUT ROWID", "STRICT"] {
        let fixture = Fixture::new(&format!("{items} {kind}")).await;
        let reader = SqliteReader::new(Arc::clone(&fixture.space), vec!["items".to_owned()]);
        let transact = fixture.transact(&["items", "_prism_mailbox", "_PRISM_usage", "sqlite_schema"]);
        conformance::transact::run(&transact, &reader).await;
    }
}

#[tokio::test]
async fn names_are_only_names() {
    let name = "t\"; DROP TABLE x; --";
    let fixture = Fixture::new(
        "CREATE TABLE \"t\"\"; DROP TABLE x; --\" (\"\"\"\" INTEGER PRIMARY KEY, \"a, b\" TEXT DEFAULT 'd', \"') --\" TEXT);
         CREATE TABLE x (id INTEGER PRIMARY KEY);
         CREATE VIEW v AS SELECT * FROM x;",
    )
    .await;
    let transact = fixture.transact(&[name, "v", "missing", "pragma_table_list"]);
    let row = [("\"", Value::Integer(1)), ("') --", text("'; DROP TABLE x; --"))];
    for mode in [WriteMode::Insert, WriteMode::Update, WriteMode::Upsert] {
        assert_eq!(write(&transact, to(name, None, data(mode, &row))).await.unwrap().data.unwrap().rows_affected, 1);
    }
    assert_eq!(
        fixture.ask("SELECT count(*) FROM \"t\"\"; DROP TABLE x; --\" WHERE \"') --\" = '''; DROP TABLE x; --'").await,
        1
    );
    write(&transact, to(name, Some("a, b"), data(WriteMode::Delete, &[("a, b", text("d"))]))).await.unwrap();
    assert_eq!(fixture.ask("SELECT count(*) FROM x").await, 0);
    let view =
        write(&transact, to("v", Some("id"), data(WriteMode::Insert, &[("id", Value::Integer(1))]))).await.unwrap_err();
    assert_eq!(view.fields()[0].field, "data.table");
    for missing in ["missing", "pragma_table_list"] {
        let refused = write(&transact, to(missing, None, data(WriteMode::Insert, &row))).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::NotFound);
    }
}

#[tokio::test]
async fn the_row_is_found_by_its_id_field() {
    let fixture = Fixture::new(
        "CREATE TABLE two (a INTEGER, b TEXT, c TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
         CREATE TABLE none (a INTEGER, b TEXT, c TEXT);
         CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT, c TEXT, twice TEXT AS (c || c));",
    )
    .await;
    let transact = fixture.transact(&["two", "none", "auto"]);
    let row = [("a", Value::Integer(1)), ("b", text("x")), ("c", text("y"))];
    for table in ["two", "none"] {
        for mode in [WriteMode::Update, WriteMode::Upsert, WriteMode::Delete] {
            let refused = write(&transact, to(table, None, data(mode, &row))).await.unwrap_err();
            assert_eq!(refused.fields()[0].field, "data.id_field", "{table}");
        }
        for b in ["x", "y", "z"] {
            let row = [("a", Value::Integer(1)), ("b", text(b))];
            write(&transact, to(table, None, data(WriteMode::Insert, &row))).await.unwrap();
        }
        let all = data(WriteMode::Update, &[("a", Value::Integer(1)), ("c", text("changed"))]);
        assert_eq!(write(&transact, to(table, Some("a"), all)).await.unwrap().data.unwrap().rows_affected, 3);
        let one = data(WriteMode::Upsert, &[("b", text("y")), ("c", text("mine"))]);
        let upserted = write(&transact, to(table, Some("b"), one)).await.unwrap().data.unwrap();
        assert_eq!((upserted.rows_affected, upserted.generated_values), (1, record(&[("a", Value::Integer(1))])));
        assert_eq!(fixture.ask(&format!("SELECT count(*) FROM {table} WHERE c = 'changed'")).await, 2);
    }
    for id in 1..4 {
        let made = write(&transact, to("auto", None, data(WriteMode::Insert, &[("c", text("v"))]))).await.unwrap();
        assert_eq!(made.data.unwrap().generated_values, record(&[("id", Value::Integer(id)), ("twice", text("vv"))]));
    }
    let computed = to("auto", None, data(WriteMode::Insert, &[("twice", text("no"))]));
    assert!(write(&transact, computed).await.unwrap_err().message().contains("computed"));
}

#[tokio::test]
async fn a_table_says_what_it_refuses() {
    use WriteMode::{Delete, Insert, Update};
    let fixture = Fixture::new(
        "CREATE TABLE p (id INTEGER PRIMARY KEY, n INTEGER, u TEXT UNIQUE) STRICT;
         CREATE TABLE c (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p (id), doc TEXT, x AS (json_extract(doc, '$.x')));",
    )
    .await;
    let transact = fixture.transact(&["p", "c"]);
    let one = || ("id", Value::Integer(1));
    write(&transact, to("p", None, data(WriteMode::Insert, &[one(), ("u", text("taken"))]))).await.unwrap();
    write(&transact, to("c", None, data(WriteMode::Insert, &[one(), ("p", Value::Integer(1))]))).await.unwrap();
    for (kind, says, table, writes) in [
        (Kind::AlreadyExists, "p.u", "p", data(Insert, &[("u", text("taken"))])),
        (Kind::InvalidArgument, "p.n", "p", data(Update, &[one(), ("n", text("many"))])),
        (Kind::InvalidArgument, "whole numbers", "c", data(Insert, &[("id", text("one"))])),
        (Kind::FailedPrecondition, "refers", "c", data(Insert, &[("p", Value::Integer(7))])),
        (Kind::FailedPrecondition, "refers", "p", data(Delete, &[one()])),
        (Kind::InvalidArgument, "expression", "c", data(Insert, &[("doc", text("{not json"))])),
    ] {
        let refused = write(&transact, to(table, None, writes)).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{refused:?}");
        assert!(refused.message().contains(says), "{refused:?}");
    }
}

#[tokio::test]
async fn a_tables_own_conflict_clauses_do_not_rule() {
    let fixture = Fixture::new(
        "CREATE TABLE r (id INTEGER PRIMARY KEY ON CONFLICT ROLLBACK, n INTEGER NOT NULL ON CONFLICT ROLLBACK);
         CREATE TABLE s (id INTEGER PRIMARY KEY ON CONFLICT REPLACE, n TEXT UNIQUE ON CONFLICT IGNORE);",
    )
    .await;
    let transact = fixture.transact(&["r", "s"]);
    let row = |id, n| [("id", Value::Integer(id)), ("n", n)];
    write(&transact, to("r", None, data(WriteMode::Insert, &row(1, Value::Integer(1))))).await.unwrap();
    write(&transact, to("s", None, data(WriteMode::Insert, &row(1, text("a"))))).await.unwrap();
    for writes in [
        to("r", None, data(WriteMode::Insert, &row(1, Value::Integer(1)))),
        to("r", None, data(WriteMode::Insert, &row(2, Value::Null))),
        to("r", None, data(WriteMode::Update, &row(1, Value::Null))),
        to("s", None, data(WriteMode::Insert, &row(1, text("b")))),
        to("s", None, data(WriteMode::Insert, &row(2, text("a")))),
    ] {
        // Others of the same commit do not notice.
        let (refused, other) = tokio::join!(write(&transact, writes), write(&transact, message("other", b"m")));
        assert!(matches!(refused.unwrap_err().kind(), Kind::AlreadyExists | Kind::InvalidArgument));
        other.unwrap();
    }
    assert_eq!(fixture.ask("SELECT count(*) FROM s WHERE n = 'a'").await, 1);
}

#[tokio::test]
async fn what_a_rehearsal_told_is_what_is_kept() {
    let fixture = Fixture::new(
        "CREATE TABLE t (
            id INTEGER PRIMARY KEY AUTOINCREMENT, tag BLOB DEFAULT (randomblob(8)), at TEXT DEFAULT CURRENT_TIMESTAMP, n INTEGER DEFAULT 7);",
    )
    .await;
    let transact = fixture.transact(&["t"]);
    let insert = |n| to("t", None, data(WriteMode::Insert, &[("n", Value::Integer(n))]));
    let upsert = to("t", None, data(WriteMode::Upsert, &[("id", Value::Integer(9))]));
    let told = rehearsed(&transact, "t-1", &[insert(1), upsert, insert(2)]).await;
    transact.commit("t-1", told.clone(), TransactOptions::default()).await.unwrap();
    for (_, outcome) in &told {
        let values = &outcome.data.as_ref().unwrap().generated_values;
        let Value::Bytes(tag) = &values["tag"] else { panic!("{values:?}") };
        let tag = i64::from_be_bytes(tag.as_slice().try_into().unwrap());
        assert_eq!(fixture.ask(&format!("SELECT count(*) FROM t WHERE hex(tag) = printf('%016X', {tag})")).await, 1);
    }
    // The number that was told has gone to another row: the commit does not take it away, nor give another.
    let told = rehearsed(&transact, "t-2", &[insert(3)]).await;
    write(&transact, insert(4)).await.unwrap();
    let refused = transact.commit("t-2", told, TransactOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason(), "TRANSACTION_CONFLICT");
    assert_eq!(fixture.ask("SELECT count(*) FROM t").await, 4);
}

#[tokio::test]
async fn a_key_is_forgotten_after_its_window() {
    let fixture = Fixture::new("").await;
    let transact = fixture.transact(&[]);
    let keyed = |key: &str, fingerprint| TransactOptions {
        idempotency: Some((key.to_owned(), [fingerprint; 32])),
        ..Default::default()
    };
    for n in 0..200 {
        transact.write(message("box", b"m"), keyed(&format!("k{n}"), 1)).await.unwrap();
    }
    let used = fixture.meter.used();
    let almost = IDEMPOTENCY_WINDOW.checked_sub(Duration::from_millis(1)).unwrap();
    fixture.clock.advance(almost);
    assert!(transact.write(message("box", b"m"), keyed("k199", 2)).await.is_err());
    fixture.clock.advance(Duration::from_millis(1));
    assert_eq!(transact.write(message("box", b"m"), keyed("k199", 2)).await.unwrap().mailbox.unwrap().sequence, 201);
    assert!(fixture.meter.used() < used, "their space is given back");
    for _ in 0..3 {
        transact.write(message("box", b"m"), keyed("k199", 2)).await.unwrap();
    }
    assert_eq!(fixture.ask("SELECT count(*) FROM _prism_idempotency").await, 1);
    let commit = transact.commit("t", vec![], keyed("k199", 2)).await.unwrap_err();
    assert_eq!(commit.fields()[0].field, "options.idempotency_key", "a key of Write is none of Transaction");
}

#[tokio::test]
async fn a_write_that_waits_too_long_never_happens() {
    let fixture = Fixture::new("").await;
    let transact = fixture.transact(&[]);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let blocker = fixture.space.write(move |_| {
        let _ = released.recv();
        Ok(((), 0))
    });
    let late = async {
        let options = TransactOptions { timeout: Some(Duration::from_millis(30)), ..Default::default() };
        let answer = transact.write(message("box", b"late"), options).await;
        release.send(()).unwrap();
        answer.unwrap_err()
    };
    let (unblocked, late) = tokio::join!(blocker, late);
    unblocked.unwrap();
    assert_eq!(late.kind(), Kind::DeadlineExceeded);
    assert_eq!(write(&transact, message("box", b"next")).await.unwrap().mailbox.unwrap().sequence, 1);
}

#[tokio::test]
async fn a_later_write_may_name_what_an_earlier_one_was_told() {
    let fixture = Fixture::new("CREATE TABLE t (id TEXT PRIMARY KEY DEFAULT (hex(randomblob(8))), n INTEGER)").await;
    let transact = fixture.transact(&["t"]);
    let mut told =
        rehearsed(&transact, "t-1", &[to("t", None, data(WriteMode::Insert, &[("n", Value::Integer(1))]))]).await;
    let id = told[0].1.data.as_ref().unwrap().generated_values["id"].clone();
    let update = to("t", None, data(WriteMode::Update, &[("id", id), ("n", Value::Integer(2))]));
    let outcome = transact.rehearse("t-1", &told, &update).await.unwrap();
    assert_eq!(outcome.data.as_ref().unwrap().rows_affected, 1);
    told.push((update, outcome));
    transact.commit("t-1", told, TransactOptions::default()).await.unwrap();
    assert_eq!(fixture.ask("SELECT count(*) FROM t WHERE n = 2").await, 1);
}

#[tokio::test]
async fn a_quota_refuses_growth_and_a_refusal_costs_nothing() {
    let fixture = Fixture::new("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)").await;
    let transact = fixture.transact(&["t"]);
    let row = |id, size| {
        to("t", None, data(WriteMode::Upsert, &[("id", Value::Integer(id)), ("body", text(&"x".repeat(size)))]))
    };
    fixture.meter.set_limit(2000);
    write(&transact, row(1, 1500)).await.unwrap();
    let used = fixture.meter.used();
    assert_eq!(write(&transact, row(2, 1500)).await.unwrap_err().reason(), "QUOTA_EXCEEDED");
    assert_eq!(write(&transact, row(1, 2500)).await.unwrap_err().reason(), "QUOTA_EXCEEDED");
    rehearsed(&transact, "t", &[row(3, 10), row(3, 10)]).await;
    assert_eq!(fixture.meter.used(), used);
    write(&transact, row(1, 100)).await.unwrap();
    assert_eq!(used - fixture.meter.used(), 1400);
    write(&transact, row(2, 1500)).await.unwrap();
}

#[tokio::test]
async fn generated_values_are_bounded() {
    let fixture = Fixture::new("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, c TEXT)").await;
    let transact = fixture.transact(&["t"]);
    let large = || text(&"x".repeat(700_000));
    let row = [("id", Value::Integer(1)), ("a", large()), ("b", large()), ("c", text("small"))];
    write(&transact, to("t", None, data(WriteMode::Insert, &row))).await.unwrap();
    let outcome =
        write(&transact, to("t", None, data(WriteMode::Upsert, &[("id", Value::Integer(1)), ("c", text("s"))])))
            .await
            .unwrap();
    assert_eq!(outcome.data.unwrap().generated_values.keys().collect::<Vec<_>>(), ["a"]);
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        (-1e6..1e6).prop_map(Value::Real),
        ".{0,12}".prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written into whatever type of column: what is charged is given back when it is gone.
    #[test]
    fn storage_is_accounted_exactly(
        steps in prop::collection::vec((0i64..5, 0usize..4, value(), value(), value()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new(
                "CREATE TABLE t (id INTEGER PRIMARY KEY, r REAL, t TEXT, x, n NUMERIC DEFAULT 'd',
                    v AS (x || t) VIRTUAL, s AS (coalesce(t, 'none') || '!') STORED)",
            )
            .await;
            let transact = fixture.transact(&["t"]);
            for (id, mode, a, b, c) in steps {
                let mode = [WriteMode::Insert, WriteMode::Update, WriteMode::Upsert, WriteMode::Delete][mode];
                let row = [("id", Value::Integer(id)), ("r", a), ("t", b), ("x", c)];
                let result = write(&transact, to("t", None, data(mode, &row))).await;
                prop_assert!(result.is_ok() || result.as_ref().unwrap_err().kind() == Kind::AlreadyExists, "{result:?}");
            }
            prop_assert_eq!(fixture.meter.used(), fixture.ask("SELECT bytes FROM _prism_usage").await);
            let sizes = ["id", "r", "t", "x", "n", "s"].map(|column| format!("coalesce(octet_length({column}), 0)")).join(" + ");
            let stored = fixture.ask(&format!("SELECT coalesce(sum({sizes} + 32), 0) FROM t")).await;
            prop_assert_eq!(fixture.meter.used(), stored);
            for id in 0..5 {
                write(&transact, to("t", None, data(WriteMode::Delete, &[("id", Value::Integer(id))]))).await.unwrap();
            }
            prop_assert_eq!(fixture.meter.used(), 0);
            Ok(())
        })?;
    }

    /// A remembered outcome comes back exactly.
    #[test]
    fn a_remembered_outcome_is_exact(values in prop::collection::vec(value(), 0..6), rows: i64, sequence: i64, id in ".{0,9}") {
        let generated_values = values.into_iter().enumerate().map(|(index, value)| (format!("c{index}"), value)).collect::<BTreeMap<_, _>>();
        let outcome = WriteOutcome {
            transaction_id: id.clone(),
            data: Some(crate::driver::DataResult { rows_affected: rows, generated_values }),
            mailbox: Some(crate::driver::MailboxResult { message_id: id, sequence }),
        };
        let kept = serde_json::to_string(&Outcome::Written((&outcome).into())).unwrap();
        let Outcome::Written(read) = serde_json::from_str(&kept).unwrap() else { panic!("{kept}") };
        prop_assert_eq!(WriteOutcome::try_from(read).unwrap(), outcome);
    }
}
