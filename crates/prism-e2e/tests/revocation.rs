//! What stands on a credential, a role or a binding goes with it: calls at once, streams that follow within a second, for
//! every kind of credential (issue "Done when"). What else ends streams is in oidc.rs and mtls.rs.

use std::time::{Duration, Instant};

use prism_e2e::certificates::{dns, leaf, uri};
use prism_e2e::grants::cut;
use prism_e2e::issuer::now;
use prism_e2e::matrix::World;
use prism_e2e::oidc::ADMIN;
use prism_e2e::wait::next;
use prism_e2e::{Admin, Failure};
use prism_proto::admin::v1::{
    AuditLogEntry, CertificateKind, CreateApiKeyRequest, RevokeApiKeyRequest, RotateApiKeyRequest, RotateApiKeyResponse,
};
use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use serde_json::json;
use tonic::{Code, Streaming};

/// Long enough for a stream to begin, short enough to wait for.
const SHORT: Duration = Duration::from_secs(5);

/// A stream of this caller that has brought an entry.
async fn live(caller: &Admin) -> Streaming<AuditLogEntry> {
    let mut stream = caller.follow().await.unwrap();
    caller.who_am_i().await.unwrap();
    next("the entry of that", &mut stream).await.unwrap().unwrap();
    stream
}

/// A stream of the caller ends when this is done, and the caller may not open another. Gives how it is refused.
async fn ends(what: &str, caller: &Admin, deed: impl AsyncFnOnce()) -> Failure {
    let (mut stream, mut twin) = (live(caller).await, live(caller).await);
    let since = Instant::now();
    deed().await;
    cut(what, &mut stream, since).await;
    cut(what, &mut twin, since).await;
    caller.ask("GetAuditLog", &json!({"follow": true})).await.expect_err(what)
}

/// The same when it ends by itself, `left` from now.
async fn ends_by_itself(what: &str, caller: &Admin, left: Duration) {
    let mut stream = live(caller).await;
    cut(what, &mut stream, Instant::now() + left).await;
    let refused = caller.ask("GetAuditLog", &json!({"follow": true})).await.expect_err(what);
    refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
}

