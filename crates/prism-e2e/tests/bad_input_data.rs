//! Bad input on the data plane: every field of every request is broken, one at a time, and named in the refusal.

use std::sync::Arc;

use prism_e2e::cases::{Rpc, entries, entry, long};
use prism_e2e::operations::All;
use prism_e2e::{Headers, Options, Pattern, Prism, Session, Site};
use prism_proto::rules::{AuditClass, rules};
use serde_json::{Value, json};

/// Largest value, and a little more in the base64 of proto3 JSON.
const MAX_VALUE: usize = 4 * 1024 * 1024;

/// Fields that take any value of their type, and why.
///
/// - `session_token`: what is no live token is UNAUTHENTICATED (`data_sessions.rs`).
/// - `if_version`: a number that is not the current version is ABORTED (`key_value.rs`).
/// - the filters of a composite filter: they are filters again.
/// - `api_key`, `jwt_token`, `mtls.client_cert`: what proves nothing is UNAUTHENTICATED (`identity.rs`).
const FREE: &[&str] = &[
    "session_token",
    "if_version",
    "api_key",
    "jwt_token",
    "client_cert",
    "filter.composite.filters.field",
    "filter.composite.filters.composite",
];

type Bad = Vec<(&'static str, Value, &'static str)>;

fn rpc(service: &str, method: &str, base: Value, bad: Bad) -> Rpc {
    Rpc { path: format!("/prism.{service}/{method}"), base, bad }
}

fn word(field: &'static str) -> Bad {
    let bad = ["", "white space", "star*", "gt>", "ümlaut", "nul\0", "a/b"];
    bad.into_iter().map(|bad| (field, json!(bad), "")).chain([(field, long(256), "")]).collect()
}

fn map(field: &'static str, named: [&'static str; 2]) -> Bad {
    let [whole, one] = named;
    vec![
        (field, entries(65), whole),
        (field, entry("", json!("v")), whole),
        (field, entry(&"k".repeat(257), json!("v")), whole),
        (field, entry("k", long(8193)), one),
    ]
}

fn too_large() -> Value {
    // Base64 of zeros.
    Value::String(format!("{}AAA=", "A".repeat(MAX_VALUE / 3 * 4)))
}

fn page() -> Bad {
    vec![("page_size", json!(-1), ""), ("page_token", json!("nonsense"), ""), ("page_token", long(9000), "")]
}

fn key(field: &'static str, named: &'static str) -> Bad {
    vec![(field, json!(""), named), (field, long(4097), named), (field, json!("nul\0"), named)]
}

