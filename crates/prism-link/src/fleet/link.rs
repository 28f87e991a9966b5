//! The link of one node, from its Hello to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use prism_core::config::Catalog;
use prism_core::control::Snapshot;
use prism_core::limits::MAX_MAP_ENTRIES;
use prism_core::nodes::Told;
use prism_core::session::{SessionId, SessionRecord, SessionReport};
use prism_core::{Error, Kind, NodeId, Result};
use prism_proto::cluster::v1 as wire;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wire::command::Command;
use wire::command_answer::Result as Answered;
use wire::controller_frame::Frame;
use wire::node_frame::Frame as Received;

use super::Shared;
use super::allowance::Allowance;
use crate::bounds::{
    DEMAND_RATE, INTRODUCTION_TIMEOUT, MAX_ASKED_BYTES, MAX_ASKS_AT_ONCE, MAX_COMMANDS, MAX_ITEMS, MAX_REPORTS,
    MAX_SESSIONS, MAX_SUBJECTS, MAX_UNHEARD, MAX_WAITING_FRAMES, NEWEST_PROTOCOL, OLDEST_PROTOCOL, PART_BYTES,
    PING_EVERY, SIGN_OF_LIFE, SILENCE,
};
use crate::convert::{bad, id_from_wire, known_to_wire, need, record_to_wire, refusal_from_wire, told_from_wire};
use crate::parts::Gathered;
use crate::shares::Proof;
use crate::signal::Signal;
use crate::transport::{ControllerEnd, Incoming, Outgoing};

/// The node cannot be asked, or has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreached;

/// Who waits for the answer to a command, and what came of it so far.
struct Waiting {
    answer: oneshot::Sender<Result<Answered>>,
    gathered: Gathered,
}

/// An open link.
pub struct Link {
    node: NodeId,
    /// Which process of the node.
    process: u64,
    /// The backend instances that the node has.
    catalog: Catalog,
    /// How many frames have come.
    heard: Signal<u64>,
    outgoing: mpsc::Sender<wire::ControllerFrame>,
    commands: Mutex<BTreeMap<u64, Waiting>>,
    next_command: AtomicU64,
    /// The newest revision of this controller that the node serves by.
    applied: Signal<u64>,
    /// The newest revision that somebody has waited for in vain.
    missed: AtomicU64,
    /// Demands that are looked at.
    demands: Allowance,
    /// The number of the newest ping that may have been sent.
    pinged: AtomicU64,
    /// Admissions whose answers were sent, each with the ping whose answer says that the node has them.
    unheard: Mutex<Vec<(u64, SessionReport)>>,
    /// Held while the node removes what it has missed.
    pub(super) removing: tokio::sync::Mutex<()>,
    gone: CancellationToken,
}

