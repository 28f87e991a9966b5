//! Access tokens on the admin plane: contract §7 "OAuth2/OIDC access token (JWT)". The tokens are those of a real provider,
//! for people who logged in on its pages.

use std::time::{Duration, Instant};

use prism_e2e::certificates::Authority;
use prism_e2e::grants::cut;
use prism_e2e::issuer::{Issuer, now};
use prism_e2e::oidc::{ADMIN, Provider};
use prism_e2e::wait::until;
use prism_e2e::{Admin, Headers, Options, Pattern, Prism, site};
use prism_proto::admin::v1 as wire;
use serde_json::json;
use tonic::Code;

/// Failed credentials are not what these tests are about.
const UNLIMITED: &str = "[limits]\nauth_failures = 1000\n";

fn trusting(issuer: &str, more: &str) -> String {
    format!(
        "{UNLIMITED}\n[[oidc]]\nissuer = {issuer:?}\naudience = {ADMIN:?}\n\
         role_map = {{ platform = \"admin\", payments = \"operator@payments\", \"department=ops\" = [\"viewer\"] }}\n{more}"
    )
}

/// A provider, a server that trusts it, and its operator.
struct World {
    provider: Provider,
    server: Prism,
    admin: Admin,
}

impl World {
    async fn new() -> Self {
        let provider = Provider::start();
        let server = Prism::start(Options::new().config(&trusting(provider.issuer(), ""))).await;
        let admin = server.admin();
        for namespace in ["payments", "other"] {
            admin.create_namespace(namespace).await;
        }
        Self { provider, server, admin }
    }

    async fn caller(&self, name: &str) -> Admin {
        self.admin.with_key(&self.provider.login(name).await.access)
    }
}

