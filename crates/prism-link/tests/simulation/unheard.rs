//! Admissions whose answers may have been lost with a link: what the node never heard of ends, and what it heard of does not.

use std::sync::Arc;

use prism_core::UnixMillis;
use prism_core::control::{ClusterState as _, ControlPlane as _};
use prism_core::session::{EndReason, SessionFigures, SessionId, SessionReport};
use prism_link::Fleet;
use prism_proto::cluster::v1 as wire;
use wire::answer::Result as Answered;
use wire::ask::Ask;
use wire::controller_frame::Frame as Sent;
use wire::node_frame::Frame;

use crate::hostile::{Manner, Raw, block_on, fleet, hello, node};
use crate::hostile_admission::{admission, backend};
use crate::hostile_controller::start;

/// A link of a node that answers no ping, so that nobody knows what it has heard.
async fn silent(fleet: &Arc<Fleet>, held: Vec<SessionId>) -> Raw {
    let backends = vec![backend("memory", "memory")];
    let hello = wire::Hello { backends, process: 1, ..hello("one") };
    Raw::holding(fleet, Manner::Dead, hello, &held).await.unwrap()
}

async fn admitted(raw: &mut Raw) -> (SessionId, wire::SessionEntry) {
    let Answered::Admitted(admitted) = raw.ask(Ask::Admit(admission(|_| ()))).await else { panic!("it is good") };
    let session = admitted.session.unwrap();
    (SessionId::from_bytes(&session.id).unwrap(), session)
}

#[test]
fn what_a_node_never_heard_of_ends_and_what_is_on_another_or_known_to_it_goes_on() {
    block_on(async {
        let (fleet, control) = fleet().await;
        let mut raw = silent(&fleet, Vec::new()).await;
        let (lost, _) = admitted(&mut raw).await;
        let (known, _) = admitted(&mut raw).await;
        let (moved, _) = admitted(&mut raw).await;
        raw.leave().await;
        assert!(control.move_session(moved, &node("one"), &node("two")).await.unwrap());
        let again = silent(&fleet, vec![known]).await;
        assert!(!control.is_live(lost), "nobody has its token");
        assert!(control.is_live(known) && control.live_of(&node("two")).contains(&moved));
        again.leave().await;
    });
}

#[test]
fn what_ended_on_a_node_is_known_to_it_until_that_is_handed_over() {
    block_on(async {
        let (fleet, _) = fleet().await;
        let mut raw = silent(&fleet, Vec::new()).await;
        let (id, entry) = admitted(&mut raw).await;
        let (starting, mut connections) = start();
        let link = starting.await;
        let mut connection = connections.recv().await.unwrap();
        connection.begin_with(vec![entry.clone()]).await;
        link.connected().await;
        drop(connection);
        let figures = SessionFigures { requests_total: 7, ..SessionFigures::default() };
        let last = SessionReport { id, last_activity: UnixMillis(1_000_000), figures };
        link.end_session(last, EndReason::Closed).await.unwrap();

        // The controller hears that it is known, and then how it ended; it is not taken up again.
        let mut connection = connections.recv().await.unwrap();
        let known = connection.begin_with(vec![entry]).await;
        assert_eq!(known, [id]);
        let ended = loop {
            let frame = connection.next().await.expect("the link stands");
            if let Frame::Ask(wire::Ask { ask: Some(Ask::End(end)), id }) = frame {
                break (id, end);
            }
        };
        assert_eq!(ended.1.last.unwrap().figures.unwrap().requests_total, 7);
        assert!(link.live_sessions(&node("one")).await.unwrap().is_empty());
        connection.send(Sent::Answer(wire::Answer { id: ended.0, result: Some(Answered::Done(wire::Done {})) })).await;
        while link.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        drop(connection);
        let mut connection = connections.recv().await.unwrap();
        assert_eq!(connection.begin_with(Vec::new()).await, []);
    });
}
