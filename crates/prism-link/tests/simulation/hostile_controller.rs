//! A controller that breaks the protocol, and nodes and controllers of other versions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use prism_core::control::ControlPlane as _;
use prism_core::session::SessionId;
use prism_core::{Clock, Error, Result, UnixMillis};
use prism_link::bounds::{MAX_ITEMS, TWIN_PAUSE};
use prism_link::{ALREADY_CONNECTED, Closed, Connector, Encode, NodeEnd, NodeLink, NodeLinkOptions, Storage, Stored};
use prism_proto::cluster::v1 as wire;
use tokio::sync::mpsc;
use wire::controller_frame::Frame as Sent;
use wire::node_frame::Frame;
use wire::snapshot_item::Item;

use crate::hostile::{Manner, Raw, block_on, fleet, hello, node};

/// A disk that keeps nothing.
struct Nothing;

#[async_trait]
impl Storage for Nothing {
    async fn load(&self) -> io::Result<Stored> {
        Ok(Stored::default())
    }

    async fn replace(&self, state: Encode) -> io::Result<()> {
        state().map(drop)
    }

    async fn append(&self, _: Vec<u8>) -> io::Result<()> {
        Ok(())
    }
}

/// A connection, from the controller's side.
pub struct Connection {
    frames: mpsc::Sender<Result<wire::ControllerFrame>>,
    received: mpsc::UnboundedReceiver<wire::NodeFrame>,
}

/// Hands every connection to the test.
struct Handed(mpsc::UnboundedSender<Connection>);

#[async_trait]
impl Connector for Handed {
    async fn connect(&self, _: &str) -> Result<NodeEnd> {
        let (frames, mut taken) = mpsc::channel(64);
        let (given, received) = mpsc::unbounded_channel();
        let refused = |_| Error::unavailable("REFUSED", "nobody is there");
        self.0.send(Connection { frames, received }).map_err(refused)?;
        let incoming = futures::stream::poll_fn(move |context| taken.poll_recv(context)).boxed();
        let outgoing = futures::sink::unfold(given, |given, frame| async move {
            given.send(frame).map_err(|_| Closed)?;
            Ok(given)
        });
        Ok(NodeEnd { incoming, outgoing: Box::pin(outgoing) })
    }
}

impl Connection {
    pub async fn send(&self, frame: Sent) {
        // The node may have closed the connection because of the frame before.
        let _ = self.frames.send(Ok(wire::ControllerFrame { frame: Some(frame) })).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        self.received.recv().await.map(|frame| frame.frame.expect("a frame"))
    }

    /// A good beginning: the snapshot has epoch 1 and revision 5.
    async fn begin(&mut self) -> wire::Hello {
        self.introduced(Vec::new()).await.0
    }

    /// The same with these sessions for the node; returns those that it knows.
    pub async fn begin_with(&mut self, missing: Vec<wire::SessionEntry>) -> Vec<SessionId> {
        let held = self.introduced(missing).await.1;
        held.session_ids.iter().map(|id| SessionId::from_bytes(id).unwrap()).collect()
    }

    async fn introduced(&mut self, missing: Vec<wire::SessionEntry>) -> (wire::Hello, wire::Held) {
        let introduced = self.welcome().await;
        self.send(Sent::Snapshot(part(5, None, vec![namespace("first")]))).await;
        self.send(Sent::Sessions(wire::Sessions { missing, last: true, ..Default::default() })).await;
        introduced
    }

    /// A Welcome, and nothing after it.
    async fn welcome(&mut self) -> (wire::Hello, wire::Held) {
        let Some(Frame::Hello(hello)) = self.next().await else { panic!("Hello is first") };
        let Some(Frame::Held(held)) = self.next().await else { panic!("Held follows") };
        assert!(held.last);
        self.send(Sent::Welcome(wire::Welcome { protocol: 1, ..Default::default() })).await;
        (hello, held)
    }

    /// Whether the node closes the connection; it does so at once, or never.
    async fn is_closed(&mut self) -> bool {
        let over = async { while self.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(3), over).await.is_ok()
    }
}

