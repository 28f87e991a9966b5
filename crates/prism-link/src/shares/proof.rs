//! What a node can show that it was given.

use std::collections::BTreeMap;

use prism_core::control::ClusterState;
use prism_core::{NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prost::Message as _;

use super::{MAX_MILLIS, Share, Wish};
use crate::bounds::MAX_GRANTS;
use crate::convert::{bad, bounded};

/// What the seal of shares for `node` is about.
pub fn words(node: &NodeId, shares: &wire::Shares) -> Vec<u8> {
    let said = wire::Shares { seal: bytes::Bytes::new(), ..shares.clone() };
    let mut words = format!("prism shares v1 {node} ").into_bytes();
    words.extend(said.encode_to_vec());
    words
}

/// The shares that a node has shown, by namespace.
#[derive(Debug, Default)]
pub struct Proof(BTreeMap<NamespaceName, Share>);

impl Proof {
    /// Takes shares that `node` shows, if this installation has given them to it.
    pub fn of(node: &NodeId, shares: wire::Shares, control: &dyn ClusterState) -> Result<Self> {
        if !control.has_sealed(&words(node, &shares), &shares.seal) {
            tracing::warn!(node.id = %node, "a node shows shares that it was not given here; they count for nothing");
            return Ok(Self::default());
        }
        let share = |share: wire::NamespaceShare| {
            let name = NamespaceName::try_from(share.namespace).map_err(bad)?;
            Ok((name, Share { leased: share.millis.min(MAX_MILLIS), alone: share.alone_millis.min(MAX_MILLIS) }))
        };
        let shares = bounded("namespaces", shares.namespaces, MAX_GRANTS)?;
        Ok(Self(shares.into_iter().map(share).collect::<Result<_>>()?))
    }

    /// A wish without more in force than was given.
    pub fn bound(&self, name: &NamespaceName, wish: Wish) -> Wish {
        let given = self.0.get(name).copied().unwrap_or_default();
        Wish { held: wish.held.min(given.leased.max(given.alone)), alone: wish.alone.min(given.alone), ..wish }
    }
}
