//! What Prism costs, beside something known, in the same run on the same machine. Prints figures and ratios; decides nothing.
//!
//! `data`: Get on the memory backend with every check on, beside a bare tonic echo; durable Put and Publish, beside SQLite
//! with one row per commit. `admin`: CreateConfig beside etcd's Put; what the audit log takes in, verifies and streams. `join`:
//! exchanges of join tokens beside what signatures and one audited call cost. `nodes`: a change on its way to a hundred nodes beside
//! a bare fan-out; sessions admitted through a data node beside those of one process; Get on a data node beside the echo.

mod admin;
mod admission;
mod audit;
mod callers;
mod cluster;
mod data;
mod echo;
mod etcd;
mod fan_out;
mod figures;
mod join;
mod load;
mod nodes;
mod prism;
mod process;
mod simulated;
mod stream;
mod wire;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Rounds; the median counts. Sides take turns, so that a slow moment of the machine hits both.
const ROUNDS: usize = 3;

/// What the caller may make smaller, to try the bench itself.
struct Size {
    /// Seconds of each measurement, at least 1: `PRISM_BENCH_SECONDS`, else 5.
    seconds: u64,
    /// Entries of the audit log that is verified and streamed, at least 10: `PRISM_BENCH_ENTRIES`, else a million.
    entries: u64,
    /// Join tokens of a round, from 1,000 to 10,000, which is as many as may be open: `PRISM_BENCH_TOKENS`, else 10,000.
    tokens: u64,
}

impl Size {
    fn from_environment() -> Result<Self> {
        Ok(Self {
            seconds: number("PRISM_BENCH_SECONDS", 1, 5)?,
            entries: number("PRISM_BENCH_ENTRIES", 10, 1_000_000)?,
            tokens: number("PRISM_BENCH_TOKENS", 1000, join::MOST_TOKENS)?.min(join::MOST_TOKENS),
        })
    }

    fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

fn number(variable: &str, least: u64, default: u64) -> Result<u64> {
    let Some(text) = std::env::var_os(variable) else { return Ok(default) };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number >= least);
    number.with_context(|| format!("{variable} takes a number from {least} up"))
}

/// One part of the bench: it measures and prints.
type Part = fn(&Path, &Size) -> Result<()>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let parts: &[Part] = match arguments.as_slice() {
        ["echo-server", address] => return echo::serve(address.parse()?),
        ["fan-out-server", address, certificate, key] => {
            return fan_out::serve(address.parse()?, Path::new(certificate), Path::new(key));
        }
        [] => &[data::run, admin::run, join::run, nodes::run],
        ["data"] => &[data::run],
        ["admin"] => &[admin::run],
        ["join"] => &[join::run],
        ["nodes"] => &[nodes::run],
        _ => bail!("usage: prism-bench [data | admin | join | nodes]"),
    };
    let size = Size::from_environment()?;
    let scratch = tempfile::tempdir()?;
    parts.iter().try_for_each(|part| part(scratch.path(), &size))
}