async fn rotate(admin: &Admin, key_id: &str, overlap: Option<Duration>) -> RotateApiKeyResponse {
    let overlap = overlap.map(|overlap| prost_types::Duration { seconds: overlap.as_secs() as i64, nanos: 0 });
    let request = RotateApiKeyRequest { key_id: key_id.to_owned(), overlap };
    admin.access().rotate_api_key(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn what_stood_on_a_key_ends_with_it() {
    let world = World::start().await;
    let admin = world.server.admin();
    let mut witness = live(&admin).await;
    let key = async || {
        let made = admin.create_api_key("viewer", None, None).await;
        (made.api_key.unwrap().key_id, admin.with_key(&made.token))
    };
    let (id, caller) = key().await;
    let revoke = RevokeApiKeyRequest { key_id: id };
    let revoke = async || drop(admin.access().revoke_api_key(revoke).await.unwrap());
    let refused = ends("a revoked key", &caller, revoke).await;
    refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");

    // The key is the same, its token is another.
    let (id, caller) = key().await;
    let refused = ends("a rotated key", &caller, async || drop(rotate(&admin, &id, None).await)).await;
    refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");

    let short = CreateApiKeyRequest {
        name: "short".to_owned(),
        roles: vec!["viewer".to_owned()],
        ttl: Some(prost_types::Duration { seconds: SHORT.as_secs() as i64, nanos: 0 }),
        ..CreateApiKeyRequest::default()
    };
    let caller = admin.with_key(&admin.access().create_api_key(short).await.unwrap().into_inner().token);
    ends_by_itself("an expired key", &caller, SHORT).await;
    let seen = admin.audit(prism_proto::admin::v1::GetAuditLogRequest { limit: 1, ..Default::default() }).await;
    while next("an entry", &mut witness).await.unwrap().unwrap().sequence < seen[0].sequence {}
}

#[tokio::test]
async fn a_rotated_key_works_through_the_overlap_and_its_streams_with_it() {
    let world = World::start().await;
    let admin = world.server.admin();
    let made = admin.create_api_key("viewer", None, None).await;
    let id = made.api_key.unwrap().key_id;
    let old = admin.with_key(&made.token);
    let mut before = live(&old).await;
    let new = admin.with_key(&rotate(&admin, &id, Some(SHORT)).await.token);
    let since = Instant::now() + SHORT;
    let (mut during, mut of_new) = (live(&old).await, live(&new).await);
    for caller in [&old, &new] {
        assert_eq!(caller.who_am_i().await.unwrap().credential_id, id);
    }
    for (what, stream) in [("opened before the rotation", &mut before), ("opened in the overlap", &mut during)] {
        cut(what, stream, since).await.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    old.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    new.who_am_i().await.unwrap();
    let last = admin.entry_of(&format!("key:{id}"), "WhoAmI").await.sequence;
    while next("an entry", &mut of_new).await.unwrap().unwrap().sequence < last {}
}

#[tokio::test]
async fn what_stood_on_a_binding_or_a_role_ends_with_it_whatever_the_credential() {
    let world = World::start().await;
    let admin = world.server.admin();
    admin.create_namespace("payments").await;
    let (own, _, own_uri) = world.issue(CertificateKind::User, "alice").await;
    let external = world.admin_ca.client(vec![dns("bot.example")]);
    let token = admin.with_key(&world.issuer.token(ADMIN, "carol", &["staff"]));
    let callers = [
        ("a token, by its user", &token, "user:carol"),
        ("a token, by its group", &token, "group:staff"),
        ("a certificate, by its user", &world.with_certificate(&own), "user:alice"),
        ("a certificate, by its URI", &world.with_certificate(&own), &*format!("certificate:{own_uri}")),
        ("a certificate of a configured CA", &world.with_certificate(&external), "certificate:bot.example"),
    ];
    for (what, caller, subject) in callers {
        let none = caller.ask("GetAuditLog", &json!({"follow": true})).await.unwrap_err();
        none.is(Code::PermissionDenied, "PERMISSION_DENIED");
        for namespace in [None, Some("payments")] {
            let binding = admin.bind(subject, "viewer", namespace).await;
            let deed = async || admin.unbind(&binding).await;
            let refused = if namespace.is_none() {
                ends(what, caller, deed).await
            } else {
                // Nothing happens in that namespace.
                let mut stream = caller.follow().await.unwrap();
                let since = Instant::now();
                deed().await;
                cut(what, &mut stream, since).await.is(Code::PermissionDenied, "PERMISSION_DENIED");
                caller.ask("GetAuditLog", &json!({"follow": true})).await.unwrap_err()
            };
            refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
        }
        admin.create_role("reader", &["audit:read"]).await;
        let binding = admin.bind(subject, "reader", None).await;
        let refused = ends(what, caller, async || admin.update_role("reader", &["config:read"]).await).await;
        refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
        admin.unbind(&binding).await;
        admin.ask("DeleteRole", &json!({"name": "reader"})).await.unwrap();
    }
}

#[tokio::test]
async fn what_stood_on_a_token_or_a_certificate_ends_with_it() {
    let world = World::start().await;
    let admin = world.server.admin();
    for subject in ["user:alice", "certificate:bot.example"] {
        admin.bind(subject, "viewer", None).await;
    }
    let (own, serial, _) = world.issue(CertificateKind::User, "alice").await;
    let (twin, ..) = world.issue(CertificateKind::User, "alice").await;
    let mut of_twin = live(&world.with_certificate(&twin)).await;
    let external = world.admin_ca.client(vec![dns("bot.example")]);
    // Its role is what it is, and goes with it all the same.
    let controller = world.own_ca.client(vec![uri(&world.own_uri("controller", "c1"))]);
    let serial_of_own = async || admin.revoke_serial(&serial).await;
    ends("a revoked certificate", &world.with_certificate(&own), serial_of_own)
        .await
        .is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    for (what, holder) in [("a revoked certificate of a configured CA", &external), ("a controller's", &controller)] {
        let revoke = async || admin.revoke_fingerprint(&holder.fingerprint()).await;
        let refused = ends(what, &world.with_certificate(holder), revoke).await;
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }

    let short = |names: Vec<SanType>| {
        let mut parameters = leaf(names, ExtendedKeyUsagePurpose::ClientAuth);
        parameters.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now()) + SHORT;
        parameters
    };
    let own = world.own_ca.issue(&short(vec![uri(&world.own_uri("user", "alice"))]));
    let external = world.admin_ca.issue(&short(vec![dns("bot.example")]));
    // Clocks may be 30 seconds apart: this is the last of a token that has expired.
    let ends = now() - 30 + SHORT.as_secs();
    let token = world.issuer.keys.sign("ES256", &world.claims("alice", &[], &json!({"exp": ends})));
    let (own, external, token) =
        (world.with_certificate(&own), world.with_certificate(&external), admin.with_key(&token));
    tokio::join!(
        ends_by_itself("an expired certificate", &own, SHORT),
        ends_by_itself("an expired certificate of a configured CA", &external, SHORT),
        ends_by_itself("an expired token", &token, SHORT),
    );

    // The same user by another certificate goes on.
    let last = admin.entry_of("alice", "WhoAmI").await.sequence;
    while next("an entry", &mut of_twin).await.unwrap().unwrap().sequence < last {}
}
