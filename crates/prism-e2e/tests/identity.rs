//! Who calls the admin plane: contract §7, §9 "`admin.token`", and the bounds of credentials bound to a namespace.

use std::sync::Arc;
use std::time::Duration;

use prism_e2e::site::unique;
use prism_e2e::wait::until;
use prism_e2e::{Admin, Failure, Headers, Options, Pattern, Refused as _, Shared, Site, data};
use prism_proto::admin::v1 as wire;
use prism_proto::session::v1::create_session_request::Auth;
use prism_proto::session::v1::{CreateSessionRequest, MtlsAuth};
use tonic::Code;

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

async fn who(admin: &Admin) -> Result<wire::WhoAmIResponse, Failure> {
    admin
        .access()
        .who_am_i(wire::WhoAmIRequest {})
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| Failure::from(&status))
}

#[tokio::test]
async fn both_header_forms_are_the_same_credential() {
    let site = site().await;
    let token = site.server.admin_token();
    let forms = [
        Headers::bearer(&token),
        Headers::none().with("authorization", &format!("bearer {token}")),
        Headers::admin_token(&token),
        Headers::admin_token(&token).with("authorization", &format!("Bearer {token}")),
    ];
    let mut seen = Vec::new();
    for headers in forms {
        seen.push(who(&site.admin.with_headers(headers)).await.unwrap());
    }
    assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:?}");
    assert_eq!(seen[0].auth_method, "api_key");
    assert_eq!(seen[0].grants.len(), 1);
    assert_eq!((seen[0].grants[0].role.as_str(), &seen[0].grants[0].namespace), ("admin", &None));
}

#[tokio::test]
async fn two_different_credentials_are_refused_even_when_both_are_valid() {
    let site = site().await;
    let (one, two) = (site.server.admin_token(), site.admin.create_api_key("viewer", None, None).await.token);
    for headers in [
        Headers::bearer(&one).with("x-admin-token", &two),
        Headers::bearer(&one).with("authorization", &format!("Bearer {two}")),
    ] {
        let refused = who(&site.admin.with_headers(headers)).await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthenticated, "{refused:?}");
    }
}

