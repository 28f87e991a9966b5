//! A data directory whose disk is small and can be filled for real.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::server::{Options, Prism};

/// Size of the filler, a file that is removed to make room.
const FILLER_BYTES: usize = 12 << 20;

/// A small disk. It is taken away when this is dropped, also by a panic.
pub struct Disk {
    folder: TempDir,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file system in memory; a write without room fails with ENOSPC.
    Mounted,
    /// No rights to mount: a limit on the size of files, under which writes fail with EFBIG.
    Limited,
}

impl Disk {
    /// Makes a disk of `mib` MiB, with a filler on it that [`Disk::make_room`] removes. Says how, for all to see.
    pub fn new(mib: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("prism-e2e-disk-").tempdir().expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(folder.path())
            .output();
        let kind = match mount {
            Ok(output) if output.status.success() => Kind::Mounted,
            refused => {
                say(&format!("NOT a full disk: mounting failed ({refused:?})"));
                Kind::Limited
            }
        };
        say(match kind {
            Kind::Mounted => "full disk: a small tmpfs",
            Kind::Limited => "full disk: RLIMIT_FSIZE instead",
        });
        let disk = Self { folder, kind };
        if kind == Kind::Mounted {
            std::fs::write(disk.filler(), vec![0; FILLER_BYTES]).expect("the filler fits");
        }
        disk
    }

    /// Options of a server whose data is on this disk.
    pub fn options(&self) -> Options {
        let options = Options::new().data_dir(&self.folder.path().join("data"));
        match self.kind {
            Kind::Mounted => options,
            Kind::Limited => {
                // Without the trap the signal that comes with EFBIG ends the process.
                let script = "trap '' XFSZ; if [ -e \"$0\" ]; then ulimit -S -f 0; fi; exec \"$@\"";
                options.wrapper(&["sh", "-c", script, self.filler().to_str().expect("a path in UTF-8")])
            }
        }
    }

    /// Takes what room is left, so that only what is in files already can be written over.
    pub fn fill(&self, server: &Prism) {
        match self.kind {
            Kind::Mounted => {
                let mut rest = File::options().create(true).append(true).open(self.filler()).expect("the filler");
                while rest.write_all(&[0; 4096]).is_ok() {}
            }
            Kind::Limited => {
                std::fs::write(self.filler(), "").expect("a file");
                limit(server, "0:unlimited");
            }
        }
    }

    /// Makes room again.
    pub fn make_room(&self, server: &Prism) {
        std::fs::remove_file(self.filler()).expect("the filler is there");
        if self.kind == Kind::Limited {
            limit(server, "unlimited:unlimited");
        }
    }

    /// Whether it fills up by being written to.
    pub fn is_small(&self) -> bool {
        self.kind == Kind::Mounted
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

/// Past the capture of the test's output.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "=== {what} ===");
}

/// Sets the limit of a running server; one that starts later asks for the filler.
fn limit(server: &Prism, size: &str) {
    if server.try_exit().is_some() {
        return;
    }
    let pid = server.process_id().to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={size}")]).status();
    assert!(set.is_ok_and(|status| status.success()), "neither mount nor prlimit works here: nothing can be tested");
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.kind == Kind::Mounted {
            unmount(self.folder.path());
        }
    }
}

/// Lazily: whoever still has a file open there must not keep it in the way.
fn unmount(path: &Path) {
    let done = Command::new("umount").arg("--lazy").arg(path).status();
    if !done.is_ok_and(|status| status.success()) {
        eprintln!("{} is still mounted", path.display());
    }
}
