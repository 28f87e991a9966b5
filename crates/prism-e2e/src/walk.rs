//! The verbs of `prism-admin`, found by asking it for help, so that none can be forgotten.

use std::collections::BTreeSet;

use crate::cli::Cli;

/// Every verb with its nouns before it, such as `config create`; `help` left out.
pub fn verbs(cli: &Cli) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    descend(cli, "", &mut found);
    assert!(found.len() > 30, "this is not all: {found:?}");
    found
}

fn descend(cli: &Cli, path: &str, found: &mut BTreeSet<String>) {
    let below = commands(&cli.run(&format!("{path} -h")).ok().out);
    if below.is_empty() {
        found.insert(path.to_owned());
    }
    for name in below.iter().filter(|name| *name != "help") {
        descend(cli, format!("{path} {name}").trim(), found);
    }
}

/// The first words of the lines below `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What is indented further is the rest of a description.
    let named = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    named.filter_map(|line| line.split_whitespace().next()).map(ToOwned::to_owned).collect()
}
