//! One bad or slow node, and what the others may expect of the controller all the same.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use prism_core::nodes::Nodes as _;
use prism_core::session::{AdmitRequest, SessionId};
use prism_core::{Clock, Error, Kind, NodeId, UnixMillis};
use prism_link::{Closed, ControllerEnd, Fleet, FleetOptions};
use prism_proto::cluster::v1 as wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::command_answer::Result as Answered;
use wire::controller_frame::Frame as Sent;
use wire::node_frame::Frame;

use crate::client::request;
use crate::control::Control;
use crate::world::Dice;

pub fn node(name: &str) -> NodeId {
    NodeId::parse("node", name).unwrap()
}

pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

pub async fn fleet() -> (Arc<Fleet>, Arc<Control>) {
    let clock = Clock::manual(UnixMillis(1_000_000));
    let control = Control::new(clock.clone(), Dice::new(1));
    let options = FleetOptions {
        control: control.clone(),
        id: node("controller"),
        cluster: "prism".to_owned(),
        epoch: 1,
        clock,
        certifier: None,
    };
    (Arc::new(Fleet::start(options).await.unwrap()), control)
}

/// How a node answers what it is told to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Good,
    Refusing,
    Silent,
    /// Not even a sign of life.
    Dead,
}

/// Why a link has ended.
pub struct Ended(Error);

impl Ended {
    pub fn is(&self, reason: &str) {
        assert_eq!(self.0.reason(), reason, "{}", self.0.message());
    }
}

/// What a good node says first.
pub fn hello(name: &str) -> wire::Hello {
    wire::Hello {
        node_id: name.to_owned(),
        oldest_protocol: 1,
        newest_protocol: 1,
        version: "1".to_owned(),
        ..Default::default()
    }
}

/// A node that speaks frames.
pub struct Raw {
    frames: mpsc::Sender<prism_core::Result<wire::NodeFrame>>,
    answers: mpsc::Receiver<wire::Answer>,
    pub shares: mpsc::Receiver<wire::Shares>,
    pub ended: tokio::task::JoinHandle<Error>,
}

impl Raw {
    /// Connects and introduces itself; from then on it answers pings, and commands in its manner.
    pub async fn link(fleet: &Arc<Fleet>, name: &str, manner: Manner) -> Self {
        let config = config();
        let served = wire::BackendIdentity {
            instance: config.instance.to_string(),
            r#type: config.backend.kind.name().to_owned(),
            identity: String::new(),
        };
        Self::connect(fleet, name, manner, vec![served]).await.expect("the link stands")
    }

    /// The same with backends; why the link has ended, if it is refused.
    pub async fn connect(
        fleet: &Arc<Fleet>,
        name: &str,
        manner: Manner,
        backends: Vec<wire::BackendIdentity>,
    ) -> Result<Self, Error> {
        let process = 1;
        Self::introduce(fleet, manner, wire::Hello { backends, process, ..hello(name) }).await
    }

    /// The same with this Hello.
    pub async fn introduce(fleet: &Arc<Fleet>, manner: Manner, hello: wire::Hello) -> Result<Self, Error> {
        Self::holding(fleet, manner, hello, &[]).await
    }

