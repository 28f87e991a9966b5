//! What this person's computer remembers of the audit logs it has seen: of each the newest checkpoint that was
//! verified. It is what shows that a server's log was rewound or exchanged, which the log alone cannot.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{checkpoint::Checkpoint, private_file};

/// Longest wait for another process that is writing the file.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which log, as the person at the terminal names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogName {
    /// The server of a context.
    Context(String),
    /// The server of a data directory, by its absolute path.
    DataDir(PathBuf),
    /// The server at an address, `host:port`.
    Endpoint(String),
}

impl std::fmt::Display for LogName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Context(name) => write!(f, "context {name}"),
            Self::DataDir(path) => write!(f, "data directory {}", path.display()),
            Self::Endpoint(address) => write!(f, "endpoint {address}"),
        }
    }
}

/// The place where one log is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    file: Option<PathBuf>,
    log: String,
    /// SHA-256 of the CA's file, in hexadecimal.
    ca: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// By the name of the log.
    logs: BTreeMap<String, Record>,
}

/// What is remembered of one log.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// SHA-256 of the CA's file at that time, in hexadecimal.
    ca: String,
    /// The newest that was signed, in proto3 JSON.
    checkpoint: Value,
    /// The newest checkpoint that the server kept then, in proto3 JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stored: Option<Value>,
}

/// What was seen of a log before.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The newest that was signed.
    pub checkpoint: Checkpoint,
    /// The newest checkpoint that the server kept then.
    pub stored: Option<Checkpoint>,
    /// Whether the server had another CA then.
    pub other_ca: bool,
}

impl Memory {
    /// The place of the log of that name, at a server whose certificates are those of `ca`. The name alone says which log it is:
    /// with a data directory, who can exchange the log can exchange the CA as well. The file lies beside the
    /// contexts' file; without one there is no place, and nothing is remembered.
    pub fn of(contexts: Option<&Path>, name: &LogName, ca: &Path) -> Self {
        // An unreadable CA is reported when the connection is made.
        let ca = fs::read(ca).map(|bytes| hex::encode(digest(&SHA256, &bytes))).unwrap_or_default();
        Self { file: contexts.map(|path| path.with_file_name("checkpoints.json")), log: name.to_string(), ca }
    }

    /// The file, if there is a place.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What is remembered of this log. Fails with a sentence if the file cannot be understood.
    pub fn recall(&self) -> Result<Option<Seen>, String> {
        let Some(file) = &self.file else { return Ok(None) };
        let content = load(file)?;
        let Some(record) = content.logs.get(&self.log) else { return Ok(None) };
        self.seen(file, record).map(Some)
    }

    /// What is remembered of any log, this one included.
    pub fn recall_all(&self) -> Result<Vec<Seen>, String> {
        let Some(file) = &self.file else { return Ok(Vec::new()) };
        load(file)?.logs.values().map(|record| self.seen(file, record)).collect()
    }

    fn seen(&self, file: &Path, record: &Record) -> Result<Seen, String> {
        let stored = record.stored.as_ref().map(|stored| checked(file, stored)).transpose()?;
        Ok(Seen { checkpoint: checked(file, &record.checkpoint)?, stored, other_ca: record.ca != self.ca })
    }

    /// Remembers a checkpoint, and the newest that the server keeps, unless another process has remembered a newer one meanwhile. One of another installation, which
    /// has another CA and another key, takes the place of what was remembered.
    pub async fn remember(&self, checkpoint: &Checkpoint, stored: Option<&Checkpoint>) -> Result<(), String> {
        let file = self.file.as_ref().ok_or("there is no home directory; set HOME or XDG_CONFIG_HOME")?;
        let stored = stored.map(Checkpoint::to_json).transpose()?;
        let record = Record { ca: self.ca.clone(), checkpoint: checkpoint.to_json()?, stored };
        self.change(file, |present| {
            let newer = present.is_some_and(|present| {
                Checkpoint::from_json(&present.checkpoint).is_ok_and(|known| {
                    let same = known.key == checkpoint.key || present.ca == self.ca;
                    same && known.sequence >= checkpoint.sequence
                })
            });
            if newer { None } else { Some(Some(record)) }
        })
        .await
    }

    /// Forgets this log.
    pub async fn forget(&self) -> Result<(), String> {
        match &self.file {
            Some(file) => self.change(file, |_| Some(None)).await,
            None => Ok(()),
        }
    }

