//! A database of an earlier version is carried over.

use std::path::Path;
use std::sync::Arc;

use prism_core::config::Config;
use prism_core::limits::SessionPolicy;
use prism_core::page::Page;
use prism_core::permission::Reach;
use prism_core::secret::Random;
use prism_core::{Clock, Result, UnixMillis};
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
