use std::collections::BTreeSet;
use std::time::Duration;

use prism_core::Clock;
use prost::Message as _;

use super::{START, World, newest};
use crate::checkpoint::{Witness, newest_cut};
use crate::{AuditSettings, AuditUpkeep, EntryFilter, Order};

const DAY: Duration = Duration::from_hours(24);

fn keep(retention: Duration) -> AuditUpkeep {
    AuditUpkeep::new(AuditSettings { retention: Some(retention), ..AuditSettings::default() })
}

/// Lets time pass on both clocks, and does what is due.
async fn pass(world: &World, upkeep: &mut AuditUpkeep, time: Duration) -> u64 {
    world.advance(time);
    upkeep.run_after(&world.store, time).await.unwrap()
}

async fn sequences(world: &World) -> (i64, i64, i64) {
    let edge = async |sql: &str| world.sql::<i64>(sql).await;
    (
        edge("SELECT min(sequence) FROM audit").await,
        edge("SELECT max(sequence) FROM audit").await,
        edge("SELECT count(*) FROM audit").await,
    )
}

#[tokio::test]
async fn what_is_past_its_time_is_removed_and_covered_by_a_signed_cut() {
    let world = World::new().await;
    let mut upkeep = keep(10 * DAY);
    world.append("alice", 9).await;
    assert_eq!(pass(&world, &mut upkeep, 5 * DAY).await, 0);
    world.append("bob", 5).await;
    let id = world.log(EntryFilter::default()).await[3].id.clone();
    assert_eq!(pass(&world, &mut upkeep, 6 * DAY).await, 10);
    assert_eq!(sequences(&world).await, (11, 16, 6));
    let log = world.log(EntryFilter::default()).await;
    let entry = log.last().unwrap();
    assert_eq!((entry.operation.as_str(), entry.actor.as_str(), entry.success), ("CutAuditLog", "prism", true));
    assert_eq!((entry.metadata["through"].as_str(), entry.metadata["removed"].as_str()), ("10", "10"));
    let cut = world.store.database.readers.run(newest_cut).await.unwrap().unwrap();
    assert!(cut.cut && cut.sequence == 10 && world.store.signer().signed(&cut));
    assert_eq!(cut.hash, log[0].previous_hash);
    assert_eq!(world.store.witness(10).await.unwrap(), Witness::Held(cut.hash.as_ref().try_into().unwrap()));
    // Of what lies before it the cut is all that is left, and it says nothing of what comes after.
    assert_eq!(world.store.witness(4).await.unwrap(), Witness::Removed(Box::new(cut)));
    for unknown in [0, 17, u64::MAX] {
        assert_eq!(world.store.witness(unknown).await.unwrap(), Witness::Nothing);
    }
    assert_eq!(world.store.verify_audit().await.unwrap(), 6);
    let gone = world.store.write(move |tx| tx.entry_sequence(&id, &prism_core::permission::Reach::Installation)).await;
    assert_eq!(gone.unwrap_err().reason(), "NOT_FOUND");
    assert_eq!(pass(&world, &mut upkeep, DAY).await, 0);
    let world = world.reopened().await;
    assert_eq!(world.store.verify_audit().await.unwrap(), 6);
    assert_eq!(pass(&world, &mut keep(10 * DAY), 20 * DAY).await, 6);
    assert_eq!(world.store.verify_audit().await.unwrap(), 1);
    world.append("carl", 1).await;
    assert_eq!(world.store.verify_audit().await.unwrap(), 2);
}

#[tokio::test]
async fn a_log_at_rest_is_left_alone() {
    let world = World::new().await;
    let mut upkeep = keep(10 * DAY);
    assert_eq!(pass(&world, &mut upkeep, 11 * DAY).await, 1);
    for _ in 0..5 {
        assert_eq!(pass(&world, &mut upkeep, 30 * DAY).await, 0);
    }
    assert_eq!(sequences(&world).await, (2, 2, 1));
}

#[tokio::test]
async fn a_cut_waits_until_it_is_worth_an_entry() {
    let world = World::new().await;
    let mut upkeep = keep(10 * DAY);
    assert_eq!(pass(&world, &mut upkeep, 10 * DAY).await, 0);
    assert_eq!(pass(&world, &mut upkeep, Duration::from_mins(30)).await, 0);
    assert_eq!(pass(&world, &mut upkeep, Duration::from_mins(30)).await, 1);
}