fn key_value() -> Vec<Rpc> {
    let ttl = |field| [json!("0"), json!("-1"), json!(i64::MAX.to_string())].map(|bad| (field, bad, "")).to_vec();
    let service = "keyvalue.v1.KeyValueService";
    let put = json!({"key": "k", "value": "AA=="});
    let entry = |key: Value, value: Value, ttl: Value| {
        ("entries", json!([{"key": "first"}, {"key": key, "value": value, "ttl_seconds": ttl}]))
    };
    let batch = |(field, value): (&'static str, Value), named| (field, value, named);
    let too_many: Vec<_> = (0..1001).map(|number| json!({"key": format!("{number}")})).collect();
    vec![
        rpc(service, "Get", json!({"key": "k"}), key("key", "")),
        rpc(service, "Put", put, [key("key", ""), ttl("ttl_seconds"), vec![("value", too_large(), "")]].concat()),
        rpc(service, "Delete", json!({"key": "k"}), key("key", "")),
        rpc(
            service,
            "List",
            json!({}),
            [page(), vec![("prefix", long(4097), ""), ("prefix", json!("nul\0"), "")]].concat(),
        ),
        rpc(
            service,
            "BatchGet",
            json!({"keys": ["k"]}),
            [
                key("keys", "keys[0]").into_iter().map(|(field, bad, named)| (field, json!([bad]), named)).collect(),
                vec![("keys", json!([]), ""), ("keys", json!(vec!["k"; 1001]), "")],
            ]
            .concat(),
        ),
        rpc(
            service,
            "BatchPut",
            json!({"entries": [{"key": "k"}]}),
            vec![
                ("entries", json!([]), ""),
                ("entries", json!(too_many), ""),
                batch(entry(json!(""), json!(""), Value::Null), "entries[1].key"),
                batch(entry(long(4097), json!(""), Value::Null), "entries[1].key"),
                batch(entry(json!("first"), json!(""), Value::Null), "entries[1].key"),
                batch(entry(json!("k"), too_large(), Value::Null), "entries[1].value"),
                batch(entry(json!("k"), json!(""), json!("-1")), "entries[1].ttl_seconds"),
            ],
        ),
    ]
}

fn queue() -> Vec<Rpc> {
    let service = "queue.v1.QueueService";
    let topic_and_group = || json!({"topic": "t", "consumer_group": "g"});
    let message = |message: Value| ("messages", json!([{}, message]));
    let batch = |(field, value): (&'static str, Value), named| (field, value, named);
    let key = vec![("partition_key", long(1025), ""), ("partition_key", json!("bell\u{7}"), "")];
    let positions = |position: Value, named| ("positions", json!([{}, position]), named);
    let mut with_offset = topic_and_group();
    with_offset["start_offset"] = json!("1");
    vec![
        rpc(
            service,
            "Publish",
            json!({"topic": "t"}),
            [
                word("topic"),
                vec![("payload", too_large(), ""), ("partition", json!(-1), "")],
                map("headers", ["", "headers[\"k\"]"]),
                key,
                vec![("partition", json!(1), "")],
            ]
            .concat(),
        ),
        rpc(
            service,
            "PublishBatch",
            json!({"topic": "t", "messages": [{}]}),
            [
                word("topic"),
                vec![
                    ("messages", json!([]), ""),
                    ("messages", json!(vec![json!({}); 1001]), ""),
                    batch(message(json!({"payload": too_large()})), "messages[1].payload"),
                    batch(message(json!({"headers": entries(65)})), "messages[1].headers"),
                    batch(message(json!({"partition_key": long(1025)})), "messages[1].partition_key"),
                ],
            ]
            .concat(),
        ),
        rpc(
            service,
            "Subscribe",
            topic_and_group(),
            [
                word("topic"),
                vec![
                    ("max_in_flight", json!(0), ""),
                    ("max_in_flight", json!(-1), ""),
                    ("max_in_flight", json!(10_001), ""),
                ],
                word("consumer_group"),
                vec![("start_offset", json!("-1"), ""), ("position", json!(9), ""), ("position", json!(-1), "")],
            ]
            .concat(),
        ),
        rpc(service, "Subscribe", with_offset, vec![("position", json!(1), "start_offset")]),
        rpc(
            service,
            "Acknowledge",
            json!({"message_ids": ["x"]}),
            vec![
                ("message_ids", json!([""]), "message_ids[0]"),
                ("message_ids", json!([]), ""),
                ("message_ids", json!([long(513)]), "message_ids[0]"),
                ("message_ids", json!(vec!["x"; 10_001]), ""),
                ("message_id", long(513), "message_ids[1]"),
            ],
        ),
        rpc(
            service,
            "Commit",
            topic_and_group(),
            [word("topic"), word("consumer_group"), vec![("partition", json!(-1), ""), ("offset", json!("-1"), "")]]
                .concat(),
        ),
        rpc(
            service,
            "Seek",
            json!({"topic": "t", "consumer_group": "g", "positions": [{}]}),
            [
                word("topic"),
                word("consumer_group"),
                vec![
                    ("positions", json!([]), ""),
                    positions(json!({"partition": -1}), "positions[1].partition"),
                    positions(json!({"partition": 0}), "positions[1].partition"),
                    positions(json!({"partition": 1, "offset": "-1"}), "positions[1].offset"),
                ],
            ]
            .concat(),
        ),
        rpc(service, "GetTopicInfo", json!({"topic": "t"}), word("topic")),
    ]
}

fn pub_sub() -> Vec<Rpc> {
    let service = "pubsub.v1.PubSubService";
    let topic = |field, more: &[&str]| -> Bad {
        let bad = ["", ".a", "a.", "a..b", "white space", "nul\0"];
        bad.iter().chain(more).map(|bad| (field, json!(bad), "")).chain([(field, long(256), "")]).collect()
    };
    let pattern = || topic("topic_pattern", &["a*", ">.a"]);
    vec![
        rpc(
            service,
            "Publish",
            json!({"topic": "t"}),
            [topic("topic", &["*", ">"]), vec![("payload", too_large(), "")], map("metadata", ["", "metadata[\"k\"]"])]
                .concat(),
        ),
        rpc(service, "Subscribe", json!({"topic_pattern": "t"}), [pattern(), word("queue_group")].concat()),
        rpc(
            service,
            "Unsubscribe",
            json!({"topic_pattern": "t"}),
            [pattern(), vec![("subscription_id", json!(""), ""), ("subscription_id", long(1025), "")]].concat(),
        ),
    ]
}

/// Filters have their own tables in `reader.rs`.
fn reader() -> Vec<Rpc> {
    let service = "reader.v1.ReaderService";
    let base = || json!({"collection": "items"});
    let collection = || vec![("collection", json!(""), ""), ("collection", long(129), "")];
    let filter = || -> Bad {
        vec![
            ("filter", json!({}), ""),
            ("filter", json!({"field": {"field": "", "op": 1, "value": 1}}), "filter.field.field"),
            ("filter", json!({"field": {"field": "id", "op": 0, "value": 1}}), "filter.field.op"),
            ("filter", json!({"field": {"field": "id", "op": 99, "value": 1}}), "filter.field.op"),
            ("filter", json!({"field": {"field": "id", "op": 1, "value": {"a": 1}}}), "filter.field.value"),
            ("filter", json!({"composite": {"op": 99, "filters": [{}]}}), "filter.composite.op"),
            ("filter", json!({"composite": {"op": 1}}), "filter.composite.filters"),
        ]
    };
    let shape = || -> Bad {
        vec![
            ("page_size", json!(-1), ""),
            ("fields", json!([""]), "fields[0]"),
            ("fields", json!([long(129)]), "fields[0]"),
            ("fields", json!(vec!["id"; 1001]), ""),
            ("sort", json!([{"field": ""}]), "sort[0].field"),
            ("sort", json!([{"field": "id", "direction": 9}]), "sort[0].direction"),
            ("sort", json!(vec![json!({"field": "id"}); 33]), ""),
        ]
    };
    let cursor = vec![("cursor", long(70_000), "")];
    vec![
        rpc(service, "Read", base(), [collection(), filter(), shape(), cursor].concat()),
        rpc(service, "Query", base(), [collection(), filter(), shape()].concat()),
        rpc(service, "Count", base(), [collection(), filter()].concat()),
    ]
}

fn transact() -> Vec<Rpc> {
    let service = "transact.v1.TransactService";
    let write = json!({
        "data": {"table": "items", "record": {"id": "a"}, "mode": "WRITE_MODE_UPSERT"},
        "mailbox": {"mailbox_id": "m"},
    });
    let columns: serde_json::Map<String, Value> = (0..1001).map(|number| (format!("c{number}"), json!(1))).collect();
    let bad = [
        vec![
            ("data.table", json!(""), ""),
            ("data.table", long(129), ""),
            ("data.record", json!({}), ""),
            ("data.record", json!(columns), ""),
            ("data.record", json!({"": 1}), ""),
            ("data.record", json!({"id": {"a": 1}}), "data.record.id"),
            ("data.record", json!({"id": [1]}), "data.record.id"),
            ("data.mode", json!(0), ""),
            ("data.mode", json!(99), ""),
            ("data.id_field", json!(""), ""),
            ("data.id_field", long(129), ""),
            ("mailbox.mailbox_id", json!(""), ""),
            ("mailbox.mailbox_id", long(256), ""),
            ("mailbox.message", too_large(), ""),
            ("options.isolation", json!(9), ""),
            ("options.timeout_ms", json!(-1), ""),
            ("options.timeout_ms", json!(300_001), ""),
            ("options.idempotency_key", json!(""), ""),
            ("options.idempotency_key", long(256), ""),
        ],
        map("mailbox.metadata", ["", "mailbox.metadata[\"k\"]"]),
    ];
    let mailbox = vec![
        ("mailbox_id", json!(""), ""),
        ("mailbox_id", long(256), ""),
        ("since_sequence", json!("-1"), ""),
        ("limit", json!(-1), ""),
    ];
    vec![rpc(service, "Write", write, bad.concat()), rpc(service, "ReadMailbox", json!({"mailbox_id": "m"}), mailbox)]
}

fn sessions(key: &str, namespace: &str) -> Vec<Rpc> {
    let service = "session.v1.SessionService";
    let inline = json!({"name": "i", "version": "1", "pattern": 1, "backend": {"type": 7}, "namespace": namespace});
    let text = |field| vec![(field, long(1025), ""), (field, json!("bell\u{7}"), "")];
    let base = json!({"api_key": key, "inline_config": inline, "client_id": "c"});
    let mut named = json!({"api_key": key, "config_name": "c"});
    named["client_id"] = json!("c");
    vec![
        rpc(
            service,
            "CreateSession",
            base,
            [
                text("client_id"),
                text("client_version"),
                map("metadata", ["", "metadata[\"k\"]"]),
                vec![
                    ("inline_config", Value::Null, "config"),
                    ("inline_config.name", json!(""), ""),
                    ("inline_config.version", json!(""), ""),
                    ("inline_config.pattern", json!(99), ""),
                    ("inline_config.backend.type", json!(99), ""),
                    ("inline_config.backend.pool.min_connections", json!(-1), ""),
                    (
                        "inline_config.backend.options",
                        entry("colour", json!("red")),
                        "inline_config.backend.options.colour",
                    ),
                    ("inline_config.backend.pool.max_connections", json!(-1), ""),
                    ("inline_config.backend.pool.idle_timeout_seconds", json!(-1), ""),
                    ("inline_config.consistency.level", json!(99), ""),
                    ("inline_config.consistency.timeout_ms", json!(-1), ""),
                    ("inline_config.cache.ttl_seconds", json!(-1), ""),
                    ("inline_config.cache.max_size_mb", json!(-1), ""),
                    ("inline_config.rate_limit.requests_per_second", json!(-1), ""),
                    ("inline_config.rate_limit.burst", json!(-1), ""),
                    ("inline_config.namespace", json!(""), ""),
                ],
            ]
            .concat(),
        ),
        rpc(
            service,
            "CreateSession",
            named,
            vec![
                ("config_name", json!(""), ""),
                ("config_name", json!("Bad Name"), ""),
                ("config_name", long(129), ""),
            ],
        ),
        rpc(service, "CloseSession", json!({}), vec![]),
        rpc(service, "Heartbeat", json!({}), vec![]),
        rpc(service, "GetSession", json!({}), vec![]),
        rpc(
            service,
            "RefreshSession",
            json!({"extension": "1s"}),
            vec![("extension", Value::Null, ""), ("extension", json!("0s"), ""), ("extension", json!("-1s"), "")],
        ),
    ]
}

fn configs() -> Vec<Rpc> {
    let service = "config.v1.ConfigService";
    let name = |field| ["Bad Name", "-edge"].map(|bad| (field, json!(bad), "")).to_vec();
    vec![
        rpc(service, "ListConfigs", json!({}), [name("namespace"), vec![("pattern", json!(99), "")]].concat()),
        rpc(
            service,
            "GetConfig",
            json!({"name": "c"}),
            [name("name"), vec![("name", json!(""), ""), ("name", long(129), ""), ("version", long(129), "")]].concat(),
        ),
    ]
}

#[test]
fn the_tables_leave_no_field_of_no_request_out() {
    let tables: Vec<Rpc> = [key_value(), queue(), pub_sub(), reader(), transact(), sessions("k", "n"), configs()]
        .into_iter()
        .flatten()
        .collect();
    for rule in rules().unwrap().iter().filter(|rule| rule.audit == AuditClass::None) {
        let mut own = tables.iter().filter(|rpc| rpc.path == rule.path);
        match own.next() {
            // What a second table of an RPC breaks, the first need not.
            Some(mut merged) => {
                let second = own.next();
                let missing = merged.untested(FREE);
                if let Some(second) = second {
                    merged = second;
                }
                let missing: Vec<_> =
                    missing.into_iter().filter(|field| merged.untested(FREE).contains(field)).collect();
                assert!(missing.is_empty(), "no case breaks these fields:\n{}", missing.join("\n"));
            }
            // ValidateConfig answers with what is wrong (`discovery.rs`); Transaction's messages are those of Write, in a
            // conversation (`transact.rs`).
            None => {
                assert!(matches!(rule.method.as_str(), "ValidateConfig" | "Transaction"), "{} has no table", rule.path);
            }
        }
    }
}

async fn check(session: &Session, tables: Vec<Rpc>, count: &mut usize) -> Vec<String> {
    let headers = Headers::none().with("x-session-token", &session.token);
    let mut faults = Vec::new();
    for rpc in tables {
        *count += rpc.bad.len();
        faults.extend(rpc.faults(&session.channel, &headers).await);
        faults.extend(rpc.faults_of_pairs(&session.channel, &headers).await);
    }
    faults
}

#[tokio::test]
async fn every_wrong_field_is_invalid_argument_and_named_and_so_are_two() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let all = All::open(&site).await;
    all.queue.publish("t", b"1").await.unwrap();
    let (mut faults, mut count) = (Vec::new(), 0);
    for pattern in [Pattern::KeyValue, Pattern::MemoryKeyValue] {
        let session = site.session(pattern).await;
        faults.extend(check(&session, key_value(), &mut count).await);
    }
    faults.extend(check(&all.queue, queue(), &mut count).await);
    faults.extend(check(&all.pubsub, pub_sub(), &mut count).await);
    faults.extend(check(&all.reader, reader(), &mut count).await);
    faults.extend(check(&all.transact, transact(), &mut count).await);
    faults.extend(check(&all.kv, configs(), &mut count).await);
    faults.extend(check(&all.kv, sessions(&site.key, &site.namespace), &mut count).await);
    assert!(faults.is_empty(), "{} of {count} cases:\n{}", faults.len(), faults.join("\n"));
    println!("{count} wrong fields");
}
