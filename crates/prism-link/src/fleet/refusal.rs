//! Who may not link, and what is remembered of it for the operators.

use prism_core::{Error, Kind, NodeId, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;

use super::{Known, NodeStatus, Shared};
use crate::bounds::MAX_NODES;

/// Reason for a second process with the identity of one that is linked.
pub const ALREADY_CONNECTED: &str = "NODE_ALREADY_CONNECTED";

/// Why a node was not linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, as the node was told it.
    pub reason: String,
    /// What to do about it.
    pub message: String,
    /// When.
    pub at: UnixMillis,
}

/// FAILED_PRECONDITION `NODE_ALREADY_CONNECTED`.
pub fn twin(node: &NodeId) -> Error {
    let message = format!(
        "another process is linked with the identity of node {node}, and is alive; an identity is for one machine: stop one \
         of the two, and if you did not copy it, revoke the node"
    );
    Error::precondition(ALREADY_CONNECTED, message)
}

impl Known {
    /// Refuses a node that has no place here.
    pub(super) fn has_room_for(&self, node: &NodeId) -> Result<()> {
        if self.local.as_ref().is_some_and(|(local, _)| local == node) {
            let message = format!("{node} is the name of the controller's own data plane; the node needs another");
            return Err(Error::precondition("NODE_ID_TAKEN", message));
        }
        if self.links.len() >= MAX_NODES && !self.links.contains_key(node) {
            let message =
                format!("{MAX_NODES} nodes are linked, the most that a controller takes; stop one that is not needed");
            return Err(Error::new(Kind::ResourceExhausted, "TOO_MANY_NODES", message));
        }
        Ok(())
    }
}

impl Shared {
    /// Whether a node may link now. Of two processes with one identity the one that is linked stays: the other is refused while
    /// the first gives a sign of life, and takes its place when it does not.
    pub(super) async fn may_link(&self, node: &NodeId, hello: &wire::Hello) -> Result<()> {
        let has_room = self.nodes().has_room_for(node);
        if let Err(error) = has_room {
            return Err(self.refused(node, error));
        }
        let linked = self.nodes().links.get(node).filter(|linked| linked.process() != hello.process).cloned();
        let Some(linked) = linked else { return Ok(()) };
        if linked.is_alive().await {
            return Err(self.refused(node, twin(node)));
        }
        tracing::warn!(node.id = %node, "the process that was linked is silent; another one of the node takes its place");
        linked.close();
        Ok(())
    }

    /// Remembers why a node was not linked.
    pub(super) fn refused(&self, node: &NodeId, error: Error) -> Error {
        let (reason, message) = (error.reason().to_owned(), error.message().to_owned());
        tracing::error!(node.id = %node, reason, why = message, "a node is not linked");
        let now = self.options.clock.now();
        let mut nodes = self.nodes();
        let status = nodes.statuses.get(node).cloned();
        let mut status = status.unwrap_or_else(|| NodeStatus {
            node: node.clone(),
            connected: false,
            started_at: UnixMillis(0),
            since: now,
            refusal: None,
        });
        status.refusal = Some(Refusal { reason, message, at: now });
        nodes.remember(status);
        error
    }
}