#[tokio::test]
async fn whatever_is_no_valid_admin_key_is_unauthenticated_and_tells_nothing() {
    let site = site().await;
    let session = site.session(Pattern::KeyValue).await;
    let token = site.server.admin_token();
    let mut typo = token.clone().into_bytes();
    typo[30] = if typo[30] == b'a' { b'b' } else { b'a' };
    let revoked = site.admin.create_api_key("admin", None, None).await;
    let request = wire::RevokeApiKeyRequest { key_id: revoked.api_key.unwrap().key_id };
    site.admin.access().revoke_api_key(request).await.unwrap();
    let expiring = wire::CreateApiKeyRequest {
        name: "short".to_owned(),
        roles: vec!["admin".to_owned()],
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let expired = site.admin.access().create_api_key(expiring).await.unwrap().into_inner().token;
    who(&site.admin.with_key(&expired)).await.unwrap();
    until("its expiry", async || who(&site.admin.with_key(&expired)).await.is_err().then_some(())).await;

    let mut answers = Vec::new();
    for bad in [
        &expired,
        &revoked.token,
        &site.key,
        &session.token,
        &String::from_utf8(typo).unwrap(),
        &"prx_x".to_owned(),
        &String::new(),
        &"eyJhbGciOiJub25lIn0.e30.".to_owned(),
    ] {
        answers.push(who(&site.admin.with_key(bad)).await.unwrap_err());
        answers.push(who(&site.admin.with_headers(Headers::admin_token(bad))).await.unwrap_err());
    }
    for answer in &answers {
        assert_eq!(
            (answer.code, &answer.reason, &answer.message),
            (Code::Unauthenticated, &answers[0].reason, &answers[0].message)
        );
    }
    for headers in [Headers::none(), Headers::none().with("authorization", "Basic eDp5"), Headers::none().user("root")]
    {
        assert_eq!(who(&site.admin.with_headers(headers)).await.unwrap_err().code, Code::Unauthenticated);
    }
}

#[tokio::test]
async fn a_shared_key_records_the_named_person_beside_its_id() {
    let site = site().await;
    let named = who(&site.admin.and("x-admin-user", "alice@example.com")).await.unwrap();
    assert_eq!(named.actor, "alice@example.com");
    let unnamed = who(&site.admin).await.unwrap();
    assert_eq!(unnamed.credential_id, named.credential_id);
    assert!(unnamed.actor.contains(&unnamed.credential_id), "{unnamed:?}");
}

#[tokio::test]
async fn a_persons_key_is_that_persons() {
    let site = site().await;
    let key = site.admin.create_api_key("viewer", None, Some("carol@example.com")).await;
    let carol = site.admin.with_key(&key.token);
    assert_eq!(who(&carol).await.unwrap().actor, "carol@example.com");
    assert_eq!(who(&carol.and("x-admin-user", "carol@example.com")).await.unwrap().actor, "carol@example.com");
    let refused =
        who(&carol.and("x-admin-user", "mallory@example.com").and("x-request-id", "mismatch")).await.unwrap_err();
    refused.is(Code::Unauthenticated, "ADMIN_USER_MISMATCH");
    let entry = site.admin.whole_log().await.into_iter().find(|entry| entry.request_id == "mismatch").unwrap();
    assert_eq!((entry.actor.as_str(), &entry.credential_id), ("anonymous", &key.api_key.unwrap().key_id));
}

#[tokio::test]
async fn a_key_is_shown_once_and_listed_without_its_secret() {
    let site = site().await;
    let made = site.admin.create_api_key("operator", Some(&site.namespace), None).await;
    let key = made.api_key.clone().unwrap();
    assert!(made.token.starts_with("prx_") && !key.revoked && key.last_used_at.is_none());
    who(&site.admin.with_key(&made.token)).await.unwrap();
    let list = wire::ListApiKeysRequest { page_size: 1000, page_token: None };
    let listed = site.admin.access().list_api_keys(list).await.unwrap().into_inner();
    assert!(!format!("{listed:?}").contains(&made.token[20..]));
    let found = listed.api_keys.into_iter().find(|found| found.key_id == key.key_id).unwrap();
    assert!(found.last_used_at.is_some());
    assert_eq!(
        (found.roles, found.namespace, found.created_by),
        (key.roles, Some(site.namespace.clone()), key.created_by)
    );
    let again = wire::RevokeApiKeyRequest { key_id: key.key_id };
    site.admin.access().revoke_api_key(again.clone()).await.unwrap();
    site.admin.access().revoke_api_key(again).await.unwrap();
    let unknown = wire::RevokeApiKeyRequest { key_id: "0000000000000000".to_owned() };
    assert_eq!(site.admin.access().revoke_api_key(unknown).await.refused().code, Code::NotFound);
}

#[tokio::test]
async fn can_i_tells_what_the_call_would_find() {
    let site = site().await;
    let viewer = site.admin.with_role("viewer", None).await;
    let bound = site.admin.with_role("admin", Some(&site.namespace)).await;
    let ask = async |admin: &Admin, rpc: &str, namespace: Option<&str>| {
        let request = wire::CanIRequest {
            rpc: format!("prism.admin.v1.AdminService/{rpc}"),
            namespace: namespace.map(ToOwned::to_owned),
        };
        let answer = admin.access().can_i(request).await.unwrap().into_inner();
        (answer.allowed, answer.permission)
    };
    assert_eq!(ask(&viewer, "ListConfigs", None).await, (true, "config:read".to_owned()));
    assert_eq!(ask(&viewer, "CreateConfig", None).await, (false, "config:create".to_owned()));
    assert_eq!(ask(&bound, "CreateConfig", Some(&site.namespace)).await, (true, "config:create".to_owned()));
    assert_eq!(ask(&bound, "CreateConfig", Some("other")).await, (false, "config:create".to_owned()));
    assert_eq!(ask(&bound, "CreateNamespace", None).await, (false, "namespace:create".to_owned()));
    let unknown = wire::CanIRequest { rpc: "prism.keyvalue.v1.KeyValueService/Get".to_owned(), namespace: None };
    viewer.access().can_i(unknown).await.refused().names(&["rpc"]);
}

#[tokio::test]
async fn a_bound_credential_sees_lists_and_totals_of_its_namespace_only() {
    let site = site().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    for place in [&site, &other] {
        place.session(Pattern::KeyValue).await.get("a").await.unwrap();
        place.admin.create_api_key("viewer", Some(&place.namespace), None).await;
    }
    let bound = site.admin.with_role("admin", Some(&site.namespace)).await;
    let (mut admin, mut access) = (bound.service(), bound.access());
    let configs = admin.list_configs(wire::ListConfigsRequest::default()).await.unwrap().into_inner();
    assert_eq!((configs.total_count, configs.configs[0].namespace.as_str()), (1, site.namespace.as_str()));
    let sessions = admin.list_sessions(wire::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!((sessions.total_count, sessions.sessions[0].namespace.as_str()), (1, site.namespace.as_str()));
    let namespaces = admin.list_namespaces(wire::ListNamespacesRequest::default()).await.unwrap().into_inner();
    assert_eq!((namespaces.total_count, namespaces.namespaces[0].name.as_str()), (1, site.namespace.as_str()));
    let keys = access.list_client_keys(wire::ListClientKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!((keys.total_count, keys.client_keys[0].namespace.as_str()), (1, site.namespace.as_str()));
    let keys = access.list_api_keys(wire::ListApiKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(keys.total_count, 2);
    assert!(keys.api_keys.iter().all(|key| key.namespace.as_ref() == Some(&site.namespace)));
    let backends = admin.list_backends(wire::ListBackendsRequest::default()).await.unwrap().into_inner();
    assert!(backends.backends.iter().all(|backend| backend.namespaces.iter().all(|name| *name == site.namespace)));
    let metrics = admin.get_metrics(wire::GetMetricsRequest::default()).await.unwrap().into_inner();
    assert_eq!(metrics.namespaces.len(), 1);
    assert_eq!(metrics.total, metrics.namespaces[0].metrics);

    let theirs = wire::ListConfigsRequest { namespace: Some(other.namespace.clone()), ..Default::default() };
    admin.list_configs(theirs).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let request = wire::GetNamespaceRequest { name: other.namespace.clone() };
    admin.get_namespace(request).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    // What it may not see looks like what does not exist.
    let config = other.config(Pattern::KeyValue).await;
    let get = |name: &str| wire::GetConfigRequest { name: name.to_owned(), ..Default::default() };
    let (hidden, absent) =
        (admin.get_config(get(&config)).await.refused(), admin.get_config(get("absent")).await.refused());
    assert_eq!((hidden.code, hidden.reason), (absent.code, absent.reason));
    assert_eq!(hidden.code, Code::PermissionDenied);
}

#[tokio::test]
async fn a_bound_credential_governs_its_namespace_and_nothing_else() {
    let site = site().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let bound = site.admin.with_role("admin", Some(&site.namespace)).await;
    let (mine, theirs) = (site.session(Pattern::KeyValue).await, other.session(Pattern::KeyValue).await);
    assert!(bound.terminate(&mine.id, true, "").await.success);
    let mut admin = bound.service();
    let terminate = wire::TerminateSessionRequest { session_id: theirs.id.clone(), force: true, reason: String::new() };
    admin.terminate_session(terminate).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    theirs.get("a").await.unwrap();
    bound.create_config(prism_e2e::site::config(&unique("mine"), &site.namespace, Pattern::Queue)).await;
    let foreign = prism_e2e::site::config(&unique("theirs"), &other.namespace, Pattern::Queue);
    let create = wire::CreateConfigRequest { config: Some(foreign), ..Default::default() };
    admin.create_config(create).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let gateway = wire::SetMaintenanceModeRequest { enabled: true, ..Default::default() };
    admin.set_maintenance_mode(gateway).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    admin
        .drain_connections(wire::DrainConnectionsRequest::default())
        .await
        .refused()
        .is(Code::PermissionDenied, "PERMISSION_DENIED");
    let create = wire::CreateNamespaceRequest { name: unique("new"), ..Default::default() };
    admin.create_namespace(create).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    bound.set_quota(&site.namespace, wire::NamespaceQuota { max_rps: 1000, ..Default::default() }).await;
}

#[tokio::test]
async fn nobody_hands_out_more_than_they_hold() {
    let site = site().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let bound = site.admin.with_role("admin", Some(&site.namespace)).await;
    let create = async |admin: &Admin, role: &str, namespace: Option<&str>| {
        let request = wire::CreateApiKeyRequest {
            name: "x".to_owned(),
            roles: vec![role.to_owned()],
            namespace: namespace.map(ToOwned::to_owned),
            ..Default::default()
        };
        admin.access().create_api_key(request).await
    };
    create(&bound, "admin", Some(&site.namespace)).await.unwrap();
    for (role, namespace) in [("viewer", None), ("admin", None), ("viewer", Some(other.namespace.as_str()))] {
        create(&bound, role, namespace).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    }
    let foreign = wire::CreateClientKeyRequest {
        name: "x".to_owned(),
        namespace: other.namespace.clone(),
        permissions: vec!["read".to_owned()],
        ttl: None,
    };
    bound.access().create_client_key(foreign).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    // Nor may it revoke the first key, which would lock everyone out.
    let root = who(&site.admin).await.unwrap().credential_id;
    let revoke = wire::RevokeApiKeyRequest { key_id: root };
    bound.access().revoke_api_key(revoke).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let operator = site.admin.with_role("operator", None).await;
    create(&operator, "viewer", None).await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
}

#[tokio::test]
async fn the_data_plane_takes_client_keys_only_and_within_their_bounds() {
    let site = site().await;
    let other = Site::new(Arc::clone(&site.server)).await;
    let config = site.config(Pattern::KeyValue).await;
    let ask = async |key: &str| site.open(data::named(key, &config)).await;
    for bad in [site.server.admin_token().as_str(), "prc_nonsense", ""] {
        assert_eq!(ask(bad).await.refused().code, Code::Unauthenticated, "{bad}");
    }
    assert_eq!(ask(&other.key).await.refused().code, Code::PermissionDenied, "a key for another namespace");
    let foreign = prism_e2e::site::config("inline", &site.namespace, Pattern::KeyValue);
    assert_eq!(site.open(data::inline(&other.key, foreign)).await.refused().code, Code::PermissionDenied);
    // A certificate sent in the message alone proves nothing; tokens of an issuer need one that is configured.
    let certificate = std::fs::read(site.server.data_dir().join("ca.pem")).unwrap();
    for auth in [
        Auth::Mtls(MtlsAuth { client_cert: certificate.into() }),
        Auth::JwtToken("eyJhbGciOiJub25lIn0.e30.".to_owned()),
    ] {
        let request = CreateSessionRequest { auth: Some(auth), ..data::named("", &config) };
        assert_eq!(site.open(request).await.refused().code, Code::Unauthenticated);
    }
    let readers = site.admin.create_client_key(&site.namespace, &["read"]).await;
    let writers = site.admin.create_client_key(&site.namespace, &["write"]).await;
    let (reader, writer) = (ask(&readers).await.unwrap(), ask(&writers).await.unwrap());
    reader.get("a").await.unwrap();
    writer.put("a", b"1").await.unwrap();
    let refused = reader.put("a", b"2").await.refused();
    refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
    assert_eq!(refused.metadata["permission"], "write");
    writer.get("a").await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
}

#[tokio::test]
async fn expired_and_revoked_client_keys_open_no_sessions() {
    let site = site().await;
    let config = site.config(Pattern::KeyValue).await;
    let request = wire::CreateClientKeyRequest {
        name: "short".to_owned(),
        namespace: site.namespace.clone(),
        permissions: vec!["read".to_owned()],
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
    };
    let short = site.admin.access().create_client_key(request.clone()).await.unwrap().into_inner();
    let long = site
        .admin
        .access()
        .create_client_key(wire::CreateClientKeyRequest { ttl: None, ..request })
        .await
        .unwrap()
        .into_inner();
    site.open(data::named(&long.token, &config)).await.unwrap();
    let revoke = wire::RevokeClientKeyRequest { key_id: long.client_key.unwrap().key_id };
    site.admin.access().revoke_client_key(revoke).await.unwrap();
    let mut answers = vec![site.open(data::named(&long.token, &config)).await.refused()];
    tokio::time::sleep(Duration::from_millis(1100)).await;
    answers.push(site.open(data::named(&short.token, &config)).await.refused());
    answers.push(site.open(data::named("prc_nonsense", &config)).await.refused());
    for answer in &answers {
        assert_eq!(
            (answer.code, &answer.reason, &answer.message),
            (Code::Unauthenticated, &answers[0].reason, &answers[0].message)
        );
    }
}
