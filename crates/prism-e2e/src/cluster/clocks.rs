//! Machines whose clocks differ: libfaketime in front of the system's clock. What measures durations is left alone.

use std::path::{Path, PathBuf};

use super::network::Machine;

/// How soon a process sees that its clock was set, in seconds.
pub const SEEN_AFTER: u64 = 1;

/// The clocks of three machines, each a file with the seconds by which it differs.
pub struct Clocks {
    folder: PathBuf,
    library: PathBuf,
}

impl Clocks {
    pub(super) fn new(folder: &Path, skews: [i64; 3]) -> Self {
        let clocks = Self { folder: folder.to_owned(), library: library() };
        for (machine, skew) in Machine::ALL.into_iter().zip(skews) {
            clocks.set(machine, skew);
        }
        clocks
    }

    /// Sets the clock of a machine to the true time and these seconds. Processes that run see it within [`SEEN_AFTER`].
    pub fn set(&self, machine: Machine, seconds: i64) {
        let file = self.file(machine);
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).expect("the file of a clock");
        std::fs::rename(new, file).expect("the file of a clock");
    }

    fn file(&self, machine: Machine) -> PathBuf {
        self.folder.join(format!("clock-{machine}"))
    }

    /// The environment that gives a program the clock of a machine.
    pub(super) fn env(&self, machine: Machine) -> Vec<(String, String)> {
        let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let variables = [
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.file(machine))),
            ("FAKETIME_CACHE_DURATION", SEEN_AFTER.to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// Where `libfaketime.so.1` is: `LIBFAKETIME`, the system's folders, or where `cargo xtask test` unpacks Debian's package.
fn library() -> PathBuf {
    if let Some(named) = std::env::var_os("LIBFAKETIME") {
        return named.into();
    }
    let test = std::env::current_exe().expect("the path of the test");
    let tools = test.ancestors().nth(3).map(|target| target.join("tools/libfaketime/usr/lib"));
    let folders = [Some("/usr/lib".into()), Some("/usr/lib64".into()), tools];
    let places = folders.into_iter().flatten().flat_map(|folder: PathBuf| {
        let inner = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path().join("faketime"));
        inner.chain([folder.join("faketime")]).collect::<Vec<_>>()
    });
    let mut files = places.map(|folder| folder.join("libfaketime.so.1"));
    files.find(|file| file.is_file()).unwrap_or_else(|| {
        panic!("libfaketime.so.1 is not here: run cargo xtask test, install the package libfaketime, or name it in LIBFAKETIME")
    })
}
