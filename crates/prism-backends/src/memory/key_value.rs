use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use prism_core::storage::StorageMeter;
use prism_core::{Clock, Error, NamespaceName, Result, UnixMillis};

use crate::driver::{
    Entry, KeyPage, KeyValue, MAX_BATCH_BYTES, PutEntry, batch_too_large, entry_bytes, namespace_removed,
    version_mismatch,
};

/// Expired entries that a write removes besides its own work: more than it can make, so that they cannot pile up.
const PURGE_PER_WRITE: usize = 4;
/// Expired entries that one step of the sweep removes.
const PURGE_PER_SWEEP: usize = 1000;

/// KEY_VALUE of one namespace.
///
/// A read of one key takes the lock of one shard of `entries` and nothing else. Writers hold `index`, which keeps keys in
/// order, and so exclude each other and whoever reads several keys; both maps share the allocation of a key.
pub(super) struct MemoryKeyValue {
    clock: Clock,
    meter: Arc<StorageMeter>,
    entries: DashMap<Arc<str>, Entry>,
    index: RwLock<Index>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Index {
    /// Every key in `entries`.
    keys: BTreeSet<Arc<str>>,
    /// Those of them that expire.
    expiry: BTreeSet<(UnixMillis, Arc<str>)>,
    /// The version given last.
    version: u64,
    /// Bytes charged for all entries.
    bytes: i64,
}

fn lives(entry: &Entry, clock: &Clock) -> bool {
    entry.expires_at.is_none_or(|at| at > clock.now())
}

fn size(key: &str, value: &Bytes) -> i64 {
    entry_bytes(key.len(), value.len())
}

impl MemoryKeyValue {
    pub(super) fn new(clock: Clock, meter: Arc<StorageMeter>) -> Self {
        Self { clock, meter, entries: DashMap::new(), index: RwLock::default(), closed: AtomicBool::new(false) }
    }

    /// Bytes charged for all entries.
    pub(super) fn stored(&self) -> i64 {
        self.index.read().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Removes some of what has expired and says whether there was any.
    pub(super) fn sweep(&self) -> bool {
        self.writing().is_ok_and(|mut index| self.purge(&mut index, PURGE_PER_SWEEP) > 0)
    }

    /// Refuses what comes and frees the data.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        *index = Index::default();
        self.entries.clear();
    }

    fn admit(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) { Err(namespace_removed()) } else { Ok(()) }
    }

