//! CanI, WhoCan.

use prism_admin_plane::ops::{access, api_key};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::duration;

use crate::world::{DAY, Shown, World, denied, invalid, key_request};

async fn can(world: &World, shown: &Shown, rpc: &str, namespace: Option<&str>) -> bool {
    let request =
        wire::CanIRequest { rpc: format!("prism.admin.v1.{rpc}"), namespace: namespace.map(ToOwned::to_owned) };
    let answer = world.call::<access::CanI>(shown, request).await.unwrap();
    assert_eq!(answer.allowed, answer.reason.is_empty(), "{}", answer.reason);
    answer.allowed
}

#[tokio::test]
async fn a_bound_caller_learns_where_each_rpc_is_allowed() {
    let world = World::new().await;
    let (_, bound) = world.key("admin", Some("a")).await;
    let verdicts = async |rpc: &str| {
        let mut verdicts = [false; 3];
        for (verdict, namespace) in verdicts.iter_mut().zip([None, Some("a"), Some("b")]) {
            *verdict = can(&world, &bound, rpc, namespace).await;
            assert!(can(&world, &world.root, rpc, namespace).await, "{rpc}");
        }
        verdicts
    };
    for rpc in ["CreateRole", "UpdateRole", "DeleteRole", "IssueCertificate", "ListCertificates", "RevokeCertificate"] {
        assert_eq!(verdicts(&format!("AccessService/{rpc}")).await, [false, false, false], "{rpc}");
    }
    assert_eq!(verdicts("AdminService/CreateNamespace").await, [false, false, false]);
    for rpc in ["CreateApiKey", "RotateApiKey", "CreateBinding", "DeleteBinding", "CreateClientBinding", "WhoCan"] {
        assert_eq!(verdicts(&format!("AccessService/{rpc}")).await, [false, true, false], "{rpc}");
    }
    for rpc in ["ListApiKeys", "ListRoles", "ListBindings", "ListClientBindings"] {
        assert_eq!(verdicts(&format!("AccessService/{rpc}")).await, [true, true, false], "{rpc}");
    }
    for rpc in ["AccessService/WhoAmI", "AccessService/CanI"] {
        assert_eq!(verdicts(rpc).await, [true, true, true], "{rpc}");
    }
    let (_, viewer) = world.key("viewer", None).await;
    assert!(!can(&world, &viewer, "AccessService/ListRoles", None).await);
    assert!(can(&world, &viewer, "AdminService/GetConfig", Some("b")).await);
}

#[tokio::test]
async fn who_can_names_bindings_and_keys_that_are_valid() {
    let world = World::new().await;
    world.bind("user:alice", "viewer", None).await;
    world.bind("group:team", "operator", Some("a")).await;
    world.bind("group:team", "operator", Some("b")).await;
    let (viewer, _) = world.key("viewer", Some("a")).await;
    let (revoked, _) = world.key("viewer", Some("a")).await;
    world.root::<api_key::RevokeApiKey>(wire::RevokeApiKeyRequest { key_id: revoked }).await.unwrap();
    let short = wire::CreateApiKeyRequest { ttl: Some(duration(DAY)), ..key_request(&["viewer"], Some("a")) };
    world.root::<api_key::CreateApiKey>(short).await.unwrap();
    world.clock.advance(DAY);
    let root = world.who_am_i(&world.root).await.unwrap().credential_id;

    let ask = |permission: &str, namespace: Option<&str>| wire::WhoCanRequest {
        permission: permission.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
    };
    let everywhere = world.root::<access::WhoCan>(ask("session:read", None)).await.unwrap().subjects;
    assert_eq!(everywhere, [format!("key:{root}"), "user:alice".to_owned()]);
    let mut expected =
        vec![format!("key:{root}"), format!("key:{viewer}"), "group:team".to_owned(), "user:alice".to_owned()];
    expected.sort();
    assert_eq!(world.root::<access::WhoCan>(ask("session.read", Some("a"))).await.unwrap().subjects, expected);
    let (_, bound) = world.key("admin", Some("a")).await;
    // Who may ask in one namespace is told who is bound there, and of those who hold it everywhere how many they are.
    let mine = world.who_am_i(&bound).await.unwrap().credential_id;
    let answer = world.call::<access::WhoCan>(&bound, ask("access:manage", Some("a"))).await.unwrap();
    assert_eq!((answer.subjects, answer.installation_wide), (vec![format!("key:{mine}")], 1));
    let answer = world.call::<access::WhoCan>(&bound, ask("session:read", Some("a"))).await.unwrap();
    let mut expected = vec![format!("key:{mine}"), format!("key:{viewer}"), "group:team".to_owned()];
    expected.sort();
    assert_eq!((answer.subjects, answer.installation_wide), (expected, 2));
    assert_eq!(world.root::<access::WhoCan>(ask("session:read", Some("a"))).await.unwrap().installation_wide, 0);
    denied(world.call::<access::WhoCan>(&bound, ask("access:manage", None)).await, "access:manage");
    denied(world.call::<access::WhoCan>(&bound, ask("access:manage", Some("b"))).await, "access:manage");
    invalid(world.root::<access::WhoCan>(ask("config:*", Some("A"))).await, &["permission", "namespace"]);
    invalid(world.root::<access::WhoCan>(ask("config:fly", None)).await, &["permission"]);
}
