//! Client certificates on the admin plane: contract §7 "mTLS client certificate", §9 "certificates of the CA".

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Authority, Holder, dns, email, leaf, signing_request, uri};
use prism_e2e::grants::cut;
use prism_e2e::wait::{next, until};
use prism_e2e::{Admin, Cli, Failure, Headers, Options, Prism, dial, http1};
use prism_proto::admin::v1::{CertificateKind, GetAuditLogRequest};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, date_time_ymd};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

/// A server whose admin plane trusts a CA of the operator's, and its operator.
struct World {
    ca: Authority,
    server: Prism,
    admin: Admin,
    cluster: String,
    _folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Authority::new("the operator's");
        let path = ca.write(folder.path(), "clients");
        let config = format!("[limits]\nauth_failures = 1000\n[tls.admin]\nclient_ca = '{}'\n", path.display());
        let server = Prism::start(Options::new().config(&config)).await;
        let admin = server.admin();
        let (request, _) = signing_request();
        let made = admin.issue_certificate(CertificateKind::User, "nobody", &request).await.certificate.unwrap();
        let cluster = made.uri.trim_start_matches("spiffe://").split('/').next().unwrap().to_owned();
        Self { ca, server, admin, cluster, _folder: folder }
    }

    /// A caller on a connection of its own, with nothing but a certificate.
    fn caller(&self, holder: &Holder) -> Admin {
        Admin { channel: self.server.admin_channel_as(holder), headers: Headers::none() }
    }

    async fn refusal(&self, holder: &Holder) -> Option<Failure> {
        self.caller(holder).who_am_i().await.err()
    }

    /// A certificate of Prism's own CA.
    async fn issue(&self, kind: CertificateKind, name: &str) -> (Holder, String) {
        let (request, key_pem) = signing_request();
        let answer = self.admin.issue_certificate(kind, name, &request).await;
        let chain_pem = String::from_utf8(answer.certificate_pem.to_vec()).unwrap();
        (Holder { chain_pem, key_pem }, answer.certificate.unwrap().serial_number)
    }
}

#[tokio::test]
async fn an_operator_issues_a_certificate_and_its_holder_needs_nothing_else() {
    let world = World::new().await;
    let home = tempfile::tempdir().unwrap();
    let root = Cli::of(&world.server);
    let out = home.path().join("alice");
    let issued = root.run(&format!("cert issue alice --out {} --ttl 1h", out.display())).ok();
    let serial = issued.field("serial");
    let (certificate, key) = (out.join("alice.pem"), out.join("alice.key"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&certificate).unwrap().contains("PRIVATE"));

    let flags = format!(
        "--endpoint {} --ca {} --cert {} --key {}",
        world.server.endpoints().admin,
        out.join("ca.pem").display(),
        certificate.display(),
        key.display()
    );
    let alice = Cli::in_folder(home.path());
    alice.run(&format!("whoami {flags}")).ok().prints("alice").prints("mtls").prints(&serial).prints("user:alice");
    alice.run(&format!("config list {flags}")).fails(3, "config:read");
    root.run("binding create --subject user:alice --role viewer").ok();
    alice.run(&format!("config list {flags}")).ok();
    alice.run(&format!("namespace create mine {flags}")).fails(3, "namespace:create");
    let entry = world.admin.entry_of("alice", "ListConfigs").await;
    assert_eq!((entry.auth_method.as_str(), entry.credential_id.as_str()), ("mtls", serial.as_str()));
    assert!(entry.success);

    root.run("cert list").ok().prints(&serial).prints("alice");
    root.run(&format!("cert revoke {serial}")).ok();
    alice.run(&format!("whoami {flags}")).fails(3, "CREDENTIAL_INVALID");
    root.run("cert list").ok().prints("revoked");
}

