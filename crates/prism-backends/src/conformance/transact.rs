//! What every [`Transact`] does, on a table `items` (`id` text primary key, `name` text not null default 'unnamed',
//! `quantity` integer check (`quantity` >= 0), `price` real) that is empty at first and that `reader` reads.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prism_core::Kind;

use super::reader::{read_all, record, text};
use crate::driver::{
    DataWrite, MailboxWrite, ReadRequest, Reader, Record, Transact, TransactOptions, Value, WriteMode, WriteOutcome,
    WriteSet,
};

/// Runs all checks.
pub async fn run(transact: &dyn Transact, reader: &dyn Reader) {
    modes_do_what_they_say(transact, reader).await;
    refusals_name_the_cause(transact, reader).await;
    both_parts_or_neither(transact, reader).await;
    mailboxes_count_from_one(transact).await;
    a_key_writes_once(transact, reader).await;
    a_rehearsal_keeps_nothing(transact, reader).await;
    a_commit_keeps_all_or_none(transact, reader).await;
    a_late_write_does_nothing(transact, reader).await;
}

/// A write to `items`.
pub fn data(mode: WriteMode, values: &[(&str, Value)]) -> WriteSet {
    let data = DataWrite { table: "items".to_owned(), record: record(values), mode, id_field: None };
    WriteSet { data: Some(data), mailbox: None }
}

/// A message to a mailbox.
pub fn message(mailbox: &str, message: &'static [u8]) -> WriteSet {
    let metadata = BTreeMap::from([("k\"ey".to_owned(), "v\u{e4}lue".to_owned())]);
    let mailbox = MailboxWrite { mailbox_id: mailbox.to_owned(), message: Bytes::from_static(message), metadata };
    WriteSet { data: None, mailbox: Some(mailbox) }
}

fn both(data: WriteSet, message: WriteSet) -> WriteSet {
    WriteSet { data: data.data, mailbox: message.mailbox }
}

async fn rows(reader: &dyn Reader) -> Vec<Record> {
    read_all(reader, ReadRequest { collection: "items".to_owned(), limit: 1000, ..ReadRequest::default() }).await
}

async fn write(transact: &dyn Transact, writes: WriteSet) -> prism_core::Result<WriteOutcome> {
    transact.write(writes, TransactOptions::default()).await
}

async fn affected(transact: &dyn Transact, writes: WriteSet) -> (i64, Record) {
    let result = write(transact, writes).await.unwrap().data.unwrap();
    (result.rows_affected, result.generated_values)
}

async fn modes_do_what_they_say(transact: &dyn Transact, reader: &dyn Reader) {
    use WriteMode::{Delete, Insert, Update, Upsert};
    let id = ("id", text("m"));
    let unnamed = [("name", text("unnamed")), ("price", Value::Null)];
    let inserted = affected(transact, data(Insert, &[id.clone(), ("quantity", Value::Integer(i64::MAX))])).await;
    assert_eq!(inserted, (1, record(&unnamed)));
    let again = write(transact, data(Insert, std::slice::from_ref(&id))).await.unwrap_err();
    assert_eq!(again.kind(), Kind::AlreadyExists);
    let updated =
        affected(transact, data(Update, &[id.clone(), ("name", text("Mango")), ("quantity", Value::Null)])).await;
    assert_eq!(updated, (1, Record::new()));
    assert_eq!(affected(transact, data(Update, &[("id", text("nobody")), ("name", text("x"))])).await.0, 0);
    let upserted = affected(transact, data(Upsert, &[id.clone(), ("price", Value::Real(0.5))])).await;
    assert_eq!(upserted, (1, record(&[("name", text("Mango")), ("quantity", Value::Null)])));
    let new = affected(transact, data(Upsert, &[("id", text("n")), ("quantity", Value::Integer(1))])).await;
    assert_eq!(new, (1, record(&unnamed)));
    assert_eq!(affected(transact, data(Upsert, &[("id", text("n"))])).await.0, 1);
    let mango = [id.clone(), ("name", text("Mango")), ("quantity", Value::Null), ("price", Value::Real(0.5))];
    assert!(rows(reader).await.contains(&record(&mango)));
    assert_eq!(affected(transact, data(Delete, &[("id", text("nobody"))])).await.0, 0);
    assert_eq!(affected(transact, data(Delete, &[id])).await, (1, Record::new()));
    assert_eq!(affected(transact, data(Delete, &[("id", text("n")), ("name", text("of no matter"))])).await.0, 1);
    assert_eq!(rows(reader).await, [], "each mode touched its own row only");
}

