//! What the controller knows of shares in force; the rule is that of the module above.

use std::collections::{BTreeMap, BTreeSet};

use prism_core::control::Snapshot;
use prism_core::{NamespaceName, NodeId};
use tokio::time::Instant;

use super::split::split;
use super::{Share, Wish, quota_of};
use crate::bounds::{LEASE, SILENCE};

/// A share that was sent and not confirmed yet.
#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u64,
    share: Share,
    at: Instant,
}

/// What a node may serve of one namespace, as far as the controller can tell.
#[derive(Clone, Debug)]
struct Holding {
    wanted: u64,
    /// What the node said it serves by.
    confirmed: Share,
    confirmed_at: Instant,
    /// Newer ones, in order.
    sent: Vec<Sent>,
    /// It has taken over an answer on the link that is open. Until then nobody knows how old its lease is.
    settled: bool,
}

impl Holding {
    /// The most that the node may serve by while it is connected.
    fn leased(&self, now: Instant) -> u64 {
        let runs = |at: &Instant| now.saturating_duration_since(*at) < LEASE;
        let confirmed = Some(self.confirmed.leased).filter(|_| runs(&self.confirmed_at));
        let sent = self.sent.iter().filter(|sent| runs(&sent.at)).map(|sent| sent.share.leased);
        sent.chain(confirmed).max().unwrap_or(0)
    }

    /// The most that the node may serve by while it is connected, or soon after: before it has taken over an answer it may begin
    /// with what it has alone at any time.
    fn in_force(&self, now: Instant) -> u64 {
        let leased = self.leased(now);
        if self.settled { leased } else { leased.max(self.alone()) }
    }

    /// How much of `held` may be in force by a lease that runs, and since when the newest of those runs that allow it.
    fn lease(&self, held: u64, now: Instant) -> (u64, Instant) {
        let held = held.min(self.leased(now));
        let sent = self.sent.iter().filter(|sent| sent.share.leased >= held).map(|sent| sent.at);
        let confirmed = Some(self.confirmed_at).filter(|_| self.confirmed.leased >= held);
        (held, sent.chain(confirmed).max().unwrap_or(self.confirmed_at))
    }

    /// The most that the node may serve by when it has long been alone.
    fn alone(&self) -> u64 {
        self.sent.iter().map(|sent| sent.share.alone).fold(self.confirmed.alone, u64::max)
    }
}

#[derive(Clone, Debug, Default)]
struct Member {
    /// It has told its demand on the link that is open now.
    connected: bool,
    /// It has been connected to this controller; when it last told its demand.
    known: Option<Instant>,
    holdings: BTreeMap<NamespaceName, Holding>,
}

impl Member {
    /// Whether it tells its demand. One that is slow to is as good as silent: nobody knows how far its lease is.
    fn is_present(&self, now: Instant) -> bool {
        self.connected && self.known.is_some_and(|heard| now.saturating_duration_since(heard) < SILENCE)
    }
}

/// What is in force at which node.
#[derive(Debug)]
pub struct Ledger {
    members: BTreeMap<NodeId, Member>,
    started: Instant,
}

impl Ledger {
    /// Of a controller that starts now, when `nodes` have sessions.
    pub fn new(nodes: impl IntoIterator<Item = NodeId>, now: Instant) -> Self {
        let members = nodes.into_iter().map(|node| (node, Member::default())).collect();
        Self { members, started: now }
    }

    /// A node is silent: what it holds stays reserved.
    pub fn silent(&mut self, node: &NodeId) {
        if let Some(member) = self.members.get_mut(node) {
            member.connected = false;
        }
    }

    /// Forgets nodes that are not connected and are not among those that may have sessions.
    pub fn forget(&mut self, with_sessions: &BTreeSet<NodeId>) {
        self.members.retain(|node, member| member.connected || with_sessions.contains(node));
    }

    /// The nodes that share.
    pub fn members(&self) -> impl Iterator<Item = &NodeId> {
        self.members.keys()
    }

