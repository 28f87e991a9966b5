//! Where there are no network namespaces: processes on the loopback address, and a relay between each node and the controller.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::network::{Machine, NODES, Network};

/// Bytes that a relay takes at a time.
const CHUNK: usize = 16 * 1024;

/// A relay for each node. Its tasks end with the runtime.
pub struct Relays {
    relays: BTreeMap<Machine, Relay>,
}

struct Relay {
    port: u16,
    target: Arc<AtomicU16>,
    /// Which of its two ends are cut.
    cut: RwLock<[bool; 2]>,
    open: watch::Sender<bool>,
}

impl Relays {
    /// Starts them. Needs a runtime.
    pub fn new() -> Self {
        Self { relays: NODES.into_iter().map(|node| (node, Relay::start())).collect() }
    }

    fn set(&self, machine: Machine, is_cut: bool) {
        for (node, relay) in &self.relays {
            if machine == *node || machine == Machine::Controller {
                let mut cut = relay.cut.write().unwrap_or_else(PoisonError::into_inner);
                cut[usize::from(machine == Machine::Controller)] = is_cut;
                relay.open.send_replace(!cut.contains(&true));
            }
        }
    }
}

impl Relay {
    fn start() -> Self {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a runtime");
        let (target, open) = (Arc::new(AtomicU16::new(0)), watch::Sender::new(true));
        tokio::spawn(accept(listener, Arc::clone(&target), open.subscribe()));
        Self { port, target, cut: RwLock::default(), open }
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, open: watch::Receiver<bool>) {
    let mut pairs = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                pairs.spawn(pair(stream, target.load(Ordering::SeqCst), open.clone()));
            }
            Some(_) = pairs.join_next() => {}
        }
    }
}

/// Connects a node's connection to the controller; while the relay is cut, it hangs.
async fn pair(node: TcpStream, target: u16, mut open: watch::Receiver<bool>) {
    if open.wait_for(|open| *open).await.is_err() {
        return;
    }
    let Ok(controller) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (node.set_nodelay(true), controller.set_nodelay(true));
    let ((from_node, to_node), (from_controller, to_controller)) = (node.into_split(), controller.into_split());
    tokio::select! {
        () = pass(from_node, to_controller, open.clone()) => {}
        () = pass(from_controller, to_node, open) => {}
    }
}

/// Passes on what comes, until one end closes; nothing, the end included, while the relay is cut.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await;
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        match read {
            Ok(length @ 1..) if to.write_all(&chunk[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}

impl Network for Relays {
    fn describe(&self) -> String {
        "three processes on the loopback address, with relays between them".to_owned()
    }

    fn on(&self, _: Machine) -> Vec<String> {
        Vec::new()
    }

    fn bind(&self) -> &'static str {
        "127.0.0.1"
    }

    fn host(&self, _: Machine) -> String {
        "127.0.0.1".to_owned()
    }

    fn controller_host(&self) -> String {
        "127.0.0.1".to_owned()
    }

    fn controller(&self, node: Machine, port: u16) -> String {
        let relay = &self.relays[&node];
        relay.target.store(port, Ordering::SeqCst);
        format!("127.0.0.1:{}", relay.port)
    }

    fn cut(&self, machine: Machine) {
        self.set(machine, true);
    }

    fn heal(&self, machine: Machine) {
        self.set(machine, false);
    }
}
