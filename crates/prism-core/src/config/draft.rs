//! From a config as it came in to one whose every field is proven.

use std::collections::BTreeMap;

use super::{
    AccessPattern, Backend, BackendType, Cache, Catalog, Config, Consistency, ConsistencyLevel, Pool, RateLimit,
};
use crate::error::FieldViolation;
use crate::limits::{MAX_MAP_KEY_BYTES, MAX_VERSION_BYTES};
use crate::name::{ConfigName, InstanceName, NamespaceName};

/// A config as it came in, nothing proven.
#[derive(Clone, Debug, Default)]
pub struct ConfigDraft {
    /// Unique name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Access pattern; `None` = unspecified or unknown.
    pub pattern: Option<AccessPattern>,
    /// Backend; `None` = absent.
    pub backend: Option<BackendDraft>,
    /// Consistency settings; the level `None` = unknown number.
    pub consistency: Option<(Option<ConsistencyLevel>, i32)>,
    /// Cache settings.
    pub cache: Option<Cache>,
    /// Rate limit.
    pub rate_limit: Option<RateLimit>,
    /// Namespace.
    pub namespace: String,
}

/// Backend part of a [`ConfigDraft`].
#[derive(Clone, Debug, Default)]
pub struct BackendDraft {
    /// Type; `None` = unspecified, reserved or unknown.
    pub kind: Option<BackendType>,
    /// Options.
    pub options: BTreeMap<String, String>,
    /// Pool settings.
    pub pool: Option<Pool>,
}

/// How an option's value is checked.
enum OptionRule {
    Integer {
        min: i64,
        max: i64,
    },
    /// `qualified`: `schema.table` is allowed.
    TableNames {
        qualified: bool,
    },
    Schema,
}

/// Most options of a backend.
pub const MAX_OPTIONS: usize = 64;
/// Longest option, in bytes; `schema` is the one that gets so long.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Most tables that one config may name.
pub const MAX_TABLES: usize = 256;

fn option_rule(kind: BackendType, pattern: AccessPattern, option: &str) -> Option<OptionRule> {
    use AccessPattern::{PagedReader, Queue, TransactWrite};
    Some(match (pattern, option) {
        (Queue, "partitions") => OptionRule::Integer { min: 1, max: 1024 },
        (Queue, "ack_timeout_ms") => OptionRule::Integer { min: 100, max: 86_400_000 },
        (Queue, "retention_ms") if kind == BackendType::Sqlite => OptionRule::Integer { min: 1000, max: i64::MAX / 2 },
        (PagedReader, "collections") | (TransactWrite, "tables") => {
            OptionRule::TableNames { qualified: kind == BackendType::Postgres }
        }
        (PagedReader | TransactWrite, "schema") if kind == BackendType::Sqlite => OptionRule::Schema,
        _ => return None,
    })
}

fn check_option(rule: &OptionRule, value: &str) -> Result<(), String> {
    if value.len() > MAX_SCHEMA_BYTES {
        return Err(format!("is longer than {MAX_SCHEMA_BYTES} bytes"));
    }
    match rule {
        OptionRule::Integer { min, max } => match value.trim().parse::<i64>() {
            Ok(number) if (*min..=*max).contains(&number) => Ok(()),
            _ => Err(format!("must be a whole number from {min} to {max}")),
        },
        OptionRule::TableNames { qualified } => {
            let names: Vec<&str> = value.split(',').map(str::trim).collect();
            if names.len() > MAX_TABLES {
                return Err(format!("names more than {MAX_TABLES} tables"));
            }
            match names.iter().find(|name| !is_table_name(name) || (!qualified && name.contains('.'))) {
                Some(bad) => {
                    Err(format!("{bad:?} is not a table name; names are comma-separated, of letters, digits and '_'"))
                }
                None => Ok(()),
            }
        }
        OptionRule::Schema => Ok(()),
    }
}

/// Whether `name` may name a table: a letter or '_' first, then letters, digits and '_', at most 63 bytes for each of
/// schema and table; nothing reserved by SQLite or Prism.
pub fn is_table_name(name: &str) -> bool {
    let part = |part: &str| {
        let bytes = part.as_bytes();
        (1..=63).contains(&bytes.len())
            && !bytes[0].is_ascii_digit()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
    };
    let reserved = |part: &str| {
        let lower = part.to_ascii_lowercase();
        lower.starts_with("sqlite_") || lower.starts_with("_prism")
    };
    name.split('.').count() <= 2 && name.split('.').all(|word| part(word) && !reserved(word))
}

/// What somebody says is proven, to be proven again.
impl From<&Config> for ConfigDraft {
    fn from(config: &Config) -> Self {
        Self {
            name: config.name.to_string(),
            version: config.version.clone(),
            pattern: Some(config.pattern),
            backend: Some(BackendDraft {
                kind: Some(config.backend.kind),
                options: config.backend.options.clone(),
                pool: config.backend.pool,
            }),
            consistency: config.consistency.map(|given| (Some(given.level), given.timeout_ms)),
            cache: config.cache,
            rate_limit: config.rate_limit,
            namespace: config.namespace.to_string(),
        }
    }
}

