//! Watches a server's audit log over its answers: each carries what the server signed last, and what its log holds
//! where this computer last looked. A log that was rewound, exchanged or rewritten shows here.

use std::{cell::RefCell, fmt, io::Write as _, rc::Rc};

use tonic::metadata::MetadataMap;

use crate::{checkpoint::Checkpoint, memory::Memory, output::note, text::safe};

/// Header of a call: the sequence whose hash the answer must name.
pub const WITNESS: &str = "prism-audit-witness";
/// Header of a call that asks for the log signed as far as it goes, the entry of this call included.
pub const HEAD: &str = "prism-audit-head";
/// Trailers of an answer: the newest checkpoint, and the hash of the sequence that was asked for.
const CHECKPOINT_ANSWER: &str = "prism-audit-checkpoint-bin";
/// Trailer of an answer: the head of the log, signed.
const HEAD_ANSWER: &str = "prism-audit-head-bin";
const WITNESS_ANSWER: &str = "prism-audit-witness-bin";
/// Trailer of an answer: the cut that stands for that sequence, where its hash is gone with its entry.
const CUT_ANSWER: &str = "prism-audit-cut-bin";

/// Whether an answer says what the server signed last.
pub fn is_said(metadata: &MetadataMap) -> bool {
    metadata.contains_key(CHECKPOINT_ANSWER)
}

/// The watch over one log.
pub struct Watch {
    memory: Memory,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    remembered: Option<Checkpoint>,
    /// The server had another CA when that was seen.
    other_ca: bool,
    alarm: Option<Alarm>,
    /// What is new can not be remembered; said once.
    blind: bool,
}

/// The log is not the one that was seen before.
#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    why: String,
    before: Option<Checkpoint>,
    now: String,
    memory: String,
}

impl Watch {
    /// Begins with what is remembered.
    pub fn new(memory: Memory) -> Rc<Self> {
        let mut state = State::default();
        match memory.recall() {
            Ok(Some(seen)) => (state.remembered, state.other_ca) = (Some(seen.checkpoint), seen.other_ca),
            Ok(None) => {}
            Err(why) => {
                note(&format!("note: {why}; whether the server's audit log is the one seen before is not checked"));
                state.blind = true;
            }
        }
        Rc::new(Self { memory, state: RefCell::new(state) })
    }

    /// What a call names as its witness, if anything is remembered.
    pub fn remembered(&self) -> Option<Checkpoint> {
        self.state.borrow().remembered.clone()
    }

    /// Checks an answer to a call that named `witness`. Only an answer to a call that succeeded must carry a checkpoint.
    pub async fn answered(&self, witness: Option<&Checkpoint>, metadata: &MetadataMap, succeeded: bool) {
        if self.state.borrow().alarm.is_some() {
            return;
        }
        let bytes = |name: &str| metadata.get_bin(name).map(tonic::metadata::MetadataValue::to_bytes);
        let stored = match bytes(CHECKPOINT_ANSWER) {
            Some(Ok(encoded)) => Checkpoint::decode(&encoded),
            Some(Err(_)) => Err("what should be a checkpoint is none".to_owned()),
            None if witness.is_none() || !succeeded => return,
            None => Err("the server no longer signs its audit log".to_owned()),
        };
        let newest = match bytes(HEAD_ANSWER).map(Result::unwrap_or_default) {
            Some(head) => stored.clone().and_then(|stored| head_after(&stored, Checkpoint::decode(&head)?)),
            None => stored.clone(),
        };
        let held = bytes(WITNESS_ANSWER).map(Result::unwrap_or_default);
        let cut = bytes(CUT_ANSWER).map(Result::unwrap_or_default);
        if let (Ok(newest), Some(before)) = (&newest, witness)
            && self.state.borrow().other_ca
            && newest.key != before.key
        {
            note(&format!(
                "note: this is another installation than the one seen before, with another CA and another signing key; before: {before}"
            ));
            self.start_anew(newest.clone(), stored.ok()).await;
            return;
        }
        let now = newest.as_ref().map_or_else(|_| "nothing that can be relied on".to_owned(), ToString::to_string);
        let newest =
            newest.and_then(|newest| judge(witness, &newest, held.as_deref(), cut.as_deref()).map(|()| newest));
        match newest {
            // What a refusal does not say is not held against the server, and what it signed since is not remembered then: it
            // may be about another log.
            Ok(_) if witness.is_some() && held.is_none() && !succeeded => {}
            Ok(_) if witness.is_some() && held.is_none() => {
                let why = "the server does not say whether its audit log still holds what was seen before";
                self.cry(why.to_owned(), witness, now);
            }
            Ok(newest) => self.remember(newest, stored.ok()).await,
            Err(why) => self.cry(why, witness, now),
        }
    }