    /// Answers a demand: `serves_by` is the newest answer that the node has taken over, `sequence` the number of this one.
    /// Namespaces without a quota get no share.
    pub fn demand(
        &mut self,
        node: &NodeId,
        (sequence, serves_by): (u64, u64),
        wishes: &BTreeMap<NamespaceName, Wish>,
        snapshot: &Snapshot,
        now: Instant,
    ) -> BTreeMap<NamespaceName, Share> {
        self.confirm(node, serves_by, wishes, snapshot, now);
        let quotas = wishes.keys().filter_map(|name| Some((name.clone(), quota_of(snapshot, name)?)));
        let quotas: Vec<_> = quotas.collect();
        let mut answer = BTreeMap::new();
        for (name, quota) in quotas {
            let share = self.share_of(node, &name, quota, now);
            if let Some(holding) = self.members.get_mut(node).and_then(|member| member.holdings.get_mut(&name)) {
                holding.sent.push(Sent { sequence, share, at: now });
            }
            answer.insert(name, share);
        }
        answer
    }

    /// What a node that is in this process serves by from now on: an answer that is in force as it is given.
    pub fn settle(&mut self, node: &NodeId, shares: &BTreeMap<NamespaceName, Share>, now: Instant) {
        let Some(member) = self.members.get_mut(node) else { return };
        for (name, holding) in &mut member.holdings {
            if let Some(share) = shares.get(name) {
                (holding.confirmed, holding.confirmed_at) = (*share, now);
                holding.sent.clear();
                holding.settled = true;
            }
        }
    }

    fn confirm(
        &mut self,
        node: &NodeId,
        serves_by: u64,
        wishes: &BTreeMap<NamespaceName, Wish>,
        snapshot: &Snapshot,
        now: Instant,
    ) {
        let started = self.started;
        let member = self.members.entry(node.clone()).or_default();
        let first = !std::mem::replace(&mut member.connected, true);
        let known = member.known.is_some();
        member.known = Some(now);
        // It serves nothing of what it does not name.
        member.holdings.retain(|name, _| wishes.contains_key(name));
        for (name, wish) in wishes {
            let holding = member.holdings.entry(name.clone()).or_insert_with(|| Holding {
                wanted: 0,
                confirmed: Share::default(),
                confirmed_at: now,
                sent: Vec::new(),
                settled: true,
            });
            holding.wanted = wish.wanted;
            if first {
                // What was sent over an earlier link is in force, or it never will be.
                // More than it was ever sent it cannot hold, nor more than there is.
                let quota = quota_of(snapshot, name).unwrap_or(0);
                let alone = wish.alone.min(quota);
                let alone = if known { holding.alone() } else { alone };
                // A lease runs from when it was given: a node that says it again does not make it longer.
                let held = wish.held.min(quota);
                let (leased, since) = if known { holding.lease(held, now) } else { (held, started) };
                let leased = if now.saturating_duration_since(since) < LEASE { leased } else { 0 };
                holding.confirmed = Share { leased: leased.max(held.min(alone)), alone };
                holding.confirmed_at = if leased > alone { since } else { now };
                holding.sent.clear();
                holding.settled = false;
            } else if let Some(at) = holding.sent.iter().position(|sent| sent.sequence == serves_by) {
                let confirmed = holding.sent[at];
                (holding.confirmed, holding.confirmed_at) = (confirmed.share, confirmed.at);
                holding.sent.drain(..=at);
                holding.settled = true;
            }
            holding.sent.retain(|sent| now.saturating_duration_since(sent.at) < LEASE);
        }
    }

