//! Sessions that come from other nodes, and nodes that may not serve any more.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Hold, Node, SOON, eventually, next, refused};
use prism_core::control::DataNode as _;
use prism_core::secret::{Random, SecretKind};
use prism_core::session::SessionRecord;
use prism_core::{Error, UnixMillis};
use prism_proto::keyvalue::v1::key_value_service_client::KeyValueServiceClient;
use prism_proto::keyvalue::v1::{GetRequest, PutRequest};
use prism_proto::pubsub::v1::SubscribeRequest;
use prism_proto::pubsub::v1::pub_sub_service_client::PubSubServiceClient;
use prism_proto::session::v1::{CreateSessionResponse, HeartbeatRequest};
use tonic::{Code, Status};

const INVALID: (Code, &str) = (Code::Unauthenticated, "SESSION_TOKEN_INVALID");

async fn heartbeat(node: &Node, token: &str) -> Result<(), Status> {
    node.sessions().heartbeat(HeartbeatRequest { session_token: token.to_owned() }).await.map(drop)
}

fn record(node: &Node, session: &CreateSessionResponse) -> SessionRecord {
    let live = node.control.live.lock().unwrap();
    live.values().find(|record| record.id.to_string() == session.session_id).unwrap().clone()
}

fn says(node: &Node, answer: prism_core::Result<Option<SessionRecord>>) {
    *node.control.elsewhere.lock().unwrap() = answer;
}

fn asked(node: &Node) -> usize {
    node.control.asked.swap(0, Ordering::SeqCst)
}

#[tokio::test]
async fn a_session_comes_with_its_token_when_the_control_plane_says_so() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    let token = session.session_token.as_str();
    let record = record(&node, &session);
    heartbeat(&node, token).await.unwrap();
    assert_eq!(asked(&node), 0, "what is here is not asked about");

    // It goes to another node, and is there.
    node.plane.let_go(record.id, "it is elsewhere").await;
    let elsewhere = Error::precondition("SESSION_ELSEWHERE", "it is on another").with("node", "node-2");
    says(&node, Err(elsewhere));
    let told = refused(heartbeat(&node, token).await, Code::FailedPrecondition, "SESSION_ELSEWHERE");
    assert_eq!(told.message(), "it is on another");
    refused(heartbeat(&node, token).await, Code::FailedPrecondition, "SESSION_ELSEWHERE");
    assert_eq!(asked(&node), 1, "the same is not asked twice in a moment");

    // That node goes, and the session comes back, with whatever figures it has.
    let mut moved = record.clone();
    moved.figures.requests_total = 41;
    says(&node, Ok(Some(moved)));
    let comes = async {
        while heartbeat(&node, token).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, comes).await.expect("the answer before is not used for ever");
    let mut keys = KeyValueServiceClient::new(node.channel.clone());
    let put = PutRequest { session_token: token.to_owned(), key: "k".to_owned(), ..PutRequest::default() };
    keys.put(put).await.unwrap();
    keys.get(GetRequest { session_token: token.to_owned(), key: "k".to_owned() }).await.unwrap();
    assert_eq!(asked(&node), 1);
    let reported = node.plane.take_reports();
    assert!(
        reported.iter().any(|report| report.id == record.id && report.figures.requests_total == 44),
        "{reported:?}"
    );

    // What has ended here is dead, whatever anybody says, and nobody is asked.
    node.plane.terminate(record.id, true, "enough").await;
    refused(heartbeat(&node, token).await, INVALID.0, INVALID.1);
    assert_eq!(asked(&node), 0);
}

