//! RotateApiKey.

use std::time::Duration;

use prism_admin_plane::ops::api_key;
use prism_core::{Kind, Result};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::{duration, timestamp};

use crate::world::{DAY, MINUTE, Shown, World, invalid, key_request, refusal};

async fn rotate(world: &World, id: &str, overlap: Option<Duration>) -> Result<wire::RotateApiKeyResponse> {
    let overlap = overlap.map(duration);
    world.root::<api_key::RotateApiKey>(wire::RotateApiKeyRequest { key_id: id.to_owned(), overlap }).await
}

#[tokio::test]
async fn a_rotated_key_stays_what_it_was_under_its_id() {
    let world = World::new().await;
    let (id, old) = world.key("viewer", Some("a")).await;
    let answer = rotate(&world, &id, Some(MINUTE)).await.unwrap();
    let key = answer.api_key.unwrap();
    assert_eq!((key.key_id.as_str(), key.roles.as_slice()), (id.as_str(), &["viewer".to_owned()][..]));
    assert_eq!(key.rotated_at, Some(timestamp(world.clock.now())));
    assert_eq!(key.overlap_ends_at, Some(timestamp(world.clock.now() + MINUTE)));
    let entry = world.entry().await;
    assert_eq!((entry.resource, entry.namespace), (format!("key:{id}"), "a".to_owned()));
    assert_eq!(entry.metadata["overlap_ms"], "60000");

    let new = Shown::Token(answer.token);
    assert_eq!(world.held(&old).await, world.held(&new).await);
    assert_eq!(world.who_am_i(&new).await.unwrap().credential_id, id);
    world.clock.advance(MINUTE);
    assert_eq!(refusal(world.who_am_i(&old).await).reason(), "CREDENTIAL_INVALID");
    world.who_am_i(&new).await.unwrap();
    let listed = world.root::<api_key::ListApiKeys>(wire::ListApiKeysRequest::default()).await.unwrap();
    let listed = listed.api_keys.into_iter().find(|key| key.key_id == id).unwrap();
    assert!(listed.rotated_at.is_some() && listed.overlap_ends_at.is_none());
}

#[tokio::test]
async fn without_an_overlap_the_old_token_dies_at_once_its_own_too() {
    let world = World::new().await;
    let (id, old) = world.key("admin", None).await;
    let request = wire::RotateApiKeyRequest { key_id: id.clone(), overlap: Some(duration(Duration::ZERO)) };
    let answer = world.keyed::<api_key::RotateApiKey>(&old, request.clone(), Some("once")).await.unwrap();
    assert!(answer.api_key.unwrap().overlap_ends_at.is_none());
    assert_eq!(refusal(world.who_am_i(&old).await).reason(), "CREDENTIAL_INVALID");
    let new = Shown::Token(answer.token);
    // The same key, so the same idempotency key: the token is not shown again.
    let again = refusal(world.keyed::<api_key::RotateApiKey>(&new, request, Some("once")).await);
    assert_eq!((again.reason(), again.metadata()["id"].as_str()), ("SECRET_ALREADY_ISSUED", id.as_str()));
    world.who_am_i(&new).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_rotated_is_said() {
    let world = World::new().await;
    let (id, token) = world.key("viewer", None).await;
    invalid(rotate(&world, &id, Some(30 * DAY + Duration::from_millis(1))).await, &["overlap"]);
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let request = wire::RotateApiKeyRequest { key_id: String::new(), overlap: negative };
    invalid(world.root::<api_key::RotateApiKey>(request).await, &["key_id", "overlap"]);
    assert_eq!(refusal(rotate(&world, "0123456789abcdef", None).await).kind(), Kind::NotFound);
    world.who_am_i(&token).await.unwrap();
    rotate(&world, &id, Some(30 * DAY)).await.unwrap();
    world.who_am_i(&token).await.unwrap();
    world.root::<api_key::RevokeApiKey>(wire::RevokeApiKeyRequest { key_id: id.clone() }).await.unwrap();
    let error = refusal(rotate(&world, &id, None).await);
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "KEY_REVOKED"));
}

#[tokio::test]
async fn no_token_outlives_its_key() {
    let world = World::new().await;
    let request = wire::CreateApiKeyRequest { ttl: Some(duration(DAY)), ..key_request(&["viewer"], None) };
    let made = world.root::<api_key::CreateApiKey>(request).await.unwrap();
    let id = made.api_key.unwrap().key_id;
    let key = rotate(&world, &id, Some(10 * DAY)).await.unwrap().api_key.unwrap();
    assert_eq!(key.overlap_ends_at, key.expires_at);
    world.clock.advance(DAY);
    let error = refusal(rotate(&world, &id, None).await);
    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "KEY_EXPIRED"));
}

#[tokio::test]
async fn a_key_is_made_with_roles_that_there_are() {
    let world = World::new().await;
    invalid(world.root::<api_key::CreateApiKey>(key_request(&["viewer", "wizard"], None)).await, &["roles[1]"]);
    invalid(world.root::<api_key::CreateApiKey>(key_request(&["viewer", "viewer"], None)).await, &["roles[1]"]);
    invalid(world.root::<api_key::CreateApiKey>(key_request(&[], None)).await, &["roles"]);
    world.role("wizard", &["config:read"]).await;
    world.root::<api_key::CreateApiKey>(key_request(&["viewer", "wizard"], None)).await.unwrap();
}
