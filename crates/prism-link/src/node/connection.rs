//! One connection after the other to one of the controllers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{SinkExt, StreamExt};
use prism_core::{Error, Kind, Result};
use prism_proto::cluster::v1 as wire;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use wire::answer::Result as Answered;
use wire::ask::Ask;
use wire::controller_frame::Frame as Received;
use wire::node_frame::Frame;

use super::ask::Unanswered;
use super::demand::Demands;
use super::standing::is_revocation;
use super::turned_away::Said;
use super::{Shared, no_controller};
use crate::bounds::{
    ASK_TIMEOUT, BACKOFF, CONNECT_TIMEOUT, INTRODUCTION_TIMEOUT, LAST_WORD, MAX_ASK_BYTES, MAX_ASKS,
    MAX_AUTHORITIES_BYTES, MAX_COMMANDS, MAX_ITEMS, MAX_SESSIONS, MAX_WAITING_FRAMES, NEWEST_PROTOCOL, OLDEST_PROTOCOL,
    PING_EVERY, REVOKED_RETRY, SILENCE,
};
use crate::convert::{Builder, bad, failure_from_wire, id_from_wire, id_to_wire};
use crate::transport::{Incoming, Outgoing};

/// An open connection.
pub struct Link {
    outgoing: mpsc::Sender<wire::NodeFrame>,
    asks: Mutex<BTreeMap<u64, Waiting>>,
    next_ask: AtomicU64,
    demands: Demands,
    gone: CancellationToken,
}

/// Who waits for an answer.
struct Waiting {
    answer: oneshot::Sender<Result<Answered>>,
    is_admission: bool,
}

impl Link {
    fn new() -> (Arc<Self>, mpsc::Receiver<wire::NodeFrame>) {
        let (outgoing, frames) = mpsc::channel(MAX_WAITING_FRAMES);
        let (asks, next_ask, gone) = (Mutex::default(), AtomicU64::new(1), CancellationToken::new());
        (Arc::new(Self { outgoing, asks, next_ask, demands: Demands::default(), gone }), frames)
    }

    /// Its demands.
    pub fn demands(&self) -> &Demands {
        &self.demands
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.gone.cancel();
        self.asks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Sends a frame, after those before it; `false` when the connection is gone.
    pub async fn send(&self, frame: Frame) -> bool {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            sent = self.outgoing.send(wire::NodeFrame { frame: Some(frame) }) => sent.is_ok(),
        }
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, ask: Ask) -> Result<Answered, Unanswered> {
        let id = self.next_ask.fetch_add(1, Ordering::Relaxed);
        let is_admission = matches!(ask, Ask::Admit(_));
        let gives_a_session = is_admission || matches!(ask, Ask::Resolve(_));
        let ask = wire::Ask { id, ask: Some(ask) };
        let bytes = ask.encoded_len();
        if bytes > MAX_ASK_BYTES {
            // Sent, it would end the link, and everybody's questions with it.
            let message = format!(
                "the question to the controller has {bytes} bytes, more than the {MAX_ASK_BYTES} that it takes"
            );
            let error = Error::new(Kind::ResourceExhausted, "QUESTION_TOO_LARGE", message);
            return Err(Unanswered::Refused(error));
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
            if self.gone.is_cancelled() {
                return Err(Unanswered::Lost);
            }
            if asks.len() >= MAX_ASKS {
                let message = format!("{MAX_ASKS} questions to the controller are open, the most that there may be");
                let error = Error::new(Kind::ResourceExhausted, "CONTROLLER_BUSY", message);
                return Err(Unanswered::Refused(error.retry_after(crate::bounds::RETRY)));
            }
            asks.insert(id, Waiting { answer, is_admission });
        }
        let asked = async {
            if !self.send(Frame::Ask(ask)).await {
                return Err(Unanswered::Lost);
            }
            match answered.await {
                Ok(answer) => answer.map_err(Unanswered::Refused),
                Err(_) => Err(Unanswered::Lost),
            }
        };
        let outcome = tokio::time::timeout(ASK_TIMEOUT, asked).await.unwrap_or(Err(Unanswered::Lost));
        if matches!(outcome, Err(Unanswered::Lost)) && !gives_a_session {
            // What may give a session stays: when the answer comes after all, the session is this node's.
            self.asks.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        outcome
    }
}

/// What is between Welcome and the end of the connection.
struct Connection<'a> {
    shared: &'a Arc<Shared>,
    link: Arc<Link>,
    /// The snapshot that is coming in.
    snapshot: Option<(u64, u64, Builder)>,
    /// The sessions that are coming in.
    sessions: Option<wire::Sessions>,
    /// The sessions that were told in Held, without those that have ended here.
    told: Vec<prism_core::session::SessionId>,
    pings: BTreeMap<u64, Instant>,
    commands: Arc<Semaphore>,
}

