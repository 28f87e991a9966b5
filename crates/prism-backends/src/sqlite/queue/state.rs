use std::collections::{BTreeMap, BTreeSet};
use std::task::{Poll, Waker};
use std::time::Duration;

use prism_core::session::SessionId;
use prism_core::{Error, Result};
use tokio::time::Instant;

use super::log::{Fetched, Stored, Want};
use super::partition::{Held, Partition, Phase};
use super::positions::Position;
use super::subscriber::Subscriber;
use super::topic::Log;

/// Most messages that are read ahead for one group.
const READ_AHEAD_MESSAGES: usize = 256;
/// Most bytes that are read ahead for one group; one message may pass it.
pub(super) const READ_AHEAD_BYTES: usize = 4 << 20;

/// Who has which message: the delivery of one group, as data. It does no input or output, and knows time only as an argument.
///
/// Its laws: a message is at one place at a time (ready, outbox, consumer, waiting, settling); within a partition the lowest
/// offset goes first; only a durable acknowledgement, commit, seek or trim removes one.
pub(super) struct State {
    partitions: Vec<Partition>,
    subscribers: BTreeMap<u64, Subscriber>,
    /// Deadlines of what is assigned or delivered: when, partition, offset.
    timers: BTreeSet<(Instant, usize, i64)>,
    ready_messages: usize,
    ready_bytes: usize,
    next_subscriber: u64,
    /// The subscription that got the last message; the one after it is next.
    served: u64,
    /// The partition to look at first.
    turn: usize,
    /// Since when there is no subscription.
    idle_since: Instant,
    /// Taken out of the topic: nobody may join any more.
    retired: bool,
}

/// What the dispatcher does next.
#[derive(Debug)]
pub(super) enum Step {
    /// Read these and come back.
    Fetch(Vec<Want>),
    /// Wait for news, at most until then.
    Sleep(Option<Instant>),
}

/// A message on its way to a consumer.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) partition: usize,
    pub(super) attempt: i32,
    /// Whether its id is plain.
    pub(super) plain: bool,
    pub(super) message: Stored,
}

impl State {
    pub(super) fn new(positions: impl IntoIterator<Item = Position>, now: Instant) -> Self {
        Self {
            partitions: positions.into_iter().map(Partition::new).collect(),
            subscribers: BTreeMap::new(),
            timers: BTreeSet::new(),
            ready_messages: 0,
            ready_bytes: 0,
            next_subscriber: 0,
            served: 0,
            turn: 0,
            idle_since: now,
            retired: false,
        }
    }

