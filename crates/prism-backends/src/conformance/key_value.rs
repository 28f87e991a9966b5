//! What KEY_VALUE means, on every driver.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prism_core::Kind;
use prism_core::config::AccessPattern;
use prism_core::storage::StorageMeter;

use super::Subject;
use crate::driver::{ENTRY_OVERHEAD, KeyValue, PutEntry, Route, entry_bytes};

/// Keys that tempt a driver to compare by anything but bytes.
pub(super) const AWKWARD_KEYS: &[&str] = &[
    "a",
    "A",
    "a%",
    "a_",
    "a%b",
    "a\\",
    "a\0",
    "a\0b",
    "a/b",
    "aa",
    "a'b\"",
    "b",
    "z",
    "~",
    "\u{7f}",
    "é",
    "e\u{301}",
    "ß",
    "日本",
    "\u{ffff}",
    "\u{10ffff}",
    "\u{10ffff}\u{10ffff}",
    " ",
    "1",
    "10",
    "2",
];

/// Runs all checks.
pub async fn run(subject: &Subject) {
    reads_what_was_written(subject).await;
    keeps_awkward_keys_apart(subject).await;
    checks_versions(subject).await;
    has_one_winner_for_each_version(subject).await;
    writes_batches_all_or_none(subject).await;
    reads_batches_of_one_moment(subject).await;
    forgets_what_has_expired(subject).await;
    lists_by_prefix(subject).await;
    pages_without_loss(subject).await;
    bounds_pages_by_bytes(subject).await;
    keeps_namespaces_apart(subject).await;
    keeps_to_the_quota(subject).await;
    gives_expired_room_back(subject).await;
    refuses_handles_of_a_removed_namespace(subject).await;
}

/// Opens KEY_VALUE in `namespace`.
pub async fn open(subject: &Subject, namespace: &str) -> (Arc<dyn KeyValue>, Arc<StorageMeter>) {
    match subject.open(namespace, AccessPattern::KeyValue, &[]).await {
        (Route::KeyValue(store), meter) => (store, meter),
        _ => panic!("the backend opened another pattern"),
    }
}

/// A write of `value` to `key`, without conditions.
pub fn entry(key: &str, value: impl AsRef<[u8]>) -> PutEntry {
    PutEntry { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_ref()), expires_at: None, if_version: None }
}

async fn value(store: &Arc<dyn KeyValue>, key: &str) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|entry| entry.value)
}

async fn keys(store: &Arc<dyn KeyValue>, prefix: &str) -> Vec<String> {
    let page = store.list(prefix, None, usize::MAX >> 1, usize::MAX >> 1, true).await.unwrap();
    assert!(!page.more);
    page.entries.into_iter().map(|(key, _)| key).collect()
}

async fn reads_what_was_written(subject: &Subject) {
    let (store, meter) = open(subject, "kv-basics").await;
    assert_eq!(store.get("k").await.unwrap(), None);
    assert!(!store.delete("k", None).await.unwrap());
    let mut last = 0;
    let large = vec![7; 4 << 20];
    for written in [&b"one"[..], b"", b"\0\xff", &large] {
        let version = store.put(entry("k", written)).await.unwrap();
        assert!(version > last, "versions grow and are never 0");
        last = version;
        let read = store.get("k").await.unwrap().unwrap();
        assert_eq!((&read.value[..], read.version, read.expires_at), (written, version, None));
    }
    assert_eq!(meter.used(), entry_bytes(1, 4 << 20));
    assert!(store.delete("k", None).await.unwrap());
    assert_eq!(store.get("k").await.unwrap(), None);
    assert_eq!(meter.used(), 0);
    assert!(store.put(entry("k", "again")).await.unwrap() > last, "a deletion does not start versions anew");
}

async fn keeps_awkward_keys_apart(subject: &Subject) {
    let (store, _) = open(subject, "kv-keys").await;
    for key in AWKWARD_KEYS {
        store.put(entry(key, key)).await.unwrap();
    }
    for key in AWKWARD_KEYS {
        assert_eq!(value(&store, key).await.as_deref(), Some(key.as_bytes()), "{key:?}");
    }
    let sorted: BTreeSet<String> = AWKWARD_KEYS.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(keys(&store, "").await, Vec::from_iter(sorted), "in byte order");
}

