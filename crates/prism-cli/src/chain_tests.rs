use super::{
    samples::{chain, hash_at},
    *,
};
use crate::checkpoint::samples::signed;

/// What a check says: last sequence and head, or the complaint.
fn check(entries: &[AuditLogEntry], known: Known) -> Result<(u64, [u8; 32]), String> {
    let plan = Plan::new(known)?;
    let mut walk = plan.walk();
    entries.iter().try_for_each(|entry| walk.accept(entry)).map_err(|broken| broken.to_string())?;
    let last = walk.next() - 1;
    plan.beyond(last).map_err(|broken| broken.to_string())?;
    Ok((last, walk.head().unwrap()))
}

fn with_checkpoints(checkpoints: Vec<Checkpoint>) -> Known {
    Known { checkpoints, ..Known::default() }
}

#[test]
fn an_unbroken_chain_passes() {
    assert_eq!(check(&[], Known::default()), Ok((0, GENESIS)));
    let entries = chain(3);
    assert_eq!(check(&entries, Known::default()), Ok((3, hash_at(&entries, 3))));
}

#[test]
fn every_break_names_its_sequence() {
    let plan = Plan::new(Known::default()).unwrap();
    let at = |entries: &[AuditLogEntry]| {
        let mut walk = plan.walk();
        entries.iter().try_for_each(|entry| walk.accept(entry)).unwrap_err().sequence
    };
    let mut changed = chain(4);
    changed[2].actor = "mallory".to_owned();
    assert_eq!(at(&changed), 3);
    let mut removed = chain(4);
    removed.remove(1);
    assert_eq!(at(&removed), 2);
    let mut swapped = chain(4);
    swapped.swap(1, 2);
    assert_eq!(at(&swapped), 2);
    assert_eq!(at(&chain(4)[1..]), 1);
    let mut doubled = chain(2);
    doubled.push(doubled[1].clone());
    assert_eq!(at(&doubled), 3);
    let mut renumbered = chain(4);
    renumbered.remove(1);
    renumbered[1].sequence = 2;
    assert_eq!(at(&renumbered), 2);
    let mut bare = chain(2);
    bare[1].previous_hash.clear();
    assert_eq!(at(&bare), 2);
}

#[test]
fn a_witness_shows_what_the_chain_cannot() {
    let entries = chain(4);
    let witness = |hash| Known { witness: Some(Witness { sequence: 3, hash }), ..Known::default() };
    let hash = hash_at(&entries, 3);
    assert!(check(&entries, witness(hash)).is_ok());
    assert!(check(&entries, witness([1; 32])).unwrap_err().contains("sequence 3: its hash is"));
    assert!(check(&entries[..2], witness(hash)).unwrap_err().contains("sequence 3: the log ends"));
}

#[test]
fn checkpoints_must_be_met() {
    let entries = chain(6);
    let at = |sequence| signed(1, sequence, hash_at(&entries, sequence), false);
    assert!(check(&entries, with_checkpoints(vec![at(5), at(2)])).is_ok());
    assert!(check(&entries[..4], with_checkpoints(vec![at(5), at(2)])).unwrap_err().contains("seen sequence 5"));
    let wrong = with_checkpoints(vec![at(2), signed(1, 4, [9; 32], false), at(5)]);
    assert!(check(&entries, wrong).unwrap_err().contains("sequence 4: its hash"));
}

#[test]
fn one_key_signs_all() {
    let entries = chain(4);
    let by = |seed, sequence| signed(seed, sequence, hash_at(&entries, sequence), false);
    let two = with_checkpoints(vec![by(1, 2), by(2, 3)]);
    assert!(check(&entries, two).unwrap_err().contains("checkpoint of sequence 3 is signed with key"));
    let pinned =
        |seed| Known { key: Some((by(seed, 1).key, KeySource::Named)), ..with_checkpoints(vec![by(1, 2), by(1, 3)]) };
    assert!(check(&entries, pinned(1)).is_ok());
    assert!(check(&entries, pinned(2)).is_err());
}

#[test]
fn a_signed_cut_is_where_the_log_begins() {
    let entries = chain(6);
    let cut = |sequence| signed(1, sequence, hash_at(&entries, sequence), true);
    assert_eq!(check(&entries[3..], with_checkpoints(vec![cut(3)])).unwrap().0, 6);
    assert_eq!(check(&entries[4..], with_checkpoints(vec![cut(3), cut(4)])).unwrap().0, 6);
    // Removed without a signature, or not removed though signed.
    assert!(check(&entries[3..], Known::default()).unwrap_err().contains("sequence 1: the entry is missing"));
    assert!(check(&entries[4..], with_checkpoints(vec![cut(3)])).unwrap_err().contains("sequence 4"));
    assert!(check(&entries, with_checkpoints(vec![cut(3)])).unwrap_err().contains("sequence 1 comes instead"));
    let not_a_cut = signed(1, 3, hash_at(&entries, 3), false);
    assert!(check(&entries[3..], with_checkpoints(vec![not_a_cut])).is_err());
    // Everything was removed, and nothing came after.
    assert_eq!(check(&[], with_checkpoints(vec![cut(6)])), Ok((6, hash_at(&entries, 6))));
}

