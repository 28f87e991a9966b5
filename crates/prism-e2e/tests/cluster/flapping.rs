//! A network that fails and comes back again and again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::books::random;
use prism_e2e::cluster::load::{Load, MAX_SESSIONS};
use prism_e2e::cluster::{Cluster, Machine, NODES, converges, say};

use crate::{admitted, counted, place, refuses};

/// For how long it flaps.
const FLAPPING: Duration = Duration::from_secs(10);
/// Sessions on each node that an operator terminates meanwhile.
const VICTIMS: usize = 4;

/// Cuts and heals the way to a node; returns how often.
async fn flap(cluster: Arc<Cluster>, node: Machine) -> usize {
    let end = Instant::now() + FLAPPING;
    let mut cuts = 0;
    while Instant::now() < end {
        cluster.cut(node);
        tokio::time::sleep(Duration::from_millis(300 + random() % 400)).await;
        cluster.heal(node);
        tokio::time::sleep(Duration::from_millis(300 + random() % 400)).await;
        cuts += 1;
    }
    cuts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_link_breaks_no_promise() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let max_sessions = MAX_SESSIONS + 2 * VICTIMS;
    let place = place(&admin, max_sessions).await;
    let mut victims = Vec::new();
    for turn in 0..2 * VICTIMS {
        let node = NODES[turn % 2];
        victims.push((node, cluster.open(node, &place.key, &place.config).await.unwrap()));
    }
    let mut load = Load::start(&cluster, place, victims.len(), max_sessions).await;
    load.run(Duration::from_secs(1)).await;
    let flapping = NODES.map(|node| {
        load.allow(node, "NO_CONTROLLER");
        tokio::spawn(flap(Arc::clone(&cluster), node))
    });
    let (mut dead, mut missed) = (Vec::new(), 0);
    for (node, victim) in &victims {
        load.one_less();
        let ended = admin.terminate(&victim.id, true, "enough").await;
        if ended.unreachable_nodes.is_empty() {
            refuses(victim, "SESSION_TOKEN_INVALID").await.expect("a termination holds when it is answered");
        } else {
            assert_eq!(ended.unreachable_nodes, [node.name()]);
            missed += 1;
        }
        dead.push(victim);
        load.run(FLAPPING / (2 * VICTIMS as u32) / 2).await;
    }
    let mut cuts = 0;
    for task in flapping {
        cuts += task.await.unwrap();
    }
    let healed = Instant::now();
    say(&format!(
        "  the links were cut {cuts} times; {missed} of {} terminations did not reach the node at once",
        dead.len()
    ));
    let opened = NODES.map(|node| load.told(node, ""));
    for victim in dead {
        converges("a terminated session is dead", healed, || refuses(victim, "SESSION_TOKEN_INVALID")).await;
    }
    for node in NODES {
        converges(&format!("node {node} opens sessions"), healed, || admitted(&load, node, &opened)).await;
        load.forbid(node, "NO_CONTROLLER");
    }
    load.run(Duration::from_secs(1)).await;
    let mut ended = load.end().await;
    ended.verify().await;
    counted(&admin, &ended).await;
}
