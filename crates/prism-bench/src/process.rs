//! Processes that the bench starts, and what they use.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};

/// A process that ends with the bench.
pub struct Ended(Child);

impl Ended {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("{} cannot be run", command.get_program().display()))?;
        Ok(Self(child))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Fails when it ended by itself.
    pub fn require_running(&mut self) -> Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "it ended at once: {}", ended.unwrap_or_default());
        Ok(())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of a process so far, in microseconds, in steps of 10 ms.
pub fn cpu_microseconds(pid: u32) -> Result<u64> {
    used(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// As [`cpu_microseconds`], of the threads of this name alone; there must be one.
pub fn thread_microseconds(pid: u32, name: &str) -> Result<u64> {
    let (mut sum, mut found) = (0, false);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that is over is nowhere any more.
        let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { continue };
        if stat.contains(&format!("({name})")) {
            (sum, found) = (sum + used(&stat)?, true);
        }
    }
    ensure!(found, "process {pid} has no thread {name}");
    Ok(sum)
}

fn used(stat: &str) -> Result<u64> {
    let after_name = stat.rsplit_once(") ").context("unreadable /proc stat")?.1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 =
        fields.get(11).context("no utime")?.parse::<u64>()? + fields.get(12).context("no stime")?.parse::<u64>()?;
    Ok(ticks * 10_000)
}

/// A port of 127.0.0.1 that nothing listens on at this moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What `variable` names, or the program of that name beside this one.
pub fn beside(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()?.with_file_name(name);
    ensure!(beside.exists(), "no {name} beside {}: build it with the same profile", beside.display());
    Ok(beside)
}
