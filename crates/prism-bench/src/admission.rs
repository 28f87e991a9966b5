//! Sessions that are admitted through a data node, beside those of both planes in one process.

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use prism_proto::session::v1::CreateSessionRequest;
use prism_proto::session::v1::create_session_request::{Auth, Config};
use prost::Message as _;

use crate::callers::{self, Calls, Outcome};
use crate::cluster::{self, CONFIG, Cluster};
use crate::figures::median;
use crate::prism::Prism;
use crate::wire::Peer;
use crate::{ROUNDS, Size};

/// Clients that ask for sessions at the same time.
const CALLERS: [usize; 2] = [1, 64];

/// What one round came to, at one number of callers.
struct Round {
    callers: usize,
    one_process: Outcome,
    through_node: Outcome,
}

/// Measures and prints.
pub async fn run(scratch: &Path, size: &Size) -> Result<()> {
    println!(
        "\nCreateSession in clear text with a client key, each durable: through a data node beside both planes in one process; {ROUNDS}\n\
         rounds of {} s, each on new servers, medians by rate; processor time is that of all server processes",
        size.seconds
    );
    println!(
        "{:>8} {:>24} {:>10} {:>8} {:>8} {:>12} {:>14}",
        "callers", "side", "calls/s", "p50 µs", "p99 µs", "cpu µs/call", "generator cpu"
    );
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir_in(scratch)?;
        let one_process = cluster::one_process(folder.path()).await?;
        let Cluster { controller, node } = Cluster::start(folder.path()).await?;
        let through_node = Rc::new(creates(&node, vec![node.pid(), controller.pid()])?);
        let in_one = Rc::new(creates(&one_process, vec![one_process.pid()])?);
        for callers in CALLERS {
            rounds.push(Round {
                callers,
                one_process: callers::run(&in_one, callers, size.measured(), u64::MAX).await?,
                through_node: callers::run(&through_node, callers, size.measured(), u64::MAX).await?,
            });
        }
    }
    for callers in CALLERS {
        print(callers, &rounds.iter().filter(|round| round.callers == callers).collect::<Vec<_>>());
    }
    Ok(())
}

fn creates(prism: &Prism, pids: Vec<u32>) -> Result<Calls> {
    let request = CreateSessionRequest {
        auth: Some(Auth::ApiKey(prism.client_key.clone())),
        config: Some(Config::ConfigName(CONFIG.to_owned())),
        client_id: "bench".to_owned(),
        ..CreateSessionRequest::default()
    };
    let message = request.encode_to_vec();
    Ok(Calls {
        peer: Peer { port: prism.data_port()?, tls: None, authorization: None, pids },
        path: "/prism.session.v1.SessionService/CreateSession",
        message: Box::new(move |_| message.clone()),
    })
}

fn print(callers: usize, rounds: &[&Round]) {
    let middle =
        |of: fn(&Round) -> Outcome| median(rounds.iter().map(|round| of(round)).collect(), |outcome| outcome.run.rate);
    let (alone, through) = (middle(|round| round.one_process), middle(|round| round.through_node));
    for (side, outcome) in [("one process", &alone), ("node and controller", &through)] {
        println!(
            "{callers:>8} {side:>24} {:>10.0} {:>8} {:>8} {:>12.1} {:>12.0} %",
            outcome.run.rate,
            outcome.run.p50,
            outcome.run.p99,
            outcome.run.cpu,
            100.0 * outcome.generator
        );
    }
    println!(
        "{callers:>8} {:>24} {:>10.3} {:>+8} {:>+8} {:>12.3}",
        "ratio / more",
        through.run.rate / alone.run.rate,
        through.run.p50.cast_signed() - alone.run.p50.cast_signed(),
        through.run.p99.cast_signed() - alone.run.p99.cast_signed(),
        alone.run.cpu / through.run.cpu
    );
}
