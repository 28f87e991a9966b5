use std::fmt;

/// What a message id says: topic, partition and offset, as in `12-0-345`. Opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MessageId {
    pub(super) topic: i64,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl MessageId {
    /// Parses exactly what [`fmt::Display`] writes; anything else is nobody's message.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let id = Self {
            topic: number(parts.next()?)?,
            partition: i32::try_from(number(parts.next()?)?).ok()?,
            offset: number(parts.next()?)?,
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
        write!(f, "{}-{}-{}", self.topic, self.partition, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_an_id() {
        let id = MessageId { topic: 12, partition: 0, offset: 345 };
        assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        for bad in
            ["", "1", "1-2", "1-2-3-4", "01-0-0", "1-00-0", "+1-0-0", "1-0--1", " 1-0-0", "1-0-0 ", "a-b-c", "1-0-"]
        {
            assert_eq!(MessageId::parse(bad), None, "{bad:?}");
        }
        assert_eq!(MessageId::parse("1-4294967296-0"), None);
        assert_eq!(MessageId::parse("1-0-99999999999999999999"), None);
    }
}
