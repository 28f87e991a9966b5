use std::fmt;

/// What a message id says: topic, partition and offset, as in `12-0-345`, and where these are not enough to tell which
/// delivery is meant, the group, as in `12-0-345-6`. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageId {
    pub(super) topic: i64,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// Id of the group; `None` in what a publish returns and in the deliveries of a session's only group of the topic.
    pub(super) group: Option<i64>,
}

impl MessageId {
    /// Parses exactly what [`fmt::Display`] writes; anything else is nobody's message.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let id = Self {
            topic: number(parts.next()?)?,
            partition: i32::try_from(number(parts.next()?)?).ok()?,
            offset: number(parts.next()?)?,
            group: parts.next().map(|group| number(group).ok_or(())).transpose().ok()?,
        };
        parts.next().is_none().then_some(id)
    }
}

/// A number without sign, space or leading zero, so that each message has one id only.
fn number(text: &str) -> Option<i64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.topic, self.partition, self.offset)?;
        self.group.map_or(Ok(()), |group| write!(f, "-{group}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_an_id() {
        for group in [None, Some(6)] {
            let id = MessageId { topic: 12, partition: 0, offset: 345, group };
            assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        }
        for bad in [
            "",
            "1",
            "1-2",
            "1-2-3-",
            "1-2-3-04",
            "1-2-3-4-5",
            "01-0-0",
            "1-00-0",
            "+1-0-0",
            "1-0--1",
            " 1-0-0",
            "1-0-0 ",
            "a-b-c",
            "1-0-",
        ] {
            assert_eq!(MessageId::parse(bad), None, "{bad:?}");
        }
        assert_eq!(MessageId::parse("1-4294967296-0"), None);
        assert_eq!(MessageId::parse("1-0-99999999999999999999"), None);
    }
}
