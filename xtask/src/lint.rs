//! `cargo xtask lint`: formatting, clippy, rustdoc, the wire's style, and what must not be in a file.

use std::process::ExitCode;

use anyhow::bail;

use crate::summary::Summary;
use crate::workspace::Workspace;
use crate::{process, tools};

/// The longest a file of code or prose may be, in lines.
const MAX_LINES: usize = 600;
/// The endings of the files that the bound holds for.
const COUNTED: &[&str] = &["md", "js", "mjs", "proto", "py", "rs", "sh", "ts"];
/// Files that a tool writes, and whose addresses are that tool's own.
const WRITTEN_BY_TOOLS: &[&str] = &["Cargo.lock"];

/// Runs everything and reports each by a line; no finding hides another.
pub fn run(workspace: &Workspace) -> ExitCode {
    let mut summary = Summary::default();
    let cargo = |arguments: &[&str]| process::run(workspace.cargo().args(arguments));
    let buf = |arguments: &[&str]| process::run(tools::buf(workspace)?.args(arguments));

    summary.check("rustfmt", cargo(&["fmt", "--all", "--check"]));
    summary.check("proto lint", buf(&["lint", "proto"]));
    summary.check("proto format", buf(&["format", "proto", "--diff", "--exit-code"]));
    summary.check("file lengths", each_file(workspace, too_long));
    summary.check("no machine in a file", each_file(workspace, machine_bound));
    summary.check("clippy", cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    let mut doc = workspace.cargo();
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links").args([
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    summary.check("rustdoc", process::run(&mut doc));

    println!("\nlint: {summary}");
    summary.exit_code()
}

/// Shows every text file of the repository to a rule; the findings make one error.
fn each_file(workspace: &Workspace, rule: impl Fn(&str, &str) -> Vec<String>) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    for file in workspace.files()? {
        // What is no text has no lines to judge.
        if let Ok(text) = std::fs::read_to_string(workspace.root.join(&file)) {
            findings.extend(rule(&file, &text));
        }
    }
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n  ")) }
}

fn too_long(file: &str, text: &str) -> Vec<String> {
    let counted = file.rsplit_once('.').is_some_and(|(_, ending)| COUNTED.contains(&ending));
    let lines = text.lines().count();
    if counted && lines > MAX_LINES { vec![format!("{file} has {lines} lines")] } else { Vec::new() }
}

/// Paths of one machine, and package servers that another machine may not have.
fn machine_bound(file: &str, text: &str) -> Vec<String> {
    if WRITTEN_BY_TOOLS.contains(&file) {
        return Vec::new();
    }
    let finding = |(number, line): (usize, &str)| {
        let what = if names_a_home(line) {
            "a path of one machine"
        } else if names_a_package_server(line) {
            "a package server"
        } else {
            return None;
        };
        Some(format!("{file}:{}: {what}", number + 1))
    };
    text.lines().enumerate().filter_map(finding).collect()
}

/// An absolute path into a folder that is one person's or one machine's.
fn names_a_home(line: &str) -> bool {
    ["root", "home", "work", "farm", "Users"].iter().any(|folder| {
        let path = format!("/{folder}/");
        line.match_indices(&path).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|before| before.is_alphanumeric() || "/._-~}*".contains(before))
        })
    })
}

/// A URL whose host is by its name a registry, an index or a mirror, or by its number in a private network.
fn names_a_package_server(line: &str) -> bool {
    line.match_indices("://").any(|(at, separator)| {
        let rest = &line[at + separator.len()..];
        let host = rest.split(['/', ':', '"', '\'', ' ', ')', '>', '`']).next().unwrap_or_default();
        let first = host.split('.').next().unwrap_or_default();
        let by_name = ["deb", "index", "mirror", "npm", "proxy", "pypi", "registry", "repo", "static"].contains(&first);
        (by_name && host.contains('.')) || is_private(host)
    })
}

fn is_private(host: &str) -> bool {
    host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_private())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_as_long_as_the_bound_and_no_longer() {
        assert!(too_long("a.rs", &"line\n".repeat(MAX_LINES)).is_empty());
        assert_eq!(too_long("a.rs", &"line\n".repeat(MAX_LINES + 1)).len(), 1);
        assert!(too_long("package-lock.json", &"line\n".repeat(MAX_LINES + 1)).is_empty());
    }

    #[test]
    fn paths_of_a_machine_are_found_and_other_paths_are_not() {
        let folder = "work";
        assert!(names_a_home(&format!("see /{folder}/notes.md")));
        assert!(names_a_home(&format!("PATH=/{folder}/bin")));
        assert!(!names_a_home(&format!("target/{folder}/notes")));
        assert!(!names_a_home("/var/lib/prism/prism.db"));
    }

    #[test]
    fn package_servers_are_found_and_the_project_s_own_addresses_are_not() {
        let scheme = "https:";
        assert!(names_a_package_server(&format!("{scheme}//registry.example.org/x")));
        assert!(names_a_package_server(&format!("{scheme}//10.1.2.3:8080/x")));
        assert!(!names_a_package_server("https://127.0.0.1:8981"));
        assert!(!names_a_package_server("https://www.apache.org/licenses/LICENSE-2.0"));
        assert_eq!(
            machine_bound("a.md", &format!("fine\n{scheme}//index.example.org\n")),
            ["a.md:2: a package server"]
        );
    }
}
