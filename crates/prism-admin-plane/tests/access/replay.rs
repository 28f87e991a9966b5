//! Stored answers of calls with an idempotency key: for whom the permission reaches where the call happened.

use prism_admin_plane::ops::{binding, client_binding, client_key};
use prism_proto::admin::v1 as wire;

use crate::bindings::create_client;
use crate::world::{World, denied, refusal};

use wire::CertificateKind::User;

#[tokio::test]
async fn a_stored_answer_is_for_whom_the_permission_still_reaches_its_place() {
    let world = World::new().await;
    let in_a = world.bind("user:alice", "admin", Some("a")).await;
    let (_, alice) = world.certificate(User, "alice").await;
    let request = create_client("group:apps", "a", &["read"]);
    let create =
        async || world.keyed::<client_binding::CreateClientBinding>(&alice, request.clone(), Some("create")).await;
    let made = create().await.unwrap();
    let delete = wire::DeleteClientBindingRequest { binding_id: made.client_binding.clone().unwrap().binding_id };
    let delete =
        async || world.keyed::<client_binding::DeleteClientBinding>(&alice, delete.clone(), Some("delete")).await;
    let key = wire::CreateClientKeyRequest {
        name: "app".to_owned(),
        namespace: "a".to_owned(),
        permissions: vec!["read".to_owned()],
        ttl: None,
    };
    let key = async || world.keyed::<client_key::CreateClientKey>(&alice, key.clone(), Some("key")).await;
    delete().await.unwrap();
    key().await.unwrap();
    // What it was about is gone, and she is answered as then.
    delete().await.unwrap();
    let entry = world.entry().await;
    assert_eq!((entry.metadata["replayed"].as_str(), entry.namespace.as_str()), ("true", "a"));
    assert_eq!(create().await.unwrap(), made);
    assert_eq!(refusal(key().await).reason(), "SECRET_ALREADY_ISSUED");

    // She moves to another namespace.
    world.bind("user:alice", "admin", Some("b")).await;
    world.root::<binding::DeleteBinding>(wire::DeleteBindingRequest { binding_id: in_a }).await.unwrap();
    denied(create().await, "access:manage");
    denied(key().await, "access:manage");
    denied(delete().await, "access:manage");
    assert_eq!(world.entry().await.namespace, "a");
    world.bind("user:alice", "admin", None).await;
    assert_eq!(create().await.unwrap(), made);
}
