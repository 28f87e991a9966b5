//! Files of the operator that may change while the server runs: certificates, keys, bundles.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use prism_core::{Error, Kind, Result};

use crate::shutdown::Shutdown;

/// How often the files are looked at. A change is taken over at the second look that finds it, so that a CA that is taken out
/// of a bundle is dead well within a second.
pub const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Largest file, in bytes.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;

type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T> + Send + Sync>;
type Digest = [u8; 32];

/// What one or more files together mean. What they mean when they change takes its place; while they are unreadable or mean
/// nothing, the last good value stays.
pub struct Watched<T> {
    name: &'static str,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    current: ArcSwap<T>,
    state: Mutex<State>,
}

/// What is known of the files.
struct State {
    /// Contents of the value in use.
    taken: Digest,
    /// Other contents, seen at the last look. A change is taken when it has stood still: files are written piece by piece, and
    /// the two of a pair one after the other.
    candidate: Option<Digest>,
    /// What was wrong at the last look, and whether it was logged.
    fault: Option<(String, bool)>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads `paths` for the first time. `parse` gets their contents in the same order; `name` says in the log what they are.
    ///
    /// FAILED_PRECONDITION naming the file when one cannot be read or is larger than [`MAX_BYTES`], and what `parse` fails with.
    pub fn open(
        name: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let contents = read(&paths)?;
        let current = ArcSwap::from_pointee(parse(&contents)?);
        let state = Mutex::new(State { taken: digest(&contents), candidate: None, fault: None });
        Ok(Self { name, paths, parse: Box::new(parse), current, state })
    }

    /// The value in use.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Looks at the files once, which blocks; the new value when one was taken over. What is wrong with them is logged once.
    pub fn look(&self) -> Option<Arc<T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match read(&self.paths) {
            Ok(contents) => contents,
            Err(error) => {
                state.candidate = None;
                self.complain(&mut state, &error);
                return None;
            }
        };
        let seen = digest(&contents);
        if seen == state.taken {
            (state.candidate, state.fault) = (None, None);
            return None;
        }
        if state.candidate.replace(seen) != Some(seen) {
            return None;
        }
        match (self.parse)(&contents) {
            Ok(value) => {
                let value = Arc::new(value);
                self.current.store(value.clone());
                *state = State { taken: seen, candidate: None, fault: None };
                tracing::info!(file = %self.first().display(), "{} was read again", self.name);
                Some(value)
            }
            Err(error) => {
                self.complain(&mut state, &error);
                None
            }
        }
    }

    /// Looks at the files every [`LOOK_EVERY`] until the end is announced.
    pub async fn follow(self: Arc<Self>, until: Shutdown) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = until.announced() => return,
            }
            let watched = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || watched.look()).await {
                tracing::error!(%error, "{} could not be looked at", self.name);
            }
        }
    }

    /// A fault that stands at two looks in a row is logged, once.
    fn complain(&self, state: &mut State, error: &Error) {
        let again = state.fault.take().filter(|(text, _)| text == error.message());
        let told = again.as_ref().is_some_and(|(_, told)| *told);
        if again.is_some() && !told {
            let file = self.first().display();
            tracing::error!(%file, %error, "{} has changed and cannot be used; the last good one stays", self.name);
        }
        state.fault = Some((error.message().to_owned(), again.is_some()));
    }

    fn first(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let fault = |path: &Path, what: &dyn fmt::Display| {
        Error::new(Kind::FailedPrecondition, "FILE_UNUSABLE", format!("{}: {what}", path.display()))
    };
    let read = |path: &PathBuf| {
        let mut contents = Vec::new();
        let file = File::open(path).map_err(|error| fault(path, &error))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut contents).map_err(|error| fault(path, &error))?;
        if contents.len() as u64 > MAX_BYTES {
            return Err(fault(path, &format_args!("is larger than {MAX_BYTES} bytes")));
        }
        Ok(contents)
    };
    paths.iter().map(read).collect()
}

/// Contents may be a private key, so only their digest is remembered.
fn digest(contents: &[Vec<u8>]) -> Digest {
    let mut context = Context::new(&SHA256);
    for content in contents {
        context.update(&(content.len() as u64).to_be_bytes());
        context.update(content);
    }
    let mut out = Digest::default();
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files that together mean a number.
    fn sum(paths: &[PathBuf]) -> Result<Watched<i64>> {
        Watched::open("the sum", paths.to_vec(), |contents| {
            let number = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).trim().parse::<i64>().ok();
            contents.iter().map(number).sum::<Option<i64>>().ok_or_else(|| Error::precondition("BAD", "not a number"))
        })
    }

    #[test]
    fn a_change_is_taken_over_when_it_stands_still() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a"), folder.path().join("b")];
        std::fs::write(&paths[0], "1").unwrap();
        assert!(sum(&paths).unwrap_err().message().contains('b'));
        std::fs::write(&paths[1], "x").unwrap();
        assert!(sum(&paths).is_err());
        std::fs::write(&paths[1], "2").unwrap();
        let watched = sum(&paths).unwrap();
        assert!(watched.look().is_none() && watched.look().is_none());

        std::fs::write(&paths[0], "10").unwrap();
        assert!(watched.look().is_none());
        std::fs::write(&paths[1], "20").unwrap();
        assert!(watched.look().is_none());
        assert_eq!(watched.look().as_deref(), Some(&30));
        assert!(watched.look().is_none());
        assert_eq!(*watched.current(), 30);
    }

    #[test]
    fn the_last_good_value_stays_and_a_fault_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a")];
        std::fs::write(&paths[0], "1").unwrap();
        let watched = sum(&paths).unwrap();
        let fault = || watched.state.lock().unwrap().fault.clone();
        for broken in ["nonsense", "", &"9".repeat(5 * 1024 * 1024)] {
            std::fs::write(&paths[0], broken).unwrap();
            assert!((0..4).all(|_| watched.look().is_none()));
            assert!(fault().unwrap().1);
        }
        std::fs::remove_file(&paths[0]).unwrap();
        assert!(watched.look().is_none());
        assert!(!fault().unwrap().1, "a file may be away for a moment");
        assert!(watched.look().is_none());
        assert!(fault().unwrap().1);
        assert_eq!(*watched.current(), 1);
        std::fs::write(&paths[0], "1").unwrap();
        assert!(watched.look().is_none());
        assert!(fault().is_none());
        std::fs::write(&paths[0], "2").unwrap();
        watched.look();
        assert_eq!(watched.look().as_deref(), Some(&2));
    }

    #[tokio::test]
    async fn files_are_followed_until_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a")];
        std::fs::write(&paths[0], "1").unwrap();
        let watched = Arc::new(sum(&paths).unwrap());
        let (trigger, until) = Shutdown::new();
        let following = tokio::spawn(watched.clone().follow(until));
        std::fs::write(&paths[0], "2").unwrap();
        while *watched.current() != 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        trigger.now();
        following.await.unwrap();
    }
}
