//! Contract §1: `prism serve --dev`.

use prism_e2e::wait::{next, until};
use prism_e2e::{Options, Prism, Refused as _, data};
use prism_proto::admin::v1::ListConfigsRequest;
use prism_proto::config::v1::{AccessPattern, BackendType};
use prism_proto::reader::v1::{CountRequest, ReadRequest};
use prism_proto::transact::v1::{DataWrite, WriteMode, WriteRequest};
use prost_types::value::Kind;
use tonic::Code;

fn row(values: &[(&str, Kind)]) -> std::collections::BTreeMap<String, prost_types::Value> {
    values.iter().map(|(name, kind)| ((*name).to_owned(), prost_types::Value { kind: Some(kind.clone()) })).collect()
}

#[tokio::test]
async fn there_is_one_config_per_pattern_durable_but_for_pubsub() {
    use AccessPattern as P;
    use BackendType as B;

    let server = Prism::start(Options::dev()).await;
    let configs =
        server.admin().service().list_configs(ListConfigsRequest::default()).await.unwrap().into_inner().configs;
    let found: Vec<_> = configs
        .iter()
        .map(|config| (config.name.as_str(), config.pattern(), config.backend.as_ref().unwrap().r#type()))
        .collect();
    assert_eq!(
        found,
        [
            ("dev-key-value", P::KeyValue, B::Sqlite),
            ("dev-pubsub", P::Pubsub, B::Memory),
            ("dev-queue", P::Queue, B::Sqlite),
            ("dev-reader", P::PagedReader, B::Sqlite),
            ("dev-transact", P::TransactWrite, B::Sqlite),
        ]
    );
    assert!(configs.iter().all(|config| config.namespace == "default"));
}

#[tokio::test]
async fn client_token_reads_and_writes_every_pattern_of_default_in_clear_text() {
    let server = Prism::start(Options::dev()).await;
    assert!(server.endpoints().data.starts_with("127.0.0.1:"), "loopback only");
    let (key, channel) = (server.secret("client.token"), server.data_channel());
    assert!(key.starts_with("prc_"));
    let session = async |config: &str| data::create(&channel, data::named(&key, config)).await.unwrap();

    let kv = session("dev-key-value").await;
    kv.put("a", b"1").await.unwrap();
    assert_eq!(kv.get("a").await.unwrap().value, "1");

    let queue = session("dev-queue").await;
    queue.publish("t", b"m").await.unwrap();
    let mut messages = queue.subscribe("t", "g").await.unwrap();
    assert_eq!(next("a message", &mut messages).await.unwrap().unwrap().payload, "m");

    let events = session("dev-pubsub").await;
    let request = prism_proto::pubsub::v1::SubscribeRequest { topic_pattern: "t.*".to_owned(), ..Default::default() };
    let mut stream = events.pub_sub().subscribe(request).await.unwrap().into_inner();
    let request = prism_proto::pubsub::v1::PublishRequest { topic: "t.x".to_owned(), ..Default::default() };
    events.pub_sub().publish(request).await.unwrap();
    assert_eq!(next("an event", &mut stream).await.unwrap().unwrap().topic, "t.x");

    let record = row(&[
        ("id", Kind::StringValue("i1".to_owned())),
        ("name", Kind::StringValue("screw".to_owned())),
        ("quantity", Kind::NumberValue(7.0)),
        ("price", Kind::NumberValue(0.25)),
    ]);
    let write = WriteRequest {
        data: Some(DataWrite {
            table: "items".to_owned(),
            record: record.clone(),
            mode: WriteMode::Insert.into(),
            id_field: None,
        }),
        ..WriteRequest::default()
    };
    assert!(session("dev-transact").await.transact().write(write).await.unwrap().into_inner().committed);
    let reader = session("dev-reader").await;
    let request = ReadRequest { collection: "items".to_owned(), ..ReadRequest::default() };
    let mut pages = reader.reader().read(request).await.unwrap().into_inner();
    let page = next("a page", &mut pages).await.unwrap().unwrap();
    assert_eq!(page.rows.len(), 1);
    assert_eq!(page.rows[0].fields, record);
}

#[tokio::test]
async fn client_token_is_for_default_only() {
    let server = Prism::start(Options::dev()).await;
    let admin = server.admin();
    admin.create_namespace("other").await;
    admin.create_config(prism_e2e::site::config("other-kv", "other", prism_e2e::Pattern::KeyValue)).await;
    let asked = data::create(&server.data_channel(), data::named(&server.secret("client.token"), "other-kv")).await;
    assert_eq!(asked.refused().code, Code::PermissionDenied);
}

#[tokio::test]
async fn the_commands_to_try_next_are_printed_and_a_restart_keeps_everything() {
    let server = Prism::start(Options::dev()).await;
    until("what to try", || async { server.log().contains("prism-admin").then_some(()) }).await;
    let key = server.secret("client.token");
    let kv = data::create(&server.data_channel(), data::named(&key, "dev-key-value")).await.unwrap();
    kv.put("kept", b"yes").await.unwrap();
    server.crash_and_restart().await;
    assert_eq!(server.secret("client.token"), key);
    let kv = data::create(&server.data_channel(), data::named(&key, "dev-key-value")).await.unwrap();
    assert_eq!(kv.get("kept").await.unwrap().value, "yes");
    let reader = data::create(&server.data_channel(), data::named(&key, "dev-reader")).await.unwrap();
    let request = CountRequest { collection: "items".to_owned(), ..CountRequest::default() };
    assert_eq!(reader.reader().count(request).await.unwrap().into_inner().count, 0);
}