async fn refusals_name_the_cause(transact: &dyn Transact, reader: &dyn Reader) {
    use WriteMode::{Delete, Insert, Update, Upsert};
    let id = || ("id", text("r"));
    write(transact, data(Insert, &[id(), ("name", text("kept"))])).await.unwrap();
    let before = rows(reader).await;
    let long = "x".repeat(5000);
    for (path, writes) in [
        ("data", WriteSet::default()),
        ("data.record", data(Insert, &[])),
        ("data.record", data(Insert, &[("nope", Value::Null)])),
        ("data.record", data(Insert, &[("id\"; DROP TABLE items; --", Value::Null)])),
        ("data.record", data(Insert, &[("rowid", Value::Integer(1))])),
        ("data.record", data(Insert, &[(&long, Value::Integer(1))])),
        ("data.record", data(Insert, &[("id", text("s")), ("price", Value::List(vec![]))])),
        ("data.record", data(Insert, &[("id", text("s")), ("price", Value::Real(f64::NAN))])),
        ("data.record", data(Insert, &[("id", text("s")), ("name", Value::Null)])),
        ("data.record", data(Insert, &[("id", text("s")), ("quantity", Value::Integer(-1))])),
        ("data.record", data(Update, &[id()])),
        ("data.record", data(Update, &[("name", text("x"))])),
        ("data.record", data(Update, &[("id", Value::Null), ("name", text("x"))])),
        ("data.record", data(Update, &[id(), ("quantity", Value::Integer(-1))])),
        ("data.record", data(Upsert, &[("name", text("x"))])),
        ("data.record", data(Delete, &[("name", text("x"))])),
        ("data.record", data(Delete, &[("id", Value::Null)])),
    ] {
        let refused = write(transact, writes.clone()).await.expect_err(&format!("{writes:?}"));
        assert_eq!((refused.kind(), refused.fields()[0].field.as_str()), (Kind::InvalidArgument, path), "{refused:?}");
    }
    for (field, mode) in [("nope", Insert), ("nope", Update), ("id\"", Delete), ("rowid", Upsert), ("", Delete)] {
        let mut writes = data(mode, &[id(), ("name", text("x"))]);
        writes.data.as_mut().unwrap().id_field = Some(field.to_owned());
        assert_eq!(write(transact, writes).await.unwrap_err().fields()[0].field, "data.id_field");
    }
    for table in
        ["", "other", "items; DROP TABLE items", "main.items", "_prism_mailbox", "_PRISM_usage", "sqlite_schema"]
    {
        let mut writes = data(Insert, &[id()]);
        table.clone_into(&mut writes.data.as_mut().unwrap().table);
        let refused = write(transact, writes).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::PermissionDenied, "TABLE_NOT_ALLOWED"), "{table}");
    }
    assert_eq!(rows(reader).await, before);
    write(transact, data(Delete, &[id()])).await.unwrap();
}

async fn both_parts_or_neither(transact: &dyn Transact, reader: &dyn Reader) {
    let insert = || data(WriteMode::Insert, &[("id", text("both"))]);
    let outcome = write(transact, both(insert(), message("pair", b"one"))).await.unwrap();
    assert!(!outcome.transaction_id.is_empty());
    assert_eq!(outcome.data.unwrap().rows_affected, 1);
    assert_eq!(outcome.mailbox.unwrap().sequence, 1);
    let refused = write(transact, both(insert(), message("pair", b"two"))).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::AlreadyExists);
    let refused =
        write(transact, both(data(WriteMode::Insert, &[("id", text("other"))]), message("", b"x"))).await.unwrap_err();
    assert_eq!(refused.fields()[0].field, "mailbox.mailbox_id");
    assert_eq!(transact.read_mailbox("pair", 0, 10).await.unwrap().len(), 1, "no message without its row");
    assert_eq!(rows(reader).await.len(), 1, "no row without its message");
    write(transact, data(WriteMode::Delete, &[("id", text("both"))])).await.unwrap();
}

