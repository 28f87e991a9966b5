use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::server::{Server, binary};

/// Somebody with `prism-admin` and the first admin key.
pub struct Operator {
    data_dir: PathBuf,
}

impl Operator {
    pub fn new(server: &Server) -> Self {
        Self { data_dir: server.data_dir.clone() }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        println!("$ prism-admin {}", arguments.join(" "));
        let mut command = Command::new(binary("prism-admin")?);
        command.args(arguments).env("PRISM_DATA_DIR", &self.data_dir).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command and shows what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments)?.status().context("prism-admin did not start")?;
        ensure!(status.success(), "prism-admin {} ended with {status}", arguments.join(" "));
        Ok(())
    }

    /// Runs a command that prints a secret, and keeps it to ourselves.
    pub fn secret(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments)?.stderr(Stdio::inherit()).output().context("prism-admin did not start")?;
        ensure!(output.status.success(), "prism-admin {} ended with {}", arguments.join(" "), output.status);
        println!("(a key, shown once: not here)");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}
