use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use prism_core::session::SessionId;
use prism_core::{Error, Result};
use rusqlite::Connection;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use super::log::{self, Stored};
use super::message_id::MessageId;
use super::positions::{self, Position, Target};
use super::state::{READ_AHEAD_BYTES, State, Step};
use super::topic::Log;
use crate::driver::{Delivery, QueueSubscription};
use crate::sqlite::space::Space;

/// A consumer group in use.
///
/// While it has subscriptions, one task hands messages out: it sleeps until something happens (a publish, an
/// acknowledgement, a subscription) or the next deadline, and never polls.
pub(super) struct Group {
    space: Arc<Space>,
    log: Arc<Log>,
    /// Its id in the database.
    pub(super) id: i64,
    shared: Mutex<Shared>,
    news: Notify,
    /// Held by a seek or a commit, so that memory follows the database in the same order.
    order: tokio::sync::Mutex<()>,
}

struct Shared {
    state: State,
    /// Whether the dispatching task runs.
    dispatching: bool,
}

impl Group {
    pub(super) fn new(space: Arc<Space>, log: Arc<Log>, id: i64, positions: Vec<Position>) -> Arc<Self> {
        let shared = Mutex::new(Shared { state: State::new(positions, Instant::now()), dispatching: false });
        Arc::new(Self { space, log, id, shared, news: Notify::new(), order: tokio::sync::Mutex::new(()) })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.lock().state.is_retired()
    }

    /// Whether the group may be forgotten; from then on nobody may join it.
    pub(super) fn retire(&self, now: Instant, keep: Duration) -> bool {
        match self.order.try_lock() {
            Ok(_unused) => self.lock().state.retire(now, keep),
            Err(_) => false,
        }
    }

    /// Subscribes; `None` when the group is retired and must be loaded again.
    pub(super) fn join(
        self: &Arc<Self>,
        session: SessionId,
        max_in_flight: usize,
        ack_timeout: Duration,
    ) -> Option<Subscription> {
        self.log.members.enter(session, self, |plain| {
            let mut shared = self.lock();
            let id = shared.state.join(session, plain, max_in_flight, ack_timeout)?;
            if std::mem::replace(&mut shared.dispatching, true) {
                self.news.notify_one();
            } else {
                tokio::spawn(Arc::clone(self).dispatch());
            }
            Some(Subscription { group: Arc::clone(self), id, session, plain })
        })
    }

    /// Whether `session` may settle a message by its plain id.
    pub(super) fn holds_plain(&self, session: SessionId) -> bool {
        self.lock().state.holds_plain(session)
    }

    async fn dispatch(self: Arc<Self>) {
        loop {
            let step = {
                let mut shared = self.lock();
                if !shared.state.has_subscribers() {
                    shared.dispatching = false;
                    return;
                }
                shared.state.step(&self.log, Instant::now())
            };
            match step {
                Step::Fetch(wants) => {
                    let id = self.id;
                    let read = move |connection: &_| log::fetch(connection, id, wants, READ_AHEAD_BYTES);
                    match self.space.readers().run(read).await {
                        Ok(fetched) => self.lock().state.fetched(fetched),
                        Err(failed) => {
                            let (namespace, reason, cause) = (&self.space.namespace, failed.reason(), failed.cause());
                            warn!(%namespace, reason, ?cause, "a topic cannot be read; its subscriptions end");
                            self.lock().state.fail(&failed);
                        }
                    }
                }
                Step::Sleep(None) => self.news.notified().await,
                Step::Sleep(Some(until)) => {
                    let _ = tokio::time::timeout_at(until, self.news.notified()).await;
                }
            }
        }
    }

