use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use prism_core::Error;
use prism_core::session::SessionId;

use super::log::Stored;

/// Most messages that wait for one subscription's stream to take them.
const OUTBOX_MESSAGES: usize = 64;
/// Most bytes that wait for one subscription's stream; one message may pass it.
const OUTBOX_BYTES: usize = 4 << 20;

/// One subscription of a group.
#[expect(clippy::struct_excessive_bools, reason = "four facts that do not depend on each other")]
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) session: SessionId,
    /// Whether its message ids are plain.
    pub(super) plain: bool,
    pub(super) ack_timeout: Duration,
    pub(super) max_in_flight: usize,
    /// Taken and not settled.
    pub(super) in_flight: usize,
    pub(super) stopped: bool,
    /// Why it fails; told once.
    pub(super) failure: Option<Error>,
    /// The stream is over.
    pub(super) ended: bool,
    /// It could have been given more had its outbox had room: its stream tells the dispatcher when there is some again.
    pub(super) starved: bool,
    /// Index of the partition, and the message.
    outbox: VecDeque<(usize, Stored)>,
    outbox_bytes: usize,
    waker: Option<Waker>,
}

impl Subscriber {
    pub(super) fn new(session: SessionId, plain: bool, max_in_flight: usize, ack_timeout: Duration) -> Self {
        Self {
            session,
            plain,
            ack_timeout,
            max_in_flight,
            in_flight: 0,
            stopped: false,
            failure: None,
            ended: false,
            starved: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            waker: None,
        }
    }

    /// Whether it takes another message; notes when only the outbox is in the way.
    pub(super) fn has_room(&mut self) -> bool {
        let wants = !self.stopped
            && !self.ended
            && self.failure.is_none()
            && self.in_flight + self.outbox.len() < self.max_in_flight;
        let fits = self.outbox.len() < OUTBOX_MESSAGES && self.outbox_bytes < OUTBOX_BYTES;
        self.starved |= wants && !fits;
        wants && fits
    }

    pub(super) fn push(&mut self, partition: usize, message: Stored) {
        self.outbox_bytes += message.weight();
        self.outbox.push_back((partition, message));
        self.wake();
    }

    pub(super) fn pop(&mut self) -> Option<(usize, Stored)> {
        let (partition, message) = self.outbox.pop_front()?;
        self.outbox_bytes -= message.weight();
        Some((partition, message))
    }

    /// Whether the dispatcher should hear that there is room again; half an outbox at a time, not message by message.
    pub(super) fn is_hungry(&mut self) -> bool {
        let hungry = self.starved && self.outbox.len() <= OUTBOX_MESSAGES / 2 && self.outbox_bytes <= OUTBOX_BYTES / 2;
        self.starved &= !hungry;
        hungry
    }

    /// Takes a message back that its stream has not taken.
    pub(super) fn withdraw(&mut self, partition: usize, offset: i64) {
        let place = self.outbox.iter().position(|(of, message)| *of == partition && message.offset == offset);
        if let Some((_, message)) = place.and_then(|place| self.outbox.remove(place)) {
            self.outbox_bytes -= message.weight();
        }
    }

    /// What waits for the stream: partition and offset.
    pub(super) fn queued(&self) -> Vec<(usize, i64)> {
        self.outbox.iter().map(|(partition, message)| (*partition, message.offset)).collect()
    }

    /// One message less in flight; a stopped stream may be over with it.
    pub(super) fn landed(&mut self) {
        self.in_flight -= 1;
        if self.stopped {
            self.wake();
        }
    }

    pub(super) fn wait(&mut self, waker: &Waker) {
        self.waker = Some(waker.clone());
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
