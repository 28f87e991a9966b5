//! A node's demand, and the shares that answer it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use prism_core::{NamespaceName, Result};
use prism_proto::cluster::v1 as wire;
use tokio::time::{Instant, MissedTickBehavior};
use wire::node_frame::Frame;

use super::Shared;
use super::connection::Link;
use crate::bounds::{DEMAND_EVERY, LEASE, MAX_GRANTS};
use crate::convert::{bad, bounded};
use crate::shares::{Share, Wish, quota_of};

/// What a namespace in which a first session opens is wished: one operation a second.
const OPENING_WISH: u64 = 1000;

/// Demands that were sent and not answered yet.
#[derive(Default)]
pub struct Open {
    sent: BTreeMap<u64, Instant>,
    next: u64,
    serves_by: u64,
    /// The namespaces of the newest one, and since which one they were in each.
    wished: BTreeMap<NamespaceName, u64>,
}

/// Tells the demand every second, and when there is reason to.
pub async fn tell(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(DEMAND_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut meter = Meter::default();
    loop {
        let lasts = shared.memory().shares().lasts(shared.started, Instant::now());
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            () = shared.demand.notified() => {}
            // A lease ends when it ends, not with the next tick.
            () = tokio::time::sleep(lasts.unwrap_or(LEASE)) => {
                shared.apply_shares();
                continue;
            }
        }
        if let Some(node) = shared.attached_now() {
            meter.read(&node.demand(), Instant::now());
        }
        let link = shared.link.get();
        if let Some(link) = link {
            let proof = if link.demands().is_first() { shared.memory().state.proof.clone() } else { None };
            let demand = shared.next_demand(&link, &meter.rates);
            if let Some(proof) = proof {
                link.send(Frame::Proof(proof)).await;
            }
            link.send(Frame::Demand(demand)).await;
        }
        // Leases end by time.
        shared.apply_shares();
    }
}

/// Rates from numbers that grow.
#[derive(Default)]
struct Meter {
    read_at: Option<Instant>,
    asked: BTreeMap<NamespaceName, u64>,
    rates: BTreeMap<NamespaceName, u64>,
}

impl Meter {
    fn read(&mut self, demand: &[prism_core::control::NamespaceDemand], now: Instant) {
        let elapsed = self.read_at.map_or(DEMAND_EVERY, |at| now.saturating_duration_since(at));
        let complete = elapsed >= DEMAND_EVERY / 2;
        let mut rates = BTreeMap::new();
        for wish in demand {
            let name = &wish.namespace;
            let rate = match (self.rates.get(name), self.asked.get(name)) {
                // Too short a time to tell; the rate before stands.
                (Some(rate), Some(_)) if !complete => *rate,
                (_, Some(before)) => {
                    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
                    wish.asked.saturating_sub(*before).saturating_mul(1_000_000) / millis
                }
                _ => OPENING_WISH,
            };
            rates.insert(name.clone(), rate);
        }
        if complete {
            self.read_at = Some(now);
            self.asked = demand.iter().map(|wish| (wish.namespace.clone(), wish.asked)).collect();
        } else {
            for wish in demand {
                self.asked.entry(wish.namespace.clone()).or_insert(wish.asked);
            }
        }
        self.rates = rates;
    }
}

impl Shared {
    fn next_demand(&self, link: &Link, rates: &BTreeMap<NamespaceName, u64>) -> wire::Demand {
        let now = Instant::now();
        let snapshot = Arc::clone(&self.snapshot.borrow());
        let mut memory = self.memory();
        memory.opening.retain(|_, since| now.saturating_duration_since(*since) < super::memory::OPENING);
        let shares = memory.shares();
        let held: BTreeMap<NamespaceName, u64> =
            shares.in_force(self.started, now).map(|(name, rate)| (name.clone(), rate)).collect();
        let mut wishes: BTreeMap<NamespaceName, Wish> = BTreeMap::new();
        let wanted = rates.iter().map(|(name, rate)| (name, *rate));
        for (name, wanted) in memory.opening.keys().map(|name| (name, OPENING_WISH)).chain(wanted) {
            if quota_of(&snapshot, name).is_some() && wishes.len() < MAX_GRANTS {
                let held = held.get(name).copied().unwrap_or(0);
                let alone = shares.by_namespace.get(name).map_or(0, |share| share.alone);
                wishes.insert(name.clone(), Wish { wanted, held, alone });
            }
        }
        // Nothing is served of what is not in the demand.
        let dropped: Vec<_> = memory.state.shares.keys().filter(|name| !wishes.contains_key(*name)).cloned().collect();
        for name in &dropped {
            memory.state.shares.remove(name);
        }
        drop(memory);
        if let Some(node) = self.attached_now() {
            for name in &dropped {
                node.share(name, 0);
            }
        }
        let (sequence, serves_by) = link.demands().send(now, wishes.keys().cloned().collect());
        let entry = |(name, wish): (&NamespaceName, &Wish)| wire::NamespaceDemand {
            namespace: name.to_string(),
            wanted_millis: wish.wanted,
            held_millis: wish.held,
            alone_millis: wish.alone,
        };
        wire::Demand { sequence, serves_by, namespaces: wishes.iter().map(entry).collect() }
    }

