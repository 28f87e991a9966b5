//! Snapshots as frames. What changed between two of them is worked out once for all nodes.

use std::sync::{Arc, Mutex, PoisonError};

use prism_core::Result;
use prism_core::control::Snapshot;
use prism_proto::cluster::v1 as wire;
use prost::Message as _;

use crate::bounds::{MAX_ITEMS, PART_BYTES};
use crate::convert::items_between;

/// The parts of one step, ready to be sent.
pub type Parts = Arc<Vec<wire::SnapshotPart>>;

/// Makes frames of snapshots.
pub struct Snapshots {
    epoch: u64,
    /// The last step that was asked for: from, to, and its parts.
    last: Mutex<Option<(Option<u64>, u64, Parts)>>,
}

impl Snapshots {
    /// For a controller in this life of it.
    pub fn new(epoch: u64) -> Self {
        Self { epoch, last: Mutex::default() }
    }

    /// Which life of the controller counts the revisions.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What leads from `before` to `after`; from `None`, the whole.
    pub fn parts(&self, before: Option<&Snapshot>, after: &Snapshot) -> Result<Parts> {
        // Held while it is worked out: the others wait for it rather than do it, too.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let step = (before.map(|before| before.revision), after.revision);
        if let Some((from, to, parts)) = &*last
            && (*from, *to) == step
        {
            return Ok(Arc::clone(parts));
        }
        let nothing = Snapshot::default();
        let items = items_between(before.unwrap_or(&nothing), after)?;
        let parts = Arc::new(self.cut(step, items));
        *last = Some((step.0, step.1, Arc::clone(&parts)));
        Ok(parts)
    }

    fn cut(
        &self,
        (base_revision, revision): (Option<u64>, u64),
        items: Vec<wire::SnapshotItem>,
    ) -> Vec<wire::SnapshotPart> {
        let empty =
            || wire::SnapshotPart { epoch: self.epoch, revision, base_revision, last: false, items: Vec::new() };
        let mut parts = vec![empty()];
        let mut bytes = 0;
        for item in items {
            bytes += item.encoded_len();
            if let Some(part) = parts.last_mut() {
                part.items.push(item);
                if bytes >= PART_BYTES || part.items.len() == MAX_ITEMS {
                    parts.push(empty());
                    bytes = 0;
                }
            }
        }
        if let Some(part) = parts.last_mut() {
            part.last = true;
        }
        parts
    }
}
