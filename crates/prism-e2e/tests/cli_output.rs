//! `prism-admin` against a live server: every noun and verb, in the forms for people and for programs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use prism_e2e::cli::Outcome;
use prism_e2e::site::unique;
use prism_e2e::wait::next;
use prism_e2e::{Cli, Options, Pattern, Shared, Site};
use serde_json::{Value, json};

static SERVER: Shared = Shared::new();

async fn site() -> (Site, Cli) {
    let site = Site::new(SERVER.get(Options::new()).await).await;
    let cli = Cli::of(&site.server);
    (site, cli)
}

/// A command that only reads: data and nothing else, as a table with these words, as JSON, and as the same in YAML.
#[track_caller]
fn forms(cli: &Cli, line: &str, words: &[&str]) -> Value {
    let table = words.iter().fold(cli.run(line).ok().quiet(), |table, word| table.prints(word));
    assert!(serde_json::from_str::<Value>(&table.out).is_err(), "a table is for people: {table:?}");
    assert!(table.out.lines().all(|line| line == line.trim()), "{table:#?}");
    let json = cli.run_with(line, &["-o", "json"], "").ok().quiet().json();
    let yaml = cli.run_with(line, &["--output=yaml"], "").ok().quiet();
    let yaml: Value = serde_norway::from_str(&yaml.out).unwrap_or_else(|error| panic!("not YAML: {error}: {yaml:#?}"));
    let keys = |value: &Value| value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys(&json), keys(&yaml), "{line}");
    cli.run_with(line, &["-o", "token"], "").fails(2, "-o token is for");
    json
}

/// The rows of a listing, by a field.
#[track_caller]
fn row<'a>(rows: &'a Value, field: &str, value: &str) -> &'a Value {
    let found = rows.as_array().and_then(|rows| rows.iter().find(|row| row[field] == value));
    found.unwrap_or_else(|| panic!("no {field} {value} in {rows}"))
}

#[tokio::test]
async fn namespace() {
    let (_site, cli) = site().await;
    let name = unique("shop");
    let made = cli.run_with(
        &format!("namespace create {name} --max-sessions 5 --max-storage 10MiB"),
        &["--description", "for the shop"],
        "",
    );
    let made = made.ok().quiet().prints("for the shop").prints("0 of 5").prints("0 B of 10.0 MiB");
    assert_eq!(made.field("status"), "active");

    let listed = forms(&cli, "namespace list", &["NAME", "MAX SESSIONS", &name]);
    assert_eq!(row(&listed["namespaces"], "name", &name)["quota"]["maxSessions"], "5");
    assert_eq!(listed["totalCount"].as_u64(), listed["namespaces"].as_array().map(|rows| rows.len() as u64));
    forms(&cli, &format!("namespace get {name}"), &["name:", &name, "requests per second:"]);

    let changed = cli.run(&format!("ns update {name} --max-rps 7 --status read-only -o json")).ok().quiet().json();
    let expected = json!({"maxSessions": "5", "maxRps": "7", "maxStorageBytes": "10485760"});
    assert_eq!(changed["namespace"]["quota"], expected, "a quota that is not named stays");
    assert_eq!(changed["namespace"]["status"], "NAMESPACE_STATUS_READ_ONLY");
    cli.run(&format!("ns update {name} --status active --etag stale")).fails(6, "ETAG_MISMATCH");

    let rehearsed = cli.run(&format!("namespace delete {name} --dry-run")).ok().notes("would be deleted");
    assert_eq!(rehearsed.out, "");
    let deleted = cli.run(&format!("namespace delete {name}")).ok().notes("deleted: 0 configs, 0 sessions");
    assert_eq!(deleted.out, "");
    cli.run(&format!("namespace get {name}")).fails(4, "does not exist").notes("hint: `prism-admin namespace list`");
}

