//! Audit entries as events of the Open Cybersecurity Schema Framework: API Activity (class 6003) for an entry, a base
//! event for a checkpoint. `raw_data` holds the entry itself, so that an export can still be verified.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use prism_proto::{
    admin::v1::AuditLogEntry,
    rules::{AuditClass, rules},
};
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::Checkpoint,
    export::{Line, line_of},
};

/// Version of the schema.
const SCHEMA: &str = "1.3.0";
const API_ACTIVITY: u32 = 6003;

/// How entries become events.
pub struct Mapping {
    /// The service of each RPC of the admin plane. The log names the RPC alone.
    services: BTreeMap<String, String>,
}

impl Mapping {
    /// Reads the services from the descriptors.
    pub fn new() -> Result<Self, String> {
        let admin = rules()?.into_iter().filter(|rule| rule.audit != AuditClass::None);
        Ok(Self { services: admin.map(|rule| (rule.method, rule.service)).collect() })
    }

    /// The event of a line.
    pub fn event(&self, line: &Line) -> Result<Value, String> {
        let raw = line_of(line)?.to_string();
        let mut event = match line {
            Line::Entry(entry) => self.api_activity(entry),
            Line::Checkpoint(checkpoint) => base_event(checkpoint),
        };
        if let Some(fields) = event.as_object_mut() {
            fields.insert("raw_data".to_owned(), raw.into());
        }
        Ok(event)
    }

    /// Checks that an event says what its raw data say. What others have added to it does not matter.
    pub fn agrees(&self, found: &Value, line: &Line) -> Result<(), String> {
        if found.pointer("/metadata/version").and_then(Value::as_str) != Some(SCHEMA) {
            return Err(format!(
                "the event is not of version {SCHEMA} of the schema, which is the one that can be checked"
            ));
        }
        let mut expected = self.event(line)?;
        // Another version of this command may have written it, with the fields of the raw data in another order.
        for (of, field) in [("/metadata", "product"), ("", "raw_data")] {
            if let Some(fields) = expected.pointer_mut(of).and_then(Value::as_object_mut) {
                fields.remove(field);
            }
        }
        match first_difference(found, &expected, String::new()) {
            Some(field) => Err(format!("the event was changed: its {field} is not what its raw_data say")),
            None => Ok(()),
        }
    }

    fn api_activity(&self, entry: &AuditLogEntry) -> Value {
        let (activity, activity_name) = activity(&entry.operation);
        let (severity, severity_name) = severity(entry);
        let status = if entry.success { (1, "Success") } else { (2, "Failure") };
        let mut event = json!({
            "category_uid": 6,
            "category_name": "Application Activity",
            "class_uid": API_ACTIVITY,
            "class_name": "API Activity",
            "activity_id": activity,
            "activity_name": activity_name,
            "type_uid": API_ACTIVITY * 100 + activity,
            "type_name": format!("API Activity: {activity_name}"),
            "time": milliseconds(entry.timestamp.as_ref()),
            "severity_id": severity,
            "severity": severity_name,
            "status_id": status.0,
            "status": status.1,
            "metadata": metadata(entry.sequence, Some(&entry.id)),
            "actor": { "user": user(entry) },
            "api": {
                "operation": entry.operation,
                "request": { "uid": entry.request_id },
                "service": { "name": self.services.get(&entry.operation).map_or("prism", String::as_str) },
            },
            "src_endpoint": source(&entry.source_address),
            "unmapped": {
                "namespace": entry.namespace,
                "auth_method": entry.auth_method,
                "metadata": entry.metadata,
                "previous_hash": hex::encode(&entry.previous_hash),
                "hash": hex::encode(&entry.hash),
            },
        });
        if let (Some(fields), Some(error)) = (event.as_object_mut(), &entry.error) {
            fields.insert("status_detail".to_owned(), error.as_str().into());
        }
        if let (Some(fields), false) = (event.as_object_mut(), entry.resource.is_empty()) {
            fields.insert("resources".to_owned(), json!([resource(entry)]));
        }
        event
    }
}

