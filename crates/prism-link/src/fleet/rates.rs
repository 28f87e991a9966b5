//! Shares of rates: what the ledger says to nodes on links, and to the data plane of this process.

use std::collections::BTreeMap;
use std::sync::Arc;

use prism_core::{NamespaceName, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use crate::bounds::{DEMAND_EVERY, LEASE, MAX_GRANTS, MEMBERS_EVERY};
use crate::convert::{bad, bounded};
use crate::shares::{MAX_MILLIS, Proof, Share, Wish, quota_of, words};

/// Looks after what changes with time: who shares, and what the data plane of this process may use.
pub async fn tend(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(DEMAND_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    let mut local = LocalMeter::default();
    loop {
        ticks.tick().await;
        if looked.elapsed() >= MEMBERS_EVERY {
            shared.look_for_members().await;
            looked = Instant::now();
        }
        shared.demand_of_local(&mut local);
    }
}

/// What the data plane of this process was asked, to tell rates from.
#[derive(Default)]
struct LocalMeter {
    asked: BTreeMap<NamespaceName, u64>,
    sequence: u64,
}

impl Shared {
    /// Learns which nodes have sessions. One that has none and is not connected has nothing to share, and nothing to be told.
    async fn look_for_members(&self) {
        let control = &self.options.control;
        let looks = tokio::try_join!(control.serving_nodes(), control.sharing_nodes(), control.joined_nodes());
        let (serving, sharing, joined) = match looks {
            Ok((serving, sharing, joined)) => (serving.into_iter().collect(), sharing.into_iter().collect(), joined),
            Err(error) => {
                tracing::warn!(%error, "it could not be looked which nodes have sessions");
                return;
            }
        };
        self.ledger().forget(&sharing);
        self.nodes().take_over(serving, joined);
        self.share_with_local();
    }

    /// Whether the data plane of this process has somebody to share with.
    pub(super) fn share_with_local(&self) {
        let Some((local, node)) = self.local() else { return };
        let others = {
            let nodes = self.nodes();
            !nodes.links.is_empty() || self.ledger().members().any(|member| *member != local)
        };
        node.share_rates(others);
    }

    fn demand_of_local(&self, meter: &mut LocalMeter) {
        let Some((local, node)) = self.local() else { return };
        let snapshot = Arc::clone(&self.options.control.snapshot().borrow());
        let now = Instant::now();
        let mut wishes = BTreeMap::new();
        let mut asked = BTreeMap::new();
        for demand in node.demand() {
            if quota_of(&snapshot, &demand.namespace).is_none() {
                continue;
            }
            let before = meter.asked.get(&demand.namespace).copied().unwrap_or(demand.asked);
            let wanted = demand.asked.saturating_sub(before).saturating_mul(1000);
            asked.insert(demand.namespace.clone(), demand.asked);
            wishes.insert(demand.namespace, Wish { wanted, ..Wish::default() });
        }
        meter.asked = asked;
        meter.sequence += 1;
        self.settle_local(&local, &*node, &wishes, meter.sequence, now);
    }

    /// Gives the data plane of this process its shares, which are in force at once.
    fn settle_local(
        &self,
        local: &NodeId,
        node: &dyn prism_core::control::DataNode,
        wishes: &BTreeMap<NamespaceName, Wish>,
        sequence: u64,
        now: Instant,
    ) {
        let snapshot = Arc::clone(&self.options.control.snapshot().borrow());
        let shares = {
            let mut ledger = self.ledger();
            let shares = ledger.demand(local, (sequence, 0), wishes, &snapshot, now);
            ledger.settle(local, &shares, now);
            shares
        };
        for (name, share) in shares {
            node.share(&name, share.leased);
        }
    }

    /// The answer to a demand.
    pub(super) fn shares_of(&self, node: &NodeId, proof: &Proof, demand: wire::Demand) -> Result<wire::Shares> {
        let mut wishes = BTreeMap::new();
        for wish in bounded("namespaces", demand.namespaces, MAX_GRANTS)? {
            let name = NamespaceName::try_from(wish.namespace).map_err(bad)?;
            let wish = Wish {
                wanted: wish.wanted_millis.min(MAX_MILLIS),
                held: wish.held_millis.min(MAX_MILLIS),
                alone: wish.alone_millis.min(MAX_MILLIS),
            };
            let wish = proof.bound(&name, wish);
            wishes.insert(name, wish);
        }
        let snapshot = Arc::clone(&self.options.control.snapshot().borrow());
        let now = Instant::now();
        let shares = self.ledger().demand(node, (demand.sequence, demand.serves_by), &wishes, &snapshot, now);
        let entry = |(name, share): (&NamespaceName, &Share)| wire::NamespaceShare {
            namespace: name.to_string(),
            millis: share.leased,
            alone_millis: share.alone,
        };
        let mut shares = wire::Shares {
            sequence: demand.sequence,
            namespaces: shares.iter().map(entry).collect(),
            lease_ms: i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX),
            seal: bytes::Bytes::new(),
        };
        shares.seal = self.options.control.seal(&words(node, &shares)).into();
        Ok(shares)
    }
}
