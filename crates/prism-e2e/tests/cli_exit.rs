//! `prism-admin` against a live server: what went wrong is told apart by the exit code, and by words on standard error.

use std::time::{Duration, Instant};

use prism_e2e::site::unique;
use prism_e2e::{Cli, Options, Pattern, Prism, Shared, Site};

static SERVER: Shared = Shared::new();

async fn site() -> (Site, Cli) {
    let site = Site::new(SERVER.get(Options::new()).await).await;
    let cli = Cli::of(&site.server);
    (site, cli)
}

#[tokio::test]
async fn usage_is_2_and_reaches_no_server() {
    // A server of its own: the log is compared as a whole.
    let site = Site::new(std::sync::Arc::new(Prism::start(Options::new()).await)).await;
    let cli = Cli::of(&site.server);
    let before = site.admin.whole_log().await.len();
    for line in [
        "",
        "nonsense",
        "namespace",
        "namespace create",
        "namespace update a",
        "namespace create a --max-sessions -1",
        "config list --pattern graph",
        "config create -f nowhere.yaml",
        "config get a --version 1 --revision 1",
        "config update",
        "session list --status dead",
        "session list --page-size 0",
        "maintenance on --until someday",
        "drain --timeout soon",
        "audit list --limit 10001",
        "audit export -o yaml",
        "audit verify --witness 7",
        "key create ci",
        "client-key create app -n a --permission fly",
        "whoami --token prx_secret",
        "whoami -o xml",
        "whoami --data-dir a --context b",
        "can-i Fly",
        "completion tcsh",
    ] {
        let outcome = cli.run(line).ends(2);
        assert_eq!(outcome.out, "", "only data belongs on standard output: {outcome:#?}");
        assert!(!outcome.err.is_empty(), "{outcome:#?}");
    }
    let calls = site.admin.whole_log().await;
    assert!(calls[before..].iter().all(|entry| entry.operation == "GetAuditLog"), "a usage error made a call");
}

#[tokio::test]
async fn refused_is_3_and_names_what_is_missing() {
    let (site, cli) = site().await;
    let token = site.server.admin_token();
    let mistyped = format!("{}{}", &token[..token.len() - 1], if token.ends_with('x') { 'y' } else { 'x' });
    for wrong in ["prx_nonsense", &mistyped, &site.key] {
        let refused = cli.clone().with_token(wrong).run("config list").fails(3, "UNAUTHENTICATED").notes("hint:");
        assert!(!refused.err.contains(&wrong[4..]), "an error shows a credential: {refused:#?}");
    }
    let viewer = cli.clone().with_token(&site.admin.create_api_key("viewer", None, None).await.token);
    viewer.run("config list").ok();
    for (line, permission) in [
        (
            format!("config create a --pattern queue --backend sqlite -n {} --version 1", site.namespace),
            "config:create",
        ),
        ("namespace create a".to_owned(), "namespace:create"),
        (format!("namespace delete {} --force", site.namespace), "namespace:delete"),
        ("session terminate 0190a1b2-0000-7000-8000-000000000001".to_owned(), "session:terminate"),
        ("maintenance on".to_owned(), "operational:maintenance"),
        ("drain".to_owned(), "operational:drain"),
        ("key create a --role admin".to_owned(), "access:manage"),
        (format!("client-key create a -n {} --permission read", site.namespace), "access:manage"),
    ] {
        let refused = viewer.run(&line).fails(3, "PERMISSION_DENIED");
        let refused = refused.notes(&format!("missing permission: {permission}")).notes("prism-admin whoami");
        // The entry that the refusal names is in the log, as a failure.
        let named = refused.err.lines().find_map(|line| line.trim().strip_prefix("audit entry: ")).expect("an entry");
        let log = site.admin.whole_log().await;
        let entry = log.iter().find(|entry| entry.id == named).expect("the entry that was named");
        assert!(!entry.success, "{entry:?}");
    }
    let owned = site.admin.create_api_key("viewer", None, Some("ann")).await.token;
    let other = cli.with_token(&owned).run("whoami --user bob");
    other.fails(3, "ADMIN_USER_MISMATCH").notes("belongs to another user; leave out --user");
}

#[tokio::test]
async fn not_found_is_4_and_names_the_listing() {
    let (_site, cli) = site().await;
    let id = "0190a1b2-0000-7000-8000-000000000001";
    for (line, noun) in [
        ("namespace get nowhere".to_owned(), "namespace"),
        ("namespace update nowhere --description x".to_owned(), "namespace"),
        ("namespace delete nowhere --force".to_owned(), "namespace"),
        ("config get nowhere".to_owned(), "config"),
        ("config update nowhere --version 2".to_owned(), "config"),
        ("config delete nowhere".to_owned(), "config"),
        (format!("session get {id}"), "session"),
        (format!("session terminate {id} --force"), "session"),
        ("backend status kafka".to_owned(), "backend"),
        ("key revoke nowhere".to_owned(), "key"),
        ("client-key revoke nowhere".to_owned(), "client-key"),
    ] {
        cli.run(&line).fails(4, "NOT_FOUND").notes(&format!("`prism-admin {noun} list`"));
    }
}

