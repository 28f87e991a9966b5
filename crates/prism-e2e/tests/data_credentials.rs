//! Credentials of the data plane: client keys, JWTs and client certificates, what client bindings give them, and how soon they
//! are dead when it is taken away. A credential of one plane is never valid on the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Authority, Holder, dns, signing_request, uri};
use prism_e2e::grants::cut;
use prism_e2e::issuer::Issuer;
use prism_e2e::oidc::{ADMIN, DATA, Provider};
use prism_e2e::site::{config, unique};
use prism_e2e::wait::next;
use prism_e2e::{Admin, Failure, Headers, Options, Pattern, Prism, Refused as _, Session, data, dial};
use prism_proto::admin::v1::{self as wire, CertificateKind};
use prism_proto::config::v1 as discovery;
use prism_proto::config::v1::config_service_client::ConfigServiceClient;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prism_proto::session::v1::{CreateSessionRequest, MtlsAuth};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

/// A server that trusts an issuer and a CA on each plane, with namespaces for everybody.
struct World {
    issuer: Issuer,
    admin_ca: Authority,
    data_ca: Authority,
    server: Arc<Prism>,
    admin: Admin,
    _folder: TempDir,
}

impl World {
    async fn new(failures: u32) -> Self {
        Self::with(failures, "").await
    }

    async fn with(failures: u32, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (issuer, admin_ca, data_ca) = (Issuer::start("apps"), Authority::new("operators"), Authority::new("apps"));
        let config = format!(
            "[limits]\nauth_failures = {failures}\n[tls.admin]\nclient_ca = '{}'\n[tls.data]\nclient_ca = '{}'\n\
             [[oidc]]\nissuer = {:?}\naudience = {ADMIN:?}\ndata_audience = {DATA:?}\nrole_map = {{ platform = \"admin\" }}\n{more}",
            admin_ca.write(folder.path(), "admin").display(),
            data_ca.write(folder.path(), "data").display(),
            issuer.url
        );
        let server = Arc::new(Prism::start(Options::new().config(&config)).await);
        let admin = server.admin();
        for namespace in ["one", "two"] {
            admin.create_namespace(namespace).await;
        }
        Self { issuer, admin_ca, data_ca, server, admin, _folder: folder }
    }

    /// A config of a namespace.
    async fn config(&self, namespace: &str, pattern: Pattern) -> String {
        self.admin.create_config(config(&unique("config"), namespace, pattern)).await.name
    }

    /// A certificate of Prism's own CA, and its serial number and identity.
    async fn issue(&self, kind: CertificateKind, name: &str) -> (Holder, wire::Certificate) {
        let (request, key_pem) = signing_request();
        let answer = self.admin.issue_certificate(kind, name, &request).await;
        let chain_pem = String::from_utf8(answer.certificate_pem.to_vec()).unwrap();
        (Holder { chain_pem, key_pem }, answer.certificate.unwrap())
    }

    fn jwt(&self, sub: &str) -> Auth {
        Auth::JwtToken(self.issuer.token(DATA, sub, &["apps"]))
    }

    fn plain(&self) -> Channel {
        self.server.data_channel()
    }
}

fn certificate() -> Auth {
    Auth::Mtls(MtlsAuth::default())
}

fn request(auth: Auth, config: &str) -> CreateSessionRequest {
    CreateSessionRequest { auth: Some(auth), ..data::named("", config) }
}

async fn open(channel: &Channel, auth: Auth, config: &str) -> Result<Session, Failure> {
    data::create(channel, request(auth, config)).await.map_err(|status| Failure::from(&status))
}

/// Whether a session of this credential may read and write; none if there is no session.
async fn rights(channel: &Channel, auth: Auth, config: &str) -> Option<(bool, bool)> {
    let session = open(channel, auth, config).await.ok()?;
    let (read, write) = (session.get("k").await, session.put("k", b"v").await);
    for refused in [read.as_ref().err(), write.as_ref().err()].into_iter().flatten() {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    }
    Some((read.is_ok(), write.is_ok()))
}

