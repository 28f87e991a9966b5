//! Clients on both nodes while something goes wrong: writers that keep books, and others that open as many sessions as there may
//! be. Whatever they are refused for must have been allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prism_proto::session::v1::CloseSessionRequest;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::network::{Machine, NODES};
use super::{Cluster, say};
use crate::books::{Keys, random};
use crate::data::{self, Session, named};
use crate::failure::Failure;
use crate::wait::{LIMIT, within};

/// The reason of a call that got no answer of Prism's.
pub const NO_ANSWER: &str = "no answer";
/// Sessions on each node that are written through all the time.
pub const WRITERS: usize = 2;
/// Clients on each node that open sessions and close them again.
const OPENERS: usize = 3;
/// Sessions of a namespace. The openers want more.
pub const MAX_SESSIONS: usize = 2 * WRITERS + 3;
/// Keys of a writer.
const KEYS: usize = 50;
/// Pauses of writers and openers: two cores carry all of this.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a client waits for an answer: longer than a node waits for a controller.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where and as whom the clients work.
#[derive(Clone, Debug)]
pub struct Place {
    /// A client key of the namespace.
    pub key: String,
    /// A key-value config of it.
    pub config: String,
}

/// What the clients share.
struct Shared {
    cluster: Arc<Cluster>,
    place: Place,
    stop: AtomicBool,
    /// Sessions that somebody has and has not begun to close. There are never more of them than live ones.
    live: AtomicUsize,
    most: AtomicUsize,
    max_sessions: usize,
    allowed: Mutex<BTreeMap<Machine, BTreeSet<&'static str>>>,
    /// What openers were told, by node and reason; an opened session has none.
    told: Mutex<BTreeMap<(Machine, String), usize>>,
}

impl Shared {
    fn allowed(&self, node: Machine) -> BTreeSet<&'static str> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned().unwrap_or_default()
    }

    fn note(&self, node: Machine, reason: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told.entry((node, reason.to_owned())).or_default() += 1;
    }

    /// One call: its answer, or why it was refused. Panics when that was allowed neither when it began nor when it ended.
    async fn call<T>(
        &self,
        node: Machine,
        what: &str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, String> {
        let before = self.allowed(node);
        let outcome = tokio::time::timeout(PATIENCE, call).await;
        let failure = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => Failure::from(&status),
            Err(_) => Failure::from(&Status::deadline_exceeded("the client waits no longer")),
        };
        let reason = if failure.reason.is_empty() { NO_ANSWER } else { failure.reason.as_str() };
        let allowed = before.contains(reason) || self.allowed(node).contains(reason);
        assert!(allowed, "{what} on {node} was refused: {failure:?}");
        Err(reason.to_owned())
    }

    fn opened(&self, count: usize) {
        let live = self.live.fetch_add(count, Ordering::SeqCst) + count;
        self.most.fetch_max(live, Ordering::SeqCst);
        assert!(live <= self.max_sessions, "{live} sessions are open, and max_sessions is {}", self.max_sessions);
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Writer>>,
    openers: Vec<JoinHandle<()>>,
}

/// What became of a load.
pub struct Ended {
    /// The writers, [`WRITERS`] of each node in their order.
    pub writers: Vec<Writer>,
    /// Most sessions that were open at a time.
    pub most: usize,
    /// How often openers were told what; an opened session counts as `""`.
    pub told: BTreeMap<(Machine, String), usize>,
}

/// A client that writes.
pub struct Writer {
    /// Its node.
    pub node: Machine,
    /// Its session.
    pub session: Session,
    /// What it was told.
    pub keys: Keys,
    /// The longest time between two acknowledged writes.
    pub gap: Duration,
}

impl Load {
    /// Starts the clients. `others` sessions of the namespace are the test's own.
    pub async fn start(cluster: &Arc<Cluster>, place: Place, others: usize, max_sessions: usize) -> Self {
        let shared = Arc::new(Shared {
            cluster: Arc::clone(cluster),
            place,
            stop: AtomicBool::new(false),
            live: AtomicUsize::new(others),
            most: AtomicUsize::new(others),
            max_sessions,
            allowed: Mutex::new(NODES.into_iter().map(|node| (node, ["QUOTA_EXCEEDED"].into())).collect()),
            told: Mutex::default(),
        });
        let mut writers = Vec::new();
        for node in NODES {
            for number in 0..WRITERS {
                let session = cluster.open(node, &shared.place.key, &shared.place.config).await.expect("a session");
                shared.opened(1);
                writers.push(tokio::spawn(write(Arc::clone(&shared), node, number, session)));
            }
        }
        let opener = |node| (0..OPENERS).map(move |_| node);
        let openers = NODES.into_iter().flat_map(opener).map(|node| tokio::spawn(open(Arc::clone(&shared), node)));
        Self { openers: openers.collect(), writers, shared }
    }

    /// Calls on a node may be refused for this from now on.
    pub fn allow(&self, node: Machine, reason: &'static str) {
        let mut allowed = self.shared.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.entry(node).or_default().insert(reason);
    }