#[test]
fn what_is_remembered_must_be_there() {
    let entries = chain(6);
    let at = |seed, sequence, cut| signed(seed, sequence, hash_at(&entries, sequence), cut);
    let known = |checkpoints, remembered| Known { remembered: Some(remembered), ..with_checkpoints(checkpoints) };
    assert!(check(&entries, known(vec![at(1, 5, false)], at(1, 3, false))).is_ok());
    assert!(check(&entries[..2], known(vec![], at(1, 3, false))).unwrap_err().contains("remembered"));
    assert!(check(&entries, known(vec![], signed(1, 3, [9; 32], false))).unwrap_err().contains("remembered"));
    // Of what was removed, only a checkpoint that was kept can tell.
    let kept = vec![at(1, 2, false), at(1, 3, true)];
    assert!(check(&entries[3..], known(kept, at(1, 2, false))).is_ok());
    assert!(check(&entries[3..], known(vec![at(1, 3, true)], at(1, 3, false))).is_ok());
    // Where none was kept, the cut stands for it; a checkpoint that says otherwise does not.
    assert!(check(&entries[3..], known(vec![at(1, 3, true)], at(1, 2, false))).is_ok());
    let otherwise = vec![signed(1, 2, [9; 32], false), at(1, 3, true)];
    assert!(check(&entries[3..], known(otherwise, at(1, 2, false))).unwrap_err().contains("remembered"));
    // What was noted without a signature has nothing that stands for it.
    let noted = Some(Witness { sequence: 2, hash: hash_at(&entries, 2) });
    let noted = Known { witness: noted, ..with_checkpoints(vec![at(1, 3, true)]) };
    assert!(check(&entries[3..], noted).unwrap_err().contains("witness"));
    let kept = |checkpoints| Known { kept: Some(at(1, 3, false)), ..with_checkpoints(checkpoints) };
    assert!(check(&entries, kept(vec![at(1, 3, false)])).is_ok());
    assert!(check(&entries, kept(vec![at(1, 2, false)])).unwrap_err().contains("no longer with the log"));
    // What was signed for a call is not stored, and may be newer than what is.
    assert!(check(&entries, known(vec![at(1, 2, false)], at(1, 5, false))).is_ok());
    assert!(check(&entries[..4], known(vec![at(1, 2, false)], at(1, 5, false))).unwrap_err().contains("cut off"));
}

#[test]
fn what_another_name_remembers_of_the_same_key_is_compared() {
    let entries = chain(6);
    let at = |sequence| signed(1, sequence, hash_at(&entries, sequence), false);
    let known = |others| Known { others, ..with_checkpoints(vec![at(2)]) };
    assert!(check(&entries, known(vec![at(3)])).is_ok());
    assert!(check(&entries, known(vec![signed(1, 3, [9; 32], false)])).is_err());
    // A copy may be older; another server's log says nothing.
    assert!(check(&entries[..2], known(vec![at(3)])).is_ok());
    assert!(check(&entries, known(vec![signed(2, 3, [9; 32], false)])).is_ok());
}

#[test]
fn a_walk_may_begin_within() {
    let entries = chain(6);
    let plan = Plan::new(with_checkpoints(vec![signed(1, 2, [9; 32], false)])).unwrap();
    let mut walk = plan.walk_from(4);
    entries[3..].iter().for_each(|entry| walk.accept(entry).unwrap());
    assert_eq!(walk.assumed(), Some(hash_at(&entries, 3)));
    assert_eq!((walk.next(), walk.head()), (7, Some(hash_at(&entries, 6))));
}

#[test]
fn witnesses_and_keys_are_read() {
    let hash = "ab".repeat(32);
    assert_eq!(parse_witness(&format!("7:{hash}")), Ok(Witness { sequence: 7, hash: [0xab; 32] }));
    for bad in ["", "7", "7:", "0:ab", "x:ab", "7:abc"] {
        assert!(parse_witness(bad).is_err(), "{bad:?}");
    }
    assert_eq!(parse_key(&hash), Ok([0xab; 32]));
    assert!(parse_key("ab").is_err());
}
