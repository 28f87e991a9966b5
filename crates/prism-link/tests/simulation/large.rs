//! What is more than a frame holds.

use std::sync::Arc;
use std::time::Duration;

use prism_core::NodeId;
use prism_core::control::ControlPlane;
use prism_core::nodes::Nodes as _;
use prism_link::Fleet;

use crate::client::request;
use crate::host::Running;
use crate::hostile::block_on;
use crate::plane::{most_backends, most_figures};
use crate::world::World;

/// A controller and one node, which are linked.
async fn pair() -> (Arc<World>, Arc<Fleet>, NodeId, Running) {
    let world = World::new(1);
    world.start_controller().await;
    let host = Arc::clone(&world.hosts[0]);
    host.start();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Some(running) = host.running().filter(|running| running.link.is_connected()) {
            let fleet = world.fleet().unwrap();
            return (world, fleet, host.node.clone(), running);
        }
    }
}

#[test]
fn figures_and_backends_of_everything_arrive() {
    block_on(async {
        let (_world, fleet, node, running) = pair().await;
        let figures = fleet.figures(Duration::from_secs(10)).await;
        assert!(figures.unreachable.is_empty(), "{:?}", figures.unreachable);
        assert_eq!(figures.answer, most_figures());
        let backends = fleet.backends().await;
        assert!(backends.unreachable.is_empty(), "{:?}", backends.unreachable);
        let expected: Vec<_> = most_backends().into_iter().map(|report| (node.clone(), report)).collect();
        assert_eq!(backends.answer, expected);
        assert!(running.link.is_connected());
    });
}

#[test]
fn a_question_that_is_too_large_is_refused_and_the_link_stands() {
    block_on(async {
        let (_world, _fleet, node, running) = pair().await;
        let mut large = request(&node);
        large.metadata = (0..200).map(|number| (format!("key-{number}"), "v".repeat(8192))).collect();
        let error = running.link.admit_session(large).await.unwrap_err();
        assert_eq!(error.reason(), "QUESTION_TOO_LARGE", "{error}");
        assert!(error.message().contains("1048512"), "{error}");
        assert!(running.link.is_connected());
        running.link.admit_session(request(&node)).await.unwrap();
    });
}