    /// Adds a subscription; `None` when the group is retired.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        plain: bool,
        max_in_flight: usize,
        ack_timeout: Duration,
    ) -> Option<u64> {
        if self.retired {
            return None;
        }
        let id = self.next_subscriber;
        self.next_subscriber += 1;
        self.subscribers.insert(id, Subscriber::new(session, plain, max_in_flight, ack_timeout));
        Some(id)
    }

    /// Removes a subscription and gives back what it has.
    pub(super) fn leave(&mut self, id: u64, now: Instant) {
        self.give_back_all(id);
        self.subscribers.remove(&id);
        if self.subscribers.is_empty() {
            self.idle_since = now;
        }
    }

    /// No new messages for a subscription; what its stream has not taken goes back.
    pub(super) fn stop(&mut self, id: u64) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return };
        subscriber.stopped = true;
        for (partition, offset) in subscriber.queued() {
            self.give_back(partition, offset);
        }
        if let Some(subscriber) = self.subscribers.get_mut(&id) {
            subscriber.wake();
        }
    }

    /// Messages that a subscription has taken and not settled.
    pub(super) fn in_flight(&self, id: u64) -> usize {
        self.subscribers.get(&id).map_or(0, |subscriber| subscriber.in_flight)
    }

    pub(super) fn has_subscribers(&self) -> bool {
        !self.subscribers.is_empty()
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Retires the group when it has had no subscription for `keep`, or has none and nothing to remember.
    pub(super) fn retire(&mut self, now: Instant, keep: Duration) -> bool {
        let held = || self.partitions.iter().flat_map(|partition| partition.held.values());
        let settling = held().any(|held| held.phase == Phase::Settling);
        let forgettable = held().next().is_none() || now.saturating_duration_since(self.idle_since) >= keep;
        self.retired |= self.subscribers.is_empty() && !settling && forgettable;
        self.retired
    }

    /// Fails every subscription: its stream tells `why` and ends. Nothing is lost, it all goes back.
    pub(super) fn fail(&mut self, why: &Error) {
        let ids: Vec<u64> = self.subscribers.keys().copied().collect();
        for id in ids {
            self.give_back_all(id);
            if let Some(subscriber) = self.subscribers.get_mut(&id).filter(|subscriber| !subscriber.ended) {
                subscriber.failure = Some(why.clone());
                subscriber.wake();
            }
        }
    }

    /// The next message of a subscription's stream; and whether the dispatcher should look again.
    pub(super) fn poll(&mut self, id: u64, waker: &Waker, now: Instant) -> (Poll<Option<Result<Taken>>>, bool) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else { return (Poll::Ready(None), false) };
        if let Some(failure) = subscriber.failure.take() {
            subscriber.ended = true;
            return (Poll::Ready(Some(Err(failure))), false);
        }
        subscriber.ended |= subscriber.stopped && subscriber.in_flight == 0;
        if subscriber.ended {
            return (Poll::Ready(None), false);
        }
        let Some((partition, message)) = subscriber.pop() else {
            subscriber.wait(waker);
            return (Poll::Pending, false);
        };
        subscriber.in_flight += 1;
        let deadline = now + subscriber.ack_timeout;
        let (session, plain, hungry) = (subscriber.session, subscriber.plain, subscriber.is_hungry());
        let held = self.partitions.get_mut(partition).and_then(|partition| partition.held.get_mut(&message.offset));
        let attempt = held.map_or(1, |held| {
            if let Phase::Assigned(deadline) = held.phase {
                self.timers.remove(&(deadline, partition, message.offset));
            }
            held.attempts = held.attempts.saturating_add(1);
            held.last = Some(session);
            held.plain = plain;
            held.phase = Phase::Delivered(deadline);
            held.attempts
        });
        self.timers.insert((deadline, partition, message.offset));
        (Poll::Ready(Some(Ok(Taken { partition, attempt, plain, message }))), hungry)
    }

    /// Takes back what is over time, hands out what is ready, and says what to do next.
    pub(super) fn step(&mut self, log: &Log, now: Instant) -> Step {
        while let Some((deadline, partition, offset)) = self.timers.first().copied().filter(|timer| timer.0 <= now) {
            self.timers.remove(&(deadline, partition, offset));
            self.give_back(partition, offset);
        }
        let mut room = self.next_with_room();
        while let Some(id) = room {
            let Some((partition, offset)) = self.next_ready() else { break };
            self.assign(partition, offset, id, now);
            room = self.next_with_room();
        }
        let wants = if room.is_some() { self.wants(log) } else { Vec::new() };
        if wants.is_empty() { Step::Sleep(self.timers.first().map(|timer| timer.0)) } else { Step::Fetch(wants) }
    }

    fn next_with_room(&mut self) -> Option<u64> {
        let roomy = |(id, subscriber): (&u64, &mut Subscriber)| subscriber.has_room().then_some(*id);
        let after = self.served;
        let later = self.subscribers.range_mut(after.saturating_add(1)..).find_map(roomy);
        later.or_else(|| self.subscribers.range_mut(..=after).find_map(roomy))
    }

    fn next_ready(&mut self) -> Option<(usize, i64)> {
        let turns = (self.turn..self.partitions.len()).chain(0..self.turn);
        let found = turns.into_iter().find_map(|index| Some((index, self.partitions.get(index)?.head()?)));
        if let Some((index, _)) = found {
            self.turn = (index + 1) % self.partitions.len();
        }
        found
    }

    fn assign(&mut self, index: usize, offset: i64, id: u64, now: Instant) {
        let (Some(partition), Some(subscriber)) = (self.partitions.get_mut(index), self.subscribers.get_mut(&id))
        else {
            return;
        };
        let Some(message) = partition.ready.remove(&offset) else { return };
        self.ready_messages -= 1;
        self.ready_bytes -= message.weight();
        partition.waiting.remove(&offset);
        let deadline = now + subscriber.ack_timeout;
        let held = partition.held.entry(offset).or_insert(Held {
            attempts: 0,
            last: None,
            plain: false,
            owner: None,
            phase: Phase::Waiting,
        });
        held.owner = Some(id);
        held.phase = Phase::Assigned(deadline);
        self.timers.insert((deadline, index, offset));
        subscriber.push(index, message);
        self.served = id;
    }

    /// What must be read before more can be handed out.
    fn wants(&self, log: &Log) -> Vec<Want> {
        let mut left = READ_AHEAD_MESSAGES.saturating_sub(self.ready_messages);
        let turns = (self.turn..self.partitions.len()).chain(0..self.turn);
        turns
            .filter_map(|index| {
                let (partition, kept) = (self.partitions.get(index)?, log.partitions.get(index)?);
                let unread = partition.waiting.iter().filter(|offset| !partition.ready.contains_key(offset));
                let again: Vec<i64> = unread.take(READ_AHEAD_MESSAGES).copied().collect();
                let (from, to) = (partition.cursor, kept.latest());
                let limit = left.min(usize::try_from(to - from).unwrap_or(0));
                left -= limit;
                let want = Want { index, partition: kept.id, epoch: partition.epoch, again, from, to, limit };
                (want.limit > 0 || !want.again.is_empty()).then_some(want)
            })
            .collect()
    }

    /// Takes in what was read. What a seek, a commit or an acknowledgement has overtaken is left out.
    pub(super) fn fetched(&mut self, all: Vec<Fetched>) {
        for Fetched { want, again, gone, new, cursor } in all {
            let Some(partition) = self.partitions.get(want.index).filter(|partition| partition.epoch == want.epoch)
            else {
                continue;
            };
            let fresh = partition.cursor == want.from;
            for offset in gone {
                if self.partitions.get(want.index).is_some_and(|partition| partition.waiting.contains(&offset)) {
                    self.remove(want.index, offset);
                }
            }
            let Some(partition) = self.partitions.get_mut(want.index) else { continue };
            let again = again.into_iter().filter(|message| partition.waiting.contains(&message.offset));
            let new = new.into_iter().filter(|_| fresh);
            for message in again.chain(new).collect::<Vec<_>>() {
                self.ready_messages += 1;
                self.ready_bytes += message.weight();
                if let Some(before) = partition.ready.insert(message.offset, message) {
                    self.ready_messages -= 1;
                    self.ready_bytes -= before.weight();
                }
            }
            if fresh {
                partition.cursor = cursor;
            }
        }
    }

    /// Takes in a message that was just published, when it is the next one to read and there is room; otherwise it is read
    /// from the log in its turn.
    pub(super) fn offer(&mut self, index: usize, message: &Stored) {
        let fits = self.ready_messages < READ_AHEAD_MESSAGES && self.ready_bytes + message.weight() <= READ_AHEAD_BYTES;
        if let Some(partition) = self.partitions.get_mut(index)
            && fits
            && partition.cursor == message.offset
        {
            partition.cursor += 1;
            self.ready_messages += 1;
            self.ready_bytes += message.weight();
            partition.ready.insert(message.offset, message.clone());
        }
    }

    /// Whether `session` knows a message by its plain id and may settle it.
    pub(super) fn holds_plain(&self, session: SessionId) -> bool {
        let mut held = self.partitions.iter().flat_map(|partition| partition.held.values());
        !self.retired && held.any(|held| held.plain && held.last == Some(session))
    }

    /// Starts to settle a message that `session` took last under an id of this form; answers the epoch of its delivery.
    /// `None`: not this session's.
    pub(super) fn begin_settle(&mut self, index: usize, offset: i64, session: SessionId, plain: bool) -> Option<i64> {
        let partition = self.partitions.get_mut(index)?;
        let epoch = partition.epoch;
        let theirs = |held: &&mut Held| held.last == Some(session) && held.plain == plain;
        let held = partition.held.get_mut(&offset).filter(theirs)?;
        match held.phase {
            Phase::Settling => {}
            // It counts as in flight until it is durable.
            Phase::Delivered(deadline) => {
                held.phase = Phase::Settling;
                self.timers.remove(&(deadline, index, offset));
            }
            // Late, and nobody else has got it yet.
            Phase::Waiting | Phase::Assigned(_) => {
                let held = self.remove(index, offset)?;
                let settling = Held { owner: None, phase: Phase::Settling, ..held };
                self.partitions.get_mut(index)?.held.insert(offset, settling);
            }
        }
        Some(epoch)
    }

    /// The acknowledgement is durable, or was refused: then the consumer keeps the message for another `ack_timeout`.
    pub(super) fn end_settle(&mut self, index: usize, epoch: i64, offset: i64, durable: bool, now: Instant) {
        let Some(partition) = self.partitions.get_mut(index).filter(|partition| partition.epoch == epoch) else {
            return;
        };
        if durable {
            self.remove(index, offset);
            return;
        }
        let Some(held) = partition.held.get_mut(&offset).filter(|held| held.phase == Phase::Settling) else { return };
        match held.owner.and_then(|owner| self.subscribers.get(&owner)) {
            Some(subscriber) => {
                let deadline = now + subscriber.ack_timeout;
                held.phase = Phase::Delivered(deadline);
                self.timers.insert((deadline, index, offset));
            }
            None => self.give_back(index, offset),
        }
    }

    /// A durable seek: what was held is forgotten, and delivery goes on at the new position.
    pub(super) fn seek(&mut self, index: usize, position: Position) {
        self.settle_below(index, i64::MAX);
        if let Some(partition) = self.partitions.get_mut(index) {
            *partition = Partition::new(position);
        }
    }

    /// A durable commit: everything before the position is settled.
    pub(super) fn commit(&mut self, index: usize, position: Position) {
        self.settle_below(index, position.committed);
        if let Some(partition) = self.partitions.get_mut(index) {
            partition.cursor = partition.cursor.max(position.committed);
        }
    }

    fn settle_below(&mut self, index: usize, offset: i64) {
        let Some(partition) = self.partitions.get_mut(index) else { return };
        let mut ready = partition.ready.split_off(&offset);
        std::mem::swap(&mut ready, &mut partition.ready);
        self.ready_messages -= ready.len();
        self.ready_bytes -= ready.values().map(Stored::weight).sum::<usize>();
        let held: Vec<i64> = partition.held.range(..offset).map(|(offset, _)| *offset).collect();
        for offset in held {
            self.remove(index, offset);
        }
    }

    fn give_back_all(&mut self, id: u64) {
        let mut owned = Vec::new();
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            for (offset, held) in &mut partition.held {
                if held.owner == Some(id) {
                    owned.push((index, *offset));
                }
            }
        }
        for (index, offset) in owned {
            self.give_back(index, offset);
        }
    }

    /// A message goes back to the group, unless its acknowledgement is on the way.
    fn give_back(&mut self, index: usize, offset: i64) {
        let Some(held) = self.remove(index, offset) else { return };
        let Some(partition) = self.partitions.get_mut(index) else { return };
        let settling = held.phase == Phase::Settling && held.owner.is_some();
        let phase = if settling { Phase::Settling } else { Phase::Waiting };
        partition.held.insert(offset, Held { owner: None, phase, ..held });
        if !settling {
            partition.waiting.insert(offset);
        }
    }

    /// Forgets a held message wherever it is.
    fn remove(&mut self, index: usize, offset: i64) -> Option<Held> {
        let partition = self.partitions.get_mut(index)?;
        let held = partition.held.remove(&offset)?;
        let owner = held.owner.and_then(|owner| self.subscribers.get_mut(&owner));
        match (held.phase, owner) {
            (Phase::Waiting, _) => {
                partition.waiting.remove(&offset);
                if let Some(message) = partition.ready.remove(&offset) {
                    self.ready_messages -= 1;
                    self.ready_bytes -= message.weight();
                }
            }
            (Phase::Assigned(_), Some(subscriber)) => subscriber.withdraw(index, offset),
            (Phase::Delivered(_) | Phase::Settling, Some(subscriber)) => subscriber.landed(),
            (_, None) => {}
        }
        if let Phase::Assigned(deadline) | Phase::Delivered(deadline) = held.phase {
            self.timers.remove(&(deadline, index, offset));
        }
        Some(held)
    }
}
