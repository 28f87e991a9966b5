//! Many nodes: a change on its way to the last of a hundred, beside a bare fan-out; then what a data node costs its clients.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use prism_proto::admin::v1::SetMaintenanceModeRequest;
use prost::Message as _;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, LocalSet};

use crate::cluster::{self, Cluster};
use crate::echo::Echo;
use crate::figures::percentile;
use crate::process::{Ended, free_port};
use crate::simulated::Node;
use crate::stream::Duplex;
use crate::wire::{Peer, framed, trusting, unary};
use crate::{ROUNDS, Size, admission, data, fan_out};

/// Nodes that are linked at the same time.
const NODES: usize = 100;
/// Changes of a round at least; it goes on until its time is over.
const LEAST_CHANGES: usize = 100;
/// Changes before those that are measured, of each round.
const WARM_UP: usize = 20;
/// How long the last node may take to hear of a change before the bench gives up.
const LONGEST: Duration = Duration::from_secs(30);
/// Milliseconds within which the last node is to have a change.
const GOAL: f64 = 100.0;
/// The rate of Get on a data node over that of the echo that is asked for.
const GET_GOAL: f64 = 0.85;

const SET_MAINTENANCE_MODE: &str = "/prism.admin.v1.AdminService/SetMaintenanceMode";

/// Measures and prints all of it.
pub fn run(scratch: &Path, size: &Size) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, change(scratch, size))?;
    LocalSet::new().block_on(&runtime, admission::run(scratch, size))?;

    println!("\non a data node with a controller, goal {GET_GOAL} at full load:");
    let folder = tempfile::tempdir_in(scratch)?;
    let cluster = runtime.block_on(Cluster::start(folder.path()))?;
    data::get_beside_echo(&cluster.node, "Get on a node", folder.path(), size)
}

/// One receiver has heard of one change.
pub struct Heard {
    /// The change.
    pub number: u64,
    /// When.
    pub at: Instant,
    /// The size of the message that told it.
    pub bytes: usize,
}

/// Something that one call tells [`NODES`] receivers.
struct Told {
    peer: Peer,
    connection: SendRequest<Bytes>,
    /// The head of the call.
    call: Request<()>,
    message: Box<dyn Fn(u64) -> Vec<u8>>,
    heard: UnboundedReceiver<Heard>,
    /// The receivers; each goes on until it fails.
    receivers: JoinSet<Result<()>>,
    next: u64,
}

/// Times of changes, from the call on, in microseconds.
#[derive(Default)]
struct Times {
    /// Until the last receiver had it.
    last: Vec<u64>,
    /// Until the call was answered.
    answered: Vec<u64>,
    /// Processor time of the server for all of them.
    cpu: u64,
    /// Size of a message.
    bytes: usize,
}

impl Told {
    async fn new(
        peer: Peer,
        path: &str,
        message: Box<dyn Fn(u64) -> Vec<u8>>,
    ) -> Result<(Self, UnboundedSender<Heard>)> {
        let (sender, heard) = unbounded_channel();
        let (connection, call) = (peer.connect().await?, peer.head(path)?);
        Ok((Self { peer, connection, call, message, heard, receivers: JoinSet::new(), next: 1 }, sender))
    }

    /// One change after the other, for `measured` and [`LEAST_CHANGES`].
    async fn round(&mut self, measured: Duration, times: &mut Times) -> Result<()> {
        for _ in 0..WARM_UP {
            self.one(&mut Times::default()).await?;
        }
        let (began, before, so_far) = (Instant::now(), self.peer.cpu_microseconds()?, times.last.len());
        while began.elapsed() < measured || times.last.len() - so_far < LEAST_CHANGES {
            self.one(times).await?;
        }
        times.cpu += self.peer.cpu_microseconds()? - before;
        Ok(())
    }

    async fn one(&mut self, times: &mut Times) -> Result<()> {
        let number = self.next;
        self.next += 1;
        let message = framed(&(self.message)(number)).into();
        let began = Instant::now();
        let (connection, call, heard) = (self.connection.clone(), self.call.clone(), &mut self.heard);
        let answer = async {
            unary(connection, call, message).await?;
            Ok::<_, anyhow::Error>(began.elapsed())
        };
        let told = async {
            let (mut last, mut bytes) = (began, 0);
            for _ in 0..NODES {
                let one = heard.recv().await.context("no receiver is left")?;
                ensure!(one.number == number, "a receiver has heard of change {} at change {number}", one.number);
                (last, bytes) = (last.max(one.at), one.bytes);
            }
            Ok((last - began, bytes))
        };
        let both = async { tokio::try_join!(answer, told) };
        let Ok(both) = tokio::time::timeout(LONGEST, both).await else {
            while let Some(ended) = self.receivers.try_join_next() {
                ended?.context("a receiver has ended")?;
            }
            bail!("not all receivers have heard of change {number} within {} s", LONGEST.as_secs());
        };
        let (answered, (last, bytes)) = both?;
        times.last.push(last.as_micros() as u64);
        times.answered.push(answered.as_micros() as u64);
        times.bytes = bytes;
        Ok(())
    }
}