async fn mailboxes_count_from_one(transact: &dyn Transact) {
    let mut ids = Vec::new();
    for sequence in 1..=5 {
        let written = write(transact, message("box' --", b"\0\xff")).await.unwrap().mailbox.unwrap();
        assert_eq!(written.sequence, sequence);
        ids.push(written.message_id);
    }
    assert_eq!(write(transact, message("box", b"")).await.unwrap().mailbox.unwrap().sequence, 1);
    let found = transact.read_mailbox("box' --", 2, 2).await.unwrap();
    assert_eq!(
        found.iter().map(|entry| (entry.sequence, &entry.message_id)).collect::<Vec<_>>(),
        [(3, &ids[2]), (4, &ids[3])]
    );
    assert_eq!((&found[0].message[..], &found[0].metadata["k\"ey"][..]), (&b"\0\xff"[..], "v\u{e4}lue"));
    assert!(found[0].created_at <= found[1].created_at && found[0].created_at.0 > 0);
    for since in [5, i64::MAX] {
        assert!(transact.read_mailbox("box' --", since, 10).await.unwrap().is_empty());
    }
    assert_eq!(transact.read_mailbox("box' --", i64::MIN, 10).await.unwrap().len(), 5);
    assert!(transact.read_mailbox("unknown", 0, 10).await.unwrap().is_empty());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "ids are unique");
}

async fn a_key_writes_once(transact: &dyn Transact, reader: &dyn Reader) {
    let keyed = |key: &str, fingerprint| TransactOptions {
        idempotency: Some((key.to_owned(), [fingerprint; 32])),
        ..Default::default()
    };
    let writes = || both(data(WriteMode::Insert, &[("id", text("once"))]), message("once", b"m"));
    let first = transact.write(writes(), keyed("k'1", 1)).await.unwrap();
    assert_eq!(transact.write(writes(), keyed("k'1", 1)).await.unwrap(), first, "the outcome of the first time");
    let other = transact.write(writes(), keyed("k'1", 2)).await.unwrap_err();
    assert_eq!(other.fields()[0].field, "options.idempotency_key");
    // A refused write is not remembered: it may succeed later.
    assert_eq!(transact.write(writes(), keyed("k2", 1)).await.unwrap_err().kind(), Kind::AlreadyExists);
    write(transact, data(WriteMode::Delete, &[("id", text("once"))])).await.unwrap();
    transact.write(writes(), keyed("k2", 1)).await.unwrap();
    assert_eq!(transact.read_mailbox("once", 0, 10).await.unwrap().len(), 2);
    let twins = futures::future::join_all((0..8).map(|_| transact.write(message("twins", b"m"), keyed("k3", 1)))).await;
    for twin in &twins {
        assert_eq!(twin.as_ref().unwrap(), twins[0].as_ref().unwrap());
    }
    assert_eq!(transact.read_mailbox("twins", 0, 10).await.unwrap().len(), 1);
    assert_eq!(rows(reader).await.len(), 1);
    write(transact, data(WriteMode::Delete, &[("id", text("once"))])).await.unwrap();
}

async fn a_rehearsal_keeps_nothing(transact: &dyn Transact, reader: &dyn Reader) {
    static BODY: [u8; 3 << 20] = [7; 3 << 20];
    let insert = data(WriteMode::Insert, &[("id", text("t"))]);
    let told = rehearsed(transact, "t-1", std::slice::from_ref(&insert)).await;
    let outcome = transact.rehearse("t-1", &told, &message("rehearsed", b"m")).await.unwrap();
    assert_eq!((outcome.transaction_id.as_str(), outcome.mailbox.unwrap().sequence), ("t-1", 1));
    let update = data(WriteMode::Update, &[("id", text("t")), ("name", text("seen"))]);
    let outcome = transact.rehearse("t-1", &told, &update).await.unwrap();
    assert_eq!(outcome.data.unwrap().rows_affected, 1, "a transaction sees its own writes");
    let refused = transact.rehearse("t-1", &told, &insert).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::AlreadyExists, "the last write's own refusal");
    let twice = [told.clone(), told.clone()].concat();
    let refused = transact.rehearse("t-1", &twice, &message("rehearsed", b"m")).await.unwrap_err();
    assert_eq!(refused.reason(), "TRANSACTION_CONFLICT", "a write that was accepted before");
    assert_eq!(rows(reader).await, []);
    assert!(transact.read_mailbox("rehearsed", 0, 10).await.unwrap().is_empty());
    let many = vec![told[0].clone(); 256];
    let refused = transact.rehearse("t-1", &many, &insert).await.unwrap_err();
    assert_eq!(refused.reason(), "TRANSACTION_TOO_LARGE");
    let large = message("box", &BODY);
    let told = rehearsed(transact, "t-large", std::slice::from_ref(&large)).await;
    let refused = transact.rehearse("t-large", &told, &large).await.unwrap_err();
    assert_eq!(refused.reason(), "TRANSACTION_TOO_LARGE", "bytes count over all writes");
    let twice = vec![told[0].clone(); 2];
    let refused = transact.commit("t-large", twice, TransactOptions::default()).await.unwrap_err();
    assert_eq!(refused.reason(), "TRANSACTION_TOO_LARGE");
}