async fn checks_versions(subject: &Subject) {
    let (store, meter) = open(subject, "kv-versions").await;
    let put = |wanted| PutEntry { if_version: wanted, ..entry("k", "v") };
    let refused = store.put(put(Some(1))).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::Aborted, "VERSION_MISMATCH"));
    let first = store.put(put(Some(0))).await.unwrap();
    assert_eq!(store.put(put(Some(0))).await.unwrap_err().reason(), "VERSION_MISMATCH");
    let second = store.put(put(Some(first))).await.unwrap();
    for wrong in [0, first, second + 1, u64::MAX] {
        assert_eq!(store.put(put(Some(wrong))).await.unwrap_err().reason(), "VERSION_MISMATCH");
        assert_eq!(store.delete("k", Some(wrong)).await.unwrap_err().reason(), "VERSION_MISMATCH");
    }
    assert_eq!(store.get("k").await.unwrap().unwrap().version, second);
    assert_eq!(meter.used(), entry_bytes(1, 1), "what was refused is not charged");
    assert!(store.delete("k", Some(second)).await.unwrap());
    assert!(!store.delete("k", Some(0)).await.unwrap(), "absent, as wanted");
    assert_eq!(store.delete("k", Some(second)).await.unwrap_err().reason(), "VERSION_MISMATCH");
}

async fn has_one_winner_for_each_version(subject: &Subject) {
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 10;
    let (store, _) = open(subject, "kv-race").await;
    let tasks = (0..TASKS).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut won = Vec::new();
            while won.len() < ROUNDS as usize {
                let read = store.get("counter").await.unwrap();
                let count: u64 = read.as_ref().map_or(0, |read| String::from_utf8_lossy(&read.value).parse().unwrap());
                let seen = read.map_or(0, |read| read.version);
                let next = PutEntry { if_version: Some(seen), ..entry("counter", (count + 1).to_string()) };
                match store.put(next).await {
                    Ok(version) => won.push((seen, version)),
                    Err(lost) => assert_eq!(lost.reason(), "VERSION_MISMATCH"),
                }
            }
            won
        })
    });
    let won: Vec<(u64, u64)> =
        futures::future::join_all(tasks).await.into_iter().flat_map(|task| task.unwrap()).collect();
    let replaced: BTreeSet<u64> = won.iter().map(|(seen, _)| *seen).collect();
    assert_eq!(replaced.len() as u64, TASKS * ROUNDS, "no version was replaced twice");
    assert_eq!(value(&store, "counter").await.unwrap(), (TASKS * ROUNDS).to_string());
}

async fn writes_batches_all_or_none(subject: &Subject) {
    let (store, meter) = open(subject, "kv-batch").await;
    assert!(store.put_many(Vec::new()).await.unwrap().is_empty());
    assert!(store.get_many(&[]).await.unwrap().is_empty());
    let versions = store.put_many(vec![entry("a", "1"), entry("b", "2"), entry("a", "33")]).await.unwrap();
    assert!(versions.is_sorted_by(|a, b| a < b));
    let wanted = ["b", "a", "missing", "a"].map(str::to_owned);
    let read = store.get_many(&wanted).await.unwrap();
    let read: Vec<_> = read.iter().map(|entry| entry.as_ref().map(|entry| (&entry.value[..], entry.version))).collect();
    let (a, b) = ((&b"33"[..], versions[2]), (&b"2"[..], versions[1]));
    assert_eq!(read, [Some(b), Some(a), None, Some(a)]);
    assert_eq!(meter.used(), entry_bytes(1, 2) + entry_bytes(1, 1));

    let wrong = PutEntry { if_version: Some(0), ..entry("b", "x") };
    let refused = store.put_many(vec![entry("a", "x"), wrong, entry("c", "x")]).await.unwrap_err();
    assert_eq!(refused.reason(), "VERSION_MISMATCH");
    assert_eq!((value(&store, "a").await.unwrap(), value(&store, "c").await), (Bytes::from_static(b"33"), None));
    assert_eq!(meter.used(), entry_bytes(1, 2) + entry_bytes(1, 1));

    // The second entry of a key sees the first.
    let twice = |wanted| vec![entry("d", "1"), PutEntry { if_version: Some(wanted), ..entry("d", "2") }];
    assert_eq!(store.put_many(twice(0)).await.unwrap_err().reason(), "VERSION_MISMATCH");
    assert_eq!(value(&store, "d").await, None);
}

