//! Credentials that must open nothing, whatever they once were, or are elsewhere. Each has a twin that is good.

use std::time::Duration;

use prism_proto::admin::v1::{CertificateKind, CreateApiKeyRequest, RevokeApiKeyRequest, RotateApiKeyRequest};
use prism_proto::session::v1::create_session_request::Auth;
use prism_proto::session::v1::{CreateSessionRequest, MtlsAuth};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
use serde_json::{Value, json};
use tonic::Code;

use super::{Kind, World};
use crate::admin::{Admin, Headers};
use crate::certificates::{Authority, Holder, dns, leaf, uri};
use crate::issuer::{Keys, now};
use crate::oidc::{DATA, OTHER};
use crate::site::{Pattern, Site};
use crate::{data, keys};

/// A dead credential.
#[derive(Clone, Debug)]
pub struct Dead {
    /// For people who read a failure.
    pub name: &'static str,
    /// What it is, or looks like.
    pub kind: Kind,
    /// The caller.
    pub admin: Admin,
    /// How it is refused: UNAUTHENTICATED, or PERMISSION_DENIED for those whom the server knows and lets do nothing.
    pub code: Code,
    /// Whether the answer says what is wrong. Nobody can tell the others apart.
    pub told: bool,
}

/// Dead credentials of every kind. Those that could be somebody's are an admin's, so that they are refused for what they are.
pub async fn dead(world: &World, site: &Site) -> Vec<Dead> {
    [dead_keys(site).await, dead_tokens(world, site).await, dead_certificates(world, site).await].concat()
}

async fn dead_keys(site: &Site) -> Vec<Dead> {
    let mut access = site.admin.access();
    let key = async |user: Option<&str>| site.admin.create_api_key("admin", None, user).await;
    let revoked = key(None).await;
    let id = revoked.api_key.expect("a key").key_id;
    access.revoke_api_key(RevokeApiKeyRequest { key_id: id }).await.expect("a revocation");
    let rotated = key(None).await;
    let rotate = RotateApiKeyRequest { key_id: rotated.api_key.expect("a key").key_id, overlap: None };
    let current = access.rotate_api_key(rotate).await.expect("a rotation").into_inner().token;
    assert_ne!(current, rotated.token);
    let short = CreateApiKeyRequest {
        name: "short".to_owned(),
        roles: vec!["admin".to_owned()],
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..CreateApiKeyRequest::default()
    };
    let expired = access.create_api_key(short).await.expect("a key").into_inner().token;
    let session = site.session(Pattern::KeyValue).await;
    let alices = key(Some("alice@example.com")).await.token;
    let valid = site.server.admin_token();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let cut = &valid[..valid.len() - 1];
    let mut flipped = valid.clone();
    let last = flipped.pop().expect("a character");
    flipped.push(if last == '0' { '1' } else { '0' });
    let (keys, nothing) = (Kind::ApiKey, Kind::Nothing);
    [
        (nothing, "absent", Headers::none(), true),
        (nothing, "empty", Headers::bearer(""), false),
        (keys, "cut", Headers::bearer(cut), false),
        (keys, "doubled", Headers::bearer(&format!("{valid}{valid}")), false),
        (keys, "upper case", Headers::bearer(&valid.to_uppercase()), false),
        (keys, "wrong checksum", Headers::bearer(&flipped), false),
        (keys, "no prefix", Headers::admin_token(&valid[4..]), false),
        (keys, "unknown", Headers::bearer(&keys::unknown("prx_")), false),
        (keys, "wrong secret", Headers::bearer(&keys::wrong_secret(&valid)), false),
        (keys, "another scheme", Headers::none().with("authorization", &format!("Basic {valid}")), false),
        (keys, "two at once", Headers::bearer(&valid).with("x-admin-token", &revoked.token), true),
        (keys, "expired", Headers::bearer(&expired), false),
        (keys, "revoked", Headers::bearer(&revoked.token), false),
        (keys, "rotated away", Headers::bearer(&rotated.token), false),
        (keys, "a client key", Headers::bearer(&site.key), false),
        (keys, "a session's token", Headers::bearer(&session.token), false),
        (keys, "alice's, as bob", Headers::bearer(&alices).user("bob@example.com"), true),
    ]
    .map(|(kind, name, headers, told)| {
        let admin = site.admin.with_headers(headers);
        Dead { name, kind, admin, code: Code::Unauthenticated, told }
    })
    .into()
}

