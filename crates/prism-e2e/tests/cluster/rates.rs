//! `max_rps` of a namespace whose clients are on two nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prism_e2e::cluster::load::Place;
use prism_e2e::cluster::{Cluster, Machine, say};
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Failure, Session};
use prism_proto::admin::v1::NamespaceQuota;
use tokio::task::JoinHandle;

use crate::NAMESPACE;

/// The quota, in operations a second.
const QUOTA: usize = 200;
/// The time over which it is measured.
const WINDOW: Duration = Duration::from_secs(10);
/// Most operations in a window: what the rate gives, and a second's worth at once.
const MOST: usize = QUOTA * 10 + QUOTA;
/// An answer may be on its way for a little longer than the one before: that many may fall into a window of their answers
/// that were not let through in it.
const ON_THE_WAY: usize = QUOTA / 10;
/// Fewest, where there is demand and shares have settled.
const LEAST: usize = QUOTA * 10 * 9 / 10;
/// Clients on each node. Each waits for its answer before it asks again.
const CLIENTS: u64 = 8;

/// Clients of one node that ask at a rate which can be changed.
struct Clients {
    rate: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Instant>>>,
}

impl Clients {
    async fn start(cluster: &Cluster, node: Machine, place: &Place) -> Self {
        let (rate, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut tasks = Vec::new();
        for _ in 0..CLIENTS {
            let session = cluster.open(node, &place.key, &place.config).await.expect("a session");
            tasks.push(tokio::spawn(ask(session, Arc::clone(&rate), Arc::clone(&stop))));
        }
        Self { rate, stop, tasks }
    }

    /// Asks so often a second from now on.
    fn demand(&self, rate: u64) {
        self.rate.store(rate, Ordering::SeqCst);
    }

    /// Ends them; when each operation was answered that was let through.
    async fn end(self) -> Vec<Instant> {
        self.stop.store(true, Ordering::SeqCst);
        let mut answers = Vec::new();
        for task in self.tasks {
            answers.extend(task.await.expect("a client"));
        }
        answers
    }
}

/// Asks at its part of the rate; when each operation was answered that was let through.
async fn ask(session: Session, rate: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Vec<Instant> {
    let mut answered = Vec::new();
    let mut next = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        let part = rate.load(Ordering::SeqCst) as f64 / CLIENTS as f64;
        if part == 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            next = Instant::now();
            continue;
        }
        // Who is late does not catch up in a burst.
        next = (next + Duration::from_secs_f64(1.0 / part)).max(Instant::now());
        tokio::time::sleep_until(next.into()).await;
        match session.get("x").await {
            Ok(_) => answered.push(Instant::now()),
            Err(status) => {
                let refused = Failure::from(&status);
                assert!(
                    ["QUOTA_EXCEEDED", "RATE_LIMITED"].contains(&refused.reason.as_str()),
                    "only the rate refuses: {refused:?}"
                );
            }
        }
    }
    answered
}

/// The most and the fewest answers of all windows that lie between two moments.
fn windows(answers: &[Instant], from: Instant, to: Instant) -> (usize, usize) {
    let (mut most, mut least) = (0, usize::MAX);
    let step = Duration::from_millis(50);
    let mut begin = from;
    while begin + WINDOW <= to {
        let before = answers.partition_point(|at| *at < begin);
        let count = answers.partition_point(|at| *at < begin + WINDOW) - before;
        (most, least) = (most.max(count), least.min(count));
        begin += step;
    }
    (most, least)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_rps_holds_over_all_nodes_also_through_a_partition() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.create_namespace(NAMESPACE).await;
    let max_rps = i64::try_from(QUOTA).unwrap();
    admin.set_quota(NAMESPACE, NamespaceQuota { max_rps, ..NamespaceQuota::default() }).await;
    let config = admin.create_config(config("kv", NAMESPACE, Pattern::MemoryKeyValue)).await.name;
    let place = Place { key: admin.create_client_key(NAMESPACE, &["read", "write"]).await, config };
    let [one, two] =
        [Clients::start(&cluster, Machine::One, &place).await, Clients::start(&cluster, Machine::Two, &place).await];
    let begin = Instant::now();
    let demand = async |on_one, on_two, seconds| {
        one.demand(on_one);
        two.demand(on_two);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Instant::now()
    };

    // Uneven, and far more than there is. Shares settle in a few demands, of which there is one a second.
    let settled = demand(60, 500, 4).await;
    let steady = demand(60, 500, 11).await;
    // The other way round, and back and forth.
    let mut changed = steady;
    for (on_one, on_two) in [(500, 30), (0, 500), (500, 500), (500, 0), (250, 60)] {
        changed = demand(on_one, on_two, 2).await;
    }
    // Longer than two leases, so that the node that is cut off comes to what it may use alone.
    cluster.cut(Machine::One);
    let cut = demand(500, 500, 24).await;
    cluster.heal(Machine::One);
    let healed = demand(500, 500, 5).await;
    let end = demand(500, 500, 11).await;

    let mut answers = one.end().await;
    answers.extend(two.end().await);
    answers.sort();
    let said = |what: &str, (most, least): (usize, usize)| {
        let total = QUOTA * 10;
        say(&format!("  {what}: {least} to {most} answers in 10 s, {total} is the quota"));
        (most, least)
    };
    let steady = said("uneven demand", windows(&answers, settled, steady));
    said("changing demand", windows(&answers, settled, changed));
    said("with a node cut off", windows(&answers, changed, cut));
    let again = said("healed", windows(&answers, healed, end));
    let (most, _) = said("all the time", windows(&answers, begin, end));
    assert!(most <= MOST + ON_THE_WAY, "{most} operations in 10 s, and {MOST} is the most");
    for (most, least) in [steady, again] {
        assert!(least >= LEAST, "{least} to {most} operations in 10 s, and {LEAST} is the fewest");
    }
}
