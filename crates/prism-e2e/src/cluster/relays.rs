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
    ways: watch::Sender<Ways>,
}

/// Which ways are open.
#[derive(Clone, Copy)]
struct Ways {
    to_node: bool,
    to_controller: bool,
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
                let open = !cut.contains(&true);
                relay.ways.send_replace(Ways { to_node: open, to_controller: open });
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
        let ways = watch::Sender::new(Ways { to_node: true, to_controller: true });
        let target = Arc::new(AtomicU16::new(0));
        tokio::spawn(accept(listener, Arc::clone(&target), ways.subscribe()));
        Self { port, target, cut: RwLock::default(), ways }
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, ways: watch::Receiver<Ways>) {
    let mut pairs = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                pairs.spawn(pair(stream, target.load(Ordering::SeqCst), ways.clone()));
            }
            Some(_) = pairs.join_next() => {}
        }
    }
}

/// Connects a node's connection to the controller; while the relay is cut, it hangs.
async fn pair(node: TcpStream, target: u16, mut ways: watch::Receiver<Ways>) {
    if ways.wait_for(|ways| ways.to_node && ways.to_controller).await.is_err() {
        return;
    }
    let Ok(controller) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let _ = (node.set_nodelay(true), controller.set_nodelay(true));
    let ((from_node, to_node), (from_controller, to_controller)) = (node.into_split(), controller.into_split());
    tokio::select! {
        () = pass(from_node, to_controller, ways.clone(), |ways| ways.to_controller) => {}
        () = pass(from_controller, to_node, ways, |ways| ways.to_node) => {}
    }
}

/// Passes on what comes, until one end closes; nothing, the end included, while its way is cut.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut ways: watch::Receiver<Ways>,
    is_open: fn(&Ways) -> bool,
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await;
        if ways.wait_for(is_open).await.is_err() {
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

    fn deafen(&self, node: Machine) {
        self.relays[&node].ways.send_modify(|ways| ways.to_node = false);
    }

    fn heal(&self, machine: Machine) {
        self.set(machine, false);
    }
}
