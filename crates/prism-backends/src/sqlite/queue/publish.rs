use std::sync::Arc;

use prism_core::{Clock, Error, Result};
use rusqlite::Connection;

use super::combine::Combined;
use super::log::{self, Append, Stored};
use super::message_id::MessageId;
use super::topic::Topic;
use crate::driver::{Publication, Published};

/// Publishes of many callers as one write.
pub(super) struct Publisher {
    pub(super) clock: Clock,
}

/// Messages of one caller for one topic.
pub(super) struct Publish {
    pub(super) topic: Arc<Topic>,
    /// Each with the index of its partition.
    pub(super) messages: Arc<[(usize, Publication)]>,
}

impl Combined for Publisher {
    type Item = Publish;
    type Answer = Vec<Published>;

    fn apply(&self, connection: &Connection, items: &[Arc<Publish>]) -> Result<(Vec<Self::Answer>, i64)> {
        let timestamp = self.clock.now();
        let appends = items.iter().map(|item| Append { log: &item.topic.log, messages: &item.messages });
        let (offsets, grown) = log::append(connection, appends, timestamp)?;
        let published = items.iter().zip(offsets).map(|(item, offsets)| {
            let placed = item.messages.iter().zip(offsets);
            let published = placed.map(|((index, _), offset)| {
                let partition = *index as i32;
                let message_id = MessageId { topic: item.topic.log.id, partition, offset, group: None }.to_string();
                Published { message_id, offset, partition, timestamp }
            });
            published.collect()
        });
        Ok((published.collect(), grown))
    }

    fn settled(&self, items: &[Arc<Publish>], outcome: Result<&[Self::Answer], &Error>) {
        let Ok(answers) = outcome else { return };
        for (item, published) in items.iter().zip(answers) {
            let log = &item.topic.log;
            for (place, (index, _)) in published.iter().zip(item.messages.iter()) {
                if let Ok(partition) = log.partition(*index) {
                    partition.raise(place.offset + 1);
                }
            }
            let groups = item.topic.groups();
            if groups.is_empty() {
                continue;
            }
            let stored = published.iter().zip(item.messages.iter()).map(|(place, (index, message))| {
                let (headers, payload) = (message.headers.clone(), message.payload.clone());
                (*index, Stored { offset: place.offset, timestamp: place.timestamp, headers, payload })
            });
            let stored: Vec<_> = stored.collect();
            for group in groups {
                group.published(stored.iter().map(|(index, message)| (*index, message)));
            }
        }
    }
}