    /// The same with these sessions.
    pub async fn holding(
        fleet: &Arc<Fleet>,
        manner: Manner,
        hello: wire::Hello,
        held: &[SessionId],
    ) -> Result<Self, Error> {
        let (frames, taken) = mpsc::channel(64);
        let (given, mut received) = mpsc::channel::<wire::ControllerFrame>(64);
        let outgoing = futures::sink::unfold(given, |given, frame| async move {
            given.send(frame).await.map_err(|_| Closed)?;
            Ok(given)
        });
        let end = ControllerEnd { incoming: tokio_stream(taken).boxed(), outgoing: Box::pin(outgoing) };
        let (serving, who) = (Arc::clone(fleet), node(&hello.node_id));
        let ended = tokio::spawn(async move { serving.serve(who, end).await });
        let (told, answers) = mpsc::channel(64);
        let (given_out, shares) = mpsc::channel(64);
        let raw = Self { frames, answers, shares, ended };
        raw.send(Frame::Hello(hello)).await;
        let session_ids = held.iter().map(|id| id.as_bytes().to_vec().into()).collect();
        raw.send(Frame::Held(wire::Held { session_ids, last: true })).await;
        let back = raw.frames.clone();
        let mut welcomed = false;
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut ready = Some(ready);
        tokio::spawn(async move {
            while let Some(frame) = received.recv().await {
                let answer = match frame.frame {
                    Some(Sent::Ping(ping)) if manner != Manner::Dead => {
                        Frame::Pong(wire::Pong { sequence: ping.sequence, now_ms: 0 })
                    }
                    Some(Sent::Welcome(_)) => {
                        welcomed = true;
                        continue;
                    }
                    Some(Sent::Sessions(part)) if part.last && welcomed => {
                        ready.take().map(|ready| ready.send(()));
                        continue;
                    }
                    Some(Sent::Shares(shares)) => {
                        let _ = given_out.send(shares).await;
                        continue;
                    }
                    Some(Sent::Answer(answer)) => {
                        let _ = told.send(answer).await;
                        continue;
                    }
                    Some(Sent::Command(command)) if !matches!(manner, Manner::Silent | Manner::Dead) => {
                        let result = if manner == Manner::Good {
                            Answered::Done(wire::Done {})
                        } else {
                            Answered::Failure(wire::Failure {
                                code: "UNAUTHENTICATED".to_owned(),
                                reason: "REHEARSED".to_owned(),
                                message: "\u{1b}[31m".to_owned() + &"x".repeat(10_000),
                                metadata: [("audit_id".to_owned(), "7".to_owned())].into(),
                                ..Default::default()
                            })
                        };
                        Frame::CommandAnswer(wire::CommandAnswer { id: command.id, result: Some(result), more: false })
                    }
                    _ => continue,
                };
                let _ = back.send(Ok(wire::NodeFrame { frame: Some(answer) })).await;
            }
        });
        match is_ready.await {
            Ok(()) => Ok(raw),
            Err(_) => Err(raw.ended.await.unwrap()),
        }
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, ask: wire::ask::Ask) -> wire::answer::Result {
        self.send(Frame::Ask(wire::Ask { id: 1, ask: Some(ask) })).await;
        self.answers.recv().await.expect("the link stands").result.expect("an answer")
    }

    /// Sends a frame that ends the link.
    pub async fn end(self, frame: Frame) -> Ended {
        self.send(frame).await;
        Ended(self.ended.await.unwrap())
    }

    /// Sends a frame of a kind that is of a later version.
    pub async fn unknown(&self) {
        self.frames.send(Ok(wire::NodeFrame { frame: None })).await.expect("the link is open");
    }

    /// Breaks the connection.
    pub async fn leave(self) {
        self.frames.send(Err(Error::unavailable("GONE", "the connection broke"))).await.expect("the link is open");
        self.ended.await.unwrap();
    }

    pub async fn send(&self, frame: Frame) {
        self.frames.send(Ok(wire::NodeFrame { frame: Some(frame) })).await.expect("the link is open");
    }
}

fn tokio_stream<T: Send + 'static>(taken: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> + Send {
    futures::stream::unfold(taken, |mut taken| async move { taken.recv().await.map(|item| (item, taken)) })
}

fn config() -> Arc<prism_core::config::Config> {
    let AdmitRequest { config, .. } = request(&node("any"));
    config
}

