//! Sizes on both sides of their bounds, and bytes that are no message at all.

use std::sync::Arc;

use prism_e2e::{Headers, Options, Pattern, Prism, Refused as _, Session, Site, raw};
use prism_proto::keyvalue::v1::{BatchGetRequest, PutRequest};
use prism_proto::pubsub::v1 as pubsub;
use prism_proto::rules::{AuditClass, rules};
use tonic::Code;

const MAX_VALUE: usize = 4 * 1024 * 1024;

#[tokio::test]
async fn the_largest_key_and_value_pass_and_one_byte_more_does_not() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let value = vec![7; MAX_VALUE];
    for pattern in [Pattern::KeyValue, Pattern::MemoryKeyValue] {
        let session = site.session(pattern).await;
        // Bytes, not characters: an umlaut has two.
        for key in ["k".repeat(4096), "ü".repeat(2048)] {
            session.put(&key, &value).await.unwrap();
            assert_eq!(session.get(&key).await.unwrap().value, value);
        }
        for key in ["k".repeat(4097), format!("k{}", "ü".repeat(2048))] {
            session.put(&key, b"").await.refused().names(&["key"]);
        }
        session.put("k", &vec![7; MAX_VALUE + 1]).await.refused().names(&["value"]);
        let keys = ["k".repeat(4096), "ü".repeat(2048)].to_vec();
        let batch = session.kv().batch_get(BatchGetRequest { keys, ..Default::default() }).await;
        assert_eq!(batch.refused().code, Code::ResourceExhausted, "more than one answer holds");
    }
    let queue = site.session(Pattern::Queue).await;
    queue.publish("t", &value).await.unwrap();
    let mut stream = queue.subscribe("t", "g").await.unwrap();
    assert_eq!(prism_e2e::wait::next("the message", &mut stream).await.unwrap().unwrap().payload, value);
    queue.publish("t", &vec![7; MAX_VALUE + 1]).await.refused().names(&["payload"]);
    let events = site.session(Pattern::PubSub).await;
    let publish =
        |bytes| pubsub::PublishRequest { topic: "t".to_owned(), payload: vec![7; bytes].into(), ..Default::default() };
    events.pub_sub().publish(publish(MAX_VALUE)).await.unwrap();
    events.pub_sub().publish(publish(MAX_VALUE + 1)).await.refused().names(&["payload"]);
    // Far more than any message.
    let huge = session_of(&site).await.put("k", &vec![7; 32 << 20]).await.refused();
    assert!(matches!(huge.code, Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument), "{huge:?}");
}

async fn session_of(site: &Site) -> Session {
    site.session(Pattern::KeyValue).await
}

#[tokio::test]
async fn the_bounds_are_settings() {
    let settings = "[limits]\nmax_key_bytes = 10\nmax_value_bytes = 100\n";
    let site = Site::new(Arc::new(Prism::start(Options::new().config(settings)).await)).await;
    let session = session_of(&site).await;
    session.put(&"k".repeat(10), &[0; 100]).await.unwrap();
    session.put(&"k".repeat(11), &[0; 101]).await.refused().names(&["key", "value"]);
}

/// A generator that needs no crate and gives the same bytes in every run.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn message(&mut self) -> Vec<u8> {
        let length = self.next() % 64;
        (0..length).map(|_| (self.next() >> 24) as u8).collect()
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_harm_nobody() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let session = session_of(&site).await;
    let token = Headers::none().with("x-session-token", &session.token);
    let mut bytes = Bytes(0x5eed_0f0b_e51b_ad01);
    let rules = rules().unwrap();
    let mut refused = 0;
    for rule in &rules {
        let (channel, headers) = match rule.audit {
            AuditClass::None => (&site.channel, &token),
            _ => (&site.admin.channel, &site.admin.headers),
        };
        for _ in 0..20 {
            let call = raw::call(channel, headers, &rule.path, bytes.message());
            // A request that happens to parse may open a stream that is silent for ever.
            if let Ok(Err(status)) = tokio::time::timeout(std::time::Duration::from_millis(200), call).await {
                assert_ne!(status.code(), Code::Unknown, "{}: {status}", rule.path);
                refused += 1;
            }
        }
    }
    println!("{refused} of {} refused", rules.len() * 20);
    assert!(refused > rules.len() * 10);
    let log = site.server.log();
    assert!(!log.contains("panicked") && !log.contains("inside the server"), "{log}");
    let again = session_of(&site).await;
    again.put("a", b"still here").await.unwrap();
    prism_e2e::audit::verify(&site.admin.whole_log().await);
}

#[tokio::test]
async fn a_request_whose_text_is_not_utf8_is_refused() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let session = session_of(&site).await;
    let token = Headers::none().with("x-session-token", &session.token);
    // Field 2, two bytes, an incomplete sequence.
    let status = raw::call(&site.channel, &token, "/prism.keyvalue.v1.KeyValueService/Get", vec![18, 2, 0xc3, 0x28])
        .await
        .unwrap_err();
    assert!(matches!(status.code(), Code::InvalidArgument | Code::Internal), "{status}");
    session.kv().put(PutRequest { key: "a".to_owned(), ..Default::default() }).await.unwrap();
}