fn config(name: &str, namespace: &str) -> serde_json::Value {
    let config = site::config(name, namespace, Pattern::KeyValue);
    let backend = json!({"type": config.backend.expect("a backend").r#type});
    json!({"config": {
        "name": name, "version": "1", "pattern": config.pattern, "backend": backend, "namespace": namespace,
    }})
}

#[tokio::test]
async fn people_and_machines_may_what_their_groups_may_and_no_more() {
    let world = World::new().await;
    let (alice, bob, carol) = (world.caller("alice").await, world.caller("bob").await, world.caller("carol").await);
    let machine = world.admin.with_key(&world.provider.machine(ADMIN).await);
    // What is asked, and whether alice (admin), bob (operator of payments), carol (nothing) and the machine (viewer) may.
    let cases = [
        ("WhoAmI", json!({}), [true, true, true, true]),
        ("ListConfigs", json!({}), [true, true, false, true]),
        ("ListConfigs", json!({"namespace": "payments"}), [true, true, false, true]),
        ("ListConfigs", json!({"namespace": "other"}), [true, false, false, true]),
        ("CreateConfig", config("made", "payments"), [true, false, false, false]),
        ("ListNamespaces", json!({}), [true, false, false, false]),
        ("CreateNamespace", json!({"name": "made"}), [true, false, false, false]),
        ("SetMaintenanceMode", json!({"namespace": "payments"}), [true, true, false, false]),
        ("SetMaintenanceMode", json!({"namespace": "other"}), [true, false, false, false]),
        ("SetMaintenanceMode", json!({}), [true, false, false, false]),
        ("DrainConnections", json!({"namespace": "payments", "validateOnly": true}), [true, false, false, false]),
        ("GetAuditLog", json!({"namespace": "payments", "limit": 1}), [true, true, false, true]),
        ("GetAuditLog", json!({"namespace": "other", "limit": 1}), [true, false, false, true]),
        ("ListApiKeys", json!({}), [true, false, false, false]),
        ("ListBindings", json!({}), [true, false, false, false]),
        ("CreateBinding", json!({"binding": {"subject": "user:x", "role": "viewer"}}), [true, false, false, false]),
    ];
    for (method, request, may) in &cases {
        for (caller, may, name) in
            [(&bob, may[1], "bob"), (&carol, may[2], "carol"), (&machine, may[3], "machine"), (&alice, may[0], "alice")]
        {
            match caller.ask(method, request).await {
                Ok(()) => assert!(may, "{name} may not {method} {request}"),
                Err(refusal) => {
                    assert!(!may, "{name} may {method} {request}: {refusal:?}");
                    refusal.is(Code::PermissionDenied, "PERMISSION_DENIED");
                    assert_eq!(refusal.metadata["permission"], prism_e2e::grants::rule(method).permission, "{method}");
                }
            }
        }
    }
    let issuer = world.provider.issuer();
    for (name, may) in [("alice", true), ("bob", false), ("carol", false), ("machine", false)] {
        let entry = world.admin.entry_of(name, "CreateConfig").await;
        assert_eq!((entry.auth_method.as_str(), entry.success), ("oidc", may), "{entry:?}");
        assert_eq!(entry.credential_id, format!("{issuer}#{name}"));
    }
}

#[tokio::test]
async fn who_i_am_is_what_the_token_says() {
    let world = World::new().await;
    let who = world.caller("bob").await.who_am_i().await.unwrap();
    assert_eq!((who.actor.as_str(), who.auth_method.as_str()), ("bob", "oidc"));
    assert_eq!(who.credential_id, format!("{}#bob", world.provider.issuer()));
    assert_eq!(who.subjects, ["user:bob", "group:payments", "group:staff"]);
    let grants: Vec<_> = who.grants.iter().map(|grant| (grant.role.as_str(), grant.namespace.as_deref())).collect();
    assert_eq!(grants, [("operator", Some("payments"))]);
    let ends = u64::try_from(who.expires_at.expect("tokens end").seconds).unwrap();
    assert!((now() + 3000..now() + 3700).contains(&ends), "{ends}");
    assert_eq!(world.caller("carol").await.who_am_i().await.unwrap().grants, []);
    let machine = world.admin.with_key(&world.provider.machine(ADMIN).await).who_am_i().await.unwrap();
    assert_eq!((machine.actor.as_str(), machine.grants[0].role.as_str()), ("machine", "viewer"));
}

#[tokio::test]
async fn a_named_user_must_be_the_one_of_the_token() {
    let world = World::new().await;
    let alice = world.caller("alice").await;
    assert_eq!(alice.and("x-admin-user", "alice").who_am_i().await.unwrap().actor, "alice");
    for other in ["bob", "Alice", "alice ", "user:alice"] {
        let refused = alice.and("x-admin-user", other).and("x-request-id", "mismatch").who_am_i().await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "{other}: {refused:?}");
    }
    alice.and("x-admin-user", "bob").who_am_i().await.unwrap_err().is(Code::Unauthenticated, "ADMIN_USER_MISMATCH");
    let entry = world.admin.whole_log().await.into_iter().find(|entry| entry.request_id == "mismatch").unwrap();
    assert_eq!(entry.actor, "anonymous");
    assert_eq!(entry.credential_id, format!("{}#alice", world.provider.issuer()));
    // A token and a key beside each other are two credentials.
    let token = world.provider.login("alice").await.access;
    let both = Headers::bearer(&token).with("x-admin-token", &world.server.admin_token());
    assert_eq!(world.admin.with_headers(both).who_am_i().await.unwrap_err().code, Code::Unauthenticated);
    let same = Headers::bearer(&token).with("x-admin-token", &token);
    assert_eq!(world.admin.with_headers(same).who_am_i().await.unwrap().actor, "alice");
}

#[tokio::test]
async fn every_algorithm_of_the_provider_is_believed() {
    let world = World::new().await;
    for algorithm in ["RS256", "ES256", "EdDSA"] {
        world.provider.set(&json!({"alg": algorithm})).await;
        let token = world.provider.machine(ADMIN).await;
        assert_eq!(world.admin.with_key(&token).who_am_i().await.unwrap().actor, "machine", "{algorithm}");
    }
}

#[tokio::test]
async fn new_keys_work_at_once_and_old_ones_die_with_their_publication() {
    let world = World::new().await;
    let before = world.caller("alice").await;
    before.who_am_i().await.unwrap();
    world.provider.rotate(true).await;
    let between = world.caller("alice").await;
    between.who_am_i().await.unwrap();
    before.who_am_i().await.unwrap();
    assert_eq!(world.provider.count("jwks").await, 2, "one fetch at the start, one for the unknown key");

    // An unknown key may cause one fetch in ten seconds.
    world.provider.rotate(false).await;
    let after = world.provider.login("alice").await.access;
    let after = world.admin.with_key(&after);
    until("the fetch for the newest key", async || after.who_am_i().await.ok()).await;
    for dead in [&before, &between] {
        dead.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    after.who_am_i().await.unwrap();
    assert_eq!(world.provider.count("jwks").await, 3);
}

#[tokio::test]
async fn tokens_stay_good_while_their_issuer_is_down() {
    let mut world = World::new().await;
    let alice = world.caller("alice").await;
    alice.who_am_i().await.unwrap();
    // Publishes no keys, then takes connections and says nothing, then is gone.
    world.provider.set(&json!({"jwks": false})).await;
    alice.who_am_i().await.unwrap();
    world.provider.set(&json!({"mode": "hang"})).await;
    alice.who_am_i().await.unwrap();
    let strange = Issuer::start("strange");
    let mut claims = strange.claims(ADMIN, "alice", &[]);
    claims["iss"] = world.provider.issuer().into();
    let unknown = world.admin.with_key(&strange.keys.sign("ES256", &claims));
    world.provider.stop();
    unknown.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    alice.who_am_i().await.unwrap();
}

#[tokio::test]
async fn a_server_that_never_saw_the_keys_says_so_and_recovers() {
    let provider = Provider::start();
    let token = provider.login("alice").await.access;
    // First it takes connections and says nothing, then it is gone.
    provider.set(&json!({"mode": "hang"})).await;
    let server = Prism::start(Options::new().config(&trusting(provider.issuer(), ""))).await;
    let (admin, alice) = (server.admin(), server.admin().with_key(&token));
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.who_am_i().await.map(drop) }
    });
    // Nobody else has to wait for that issuer.
    admin.who_am_i().await.unwrap();
    assert!(!waiting.is_finished(), "{:?}", waiting.await);
    waiting.await.unwrap().unwrap_err().is(Code::Unavailable, "ISSUER_UNAVAILABLE");
    provider.set(&json!({"mode": "reset"})).await;
    alice.who_am_i().await.unwrap_err().is(Code::Unavailable, "ISSUER_UNAVAILABLE");
    let strange = Issuer::start("strange");
    let refused = admin.with_key(&strange.token(ADMIN, "alice", &["platform"])).who_am_i().await.unwrap_err();
    refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    provider.set(&json!({"mode": "up"})).await;
    until("the issuer to be found", async || alice.who_am_i().await.ok()).await;
}