fn namespace(name: &str) -> wire::SnapshotItem {
    let entry = wire::NamespaceEntry { name: name.to_owned(), status: "ACTIVE".to_owned(), ..Default::default() };
    wire::SnapshotItem { item: Some(Item::Namespace(entry)) }
}

fn part(revision: u64, base_revision: Option<u64>, items: Vec<wire::SnapshotItem>) -> wire::SnapshotPart {
    wire::SnapshotPart { epoch: 1, revision, base_revision, last: true, items }
}

pub fn start() -> (impl Future<Output = NodeLink>, mpsc::UnboundedReceiver<Connection>) {
    let (handed, connections) = mpsc::unbounded_channel();
    let options = NodeLinkOptions {
        node: node("one"),
        process: 1,
        controllers: vec!["controller".to_owned()],
        connector: Arc::new(Handed(handed)),
        storage: Arc::new(Nothing),
        version: "1".to_owned(),
        data_endpoint: String::new(),
        stored: Vec::new(),
        backends: Vec::new(),
        clock: Clock::manual(UnixMillis(1_000_000)),
        jitter: Box::new(|pause| pause),
    };
    (async { NodeLink::start(options).await.unwrap() }, connections)
}

/// What no controller may say.
fn lies() -> Vec<(&'static str, Vec<Sent>)> {
    let snapshot = |part| vec![Sent::Snapshot(part)];
    let other_epoch = wire::SnapshotPart { epoch: 2, ..part(6, Some(5), Vec::new()) };
    let open = wire::SnapshotPart { last: false, ..part(6, Some(5), Vec::new()) };
    let config = wire::ConfigEntry { config_json: "{}".into(), ..Default::default() };
    let config = wire::SnapshotItem { item: Some(Item::Config(config)) };
    let known = wire::KnownSession { id: "short".into(), ..Default::default() };
    let missing = wire::SessionEntry { id: vec![7; 16].into(), ..Default::default() };
    let sessions = |known, missing| vec![Sent::Sessions(wire::Sessions { known, missing, last: true })];
    vec![
        ("a second Welcome", vec![Sent::Welcome(wire::Welcome { protocol: 1, ..Default::default() })]),
        ("changes of what the node has not", snapshot(part(6, Some(4), Vec::new()))),
        ("changes of another epoch", snapshot(other_epoch)),
        ("a revision before the last", snapshot(part(4, None, vec![namespace("old")]))),
        ("changes that lead back", snapshot(part(4, Some(5), vec![namespace("old")]))),
        ("two snapshots at once", vec![Sent::Snapshot(open), Sent::Snapshot(part(7, Some(5), Vec::new()))]),
        ("too many items", snapshot(part(6, Some(5), vec![namespace("a"); MAX_ITEMS + 1]))),
        ("a config that is none", snapshot(part(6, Some(5), vec![config]))),
        ("a namespace without a name", snapshot(part(6, Some(5), vec![namespace("")]))),
        ("a session without an id", sessions(vec![known], Vec::new())),
        ("a session that is none", sessions(Vec::new(), vec![missing])),
    ]
}

#[test]
fn a_controller_that_breaks_the_protocol_is_left_and_changes_nothing() {
    block_on(async {
        let (starting, mut connections) = start();
        let link = starting.await;
        for (what, frames) in lies() {
            let mut connection = connections.recv().await.unwrap();
            connection.begin().await;
            link.ready(Duration::from_secs(1)).await;
            for frame in frames {
                connection.send(frame).await;
            }
            assert!(connection.is_closed().await, "{what}");
            assert!(!link.is_connected(), "{what}");
            let snapshot = link.snapshot().borrow().clone();
            let names: Vec<_> = snapshot.namespaces.keys().map(ToString::to_string).collect();
            assert_eq!(names, ["first"], "{what}");
        }
        // The next one is heard, and told what the node has.
        let mut connection = connections.recv().await.unwrap();
        let hello = connection.begin().await;
        assert_eq!((hello.snapshot_epoch, hello.snapshot_revision), (1, 5));
        connection.send(Sent::Snapshot(part(6, Some(5), vec![namespace("second")]))).await;
        assert!(!connection.is_closed().await);
        assert_eq!(link.snapshot().borrow().namespaces.len(), 2);
    });
}

