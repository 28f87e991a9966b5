//! Files that are whole or not there, whenever the machine stops.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Replaces `path` by a file of `contents`, durably and in one step, readable as `mode` says (0o600, 0o644) from
/// its first moment on.
pub fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?.to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    // What a crash left behind could have another mode, or be a link to somewhere else.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    // The process's umask may have taken bits away; the mode is part of the promise.
    file.set_permissions(Permissions::from_mode(mode))?;
    let written =
        file.write_all(contents).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// Whether others than the owner may read, write or run `path`.
pub fn is_open_to_others(path: &Path) -> io::Result<bool> {
    let of_others = std::fs::metadata(path)?.permissions().mode() & 0o077;
    Ok(of_others != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        for contents in ["one", "two"] {
            write_atomically(&path, contents.as_bytes(), 0o600).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
            assert!(!is_open_to_others(&path).unwrap());
        }
        write_atomically(&path, b"public", 0o644).unwrap();
        assert!(is_open_to_others(&path).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_left_in_the_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, directory.path().join("secret.new")).unwrap();
        write_atomically(&directory.path().join("secret"), b"x", 0o600).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
    }
}
