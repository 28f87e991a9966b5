//! `prism-admin completion`.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{cli::Cli, error::Result, exit::Exit, output};

/// `completion`: a script for your shell, for example
/// `prism-admin completion bash > /etc/bash_completion.d/prism-admin`.
#[derive(Args, Debug)]
pub struct Completion {
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    pub fn run(self) -> Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "prism-admin", &mut script);
        output::write(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Ok)
    }
}
