use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use prism_core::secret::{self, SecretKind};
use prism_core::{Error, Result};

use crate::audit::EntryDraft;
use crate::key::{ApiKeyRow, KeyLife};
use crate::{Store, Tx};

/// Name of the file with the first admin key, in the data directory.
pub(crate) const ADMIN_TOKEN: &str = "admin.token";

impl Store {
    /// Makes the first admin key, once in the life of an installation: a file that the operator removed stays removed.
    ///
    /// The file is on the disk before the key is valid, so a crash in between leaves a file that the next start replaces,
    /// never a key that nobody holds.
    pub(crate) async fn bootstrap(&self, data_dir: &Path) -> Result<()> {
        let done = self.write(|tx| tx.one("SELECT 1 FROM facts WHERE name = 'bootstrapped'", [], |_| Ok(()))).await?;
        if done.is_some() {
            return Ok(());
        }
        let new = self.random.secret(SecretKind::AdminKey);
        write_secret(data_dir, ADMIN_TOKEN, new.token.expose())?;
        let (id, hash) = (new.id, new.hash);
        self.write(move |tx| {
            let life = KeyLife { created_at: tx.now, created_by: "prism".to_owned(), ..KeyLife::default() };
            tx.insert_api_key(&ApiKeyRow {
                id,
                hash,
                name: ADMIN_TOKEN.to_owned(),
                roles: vec!["admin".to_owned()],
                namespace: None,
                owner: None,
                life,
                rotated_at: None,
                previous: None,
            })?;
            tx.execute("INSERT INTO facts (name, value) VALUES ('bootstrapped', ?1)", [tx.now.0.to_string()])?;
            tx.append_entry(first_key_entry(id.as_str()))?;
            Ok(())
        })
        .await
    }

    /// The name of this installation in the URIs of its certificates; made once, and the same for ever.
    pub(crate) async fn named_cluster(&self) -> Result<String> {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        let new = bytes.iter().fold("prism-".to_owned(), |name, byte| format!("{name}{byte:02x}"));
        self.write(move |tx| {
            tx.execute("INSERT INTO facts (name, value) VALUES ('cluster', ?1) ON CONFLICT DO NOTHING", [new])?;
            tx.one("SELECT value FROM facts WHERE name = 'cluster'", [], |row| row.get(0))?
                .ok_or_else(|| Error::internal("a fact that was stored is not there"))
        })
        .await
    }
}

fn first_key_entry(id: &str) -> EntryDraft {
    EntryDraft {
        actor: "prism".to_owned(),
        operation: "CreateApiKey".to_owned(),
        resource: format!("key:{id}"),
        metadata: [("reason".to_owned(), "first start".to_owned())].into(),
        auth_method: "none".to_owned(),
        ..EntryDraft::default()
    }
}

/// Writes `secret` to a file of mode 0600, whole or not at all.
pub(crate) fn write_secret(folder: &Path, name: &str, secret: &str) -> Result<()> {
    PreparedSecret::write(folder, name, secret)?.put()
}

/// A secret that is on the disk under another name, so that it can be put in its place when it is valid.
pub(crate) struct PreparedSecret {
    folder: PathBuf,
    temporary: PathBuf,
    path: PathBuf,
}

impl PreparedSecret {
    /// Writes `secret`, mode 0600, beside the file `name`.
    pub(crate) fn write(folder: &Path, name: &str, secret: &str) -> Result<Self> {
        let prepared =
            Self { folder: folder.to_owned(), temporary: folder.join(format!("{name}.new")), path: folder.join(name) };
        let write = || -> io::Result<()> {
            // A leftover of a crash may have other permissions.
            match std::fs::remove_file(&prepared.temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&prepared.temporary)?;
            writeln!(file, "{secret}")?;
            file.sync_all()
        };
        write().map_err(|cause| prepared.failed(cause))?;
        Ok(prepared)
    }

    /// Puts it in the place of what is there.
    pub(crate) fn put(self) -> Result<()> {
        let put = || -> io::Result<()> {
            std::fs::rename(&self.temporary, &self.path)?;
            File::open(&self.folder)?.sync_all()
        };
        put().map_err(|cause| self.failed(cause))
    }

    /// Takes it away again: it did not become valid.
    pub(crate) fn discard(&self) {
        if let Err(error) = std::fs::remove_file(&self.temporary) {
            tracing::warn!(file = %self.temporary.display(), %error, "a token that is not valid could not be removed");
        }
    }

    fn failed(&self, cause: io::Error) -> Error {
        Error::unavailable("STORAGE_UNAVAILABLE", format!("cannot write {}", self.path.display())).caused_by(cause)
    }
}

impl Tx<'_> {
    /// Whether `token`, a word read from a file, is a valid client key of this installation.
    pub fn knows_client_token(&self, token: &str) -> Result<bool> {
        let Some(presented) = secret::parse(SecretKind::ClientKey, token) else { return Ok(false) };
        let found = self.client_key(presented.id.as_str())?;
        Ok(found.is_some_and(|key| key.hash.matches(&presented) && key.life.is_valid(self.now)))
    }
}