#[tokio::test]
async fn a_long_backlog_is_removed_step_by_step() {
    let world = World::new().await;
    world.append("alice", 25_000).await;
    let mut upkeep = keep(DAY);
    assert_eq!(pass(&world, &mut upkeep, 2 * DAY).await, 25_001);
    assert_eq!(sequences(&world).await, (25_002, 25_004, 3), "one entry for each step");
    assert_eq!(world.store.verify_audit().await.unwrap(), 3);
    assert_eq!(world.sql::<i64>("SELECT count(*) FROM checkpoints WHERE cut = 1").await, 3);
}

#[tokio::test]
async fn an_entry_that_is_not_past_its_time_keeps_those_after_it() {
    let world = World::new().await;
    let mut upkeep = keep(10 * DAY);
    world.append("early", 1).await;
    world.advance(8 * DAY);
    world.append("of a fast clock", 1).await;
    world.clock.advance(Duration::ZERO);
    let back = World { clock: Clock::manual(START), ..world }.reopened().await;
    back.append("after it", 1).await;
    assert_eq!(pass(&back, &mut upkeep, 11 * DAY).await, 2);
    assert_eq!(sequences(&back).await.0, 3);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_removes_nothing_before_half_of_the_time_has_passed() {
    let world = World::new().await;
    let mut upkeep = keep(10 * DAY);
    world.append("alice", 5).await;
    assert_eq!(pass(&world, &mut upkeep, DAY).await, 0);
    world.advance(10_000 * DAY);
    for _ in 0..10 {
        assert_eq!(upkeep.run_after(&world.store, Duration::from_mins(1)).await.unwrap(), 0);
    }
    // Not across a restart either, which makes entries under the wrong clock.
    let world = world.reopened().await;
    let mut upkeep = keep(10 * DAY);
    world.append("bob", 5).await;
    assert_eq!(upkeep.run_after(&world.store, 4 * DAY).await.unwrap(), 0);
    assert_eq!(upkeep.run_after(&world.store, DAY).await.unwrap(), 6);
    assert_eq!(world.store.verify_audit().await.unwrap(), 6);
}

#[test]
fn the_clock_of_retention_follows_at_limited_speed() {
    use crate::retention::follow;
    let (at, minute) = (|minutes: u64| START + Duration::from_mins(minutes), Duration::from_mins(1));
    assert_eq!(follow(None, at(7), at(0), minute), at(7));
    assert_eq!(follow(Some(at(7)), at(8), at(0), minute), at(8), "a clock that is right is followed");
    assert_eq!(follow(Some(at(7)), at(1000), at(0), minute), at(9));
    assert_eq!(
        follow(Some(at(7)), at(1000), at(500), minute),
        at(500),
        "before the oldest entry nothing can be removed"
    );
    assert_eq!(follow(Some(at(7)), at(8), at(500), minute), at(8));
    assert_eq!(
        follow(Some(at(1000)), at(7), at(0), minute),
        at(999),
        "a moment's error does not undo what was reached"
    );
    assert_eq!(follow(Some(at(8)), at(7), at(0), minute), at(7));
}

#[tokio::test]
async fn a_log_that_was_changed_is_not_cut() {
    for change in [
        "UPDATE audit SET actor = 'mallory' WHERE sequence = 4",
        "DELETE FROM audit WHERE sequence = 4",
        "DELETE FROM audit WHERE sequence = 1",
        "UPDATE checkpoints SET checkpoint = x'00' WHERE sequence = 6",
    ] {
        let world = World::new().await;
        world.append("alice", 5).await;
        let mut upkeep = keep(10 * DAY);
        upkeep.run_after(&world.store, Duration::ZERO).await.unwrap();
        world.append("alice", 1).await;
        world.advance(20 * DAY);
        let world = world.tampered(change).await;
        let count = sequences(&world).await.2;
        upkeep.run_after(&world.store, 20 * DAY).await.unwrap_err();
        assert_eq!(sequences(&world).await.2, count, "{change}");
    }
}

#[tokio::test]
async fn tampering_is_found_after_cuts() {
    for (change, sequence) in [
        ("DELETE FROM audit WHERE sequence = 11", "11"),
        ("DELETE FROM audit WHERE sequence IN (11, 12)", "11"),
        ("UPDATE audit SET namespace = 'other' WHERE sequence = 13", "13"),
        ("DELETE FROM checkpoints WHERE cut = 1", "1"),
        (
            "UPDATE checkpoints SET checkpoint = (SELECT checkpoint FROM checkpoints WHERE sequence = 6) WHERE cut = 1",
            "6",
        ),
        // The cut moved on, over an entry that somebody wants to be rid of.
        ("DELETE FROM audit WHERE sequence <= 12; UPDATE checkpoints SET sequence = 12 WHERE cut = 1", "12"),
    ] {
        let world = World::new().await;
        world.append("alice", 5).await;
        let mut upkeep = keep(10 * DAY);
        upkeep.run_after(&world.store, Duration::ZERO).await.unwrap();
        world.append("alice", 4).await;
        world.advance(5 * DAY);
        world.append("bob", 4).await;
        pass(&world, &mut upkeep, 6 * DAY).await;
        assert_eq!(sequences(&world).await.0, 11);
        assert_eq!(world.broken_at().await, None);
        let world = world.tampered(change).await;
        assert_eq!(world.broken_at().await.as_deref(), Some(sequence), "{change}");
    }
}

/// Set for the process that is killed: the data directory.
const CRASHING: &str = "PRISM_TEST_CUT_IN";
/// Entries of the log that it cuts, four steps of them.
const LONG: i64 = 40_000;

#[test]
#[ignore = "is the process that the next test starts and kills"]
fn cut_until_killed() {
    let folder = std::path::PathBuf::from(std::env::var_os(CRASHING).unwrap());
    let clock = Clock::manual(START + 20 * DAY);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = super::open(&folder, &clock).await.unwrap();
        println!("cutting");
        keep(10 * DAY).run_after(&store, Duration::ZERO).await.unwrap();
        println!("done");
    });
}

