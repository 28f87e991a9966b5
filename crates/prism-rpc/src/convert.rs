//! Between the wire's messages and the domain's types, for what both planes share.

use std::collections::BTreeMap;
use std::time::Duration;

use prism_core::config::{
    AccessPattern, BackendDraft, BackendType, Cache, Config, ConfigDraft, ConsistencyLevel, Pool, RateLimit,
};
use prism_core::{Error, Result, UnixMillis};
use prism_proto::config::v1 as wire;

/// 0001-01-01T00:00:00Z, the first moment of `google.protobuf.Timestamp`.
const MIN_TIMESTAMP_SECONDS: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z, the last whole second of `google.protobuf.Timestamp`.
const MAX_TIMESTAMP_SECONDS: i64 = 253_402_300_799;
/// Longest `google.protobuf.Duration`: about 10,000 years.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;
const NANOS: std::ops::Range<i32> = 0..1_000_000_000;

/// A moment for the wire.
pub fn timestamp(at: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.0.div_euclid(1000), nanos: (at.0.rem_euclid(1000) * 1_000_000) as i32 }
}

/// A moment from the wire, rounded down to milliseconds; INVALID_ARGUMENT naming `field` outside the years 1 to 9999.
pub fn from_timestamp(field: &str, at: &prost_types::Timestamp) -> Result<UnixMillis> {
    if !(MIN_TIMESTAMP_SECONDS..=MAX_TIMESTAMP_SECONDS).contains(&at.seconds) || !NANOS.contains(&at.nanos) {
        return Err(Error::invalid(
            field,
            "must be a timestamp from year 1 to year 9999, with nanos from 0 to 999999999",
        ));
    }
    Ok(UnixMillis(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000))
}

/// A duration for the wire.
pub fn duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(MAX_DURATION_SECONDS).min(MAX_DURATION_SECONDS);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos() as i32 }
}

/// A duration from the wire; INVALID_ARGUMENT naming `field` when it is negative or malformed.
pub fn from_duration(field: &str, duration: &prost_types::Duration) -> Result<Duration> {
    if !(0..=MAX_DURATION_SECONDS).contains(&duration.seconds) || !NANOS.contains(&duration.nanos) {
        return Err(Error::invalid(field, "must be a duration of 0 s or more, with nanos from 0 to 999999999"));
    }
    Ok(Duration::new(duration.seconds as u64, duration.nanos as u32))
}

/// The pattern of a wire number; `None` when it is unspecified or unknown.
pub fn pattern(number: i32) -> Option<AccessPattern> {
    Some(match wire::AccessPattern::try_from(number).ok()? {
        wire::AccessPattern::Unspecified => return None,
        wire::AccessPattern::KeyValue => AccessPattern::KeyValue,
        wire::AccessPattern::Queue => AccessPattern::Queue,
        wire::AccessPattern::Pubsub => AccessPattern::PubSub,
        wire::AccessPattern::PagedReader => AccessPattern::PagedReader,
        wire::AccessPattern::TransactWrite => AccessPattern::TransactWrite,
    })
}

/// A pattern for the wire.
pub fn pattern_to_proto(pattern: AccessPattern) -> wire::AccessPattern {
    match pattern {
        AccessPattern::KeyValue => wire::AccessPattern::KeyValue,
        AccessPattern::Queue => wire::AccessPattern::Queue,
        AccessPattern::PubSub => wire::AccessPattern::Pubsub,
        AccessPattern::PagedReader => wire::AccessPattern::PagedReader,
        AccessPattern::TransactWrite => wire::AccessPattern::TransactWrite,
    }
}

/// The backend type of a wire number; `None` when it is unspecified, reserved or unknown.
pub fn backend_type(number: i32) -> Option<BackendType> {
    Some(match wire::BackendType::try_from(number).ok()? {
        wire::BackendType::Unspecified => return None,
        wire::BackendType::Postgres => BackendType::Postgres,
        wire::BackendType::Sqlite => BackendType::Sqlite,
        wire::BackendType::Kafka => BackendType::Kafka,
        wire::BackendType::Nats => BackendType::Nats,
        wire::BackendType::Redis => BackendType::Redis,
        wire::BackendType::Memory => BackendType::Memory,
    })
}