/// Connects again and again.
pub async fn run(shared: Arc<Shared>) {
    let mut pause = BACKOFF.0;
    let mut turn = 0;
    let mut said = Said::default();
    loop {
        let controllers = &shared.options.controllers;
        let Some(controller) = controllers.get(turn % controllers.len().max(1)).cloned() else {
            tracing::error!("there is no controller in the list");
            return;
        };
        let (link, frames) = Link::new();
        let (ended, is_said) = converse(&shared, &link, frames, &controller).await;
        link.close();
        let had = shared.link.set(None);
        let was_connected = had.is_some_and(|had| Arc::ptr_eq(&had, &link));
        if was_connected {
            pause = BACKOFF.0;
        }
        if is_said && is_revocation(&ended) {
            shared.put_out(&ended).await;
        }
        let (reason, why) = (ended.reason(), ended.message());
        if said.is_news(&ended, was_connected) {
            tracing::warn!(controller, reason, why, "no link to the controller");
        } else {
            tracing::debug!(controller, reason, why, "no link to the controller");
        }
        turn += 1;
        let wait = if shared.is_revoked() { REVOKED_RETRY } else { pause };
        let wait = Some(&ended).filter(|_| is_said).and_then(|ended| shared.turned_away(ended)).unwrap_or(wait);
        shared.is_asking.set(false);
        tokio::time::sleep((shared.options.jitter)(wait)).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// One connection, from its beginning to its end; returns why it ended, and whether that may be the word of a controller: it is
/// not when there was no connection to one.
async fn converse(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    frames: mpsc::Receiver<wire::NodeFrame>,
    controller: &str,
) -> (Error, bool) {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, shared.options.connector.connect(controller)).await;
    let transport = match connecting {
        Ok(Ok(transport)) => transport,
        Ok(Err(error)) => return (error, false),
        Err(_) => return (no_controller().with_message("the controller does not answer"), false),
    };
    let connection = Connection {
        shared,
        link: Arc::clone(link),
        snapshot: None,
        sessions: None,
        told: Vec::new(),
        pings: BTreeMap::new(),
        commands: Arc::new(Semaphore::new(MAX_COMMANDS)),
    };
    let conversation = connection.run(transport.incoming, controller);
    tokio::pin!(conversation);
    let ended = tokio::select! {
        biased;
        () = pump(frames, transport.outgoing) => {
            // Who refuses a link takes nothing of it; why comes the other way.
            tokio::time::timeout(LAST_WORD, conversation).await.unwrap_or_else(|_| Err(not_taken()))
        }
        ended = &mut conversation => ended,
    };
    (ended.err().unwrap_or_else(no_controller), true)
}

fn not_taken() -> Error {
    no_controller().with_message("the controller takes nothing any more")
}

/// Moves frames from the queue to the connection.
async fn pump(mut frames: mpsc::Receiver<wire::NodeFrame>, mut outgoing: Outgoing<wire::NodeFrame>) {
    while let Some(frame) = frames.recv().await {
        if outgoing.send(frame).await.is_err() {
            return;
        }
    }
}

impl Connection<'_> {
    async fn run(mut self, mut incoming: Incoming<wire::ControllerFrame>, controller: &str) -> Result<()> {
        self.shared.is_asking.set(true);
        // A controller that refuses the link may have done so before it has heard everything, and says why.
        let introduced = self.introduce().await;
        let welcome = tokio::time::timeout(INTRODUCTION_TIMEOUT, incoming.next()).await;
        let welcome = welcome.map_err(|_| no_controller().with_message("the controller does not answer"))?;
        match welcome.ok_or_else(closed)??.frame {
            Some(Received::Welcome(welcome)) if introduced.is_ok() => self.welcomed(&welcome, controller).await?,
            Some(Received::Welcome(_)) => return introduced,
            _ => return Err(bad("the first frame of a controller must be its Welcome")),
        }
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut sequence = 0;
        let link = Arc::clone(&self.link);
        loop {
            tokio::select! {
                biased;
                () = link.gone.cancelled() => return Err(closed()),
                frame = incoming.next() => {
                    heard = Instant::now();
                    // Of a kind that this version does not know: nothing to do.
                    if let Some(frame) = frame.ok_or_else(closed)??.frame {
                        self.received(frame).await?;
                    }
                }
                _ = ticks.tick() => {
                    if heard.elapsed() >= SILENCE {
                        return Err(no_controller().with_message("the controller is silent"));
                    }
                    sequence += 1;
                    self.pings.insert(sequence, Instant::now());
                    while self.pings.len() > MAX_WAITING_FRAMES {
                        self.pings.pop_first();
                    }
                    self.send(Frame::Ping(wire::Ping { sequence })).await?;
                }
            }
        }
    }

    async fn send(&self, frame: Frame) -> Result<()> {
        // Who does not read for so long is as good as gone.
        match tokio::time::timeout(SILENCE, self.link.send(frame)).await {
            Ok(true) => Ok(()),
            _ => Err(closed()),
        }
    }

    async fn introduce(&mut self) -> Result<()> {
        let shared = self.shared;
        let (position, known) = {
            let memory = shared.memory();
            self.told = memory.state.held.keys().copied().collect();
            // Those that ended here are this node's until that is handed over.
            let room = MAX_SESSIONS.saturating_sub(self.told.len());
            let known: Vec<_> = self.told.iter().chain(memory.state.ends.keys().take(room)).copied().collect();
            (memory.state.position, known)
        };
        let backends = shared.options.backends.iter().map(|backend| wire::BackendIdentity {
            instance: backend.instance.clone(),
            r#type: backend.kind.clone(),
            identity: backend.identity.clone(),
        });
        self.send(Frame::Hello(wire::Hello {
            oldest_protocol: OLDEST_PROTOCOL,
            newest_protocol: NEWEST_PROTOCOL,
            node_id: shared.options.node.to_string(),
            version: shared.options.version.clone(),
            started_at_ms: shared.started_at.0,
            snapshot_epoch: position.0,
            snapshot_revision: position.1,
            starting: shared.attached_now().is_none(),
            backends: backends.collect(),
            data_endpoint: shared.options.data_endpoint.clone(),
            process: shared.options.process,
        }))
        .await?;
        let mut chunks = known.chunks(MAX_ITEMS).peekable();
        loop {
            let ids = chunks.next().unwrap_or_default();
            let last = chunks.peek().is_none();
            let session_ids = ids.iter().map(|id| id_to_wire(*id)).collect();
            self.send(Frame::Held(wire::Held { session_ids, last })).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn welcomed(&self, welcome: &wire::Welcome, controller: &str) -> Result<()> {
        if !(OLDEST_PROTOCOL..=NEWEST_PROTOCOL).contains(&welcome.protocol) {
            return Err(Error::precondition(
                "PROTOCOL_UNSUPPORTED",
                format!(
                    "the controller chose version {} of the link, which this node does not speak",
                    welcome.protocol
                ),
            ));
        }
        self.shared.set_offset(welcome.now_ms);
        self.shared.take_back().await;
        tracing::info!(controller, id = welcome.controller_id, cluster = welcome.cluster, "linked to the controller");
        Ok(())
    }

    async fn received(&mut self, frame: Received) -> Result<()> {
        match frame {
            Received::Welcome(_) => return Err(bad("there is one Welcome only")),
            Received::Snapshot(part) => self.snapshot_part(part)?,
            Received::Sessions(sessions) => self.sessions_part(sessions)?,
            Received::Answer(answer) => self.answered(answer)?,
            Received::Command(command) => self.commanded(command).await?,
            Received::Authorities(told) => {
                if told.ca_certificate_pem.len() > MAX_AUTHORITIES_BYTES {
                    return Err(bad(format_args!("ca_certificate_pem has more than {MAX_AUTHORITIES_BYTES} bytes")));
                }
                self.shared.authorities.send_replace(Some(told.ca_certificate_pem));
            }
            Received::Shares(shares) => self.shared.take_shares(&self.link, shares)?,
            Received::Ping(ping) => {
                let now_ms = self.shared.options.clock.now().0;
                self.send(Frame::Pong(wire::Pong { sequence: ping.sequence, now_ms })).await?;
            }
            Received::Pong(pong) => {
                if let Some(sent) = self.pings.remove(&pong.sequence) {
                    self.shared.adjust_offset(pong.now_ms, sent.elapsed());
                }
                self.pings = self.pings.split_off(&pong.sequence);
            }
        }
        Ok(())
    }

    fn snapshot_part(&mut self, part: wire::SnapshotPart) -> Result<()> {
        let (epoch, revision) = (part.epoch, part.revision);
        let (first_epoch, first_revision, mut builder) = match self.snapshot.take() {
            Some(begun) => begun,
            None => (epoch, revision, self.shared.begin_snapshot(part.base_revision.map(|base| (epoch, base)))?),
        };
        if (first_epoch, first_revision) != (epoch, revision) {
            return Err(bad("parts of two snapshots are mixed"));
        }
        if part.items.len() > MAX_ITEMS {
            return Err(bad(format_args!("a part of a snapshot has more than {MAX_ITEMS} items")));
        }
        part.items.into_iter().try_for_each(|item| builder.add(item))?;
        let known = self.shared.memory().state.position;
        if known.0 == epoch && revision < known.1 {
            return Err(bad(format_args!("revision {revision} comes after revision {}", known.1)));
        }
        if part.last {
            self.shared.publish(&self.link, builder, (epoch, revision));
        } else {
            self.snapshot = Some((epoch, revision, builder));
        }
        Ok(())
    }

    fn sessions_part(&mut self, part: wire::Sessions) -> Result<()> {
        let mut all = self.sessions.take().unwrap_or_default();
        all.known.extend(part.known);
        all.missing.extend(part.missing);
        if all.known.len() + all.missing.len() > MAX_SESSIONS {
            return Err(bad(format_args!("a node has more than {MAX_SESSIONS} sessions")));
        }
        if part.last {
            let told = std::mem::take(&mut self.told);
            self.shared.reconcile(&self.link, told, all)?;
        } else {
            self.sessions = Some(all);
        }
        Ok(())
    }

    fn answered(&self, answer: wire::Answer) -> Result<()> {
        let waiting = self.link.asks.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.id);
        let Some(waiting) = waiting else { return Ok(()) };
        let result = match answer.result {
            // Of a kind that this version does not know.
            None => return Err(bad("an answer says nothing")),
            Some(Answered::Failure(failure)) => Err(failure_from_wire(failure)?),
            Some(result) => Ok(result),
        };
        let session = match &result {
            Ok(Answered::Admitted(admitted)) if waiting.is_admission => admitted.session.clone(),
            Ok(Answered::Resolved(resolved)) => resolved.session.clone(),
            _ => None,
        };
        let mut session = session.map(|session| self.shared.received(session)).transpose()?;
        if let (Some(record), false) = (&mut session, waiting.is_admission) {
            // Whoever brought its token is a sign of life; its node, which is gone, may have told of none for long.
            record.last_activity = record.last_activity.max(self.shared.options.clock.now());
        }
        if let Some(record) = &session {
            self.shared.given(record.clone());
        }
        let unheard = waiting.answer.send(result).is_err();
        match (unheard, session) {
            // Nobody will ever know its token.
            (true, Some(record)) if waiting.is_admission => self.shared.abandon(&record),
            // Whoever has its token may bring it again.
            (true, Some(record)) => self.shared.serve(record),
            _ => {}
        }
        Ok(())
    }

    async fn commanded(&self, command: wire::Command) -> Result<()> {
        let Ok(permit) = Arc::clone(&self.commands).try_acquire_owned() else {
            let message = format!("the node carries out {MAX_COMMANDS} commands, the most that it takes");
            let error = Error::new(Kind::ResourceExhausted, "NODE_BUSY", message);
            return self.send(Frame::CommandAnswer(super::command::refused(command.id, &error))).await;
        };
        let (shared, link) = (Arc::clone(self.shared), Arc::clone(&self.link));
        // It is carried out whole, also when the link goes meanwhile.
        tokio::spawn(async move {
            for part in super::command::carry_out(&shared, command).await {
                link.send(Frame::CommandAnswer(part)).await;
            }
            drop(permit);
        });
        Ok(())
    }
}

fn closed() -> Error {
    no_controller().with_message("the link was closed")
}

/// Ids of sessions, proven.
pub fn ids(known: &[wire::KnownSession]) -> Result<Vec<prism_core::session::SessionId>> {
    known.iter().map(|session| id_from_wire(&session.id)).collect()
}