    /// Serves by the answer to a demand.
    pub(super) fn take_shares(&self, link: &Link, shares: wire::Shares) -> Result<()> {
        let Some((since, wished)) = link.demands().answered(shares.sequence) else { return Ok(()) };
        let proof = shares.clone();
        let share = |share: wire::NamespaceShare| {
            let name = NamespaceName::try_from(share.namespace).map_err(bad)?;
            Ok((name, Share { leased: share.millis, alone: share.alone_millis }))
        };
        let namespaces = bounded("namespaces", shares.namespaces, MAX_GRANTS)?;
        let mut by_namespace = namespaces.into_iter().map(share).collect::<Result<BTreeMap<_, _>>>()?;
        // A newer demand has given up the others, even if one after it names them again.
        by_namespace.retain(|name, _| wished.contains(name));
        {
            let mut memory = self.memory();
            if memory.state.shares != by_namespace {
                memory.state.shares = by_namespace;
                self.keeper.change();
            }
            memory.state.proof = Some(proof);
            memory.shares_since = Some(since);
        }
        self.apply_shares();
        self.shares_taken.set(());
        Ok(())
    }
}

/// The demands of one connection.
#[derive(Default)]
pub struct Demands(Mutex<Open>);

impl Demands {
    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether none was sent yet.
    fn is_first(&self) -> bool {
        self.lock().next == 0
    }

    /// Numbers a demand that is sent now; returns its number and that of the answer which is in force.
    fn send(&self, now: Instant, wished: BTreeSet<NamespaceName>) -> (u64, u64) {
        let mut open = self.lock();
        open.next += 1;
        let sequence = open.next;
        let before = std::mem::take(&mut open.wished);
        let since = |name: &NamespaceName| before.get(name).copied().unwrap_or(sequence);
        open.wished = wished.into_iter().map(|name| (name.clone(), since(&name))).collect();
        open.sent.insert(sequence, now);
        (sequence, open.serves_by)
    }

    /// When the demand was sent that is answered now, and the namespaces that were in it and in all since; `None` when a newer one
    /// was answered before.
    fn answered(&self, sequence: u64) -> Option<(Instant, BTreeSet<NamespaceName>)> {
        let mut open = self.lock();
        let sent = open.sent.remove(&sequence)?;
        open.sent = open.sent.split_off(&sequence);
        open.serves_by = sequence;
        let wished = open.wished.iter().filter(|(_, since)| **since <= sequence).map(|(name, _)| name.clone());
        Some((sent, wished.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_before_a_namespace_was_given_up_gives_nothing_of_it_any_more() {
        let (demands, now) = (Demands::default(), Instant::now());
        let names = |names: &[&str]| -> BTreeSet<NamespaceName> {
            names.iter().map(|name| NamespaceName::parse("n", name).unwrap()).collect()
        };
        demands.send(now, names(&["a", "b"]));
        demands.send(now, names(&["a", "b"]));
        // The controller may have given what b had to others since.
        demands.send(now, names(&["a"]));
        demands.send(now, names(&["a", "b"]));
        assert_eq!(demands.answered(2).unwrap().1, names(&["a"]));
        assert!(demands.answered(1).is_none(), "a newer one was answered before");
        assert_eq!(demands.answered(4).unwrap().1, names(&["a", "b"]));
    }
}
