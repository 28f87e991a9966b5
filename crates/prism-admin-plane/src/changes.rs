//! What a change did, for its audit entry: the fields that differ, before and after, without secrets.

use serde::Serialize;
use serde_json::{Map, Value};

/// Longest of the two texts, in bytes; no text of an entry is longer.
const MAX_BYTES: usize = 2048;
/// What is left of a longer text inside, in bytes, where the whole would be too long.
const MAX_TEXT_BYTES: usize = 128;
/// What stands for a secret.
const MASK: &str = "***";
/// Words that make a field's name that of a secret.
const SECRET_WORDS: [&str; 6] = ["password", "passwd", "passphrase", "secret", "token", "credential"];

/// The fields in which `before` and `after` differ, as compact JSON of each side; empty for a side that is not there, and for
/// both when nothing differs.
///
/// Values of fields whose name looks like a secret's are `***`, and so are passwords in URLs. Each is at most 2 KiB: long
/// texts are shortened first, then the whole is cut.
pub(crate) fn changes(before: Option<&impl Serialize>, after: Option<&impl Serialize>) -> (String, String) {
    let (mut before, mut after) = (value(before), value(after));
    keep_differences(&mut before, &mut after);
    (text(before), text(after))
}

fn value(side: Option<&impl Serialize>) -> Value {
    // What cannot be written as JSON has no names for its fields, and is nothing that an entry could show.
    side.and_then(|side| serde_json::to_value(side).ok()).unwrap_or_default()
}

fn keep_differences(before: &mut Value, after: &mut Value) {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return };
    let names: Vec<String> = before.keys().filter(|name| after.contains_key(*name)).cloned().collect();
    for name in names {
        let (Some(old), Some(new)) = (before.get_mut(&name), after.get_mut(&name)) else { continue };
        if old == new {
            before.remove(&name);
            after.remove(&name);
        } else {
            keep_differences(old, new);
        }
    }
}

fn text(mut value: Value) -> String {
    clean(&mut value);
    if value.is_null() || value.as_object().is_some_and(Map::is_empty) {
        return String::new();
    }
    let whole = value.to_string();
    if whole.len() <= MAX_BYTES {
        return whole;
    }
    shorten(&mut value);
    let mut short = value.to_string();
    if short.len() > MAX_BYTES {
        short.truncate(short.floor_char_boundary(MAX_BYTES - '…'.len_utf8()));
        short.push('…');
    }
    short
}

/// Masks secrets, and leaves out what is not set.
fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            for (name, value) in fields {
                if is_secret(name) { *value = MASK.into() } else { clean(value) }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::String(text) => {
            if let Some(masked) = without_password(text) {
                *text = masked;
            }
        }
        _ => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let last = name.rsplit(['_', '-', '.']).next().unwrap_or_default();
    SECRET_WORDS.iter().any(|word| name.contains(word)) || matches!(last, "key" | "apikey" | "privatekey" | "accesskey")
}

/// A text with URLs whose passwords are masked; `None` when it holds none.
fn without_password(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(found) = rest.find("://") {
        let (before, after) = rest.split_at(found + 3);
        out.push_str(before);
        rest = after;
        let authority = &rest[..rest.find(['/', '?', '#', ' ', '"', '\'', ',']).unwrap_or(rest.len())];
        // A password may hold an @ that nobody escaped.
        if let Some((user, _)) = authority.rsplit_once('@')
            && let Some((name, _)) = user.split_once(':')
        {
            out.push_str(name);
            out.push(':');
            out.push_str(MASK);
            rest = &rest[user.len()..];
        }
    }
    out.push_str(rest);
    (out != text).then_some(out)
}

fn shorten(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::String(text) if text.len() > MAX_TEXT_BYTES => {
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
            text.push('…');
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(before: &Value, after: &Value) -> (String, String) {
        changes(Some(before), Some(after))
    }

    #[test]
    fn only_what_differs_is_told() {
        let before = json!({"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": true, "same": "x", "unset": null});
        let after = json!({"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": "y", "same": "x", "unset": 5});
        let (old, new) = of(&before, &after);
        assert_eq!(old, r#"{"b":{"c":2},"gone":true}"#);
        assert_eq!(new, r#"{"b":{"c":3},"new":"y","unset":5}"#);
        assert_eq!(of(&before, &before), (String::new(), String::new()));
        assert_eq!(of(&json!({"a": [1, 2]}), &json!({"a": [2]})), (r#"{"a":[1,2]}"#.into(), r#"{"a":[2]}"#.into()));
    }

    #[test]
    fn what_is_made_or_removed_is_told_whole() {
        let whole = json!({"name": "n", "pool": null, "options": {"instance": "main"}});
        let told = r#"{"name":"n","options":{"instance":"main"}}"#.to_owned();
        assert_eq!(changes(None::<&Value>, Some(&whole)), (String::new(), told.clone()));
        assert_eq!(changes(Some(&whole), None::<&Value>), (told, String::new()));
    }

    #[test]
    fn secrets_are_masked_and_their_change_is_told() {
        for name in [
            "password",
            "db_password",
            "PASSWD",
            "client-secret",
            "token",
            "session_tokens",
            "credentials",
            "key",
            "api_key",
            "tls.key",
            "apiKey",
            "passphrase",
        ] {
            let (old, new) =
                of(&json!({"options": {name: "hunter2"}}), &json!({"options": {name: {"deep": "hunter3"}}}));
            let masked = format!(r#"{{"options":{{"{name}":"***"}}}}"#);
            assert_eq!((old, new), (masked.clone(), masked));
        }
        for name in ["instance", "keyspace", "partitions", "schema", "monkey"] {
            assert!(of(&json!({name: "a"}), &json!({name: "b"})).1.contains("\"b\""), "{name}");
        }
        let text = |url: &str| changes(None::<&Value>, Some(&json!({"url": [url]}))).1;
        assert_eq!(text("postgres://me:pa@ss@host:1/db?x=1"), r#"{"url":["postgres://me:***@host:1/db?x=1"]}"#);
        assert_eq!(text("a://u:p@x,b://u:q@y"), r#"{"url":["a://u:***@x,b://u:***@y"]}"#);
        for harmless in ["https://host/a:b@c", "nats://user@host", "x://", "://:@", "mailto:a@b", "é://ü:ö"] {
            let told = text(harmless);
            assert!(told.contains(harmless) || told.contains(MASK), "{told}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let schema = "CREATE TABLE é ".repeat(2000);
        let told = changes(None::<&Value>, Some(&json!({"name": "n", "options": {"schema": schema, "z": 1}}))).1;
        assert!(told.len() < 300 && told.contains("CREATE TABLE") && told.ends_with(r#"…","z":1}}"#), "{told}");
        let many: Map<String, Value> = (0..1000).map(|n| (format!("field-ü-{n}"), "é".into())).collect();
        let told = changes(None::<&Value>, Some(&many)).1;
        assert!(told.len() <= MAX_BYTES && told.len() > MAX_BYTES - 8 && told.ends_with('…'));
    }
}