/// A backend type for the wire.
pub fn backend_type_to_proto(kind: BackendType) -> wire::BackendType {
    match kind {
        BackendType::Postgres => wire::BackendType::Postgres,
        BackendType::Sqlite => wire::BackendType::Sqlite,
        BackendType::Kafka => wire::BackendType::Kafka,
        BackendType::Nats => wire::BackendType::Nats,
        BackendType::Redis => wire::BackendType::Redis,
        BackendType::Memory => wire::BackendType::Memory,
    }
}

fn consistency_level(number: i32) -> Option<ConsistencyLevel> {
    Some(match wire::ConsistencyLevel::try_from(number).ok()? {
        wire::ConsistencyLevel::Unspecified => ConsistencyLevel::Unspecified,
        wire::ConsistencyLevel::Eventual => ConsistencyLevel::Eventual,
        wire::ConsistencyLevel::Strong => ConsistencyLevel::Strong,
        wire::ConsistencyLevel::BoundedStaleness => ConsistencyLevel::BoundedStaleness,
    })
}

fn consistency_level_to_proto(level: ConsistencyLevel) -> wire::ConsistencyLevel {
    match level {
        ConsistencyLevel::Unspecified => wire::ConsistencyLevel::Unspecified,
        ConsistencyLevel::Eventual => wire::ConsistencyLevel::Eventual,
        ConsistencyLevel::Strong => wire::ConsistencyLevel::Strong,
        ConsistencyLevel::BoundedStaleness => wire::ConsistencyLevel::BoundedStaleness,
    }
}