    fn cry(&self, why: String, witness: Option<&Checkpoint>, now: String) {
        let memory = self.memory.file().map_or_else(String::new, |file| file.display().to_string());
        self.state.borrow_mut().alarm = Some(Alarm { why, before: witness.cloned(), now, memory });
    }

    /// Remembers the first checkpoint of another installation.
    async fn start_anew(&self, first: Checkpoint, stored: Option<Checkpoint>) {
        {
            let mut state = self.state.borrow_mut();
            (state.remembered, state.other_ca) = (None, false);
        }
        self.remember(first, stored).await;
    }

    /// What was found, if anything.
    pub fn alarm(&self) -> Option<Alarm> {
        self.state.borrow().alarm.clone()
    }

    async fn remember(&self, newest: Checkpoint, stored: Option<Checkpoint>) {
        {
            let state = self.state.borrow();
            if state.blind || state.remembered.as_ref().is_some_and(|known| known.sequence >= newest.sequence) {
                return;
            }
        }
        let written = self.memory.remember(&newest, stored.as_ref()).await;
        let mut state = self.state.borrow_mut();
        state.remembered = Some(newest);
        if let Err(why) = written {
            state.blind = true;
            note(&format!("note: the server's audit log cannot be remembered for the next time: {why}"));
        }
    }
}

/// The head of the log, if it agrees with the checkpoint that came with it.
fn head_after(stored: &Checkpoint, head: Checkpoint) -> Result<Checkpoint, String> {
    if head.key != stored.key || head.sequence < stored.sequence {
        return Err(format!(
            "the server's audit log does not reach to what was signed of it: {stored}, but now {head}"
        ));
    }
    if head.sequence == stored.sequence && head.hash != stored.hash {
        return Err(format!("the server signed sequence {} twice, with different hashes", head.sequence));
    }
    Ok(head)
}

/// Compares what is remembered with what the server signed last and with the hash it now holds there, or with the cut that
/// stands for it.
fn judge(
    witness: Option<&Checkpoint>,
    newest: &Checkpoint,
    held: Option<&[u8]>,
    cut: Option<&[u8]>,
) -> Result<(), String> {
    let Some(before) = witness else { return Ok(()) };
    if newest.key != before.key {
        return Err("the server's audit log is signed with another key than before".to_owned());
    }
    if newest.sequence < before.sequence {
        return Err(format!(
            "the server's audit log went back: it was signed up to sequence {}, now up to {}",
            before.sequence, newest.sequence
        ));
    }
    if newest.sequence == before.sequence && newest.hash != before.hash {
        return Err(format!("the server signed sequence {} twice, with different hashes", before.sequence));
    }
    match held {
        Some(held) if held == before.hash => Ok(()),
        Some([]) => match cut.map(Checkpoint::decode).transpose()? {
            Some(cut) => stands_for(&cut, before, newest),
            None => Err(format!(
                "the server's audit log no longer holds the entry with sequence {}, nor a checkpoint of it",
                before.sequence
            )),
        },
        Some(held) => Err(format!(
            "the server's audit log was rewritten: the entry with sequence {} now has hash {}",
            before.sequence,
            hex::encode(held)
        )),
        None => Ok(()),
    }
}

/// Whether a cut is the word of the key that is remembered that everything up to there was removed, the entry that is
/// remembered with it.
fn stands_for(cut: &Checkpoint, before: &Checkpoint, newest: &Checkpoint) -> Result<(), String> {
    let covers = cut.cut && cut.key == before.key && (before.sequence..=newest.sequence).contains(&cut.sequence);
    if covers && (cut.sequence > before.sequence || cut.hash == before.hash) {
        return Ok(());
    }
    Err(format!(
        "the server's audit log no longer holds the entry with sequence {}, and what it names as the cut that removed it is \
         none: {cut}",
        before.sequence
    ))
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RULE: &str = "****************************************************************************";
        writeln!(f, "{RULE}")?;
        writeln!(f, "WARNING: THE AUDIT LOG OF THIS SERVER IS NOT THE ONE THAT WAS SEEN BEFORE")?;
        writeln!(f, "{}.", safe(&self.why))?;
        if let Some(before) = &self.before {
            writeln!(f, "seen before: {}", safe(&before.to_string()))?;
        }
        writeln!(f, "seen now:    {}", safe(&self.now))?;
        writeln!(f, "This happens when the server's data were rewound, exchanged or tampered with; also when a")?;
        writeln!(f, "backup was restored. The answer above comes from that server: do not rely on it.")?;
        writeln!(f, "What to do: ask who runs the server whether a backup was restored. If not, keep what proves it")?;
        writeln!(f, "(the signed checkpoint in {}, and the server's data", safe(&self.memory))?;
        writeln!(f, "directory), and look for the break with `prism-admin audit verify`. Only if the change is")?;
        writeln!(f, "explained: `prism-admin audit forget`, with the same flags.")?;
        writeln!(f, "{RULE}")
    }
}

