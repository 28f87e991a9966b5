//! `prism-admin audit verify`: the chain is proven on the live server, on an export, and offline in the database file of
//! a stopped server. What is found there is in tamper/.

use prism_e2e::{Cli, Options, Prism};

#[tokio::test]
async fn an_untouched_log_verifies_live_offline_and_as_an_export() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    for name in ["a", "b", "c"] {
        cli.run(&format!("namespace create {name} --user {name}@example.com")).ok();
        cli.run(&format!("namespace get {name}")).ok();
        cli.run(&format!("namespace create {name}")).ends(6);
    }
    let export = cli.run("audit export").ok().quiet().out;
    let witness = cli.run("audit verify").ok().quiet().field("witness");
    server.signal("TERM");
    assert!(server.exit().await.success());

    let line = format!("audit verify --data-dir {}", server.data_dir().display());
    let whole = cli.run(&line).ok().quiet();
    // The live check read the log before its own entry was written.
    let (seen, _) = witness.split_once(':').unwrap();
    let count: u64 = whole.field("entries").parse().unwrap();
    assert!(count > seen.parse().unwrap() && count >= 10, "{whole:?} after {seen}");
    cli.run_with(&line, &["--witness", &witness], "").ok().quiet();
    let json = cli.run_with(&line, &["-o", "json"], "").ok().json();
    assert_eq!(json["witness"], whole.field("witness"));

    let exported = cli.run_with("audit verify --file -", &[], &export).ok().quiet();
    let lines = export.lines().filter(|line| !line.starts_with("{\"checkpoint\"")).count();
    assert_eq!(exported.field("entries"), lines.to_string());
    let changed = export.replacen("b@example.com", "m@example.com", 1);
    cli.run_with("audit verify --file -", &[], &changed).fails(11, "the chain is broken at sequence");
    let cut = export.lines().skip(1).collect::<Vec<_>>().join("\n");
    cli.run_with("audit verify --file -", &[], &cut).fails(11, "sequence 1");
}

/// Calls come after the end of every export, that which makes it to begin with: it is complete all the same, until something
/// was signed that it does not have.
#[tokio::test]
async fn an_export_that_was_just_made_is_complete() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    cli.run("whoami").ok().quiet();
    let export = cli.run("audit export").ok().quiet().out;
    for line in ["audit verify --file -", "audit verify --file - --complete"] {
        cli.run("whoami").ok().quiet();
        cli.run_with(line, &[], &export).ok().quiet();
    }
    cli.run("audit checkpoint").ok();
    cli.run("whoami").ok().quiet();
    cli.run_with("audit verify --file -", &[], &export).ok().notes("the log was seen up to");
    cli.run_with("audit verify --file - --complete", &[], &export).fails(11, "the log was seen up to");
    let newer = cli.run("audit export").ok().quiet().out;
    cli.run_with("audit verify --file - --complete", &[], &newer).ok().quiet();
}

#[tokio::test]
async fn a_running_server_answers_for_itself() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    let line = format!("audit verify --data-dir {}", server.data_dir().display());
    cli.run(&line).ok().quiet();
    let checks = || cli.run("audit list --operation GetAuditLog -o json").ok().out.lines().count();
    assert!(checks() > 0, "the live server was asked, and has recorded it");
    // Killed, it leaves an old endpoints.json and a write-ahead file: the log is whole all the same.
    let text = std::fs::read(server.data_dir().join("endpoints.json")).unwrap();
    server.kill();
    std::fs::write(server.data_dir().join("endpoints.json"), text).unwrap();
    let entries: u64 = cli.run(&line).ok().quiet().field("entries").parse().unwrap();
    assert!(entries >= 2, "{entries}");
    cli.run("audit verify --data-dir nowhere").fails(5, "no server runs on");
}