async fn reads_batches_of_one_moment(subject: &Subject) {
    let (store, _) = open(subject, "kv-moment").await;
    let writer = Arc::clone(&store);
    let writing = tokio::spawn(async move {
        for round in 0..50_u32 {
            let both = ["left", "right"].map(|key| entry(key, round.to_string()));
            writer.put_many(both.to_vec()).await.unwrap();
        }
    });
    let wanted = ["left", "right"].map(str::to_owned);
    while !writing.is_finished() {
        let read = store.get_many(&wanted).await.unwrap();
        let values: Vec<_> = read.iter().map(|entry| entry.as_ref().map(|entry| &entry.value)).collect();
        assert_eq!(values[0], values[1]);
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

async fn forgets_what_has_expired(subject: &Subject) {
    let (store, _) = open(subject, "kv-expiry").await;
    let soon = subject.clock.now() + Duration::from_secs(2);
    let version = store.put(PutEntry { expires_at: Some(soon), ..entry("k", "v") }).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().unwrap().expires_at, Some(soon));
    store.put(PutEntry { expires_at: Some(soon), ..entry("kept", "v") }).await.unwrap();
    store.put(entry("kept", "w")).await.unwrap();
    subject.pass(Duration::from_secs(2)).await;
    assert_eq!(store.get("k").await.unwrap(), None);
    assert_eq!(store.get_many(&["k".to_owned()]).await.unwrap(), [None]);
    assert_eq!(keys(&store, "").await, ["kept"], "a write without expiry takes it away");
    assert_eq!(store.delete("k", Some(version)).await.unwrap_err().reason(), "VERSION_MISMATCH");
    assert!(!store.delete("k", None).await.unwrap());

    let past = subject.clock.now();
    store.put(PutEntry { expires_at: Some(past), ..entry("k", "v") }).await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
    let again = store.put(PutEntry { if_version: Some(0), ..entry("k", "v") }).await.unwrap();
    assert!(again > version);
}

async fn lists_by_prefix(subject: &Subject) {
    let (store, _) = open(subject, "kv-prefix").await;
    for key in AWKWARD_KEYS {
        store.put(entry(key, "v")).await.unwrap();
    }
    for prefix in AWKWARD_KEYS.iter().chain(&["", "missing", "\u{e9}x"]) {
        let expected: BTreeSet<String> =
            AWKWARD_KEYS.iter().filter(|key| key.starts_with(prefix)).map(|key| (*key).to_owned()).collect();
        assert_eq!(keys(&store, prefix).await, Vec::from_iter(expected), "{prefix:?}");
    }
    let page = store.list("a", Some("b"), 10, 1 << 20, false).await.unwrap();
    assert!(page.entries.is_empty() && !page.more, "a position behind the prefix ends it");
    let page = store.list("b", Some("a"), 10, 1 << 20, false).await.unwrap();
    assert_eq!(page.entries.len(), 1, "a position before the prefix does not widen it");
}

async fn pages_without_loss(subject: &Subject) {
    let (store, _) = open(subject, "kv-pages").await;
    let stored: Vec<String> = (0..123).map(|n| format!("key-{n:03}")).collect();
    store.put_many(stored.iter().map(|key| entry(key, key)).collect()).await.unwrap();
    store.put_many(vec![entry("before", "x"), entry("kez", "x")]).await.unwrap();
    for size in [1, 7, 50, 123, 1000] {
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = store.list("key-", after.as_deref(), size, 1 << 20, false).await.unwrap();
            assert!(page.entries.len() <= size);
            assert!(page.entries.iter().all(|(key, entry)| entry.value == key.as_bytes() && entry.version > 0));
            seen.extend(page.entries.into_iter().map(|(key, _)| key));
            if !page.more {
                break;
            }
            after = seen.last().cloned();
            // What is written behind and removed before the position meanwhile disturbs nothing.
            store.put(entry("key-", "x")).await.unwrap();
            store.delete("key-", None).await.unwrap();
        }
        assert_eq!(seen, stored, "page size {size}");
    }
}

async fn bounds_pages_by_bytes(subject: &Subject) {
    let (store, _) = open(subject, "kv-bytes").await;
    store.put_many((0..10).map(|n| entry(&n.to_string(), [0; 99])).collect()).await.unwrap();
    let page = store.list("", None, 100, 350, false).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (3, true));
    let page = store.list("", None, 100, 1000, false).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (10, false));
    let page = store.list("", None, 100, 1, false).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (1, true), "always at least one");
    let page = store.list("", None, 100, 350, true).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (10, false));
    assert!(page.entries.iter().all(|(_, entry)| entry.value.is_empty()));
}

