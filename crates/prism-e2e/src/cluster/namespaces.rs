//! Machines in network namespaces of their own, with a switch between them. Needs root and iproute2.
//!
//! Each machine has a port of the switch (198.18.0.0/24, inside the namespaces only), and a cable to the test, which is in the
//! namespace of the system (a /30 of 198.19.0.0/16). Both ranges are for tests of networks (RFC 2544). No machine forwards.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::network::{Machine, Network};

static CLUSTERS: AtomicU32 = AtomicU32::new(0);
static STALE: Once = Once::new();

/// How the names of namespaces begin; the id of the test's process follows.
const NAMESPACE: &str = "prism-e2e-";
/// How the names of the test's ends of cables begin; the id of the test's process follows.
const CABLE: &str = "pe";

/// Three namespaces and that of the switch; they go when it is dropped.
pub struct Namespaces {
    process: u32,
    cluster: u32,
}

impl Namespaces {
    /// Makes them; says why not.
    pub fn new() -> Result<Self, String> {
        STALE.call_once(remove_stale);
        let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let made = Self { process: std::process::id(), cluster };
        made.build()?;
        Ok(made)
    }

    fn build(&self) -> Result<(), String> {
        let switch = self.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for machine in Machine::ALL {
            let (space, cable) = (self.space(machine), self.cable(machine));
            ip(&["netns", "add", &space])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            let port = machine.name();
            ip(&["-n", &space, "link", "add", "cluster", "type", "veth", "peer", "name", port, "netns", &switch])?;
            ip(&["-n", &switch, "link", "set", port, "master", "bridge", "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/24", inside(machine)), "dev", "cluster"])?;
            ip(&["-n", &space, "link", "set", "cluster", "up"])?;
            ip(&["-n", &space, "link", "add", "test", "type", "veth", "peer", "name", &cable, "netns", &own_space()])?;
            ip(&["addr", "add", &format!("{}/30", self.outside(machine, 1)), "dev", &cable])?;
            ip(&["link", "set", &cable, "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/30", self.outside(machine, 2)), "dev", "test"])?;
            ip(&["-n", &space, "link", "set", "test", "up"])?;
        }
        Ok(())
    }

    fn space(&self, machine: Machine) -> String {
        format!("{NAMESPACE}{}-{}-{machine}", self.process, self.cluster)
    }

    fn switch(&self) -> String {
        format!("{NAMESPACE}{}-{}-switch", self.process, self.cluster)
    }

    /// The test's end of the cable to a machine; the names of interfaces have at most 15 characters.
    fn cable(&self, machine: Machine) -> String {
        format!("{CABLE}{}-{}-{}", self.process, self.cluster % 100, machine as u8)
    }

    /// An address of the cable between the test and a machine.
    fn outside(&self, machine: Machine, end: u32) -> String {
        // Sixteen addresses for each cluster: other runs at the same time have other ids.
        let block = (self.process.wrapping_mul(8).wrapping_add(self.cluster)) % 4096;
        let address = block * 16 + u32::from(machine as u8) * 4 + end;
        format!("198.19.{}.{}", address / 256, address % 256)
    }
}

/// The address of a machine in the cluster's network.
fn inside(machine: Machine) -> String {
    format!("198.18.0.{}", machine as u8 + 1)
}

/// The namespace of the test, by a process that is in it.
fn own_space() -> String {
    std::process::id().to_string()
}

/// Runs `ip`; the error says what it said.
fn ip(words: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip (of iproute2) cannot be run: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Removes what runs left that were killed: names with the id of a process that is no more, or with that of this one, which has
/// made none yet.
fn remove_stale() {
    let stale = |name: &str, prefix: &str| {
        let id =
            name.strip_prefix(prefix).and_then(|rest| rest.split('-').next()).and_then(|id| id.parse::<u32>().ok());
        id.is_some_and(|id| id == std::process::id() || !Path::new(&format!("/proc/{id}")).exists())
    };
    // Where namespaces cannot be listed, there are none.
    let spaces = ip(&["netns", "list"]).unwrap_or_default();
    for space in spaces.lines().filter_map(|line| line.split_whitespace().next()) {
        if stale(space, NAMESPACE) {
            let _ = ip(&["netns", "del", space]);
        }
    }
    let links = ip(&["-o", "link", "show"]).unwrap_or_default();
    for link in links.lines().filter_map(|line| line.split([' ', '@', ':']).find(|word| word.starts_with(CABLE))) {
        if stale(link, CABLE) {
            let _ = ip(&["link", "del", link]);
        }
    }
}

impl Network for Namespaces {
    fn describe(&self) -> String {
        format!("three machines in the network namespaces {NAMESPACE}{}-{}-*", self.process, self.cluster)
    }

    fn on(&self, machine: Machine) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(machine)].map(ToOwned::to_owned).into()
    }

    fn bind(&self) -> &'static str {
        "0.0.0.0"
    }

    fn host(&self, machine: Machine) -> String {
        self.outside(machine, 2)
    }

    fn controller_host(&self) -> String {
        inside(Machine::Controller)
    }

    fn controller(&self, _: Machine, port: u16) -> String {
        format!("{}:{port}", inside(Machine::Controller))
    }

    /// Its port leaves the bridge: cables stay up, and nobody is told.
    fn cut(&self, machine: Machine) {
        ip(&["-n", &self.switch(), "link", "set", machine.name(), "nomaster"]).expect("a port of the switch");
    }

    fn deafen(&self, node: Machine) {
        let (space, address) = (self.space(Machine::Controller), inside(node));
        ip(&["-n", &space, "route", "replace", "blackhole", &address]).expect("a route");
    }

    fn heal(&self, machine: Machine) {
        ip(&["-n", &self.switch(), "link", "set", machine.name(), "master", "bridge"]).expect("a port of the switch");
        // There is none unless the node was deafened.
        let _ = ip(&["-n", &self.space(Machine::Controller), "route", "del", "blackhole", &inside(machine)]);
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for machine in Machine::ALL {
            // The other end goes with it, at once; the namespaces would take it along later.
            let _ = ip(&["link", "del", &self.cable(machine)]);
            let _ = ip(&["netns", "del", &self.space(machine)]);
        }
        let _ = ip(&["netns", "del", &self.switch()]);
    }
}
