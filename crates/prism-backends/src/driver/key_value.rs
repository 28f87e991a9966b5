use async_trait::async_trait;
use bytes::Bytes;
use prism_core::{Error, Kind, Result, UnixMillis};

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// Version of the key: grows with every write of it, never repeats for a key even after a deletion, and is never 0.
    pub version: u64,
    /// When the entry vanishes.
    pub expires_at: Option<UnixMillis>,
}

/// One write.
#[derive(Clone, Debug)]
pub struct PutEntry {
    /// Key, within its bounds.
    pub key: String,
    /// Value, within its bounds.
    pub value: Bytes,
    /// When the entry vanishes.
    pub expires_at: Option<UnixMillis>,
    /// The version that must be current; 0 = the key must not exist.
    pub if_version: Option<u64>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// Key and entry in ascending byte order of keys; values are empty with `keys_only`.
    pub entries: Vec<(String, Entry)>,
    /// Whether more follow.
    pub more: bool,
}

/// KEY_VALUE: contract §4 `KeyValueService`. An entry whose time is up is as good as absent at once.
#[async_trait]
pub trait KeyValue: Send + Sync + 'static {
    /// Reads one key.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Writes one key and returns its new version; ABORTED `VERSION_MISMATCH` when `if_version` is not current,
    /// RESOURCE_EXHAUSTED when the namespace has no room. Durable when it returns, on a durable backend.
    async fn put(&self, entry: PutEntry) -> Result<u64>;

    /// Deletes one key and says whether it existed; ABORTED `VERSION_MISMATCH` as for `put`.
    async fn delete(&self, key: &str, if_version: Option<u64>) -> Result<bool>;

    /// Lists keys that begin with `prefix`, after the key `after`, at most `limit` and at most `max_bytes` of keys and values
    /// (but always at least one entry).
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
        keys_only: bool,
    ) -> Result<KeyPage>;

    /// Reads many keys in one go; results in the order of `keys`.
    async fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Entry>>>;

    /// Writes many keys, all or none; versions in the order of `entries`.
    async fn put_many(&self, entries: Vec<PutEntry>) -> Result<Vec<u64>>;
}

/// Most bytes of values that one `get_many` returns.
pub const MAX_BATCH_BYTES: usize = 64 * 1024 * 1024;

/// What an entry is charged beside its key and value, in bytes: small ones cost too.
pub const ENTRY_OVERHEAD: usize = 64;

/// What an entry of `key` and `value` bytes is charged against the namespace's quota.
pub fn entry_bytes(key: usize, value: usize) -> i64 {
    (key + value + ENTRY_OVERHEAD) as i64
}

/// RESOURCE_EXHAUSTED `BATCH_TOO_LARGE`: the values asked for together pass [`MAX_BATCH_BYTES`].
pub fn batch_too_large() -> Error {
    let bound = MAX_BATCH_BYTES / (1024 * 1024);
    let message = format!("the values are larger than {bound} MiB together; ask for fewer keys at once");
    Error::new(Kind::ResourceExhausted, "BATCH_TOO_LARGE", message)
}

/// ABORTED `VERSION_MISMATCH` with the version that is current, 0 = the key does not exist.
pub fn version_mismatch(key: &str, current: u64) -> Error {
    Error::aborted("VERSION_MISMATCH", "the key has another version; read it again")
        .with("key", key)
        .with("current_version", current.to_string())
}
