//! Two processes with one identity, and more nodes than there is room for.

use std::sync::Arc;
use std::time::Duration;

use prism_core::Error;
use prism_link::Fleet;
use prism_link::bounds::{MAX_NODES, SIGN_OF_LIFE, SILENCE, TWIN_PAUSE};
use prism_proto::cluster::v1 as wire;
use tokio::time::Instant;
use wire::answer::Result as Answered;
use wire::ask::Ask;

use crate::hostile::{Manner, Raw, block_on, fleet, hello, node};
use crate::world::World;

async fn process(fleet: &Arc<Fleet>, manner: Manner, process: u64) -> Result<Raw, Error> {
    Raw::introduce(fleet, manner, wire::Hello { process, ..hello("one") }).await
}

fn refused(outcome: Result<Raw, Error>) -> Error {
    match outcome {
        Ok(_) => panic!("it is linked"),
        Err(error) => error,
    }
}

async fn stands(raw: &mut Raw) {
    assert_eq!(raw.ask(Ask::Report(wire::ReportAsk::default())).await, Answered::Done(wire::Done {}));
}

#[test]
fn a_second_process_of_a_node_that_lives_is_refused_and_seen() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let mut first = process(&fleet, Manner::Good, 1).await.unwrap();
        assert_eq!(fleet.statuses()[0].refusal, None);
        for _ in 0..3 {
            let before = Instant::now();
            let error = refused(process(&fleet, Manner::Good, 2).await);
            assert_eq!(error.reason(), "NODE_ALREADY_CONNECTED", "{error}");
            assert!(before.elapsed() < SIGN_OF_LIFE, "a node that lives says so: {:?}", before.elapsed());
            stands(&mut first).await;
        }
        let status = fleet.statuses().remove(0);
        assert!(status.connected && status.refusal.as_ref().unwrap().reason == "NODE_ALREADY_CONNECTED", "{status:?}");
        // Both at once, and nobody flaps.
        let (one, other) = tokio::join!(process(&fleet, Manner::Good, 3), process(&fleet, Manner::Good, 4));
        assert_eq!([refused(one).reason(), refused(other).reason()], ["NODE_ALREADY_CONNECTED"; 2]);
        stands(&mut first).await;
        // The first has gone.
        first.leave().await;
        let mut second = process(&fleet, Manner::Good, 2).await.unwrap();
        stands(&mut second).await;
        assert_eq!(fleet.statuses()[0].refusal, None, "it is linked, and all is well");
    });
}

#[test]
fn a_node_that_comes_back_is_not_kept_out_by_its_own_past() {
    block_on(async {
        let (fleet, _) = fleet().await;
        // The same process over another connection takes the place at once.
        let first = process(&fleet, Manner::Good, 1).await.unwrap();
        let before = Instant::now();
        let again = process(&fleet, Manner::Dead, 1).await.unwrap();
        assert!(before.elapsed() < Duration::from_millis(100), "{:?}", before.elapsed());
        assert_eq!(first.ended.await.unwrap().reason(), "LINK_CLOSED");
        // A machine lost its power, and its connection lingers: the process after it waits a little.
        let before = Instant::now();
        let mut after = process(&fleet, Manner::Good, 2).await.unwrap();
        assert!(before.elapsed() < SILENCE, "{:?}", before.elapsed());
        assert_eq!(again.ended.await.unwrap().reason(), "LINK_CLOSED");
        stands(&mut after).await;
        // Of two that come when nobody is alive, one gets the place.
        after.leave().await;
        let dead = process(&fleet, Manner::Dead, 5).await.unwrap();
        let (one, other) = tokio::join!(process(&fleet, Manner::Good, 6), process(&fleet, Manner::Good, 7));
        assert_eq!([&one, &other].iter().filter(|outcome| outcome.is_ok()).count(), 1);
        drop(dead);
    });
}

#[test]
fn a_copy_of_a_node_does_not_serve_until_the_first_is_gone() {
    block_on(async {
        let world = World::new(1);
        world.start_controller().await;
        let first = Arc::clone(&world.hosts[0]);
        first.start();
        let linked = async |host: &crate::host::Host| loop {
            if host.running().is_some_and(|running| running.link.is_connected()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        linked(&first).await;
        first.running().unwrap().link.flush().await.unwrap();
        let copy = first.copy();
        copy.start();
        // Its state is whole: without the controller's word it would serve by it after a second.
        tokio::time::sleep(Duration::from_mins(10)).await;
        assert!(copy.running().is_none(), "two processes serve the same sessions");
        assert!(first.running().unwrap().link.is_connected());
        let refusal = world.fleet().unwrap().statuses().into_iter().find_map(|status| status.refusal);
        assert_eq!(refusal.expect("a refusal").reason, "NODE_ALREADY_CONNECTED");

        first.crash();
        tokio::time::timeout(TWIN_PAUSE * 2, linked(&copy)).await.expect("the copy has its place");
        // The first one is the copy now.
        first.start();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(first.running().is_none());
        assert!(copy.running().unwrap().link.is_connected());
    });
}

#[test]
fn who_finds_no_room_is_told_so_and_seen() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let mut nodes = Vec::new();
        for number in 0..MAX_NODES {
            nodes.push(Raw::introduce(&fleet, Manner::Good, hello(&format!("n{number}"))).await.unwrap());
        }
        let error = refused(Raw::introduce(&fleet, Manner::Good, hello("last")).await);
        assert_eq!(error.reason(), "TOO_MANY_NODES");
        assert!(error.message().contains(&MAX_NODES.to_string()), "{error}");
        let status = fleet.statuses().into_iter().find(|status| status.node == node("last")).expect("it is known");
        assert!(!status.connected && status.refusal.unwrap().reason == "TOO_MANY_NODES");
        // Who is linked may connect again, and who goes makes room.
        nodes[0] = Raw::introduce(&fleet, Manner::Good, hello("n0")).await.unwrap();
        nodes.pop().unwrap().leave().await;
        Raw::introduce(&fleet, Manner::Good, hello("last")).await.unwrap();
    });
}
