//! `prism-admin` as a person or a script runs it: its arguments, its exit code, and what it says where.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::binaries;
use crate::server::Prism;
use crate::wait::LIMIT;

/// A shell in which `prism-admin` is run: a home folder, an environment, and flags that go with every command.
#[derive(Clone, Debug)]
pub struct Cli {
    home: PathBuf,
    env: Vec<(String, String)>,
}

impl Cli {
    /// On the server's machine, with the server's data directory in the environment.
    pub fn of(server: &Prism) -> Self {
        Self::in_folder(server.folder()).env("PRISM_DATA_DIR", &server.data_dir().to_string_lossy())
    }

    /// In a folder, with an environment that is empty but for `PATH` and `HOME`.
    pub fn in_folder(home: &Path) -> Self {
        Self { home: home.to_owned(), env: Vec::new() }
    }

    /// Adds a variable to the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this admin token instead of that of the data directory.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        self.env("PRISM_ADMIN_TOKEN", token)
    }

    /// Runs a command whose words have no blanks in them.
    pub fn run(&self, line: &str) -> Outcome {
        self.run_with(line, &[], "")
    }

    /// Runs a command with words more, and with text on its standard input.
    pub fn run_with(&self, line: &str, more: &[&str], input: &str) -> Outcome {
        let mut child = self.spawn(line, more);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads its input, or this is empty");
        drop(stdin);
        let output = child.wait_with_output().expect("its own child");
        Outcome {
            line: format!("prism-admin {line} {}", more.join(" ")),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Starts a command that prints until it is ended.
    pub fn follow(&self, line: &str) -> Following {
        let mut child = self.spawn(line, &[]);
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Following { child, lines }
    }

    /// Starts a command that says what a person has to do before it goes on.
    pub fn begin(&self, line: &str) -> Waiting {
        let mut child = self.spawn(line, &[]);
        let (sender, notes) = channel();
        let err = BufReader::new(child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || err.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Waiting { line: format!("prism-admin {line}"), child: Some(child), notes, heard: String::new() }
    }

    fn spawn(&self, line: &str, more: &[&str]) -> Child {
        let mut command = Command::new(binaries::prism_admin());
        command.args(line.split_whitespace()).args(more).current_dir(&self.home).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &self.home);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub line: String,
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

#[expect(clippy::return_self_not_must_use, reason = "the assertion is the use; the rest is for chains of them")]
impl Outcome {
    /// It is done.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ends(0)
    }

    /// It ended with this code.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// It failed with this code: no data, an error that says `words`, and what to do about it.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert_eq!(self.out, "", "only data belongs on standard output: {self:#?}");
        assert!(self.err.starts_with("error: ") && self.err.contains(words), "{self:#?}");
        self
    }

    /// It failed with this code after it had told what to do: no data, and an error that says `words`.
    #[track_caller]
    pub fn fails_after_notes(self, code: i32, words: &str) -> Self {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:#?}");
        let error = self.err.lines().skip_while(|line| !line.starts_with("error: ")).collect::<Vec<_>>().join("\n");
        assert!(error.contains(words), "{self:#?}");
        self
    }

    /// Nothing but data.
    #[track_caller]
    pub fn quiet(self) -> Self {
        assert_eq!(self.err, "", "{self:#?}");
        self
    }

    /// Its data contain this.
    #[track_caller]
    pub fn prints(self, words: &str) -> Self {
        assert!(self.out.contains(words), "{words:?} is not in {self:#?}");
        self
    }

    /// What it says beside its data contains this.
    #[track_caller]
    pub fn notes(self, words: &str) -> Self {
        assert!(self.err.contains(words), "{words:?} is not in {self:#?}");
        self
    }

    /// Its data as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("not JSON: {error}: {self:#?}"))
    }

    /// The value behind a label of a sheet.
    #[track_caller]
    pub fn field(&self, label: &str) -> String {
        let value = self.out.lines().find_map(|line| line.trim_start().strip_prefix(label)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {label} in {self:#?}")).trim().to_owned()
    }
}

/// A command that is running.
pub struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    /// The next line of its standard output, if one comes within `time`.
    pub fn next(&self, time: Duration) -> Option<String> {
        self.lines.recv_timeout(time).ok()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that waits for somebody.
pub struct Waiting {
    line: String,
    child: Option<Child>,
    notes: Receiver<String>,
    heard: String,
}

impl Waiting {
    /// Waits for a line on its standard error with these words; panics with what it said instead when it ends.
    pub fn note(&mut self, words: &str) -> String {
        loop {
            let line = self.notes.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|_| panic!("{} never said {words:?} but {}", self.line, self.heard));
            self.heard += &line;
            self.heard.push('\n');
            if line.contains(words) {
                return line.trim().to_owned();
            }
        }
    }

    /// Waits for its end.
    pub fn end(mut self) -> Outcome {
        let mut child = self.child.take().expect("it runs");
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("its own child");
        let rest: Vec<String> = self.notes.iter().collect();
        Outcome {
            line: self.line.clone(),
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("text"),
            err: std::mem::take(&mut self.heard) + &rest.join("\n"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
