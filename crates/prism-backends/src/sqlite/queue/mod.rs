//! The embedded queue: durable topics with consumer groups.
//!
//! What must survive is in the database: messages, the groups' positions, and what is settled beyond them. Who has which
//! message, and how often it was delivered, is in memory: after a restart everything that is not settled is delivered again,
//! counted from attempt 1.

mod acknowledge;
mod combine;
mod coordinator;
mod group;
mod log;
mod members;
mod message_id;
mod partition;
mod positions;
mod publish;
mod schema;
mod state;
mod subscriber;
mod topic;

pub(crate) use coordinator::Coordinator;
pub(crate) use schema::SCHEMA;

/// Most partitions of all topics of a namespace together.
const MAX_PARTITIONS: i64 = 1 << 20;
/// Most consumer groups of a topic.
const MAX_GROUPS_PER_TOPIC: i64 = 1000;

#[cfg(test)]
mod tests;
