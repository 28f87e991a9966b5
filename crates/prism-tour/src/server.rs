use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// A `prism serve` of our own: its data in a scratch folder, free ports on the loopback interface.
pub struct Server {
    /// Where it keeps its files; `prism-admin` finds address, CA and key there.
    pub data_dir: PathBuf,
    /// Address of the data plane.
    pub data: String,
    /// Address of the admin plane.
    pub admin: String,
    process: Mutex<Child>,
}

impl Server {
    pub fn start(scratch: &Path) -> Result<Self> {
        let data_dir = scratch.join("data");
        let log = std::fs::File::create(scratch.join("prism.log"))?;
        let mut process = Command::new(binary("prism")?)
            .args([
                "serve",
                "--bind",
                "127.0.0.1",
                "--data-port",
                "0",
                "--admin-port",
                "0",
                "--metrics-port",
                "0",
                "--data-dir",
            ])
            .arg(&data_dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let endpoints = loop {
            if let Ok(text) = std::fs::read_to_string(data_dir.join("endpoints.json")) {
                break serde_json::from_str::<serde_json::Value>(&text)?;
            }
            if let Some(status) = process.try_wait()? {
                bail!("prism ended with {status}: {}", std::fs::read_to_string(scratch.join("prism.log"))?);
            }
            ensure!(Instant::now() < deadline, "prism was not ready after 30 s");
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = |plane: &str| {
            endpoints[plane].as_str().map(str::to_owned).with_context(|| format!("no {plane} in endpoints.json"))
        };
        Ok(Self { data: address("data")?, admin: address("admin")?, data_dir, process: Mutex::new(process) })
    }

    /// SIGTERM, and the exit code it must lead to.
    pub fn stop(&self) -> Result<()> {
        let mut process = self.process.lock().map_err(|_| anyhow::anyhow!("a thread failed"))?;
        Command::new("kill").args(["-TERM", &process.id().to_string()]).status()?;
        let status = process.wait()?;
        ensure!(status.success(), "prism ended with {status}");
        println!("prism ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(process) = self.process.get_mut() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A program built with this one.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built: cargo build --bin {name}", path.display());
    Ok(path)
}
