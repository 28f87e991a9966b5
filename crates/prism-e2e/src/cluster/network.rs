//! The network between the machines of a cluster, which can be cut.

use std::fmt;

use super::namespaces::Namespaces;
use super::relays::Relays;
use super::say;

/// A machine of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// The admin plane.
    Controller,
    /// The first data node.
    One,
    /// The second data node.
    Two,
}

/// The data nodes.
pub const NODES: [Machine; 2] = [Machine::One, Machine::Two];

impl Machine {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Controller, Self::One, Self::Two];

    /// Its name, which is the id of a node.
    pub fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::One => "one",
            Self::Two => "two",
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Three machines, and the test beside them. The test reaches each machine at any time; what is cut is the way between a
/// machine and the others, on which nothing arrives any more and nobody is told.
pub trait Network: Send + Sync {
    /// What it is, for people.
    fn describe(&self) -> String;
    /// The words in front of a program that is to run on a machine.
    fn on(&self, machine: Machine) -> Vec<String>;
    /// The address that the programs listen on.
    fn bind(&self) -> &'static str;
    /// Where the test reaches a machine.
    fn host(&self, machine: Machine) -> String;
    /// The host by which the nodes know the controller.
    fn controller_host(&self) -> String;
    /// Where a node finds the admin plane that listens on `port`, as `host:port`.
    fn controller(&self, node: Machine, port: u16) -> String;
    /// Cuts a machine off from the other machines.
    fn cut(&self, machine: Machine);
    /// Cuts one way only: what the controller says does not reach a node any more.
    fn deafen(&self, node: Machine);
    /// Puts a machine back, whatever was cut.
    fn heal(&self, machine: Machine);
}

/// Network namespaces where the machine allows it, else processes on the loopback address with relays between them. Says which
/// on standard error. `PRISM_E2E_NETWORK` set to `namespaces` or `relays` decides itself.
pub fn network() -> Box<dyn Network> {
    let wish = std::env::var("PRISM_E2E_NETWORK").unwrap_or_default();
    let network: Box<dyn Network> = match (wish.as_str(), Namespaces::new()) {
        ("relays", _) => Box::new(Relays::new()),
        ("" | "namespaces", Ok(namespaces)) => Box::new(namespaces),
        ("", Err(why)) => {
            say(&format!(
                "NO NETWORK NAMESPACES: {why}. The machines of this cluster are processes on the loopback address, and what is \
                 cut are relays between them"
            ));
            Box::new(Relays::new())
        }
        ("namespaces", Err(why)) => panic!("PRISM_E2E_NETWORK asks for namespaces: {why}"),
        (other, _) => panic!("PRISM_E2E_NETWORK is {other:?}, and neither namespaces nor relays"),
    };
    say(&format!("cluster: {}", network.describe()));
    network
}
