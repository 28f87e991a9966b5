//! The project's own commands: `cargo xtask test`, and what belongs beside it.

mod deps;
mod licences;
mod lint;
mod process;
mod programs;
mod spdx;
mod summary;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use crate::workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask <command>

  test               every test, the wire's checks and the dependency rules; the last line counts them
  test ARGS...       only `cargo test ARGS...`, with the same tools and binaries prepared
  lint               rustfmt, clippy, rustdoc, buf, file lengths, what must not be in a file
  deps               the dependency rules and the licences
  tour FILE          your file through a queue and key-value, while an operator watches
  bench [PART]       what Prism costs; data: beside a bare echo and one-row commits, admin: beside etcd, join: beside signatures, nodes: beside a bare fan-out and one process
  link [--seeds N]   the link between nodes and controller under a simulation, with N seeds (1000)
  crash [--rounds N] kill -9 under load, N times (50), and nothing acknowledged may be missing
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    let workspace = Workspace::load()?;
    match (command.as_str(), rest) {
        ("test", []) => test::all(&workspace),
        ("test", rest) => test::some(&workspace, rest),
        ("lint", []) => Ok(lint::run(&workspace)),
        ("deps", []) => Ok(deps::run(&workspace)),
        ("crash", []) => test::crash(&workspace, 50),
        ("crash", [flag, rounds]) if flag == "--rounds" => match rounds.parse() {
            Ok(rounds) if rounds > 0 => test::crash(&workspace, rounds),
            _ => anyhow::bail!("--rounds takes a number from 1 up, not {rounds:?}"),
        },
        ("link", []) => test::link(&workspace, 1000),
        ("link", [flag, seeds]) if flag == "--seeds" => match seeds.parse() {
            Ok(seeds) if seeds > 0 => test::link(&workspace, seeds),
            _ => anyhow::bail!("--seeds takes a number from 1 up, not {seeds:?}"),
        },
        ("tour", [_]) => programs::tour(&workspace, rest),
        ("bench", rest) => programs::bench(&workspace, rest),
        ("help" | "--help" | "-h", _) => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
