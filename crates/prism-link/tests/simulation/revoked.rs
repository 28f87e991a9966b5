//! A node that a controller turns away as a revoked one.

use std::sync::Arc;
use std::time::Duration;

use prism_core::control::ControlPlane as _;
use prism_core::{Error, Kind};

use crate::client::request;
use crate::host::{Host, Running};
use crate::world::World;

/// Longer than a node waits before it asks again, and than all that may delay it.
const LONG: Duration = Duration::from_secs(20);

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

async fn running(host: &Arc<Host>) -> Running {
    for _ in 0..1000 {
        if let Some(running) = host.running().filter(|running| running.link.is_connected()) {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} does not serve", host.node);
}

fn revoked() -> Error {
    Error::unauthenticated("CERTIFICATE_REVOKED", "go away")
}

#[test]
fn a_revoked_node_serves_nothing_until_it_is_welcome_again() {
    block_on(async {
        let world = World::new(7);
        world.start_controller().await;
        let host = Arc::clone(&world.hosts[0]);
        host.start();
        let node = running(&host).await;
        let (record, _) = node.link.admit_session(request(&host.node)).await.unwrap();
        assert!(node.plane.enrol(record.clone()));
        let live = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            host.running().is_some_and(|node| node.plane.held().contains(&record.id))
        };

        // Anything else is an absent controller.
        for other in [
            Error::unauthenticated("CREDENTIAL_INVALID", "no"),
            Error::unauthenticated("CERTIFICATE_EXPIRED", "no"),
            Error::unavailable("NODE_REVOKED", "no"),
            Error::precondition("NODE_UNKNOWN", "no"),
            Error::precondition("CERTIFICATE_UNKNOWN", "no"),
            Error::new(Kind::PermissionDenied, "CERTIFICATE_REVOKED", "no"),
        ] {
            world.network.refuse(&host.node, Some(other));
            tokio::time::sleep(LONG / 4).await;
            assert!(live().await, "it serves on");
        }
        world.network.refuse(&host.node, None);
        running(&host).await;

        world.network.refuse(&host.node, Some(revoked()));
        node.link.revoked(true).await;
        assert!(!live().await);
        let refused = node.link.admit_session(request(&host.node)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (Kind::Unavailable, "NODE_REVOKED"));

        // Also after a crash, with and without a controller.
        for controller in [true, false] {
            if !controller {
                world.stop_controller();
            }
            host.crash();
            host.start();
            tokio::time::sleep(LONG).await;
            assert!(host.running().is_none(), "a revoked node serves");
        }

        // The controller decides what there is when it is welcome again.
        world.network.refuse(&host.node, None);
        world.start_controller().await;
        let node = running(&host).await;
        assert!(live().await, "its session is live in the control state");

        // The same without a start.
        world.network.refuse(&host.node, Some(revoked()));
        node.link.revoked(true).await;
        assert!(!live().await);
        world.network.refuse(&host.node, None);
        node.link.revoked(false).await;
        running(&host).await;
        assert!(live().await);
        // And it is any other node from then on.
        world.stop_controller();
        host.crash();
        host.start();
        tokio::time::sleep(LONG).await;
        assert!(live().await, "it starts without a controller");
    });
}
