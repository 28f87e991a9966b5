//! A server that was put back to an older copy of its data: whoever saw the newer state is told with the next call.

use std::path::Path;

use prism_e2e::cli::Outcome;
use prism_e2e::{Cli, Options, Prism};

use super::database::{copy, remembered};

const WARNING: &str = "WARNING: THE AUDIT LOG OF THIS SERVER IS NOT THE ONE THAT WAS SEEN BEFORE";

/// A computer with a context for the server, and nothing else that leads to it.
struct Computer {
    home: tempfile::TempDir,
    cli: Cli,
}

impl Computer {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let cli = Cli::in_folder(home.path());
        Self { home, cli }
    }

    /// Tells the context where the server listens now.
    fn knows(&self, server: &Prism) -> &Cli {
        let data = server.data_dir();
        let file = |name: &str| data.join(name).display().to_string();
        let (ca, token) = (file("ca.pem"), file("admin.token"));
        let line = format!("context set prod --endpoint {} --ca {ca} --token-file {token}", server.endpoints().admin);
        self.cli.run(&line).ok();
        &self.cli
    }

    fn remembers(&self) -> u64 {
        remembered(self.home.path())
    }
}

/// It cries out, after the answer.
#[track_caller]
fn alarmed(outcome: Outcome, words: &str) -> Outcome {
    let outcome = outcome.ends(11).notes(WARNING).notes(words).notes("audit forget").notes("seen before: sequence");
    assert!(!outcome.out.is_empty(), "the answer is printed all the same: {outcome:#?}");
    outcome
}

async fn start(server: &Prism) {
    server.spawn();
    server.ready().await;
}

async fn stop(server: &Prism) {
    server.signal("TERM");
    assert!(server.exit().await.success(), "{}", server.log());
}

fn put_back(server: &Prism, old: &Path) {
    std::fs::remove_dir_all(server.data_dir()).unwrap();
    copy(old, &server.data_dir());
}

/// A server that was put back, and two computers: one saw what came after the copy, one did not.
struct Rewound {
    server: Prism,
    /// The data as they were before they were put back.
    newer: tempfile::TempDir,
    saw: Computer,
    did_not: Computer,
}

async fn rewound() -> Rewound {
    let server = Prism::start(Options::new()).await;
    let (saw, did_not) = (Computer::new(), Computer::new());
    for computer in [&saw, &did_not] {
        computer.knows(&server).run("audit checkpoint").ok();
        computer.cli.run("whoami").ok().quiet();
    }
    stop(&server).await;
    let (old, newer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(&server.data_dir(), old.path());
    start(&server).await;
    let cli = saw.knows(&server);
    // More than the calls of the tests, which make the log longer again.
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        cli.run(&format!("namespace create {name}")).ok();
    }
    cli.run("audit checkpoint").ok();
    cli.run("whoami").ok().quiet();
    assert!(saw.remembers() > did_not.remembers());
    stop(&server).await;
    copy(&server.data_dir(), newer.path());
    put_back(&server, old.path());
    start(&server).await;
    Rewound { server, newer, saw, did_not }
}

#[tokio::test]
async fn the_next_call_of_anyone_who_saw_the_newer_state_cries_out() {
    let Rewound { server, saw, did_not, .. } = rewound().await;
    let before = saw.remembers();
    let cli = saw.knows(&server);
    for line in ["whoami", "namespace list", "audit list", "can-i CreateConfig", "whoami -o json"] {
        let outcome = alarmed(cli.run(line), "went back");
        assert!(outcome.err.contains(&format!("sequence {before}")), "{outcome:#?}");
    }
    // So does a call that fails, and one that changes something.
    cli.run("namespace get nowhere").ends(11).notes(WARNING).notes("NOT_FOUND");
    cli.run("namespace create later").ends(11).notes(WARNING);
    cli.run("audit verify").ends(11);
    // What was seen stays remembered, however often it is asked; nobody is talked into the older log.
    assert_eq!(saw.remembers(), before);
    did_not.knows(&server).run("whoami").ok().quiet();
    did_not.cli.run("audit verify").ok().quiet();

    // The old log once more, now with other entries in the place of those that were seen.
    for name in ["x", "y", "z"] {
        did_not.cli.run(&format!("namespace create {name}")).ok();
    }
    while did_not.remembers() <= before {
        did_not.cli.run("whoami").ok();
        did_not.cli.run("audit checkpoint").ok();
        did_not.cli.run("whoami").ok();
    }
    alarmed(cli.run("whoami"), "was rewritten");
    cli.run("audit verify").ends(11);
    did_not.cli.run("whoami").ok().quiet();

    // Only a person ends it.
    cli.run("audit forget -y").ok().notes(&format!("sequence {before}"));
    cli.run("whoami").ok().quiet();
    cli.run("audit verify").ok().quiet();
    assert!(saw.remembers() > before);
}

