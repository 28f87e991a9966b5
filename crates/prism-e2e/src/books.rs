//! What a test was told, kept until it is compared with what a server still knows after something went wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use prism_proto::queue::v1::{
    AcknowledgeRequest, GetTopicInfoRequest, PublishRequest, PublishResponse, StartPosition, SubscribeRequest,
};
use tonic::{Code, Status};

use crate::admin::Admin;
use crate::audit;
use crate::data::Session;
use crate::site::unique;
use crate::wait::{next, within};

/// Messages acknowledged with one call.
const SETTLED_AT_ONCE: usize = 500;

/// A number that nobody foresees.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The keys of one writer.
#[derive(Debug, Default)]
pub struct Keys {
    keys: BTreeMap<String, Key>,
    acknowledged: usize,
}

#[derive(Debug, Default)]
struct Key {
    /// Version and value of the last acknowledged Put.
    acknowledged: Option<(u64, Vec<u8>)>,
    /// The value of a Put without an answer.
    open: Option<Vec<u8>>,
}

impl Keys {
    /// Stores a value. What fails counts as possibly done until [`Keys::refused`] says otherwise.
    pub async fn put(&mut self, session: &Session, key: &str, value: &[u8]) -> Result<(), Status> {
        let entry = self.keys.entry(key.to_owned()).or_default();
        entry.open = Some(value.to_vec());
        let version = session.put(key, value).await?;
        if let Some((before, _)) = entry.acknowledged {
            assert!(version > before, "versions of {key} grow: {version} after {before}");
        }
        *entry = Key { acknowledged: Some((version, value.to_vec())), open: None };
        self.acknowledged += 1;
        Ok(())
    }

    /// The last Put of `key` was clearly refused: it must not be there.
    pub fn refused(&mut self, key: &str) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.open = None;
        }
    }

    /// Puts that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Reads every key: the last acknowledged value is there, or the one value after it that had no answer.
    pub async fn verify(&mut self, session: &Session) {
        for (name, key) in &mut self.keys {
            let answer = session.get(name).await.expect("an answer to Get");
            let found = answer.found.then(|| (answer.version, answer.value.to_vec()));
            if found != key.acknowledged {
                let before = key.acknowledged.as_ref().map_or(0, |(version, _)| *version);
                let is_open = found
                    .as_ref()
                    .is_some_and(|(version, value)| *version > before && Some(value) == key.open.as_ref());
                assert!(is_open, "{name} is {found:?}, acknowledged was {:?}", key.acknowledged);
                key.acknowledged = found;
            }
            key.open = None;
        }
    }
}

/// The messages of one topic.
#[derive(Debug)]
pub struct Topic {
    name: String,
    /// Payloads of acknowledged messages by partition and offset.
    acknowledged: BTreeMap<(i32, i64), Vec<u8>>,
    /// Payloads without an answer.
    open: BTreeSet<Vec<u8>>,
}

