//! Namespaces: contract §8 "namespace status", §9 "DeleteNamespace", "READ_ONLY, writes are", "data of a namespace".

use prism_e2e::operations::All;
use prism_e2e::rows;
use prism_e2e::site::{config, unique};
use prism_e2e::wait::next;
use prism_e2e::{Options, Pattern, Refused as _, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::NamespaceStatus::{Active, ReadOnly, Suspended};
use prism_proto::{
    keyvalue::v1 as kv, queue::v1 as queue, reader::v1 as reader, session::v1 as life, transact::v1 as transact,
};
use tonic::{Code, Status};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn get(site: &Site, name: &str) -> Result<wire::NamespaceInfo, Status> {
    let request = wire::GetNamespaceRequest { name: name.to_owned() };
    Ok(site.admin.service().get_namespace(request).await?.into_inner().namespace.unwrap())
}

fn delete(name: &str, force: bool, validate_only: bool) -> wire::DeleteNamespaceRequest {
    wire::DeleteNamespaceRequest { name: name.to_owned(), force, validate_only }
}

#[tokio::test]
async fn a_namespace_is_made_read_and_changed_part_by_part() {
    let site = site().await;
    let name = unique("life");
    let quota = wire::NamespaceQuota { max_sessions: 1, max_storage_bytes: 2, max_rps: 3 };
    let request =
        wire::CreateNamespaceRequest { name: name.clone(), description: "first".to_owned(), quota: Some(quota) };
    let made = site.admin.service().create_namespace(request.clone()).await.unwrap().into_inner().namespace.unwrap();
    assert_eq!((made.status(), made.quota, made.description.as_str()), (Active, Some(quota), "first"));
    assert!(!made.etag.is_empty() && made.created_at.is_some());
    assert_eq!(get(&site, &name).await.unwrap(), made);
    assert_eq!(site.admin.service().create_namespace(request).await.refused().code, Code::AlreadyExists);

    let change = wire::UpdateNamespaceRequest {
        name: name.clone(),
        description: Some("second".to_owned()),
        etag: Some(made.etag.clone()),
        ..Default::default()
    };
    let changed = site.admin.service().update_namespace(change.clone()).await.unwrap().into_inner();
    assert!(changed.updated_at.is_some());
    let changed = changed.namespace.unwrap();
    assert_eq!(
        (changed.description.as_str(), changed.quota, changed.created_at),
        ("second", Some(quota), made.created_at)
    );
    assert_ne!(changed.etag, made.etag);
    assert_eq!(site.admin.service().update_namespace(change).await.refused().code, Code::Aborted, "the etag is old");
    assert_eq!(get(&site, &name).await.unwrap(), changed);

    site.admin.service().delete_namespace(delete(&name, false, false)).await.unwrap();
    assert_eq!(get(&site, &name).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn a_namespace_that_is_not_empty_is_deleted_by_force_only() {
    let site = site().await;
    let config = site.config(Pattern::KeyValue).await;
    let session = site.session_of(&config).await;
    session.put("a", b"kept").await.unwrap();
    let mut service = site.admin.service();
    let refused = service.delete_namespace(delete(&site.namespace, false, false)).await.refused();
    refused.is(Code::FailedPrecondition, "NAMESPACE_NOT_EMPTY");
    let refused = service.delete_namespace(delete(&site.namespace, false, true)).await.refused();
    refused.is(Code::FailedPrecondition, "NAMESPACE_NOT_EMPTY");

    let would = service.delete_namespace(delete(&site.namespace, true, true)).await.unwrap().into_inner();
    assert_eq!((would.success, would.configs_affected, would.sessions_affected), (true, 1, 1));
    session.get("a").await.unwrap();
    let done = service.delete_namespace(delete(&site.namespace, true, false)).await.unwrap().into_inner();
    assert_eq!(done, would, "validate_only answers as live does");
    session.get("a").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    assert_eq!(get(&site, &site.namespace).await.refused().code, Code::NotFound);

    // A namespace of the same name later starts with nothing.
    site.admin.create_namespace(&site.namespace).await;
    let key = site.admin.create_client_key(&site.namespace, &["read", "write"]).await;
    let old_key = site.open(data::named(&site.key, &config)).await.refused();
    assert_eq!(old_key.code, Code::Unauthenticated, "keys die with their namespace: {old_key:?}");
    let config = site.config(Pattern::KeyValue).await;
    let session = site.open(data::named(&key, &config)).await.unwrap();
    assert!(!session.get("a").await.unwrap().found);
}

#[tokio::test]
async fn a_namespace_with_stored_data_alone_is_not_empty() {
    let site = site().await;
    let config = site.config(Pattern::KeyValue).await;
    let session = site.session_of(&config).await;
    session.put("a", b"kept").await.unwrap();
    let request = life::CloseSessionRequest { force: true, ..Default::default() };
    session.life().close_session(request).await.unwrap();
    let request = wire::DeleteConfigRequest { name: config, etag: None };
    site.admin.service().delete_config(request).await.unwrap();
    let refused = site.admin.service().delete_namespace(delete(&site.namespace, false, false)).await.refused();
    refused.is(Code::FailedPrecondition, "NAMESPACE_NOT_EMPTY");
}

#[tokio::test]
async fn read_only_refuses_every_write_of_the_contract_and_no_read() {
    let site = site().await;
    let all = All::open(&site).await;
    for (name, outcome) in all.writes().await {
        outcome.unwrap_or_else(|status| panic!("{name} before: {status}"));
    }
    site.admin.set_status(&site.namespace, ReadOnly).await;
    for (name, outcome) in all.writes().await {
        let refused = outcome.refused();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::FailedPrecondition, "NAMESPACE_READ_ONLY"),
            "{name}"
        );
    }
    for (name, outcome) in all.reads().await {
        outcome.unwrap_or_else(|status| panic!("{name} is a read: {status}"));
    }
    site.session(Pattern::KeyValue).await;
    site.admin.set_status(&site.namespace, Active).await;
    for (name, outcome) in all.writes().await {
        outcome.unwrap_or_else(|status| panic!("{name} after: {status}"));
    }
}

#[tokio::test]
async fn suspended_allows_heartbeat_and_close_only() {
    let site = site().await;
    let all = All::open(&site).await;
    all.queue.publish("t", b"1").await.unwrap();
    let mut stream = all.queue.subscribe("t", "other").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    site.admin.set_status(&site.namespace, Suspended).await;
    next("the end of the stream", &mut stream).await.refused().is(Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    for (name, outcome) in all.writes().await.into_iter().chain(all.reads().await) {
        let refused = outcome.refused();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::FailedPrecondition, "NAMESPACE_SUSPENDED"),
            "{name}"
        );
    }
    let config = site.config(Pattern::KeyValue).await;
    let refused = site.open(data::named(&site.key, &config)).await.refused();
    refused.is(Code::FailedPrecondition, "NAMESPACE_SUSPENDED");
    all.kv.heartbeat().await.unwrap();
    assert!(all.kv.life().close_session(life::CloseSessionRequest::default()).await.unwrap().into_inner().success);
    site.admin.set_status(&site.namespace, Active).await;
    site.session_of(&config).await;
}

