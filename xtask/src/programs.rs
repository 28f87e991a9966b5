//! `cargo xtask tour` and `cargo xtask bench`: programs beside the server, built with it and run from where the caller is.

use std::process::{Command, ExitCode};

use crate::process;
use crate::workspace::Workspace;

/// The tour through a running Prism with a file of the reader's.
pub fn tour(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let crates = ["prism-server", "prism-cli", "prism-tour"];
    built_and_run(workspace, "dev", &crates, "prism-tour", arguments)
}

/// The bench, with the server as it is shipped.
pub fn bench(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<ExitCode> {
    built_and_run(workspace, "dist", &["prism-server", "prism-bench"], "prism-bench", arguments)
}

fn built_and_run(
    workspace: &Workspace,
    profile: &str,
    crates: &[&str],
    program: &str,
    arguments: &[String],
) -> anyhow::Result<ExitCode> {
    let mut build = workspace.cargo();
    build.args(["build", "--bins", "--profile", profile]);
    for name in crates {
        build.args(["--package", name]);
    }
    process::run(&mut build)?;
    // Cargo builds the profile `dev` in the folder `debug`.
    let folder = workspace.target.join(if profile == "dev" { "debug" } else { profile });
    process::run(Command::new(folder.join(program)).args(arguments))?;
    Ok(ExitCode::SUCCESS)
}