    /// Changes the record under the lock; `decide` says what it becomes, or none to leave it.
    async fn change(
        &self,
        file: &Path,
        decide: impl FnOnce(Option<&Record>) -> Option<Option<Record>>,
    ) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot write {}: {error}", file.display());
        let _lock = private_file::lock(&file.with_extension("lock"), PATIENCE).await.map_err(failed)?;
        let mut content = load(file)?;
        match decide(content.logs.get(&self.log)) {
            None => return Ok(()),
            Some(Some(record)) => drop(content.logs.insert(self.log.clone(), record)),
            Some(None) => drop(content.logs.remove(&self.log)),
        }
        let mut text = serde_json::to_vec_pretty(&content).map_err(|error| error.to_string())?;
        text.push(b'\n');
        private_file::replace(file, &text).map_err(failed)
    }
}

fn load(file: &Path) -> Result<Content, String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
        Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
    };
    serde_json::from_slice(&text)
        .map_err(|error| format!("cannot understand {}: {error}; move it away to begin anew", file.display()))
}

fn checked(file: &Path, checkpoint: &Value) -> Result<Checkpoint, String> {
    Checkpoint::from_json(checkpoint).map_err(|why| format!("cannot understand {}: {why}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::checkpoint::samples::signed;

    fn memory(folder: &Path, context: &str) -> Memory {
        let ca = folder.join("ca.pem");
        fs::write(&ca, "certificate").unwrap();
        Memory::of(Some(&folder.join("prism/admin.toml")), &LogName::Context(context.to_owned()), &ca)
    }

    #[tokio::test]
    async fn logs_are_remembered_apart_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (prod, test) = (memory(folder.path(), "prod"), memory(folder.path(), "test"));
        assert_eq!(prod.recall(), Ok(None));
        let checkpoint = signed(1, 7, [2; 32], false);
        prod.remember(&checkpoint, None).await.unwrap();
        let seen = Seen { checkpoint: checkpoint.clone(), stored: None, other_ca: false };
        assert_eq!((prod.recall(), test.recall()), (Ok(Some(seen)), Ok(None)));
        assert_eq!(test.recall_all().unwrap().remove(0).checkpoint, checkpoint);
        let file = prod.file().unwrap();
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        prod.forget().await.unwrap();
        assert_eq!(prod.recall(), Ok(None));
    }

    #[tokio::test]
    async fn the_newest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let memory = memory(folder.path(), "prod");
        for sequence in [3, 9, 5] {
            memory.remember(&signed(1, sequence, [2; 32], false), None).await.unwrap();
        }
        assert_eq!(memory.recall().unwrap().unwrap().checkpoint.sequence, 9);
    }

    #[tokio::test]
    async fn another_ca_alone_is_not_another_log() {
        let folder = tempfile::tempdir().unwrap();
        let before = memory(folder.path(), "prod");
        before.remember(&signed(1, 3, [2; 32], false), None).await.unwrap();
        let ca = folder.path().join("other.pem");
        fs::write(&ca, "another").unwrap();
        let name = LogName::Context("prod".to_owned());
        let after = Memory::of(Some(&folder.path().join("prism/admin.toml")), &name, &ca);
        let seen = after.recall().unwrap().unwrap();
        assert!(seen.other_ca && seen.checkpoint.sequence == 3);
        // The same key: its log cannot have become shorter.
        after.remember(&signed(1, 2, [2; 32], false), None).await.unwrap();
        assert_eq!(after.recall().unwrap().unwrap().checkpoint.sequence, 3);
        // Another CA and another key: another installation.
        after.remember(&signed(2, 1, [2; 32], false), None).await.unwrap();
        assert_eq!(after.recall().unwrap().unwrap().checkpoint.sequence, 1);
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_neither_believed_nor_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let memory = memory(folder.path(), "prod");
        memory.remember(&signed(1, 3, [2; 32], false), None).await.unwrap();
        let file = memory.file().unwrap();
        let forged = fs::read_to_string(file).unwrap().replace("\"sequence\": \"3\"", "\"sequence\": \"2\"");
        fs::write(file, &forged).unwrap();
        assert!(memory.recall().unwrap_err().contains("signature"));
        fs::write(file, "{").unwrap();
        assert!(memory.recall().is_err());
        assert!(memory.remember(&signed(1, 4, [2; 32], false), None).await.is_err());
        assert_eq!(fs::read_to_string(file).unwrap(), "{");
    }

    #[tokio::test]
    async fn without_a_place_nothing_is_remembered() {
        let memory = Memory::of(None, &LogName::Endpoint("a:1".to_owned()), Path::new("ca.pem"));
        assert_eq!(memory.recall(), Ok(None));
        assert!(memory.remember(&signed(1, 4, [2; 32], false), None).await.is_err());
        memory.forget().await.unwrap();
    }
}
