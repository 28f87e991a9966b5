use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prism_core::{Error, Kind, Result};
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::sqlite::space::Space;

/// An operation that many callers want at the same time, done for all of them at once.
pub(super) trait Combined: Send + Sync + 'static {
    /// What one caller wants.
    type Item: Send + Sync + 'static;
    /// What it gets.
    type Answer: Send + 'static;

    /// Does all `items` in one savepoint: one answer for each, in order, and by how many bytes the stored data grew.
    fn apply(&self, connection: &Connection, items: &[Arc<Self::Item>]) -> Result<(Vec<Self::Answer>, i64)>;

    /// Runs when the outcome is known and before any caller hears of it; also when the callers have gone away.
    fn settled(&self, items: &[Arc<Self::Item>], outcome: Result<&[Self::Answer], &Error>);
}

/// Gathers the items that arrive while the writer is busy and has them done with a few statements instead of a few for each.
///
/// The items are taken when the writer thread gets to them, not before, so that waiting costs no time of its own.
pub(super) struct Combiner<W: Combined> {
    work: W,
    space: Arc<Space>,
    pending: Mutex<Pending<W>>,
}

type Answers<A> = Vec<oneshot::Sender<Result<A>>>;

struct Pending<W: Combined> {
    items: Vec<Arc<W::Item>>,
    answers: Answers<W::Answer>,
    /// Whether a flush is on its way that will take them.
    scheduled: bool,
}

impl<W: Combined> Combiner<W> {
    pub(super) fn new(space: Arc<Space>, work: W) -> Arc<Self> {
        let pending = Pending { items: Vec::new(), answers: Vec::new(), scheduled: false };
        Arc::new(Self { work, space, pending: Mutex::new(pending) })
    }

    /// Does `item`; durable when it returns. It is done even when the caller goes away.
    pub(super) async fn submit(self: &Arc<Self>, item: W::Item) -> Result<W::Answer> {
        self.enqueue(item).await.unwrap_or_else(|_| Err(closed()))
    }

    /// Hands `item` over at once, so that items are done in the order of these calls.
    pub(super) fn enqueue(self: &Arc<Self>, item: W::Item) -> oneshot::Receiver<Result<W::Answer>> {
        let (answer, result) = oneshot::channel();
        let mut pending = self.pending();
        pending.items.push(Arc::new(item));
        pending.answers.push(answer);
        if !std::mem::replace(&mut pending.scheduled, true) {
            drop(pending);
            tokio::spawn(Arc::clone(self).flush());
        }
        result
    }

    fn pending(&self) -> MutexGuard<'_, Pending<W>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> (Vec<Arc<W::Item>>, Answers<W::Answer>) {
        let mut pending = self.pending();
        pending.scheduled = false;
        (std::mem::take(&mut pending.items), std::mem::take(&mut pending.answers))
    }

    async fn flush(self: Arc<Self>) {
        let taken = Arc::new(Mutex::new(None));
        let outcome = {
            let (combiner, taken) = (Arc::clone(&self), Arc::clone(&taken));
            let work = move |connection: &Connection| {
                let (items, answers) = combiner.take();
                *taken.lock().unwrap_or_else(PoisonError::into_inner) = Some((items.clone(), answers));
                combiner.work.apply(connection, &items)
            };
            self.space.write(work).await
        };
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Nothing was taken when the storage is closed: whoever waits is told so.
        let (items, answers) = taken.unwrap_or_else(|| self.take());
        match outcome {
            // One item may be too much for the quota and another not: each is tried on its own.
            Err(refused) if refused.kind() == Kind::ResourceExhausted && items.len() > 1 => {
                let each = items.into_iter().zip(answers).map(|(item, answer)| self.alone(item, answer));
                futures::future::join_all(each).await;
            }
            outcome => self.answer(&items, answers, outcome),
        }
    }

    async fn alone(self: &Arc<Self>, item: Arc<W::Item>, answer: oneshot::Sender<Result<W::Answer>>) {
        let items = [item];
        let (combiner, applied) = (Arc::clone(self), items.clone());
        let outcome = self.space.write(move |connection| combiner.work.apply(connection, &applied)).await;
        self.answer(&items, vec![answer], outcome);
    }

    fn answer(&self, items: &[Arc<W::Item>], senders: Answers<W::Answer>, outcome: Result<Vec<W::Answer>>) {
        self.work.settled(items, outcome.as_deref());
        // A caller that has gone away does not hear of it.
        match outcome {
            Ok(answers) => senders.into_iter().zip(answers).for_each(|(sender, answer)| drop(sender.send(Ok(answer)))),
            Err(failed) => senders.into_iter().for_each(|sender| drop(sender.send(Err(failed.clone())))),
        }
    }
}

fn closed() -> Error {
    Error::unavailable("STORAGE_CLOSED", "the storage is shutting down")
}
