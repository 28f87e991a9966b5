//! Clients: they open sessions, use them, and close them, at nodes of their choice.

use std::sync::Arc;
use std::time::Duration;

use prism_core::config::{AccessPattern, Backend, BackendType, Config};
use prism_core::control::ControlPlane;
use prism_core::session::{AdmitRequest, ClientBasis, DataGrant, SessionId};
use prism_core::{ConfigName, InstanceName, NodeId};

use crate::host::{Host, Running};
use crate::world::{World, namespace};

pub fn request(node: &NodeId) -> AdmitRequest {
    let config = Config {
        name: ConfigName::try_from("kv".to_owned()).unwrap(),
        version: "1".to_owned(),
        pattern: AccessPattern::KeyValue,
        backend: Backend { kind: BackendType::Memory, options: [].into(), pool: None },
        instance: InstanceName::parse("i", "memory").unwrap(),
        consistency: None,
        cache: None,
        rate_limit: None,
        namespace: namespace(),
    };
    AdmitRequest {
        client_id: "client".to_owned(),
        client_version: String::new(),
        metadata: [].into(),
        config: Arc::new(config),
        config_name: None,
        grant: DataGrant { read: true, write: true },
        basis: ClientBasis { credential_id: "key".to_owned(), ..ClientBasis::default() },
        credential_ends: None,
        key: None,
        node: node.clone(),
    }
}

/// One client, until the end of the simulation.
pub async fn live(world: Arc<World>) {
    let dice = world.dice.clone();
    let mut session: Option<(Arc<Host>, SessionId)> = None;
    while world.pause(Duration::from_millis(50 + dice.below(300))).await {
        let Some((host, id)) = session.clone() else {
            session = open(&world).await;
            continue;
        };
        let Some(running) = host.running() else { continue };
        if dice.below(60) == 0 {
            // It forgets its session, which ends by itself.
            session = None;
        } else if dice.below(40) == 0 {
            session = None;
            close(&world, &running, id).await;
        } else {
            for _ in 0..dice.below(15) {
                if running.plane.operate(id) {
                    world.served(id);
                }
            }
            if !running.plane.held().contains(&id) {
                session = None;
            }
        }
    }
}

async fn open(world: &Arc<World>) -> Option<(Arc<Host>, SessionId)> {
    let host = world.any_host();
    let running = host.running()?;
    let admitted = running.link.admit_session(request(&host.node));
    let admitted = tokio::select! {
        biased;
        () = running.crash.cancelled() => return None,
        admitted = admitted => admitted,
    };
    match admitted {
        Ok((record, _)) => {
            let id = record.id;
            world.opened(id);
            running.plane.enrol(record).then_some((host, id))
        }
        Err(error) => {
            assert!(["NO_CONTROLLER", "FULL"].contains(&error.reason()), "{error:?}");
            None
        }
    }
}

async fn close(world: &Arc<World>, running: &Running, id: SessionId) {
    tokio::select! {
        biased;
        () = running.crash.cancelled() => {}
        closed = running.plane.close(id) => if closed {
            world.ended(id);
        }
    }
}
