//! A node that is cut off from the controller while clients and operators go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_e2e::cluster::load::{Load, MAX_SESSIONS};
use prism_e2e::cluster::{Cluster, Machine, NODES, converges, say};
use prism_e2e::site::{Pattern, config};
use prism_e2e::{Admin, Failure, data, wait};
use prism_proto::admin::v1::SetMaintenanceModeRequest;
use prism_proto::admin::v1::UpdateConfigRequest;
use prism_proto::config::v1::GetConfigRequest;
use tonic::Code;

use crate::{NAMESPACE, admitted, counted, live, place, refuses};

async fn maintain(admin: &Admin, enabled: bool) {
    let (message, namespace) = (Some("upgrade".to_owned()), Some(NAMESPACE.to_owned()));
    let request = SetMaintenanceModeRequest { enabled, message, namespace, ..SetMaintenanceModeRequest::default() };
    admin.service().set_maintenance_mode(request).await.expect("maintenance");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_learns_what_it_missed() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let place = place(&admin, MAX_SESSIONS + 1).await;
    // A namespace beside it, by which a node is asked for its snapshot.
    admin.create_namespace("stock").await;
    admin.create_config(config("books", "stock", Pattern::KeyValue)).await;
    let stock = admin.create_client_key("stock", &["read"]).await;
    let reader = cluster.open(Machine::One, &stock, "books").await.unwrap();
    let victim = cluster.open(Machine::One, &place.key, &place.config).await.unwrap();
    let mut load = Load::start(&cluster, place.clone(), 1, MAX_SESSIONS + 1).await;
    load.run(Duration::from_secs(2)).await;
    assert!(NODES.into_iter().all(|node| load.told(node, "") > 0), "sessions are opened on both nodes");

    // The way to node one is cut, and nobody is told.
    load.allow(Machine::One, "NO_CONTROLLER");
    cluster.cut(Machine::One);
    let cut = Instant::now();
    wait::until("the node knows that it is alone", || async {
        (load.told(Machine::One, "NO_CONTROLLER") > 0).then_some(())
    })
    .await;
    say(&format!("  {:>8.1?}  the node knows that it is alone", cut.elapsed()));
    load.one_less();
    wait::until("the node is given up", || async {
        let ended = admin.terminate(&victim.id, true, "stolen").await;
        (ended.unreachable_nodes == ["one"]).then_some(())
    })
    .await;
    say(&format!("  {:>8.1?}  the operator is told that the node is unreachable", cut.elapsed()));
    load.allow(Machine::Two, "MAINTENANCE");
    maintain(&admin, true).await;
    let other = cluster.open(Machine::Two, &place.key, &place.config).await.unwrap_err();
    assert_eq!(other.reason, "MAINTENANCE", "a node that can be reached follows at once: {other:?}");
    let mut changed = config("books", "stock", Pattern::KeyValue);
    changed.version = "2".to_owned();
    let change =
        UpdateConfigRequest { name: "books".to_owned(), config: Some(changed), ..UpdateConfigRequest::default() };
    admin.service().update_config(change).await.expect("a change");
    load.run(Duration::from_secs(3)).await;
    victim.put("meanwhile", b"it cannot know").await.expect("what a node cannot know does not stop it");
    let writes = load.told(Machine::One, "MAINTENANCE");
    assert_eq!(writes, 0, "the node serves by the snapshot that it has");

    // It is healed.
    load.allow(Machine::One, "MAINTENANCE");
    let healed = Instant::now();
    cluster.heal(Machine::One);
    converges("the terminated session is dead", healed, || refuses(&victim, "SESSION_TOKEN_INVALID")).await;
    converges("maintenance is in force", healed, || async {
        let refused = cluster.open(Machine::One, &place.key, &place.config).await.err();
        refused.filter(|refused| refused.reason == "MAINTENANCE").map(drop)
    })
    .await;
    converges("the change of the config is there", healed, || async {
        let request = GetConfigRequest { name: "books".to_owned(), ..GetConfigRequest::default() };
        let found = reader.configs().get_config(request).await.ok()?.into_inner();
        found.config.filter(|config| config.version == "2").map(drop)
    })
    .await;
    let ended = admin.terminate(&victim.id, true, "once more").await;
    assert!(ended.unreachable_nodes.is_empty(), "{ended:?}");
    maintain(&admin, false).await;
    load.forbid(Machine::One, "NO_CONTROLLER");
    for node in NODES {
        load.forbid(node, "MAINTENANCE");
    }
    let opened = NODES.map(|node| load.told(node, ""));
    load.run(Duration::from_secs(2)).await;
    for (node, before) in NODES.into_iter().zip(opened) {
        assert!(load.told(node, "") > before, "sessions are opened on {node} again");
    }
    assert!(refuses(&victim, "SESSION_TOKEN_INVALID").await.is_some(), "it stays dead");

    let mut ended = load.end().await;
    ended.verify().await;
    counted(&admin, &ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_nothing_and_is_heard() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let place = place(&admin, MAX_SESSIONS).await;
    let mut load = Load::start(&cluster, place, 0, MAX_SESSIONS).await;
    load.run(Duration::from_secs(1)).await;
    load.allow(Machine::One, "NO_CONTROLLER");
    cluster.deafen(Machine::One);
    load.run(Duration::from_secs(8)).await;
    let opened = NODES.map(|node| load.told(node, ""));
    let healed = Instant::now();
    cluster.heal(Machine::One);
    converges("it opens sessions again", healed, || admitted(&load, Machine::One, &opened)).await;
    load.forbid(Machine::One, "NO_CONTROLLER");
    load.run(Duration::from_secs(1)).await;
    let mut ended = load.end().await;
    ended.verify().await;
    counted(&admin, &ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_got_does_not_stay() {
    let cluster = Arc::new(Cluster::start().await);
    let admin = cluster.admin();
    let place = place(&admin, 100_000).await;
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let (cluster, place) = (Arc::clone(&cluster), place.clone());
            tokio::spawn(async move {
                let channel = cluster.channel(Machine::One);
                let mut opened = Vec::new();
                loop {
                    match data::create(&channel, data::named(&place.key, &place.config)).await {
                        Ok(session) => opened.push(session.id),
                        Err(status) => {
                            Failure::from(&status).is(Code::Unavailable, "NO_CONTROLLER");
                            return opened;
                        }
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.deafen(Machine::One);
    let mut opened = BTreeSet::new();
    for client in clients {
        opened.extend(client.await.unwrap());
    }
    let left = live(&admin).await.into_iter().filter(|id| !opened.contains(id)).count();
    let healed = Instant::now();
    cluster.heal(Machine::One);
    say(&format!("  {} sessions are open, and {left} that nobody got", opened.len()));
    converges("the sessions that nobody got have ended", healed, || async {
        (live(&admin).await.into_iter().collect::<BTreeSet<_>>() == opened).then_some(())
    })
    .await;
}
