//! Files that only their owner may read, replaced in one step and changed by one process at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

/// Pause between two attempts to get a lock.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Held until dropped; other processes wait meanwhile.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

/// Replaces a file in one step, and makes its folder if it is missing.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Waits for the lock in `path`, no longer than `patience`. The file stays when the lock is given back: were it
/// removed, two processes could each hold one of that name.
pub async fn lock(path: &Path, patience: Duration) -> io::Result<Lock> {
    folder_of(path)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if waited >= patience => {
                let why = format!("another process holds it for more than {}", humantime::format_duration(patience));
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(TryLockError::WouldBlock) => {
                tokio::time::sleep(RETRY_AFTER).await;
                waited += RETRY_AFTER;
            }
        }
    }
}

/// Whether others than its owner may read a file.
pub fn is_open_to_others(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o077 != 0
}

fn folder_of(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert!(!is_open_to_others(&fs::metadata(&path).unwrap()));
        let parent = path.parent().unwrap();
        assert_eq!(fs::metadata(parent).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(parent).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_lock_is_held_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = lock(&path, Duration::ZERO).await.unwrap();
        assert_eq!(lock(&path, Duration::ZERO).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(held);
        lock(&path, Duration::ZERO).await.unwrap();
    }
}
