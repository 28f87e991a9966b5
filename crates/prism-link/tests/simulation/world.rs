//! The simulation as a whole, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prism_core::control::ControlPlane;
use prism_core::session::SessionId;
use prism_core::{Clock, NamespaceName, NodeId, UnixMillis};
use prism_link::bounds::ASK_TIMEOUT;
use prism_link::{Fleet, FleetOptions};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::host::Host;
use crate::network::Network;
use crate::plane::IDLE_TIMEOUT;
use crate::{client, operator};

/// Most live sessions.
pub const MAX_SESSIONS: usize = 8;
/// Operations per second of all nodes.
pub const MAX_RPS: usize = 60;
/// The nodes that serve the same data: sessions of one go on on the other.
pub const SHARING: [&str; 2] = ["one", "two"];
/// Clients.
const CLIENTS: usize = 6;
/// How long things break.
const TROUBLE: Duration = Duration::from_mins(1);
/// How long it may take until all is equal after the last trouble.
const HEALING: Duration = Duration::from_secs(5);
/// Over which time the rate is looked at.
const WINDOW: Duration = Duration::from_secs(10);
/// Steps of the clocks.
const TICK: Duration = Duration::from_millis(50);
/// How far a clock may be from the others, in milliseconds.
const SKEW: u64 = 5 * 60 * 1000;

pub fn namespace() -> NamespaceName {
    NamespaceName::parse("n", "orders").unwrap()
}

/// A source of choices that are the same for the same seed.
#[derive(Clone)]
pub struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Far apart for seeds that are close together, and never 0.
        Self(Arc::new(Mutex::new(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)))
    }

    pub fn below(&self, sides: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % sides.max(1)
    }
}

/// What happened.
#[derive(Clone)]
pub struct Log(Arc<Mutex<(Option<Instant>, Vec<String>)>>);

impl Log {
    pub fn line(&self, what: impl std::fmt::Display) {
        let mut log = self.0.lock().unwrap();
        let began = *log.0.get_or_insert_with(Instant::now);
        log.1.push(format!("{:>8.3} {what}", began.elapsed().as_secs_f64()));
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().1.clone()
    }
}

#[derive(Default)]
struct Seen {
    /// Sessions that their clients know, and since when.
    opened: BTreeMap<SessionId, Instant>,
    /// Sessions of which the end was acknowledged to somebody.
    dead: BTreeSet<SessionId>,
    /// Those of them that their clients closed.
    closed: BTreeSet<SessionId>,
    /// Where the client of a session that has moved is now.
    home: BTreeMap<SessionId, NodeId>,
    /// Where and when each session was used last.
    used: BTreeMap<SessionId, (NodeId, Instant)>,
    /// Operations that were served in the last window.
    served: VecDeque<Instant>,
    /// The newest figures of each session that a link took.
    reported: BTreeMap<SessionId, i64>,
}

