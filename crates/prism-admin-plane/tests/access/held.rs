//! Nobody hands out more than they hold.

use prism_admin_plane::ops::{api_key, binding, certificate, role};
use prism_core::Kind;
use prism_proto::admin::v1 as wire;

use crate::world::{Shown, World, create_binding, create_role, denied, issue, key_request, refusal, role_of};

/// A world with a key that may manage access and read configs, everywhere.
async fn with_manager() -> (World, Shown) {
    let world = World::new().await;
    world.role("manager", &["access:manage", "access:read", "config:read"]).await;
    let (_, manager) = world.key("manager", None).await;
    (world, manager)
}

#[tokio::test]
async fn a_key_carries_no_more_than_its_maker_holds() {
    let (world, manager) = with_manager().await;
    let create = |roles: &[&str], namespace| {
        let request = key_request(roles, namespace);
        world.call::<api_key::CreateApiKey>(&manager, request)
    };
    create(&["manager"], None).await.unwrap();
    create(&["manager"], Some("a")).await.unwrap();
    denied(create(&["admin"], None).await, "config:*");
    denied(create(&["manager", "viewer"], Some("a")).await, "session:read");
    let entry = world.entry().await;
    assert_eq!((entry.operation.as_str(), entry.success), ("CreateApiKey", false));
    assert_eq!(entry.metadata["permission"], "session:read");
}

#[tokio::test]
async fn a_rotation_hands_the_keys_power_out() {
    let (world, manager) = with_manager().await;
    let (operator, token) = world.key("operator", Some("a")).await;
    let rotate = |id: &str| {
        let request = wire::RotateApiKeyRequest { key_id: id.to_owned(), overlap: None };
        world.call::<api_key::RotateApiKey>(&manager, request)
    };
    denied(rotate(&operator).await, "session:read");
    world.who_am_i(&token).await.unwrap();
    let (own_kind, _) = world.key("manager", Some("b")).await;
    rotate(&own_kind).await.unwrap();
    // Revoking gives nothing away.
    world.call::<api_key::RevokeApiKey>(&manager, wire::RevokeApiKeyRequest { key_id: operator }).await.unwrap();
    assert_eq!(refusal(world.who_am_i(&token).await).reason(), "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn a_binding_gives_no_more_than_its_maker_holds_there() {
    let (world, manager) = with_manager().await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let bind = |shown: &Shown, role: &str, namespace| {
        let shown = shown.clone();
        let request = create_binding("user:eve", role, namespace);
        let world = &world;
        async move { world.call::<binding::CreateBinding>(&shown, request).await }
    };
    bind(&manager, "manager", None).await.unwrap();
    denied(bind(&manager, "viewer", Some("a")).await, "session:read");
    bind(&bound, "admin", Some("a")).await.unwrap();
    denied(bind(&bound, "viewer", Some("b")).await, "access:manage");
    denied(bind(&bound, "viewer", None).await, "access:manage");
}

#[tokio::test]
async fn a_role_is_made_and_changed_by_those_who_hold_all_of_it_everywhere() {
    let (world, manager) = with_manager().await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let create = |shown: Shown, name: &'static str, permissions: &'static [&'static str]| {
        let world = &world;
        async move { world.call::<role::CreateRole>(&shown, create_role(name, permissions)).await }
    };
    create(manager.clone(), "reader", &["config:read"]).await.unwrap();
    denied(create(manager.clone(), "writer", &["config:read", "config:update"]).await, "config:update");
    // Holding every verb that there is today is not holding those to come.
    denied(create(manager.clone(), "all", &["access:*"]).await, "access:*");
    denied(create(bound, "reader-2", &["config:read"]).await, "access:manage");

    let update = |name: &'static str, permissions: &'static [&'static str]| {
        let request = wire::UpdateRoleRequest { role: Some(role_of(name, permissions)) };
        world.call::<role::UpdateRole>(&manager, request)
    };
    denied(update("reader", &["config:read", "audit:read"]).await, "audit:read");
    denied(update("manager", &["access:manage", "nodes:*"]).await, "nodes:*");
    update("reader", &["access:read"]).await.unwrap();
    // What somebody else may do beyond, the manager may take away and not leave in place.
    world.role("wide", &["config:read", "operational:drain"]).await;
    denied(update("wide", &["config:read", "operational:drain", "access:read"]).await, "operational:drain");
    update("wide", &["config:read"]).await.unwrap();
}

#[tokio::test]
async fn a_user_s_certificate_is_issued_by_those_who_may_do_everything() {
    let (world, manager) = with_manager().await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let uri = format!("spiffe://{}/user/bob", world.store.cluster());
    world.bind("user:alice", "operator", Some("b")).await;
    world.bind(&format!("certificate:{uri}"), "viewer", None).await;
    world.bind("user:mary", "manager", None).await;
    world.bind("group:carol", "admin", None).await;
    let ask = |shown: &Shown, kind, name| {
        let (shown, world) = (shown.clone(), &world);
        async move { world.call::<certificate::IssueCertificate>(&shown, issue(kind, name)).await }
    };
    let user = wire::CertificateKind::User;
    // Also who is bound to nothing today: somebody may bind the name tomorrow.
    for name in ["alice", "bob", "mary", "carol", "nobody"] {
        denied(ask(&manager, user, name).await, "config:*");
    }
    let (_, admin) = world.key("admin", None).await;
    ask(&admin, user, "nobody").await.unwrap();
    ask(&manager, wire::CertificateKind::Client, "alice").await.unwrap();
    denied(ask(&bound, user, "nobody").await, "access:manage");
    denied(ask(&bound, wire::CertificateKind::Client, "app").await, "access:manage");
    // Nothing was issued for those who were refused.
    let listed = world.root::<certificate::ListCertificates>(wire::ListCertificatesRequest::default()).await.unwrap();
    let names: Vec<&str> = listed.certificates.iter().map(|certificate| certificate.name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(refusal(ask(&manager, user, "anonymous").await).kind(), Kind::InvalidArgument);
}
