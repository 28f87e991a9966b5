//! Retention: what is past its time goes, a signed cut stands for it, and whoever relied on the log still can.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prism_e2e::books::random;
use prism_e2e::checkpoints::{self, WITNESS};
use prism_e2e::wait::{next, until, within};
use prism_e2e::{Admin, Cli, Options, Prism, Refused as _, audit};
use prism_proto::admin::v1 as wire;
use prism_proto::admin::v1::{AuditCheckpoint, AuditLogEntry, GetAuditLogRequest};
use tokio::task::JoinSet;
use tonic::Code;

/// Entries that are written before the first may go.
const MANY: usize = 2000;

fn options(seconds: u32) -> Options {
    Options::new().config(&format!("[audit]\nretention = \"{seconds}s\"\ncheckpoint_interval = \"1s\"\n"))
}

/// Writes at least this many entries.
async fn write(admin: &Admin, count: usize) {
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let admin = admin.clone();
        calls.spawn(async move {
            for _ in 0..count.div_ceil(16) {
                admin.who_am_i().await.expect("an answer");
            }
        });
    }
    within("entries", calls.join_all()).await;
}

async fn cuts(admin: &Admin) -> Vec<AuditLogEntry> {
    let cuts = GetAuditLogRequest { operation: Some("CutAuditLog".to_owned()), ..Default::default() };
    admin.audit(cuts).await
}

/// The newest cut, once everything up to `sequence` is gone.
async fn cut_through(admin: &Admin, sequence: u64) -> AuditCheckpoint {
    until("a cut", async || {
        admin.checkpoints().await.into_iter().rfind(|signed| signed.cut && signed.sequence >= sequence)
    })
    .await
}

/// The log as it is now, proven from its newest cut on.
async fn proven(admin: &Admin) -> Vec<AuditLogEntry> {
    for _ in 0..20 {
        let log = admin.whole_log().await;
        let signed = admin.checkpoints().await;
        let cut = signed.iter().rfind(|signed| signed.cut);
        let (sequence, hash) = cut.map_or((0, vec![0; 32]), |cut| (cut.sequence, cut.hash.to_vec()));
        if log[0].sequence <= sequence {
            // It was cut between the two questions.
            continue;
        }
        audit::verify_after(sequence, &hash, &log);
        let (first, last) = (log[0].sequence, log[log.len() - 1].sequence);
        for signed in signed.iter().filter(|signed| (first..=last).contains(&signed.sequence)) {
            checkpoints::agrees(signed, &log);
        }
        return log;
    }
    panic!("the log is cut all the time");
}

#[tokio::test]
async fn what_is_past_its_time_goes_and_a_signed_cut_stands_for_it() {
    let server = Prism::start(options(4)).await;
    let (admin, cli) = (server.admin(), Cli::of(&server));
    write(&admin, MANY).await;
    let before = admin.whole_log().await;
    let (first, last) = (before[0].clone(), before[before.len() - 1].clone());
    let remembered = admin.checkpoint().await;
    cli.run("whoami").ok().quiet();
    let through = last.sequence;
    let cut = cut_through(&admin, through).await;
    checkpoints::verify(&cut);

    let log = proven(&admin).await;
    assert!(log[0].sequence > through, "{} is still there", log[0].sequence);
    assert!(log.len() < MANY, "{} entries are left", log.len());
    // What went is what was there, and is not a matter of memory alone.
    let covering = before.iter().find(|entry| entry.sequence == cut.sequence);
    assert!(covering.is_none_or(|entry| entry.hash == cut.hash), "{cut:?}");
    let entries = cuts(&admin).await;
    assert!(!entries.is_empty());
    for entry in &entries {
        assert_eq!(
            (entry.actor.as_str(), entry.resource.as_str(), entry.success),
            ("prism", "audit", true),
            "{entry:?}"
        );
        assert_eq!((entry.auth_method.as_str(), entry.source_address.as_str()), ("none", ""), "{entry:?}");
        let number = |name: &str| entry.metadata[name].parse::<u64>().expect("a number");
        assert!(
            number("through") < entry.sequence && (1..=number("through")).contains(&number("removed")),
            "{entry:?}"
        );
    }

    // Whoever went on after an entry that is gone is told, and not served something else.
    for gone in [&first, &last] {
        let resume = GetAuditLogRequest { resume_after: Some(gone.id.clone()), ..Default::default() };
        assert_eq!(admin.service().get_audit_log(resume.clone()).await.refused().code, Code::NotFound);
        let follow = GetAuditLogRequest { follow: true, ..resume };
        assert_eq!(admin.service().get_audit_log(follow).await.refused().code, Code::NotFound);
    }
    // Filters and times find what is left only.
    let older = GetAuditLogRequest { end_time: last.timestamp, ..Default::default() };
    assert!(admin.audit(older).await.is_empty());

    // Of a removed entry the log knows the hash where it was signed, and no other.
    let read = wire::ListConfigsRequest::default();
    let ask = async |sequence: u64| {
        let answer = admin.and(WITNESS, &sequence.to_string()).service().list_configs(read.clone()).await.unwrap();
        checkpoints::witness_of(answer.metadata()).expect("an answer")
    };
    assert_eq!(ask(remembered.sequence).await, remembered.hash);
    assert_eq!(ask(cut.sequence).await, cut.hash);
    let unsigned = (2..through).find(|sequence| *sequence != remembered.sequence).expect("an entry");
    let signed: Vec<u64> = admin.checkpoints().await.iter().map(|signed| signed.sequence).collect();
    if !signed.contains(&unsigned) {
        assert!(ask(unsigned).await.is_empty());
    }
}

