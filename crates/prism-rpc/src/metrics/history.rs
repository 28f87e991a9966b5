//! What happened in the last hour: the change of every group's buckets, by second for two minutes and by ten seconds for an
//! hour. Only changes are kept, so that idle namespaces cost nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use prism_core::control::RequestFigures;

use super::buckets::Buckets;

/// Number of a group of series.
pub(super) type GroupId = u32;

const SECONDS_KEPT: usize = 120;
const MERGED: usize = 10;
const MERGES_KEPT: usize = 360;
/// Longest window that is answered from the seconds.
const FINE: Duration = Duration::from_secs(SECONDS_KEPT as u64);

/// Bucket number and count, for what is not zero.
type Sparse = Box<[(u8, u64)]>;

struct Span {
    start: Instant,
    end: Instant,
    changes: HashMap<GroupId, Sparse>,
}

/// The spans of the last hour.
pub(super) struct History {
    /// Sums at the end of the last second.
    last: HashMap<GroupId, Buckets>,
    last_at: Instant,
    seconds: VecDeque<Span>,
    /// How many of the newest seconds are in no merge yet.
    unmerged: usize,
    merges: VecDeque<Span>,
}

/// What a window holds.
pub(super) struct Recent {
    /// Counts of each group that had any.
    pub(super) groups: HashMap<GroupId, Buckets>,
    /// How much time they cover.
    pub(super) covered: Duration,
}

impl Recent {
    /// The figures of one group.
    pub(super) fn figures(&self, id: GroupId, total: &Buckets, errors: u64) -> RequestFigures {
        let none = Buckets::default();
        super::figures(total, errors, self.groups.get(&id).unwrap_or(&none), self.covered)
    }
}

impl History {
    /// Nothing happened before `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self { last: HashMap::new(), last_at: start, seconds: VecDeque::new(), unmerged: 0, merges: VecDeque::new() }
    }

    /// Keeps what changed since the last sample.
    pub(super) fn sample(&mut self, now: Instant, sums: impl Iterator<Item = (GroupId, Buckets)>) {
        let mut changes = HashMap::new();
        for (id, sum) in sums {
            let change = sparse(self.last.get(&id), &sum);
            if !change.is_empty() {
                changes.insert(id, change);
                self.last.insert(id, sum);
            }
        }
        self.seconds.push_back(Span { start: self.last_at, end: now, changes });
        self.last_at = now;
        self.unmerged += 1;
        if self.unmerged == MERGED {
            self.merge();
        }
        if self.seconds.len() > SECONDS_KEPT {
            self.seconds.pop_front();
        }
    }

    fn merge(&mut self) {
        let newest = || self.seconds.iter().rev().take(MERGED);
        let (Some(first), Some(last)) = (newest().next_back(), self.seconds.back()) else { return };
        let mut sums: HashMap<GroupId, Buckets> = HashMap::new();
        newest().for_each(|span| add(&mut sums, &span.changes));
        let changes = sums.into_iter().map(|(id, sum)| (id, sparse(None, &sum))).collect();
        self.merges.push_back(Span { start: first.start, end: last.end, changes });
        self.unmerged = 0;
        if self.merges.len() > MERGES_KEPT {
            self.merges.pop_front();
        }
    }

    /// What happened in at least the last `window`, or since the beginning when that is later; `sums` are those of now.
    pub(super) fn recent(&self, window: Duration, sums: impl Iterator<Item = (GroupId, Buckets)>) -> Recent {
        let now = Instant::now();
        let mut groups = HashMap::new();
        for (id, sum) in sums {
            let change = sparse(self.last.get(&id), &sum);
            if !change.is_empty() {
                add(&mut groups, &HashMap::from([(id, change)]));
            }
        }
        let fresh = if window <= FINE { self.seconds.len() } else { self.unmerged };
        let older = if window <= FINE { 0 } else { self.merges.len() };
        let spans = self.seconds.iter().rev().take(fresh).chain(self.merges.iter().rev().take(older));
        let mut since = self.last_at;
        for span in spans.take_while(|span| now.saturating_duration_since(span.end) < window) {
            add(&mut groups, &span.changes);
            since = since.min(span.start);
        }
        Recent { groups, covered: now.saturating_duration_since(since) }
    }
}

fn sparse(before: Option<&Buckets>, sum: &Buckets) -> Sparse {
    let counts = sum.0.iter().enumerate();
    let changed = counts.map(|(index, count)| {
        let base = before.and_then(|before| before.0.get(index)).copied().unwrap_or(0);
        (index as u8, count.saturating_sub(base))
    });
    changed.filter(|(_, change)| *change > 0).collect()
}

fn add(sums: &mut HashMap<GroupId, Buckets>, changes: &HashMap<GroupId, Sparse>) {
    for (id, change) in changes {
        let sum = sums.entry(*id).or_default();
        for (index, count) in change {
            if let Some(total) = sum.0.get_mut(usize::from(*index)) {
                *total += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history of `seconds` up to now in which group 1 had `per_second` calls in each.
    fn steady(seconds: u64, per_second: u64) -> (History, Buckets) {
        let now = Instant::now();
        let start = now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut history = History::new(start);
        let mut sum = Buckets::default();
        for second in 1..=seconds {
            sum.0[20] += per_second;
            history.sample(start + Duration::from_secs(second), std::iter::once((1, sum.clone())));
        }
        (history, sum)
    }

    #[test]
    fn every_window_has_the_same_rate_when_the_load_is_steady() {
        let (history, sum) = steady(4000, 7);
        for window in [1, 2, 10, 60, 119, 120, 121, 600, 3599, 3600] {
            let window = Duration::from_secs(window);
            let recent = history.recent(window, std::iter::once((1, sum.clone())));
            let rate = recent.groups[&1].count() as f64 / recent.covered.as_secs_f64();
            assert!((rate - 7.0).abs() < 0.5, "{window:?}: {rate}");
            assert!(
                recent.covered >= window.saturating_sub(Duration::from_secs(1)),
                "{window:?}: {:?}",
                recent.covered
            );
            assert!(recent.covered <= window + Duration::from_secs(11), "{window:?}: {:?}", recent.covered);
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_idle_groups_cost_nothing() {
        let (mut history, sum) = steady(5000, 1);
        assert_eq!((history.seconds.len(), history.merges.len()), (SECONDS_KEPT, MERGES_KEPT));
        history.sample(Instant::now(), std::iter::once((1, sum)));
        assert!(history.seconds.back().unwrap().changes.is_empty());
    }

    #[test]
    fn a_young_process_is_measured_since_its_start() {
        let (history, sum) = steady(5, 10);
        let recent = history.recent(Duration::from_mins(1), std::iter::once((1, sum)));
        assert_eq!(recent.groups[&1].count(), 50);
        assert!(recent.covered < Duration::from_secs(6));
    }
}