#[tokio::test]
async fn unreachable_is_5_and_says_where_it_looked() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    cli.run("whoami").ok();
    let metrics = server.endpoints().metrics;
    cli.run(&format!("whoami --endpoint {metrics}")).fails(5, &metrics).notes("hint:");
    // A server with another CA never sees the token.
    let stranger = Prism::start(Options::new()).await;
    let there = stranger.endpoints().admin;
    cli.run(&format!("whoami --endpoint {there}")).fails(5, &there).notes("the server's certificate does not fit");
    assert!(stranger.admin().whole_log().await.iter().all(|entry| entry.operation != "WhoAmI"));

    // Killed, it leaves its endpoints.json behind.
    let endpoints = server.data_dir().join("endpoints.json");
    let text = std::fs::read(&endpoints).unwrap();
    let admin = server.endpoints().admin;
    server.kill();
    std::fs::write(&endpoints, text).unwrap();
    cli.run("whoami").fails(5, &format!("cannot connect to {admin}")).notes("is the server running");
    cli.run("config delete a").fails(5, "cannot connect");
    std::fs::remove_file(&endpoints).unwrap();
    cli.run("whoami").fails(5, "no server runs on").notes("prism serve --data-dir");
    cli.run("audit verify").fails(5, "no server runs on").notes("--data-dir DIR");
}

#[tokio::test]
async fn conflict_is_6() {
    let (site, cli) = site().await;
    let name = site.config(Pattern::KeyValue).await;
    let namespace = &site.namespace;
    cli.run(&format!("namespace create {namespace}")).fails(6, "ALREADY_EXISTS");
    cli.run(&format!("namespace delete {namespace}")).fails(6, "NAMESPACE_NOT_EMPTY").notes("--force");
    cli.run(&format!("config create {name} --pattern queue --backend sqlite -n {namespace} --version 1"))
        .fails(6, "ALREADY_EXISTS");
    cli.run(&format!("config update {name} --version 2 --etag stale")).fails(6, "ABORTED").notes("get it again");
    cli.run(&format!("config delete {name} --etag stale")).fails(6, "ABORTED");
    cli.run(&format!("config get {name}")).ok();
}

#[tokio::test]
async fn invalid_is_7_and_lists_every_field() {
    let (site, cli) = site().await;
    let several = cli.run("config create UPPER --pattern queue --backend memory -n nowhere");
    let several = several.fails(7, "the request is not valid (INVALID_ARGUMENT)");
    for field in ["config.name", "config.version", "config.namespace", "config.pattern"] {
        assert_eq!(several.err.matches(&format!("  {field}: ")).count(), 1, "{field} in {several:#?}");
    }
    cli.run("namespace create Shop").fails(7, "name: ");
    cli.run("key create ci --role wizard").fails(7, "there are: admin, operator, viewer");
    cli.run("session get nonsense").fails(7, "session_id");
    let unknown = format!("name: a\nnamespace: {}\nbackned: {{}}\n", site.namespace);
    cli.run_with("config create -f -", &[], &unknown).fails(7, "backned");
    cli.run_with("config create -f -", &[], "- a list").fails(7, "is not a configuration");
}

#[tokio::test]
async fn a_change_that_is_sent_twice_with_one_key_happens_once() {
    let (_site, cli) = site().await;
    let name = unique("once");
    let line = format!("namespace create {name} --idempotency-key {name} -o json");
    let first = cli.run(&line).ok().json();
    assert_eq!(cli.run(&line).ok().json(), first);
    let other = format!("namespace create other-{name} --idempotency-key {name}");
    cli.run(&other).fails(7, "INVALID_ARGUMENT");
    let key = format!("key create ci --role viewer --idempotency-key key-{name}");
    let id = cli.run(&key).ok().field("key");
    cli.run(&key).fails(6, "SECRET_ALREADY_ISSUED").notes(&format!("revoke {id}"));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    // Stopped, not ended: the kernel takes its connections, and nothing answers them.
    server.signal("STOP");
    let start = Instant::now();
    let outcome = cli.run("namespace create late --timeout 1s");
    let waited = start.elapsed();
    server.signal("CONT");
    outcome.fails(5, "no answer within 1s").notes("hint:");
    assert!(waited < Duration::from_secs(4), "--timeout is for the connection too: {waited:?}");
    cli.run("namespace get late").fails(4, "does not exist");
}
