//! `cargo xtask tour` and `cargo xtask bench`: programs beside the server, built with it and run from where the caller is.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::bail;

use crate::workspace::Workspace;
use crate::{process, tools};

/// The tour through a running Prism with a file of the reader's.
pub fn tour(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let crates = ["prism-server", "prism-cli", "prism-tour"];
    let program = built(workspace, "dev", &crates, "prism-tour")?;
    process::run(Command::new(program).args(arguments))?;
    Ok(ExitCode::SUCCESS)
}

/// The bench, or one part of it, with the programs as they are shipped.
pub fn bench(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<ExitCode> {
    // Fetched before the build, which is long.
    let etcd = match arguments {
        [part] if ["data", "join", "nodes"].contains(&part.as_str()) => None,
        [] => Some(tools::etcd(workspace)?),
        [part] if part == "admin" => Some(tools::etcd(workspace)?),
        _ => bail!("bench takes one part at most: data, admin, join or nodes"),
    };
    let program = built(workspace, "dist", &["prism-server", "prism-cli", "prism-bench"], "prism-bench")?;
    let mut bench = Command::new(program);
    if let Some(etcd) = etcd {
        bench.env("ETCD", etcd);
    }
    process::run(bench.args(arguments))?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the binaries of `crates` and gives the path of `program`.
fn built(workspace: &Workspace, profile: &str, crates: &[&str], program: &str) -> anyhow::Result<PathBuf> {
    let mut build = workspace.cargo();
    build.args(["build", "--bins", "--profile", profile]);
    for name in crates {
        build.args(["--package", name]);
    }
    process::run(&mut build)?;
    // Cargo builds the profile `dev` in the folder `debug`.
    let folder = workspace.target.join(if profile == "dev" { "debug" } else { profile });
    Ok(folder.join(program))
}