#[tokio::test]
async fn a_certificate_of_a_configured_ca_is_its_one_name() {
    let world = World::new().await;
    let below = world.ca.below("the operator's second");
    let cases = [
        (world.ca.client(vec![uri("https://ops.example/team?id=7")]), "https://ops.example/team?id=7"),
        (world.ca.client(vec![uri("spiffe://elsewhere/user/alice")]), "spiffe://elsewhere/user/alice"),
        // The one URI counts, whatever stands beside it.
        (
            world.ca.client(vec![dns("a.example"), uri("urn:ops:bot"), dns("b.example"), email("c@example.org")]),
            "urn:ops:bot",
        ),
        (world.ca.client(vec![dns("bot.example")]), "bot.example"),
        (world.ca.client(vec![email("alice@example.org")]), "alice@example.org"),
        (below.client(vec![dns("below.example")]), "below.example"),
    ];
    for (holder, identity) in &cases {
        let caller = world.caller(holder);
        let who = caller.who_am_i().await.unwrap_or_else(|refused| panic!("{identity}: {refused:?}"));
        assert_eq!((who.actor.as_str(), who.auth_method.as_str()), (*identity, "mtls"));
        assert_eq!(who.credential_id, format!("sha256:{}", holder.fingerprint()));
        assert_eq!(who.subjects, [format!("certificate:{identity}")]);
        assert_eq!(who.grants, [], "{identity}");
        caller.ask("ListConfigs", &json!({})).await.unwrap_err().is(Code::PermissionDenied, "PERMISSION_DENIED");
        // A part of a name is another name.
        world.admin.bind(&format!("certificate:{}", &identity[1..]), "viewer", None).await;
        world.admin.bind(&format!("certificate:{identity}x"), "viewer", None).await;
        world.admin.bind(&format!("user:{identity}"), "viewer", None).await;
        caller.ask("ListConfigs", &json!({})).await.unwrap_err();
        world.admin.bind(&format!("certificate:{identity}"), "viewer", None).await;
        caller.ask("ListConfigs", &json!({})).await.unwrap();
        let entry = world.admin.entry_of(identity, "ListConfigs").await;
        assert_eq!((entry.auth_method.as_str(), entry.credential_id), ("mtls", who.credential_id));
    }
    let (holder, identity) = &cases[3];
    let named = world.caller(holder).and("x-admin-user", identity).who_am_i().await.unwrap();
    assert_eq!(named.actor, *identity);
    let other = world.caller(holder).and("x-admin-user", "bot.example.").who_am_i().await.unwrap_err();
    other.is(Code::Unauthenticated, "ADMIN_USER_MISMATCH");
}

fn client(names: Vec<SanType>) -> CertificateParams {
    leaf(names, ExtendedKeyUsagePurpose::ClientAuth)
}

fn with(names: Vec<SanType>, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = client(names);
    change(&mut parameters);
    parameters
}

/// Certificates of a configured CA that name nobody, or too many.
fn odd_names(world: &World) -> Vec<(String, Holder)> {
    let cluster = &world.cluster;
    let names = [
        vec![],
        vec![uri("urn:a:1"), uri("urn:a:2")],
        vec![uri("urn:a:1"), uri("urn:a:1")],
        vec![dns("a.example"), dns("b.example")],
        vec![dns("a.example"), email("a@example.org")],
        vec![email("a@example.org"), email("b@example.org")],
        vec![SanType::IpAddress([127, 0, 0, 1].into())],
        vec![dns("*.example")],
        vec![dns("*")],
        vec![dns("")],
        vec![dns("a.example,b.example")],
        vec![dns("a.example\0.evil.example")],
        vec![dns("a example")],
        vec![dns("a..example")],
        vec![dns("-a.example")],
        vec![dns(&"a.".repeat(200))],
        vec![uri("urn:a:*")],
        vec![uri("urn:a:1,urn:a:2")],
        vec![uri("urn:a:1\0")],
        vec![uri("urn:a:\"x\"")],
        vec![uri("urn:a:1\nx-admin-user: root")],
        vec![uri("nothing but text")],
        vec![uri("")],
        vec![uri("urn:")],
        vec![uri(&format!("urn:a:{}", "x".repeat(2000)))],
        vec![email("alice@example.org,root@example.org")],
        vec![email("alice@*")],
        vec![email("alice")],
        vec![email("@example.org")],
        vec![email("alice@example.org\0")],
        vec![uri("urn:a:1\0"), dns("a.example")],
        // Prism's own identities are not for others to give, in any spelling.
        vec![uri(&format!("spiffe://{cluster}/user/alice"))],
        vec![uri(&format!("spiffe://{cluster}/controller/x"))],
        vec![uri(&format!("spiffe://{cluster}"))],
        vec![uri(&format!("SPIFFE://{cluster}/user/alice"))],
        vec![uri(&format!("spiffe://{}/user/alice", cluster.to_uppercase()))],
        vec![uri(&format!("spiffe://x@{cluster}/user/alice"))],
        vec![uri(&format!("spiffe://{cluster}:1/user/alice"))],
        // Names that Prism gives itself in the audit log.
        vec![dns("anonymous")],
        vec![dns("prism")],
    ];
    let issued = |names: Vec<SanType>| (format!("{names:?}"), world.ca.client(names));
    names.into_iter().map(issued).collect()
}

