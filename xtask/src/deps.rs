//! The dependency rules: which crate may know which, and what must not be in the graph at all.

use std::process::ExitCode;

use anyhow::bail;

use crate::summary::Summary;
use crate::workspace::{Member, Workspace};
use crate::{licences, process};

/// What one crate of the workspace may use.
struct Rule {
    name: &'static str,
    /// The crates of the workspace that it may depend on.
    may: &'static [&'static str],
    /// Packages that it must not reach, however indirectly, outside its tests.
    never: &'static [&'static str],
}

const TRANSPORT_AND_DATABASE: &[&str] = &["tonic", "hyper", "axum", "rusqlite", "libsqlite3-sys"];
/// What runs beside the server knows it by its wire only.
const SERVER: &[&str] = &["prism-core", "prism-store", "prism-sqlite", "prism-rpc", "prism-server"];
const EVERY_ROOM: &[&str] = &[
    "prism-admin-plane",
    "prism-backends",
    "prism-core",
    "prism-data-plane",
    "prism-identity",
    "prism-link",
    "prism-proto",
    "prism-rpc",
    "prism-sqlite",
    "prism-store",
];

/// One line per crate. A crate without a line fails the check. The reasons are in ARCHITECTURE.md.
const RULES: &[Rule] = &[
    Rule { name: "prism-core", may: &[], never: TRANSPORT_AND_DATABASE },
    Rule { name: "prism-proto", may: &[], never: &["rusqlite", "libsqlite3-sys"] },
    Rule { name: "prism-identity", may: &["prism-core"], never: &["tonic", "axum", "rusqlite", "libsqlite3-sys"] },
    Rule {
        name: "prism-link",
        may: &["prism-core", "prism-proto"],
        never: &["prism-store", "prism-admin-plane", "prism-data-plane", "rusqlite", "libsqlite3-sys"],
    },
    Rule { name: "prism-sqlite", may: &["prism-core"], never: &["tonic", "hyper", "axum"] },
    Rule { name: "prism-store", may: &["prism-core", "prism-proto", "prism-sqlite"], never: &[] },
    Rule { name: "prism-backends", may: &["prism-core", "prism-sqlite"], never: &["tonic", "axum", "prism-proto"] },
    Rule { name: "prism-rpc", may: &["prism-core", "prism-proto"], never: &["rusqlite", "libsqlite3-sys"] },
    Rule {
        name: "prism-data-plane",
        may: &["prism-core", "prism-proto", "prism-backends", "prism-identity", "prism-rpc"],
        never: &["prism-store", "prism-admin-plane"],
    },
    Rule {
        name: "prism-admin-plane",
        may: &["prism-core", "prism-proto", "prism-identity", "prism-store", "prism-rpc", "prism-link"],
        never: &["prism-data-plane", "prism-backends"],
    },
    Rule { name: "prism-server", may: EVERY_ROOM, never: &[] },
    Rule { name: "prism-cli", may: &["prism-proto"], never: SERVER },
    Rule { name: "prism-tour", may: &["prism-proto"], never: SERVER },
    Rule { name: "prism-bench", may: &["prism-proto"], never: SERVER },
    Rule { name: "prism-e2e", may: &["prism-proto"], never: SERVER },
    Rule { name: "xtask", may: &[], never: TRANSPORT_AND_DATABASE },
];

/// Packages that only the named crates may ask for, outside their tests. Of those with rusqlite, the command line reads
/// the database of a stopped server to verify its audit log, and the bench measures one-row commits and writes a long audit
/// log. Of those with rcgen, the command line and the bench make keys and signing requests, and the server's CA answers them; the
/// bench measures what that costs alone. The link runs over whatever carries its frames.
const ROOMS_OF: &[(&str, &[&str])] = &[
    ("tonic", TRANSPORTS),
    ("rusqlite", &["prism-sqlite", "prism-backends", "prism-store", "prism-cli", "prism-bench"]),
    ("rcgen", &["prism-rpc", "prism-cli", "prism-bench", "prism-e2e"]),
];

/// The crates that speak gRPC; the generated code does.
const TRANSPORTS: &[&str] = &[
    "prism-proto",
    "prism-rpc",
    "prism-data-plane",
    "prism-admin-plane",
    "prism-server",
    "prism-cli",
    "prism-tour",
    "prism-bench",
    "prism-e2e",
];

/// Packages that must not be built at all: there is one TLS and cryptography provider, aws-lc-rs.
const BANNED: &[&str] = &["native-tls", "openssl", "openssl-sys", "ring"];

/// A package of the graph that is built for this machine.
pub struct Package {
    /// Its name.
    pub name: String,
    /// The licence expression of its `Cargo.toml`.
    pub licence: String,
}

/// `cargo xtask deps`.
pub fn run(workspace: &Workspace) -> ExitCode {
    let mut summary = Summary::default();
    check(workspace, &mut summary);
    println!("\n{summary}");
    summary.exit_code()
}

