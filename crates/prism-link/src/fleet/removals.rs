//! Data of namespaces that are gone for good. What a node has still to remove is in the control state until the node says that it
//! is done: a node is never told to remove what somebody has merely not heard of.

use std::sync::Arc;

use futures::StreamExt as _;
use prism_core::control::Removal;
use prism_core::nodes::Reached;
use prism_core::{NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use wire::command::Command;
use wire::command_answer::Result as Answered;

use super::Shared;
use super::link::Link;
use crate::bounds::{COMMAND_TIMEOUT, REMOVALS_AT_ONCE};

impl Shared {
    /// Has all nodes remove the data of a namespace that have still to. Who is away or cannot is named.
    pub(super) async fn remove(&self, namespace: &NamespaceName) -> Result<Reached<()>> {
        let due = self.options.control.removals(namespace).await?;
        let links = self.nodes().links.clone();
        let of_nodes = due.into_iter().map(|(node, removal)| {
            let link = links.get(&node).cloned();
            async move {
                let done = match link {
                    Some(link) => self.remove_on(&link, &[removal]).await,
                    None => false,
                };
                (!done).then_some(node)
            }
        });
        let unreachable: Vec<Option<NodeId>> =
            futures::stream::iter(of_nodes).buffered(REMOVALS_AT_ONCE).collect().await;
        Ok(Reached { answer: (), unreachable: unreachable.into_iter().flatten().collect() })
    }

    /// Begins to have each node that is linked remove what it has still to. Nobody waits for it: a node may take long.
    pub(super) fn remove_what_is_left(self: &Arc<Self>) {
        let links: Vec<Arc<Link>> = self.nodes().links.values().cloned().collect();
        for link in links {
            self.remove_missed(link);
        }
    }

    /// The same for the node of one link, unless it is at it already.
    pub(super) fn remove_missed(self: &Arc<Self>, link: Arc<Link>) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_turn) = link.removing.try_lock() else { return };
            match shared.options.control.removals_of(link.node()).await {
                Ok(removals) => _ = shared.remove_on(&link, &removals).await,
                Err(error) => {
                    tracing::warn!(node.id = %link.node(), %error, "it could not be looked what a node has still to remove");
                }
            }
        });
    }

    /// One after the other; `false` when something is left.
    async fn remove_on(&self, link: &Link, removals: &[Removal]) -> bool {
        for removal in removals {
            let node = link.node();
            let command = wire::RemoveNamespaceCommand {
                namespace: removal.namespace.to_string(),
                generation: Some(removal.generation),
            };
            match link.command(Command::RemoveNamespace(command), COMMAND_TIMEOUT).await {
                Ok(Ok(Answered::Done(_))) => {}
                Ok(answer) => {
                    tracing::warn!(node.id = %node, namespace = %removal.namespace, answer = ?answer.err(), "a node has not removed the data of a deleted namespace");
                    return false;
                }
                Err(_) => return false,
            }
            if let Err(error) = self.options.control.removed(node, removal).await {
                tracing::warn!(node.id = %node, %error, "it is not written down that a node has removed the data of a namespace");
                return false;
            }
            tracing::info!(node.id = %node, namespace = %removal.namespace, "a node has no data of a deleted namespace any more");
        }
        true
    }
}
