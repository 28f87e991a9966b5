//! A database of an earlier version is carried over.

use std::path::Path;
use std::sync::Arc;

use prism_core::config::Config;
use prism_core::limits::SessionPolicy;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::Random;
use prism_core::{Clock, Result, UnixMillis};
use prism_proto::admin::v1::AuditLogEntry;
use prism_proto::audit_chain;
use rusqlite::Connection;

use crate::schema::MIGRATIONS;
use crate::{ConfigRow, Store, Tx, Wanted};

const START: UnixMillis = UnixMillis(1_760_000_000_000);
/// Migrations before revisions got numbers.
const BEFORE_REVISIONS: usize = 2;

fn text(name: &str, version: &str) -> String {
    format!(
        r#"{{"name":"{name}","version":"{version}","pattern":"key_value","backend":{{"kind":"memory","options":{{}},"pool":null}},
        "instance":"memory","consistency":null,"cache":null,"rate_limit":null,"namespace":"team"}}"#
    )
}

/// A database with three revisions of `b`, one of `a`, and two of `gone`, which was deleted.
fn earlier(folder: &Path) {
    let mut connection = Connection::open(folder.join("prism.db")).unwrap();
    prism_sqlite::migrate(&mut connection, &MIGRATIONS[..BEFORE_REVISIONS]).unwrap();
    let at = START.0 - 1000;
    connection.execute("INSERT INTO namespaces VALUES ('team', '', 1, 0, 0, 0, ?1, ?1, 1)", [at]).unwrap();
    for (name, revision, version) in
        [("b", 1, "v1"), ("gone", 1, "x"), ("b", 2, "v2"), ("a", 1, "v1"), ("gone", 2, "y"), ("b", 3, "v1")]
    {
        connection
            .execute(
                "INSERT INTO config_revisions VALUES (?1, ?2, ?3, ?4, ?5)",
                (name, revision, version, text(name, version), at + revision),
            )
            .unwrap();
    }
    for (name, revision) in [("a", 1), ("b", 3)] {
        connection
            .execute("INSERT INTO configs VALUES (?1, 'team', 'KEY_VALUE', ?2, ?3, ?3)", (name, revision, at))
            .unwrap();
    }
}

/// Migrations before entries were indexed by what they are about.
const BEFORE_LINEAGE: usize = 7;

#[tokio::test]
async fn entries_of_an_earlier_version_are_found_by_what_they_are_about() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = Connection::open(folder.path().join("prism.db")).unwrap();
    prism_sqlite::migrate(&mut connection, &MIGRATIONS[..BEFORE_LINEAGE]).unwrap();
    let mut previous = audit_chain::GENESIS;
    // More than are looked through at a time, and one among them of which nothing can be read.
    let (last, damaged) = (1203, 700);
    let writing = connection.transaction().unwrap();
    for sequence in 1..=last {
        let (operation, resource) = match sequence {
            1 => ("CreateJoinToken", "token:t1"),
            2 => ("GetNode", "node:n1"),
            _ => ("TerminateSession", "session:s1"),
        };
        let entry = AuditLogEntry {
            id: format!("entry-{sequence}"),
            sequence,
            operation: operation.to_owned(),
            resource: resource.to_owned(),
            success: true,
            ..AuditLogEntry::default()
        };
        let (hash, mut sealed) = audit_chain::seal(&previous, entry);
        if sequence == damaged {
            sealed = vec![0xff];
        }
        previous = hash;
        writing
            .execute(
                "INSERT INTO audit VALUES (?1, ?2, ?3, '', ?4, '', ?5, ?6)",
                (sequence as i64, format!("entry-{sequence}"), START.0, operation, hash, sealed),
            )
            .unwrap();
    }
    writing.commit().unwrap();
    drop(connection);
    let open = || Store::open(folder.path(), SessionPolicy::default(), Clock::manual(START), Random::system());
    for store in [open().await.unwrap(), open().await.unwrap()] {
        let links = ["token:t1", "node:n1", "session:s1"].map(ToOwned::to_owned);
        let found = store.write(move |tx| tx.lineage_entries(&links, 2000)).await.unwrap();
        let wanted = (1..=last).rev().filter(|sequence| ![2, damaged].contains(sequence));
        assert_eq!(found.ids, wanted.map(|sequence| format!("entry-{sequence}")).collect::<Vec<_>>());
        let left = store.write(|tx| tx.count("SELECT count(*) FROM facts WHERE name = 'lineage_to_index'", [])).await;
        assert_eq!(left.unwrap(), 0, "it is done once");
    }
}

async fn config(store: &Store, name: &'static str, wanted: Wanted) -> Option<(i64, String)> {
    let read = move |tx: &mut Tx<'_>| tx.config(name, &wanted);
    store.write(read).await.unwrap().map(|row: ConfigRow| (row.revision, row.config.version.clone()))
}

async fn accept(store: &Store, name: &'static str, version: &'static str) -> i64 {
    let config: Config = serde_json::from_str(&text(name, version)).unwrap();
    let accepted = move |tx: &mut Tx<'_>| -> Result<i64> { Ok(tx.store_config(Arc::new(config))?.revision) };
    store.write(accepted).await.unwrap()
}

#[tokio::test]
async fn revisions_of_an_earlier_version_are_found_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    earlier(folder.path());
    let open = || Store::open(folder.path(), SessionPolicy::default(), Clock::manual(START), Random::system());
    let store = open().await.unwrap();
    let version = |version: &str| Wanted::Version(version.to_owned());
    let found = |revision, version: &str| Some((revision, version.to_owned()));

    assert_eq!(config(&store, "b", Wanted::Current).await, found(3, "v1"));
    assert_eq!(config(&store, "b", Wanted::Revision(2)).await, found(2, "v2"));
    assert_eq!(config(&store, "b", version("v1")).await, found(3, "v1"));
    assert_eq!(config(&store, "b", version("v2")).await, found(2, "v2"));
    assert_eq!(config(&store, "b", version("v3")).await, None);
    assert_eq!(config(&store, "a", version("v1")).await, found(1, "v1"));
    assert_eq!(config(&store, "gone", Wanted::Current).await, None);

    assert_eq!(accept(&store, "b", "v2").await, 4);
    assert_eq!(accept(&store, "gone", "z").await, 3);
    assert_eq!(accept(&store, "new", "v1").await, 1);
    assert_eq!(accept(&store, "new", "v2").await, 2);
    assert!(store.write(|tx| tx.delete_config("new")).await.unwrap());
    assert_eq!(accept(&store, "new", "v3").await, 3);

    // What is remembered and what a new start reads are the same.
    for store in [&store, &open().await.unwrap()] {
        assert_eq!(config(store, "b", version("v2")).await, found(4, "v2"));
        assert_eq!(config(store, "b", Wanted::Revision(1)).await, found(1, "v1"));
        assert_eq!(config(store, "gone", Wanted::Revision(1)).await, found(1, "x"));
        assert_eq!(config(store, "new", Wanted::Current).await, found(3, "v3"));
        let page = Page::parse("", 0, None).unwrap();
        let (rows, total) = store.write(move |tx| tx.configs(&Reach::Installation, None, None, &page)).await.unwrap();
        let rows: Vec<_> = rows.iter().map(|row| (row.config.name.as_str(), row.revision)).collect();
        assert_eq!((rows, total), (vec![("a", 1), ("b", 4), ("gone", 3), ("new", 3)], 4));
    }
}
