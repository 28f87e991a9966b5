//! `prism-admin login` at a real OIDC provider, by people and by machines, and what the command line lets them do then.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::certificates::{Authority, signing_request};
use prism_e2e::cli::Outcome;
use prism_e2e::enrol::Machine;
use prism_e2e::matrix::{ROLES, Scope, holds, permission_of, scope_of};
use prism_e2e::oidc::{ADMIN, MACHINE_SECRET, Person, Provider};
use prism_e2e::site::{config, unique};
use prism_e2e::wait::until;
use prism_e2e::{Admin, Cli, Options, Pattern, Prism, data, http1, walk};
use prism_proto::admin::v1::{self as wire, CertificateKind};
use serde_json::json;
use tempfile::TempDir;

/// What goes on between people, a provider and a server.
struct World {
    provider: Provider,
    server: Arc<Prism>,
    admin: Admin,
    /// A folder for each person.
    homes: TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(Provider::start(), "").await
    }

    async fn with(provider: Provider, more: &str) -> Self {
        let config = format!(
            "[limits]\nauth_failures = 1000\n\n[[oidc]]\nissuer = {:?}\naudience = {ADMIN:?}\n\
             role_map = {{ platform = \"admin\", payments = [\"operator@payments\"], robots = \"viewer\" }}\n{more}",
            provider.issuer()
        );
        let server = Arc::new(Prism::start(Options::new().config(&config).env("PRISM_LOG", "debug")).await);
        let admin = server.admin();
        admin.create_namespace("payments").await;
        Self { provider, server, admin, homes: tempfile::tempdir().unwrap() }
    }

    /// A shell of somebody who has a home and nothing in it.
    fn shell(&self, name: &str) -> Cli {
        let home = self.home(name);
        std::fs::create_dir_all(&home).unwrap();
        Cli::in_folder(&home)
    }

    fn home(&self, name: &str) -> PathBuf {
        self.homes.path().join(name)
    }

    fn tokens(&self, name: &str) -> PathBuf {
        self.home(name).join(".config/prism/tokens/prod.json")
    }

    fn place(&self) -> String {
        let ca = self.server.data_dir().join("ca.pem");
        format!("--context prod --endpoint {} --ca {}", self.server.endpoints().admin, ca.display())
    }

    fn issuer(&self) -> String {
        format!("--issuer {} --client-id prism-admin --audience {ADMIN}", self.provider.issuer())
    }

    /// Logs somebody in by device code.
    async fn log_in(&self, name: &str, choice: &str, more: &str) -> Outcome {
        let mut command = self.shell(name).begin(&format!("login {} {} {more}", self.place(), self.issuer()));
        let page = command.note("user_code=");
        Person::of(&self.provider, name).visit(&page, choice).await;
        command.end()
    }

    /// A shell of somebody who has logged in.
    async fn logged_in(&self, name: &str) -> Cli {
        self.log_in(name, "agree", "").await.ok().notes("context prod is logged in");
        self.shell(name)
    }

    /// A shell of somebody who has logged in and whose token has hardly any life left. Those that follow have.
    async fn near_its_end(&self, name: &str) -> Cli {
        self.provider.set(&json!({"accessToken": 3})).await;
        let cli = self.logged_in(name).await;
        self.end_of_tokens().await;
        cli
    }

    /// Waits until tokens of a short life have ended, and has the next ones live long.
    async fn end_of_tokens(&self) {
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.provider.set(&json!({"accessToken": 3600})).await;
    }
}

