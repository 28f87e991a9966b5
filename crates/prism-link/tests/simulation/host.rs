//! A machine with a node on it: what is on its disk stays, everything else goes with a crash.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use prism_core::{Clock, NodeId};
use prism_link::{BackendIdentity, Encode, NodeLink, NodeLinkOptions, Storage, Stored};
use tokio_util::sync::CancellationToken;

use crate::network::{Network, Way};
use crate::plane::Plane;
use crate::world::{Dice, Log, SHARING};

/// How long a node waits for a controller when it could start without.
const PATIENCE: Duration = Duration::from_secs(1);

/// A disk.
pub struct Disk {
    stored: Mutex<Stored>,
    dice: Dice,
}

#[async_trait]
impl Storage for Disk {
    async fn load(&self) -> io::Result<Stored> {
        Ok(self.stored.lock().unwrap().clone())
    }

    async fn replace(&self, state: Encode) -> io::Result<()> {
        let state = state()?;
        tokio::time::sleep(Duration::from_millis(self.dice.below(30))).await;
        self.stored.lock().unwrap().state = Some(state);
        // A crash may come between the two.
        tokio::time::sleep(Duration::from_millis(self.dice.below(5))).await;
        self.stored.lock().unwrap().journal.clear();
        Ok(())
    }

    async fn append(&self, records: Vec<u8>) -> io::Result<()> {
        // A crash may leave a part of it.
        let part = self.dice.below(records.len() as u64 + 1) as usize;
        self.stored.lock().unwrap().journal.extend_from_slice(&records[..part]);
        tokio::time::sleep(Duration::from_millis(self.dice.below(10))).await;
        self.stored.lock().unwrap().journal.extend_from_slice(&records[part..]);
        Ok(())
    }
}

/// What runs on a machine.
#[derive(Clone)]
pub struct Running {
    pub link: Arc<NodeLink>,
    pub plane: Arc<Plane>,
    /// Ends when the machine crashes.
    pub crash: CancellationToken,
}

/// The backend of all sessions: two machines serve the same data, the third has its own.
fn backend(node: &NodeId) -> BackendIdentity {
    let identity =
        if SHARING.contains(&node.as_str()) { "cluster".to_owned() } else { format!("embedded:{node}:memory") };
    BackendIdentity { instance: "memory".to_owned(), kind: "memory".to_owned(), identity }
}

/// A machine.
pub struct Host {
    pub node: NodeId,
    pub clock: Clock,
    network: Arc<Network>,
    disk: Arc<Disk>,
    dice: Dice,
    log: Log,
    running: Mutex<Option<Running>>,
    starting: Mutex<CancellationToken>,
}

impl Host {
    pub fn new(node: NodeId, clock: Clock, network: &Arc<Network>, dice: &Dice, log: &Log) -> Arc<Self> {
        Arc::new(Self {
            node,
            clock,
            network: Arc::clone(network),
            disk: Arc::new(Disk { stored: Mutex::default(), dice: dice.clone() }),
            dice: dice.clone(),
            log: log.clone(),
            running: Mutex::default(),
            starting: Mutex::default(),
        })
    }

    /// Another machine with a copy of what is on the disk of this one.
    pub fn copy(&self) -> Arc<Self> {
        let copy = Self::new(self.node.clone(), self.clock.clone(), &self.network, &self.dice, &self.log);
        *copy.disk.stored.lock().unwrap() = self.disk.stored.lock().unwrap().clone();
        copy
    }

    pub fn running(&self) -> Option<Running> {
        self.running.lock().unwrap().clone()
    }

    /// Starts the node; it serves when it has something to serve by.
    pub fn start(self: &Arc<Self>) {
        let crash = CancellationToken::new();
        let before = std::mem::replace(&mut *self.starting.lock().unwrap(), crash.clone());
        assert!(before.is_cancelled() || self.running().is_none(), "a machine runs one node");
        let host = Arc::clone(self);
        tokio::spawn(async move {
            let starting = async {
                let dice = host.dice.clone();
                let options = NodeLinkOptions {
                    node: host.node.clone(),
                    process: dice.below(u64::MAX),
                    controllers: vec!["controller".to_owned()],
                    connector: Arc::new(Way { network: Arc::clone(&host.network), node: host.node.clone() }),
                    storage: host.disk.clone(),
                    version: "0".to_owned(),
                    backends: vec![backend(&host.node)],
                    stored: Vec::new(),
                    data_endpoint: String::new(),
                    clock: host.clock.clone(),
                    jitter: Box::new(move |pause| pause * (80 + dice.below(41) as u32) / 100),
                };
                let link = Arc::new(NodeLink::start(options).await.unwrap());
                // A crash ends it, whoever holds it.
                let (held, token) = (Arc::clone(&link), crash.clone());
                tokio::spawn(async move {
                    token.cancelled().await;
                    held.end();
                });
                link.ready(PATIENCE).await;
                let plane = Plane::start(host.node.clone(), host.clock.clone(), host.dice.clone(), &link).await;
                link.attach(plane.clone());
                host.log.line(format_args!("{} serves {} sessions", host.node, plane.held().len()));
                *host.running.lock().unwrap() = Some(Running { link, plane, crash: crash.clone() });
            };
            tokio::select! {
                biased;
                () = crash.cancelled() => {}
                () = starting => {}
            }
        });
    }

    pub fn crash(&self) {
        self.starting.lock().unwrap().cancel();
        self.running.lock().unwrap().take();
    }
}