impl Link {
    /// Whose link it is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The backend instances that its node has.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Which process of its node it is.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// Waits for a sign of life; `false` when none comes.
    pub async fn is_alive(&self) -> bool {
        let so_far = self.heard.get();
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            heard = tokio::time::timeout(SIGN_OF_LIFE, self.heard.wait_for(|heard| *heard != so_far)) => heard.is_ok(),
        }
    }

    /// Ends it.
    pub fn close(&self) {
        self.gone.cancel();
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Sends a frame, after those before it; `false` when the link has ended.
    pub async fn send(&self, frame: Frame) -> bool {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            sent = self.outgoing.send(wire::ControllerFrame { frame: Some(frame) }) => sent.is_ok(),
        }
    }

    /// Has the node do something, and waits for its answer at most `timeout`.
    pub async fn command(&self, command: Command, timeout: Duration) -> Result<Result<Answered>, Unreached> {
        let id = self.next_command.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        {
            let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_closed() || commands.len() >= MAX_COMMANDS {
                return Err(Unreached);
            }
            commands.insert(id, Waiting { answer, gathered: Gathered::default() });
        }
        let asked = async {
            if !self.send(Frame::Command(wire::Command { id, command: Some(command) })).await {
                return Err(Unreached);
            }
            answered.await.map_err(|_| Unreached)
        };
        let outcome = tokio::time::timeout(timeout, asked).await.unwrap_or(Err(Unreached));
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        outcome
    }

    /// Notes that an admission was answered: a ping that is sent from now on comes after the answer.
    pub fn answered(&self, last: SessionReport) {
        let heard_with = self.pinged.load(Ordering::SeqCst) + 1;
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        if unheard.len() < MAX_UNHEARD {
            unheard.push((heard_with, last));
        }
    }

    /// The node has answered a ping, so it has all that was sent before it.
    fn heard(&self, ping: u64) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        unheard.retain(|(heard_with, _)| *heard_with > ping);
    }

    /// The admissions of which nobody knows whether the node has them.
    pub fn take_unheard(&self) -> Vec<SessionReport> {
        let unheard = std::mem::take(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner));
        unheard.into_iter().map(|(_, last)| last).collect()
    }

    /// Notes that the node did not serve by `revision` in time.
    pub fn missed(&self, revision: u64) {
        self.missed.fetch_max(revision, Ordering::Relaxed);
    }

    /// Whether the node does not serve yet by a revision that somebody waited for in vain.
    pub fn is_behind(&self) -> bool {
        self.applied.get() < self.missed.load(Ordering::Relaxed)
    }

    /// Waits until the node serves by `revision` or a later one.
    pub async fn applied(&self, revision: u64) {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => {}
            _ = self.applied.wait_for(|applied| *applied >= revision) => {}
        }
    }
}

/// Serves a link until it ends; returns why.
pub async fn serve(shared: &Arc<Shared>, node: NodeId, transport: ControllerEnd) -> Error {
    let ControllerEnd { mut incoming, outgoing } = transport;
    // One at a time of each node: what it says that it holds may be much.
    let turn = shared.introduce(&node);
    let introduced = tokio::select! {
        biased;
        () = turn.cancelled() => return closed("the node has connected again"),
        introduced = tokio::time::timeout(INTRODUCTION_TIMEOUT, introduction(&node, &mut incoming)) => introduced,
    };
    let (hello, told, held) = match introduced {
        Ok(Ok(introduced)) => introduced,
        Ok(Err(error)) => return shared.refused(&node, error),
        Err(_) => return closed("the node has not introduced itself in time"),
    };
    if let Err(error) = shared.may_link(&node, &hello).await {
        return error;
    }
    let (sender, frames) = mpsc::channel(MAX_WAITING_FRAMES);
    let link = Arc::new(Link {
        node,
        process: hello.process,
        heard: Signal::new(0),
        catalog: Catalog { instances: told.instances().collect() },
        outgoing: sender,
        commands: Mutex::default(),
        next_command: AtomicU64::new(1),
        applied: Signal::new(0),
        missed: AtomicU64::new(0),
        demands: Allowance::new(DEMAND_RATE),
        removing: tokio::sync::Mutex::new(()),
        pinged: AtomicU64::new(0),
        unheard: Mutex::default(),
        gone: CancellationToken::new(),
    });
    let id = shared.next_link.fetch_add(1, Ordering::Relaxed);
    let conversation = async {
        let welcome = wire::Welcome {
            protocol: hello.newest_protocol.min(NEWEST_PROTOCOL),
            controller_id: shared.options.id.to_string(),
            cluster: shared.options.cluster.clone(),
            now_ms: shared.options.clock.now().0,
        };
        // Before the link is known: the Welcome is the first frame, and from then on commands may come at any time.
        link.send(Frame::Welcome(welcome)).await;
        let version = told.version.clone();
        shared.register(&link, &hello, told)?;
        tracing::info!(node.id = %link.node, link = id, sessions = held.len(), version, "a node is linked");
        let error = tokio::select! {
            biased;
            () = shared.end.cancelled() => closed("the controller is ending"),
            () = link.gone.cancelled() => closed("the link was closed by the controller"),
            ended = listen(shared, &link, &mut incoming) => ended,
            ended = talk(shared, &link, &hello, held) => ended,
        };
        Err::<(), Error>(error)
    };
    let ended = tokio::select! {
        biased;
        () = pump(frames, outgoing) => closed("the node takes nothing any more"),
        ended = conversation => ended.err().unwrap_or_else(|| closed("it is over")),
    };
    link.close();
    shared.unregister(&link);
    tracing::info!(node.id = %link.node, link = id, reason = ended.reason(), why = ended.message(), "the link of a node has ended");
    ended
}