/// A verb, a command line that carries it out, and the RPC that this is; empty for what stays on this computer.
///
/// Words in braces are made for each caller: names nobody has yet, and things that are there.
const VERBS: &[(&str, &str, &str)] = &[
    ("namespace list", "", "ListNamespaces"),
    ("namespace get", "payments", "GetNamespace"),
    ("namespace create", "{new}", "CreateNamespace"),
    ("namespace update", "payments --description d", "UpdateNamespace"),
    ("namespace delete", "{namespace}", "DeleteNamespace"),
    ("config list", "", "ListConfigs"),
    ("config get", "{config}", "GetConfig"),
    ("config create", "{new} --pattern key-value --backend memory -n payments --version 1", "CreateConfig"),
    ("config update", "{config} --version 2", "UpdateConfig"),
    ("config delete", "{config}", "DeleteConfig"),
    ("session list", "", "ListSessions"),
    ("session get", "{session}", "GetSession"),
    ("session terminate", "{session} --force", "TerminateSession"),
    ("backend list", "", "ListBackends"),
    ("backend status", "sqlite", "GetBackendStatus"),
    ("maintenance on", "-n payments --message m --until 1h --allow-reads", "SetMaintenanceMode"),
    ("maintenance off", "-n payments", "SetMaintenanceMode"),
    ("maintenance status", "-n payments", "GetMaintenanceStatus"),
    ("drain", "-n payments --dry-run", "DrainConnections"),
    ("metrics", "", "GetMetrics"),
    ("audit list", "--limit 1", "GetAuditLog"),
    ("audit tail", "--last 1", "GetAuditLog"),
    ("audit verify", "", "GetAuditLog"),
    ("audit export", "", "GetAuditLog"),
    ("audit checkpoint", "", "CreateAuditCheckpoint"),
    ("audit forget", "", ""),
    ("key create", "{new} --role viewer -n payments", "CreateApiKey"),
    ("key list", "", "ListApiKeys"),
    ("key rotate", "{key} --overlap 1m", "RotateApiKey"),
    ("key revoke", "{key}", "RevokeApiKey"),
    ("client-key create", "{new} -n payments --permission read", "CreateClientKey"),
    ("client-key list", "", "ListClientKeys"),
    ("client-key revoke", "{client-key}", "RevokeClientKey"),
    ("role create", "{new} --permission config:read", "CreateRole"),
    ("role update", "{role} --permission session:read", "UpdateRole"),
    ("role delete", "{role}", "DeleteRole"),
    ("role list", "", "ListRoles"),
    ("binding create", "--subject user:{new} --role viewer -n payments", "CreateBinding"),
    ("binding delete", "{binding}", "DeleteBinding"),
    ("binding list", "", "ListBindings"),
    ("client-binding create", "--subject user:{new} -n payments --permission read", "CreateClientBinding"),
    ("client-binding delete", "{client-binding}", "DeleteClientBinding"),
    ("client-binding list", "", "ListClientBindings"),
    ("cert issue", "{new}", "IssueCertificate"),
    ("cert list", "", "ListCertificates"),
    ("cert revoke", "{serial}", "RevokeCertificate"),
    ("token create", "", "CreateJoinToken"),
    ("token list", "", "ListJoinTokens"),
    ("token revoke", "{token}", "RevokeJoinToken"),
    ("node list", "", "ListNodes"),
    ("node show", "{node}", "GetNode"),
    ("node revoke", "{node}", "RevokeNode"),
    ("node drain", "local --dry-run", "DrainConnections"),
    ("ca status", "", "GetCaStatus"),
    ("ca rotate", "", "RotateCa"),
    ("ca retire", "--force", "RetireCa"),
    ("lineage", "{node} --kind node", "GetLineage"),
    ("whoami", "", "WhoAmI"),
    ("can-i", "WhoAmI", "CanI"),
    ("who-can", "config:read -n payments", "WhoCan"),
    ("login", "", ""),
    ("logout", "", ""),
    ("context list", "", ""),
    ("context use", "prod", ""),
    ("context set", "spare --endpoint 127.0.0.1:1 --ca ca.pem --cert c.pem --key k.pem", ""),
    ("context remove", "spare", ""),
    ("completion", "bash", ""),
    ("exit-codes", "", ""),
];

/// Makes what a command line speaks of.
async fn fill(admin: &Admin, line: &str) -> String {
    let mut line = line.to_owned();
    while let Some((before, rest)) = line.split_once('{') {
        let (word, after) = rest.split_once('}').unwrap();
        line = format!("{before}{}{after}", thing(admin, word).await);
    }
    line
}