#[tokio::test]
async fn config() {
    let (site, cli) = site().await;
    let (namespace, name) = (&site.namespace, unique("orders"));
    let flags = format!("--pattern queue --backend sqlite -n {namespace} --version 1 --option partitions=2");
    let valid = cli.run(&format!("config create {name} {flags} --validate-only")).ok();
    valid.notes("nothing was changed");
    cli.run(&format!("config get {name}")).fails(4, "NOT_FOUND");
    cli.run(&format!("config create {name} {flags}")).ok().quiet().prints("option partitions:");

    let listed = forms(&cli, &format!("config list -n {namespace}"), &["PATTERN", "queue", "sqlite", &name]);
    assert_eq!(row(&listed["configs"], "name", &name)["pattern"], "ACCESS_PATTERN_QUEUE");
    let none = forms(&cli, &format!("config list -n {namespace} --pattern pubsub"), &["no configs"]);
    assert_eq!(none, json!({"configs": [], "totalCount": 0}), "a program need not ask whether a list is there");
    forms(&cli, &format!("config get {name}"), &["revision:", "etag:", "partitions:"]);

    cli.run(&format!("config update {name} --option ack_timeout_ms=5000 --version 2")).ok().quiet().prints("5000");
    let newest = cli.run(&format!("config get {name} -o json")).ok().json();
    let options = json!({"partitions": "2", "ack_timeout_ms": "5000"});
    assert_eq!((&newest["revision"], &newest["config"]["backend"]["options"]), (&json!("2"), &options));
    let first = cli.run(&format!("config get {name} --revision 1 -o json")).ok().json();
    assert_eq!(first["config"]["backend"]["options"], json!({"partitions": "2"}));
    assert_eq!(cli.run(&format!("config get {name} --version 1 -o json")).ok().json()["revision"], "1");

    let again = format!("config create {name} {flags}");
    cli.run(&again).fails(6, "exists already").notes("--overwrite");
    cli.run(&format!("{again} --overwrite")).ok();
    let deleted = cli.run(&format!("config delete {name}")).ok().notes("deleted");
    assert_eq!(deleted.out, "");
    cli.run(&format!("config delete {name}")).fails(4, "does not exist");
}

#[tokio::test]
async fn a_config_goes_out_to_a_file_is_edited_and_comes_back() {
    let (site, cli) = site().await;
    let name = site.config(Pattern::Reader).await;
    let printed = cli.run(&format!("config get {name} -o yaml")).ok().quiet().out;
    let file = site.server.folder().join(format!("{name}.yaml"));
    std::fs::write(&file, printed.replace("version: '1'", "version: '2'")).unwrap();
    let path = file.to_string_lossy();
    cli.run_with("config update -f", &[&path], "").ok().quiet();
    let now = cli.run(&format!("config get {name} -o json")).ok().json();
    assert_eq!((&now["revision"], &now["config"]["version"]), (&json!("2"), &json!("2")));
    assert!(now["config"]["backend"]["options"]["schema"].as_str().unwrap().starts_with("CREATE TABLE"));
    // The file carries the tag of the revision it was taken from: a second edit of it would undo the first.
    cli.run_with("config update -f", &[&path], "").fails(6, "ETAG_MISMATCH");

    // The same through pipes, as JSON, under another name.
    let document = cli.run(&format!("config get {name} -o json")).ok().out;
    let copy = unique("copy");
    cli.run_with(&format!("config create {copy} -f -"), &[], &document).ok().quiet().prints(&copy);
    let original = cli.run(&format!("config get {name} -o json")).ok().json();
    let copied = cli.run(&format!("config get {copy} -o json")).ok().json();
    assert_eq!(copied["config"]["backend"], original["config"]["backend"]);

    let short = format!("name: {copy}\nversion: 3\npattern: kv\n");
    cli.run_with("config update -f -", &[], &short).fails(7, "there are: key-value, queue");
    let short = format!(
        "name: {copy}\nversion: '3'\npattern: queue\nbackend: {{type: sqlite}}\nnamespace: {}\n",
        site.namespace
    );
    cli.run_with("config update -f -", &[], &short).ok().quiet().prints("queue");
}

#[tokio::test]
async fn session() {
    let (site, cli) = site().await;
    let session = site.session(Pattern::KeyValue).await;
    session.put("a", b"1").await.unwrap();
    let line = format!("session list -n {} --status active", site.namespace);
    let listed = forms(&cli, &line, &["SESSION", "CLIENT", &session.id, "active"]);
    assert_eq!(row(&listed["sessions"], "sessionId", &session.id)["clientId"], "e2e");
    forms(&cli, &format!("session get {}", session.id), &["last activity:", "requests:", &session.id]);
    let ended = cli.run_with(&format!("session terminate {} --force", session.id), &["--reason", "a test"], "").ok();
    assert_eq!((ended.out.as_str(), session.get("a").await.is_err()), ("", true), "{ended:?}");
    forms(&cli, &line, &["no sessions"]);
    cli.run("session get 0190a1b2-0000-7000-8000-000000000001").fails(4, "does not exist");
    for form in ["table", "json", "yaml"] {
        let shown = cli.run(&format!("session get {} -o {form}", session.id)).ok();
        assert!(!shown.out.contains(&session.token), "the token of a session is never shown: {shown:?}");
    }
}

