//! A node that says it has more of a rate than it was given.

use std::sync::Arc;
use std::time::Duration;

use prism_core::control::{ClusterState, ControlPlane};
use prism_link::{Fleet, FleetOptions};
use prism_proto::cluster::v1 as wire;
use wire::node_frame::Frame;

use crate::client::request;
use crate::control::Control;
use crate::hostile::{Manner, Raw, block_on, fleet, hello, node};
use crate::world::{MAX_RPS, namespace};

const QUOTA: u64 = MAX_RPS as u64 * 1000;

/// Another life of the controller, over the same control state.
async fn again(control: &Arc<Control>) -> Arc<Fleet> {
    control.restart();
    let options = FleetOptions {
        control: control.clone(),
        id: node("controller"),
        cluster: "prism".to_owned(),
        epoch: 2,
        clock: prism_core::Clock::manual(prism_core::UnixMillis(2_000_000)),
        certifier: None,
    };
    Arc::new(Fleet::start(options).await.unwrap())
}

impl Raw {
    async fn demand(&mut self, sequence: u64, serves_by: u64, held_millis: u64, alone_millis: u64) -> wire::Shares {
        let of = wire::NamespaceDemand {
            namespace: namespace().to_string(),
            wanted_millis: QUOTA,
            held_millis,
            alone_millis,
        };
        self.send(Frame::Demand(wire::Demand { sequence, serves_by, namespaces: vec![of] })).await;
        self.shares.recv().await.expect("the link stands")
    }
}

fn leased(shares: &wire::Shares) -> (u64, u64) {
    (shares.namespaces[0].millis, shares.namespaces[0].alone_millis)
}

#[test]
fn what_a_node_has_after_a_start_of_the_controller_it_must_have_been_given() {
    block_on(async {
        let (first_life, control) = fleet().await;
        for name in ["honest", "liar"] {
            control.admit_session(request(&node(name))).await.unwrap();
        }
        // Both have their halves.
        let mut honest = Raw::link(&first_life, "honest", Manner::Good).await;
        let mut liar = Raw::link(&first_life, "liar", Manner::Good).await;
        let mut given = [wire::Shares::default(), wire::Shares::default()];
        for sequence in 1..=6 {
            let have =
                |shares: &wire::Shares| shares.namespaces.first().map_or((0, 0), |one| (one.millis, one.alone_millis));
            let (one, other) = (have(&given[0]), have(&given[1]));
            given[0] = honest.demand(sequence, sequence - 1, one.0, one.1).await;
            given[1] = liar.demand(sequence, sequence - 1, other.0, other.1).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!([leased(&given[0]), leased(&given[1])], [(QUOTA / 2, QUOTA / 2); 2], "halves");
        first_life.end();
        drop(first_life);

        // The liar comes first, says it has all, and shows what it likes.
        let second_life = again(&control).await;
        let mut forged = given[1].clone();
        forged.namespaces[0].millis = QUOTA;
        forged.namespaces[0].alone_millis = QUOTA;
        let shown = [Some(forged), Some(given[0].clone()), None];
        for (number, proof) in shown.into_iter().enumerate() {
            let mut liar = Raw::introduce(&second_life, Manner::Good, hello("liar")).await.unwrap();
            if let Some(proof) = proof {
                liar.send(Frame::Proof(proof)).await;
            }
            assert_eq!(leased(&liar.demand(1, 0, QUOTA, QUOTA).await), (0, 0), "lie {number}");
            liar.leave().await;
        }
        // The honest one keeps what it had, at once.
        let mut honest = Raw::introduce(&second_life, Manner::Good, hello("honest")).await.unwrap();
        honest.send(Frame::Proof(given[0].clone())).await;
        let (held, alone) = leased(&honest.demand(1, 0, QUOTA, QUOTA).await);
        assert!(held >= QUOTA / 2 && alone == QUOTA / 2, "{held} and {alone}");
        assert!(control.has_sealed(b"a", &control.seal(b"a")));
        second_life.end();

        // With what it was given it has that, and no more.
        let third_life = again(&control).await;
        let mut liar = Raw::introduce(&third_life, Manner::Good, hello("liar")).await.unwrap();
        liar.send(Frame::Proof(given[1].clone())).await;
        assert_eq!(leased(&liar.demand(1, 0, QUOTA, QUOTA).await), (QUOTA / 2, QUOTA / 2));
        liar.end(Frame::Proof(given[1].clone())).await.is("LINK_FRAME_INVALID");
    });
}
