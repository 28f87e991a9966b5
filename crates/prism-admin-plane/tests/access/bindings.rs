//! Bindings of the admin plane and of the data plane.

use prism_admin_plane::ops::{binding, client_binding, namespace};
use prism_core::Kind;
use prism_core::subject::Subject;
use prism_proto::admin::v1 as wire;

use crate::world::{World, create_binding, denied, invalid, refusal};

#[tokio::test]
async fn a_binding_gives_a_role_until_it_is_deleted() {
    let world = World::new().await;
    let (_, alice) = world.certificate(wire::CertificateKind::User, "alice").await;
    assert_eq!(world.held(&alice).await, []);
    let everywhere = world.bind("user:alice", "viewer", None).await;
    let in_a = world.bind("user:alice", "admin", Some("a")).await;
    assert_ne!(everywhere, "ignored");
    let entry = world.entry().await;
    assert_eq!((entry.resource, entry.namespace.as_str()), (format!("binding:{in_a}"), "a"));
    assert_eq!((entry.metadata["subject"].as_str(), entry.metadata["role"].as_str()), ("user:alice", "admin"));
    let held = [("viewer".to_owned(), None), ("admin".to_owned(), Some("a".to_owned()))];
    let mut found = world.held(&alice).await;
    found.sort_by(|a, b| b.cmp(a));
    assert_eq!(found, held);

    let delete = |id: &str| wire::DeleteBindingRequest { binding_id: id.to_owned() };
    // Alice runs a, and what is everywhere is not hers to take away.
    denied(world.call::<binding::DeleteBinding>(&alice, delete(&everywhere)).await, "access:manage");
    world.call::<binding::DeleteBinding>(&alice, delete(&in_a)).await.unwrap();
    let entry = world.entry().await;
    assert_eq!((entry.namespace.as_str(), entry.actor.as_str()), ("a", "alice"));
    assert_eq!(world.held(&alice).await, [("viewer".to_owned(), None)]);
    assert_eq!(refusal(world.root::<binding::DeleteBinding>(delete(&in_a)).await).kind(), Kind::NotFound);
    invalid(world.root::<binding::DeleteBinding>(delete("")).await, &["binding_id"]);
}

#[tokio::test]
async fn every_fault_of_a_binding_is_named() {
    let world = World::new().await;
    let create =
        |subject, role, namespace| world.root::<binding::CreateBinding>(create_binding(subject, role, namespace));
    invalid(create("alice", "wizard", Some("A b")).await, &["binding.subject", "binding.role", "binding.namespace"]);
    invalid(create("user:alice", "viewer", Some("c")).await, &["binding.namespace"]);
    invalid(create("user:alice", "viewer", Some("")).await, &["binding.namespace"]);
    invalid(world.root::<binding::CreateBinding>(wire::CreateBindingRequest { binding: None }).await, &["binding"]);
    create("user:alice", "viewer", None).await.unwrap();
    assert_eq!(refusal(create("user:alice", "viewer", None).await).kind(), Kind::AlreadyExists);
}

#[tokio::test]
async fn a_list_shows_what_its_caller_may_see() {
    let world = World::new().await;
    world.bind("user:alice", "viewer", None).await;
    world.bind("user:alice", "viewer", Some("a")).await;
    world.bind("group:ops", "viewer", Some("b")).await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let list = |subject: Option<&str>| wire::ListBindingsRequest {
        subject: subject.map(ToOwned::to_owned),
        ..Default::default()
    };
    let all = world.root::<binding::ListBindings>(list(None)).await.unwrap();
    assert_eq!((all.bindings.len(), all.total_count), (3, 3));
    let alices = world.root::<binding::ListBindings>(list(Some("user:alice"))).await.unwrap();
    assert_eq!(alices.total_count, 2);
    let seen = world.call::<binding::ListBindings>(&bound, list(None)).await.unwrap();
    assert_eq!(seen.total_count, 1);
    assert_eq!(seen.bindings[0].namespace.as_deref(), Some("a"));
    assert_eq!(world.call::<binding::ListBindings>(&bound, list(Some("group:ops"))).await.unwrap().total_count, 0);
    invalid(world.root::<binding::ListBindings>(list(Some("ops"))).await, &["subject"]);
    let page = wire::ListBindingsRequest { page_size: 1, ..list(None) };
    let token = world.root::<binding::ListBindings>(page).await.unwrap().next_page_token;
    let other = wire::ListBindingsRequest { page_token: Some(token), ..list(Some("user:alice")) };
    invalid(world.root::<binding::ListBindings>(other).await, &["page_token"]);
}

