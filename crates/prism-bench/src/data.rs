//! The data plane: Get beside a bare tonic echo, durable writes beside SQLite with one row per commit. The load is `h2load`'s.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use prost::Message as _;

use crate::figures::{Run, median};
use crate::load::{Target, run as press};
use crate::prism::Prism;
use crate::process::{Ended, free_port};
use crate::{ROUNDS, Size, echo};

/// Size of values and messages, in bytes.
pub const VALUE_BYTES: usize = 128;
/// Messages of one PublishBatch.
pub const BATCH: usize = 100;
/// Requests in flight under full load.
const MOST_IN_FLIGHT: usize = 256;

/// Measures and prints all of it.
pub fn run(scratch: &Path, size: &Size) -> Result<()> {
    let prism = Prism::start(scratch)?;
    get_beside_echo(&prism, "prism Get", scratch, size)?;
    drop(prism);
    durable_beside_sqlite(scratch, size)
}

/// Get of `prism`, which is called `name`, beside the echo.
pub fn get_beside_echo(prism: &Prism, name: &str, scratch: &Path, size: &Size) -> Result<()> {
    let (echo, _echo_process) = start_echo()?;
    let get = prism.get_target()?;
    println!(
        "memory Get beside a bare tonic echo: 1 worker thread each, {VALUE_BYTES}-byte values, {ROUNDS} rounds of {} s, medians",
        size.seconds
    );
    println!("{:>8} {:>14} {:>10} {:>8} {:>8} {:>12}", "depth", "side", "req/s", "p50 µs", "p99 µs", "cpu µs/req");
    for depth in [1, MOST_IN_FLIGHT] {
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            bare.push(press(&echo, depth, size.seconds, scratch)?);
            ours.push(press(&get, depth, size.seconds, scratch)?);
        }
        let (bare, ours) = (median(bare, |run| run.rate), median(ours, |run| run.rate));
        print_row(depth, "echo", bare);
        print_row(depth, name, ours);
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

fn durable_beside_sqlite(scratch: &Path, size: &Size) -> Result<()> {
    let one_row = one_row_commits(scratch, size)?;
    println!("\ndurable writes on the same disk: {VALUE_BYTES}-byte values, every answer after its fsync");
    println!("{:>22} {:>10.0} rows/s", "SQLite, 1 row/commit", one_row);
    let folder = tempfile::tempdir_in(scratch)?;
    let prism = Prism::start(folder.path())?;
    let sides = [
        ("prism Put", prism.put_target()?, 1, MOST_IN_FLIGHT),
        ("prism Publish", prism.publish_target()?, 1, MOST_IN_FLIGHT),
        ("prism PublishBatch", prism.batch_target()?, BATCH, MOST_IN_FLIGHT / 8),
    ];
    for (name, target, rows, depth) in sides {
        let figures = median(
            (0..ROUNDS).map(|_| press(&target, depth, size.seconds, scratch)).collect::<Result<_>>()?,
            |run: &Run| run.rate,
        );
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

fn start_echo() -> Result<(Target, Ended)> {
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let process = Ended::start(Command::new(std::env::current_exe()?).args(["echo-server", &address]))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < deadline, "the echo server did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let message = echo::Echo { value: vec![b'x'; VALUE_BYTES].into() }.encode_to_vec();
    Ok((Target { port, path: "/bench.Echo/Echo", message, pid: process.pid() }, process))
}

/// Rows per second of SQLite with WAL and `synchronous = FULL`, one row a commit, in one thread.
fn one_row_commits(scratch: &Path, size: &Size) -> Result<f64> {
    let connection = rusqlite::Connection::open(scratch.join("one-row.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch("CREATE TABLE messages (offset INTEGER PRIMARY KEY, payload BLOB NOT NULL)")?;
    let mut insert = connection.prepare("INSERT INTO messages (payload) VALUES (?1)")?;
    let (payload, started, mut rows) = (vec![b'x'; VALUE_BYTES], Instant::now(), 0u32);
    while started.elapsed() < size.measured() {
        insert.execute([&payload])?;
        rows += 1;
    }
    Ok(f64::from(rows) / started.elapsed().as_secs_f64())
}