impl ConfigDraft {
    /// Proves every field; all violations come in one answer, with paths below `root` (usually `config`).
    pub fn validate(
        self,
        root: &str,
        catalog: &Catalog,
        namespace_exists: impl FnOnce(&NamespaceName) -> bool,
    ) -> Result<Config, Vec<FieldViolation>> {
        let mut report = Report { root, violations: Vec::new() };
        let name = report.keep(ConfigName::parse("", &self.name).map_err(|_| {
            (
                "name",
                if self.name.is_empty() {
                    format!("must be set ({})", ConfigName::RULE)
                } else {
                    ConfigName::RULE.to_owned()
                },
            )
        }));
        if self.version.is_empty()
            || self.version.len() > MAX_VERSION_BYTES
            || self.version.chars().any(char::is_control)
        {
            report.add("version", format!("must be 1 to {MAX_VERSION_BYTES} bytes without control characters"));
        }
        let namespace = report.keep(NamespaceName::parse("", &self.namespace).map_err(|_| {
            (
                "namespace",
                if self.namespace.is_empty() { "must be set".to_owned() } else { NamespaceName::RULE.to_owned() },
            )
        }));
        if let Some(namespace) = &namespace
            && !namespace_exists(namespace)
        {
            report.add("namespace", format!("namespace {namespace} does not exist"));
        }
        if self.pattern.is_none() {
            report.add("pattern", "must be one of KEY_VALUE, QUEUE, PUBSUB, PAGED_READER, TRANSACT_WRITE");
        }
        if self.backend.is_none() {
            report.add("backend", "must be set");
        }
        let backend = self.backend.and_then(|draft| draft.validate(&mut report, self.pattern, catalog));
        let consistency = self.consistency.map(|(level, timeout_ms)| {
            if level.is_none() {
                report.add("consistency.level", "is not a known consistency level");
            }
            report.range("consistency.timeout_ms", timeout_ms, 600_000);
            Consistency { level: level.unwrap_or_default(), timeout_ms }
        });
        if let Some(cache) = &self.cache {
            report.range("cache.ttl_seconds", cache.ttl_seconds, 86_400);
            report.range("cache.max_size_mb", cache.max_size_mb, 65_536);
        }
        if let Some(limit) = &self.rate_limit {
            report.range("rate_limit.requests_per_second", limit.requests_per_second, 10_000_000);
            report.range("rate_limit.burst", limit.burst, 10_000_000);
        }
        match (name, namespace, self.pattern, backend) {
            (Some(name), Some(namespace), Some(pattern), Some((backend, instance))) if report.violations.is_empty() => {
                Ok(Config {
                    name,
                    version: self.version,
                    pattern,
                    backend,
                    instance,
                    consistency,
                    cache: self.cache,
                    rate_limit: self.rate_limit,
                    namespace,
                })
            }
            _ => Err(report.violations),
        }
    }
}

impl BackendDraft {
    fn validate(
        self,
        report: &mut Report<'_>,
        pattern: Option<AccessPattern>,
        catalog: &Catalog,
    ) -> Option<(Backend, InstanceName)> {
        if let Some(pool) = &self.pool {
            report.range("backend.pool.min_connections", pool.min_connections, 1000);
            report.range("backend.pool.max_connections", pool.max_connections, 1000);
            report.range("backend.pool.idle_timeout_seconds", pool.idle_timeout_seconds, 86_400);
            if pool.max_connections > 0 && pool.min_connections > pool.max_connections {
                report.add("backend.pool.min_connections", "must not exceed max_connections");
            }
        }
        let Some(kind) = self.kind else {
            report.add("backend.type", "must be one of POSTGRES, SQLITE, KAFKA, NATS, REDIS, MEMORY");
            return None;
        };
        let wanted = self.options.get("instance").map(String::as_str);
        let instance = report.keep(
            catalog
                .resolve(kind, wanted)
                .map(|found| found.name.clone())
                .map_err(|why| ("backend.options.instance", why)),
        );
        let pattern = pattern?;
        if !kind.serves(pattern) {
            report.add("pattern", format!("{pattern} is not served by a {kind} backend"));
            return None;
        }
        if self.options.len() > MAX_OPTIONS {
            report.add("backend.options", format!("has more than {MAX_OPTIONS} entries"));
            return None;
        }
        for (option, value) in self.options.iter().filter(|(option, _)| *option != "instance") {
            let shown: String = option.chars().take(MAX_MAP_KEY_BYTES).collect();
            match option_rule(kind, pattern, option) {
                None => {
                    report.add(&format!("backend.options.{shown}"), format!("is not an option of {pattern} on {kind}"));
                }
                Some(rule) => {
                    if let Err(why) = check_option(&rule, value) {
                        report.add(&format!("backend.options.{shown}"), why);
                    }
                }
            }
        }
        let required = match pattern {
            AccessPattern::PagedReader => Some("collections"),
            AccessPattern::TransactWrite => Some("tables"),
            _ => None,
        };
        if let Some(option) = required
            && !self.options.contains_key(option)
        {
            report
                .add(&format!("backend.options.{option}"), "must list the tables that may be touched, comma-separated");
        }
        instance.map(|instance| (Backend { kind, options: self.options, pool: self.pool }, instance))
    }
}