pub fn create_client(subject: &str, namespace: &str, permissions: &[&str]) -> wire::CreateClientBindingRequest {
    wire::CreateClientBindingRequest {
        client_binding: Some(wire::ClientBinding {
            subject: subject.to_owned(),
            namespace: namespace.to_owned(),
            permissions: permissions.iter().map(|text| (*text).to_owned()).collect(),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn a_client_binding_is_for_one_namespace_of_the_data_plane() {
    use prism_core::control::ControlPlane as _;
    let world = World::new().await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let request = create_client("group:apps", "a", &["write"]);
    let made = world.call::<client_binding::CreateClientBinding>(&bound, request.clone()).await.unwrap();
    let made = made.client_binding.unwrap();
    assert_eq!((made.permissions.as_slice(), made.created_at.is_some()), (&["write".to_owned()][..], true));
    let entry = world.entry().await;
    assert_eq!((entry.resource, entry.namespace.as_str()), (format!("binding:{}", made.binding_id), "a"));
    let apps = Subject::group("apps").unwrap();
    let known = || world.store.snapshot().borrow().client_access.bindings.contains_key(&apps);
    assert!(known());
    let again = world.call::<client_binding::CreateClientBinding>(&bound, request).await;
    assert_eq!(refusal(again).kind(), Kind::AlreadyExists);
    let elsewhere = create_client("group:apps", "b", &["read"]);
    denied(world.call::<client_binding::CreateClientBinding>(&bound, elsewhere.clone()).await, "access:manage");
    world.root::<client_binding::CreateClientBinding>(elsewhere).await.unwrap();

    let list = wire::ListClientBindingsRequest::default;
    assert_eq!(world.root::<client_binding::ListClientBindings>(list()).await.unwrap().total_count, 2);
    let seen = world.call::<client_binding::ListClientBindings>(&bound, list()).await.unwrap();
    assert_eq!((seen.total_count, seen.client_bindings[0].namespace.as_str()), (1, "a"));
    let of_b = wire::ListClientBindingsRequest { namespace: Some("b".to_owned()), ..list() };
    denied(world.call::<client_binding::ListClientBindings>(&bound, of_b.clone()).await, "access:read");
    assert_eq!(world.root::<client_binding::ListClientBindings>(of_b).await.unwrap().total_count, 1);

    let delete = wire::DeleteClientBindingRequest { binding_id: made.binding_id };
    world.call::<client_binding::DeleteClientBinding>(&bound, delete.clone()).await.unwrap();
    assert_eq!(refusal(world.root::<client_binding::DeleteClientBinding>(delete).await).kind(), Kind::NotFound);
    let request = wire::DeleteNamespaceRequest { name: "b".to_owned(), force: true, validate_only: false };
    world.root::<namespace::DeleteNamespace>(request).await.unwrap();
    assert!(!known());
}

#[tokio::test]
async fn every_fault_of_a_client_binding_is_named() {
    let world = World::new().await;
    let create = |subject, namespace, permissions| {
        world.root::<client_binding::CreateClientBinding>(create_client(subject, namespace, permissions))
    };
    let (subject, namespace) = ("client_binding.subject", "client_binding.namespace");
    invalid(create("key:x", "", &["read", "fly"]).await, &[subject, namespace, "client_binding.permissions[1]"]);
    invalid(create("user:x", "a", &[]).await, &["client_binding.permissions"]);
    invalid(create("user:x", "a", &["read", "read"]).await, &["client_binding.permissions[1]"]);
    invalid(create("user:x", "c", &["read"]).await, &[namespace]);
    let empty = wire::CreateClientBindingRequest { client_binding: None };
    invalid(world.root::<client_binding::CreateClientBinding>(empty).await, &["client_binding"]);
}