#[tokio::test]
async fn an_issuer_on_https_is_believed_with_the_right_ca_only() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, wrong) = (Authority::new("the issuer's"), Authority::new("somebody's"));
    let (right, wrong) = (authority.write(folder.path(), "right"), wrong.write(folder.path(), "wrong"));
    let provider = Provider::start_tls(&authority.server(), &right, folder.path());
    for (ca, reached) in [(right, true), (wrong, false)] {
        let server = Prism::start(Options::new().config(&trusting(provider.issuer(), &format!("ca = {ca:?}")))).await;
        // Signed by somebody else: what matters is whether the server had keys to hold against it.
        let strange = Issuer::start("strange");
        let mut claims = strange.claims(ADMIN, "alice", &[]);
        claims["iss"] = provider.issuer().into();
        let refused = server.admin().with_key(&strange.keys.sign("ES256", &claims)).who_am_i().await.unwrap_err();
        let expected = if reached {
            (Code::Unauthenticated, "CREDENTIAL_INVALID")
        } else {
            (Code::Unavailable, "ISSUER_UNAVAILABLE")
        };
        assert_eq!((refused.code, refused.reason.as_str()), expected, "{}", server.log());
    }
}

#[tokio::test]
async fn bindings_add_rights_and_take_live_streams_along_when_they_go() {
    let world = World::new().await;
    let (bob, carol) = (world.caller("bob").await, world.caller("carol").await);
    carol.ask("ListConfigs", &json!({})).await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
    for (caller, subject) in [(&carol, "user:carol"), (&bob, "group:staff")] {
        let binding = world.admin.bind(subject, "viewer", None).await;
        caller.ask("ListConfigs", &json!({"namespace": "other"})).await.unwrap();
        let mut stream = caller.follow().await.unwrap();
        world.admin.who_am_i().await.unwrap();
        prism_e2e::wait::next("the entry of that", &mut stream).await.unwrap().unwrap();
        let since = Instant::now();
        world.admin.unbind(&binding).await;
        let refusal = cut(&format!("unbound {subject}"), &mut stream, since).await;
        assert!(matches!(refusal.code, Code::PermissionDenied | Code::Unauthenticated), "{refusal:?}");
        let refused = caller.ask("ListConfigs", &json!({"namespace": "other"})).await.unwrap_err();
        refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
    }
    // Whole subjects only: none of these is carol, nor a group of bob's.
    for subject in ["user:caro", "user:carolx", "user:Carol", "group:carol", "group:pay", "certificate:carol"] {
        world.admin.bind(subject, "viewer", None).await;
    }
    carol.ask("ListConfigs", &json!({})).await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
    bob.ask("ListConfigs", &json!({"namespace": "other"})).await.unwrap_err();
}