#[tokio::test]
async fn verification_passes_after_a_cut_for_everyone() {
    let server = Prism::start(options(3)).await;
    let (admin, cli) = (server.admin(), Cli::of(&server));
    let home = tempfile::tempdir().unwrap();
    let stranger = Cli::in_folder(home.path()).env("PRISM_DATA_DIR", &server.data_dir().to_string_lossy());
    write(&admin, 200).await;
    cli.run("audit checkpoint").ok();
    // It remembers what is gone soon.
    cli.run("whoami").ok().quiet();
    let export_before = cli.run("audit export").ok().quiet().out;
    let last = admin.whole_log().await.last().expect("entries").sequence;
    cut_through(&admin, last).await;

    for shell in [&cli, &stranger] {
        for _ in 0..3 {
            shell.run("whoami").ok().quiet();
        }
        let live = shell.run("audit verify -o json").ok().quiet().json();
        assert!(live["cut"].as_u64().is_some_and(|cut| cut >= last), "{live}");
        for format in ["", " --ocsf"] {
            let export = shell.run(&format!("audit export{format}")).ok().quiet().out;
            let head = export.lines().next().expect("a line");
            assert!(head.contains("checkpoint") && head.contains("cut"), "a cut comes first: {head}");
            let verified = shell.run_with("audit verify --file - -o json", &[], &export).ok().json();
            assert!(verified["cut"].as_u64().is_some_and(|cut| cut >= last), "{verified}");
            // Without the cut, the beginning is missing.
            let rest: Vec<&str> = export.lines().skip(1).collect();
            shell.run_with("audit verify --file -", &[], &rest.join("\n")).ends(11);
        }
    }
    // What was exported before is whole still, and can be compared with what is known now.
    cli.run_with("audit verify --file -", &[], &export_before).ok();
    // The witness of a removed entry is not held against the log where it was signed.
    server.signal("TERM");
    assert!(server.exit().await.success());
    let line = format!("audit verify --data-dir {} -o json", server.data_dir().display());
    for shell in [&cli, &stranger] {
        let offline = shell.run(&line).ok().quiet().json();
        assert!(offline["cut"].as_u64().is_some_and(|cut| cut >= last), "{offline}");
    }
    server.spawn();
    server.ready().await;
    cli.run("whoami").ok().quiet();
    proven(&server.admin()).await;
}

#[tokio::test]
async fn whoever_follows_misses_nothing_while_the_log_is_cut() {
    let server = Prism::start(options(2)).await;
    let admin = server.admin();
    let mut followed = admin.follow().await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let (admin, stop) = (admin.clone(), Arc::clone(&stop));
        writers.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                admin.who_am_i().await.expect("an answer");
            }
        });
    }
    let (mut seen, mut cut) = (Vec::new(), 0);
    while cut < 4 || seen.len() < 500 {
        let entry = next("an entry", &mut followed).await.unwrap().unwrap();
        cut += usize::from(entry.operation == "CutAuditLog");
        seen.push(entry);
        if seen.len().is_multiple_of(200) {
            // Going on from what was seen last is no different.
            let resume_after = Some(seen.last().unwrap().id.clone());
            let request = GetAuditLogRequest { follow: true, resume_after, ..Default::default() };
            followed = admin.service().get_audit_log(request).await.unwrap().into_inner();
        }
    }
    stop.store(true, Ordering::SeqCst);
    within("the writers", writers.join_all()).await;
    audit::verify_after(seen[0].sequence - 1, &seen[0].previous_hash, &seen);
    println!("{} entries followed through {cut} cuts", seen.len());
}