#[test]
fn a_welcome_is_no_word_that_no_other_process_has_the_place() {
    block_on(async {
        const PATIENCE: Duration = Duration::from_secs(1);
        let (starting, mut connections) = start();
        let link = starting.await;
        let mut connection = connections.recv().await.unwrap();
        connection.begin().await;
        link.ready(PATIENCE).await;
        drop(connection);
        // From now on it has something to serve by, as after a start. Of two that begin together both may be welcome.
        let mut connection = connections.recv().await.unwrap();
        connection.welcome().await;
        let ready = link.ready(PATIENCE);
        tokio::pin!(ready);
        assert!(tokio::time::timeout(PATIENCE * 3, &mut ready).await.is_err(), "it serves before it has the place");
        let refusal = Error::precondition(ALREADY_CONNECTED, "another process of the node is linked");
        connection.frames.send(Err(refusal)).await.unwrap();
        assert!(tokio::time::timeout(TWIN_PAUSE / 2, &mut ready).await.is_err(), "two serve the same sessions");
        // The other is gone.
        let mut connection = connections.recv().await.unwrap();
        connection.begin().await;
        ready.await;
        assert!(link.is_connected());
    });
}

#[test]
fn what_a_node_does_not_know_it_leaves_alone() {
    block_on(async {
        let (starting, mut connections) = start();
        let link = starting.await;
        let mut connection = connections.recv().await.unwrap();
        connection.begin().await;
        connection.frames.send(Ok(wire::ControllerFrame { frame: None })).await.unwrap();
        connection.send(Sent::Answer(wire::Answer { id: 999, result: None })).await;
        connection.send(Sent::Shares(wire::Shares { sequence: 999, ..Default::default() })).await;
        connection.send(Sent::Pong(wire::Pong { sequence: 999, now_ms: i64::MIN })).await;
        assert!(!connection.is_closed().await);
        assert!(link.is_connected());
        // What cannot be decoded is the end of a connection.
        let broken = Error::unavailable("LINK_FAILED", "failed to decode a frame");
        connection.frames.send(Err(broken)).await.unwrap();
        assert!(connection.is_closed().await);
        assert!(!link.is_connected());
    });
}

#[test]
fn a_controller_of_another_version_is_left() {
    block_on(async {
        let (starting, mut connections) = start();
        let link = starting.await;
        for protocol in [0, 2, u32::MAX] {
            let mut connection = connections.recv().await.unwrap();
            connection.received.recv().await.unwrap();
            connection.send(Sent::Welcome(wire::Welcome { protocol, ..Default::default() })).await;
            assert!(connection.is_closed().await, "{protocol}");
        }
        let mut connection = connections.recv().await.unwrap();
        connection.send(Sent::Ping(wire::Ping { sequence: 1 })).await;
        assert!(connection.is_closed().await, "Welcome is the first frame");
        assert!(!link.is_connected());
    });
}

#[test]
fn nodes_of_other_versions_are_told_so_or_meet_in_the_middle() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let of = |oldest_protocol, newest_protocol| wire::Hello { oldest_protocol, newest_protocol, ..hello("one") };
        for range in [(2, 3), (0, 0), (u32::MAX, u32::MAX)] {
            let refused = Raw::introduce(&fleet, Manner::Good, of(range.0, range.1)).await.err().expect("a refusal");
            assert_eq!(refused.reason(), "PROTOCOL_UNSUPPORTED", "{range:?}");
            assert!(refused.message().contains("bring the older one of the two up to date"), "{refused}");
        }
        let status = fleet.statuses().remove(0);
        assert_eq!(status.refusal.expect("it is seen").reason, "PROTOCOL_UNSUPPORTED");
        for range in [(0, 1), (1, 1), (1, u32::MAX)] {
            let raw = Raw::introduce(&fleet, Manner::Good, of(range.0, range.1)).await.unwrap();
            // Frames of a kind that is not known yet are nobody's error.
            raw.unknown().await;
            raw.leave().await;
        }
    });
}
