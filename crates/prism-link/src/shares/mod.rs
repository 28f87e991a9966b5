//! How the nodes of an installation share a namespace's `max_rps`.
//!
//! Rates are in thousandths of an operation per second. `Q` is the quota, `L` is [`LEASE`].
//!
//! **A node** tells its demand every second, and before it opens the first session in a namespace. The answer is a share, and
//! what it may use alone. Counted from the moment at which it *sent* that demand, it uses
//!
//! - its share until `L`,
//! - the smaller of share and alone until `2L`,
//! - alone from then on: a node without a controller goes on.
//!
//! A namespace that it leaves out of a demand, as it has no sessions there, it serves nothing of from that moment, whatever
//! answers to earlier demands come after it.
//!
//! **The controller** keeps for each node what may be in force there: what the node said it serves by, and every share that was
//! sent since and whose lease runs. It gives a node no more than `Q` less what is in force or reserved for all the others. So a
//! share moves in two steps: one node confirms the smaller one, then another gets the larger. From the moment at which a node
//! is silent, what it may use alone is reserved for it too, until it can have no sessions any more, those included that were
//! terminated, or went on elsewhere, without its knowledge. A node that has taken over no answer on its link may begin with what
//! it has alone at any time, as nobody knows how old its lease is; that counts as in force until it has. As silence is noticed
//! well within `L`, and a share that was given before that is over when the silent node begins to use what it has alone, shares
//! in use never add up to more than `Q`. What nodes may use alone is given by the same rule: it adds up to no more than `Q`.
//!
//! A controller that starts does not know what the one before it gave to nodes that are not connected. While there are such
//! nodes, and for `L` at most, nobody gets more than it says it has. After that they use no more than what they may use alone:
//! all of `Q` that the connected nodes may not. So these share what they may use alone together, and nobody gets more of that.
//!
//! What a node says it has counts no further than it can prove: every answer to a demand has a seal that only the installation
//! can make, and the node shows its newest one before its first demand. One that lies gets, and reserves, what it was once given,
//! and nothing more. What it may have by a lease of the controller before is reserved until `L` after the start and no longer,
//! however often it connects again.
//!
//! A bucket lets a second's worth through at once, and a changed rate adds nothing to it ([`TokenBucket::set_share`]). So all
//! nodes together pass at most `Q·t + Q` operations in any time `t`: over 10 s, 1.1 times the quota, with or without partitions.
//!
//! [`TokenBucket::set_share`]: prism_core::rate::TokenBucket::set_share

mod ledger;
mod proof;
mod split;

use std::collections::BTreeMap;
use std::time::Duration;

use prism_core::NamespaceName;
use prism_core::control::Snapshot;
use tokio::time::Instant;

use crate::bounds::LEASE;

pub use ledger::Ledger;
pub use proof::{Proof, words};

/// Rates above this are not told apart, in operations per second.
const MAX_RATE: u64 = 1_000_000_000_000;

/// The quota of a namespace in thousandths of an operation per second; `None` = it has none.
pub fn quota_of(snapshot: &Snapshot, name: &NamespaceName) -> Option<u64> {
    let max_rps = u64::try_from(snapshot.namespaces.get(name)?.quota.max_rps).ok().filter(|max| *max > 0)?;
    Some(max_rps.min(MAX_RATE) * 1000)
}

/// The largest rate that a node may tell of: what it says is added up.
pub const MAX_MILLIS: u64 = MAX_RATE * 1000;

/// What a node would like to serve of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// What its clients asked for.
    pub wanted: u64,
    /// What it serves by now.
    pub held: u64,
    /// What it may serve when it is alone.
    pub alone: u64,
}

/// What a node may serve of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// While the lease runs.
    pub leased: u64,
    /// When it has long been without a controller.
    pub alone: u64,
}

/// The shares of a node, at the node.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// By namespace.
    pub by_namespace: BTreeMap<NamespaceName, Share>,
    /// When the demand that they answer was sent; `None` = before this process started.
    pub since: Option<Instant>,
}

impl Shares {
    /// What may be served at `now` in a process that started at `started`.
    pub fn in_force(&self, started: Instant, now: Instant) -> impl Iterator<Item = (&NamespaceName, u64)> {
        let age = self.age(started, now);
        self.by_namespace.iter().map(move |(name, share)| (name, in_force(*share, age)))
    }

    fn age(&self, started: Instant, now: Instant) -> Duration {
        match self.since {
            Some(since) => now.saturating_duration_since(since),
            // The lease is over: who knows how long ago it was given.
            None => LEASE.saturating_add(now.saturating_duration_since(started)),
        }
    }

    /// How long what is in force at `now` stays so; `None` = until there are others.
    pub fn lasts(&self, started: Instant, now: Instant) -> Option<Duration> {
        let age = self.age(started, now);
        [LEASE, LEASE * 2].into_iter().find(|end| age < *end).map(|end| end.saturating_sub(age))
    }
}

fn in_force(share: Share, age: Duration) -> u64 {
    if age < LEASE {
        share.leased
    } else if age < LEASE * 2 {
        share.leased.min(share.alone)
    } else {
        share.alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_ends_with_its_lease_and_what_is_alone_begins_after_another() {
        let share = Share { leased: 10, alone: 30 };
        let at = |seconds| in_force(share, Duration::from_secs(seconds));
        assert_eq!([at(0), at(9), at(10), at(19), at(20), at(9999)], [10, 10, 10, 10, 30, 30]);
        let large = Share { leased: 90, alone: 30 };
        assert_eq!(in_force(large, LEASE), 30);
    }

    #[test]
    fn what_is_in_force_lasts_to_the_end_of_its_lease() {
        let now = Instant::now();
        let shares = Shares { since: Some(now), ..Shares::default() };
        assert_eq!(shares.lasts(now, now + LEASE / 2), Some(LEASE / 2));
        assert_eq!(shares.lasts(now, now + LEASE), Some(LEASE));
        assert_eq!(shares.lasts(now, now + LEASE * 2), None);
        assert_eq!(Shares::default().lasts(now, now), Some(LEASE));
    }

    #[test]
    fn shares_from_before_a_start_are_over() {
        let started = Instant::now();
        let name = NamespaceName::parse("n", "a").unwrap();
        let by_namespace = [(name, Share { leased: 90, alone: 30 })].into();
        let shares = Shares { by_namespace, since: None };
        assert_eq!(shares.in_force(started, started).map(|(_, rate)| rate).collect::<Vec<_>>(), [30]);
    }
}
