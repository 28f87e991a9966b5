//! Contract §8 "retries", §9 "idempotency keys".

use std::sync::Arc;

use prism_e2e::site::{config, unique};
use prism_e2e::{Admin, Options, Pattern, Prism, Refused as _, Shared, Site};
use prism_proto::admin::v1 as wire;
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

fn keyed(admin: &Admin, key: &str) -> Admin {
    admin.and("x-idempotency-key", key)
}

fn create(name: &str) -> wire::CreateNamespaceRequest {
    wire::CreateNamespaceRequest { name: name.to_owned(), ..Default::default() }
}

async fn revision(site: &Site, name: &str) -> i64 {
    let request = wire::GetConfigRequest { name: name.to_owned(), ..Default::default() };
    site.admin.service().get_config(request).await.unwrap().into_inner().revision
}

fn update(site: &Site, name: &str, version: &str) -> wire::UpdateConfigRequest {
    let mut config = config(name, &site.namespace, Pattern::KeyValue);
    version.clone_into(&mut config.version);
    wire::UpdateConfigRequest { name: name.to_owned(), config: Some(config), ..Default::default() }
}

#[tokio::test]
async fn the_same_key_and_request_is_carried_out_once_and_answered_again() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let admin = keyed(&site.admin, &unique("key"));
    let first = admin.service().update_config(update(&site, &name, "2")).await.unwrap().into_inner();
    let again = admin.service().update_config(update(&site, &name, "2")).await.unwrap().into_inner();
    assert_eq!(first, again);
    assert_eq!(revision(&site, &name).await, 2);
    let log = site
        .admin
        .audit(wire::GetAuditLogRequest {
            namespace: Some(site.namespace.clone()),
            operation: Some("UpdateConfig".to_owned()),
            ..Default::default()
        })
        .await;
    assert_eq!(log.len(), 2, "each call has its entry: {log:?}");

    let namespace = unique("once");
    let admin = keyed(&site.admin, &unique("key"));
    let first = admin.service().create_namespace(create(&namespace)).await.unwrap().into_inner();
    assert_eq!(admin.service().create_namespace(create(&namespace)).await.unwrap().into_inner(), first);
    let other = keyed(&site.admin, &unique("key"));
    assert_eq!(other.service().create_namespace(create(&namespace)).await.refused().code, Code::AlreadyExists);
}

#[tokio::test]
async fn the_same_key_with_another_request_is_invalid() {
    let site = site().await;
    let admin = keyed(&site.admin, &unique("key"));
    admin.service().create_namespace(create(&unique("first"))).await.unwrap();
    let second = unique("second");
    let refused = admin.service().create_namespace(create(&second)).await.refused();
    assert_eq!(
        (refused.code, refused.fields.as_slice()),
        (Code::InvalidArgument, &["x-idempotency-key".to_owned()][..])
    );
    let get = wire::GetNamespaceRequest { name: second };
    assert_eq!(site.admin.service().get_namespace(get).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn a_key_is_one_credentials_and_one_rpcs() {
    let site = site().await;
    let key = unique("key");
    let name = unique("shared");
    keyed(&site.admin, &key).service().create_namespace(create(&name)).await.unwrap();
    let other = site.admin.with_role("admin", None).await;
    let refused = keyed(&other, &key).service().create_namespace(create(&name)).await.refused();
    assert_eq!(refused.code, Code::AlreadyExists, "another credential's key is another key");
    let delete = wire::DeleteNamespaceRequest { name, ..Default::default() };
    keyed(&site.admin, &key).service().delete_namespace(delete).await.unwrap();
}

#[tokio::test]
async fn a_concurrent_twin_waits_for_the_first() {
    let site = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let key = unique("key");
    let twins: Vec<_> = (0..16)
        .map(|_| {
            let (admin, request) = (keyed(&site.admin, &key), update(&site, &name, "2"));
            tokio::spawn(async move { admin.service().update_config(request).await })
        })
        .collect();
    let mut answers = Vec::new();
    for twin in twins {
        answers.push(twin.await.unwrap().unwrap().into_inner());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(revision(&site, &name).await, 2);
}

#[tokio::test]
async fn a_twin_of_a_drain_waits_too() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let request = wire::DrainConnectionsRequest { namespace: Some(site.namespace.clone()), ..Default::default() };
    let admin = keyed(&site.admin, &unique("key"));
    let (mut one, mut two) = (admin.service(), admin.service());
    let (one, two) = tokio::join!(one.drain_connections(request.clone()), two.drain_connections(request));
    let (one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
    assert_eq!((one.drained_count, one), (1, two));
    drop(session);
}

#[tokio::test]
async fn an_answer_that_carried_a_secret_does_not_come_again() {
    let site = site().await;
    let request =
        wire::CreateApiKeyRequest { name: "once".to_owned(), roles: vec!["viewer".to_owned()], ..Default::default() };
    let admin = keyed(&site.admin, &unique("key"));
    let made = admin.access().create_api_key(request.clone()).await.unwrap().into_inner();
    let refused = admin.access().create_api_key(request).await.refused();
    refused.is(Code::AlreadyExists, "SECRET_ALREADY_ISSUED");
    assert_eq!(refused.metadata["id"], made.api_key.unwrap().key_id);
    assert!(!format!("{refused:?}").contains(&made.token[20..]));

    let request = wire::CreateClientKeyRequest {
        name: "once".to_owned(),
        namespace: site.namespace.clone(),
        permissions: vec!["read".to_owned()],
        ttl: None,
    };
    let admin = keyed(&site.admin, &unique("key"));
    let made = admin.access().create_client_key(request.clone()).await.unwrap().into_inner();
    let refused = admin.access().create_client_key(request).await.refused();
    refused.is(Code::AlreadyExists, "SECRET_ALREADY_ISSUED");
    assert_eq!(refused.metadata["id"], made.client_key.unwrap().key_id);
}

#[tokio::test]
async fn a_key_is_remembered_over_a_crash() {
    let site = Site::new(Arc::new(Prism::start(Options::new()).await)).await;
    let name = site.config(Pattern::KeyValue).await;
    let first = keyed(&site.admin, "over-a-crash")
        .service()
        .update_config(update(&site, &name, "2"))
        .await
        .unwrap()
        .into_inner();
    site.server.crash_and_restart().await;
    let site = Site { admin: site.server.admin(), ..site };
    let again = keyed(&site.admin, "over-a-crash")
        .service()
        .update_config(update(&site, &name, "2"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    assert_eq!(revision(&site, &name).await, 2);
}

#[tokio::test]
async fn a_refused_call_may_be_tried_again_and_reads_need_no_key() {
    let site = site().await;
    let (namespace, key) = (unique("later"), unique("key"));
    let name = unique("config");
    let request =
        wire::CreateConfigRequest { config: Some(config(&name, &namespace, Pattern::KeyValue)), ..Default::default() };
    let admin = keyed(&site.admin, &key);
    admin.service().create_config(request.clone()).await.refused().names(&["config.namespace"]);
    site.admin.create_namespace(&namespace).await;
    admin.service().create_config(request).await.unwrap();
    // A key on reads has no meaning and does no harm.
    for request in
        [wire::ListConfigsRequest::default(), wire::ListConfigsRequest { page_size: 1, ..Default::default() }]
    {
        admin.service().list_configs(request).await.unwrap();
    }
    for bad in ["", &"x".repeat(256)] {
        let refused = keyed(&site.admin, bad).service().create_namespace(create(&unique("bad"))).await.refused();
        assert_eq!(refused.fields, ["x-idempotency-key"]);
    }
}
