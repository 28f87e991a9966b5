//! One bad or slow node, and what the others may expect of the controller all the same.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use prism_core::nodes::Nodes as _;
use prism_core::session::AdmitRequest;
use prism_core::{Clock, Error, NodeId, UnixMillis};
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

fn node(name: &str) -> NodeId {
    NodeId::parse("node", name).unwrap()
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

async fn fleet() -> (Arc<Fleet>, Arc<Control>) {
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
enum Manner {
    Good,
    Refusing,
    Silent,
}

/// A node that speaks frames.
struct Raw {
    frames: mpsc::Sender<prism_core::Result<wire::NodeFrame>>,
    answers: mpsc::Receiver<wire::Answer>,
    ended: tokio::task::JoinHandle<Error>,
}

impl Raw {
    /// Connects and introduces itself; from then on it answers pings, and commands in its manner.
    async fn link(fleet: &Arc<Fleet>, name: &str, manner: Manner) -> Self {
        let (frames, taken) = mpsc::channel(64);
        let (given, mut received) = mpsc::channel::<wire::ControllerFrame>(64);
        let outgoing = futures::sink::unfold(given, |given, frame| async move {
            given.send(frame).await.map_err(|_| Closed)?;
            Ok(given)
        });
        let end = ControllerEnd { incoming: tokio_stream(taken).boxed(), outgoing: Box::pin(outgoing) };
        let (serving, who) = (Arc::clone(fleet), node(name));
        let ended = tokio::spawn(async move { serving.serve(who, end).await });
        let (told, answers) = mpsc::channel(64);
        let raw = Self { frames, answers, ended };
        let hello = wire::Hello {
            node_id: name.to_owned(),
            oldest_protocol: 1,
            newest_protocol: 1,
            version: "1".to_owned(),
            ..Default::default()
        };
        raw.send(Frame::Hello(hello)).await;
        raw.send(Frame::Held(wire::Held { session_ids: Vec::new(), last: true })).await;
        let back = raw.frames.clone();
        let mut welcomed = false;
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut ready = Some(ready);
        tokio::spawn(async move {
            while let Some(frame) = received.recv().await {
                let answer = match frame.frame {
                    Some(Sent::Ping(ping)) => Frame::Pong(wire::Pong { sequence: ping.sequence, now_ms: 0 }),
                    Some(Sent::Welcome(_)) => {
                        welcomed = true;
                        continue;
                    }
                    Some(Sent::Sessions(part)) if part.last && welcomed => {
                        ready.take().map(|ready| ready.send(()));
                        continue;
                    }
                    Some(Sent::Answer(answer)) => {
                        let _ = told.send(answer).await;
                        continue;
                    }
                    Some(Sent::Command(command)) if manner != Manner::Silent => {
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
                        Frame::CommandAnswer(wire::CommandAnswer { id: command.id, result: Some(result) })
                    }
                    _ => continue,
                };
                let _ = back.send(Ok(wire::NodeFrame { frame: Some(answer) })).await;
            }
        });
        is_ready.await.expect("the link stands");
        raw
    }

    async fn send(&self, frame: Frame) {
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
        let (fleet, _) = fleet().await;
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
        assert_eq!(fleet.remove_namespace(&crate::world::namespace()).await.unwrap_err().reason(), "NODES_UNREACHABLE");
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