#[tokio::test]
async fn a_role_that_shrinks_or_goes_takes_live_streams_along() {
    let world = World::new().await;
    let carol = world.caller("carol").await;
    world.admin.create_role("reader", &["audit:read", "config:read"]).await;
    let binding = world.admin.bind("user:carol", "reader", None).await;
    let mut stream = carol.follow().await.unwrap();
    let since = Instant::now();
    world.admin.update_role("reader", &["config:read"]).await;
    cut("a smaller role", &mut stream, since).await;
    carol.follow().await.map(drop).unwrap_err();
    carol.ask("ListConfigs", &json!({})).await.unwrap();
    world.admin.update_role("reader", &["audit:read"]).await;
    carol.ask("ListConfigs", &json!({})).await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let mut stream = carol.follow().await.unwrap();

    let delete = async || {
        let request = wire::DeleteRoleRequest { name: "reader".to_owned() };
        world.admin.access().delete_role(request).await
    };
    let since = Instant::now();
    if delete().await.is_err() {
        // A role that is in use has to be taken from everyone first.
        world.admin.unbind(&binding).await;
        delete().await.unwrap();
    }
    cut("no such role", &mut stream, since).await;
    carol.follow().await.map(drop).unwrap_err();
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let issuer = Issuer::start("short");
    let server = Prism::start(Options::new().config(&trusting(&issuer.url, ""))).await;
    let mut claims = issuer.claims(ADMIN, "alice", &["platform"]);
    // Clocks may be 30 seconds apart: this is the last of a token that has expired.
    claims["exp"] = (now() - 25).into();
    let alice = server.admin().with_key(&issuer.keys.sign("EdDSA", &claims));
    let mut stream = alice.follow().await.unwrap();
    let ends = alice.who_am_i().await.unwrap().expires_at.unwrap();
    let left = Duration::from_secs(u64::try_from(ends.seconds).unwrap().saturating_sub(now()));
    assert!(left <= Duration::from_secs(6), "{left:?}");
    let known = Instant::now();
    let refusal = cut("an expired token", &mut stream, known + left).await;
    refusal.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    assert!(known.elapsed() + Duration::from_secs(1) >= left, "it ended too early, {left:?} before its end");
    alice.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
}

