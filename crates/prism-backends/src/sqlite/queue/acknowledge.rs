use std::collections::BTreeMap;
use std::sync::Arc;

use prism_core::{Error, Result};
use rusqlite::Connection;

use super::combine::Combined;
use super::group::Group;
use super::positions;

/// Acknowledgements of many callers as one write.
pub(super) struct Acknowledger;

/// What one caller settles in one partition of one group.
pub(super) struct Settle {
    pub(super) group: Arc<Group>,
    /// Index of the partition, and its id.
    pub(super) index: usize,
    pub(super) partition: i64,
    /// Of the deliveries.
    pub(super) epoch: i64,
    pub(super) offsets: Vec<i64>,
}

impl Settle {
    /// Settlements with the same place go together.
    fn place(&self) -> (i64, i64, i64) {
        (self.group.id, self.partition, self.epoch)
    }
}

impl Combined for Acknowledger {
    type Item = Vec<Settle>;
    /// For each [`Settle`]: whether it still stood, that is, no seek came in between.
    type Answer = Vec<bool>;

    fn apply(&self, connection: &Connection, items: &[Arc<Vec<Settle>>]) -> Result<(Vec<Self::Answer>, i64)> {
        let settles = || items.iter().flat_map(|item| item.iter());
        let mut places: BTreeMap<_, Vec<i64>> = BTreeMap::new();
        for settle in settles() {
            places.entry(settle.place()).or_default().extend(&settle.offsets);
        }
        let mut stood = BTreeMap::new();
        for ((consumer, partition, epoch), mut offsets) in places {
            offsets.sort_unstable();
            let done = positions::acknowledge(connection, consumer, partition, epoch, &offsets)?;
            stood.insert((consumer, partition, epoch), done);
        }
        let answer =
            |item: &Arc<Vec<Settle>>| item.iter().map(|settle| stood.get(&settle.place()) == Some(&true)).collect();
        Ok((items.iter().map(answer).collect(), 0))
    }

    fn settled(&self, items: &[Arc<Vec<Settle>>], outcome: Result<&[Self::Answer], &Error>) {
        for (position, item) in items.iter().enumerate() {
            for (number, settle) in item.iter().enumerate() {
                let durable = outcome.is_ok();
                let stood = outcome
                    .map_or(true, |answers| answers.get(position).and_then(|all| all.get(number)) == Some(&true));
                // After a seek there is nothing to end: the seek has forgotten, or will forget, all that was held.
                if stood {
                    settle.group.end_settle(settle.index, settle.epoch, &settle.offsets, durable);
                }
            }
        }
    }
}
