//! `prism`, the server: both planes in one process (contract §1).

mod app;
mod cli;
mod data_dir;
mod dev;
mod endpoints;
mod join;
mod log;
mod monitoring;
mod recover;
mod settings;
mod signals;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use prism_core::Clock;
use tokio::runtime::{Builder, Runtime};

use cli::{Cli, Command, Role, ServeArgs};
use data_dir::DataDir;
use settings::{Environment, File, Settings};

/// Measurably faster than the system's allocator under many small messages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads of the admin plane and of metrics: enough to answer while the data plane uses every processor.
const ADMIN_THREADS: usize = 2;
/// How long work without an owner may take once everything is closed.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Why the command was not carried out, and the exit code that says so to programs.
enum Failure {
    /// A flag, variable or key is wrong: exit code 2.
    Usage(String),
    /// The machine does not let it run: exit code 1.
    Start(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Start(message)
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Join(args) => join::join(&args),
    };
    let (code, message) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (2, message),
        Err(Failure::Start(message)) => (1, message),
    };
    eprintln!("prism: {message}");
    ExitCode::from(code)
}

fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let environment = Environment::read(|name| std::env::var_os(name)).map_err(Failure::Usage)?;
    let file = args.config.as_deref().map(File::read).transpose().map_err(Failure::Usage)?;
    let settings = Settings::resolve(args, &environment, file.unwrap_or_default()).map_err(Failure::Usage)?;
    log::start(args.log_format, environment.log.as_deref()).map_err(Failure::Usage)?;
    // One provider for whatever in the process asks for a default; our own TLS names it.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return Err(Failure::Start("another cryptography provider is installed already".to_owned()));
    }
    let issuers = settings.issuers(Clock::system()).map_err(Failure::Usage)?;
    if settings.role == Role::Data {
        app::node::require_identity(&settings.data_dir)?;
    }
    let directory = DataDir::open(&settings.data_dir).map_err(Failure::Start)?;
    let data = runtime("prism-data", settings.limits.data_threads)?;
    let admin = runtime("prism-admin", ADMIN_THREADS)?;
    let handle = data.handle().clone();
    let result = match settings.role {
        Role::Data => admin.block_on(app::node::run(settings, issuers, &directory, handle)),
        Role::All | Role::Admin => admin.block_on(app::run(settings, issuers, &directory, handle)),
    };
    data.shutdown_timeout(LAST_WORK);
    admin.shutdown_timeout(LAST_WORK);
    // The lock is given up last: until here work of this process could still write.
    drop(directory);
    result
}

fn runtime(name: &str, threads: usize) -> Result<Runtime, Failure> {
    let built = Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build();
    built.map_err(|error| Failure::Start(format!("no threads for {name}: {error}")))
}