fn closed(why: &str) -> Error {
    Error::unavailable("LINK_CLOSED", why)
}

async fn pump(mut frames: mpsc::Receiver<wire::ControllerFrame>, mut outgoing: Outgoing<wire::ControllerFrame>) {
    while let Some(frame) = frames.recv().await {
        if outgoing.send(frame).await.is_err() {
            return;
        }
    }
}

/// How the identities of backends begin whose data is on the node's own disk; the node and the instance follow.
const EMBEDDED: &str = "embedded:";

/// The beginning of a text of a node, for logs.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Hello and Held, proven.
async fn introduction(
    node: &NodeId,
    incoming: &mut Incoming<wire::NodeFrame>,
) -> Result<(wire::Hello, Told, BTreeSet<SessionId>)> {
    let mut next = async || incoming.next().await.unwrap_or_else(|| Err(closed("the node has closed the link")));
    let Some(Received::Hello(hello)) = next().await?.frame else {
        return Err(bad("the first frame of a node must be its Hello"));
    };
    if hello.node_id != node.as_str() {
        let told: String = hello.node_id.chars().take(64).collect();
        let message = format!("the certificate is of the node {node}, and the Hello of {told:?}");
        return Err(Error::new(Kind::PermissionDenied, "NODE_MISMATCH", message));
    }
    if hello.oldest_protocol > NEWEST_PROTOCOL || hello.newest_protocol < OLDEST_PROTOCOL {
        let message = format!(
            "the node speaks versions {} to {} of the link, the controller {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL}; bring \
             the older one of the two up to date",
            hello.oldest_protocol, hello.newest_protocol
        );
        return Err(Error::precondition("PROTOCOL_UNSUPPORTED", message));
    }
    let told = told_from_wire(&hello)?;
    for backend in &hello.backends {
        let own = format!("{EMBEDDED}{node}:{}", backend.instance);
        if backend.identity.starts_with(EMBEDDED) && backend.identity != own {
            let told: String = backend.identity.chars().take(128).collect();
            let message = format!(
                "the backend {:?} of the node {node} says it is {told:?}, which is another's",
                cut(&backend.instance)
            );
            return Err(Error::new(Kind::PermissionDenied, "BACKEND_MISMATCH", message));
        }
    }
    let mut held = BTreeSet::new();
    loop {
        match next().await?.frame {
            Some(Received::Held(part)) => {
                if part.session_ids.len() > MAX_ITEMS || held.len() > MAX_SESSIONS {
                    return Err(bad("a node holds too many sessions"));
                }
                for id in &part.session_ids {
                    held.insert(id_from_wire(id)?);
                }
                if part.last {
                    return Ok((hello, told, held));
                }
            }
            // Of a kind that this version does not know.
            None => {}
            Some(_) => return Err(bad("Held must follow Hello")),
        }
    }
}

/// Reads what the node sends.
async fn listen(shared: &Arc<Shared>, link: &Arc<Link>, incoming: &mut Incoming<wire::NodeFrame>) -> Error {
    let (at_once, bytes) = (Arc::new(Semaphore::new(MAX_ASKS_AT_ONCE)), Arc::new(Semaphore::new(MAX_ASKED_BYTES)));
    let asks = Asks { at_once, bytes, proof: OnceLock::new() };
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let handled = tokio::select! {
            biased;
            frame = incoming.next() => {
                heard = Instant::now();
                link.heard.update(|heard| *heard += 1);
                match frame {
                    Some(Ok(wire::NodeFrame { frame: Some(frame) })) => received(shared, link, &asks, frame).await,
                    // Of a kind that this version does not know.
                    Some(Ok(_)) => Ok(()),
                    Some(Err(error)) => Err(error),
                    None => Err(closed("the node has closed the link")),
                }
            }
            _ = ticks.tick() => if heard.elapsed() >= SILENCE { Err(closed("the node is silent")) } else { Ok(()) },
        };
        if let Err(error) = handled {
            return error;
        }
    }
}

