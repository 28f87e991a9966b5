//! The data directory: for its owner only, and for one process at a time (contract §1).

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory with mode 0700 when there is none, and takes its lock.
    ///
    /// Fails with a sentence that names the directory when another process holds it, or when it is open to others and not
    /// evidently Prism's own.
    pub fn open(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| format!("the data directory {shown} cannot be made: {error}"))?;
        close_to_others(path)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("prism.lock"))
            .map_err(|error| format!("the data directory {shown} cannot be used: {error}"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "the data directory {shown} is in use by another prism process; stop it first, or choose another --data-dir"
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(format!("the data directory {shown} cannot be locked: {error}"));
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes the rights of others away from a directory that is Prism's; another's is left as it is, and refused.
fn close_to_others(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let failed = |error| format!("the data directory {shown} cannot be used: {error}");
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    let of_others = mode & 0o077;
    if of_others == 0 {
        return Ok(());
    }
    let own = path.join("prism.lock").exists() || fs::read_dir(path).map_err(failed)?.next().is_none();
    if !own {
        return Err(format!(
            "the data directory {shown} is open to others and holds other files; run: chmod 700 {shown}"
        ));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn it_is_made_for_its_owner_and_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let held = DataDir::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        let refusal = DataDir::open(&path).unwrap_err();
        assert!(refusal.contains("in use") && refusal.contains(&path.display().to_string()), "{refusal}");
        drop(held);
        assert!(DataDir::open(&path).is_ok());
    }

    #[test]
    fn rights_of_others_are_taken_away_from_its_own_directory_only() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(&empty).unwrap());
        assert_eq!(mode(&empty), 0o700);
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(DataDir::open(&other).unwrap_err().contains("chmod 700"));
        assert_eq!(mode(&other), 0o755);
    }
}