/// A config as it came in, nothing proven; numbers of no meaning become `None`, an absent config an empty draft.
pub fn config_draft(config: Option<wire::ClientConfig>) -> ConfigDraft {
    let Some(config) = config else { return ConfigDraft::default() };
    ConfigDraft {
        pattern: pattern(config.pattern),
        backend: config.backend.map(|backend| BackendDraft {
            kind: backend_type(backend.r#type),
            options: backend.options.into_iter().collect::<BTreeMap<_, _>>(),
            pool: backend.pool.map(|pool| Pool {
                min_connections: pool.min_connections,
                max_connections: pool.max_connections,
                idle_timeout_seconds: pool.idle_timeout_seconds,
            }),
        }),
        consistency: config.consistency.map(|given| (consistency_level(given.level), given.timeout_ms)),
        cache: config.cache.map(|cache| Cache {
            enabled: cache.enabled,
            ttl_seconds: cache.ttl_seconds,
            max_size_mb: cache.max_size_mb,
        }),
        rate_limit: config
            .rate_limit
            .map(|limit| RateLimit { requests_per_second: limit.requests_per_second, burst: limit.burst }),
        name: config.name,
        version: config.version,
        namespace: config.namespace,
    }
}

/// A config for the wire: exactly what was given when it was accepted.
pub fn config_to_proto(config: &Config) -> wire::ClientConfig {
    wire::ClientConfig {
        name: config.name.as_str().to_owned(),
        version: config.version.clone(),
        pattern: pattern_to_proto(config.pattern).into(),
        backend: Some(wire::BackendConfig {
            r#type: backend_type_to_proto(config.backend.kind).into(),
            options: config.backend.options.clone().into_iter().collect(),
            pool: config.backend.pool.map(|pool| wire::PoolConfig {
                min_connections: pool.min_connections,
                max_connections: pool.max_connections,
                idle_timeout_seconds: pool.idle_timeout_seconds,
            }),
        }),
        consistency: config.consistency.map(|given| wire::ConsistencyConfig {
            level: consistency_level_to_proto(given.level).into(),
            timeout_ms: given.timeout_ms,
        }),
        cache: config.cache.map(|cache| wire::CacheConfig {
            enabled: cache.enabled,
            ttl_seconds: cache.ttl_seconds,
            max_size_mb: cache.max_size_mb,
        }),
        rate_limit: config
            .rate_limit
            .map(|limit| wire::RateLimitConfig { requests_per_second: limit.requests_per_second, burst: limit.burst }),
        namespace: config.namespace.as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_the_wire_and_bounds_hold() {
        for millis in [0, 1, 1_800_000_000_123, -1, -62_135_596_800_000] {
            let wire = timestamp(UnixMillis(millis));
            assert_eq!(from_timestamp("at", &wire).unwrap(), UnixMillis(millis));
        }
        for (seconds, nanos) in
            [(MIN_TIMESTAMP_SECONDS - 1, 0), (MAX_TIMESTAMP_SECONDS + 1, 0), (i64::MAX, 0), (0, -1), (0, 1_000_000_000)]
        {
            let error = from_timestamp("at", &prost_types::Timestamp { seconds, nanos }).unwrap_err();
            assert_eq!(error.fields()[0].field, "at");
        }
    }

    #[test]
    fn durations_are_never_negative() {
        for given in [Duration::ZERO, Duration::new(3600, 5)] {
            assert_eq!(from_duration("ttl", &duration(given)).unwrap(), given);
        }
        assert!(from_duration("ttl", &duration(Duration::MAX)).is_ok());
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, i32::MIN)] {
            let error = from_duration("ttl", &prost_types::Duration { seconds, nanos }).unwrap_err();
            assert_eq!(error.fields()[0].field, "ttl");
        }
    }

    #[test]
    fn every_pattern_and_backend_has_a_number() {
        for known in AccessPattern::ALL {
            assert_eq!(pattern(pattern_to_proto(known).into()), Some(known));
        }
        for known in BackendType::ALL {
            assert_eq!(backend_type(backend_type_to_proto(known).into()), Some(known));
        }
        for unknown in [0, -1, 99] {
            assert_eq!((pattern(unknown), backend_type(unknown)), (None, None));
        }
        assert_eq!(backend_type(5), None);
    }

    #[test]
    fn a_config_comes_back_as_it_was_given() {
        let given = wire::ClientConfig {
            name: "orders".into(),
            version: "1".into(),
            pattern: wire::AccessPattern::Queue.into(),
            backend: Some(wire::BackendConfig {
                r#type: wire::BackendType::Sqlite.into(),
                options: [("partitions".to_owned(), "4".to_owned())].into(),
                pool: Some(wire::PoolConfig { min_connections: 1, max_connections: 2, idle_timeout_seconds: 3 }),
            }),
            consistency: Some(wire::ConsistencyConfig { level: 2, timeout_ms: 10 }),
            cache: Some(wire::CacheConfig { enabled: true, ttl_seconds: 1, max_size_mb: 2 }),
            rate_limit: Some(wire::RateLimitConfig { requests_per_second: 3, burst: 4 }),
            namespace: "shop".into(),
        };
        let draft = config_draft(Some(given.clone()));
        let backend = draft.backend.unwrap();
        let config = Config {
            name: prism_core::ConfigName::parse("name", &draft.name).unwrap(),
            version: draft.version,
            pattern: draft.pattern.unwrap(),
            backend: prism_core::config::Backend {
                kind: backend.kind.unwrap(),
                options: backend.options,
                pool: backend.pool,
            },
            instance: prism_core::InstanceName::parse("instance", "sqlite").unwrap(),
            consistency: draft
                .consistency
                .map(|(level, timeout_ms)| prism_core::config::Consistency { level: level.unwrap(), timeout_ms }),
            cache: draft.cache,
            rate_limit: draft.rate_limit,
            namespace: prism_core::NamespaceName::parse("namespace", &draft.namespace).unwrap(),
        };
        assert_eq!(config_to_proto(&config), given);
    }

    #[test]
    fn unknown_numbers_are_unknown_not_a_default() {
        let draft = config_draft(Some(wire::ClientConfig {
            pattern: 42,
            backend: Some(wire::BackendConfig { r#type: 5, ..Default::default() }),
            consistency: Some(wire::ConsistencyConfig { level: 42, timeout_ms: -1 }),
            ..Default::default()
        }));
        assert_eq!((draft.pattern, draft.backend.unwrap().kind), (None, None));
        assert_eq!(draft.consistency, Some((None, -1)));
        assert!(config_draft(None).backend.is_none());
    }
}