async fn thing(admin: &Admin, word: &str) -> String {
    match word {
        "new" => unique("new"),
        "namespace" => admin.create_namespace(&unique("gone")).await.name,
        "config" => admin.create_config(config(&unique("config"), "payments", Pattern::KeyValue)).await.name,
        "key" => admin.create_api_key("viewer", Some("payments"), None).await.api_key.unwrap().key_id,
        "client-key" => {
            admin.create_client_key("payments", &["read"]).await;
            let list = wire::ListClientKeysRequest { namespace: Some("payments".to_owned()), ..Default::default() };
            let keys = admin.access().list_client_keys(list).await.unwrap().into_inner().client_keys;
            keys.into_iter().find(|key| !key.revoked).unwrap().key_id
        }
        "role" => {
            let name = unique("role");
            admin.create_role(&name, &["config:read"]).await;
            name
        }
        "binding" => admin.bind(&format!("user:{}", unique("u")), "viewer", Some("payments")).await,
        "client-binding" => admin.bind_client(&format!("user:{}", unique("u")), "payments", &["read"]).await,
        "serial" => {
            let issued = admin.issue_certificate(CertificateKind::User, &unique("u"), &signing_request().0).await;
            issued.certificate.unwrap().serial_number
        }
        "token" => admin.create_join_token("").await.token_id,
        "node" => {
            let (name, token) = (unique("node"), admin.create_join_token("").await.join_token);
            Machine::new().exchange(&admin.channel, &token, &name).await.unwrap();
            name
        }
        other => panic!("{other} is nothing that is made here"),
    }
}

/// A session in the namespace of bob's group.
async fn session(server: &Prism, admin: &Admin) -> String {
    let name = thing(admin, "config").await;
    let key = admin.create_client_key("payments", &["read", "write"]).await;
    data::create(&server.data_channel(), data::named(&key, &name)).await.unwrap().id
}

/// Whether the groups of somebody allow an RPC in the namespace of bob's group, and no other.
fn may(name: &str, method: &str) -> bool {
    let (_, admin) = ROLES[0];
    let (_, operator) = ROLES[1];
    let permission = permission_of(method);
    match name {
        _ if method.is_empty() || permission == "authenticated" => true,
        "alice" => holds(admin, permission),
        "bob" => holds(operator, permission) && scope_of(method) != Scope::Installation,
        _ => false,
    }
}

/// Carries a verb out; whether it worked. Panics when it ended in any other way than that or a refusal.
async fn carry_out(world: &World, cli: &Cli, name: &str, (verb, line, method): (&str, &str, &str)) -> bool {
    let line = if line.contains("{session}") {
        line.replace("{session}", &session(&world.server, &world.admin).await)
    } else {
        fill(&world.admin, line).await
    };
    let line = format!("{verb} {line}");
    match verb {
        "audit tail" => return cli.follow(&line).next(Duration::from_secs(20)).is_some(),
        "login" => return world.log_in(name, "agree", "").await.code == Some(0),
        // The chain of a part of the log cannot be verified.
        "audit verify" if name == "bob" => {
            cli.run(&line).fails(11, "missing").notes("a credential of one namespace sees only a part of the log");
            return true;
        }
        _ => {}
    }
    let outcome = cli.run(&line);
    match outcome.code {
        Some(0) => true,
        Some(3) => {
            // What a change begins with may be missing already: it reads what there is.
            let missing = [permission_of(method), "config:read"].map(|name| format!("missing permission: {name}"));
            assert!(
                missing.iter().any(|words| outcome.err.contains(words)),
                "it does not say what is missing: {outcome:#?}"
            );
            assert_eq!(outcome.out, "", "{outcome:#?}");
            false
        }
        _ => panic!("{name}: {outcome:#?}\n{}", world.server.log()),
    }
}

