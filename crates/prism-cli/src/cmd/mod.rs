//! The nouns, one file each.

pub mod audit;
pub mod backend;
pub mod binding;
pub mod ca;
pub mod can_i;
pub mod cert;
pub mod client_binding;
pub mod client_key;
pub mod completion;
pub mod config;
pub mod context;
pub mod drain;
pub mod key;
pub mod lineage;
pub mod login;
pub mod logout;
pub mod maintenance;
pub mod metrics;
pub mod namespace;
pub mod node;
pub mod role;
pub mod session;
pub mod token;
pub mod who_can;
pub mod whoami;

use std::{
    cell::RefCell,
    io::{self, IsTerminal as _, Write as _},
    rc::Rc,
    time::Duration,
};

use clap::Args;

use crate::{
    cli::{Cli, Command, Global},
    client::{CallOptions, Client},
    error::{Failure, Result},
    exit::{self, Exit},
    memory::Memory,
    output::{self, Printer},
    target::{self, Surroundings},
    watch::{Alarm, Watch},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Carries a command out, and cries out if a server's audit log is not the one that was seen before.
pub async fn run(cli: Cli) -> Result<Exit> {
    let console = Console::new(cli.global)?;
    let outcome = carry_out(cli.command, &console).await;
    console.conclude(outcome)
}

async fn carry_out(command: Command, console: &Console) -> Result<Exit> {
    match command {
        Command::Namespace(command) => command.run(console).await,
        Command::Config(command) => command.run(console).await,
        Command::Session(command) => command.run(console).await,
        Command::Backend(command) => command.run(console).await,
        Command::Maintenance(command) => command.run(console).await,
        Command::Drain(command) => command.run(console).await,
        Command::Metrics(command) => command.run(console).await,
        Command::Audit(command) => command.run(console).await,
        Command::Key(command) => command.run(console).await,
        Command::ClientKey(command) => command.run(console).await,
        Command::Role(command) => command.run(console).await,
        Command::Binding(command) => command.run(console).await,
        Command::ClientBinding(command) => command.run(console).await,
        Command::Cert(command) => command.run(console).await,
        Command::Token(command) => command.run(console).await,
        Command::Node(command) => command.run(console).await,
        Command::Ca(command) => command.run(console).await,
        Command::Lineage(command) => command.run(console).await,
        Command::Whoami(command) => command.run(console).await,
        Command::CanI(command) => command.run(console).await,
        Command::WhoCan(command) => command.run(console).await,
        Command::Login(command) => command.run(console).await,
        Command::Logout(command) => command.run(console).await,
        Command::Context(command) => command.run(console),
        Command::Completion(command) => command.run(),
        Command::ExitCodes => output::write(&format!("{}\n", exit::HELP)).map(|()| Exit::Ok),
    }
}

/// What every command has at hand.
pub struct Console {
    /// Flags of every command.
    pub global: Global,
    /// What is around the process.
    pub around: Surroundings,
    /// Where data goes.
    pub printer: Printer,
    /// Watches over the audit logs of the servers that were talked to.
    watches: RefCell<Vec<Rc<Watch>>>,
}

impl Console {
    fn new(global: Global) -> Result<Self> {
        Ok(Self::of(global, Surroundings::of_process()?))
    }

    fn of(global: Global, around: Surroundings) -> Self {
        Self { printer: Printer::new(global.output), around, global, watches: RefCell::default() }
    }

    /// Admin address of the server that is meant, `host:port`.
    pub fn endpoint(&self) -> Result<String> {
        Ok(target::resolve(&self.global.connection, &self.around)?.authority())
    }

    /// A connection to the server that is meant.
    pub async fn client(&self) -> Result<Client> {
        self.printer.refuse_token()?;
        self.connect(self.global.timeout.unwrap_or(DEFAULT_TIMEOUT)).await
    }

    /// A connection whose calls may take this long; `-o token` is accepted.
    pub async fn connect(&self, timeout: Duration) -> Result<Client> {
        let target = target::resolve(&self.global.connection, &self.around)?;
        let watch = Watch::new(target.memory.clone());
        self.watches.borrow_mut().push(Rc::clone(&watch));
        let idempotency_key = self.global.idempotency_key.clone();
        Client::connect(&target, CallOptions { timeout, idempotency_key }, watch).await
    }

    /// Where the log of the server that is meant is remembered.
    pub fn memory(&self) -> Result<Memory> {
        target::memory(&self.global.connection, &self.around)
    }

    /// How the process ends: as the command did, unless a watch has found something. Then that is said last, after
    /// all that was printed.
    fn conclude(&self, outcome: Result<Exit>) -> Result<Exit> {
        let alarms: Vec<_> = self.watches.borrow().iter().filter_map(|watch| watch.alarm()).collect();
        if alarms.is_empty() {
            return outcome;
        }
        if let Err(failure) = outcome {
            failure.report();
        }
        alarms.iter().for_each(Alarm::report);
        Ok(Exit::ChainBroken)
    }

    /// A connection for commands that make a key.
    pub async fn client_for_secret(&self) -> Result<Client> {
        self.connect(self.global.timeout.unwrap_or(DEFAULT_TIMEOUT)).await
    }

    /// Asks before something that cannot be undone; on a terminal only, so that scripts never hang.
    pub fn confirm(&self, question: &str) -> Result<()> {
        let mut err = io::stderr();
        if self.global.yes || !io::stdin().is_terminal() || !err.is_terminal() {
            return Ok(());
        }
        let mut answer = String::new();
        let asked = write!(err, "{} [y/N] ", crate::text::safe(question))
            .and_then(|()| err.flush())
            .and_then(|()| io::stdin().read_line(&mut answer));
        match (asked, answer.trim()) {
            (Ok(_), "y" | "Y" | "yes") => Ok(()),
            _ => Err(Failure::new(Exit::Failed, "cancelled; nothing was changed")),
        }
    }
}

/// `--namespace`, where it narrows the scope.
#[derive(Args, Debug, Clone, Default)]
pub struct Scope {
    /// Only this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// `--namespace`, where it says for which place something is asked.
#[derive(Args, Debug, Clone, Default)]
pub struct Place {
    /// In this namespace [default: everywhere]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// Names the nodes that are not part of an answer, if there are any.
fn note_unreachable(nodes: &[String]) {
    if !nodes.is_empty() {
        output::note(&format!("note: could not be reached and are not part of this: {}", nodes.join(", ")));
    }
}

/// Says how much of a listing is shown, if not all of it.
fn note_rest(shown: usize, next: Option<&str>, total: i32) {
    if next.is_some_and(|token| !token.is_empty()) {
        output::note(&format!("note: {shown} of {total} are shown"));
    }
}