#[tokio::test]
async fn many_calls_with_one_token_ask_once() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    let record = record(&node, &session);
    node.plane.let_go(record.id, "it is elsewhere").await;
    let wrong = Random::system().secret(SecretKind::Session).token.into_exposed();
    says(&node, Ok(Some(record)));
    node.control.hold.send_replace(Hold::Before);
    let calls = (0..100).map(|number| {
        let token = if number % 2 == 0 { &session.session_token } else { &wrong };
        let (node, is_wrong) = (&node, token == &wrong);
        async move { (heartbeat(node, token).await, is_wrong) }
    });
    let all = futures::future::join_all(calls);
    let let_go = async {
        eventually("both are asked about", || node.control.asked.load(Ordering::SeqCst) == 2).await;
        node.control.hold.send_replace(Hold::Nowhere);
    };
    let (answers, ()) = tokio::join!(all, let_go);
    for (answer, is_wrong) in answers {
        if is_wrong {
            refused(answer, INVALID.0, INVALID.1);
        } else {
            answer.unwrap();
        }
    }
    for _ in 0..10 {
        refused(heartbeat(&node, &wrong).await, INVALID.0, INVALID.1);
    }
    assert_eq!(asked(&node), 2);
}

#[tokio::test]
async fn a_session_that_nobody_waits_for_any_more_comes_all_the_same_and_one_that_is_over_does_not() {
    let node = Node::start().await;
    let session = node.session("kv").await;
    let token = session.session_token.as_str();
    let record = record(&node, &session);
    node.plane.let_go(record.id, "it is elsewhere").await;
    says(&node, Ok(Some(record.clone())));
    node.control.hold.send_replace(Hold::Before);
    let call = heartbeat(&node, token);
    let gone = tokio::time::timeout(Duration::from_millis(200), call).await;
    assert!(gone.is_err(), "the client does not wait");
    assert_eq!(asked(&node), 1);
    node.control.hold.send_replace(Hold::Nowhere);
    heartbeat(&node, token).await.unwrap();
    assert_eq!(asked(&node), 0, "it had come");

    node.plane.let_go(record.id, "it is elsewhere").await;
    says(&node, Ok(Some(SessionRecord { expires_at: UnixMillis(1), ..record })));
    refused(heartbeat(&node, token).await, INVALID.0, INVALID.1);
}

#[tokio::test]
async fn a_revoked_node_cuts_everything_and_takes_nothing_in() {
    let node = Node::start().await;
    let (one, events) = (node.session("kv").await, node.session("events").await);
    let subscribe = SubscribeRequest {
        session_token: events.session_token.clone(),
        topic_pattern: "a.*".to_owned(),
        ..SubscribeRequest::default()
    };
    let mut stream = PubSubServiceClient::new(node.channel.clone()).subscribe(subscribe).await.unwrap().into_inner();
    // What a node says of every token while it is revoked.
    says(&node, Err(Error::unavailable("NODE_REVOKED", "it was revoked")));
    // One is on its way in.
    node.control.hold.send_replace(Hold::After);
    let admission = node.try_session("kv");
    let revoke = async {
        eventually("it is admitted", || node.control.live.lock().unwrap().len() == 3).await;
        node.plane.set_revoked(true).await;
        node.control.hold.send_replace(Hold::Nowhere);
    };
    let (admitted, ()) = tokio::join!(admission, revoke);
    refused(admitted, Code::Aborted, "SESSION_TERMINATED");
    refused(next(&mut stream).await, Code::Aborted, "SESSION_TERMINATED");
    refused(heartbeat(&node, &one.session_token).await, Code::Unavailable, "NODE_REVOKED");
    // Not even what somebody hands over.
    let handed = record(&node, &one);
    node.plane.take_up(handed.clone()).await;
    refused(heartbeat(&node, &one.session_token).await, Code::Unavailable, "NODE_REVOKED");
    assert!(node.control.ended.lock().unwrap().is_empty(), "the control plane decides on its sessions");

    node.plane.set_revoked(false).await;
    node.plane.take_up(handed).await;
    heartbeat(&node, &one.session_token).await.unwrap();
    heartbeat(&node, &node.session("kv").await.session_token).await.unwrap();
}
