//! KeyValueService on both embedded backends: contract §4.

use prism_e2e::wait::until;
use prism_e2e::{Options, Pattern, Refused as _, Session, Shared, Site};
use prism_proto::keyvalue::v1::{
    BatchGetRequest, BatchPutEntry, BatchPutRequest, DeleteRequest, GetRequest, ListRequest, PutRequest,
};
use tonic::{Code, Status};

static SERVER: Shared = Shared::new();

const BOTH: [Pattern; 2] = [Pattern::KeyValue, Pattern::MemoryKeyValue];

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned(), value: value.to_owned().into(), ..Default::default() }
}

async fn put_if(session: &Session, key: &str, if_version: u64) -> Result<u64, Status> {
    Ok(session.kv().put(PutRequest { if_version: Some(if_version), ..put(key, "x") }).await?.into_inner().version)
}

async fn delete(session: &Session, key: &str, if_version: Option<u64>) -> Result<bool, Status> {
    Ok(session
        .kv()
        .delete(DeleteRequest { key: key.to_owned(), if_version, ..Default::default() })
        .await?
        .into_inner()
        .existed)
}

#[tokio::test]
async fn values_are_stored_with_growing_versions_byte_for_byte() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        assert!(!session.get("a").await.unwrap().found);
        let bytes: Vec<u8> = (0..=255).collect();
        let first = session.put("a", &bytes).await.unwrap();
        let read = session.get("a").await.unwrap();
        assert!(read.found && read.value == bytes && read.version == first && read.expires_at.is_none(), "{pattern:?}");
        let second = session.put("a", b"").await.unwrap();
        assert!(second > first, "{pattern:?}");
        let read = session.get("a").await.unwrap();
        assert!(read.found && read.value.is_empty(), "an empty value is a value");
        assert!(delete(&session, "a", None).await.unwrap());
        assert!(!delete(&session, "a", None).await.unwrap());
        assert!(!session.get("a").await.unwrap().found);
        let third = session.put("a", b"again").await.unwrap();
        assert!(third > second, "{pattern:?}: a version never comes twice");
    }
}

#[tokio::test]
async fn if_version_is_compare_and_set() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        assert_eq!(put_if(&session, "a", 5).await.refused().code, Code::Aborted, "it does not exist");
        let first = put_if(&session, "a", 0).await.unwrap();
        assert_eq!(put_if(&session, "a", 0).await.refused().code, Code::Aborted, "0 = must not exist");
        let second = put_if(&session, "a", first).await.unwrap();
        assert_eq!(put_if(&session, "a", first).await.refused().code, Code::Aborted);
        assert_eq!(delete(&session, "a", Some(first)).await.refused().code, Code::Aborted);
        assert_eq!(session.get("a").await.unwrap().version, second);
        assert!(delete(&session, "a", Some(second)).await.unwrap());
        put_if(&session, "a", 0).await.unwrap();
    }
}

#[tokio::test]
async fn of_concurrent_compare_and_sets_one_wins() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        let version = session.put("a", b"0").await.unwrap();
        let tries: Vec<_> = (0..16)
            .map(|_| {
                let session = session.clone();
                tokio::spawn(async move { put_if(&session, "a", version).await })
            })
            .collect();
        let mut won = 0;
        for outcome in tries {
            match outcome.await.unwrap() {
                Ok(_) => won += 1,
                Err(status) => assert_eq!(status.code(), Code::Aborted),
            }
        }
        assert_eq!(won, 1, "{pattern:?}");
    }
}

#[tokio::test]
async fn time_to_live_ends_a_value_everywhere() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        let answer =
            session.kv().put(PutRequest { ttl_seconds: Some(1), ..put("short", "x") }).await.unwrap().into_inner();
        session.kv().put(PutRequest { ttl_seconds: Some(1000), ..put("long", "x") }).await.unwrap();
        let read = session.get("long").await.unwrap();
        assert!(read.found && read.expires_at.is_some());
        until("its end", async || (!session.get("short").await.unwrap().found).then_some(())).await;
        let keys = BatchGetRequest { keys: vec!["short".to_owned()], ..Default::default() };
        assert!(!session.kv().batch_get(keys).await.unwrap().into_inner().results[0].found);
        let list = session.kv().list(ListRequest::default()).await.unwrap().into_inner();
        assert_eq!(list.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["long"]);
        assert!(!delete(&session, "short", None).await.unwrap());
        let after = put_if(&session, "short", 0).await.unwrap();
        assert!(after > answer.version, "{pattern:?}");
        // Without a time to live a new value has none.
        session.put("long", b"y").await.unwrap();
        assert_eq!(session.get("long").await.unwrap().expires_at, None);
        for bad in [0, -1, i64::MAX] {
            session
                .kv()
                .put(PutRequest { ttl_seconds: Some(bad), ..put("a", "x") })
                .await
                .refused()
                .names(&["ttl_seconds"]);
        }
    }
}