#[tokio::test]
async fn a_crash_leaves_a_cut_whole_or_not_at_all() {
    use std::io::BufRead as _;
    let world = World::new().await;
    world.append("alice", LONG as usize - 1).await;
    let (folder, clock) = (world.folder, world.clock);
    drop(world.store);
    let (mut seen, mut wait) = (BTreeSet::new(), Duration::ZERO);
    loop {
        let copy = tempfile::tempdir().unwrap();
        for file in ["prism.db", "audit.key"] {
            std::fs::copy(folder.path().join(file), copy.path().join(file)).unwrap();
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "audit_tests::retention::cut_until_killed", "--ignored", "--nocapture"])
            .env(CRASHING, copy.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("cutting")), "the process did not begin");
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        let done = lines.any(|line| line.unwrap().contains("done"));
        let store = super::open(copy.path(), &clock).await.unwrap();
        let world = World { folder: copy, clock: clock.clone(), store };
        let (first, last, count) = sequences(&world).await;
        let cuts = world.sql::<i64>("SELECT count(*) FROM checkpoints WHERE cut = 1").await;
        assert_eq!((first, last, count), (10_000 * cuts + 1, LONG + cuts, LONG + cuts - 10_000 * cuts));
        assert_eq!(world.broken_at().await, None);
        seen.insert(cuts);
        if done {
            break;
        }
        wait += Duration::from_millis(60);
    }
    println!("cuts that were found after a kill: {seen:?}");
    assert!(seen.len() > 1, "{seen:?}");
}

#[tokio::test]
async fn a_cut_that_fails_leaves_everything() {
    let world = World::new().await;
    world.append("alice", 5).await;
    world.advance(20 * DAY);
    let mut upkeep = keep(10 * DAY);
    // The last of the steps fails.
    let world =
        world.tampered("CREATE TRIGGER refuse BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'no'); END").await;
    let before = sequences(&world).await;
    upkeep.run_after(&world.store, 20 * DAY).await.unwrap_err();
    assert_eq!(sequences(&world).await, before);
    assert_eq!(world.sql::<i64>("SELECT count(*) FROM checkpoints WHERE cut = 1").await, 0);
    assert_eq!(world.store.verify_audit().await.unwrap(), 6);
    // What comes next follows what is there, not what was undone.
    world.append("bob", 1).await;
    assert_eq!(world.store.verify_audit().await.unwrap(), 7);
}

#[tokio::test]
async fn a_reader_that_is_overtaken_by_a_cut_is_told() {
    let world = World::new().await;
    world.append("alice", 20).await;
    world.advance(5 * DAY);
    world.append("bob", 5).await;
    pass(&world, &mut keep(10 * DAY), 6 * DAY).await;
    let read = async |after| world.read(EntryFilter::default(), Order::OldestAfter(after), 100).await;
    let told = read(7).await.unwrap_err();
    assert_eq!((told.reason(), told.metadata()["oldest_sequence"].as_str()), ("AUDIT_LOG_CUT", "22"));
    assert_eq!(read(21).await.unwrap().len(), 6);
    // Who asks for the oldest gets what is the oldest now, in chunks too.
    let oldest = async |limit| world.read(EntryFilter::default(), Order::OLDEST, limit).await.unwrap();
    let sequences: Vec<u64> = oldest(100).await.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (22..=27).collect::<Vec<u64>>());
    assert_eq!(oldest(2).await.len(), 2);
    let all = world.read(EntryFilter::default(), newest(i64::MAX), 100).await.unwrap();
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|entry| entry.encoded_len() > 0));
}