fn base_event(checkpoint: &Checkpoint) -> Value {
    json!({
        "category_uid": 0,
        "category_name": "Uncategorized",
        "class_uid": 0,
        "class_name": "Base Event",
        "activity_id": 99,
        "activity_name": "Checkpoint",
        "type_uid": 99,
        "type_name": "Base Event: Checkpoint",
        "severity_id": 1,
        "severity": "Informational",
        "time": milliseconds(checkpoint.message().time.as_ref()),
        "message": format!("audit checkpoint: {checkpoint}"),
        "metadata": metadata(checkpoint.sequence, None),
    })
}

/// What a line holds if it is an event.
pub fn raw_data(json: &Value) -> Option<&str> {
    json.get("class_uid")?;
    json.get("raw_data")?.as_str()
}

/// The first field of `expected` that is missing or other in `found`.
fn first_difference(found: &Value, expected: &Value, path: String) -> Option<String> {
    let Some(fields) = expected.as_object() else {
        return (found != expected).then(|| if path.is_empty() { "form".to_owned() } else { path });
    };
    fields.iter().find_map(|(name, expected)| {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match found.get(name) {
            Some(found) => first_difference(found, expected, path),
            None => Some(path),
        }
    })
}

fn metadata(sequence: u64, id: Option<&str>) -> Value {
    let mut metadata = json!({
        "version": SCHEMA,
        "product": { "name": "Prism", "vendor_name": "Prism", "version": env!("CARGO_PKG_VERSION") },
        "log_name": "audit",
        "sequence": sequence,
    });
    if let (Some(fields), Some(id)) = (metadata.as_object_mut(), id) {
        fields.insert("uid".to_owned(), id.into());
    }
    metadata
}

fn user(entry: &AuditLogEntry) -> Value {
    let mut user = Map::from_iter([("name".to_owned(), entry.actor.as_str().into())]);
    if !entry.credential_id.is_empty() {
        user.insert("credential_uid".to_owned(), entry.credential_id.as_str().into());
    }
    Value::Object(user)
}

fn resource(entry: &AuditLogEntry) -> Value {
    let mut resource = Map::new();
    match entry.resource.split_once(':') {
        Some((kind, name)) => {
            resource.insert("type".to_owned(), kind.into());
            resource.insert("name".to_owned(), name.into());
        }
        None => drop(resource.insert("type".to_owned(), entry.resource.as_str().into())),
    }
    resource.insert("uid".to_owned(), entry.resource.as_str().into());
    if !entry.namespace.is_empty() {
        resource.insert("namespace".to_owned(), entry.namespace.as_str().into());
    }
    Value::Object(resource)
}

/// An address with or without a port.
fn source(address: &str) -> Value {
    if let Ok(socket) = address.parse::<SocketAddr>() {
        json!({ "ip": socket.ip().to_string(), "port": socket.port() })
    } else if let Ok(ip) = address.parse::<IpAddr>() {
        json!({ "ip": ip.to_string() })
    } else {
        json!({ "name": if address.is_empty() { "unknown" } else { address } })
    }
}

/// Create, Read, Update, Delete or Other. The log names the RPC, whose name begins with what it does.
fn activity(operation: &str) -> (u32, &'static str) {
    let begins = |verbs: &[&str]| verbs.iter().any(|verb| operation.starts_with(verb));
    if begins(&["Create", "Issue"]) {
        (1, "Create")
    } else if begins(&["List", "Get", "WhoAmI", "CanI", "WhoCan"]) {
        (2, "Read")
    } else if begins(&["Update", "Set", "Rotate", "Renew"]) {
        (3, "Update")
    } else if begins(&["Delete", "Revoke", "Retire", "Terminate", "Cut"]) {
        (4, "Delete")
    } else {
        (99, "Other")
    }
}

fn severity(entry: &AuditLogEntry) -> (u32, &'static str) {
    if entry.metadata.contains_key("alarm") {
        (4, "High")
    } else if entry.success {
        (1, "Informational")
    } else if entry.auth_method == "none" {
        (3, "Medium")
    } else {
        (2, "Low")
    }
}

