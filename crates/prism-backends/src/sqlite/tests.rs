use std::time::Duration;

use prism_core::control::Health;
use prism_core::{Kind, UnixMillis};

use super::*;
use crate::conformance::Subject;
use crate::conformance::key_value::{entry, open};
use crate::driver::{PutEntry, entry_bytes};

fn clock() -> Clock {
    Clock::manual(UnixMillis(1_700_000_000_000))
}

fn namespace(name: &str) -> NamespaceName {
    NamespaceName::parse("namespace", name).unwrap()
}

async fn backend(folder: &Path, clock: &Clock) -> Arc<SqliteBackend> {
    let name = InstanceName::parse("instance", "main").unwrap();
    SqliteBackend::open(name, folder.to_owned(), clock.clone()).await.unwrap()
}

async fn subject(folder: &Path) -> Subject {
    let clock = clock();
    Subject { backend: backend(folder, &clock).await, clock }
}

#[tokio::test]
async fn what_was_answered_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let version = {
        let subject = subject(folder.path()).await;
        let (store, _) = open(&subject, "orders").await;
        store.put(entry("gone", "x")).await.unwrap();
        store.delete("gone", None).await.unwrap();
        store.put(entry("k", "value")).await.unwrap()
        // Dropped without `close`, as a crash would.
    };
    let subject = subject(folder.path()).await;
    assert_eq!(subject.backend.stored().await.unwrap(), [(namespace("orders"), entry_bytes(1, 5))]);
    let (store, meter) = open(&subject, "orders").await;
    let read = store.get("k").await.unwrap().unwrap();
    assert_eq!((&read.value[..], read.version), (&b"value"[..], version));
    assert!(store.put(entry("gone", "y")).await.unwrap() > version, "versions go on");
    assert_eq!(meter.used(), entry_bytes(4, 1));
    assert_eq!(subject.backend.stored().await.unwrap(), [(namespace("orders"), entry_bytes(1, 5) + entry_bytes(4, 1))]);
    subject.backend.close().await;
    assert_eq!(store.get("k").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.put(entry("k", "")).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn what_has_expired_gives_its_room_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let backend = backend(folder.path(), &clock).await;
    let subject = Subject { backend: Arc::clone(&backend) as Arc<dyn Backend>, clock };
    let (store, meter) = open(&subject, "orders").await;
    let soon = Some(subject.clock.now() + Duration::from_secs(1));
    let many = (0..1200).map(|n| PutEntry { expires_at: soon, ..entry(&format!("{n:04}"), "x") }).collect();
    store.put_many(many).await.unwrap();
    backend.sweep().await;
    assert_eq!(meter.used(), 1200 * entry_bytes(4, 1));
    subject.pass(Duration::from_secs(1)).await;
    backend.sweep().await;
    assert_eq!(meter.used(), 0);
    assert_eq!(subject.backend.stored().await.unwrap(), [(namespace("orders"), 0)]);
}

#[tokio::test]
async fn a_removed_namespace_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(folder.path()).await;
    let (store, _) = open(&subject, "orders").await;
    let (_other, _) = open(&subject, "orders-2").await;
    store.put(entry("k", "secret")).await.unwrap();
    subject.backend.remove_namespace(&namespace("orders")).await.unwrap();
    let left = |folder: &Path| -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(left(folder.path()).iter().all(|file| file.starts_with("orders-2.db")), "{:?}", left(folder.path()));
    // The file of a new namespace with the old name is not touched by what the old handle does when it goes.
    let (new, _) = open(&subject, "orders").await;
    new.put(entry("k", "new")).await.unwrap();
    drop(store);
    assert_eq!(new.get("k").await.unwrap().unwrap().value, "new");
    new.put(entry("k", "newer")).await.unwrap();
    subject.backend.close().await;
    assert_eq!(usage(&folder.path().join("orders.db")).unwrap(), entry_bytes(1, 5));
}

#[tokio::test]
async fn writes_race_a_removal_without_bringing_data_back() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(folder.path()).await;
    let (store, _) = open(&subject, "orders").await;
    let writing: Vec<_> = (0..100)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.put(entry(&n.to_string(), "x")).await })
        })
        .collect();
    subject.backend.remove_namespace(&namespace("orders")).await.unwrap();
    for write in writing {
        if let Err(refused) = write.await.unwrap() {
            assert_eq!(refused.reason(), "NAMESPACE_REMOVED");
        }
    }
    assert!(subject.backend.stored().await.unwrap().is_empty());
    let (new, _) = open(&subject, "orders").await;
    assert!(new.list("", None, 1, 1, true).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_cancelled_opening_or_removal_leaves_one_space_for_each_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let backend = backend(folder.path(), &clock).await;
    for round in 0..40 {
        let meter = StorageMeter::new(namespace("orders"));
        // Dropped at another point each time.
        let orders = namespace("orders");
        let _ = tokio::time::timeout(Duration::from_micros(round * 50), backend.space(&orders, &meter)).await;
        let one = backend.space(&orders, &meter).await.unwrap();
        let two = backend.space(&orders, &meter).await.unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        let _ = tokio::time::timeout(Duration::from_micros(round * 50), backend.remove_namespace(&orders)).await;
        let after = backend.space(&orders, &meter).await.unwrap();
        after.readers().run(|_| Ok(())).await.unwrap();
        assert!(backend.path(&orders).exists());
        backend.remove_namespace(&orders).await.unwrap();
        assert!(!backend.path(&orders).exists());
    }
}