impl Alarm {
    /// Cries out on standard error.
    pub fn report(&self) {
        // With standard error closed there is nobody left to tell; the exit code says it too.
        let _ = std::io::stderr().lock().write_all(self.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message as _;
    use tonic::metadata::MetadataValue;

    use super::*;
    use crate::{checkpoint::samples::signed, memory::LogName};

    fn watch(folder: &Path) -> Rc<Watch> {
        let name = LogName::Endpoint("a:1".to_owned());
        Watch::new(Memory::of(Some(&folder.join("admin.toml")), &name, Path::new("none")))
    }

    fn answer(checkpoint: Option<&Checkpoint>, held: Option<&[u8]>) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        if let Some(checkpoint) = checkpoint {
            let encoded = checkpoint.message().encode_to_vec();
            metadata.insert_bin(CHECKPOINT_ANSWER, MetadataValue::from_bytes(&encoded));
        }
        if let Some(held) = held {
            metadata.insert_bin(WITNESS_ANSWER, MetadataValue::from_bytes(held));
        }
        metadata
    }

    /// An answer that names a cut instead of a hash.
    fn removed(newest: &Checkpoint, cut: &[u8]) -> MetadataMap {
        let mut metadata = answer(Some(newest), Some(&[]));
        metadata.insert_bin(CUT_ANSWER, MetadataValue::from_bytes(cut));
        metadata
    }

    /// What a watch that remembers sequence 5 says to an answer.
    async fn verdict(answer: MetadataMap, succeeded: bool) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let first = watch(folder.path());
        first.answered(None, &self::answer(Some(&signed(1, 5, [5; 32], false)), None), true).await;
        assert_eq!(first.alarm(), None);
        let watch = watch(folder.path());
        let witness = watch.remembered().unwrap();
        assert_eq!(witness.sequence, 5);
        watch.answered(Some(&witness), &answer, succeeded).await;
        // What is wrong is not remembered.
        let kept = self::watch(folder.path()).remembered().unwrap();
        assert_eq!(kept.sequence > 5, watch.alarm().is_none() && watch.remembered().unwrap().sequence > 5);
        watch.alarm().map(|alarm| alarm.to_string())
    }

    #[tokio::test]
    async fn a_log_that_went_on_is_remembered() {
        assert_eq!(verdict(answer(Some(&signed(1, 9, [9; 32], false)), Some(&[5; 32])), true).await, None);
        assert_eq!(verdict(answer(Some(&signed(1, 5, [5; 32], false)), Some(&[5; 32])), true).await, None);
        assert_eq!(verdict(answer(Some(&signed(1, 9, [9; 32], true)), Some(&[5; 32])), false).await, None);
    }

