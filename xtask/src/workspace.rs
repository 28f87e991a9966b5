//! What cargo says about this workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use crate::process;

/// The workspace: where it is and what its crates ask for.
pub struct Workspace {
    /// The folder of the root `Cargo.toml`.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
    /// The crates of the workspace.
    pub members: Vec<Member>,
}

/// One crate of the workspace.
pub struct Member {
    /// Its name.
    pub name: String,
    /// What its `Cargo.toml` names, of every kind.
    pub dependencies: Vec<Dependency>,
}

/// One line of a `[dependencies]` table.
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// Whether it is needed by tests only.
    pub dev: bool,
    /// Whether it is a crate of this workspace.
    pub ours: bool,
}

impl Workspace {
    /// Asks `cargo metadata`. An error when the workspace does not parse.
    pub fn load() -> anyhow::Result<Self> {
        let json =
            process::output(Command::new(cargo_program()).args(["metadata", "--no-deps", "--format-version=1"]))?;
        let metadata: Value = serde_json::from_str(&json).context("cargo metadata")?;
        Ok(Self {
            root: PathBuf::from(text(&metadata, "workspace_root")),
            target: PathBuf::from(text(&metadata, "target_directory")),
            members: list(&metadata, "packages").iter().map(member).collect(),
        })
    }

    /// A cargo command in the root of the workspace.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        command
    }

    /// Whether the workspace has a crate of that name.
    pub fn has(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }

    /// The files that git tracks or would track, relative to the root.
    pub fn files(&self) -> anyhow::Result<Vec<String>> {
        let mut git = Command::new("git");
        git.current_dir(&self.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = process::output(&mut git)?;
        let there = |file: &&str| !file.is_empty() && self.root.join(file).is_file();
        Ok(listed.split('\0').filter(there).map(str::to_owned).collect())
    }
}

fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn member(package: &Value) -> Member {
    let dependencies = list(package, "dependencies")
        .iter()
        .map(|dependency| Dependency {
            name: text(dependency, "name"),
            dev: text(dependency, "kind") == "dev",
            ours: dependency.get("path").is_some_and(Value::is_string),
        })
        .collect();
    Member { name: text(package, "name"), dependencies }
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}
