//! Data of namespaces that are gone for good. What a node has still to remove is in the control state until the node says that it
//! is done: a node is never told to remove what somebody has merely not heard of.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;
use prism_core::control::Removal;
use prism_core::nodes::Reached;
use prism_core::{NodeId, Result};
use prism_proto::cluster::v1 as wire;
use wire::command::Command;
use wire::command_answer::Result as Answered;

use super::Shared;
use super::link::Link;
use crate::bounds::{COMMAND_TIMEOUT, REMOVALS_AT_ONCE};

impl Shared {
    /// Has all nodes remove what they have still to, as far as it is `wanted`. Who is away or cannot is named.
    pub(super) async fn remove(&self, wanted: impl Fn(&Removal) -> bool) -> Result<Reached<()>> {
        let mut due: BTreeMap<NodeId, Vec<Removal>> = BTreeMap::new();
        for (node, removal) in self.options.control.removals().await? {
            if wanted(&removal) {
                due.entry(node).or_default().push(removal);
            }
        }
        let links = self.nodes().links.clone();
        let of_nodes = due.into_iter().map(|(node, removals)| {
            let link = links.get(&node).cloned();
            async move {
                let done = match link {
                    Some(link) => self.remove_on(&link, &removals).await,
                    None => false,
                };
                (!done).then_some(node)
            }
        });
        let unreachable: Vec<Option<NodeId>> =
            futures::stream::iter(of_nodes).buffered(REMOVALS_AT_ONCE).collect().await;
        Ok(Reached { answer: (), unreachable: unreachable.into_iter().flatten().collect() })
    }

    /// The same for the node of a link that has just come up.
    pub(super) async fn remove_missed(&self, link: &Arc<Link>) -> Result<()> {
        let removals = self.options.control.removals().await?.into_iter();
        let of_node: Vec<Removal> =
            removals.filter(|(node, _)| node == link.node()).map(|(_, removal)| removal).collect();
        self.remove_on(link, &of_node).await;
        Ok(())
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
