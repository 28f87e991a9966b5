//! `prism-admin token create` prints a line, and the machine that it is pasted on becomes a node.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use prism_e2e::certificates::{Authority, Holder};
use prism_e2e::enrol::{Machine, uri_of};
use prism_e2e::node::{Files, join};
use prism_e2e::{Cli, Options, Prism, keys};
use prism_proto::cluster::v1::get_lineage_request::Link;
use serde_json::Value;
use tempfile::TempDir;

async fn server() -> Prism {
    Prism::start(Options::new().config("[limits]\nauth_failures = 1000\n")).await
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs `prism join` for a data directory.
fn join_at(server: &Prism, data_dir: &Path, token: &str, more: &[&str]) -> prism_e2e::cli::Outcome {
    let (endpoint, dir) = (server.endpoints().admin, data_dir.to_string_lossy().into_owned());
    join(&[&["-", "--controller", &endpoint, "--data-dir", &dir][..], more].concat(), token)
}

#[tokio::test]
async fn the_printed_line_makes_a_node() {
    let server = server().await;
    let (cli, machine) = (Cli::of(&server), folder());
    let made = cli.run("token create --node db-1 --ttl 10m").ok();
    let line = made.out.lines().find(|line| line.trim().starts_with("prism join ")).expect("a line to paste");
    assert!(made.out.contains("prism serve --role data"), "{}", made.out);
    // As a shell takes it apart.
    let words: Vec<&str> = line.split_whitespace().skip(2).map(|word| word.trim_matches('\'')).collect();
    assert_eq!(words[1..3], ["--controller", &server.endpoints().admin]);
    let data_dir = machine.path().join("data");
    let dir = data_dir.to_string_lossy().into_owned();
    let words = [&words[..], &["--data-dir", &dir]].concat();
    let joined = join(&words, "").ok();
    assert!(joined.out.contains("as node db-1") && joined.out.contains("prism serve --role data"), "{joined:?}");

    let files = Files::of(&data_dir);
    let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let found = [files.path("key.pem"), files.path(""), data_dir.clone()].map(|path| permissions(&path));
    assert_eq!(found, [0o600, 0o700, 0o700]);
    assert_eq!(files.read("ca.pem"), std::fs::read_to_string(server.data_dir().join("ca.pem")).unwrap());
    let identity: Value = serde_json::from_str(&files.read("node.json")).unwrap();
    let token = keys::id(words[0]);
    assert_eq!((&identity["node_id"], &identity["token_id"]), (&"db-1".into(), &token.into()));
    assert_eq!(identity["controllers"], serde_json::json!([server.endpoints().admin]));
    let holder = Holder::read(&files.path("cert.pem"), &files.path("key.pem"));
    assert_eq!(uri_of(&holder), format!("spiffe://{}/node/db-1", identity["cluster"].as_str().unwrap()));
    assert!(!files.read("cert.pem").contains("PRIVATE"));

    // Once more changes nothing, also when the token is gone.
    cli.run(&format!("token revoke {token}")).ok();
    let before = files.read("cert.pem");
    assert!(join(&words, "").ok().out.contains("already"));
    assert_eq!(files.read("cert.pem"), before);

    let listed = cli.run("token list").ok();
    assert!(listed.out.contains(token) && listed.out.contains("revoked") && listed.out.contains("db-1"), "{listed:?}");
    cli.run("node list").ok().prints("db-1").prints("joined");
    cli.run("node show db-1").ok().prints(token);
    for link in [token.to_owned(), "db-1".to_owned(), holder.fingerprint()] {
        cli.run(&format!("lineage {link}")).ok().prints("db-1").prints(token);
    }
    let json: Value = serde_json::from_str(&cli.run("token list -o json").ok().out).unwrap();
    assert_eq!(json["totalCount"], 1);

    cli.run("node revoke db-1").ok();
    cli.run("node show db-1").ok().prints("revoked");
    let node = Machine::new();
    let refused = node.renew(&server, &holder).await.unwrap_err();
    refused.is(tonic::Code::Unauthenticated, "CREDENTIAL_INVALID");
    // It joins anew, with another key.
    let bound = server.admin().create_join_token("db-1").await.join_token;
    let key = files.read("key.pem");
    join_at(&server, &data_dir, &bound, &["--node-id", "db-1"]).ok();
    assert_ne!(files.read("key.pem"), key);
    cli.run("node revoke nobody").fails(4, "nobody");
    cli.run("lineage nobody").fails(4, "nobody");
    cli.run("node drain local --dry-run").ok();
}

#[tokio::test]
async fn a_lost_answer_costs_nothing() {
    let (server, machine) = (server().await, folder());
    let made = server.admin().create_join_token("").await;
    let data_dir = machine.path().join("data");
    let files = Files::of(&data_dir);
    join_at(&server, &data_dir, &made.join_token, &["--node-id", "n1"]).ok();
    let (certificate, key) = (files.read("cert.pem"), files.read("key.pem"));
    // As after a crash before the last file was written, with and without the one before it.
    for gone in [&["node.json"][..], &["node.json", "cert.pem", "ca.pem"]] {
        for name in gone {
            std::fs::remove_file(files.path(name)).unwrap();
        }
        join_at(&server, &data_dir, &made.join_token, &["--node-id", "n1"]).ok();
        assert_eq!((files.read("cert.pem"), files.read("key.pem")), (certificate.clone(), key.clone()));
    }
    // Without its key it is another machine.
    std::fs::remove_dir_all(data_dir.join("node")).unwrap();
    let refused = join_at(&server, &data_dir, &made.join_token, &["--node-id", "n1"]).ends(1);
    assert!(refused.err.contains("redeemed by another key"), "{refused:?}");
    let entries = server.admin().whole_log().await;
    let alarms = entries.iter().filter(|entry| entry.metadata.get("alarm").is_some_and(|alarm| alarm == "token_reuse"));
    assert_eq!(alarms.count(), 1);
    let lineage = server.admin().lineage(Link::NodeId("n1".to_owned())).await;
    assert_eq!(lineage.certificates.len(), 1);
}

#[tokio::test]
async fn the_secret_goes_to_the_right_controller_only() {
    let (one, other, machine) = (server().await, server().await, folder());
    let made = one.admin().create_join_token("").await;
    let data_dir = machine.path().join("data");
    let refused = join_at(&other, &data_dir, &made.join_token, &["--node-id", "n1"]).ends(1);
    assert!(refused.err.contains("does not show the CA that the token names"), "{refused:?}");
    assert!(!refused.err.contains(keys::secret(&made.join_token)), "{refused:?}");
    // Nothing reached it.
    let log = other.admin().whole_log().await;
    assert!(log.iter().all(|entry| entry.operation != "ExchangeJoinToken"));

    // A name that the certificate does not have.
    let port = one.endpoints().admin.rsplit_once(':').unwrap().1.to_owned();
    let dir = data_dir.to_string_lossy().into_owned();
    let odd = format!("127.0.0.2:{port}");
    let refused = join(&["-", "--controller", &odd, "--data-dir", &dir, "--node-id", "n1"], &made.join_token).ends(1);
    assert!(refused.err.contains("refused") || refused.err.contains("listen.names"), "{refused:?}");

    // The first that does not answer is passed over.
    let words = ["-", "--controller", "127.0.0.1:1", "--controller", &one.endpoints().admin, "--data-dir", &dir];
    join(&[&words[..], &["--node-id", "n1"]].concat(), &made.join_token).ok();
    // A controller's own directory is not a node's.
    let refused = join_at(&one, &other.folder().join("data"), &made.join_token, &["--node-id", "n1"]).ends(1);
    assert!(refused.err.contains("in use"), "{refused:?}");
    other.kill();
    let refused = join_at(&one, &other.data_dir(), &made.join_token, &["--node-id", "n1"]).ends(2);
    assert!(refused.err.contains("of a controller"), "{refused:?}");
    other.spawn();
    other.ready().await;
    // What is another's stays another's.
    let second = one.admin().create_join_token("").await.join_token;
    let refused = join_at(&one, &data_dir, &second, &["--node-id", "n2"]).ends(2);
    assert!(refused.err.contains("holds the identity of node n1"), "{refused:?}");
    let foreign = other.admin().create_join_token("").await;
    let refused = join_at(&other, &data_dir, &foreign.join_token, &["--node-id", "n1"]).ends(1);
    assert!(refused.err.contains("another cluster"), "{refused:?}");
    assert_eq!(other.admin().join_token(&foreign.token_id).await.status, "ACTIVE", "it was not sent");
}

#[tokio::test]
async fn with_a_certificate_of_the_operators_ca_a_machine_sees_the_clusters_or_trusts_the_file() {
    let operators = folder();
    let ca = Authority::new("the operator's");
    let path = ca.write(operators.path(), "ca");
    let (certificate, key) = ca.server().write(operators.path(), "server");
    let config =
        format!("[tls.admin]\nmode = \"files\"\ncert = '{}'\nkey = '{}'\n", certificate.display(), key.display());
    let server = Prism::start(Options::new().config(&config)).await;
    let admin = prism_e2e::Admin {
        channel: prism_e2e::dial::tls(&server.endpoints().admin, &path),
        headers: prism_e2e::Headers::bearer(&server.admin_token()),
    };
    let token = admin.create_join_token("").await.join_token;
    let machine = folder();
    // Without a word about it the token goes to the CA that it names, and with the file to whom that vouches for.
    let unnamed = admin.create_join_token("").await.join_token;
    join_at(&server, folder().path(), &unnamed, &["--node-id", "n0"]).ok();
    let shown = path.to_string_lossy().into_owned();
    join_at(&server, machine.path(), &token, &["--node-id", "n1", "--ca", &shown]).ok();
    assert_eq!(
        Files::of(machine.path()).read("ca.pem"),
        std::fs::read_to_string(server.data_dir().join("ca.pem")).unwrap()
    );
    let other = Authority::new("another").write(operators.path(), "other").to_string_lossy().into_owned();
    let refused = join_at(&server, &machine.path().join("b"), &token, &["--node-id", "n2", "--ca", &other]).ends(1);
    assert!(refused.err.contains("not trusted"), "{refused:?}");

    // A server of the operator's CA that is none of the cluster, with the same words for the same client.
    let (certificate, key) = ca.server().write(operators.path(), "another");
    let config =
        format!("[tls.admin]\nmode = \"files\"\ncert = '{}'\nkey = '{}'\n", certificate.display(), key.display());
    let another = Prism::start(Options::new().config(&config)).await;
    let token = admin.create_join_token("").await.join_token;
    let refused = join_at(&another, folder().path(), &token, &["--node-id", "n3"]).ends(1);
    assert!(refused.err.contains("does not show the CA that the token names"), "{refused:?}");
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let server = server().await;
    let admin = server.admin();
    let token = async |node: &str| admin.create_join_token(node).await;
    let refused = |token: &str, id: &str, code: i32, words: &str| {
        let machine = folder();
        let outcome = join_at(&server, machine.path(), token, &["--node-id", id]).ends(code);
        assert!(outcome.err.contains(words), "{words}: {outcome:?}");
        assert!(token.len() < 60 || !outcome.err.contains(keys::secret(token)), "{outcome:?}");
        assert!(!machine.path().join("node/node.json").exists());
    };
    let revoked = token("").await;
    admin.revoke_join_token(&revoked.token_id).await;
    refused(&revoked.join_token, "n1", 1, "revoked");
    refused(&token("n2").await.join_token, "n1", 1, "for another node");
    let used = token("").await.join_token;
    Machine::new().exchange(&admin.channel, &used, "taken").await.unwrap();
    refused(&used, "taken", 1, "redeemed by another key");
    let fresh = token("").await.join_token;
    refused(&fresh, "taken", 1, "prism-admin token create --node taken");
    refused(&fresh, "controller", 1, "keeps for itself");
    refused(&fresh, "N.1", 2, "--node-id");
    refused(&fresh[..fresh.len() - 1], "n1", 2, "characters instead of");
    refused(&format!("{fresh}{fresh}"), "n1", 2, "characters instead of");
    refused(&fresh.to_uppercase(), "n1", 2, "not a join token");
    refused("", "n1", 2, "empty");
    refused(&keys::forged_join(&fresh, &keys::word(32)), "n1", 1, "not valid");
    // And the way back for a name that is taken.
    let bound = token("taken").await.join_token;
    let machine = folder();
    join_at(&server, machine.path(), &bound, &["--node-id", "taken"]).ok();
    let lineage = admin.lineage(Link::NodeId("taken".to_owned())).await;
    assert_eq!(lineage.certificates.iter().filter(|certificate| !certificate.revoked).count(), 1);
    assert_eq!(lineage.tokens.len(), 2);
}