async fn dead_tokens(world: &World, site: &Site) -> Vec<Dead> {
    let keys = &world.issuer.keys;
    let claims = |changes: &Value| world.claims("mallory", &["admin"], changes);
    let signed = |changes: &Value| keys.sign("ES256", &claims(changes));
    let good = signed(&json!({}));
    is_admin("a token", &site.admin.with_key(&good)).await;
    let of_data_plane = signed(&json!({"aud": DATA}));
    site.admin.bind_client("user:mallory", &site.namespace, &["read"]).await;
    opens_a_session(site, &site.channel, Auth::JwtToken(of_data_plane.clone())).await;

    let beside = world.with_certificate(&world.own_ca.client(vec![uri(&world.own_uri("controller", "c1"))]));
    is_admin("a controller's certificate", &beside).await;
    let strange = Keys::generate("matrix");
    let none = crate::issuer::message(&json!({"alg": "none", "typ": "at+jwt"}), &claims(&json!({})));
    let rsa = json!({"alg": "HS256", "kid": keys.kid("RS256"), "typ": "at+jwt"});
    let (body, signature) = good.rsplit_once('.').expect("a signature");
    [
        ("expired", signed(&json!({"exp": now() - 3600}))),
        ("expired just now", signed(&json!({"exp": now() - 31}))),
        ("not valid yet", signed(&json!({"nbf": now() + 3600}))),
        ("without an end", signed(&json!({"exp": null}))),
        ("another key under the same id", strange.sign("ES256", &claims(&json!({})))),
        ("of an unknown issuer", strange.sign("ES256", &claims(&json!({"iss": "http://127.0.0.1:9"})))),
        ("of algorithm none", format!("{none}.")),
        ("an HMAC with the public key", crate::issuer::hs256(&rsa, &claims(&json!({})), &keys.rsa_public_der())),
        ("without its signature", format!("{body}.")),
        ("cut", format!("{body}.{}", &signature[..signature.len() - 4])),
        ("for another service", signed(&json!({"aud": OTHER}))),
        ("without the scope", signed(&json!({"scope": "openid profile"}))),
        ("of the data plane", of_data_plane),
        ("of both planes", signed(&json!({"aud": [crate::oidc::ADMIN, DATA]}))),
    ]
    .map(|(name, token)| (name, site.admin.with_key(&token), false))
    .into_iter()
    .chain([
        ("mallory's, as bob", site.admin.with_key(&good).and("x-admin-user", "bob"), true),
        // It goes before the certificate, and is not made good by it.
        ("expired, beside a good certificate", beside.with_key(&signed(&json!({"exp": now() - 3600}))), false),
    ])
    .map(|(name, admin, told)| Dead { name, kind: Kind::Token, admin, code: Code::Unauthenticated, told })
    .collect()
}

async fn dead_certificates(world: &World, site: &Site) -> Vec<Dead> {
    let (user, name) = (world.own_uri("user", "mallory"), "mallory.example");
    let (node, client) = (world.own_uri("node", "n1"), world.own_uri("client", "app"));
    // Were one of these let in, it would be an admin.
    for subject in [&user, name, &node, &client] {
        site.admin.bind(&format!("certificate:{subject}"), "admin", None).await;
    }
    let strange = Authority::new("admins");
    let own = |change: fn(&mut CertificateParams)| world.own_ca.issue(&with(vec![uri(&user)], change));
    let external = |change: fn(&mut CertificateParams)| world.admin_ca.issue(&with(vec![dns(name)], change));
    let (revoked, serial, _) = world.issue(CertificateKind::User, "mallory").await;
    let (revoked_external, unchanged) = (external(|_| {}), external(|_| {}));
    for good in [&revoked, &revoked_external, &unchanged, &own(|_| {})] {
        is_admin("a certificate", &world.with_certificate(good)).await;
    }
    site.admin.revoke_serial(&serial).await;
    site.admin.revoke_fingerprint(&revoked_external.fingerprint()).await;
    let (app, ..) = world.issue(CertificateKind::Client, "app").await;
    let of_data_ca = world.data_ca.client(vec![dns(name)]);
    for (subject, holder) in [(&*client, &app), (name, &of_data_ca)] {
        site.admin.bind_client(&format!("certificate:{subject}"), &site.namespace, &["read"]).await;
        opens_a_session(site, &site.server.data_channel_as(holder), Auth::Mtls(MtlsAuth::default())).await;
    }
    let (ours, theirs, refused) = (Kind::OwnCertificate, Kind::Certificate, Code::Unauthenticated);
    [
        (ours, "revoked", revoked, refused),
        (ours, "expired", own(|it| it.not_after = date_time_ymd(2021, 1, 1)), refused),
        (ours, "not valid yet", own(|it| it.not_before = date_time_ymd(2098, 1, 1)), refused),
        (ours, "of the data plane", app, refused),
        (ours, "of a server", own(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), refused),
        (ours, "of another cluster", world.own_ca.client(vec![uri("spiffe://prism-0/user/mallory")]), refused),
        (ours, "of a node", world.own_ca.client(vec![uri(&node)]), Code::PermissionDenied),
        (theirs, "revoked", revoked_external, refused),
        (theirs, "expired", external(|it| it.not_after = date_time_ymd(2021, 1, 1)), refused),
        (theirs, "not valid yet", external(|it| it.not_before = date_time_ymd(2098, 1, 1)), refused),
        (theirs, "of an unknown CA", strange.client(vec![dns(name)]), refused),
        (theirs, "of the data plane's CA", of_data_ca, refused),
        (theirs, "of two names", world.admin_ca.client(vec![dns(name), dns("bob.example")]), refused),
        (theirs, "with a name of Prism's own", world.admin_ca.client(vec![uri(&user)]), refused),
    ]
    .map(|(kind, name, holder, code): (_, _, Holder, _)| {
        let admin = world.with_certificate(&holder);
        Dead { name, kind, admin, code, told: false }
    })
    .into_iter()
    .chain([Dead {
        name: "mallory's, as bob",
        kind: theirs,
        admin: world.with_certificate(&unchanged).and("x-admin-user", "bob"),
        code: refused,
        told: true,
    }])
    .collect()
}

fn with(names: Vec<SanType>, change: fn(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = leaf(names, ExtendedKeyUsagePurpose::ClientAuth);
    change(&mut parameters);
    parameters
}

async fn is_admin(what: &str, caller: &Admin) {
    let who = caller.who_am_i().await.unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
    assert_eq!(who.grants[0].role, "admin", "{what}");
}

/// It is worth something where it belongs.
async fn opens_a_session(site: &Site, channel: &tonic::transport::Channel, auth: Auth) {
    let config = site.config(Pattern::MemoryKeyValue).await;
    let request = CreateSessionRequest { auth: Some(auth), ..data::named("", &config) };
    data::create(channel, request).await.expect("a session on the data plane");
}