#[tokio::test]
async fn backend_and_metrics() {
    let (site, cli) = site().await;
    let session = site.session(Pattern::MemoryKeyValue).await;
    session.put("a", b"1").await.unwrap();
    let listed = forms(&cli, "backend list", &["TYPE", "healthy", "sqlite", "memory"]);
    assert_eq!(listed["totalCount"], 2);
    let status = forms(&cli, "backend status memory", &["INSTANCE", "healthy", "MEAN MS"]);
    assert_eq!(status["instances"][0]["id"], "memory");
    cli.run("backend status kafka").fails(4, "NOT_FOUND");
    let line = format!("metrics --window 5m -n {}", site.namespace);
    let metrics = forms(&cli, &line, &["window:     5m", "P99 MS", &format!("namespace {}", site.namespace)]);
    assert_eq!(metrics["window"], "300s");
    let figures = &row(&metrics["namespaces"], "namespace", &site.namespace)["metrics"];
    let requests = figures["requestsTotal"].as_str().and_then(|count| count.parse().ok());
    assert_eq!(requests, Some(2), "CreateSession and Put: {metrics}");
    cli.run("metrics --window 2h").fails(7, "window");
}

#[tokio::test]
async fn maintenance() {
    let (site, cli) = site().await;
    let scope = format!("-n {}", site.namespace);
    let on =
        cli.run_with(&format!("maintenance on {scope} --for 1h --allow-reads"), &["--message", "moving house"], "");
    on.ok().quiet().prints("moving house").prints(&format!("namespace {}", site.namespace));
    let status = forms(&cli, &format!("maintenance status {scope}"), &["SCOPE", "moving house", "yes"]);
    let own = row(&status["statuses"], "namespace", &site.namespace);
    assert_eq!((&own["enabled"], &own["allowReads"]), (&json!(true), &json!(true)), "{status}");
    site.open(prism_e2e::data::named(&site.key, &site.config(Pattern::KeyValue).await)).await.unwrap_err();
    cli.run(&format!("maintenance off {scope}")).ok().quiet().prints("off");
    site.session(Pattern::KeyValue).await;
    cli.run(&format!("maintenance on {scope} --until 2020-01-01T00:00:00Z")).fails(7, "scheduled_end");
}

#[tokio::test]
async fn drain() {
    let (site, cli) = site().await;
    let scope = format!("drain -n {}", site.namespace);
    site.session(Pattern::KeyValue).await;
    let busy = site.session(Pattern::Queue).await;
    busy.publish("t", b"m").await.unwrap();
    let mut stream = busy.subscribe("t", "g").await.unwrap();
    next("a message", &mut stream).await.unwrap().unwrap();
    let rehearsed = cli.run(&format!("{scope} --dry-run")).ok().quiet();
    assert_eq!(
        (rehearsed.field("would end at once"), rehearsed.field("have something running")),
        ("1".into(), "1".into())
    );
    let first = cli.run(&format!("{scope} --timeout 1s -o json")).ends(9).notes("1 sessions are left").json();
    assert_eq!((&first["drainedCount"], &first["remainingCount"]), (&json!(1), &json!(1)));
    let forced = cli.run(&format!("{scope} --timeout 1s --force")).ok().quiet();
    assert_eq!((forced.field("ended"), forced.field("complete")), ("1".into(), "yes".into()));
}