#[tokio::test]
async fn a_stuck_write_does_not_hold_up_removal_or_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let backend = backend(folder.path(), &clock).await;
    let orders = namespace("orders");
    let space = backend.space(&orders, &StorageMeter::new(orders.clone())).await.unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let stuck = tokio::spawn(async move {
        let work = move |_: &_| {
            let _ = begun.send(());
            let _ = released.recv();
            Ok(((), 0))
        };
        space.write(work).await
    });
    has_begun.await.unwrap();
    tokio::time::pause();
    let refused = backend.remove_namespace(&orders).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::Unavailable, "NAMESPACE_BUSY"));
    assert!(backend.path(&orders).exists());
    let space = backend.space(&orders, &StorageMeter::new(orders.clone())).await.unwrap();
    assert_eq!(space.readers().run(|_| Ok(())).await.unwrap_err().reason(), "NAMESPACE_REMOVED");
    drop(space);
    backend.close().await;
    tokio::time::resume();
    release.send(()).unwrap();
    stuck.await.unwrap().unwrap();
    backend.remove_namespace(&orders).await.unwrap();
    assert!(!backend.path(&orders).exists());
}

#[cfg(unix)]
#[tokio::test]
async fn the_folder_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("deep/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _backend = backend(&data, &clock()).await;
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn health_is_a_real_write() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let backend = backend(&data, &clock()).await;
    for _ in 0..2 {
        let check = backend.health().await;
        assert_eq!(check.health, Health::Healthy, "{}", check.message);
    }
    assert!(backend.stored().await.unwrap().is_empty(), "the probe's file is no namespace");
    std::fs::remove_dir_all(&data).unwrap();
    let check = backend.health().await;
    assert_eq!(check.health, Health::Unhealthy, "{}", check.message);
    std::fs::create_dir(&data).unwrap();
    assert_eq!(backend.health().await.health, Health::Healthy, "it recovers");
}

#[tokio::test]
async fn a_broken_file_does_not_hide_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(folder.path()).await;
    let (store, _) = open(&subject, "good").await;
    store.put(entry("k", "v")).await.unwrap();
    std::fs::write(folder.path().join("bad.db"), [7; 5000]).unwrap();
    std::fs::write(folder.path().join("empty.db"), []).unwrap();
    std::fs::write(folder.path().join("Not A Namespace.db"), []).unwrap();
    let mut stored = subject.backend.stored().await.unwrap();
    stored.sort();
    assert_eq!(stored, [(namespace("empty"), 0), (namespace("good"), entry_bytes(1, 1))]);
}

const ITEMS: &str = "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, name TEXT)";

async fn try_schema(subject: &Subject, schema: &str) -> (Result<()>, Result<()>) {
    let config = subject.config("orders", AccessPattern::TransactWrite, &[("schema", schema), ("tables", "items")]);
    let meter = StorageMeter::new(config.namespace.clone());
    (subject.backend.check(&config).await, subject.backend.prepare(&config, &meter).await)
}

#[tokio::test]
async fn a_schema_is_applied_when_it_is_prepared_and_not_when_it_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let subject = subject(folder.path()).await;
    let config = subject.config("orders", AccessPattern::TransactWrite, &[("schema", ITEMS), ("tables", "items")]);
    subject.backend.check(&config).await.unwrap();
    assert!(!folder.path().join("orders.db").exists(), "a check has no effect");
    for _ in 0..2 {
        let (checked, prepared) = try_schema(&subject, ITEMS).await;
        checked.unwrap();
        prepared.unwrap();
    }
    // What is there already counts: the index fits the table made before, and only its columns.
    let (checked, prepared) = try_schema(&subject, "CREATE INDEX IF NOT EXISTS by_name ON items (name)").await;
    assert!(checked.is_ok() && prepared.is_ok());
    for bad in
        ["CREATE INDEX IF NOT EXISTS by_price ON items (price)", "CREATE INDEX IF NOT EXISTS i ON _prism_kv (key)"]
    {
        let (checked, prepared) = try_schema(&subject, bad).await;
        assert_eq!(checked.unwrap_err().fields()[0].field, "config.backend.options.schema");
        assert_eq!(prepared.unwrap_err().kind(), Kind::InvalidArgument);
    }
    let connection = prism_sqlite::open_reader(&folder.path().join("orders.db")).unwrap();
    let made: Vec<String> = connection
        .prepare("SELECT name FROM sqlite_schema WHERE name NOT LIKE '\\_prism%' ESCAPE '\\' AND sql IS NOT NULL ORDER BY name")
        .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
        .unwrap();
    assert_eq!(made, ["by_name", "items"]);
}