/// The writes with the outcomes that their rehearsal gives.
pub async fn rehearsed(transact: &dyn Transact, id: &str, writes: &[WriteSet]) -> Vec<(WriteSet, WriteOutcome)> {
    let mut told = Vec::new();
    for next in writes {
        let outcome = transact.rehearse(id, &told, next).await.unwrap();
        told.push((next.clone(), outcome));
    }
    told
}

async fn a_commit_keeps_all_or_none(transact: &dyn Transact, reader: &dyn Reader) {
    let insert = |id: &str| data(WriteMode::Insert, &[("id", text(id))]);
    let plan = [both(insert("c1"), message("committed", b"1")), insert("c2"), message("committed", b"2")];
    let mine = rehearsed(transact, "c-1", &plan).await;
    let other = rehearsed(transact, "c-2", &[message("committed", b"x"), insert("c3")]).await;
    let clash = rehearsed(transact, "c-3", &[insert("c4"), insert("c2")]).await;
    let options = TransactOptions { idempotency: Some(("commit".to_owned(), [9; 32])), ..Default::default() };
    transact.commit("c-1", mine.clone(), options.clone()).await.unwrap();
    transact.commit("c-1", mine, options).await.unwrap();
    assert_eq!(rows(reader).await.len(), 2);
    let entries = transact.read_mailbox("committed", 0, 10).await.unwrap();
    assert_eq!(entries.iter().map(|entry| &entry.message[..]).collect::<Vec<_>>(), [b"1", b"2"]);
    for (id, writes) in [("c-2", other), ("c-3", clash)] {
        let refused = transact.commit(id, writes, TransactOptions::default()).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::Aborted, "TRANSACTION_CONFLICT"));
    }
    assert_eq!(rows(reader).await.len(), 2, "a conflict keeps nothing");
    assert_eq!(transact.read_mailbox("committed", 0, 10).await.unwrap().len(), 2);
    transact.commit("c-4", vec![], TransactOptions::default()).await.unwrap();
    for id in ["c1", "c2"] {
        write(transact, data(WriteMode::Delete, &[("id", text(id))])).await.unwrap();
    }
}

async fn a_late_write_does_nothing(transact: &dyn Transact, reader: &dyn Reader) {
    let options = |timeout| TransactOptions { timeout: Some(timeout), ..Default::default() };
    // With no time at all either answer may come, but what happened is what was told.
    for attempt in 0..50 {
        let id = format!("late-{attempt}");
        let insert = data(WriteMode::Insert, &[("id", text(&id))]);
        let answer = transact.write(insert, options(Duration::ZERO)).await;
        if let Err(late) = &answer {
            assert_eq!(late.kind(), Kind::DeadlineExceeded);
        }
        let (deleted, _) = affected(transact, data(WriteMode::Delete, &[("id", text(&id))])).await;
        assert_eq!(deleted == 1, answer.is_ok());
    }
    let insert = data(WriteMode::Insert, &[("id", text("timely"))]);
    transact.write(insert, options(Duration::from_mins(1))).await.unwrap();
    write(transact, data(WriteMode::Delete, &[("id", text("timely"))])).await.unwrap();
    assert_eq!(rows(reader).await, []);
}