fn milliseconds(at: Option<&prost_types::Timestamp>) -> i64 {
    let at = at.copied().unwrap_or_default();
    at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditLogEntry {
        AuditLogEntry {
            id: "e7".to_owned(),
            timestamp: Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 7_000_000 }),
            actor: "alice".to_owned(),
            operation: "CreateConfig".to_owned(),
            resource: "config:orders".to_owned(),
            namespace: "shop".to_owned(),
            success: true,
            sequence: 7,
            request_id: "r-1".to_owned(),
            source_address: "192.0.2.7:4000".to_owned(),
            auth_method: "oidc".to_owned(),
            credential_id: "c1".to_owned(),
            ..AuditLogEntry::default()
        }
    }

    fn event_of(entry: AuditLogEntry) -> Value {
        Mapping::new().unwrap().event(&Line::Entry(Box::new(entry))).unwrap()
    }

    #[test]
    fn an_entry_is_an_api_activity() {
        let event = event_of(entry());
        for (pointer, value) in [
            ("/class_uid", json!(6003)),
            ("/category_uid", json!(6)),
            ("/activity_id", json!(1)),
            ("/type_uid", json!(600_301)),
            ("/time", json!(1_760_000_000_007_i64)),
            ("/severity_id", json!(1)),
            ("/status_id", json!(1)),
            ("/actor/user/name", json!("alice")),
            ("/actor/user/credential_uid", json!("c1")),
            ("/api/operation", json!("CreateConfig")),
            ("/api/request/uid", json!("r-1")),
            ("/api/service/name", json!("prism.admin.v1.AdminService")),
            ("/src_endpoint", json!({"ip": "192.0.2.7", "port": 4000})),
            ("/resources/0", json!({"type": "config", "name": "orders", "uid": "config:orders", "namespace": "shop"})),
            ("/metadata/sequence", json!(7)),
            ("/metadata/uid", json!("e7")),
            ("/metadata/product/name", json!("Prism")),
        ] {
            assert_eq!(event.pointer(pointer), Some(&value), "{pointer}");
        }
        assert!(event.get("status_detail").is_none());
        assert!(Mapping::new().unwrap().agrees(&event, &Line::Entry(Box::new(entry()))).is_ok());
    }

    #[test]
    fn failures_alarms_and_strangers_stand_out() {
        let failed = AuditLogEntry { success: false, error: Some("no".to_owned()), ..entry() };
        let event = event_of(failed.clone());
        assert_eq!(
            (&event["status_id"], &event["status_detail"], &event["severity_id"]),
            (&json!(2), &json!("no"), &json!(2))
        );
        let stranger = AuditLogEntry { auth_method: "none".to_owned(), ..failed };
        assert_eq!(event_of(stranger.clone())["severity_id"], 3);
        let alarm = AuditLogEntry { metadata: [("alarm".to_owned(), "token_reuse".to_owned())].into(), ..stranger };
        assert_eq!(event_of(alarm)["severity_id"], 4);
    }

    #[test]
    fn every_rpc_of_the_admin_plane_has_an_activity() {
        let mapping = Mapping::new().unwrap();
        let other: Vec<&String> = mapping.services.keys().filter(|rpc| activity(rpc).0 == 99).collect();
        assert_eq!(other, ["DrainConnections", "ExchangeJoinToken", "Link"]);
    }

    #[test]
    fn addresses_are_told_apart() {
        assert_eq!(source("[2001:db8::1]:7"), json!({"ip": "2001:db8::1", "port": 7}));
        assert_eq!(source("192.0.2.1"), json!({"ip": "192.0.2.1"}));
        assert_eq!(source(""), json!({"name": "unknown"}));
    }

    #[test]
    fn what_others_add_does_not_matter() {
        let (mapping, line) = (Mapping::new().unwrap(), Line::Entry(Box::new(entry())));
        let agrees = |found: &Value| mapping.agrees(found, &line);
        let mut found = mapping.event(&line).unwrap();
        found["enrichments"] = json!([{"name": "geo"}]);
        found["metadata"]["product"]["version"] = json!("0.0.1");
        assert!(agrees(&found).is_ok());
        found["unmapped"]["namespace"] = json!("other");
        assert!(agrees(&found).unwrap_err().contains("unmapped.namespace"));
        found["metadata"]["version"] = json!("2.0.0");
        assert!(agrees(&found).unwrap_err().contains("version"));
    }
}
