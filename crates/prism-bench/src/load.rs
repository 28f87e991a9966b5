//! Load by `h2load`, and what it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::figures::{Run, percentile};
use crate::process::cpu_microseconds;
use crate::wire::framed;

/// One request, repeated.
pub struct Target {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// gRPC path.
    pub path: &'static str,
    /// Encoded message.
    pub message: Vec<u8>,
    /// Process that serves, whose processor time counts.
    pub pid: u32,
}

/// Runs `target` with `depth` requests in flight for `seconds` after a warm-up of one second.
pub fn run(target: &Target, depth: usize, seconds: u64, scratch: &Path) -> Result<Run> {
    let body: PathBuf = scratch.join("body");
    let log: PathBuf = scratch.join("log");
    fs::write(&body, framed(&target.message))?;
    let _ = fs::remove_file(&log);
    let connections = if depth == 1 { 1 } else { 4 };
    let streams = depth / connections;
    let before = cpu_microseconds(target.pid)?;
    let output = Command::new("h2load")
        .args(["--duration", &seconds.to_string(), "--warm-up-time", "1", "-t", "1"])
        .args(["-c", &connections.to_string(), "-m", &streams.to_string()])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg("-d")
        .arg(&body)
        .arg(format!("--log-file={}", log.display()))
        .arg(format!("http://127.0.0.1:{}{}", target.port, target.path))
        .output()
        .context("h2load is needed for the bench: apt-get install nghttp2-client")?;
    let after = cpu_microseconds(target.pid)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("h2load failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok())
        .with_context(|| format!("h2load said no rate: {text}"))?;
    let mut times: Vec<u64> = Vec::new();
    for line in fs::read_to_string(&log)?.lines() {
        let mut fields = line.split('\t').skip(1);
        let (Some(status), Some(time)) = (fields.next(), fields.next()) else { continue };
        // 0: unanswered when the time was up.
        if status == "0" {
            continue;
        }
        if status != "200" {
            bail!("h2load saw HTTP status {status}");
        }
        times.push(time.trim().parse()?);
    }
    times.sort_unstable();
    // The processor time includes the warm-up second.
    let requests = rate * (seconds as f64 + 1.0);
    Ok(Run {
        rate,
        p50: percentile(&times, 0.5),
        p99: percentile(&times, 0.99),
        cpu: (after - before) as f64 / requests,
    })
}