    fn share_of(&self, node: &NodeId, name: &NamespaceName, quota: u64, now: Instant) -> Share {
        let mut seen = Seen::default();
        let mut wanted = Vec::new();
        let mut own = (0, Share::default());
        for (other, member) in &self.members {
            let holding = member.holdings.get(name);
            match (member.is_present(now), holding) {
                (true, Some(holding)) => {
                    seen.present_alone += holding.alone();
                    if other == node {
                        own = (wanted.len(), holding.confirmed);
                    } else {
                        seen.in_force += holding.in_force(now);
                        seen.others_alone += holding.alone();
                    }
                    wanted.push(holding.wanted);
                }
                (false, Some(holding)) => {
                    seen.absent += holding.leased(now).max(holding.alone());
                    seen.absent_alone += holding.alone();
                    seen.others_alone += holding.alone();
                }
                (_, None) => seen.unknown |= member.known.is_none(),
            }
        }
        let mut free = quota.saturating_sub(seen.absent);
        let mut alone = (quota / self.members.len().max(1) as u64).min(quota.saturating_sub(seen.others_alone));
        if seen.unknown {
            // Those that nothing is known of may use all that the others may not.
            free = free.min(seen.present_alone.saturating_sub(seen.absent - seen.absent_alone));
            alone = alone.min(own.1.alone);
        }
        let target = split(free, &wanted).get(own.0).copied().unwrap_or(0);
        let mut leased = target.min(free.saturating_sub(seen.in_force));
        if seen.unknown && now.saturating_duration_since(self.started) < LEASE {
            leased = leased.min(own.1.leased);
        }
        Share { leased, alone }
    }
}

/// What is in force at all nodes in one namespace; at most a few times the quota, which is far from what a number holds.
#[derive(Default)]
struct Seen {
    /// Leased to other nodes that are connected.
    in_force: u64,
    /// Reserved for known nodes that are not, and how much of it they may use alone.
    absent: u64,
    absent_alone: u64,
    /// What connected nodes may use alone, the one that asks included; and what all known others may.
    present_alone: u64,
    others_alone: u64,
    /// There are nodes of which nothing is known.
    unknown: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use prism_core::control::{Namespace, Quota};

    use super::*;

    const Q: u64 = 100_000;

    fn name() -> NamespaceName {
        NamespaceName::parse("n", "a").unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse("n", name).unwrap()
    }

    fn snapshot() -> Snapshot {
        let quota = Quota { max_rps: 100, ..Quota::default() };
        let namespace =
            Namespace { name: name(), status: prism_core::control::NamespaceStatus::Active, quota, generation: 1 };
        Snapshot { namespaces: [(name(), Arc::new(namespace))].into(), ..Snapshot::default() }
    }

    struct World {
        ledger: Ledger,
        now: Instant,
        sequence: u64,
    }

    impl World {
        fn new(nodes: &[&str]) -> Self {
            let now = Instant::now();
            Self { ledger: Ledger::new(nodes.iter().map(|name| node(name)), now), now, sequence: 0 }
        }