#[tokio::test]
async fn the_true_log_comes_back_and_all_is_quiet_but_for_who_saw_the_other() {
    let Rewound { server, newer, saw, did_not } = rewound().await;
    alarmed(saw.knows(&server).run("whoami"), "went back");
    // This one sees of the rewound log more than there was before the two parted.
    did_not.knows(&server).run("namespace create x").ok();
    did_not.cli.run("audit checkpoint").ok();
    did_not.cli.run("whoami").ok().quiet();
    stop(&server).await;
    put_back(&server, newer.path());
    start(&server).await;
    saw.knows(&server).run("whoami").ok().quiet();
    saw.cli.run("audit verify").ok().quiet();
    alarmed(did_not.knows(&server).run("whoami"), "was rewritten");
}

/// Another log under the same address, certificates and credential: with a key of its own.
#[tokio::test]
async fn a_log_with_another_key_cries_out() {
    let server = Prism::start(Options::new()).await;
    let saw = Computer::new();
    saw.knows(&server).run("whoami").ok().quiet();
    stop(&server).await;
    let other = Prism::start(Options::new()).await;
    stop(&other).await;
    std::fs::copy(other.data_dir().join("audit.key"), server.data_dir().join("audit.key")).unwrap();
    start(&server).await;
    alarmed(saw.knows(&server).run("whoami"), "another key");
    saw.cli.run("audit verify").ends(11);
    saw.cli.run("audit forget --yes").ok();
    saw.cli.run("whoami").ok().quiet();
}

/// Between two checkpoints: the copy is older by a single call, of whatever kind, and the very next call finds it.
#[tokio::test]
async fn a_server_put_back_by_one_call_is_found_by_the_next() {
    let server = Prism::start(Options::new()).await;
    let saw = Computer::new();
    let token = server.admin().create_api_key("viewer", None, None).await.token;
    for (number, newer) in
        ["namespace create newer", "whoami", "namespace get nowhere", "audit list --limit 1"].iter().enumerate()
    {
        saw.knows(&server).run(&format!("namespace create before{number}")).ok().quiet();
        stop(&server).await;
        let old = tempfile::tempdir().unwrap();
        copy(&server.data_dir(), old.path());
        start(&server).await;
        let outcome = saw.knows(&server).run(newer);
        assert!(outcome.code != Some(11), "{outcome:#?}");
        let seen = saw.remembers();
        // What others do meanwhile makes the log long enough to look like the one that was seen.
        server.kill();
        put_back(&server, old.path());
        start(&server).await;
        let other = server.admin().with_key(&token);
        for _ in 0..5 * number {
            other.who_am_i().await.unwrap();
        }
        let outcome = saw.knows(&server).run("whoami -o json").ends(11).notes(WARNING).notes("seen before: sequence");
        assert!(outcome.err.contains(&format!("seen before: sequence {seen},")), "{outcome:#?}");
        saw.cli.run("audit forget -y").ok();
    }
}

/// Who follows has the state signed at which the stream began.
#[tokio::test]
async fn a_server_put_back_while_somebody_follows_is_found_too() {
    let server = Prism::start(Options::new()).await;
    let saw = Computer::new();
    stop(&server).await;
    let old = tempfile::tempdir().unwrap();
    copy(&server.data_dir(), old.path());
    start(&server).await;
    let following = saw.knows(&server).follow("audit tail");
    server.admin().create_namespace("seen").await;
    following.next(prism_e2e::wait::LIMIT).expect("an entry");
    drop(following);
    server.kill();
    put_back(&server, old.path());
    start(&server).await;
    saw.knows(&server).run("whoami").ends(11).notes(WARNING);
}

/// A machine that was lost and came back from its backup: loud until a person has explained it.
#[tokio::test]
async fn a_backup_without_the_newest_entries_is_rewound_too() {
    let Rewound { server, saw, .. } = rewound().await;
    alarmed(saw.knows(&server).run("namespace list"), "backup was restored");
    saw.cli.run("audit forget -y").ok();
    for _ in 0..3 {
        saw.cli.run("namespace list").ok().quiet();
    }
}

/// What the log holds decides, not where the memory lies: a server known by its data directory is watched as well.
#[tokio::test]
async fn a_server_known_by_its_data_directory_is_watched_too() {
    let server = Prism::start(Options::new()).await;
    let cli = Cli::of(&server);
    stop(&server).await;
    let old = tempfile::tempdir().unwrap();
    copy(&server.data_dir(), old.path());
    start(&server).await;
    cli.run("namespace create newer").ok();
    cli.run("audit checkpoint").ok();
    cli.run("whoami").ok().quiet();
    server.kill();
    put_back(&server, old.path());
    let line = format!("audit verify --data-dir {}", server.data_dir().display());
    cli.run(&line).fails(11, "remembered");
    start(&server).await;
    alarmed(cli.run("whoami"), "went back");
}