/// Questions that are worked on.
struct Asks {
    at_once: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// What the node can show that it was given before.
    proof: OnceLock<Proof>,
}

impl Asks {
    /// Takes a place for a question, and waits for it: the node's next frames wait on the connection meanwhile.
    async fn begin(&self, ask: &wire::Ask) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        proportionate(ask)?;
        let bytes = u32::try_from(ask.encoded_len().min(MAX_ASKED_BYTES)).unwrap_or(u32::MAX);
        let places = async {
            let place = Arc::clone(&self.at_once).acquire_owned().await.map_err(Error::internal)?;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await.map_err(Error::internal)?;
            Ok((place, bytes))
        };
        let places = tokio::time::timeout(SILENCE, places).await;
        places.unwrap_or_else(|_| Err(closed("the node asks more than can be answered")))
    }
}

/// Refuses lists that are far larger in memory than they were on the wire.
fn proportionate(ask: &wire::Ask) -> Result<()> {
    use wire::ask::Ask;
    let basis = match &ask.ask {
        Some(Ask::Report(report)) if report.reports.len() > MAX_REPORTS => {
            return Err(bad(format_args!("reports has more than {MAX_REPORTS} entries")));
        }
        Some(Ask::Admit(admit)) if admit.metadata.len() > MAX_MAP_ENTRIES => {
            return Err(bad(format_args!("metadata has more than {MAX_MAP_ENTRIES} entries")));
        }
        Some(Ask::Admit(admit)) => admit.basis.as_ref(),
        Some(Ask::Authenticate(asked)) => match &asked.credential {
            Some(wire::authenticate_ask::Credential::Proven(proven)) => proven.basis.as_ref(),
            _ => None,
        },
        _ => None,
    };
    match basis {
        Some(basis) if basis.subjects.len() > MAX_SUBJECTS => {
            Err(bad(format_args!("subjects has more than {MAX_SUBJECTS} entries")))
        }
        _ => Ok(()),
    }
}

async fn received(shared: &Arc<Shared>, link: &Arc<Link>, asks: &Asks, frame: Received) -> Result<()> {
    match frame {
        Received::Hello(_) | Received::Held(_) => return Err(bad("there is one Hello only")),
        Received::Ask(ask) => {
            let permit = asks.begin(&ask).await?;
            let (shared, link) = (Arc::clone(shared), Arc::clone(link));
            // It is answered whole, also when the link goes meanwhile.
            tokio::spawn(async move {
                shared.answer(&link, ask).await;
                drop(permit);
            });
        }
        Received::CommandAnswer(answer) => command_answered(link, answer)?,
        Received::Demand(demand) => {
            // One that comes too soon is not looked at; the next one says it all again.
            if !link.demands.take() {
                return Ok(());
            }
            let answer = shared.shares_of(link.node(), asks.proof.get_or_init(Proof::default), demand)?;
            send(link, Frame::Shares(answer)).await?;
        }
        Received::Proof(given) => {
            // Of a link there is one, before its first demand.
            let proof = Proof::of(link.node(), given, &*shared.options.control)?;
            if asks.proof.set(proof).is_err() {
                return Err(bad("what a node was given comes once, before its first demand"));
            }
        }
        Received::Applied(applied) => {
            if applied.epoch == shared.snapshots.epoch() {
                link.applied.update(|newest| *newest = applied.revision.max(*newest));
            }
        }
        Received::Ping(ping) => {
            let now_ms = shared.options.clock.now().0;
            send(link, Frame::Pong(wire::Pong { sequence: ping.sequence, now_ms })).await?;
        }
        Received::Pong(pong) => link.heard(pong.sequence.min(link.pinged.load(Ordering::SeqCst))),
    }
    Ok(())
}

