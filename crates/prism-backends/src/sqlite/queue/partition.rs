use std::collections::{BTreeMap, BTreeSet};

use prism_core::session::SessionId;
use tokio::time::Instant;

use super::log::Stored;
use super::positions::Position;

/// A message that the group has been given and has not settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// How often a consumer has taken it.
    pub(super) attempts: i32,
    /// The session that took it last; only that one may acknowledge it.
    pub(super) last: Option<SessionId>,
    /// Whether that session knows it by its plain id.
    pub(super) plain: bool,
    /// The subscription that has it now.
    pub(super) owner: Option<u64>,
    pub(super) phase: Phase,
}

/// Where a held message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits to be delivered again.
    Waiting,
    /// In a subscription's outbox, until the deadline.
    Assigned(Instant),
    /// With a consumer, until the deadline.
    Delivered(Instant),
    /// Its acknowledgement is on the way to the disk; nothing else may happen to it.
    Settling,
}

/// What a group knows of one partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// Counts seeks; see [`Position`].
    pub(super) epoch: i64,
    /// The next offset to read from the log; everything below is settled, ready or held.
    pub(super) cursor: i64,
    /// Read and not assigned: new messages, and waiting ones.
    pub(super) ready: BTreeMap<i64, Stored>,
    pub(super) held: BTreeMap<i64, Held>,
    /// Held messages that wait.
    pub(super) waiting: BTreeSet<i64>,
}

impl Partition {
    pub(super) fn new(position: Position) -> Self {
        Self {
            epoch: position.epoch,
            cursor: position.committed,
            ready: BTreeMap::new(),
            held: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// The message that must go next, if it has been read. What waits goes before anything new.
    pub(super) fn head(&self) -> Option<i64> {
        let ready = *self.ready.first_key_value()?.0;
        match self.waiting.first() {
            Some(waiting) if *waiting < ready => None,
            _ => Some(ready),
        }
    }
}