#[tokio::test]
async fn issuers_with_prefixes_do_not_name_the_same_people() {
    let (ours, theirs) = (Issuer::start("ours"), Issuer::start("theirs"));
    // The first line is of the issuer before.
    let second = format!(
        "prefix = \"ours:\"\n[[oidc]]\nissuer = {:?}\naudience = {ADMIN:?}\nprefix = \"partner:\"\nuser_claim = \"name\"\ngroups_claim = \"roles\"\n\
         admin_scope = \"prism\"\nalgorithms = [\"EdDSA\"]\nrole_map = {{ platform = \"viewer\" }}\n",
        theirs.url
    );
    let server = Prism::start(Options::new().config(&trusting(&ours.url, &second))).await;
    let admin = server.admin();
    admin.bind("user:ours:alice", "operator", None).await;
    admin.bind("group:partner:guests", "operator", None).await;
    let grants = async |token: &str| {
        let who = admin.with_key(token).who_am_i().await.unwrap();
        (who.actor, who.subjects, who.grants.into_iter().map(|grant| grant.role).collect::<Vec<_>>())
    };
    let (actor, subjects, roles) = grants(&ours.token(ADMIN, "alice", &["guests"])).await;
    assert_eq!(
        (actor.as_str(), subjects),
        ("ours:alice", vec!["user:ours:alice".to_owned(), "group:ours:guests".to_owned()])
    );
    assert_eq!(roles, ["operator"]);
    let claims = json!({
        "iss": theirs.url, "sub": "1234", "name": "alice", "aud": [ADMIN, "else"], "scope": "a prism b",
        "roles": ["guests", "platform"], "groups": ["nobody reads this"], "exp": now() + 60,
    });
    let (actor, subjects, mut roles) = grants(&theirs.keys.sign("EdDSA", &claims)).await;
    roles.sort();
    assert_eq!((actor.as_str(), roles), ("partner:alice", vec!["operator".to_owned(), "viewer".to_owned()]));
    assert_eq!(subjects, ["user:partner:alice", "group:partner:guests", "group:partner:platform"]);
    let (_, metrics) = prism_e2e::http1::get(&server.endpoints().metrics, "/metrics").await;
    for issuer in [&ours.url, &theirs.url] {
        let sample = format!("prism_oidc_keys_age_seconds{{issuer=\"{issuer}\"}} ");
        let age = metrics.lines().find_map(|line| line.strip_prefix(&sample)).unwrap_or_else(|| panic!("{metrics}"));
        assert!((0.0..60.0).contains(&age.parse::<f64>().unwrap()), "{age}");
    }
    // Groups of a role map are among those who can, under the names that bindings would have.
    let ask = wire::WhoCanRequest { permission: "config:delete".to_owned(), namespace: None };
    let can = admin.access().who_can(ask).await.unwrap().into_inner().subjects;
    assert!(
        can.contains(&"group:ours:platform".to_owned()) && !can.iter().any(|name| name.contains("partner")),
        "{can:?}"
    );
    let ask = wire::WhoCanRequest { permission: "config:read".to_owned(), namespace: Some("payments".to_owned()) };
    let can = admin.access().who_can(ask).await.unwrap().into_inner().subjects;
    for group in ["group:ours:platform", "group:ours:payments", "group:partner:platform", "group:partner:guests"] {
        assert!(can.contains(&group.to_owned()), "{group}: {can:?}");
    }
    // A good signature, with an algorithm that this issuer does not use.
    let refused = admin.with_key(&theirs.keys.sign("ES256", &claims)).who_am_i().await.unwrap_err();
    refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
}