/// Hands an answer to who waits for it, when its last part is there.
fn command_answered(link: &Link, answer: wire::CommandAnswer) -> Result<()> {
    let (id, more, bytes) = (answer.id, answer.more, answer.encoded_len());
    let part = need("what came of a command", answer.result)?;
    let mut commands = link.commands.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever does not wait any more has been told that the node was not reached.
    let Some(mut waiting) = commands.remove(&id) else { return Ok(()) };
    if let Answered::Failure(failure) = part {
        let _ = waiting.answer.send(Err(refusal_from_wire(link.node(), &failure)));
        return Ok(());
    }
    waiting.gathered.add(part, bytes)?;
    if more {
        commands.insert(id, waiting);
    } else if let Some(whole) = waiting.gathered.whole() {
        let _ = waiting.answer.send(Ok(whole));
    }
    Ok(())
}

/// Sends, unless the node does not read for so long that it is as good as gone.
async fn send(link: &Link, frame: Frame) -> Result<()> {
    match tokio::time::timeout(SILENCE, link.send(frame)).await {
        Ok(true) => Ok(()),
        _ => Err(closed("the node does not read")),
    }
}

/// Sends the snapshot, the sessions, and from then on what changes.
async fn talk(shared: &Arc<Shared>, link: &Arc<Link>, hello: &wire::Hello, held: BTreeSet<SessionId>) -> Error {
    match converse(shared, link, hello, held).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn converse(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    hello: &wire::Hello,
    held: BTreeSet<SessionId>,
) -> Result<std::convert::Infallible> {
    let mut served = shared.snapshot.get();
    let has_it = (hello.snapshot_epoch, hello.snapshot_revision) == (shared.snapshots.epoch(), served.revision);
    if has_it && !hello.starting {
        link.applied.set(served.revision);
    } else {
        snapshot(shared, link, None, &served).await?;
    }
    // Answers that were lost with an earlier link: the same process would hold their sessions, or have their ends to hand over, had
    // it heard of them.
    let unheard = shared.take_unheard(link.node(), link.process);
    shared.end_unheard(link, unheard.into_iter().filter(|last| !held.contains(&last.id))).await;
    let records = if hello.starting {
        shared.options.control.live_sessions(link.node()).await?
    } else {
        shared.options.control.held_sessions(link.node()).await?
    };
    sessions(link, &records, &held).await?;
    drop(records);
    // It needs what this loop sends and receives; what it does not get done is tried again later.
    shared.remove_missed(Arc::clone(link));
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            biased;
            authorities = shared.authorities.wait_for(|newest| *newest != told) => {
                if let Some(pem) = &authorities {
                    let ca_certificate_pem = pem.to_vec().into();
                    send(link, Frame::Authorities(wire::Authorities { ca_certificate_pem })).await?;
                }
                told = authorities;
            }
            next = shared.snapshot.wait_for(|newest| !Arc::ptr_eq(newest, &served)) => {
                snapshot(shared, link, Some(&served), &next).await?;
                served = next;
            }
            _ = ticks.tick() => {
                let sequence = link.pinged.fetch_add(1, Ordering::SeqCst) + 1;
                send(link, Frame::Ping(wire::Ping { sequence })).await?;
            }
        }
    }
}

async fn snapshot(shared: &Shared, link: &Link, before: Option<&Snapshot>, after: &Snapshot) -> Result<()> {
    let parts = shared.snapshots.parts(before, after)?;
    for part in parts.iter() {
        send(link, Frame::Snapshot(part.clone())).await?;
    }
    Ok(())
}

async fn sessions(link: &Link, records: &[SessionRecord], held: &BTreeSet<SessionId>) -> Result<()> {
    let mut part = wire::Sessions::default();
    let mut bytes = 0;
    for record in records {
        if held.contains(&record.id) {
            let known = known_to_wire(record);
            bytes += known.encoded_len();
            part.known.push(known);
        } else {
            let missing = record_to_wire(record)?;
            bytes += missing.encoded_len();
            part.missing.push(missing);
        }
        if bytes >= PART_BYTES || part.known.len() + part.missing.len() >= MAX_ITEMS {
            send(link, Frame::Sessions(std::mem::take(&mut part))).await?;
            bytes = 0;
        }
    }
    part.last = true;
    send(link, Frame::Sessions(part)).await
}