/// Checks the rules, the bans and the licences, each as one entry of the summary.
pub fn check(workspace: &Workspace, summary: &mut Summary) {
    summary.check("dependency rules", rules(workspace));
    summary.check("dependency reach", reach(workspace));
    match packages(workspace, &["--workspace", "--edges", "normal,build,dev"]) {
        Ok(packages) => {
            summary.check("banned packages", absent(&packages, BANNED));
            summary.check("licences", licences::check(&packages));
        }
        Err(error) => summary.check("package graph", Err(error)),
    }
    if process::in_path("cargo-deny").is_some() {
        summary.check("cargo deny", cargo_deny(workspace));
    }
}

/// Each crate names only what it may.
fn rules(workspace: &Workspace) -> anyhow::Result<()> {
    let broken: Vec<String> = workspace.members.iter().flat_map(broken_by).collect();
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}

fn broken_by(member: &Member) -> Vec<String> {
    let Some(rule) = RULES.iter().find(|rule| rule.name == member.name) else {
        return vec![format!("{} has no rule; give it one in xtask/src/deps.rs", member.name)];
    };
    let mut broken = Vec::new();
    for dependency in &member.dependencies {
        let name = dependency.name.as_str();
        // A crate's tests may name the crate itself, to switch on one of its features.
        let itself = dependency.dev && name == rule.name;
        if dependency.ours && !itself && !rule.may.contains(&name) {
            broken.push(format!("{} must not depend on {name}", rule.name));
        }
        if !dependency.dev && ROOMS_OF.iter().any(|(package, rooms)| *package == name && !rooms.contains(&rule.name)) {
            broken.push(format!("{} must not ask for {name} itself", rule.name));
        }
    }
    broken
}

/// No crate reaches what it must not, through whatever it depends on.
fn reach(workspace: &Workspace) -> anyhow::Result<()> {
    let mut broken = Vec::new();
    for rule in RULES.iter().filter(|rule| !rule.never.is_empty() && workspace.has(rule.name)) {
        let reached = packages(workspace, &["--package", rule.name, "--edges", "normal,build"])?;
        if let Err(error) = absent(&reached, rule.never) {
            broken.push(format!("{}: {error}", rule.name));
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}

fn absent(packages: &[Package], banned: &[&str]) -> anyhow::Result<()> {
    let found: Vec<&str> =
        packages.iter().map(|package| package.name.as_str()).filter(|name| banned.contains(name)).collect();
    if found.is_empty() { Ok(()) } else { bail!("{} must not be reached", found.join(", ")) }
}

/// What cargo would build, by its own feature resolution: `cargo metadata` lists optional packages that nothing builds.
fn packages(workspace: &Workspace, arguments: &[&str]) -> anyhow::Result<Vec<Package>> {
    let mut tree = workspace.cargo();
    tree.args(["tree", "--locked", "--quiet", "--prefix", "none", "--format", "{p}|{l}"]).args(arguments);
    let mut packages: Vec<Package> = process::output(&mut tree)?.lines().filter_map(package).collect();
    packages.sort_by(|one, other| one.name.cmp(&other.name).then_with(|| one.licence.cmp(&other.licence)));
    packages.dedup_by(|one, other| one.name == other.name && one.licence == other.licence);
    Ok(packages)
}

/// A line is `name v1.2.3 (a note)|licence (*)`; the star marks a package that is listed before.
fn package(line: &str) -> Option<Package> {
    let (package, licence) = line.split_once('|')?;
    let licence = licence.strip_suffix("(*)").unwrap_or(licence).trim().to_owned();
    Some(Package { name: package.split(' ').next()?.to_owned(), licence })
}

/// The same rules by cargo-deny, where it is installed; advisories only where their database can be had.
fn cargo_deny(workspace: &Workspace) -> anyhow::Result<()> {
    let deny = || {
        let mut command = workspace.cargo();
        command.arg("deny");
        command
    };
    process::run(deny().args(["check", "bans", "licenses", "sources"]))?;
    if process::run(deny().args(["fetch", "db"])).is_err() {
        println!("advisories are not checked: their database cannot be fetched");
        return Ok(());
    }
    process::run(deny().args(["check", "advisories"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn member(name: &str, dependency: &str, ours: bool, dev: bool) -> Member {
        Member { name: name.to_owned(), dependencies: vec![Dependency { name: dependency.to_owned(), dev, ours }] }
    }

    #[test]
    fn a_plane_that_names_the_other_is_caught() {
        assert!(!broken_by(&member("prism-data-plane", "prism-store", true, false)).is_empty());
        assert!(!broken_by(&member("prism-data-plane", "prism-admin-plane", true, true)).is_empty());
        assert!(!broken_by(&member("prism-admin-plane", "prism-backends", true, false)).is_empty());
        assert!(!broken_by(&member("prism-rpc", "rusqlite", false, false)).is_empty());
        assert!(!broken_by(&member("prism-new", "serde", false, false)).is_empty());
        assert!(broken_by(&member("prism-data-plane", "prism-backends", true, false)).is_empty());
    }

    #[test]
    fn lines_of_the_tree_are_read_with_and_without_notes() {
        let read = |line| package(line).map(|package| (package.name, package.licence));
        let expected = Some(("cc".to_owned(), "MIT OR Apache-2.0".to_owned()));
        assert_eq!(read("cc v1.11.1|MIT OR Apache-2.0 (*)"), expected);
        assert_eq!(read("cc v1.11.1 (proc-macro)|MIT OR Apache-2.0"), expected);
        assert_eq!(read("[build-dependencies]"), None);
    }
}