#[tokio::test]
async fn a_list_has_the_keys_of_a_prefix_in_order() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        for key in ["b", "a/2", "a/10", "a", "a/é", "a0", "a/%", "a/_"] {
            session.put(key, key.as_bytes()).await.unwrap();
        }
        let list = async |prefix: &str, keys_only| {
            let request = ListRequest { prefix: prefix.to_owned(), keys_only, ..Default::default() };
            session.kv().list(request).await.unwrap().into_inner().entries
        };
        let found = list("a/", false).await;
        assert_eq!(
            found.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(),
            ["a/%", "a/10", "a/2", "a/_", "a/é"],
            "{pattern:?}"
        );
        assert!(found.iter().all(|entry| entry.value == entry.key && entry.version > 0));
        assert!(list("a/", true).await.iter().all(|entry| entry.value.is_empty() && entry.version > 0));
        assert_eq!(list("", true).await.len(), 8);
        assert_eq!(list("a/%", true).await.len(), 1, "a prefix is no pattern");
    }
}

#[tokio::test]
async fn batches_answer_in_the_order_of_the_request_and_are_all_or_nothing() {
    let site = site().await;
    for pattern in BOTH {
        let session = site.session(pattern).await;
        let entry =
            |key: &str| BatchPutEntry { key: key.to_owned(), value: key.to_owned().into(), ..Default::default() };
        let batch = |keys: &[&str]| BatchPutRequest {
            entries: keys.iter().map(|key| entry(key)).collect(),
            ..Default::default()
        };
        let versions = session.kv().batch_put(batch(&["b", "a", "c"])).await.unwrap().into_inner().versions;
        assert_eq!(versions.len(), 3);
        let keys = ["c", "missing", "a", "c"].map(ToOwned::to_owned).to_vec();
        let results = session
            .kv()
            .batch_get(BatchGetRequest { keys: keys.clone(), ..Default::default() })
            .await
            .unwrap()
            .into_inner()
            .results;
        assert_eq!(
            results.iter().map(|result| (result.key.clone(), result.found)).collect::<Vec<_>>(),
            keys.into_iter().zip([true, false, true, true]).collect::<Vec<_>>()
        );
        assert_eq!(results[0].version, versions[2]);

        session.kv().batch_put(batch(&["new", ""])).await.refused().names(&["entries[1].key"]);
        session.kv().batch_put(batch(&["new", "new"])).await.refused().names(&["entries[1].key"]);
        assert!(!session.get("new").await.unwrap().found, "{pattern:?}");
        session.kv().batch_put(BatchPutRequest::default()).await.refused().names(&["entries"]);
        session.kv().batch_get(BatchGetRequest::default()).await.refused().names(&["keys"]);
        let many = vec!["k".to_owned(); 1001];
        session.kv().batch_get(BatchGetRequest { keys: many, ..Default::default() }).await.refused().names(&["keys"]);
    }
}

#[tokio::test]
async fn durable_values_survive_a_crash_and_memory_does_not() {
    let site = Site::new(std::sync::Arc::new(prism_e2e::Prism::start(Options::new()).await)).await;
    let (durable, memory) = (site.session(Pattern::KeyValue).await, site.session(Pattern::MemoryKeyValue).await);
    let version = durable.put("a", b"1").await.unwrap();
    memory.put("a", b"1").await.unwrap();
    site.server.crash_and_restart().await;
    let channel = site.server.data_channel();
    let (durable, memory) = (durable.on(&channel), memory.on(&channel));
    let read = durable.get("a").await.unwrap();
    assert!(read.found && read.value == "1" && read.version == version);
    assert!(durable.put("a", b"2").await.unwrap() > version);
    assert!(!memory.get("a").await.unwrap().found);
}

#[tokio::test]
async fn the_token_may_come_in_the_field_in_the_header_or_equal_in_both() {
    let site = site().await;
    let (session, other) = (site.session(Pattern::KeyValue).await, site.session(Pattern::KeyValue).await);
    let get = |token: &str| GetRequest { session_token: token.to_owned(), key: "a".to_owned() };
    let bare = session.with_headers(prism_e2e::Headers::none());
    bare.kv().get(get(&session.token)).await.unwrap();
    session.kv().get(get("")).await.unwrap();
    session.kv().get(get(&session.token)).await.unwrap();
    session.kv().get(get(&other.token)).await.refused().names(&["session_token"]);
    bare.kv().get(get("")).await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}