#[test]
fn a_node_that_fails_or_is_silent_is_named_and_keeps_nobody_waiting() {
    block_on(async {
        let (fleet, control) = fleet().await;
        let _good = Raw::link(&fleet, "good", Manner::Good).await;
        let _bad = Raw::link(&fleet, "bad", Manner::Refusing).await;
        let _silent = Raw::link(&fleet, "silent", Manner::Silent).await;
        let before = Instant::now();
        let reached = fleet.report().await.unwrap();
        assert_eq!(reached.unreachable, [node("bad"), node("silent")]);
        assert!(before.elapsed() <= Duration::from_millis(500), "by the simulated clock: {:?}", before.elapsed());
        assert_eq!(fleet.check_config(&config()).await.unwrap().unreachable, [node("bad"), node("silent")]);
        assert_eq!(fleet.prepare_config(&config()).await.unwrap().unreachable, [node("bad"), node("silent")]);
        // Data that a node has not removed is there still.
        control.delete(&[node("away"), node("bad"), node("good"), node("silent")]);
        let reached = fleet.remove_namespace(&crate::world::namespace()).await.unwrap();
        assert_eq!(reached.unreachable, [node("away"), node("bad"), node("silent")]);
        assert_eq!(control.has_to_remove(), reached.unreachable, "until each of them has");
        // The next time, too, none waits for another.
        control.delete(&[node("good")]);
        fleet.finish_removals();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            control.has_to_remove(),
            reached.unreachable,
            "the good one is done while the silent one is waited for"
        );
    });
}

#[test]
fn who_does_not_catch_up_is_waited_for_once() {
    block_on(async {
        let (fleet, control) = fleet().await;
        let silent = Raw::link(&fleet, "silent", Manner::Silent).await;
        let revision = control.maintain(Some("upgrade".to_owned()));
        let before = Instant::now();
        fleet.caught_up(revision).await;
        assert!(before.elapsed() >= Duration::from_secs(1), "it is given its time once");
        let before = Instant::now();
        fleet.caught_up(control.maintain(None)).await;
        assert_eq!(before.elapsed(), Duration::ZERO, "by the simulated clock");
        // Once it has caught up, it is waited for again.
        silent.send(Frame::Applied(wire::Applied { epoch: 1, revision })).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = Instant::now();
        fleet.caught_up(revision + 2).await;
        assert!(before.elapsed() >= Duration::from_secs(1));
    });
}

#[test]
fn what_a_node_refuses_with_is_told_in_the_controllers_words() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let bad = Raw::link(&fleet, "bad", Manner::Refusing).await;
        let error = fleet.check_config(&config()).await.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (Kind::Unavailable, "NODE_REFUSED"));
        assert!(error.message().len() < 400 && !error.message().contains('\u{1b}'), "{}", error.message());
        assert_eq!(error.metadata().keys().collect::<Vec<_>>(), ["node"]);
        bad.end(Frame::Held(wire::Held::default())).await.is("LINK_FRAME_INVALID");
    });
}

#[test]
fn data_of_another_node_is_not_its_own() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let backend = |identity: &str| wire::BackendIdentity {
            instance: "main".to_owned(),
            r#type: "sqlite".to_owned(),
            identity: identity.to_owned(),
        };
        for (identity, allowed) in [("embedded:one:main", true), ("postgres:x", true), ("embedded:two:main", false)] {
            let raw = Raw::connect(&fleet, "one", Manner::Good, vec![backend(identity)]).await;
            match raw {
                Ok(_) => assert!(allowed, "{identity}"),
                Err(error) => assert!(!allowed && error.reason() == "BACKEND_MISMATCH", "{identity}: {error}"),
            }
        }
    });
}

#[test]
fn more_than_a_question_may_have_ends_the_link() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let raw = Raw::link(&fleet, "bad", Manner::Good).await;
        let reports = vec![wire::SessionReportEntry::default(); 1001];
        let ask = wire::Ask { id: 1, ask: Some(wire::ask::Ask::Report(wire::ReportAsk { reports })) };
        raw.end(Frame::Ask(ask)).await.is("LINK_FRAME_INVALID");
    });
}

#[test]
fn many_questions_at_once_are_all_answered() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let mut raw = Raw::link(&fleet, "busy", Manner::Good).await;
        let mut answered = 0;
        for id in 0..2000 {
            let ask = wire::ask::Ask::Report(wire::ReportAsk::default());
            raw.send(Frame::Ask(wire::Ask { id, ask: Some(ask) })).await;
            while raw.answers.try_recv().is_ok() {
                answered += 1;
            }
        }
        while answered < 2000 {
            raw.answers.recv().await.expect("the link stands");
            answered += 1;
        }
    });
}