    #[tokio::test]
    async fn the_head_is_remembered_if_it_agrees_with_the_checkpoint() {
        let with_head = |checkpoint: Checkpoint, head: &[u8]| {
            let mut metadata = answer(Some(&checkpoint), Some(&[5; 32]));
            metadata.insert_bin(HEAD_ANSWER, MetadataValue::from_bytes(head));
            metadata
        };
        let encoded = |head: &Checkpoint| head.message().encode_to_vec();
        let (stored, head) = (signed(1, 5, [5; 32], false), signed(1, 7, [7; 32], false));
        let folder = tempfile::tempdir().unwrap();
        watch(folder.path()).answered(None, &with_head(stored.clone(), &encoded(&head)), true).await;
        assert_eq!(watch(folder.path()).remembered(), Some(head.clone()));
        assert_eq!(verdict(with_head(stored.clone(), &encoded(&head)), true).await, None);
        // The log itself is behind though its checkpoints are not, and the other ways in which the two contradict each other.
        for (stored, head, part) in [
            (signed(1, 9, [9; 32], false), encoded(&head), "does not reach"),
            (stored.clone(), encoded(&signed(2, 7, [7; 32], false)), "does not reach"),
            (signed(1, 7, [8; 32], false), encoded(&head), "twice"),
            (stored.clone(), encoded(&signed(1, 4, [4; 32], false)), "does not reach"),
            (stored, b"\xff".to_vec(), "none"),
        ] {
            let text = verdict(with_head(stored, &head), true).await.unwrap();
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[tokio::test]
    async fn every_other_log_is_told() {
        let newer = signed(1, 9, [9; 32], false);
        for (answer, part) in [
            (answer(Some(&signed(1, 4, [4; 32], false)), Some(&[5; 32])), "went back"),
            (answer(Some(&signed(1, 5, [6; 32], false)), Some(&[5; 32])), "twice"),
            (answer(Some(&signed(2, 9, [9; 32], false)), Some(&[5; 32])), "another key"),
            (answer(Some(&newer), Some(&[6; 32])), "rewritten"),
            (answer(Some(&newer), Some(&[])), "no longer holds"),
            (answer(None, Some(&[5; 32])), "no longer signs"),
        ] {
            let text = verdict(answer, true).await.unwrap();
            assert!(text.contains(part) && text.contains("seen before: sequence 5"), "{part}: {text}");
        }
    }

    #[tokio::test]
    async fn a_signed_cut_stands_for_what_was_removed_and_nothing_else_does() {
        let newest = signed(1, 9, [9; 32], false);
        for cut in [signed(1, 5, [5; 32], true), signed(1, 8, [8; 32], true), signed(1, 9, [9; 32], true)] {
            assert_eq!(verdict(removed(&newest, &cut.message().encode_to_vec()), true).await, None);
        }
        let mut forged = signed(1, 8, [8; 32], false).message().clone();
        forged.cut = true;
        for (cut, part) in [
            (signed(1, 4, [4; 32], true).message().clone(), "is none"),
            (signed(1, 5, [6; 32], true).message().clone(), "is none"),
            (signed(1, 10, [1; 32], true).message().clone(), "is none"),
            (signed(1, 8, [8; 32], false).message().clone(), "is none"),
            (signed(2, 8, [8; 32], true).message().clone(), "is none"),
            (forged, "signature is wrong"),
        ] {
            let text = verdict(removed(&newest, &cut.encode_to_vec()), true).await.unwrap();
            assert!(text.contains(part), "{cut:?}: {text}");
        }
        assert!(verdict(removed(&newest, b"\xff"), true).await.is_some());
        // A hash that is there is looked at, whatever else is said.
        let mut rewritten = removed(&newest, &signed(1, 8, [8; 32], true).message().encode_to_vec());
        rewritten.insert_bin(WITNESS_ANSWER, MetadataValue::from_bytes(&[6; 32]));
        assert!(verdict(rewritten, true).await.unwrap().contains("rewritten"));
    }

    #[tokio::test]
    async fn what_a_server_does_not_say_is_told_and_not_remembered() {
        let silent = answer(Some(&signed(1, 9, [9; 32], false)), None);
        assert!(verdict(silent.clone(), true).await.unwrap().contains("does not say"));
        assert_eq!(verdict(silent, false).await, None);
        let folder = tempfile::tempdir().unwrap();
        let first = watch(folder.path());
        first.answered(None, &answer(Some(&signed(1, 5, [5; 32], false)), None), true).await;
        let watch = watch(folder.path());
        let witness = watch.remembered();
        watch.answered(witness.as_ref(), &answer(Some(&signed(1, 9, [9; 32], false)), None), false).await;
        assert_eq!((watch.alarm(), watch.remembered()), (None, witness));
    }

    #[tokio::test]
    async fn a_refusal_without_a_checkpoint_proves_nothing() {
        assert_eq!(verdict(MetadataMap::new(), false).await, None);
        let rewound = answer(Some(&signed(1, 4, [4; 32], false)), Some(&[]));
        assert!(verdict(rewound, false).await.unwrap().contains("went back"));
    }

    #[tokio::test]
    async fn a_forged_checkpoint_is_told_at_first_sight() {
        let folder = tempfile::tempdir().unwrap();
        let watch = watch(folder.path());
        let mut message = signed(1, 9, [9; 32], false).message().clone();
        message.sequence = 10;
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(CHECKPOINT_ANSWER, MetadataValue::from_bytes(&message.encode_to_vec()));
        watch.answered(None, &metadata, true).await;
        assert!(watch.alarm().unwrap().to_string().contains("signature is wrong"));
        assert_eq!(watch.remembered(), None);
    }

    #[tokio::test]
    async fn a_server_that_never_signed_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let watch = watch(folder.path());
        watch.answered(None, &MetadataMap::new(), true).await;
        assert_eq!((watch.alarm(), watch.remembered()), (None, None));
    }
}
