//! Seed B, read from top to bottom: every sentence is tried by gRPC, by the older package path and by REST.

use prism_e2e::certificates::{Authority, uri};
use prism_e2e::transports::{ALL, Caller, World, is};
use prism_e2e::wait::until;
use prism_e2e::{Admin, keys};

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_millis() as i64
}

/// "Issue a new join token … The raw join_token string is returned exactly once — the controller persists only its hash. Pair it
/// with the node_id field when you want to restrict bootstrap to a specific daemon."
#[tokio::test]
async fn a_token_is_issued_listed_and_revoked() {
    let world = World::new().await;
    let root = world.root();
    for (by, number) in ALL.into_iter().zip(1..) {
        let node = format!("n{number}");
        // "optional: lifetime; controller falls back to default"
        let before = now_ms();
        let default = world.create(by, &root, "", 0).await.unwrap();
        let life = default.expires_at - before;
        assert!((3_600_000..3_660_000).contains(&life), "{by:?}: {life}");
        let bound = world.create(by, &root, &node, 604_800).await.unwrap();
        assert_eq!(keys::id(&bound.token), bound.id);
        // "optional: bind token to a specific node id"
        let refused = world.exchange(by, &bound.token, "other").await.unwrap_err();
        assert_eq!(refused, is("FAILED_PRECONDITION", "NODE_MISMATCH", &[]), "{by:?}");
        world.exchange(by, &bound.token, &node).await.unwrap();

        // "List currently tracked tokens", seen the same from everywhere. "The raw token value is unrecoverable".
        for seen_by in ALL {
            let listed = world.list(seen_by, &root).await.unwrap();
            let of = |id: &str| listed.iter().find(|(known, _)| known == id).map(|(_, listed)| listed.clone()).unwrap();
            assert_eq!(of(&bound.id), (node.clone(), bound.expires_at, false, "REDEEMED".to_owned()), "{seen_by:?}");
            assert_eq!(of(&default.id), (String::new(), default.expires_at, false, "ACTIVE".to_owned()));
            assert!(!format!("{listed:?}").contains(keys::secret(&bound.token)));
        }

        // "Revoke a token by id (not by raw value)."
        let unknown = world.revoke(by, &root, &default.token).await.unwrap_err();
        assert_eq!(unknown, is("NOT_FOUND", "NOT_FOUND", &[]), "{by:?}");
        world.revoke(by, &root, &default.id).await.unwrap();
        world.revoke(by, &root, &default.id).await.unwrap();
        // "After revocation the controller rejects any BootstrapService.ExchangeJoinToken call presenting that token with
        // FAILED_PRECONDITION."
        for exchanged_by in ALL {
            let refused = world.exchange(exchanged_by, &default.token, &node).await.unwrap_err();
            assert_eq!(refused, is("FAILED_PRECONDITION", "TOKEN_REVOKED", &[]), "{exchanged_by:?}");
        }
        // "bool expired"
        let short = world.create(by, &root, "", 1).await.unwrap();
        let gone = until("the token expires", async || {
            let listed = world.list(by, &root).await.unwrap();
            let (_, listed) = listed.into_iter().find(|(id, _)| *id == short.id).unwrap();
            listed.2.then_some(listed.3)
        });
        assert_eq!(gone.await, "EXPIRED");
        let refused = world.exchange(by, &short.token, &node).await.unwrap_err();
        assert_eq!(refused, is("FAILED_PRECONDITION", "TOKEN_EXPIRED", &[]), "{by:?}");
    }
    prism_e2e::audit::verify(&world.server.admin().whole_log().await);
}

