//! Tampering with what stands for entries that retention has removed.

use prism_e2e::checkpoints::Signer;
use prism_e2e::wait::until;
use prism_e2e::{Cli, Options, Prism};
use prism_proto::admin::v1::{AuditCheckpoint, GetAuditLogRequest};

use super::database::{Stopped, checkpoints, entry, open, run, write_checkpoint};
use super::{By, case, check};

/// A stopped server that has cut its log at least twice, and signed it at other places too.
async fn cut() -> Stopped {
    let config = "[audit]\nretention = \"5s\"\ncheckpoint_interval = \"1s\"\n";
    let server = Prism::start(Options::new().config(config)).await;
    let (admin, cli) = (server.admin(), Cli::of(&server));
    until("two cuts", async || {
        for _ in 0..5 {
            admin.who_am_i().await.unwrap();
        }
        admin.checkpoint().await;
        let cuts = GetAuditLogRequest { operation: Some("CutAuditLog".to_owned()), ..Default::default() };
        let cuts: Vec<_> = admin.audit(cuts).await;
        let last = cuts.first()?.metadata["through"].parse::<u64>().expect("a sequence");
        // The newest cut alone counts, and there must be more before it and after it.
        (last > 20 && admin.checkpoints().await.iter().filter(|signed| signed.cut).count() > 1).then_some(())
    })
    .await;
    // What the operator remembers lies after the cut, or it would be gone with the next.
    admin.checkpoint().await;
    cli.run("whoami").ok().quiet();
    for _ in 0..2 {
        admin.who_am_i().await.unwrap();
    }
    Stopped::of(server).await
}

type Edit = fn(&mut AuditCheckpoint);

fn newest_cut(database: &rusqlite::Connection) -> AuditCheckpoint {
    checkpoints(database).into_iter().rfind(|signed| signed.cut).expect("a cut")
}

#[tokio::test]
async fn what_stands_for_removed_entries_cannot_be_changed() {
    let stopped = cut().await;
    let whole = stopped.verify(&stopped.auditor, &["-o", "json"]).ok().quiet().json();
    let through = whole["cut"].as_u64().expect("a cut");
    assert_eq!(whole["first"].as_u64(), Some(through + 1));
    assert_eq!(whole["entries"].as_u64(), Some(stopped.last - through));
    let (last, remembered) = (stopped.last, stopped.remembered);
    assert!(through + 2 < remembered && remembered < last, "{through}, {remembered}, {last}");

    let mut cases = Vec::new();
    for (column, value) in [("hash", "zeroblob(32)"), ("cut", "0"), ("cut", "2"), ("checkpoint", "x''")] {
        let sql = format!("UPDATE checkpoints SET {column} = {value} WHERE sequence = {through}");
        cases.push(case(&sql.clone(), By::Anyone, through, move |database| run(database, &sql)));
    }
    let edits: [(&str, Edit); 5] = [
        ("hash", |cut| cut.hash = vec![1; 32].into()),
        ("time", |cut| cut.time.as_mut().unwrap().seconds += 1),
        ("signature", |cut| cut.signature = vec![1; 64].into()),
        ("mark", |cut| cut.cut = false),
        ("key", |cut| cut.key_id = "0000000000000000".to_owned()),
    ];
    for (field, edit) in edits {
        cases.push(case(&format!("the {field} of the cut"), By::Anyone, through, move |database| {
            let mut cut = newest_cut(database);
            edit(&mut cut);
            write_checkpoint(database, &cut);
        }));
    }
    for (name, by) in [("earlier", -1), ("later", 1)] {
        let moved = through.checked_add_signed(by).unwrap();
        cases.push(case(&format!("the cut moved {name}"), By::Anyone, moved, move |database| {
            let cut = newest_cut(database);
            run(database, &format!("DELETE FROM checkpoints WHERE sequence IN ({through}, {moved})"));
            write_checkpoint(database, &AuditCheckpoint { sequence: moved, ..cut });
        }));
    }
    // More is gone than it stands for.
    cases.push(case("one entry more", By::Anyone, through + 1, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence = {}", through + 1));
    }));
    cases.push(case("several entries more", By::Anyone, through + 1, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence <= {}", last - 1));
    }));
    cases.push(case("all entries", By::Anyone, through + 1, |database| run(database, "DELETE FROM audit")));
    cases.push(case("one entry more, under a cut of the attacker's own", By::Anyone, through + 1, move |database| {
        let (hash, cut) = (entry(database, through + 1).hash, newest_cut(database));
        run(database, &format!("DELETE FROM audit WHERE sequence = {}", through + 1));
        let forged = AuditCheckpoint { sequence: through + 1, hash, ..cut };
        write_checkpoint(database, &Signer::stranger().sign(forged));
    }));
    // Another checkpoint, which is genuine, in the place of a cut.
    let later = *stopped.signed.iter().find(|signed| **signed > through).expect("what was signed after the cut");
    cases.push(case("a checkpoint called a cut", By::Anyone, later, move |database| {
        run(database, &format!("DELETE FROM audit WHERE sequence <= {later}"));
        run(database, &format!("UPDATE checkpoints SET cut = 1 WHERE sequence = {later}"));
    }));
    // Without it, entries are missing.
    cases.push(case("the cuts deleted", By::Anyone, 1, |database| {
        run(database, "DELETE FROM checkpoints WHERE cut = 1");
    }));
    let cuts = checkpoints(&open(&stopped.server.data_dir())).into_iter().filter(|signed| signed.cut);
    let before = cuts.map(|cut| cut.sequence).filter(|cut| *cut < through).max().expect("two cuts");
    cases.push(case("the newest cut deleted", By::Anyone, before + 1, move |database| {
        // An older cut takes its place, and what lies between the two is missing.
        run(database, &format!("DELETE FROM checkpoints WHERE sequence = {through}"));
    }));
    // What was cut comes back, as somebody would have it.
    cases.push(case("an entry in the place of a removed one", By::Anyone, through + 1, move |database| {
        let mut put = entry(database, through + 1);
        put.sequence = through;
        put.id = "put back".to_owned();
        super::write(database, through, &put);
    }));
    cases.push(case("what is remembered and the rest of the log", By::Memory, stopped.kept, move |database| {
        let keep = through + 1;
        run(database, &format!("DELETE FROM audit WHERE sequence > {keep}"));
        run(database, &format!("DELETE FROM checkpoints WHERE sequence > {keep}"));
    }));
    check(&stopped, cases);
}
