//! `cargo xtask test` and `cargo xtask crash`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::bail;

use crate::summary::Summary;
use crate::workspace::Workspace;
use crate::{deps, process, tools};

/// Everything that must hold: the wire, the dependency rules, every test. The last line of output is the count.
pub fn all(workspace: &Workspace) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    summary.check("tools", prepare(workspace));
    summary.check("proto lint", buf(workspace, &["lint", "proto"]));
    summary.check("proto format", buf(workspace, &["format", "proto", "--diff", "--exit-code"]));
    summary
        .check("proto breaking changes", buf(workspace, &["breaking", "proto", "--against", "proto/baseline.binpb"]));
    deps::check(workspace, &mut summary);

    // One build for the tests and for the binaries that they start.
    let built = process::run(workspace.cargo().args(["build", "--workspace", "--all-targets"]));
    let compiles = built.is_ok();
    summary.check("build", built);
    if compiles {
        run_tests(workspace, &["--workspace", "--no-fail-fast"], &mut summary)?;
    }
    close(workspace, summary)
}

/// Only the tests that the arguments choose, with tools and binaries as [`all`] has them.
pub fn some(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    prepare(workspace)?;
    build_binaries(workspace)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_tests(workspace, &arguments, &mut summary)?;
    close(workspace, summary)
}

/// The crash test with a number of rounds: kill -9 under load, start again, compare.
pub fn crash(workspace: &Workspace, rounds: u32) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    build_binaries(workspace)?;
    let mut command = cargo_test(workspace)?;
    command.env("PRISM_CRASH_ROUNDS", rounds.to_string());
    command.args(["--package", "prism-e2e", "--test", "crash", "--", "--nocapture"]);
    count(&mut command, &mut summary)?;
    close(workspace, summary)
}

/// The simulation of the link with a number of seeds; one that fails says how to replay it.
pub fn link(workspace: &Workspace, seeds: u64) -> anyhow::Result<ExitCode> {
    let mut summary = Summary::default();
    let mut command = cargo_test(workspace)?;
    command.env("PRISM_LINK_SEEDS", seeds.to_string());
    command.args(["--package", "prism-link", "--test", "simulation", "--", "--nocapture"]);
    count(&mut command, &mut summary)?;
    close(workspace, summary)
}

fn prepare(workspace: &Workspace) -> anyhow::Result<()> {
    tools::promtool(workspace)?;
    tools::libfaketime(workspace)?;
    tools::namespaces();
    tools::node()?;
    tools::keystore_readers()?;
    tools::npm_folders(workspace).iter().try_for_each(|folder| tools::npm_ci(folder))
}

fn buf(workspace: &Workspace, arguments: &[&str]) -> anyhow::Result<()> {
    process::run(tools::buf(workspace)?.args(arguments))
}

fn build_binaries(workspace: &Workspace) -> anyhow::Result<()> {
    process::run(workspace.cargo().args(["build", "--package", "prism-server", "--package", "prism-cli"]))
}

fn run_tests(workspace: &Workspace, arguments: &[&str], summary: &mut Summary) -> anyhow::Result<()> {
    count(cargo_test(workspace)?.args(arguments), summary)
}

/// Runs cargo's tests. A binary that dies writes no closing line: then the run itself counts as one failure.
fn count(command: &mut Command, summary: &mut Summary) -> anyhow::Result<()> {
    let before = summary.failed();
    let succeeded = process::watched(command, |line| summary.read(line))?;
    if !succeeded && summary.failed() == before {
        summary.check("cargo test", Err(anyhow::anyhow!("it ended without success, and no test says why")));
    }
    Ok(())
}

/// `cargo test` with the names of what tests start in its environment.
fn cargo_test(workspace: &Workspace) -> anyhow::Result<Command> {
    let mut command = workspace.cargo();
    command.arg("test");
    for (variable, binary) in [("PRISM_BIN", "prism"), ("PRISM_ADMIN_BIN", "prism-admin")] {
        command.env(variable, built(workspace, binary)?);
    }
    if let Ok(promtool) = tools::promtool(workspace) {
        command.env("PROMTOOL", promtool);
    }
    if let Ok(library) = tools::libfaketime(workspace) {
        command.env("LIBFAKETIME", library);
    }
    Ok(command)
}

fn built(workspace: &Workspace, binary: &str) -> anyhow::Result<PathBuf> {
    let file = workspace.target.join("debug").join(binary);
    if !file.is_file() {
        bail!("the build left no {}", file.display());
    }
    Ok(file)
}

fn close(workspace: &Workspace, summary: Summary) -> anyhow::Result<ExitCode> {
    summary.write(&workspace.target.join("test-summary.txt"))?;
    println!("\n{summary}");
    Ok(summary.exit_code())
}
