use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prism_core::{Error, Result};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::group::Group;
use super::log::LogRecord;
use super::members::Members;
use super::{MAX_GROUPS_PER_TOPIC, positions};
use crate::driver::Publication;
use crate::sqlite::space::Space;

/// How long a group without subscriptions remembers who received what, and how often.
const KEEP_IDLE_GROUPS: Duration = Duration::from_mins(10);

/// What is known of a topic's log without asking the database.
pub(super) struct Log {
    pub(super) id: i64,
    pub(super) partitions: Vec<LogPartition>,
    pub(super) members: Members,
    /// Messages without a key that were given a partition.
    dealt: AtomicUsize,
}

/// One partition of a log.
pub(super) struct LogPartition {
    pub(super) id: i64,
    latest: AtomicI64,
}

impl LogPartition {
    /// The offset after the last message known to be durable.
    pub(super) fn latest(&self) -> i64 {
        self.latest.load(Ordering::Acquire)
    }

    /// Everything before `latest` is durable.
    pub(super) fn raise(&self, latest: i64) {
        self.latest.fetch_max(latest, Ordering::AcqRel);
    }
}

impl Log {
    pub(super) fn new(record: LogRecord) -> Self {
        let partitions = record.partitions.into_iter();
        Self {
            id: record.id,
            partitions: partitions.map(|(id, _, next)| LogPartition { id, latest: AtomicI64::new(next) }).collect(),
            members: Members::default(),
            dealt: AtomicUsize::new(0),
        }
    }

    pub(super) fn partition(&self, index: usize) -> Result<&LogPartition> {
        self.partitions.get(index).ok_or_else(|| Error::internal("a partition index is outside its topic"))
    }

    /// The index of partition `number`; INVALID_ARGUMENT naming `field` when the topic has no such partition.
    pub(super) fn index(&self, field: &str, number: i32) -> Result<usize> {
        usize::try_from(number).ok().filter(|index| *index < self.partitions.len()).ok_or_else(|| {
            Error::invalid(
                field,
                format!("must be 0 to {}, the last partition of the topic", self.partitions.len() - 1),
            )
        })
    }

    /// Where a message goes: to the partition it names, else by its key, else to each partition in turn.
    pub(super) fn route(&self, message: &Publication) -> Result<usize> {
        match (message.partition, &message.partition_key) {
            (Some(number), _) => self.index("partition", number),
            (None, Some(key)) => Ok((stable_hash(key.as_bytes()) % self.partitions.len() as u64) as usize),
            (None, None) => Ok(self.dealt.fetch_add(1, Ordering::Relaxed) % self.partitions.len()),
        }
    }
}

/// FNV-1a, 64 bits. It must never change: it decides which messages keep their order.
fn stable_hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A topic in use: its log, and its groups in use.
pub(super) struct Topic {
    pub(super) log: Arc<Log>,
    groups: RwLock<HashMap<String, Arc<Group>>>,
    /// Held while a group is loaded, so that there is never a second one.
    loading: Mutex<()>,
}

impl Topic {
    pub(super) fn new(record: LogRecord) -> Arc<Self> {
        Arc::new(Self { log: Arc::new(Log::new(record)), groups: RwLock::default(), loading: Mutex::new(()) })
    }

    /// The groups in use.
    pub(super) fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn loaded(&self, name: &str) -> Option<Arc<Group>> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(name).filter(|group| !group.is_retired()).cloned()
    }

    /// The group called `name`; made when it does not exist, at the earliest message.
    pub(super) async fn group(&self, space: &Arc<Space>, name: &str) -> Result<Arc<Group>> {
        if let Some(group) = self.loaded(name) {
            return Ok(group);
        }
        let _loading = self.loading.lock().await;
        if let Some(group) = self.loaded(name) {
            return Ok(group);
        }
        let (topic, wanted) = (self.log.id, name.to_owned());
        let found = space.readers().run(move |connection| positions::find_group(connection, topic, &wanted)).await?;
        let id = if let Some(id) = found {
            id
        } else {
            let wanted = name.to_owned();
            let make = move |connection: &_| {
                positions::find_or_make_group(connection, topic, &wanted, MAX_GROUPS_PER_TOPIC).map(|id| (id, 0))
            };
            space.write(make).await?
        };
        let log = Arc::clone(&self.log);
        let read = move |connection: &_| {
            log.partitions
                .iter()
                .map(|partition| positions::position(connection, id, partition.id))
                .collect::<Result<Vec<_>>>()
        };
        let group = Group::new(Arc::clone(space), Arc::clone(&self.log), id, space.readers().run(read).await?);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.insert(name.to_owned(), Arc::clone(&group));
        Ok(group)
    }

    /// Forgets the groups and sessions that nobody uses any more.
    pub(super) fn retire_idle(&self, now: Instant) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|_, group| !group.retire(now, KEEP_IDLE_GROUPS));
        drop(groups);
        self.log.members.forget_idle();
    }
}
