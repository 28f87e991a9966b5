//! `cargo xtask tour FILE`: a real Prism, with TLS and credentials everywhere, carries a file of the reader's.
//!
//! An application sends the file through a queue line by line, gets it back, and keeps it in key-value as well; an operator
//! lists the session, sets a quota that bites, drains, and prints the audit trail of all that.

mod app;
mod operator;
mod server;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use app::App;
use operator::Operator;
use server::Server;

const NAMESPACE: &str = "tour";

fn step(text: &str) {
    println!("\n── {text}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match tour().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the tour stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn tour() -> Result<()> {
    let path = std::env::args_os().nth(1).context("which file? cargo xtask tour FILE")?;
    let path = Path::new(&path);
    let size = File::open(path)
        .and_then(|file| file.metadata())
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    ensure!(path.is_file(), "{} is not a file", path.display());

    let scratch = tempfile::tempdir()?;
    step("A server on free ports: prism serve");
    let server = Server::start(scratch.path())?;
    println!("data plane {}, admin plane {}, both with TLS", server.data, server.admin);
    let operator = Operator::new(&server);

    step("The operator makes a namespace, two configs and a key for the application");
    operator.run(&["namespace", "create", NAMESPACE, "--description", "the tour"])?;
    for (name, pattern) in [("tour-queue", "queue"), ("tour-key-value", "key-value")] {
        operator.run(&[
            "config",
            "create",
            name,
            "--pattern",
            pattern,
            "--backend",
            "sqlite",
            "--namespace",
            NAMESPACE,
            "--version",
            "1",
        ])?;
    }
    let key = operator.secret(&[
        "client-key",
        "create",
        "tour",
        "--namespace",
        NAMESPACE,
        "--permission",
        "read,write",
        "-o",
        "token",
    ])?;

    step(&format!("The application sends {} ({size} bytes) through a queue, line by line", path.display()));
    let app = App::connect(&server, &key).await?;
    let lines = app.publish(path).await?;
    println!("{lines} lines published, each durable before its answer");
    let received = scratch.path().join("from-the-queue");
    app.receive(lines, &received).await?;
    require_same(path, &received)?;
    println!("{lines} lines received and acknowledged: the same file, byte for byte");

    step("It keeps the file in key-value, and reads it back");
    let chunks = app.keep(path).await?;
    let kept = scratch.path().join("from-key-value");
    app.read_back(&kept).await?;
    require_same(path, &kept)?;
    println!("{chunks} values: the same file, byte for byte");

    step("The operator looks who is there");
    operator.run(&["session", "list", "--namespace", NAMESPACE])?;

    step("The operator sets a quota, and it bites");
    operator.run(&["namespace", "update", NAMESPACE, "--max-rps", "5", "--yes"])?;
    println!("the application, reading as fast as it can: {}", app.read_until_refused().await?);
    operator.run(&["namespace", "update", NAMESPACE, "--max-rps", "0", "--yes"])?;

    step("The operator drains the namespace");
    operator.run(&["drain", "--namespace", NAMESPACE, "--timeout", "5s", "--yes"])?;
    operator.run(&["session", "list", "--namespace", NAMESPACE])?;
    println!("the application, with the token it had: {}", app.refusal().await?);

    step("The audit trail of all that, and the proof that it is whole");
    operator.run(&["audit", "list"])?;
    operator.run(&["audit", "verify"])?;

    step("The server drains and exits");
    server.stop()?;
    println!("\n{} came back intact, twice: {size} bytes, {lines} lines.", path.display());
    Ok(())
}

/// Compares two files byte for byte.
fn require_same(sent: &Path, received: &Path) -> Result<()> {
    let mut sides = [BufReader::new(File::open(sent)?), BufReader::new(File::open(received)?)];
    let mut at = 0u64;
    loop {
        let mut blocks = [[0u8; 4 * 1024]; 2];
        let mut lengths = [0; 2];
        for (side, (block, length)) in sides.iter_mut().zip(blocks.iter_mut().zip(&mut lengths)) {
            *length = read_full(side, block)?;
        }
        ensure!(
            lengths[0] == lengths[1] && blocks[0][..lengths[0]] == blocks[1][..lengths[1]],
            "the files differ after byte {at}"
        );
        if lengths[0] == 0 {
            return Ok(());
        }
        at += lengths[0] as u64;
    }
}

fn read_full(side: &mut impl Read, block: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match side.read(&mut block[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