async fn change(scratch: &Path, size: &Size) -> Result<()> {
    let folder = tempfile::tempdir_in(scratch)?;
    let controller = cluster::controller(folder.path())?;
    let admin = controller.admin()?;
    let (mut prism, heard) = Told::new(admin.clone(), SET_MAINTENANCE_MODE, Box::new(maintenance)).await?;
    for number in 0..NODES {
        let node = Node::link(&admin, &format!("worker-eu-west-{number:06}"), heard.clone()).await?;
        prism.receivers.spawn_local(node.serve());
    }
    let (mut ours, mut bare_times) = (Times::default(), Times::default());
    // How large the messages are is known from the first; the bare ones are as large.
    prism.one(&mut ours).await?;
    let (mut bare, _bare_process) = bare(folder.path(), ours.bytes).await?;
    ours = Times::default();
    for _ in 0..ROUNDS {
        bare.round(size.measured(), &mut bare_times).await?;
        prism.round(size.measured(), &mut ours).await?;
    }
    println!(
        "\nSetMaintenanceMode on a controller (TLS, API key, entry, durable), one after the other, with {NODES} linked nodes, each with its own\n\
         certificate and in this process, which says that it serves by it; beside a bare tonic service that tells as many streams over\n\
         TLS the same {} bytes; {ROUNDS} rounds of {} s at least",
        ours.bytes, size.seconds
    );
    println!(
        "{:>14} {:>8} {:>12} {:>12} {:>12} {:>14} {:>14} {:>14}",
        "side",
        "changes",
        "last p50 ms",
        "last p99 ms",
        "longest ms",
        "answer p50 ms",
        "answer p99 ms",
        "cpu µs/change"
    );
    let bare = print("bare", bare_times);
    let ours = print("prism", ours);
    println!(
        "{:>14} {:>8} {:>12.1} {:>12.1}   p99 over the goal of {GOAL} ms: {:.3}",
        "ratio",
        "",
        ours.0 / bare.0,
        ours.1 / bare.1,
        ours.1 / GOAL
    );
    Ok(())
}

/// Starts maintenance, or changes its message to one that has the number at its end.
fn maintenance(number: u64) -> Vec<u8> {
    let message = Some(format!("upgrade of the storage, step {number}"));
    SetMaintenanceModeRequest { enabled: true, message, ..SetMaintenanceModeRequest::default() }.encode_to_vec()
}

/// The bare side, with [`NODES`] streams that are told messages of `bytes`.
async fn bare(folder: &Path, bytes: usize) -> Result<(Told, Ended)> {
    let [certificate, key] = fan_out::server_certificate(folder)?;
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["fan-out-server", &format!("127.0.0.1:{port}")]).arg(&certificate).arg(&key);
    let process = Ended::start(&mut command)?;
    let peer = Peer { port, tls: Some(trusting(&certificate)?), authorization: None, pids: vec![process.pid()] };
    let deadline = Instant::now() + Duration::from_secs(10);
    while peer.connect().await.is_err() {
        ensure!(Instant::now() < deadline, "the bare fan-out did not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let padding = vec![b'x'; bytes.saturating_sub(NUMBER_BYTES)];
    let message = Box::new(move |number: u64| {
        let value = [&number.to_be_bytes(), padding.as_slice()].concat().into();
        Echo { value }.encode_to_vec()
    });
    let (mut told, heard) = Told::new(peer.clone(), fan_out::TELL, message).await?;
    for _ in 0..NODES {
        let stream = Duplex::open(&peer, fan_out::FOLLOW, &[] as &[Echo]).await?;
        told.receivers.spawn_local(follow(stream, heard.clone()));
    }
    Ok((told, process))
}

const NUMBER_BYTES: usize = size_of::<u64>();

async fn follow(mut stream: Duplex, heard: UnboundedSender<Heard>) -> Result<()> {
    loop {
        let message: Echo = stream.next().await?;
        let number = message.value.first_chunk::<NUMBER_BYTES>().context("a message without a number")?;
        let number = u64::from_be_bytes(*number);
        // The bench may be over.
        let _ = heard.send(Heard { number, at: Instant::now(), bytes: message.value.len() });
    }
}

/// Prints, and gives median and 99th percentile of the last receiver's time in milliseconds.
fn print(side: &str, mut times: Times) -> (f64, f64) {
    times.last.sort_unstable();
    times.answered.sort_unstable();
    let changes = times.last.len();
    let last = |share| percentile(&times.last, share) as f64 / 1e3;
    let answered = |share| percentile(&times.answered, share) as f64 / 1e3;
    println!(
        "{side:>14} {changes:>8} {:>12.2} {:>12.2} {:>12.2} {:>14.2} {:>14.2} {:>14.0}",
        last(0.5),
        last(0.99),
        last(1.0),
        answered(0.5),
        answered(0.99),
        times.cpu as f64 / changes as f64
    );
    (last(0.5), last(0.99))
}
