use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use prism_core::limits::MAX_TOPIC_BYTES;
use prism_core::session::SessionId;
use prism_core::{Error, Result, UnixMillis};

/// A published event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id.
    pub event_id: String,
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
    /// When it was published.
    pub timestamp: UnixMillis,
}

/// A running subscription; dropping it ends it.
pub struct PubSubSubscription {
    /// Its id.
    pub subscription_id: String,
    /// The events, from the moment [`PubSub::subscribe`] returned. Ends when the subscription is removed.
    pub events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

/// PUBSUB: contract §4 `PubSubService`. At most once: a subscriber that does not keep up loses events.
#[async_trait]
pub trait PubSub: Send + Sync + 'static {
    /// Publishes to everyone who listens now, and to one member of each queue group; returns the event's id and time.
    async fn publish(
        &self,
        topic: &str,
        payload: Bytes,
        metadata: BTreeMap<String, String>,
    ) -> Result<(String, UnixMillis)>;

    /// Subscribes `session` to `pattern`; live when this returns.
    async fn subscribe(
        &self,
        session: SessionId,
        pattern: &str,
        queue_group: Option<&str>,
    ) -> Result<PubSubSubscription>;

    /// Ends `session`'s subscriptions to `pattern`, or the one with this id; `false` when there was none.
    async fn unsubscribe(&self, session: SessionId, pattern: &str, subscription_id: Option<&str>) -> Result<bool>;
}

fn parts(field: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_TOPIC_BYTES {
        return Err(Error::invalid(field, format!("must be 1 to {MAX_TOPIC_BYTES} bytes")));
    }
    if text.split('.').any(str::is_empty) {
        return Err(Error::invalid(field, "must be parts separated by single dots, none empty"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid(field, "must not contain white space or control characters"));
    }
    Ok(())
}

/// Checks a topic to publish to: dot-separated parts, no wildcards.
pub fn validate_topic(field: &str, topic: &str) -> Result<()> {
    parts(field, topic)?;
    if topic.contains(['*', '>']) {
        return Err(Error::invalid(field, "must not contain the wildcards '*' and '>'"));
    }
    Ok(())
}

/// Checks a pattern: `*` stands alone for one part, `>` alone and last for one or more parts.
pub fn validate_topic_pattern(field: &str, pattern: &str) -> Result<()> {
    parts(field, pattern)?;
    let parts: Vec<&str> = pattern.split('.').collect();
    for (index, part) in parts.iter().enumerate() {
        let wild = part.contains(['*', '>']);
        if wild && part.len() > 1 {
            return Err(Error::invalid(field, "a wildcard must be a whole part"));
        }
        if *part == ">" && index + 1 != parts.len() {
            return Err(Error::invalid(field, "'>' must be the last part"));
        }
    }
    Ok(())
}

/// Whether `topic` matches `pattern`; both are valid.
pub fn topic_matches(pattern: &str, topic: &str) -> bool {
    let mut topic = topic.split('.');
    for part in pattern.split('.') {
        match (part, topic.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_whole_parts() {
        for (pattern, topic, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a", "a.b", false),
        ] {
            assert_eq!(topic_matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn malformed_topics_are_refused() {
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", &"x".repeat(256)] {
            assert!(validate_topic("topic", bad).is_err(), "{bad}");
        }
        for bad in ["", "a.>.b", "a*", "a.b>", "a..b"] {
            assert!(validate_topic_pattern("topic_pattern", bad).is_err(), "{bad}");
        }
        assert!(validate_topic_pattern("topic_pattern", "a.*.>").is_ok());
    }
}
