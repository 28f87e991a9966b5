//! What Prism costs, beside the bare limit, in the same run on the same machine.
//!
//! Get on the memory backend with every check on, beside a bare tonic echo; durable Put and Publish, beside SQLite with one
//! row per commit. Prints figures and ratios; decides nothing.

mod echo;
mod load;
mod prism;

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use load::{Run, Target, run};
use prost::Message as _;

/// Size of values and messages, in bytes.
const VALUE_BYTES: usize = 128;
/// Requests in flight under full load.
const MOST_IN_FLIGHT: usize = 256;
/// Messages of one PublishBatch.
const BATCH: usize = 100;
/// Seconds of each measurement.
const SECONDS: u64 = 5;
/// Rounds; the median counts. Sides take turns, so that a slow moment of the machine hits both.
const ROUNDS: usize = 3;

/// A process that ends with the bench.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("echo-server") {
        return echo::serve(arguments.next().context("echo-server ADDRESS")?.parse()?);
    }
    let scratch = tempfile::tempdir()?;
    get_beside_echo(scratch.path())?;
    durable_beside_sqlite(scratch.path())
}

fn get_beside_echo(scratch: &Path) -> Result<()> {
    let (echo, _echo_process) = start_echo()?;
    let prism = prism::Prism::start(scratch)?;
    let get = prism.get_target()?;
    println!(
        "memory Get beside a bare tonic echo: 1 worker thread each, {VALUE_BYTES}-byte values, {ROUNDS} rounds of {SECONDS} s, medians"
    );
    println!("{:>8} {:>14} {:>10} {:>8} {:>8} {:>12}", "depth", "side", "req/s", "p50 µs", "p99 µs", "cpu µs/req");
    for depth in [1, MOST_IN_FLIGHT] {
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(run(&echo, depth, SECONDS, scratch)?);
            ours.push(run(&get, depth, SECONDS, scratch)?);
        }
        let (bare, ours) = (median(bare), median(ours));
        print_row(depth, "echo", bare);
        print_row(depth, "prism Get", ours);
        println!(
            "{depth:>8} {:>14} {:>10.3} {:>+8} {:>+8} {:>12.3}",
            "ratio / more",
            ours.rate / bare.rate,
            ours.p50.cast_signed() - bare.p50.cast_signed(),
            ours.p99.cast_signed() - bare.p99.cast_signed(),
            bare.cpu / ours.cpu
        );
    }
    prism.require_no_errors((1 + MOST_IN_FLIGHT) * ROUNDS)
}

fn durable_beside_sqlite(scratch: &Path) -> Result<()> {
    let one_row = one_row_commits(scratch)?;
    println!("\ndurable writes on the same disk: {VALUE_BYTES}-byte values, every answer after its fsync");
    println!("{:>22} {:>10.0} rows/s", "SQLite, 1 row/commit", one_row);
    let folder = tempfile::tempdir_in(scratch)?;
    let prism = prism::Prism::start(folder.path())?;
    let sides = [
        ("prism Put", prism.put_target()?, 1, MOST_IN_FLIGHT),
        ("prism Publish", prism.publish_target()?, 1, MOST_IN_FLIGHT),
        ("prism PublishBatch", prism.batch_target()?, BATCH, MOST_IN_FLIGHT / 8),
    ];
    for (name, target, rows, depth) in sides {
        let figures = median((0..ROUNDS).map(|_| run(&target, depth, SECONDS, scratch)).collect::<Result<_>>()?);
        let rate = figures.rate * rows as f64;
        println!(
            "{name:>22} {rate:>10.0} rows/s  {:>6.1}×  {depth} in flight, {rows} a call: p50 {} µs  p99 {} µs  cpu {:.1} µs/call",
            rate / one_row,
            figures.p50,
            figures.p99,
            figures.cpu
        );
    }
    prism.require_no_errors(3 * MOST_IN_FLIGHT * ROUNDS)
}

fn print_row(depth: usize, side: &str, figures: Run) {
    println!(
        "{depth:>8} {side:>14} {:>10.0} {:>8} {:>8} {:>12.2}",
        figures.rate, figures.p50, figures.p99, figures.cpu
    );
}

/// The run with the median rate.
fn median(mut runs: Vec<Run>) -> Run {
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    runs[runs.len() / 2]
}

fn start_echo() -> Result<(Target, Ended)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let child = Command::new(std::env::current_exe()?).args(["echo-server", &format!("127.0.0.1:{port}")]).spawn()?;
    let pid = child.id();
    let process = Ended(child);
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        anyhow::ensure!(Instant::now() < deadline, "the echo server did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let message = echo::Echo { value: vec![b'x'; VALUE_BYTES].into() }.encode_to_vec();
    Ok((Target { port, path: "/bench.Echo/Echo", message, pid }, process))
}

/// Rows per second of SQLite with WAL and `synchronous = FULL`, one row a commit, in one thread.
fn one_row_commits(scratch: &Path) -> Result<f64> {
    let connection = rusqlite::Connection::open(scratch.join("one-row.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch("CREATE TABLE messages (offset INTEGER PRIMARY KEY, payload BLOB NOT NULL)")?;
    let mut insert = connection.prepare("INSERT INTO messages (payload) VALUES (?1)")?;
    let (payload, started, mut rows) = (vec![b'x'; VALUE_BYTES], Instant::now(), 0u32);
    while started.elapsed() < Duration::from_secs(SECONDS) {
        insert.execute([&payload])?;
        rows += 1;
    }
    Ok(f64::from(rows) / started.elapsed().as_secs_f64())
}