/// "Status mapping", row by row, by every transport; and each call leaves the same entry.
#[tokio::test]
async fn the_status_table_holds_row_by_row() {
    let world = World::new().await;
    let root = world.root();
    let viewer = Caller::bearer(&world.server.admin().create_api_key("viewer", None, None).await.token);
    for by in ALL {
        let invalid = |fields: &[&str]| is("INVALID_ARGUMENT", "INVALID_ARGUMENT", fields);
        for (node, ttl, fields) in [
            ("", -1, &["ttlSeconds"][..]),
            ("", 604_801, &["ttlSeconds"]),
            ("", i32::MIN, &["ttlSeconds"]),
            ("A", 0, &["nodeId"]),
            ("a,b", 0, &["nodeId"]),
            ("a.b", 0, &["nodeId"]),
            (&"x".repeat(64), 0, &["nodeId"]),
            ("controller", 0, &["nodeId"]),
            ("-", -5, &["nodeId", "ttlSeconds"]),
        ] {
            let refused = world.create(by, &root, node, ttl).await.unwrap_err();
            assert_eq!(refused, invalid(fields), "{by:?} {node} {ttl}");
        }
        for blank in ["", "  "] {
            assert_eq!(world.revoke(by, &root, blank).await.unwrap_err(), invalid(&["tokenId"]), "{by:?}");
        }
        let unknown = world.revoke(by, &root, "0123456789abcdef").await.unwrap_err();
        assert_eq!(unknown, is("NOT_FOUND", "NOT_FOUND", &[]), "{by:?}");

        let denied = || is("PERMISSION_DENIED", "PERMISSION_DENIED", &[]);
        assert_eq!(world.create(by, &viewer, "", 0).await.unwrap_err(), denied(), "{by:?}");
        // Authorisation comes before validation.
        assert_eq!(world.create(by, &viewer, "A", -1).await.unwrap_err(), denied(), "{by:?}");
        assert_eq!(world.revoke(by, &viewer, "").await.unwrap_err(), denied(), "{by:?}");
        assert_eq!(world.list(by, &viewer).await.unwrap_err(), denied(), "{by:?}");

        let missing = || is("UNAUTHENTICATED", "CREDENTIAL_MISSING", &[]);
        assert_eq!(world.create(by, &Caller::nobody(), "", 0).await.unwrap_err(), missing(), "{by:?}");
        assert_eq!(world.revoke(by, &Caller::nobody(), "x").await.unwrap_err(), missing(), "{by:?}");
        assert_eq!(world.list(by, &Caller::nobody()).await.unwrap_err(), missing(), "{by:?}");
        let strange = Caller::bearer(&keys::unknown("prx_"));
        let refused = world.list(by, &strange).await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "CREDENTIAL_INVALID", &[]), "{by:?}");

        let refused = world.exchange(by, &keys::unknown("prj_"), "n1").await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "TOKEN_INVALID", &[]), "{by:?}");
        assert_eq!(world.exchange(by, "", "n1").await.unwrap_err(), invalid(&["joinToken"]), "{by:?}");
    }
    for operation in ["CreateJoinToken", "RevokeJoinToken", "ListJoinTokens"] {
        let entries = world.entries(operation).await;
        assert!(entries.len() % 3 == usize::from(operation == "CreateJoinToken"), "{operation}: {}", entries.len());
    }
}

/// "The caller must present either: A valid mTLS client cert from the controller's CA (e.g. another controller node), or a bearer
/// token … belonging to a user with the tokens.manage permission."
#[tokio::test]
async fn both_ways_of_authentication_open_it() {
    let world = World::new().await;
    let admin: Admin = world.server.admin();
    let ca = Authority::of_server(&world.server.data_dir());
    let named = |kind: &str, name: &str| ca.client(vec![uri(&format!("spiffe://{}/{kind}/{name}", world.cluster))]);
    admin.create_role("minter", &["tokens.manage"]).await;
    admin.bind("user:alice", "minter", None).await;
    let minter = admin.create_api_key("minter", None, Some("bob@example.com")).await.token;
    let good = [
        ("a controller", Caller::certificate(named("controller", "c2"))),
        ("a user's certificate", Caller::certificate(named("user", "alice"))),
        ("a user's key", Caller::bearer(&minter)),
    ];
    for (name, caller) in &good {
        for by in ALL {
            let made = world.create(by, caller, "", 60).await.unwrap_or_else(|refused| panic!("{name}: {refused:?}"));
            assert!(world.list(by, caller).await.unwrap().iter().any(|(id, _)| *id == made.id), "{name} by {by:?}");
            world.revoke(by, caller, &made.id).await.unwrap();
        }
    }
    let denied = is("PERMISSION_DENIED", "PERMISSION_DENIED", &[]);
    for (name, holder) in [("a node", named("node", "n1")), ("a user without it", named("user", "carol"))] {
        for by in ALL {
            let refused = world.create(by, &Caller::certificate(holder.clone()), "", 60).await.unwrap_err();
            assert_eq!(refused, denied, "{name} by {by:?}");
        }
    }
    let strange = Authority::new("strange").client(vec![uri(&format!("spiffe://{}/controller/c2", world.cluster))]);
    for by in ALL {
        let refused = world.list(by, &Caller::certificate(strange.clone())).await.unwrap_err();
        assert_eq!(refused, is("UNAUTHENTICATED", "CREDENTIAL_INVALID", &[]), "{by:?}");
    }
    let entries = world.entries("CreateJoinToken").await;
    let of = |actor: &str| entries.iter().filter(|entry| entry.success && entry.actor == actor).count();
    assert_eq!((of("bob@example.com"), of("alice")), (3, 3));
}