#[tokio::test]
async fn data_belongs_to_instance_namespace_and_name() {
    let (one, two) = (site().await, site().await);
    let first = one.session(Pattern::KeyValue).await;
    let same = one.session(Pattern::KeyValue).await;
    let other = two.session(Pattern::KeyValue).await;
    let memory = one.session(Pattern::MemoryKeyValue).await;
    first.put("a", b"1").await.unwrap();
    assert!(same.get("a").await.unwrap().found, "two configs of one namespace on one instance see the same");
    assert!(!other.get("a").await.unwrap().found, "another namespace never does");
    assert!(!memory.get("a").await.unwrap().found, "nor does another instance");

    let (first, other) = (one.session(Pattern::Queue).await, two.session(Pattern::Queue).await);
    first.publish("t", b"1").await.unwrap();
    let request = queue::GetTopicInfoRequest { topic: "t".to_owned(), ..Default::default() };
    assert_eq!(first.queue().get_topic_info(request.clone()).await.unwrap().into_inner().message_count, 1);
    assert_eq!(other.queue().get_topic_info(request).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn tables_and_mailboxes_belong_to_their_namespace_too() {
    let (one, two) = (site().await, site().await);
    let writer = one.session(Pattern::Transact).await;
    let mailbox = transact::MailboxWrite { mailbox_id: "m".to_owned(), ..Default::default() };
    let write = rows::write(transact::WriteMode::Insert, rows::item("a", "x", 1.0, 1.0));
    writer.transact().write(transact::WriteRequest { mailbox: Some(mailbox), ..write }).await.unwrap();
    for (site, expected) in [(&one, 1), (&two, 0)] {
        let reader = site.session(Pattern::Reader).await;
        let request = reader::CountRequest { collection: "items".to_owned(), ..Default::default() };
        assert_eq!(reader.reader().count(request).await.unwrap().into_inner().count, expected);
        let session = site.session(Pattern::Transact).await;
        let request = transact::ReadMailboxRequest { mailbox_id: "m".to_owned(), ..Default::default() };
        let mut messages = session.transact().read_mailbox(request).await.unwrap().into_inner();
        assert_eq!(next("the mailbox", &mut messages).await.is_some(), expected == 1);
    }
}

#[tokio::test]
async fn the_longest_names_are_names() {
    let site = site().await;
    let digits = |name: String| format!("{}{name}", std::process::id());
    for name in [digits("a".repeat(50)), "0".to_owned(), digits("-a-".to_owned()) + "b"] {
        let name: String = name.chars().take(63).collect();
        site.admin.create_namespace(&name).await;
    }
    let longest: String = format!("a{}z", "._-x".repeat(40)).chars().take(127).chain(['z']).collect();
    site.configure(config(&longest, &site.namespace, Pattern::KeyValue)).await;
    site.session_of(&longest).await.put("a", b"1").await.unwrap();
}

#[tokio::test]
async fn figures_of_a_namespace_are_real() {
    let site = site().await;
    let before = get(&site, &site.namespace).await.unwrap().metrics.unwrap();
    assert_eq!((before.active_sessions, before.storage_bytes_used), (0, 0));
    let session = site.session(Pattern::KeyValue).await;
    session.put("a", &[7; 10_000]).await.unwrap();
    let after = get(&site, &site.namespace).await.unwrap().metrics.unwrap();
    assert_eq!(after.active_sessions, 1);
    assert!((10_000..12_000).contains(&after.storage_bytes_used), "{after:?}");
    session.kv().delete(kv::DeleteRequest { key: "a".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(get(&site, &site.namespace).await.unwrap().metrics.unwrap().storage_bytes_used, 0);
}
