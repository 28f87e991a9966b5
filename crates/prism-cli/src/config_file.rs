//! Configurations in files: YAML or JSON, a `ClientConfig` or what `config get -o yaml` prints.

use std::{fs, io, io::Read as _, path::Path};

use prism_proto::{
    admin::v1::GetConfigResponse,
    config::v1::{AccessPattern, BackendType, ClientConfig, ConsistencyLevel},
};
use prost::{Message, Name};
use serde_json::Value;

use crate::{
    error::{Failure, Result},
    exit::Exit,
    names::{self, Named},
};

/// A configuration as read, and the tag of the revision it was taken from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConfigFile {
    /// The configuration.
    pub config: ClientConfig,
    /// Tag of the revision, if the file was printed by `config get`.
    pub etag: Option<String>,
}

/// Reads a file, or standard input for `-`.
pub fn read(path: &Path) -> Result<ConfigFile> {
    let failed = |error: io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map_err(failed)?;
        text
    } else {
        fs::read_to_string(path).map_err(failed)?
    };
    parse(&text).map_err(|why| {
        Failure::new(Exit::Invalid, format!("{} is not a configuration: {why}", path.display()))
            .hint("`prism-admin config get NAME -o yaml` prints one to start from")
    })
}

fn parse(text: &str) -> std::result::Result<ConfigFile, String> {
    // YAML contains JSON but for tabs, and its messages about JSON are poor.
    let document: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_norway::from_str(text).map_err(|error| error.to_string())?
    };
    if document.get("config").is_some_and(Value::is_object) {
        let mut document = document;
        if let Some(config) = document.get_mut("config") {
            normalise(config)?;
        }
        let answer: GetConfigResponse = decode(&document)?;
        let config = answer.config.unwrap_or_default();
        return Ok(ConfigFile { config, etag: Some(answer.etag).filter(|etag| !etag.is_empty()) });
    }
    if !document.is_object() {
        return Err("it must be a mapping with name, version, pattern, backend and namespace".to_owned());
    }
    let mut config = document;
    normalise(&mut config)?;
    Ok(ConfigFile { config: decode(&config)?, etag: None })
}

fn decode<M: Message + Name + Default>(json: &Value) -> std::result::Result<M, String> {
    let encoded = prism_proto::from_json(&M::full_name(), json).map_err(|error| match error {
        prism_proto::json::Error::Json { source, .. } => source.to_string(),
        other => other.to_string(),
    })?;
    M::decode(encoded.as_slice()).map_err(|error| error.to_string())
}

/// Turns what people write into proto3 JSON: short enum names, and options that YAML reads as numbers.
fn normalise(config: &mut Value) -> std::result::Result<(), String> {
    full_enum::<AccessPattern>(config.get_mut("pattern"))?;
    full_enum::<ConsistencyLevel>(config.get_mut("consistency").and_then(|part| part.get_mut("level")))?;
    let Some(backend) = config.get_mut("backend") else { return Ok(()) };
    full_enum::<BackendType>(backend.get_mut("type"))?;
    let Some(options) = backend.get_mut("options").and_then(Value::as_object_mut) else { return Ok(()) };
    for value in options.values_mut() {
        if value.is_number() || value.is_boolean() {
            *value = Value::String(value.to_string());
        }
    }
    Ok(())
}

fn full_enum<E: Named>(value: Option<&mut Value>) -> std::result::Result<(), String> {
    if let Some(value) = value
        && let Some(text) = value.as_str()
        // UNSPECIFIED is for the server to judge.
        && !text.ends_with("_UNSPECIFIED")
    {
        *value = Value::String(names::parse::<E>(text)?.full_name().to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prism_proto::config::v1::{BackendConfig, ConsistencyConfig};

    use super::*;

    fn orders() -> ClientConfig {
        ClientConfig {
            name: "orders".to_owned(),
            version: "1".to_owned(),
            pattern: AccessPattern::Queue.into(),
            backend: Some(BackendConfig {
                r#type: BackendType::Sqlite.into(),
                options: [("partitions".to_owned(), "4".to_owned()), ("instance".to_owned(), "a".to_owned())].into(),
                pool: None,
            }),
            consistency: Some(ConsistencyConfig { level: ConsistencyLevel::Strong.into(), timeout_ms: 50 }),
            namespace: "shop".to_owned(),
            ..ClientConfig::default()
        }
    }

    #[test]
    fn yaml_for_people() {
        let text = "
name: orders
version: \"1\"
pattern: queue
backend:
  type: sqlite
  options: {partitions: 4, instance: a}
consistency: {level: strong, timeout_ms: 50}
namespace: shop
";
        assert_eq!(parse(text).unwrap(), ConfigFile { config: orders(), etag: None });
    }

    #[test]
    fn json_with_full_names() {
        let json = prism_proto::message_to_json(&orders()).unwrap();
        assert_eq!(parse(&json.to_string()).unwrap().config, orders());
        assert_eq!(parse(&serde_json::to_string_pretty(&json).unwrap().replace("  ", "\t")).unwrap().config, orders());
    }

    #[test]
    fn what_get_prints_is_read_back_with_its_etag() {
        let answer = GetConfigResponse {
            config: Some(orders()),
            created_at: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 5_000_000 }),
            etag: "3-abc".to_owned(),
            revision: 3,
            ..GetConfigResponse::default()
        };
        let json = prism_proto::message_to_json(&answer).unwrap();
        let expected = ConfigFile { config: orders(), etag: Some("3-abc".to_owned()) };
        assert_eq!(parse(&serde_norway::to_string(&json).unwrap()).unwrap(), expected);
        assert_eq!(parse(&json.to_string()).unwrap(), expected);
    }

    #[test]
    fn faults_are_named() {
        let fault = |text: &str| parse(text).unwrap_err();
        assert!(fault("name: a\nbackned: {}").contains("backned"));
        assert!(fault("pattern: graph").contains("there are: key-value"));
        assert!(fault("backend: {type: neptune}").contains("there are: postgres"));
        assert!(fault("backend: {options: {a: [1]}}").contains("string"));
        assert!(fault("").contains("mapping"));
        assert!(fault("- a").contains("mapping"));
        assert!(fault("{\"name\": ").contains("EOF"));
        assert!(!fault("a: b: c").is_empty());
        assert!(!fault("name: a\n---\nname: b").is_empty());
    }
}
