//! The server process: started on free ports in a folder of its own, and ended whatever happens.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::Channel;

use crate::admin::{Admin, Headers};
use crate::certificates::Holder;
use crate::{binaries, dial};

/// How long a start or an exit may take on a busy machine.
const START_WITHIN: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    args: Vec<String>,
    env: Vec<(String, String)>,
    config: Option<String>,
    data_dir: Option<PathBuf>,
    wrapper: Vec<String>,
    own_ports: bool,
}

impl Options {
    /// A server with its defaults on free ports of the loopback address.
    pub fn new() -> Self {
        Self::default()
    }

    /// `prism serve --dev`.
    pub fn dev() -> Self {
        Self::new().arg("--dev")
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Adds a variable to the environment, which is otherwise empty but for `PATH`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it with a configuration file of this text.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// Uses this data directory instead of one of its own.
    #[must_use]
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// Starts the server through another program: `wrapper… prism serve …`.
    #[must_use]
    pub fn wrapper(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Leaves ports and address to environment and file.
    #[must_use]
    pub fn own_ports(mut self) -> Self {
        self.own_ports = true;
        self
    }
}

/// The addresses of `endpoints.json`.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// Data plane; empty where there is none.
    pub data: String,
    /// Admin plane; empty where there is none.
    pub admin: String,
    /// Metrics and health.
    pub metrics: String,
}

impl Endpoints {
    /// Reads the file in `data_dir`; `None` while there is none.
    pub fn read(data_dir: &Path) -> Option<Self> {
        let text = std::fs::read(data_dir.join("endpoints.json")).ok()?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).expect("endpoints.json is JSON, whole or not there");
        let of = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Some(Self { data: of("data"), admin: of("admin"), metrics: of("metrics") })
    }
}

/// A server.
pub struct Prism {
    folder: TempDir,
    options: Options,
    process: Mutex<Option<Process>>,
    endpoints: Mutex<Option<Endpoints>>,
}

struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Prism {
    /// Starts a server and waits until it is ready; panics with its log when it does not become so.
    pub async fn start(options: Options) -> Self {
        let server = Self::prepared(options);
        server.spawn();
        server.ready().await;
        server
    }

    /// A server that is not started yet, in a folder of its own.
    pub fn prepared(options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("prism-e2e-").tempdir().expect("a folder");
        Self { folder, options, process: Mutex::default(), endpoints: Mutex::default() }
    }

    /// Changes how the next start goes.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&self) {
        let mut command = self.command();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        for pipe in [child.stderr.take().map(boxed), child.stdout.take().map(boxed)].into_iter().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = writeln!(lock(&log), "{line}");
                }
            });
        }
        *lock(&self.process) = Some(Process { child, log });
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        let data_dir = self.data_dir();
        let mut words: Vec<std::ffi::OsString> = self.options.wrapper.iter().map(Into::into).collect();
        words.extend([binaries::prism().into(), "serve".into(), "--data-dir".into(), data_dir.into()]);
        if !self.options.own_ports {
            words.extend(["--bind=127.0.0.1", "--data-port=0", "--admin-port=0", "--metrics-port=0"].map(Into::into));
        }
        if let Some(text) = &self.options.config {
            let path = self.folder.path().join("prism.toml");
            std::fs::write(&path, text).expect("the configuration is written");
            words.extend(["--config".into(), path.into()]);
        }
        words.extend(self.options.args.iter().map(Into::into));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().current_dir(self.folder.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("PRISM_LOG", std::env::var_os("PRISM_E2E_LOG").unwrap_or_else(|| "info".into()));
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Waits until `endpoints.json` is there.
    pub async fn ready(&self) {
        let start = Instant::now();
        let endpoints = loop {
            if let Some(endpoints) = Endpoints::read(&self.data_dir()) {
                break endpoints;
            }
            if let Some(status) = self.try_exit() {
                panic!("the server ended with {status} instead of becoming ready:\n{}", self.log());
            }
            assert!(start.elapsed() < START_WITHIN, "the server is not ready:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        };
        *lock(&self.endpoints) = Some(endpoints);
    }

    /// Kills it with SIGKILL, which nothing can delay or handle.
    pub fn kill(&self) {
        if let Some(process) = lock(&self.process).as_mut() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        // Left behind by a crash; the next start must not be taken for ready because of it.
        let _ = std::fs::remove_file(self.data_dir().join("endpoints.json"));
    }

    /// Kills it and starts it again on the same data directory.
    pub async fn crash_and_restart(&self) {
        self.kill();
        self.spawn();
        self.ready().await;
    }

    /// Sends a signal such as `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.process_id().to_string();
        // The shell's own kill, which is everywhere.
        let sent = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &id]).status().expect("sh runs");
        assert!(sent.success(), "SIG{name} could not be sent to {id}");
    }

    /// Waits for its end.
    pub async fn exit(&self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_exit() {
                return status;
            }
            assert!(start.elapsed() < START_WITHIN, "the server does not end:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its exit status, if it has ended.
    pub fn try_exit(&self) -> Option<ExitStatus> {
        lock(&self.process).as_mut().expect("a started server").child.try_wait().expect("its own child")
    }

    /// The id of its process.
    pub fn process_id(&self) -> u32 {
        lock(&self.process).as_ref().expect("a started server").child.id()
    }

    /// What it has written to its standard error and standard output.
    pub fn log(&self) -> String {
        lock(&self.process).as_ref().map(|process| lock(&process.log).clone()).unwrap_or_default()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens.
    pub fn endpoints(&self) -> Endpoints {
        lock(&self.endpoints).clone().expect("a server that was ready")
    }

    /// The first admin key.
    pub fn admin_token(&self) -> String {
        self.secret("admin.token")
    }

    /// The first line of a file in the data directory.
    pub fn secret(&self, file: &str) -> String {
        std::fs::read_to_string(self.data_dir().join(file)).expect("the file is there").trim().to_owned()
    }

    /// A new connection to the admin plane.
    pub fn admin_channel(&self) -> Channel {
        dial::tls(&self.endpoints().admin, &self.data_dir().join("ca.pem"))
    }

    /// A new connection to the data plane, in clear text with `--dev`.
    pub fn data_channel(&self) -> Channel {
        let address = self.endpoints().data;
        if self.options.args.iter().any(|arg| arg == "--dev") {
            dial::clear(&address)
        } else {
            dial::tls(&address, &self.data_dir().join("ca.pem"))
        }
    }

    /// A new connection to the admin plane with a client certificate.
    pub fn admin_channel_as(&self, holder: &Holder) -> Channel {
        dial::tls_as(&self.endpoints().admin, &self.data_dir().join("ca.pem"), holder)
    }

    /// A new connection to the data plane with a client certificate.
    pub fn data_channel_as(&self, holder: &Holder) -> Channel {
        dial::tls_as(&self.endpoints().data, &self.data_dir().join("ca.pem"), holder)
    }

    /// The operator with the first admin key, on a new connection.
    pub fn admin(&self) -> Admin {
        Admin { channel: self.admin_channel(), headers: Headers::bearer(&self.admin_token()) }
    }
}

impl Drop for Prism {
    fn drop(&mut self) {
        if let Some(process) = lock(&self.process).as_mut() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- end of the server's log ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn boxed(pipe: impl std::io::Read + Send + 'static) -> Box<dyn std::io::Read + Send> {
    Box::new(pipe)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One server for the tests of a file that run at the same time; it ends with the last of them.
pub struct Shared(tokio::sync::Mutex<Weak<Prism>>);

impl Shared {
    /// None yet.
    pub const fn new() -> Self {
        Self(tokio::sync::Mutex::const_new(Weak::new()))
    }

    /// The running server, or a new one.
    pub async fn get(&self, options: Options) -> Arc<Prism> {
        let mut shared = self.0.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Prism::start(options).await);
        *shared = Arc::downgrade(&server);
        server
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}
