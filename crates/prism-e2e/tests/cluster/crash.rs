//! A process that is killed while clients go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::cluster::load::{Load, MAX_SESSIONS, NO_ANSWER, WRITERS};
use prism_e2e::cluster::{Cluster, Machine, NODES, converges, say};
use prism_e2e::{keys, wait};

use crate::{admitted, counted, place, refuses};

/// Waits until a node has written a session down.
async fn written_down(cluster: &Cluster, node: Machine, token: &str) {
    let state = cluster.prism(node).data_dir().join("node").join("state");
    wait::until("the session is written down", || async {
        let bytes = std::fs::read(&state).unwrap_or_default();
        bytes.windows(16).any(|id| id == keys::id(token).as_bytes()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_go_on_without_a_controller_and_one_even_starts_without() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let place = place(&admin, MAX_SESSIONS + 1).await;
    let kept = cluster.open(Machine::One, &place.key, &place.config).await.unwrap();
    kept.put("greeting", b"hello").await.unwrap();
    let mut load = Load::start(&cluster, place.clone(), 1, MAX_SESSIONS + 1).await;
    load.run(Duration::from_secs(1)).await;

    for node in NODES {
        load.allow(node, "NO_CONTROLLER");
    }
    let killed = Instant::now();
    cluster.kill(Machine::Controller);
    for node in NODES {
        wait::until("new sessions are refused clearly", || async {
            (load.told(node, "NO_CONTROLLER") > 0).then_some(())
        })
        .await;
    }
    say(&format!("  {:>8.1?}  both nodes know that they are alone", killed.elapsed()));
    let opened = NODES.map(|node| load.told(node, ""));
    load.run(Duration::from_secs(2)).await;
    assert_eq!(opened, NODES.map(|node| load.told(node, "")), "nobody admits a session");

    // One node starts from what is on its disk.
    load.allow(Machine::One, NO_ANSWER);
    written_down(&cluster, Machine::One, &kept.token).await;
    cluster.kill(Machine::One);
    let restarted = Instant::now();
    cluster.restart(Machine::One).await;
    load.forbid(Machine::One, NO_ANSWER);
    say(&format!("  {:>8.1?}  a node has started without a controller", restarted.elapsed()));
    assert_eq!(kept.get("greeting").await.expect("the token holds").value, b"hello".as_slice());
    kept.put("greeting", b"again").await.expect("and writes");
    let refused = cluster.open(Machine::One, &place.key, &place.config).await.unwrap_err();
    refused.is(tonic::Code::Unavailable, "NO_CONTROLLER");
    load.run(Duration::from_secs(1)).await;

    let back = Instant::now();
    cluster.restart(Machine::Controller).await;
    let ready = Instant::now();
    say(&format!("  {:>8.1?}  the controller has started", back.elapsed()));
    for node in NODES {
        converges(&format!("node {node} opens sessions again"), ready, || admitted(&load, node, &opened)).await;
        load.forbid(node, "NO_CONTROLLER");
    }
    let admin = cluster.admin();
    load.one_less();
    let ended = admin.terminate(&kept.id, true, "enough").await;
    assert!(ended.unreachable_nodes.is_empty(), "{ended:?}");
    refuses(&kept, "SESSION_TOKEN_INVALID").await.expect("a termination holds when it is answered");
    load.run(Duration::from_secs(1)).await;
    let mut ended = load.end().await;
    ended.verify().await;
    counted(&admin, &ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_killed_has_what_it_acknowledged_and_its_sessions() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let place = place(&admin, MAX_SESSIONS).await;
    let mut load = Load::start(&cluster, place.clone(), 0, MAX_SESSIONS).await;
    load.run(Duration::from_secs(1)).await;
    for round in 1..=3 {
        load.allow(Machine::One, NO_ANSWER);
        load.allow(Machine::One, "NO_CONTROLLER");
        cluster.kill(Machine::One);
        let killed = Instant::now();
        load.run(Duration::from_millis(500)).await;
        cluster.restart(Machine::One).await;
        say(&format!("  {:>8.1?}  the node is back, round {round}", killed.elapsed()));
        let opened = NODES.map(|node| load.told(node, ""));
        let ready = Instant::now();
        converges("it opens sessions again", ready, || admitted(&load, Machine::One, &opened)).await;
        load.forbid(Machine::One, NO_ANSWER);
        load.forbid(Machine::One, "NO_CONTROLLER");
        load.run(Duration::from_secs(1)).await;
    }
    let mut ended = load.end().await;
    ended.verify().await;
    let unaffected = &ended.writers[WRITERS..];
    assert!(unaffected.iter().all(|writer| writer.gap < Duration::from_secs(2)), "the other node served on");
    counted(&admin, &ended).await;
}
