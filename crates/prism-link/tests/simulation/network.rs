//! Connections between nodes and the controller: frames take their time, wait while their node is cut off, and connections break.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use prism_core::{Error, NodeId, Result};
use prism_link::bounds::{MAX_FRAME_BYTES, MAX_NODE_FRAME_BYTES};
use prism_link::{Closed, Connector, ControllerEnd, Incoming, NodeEnd, Outgoing};
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::world::Dice;

/// The longest time that a frame takes.
const DELAY: u64 = 60;
/// How long a connection is tried while the node is cut off.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a controller says last, as the status of a call is.
pub type LastWord = Box<dyn FnOnce(Error) + Send>;
/// Takes the controller's end of a new connection.
pub type Accept = Arc<dyn Fn(NodeId, ControllerEnd, LastWord) + Send + Sync>;

/// The network.
pub struct Network {
    dice: Dice,
    blocked: Mutex<BTreeMap<NodeId, bool>>,
    /// Wakes whoever waits, in order.
    healed: Notify,
    connections: Mutex<Vec<(NodeId, CancellationToken)>>,
    controller: Mutex<Option<Accept>>,
    /// With what the controller refuses the links of a node.
    refused: Mutex<BTreeMap<NodeId, Error>>,
}

impl Network {
    pub fn new(dice: Dice) -> Arc<Self> {
        Arc::new(Self {
            dice,
            blocked: Mutex::default(),
            healed: Notify::new(),
            connections: Mutex::default(),
            controller: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// Cuts a node off, or lets it through again.
    pub fn block(&self, node: &NodeId, blocked: bool) {
        self.blocked.lock().unwrap().insert(node.clone(), blocked);
        self.healed.notify_waiters();
    }

    /// Lets all through.
    pub fn heal(&self) {
        self.blocked.lock().unwrap().clear();
        self.healed.notify_waiters();
    }

    /// Breaks the connections of a node.
    pub fn cut(&self, node: &NodeId) {
        self.connections.lock().unwrap().retain(|(of, token)| {
            if of == node {
                token.cancel();
            }
            of != node
        });
    }

    /// Who takes new connections; `None` = nobody.
    pub fn listen(&self, accept: Option<Accept>) {
        *self.controller.lock().unwrap() = accept;
    }

    /// Has the controller refuse the links of a node, or not any more.
    pub fn refuse(&self, node: &NodeId, error: Option<Error>) {
        let mut refused = self.refused.lock().unwrap();
        match error {
            Some(error) => _ = refused.insert(node.clone(), error),
            None => _ = refused.remove(node),
        }
        drop(refused);
        self.cut(node);
    }

    async fn through(&self, node: &NodeId) {
        loop {
            let healed = self.healed.notified();
            if !self.blocked.lock().unwrap().get(node).copied().unwrap_or(false) {
                return;
            }
            healed.await;
        }
    }

    /// Frames larger than `most` bytes would end a real link.
    fn pipe<F: Message + 'static>(
        self: &Arc<Self>,
        node: &NodeId,
        broken: &CancellationToken,
        most: usize,
    ) -> (Outgoing<F>, Incoming<F>) {
        let (sender, mut sent) = mpsc::unbounded_channel::<F>();
        let (deliver, delivered) = mpsc::unbounded_channel::<Result<F>>();
        let (network, node, broken) = (Arc::clone(self), node.clone(), broken.clone());
        tokio::spawn(async move {
            let carry = async {
                loop {
                    let frame = sent.recv().await;
                    tokio::time::sleep(Duration::from_millis(network.dice.below(DELAY))).await;
                    network.through(&node).await;
                    let Some(frame) = frame else { return };
                    if deliver.send(Ok(frame)).is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                () = broken.cancelled() => {}
                () = carry => {}
            }
        });
        let outgoing = futures::sink::unfold(sender, move |sender, frame: F| async move {
            let bytes = frame.encoded_len();
            assert!(bytes <= most, "a frame has {bytes} bytes, of {most}");
            sender.send(frame).map_err(|_| Closed)?;
            Ok(sender)
        });
        let incoming = futures::stream::unfold(delivered, |mut delivered| async move {
            delivered.recv().await.map(|frame| (frame, delivered))
        });
        (Box::pin(outgoing), incoming.boxed())
    }
}

/// The way of one node to the controller.
pub struct Way {
    pub network: Arc<Network>,
    pub node: NodeId,
}

#[async_trait::async_trait]
impl Connector for Way {
    async fn connect(&self, _: &str) -> Result<NodeEnd> {
        let refused = || Error::unavailable("REFUSED", "nobody is there");
        let network = &self.network;
        tokio::time::timeout(PATIENCE, network.through(&self.node)).await.map_err(|_| refused())?;
        tokio::time::sleep(Duration::from_millis(network.dice.below(DELAY * 2))).await;
        let accept = network.controller.lock().unwrap().clone().ok_or_else(refused)?;
        if let Some(error) = network.refused.lock().unwrap().get(&self.node).cloned() {
            let outgoing = futures::sink::unfold((), |(), _| async { Err::<(), Closed>(Closed) });
            let incoming = futures::stream::once(async move { Err(error) });
            return Ok(NodeEnd { incoming: incoming.boxed(), outgoing: Box::pin(outgoing) });
        }
        let broken = CancellationToken::new();
        network.connections.lock().unwrap().push((self.node.clone(), broken.clone()));
        let (to_controller, at_controller) = network.pipe(&self.node, &broken, MAX_NODE_FRAME_BYTES);
        let (to_node, at_node) = network.pipe(&self.node, &broken, MAX_FRAME_BYTES);
        let said = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&said);
        let last_word: LastWord = Box::new(move |error| *said.lock().unwrap() = Some(error));
        accept(self.node.clone(), ControllerEnd { incoming: at_controller, outgoing: to_node }, last_word);
        let last = futures::stream::once(async move { heard.lock().unwrap().take() });
        let incoming = at_node.chain(last.filter_map(|word| async { word.map(Err) })).boxed();
        Ok(NodeEnd { incoming, outgoing: to_controller })
    }
}