#[tokio::test]
async fn bindings_give_jwts_and_certificates_their_namespaces() {
    let world = World::new(1000).await;
    let (one, two) = (world.config("one", Pattern::KeyValue).await, world.config("two", Pattern::KeyValue).await);
    let external = world.data_ca.client(vec![dns("app.example")]);
    let (own, issued) = world.issue(CertificateKind::Client, "app").await;
    let callers = [
        ("user:app", world.plain(), world.jwt("app")),
        ("group:apps", world.plain(), world.jwt("another")),
        ("certificate:app.example", world.server.data_channel_as(&external), certificate()),
        (&*format!("certificate:{}", issued.uri), world.server.data_channel_as(&own), certificate()),
    ];
    for (subject, channel, auth) in &callers {
        let nothing = async || {
            open(channel, auth.clone(), &one).await.unwrap_err().is(Code::PermissionDenied, "NO_NAMESPACE");
        };
        nothing().await;
        // A subject counts whole, and by its kind.
        let kind = if subject.starts_with("user:") { "certificate:" } else { "user:" };
        let swapped = format!("{kind}{}", subject.split_once(':').unwrap().1);
        for other in [format!("{subject}x"), subject.replacen(':', ":x", 1), swapped] {
            world.admin.bind_client(&other, "one", &["read", "write"]).await;
        }
        nothing().await;
        let read = world.admin.bind_client(subject, "one", &["read"]).await;
        assert_eq!(rights(channel, auth.clone(), &one).await, Some((true, false)), "{subject}");
        let refused = open(channel, auth.clone(), &two).await.unwrap_err();
        refused.is(Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
        // Several namespaces: the config says which.
        world.admin.bind_client(subject, "two", &["read", "write"]).await;
        assert_eq!(rights(channel, auth.clone(), &two).await, Some((true, true)), "{subject}");
        assert_eq!(rights(channel, auth.clone(), &one).await, Some((true, false)), "{subject}");
        let inline = |namespace: &str| CreateSessionRequest {
            config: Some(Config::InlineConfig(config("inline", namespace, Pattern::MemoryKeyValue))),
            ..request(auth.clone(), "")
        };
        data::create(channel, inline("two")).await.unwrap();
        data::create(channel, inline("three")).await.refused();
        // What is taken away is gone from what is open already.
        let session = open(channel, auth.clone(), &one).await.unwrap();
        world.admin.unbind_client(&read).await;
        session.get("k").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
        open(channel, auth.clone(), &one).await.unwrap_err().is(Code::PermissionDenied, "NAMESPACE_NOT_ALLOWED");
    }
}

#[tokio::test]
async fn a_session_may_what_its_subjects_may_together_and_ends_when_they_may_less() {
    let world = World::new(1000).await;
    let config = world.config("one", Pattern::KeyValue).await;
    world.admin.bind_client("user:app", "one", &["read"]).await;
    let reader = open(&world.plain(), world.jwt("app"), &config).await.unwrap();
    let write = world.admin.bind_client("group:apps", "one", &["write"]).await;
    // Sessions have what there was when they began.
    reader.put("k", b"v").await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let writer = open(&world.plain(), world.jwt("app"), &config).await.unwrap();
    writer.put("k", b"v").await.unwrap();
    writer.get("k").await.unwrap();
    world.admin.unbind_client(&write).await;
    writer.get("k").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    reader.get("k").await.unwrap();
}

#[tokio::test]
async fn a_token_of_the_provider_opens_sessions_and_shows_configs() {
    let provider = Provider::start();
    // The first line is of the issuer before.
    let more = format!(
        "prefix = \"ours:\"\n[[oidc]]\nissuer = {:?}\nprefix = \"theirs:\"\ndata_audience = {DATA:?}\n",
        provider.issuer()
    );
    let world = World::with(1000, &more).await;
    let (one, two) = (world.config("one", Pattern::KeyValue).await, world.config("two", Pattern::KeyValue).await);
    let token = provider.machine(DATA).await;
    world.admin.bind_client("user:theirs:machine", "one", &["read", "write"]).await;
    assert_eq!(rights(&world.plain(), Auth::JwtToken(token.clone()), &one).await, Some((true, true)));
    open(&world.plain(), Auth::JwtToken(token.clone()), &two).await.unwrap_err();
    let mut client = ConfigServiceClient::with_interceptor(world.plain(), Headers::bearer(&token));
    let seen = client.list_configs(discovery::ListConfigsRequest::default()).await.unwrap().into_inner().configs;
    assert_eq!(seen.iter().map(|config| config.name.as_str()).collect::<Vec<_>>(), [one.as_str()]);
    // The session is the machine's in the eyes of the operators.
    let entry = provider.machine(ADMIN).await;
    open(&world.plain(), Auth::JwtToken(entry), &one).await.unwrap_err().is(Code::Unauthenticated, "JWT_INVALID");
}

#[tokio::test]
async fn what_a_session_stands_on_takes_its_streams_and_its_token_along() {
    let world = World::new(1000).await;
    let queue = world.config("one", Pattern::Queue).await;
    let events = world.config("one", Pattern::PubSub).await;
    let external = world.data_ca.client(vec![uri("urn:app:7")]);
    let (own, issued) = world.issue(CertificateKind::Client, "app").await;
    let key = world.admin.create_client_key("one", &["read", "write"]).await;
    let list = wire::ListClientKeysRequest { namespace: Some("one".to_owned()), ..Default::default() };
    let keys = world.admin.access().list_client_keys(list).await.unwrap().into_inner().client_keys;
    let key_id = keys[0].key_id.clone();
    for subject in ["certificate:urn:app:7".to_owned(), format!("certificate:{}", issued.uri)] {
        world.admin.bind_client(&subject, "one", &["read", "write"]).await;
    }
    let binding = world.admin.bind_client("user:app", "one", &["read", "write"]).await;
    let bystander = world.admin.create_client_key("one", &["read", "write"]).await;

    let cases = [
        ("a client binding", world.plain(), world.jwt("app")),
        ("a certificate by its number", world.server.data_channel_as(&own), certificate()),
        ("a certificate by its fingerprint", world.server.data_channel_as(&external), certificate()),
        ("a client key", world.plain(), Auth::ApiKey(key)),
    ];
    for (what, channel, auth) in cases {
        let quiet = open(&channel, auth.clone(), &queue).await.unwrap();
        let busy = open(&channel, auth.clone(), &events).await.unwrap();
        let other = open(&world.plain(), Auth::ApiKey(bystander.clone()), &queue).await.unwrap();
        let mut of_queue = quiet.subscribe("t", &unique("group")).await.unwrap();
        let subscribe =
            prism_proto::pubsub::v1::SubscribeRequest { topic_pattern: ">".to_owned(), ..Default::default() };
        let mut of_events = busy.pub_sub().subscribe(subscribe).await.unwrap().into_inner();
        let mut of_other = other.subscribe("t", &unique("group")).await.unwrap();
        let since = Instant::now();
        match what {
            "a client binding" => world.admin.unbind_client(&binding).await,
            "a certificate by its number" => world.admin.revoke_serial(&issued.serial_number).await,
            "a certificate by its fingerprint" => world.admin.revoke_fingerprint(&external.fingerprint()).await,
            _ => {
                let request = wire::RevokeClientKeyRequest { key_id: key_id.clone() };
                world.admin.access().revoke_client_key(request).await.unwrap();
            }
        }
        for refusal in [cut(what, &mut of_queue, since).await, cut(what, &mut of_events, since).await] {
            // Where the connection itself is cut there may be no time for words.
            if !what.starts_with("a certificate") {
                refusal.is(Code::Aborted, "SESSION_TERMINATED");
            }
        }
        // The token is dead on every connection, and no new one is to be had.
        for session in [&quiet, &busy] {
            session.on(&world.plain()).heartbeat().await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
            assert_eq!(world.admin.session(&session.id).await.status(), wire::SessionStatus::Terminated, "{what}");
        }
        let fresh = if what.ends_with("number") {
            world.server.data_channel_as(&own)
        } else {
            world.server.data_channel_as(&external)
        };
        let refused = open(&fresh, auth, &queue).await.unwrap_err();
        let expected = if what == "a client binding" { Code::PermissionDenied } else { Code::Unauthenticated };
        assert_eq!(refused.code, expected, "{what}: {refused:?}");
        // Nobody else notices.
        other.publish("t", b"x").await.unwrap();
        next("a message", &mut of_other).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn sessions_of_a_certificate_end_with_it_also_after_a_restart() {
    let world = World::new(1000).await;
    let config = world.config("one", Pattern::KeyValue).await;
    let (holder, issued) = world.issue(CertificateKind::Client, "app").await;
    world.admin.bind_client(&format!("certificate:{}", issued.uri), "one", &["read", "write"]).await;
    world.admin.bind_client("user:app", "one", &["read"]).await;
    let session = open(&world.server.data_channel_as(&holder), certificate(), &config).await.unwrap();
    let by_token = open(&world.plain(), world.jwt("app"), &config).await.unwrap();
    world.server.crash_and_restart().await;
    let (session, by_token) = (session.on(&world.plain()), by_token.on(&world.plain()));
    session.put("k", b"v").await.unwrap();
    by_token.get("k").await.unwrap();
    by_token.put("k", b"v").await.refused().is(Code::PermissionDenied, "PERMISSION_DENIED");
    let admin = world.server.admin();
    admin.revoke_serial(&issued.serial_number).await;
    session.get("k").await.refused().is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    by_token.get("k").await.unwrap();
}

/// Credentials of both planes. Whatever they prove to be, everything is given to that on both planes.
struct Everything {
    config: String,
    /// Certificates of Prism's own CA: of a person and of an application.
    user: Holder,
    app: Holder,
    /// Certificates of the same name, of the CA of operators and of the CA of applications.
    of_admin: Holder,
    of_data: Holder,
    client_key: String,
    /// A JWT for the admin plane, and one for both.
    operators: String,
    both: String,
}

impl Everything {
    async fn of(world: &World) -> Self {
        let (user, person) = world.issue(CertificateKind::User, "alice").await;
        let (app, application) = world.issue(CertificateKind::Client, "app").await;
        for subject in [
            "user:alice".to_owned(),
            "user:app".to_owned(),
            "certificate:both.example".to_owned(),
            format!("certificate:{}", person.uri),
            format!("certificate:{}", application.uri),
        ] {
            world.admin.bind(&subject, "admin", None).await;
            world.admin.bind_client(&subject, "one", &["read", "write"]).await;
        }
        let mut claims = world.issuer.claims(ADMIN, "alice", &["platform"]);
        claims["aud"] = serde_json::json!([ADMIN, DATA]);
        Self {
            config: world.config("one", Pattern::KeyValue).await,
            user,
            app,
            of_admin: world.admin_ca.client(vec![dns("both.example")]),
            of_data: world.data_ca.client(vec![dns("both.example")]),
            client_key: world.admin.create_client_key("one", &["read", "write"]).await,
            operators: world.issuer.token(ADMIN, "alice", &["platform"]),
            both: world.issuer.keys.sign("ES256", &claims),
        }
    }
}

/// The certificate of a connection, and one in the message beside it.
fn certificate_with(holder: &Holder) -> Auth {
    Auth::Mtls(MtlsAuth { client_cert: holder.chain_pem.clone().into() })
}

#[tokio::test]
async fn what_operators_have_opens_no_session() {
    let world = World::new(1000).await;
    let all = Everything::of(&world).await;
    let (plain, of) = (world.plain(), |holder: &Holder| world.server.data_channel_as(holder));
    let session = open(&plain, Auth::ApiKey(all.client_key.clone()), &all.config).await.unwrap();
    let root = world.server.admin_token();
    for (what, channel, auth) in [
        ("an admin key", &plain, Auth::ApiKey(root.clone())),
        ("an admin key as a JWT", &plain, Auth::JwtToken(root)),
        ("an operator's token", &plain, Auth::JwtToken(all.operators.clone())),
        ("an operator's token as a key", &plain, Auth::ApiKey(all.operators.clone())),
        ("a token for both planes", &plain, Auth::JwtToken(all.both.clone())),
        ("a session token", &plain, Auth::ApiKey(session.token)),
        ("a user's certificate", &of(&all.user), certificate()),
        ("a certificate of the operators' CA", &of(&all.of_admin), certificate()),
        ("no certificate", &plain, certificate()),
        ("a certificate in the message alone", &plain, certificate_with(&all.app)),
        ("another certificate in the message", &of(&all.of_data), certificate_with(&all.app)),
    ] {
        let refused = open(channel, auth, &all.config).await.expect_err(what);
        assert_eq!(refused.code, Code::Unauthenticated, "{what}: {refused:?}");
    }
    // The same subjects, with what is for this plane.
    for (what, channel, auth) in [
        ("a JWT", &plain, world.jwt("app")),
        ("a certificate of the applications' CA", &of(&all.of_data), certificate()),
        ("a client's certificate", &of(&all.app), certificate()),
        ("its certificate in the message too", &of(&all.app), certificate_with(&all.app)),
    ] {
        assert_eq!(rights(channel, auth, &all.config).await, Some((true, true)), "{what}");
    }
}

#[tokio::test]
async fn what_applications_have_is_nobody_on_the_admin_plane() {
    let world = World::new(1000).await;
    let all = Everything::of(&world).await;
    let session = open(&world.plain(), Auth::ApiKey(all.client_key.clone()), &all.config).await.unwrap();
    let apps = world.issuer.token(DATA, "app", &["platform"]);
    for (what, token) in [
        ("a client key", &all.client_key),
        ("a session token", &session.token),
        ("a JWT", &apps),
        ("a token for both planes", &all.both),
    ] {
        for headers in [Headers::bearer(token), Headers::admin_token(token)] {
            let refused = world.admin.with_headers(headers).who_am_i().await.expect_err(what);
            refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        }
    }
    let caller = |holder| Admin { channel: world.server.admin_channel_as(holder), headers: Headers::none() };
    for (what, holder) in [("a client's certificate", &all.app), ("one of the applications' CA", &all.of_data)] {
        let refused = caller(holder).who_am_i().await.expect_err(what);
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    // The same subjects, with what is for this plane.
    let by_token = world.admin.with_key(&all.operators);
    for caller in [by_token, caller(&all.user), caller(&all.of_admin)] {
        assert_eq!(caller.who_am_i().await.unwrap().grants[0].role, "admin");
    }
}

#[tokio::test]
async fn failures_cost_their_source_more_and_more_and_nobody_else() {
    let world = World::new(5).await;
    let config = world.config("one", Pattern::KeyValue).await;
    let key = world.admin.create_client_key("one", &["read"]).await;
    let ca = world.server.data_dir().join("ca.pem");
    let from = |last: u8| dial::tls_from([127, 0, 9, last].into(), &world.server.endpoints().data, &ca);
    let channel = from(1);
    // Many at once, each another guess: some are answered, each for itself, and the rest are told to come later.
    let guesses: Vec<_> = (0..40)
        .map(|number| {
            let (channel, config) = (channel.clone(), config.clone());
            let auth = match number % 2 {
                0 => Auth::JwtToken(format!("eyJhbGciOiJFUzI1NiJ9.e30.{number}")),
                _ => Auth::ApiKey(format!("prc_guess{number}")),
            };
            tokio::spawn(async move { open(&channel, auth, &config).await.map(drop).unwrap_err() })
        })
        .collect();
    let mut refusals = Vec::new();
    for guess in guesses {
        refusals.push(guess.await.unwrap());
    }
    let (later, told): (Vec<_>, Vec<_>) = refusals.iter().partition(|refused| refused.code == Code::ResourceExhausted);
    for refused in &later {
        refused.is(Code::ResourceExhausted, "TOO_MANY_FAILURES");
        assert!(refused.retry.is_some_and(|retry| retry > Duration::ZERO), "{refused:?}");
    }
    for refused in &told {
        assert_eq!(refused.code, Code::Unauthenticated, "{refused:?}");
    }
    assert!(told.len() >= 5 && !later.is_empty(), "{} told, {} sent away", told.len(), later.len());
    // A good credential is taken from there as ever, and failures from elsewhere cost what they always do.
    open(&channel, Auth::ApiKey(key.clone()), &config).await.unwrap();
    for _ in 0..5 {
        let refused = open(&from(2), Auth::ApiKey("prc_x".to_owned()), &config).await.unwrap_err();
        refused.is(Code::Unauthenticated, "CLIENT_KEY_INVALID");
    }
    open(&from(2), Auth::ApiKey(key), &config).await.unwrap();
    // The other plane has its own count.
    let admin = Admin {
        channel: dial::tls_from([127, 0, 9, 1].into(), &world.server.endpoints().admin, &ca),
        headers: Headers::bearer("prx_x"),
    };
    admin.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
}