        fn ask(&mut self, who: &str, wanted: u64, held: u64) -> Share {
            let serves_by = self.sequence;
            self.sequence += 1;
            let wishes = [(name(), Wish { wanted, held, alone: 0 })].into();
            self.ledger.demand(&node(who), (self.sequence, serves_by), &wishes, &snapshot(), self.now)[&name()]
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn one_node_has_all() {
        let mut world = World::new(&[]);
        assert_eq!(world.ask("a", 0, 0), Share { leased: Q, alone: Q });
    }

    #[test]
    fn a_share_moves_when_the_smaller_one_is_confirmed() {
        let mut world = World::new(&[]);
        let all = world.ask("a", Q, 0);
        assert_eq!(all.leased, Q);
        // Nothing is free until the first node has confirmed less.
        assert_eq!(world.ask("b", Q, 0).leased, 0);
        let wishes = [(name(), Wish { wanted: Q, held: Q, alone: Q })].into();
        let less = world.ledger.demand(&node("a"), (10, 1), &wishes, &snapshot(), world.now)[&name()];
        assert_eq!(less.leased, Q / 2);
        assert_eq!(world.ask("b", Q, 0).leased, 0);
        world.ledger.demand(&node("a"), (11, 10), &wishes, &snapshot(), world.now);
        assert_eq!(world.ask("b", Q, 0).leased, Q / 2);
    }

    #[test]
    fn a_silent_node_keeps_what_it_may_serve_by() {
        let mut world = World::new(&[]);
        world.ask("a", Q, 0);
        world.ledger.silent(&node("a"));
        assert_eq!(world.ask("b", Q, 0).leased, 0, "it may still use all");
        world.pass(10);
        // It was told that it may use all when it is alone.
        assert_eq!(world.ask("b", Q, 0).leased, 0);
        world.ledger.forget(&BTreeSet::new());
        assert_eq!(world.ask("b", Q, 0).leased, Q);
    }

    #[test]
    fn who_has_not_taken_over_an_answer_may_begin_with_what_it_has_alone() {
        let mut world = World::new(&["a", "b"]);
        let ask = |world: &mut World, who: &str, serves_by: u64, wish: Wish| {
            world.sequence += 1;
            let numbers = (world.sequence, serves_by);
            world.ledger.demand(&node(who), numbers, &[(name(), wish)].into(), &snapshot(), world.now)[&name()]
        };
        // Its lease is of the controller before, and ends at a time that only b knows; the answer may never reach it.
        let quiet = Wish { wanted: 0, held: 2000, alone: 40_000 };
        ask(&mut world, "b", 0, quiet);
        let busy = Wish { wanted: Q, held: 40_000, alone: 40_000 };
        for _ in 0..2 {
            world.pass(1);
            let serves_by = world.sequence;
            assert!(ask(&mut world, "a", serves_by, busy).leased <= Q - 40_000, "{:?}", world.ledger);
        }
        // It goes on with the answer: 2L from now at the earliest it has what it has alone.
        let answered = 1;
        ask(&mut world, "b", answered, quiet);
        let serves_by = world.sequence - 1;
        assert!(ask(&mut world, "a", serves_by, busy).leased > Q - 40_000, "{:?}", world.ledger);
    }

    #[test]
    fn who_says_again_what_it_had_does_not_have_it_longer() {
        let mut world = World::new(&["a", "liar"]);
        let claim = |world: &mut World| {
            world.sequence += 1;
            let wishes = [(name(), Wish { wanted: Q, held: Q, alone: 0 })].into();
            let numbers = (world.sequence, 0);
            world.ledger.demand(&node("liar"), numbers, &wishes, &snapshot(), world.now)[&name()]
        };
        for _ in 0..9 {
            world.pass(1);
            claim(&mut world);
            assert_eq!(world.ask("a", Q, 0).leased, 0, "it may have had all of it from the controller before");
            world.ledger.silent(&node("liar"));
        }
        // Later than that no lease of the controller before can be in force, whatever is said, and however often.
        for _ in 0..10 {
            world.pass(1);
            claim(&mut world);
            world.ledger.silent(&node("liar"));
        }
        assert!(world.ask("a", Q, 0).leased >= Q / 2, "{:?}", world.ledger);
    }

    #[test]
    fn a_controller_that_starts_reserves_for_those_it_does_not_know() {
        let mut world = World::new(&["a", "b"]);
        let ask = |world: &mut World| {
            world.pass(1);
            world.sequence += 1;
            let wishes = [(name(), Wish { wanted: Q, held: 30_000, alone: 40_000 })].into();
            let numbers = (world.sequence, world.sequence - 1);
            world.ledger.demand(&node("a"), numbers, &wishes, &snapshot(), world.now)[&name()]
        };
        assert_eq!(ask(&mut world), Share { leased: 30_000, alone: 40_000 }, "b may have the rest");
        for _ in 0..10 {
            ask(&mut world);
        }
        assert_eq!(ask(&mut world).leased, 40_000, "b may use what a may not");
        world.ledger.forget(&BTreeSet::new());
        for _ in 0..2 {
            ask(&mut world);
        }
        assert_eq!(ask(&mut world), Share { leased: Q, alone: Q });
    }
}