#[tokio::test]
async fn audit() {
    let (site, cli) = site().await;
    let cli = cli.env("PRISM_ADMIN_USER", "carol@example.com");
    let filter = format!("-n {} --actor carol@example.com", site.namespace);
    let follow = cli.follow(&format!("audit tail {filter} --operation GetNamespace -o json"));
    let act = || cli.run(&format!("namespace get {}", site.namespace)).ok();
    // The tail shows what comes after its beginning, whenever that is.
    let line = (0..100).find_map(|_| {
        act();
        follow.next(Duration::from_millis(200))
    });
    let entry: Value = serde_json::from_str(&line.expect("an entry")).expect("a line of JSON");
    assert_eq!(entry["operation"], "GetNamespace");
    assert_eq!(entry["actor"], "carol@example.com");
    let list = format!("audit list {filter} --operation GetNamespace");
    let table = cli.run(&list).ok().quiet().prints("SEQ").prints("carol@example.com").prints("ok");
    assert!(table.out.lines().skip(1).all(|line| line.contains("GetNamespace")), "{table:#?}");
    let lines = cli.run(&format!("{list} -o json")).ok().quiet().out;
    let sequences: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["sequence"].as_str().unwrap().parse().unwrap())
        .collect();
    let newest_first = sequences.is_sorted_by(|newer, older| newer > older);
    assert!(!sequences.is_empty() && newest_first, "{sequences:?}");
    let documents = cli.run(&format!("{list} -o yaml")).ok().out;
    assert_eq!(documents.matches("---\n").count(), sequences.len(), "{documents}");
    cli.run(&format!("{list} --until 1h")).ok().prints("no entries");
}

#[tokio::test]
async fn keys_are_shown_once() {
    let (site, cli) = site().await;
    let made = cli.run("key create ci --role viewer --owner dave --ttl 1d").ok().notes("shown this once");
    let (id, token) = (made.field("key"), made.field("token"));
    assert!(token.starts_with("prx_"), "{made:?}");
    let other = cli.run(&format!("key create ci --role operator -n {} -o token", site.namespace)).ok().out;
    assert_eq!(other.lines().count(), 1, "-o token prints the token and nothing else");
    let keys = forms(&cli, "key list", &["ROLES", &id, "viewer", "dave", "valid"]);
    assert_eq!(row(&keys["apiKeys"], "keyId", &id)["roles"], json!(["viewer"]));

    let client = cli.run(&format!("client-key create app -n {} --permission read,write -o json", site.namespace)).ok();
    let client_token = client.json()["token"].as_str().unwrap().to_owned();
    let client_id = client.json()["clientKey"]["keyId"].as_str().unwrap().to_owned();
    assert!(client_token.starts_with("prc_"));
    let line = format!("client-key list -n {}", site.namespace);
    let keys = forms(&cli, &line, &["PERMISSIONS", "read,write", &client_id]);
    assert_eq!(keys["totalCount"], 2, "this and the site's own");

    let everything = ["key list", "client-key list", "audit list --limit 1000", "audit export"];
    for (line, form) in everything.iter().flat_map(|line| [(line, "table"), (line, "json")]) {
        let shown = cli.run(&format!("{line} -o {form}")).ok();
        for secret in [&token, other.trim(), client_token.as_str()] {
            // The id may be shown, and it is the token's first part.
            assert!(!shown.out.contains(&secret[20..]), "{line} -o {form} shows a secret");
        }
    }
    let with_key = cli.clone().with_token(&token);
    with_key.run("whoami").ok().prints("dave");
    assert_eq!(cli.run(&format!("key revoke {id}")).ok().notes("revoked").out, "");
    with_key.run("whoami").fails(3, "UNAUTHENTICATED").notes("hint:");
    assert_eq!(cli.run(&format!("client-key revoke {client_id}")).ok().notes("revoked").out, "");
    forms(&cli, &line, &["revoked"]);
    site.open(prism_e2e::data::named(&client_token, "any")).await.unwrap_err();
}

#[tokio::test]
async fn who_am_i_and_what_may_i() {
    let (site, cli) = site().await;
    let me = forms(&cli, "whoami", &["actor:", "ROLE", "admin", "config:*"]);
    assert_eq!(me["authMethod"], "api_key");
    cli.run("whoami --user erin@example.com").ok().prints("erin@example.com");
    assert_eq!(forms(&cli, "can-i CreateConfig", &["allowed:", "yes", "config:create"])["allowed"], true);
    let viewer = cli.with_token(&site.admin.create_api_key("viewer", Some(&site.namespace), None).await.token);
    viewer.run(&format!("can-i prism.admin.v1.AdminService/ListConfigs -n {}", site.namespace)).ok().prints("yes");
    let no = viewer.run(&format!("can-i createconfig -n {}", site.namespace)).ends(10).quiet();
    assert_eq!((no.field("allowed"), no.field("permission")), ("no".into(), "config:create".into()));
    viewer.run("can-i Fly").fails(2, "no RPC \"Fly\"").notes("ListConfigs");
}

