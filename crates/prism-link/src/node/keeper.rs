//! Writes down what a node needs to go on without a controller.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use prism_core::{Error, Result};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::state::Event;
use crate::bounds::{ASK_TIMEOUT, PERSIST_AFTER};
use crate::signal::Signal;
use crate::storage::Storage;

/// Events that wait to be written.
const WAITING: usize = 4096;
/// Events of one write.
const AT_ONCE: usize = 1024;
/// The pause between two states is at least so many times what the last one took.
const REST: u32 = 20;
/// The longest pause.
const LONGEST: Duration = Duration::from_mins(1);

/// An event, and who waits until it is durable.
pub struct Entry {
    event: Event,
    done: oneshot::Sender<Result<()>>,
}

/// The keeper's end for everybody else.
pub struct Keeper {
    events: mpsc::Sender<Entry>,
    /// Something changed that belongs into the state.
    dirty: Notify,
    /// Number of the newest change, and of the newest one that is written.
    changes: Signal<u64>,
    written: Signal<u64>,
}

impl Keeper {
    /// A keeper, and what its task works on.
    pub fn new() -> (Self, mpsc::Receiver<Entry>) {
        let (events, waiting) = mpsc::channel(WAITING);
        (Self { events, dirty: Notify::new(), changes: Signal::new(0), written: Signal::new(0) }, waiting)
    }

    /// Has the state written before long.
    pub fn change(&self) -> u64 {
        let number = self.changes.update(|changes| {
            *changes += 1;
            *changes
        });
        self.dirty.notify_one();
        number
    }

    /// Has the state written, and waits for it, at most [`ASK_TIMEOUT`].
    pub async fn keep(&self) -> Result<()> {
        let number = self.change();
        let kept = tokio::time::timeout(ASK_TIMEOUT, self.written.wait_for(|written| *written >= number)).await;
        kept.map(|_| ()).map_err(|_| unwritable("it takes too long"))
    }

    /// Appends an event, which memory holds already; durable on return.
    pub async fn record(&self, event: Event) -> Result<()> {
        let (done, written) = oneshot::channel();
        let sent = self.events.send(Entry { event, done }).await;
        sent.map_err(|_| unwritable("the node is ending"))?;
        written.await.unwrap_or_else(|_| Err(unwritable("the node is ending")))
    }
}

fn unwritable(why: impl std::fmt::Display) -> Error {
    Error::unavailable("NODE_STATE_UNWRITABLE", format!("the node cannot write down its state: {why}"))
}

/// Writes until everybody is gone.
pub async fn keep(shared: Arc<Shared>, storage: Arc<dyn Storage>, mut waiting: mpsc::Receiver<Entry>) {
    let mut next_state = Instant::now();
    let mut dirty = false;
    loop {
        tokio::select! {
            biased;
            entry = waiting.recv() => match entry {
                Some(entry) => append(&*storage, entry, &mut waiting).await,
                None => return,
            },
            () = shared.keeper.dirty.notified(), if !dirty => {
                dirty = true;
                next_state = next_state.max(Instant::now() + PERSIST_AFTER.0);
            }
            () = tokio::time::sleep_until(next_state), if dirty => {
                let started = Instant::now();
                dirty = !replace(&shared, &*storage).await;
                let pause = (started.elapsed() * REST).clamp(PERSIST_AFTER.1, LONGEST);
                next_state = Instant::now() + pause;
            }
        }
    }
}

async fn append(storage: &dyn Storage, first: Entry, waiting: &mut mpsc::Receiver<Entry>) {
    let mut entries = vec![first];
    while entries.len() < AT_ONCE {
        let Ok(entry) = waiting.try_recv() else { break };
        entries.push(entry);
    }
    let mut bytes = Vec::new();
    for entry in &entries {
        entry.event.encode(&mut bytes);
    }
    let written = storage.append(bytes).await;
    if let Err(error) = &written {
        tracing::error!(%error, "the journal of the node's state cannot be written");
    }
    for entry in entries {
        let _ = entry.done.send(written.as_ref().copied().map_err(unwritable));
    }
}

async fn replace(shared: &Shared, storage: &dyn Storage) -> bool {
    // Read before the state: what is changed later may or may not be in it.
    let number = shared.keeper.changes.get();
    let (state, node) = (shared.state(), shared.options.node.clone());
    let encode = move || {
        state.encode(&node).map_err(|error| io::Error::other(format!("{}: {:?}", error.message(), error.cause())))
    };
    match storage.replace(Box::new(encode)).await {
        Ok(()) => {
            shared.keeper.written.set(number);
            true
        }
        Err(error) => {
            tracing::error!(%error, "the node's state cannot be written; trying again");
            false
        }
    }
}