struct Report<'a> {
    root: &'a str,
    violations: Vec<FieldViolation>,
}

impl Report<'_> {
    fn add(&mut self, field: &str, description: impl Into<String>) {
        self.violations.push(FieldViolation::new(format!("{}.{field}", self.root), description));
    }

    fn keep<T>(&mut self, value: Result<T, (&str, String)>) -> Option<T> {
        value.map_err(|(field, why)| self.add(field, why)).ok()
    }

    fn range(&mut self, field: &str, value: i32, max: i32) {
        if !(0..=max).contains(&value) {
            self.add(field, format!("must be 0 to {max}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendInstance;

    fn catalog() -> Catalog {
        let instance = |name: &str, kind| BackendInstance { name: InstanceName::parse("n", name).unwrap(), kind };
        Catalog { instances: vec![instance("sqlite", BackendType::Sqlite), instance("memory", BackendType::Memory)] }
    }

    fn draft() -> ConfigDraft {
        ConfigDraft {
            name: "orders".into(),
            version: "1".into(),
            pattern: Some(AccessPattern::Queue),
            backend: Some(BackendDraft { kind: Some(BackendType::Sqlite), ..BackendDraft::default() }),
            namespace: "default".into(),
            ..ConfigDraft::default()
        }
    }

    fn fields(draft: ConfigDraft) -> Vec<String> {
        match draft.validate("config", &catalog(), |name| name.as_str() == "default") {
            Ok(_) => Vec::new(),
            Err(violations) => violations.into_iter().map(|violation| violation.field).collect(),
        }
    }

    #[test]
    fn a_whole_config_passes_and_finds_its_instance() {
        let config = draft().validate("config", &catalog(), |_| true).unwrap();
        assert_eq!(config.instance.as_str(), "sqlite");
        assert_eq!(config.option_i64("partitions", 1), 1);
    }

    #[test]
    fn an_empty_config_names_every_required_field() {
        assert_eq!(
            fields(ConfigDraft::default()),
            ["config.name", "config.version", "config.namespace", "config.pattern", "config.backend"]
        );
    }

    #[test]
    fn every_violation_comes_in_one_answer() {
        let mut bad = draft();
        bad.namespace = "nowhere".into();
        bad.rate_limit = Some(RateLimit { requests_per_second: -1, burst: 0 });
        bad.cache = Some(Cache { enabled: true, ttl_seconds: -1, max_size_mb: 0 });
        bad.consistency = Some((None, -5));
        let backend = bad.backend.as_mut().unwrap();
        backend.options.insert("partitions".into(), "0".into());
        backend.options.insert("colour".into(), "red".into());
        backend.options.insert("instance".into(), "other".into());
        backend.pool = Some(Pool { min_connections: 5, max_connections: 2, idle_timeout_seconds: -1 });
        assert_eq!(
            fields(bad),
            [
                "config.namespace",
                "config.backend.pool.idle_timeout_seconds",
                "config.backend.pool.min_connections",
                "config.backend.options.instance",
                "config.backend.options.colour",
                "config.backend.options.partitions",
                "config.consistency.level",
                "config.consistency.timeout_ms",
                "config.cache.ttl_seconds",
                "config.rate_limit.requests_per_second",
            ]
        );
    }

    #[test]
    fn the_pattern_must_fit_the_backend() {
        let mut bad = draft();
        bad.pattern = Some(AccessPattern::PubSub);
        assert_eq!(fields(bad), ["config.pattern"]);
    }

    #[test]
    fn a_proven_config_passes_again_as_it_is() {
        let mut whole = draft();
        whole.consistency = Some((Some(ConsistencyLevel::Strong), 7));
        whole.cache = Some(Cache { enabled: true, ttl_seconds: 3, max_size_mb: 1 });
        whole.rate_limit = Some(RateLimit { requests_per_second: 5, burst: 2 });
        let backend = whole.backend.as_mut().unwrap();
        backend.options.insert("partitions".into(), "3".into());
        backend.pool = Some(Pool { min_connections: 1, max_connections: 2, idle_timeout_seconds: 3 });
        let config = whole.validate("config", &catalog(), |_| true).unwrap();
        assert_eq!(ConfigDraft::from(&config).validate("config", &catalog(), |_| true).unwrap(), config);
    }

    #[test]
    fn an_option_is_bounded_whatever_it_is_padded_with() {
        let mut bad = draft();
        let padded = format!("{}1", " ".repeat(MAX_SCHEMA_BYTES));
        bad.backend.as_mut().unwrap().options.insert("partitions".into(), padded);
        assert_eq!(fields(bad), ["config.backend.options.partitions"]);
    }

    #[test]
    fn reserved_tables_are_no_tables() {
        assert!(is_table_name("items") && is_table_name("public.items"));
        for bad in
            ["", "1a", "a b", "a;b", "sqlite_master", "_prism_kv", "_PRISM_kv", "a.b.c", "a\"b", "main.sqlite_master"]
        {
            assert!(!is_table_name(bad), "{bad}");
        }
    }
}