impl Topic {
    /// An empty topic.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), acknowledged: BTreeMap::new(), open: BTreeSet::new() }
    }

    /// The request that publishes `payload`, which must be unique; it counts as possibly done from here on.
    pub fn begin(&mut self, payload: &[u8]) -> PublishRequest {
        assert!(self.open.insert(payload.to_vec()), "payloads are unique");
        let partition_key = Some(format!("{}", payload.iter().map(|byte| u64::from(*byte)).sum::<u64>()));
        PublishRequest {
            topic: self.name.clone(),
            payload: payload.to_vec().into(),
            partition_key,
            ..PublishRequest::default()
        }
    }

    /// The message was acknowledged.
    pub fn done(&mut self, payload: &[u8], answer: &PublishResponse) {
        self.open.remove(payload);
        let twin = self.acknowledged.insert((answer.partition, answer.offset), payload.to_vec());
        assert!(twin.is_none(), "two messages were given one offset: {answer:?}");
    }

    /// The message was clearly refused: it must not be there.
    pub fn refused(&mut self, payload: &[u8]) {
        self.open.remove(payload);
    }

    /// Acknowledged messages.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Reads the whole topic: every acknowledged message at its offset, whatever had no answer at most once, and offsets
    /// from 0 without gaps.
    pub async fn verify(&mut self, session: &Session) {
        let found = self.read(session).await;
        for (place, payload) in &self.acknowledged {
            assert_eq!(found.get(place), Some(payload), "the acknowledged message at {place:?} of {}", self.name);
        }
        let mut expected: BTreeMap<i32, i64> = BTreeMap::new();
        for ((partition, offset), payload) in found {
            let next = expected.entry(partition).or_default();
            assert_eq!(offset, *next, "offsets of partition {partition} of {} have a gap", self.name);
            *next += 1;
            if !self.acknowledged.contains_key(&(partition, offset)) {
                assert!(self.open.remove(&payload), "a message that nobody published, or twice: {payload:?}");
                self.acknowledged.insert((partition, offset), payload);
            }
        }
        self.open.clear();
    }

    async fn read(&self, session: &Session) -> BTreeMap<(i32, i64), Vec<u8>> {
        let info = GetTopicInfoRequest { topic: self.name.clone(), ..GetTopicInfoRequest::default() };
        let count = match session.queue().get_topic_info(info).await {
            Ok(info) => usize::try_from(info.into_inner().message_count).expect("a count"),
            Err(status) if status.code() == Code::NotFound => 0,
            Err(status) => panic!("GetTopicInfo of {}: {status:?}", self.name),
        };
        let mut found = BTreeMap::new();
        if count == 0 {
            return found;
        }
        let request = SubscribeRequest {
            topic: self.name.clone(),
            consumer_group: unique("reader"),
            position: StartPosition::Earliest.into(),
            max_in_flight: Some(2 * SETTLED_AT_ONCE as i32),
            ..SubscribeRequest::default()
        };
        let mut stream = session.queue().subscribe(request).await.expect("a subscription").into_inner();
        let mut settled = Vec::new();
        while found.len() < count {
            let message = next("a message of the log", &mut stream).await.expect("a message").expect("a message");
            let twin = found.insert((message.partition, message.offset), message.payload.to_vec());
            assert!(twin.is_none() && message.attempt == 1, "delivered twice: {message:?}");
            settled.push(message.message_id);
            if settled.len() == SETTLED_AT_ONCE {
                let message_ids = std::mem::take(&mut settled);
                let request = AcknowledgeRequest { message_ids, ..AcknowledgeRequest::default() };
                assert!(session.queue().acknowledge(request).await.expect("an acknowledgement").into_inner().success);
            }
        }
        found
    }
}

/// The audit log as it was read so far.
#[derive(Debug, Default)]
pub struct Log(Vec<AuditLogEntry>);

impl Log {
    /// Reads what is new, and checks the chain from its first entry to its last.
    pub async fn read(&mut self, admin: &Admin) -> &[AuditLogEntry] {
        match self.0.last() {
            None => self.0 = admin.whole_log().await,
            Some(last) => {
                let new = after(admin, last).await;
                self.0.extend(new);
            }
        }
        audit::verify(&self.0);
        &self.0
    }

    /// Entries read so far, oldest first.
    pub fn entries(&self) -> &[AuditLogEntry] {
        &self.0
    }

    /// Reads everything again: what was there once is there still.
    pub async fn is_unchanged(&self, admin: &Admin) {
        let first = self.0.first().expect("a log that was read");
        let again = after(admin, first).await;
        assert!(again.len() >= self.0.len() - 1, "entries have gone");
        for (before, now) in self.0[1..].iter().zip(&again) {
            assert_eq!(before, now);
        }
    }
}

async fn after(admin: &Admin, entry: &AuditLogEntry) -> Vec<AuditLogEntry> {
    let request = GetAuditLogRequest { resume_after: Some(entry.id.clone()), ..GetAuditLogRequest::default() };
    within("the rest of the log", admin.audit(request)).await
}