    fn reading(&self) -> Result<RwLockReadGuard<'_, Index>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        self.admit()?;
        Ok(index)
    }

    fn writing(&self) -> Result<RwLockWriteGuard<'_, Index>> {
        let index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        self.admit()?;
        Ok(index)
    }

    fn find(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).filter(|entry| lives(entry, &self.clock)).map(|entry| entry.clone())
    }

    fn put_all(&self, entries: Vec<PutEntry>) -> Result<Vec<u64>> {
        let mut index = self.writing()?;
        self.purge(&mut index, PURGE_PER_WRITE * entries.len());
        let mut grown = self.growth(&index, &entries)?;
        let charged = self.meter.charge(grown.max(0)).or_else(|full| {
            // What has expired must not take the room of what lives.
            if self.purge(&mut index, usize::MAX) == 0 {
                return Err(full);
            }
            grown = self.growth(&index, &entries)?;
            self.meter.charge(grown.max(0))
        })?;
        charged.keep();
        self.meter.adjust(grown.min(0));
        Ok(entries.into_iter().map(|entry| self.insert(&mut index, &entry)).collect())
    }

    /// By how much `entries` grow what is stored, in order; ABORTED when a version is not the wanted one.
    fn growth(&self, index: &Index, entries: &[PutEntry]) -> Result<i64> {
        let mut grown = 0;
        // Of two entries with the same key the second one sees the first, with the version that it is going to get.
        let mut before: HashMap<&str, (u64, i64)> = HashMap::new();
        for (entry, version) in entries.iter().zip(index.version + 1..) {
            let written = before.get(entry.key.as_str()).copied();
            let (current, bytes) = written.unwrap_or_else(|| match self.entries.get(entry.key.as_str()) {
                Some(stored) => {
                    let current = if lives(&stored, &self.clock) { stored.version } else { 0 };
                    (current, size(&entry.key, &stored.value))
                }
                None => (0, 0),
            });
            check_version(&entry.key, current, entry.if_version)?;
            let size = size(&entry.key, &entry.value);
            grown += size - bytes;
            if entries.len() > 1 {
                let lives = entry.expires_at.is_none_or(|at| at > self.clock.now());
                before.insert(&entry.key, (if lives { version } else { 0 }, size));
            }
        }
        Ok(grown)
    }

    fn insert(&self, index: &mut Index, entry: &PutEntry) -> u64 {
        index.version += 1;
        let expires_at = entry.expires_at;
        // A copy: what came over the wire is a slice of a buffer that may be much larger.
        let value = Bytes::copy_from_slice(&entry.value);
        let new = Entry { value, version: index.version, expires_at };
        index.bytes += size(&entry.key, &new.value);
        let key = if let Some(mut stored) = self.entries.get_mut(entry.key.as_str()) {
            let key = Arc::clone(stored.key());
            let old = std::mem::replace(stored.value_mut(), new);
            index.bytes -= size(&key, &old.value);
            if let Some(at) = old.expires_at {
                index.expiry.remove(&(at, Arc::clone(&key)));
            }
            key
        } else {
            let key: Arc<str> = Arc::from(entry.key.as_str());
            index.keys.insert(Arc::clone(&key));
            self.entries.insert(Arc::clone(&key), new);
            key
        };
        if let Some(at) = expires_at {
            index.expiry.insert((at, key));
        }
        index.version
    }

    /// Removes a key and gives its bytes back.
    fn remove(&self, index: &mut Index, key: &str) {
        if let Some((key, old)) = self.entries.remove(key) {
            let freed = size(&key, &old.value);
            index.bytes -= freed;
            self.meter.adjust(-freed);
            index.keys.remove(&key);
            if let Some(at) = old.expires_at {
                index.expiry.remove(&(at, key));
            }
        }
    }

    /// Removes at most `limit` expired entries, those that expired first; returns how many.
    fn purge(&self, index: &mut Index, limit: usize) -> usize {
        if index.expiry.is_empty() {
            return 0;
        }
        let (now, mut removed) = (self.clock.now(), 0);
        while removed < limit && index.expiry.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = index.expiry.pop_first() {
                self.remove(index, &key);
                removed += 1;
            }
        }
        removed
    }

    fn delete_one(&self, key: &str, if_version: Option<u64>) -> Result<bool> {
        let mut index = self.writing()?;
        self.purge(&mut index, PURGE_PER_WRITE);
        let current = self.find(key).map_or(0, |entry| entry.version);
        check_version(key, current, if_version)?;
        self.remove(&mut index, key);
        Ok(current != 0)
    }

    fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
        keys_only: bool,
    ) -> Result<KeyPage> {
        let index = self.reading()?;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let (mut page, mut bytes) = (KeyPage::default(), 0);
        for key in index.keys.range::<str, _>((from, Bound::Unbounded)).take_while(|key| key.starts_with(prefix)) {
            let Some(mut entry) = self.find(key) else { continue };
            if keys_only {
                entry.value = Bytes::new();
            }
            bytes += key.len() + entry.value.len();
            if page.entries.len() >= limit || (bytes > max_bytes && !page.entries.is_empty()) {
                page.more = true;
                break;
            }
            page.entries.push((key.as_ref().to_owned(), entry));
        }
        Ok(page)
    }

    fn find_many(&self, keys: &[String]) -> Result<Vec<Option<Entry>>> {
        // Keeps writers out: all results are of the same moment.
        let _index = self.reading()?;
        let mut bytes = 0;
        keys.iter()
            .map(|key| {
                let entry = self.find(key);
                bytes += entry.as_ref().map_or(0, |entry| entry.value.len());
                if bytes > MAX_BATCH_BYTES { Err(batch_too_large()) } else { Ok(entry) }
            })
            .collect()
    }
}

fn check_version(key: &str, current: u64, wanted: Option<u64>) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != current => Err(version_mismatch(key, current)),
        _ => Ok(()),
    }
}

/// Writes to a store of its own and reads back.
pub(super) fn round_trip(clock: &Clock) -> Result<()> {
    let namespace = NamespaceName::parse("namespace", "health")?;
    let probe = MemoryKeyValue::new(clock.clone(), StorageMeter::new(namespace));
    let entry = PutEntry { key: "k".to_owned(), value: Bytes::from_static(b"v"), expires_at: None, if_version: None };
    let versions = probe.put_all(vec![entry])?;
    match probe.find("k") {
        Some(found) if versions == [found.version] => Ok(()),
        _ => Err(Error::internal("the memory backend lost a write")),
    }
}

#[async_trait]
impl KeyValue for MemoryKeyValue {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.admit()?;
        Ok(self.find(key))
    }

    async fn put(&self, entry: PutEntry) -> Result<u64> {
        let versions = self.put_all(vec![entry])?;
        versions.first().copied().ok_or_else(|| Error::internal("a write returned no version"))
    }

    async fn delete(&self, key: &str, if_version: Option<u64>) -> Result<bool> {
        self.delete_one(key, if_version)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
        keys_only: bool,
    ) -> Result<KeyPage> {
        self.page(prefix, after, limit, max_bytes, keys_only)
    }

    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Entry>>> {
        self.find_many(keys)
    }

    async fn put_many(&self, entries: Vec<PutEntry>) -> Result<Vec<u64>> {
        self.put_all(entries)
    }
}
