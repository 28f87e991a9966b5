//! Load by `h2load`, and what it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

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

/// Figures of one run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests per second.
    pub rate: f64,
    /// Median latency, in microseconds.
    pub p50: u64,
    /// 99th percentile, in microseconds.
    pub p99: u64,
    /// Processor time of the server per request, in microseconds.
    pub cpu: f64,
}

/// Length-prefixed, as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(message);
    body
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
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0);
    // The processor time includes the warm-up second.
    let requests = rate * (seconds as f64 + 1.0);
    Ok(Run { rate, p50: at(0.5), p99: at(0.99), cpu: (after - before) as f64 / requests })
}

/// User and system time of a process so far.
fn cpu_microseconds(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").context("unreadable /proc stat")?.1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 =
        fields.get(11).context("no utime")?.parse::<u64>()? + fields.get(12).context("no stime")?.parse::<u64>()?;
    Ok(ticks * 10_000)
}
