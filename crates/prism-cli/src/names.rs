//! Enum values as people write them: `queue` for `ACCESS_PATTERN_QUEUE`.

use prism_proto::{
    admin::v1::{CertificateKind, NamespaceStatus, SessionStatus, backend_health::HealthStatus},
    config::v1::{AccessPattern, BackendType, ConsistencyLevel},
};

use crate::text::short_name;

/// An enum of the contract.
pub trait Named: TryFrom<i32> + Copy {
    /// What all its full names begin with.
    const PREFIX: &'static str;
    /// What it is, for messages.
    const WHAT: &'static str;
    /// The name in the proto file.
    fn full_name(self) -> &'static str;
}

macro_rules! named {
    ($($name:ident $prefix:literal $what:literal;)*) => { $(
        impl Named for $name {
            const PREFIX: &'static str = $prefix;
            const WHAT: &'static str = $what;

            fn full_name(self) -> &'static str {
                self.as_str_name()
            }
        }
    )* };
}

named! {
    AccessPattern "ACCESS_PATTERN_" "pattern";
    BackendType "BACKEND_TYPE_" "backend type";
    ConsistencyLevel "CONSISTENCY_LEVEL_" "consistency level";
    NamespaceStatus "NAMESPACE_STATUS_" "namespace status";
    SessionStatus "SESSION_STATUS_" "session status";
    HealthStatus "HEALTH_STATUS_" "health";
    CertificateKind "CERTIFICATE_KIND_" "kind of certificate";
}

/// Reads a short or full name; case, hyphens and underscores do not matter.
pub fn parse<E: Named>(text: &str) -> Result<E, String> {
    let wanted = squeeze(text);
    values::<E>()
        .find(|value| {
            let full = squeeze(value.full_name());
            wanted == full || full.strip_prefix(&squeeze(E::PREFIX)) == Some(&wanted)
        })
        .ok_or_else(|| {
            let known: Vec<String> = values::<E>().map(|value| short_name(value.full_name(), E::PREFIX)).collect();
            format!("{text:?} is not a {}; there are: {}", E::WHAT, known.join(", "))
        })
}

/// The short name of a number from the wire; a number from a newer server as such.
pub fn show<E: Named>(number: i32) -> String {
    match E::try_from(number) {
        Ok(_) if number == 0 => "-".to_owned(),
        Ok(value) => short_name(value.full_name(), E::PREFIX),
        Err(_) => number.to_string(),
    }
}

/// The values but UNSPECIFIED; no enum of the contract has numbers above 31.
fn values<E: Named>() -> impl Iterator<Item = E> {
    (1..32).filter_map(|number| E::try_from(number).ok())
}

fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_names_are_read() {
        for text in ["key-value", "KEY_VALUE", "keyvalue", "ACCESS_PATTERN_KEY_VALUE"] {
            assert_eq!(parse(text), Ok(AccessPattern::KeyValue), "{text}");
        }
        assert_eq!(parse("pub-sub"), Ok(AccessPattern::Pubsub));
        assert_eq!(parse("sqlite"), Ok(BackendType::Sqlite));
        assert_eq!(parse("read-only"), Ok(NamespaceStatus::ReadOnly));
        assert_eq!(parse("idle"), Ok(SessionStatus::Idle));
    }

    #[test]
    fn others_are_refused_with_the_list() {
        for text in ["", "unspecified", "neptune", "access_pattern_"] {
            assert!(parse::<BackendType>(text).is_err(), "{text}");
        }
        assert_eq!(
            parse::<AccessPattern>("graph").unwrap_err(),
            "\"graph\" is not a pattern; there are: key-value, queue, pubsub, paged-reader, transact-write"
        );
    }

    #[test]
    fn numbers_are_shown() {
        assert_eq!(show::<AccessPattern>(5), "transact-write");
        assert_eq!(show::<HealthStatus>(2), "degraded");
        assert_eq!(show::<AccessPattern>(0), "-");
        assert_eq!(show::<AccessPattern>(99), "99");
    }
}
