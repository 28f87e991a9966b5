//! The server is killed in the middle of redemptions, again and again: the same key gets its certificate after every restart, and
//! never two of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prism_e2e::books::random;
use prism_e2e::enrol::Machine;
use prism_e2e::wait::within;
use prism_e2e::{Options, Prism};
use prism_proto::cluster::v1::CreateJoinTokenResponse;
use prism_proto::cluster::v1::get_lineage_request::Link;
use tokio::task::JoinSet;

/// Kills, each under a load of machines that join.
const ROUNDS: usize = 6;
const MACHINES: usize = 60;

/// What a machine knows of its own: a certificate, once it has been told.
struct Joining {
    machine: Machine,
    token: CreateJoinTokenResponse,
    node: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_any_two_steps_a_retry_succeeds() {
    let server = Prism::start(Options::new()).await;
    let mut told_before_kill = 0;
    for round in 0..ROUNDS {
        let admin = server.admin();
        let mut joining = Vec::new();
        for number in 0..MACHINES {
            let (machine, token) = (Machine::new(), admin.create_join_token("").await);
            joining.push(Arc::new(Joining { machine, token, node: format!("r{round}-n{number}") }));
        }
        let mut tasks = JoinSet::new();
        for machine in &joining {
            let (machine, channel) = (Arc::clone(machine), server.admin_channel());
            tasks.spawn(async move {
                let answer = machine.machine.exchange(&channel, &machine.token.join_token, &machine.node).await;
                (machine.node.clone(), answer.ok().map(|answer| answer.certificate_pem))
            });
        }
        // Somewhere between the first request and the last answer.
        tokio::time::sleep(Duration::from_micros(random() % 150_000)).await;
        server.kill();
        let answers: BTreeMap<_, _> = within("every call ends", tasks.join_all()).await.into_iter().collect();
        told_before_kill += answers.values().flatten().count();
        server.spawn();
        server.ready().await;

        let (admin, channel) = (server.admin(), server.admin_channel());
        for machine in &joining {
            let shown = &machine.node;
            let answer = machine.machine.exchange(&channel, &machine.token.join_token, shown).await;
            let answer = answer.unwrap_or_else(|refused| panic!("round {round}, {shown}: {refused:?}"));
            // Whoever was told before is told the same.
            if let Some(before) = &answers[shown] {
                assert_eq!(answer.certificate_pem, before, "round {round}, {shown}");
            }
            let lineage = admin.lineage(Link::NodeId(shown.clone())).await;
            assert_eq!((lineage.tokens.len(), lineage.certificates.len()), (1, 1), "round {round}, {shown}");
            let fingerprint = machine.machine.holding(&answer.certificate_pem).fingerprint();
            assert_eq!(lineage.certificates[0].fingerprint, fingerprint, "round {round}, {shown}");
        }
        let log = admin.whole_log().await;
        prism_e2e::audit::verify(&log);
        // Each redemption has its entry: the one that was no repetition.
        for machine in &joining {
            let resource = format!("token:{}", machine.token.token_id);
            let firsts = log.iter().filter(|entry| {
                entry.operation == "ExchangeJoinToken"
                    && entry.resource == resource
                    && entry.success
                    && !entry.metadata.contains_key("repeated")
            });
            assert_eq!(firsts.count(), 1, "round {round}, {}", machine.node);
        }
    }
    eprintln!("{ROUNDS} kills, {told_before_kill} of {} machines had their answer before", ROUNDS * MACHINES);
}