#[tokio::test]
async fn people_run_every_verb_that_their_groups_allow_and_no_other() {
    let world = World::new().await;
    let people = ["carol", "bob", "alice"];
    let mut shells = Vec::new();
    for name in people {
        shells.push((name, world.logged_in(name).await));
    }
    let listed: BTreeSet<String> = VERBS.iter().map(|(verb, ..)| (*verb).to_owned()).collect();
    assert_eq!(walk::verbs(&shells[0].1), listed, "a verb of the command line is not in the table, or the other way");

    let (mut faults, mut worked) = (Vec::new(), 0);
    for (at, row) in VERBS.iter().enumerate() {
        if at == VERBS.len() / 2 {
            rotate(&world).await;
        }
        for (name, cli) in &shells {
            let (works, may) = (carry_out(&world, cli, name, *row).await, may(name, row.2));
            worked += u32::from(works);
            if works != may {
                faults.push(format!("{name}, {}: {} instead of {}", row.0, word(works), word(may)));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    eprintln!("{} verbs, {} people: {worked} carried out, the others refused", VERBS.len(), people.len());
    // Each of them is in the log by her own name.
    for name in people {
        let entry = world.admin.entry_of(name, "WhoAmI").await;
        assert_eq!(
            (entry.auth_method.as_str(), entry.credential_id),
            ("oidc", format!("{}#{name}", world.provider.issuer()))
        );
    }
}

fn word(works: bool) -> &'static str {
    if works { "carried out" } else { "refused" }
}

/// The provider has new keys, and the server has seen them: whoever has a token of before needs another.
async fn rotate(world: &World) {
    let before = world.provider.machine(ADMIN).await;
    world.provider.rotate(false).await;
    let machine = world.admin.with_key(&world.provider.machine(ADMIN).await);
    until("the new keys", async || machine.who_am_i().await.ok()).await;
    assert!(world.admin.with_key(&before).who_am_i().await.is_err(), "the keys of before are gone");
    let refreshed = world.provider.count("refresh").await;
    for name in ["carol", "bob", "alice"] {
        world.shell(name).run("whoami").ok().prints(name);
    }
    assert_eq!(world.provider.count("refresh").await, refreshed + 3, "each of them has a new token, and only one");
}

#[tokio::test]
async fn tokens_are_private_and_the_context_is_all_that_is_needed_from_then_on() {
    let world = World::new().await;
    let cli = world.logged_in("alice").await;
    let file = world.tokens("alice");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    cli.run("whoami").ok().quiet().prints("oidc").prints("group:platform");
    // Again, without a flag.
    let mut again = cli.begin("login");
    let page = again.note("user_code=");
    Person::of(&world.provider, "bob").visit(&page, "agree").await;
    again.end().ok();
    cli.run("whoami").ok().prints("bob").prints("operator");
}

#[tokio::test]
async fn a_token_is_refreshed_when_it_ends_and_once_for_all() {
    let world = World::new().await;
    let cli = world.near_its_end("alice").await;
    let before = std::fs::read_to_string(world.tokens("alice")).unwrap();
    cli.run("whoami").ok().prints("alice");
    assert_eq!(world.provider.count("refresh").await, 1);
    let after = std::fs::read_to_string(world.tokens("alice")).unwrap();
    assert_ne!(before, after);
    cli.run("whoami").ok().prints("alice");
    assert_eq!(world.provider.count("refresh").await, 1);

    // Eight commands at once find another that is near its end.
    let cli = world.near_its_end("alice").await;
    let commands: Vec<_> = (0..8)
        .map(|_| {
            let cli = cli.clone();
            tokio::task::spawn_blocking(move || cli.run("whoami"))
        })
        .collect();
    for command in commands {
        command.await.unwrap().ok().prints("alice");
    }
    assert_eq!(world.provider.count("refresh").await, 2, "eight commands at once, one refresh");
    assert_eq!(std::fs::metadata(world.tokens("alice")).unwrap().permissions().mode() & 0o777, 0o600);

    // An issuer that is down is no obstacle while the token is good.
    world.provider.set(&json!({"mode": "reset"})).await;
    cli.run("whoami").ok().prints("alice");
}

#[tokio::test]
async fn a_login_that_was_ended_at_the_issuer_is_over() {
    let world = World::new().await;
    world.provider.set(&json!({"refreshToken": 1})).await;
    let cli = world.near_its_end("alice").await;
    cli.run("whoami").fails(3, "the login has expired").notes("prism-admin login --context prod");
}

#[tokio::test]
async fn machines_log_in_by_themselves() {
    let world = World::new().await;
    let (cli, home) = (world.shell("robot"), world.home("robot"));
    let secret = home.join("secret");
    std::fs::write(&secret, MACHINE_SECRET).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let issuer =
        format!("--issuer {} --client-id machine --audience {ADMIN} --client-credentials", world.provider.issuer());
    let place = world.place();
    cli.run(&format!("login {place} {issuer}")).fails(2, "secret");
    cli.run(&format!("login {place} {issuer} --client-secret-file {}", secret.display())).ok();
    cli.run("whoami").ok().prints("machine").prints("viewer");
    cli.run("config list").ok();
    cli.run("namespace create robots").fails(3, "namespace:create");
    assert_eq!(world.provider.count("clientCredentials").await, 1);
    assert_eq!(std::fs::metadata(world.tokens("robot")).unwrap().permissions().mode() & 0o777, 0o600);

    // A machine asks again when its token ends; the secret may come from the environment.
    world.provider.set(&json!({"accessToken": 3})).await;
    std::fs::remove_file(&secret).unwrap();
    let cli = cli.env("PRISM_ADMIN_CLIENT_SECRET", MACHINE_SECRET);
    cli.run(&format!("login {place} {issuer}")).ok();
    world.end_of_tokens().await;
    cli.run("whoami").ok().prints("machine");
    cli.run("whoami").ok().prints("machine");
    assert_eq!(world.provider.count("clientCredentials").await, 3);
    let wrong = world.shell("impostor").env("PRISM_ADMIN_CLIENT_SECRET", "a-guess");
    wrong.run(&format!("login {place} {issuer}")).fails(3, "invalid_client");
    assert!(!world.tokens("impostor").exists());
}

#[tokio::test]
async fn who_logs_out_is_out() {
    let world = World::new().await;
    world.provider.set(&json!({"accessToken": 3})).await;
    let cli = world.logged_in("alice").await;
    let kept = std::fs::read_to_string(world.tokens("alice")).unwrap();
    cli.run("logout").ok().notes("logged out");
    assert!(!world.tokens("alice").exists());
    cli.run("whoami").fails(3, "nobody is logged in").notes("prism-admin login");
    cli.run("logout").ok().notes("was not logged in");
    // Whoever kept a copy of the file has a token until it ends, and then no other.
    world.end_of_tokens().await;
    std::fs::write(world.tokens("alice"), kept).unwrap();
    cli.run("whoami").fails(3, "the login has expired");
}

#[tokio::test]
async fn logins_that_are_refused_left_or_late_leave_nothing_behind() {
    let world = World::new().await;
    world.log_in("alice", "deny", "").await.fails_after_notes(3, "refused at the issuer");
    world.log_in("bob", "cancel", "").await.fails_after_notes(3, "refused at the issuer");
    world.provider.set(&json!({"deviceCode": 2})).await;
    let late = world.shell("carol").begin(&format!("login {} {}", world.place(), world.issuer())).end();
    late.fails_after_notes(9, "expired");
    world.provider.set(&json!({"deviceCode": 600})).await;
    for name in ["alice", "bob", "carol"] {
        assert!(!world.tokens(name).exists(), "{name}");
        assert!(!world.home(name).join(".config/prism/admin.toml").exists(), "{name}");
    }
    let cli = world.shell("dave");
    let elsewhere = world.issuer().replace("--client-id prism-admin", "--client-id nobody");
    cli.run(&format!("login {} {elsewhere}", world.place())).fails(3, "invalid_client");
    let elsewhere = world.issuer().replace(world.provider.issuer(), "http://127.0.0.1:1");
    cli.run(&format!("login {} {elsewhere}", world.place())).fails(5, "127.0.0.1:1");
    let plain = world.issuer().replace(world.provider.issuer(), "http://id.example");
    cli.run(&format!("login {} {plain}", world.place())).fails(2, "https");
    let renamed = format!("{}/", world.provider.issuer());
    cli.run(&format!("login {} {}", world.place(), world.issuer().replace(world.provider.issuer(), &renamed)))
        .fails(2, "calls itself");
}

#[tokio::test]
async fn a_provider_that_asks_for_time_gets_it() {
    let world = World::new().await;
    world.provider.set(&json!({"slowDown": 1})).await;
    let begin = Instant::now();
    world.log_in("alice", "agree", "").await.ok();
    // RFC 8628, 3.5: five seconds more between two questions from then on.
    assert!(begin.elapsed() >= Duration::from_secs(1 + 1 + 5), "{:?}", begin.elapsed());
    assert_eq!(world.provider.count("poll").await, 1);
}

#[tokio::test]
async fn an_issuer_on_https_is_asked_with_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("the issuer's");
    let ca = authority.write(folder.path(), "issuer");
    let provider = Provider::start_tls(&authority.server(), &ca, folder.path());
    let world = World::with(provider, &format!("ca = {ca:?}\n")).await;
    world.log_in("alice", "agree", &format!("--issuer-ca {}", ca.display())).await.ok();
    world.shell("alice").run("whoami").ok().prints("alice").prints("admin");
    let stranger = world.shell("bob");
    stranger.run(&format!("login {} {}", world.place(), world.issuer())).fails(5, world.provider.issuer());
}

/// Every file below a folder but those of one name.
fn files(folder: &Path, except: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match entry.file_type().unwrap() {
            _ if entry.file_name() == except => {}
            kind if kind.is_dir() => found.extend(files(&path, except)),
            _ => found.push(path),
        }
    }
    found
}

