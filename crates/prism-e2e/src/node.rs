//! `prism join` as a person runs it on a new machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binaries;
use crate::cli::Outcome;

/// Runs `prism join` with these words, and with text on its standard input.
pub fn join(words: &[&str], input: &str) -> Outcome {
    join_as(&[], &[], words, input)
}

/// The same through another program, `wrapper… prism join …`, and with these variables.
pub fn join_as(wrapper: &[String], env: &[(String, String)], words: &[&str], input: &str) -> Outcome {
    let program: Vec<OsString> = wrapper.iter().map(Into::into).chain([binaries::prism().into()]).collect();
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).arg("join").args(words).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // It need not read what it does not ask for.
    let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("its own child");
    Outcome {
        line: format!("prism join {}", words.join(" ")),
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// The files of a node in its data directory.
pub struct Files(PathBuf);

impl Files {
    /// In this data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("node"))
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a file holds.
    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