/// Certificates that are not good for what they are shown for.
fn odd_forms(world: &World) -> Vec<(String, Holder)> {
    let (name, own) = (|| vec![dns("good.example")], Authority::of_server(&world.server.data_dir()));
    let user = || vec![uri(&format!("spiffe://{}/user/alice", world.cluster))];
    let expired = |parameters: &mut CertificateParams| parameters.not_after = date_time_ymd(2021, 1, 1);
    let early = |parameters: &mut CertificateParams| parameters.not_before = date_time_ymd(2098, 1, 1);
    let (stranger, below) = (Authority::new("a stranger's"), own.below("below Prism's own"));
    let mut cases = vec![
        ("expired", world.ca.issue(&with(name(), expired))),
        ("not valid yet", world.ca.issue(&with(name(), early))),
        ("of another CA", stranger.client(name())),
        ("of another CA of the same name", Authority::new("the operator's").client(name())),
        ("of a CA below a stranger's", stranger.below("the operator's").client(name())),
        ("for servers", world.ca.server()),
        ("for servers, own", own.issue(&leaf(user(), ExtendedKeyUsagePurpose::ServerAuth))),
        ("for nothing", world.ca.issue(&with(name(), |parameters| parameters.extended_key_usages.clear()))),
        ("for code", world.ca.issue(&leaf(name(), ExtendedKeyUsagePurpose::CodeSigning))),
        (
            "not for signatures",
            world.ca.issue(&with(name(), |parameters| {
                parameters.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
            })),
        ),
        (
            "a CA's own",
            world.ca.issue(&with(name(), |parameters| {
                parameters.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            })),
        ),
        ("own, expired", own.issue(&with(user(), expired))),
        ("own, not valid yet", own.issue(&with(user(), early))),
        ("own, below another", below.issue(&client(user()))),
        ("own, two identities", own.issue(&client([user(), user()].concat()))),
        ("own, without a URI", own.issue(&client(vec![dns("alice")]))),
    ];
    for path in ["", "/", "/user", "/user/", "/user/a/b", "/admin/alice", "/user/a,b", "/user/..", "/User/alice"] {
        let name = format!("spiffe://{}{path}", world.cluster);
        cases.push(("own, odd path", own.issue(&client(vec![uri(&name)]))));
    }
    cases.push(("own, another cluster", own.issue(&client(vec![uri("spiffe://prism-0000000000000000/user/alice")]))));
    // The chain ends at a CA that nobody trusts, although its names are right.
    let nowhere = Authority::new("the operator's").below("the operator's");
    cases.push(("of a chain that leads nowhere", nowhere.client(name())));
    cases.into_iter().map(|(name, holder)| (name.to_owned(), holder)).collect()
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused_in_the_same_words() {
    let world = World::new().await;
    // Were any of these let in, it would be somebody.
    for subject in ["user:alice", "certificate:good.example", "certificate:a.example", "certificate:alice@example.org"]
    {
        world.admin.bind(subject, "admin", None).await;
    }
    assert!(world.refusal(&world.ca.client(vec![dns("good.example")])).await.is_none());
    assert!(world.refusal(&world.issue(CertificateKind::User, "alice").await.0).await.is_none());
    let own = Authority::of_server(&world.server.data_dir());
    let of_kind = |kind: &str| own.client(vec![uri(&format!("spiffe://{}/{kind}/it", world.cluster))]);
    assert_eq!(world.caller(&of_kind("controller")).who_am_i().await.unwrap().grants[0].role, "admin");

    let mut cases = [odd_names(&world), odd_forms(&world)].concat();
    cases.push(("of the data plane".to_owned(), world.issue(CertificateKind::Client, "app").await.0));
    // A node's is known, and nothing here is for it, not even what every credential may.
    world.admin.bind(&format!("certificate:spiffe://{}/node/it", world.cluster), "admin", None).await;
    for (method, permission) in [("WhoAmI", "authenticated"), ("ListConfigs", "config:read")] {
        let refused = world.caller(&of_kind("node")).ask(method, &json!({})).await.unwrap_err();
        refused.is(Code::PermissionDenied, "PERMISSION_DENIED");
        assert_eq!(refused.metadata["permission"], permission);
        let entry = world.admin.entry_of(&format!("spiffe://{}/node/it", world.cluster), method).await;
        assert_eq!((&refused.metadata["audit_id"], entry.auth_method.as_str()), (&entry.id, "mtls"));
    }
    let mut faults = Vec::new();
    for (name, holder) in &cases {
        match world.refusal(holder).await {
            None => faults.push(format!("{name}: taken")),
            Some(refused) => {
                let expected = (Code::Unauthenticated, "CREDENTIAL_INVALID", "the admin credential is not valid");
                if (refused.code, refused.reason.as_str(), refused.message.as_str()) != expected {
                    faults.push(format!("{name}: {refused:?}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
    eprintln!("{} certificates refused", cases.len());
    // Nothing at all is another thing.
    let nothing = Admin { channel: world.server.admin_channel(), headers: Headers::none() };
    nothing.who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_MISSING");
}

/// Shows a certificate and signs with a key that is not its own.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let world = World::new().await;
    let (alice, thief) = (world.ca.client(vec![dns("alice.example")]), world.ca.client(vec![dns("thief.example")]));
    world.admin.bind("certificate:alice.example", "admin", None).await;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(thief.key()).unwrap();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        for (key, works) in [(&key, false), (&provider.key_provider.load_private_key(alice.key()).unwrap(), true)] {
            let mut config = dial::tls_config_of(&world.server.data_dir().join("ca.pem"), &[version]);
            config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(CertifiedKey::new(alice.chain(), key.clone()))));
            let channel = dial::tls_channel(&world.server.endpoints().admin, config, None);
            let who = Admin { channel, headers: Headers::none() }.who_am_i().await;
            assert_eq!(who.is_ok(), works, "{version:?}: {who:?}");
        }
    }
}

#[tokio::test]
async fn a_token_goes_before_a_certificate() {
    let world = World::new().await;
    let holder = world.ca.client(vec![dns("bot.example")]);
    world.admin.bind("certificate:bot.example", "viewer", None).await;
    let caller = world.caller(&holder);
    let key = world.server.admin_token();
    for headers in [Headers::bearer(&key), Headers::admin_token(&key)] {
        let who = caller.with_headers(headers).who_am_i().await.unwrap();
        assert_eq!((who.auth_method.as_str(), who.grants[0].role.as_str()), ("api_key", "admin"));
    }
    // A bad one is refused, and not made good by the certificate.
    for headers in [Headers::bearer("prx_nonsense"), Headers::admin_token("e.y.j"), Headers::bearer("")] {
        let refused = caller.with_headers(headers).who_am_i().await.unwrap_err();
        refused.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
    assert_eq!(caller.who_am_i().await.unwrap().auth_method, "mtls");
}

/// Waits until the server ends a connection on which nothing happens.
async fn hangs_up(what: &str, stream: &mut (impl tokio::io::AsyncRead + Unpin), since: Instant) {
    let mut bytes = [0; 1024];
    let read = async { while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {} };
    prism_e2e::wait::within(what, read).await;
    let took = since.elapsed();
    eprintln!("{what}: the connection ended after {took:?}");
    assert!(took < Duration::from_secs(2), "{what}: the connection ended after {took:?}");
}

/// A connection over which HTTP/2 has begun, and nothing else.
async fn idle(server: &Prism, holder: &Holder) -> impl tokio::io::AsyncRead + Unpin + use<> {
    let mut stream = dial::connect_as(&server.endpoints().admin, &server.data_dir().join("ca.pem"), holder).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    stream
}

#[tokio::test]
async fn a_revoked_certificate_is_dead_everywhere_at_once() {
    let world = World::new().await;
    world.admin.bind("user:alice", "viewer", None).await;
    world.admin.bind("certificate:bot.example", "viewer", None).await;
    let (own, serial) = world.issue(CertificateKind::User, "alice").await;
    let (twin, _) = world.issue(CertificateKind::User, "alice").await;
    let external = world.ca.client(vec![dns("bot.example")]);
    let unused = world.ca.client(vec![dns("bot.example")]);
    for (what, holder) in [("by serial number", &own), ("by fingerprint", &external)] {
        let caller = world.caller(holder);
        let mut stream = caller.follow().await.unwrap();
        let mut quiet = idle(&world.server, holder).await;
        let mut other = world.caller(&twin).follow().await.unwrap();
        let since = Instant::now();
        match what {
            "by serial number" => world.admin.revoke_serial(&serial).await,
            _ => world.admin.revoke_fingerprint(&holder.fingerprint()).await,
        }
        // The stream says why, and names its entry, before the connection goes.
        let ended = cut(what, &mut stream, since).await;
        ended.is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        let log = world.admin.whole_log().await;
        let entry = log.iter().find(|entry| ended.metadata.get("audit_id") == Some(&entry.id)).expect("an entry");
        assert_eq!((entry.operation.as_str(), entry.success), ("GetAuditLog", false));
        assert_eq!((entry.metadata["stream"].as_str(), entry.auth_method.as_str()), ("ended", "mtls"), "{entry:?}");
        hangs_up(what, &mut quiet, since).await;
        caller.who_am_i().await.unwrap_err();
        world.caller(holder).who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
        next("the entry of that", &mut other).await.unwrap().unwrap();
    }
    // One that Prism has never seen may be revoked before it comes.
    world.admin.revoke_fingerprint(&unused.fingerprint()).await;
    world.refusal(&unused).await.unwrap().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    // The same name in another certificate is not revoked; what is revoked stays so.
    world.server.crash_and_restart().await;
    assert!(world.refusal(&twin).await.is_none());
    for holder in [&own, &external, &unused] {
        world.refusal(holder).await.unwrap().is(Code::Unauthenticated, "CREDENTIAL_INVALID");
    }
}

/// Replaces files one by one, in the way that operators do.
fn replace(folder: &Path, contents: &[(&str, String)]) {
    for (name, text) in contents {
        let draft = folder.join(format!("{name}.new"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, folder.join(name)).unwrap();
    }
}

#[tokio::test]
async fn certificates_and_trust_change_live_without_a_dropped_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (roots, clients) = (
        [Authority::new("server root 1"), Authority::new("server root 2")],
        [Authority::new("clients 1"), Authority::new("clients 2")],
    );
    let both = folder.path().join("roots.pem");
    std::fs::write(&both, [roots[0].pem(), roots[1].pem()].concat()).unwrap();
    let pair = |root: &Authority| {
        let holder = root.server();
        (holder.chain(), [("cert.pem", holder.chain_pem), ("key.pem", holder.key_pem)])
    };
    let (first, files) = pair(&roots[0]);
    replace(folder.path(), &files);
    replace(folder.path(), &[("clients.pem", clients[0].pem().to_owned())]);
    let path = |name: &str| folder.path().join(name);
    let config = format!(
        "[limits]\nauth_failures = 1000\n[tls.admin]\nmode = \"files\"\ncert = '{}'\nkey = '{}'\nclient_ca = '{}'\n",
        path("cert.pem").display(),
        path("key.pem").display(),
        path("clients.pem").display()
    );
    let server = Prism::start(Options::new().config(&config)).await;
    let address = server.endpoints().admin;
    let shown = async || dial::peer_certificate(&address, &both).await;
    assert_eq!(shown().await, first[0]);
    let admin = Admin { channel: dial::tls(&address, &both), headers: Headers::bearer(&server.admin_token()) };
    let holders = [clients[0].client(vec![dns("one.example")]), clients[1].client(vec![dns("two.example")])];
    let caller = |holder: &Holder| Admin { channel: dial::tls_as(&address, &both, holder), headers: Headers::none() };
    for name in ["one", "two"] {
        admin.bind(&format!("certificate:{name}.example"), "viewer", None).await;
    }
    let one = caller(&holders[0]);
    let (mut stream, mut of_one) = (admin.follow().await.unwrap(), one.follow().await.unwrap());
    caller(&holders[1]).who_am_i().await.unwrap_err().is(Code::Unauthenticated, "CREDENTIAL_INVALID");

    // A new certificate for new connections; then both CAs for clients.
    let (second, files) = pair(&roots[1]);
    replace(folder.path(), &files);
    until("the new certificate", async || (shown().await == second[0]).then_some(())).await;
    let two = caller(&holders[1]);
    replace(folder.path(), &[("clients.pem", [clients[0].pem(), clients[1].pem()].concat())]);
    until("the second CA", async || two.who_am_i().await.ok()).await;
    one.who_am_i().await.unwrap();
    for stream in [&mut stream, &mut of_one] {
        while next("an entry", stream).await.unwrap().unwrap().actor != "two.example" {}
    }

    // What is broken changes nothing.
    replace(folder.path(), &[("clients.pem", "nonsense".to_owned()), ("cert.pem", "nonsense".to_owned())]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(shown().await, second[0]);
    caller(&holders[0]).who_am_i().await.unwrap();

    // The first CA goes, and with it what stands on it; nobody else notices.
    replace(folder.path(), &files);
    let since = Instant::now();
    replace(folder.path(), &[("clients.pem", clients[1].pem().to_owned())]);
    let fresh = caller(&holders[0]);
    until("the first CA to go", async || fresh.who_am_i().await.err()).await;
    eprintln!("a CA that was removed: refused after {:?}", since.elapsed());
    cut("a CA that was removed", &mut of_one, since).await;
    two.who_am_i().await.unwrap();
    admin.who_am_i().await.unwrap();
    let last = admin.audit(GetAuditLogRequest { limit: 1, ..Default::default() }).await.remove(0).sequence;
    while next("an entry", &mut stream).await.unwrap().unwrap().sequence < last {}
}

#[tokio::test]
async fn when_certificates_end_is_a_metric() {
    let world = World::new().await;
    let (status, metrics) = http1::get(&world.server.endpoints().metrics, "/metrics").await;
    assert_eq!(status, 200);
    for certificate in ["ca", "admin", "data", "admin_client_ca"] {
        let start = format!("prism_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
        let ends: f64 = line.unwrap_or_else(|| panic!("no {start}")).parse().unwrap();
        assert!(ends > prism_e2e::issuer::now() as f64, "{certificate} ended at {ends}");
    }
}

#[tokio::test]
async fn one_ca_for_both_planes_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let both = folder.path().join("both.pem");
    std::fs::write(&both, [one.pem(), two.pem()].concat()).unwrap();
    let single = one.write(folder.path(), "one");
    let config =
        format!("[tls.admin]\nclient_ca = '{}'\n[tls.data]\nclient_ca = '{}'\n", single.display(), both.display());
    let server = Prism::prepared(Options::new().config(&config));
    server.spawn();
    assert!(!server.exit().await.success());
    until("its last words", async || server.log().contains("client_ca").then_some(())).await;
    assert!(server.log().contains("one plane only"), "{}", server.log());
}