/// The simulation.
pub struct World {
    pub dice: Dice,
    pub control: Arc<Control>,
    pub network: Arc<Network>,
    pub hosts: Vec<Arc<Host>>,
    clocks: Vec<Clock>,
    controller_clock: Clock,
    fleet: Mutex<Option<Arc<Fleet>>>,
    lives: Mutex<u64>,
    seen: Mutex<Seen>,
    log: Log,
    over: CancellationToken,
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let dice = Dice::new(seed);
        let log = Log(Arc::default());
        let clock = || Clock::manual(UnixMillis((1_760_000_000_000 + dice.below(2 * SKEW)) as i64));
        let controller_clock = clock();
        let network = Network::new(dice.clone());
        let mut clocks = vec![controller_clock.clone()];
        let mut hosts = Vec::new();
        for name in ["one", "two", "three"] {
            let clock = clock();
            clocks.push(clock.clone());
            let node = NodeId::parse("node", name).unwrap();
            hosts.push(Host::new(node, clock, &network, &dice, &log));
        }
        Arc::new(Self {
            control: Control::new(controller_clock.clone(), dice.clone()),
            network,
            hosts,
            clocks,
            controller_clock,
            fleet: Mutex::default(),
            lives: Mutex::default(),
            seen: Mutex::default(),
            log,
            over: CancellationToken::new(),
            dice,
        })
    }

    pub fn log(&self) -> Log {
        self.log.clone()
    }

    /// Waits; `false` when the trouble is over meanwhile.
    pub async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.over.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }

    pub fn fleet(&self) -> Option<Arc<Fleet>> {
        self.fleet.lock().unwrap().clone()
    }

    pub fn any_host(&self) -> Arc<Host> {
        Arc::clone(&self.hosts[self.dice.below(self.hosts.len() as u64) as usize])
    }

    pub async fn start_controller(&self) {
        self.control.restart();
        let epoch = {
            let mut lives = self.lives.lock().unwrap();
            *lives += 1;
            *lives
        };
        let options = FleetOptions {
            control: self.control.clone(),
            id: NodeId::parse("id", "controller").unwrap(),
            cluster: "prism".to_owned(),
            epoch,
            clock: self.controller_clock.clone(),
            certifier: None,
        };
        let fleet = Arc::new(Fleet::start(options).await.unwrap());
        let serving = Arc::clone(&fleet);
        self.network.listen(Some(Arc::new(move |node, end, last_word| {
            let fleet = Arc::clone(&serving);
            tokio::spawn(async move { last_word(fleet.serve(node, end).await) });
        })));
        *self.fleet.lock().unwrap() = Some(fleet);
        self.log.line("the controller is there");
    }

    pub fn stop_controller(&self) {
        self.network.listen(None);
        if let Some(fleet) = self.fleet.lock().unwrap().take() {
            fleet.end();
        }
    }

    pub fn opened(&self, id: SessionId) {
        self.log.line(format_args!("{id} is opened"));
        self.seen.lock().unwrap().opened.insert(id, Instant::now());
    }

    /// The end of a session was acknowledged to its client.
    pub fn ended(&self, id: SessionId) {
        self.log.line(format_args!("the end of {id} is acknowledged"));
        let mut seen = self.seen.lock().unwrap();
        seen.dead.insert(id);
        seen.closed.insert(id);
    }

    /// A termination was acknowledged to its operator by the node of the session.
    pub fn terminated(&self, id: SessionId) {
        self.log.line(format_args!("the termination of {id} is acknowledged"));
        self.seen.lock().unwrap().dead.insert(id);
    }

    /// A session goes on on another node, for its client. One that is being terminated gently goes on, too, and serves nothing.
    pub fn moved(&self, id: SessionId, to: &NodeId) {
        self.log.line(format_args!("{id} goes on on {to}"));
        self.seen.lock().unwrap().home.insert(id, to.clone());
    }

    /// An operation was served.
    pub fn served(&self, id: SessionId, node: &NodeId) {
        let now = Instant::now();
        let shares = self.hosts.iter().filter_map(|host| Some(host.running()?.plane.share()));
        let shares: Vec<u64> = shares.collect();
        assert!(shares.iter().sum::<u64>() <= MAX_RPS as u64 * 1000, "the shares {shares:?} are more than there is");
        let mut seen = self.seen.lock().unwrap();
        assert!(!seen.dead.contains(&id), "{id} is served though its end was acknowledged");
        seen.used.insert(id, (node.clone(), now));
        seen.served.push_back(now);
        while seen.served.front().is_some_and(|at| now.saturating_duration_since(*at) > WINDOW) {
            seen.served.pop_front();
        }
        let most = MAX_RPS * WINDOW.as_secs() as usize * 11 / 10;
        // Each bucket may round up to a whole operation, and so may the one after a crash.
        let rounding = 2 * self.hosts.len();
        assert!(seen.served.len() <= most + rounding, "{} operations in {WINDOW:?}, of {most}", seen.served.len());
    }

    async fn sweep(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(700 + self.dice.below(600))).await;
            assert!(self.control.live().len() <= MAX_SESSIONS, "max_sessions is overshot");
            for host in &self.hosts {
                let Some(running) = host.running() else { continue };
                let (expired, reports) = tokio::select! {
                    biased;
                    () = running.crash.cancelled() => continue,
                    swept = running.plane.sweep() => swept,
                };
                let mut seen = self.seen.lock().unwrap();
                for id in expired {
                    // It was closed on a node that was cut off, had gone on here by then, and nobody uses it.
                    if seen.dead.contains(&id) {
                        continue;
                    }
                    // Where its client is not any more, nobody uses it.
                    if seen.home.get(&id).is_some_and(|home| *home != host.node) {
                        continue;
                    }
                    // Clocks are known to a second only, and the answer to an admission takes its time.
                    let used = seen.used.get(&id);
                    // What it was used for on a node that was cut off while it went on here, nobody knows here.
                    if used.is_some_and(|(node, _)| *node != host.node) {
                        continue;
                    }
                    let used = used.map(|(_, at)| (*at, Duration::from_secs(2)));
                    let opened = seen.opened.get(&id).map(|at| (*at, ASK_TIMEOUT + Duration::from_secs(2)));
                    let early = used.or(opened).is_some_and(|(at, slack)| at.elapsed() + slack < IDLE_TIMEOUT);
                    assert!(!early, "{id} has expired on {} though it was in use", host.node);
                }
                for report in reports {
                    let known = seen.reported.entry(report.id).or_default();
                    *known = report.figures.requests_total.max(*known);
                }
            }
        }
    }

    async fn tick(clocks: Vec<Clock>) {
        loop {
            tokio::time::sleep(TICK).await;
            for clock in &clocks {
                clock.advance(TICK);
            }
        }
    }

    pub async fn run(self: Arc<Self>) {
        let mut always = JoinSet::new();
        always.spawn(Self::tick(self.clocks.clone()));
        let world = Arc::clone(&self);
        always.spawn(async move { world.sweep().await });
        self.start_controller().await;
        self.hosts.iter().for_each(Host::start);
        let mut trouble = JoinSet::new();
        for _ in 0..CLIENTS {
            trouble.spawn(client::live(Arc::clone(&self)));
        }
        trouble.spawn(operator::operate(Arc::clone(&self)));
        trouble.spawn(operator::fate(Arc::clone(&self)));
        tokio::select! {
            biased;
            failed = trouble.join_next() => panicked(failed),
            failed = always.join_next() => panicked(failed),
            () = tokio::time::sleep(TROUBLE) => {}
        }
        self.log.line("the trouble is over");
        self.over.cancel();
        tokio::select! {
            biased;
            failed = always.join_next() => panicked(failed),
            () = self.heals() => {}
        }
        while let Some(ended) = trouble.join_next().await {
            if ended.is_err() {
                panicked(Some(ended));
            }
        }
        always.shutdown().await;
    }

    /// Waits until everything is equal. A session may be ending at any moment, so it is looked again and again.
    async fn heals(&self) {
        let healed = Instant::now();
        while let Err(differs) = self.is_equal() {
            assert!(healed.elapsed() < HEALING, "after {HEALING:?} {differs}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.log.line("everything is equal");
        self.keeps_its_word();
    }

    /// What must become true when everything is well.
    fn is_equal(&self) -> Result<(), String> {
        let published = self.control.published();
        for host in &self.hosts {
            let node = &host.node;
            let running = host.running().ok_or_else(|| format!("{node} does not run"))?;
            if !running.link.is_connected() {
                return Err(format!("{node} is not connected"));
            }
            if running.link.waiting() > 0 {
                return Err(format!("{node} has something to hand over"));
            }
            let (held, live) = (running.plane.held(), self.control.live_of(node));
            if held != live {
                return Err(format!("{node} holds {held:?}, and it should {live:?}"));
            }
            let snapshot = running.link.snapshot();
            let snapshot = snapshot.borrow();
            let message = |maintenance: &Option<Arc<prism_core::control::Maintenance>>| {
                maintenance.as_ref().map(|maintenance| maintenance.message.clone())
            };
            if message(&snapshot.maintenance) != message(&published.maintenance)
                || snapshot.namespaces != published.namespaces
            {
                return Err(format!("the snapshot of {node} is {snapshot:?}"));
            }
        }
        let seen = self.seen.lock().unwrap();
        // What went on elsewhere before the node on which it was closed could tell, ends there when nobody has used it for long.
        let stays = |id: &SessionId| seen.closed.contains(id) && self.control.has_moved(*id);
        // A gentle termination takes its time.
        match seen.dead.iter().find(|id| self.control.is_live(**id) && !stays(id)) {
            Some(id) => Err(format!("{id} lives though its end was acknowledged")),
            None => Ok(()),
        }
    }

    /// What was acknowledged is there.
    fn keeps_its_word(&self) {
        let seen = self.seen.lock().unwrap();
        for (id, requests) in &seen.reported {
            // What a node has still to tell of a session that has gone on elsewhere is nobody's.
            if self.control.has_moved(*id) {
                continue;
            }
            if let Some(known) = self.control.requests_of(*id) {
                assert!(known >= *requests, "{id} has {known} requests, and {requests} were reported");
            }
        }
    }
}

fn panicked(ended: Option<Result<(), tokio::task::JoinError>>) {
    match ended {
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        other => panic!("a part of the simulation has ended: {other:?}"),
    }
}
