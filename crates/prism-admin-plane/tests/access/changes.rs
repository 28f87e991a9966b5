//! What the audit log says of a change: the fields before and after, and no secret.

use prism_admin_plane::ops::{api_key, binding, certificate, client_binding, client_key};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::duration;
use serde_json::{Value, json};

use crate::bindings::create_client;
use crate::world::{DAY, MINUTE, Shown, World, create_binding, issue, key_request};

/// Both sides of the newest entry.
async fn sides(world: &World) -> (Value, Value) {
    let mut metadata = world.entry().await.metadata;
    let mut side = |name: &str| metadata.remove(name).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (side("before"), side("after"))
}

#[tokio::test]
async fn a_key_s_life_is_told_in_full_and_without_its_secret() {
    let world = World::new().await;
    let (now, made) = (world.clock.now(), key_request(&["viewer", "operator"], Some("a")));
    let request = wire::CreateApiKeyRequest { user: Some("alice".to_owned()), ttl: Some(duration(DAY)), ..made };
    let made = world.root::<api_key::CreateApiKey>(request).await.unwrap();
    let id = made.api_key.unwrap().key_id;
    let state = json!({"name": "k", "roles": ["viewer", "operator"], "namespace": "a", "owner": "alice",
        "expires_at_epoch_ms": (now + DAY).0});
    assert_eq!(sides(&world).await, (Value::Null, state.clone()));

    world.clock.advance(MINUTE);
    let rotate = wire::RotateApiKeyRequest { key_id: id.clone(), overlap: Some(duration(MINUTE)) };
    let rotated = world.root::<api_key::RotateApiKey>(rotate).await.unwrap();
    let at = world.clock.now();
    let after = json!({"rotated_at_epoch_ms": at.0, "overlap_ends_at_epoch_ms": (at + MINUTE).0});
    assert_eq!(sides(&world).await, (Value::Null, after));

    let revoke = wire::RevokeApiKeyRequest { key_id: id };
    world.root::<api_key::RevokeApiKey>(revoke.clone()).await.unwrap();
    assert_eq!(sides(&world).await, (Value::Null, json!({"revoked_at_epoch_ms": at.0})));
    world.root::<api_key::RevokeApiKey>(revoke).await.unwrap();
    assert_eq!(sides(&world).await, (Value::Null, Value::Null));
    for token in [&made.token, &rotated.token] {
        assert!(!format!("{:?}", world.entries(100).await).contains(token.as_str()));
    }
}

#[tokio::test]
async fn what_clients_get_and_lose_is_told() {
    let world = World::new().await;
    let request = wire::CreateClientKeyRequest {
        name: "app".to_owned(),
        namespace: "a".to_owned(),
        permissions: vec!["read".to_owned()],
        ttl: Some(duration(DAY)),
    };
    let made = world.root::<client_key::CreateClientKey>(request).await.unwrap();
    let ends = (world.clock.now() + DAY).0;
    let state = json!({"name": "app", "namespace": "a", "permissions": ["read"], "expires_at_epoch_ms": ends});
    assert_eq!(sides(&world).await, (Value::Null, state));
    let revoke = wire::RevokeClientKeyRequest { key_id: made.client_key.unwrap().key_id };
    world.root::<client_key::RevokeClientKey>(revoke).await.unwrap();
    assert_eq!(sides(&world).await.1, json!({"revoked_at_epoch_ms": world.clock.now().0}));

    let made = world.root::<client_binding::CreateClientBinding>(create_client("group:apps", "a", &["write"])).await;
    let state = json!({"subject": "group:apps", "namespace": "a", "permissions": ["write"]});
    assert_eq!(sides(&world).await, (Value::Null, state.clone()));
    let binding_id = made.unwrap().client_binding.unwrap().binding_id;
    let delete = wire::DeleteClientBindingRequest { binding_id };
    world.root::<client_binding::DeleteClientBinding>(delete).await.unwrap();
    assert_eq!(sides(&world).await, (state, Value::Null));
}

#[tokio::test]
async fn what_operators_get_and_lose_is_told() {
    let world = World::new().await;
    let made = world.root::<binding::CreateBinding>(create_binding("user:alice", "viewer", Some("a"))).await.unwrap();
    let state = json!({"subject": "user:alice", "role": "viewer", "namespace": "a"});
    assert_eq!(sides(&world).await, (Value::Null, state.clone()));
    let delete = wire::DeleteBindingRequest { binding_id: made.binding.unwrap().binding_id };
    world.root::<binding::DeleteBinding>(delete).await.unwrap();
    assert_eq!(sides(&world).await, (state, Value::Null));

    let request = issue(wire::CertificateKind::User, "alice");
    let issued = world.root::<certificate::IssueCertificate>(request).await.unwrap().certificate.unwrap();
    let (before, after) = sides(&world).await;
    assert_eq!((before, &after["uri"], &after["kind"]), (Value::Null, &json!(issued.uri), &json!("user")));
    assert_eq!(after["serial_number"], json!(issued.serial_number));
    let revoke = wire::RevokeCertificateRequest { serial_number: issued.serial_number, fingerprint: String::new() };
    world.root::<certificate::RevokeCertificate>(revoke).await.unwrap();
    assert_eq!(sides(&world).await.1, json!({"revoked_at_epoch_ms": world.clock.now().0}));
    let foreign = "ab".repeat(32);
    let revoke = wire::RevokeCertificateRequest { serial_number: String::new(), fingerprint: foreign.clone() };
    world.root::<certificate::RevokeCertificate>(revoke).await.unwrap();
    let after = json!({"fingerprint": foreign, "revoked_at_epoch_ms": world.clock.now().0});
    assert_eq!(sides(&world).await, (Value::Null, after));
    let Shown::Token(root) = &world.root else { unreachable!() };
    assert!(!format!("{:?}", world.entries(100).await).contains(root.as_str()));
}