#[tokio::test]
async fn secrets_of_a_login_are_in_the_file_of_its_tokens_and_nowhere_else() {
    let world = World::new().await;
    let alice = world.log_in("alice", "agree", "").await.ok();
    let (cli, robot) = (world.shell("alice"), world.shell("robot").env("PRISM_ADMIN_CLIENT_SECRET", MACHINE_SECRET));
    let machine = format!("--issuer {} --client-id machine --client-credentials", world.provider.issuer());
    let mut outcomes = vec![alice, robot.run(&format!("login {} {machine} --audience {ADMIN}", world.place())).ok()];
    world.provider.set(&json!({"accessToken": 1})).await;
    for line in [
        "login",
        "whoami -o json",
        "namespace create secretive",
        "namespace create secretive",
        "audit export",
        "audit list -o yaml",
        "audit checkpoint",
        "context list -o json",
        "logout",
        "whoami",
    ] {
        let outcome = match line {
            "login" => world.log_in("alice", "agree", "").await,
            line => cli.run(line),
        };
        outcomes.push(outcome);
    }
    outcomes.extend(["whoami", "config list", "namespace list"].map(|line| robot.run(line)));

    let mut secrets = world.provider.secrets().await;
    secrets.push(MACHINE_SECRET.to_owned());
    assert!(secrets.len() > 8, "{} secrets", secrets.len());
    let mut kept: Vec<(String, Vec<u8>)> = vec![
        ("the server's log".to_owned(), world.server.log().into_bytes()),
        ("the metrics".to_owned(), http1::get(&world.server.endpoints().metrics, "/metrics").await.1.into_bytes()),
        ("the audit log".to_owned(), format!("{:?}", world.admin.whole_log().await).into_bytes()),
    ];
    kept.extend(outcomes.iter().map(|outcome| (outcome.line.clone(), format!("{outcome:?}").into_bytes())));
    for path in [files(&world.server.data_dir(), ""), files(world.homes.path(), "tokens")].concat() {
        kept.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    for (place, bytes) in &kept {
        for secret in &secrets {
            // Of a JWT, the signature is what makes it one.
            let part = secret.rsplit('.').next().unwrap().as_bytes();
            assert!(!bytes.windows(part.len()).any(|window| window == part), "{place} holds a secret: {secret}");
        }
    }
    eprintln!("{} secrets are in none of {} places", secrets.len(), kept.len());
    let file = std::fs::read_to_string(world.tokens("robot")).unwrap();
    assert!(secrets.iter().any(|secret| file.contains(secret.as_str())), "the search would find one");
}
