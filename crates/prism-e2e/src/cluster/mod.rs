//! One controller and two data nodes, on three machines whose network can be cut.

mod clocks;
pub mod load;
mod namespaces;
mod network;
mod relays;

use std::io::Write as _;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::transport::Channel;

use crate::admin::{Admin, Headers};
use crate::data::{self, Session, named};
use crate::failure::Failure;
use crate::node::join_as;
use crate::server::{Options, Prism};
use crate::{dial, wait};

pub use clocks::Clocks;
pub use network::{Machine, NODES, Network};

/// How long everything may take to converge after a cut is healed.
pub const CONVERGED: Duration = Duration::from_secs(5);
/// What is added to it: the tests share two cores with others, and the binaries are not optimised.
pub const MARGIN: Duration = Duration::from_secs(3);

/// Says a line past the test harness, which shows nothing of a test that passes.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Three machines with their processes.
pub struct Cluster {
    // In this order: the processes end before their network goes.
    controller: Prism,
    nodes: [Prism; 2],
    clocks: Option<Clocks>,
    network: Box<dyn Network>,
    _folder: TempDir,
}

/// How a cluster is started.
#[derive(Default)]
pub struct Setup {
    /// Lines of `prism.toml` for all three.
    pub config: String,
    /// Seconds by which the clock of each machine differs; they can be changed later. `None` = the system's clock.
    pub clocks: Option<[i64; 3]>,
}

impl Cluster {
    /// Starts the controller, has two machines join, and starts their nodes.
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// The same in another way.
    pub async fn with(setup: Setup) -> Self {
        let network = network::network();
        let folder = tempfile::tempdir().expect("a folder");
        let clocks = setup.clocks.map(|skews| Clocks::new(folder.path(), skews));
        let plain = |machine, role, config: &str| {
            options(&*network, clocks.as_ref(), machine).arg("--role").arg(role).config(config)
        };
        let hosts = [network.host(Machine::Controller), network.controller_host()];
        let config = format!("[listen]\nnames = {hosts:?}\n{}", setup.config);
        let controller = plain(Machine::Controller, "admin", &config);
        let mut prism = Prism::prepared(any_ports(&controller, &["admin", "metrics"]));
        started(&mut prism, controller).await;
        let controller = prism;
        let operator = admin(&*network, &controller);
        let mut nodes = Vec::new();
        for machine in NODES {
            let node = plain(machine, "data", &setup.config);
            let mut prism = Prism::prepared(any_ports(&node, &["data", "metrics"]));
            let token = operator.create_join_token(machine.name()).await.join_token;
            let address = network.controller(machine, port(&controller.endpoints().admin));
            let dir = prism.data_dir().to_string_lossy().into_owned();
            let words = ["-", "--controller", &address, "--node-id", machine.name(), "--data-dir", &dir];
            join_as(&network.on(machine), &env(clocks.as_ref(), machine), &words, &token).ok();
            started(&mut prism, node).await;
            nodes.push(prism);
        }
        let nodes = nodes.try_into().unwrap_or_else(|_| unreachable!("there are two nodes"));
        Self { controller, nodes, clocks, network, _folder: folder }
    }

    /// A process.
    pub fn prism(&self, machine: Machine) -> &Prism {
        match machine {
            Machine::Controller => &self.controller,
            Machine::One => &self.nodes[0],
            Machine::Two => &self.nodes[1],
        }
    }

    /// The clocks of the machines.
    pub fn clocks(&self) -> &Clocks {
        self.clocks.as_ref().expect("a cluster with clocks of its own")
    }

    /// The operator with the first admin key, on a new connection that no cut reaches.
    pub fn admin(&self) -> Admin {
        admin(&*self.network, &self.controller)
    }

    /// A new connection to the data port of a node that no cut reaches.
    pub fn channel(&self, node: Machine) -> Channel {
        let prism = self.prism(node);
        let address = format!("{}:{}", self.network.host(node), port(&prism.endpoints().data));
        let ca = prism.data_dir().join("node").join("ca.pem");
        dial::tls_named(&address, node.name(), &ca)
    }

    /// Opens a session on a node.
    pub async fn open(&self, node: Machine, key: &str, config: &str) -> Result<Session, Failure> {
        data::create(&self.channel(node), named(key, config)).await.map_err(|status| Failure::from(&status))
    }

    /// Cuts a machine off from the others.
    pub fn cut(&self, machine: Machine) {
        self.network.cut(machine);
    }

    /// Has a node hear nothing of the controller any more, which hears the node.
    pub fn deafen(&self, node: Machine) {
        self.network.deafen(node);
    }

    /// Puts it back.
    pub fn heal(&self, machine: Machine) {
        self.network.heal(machine);
    }

    /// Kills a process with SIGKILL.
    pub fn kill(&self, machine: Machine) {
        self.prism(machine).kill();
    }

    /// Starts it again, on the same data and ports.
    pub async fn restart(&self, machine: Machine) {
        self.prism(machine).spawn();
        self.prism(machine).ready().await;
    }
}

/// The options that are the same for every start on a machine.
fn options(network: &dyn Network, clocks: Option<&Clocks>, machine: Machine) -> Options {
    let wrapper = network.on(machine);
    let words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let options = Options::new().own_ports().wrapper(&words).arg(&format!("--bind={}", network.bind()));
    env(clocks, machine).iter().fold(options, |options, (name, value)| options.env(name, value))
}

fn env(clocks: Option<&Clocks>, machine: Machine) -> Vec<(String, String)> {
    clocks.map(|clocks| clocks.env(machine)).unwrap_or_default()
}

fn any_ports(options: &Options, listeners: &[&str]) -> Options {
    listeners.iter().fold(options.clone(), |options, listener| options.arg(&format!("--{listener}-port=0")))
}

/// Starts a process for the first time, and has it use the same ports from then on.
async fn started(prism: &mut Prism, mut options: Options) {
    prism.spawn();
    prism.ready().await;
    let endpoints = prism.endpoints();
    for (listener, address) in [("data", endpoints.data), ("admin", endpoints.admin), ("metrics", endpoints.metrics)] {
        if !address.is_empty() {
            options = options.arg(&format!("--{listener}-port={}", port(&address)));
        }
    }
    prism.set_options(options);
}

fn admin(network: &dyn Network, controller: &Prism) -> Admin {
    let address = format!("{}:{}", network.host(Machine::Controller), port(&controller.endpoints().admin));
    let channel = dial::tls(&address, &controller.data_dir().join("ca.pem"));
    Admin { channel, headers: Headers::bearer(&controller.admin_token()) }
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address with a port")
}

/// Measures what has to come about after `since`: at most [`CONVERGED`] and [`MARGIN`] later. Says how long it took.
pub async fn converges<T, F: Future<Output = Option<T>>>(what: &str, since: Instant, probe: impl FnMut() -> F) -> T {
    let found = wait::until(what, probe).await;
    let took = since.elapsed();
    say(&format!("  {took:>8.1?}  {what}"));
    assert!(took <= CONVERGED + MARGIN, "{what}: after {took:?}, and {CONVERGED:?} were promised");
    found
}