#[tokio::test]
async fn contexts() {
    let (site, cli) = site().await;
    let folder = tempfile::tempdir().unwrap();
    let away = Cli::in_folder(folder.path());
    away.run("whoami").fails(2, "no server to talk to").notes("prism-admin context set");
    let path = |name: &str| site.server.data_dir().join(name).to_string_lossy().into_owned();
    let endpoint = site.server.endpoints().admin;
    let flags = ["--endpoint", &endpoint, "--ca", &path("ca.pem"), "--token-file", &path("admin.token")];
    assert_eq!(away.run_with("context set here --inline-token", &flags, "").ok().notes("set").out, "");
    away.run("whoami").ok().prints("admin");
    assert_eq!(away.run("context set also --endpoint localhost:1 --ca ca.pem --token-file t").ok().out, "");
    away.run("context use also").ok();
    away.run("whoami").fails(2, "cannot read");
    away.run("whoami --context here").ok().quiet();
    let listed = forms_of_contexts(&away);
    assert_eq!(row(&listed, "name", "also")["current"], true, "{listed}");
    let file = folder.path().join(".config/prism/admin.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "it holds a token");
    assert!(std::fs::read_to_string(&file).unwrap().contains(&site.server.admin_token()));
    away.run("context remove also").ok().notes("it was the current context");
    away.run("context remove also").fails(2, "no context \"also\"");
    // Where a server's data directory is at hand, it goes before the current context.
    away.run("context use here").ok();
    cli.run("whoami").ok();
}

fn forms_of_contexts(cli: &Cli) -> Value {
    let shown: Vec<Outcome> =
        ["table", "json", "yaml"].iter().map(|form| cli.run(&format!("context list -o {form}")).ok().quiet()).collect();
    assert!(shown.iter().all(|outcome| !outcome.out.contains("prx_")), "a token is never listed: {shown:?}");
    assert!(shown[0].out.contains("inline"), "{shown:?}");
    let yaml: Value = serde_norway::from_str(&shown[2].out).unwrap();
    assert_eq!(yaml, shown[1].json());
    yaml
}

#[test]
fn help_and_completion_need_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::in_folder(folder.path());
    for noun in [
        "namespace",
        "config",
        "session",
        "backend",
        "maintenance",
        "drain",
        "metrics",
        "audit",
        "key",
        "client-key",
        "whoami",
        "can-i",
        "context",
        "completion",
    ] {
        cli.run("--help").ok().quiet().prints(noun);
        cli.run(&format!("{noun} --help")).ok().quiet().prints("Usage: prism-admin").prints("--data-dir");
    }
    cli.run("--version").ok().quiet().prints("prism-admin ");
    cli.run("exit-codes").ok().quiet().prints("11  the audit log is broken");
    for shell in ["bash", "zsh", "fish"] {
        cli.run(&format!("completion {shell}")).ok().quiet().prints("client-key");
    }
    let script = folder.path().join("completion.bash");
    std::fs::write(&script, cli.run("completion bash").out).unwrap();
    let read = std::process::Command::new("bash").arg("-n").arg(&script).status().expect("bash runs");
    assert!(read.success(), "bash cannot read its completion");
}

#[tokio::test]
async fn listings_fetch_every_page_and_tell_what_they_leave_out() {
    let (site, cli) = site().await;
    for _ in 0..5 {
        site.config(Pattern::MemoryKeyValue).await;
    }
    let line = format!("config list -n {}", site.namespace);
    let all = cli.run(&format!("{line} -o json")).ok().quiet().json();
    let small = cli.run(&format!("{line} --page-size 2 -o json")).ok().quiet().json();
    assert_eq!((small.clone(), &small["totalCount"]), (all, &json!(5)));
    let some = cli.run(&format!("{line} --limit 3")).ok().notes("3 of 5 are shown");
    assert_eq!(some.out.lines().count(), 4, "{some:#?}");
}