    /// Tells the group of messages that are durable now: index of the partition, and the message.
    pub(super) fn published<'a>(&self, messages: impl Iterator<Item = (usize, &'a Stored)>) {
        {
            let mut shared = self.lock();
            if !shared.state.has_subscribers() {
                return;
            }
            for (index, message) in messages {
                shared.state.offer(index, message);
            }
        }
        self.news.notify_one();
    }

    /// Starts to settle what of `ids` this session took last under that very id: for each the epoch of its delivery, or
    /// `None`.
    pub(super) fn begin_settle(&self, session: SessionId, ids: &[MessageId]) -> Vec<Option<i64>> {
        let state = &mut self.lock().state;
        let begin = |id: &MessageId| match id.group {
            Some(group) if group != self.id => None,
            group => state.begin_settle(id.partition as usize, id.offset, session, group.is_none()),
        };
        ids.iter().map(begin).collect()
    }

    /// Ends what [`Group::begin_settle`] started.
    pub(super) fn end_settle(&self, index: usize, epoch: i64, offsets: &[i64], durable: bool) {
        {
            let state = &mut self.lock().state;
            let now = Instant::now();
            for offset in offsets {
                state.end_settle(index, epoch, *offset, durable, now);
            }
        }
        self.news.notify_one();
    }

    /// Moves the position in partitions (by index); all or none. `false`: the group is retired and must be loaded again.
    pub(super) async fn seek(self: &Arc<Self>, targets: Vec<(usize, Target)>) -> Result<bool> {
        let move_all = move |group: &Self, connection: &Connection| {
            let seek = |(index, target): &(usize, Target)| {
                Ok((*index, positions::seek(connection, group.id, group.log.partition(*index)?.id, target)?))
            };
            targets.iter().map(seek).collect()
        };
        self.reposition(move_all, State::seek).await
    }

    /// Settles everything before `offset`. `false`: the group is retired and must be loaded again.
    pub(super) async fn commit(self: &Arc<Self>, index: usize, offset: i64) -> Result<bool> {
        let advance = move |group: &Self, connection: &Connection| {
            let partition = group.log.partition(index)?.id;
            Ok(vec![(index, positions::commit(connection, group.id, partition, offset)?)])
        };
        self.reposition(advance, State::commit).await
    }

    /// Changes positions in the database and then in memory; in a task of its own, so that a caller who goes away does not
    /// leave one without the other.
    async fn reposition(
        self: &Arc<Self>,
        change: impl FnOnce(&Self, &Connection) -> Result<Vec<(usize, Position)>> + Send + 'static,
        follow: fn(&mut State, usize, Position),
    ) -> Result<bool> {
        let group = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _order = group.order.lock().await;
            if group.is_retired() {
                return Ok(false);
            }
            let changed = Arc::clone(&group);
            let moved = group.space.write(move |connection| Ok((change(&changed, connection)?, 0))).await?;
            for (index, position) in moved {
                follow(&mut group.lock().state, index, position);
            }
            group.news.notify_one();
            Ok(true)
        });
        task.await.map_err(Error::internal)?
    }

    fn poll(&self, id: u64, context: &Context<'_>) -> Poll<Option<Result<Delivery>>> {
        let (polled, hungry) = self.lock().state.poll(id, context.waker(), Instant::now());
        if hungry {
            self.news.notify_one();
        }
        polled.map(|item| {
            item.map(|taken| {
                let taken = taken?;
                let partition = taken.partition as i32;
                let Stored { offset, timestamp, headers, payload } = taken.message;
                let group = if taken.plain { None } else { Some(self.id) };
                let message_id = MessageId { topic: self.log.id, partition, offset, group }.to_string();
                Ok(Delivery { message_id, payload, headers, offset, partition, timestamp, attempt: taken.attempt })
            })
        })
    }
}

/// A subscription of a group.
pub(super) struct Subscription {
    group: Arc<Group>,
    id: u64,
    session: SessionId,
    plain: bool,
}

impl QueueSubscription for Subscription {
    fn deliveries(&mut self) -> Pin<Box<dyn Stream<Item = Result<Delivery>> + Send>> {
        let (group, id) = (Arc::clone(&self.group), self.id);
        Box::pin(futures::stream::poll_fn(move |context| group.poll(id, context)))
    }

    fn stop(&self) {
        self.group.lock().state.stop(self.id);
        self.group.news.notify_one();
    }

    fn in_flight(&self) -> usize {
        self.group.lock().state.in_flight(self.id)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.group.lock().state.leave(self.id, Instant::now());
        self.group.log.members.leave(self.session, self.plain);
        self.group.news.notify_one();
    }
}