    /// Calls on a node that begin from now on may not be refused for this any more.
    pub fn forbid(&self, node: Machine, reason: &'static str) {
        let mut allowed = self.shared.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.entry(node).or_default().remove(reason);
    }

    /// One of the test's own sessions ends: it may still serve, but is nobody's any more.
    pub fn one_less(&self) {
        self.shared.live.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether a client has failed.
    pub fn is_broken(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished) || self.openers.iter().any(JoinHandle::is_finished)
    }

    /// How often openers on a node were told this so far; `""` for an opened session.
    pub fn told(&self, node: Machine, reason: &str) -> usize {
        let told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(&(node, reason.to_owned())).copied().unwrap_or(0)
    }

    /// Lets the clients go on for a while; panics with what one of them panicked with.
    pub async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.is_broken() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.is_broken() {
            self.shared.stop.store(true, Ordering::SeqCst);
            for task in self.writers.drain(..) {
                within("the end of a writer", task).await.expect("a writer");
            }
            for task in self.openers.drain(..) {
                within("the end of an opener", task).await.expect("an opener");
            }
        }
    }

    /// Ends them. The openers close what they have open.
    pub async fn end(self) -> Ended {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.openers {
            within("the end of an opener", task).await.expect("an opener");
        }
        let mut writers = Vec::new();
        for task in self.writers {
            writers.push(within("the end of a writer", task).await.expect("a writer"));
        }
        let told = std::mem::take(&mut *self.shared.told.lock().unwrap_or_else(PoisonError::into_inner));
        Ended { writers, most: self.shared.most.load(Ordering::SeqCst), told }
    }
}

impl Ended {
    /// Sessions that were asked for without an answer of a controller: nobody knows what became of them.
    pub fn unanswered(&self) -> usize {
        let lost = self.told.iter().filter(|((_, reason), _)| [NO_ANSWER, "NO_CONTROLLER"].contains(&reason.as_str()));
        lost.map(|(_, count)| count).sum()
    }

    /// Reads everything that was acknowledged.
    pub async fn verify(&mut self) {
        for writer in &mut self.writers {
            writer.keys.verify(&writer.session).await;
        }
        let mut said: BTreeMap<String, usize> = BTreeMap::new();
        for ((_, reason), count) in &self.told {
            *said.entry(if reason.is_empty() { "opened".to_owned() } else { reason.clone() }).or_default() += count;
        }
        let writes: usize = self.writers.iter().map(|writer| writer.keys.acknowledged()).sum();
        let gaps: Vec<_> = self.writers.iter().map(|writer| (writer.node.name(), writer.gap)).collect();
        say(&format!("  {writes} acknowledged writes, all there; longest pause of each writer {gaps:.1?}"));
        say(&format!("  at most {} sessions open at a time; openers: {said:?}", self.most));
    }
}

/// Puts values until it is told to stop.
async fn write(shared: Arc<Shared>, node: Machine, number: usize, session: Session) -> Writer {
    let mut writer = Writer { node, session, keys: Keys::default(), gap: Duration::ZERO };
    let (mut last, mut family) = (Instant::now(), 0);
    for turn in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{node}-{number}-{family}-{}", turn % KEYS);
        let value = format!("{turn} {:x} ", random()).repeat(1 + turn % 20);
        let put = writer.keys.put(&writer.session, &key, value.as_bytes());
        match shared.call(node, "Put", put).await {
            Ok(()) => {
                writer.gap = writer.gap.max(last.elapsed());
                last = Instant::now();
            }
            // Nobody knows what became of it: it is not touched again until the books are compared.
            Err(reason) if reason == NO_ANSWER => family += 1,
            Err(_) => writer.keys.refused(&key),
        }
        tokio::time::sleep(PAUSE).await;
    }
    writer.gap = writer.gap.max(last.elapsed());
    writer
}

/// Opens sessions, uses them and closes them until it is told to stop.
async fn open(shared: Arc<Shared>, node: Machine) {
    let channel = shared.cluster.channel(node);
    while !shared.stop.load(Ordering::SeqCst) {
        let request = named(&shared.place.key, &shared.place.config);
        match shared.call(node, "CreateSession", data::create(&channel, request)).await {
            Ok(session) => {
                shared.opened(1);
                shared.note(node, "");
                tokio::time::sleep(Duration::from_millis(random() % 150)).await;
                let _ = shared.call(node, "Get", session.get("nothing")).await;
                shared.live.fetch_sub(1, Ordering::SeqCst);
                close(&session).await;
            }
            Err(reason) => shared.note(node, &reason),
        }
        tokio::time::sleep(PAUSE + Duration::from_millis(random() % 20)).await;
    }
}

/// Closes a session, however long its node is away.
async fn close(session: &Session) {
    let start = Instant::now();
    loop {
        let request = CloseSessionRequest { force: true, ..CloseSessionRequest::default() };
        match tokio::time::timeout(PATIENCE, session.life().close_session(request)).await {
            Ok(Ok(_)) => return,
            // It was closed by the call before, whose answer was lost.
            Ok(Err(status)) if status.code() == Code::Unauthenticated => return,
            other => assert!(start.elapsed() < LIMIT, "a session cannot be closed: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