async fn keeps_namespaces_apart(subject: &Subject) {
    let (one, _) = open(subject, "kv-one").await;
    let (two, _) = open(subject, "kv-two").await;
    one.put(entry("k", "one")).await.unwrap();
    assert_eq!(value(&two, "k").await, None);
    assert!(keys(&two, "").await.is_empty());
    assert!(!two.delete("k", None).await.unwrap());
    let (same, _) = open(subject, "kv-one").await;
    assert_eq!(value(&same, "k").await.unwrap(), "one");
}

async fn keeps_to_the_quota(subject: &Subject) {
    let (store, meter) = open(subject, "kv-quota").await;
    meter.set_limit(1000);
    store.put(entry("a", [0; 599 - ENTRY_OVERHEAD])).await.unwrap();
    let refused = store.put(entry("b", [0; 400])).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::ResourceExhausted);
    let quota = refused.quota_violation().unwrap();
    assert_eq!((quota.quota, quota.limit, quota.usage), ("max_storage_bytes", 1000, 600));
    assert_eq!((value(&store, "b").await, meter.used()), (None, 600));
    let refused = store.put_many(vec![entry("c", "1"), entry("d", [0; 400])]).await.unwrap_err();
    assert_eq!((refused.kind(), value(&store, "c").await), (Kind::ResourceExhausted, None));
    store.put(entry("a", [0; 999 - ENTRY_OVERHEAD])).await.unwrap();
    assert_eq!(meter.used(), 1000, "an overwrite is charged the difference");
    store.put(entry("a", [0; 99 - ENTRY_OVERHEAD])).await.unwrap();
    assert_eq!(meter.used(), 100);
    store.put(entry("b", [0; 899 - ENTRY_OVERHEAD])).await.unwrap();
    store.delete("a", None).await.unwrap();
    store.put(entry("c", [0; 99 - ENTRY_OVERHEAD])).await.unwrap();
    assert_eq!(meter.used(), 1000);
    // Over its limit a namespace may still shrink.
    meter.set_limit(10);
    store.put(entry("b", "")).await.unwrap();
    assert!(store.delete("c", None).await.unwrap());
    assert_eq!(meter.used(), entry_bytes(1, 0));
}

async fn gives_expired_room_back(subject: &Subject) {
    let (store, meter) = open(subject, "kv-room").await;
    meter.set_limit(100 * entry_bytes(2, 8));
    let soon = Some(subject.clock.now() + Duration::from_secs(1));
    let many = (0..90).map(|n| PutEntry { expires_at: soon, ..entry(&format!("{n:02}"), [0; 8]) }).collect();
    store.put_many(many).await.unwrap();
    assert_eq!(meter.used(), 90 * entry_bytes(2, 8));
    subject.pass(Duration::from_secs(1)).await;
    store.put(entry("large", [0; 7000])).await.unwrap();
    assert_eq!(keys(&store, "").await, ["large"]);
    assert_eq!(meter.used(), entry_bytes(5, 7000));
}

async fn refuses_handles_of_a_removed_namespace(subject: &Subject) {
    let (old, _) = open(subject, "kv-removed").await;
    old.put(entry("k", "old")).await.unwrap();
    let namespace = subject.config("kv-removed", AccessPattern::KeyValue, &[]).namespace;
    subject.backend.remove_namespace(&namespace).await.unwrap();
    subject.backend.remove_namespace(&namespace).await.unwrap();
    assert!(subject.backend.stored().await.unwrap().iter().all(|(name, _)| *name != namespace));
    let (new, _) = open(subject, "kv-removed").await;
    assert_eq!(value(&new, "k").await, None);
    new.put(entry("k", "new")).await.unwrap();
    for refused in [
        old.get("k").await.err(),
        old.put(entry("k", "old")).await.err(),
        old.delete("k", None).await.err(),
        old.list("", None, 1, 1, false).await.err(),
        old.get_many(&["k".to_owned()]).await.err(),
        old.put_many(vec![entry("k", "old")]).await.err(),
    ] {
        let refused = refused.unwrap();
        assert_eq!((refused.kind(), refused.reason()), (Kind::FailedPrecondition, "NAMESPACE_REMOVED"));
    }
    assert_eq!(value(&new, "k").await.unwrap(), "new");
}
