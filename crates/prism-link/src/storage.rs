//! Where a node writes down what it needs to go on without a controller.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// The state, as it was replaced last; `None` = there is none.
    pub state: Option<Vec<u8>>,
    /// What was appended since.
    pub journal: Vec<u8>,
}

/// Makes the bytes of a state. It may take a while: not for a thread that serves.
pub type Encode = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// A state that is replaced whole, and a journal of what happened since. One task uses it, one call at a time.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Reads both.
    async fn load(&self) -> io::Result<Stored>;

    /// Replaces the state and empties the journal; durable on return. After a crash on the way there is the old state with its
    /// journal, the new one with it, or the new one alone.
    async fn replace(&self, state: Encode) -> io::Result<()>;

    /// Appends to the journal; durable on return.
    async fn append(&self, records: Vec<u8>) -> io::Result<()>;
}

/// Name of the state in its folder.
const STATE: &str = "state";
/// Name of the journal.
const JOURNAL: &str = "journal";

/// Files `state` and `journal` in a folder, for their owner only.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// In `folder`, which is there.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folder = self.folder.clone();
        tokio::task::spawn_blocking(move || work(&folder)).await.unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }
}

#[async_trait]
impl Storage for Files {
    async fn load(&self) -> io::Result<Stored> {
        self.run(|folder| {
            let read = |name: &str| match std::fs::read(folder.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            };
            Ok(Stored { state: read(STATE)?, journal: read(JOURNAL)?.unwrap_or_default() })
        })
        .await
    }

    async fn replace(&self, state: Encode) -> io::Result<()> {
        self.run(move |folder| {
            let state = state()?;
            let new = folder.join("state.new");
            let mut file = private(&new, OpenOptions::new().write(true).create(true).truncate(true))?;
            file.write_all(&state)?;
            file.sync_all()?;
            std::fs::rename(&new, folder.join(STATE))?;
            File::open(folder)?.sync_all()?;
            let journal = private(&folder.join(JOURNAL), OpenOptions::new().write(true).create(true).truncate(true))?;
            journal.sync_all()
        })
        .await
    }

    async fn append(&self, records: Vec<u8>) -> io::Result<()> {
        self.run(move |folder| {
            let mut journal = private(&folder.join(JOURNAL), OpenOptions::new().append(true).create(true))?;
            let before = journal.metadata()?.len();
            let written = journal.write_all(&records).and_then(|()| journal.sync_data());
            // Half a record must not stand before the next one.
            written.inspect_err(|_| drop(journal.set_len(before)))
        })
        .await
    }
}

fn private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_state_has_an_empty_journal_and_is_for_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path());
        let nothing = files.load().await.unwrap();
        assert!(nothing.state.is_none() && nothing.journal.is_empty());
        files.append(b"one".to_vec()).await.unwrap();
        files.append(b"two".to_vec()).await.unwrap();
        assert_eq!(files.load().await.unwrap().journal, b"onetwo");
        files.replace(Box::new(|| Ok(b"state".to_vec()))).await.unwrap();
        let stored = files.load().await.unwrap();
        assert_eq!(stored.state.as_deref(), Some(b"state".as_slice()));
        assert!(stored.journal.is_empty());
        #[cfg(unix)]
        for name in [STATE, JOURNAL] {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
}
