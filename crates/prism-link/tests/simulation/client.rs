//! Clients: they open sessions, use them, and close them, at nodes of their choice.

use std::sync::Arc;
use std::time::Duration;

use prism_core::config::{AccessPattern, Backend, BackendType, Config};
use prism_core::control::ControlPlane;
use prism_core::control::DataNode as _;
use prism_core::secret::SecretProof;
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

/// A session as its client knows it.
#[derive(Clone)]
struct Session {
    host: Arc<Host>,
    id: SessionId,
    token: SecretProof,
}

/// One client, until the end of the simulation.
pub async fn live(world: Arc<World>) {
    let dice = world.dice.clone();
    let mut session: Option<Session> = None;
    while world.pause(Duration::from_millis(50 + dice.below(300))).await {
        let Some(Session { host, id, .. }) = session.clone() else {
            session = open(&world).await;
            continue;
        };
        let Some(running) = host.running() else {
            session = go_elsewhere(&world, session).await;
            continue;
        };
        if dice.below(60) == 0 {
            // It forgets its session, which ends by itself.
            session = None;
        } else if dice.below(40) == 0 {
            session = None;
            close(&world, &running, id).await;
        } else if dice.below(20) == 0 {
            // It cannot reach its node, whoever else can.
            session = go_elsewhere(&world, session).await;
        } else {
            for _ in 0..dice.below(15) {
                if running.plane.operate(id) {
                    world.served(id, &host.node);
                }
            }
            if !running.plane.held().contains(&id) {
                session = None;
            }
        }
    }
}

/// Brings the token to another node; the session as it is known after that.
async fn go_elsewhere(world: &Arc<World>, session: Option<Session>) -> Option<Session> {
    let Session { host: home, id, token } = session?;
    let stays = || Some(Session { host: Arc::clone(&home), id, token });
    let host = world.any_host();
    let Some(running) = host.running().filter(|_| host.node != home.node) else { return stays() };
    // What a node still holds from before, it may not know that the session has gone on elsewhere since.
    if running.plane.held().contains(&id) {
        return stays();
    }
    let resolved = tokio::select! {
        biased;
        () = running.crash.cancelled() => return stays(),
        resolved = running.link.resolve_session(&token, &host.node) => resolved,
    };
    match resolved {
        Ok(Some(record)) => {
            assert_eq!(record.id, id);
            // As in a data plane, what was terminated on its way is not served.
            running.plane.take_up(record).await;
            if !running.plane.held().contains(&id) {
                return None;
            }
            world.moved(id, &host.node);
            Some(Session { host, id, token })
        }
        Ok(None) => None,
        Err(error) => {
            let known = ["NO_CONTROLLER", "SESSION_ELSEWHERE", "BACKEND_ELSEWHERE", "SESSION_MOVING"];
            assert!(known.contains(&error.reason()), "{error:?}");
            stays()
        }
    }
}

async fn open(world: &Arc<World>) -> Option<Session> {
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
            let (id, token) = (record.id, SecretProof { id: record.token_id, hash: record.token_hash });
            world.opened(id);
            running.plane.enrol(record).then_some(Session { host, id, token })
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