/// Entries that nobody has looked at yet may be gone before a reader comes to them: that is said, and not passed over.
#[tokio::test]
async fn a_reader_that_is_overtaken_by_a_cut_is_told() {
    let server = Prism::start(options(15)).await;
    let admin = server.admin();
    // More than what fits between the two ends of a stream that nobody reads.
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let (admin, name) = (admin.and("x-admin-user", &"u".repeat(200)), "x".repeat(2000));
        calls.spawn(async move {
            for _ in 0..250 {
                let request = wire::GetConfigRequest { name: name.clone(), ..Default::default() };
                admin.service().get_config(request).await.expect_err("a name that is too long");
            }
        });
    }
    within("long entries", calls.join_all()).await;
    let mut slow = until("a stream from the oldest entry on", async || {
        let oldest = admin.whole_log().await.remove(0);
        let resume = GetAuditLogRequest { resume_after: Some(oldest.id), ..Default::default() };
        Some((admin.service().get_audit_log(resume).await.ok()?.into_inner(), oldest.sequence))
    })
    .await;
    let last = admin.checkpoint().await.sequence;
    cut_through(&admin, last).await;
    let mut expected = slow.1 + 1;
    loop {
        match next("an entry", &mut slow.0).await {
            Some(Ok(entry)) => {
                assert_eq!(entry.sequence, expected, "a gap that nobody was told of");
                expected += 1;
            }
            Some(Err(status)) => {
                let failure = prism_e2e::Failure::from(&status);
                failure.is(Code::Aborted, "AUDIT_LOG_CUT");
                let oldest: u64 = failure.metadata["oldest_sequence"].parse().expect("a sequence");
                assert!(oldest > expected, "{failure:?}");
                break;
            }
            // All of it was on its way before the cut.
            None => {
                assert!(expected >= last, "the stream ended at {expected}, before its end at {last}");
                break;
            }
        }
    }
    println!("a slow reader came to sequence {expected} of {last}");
}

#[tokio::test]
async fn killed_in_the_midst_of_cuts_it_is_whole_each_time() {
    const ROUNDS: usize = 10;
    let server = Prism::start(options(1)).await;
    let cli = Cli::of(&server);
    let line = format!("audit verify --data-dir {} -o json", server.data_dir().display());
    let (mut last, mut cut) = (0, 0);
    for round in 0..ROUNDS {
        let admin = server.admin();
        let mut writers = JoinSet::new();
        for _ in 0..4 {
            let admin = admin.clone();
            // Until the server is killed.
            writers.spawn(async move { while admin.who_am_i().await.is_ok() {} });
        }
        // A second is the shortest time between two cuts.
        tokio::time::sleep(Duration::from_millis(1000 + random() % 1500)).await;
        if round % 2 == 0 {
            cli.run("whoami").ok().quiet();
        }
        server.kill();
        within("the writers", writers.join_all()).await;
        let verified = cli.run(&line).ok().quiet().json();
        let number = |name: &str| verified[name].as_u64().unwrap_or_default();
        let end = number("first") + number("entries") - 1;
        assert!(end >= last && number("cut") >= cut, "round {round}: {verified} after {last}, {cut}");
        (last, cut) = (end, number("cut"));
        server.spawn();
        server.ready().await;
        cli.run("whoami").ok().quiet();
        assert!(!server.log().contains("\"ERROR\""), "{}", server.log());
    }
    assert!(cut > 0, "nothing was ever cut");
    proven(&server.admin()).await;
    println!("{ROUNDS} kills, {last} entries, cut through {cut}");
}

/// Without retention nothing goes, and a server that is told of it later removes what is past its time then.
#[tokio::test]
async fn retention_that_is_set_later_reaches_back() {
    let mut server = Prism::start(Options::new().config("[audit]\ncheckpoint_interval = \"1s\"\n")).await;
    let admin = server.admin();
    write(&admin, 100).await;
    let before = admin.checkpoint().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(admin.whole_log().await[0].sequence, 1);
    assert!(cuts(&admin).await.is_empty());
    server.signal("TERM");
    assert!(server.exit().await.success());
    server.set_options(options(1));
    server.spawn();
    server.ready().await;
    let admin = server.admin();
    cut_through(&admin, before.sequence).await;
    proven(&admin).await;
    // Taken away again, what is there stays, and what was cut stays cut.
    server.signal("TERM");
    assert!(server.exit().await.success());
    server.set_options(Options::new());
    server.spawn();
    server.ready().await;
    let admin = server.admin();
    let kept = proven(&admin).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(proven(&admin).await[0], kept[0]);
}

/// A log at rest is not cut for ever because of the entries that cuts are.
#[tokio::test]
async fn a_log_at_rest_comes_to_rest() {
    let server = Prism::start(options(1)).await;
    let admin = server.admin();
    write(&admin, 50).await;
    let last = admin.checkpoint().await.sequence;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let log = proven(&admin).await;
    assert!(log[0].sequence > last, "{log:?}");
    assert!(log.len() < 12, "{log:?}");
}
