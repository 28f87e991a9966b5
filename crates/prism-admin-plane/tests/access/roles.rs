//! ListRoles, CreateRole, UpdateRole, DeleteRole.

use prism_admin_plane::ops::role;
use prism_core::Kind;
use prism_proto::admin::v1 as wire;

use crate::world::{World, create_role, invalid, refusal, role_of};

#[tokio::test]
async fn a_role_is_in_force_for_all_who_have_it_while_it_is_there() {
    let world = World::new().await;
    let made = world.root::<role::CreateRole>(create_role("team", &["config.read", "audit:read"])).await.unwrap();
    assert_eq!(made.role.unwrap(), role_of("team", &["config:read", "audit:read"]));
    let entry = world.entry().await;
    assert_eq!((entry.resource.as_str(), entry.namespace.as_str()), ("role:team", ""));
    assert_eq!(entry.metadata["after"], r#"{"permissions":["config:read","audit:read"]}"#);
    let (_, key) = world.key("team", Some("a")).await;
    world.bind("user:alice", "team", None).await;

    let request = wire::UpdateRoleRequest { role: Some(role_of("team", &["access:read"])) };
    world.root::<role::UpdateRole>(request).await.unwrap();
    let entry = world.entry().await;
    assert_eq!(entry.metadata["before"], r#"{"permissions":["config:read","audit:read"]}"#);
    assert_eq!(entry.metadata["after"], r#"{"permissions":["access:read"]}"#);
    assert_eq!(world.who_am_i(&key).await.unwrap().grants[0].permissions, ["access:read"]);

    world.root::<role::DeleteRole>(wire::DeleteRoleRequest { name: "team".to_owned() }).await.unwrap();
    let entry = world.entry().await;
    assert_eq!((entry.metadata["bindings"].as_str(), entry.metadata["keys"].as_str()), ("1", "1"));
    assert_eq!(world.held(&key).await, []);
    let gone = world.root::<role::DeleteRole>(wire::DeleteRoleRequest { name: "team".to_owned() }).await;
    assert_eq!(refusal(gone).kind(), Kind::NotFound);
    let request = wire::UpdateRoleRequest { role: Some(role_of("team", &["access:read"])) };
    assert_eq!(refusal(world.root::<role::UpdateRole>(request).await).kind(), Kind::NotFound);
}

#[tokio::test]
async fn built_in_roles_stay_as_they_are() {
    let world = World::new().await;
    let created = world.root::<role::CreateRole>(create_role("viewer", &["config:read"])).await;
    assert_eq!(refusal(created).kind(), Kind::AlreadyExists);
    let listed = world.root::<role::ListRoles>(wire::ListRolesRequest::default()).await.unwrap();
    let viewer = listed.roles.into_iter().find(|role| role.name == "viewer").unwrap();
    assert!(viewer.built_in);
    for changed in [viewer, role_of("viewer", &["config:*"])] {
        let error = refusal(world.root::<role::UpdateRole>(wire::UpdateRoleRequest { role: Some(changed) }).await);
        assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "ROLE_BUILT_IN"));
    }
    let deleted = world.root::<role::DeleteRole>(wire::DeleteRoleRequest { name: "admin".to_owned() }).await;
    assert_eq!(refusal(deleted).reason(), "ROLE_BUILT_IN");
}

#[tokio::test]
async fn every_fault_of_a_role_is_named() {
    let world = World::new().await;
    let bad = wire::Role { built_in: true, ..role_of("Bad Name", &["config:read", "config:fly", "config.read"]) };
    let fields = ["role.name", "role.permissions[1]", "role.permissions[2]", "role.built_in"];
    invalid(world.root::<role::CreateRole>(wire::CreateRoleRequest { role: Some(bad.clone()) }).await, &fields);
    invalid(world.root::<role::UpdateRole>(wire::UpdateRoleRequest { role: Some(bad) }).await, &fields);
    invalid(world.root::<role::CreateRole>(wire::CreateRoleRequest { role: None }).await, &["role"]);
    invalid(world.root::<role::DeleteRole>(wire::DeleteRoleRequest::default()).await, &["name"]);
    assert_eq!(
        refusal(world.root::<role::CreateRole>(create_role("admin", &["config:read"])).await).kind(),
        Kind::AlreadyExists
    );
}

#[tokio::test]
async fn roles_are_listed_by_name_for_whoever_may_look() {
    let world = World::new().await;
    for name in ["zeta", "beta", "0"] {
        world.role(name, &["config:read"]).await;
    }
    world.role("looker", &["access:read"]).await;
    let (_, looker) = world.key("looker", Some("a")).await;
    let (mut names, mut token) = (Vec::new(), None);
    loop {
        let request = wire::ListRolesRequest { page_size: 3, page_token: token };
        let page = world.call::<role::ListRoles>(&looker, request).await.unwrap();
        assert_eq!(page.total_count, 7);
        names.extend(page.roles.into_iter().map(|role| role.name));
        token = Some(page.next_page_token).filter(|token| !token.is_empty());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, ["0", "admin", "beta", "looker", "operator", "viewer", "zeta"]);
    let (_, viewer) = world.key("viewer", None).await;
    let refused = world.call::<role::ListRoles>(&viewer, wire::ListRolesRequest::default()).await;
    assert_eq!(refusal(refused).kind(), Kind::PermissionDenied);
}
