use prism_core::page::Page;

use super::{World, open};
use crate::checkpoint::{MAX_CHECKPOINTS, Witness};
use crate::{AUDIT_KEY, AuditSettings, AuditUpkeep};

#[tokio::test]
async fn the_log_is_signed_at_the_start_and_as_it_grows() {
    let world = World::new().await;
    let first = world.store.checkpoint().unwrap();
    assert!(world.store.signer().signed(&first) && !first.cut);
    assert_eq!(first.sequence, 1);
    let mut upkeep = AuditUpkeep::new(AuditSettings::default());
    upkeep.run(&world.store).await.unwrap();
    assert_eq!(world.store.checkpoint().unwrap(), first, "nothing happened, nothing is signed");
    world.append("alice", 3).await;
    upkeep.run(&world.store).await.unwrap();
    let second = world.store.checkpoint().unwrap();
    assert_eq!(second.sequence, 4);
    let log = world.log(crate::EntryFilter::default()).await;
    assert_eq!(second.hash, log[3].hash);
    let page = Page::parse("checkpoints", 0, None).unwrap();
    let (listed, total) = world.store.write(move |tx| tx.checkpoints(&page)).await.unwrap();
    assert_eq!((listed, total), (vec![(*first).clone(), (*second).clone()], 2));
    let world = world.reopened().await;
    assert_eq!(world.store.checkpoint().unwrap().sequence, 4, "a start signs what is there");
    assert_eq!(world.store.signer().public_key(), second.public_key.as_ref());
    assert_eq!(world.store.verify_audit().await.unwrap(), 4);
}

#[tokio::test]
async fn a_checkpoint_that_is_not_committed_is_not_published() {
    let world = World::new().await;
    world.append("alice", 1).await;
    let before = world.store.checkpoint();
    let signed = world.store.sign_checkpoint().await.unwrap();
    assert_eq!(signed.sequence, 2);
    let refused = world.store.write(move |tx| {
        tx.store_checkpoint(&signed)?;
        Err::<(), _>(prism_core::Error::unavailable("STORAGE_FULL", ""))
    });
    refused.await.unwrap_err();
    assert_eq!(world.store.checkpoint(), before);
    world.append("alice", 1).await;
    assert_eq!(world.store.checkpoint(), before);
}

#[tokio::test]
async fn the_oldest_checkpoints_make_room() {
    let world = World::new().await;
    world.append("alice", 2).await;
    // As if there had been many, and one cut among the oldest.
    let fill = format!(
        "WITH RECURSIVE n (x) AS (SELECT -1 UNION ALL SELECT x - 1 FROM n WHERE x > -{MAX_CHECKPOINTS})
         INSERT INTO checkpoints SELECT x, x'00', x'00', x = -{} FROM n",
        MAX_CHECKPOINTS - 1
    );
    world.store.write(move |tx| tx.execute(&fill, [])).await.unwrap();
    world.store.make_checkpoint().await.unwrap();
    assert_eq!(world.sql::<i64>("SELECT count(*) FROM checkpoints").await, MAX_CHECKPOINTS);
    assert_eq!(world.sql::<i64>("SELECT min(sequence) FROM checkpoints").await, -MAX_CHECKPOINTS + 1, "the cut stays");
    assert_eq!(world.sql::<i64>("SELECT min(sequence) FROM checkpoints WHERE cut = 0").await, -MAX_CHECKPOINTS + 3);
    assert_eq!(world.store.checkpoint().unwrap().sequence, 3);
}

#[tokio::test]
async fn witnesses_come_from_the_log_as_it_is() {
    let world = World::new().await;
    world.append("alice", 4).await;
    world.store.make_checkpoint().await.unwrap();
    let log = world.log(crate::EntryFilter::default()).await;
    assert_eq!(world.store.witness(3).await.unwrap(), Witness::Held(log[2].hash.as_ref().try_into().unwrap()));
    for unknown in [0, 6, u64::MAX] {
        assert_eq!(world.store.witness(unknown).await.unwrap(), Witness::Nothing);
    }
    // A log that was cut off has no witness for what it lost, though the checkpoint for it is still there.
    let world = world.tampered("DELETE FROM audit WHERE sequence > 3").await;
    assert_eq!(world.store.witness(5).await.unwrap(), Witness::Nothing);
}

#[tokio::test]
async fn tampering_is_found() {
    for (change, sequence) in [
        ("DELETE FROM audit WHERE sequence = 3", "3"),
        ("DELETE FROM audit WHERE sequence = 1", "1"),
        ("DELETE FROM audit WHERE sequence >= 4", "5"),
        ("UPDATE audit SET entry = (SELECT entry FROM audit WHERE sequence = 1) WHERE sequence = 2", "2"),
        ("UPDATE audit SET entry = x'ff' WHERE sequence = 4", "4"),
        ("UPDATE audit SET actor = 'mallory' WHERE sequence = 5", "5"),
        ("UPDATE audit SET timestamp = 1 WHERE sequence = 1", "1"),
        ("UPDATE audit SET hash = x'00' WHERE sequence = 5", "5"),
        (
            "UPDATE audit SET sequence = -1 WHERE sequence = 2; UPDATE audit SET sequence = 2 WHERE sequence = 3;
             UPDATE audit SET sequence = 3 WHERE sequence = -1",
            "2",
        ),
        ("UPDATE checkpoints SET checkpoint = x'0801' WHERE sequence = 3", "3"),
        ("UPDATE checkpoints SET sequence = 4 WHERE sequence = 5", "4"),
        // What was signed, presented as a cut.
        ("DELETE FROM audit WHERE sequence <= 3; UPDATE checkpoints SET cut = 1 WHERE sequence = 3", "3"),
    ] {
        let world = World::new().await;
        world.append("alice", 2).await;
        world.store.make_checkpoint().await.unwrap();
        world.append("alice", 2).await;
        world.store.make_checkpoint().await.unwrap();
        assert_eq!(world.broken_at().await, None);
        let world = world.tampered(change).await;
        assert_eq!(world.broken_at().await.as_deref(), Some(sequence), "{change}");
    }
}

/// Somebody who can write the database and computes the chain anew is found by what was signed.
#[tokio::test]
async fn a_chain_that_was_computed_anew_contradicts_what_was_signed() {
    let world = World::new().await;
    world.append("alice", 3).await;
    world.store.make_checkpoint().await.unwrap();
    let world = world.tampered("DELETE FROM audit WHERE sequence >= 3").await;
    world.append("mallory", 2).await;
    assert_eq!(world.broken_at().await.as_deref(), Some("4"));
    world.store.make_checkpoint().await.unwrap_err();
    assert_eq!(world.broken_at().await.as_deref(), Some("4"), "what was signed first stays the proof");
}

#[tokio::test]
async fn a_log_that_was_signed_does_not_go_on_without_its_key() {
    let world = World::new().await;
    let (folder, clock) = (world.folder, world.clock);
    drop(world.store);
    std::fs::remove_file(folder.path().join(AUDIT_KEY)).unwrap();
    let refused = open(folder.path(), &clock).await.err().unwrap();
    assert_eq!(refused.reason(), "AUDIT_KEY_UNUSABLE");
    assert!(!folder.path().join(AUDIT_KEY).exists());
}
