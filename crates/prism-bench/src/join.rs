//! Machines that join: exchanges of join tokens, each a signature verified, a signature made and an audited commit, beside what
//! these cost alone.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use prism_proto::admin::v1::WhoAmIRequest;
use prism_proto::cluster::v1::{
    CreateJoinTokenRequest, CreateJoinTokenResponse, ExchangeJoinTokenRequest, ListJoinTokensRequest,
    ListJoinTokensResponse,
};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use tokio::task::{LocalSet, spawn_local};

use crate::callers::{self, Calls, Outcome};
use crate::figures::median;
use crate::prism::Prism;
use crate::process::{cpu_microseconds, thread_microseconds};
use crate::wire::{Peer, unary};
use crate::{ROUNDS, Size, wire};

/// Join tokens that may be open at once.
pub const MOST_TOKENS: u64 = 10_000;
/// Machines that join at the same time.
const CALLERS: usize = 64;
/// Exchanges before those that are measured, of each round.
const WARM_UP: u64 = 200;
/// The thread that runs all transactions.
const WRITER: &str = "state";
/// Exchanges per second and core that are asked for.
const GOAL: f64 = 2000.0;
/// Bytes before the message of an answer.
const PREFIX_BYTES: usize = 5;

pub const CREATE_JOIN_TOKEN: &str = "/prism.cluster.v1.AdminService/CreateJoinToken";
const LIST_JOIN_TOKENS: &str = "/prism.cluster.v1.AdminService/ListJoinTokens";
pub const EXCHANGE: &str = "/prism.cluster.v1.BootstrapService/ExchangeJoinToken";
const WHO_AM_I: &str = "/prism.admin.v1.AccessService/WhoAmI";

/// Measures and prints all of it.
pub fn run(scratch: &Path, size: &Size) -> Result<()> {
    println!(
        "\nExchangeJoinToken over TLS: {CALLERS} machines at once, {} tokens of as many new nodes, each once with a key of its own, then once\n\
         more with the same; {ROUNDS} rounds, each on a new server, medians by rate",
        size.tokens
    );
    let requests = Rc::new(signing_requests(size.tokens)?);
    let signatures = Signatures::measure(&requests, size.measured())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir_in(scratch)?;
        rounds.push(LocalSet::new().block_on(&runtime, round(folder.path(), &requests, size))?);
    }
    print(&signatures, &rounds);
    Ok(())
}

/// What one server did.
struct Round {
    audited: Outcome,
    first: Outcome,
    /// Processor time of the writer's thread for each of these, in microseconds.
    writer: f64,
    again: Outcome,
}

async fn round(folder: &Path, requests: &Rc<Vec<String>>, size: &Size) -> Result<Round> {
    let prism = Prism::start(folder)?;
    let admin = prism.admin()?;
    let who_am_i = Box::new(|_| WhoAmIRequest {}.encode_to_vec());
    let audited = Rc::new(Calls { peer: admin.clone(), path: WHO_AM_I, message: who_am_i });
    let audited = callers::run(&audited, CALLERS, size.measured(), u64::MAX).await?;
    let tokens = mint(&admin, size.tokens).await?;
    let messages: Vec<Vec<u8>> = tokens
        .iter()
        .zip(requests.iter())
        .enumerate()
        .map(|(number, (token, csr))| exchange(number, token, csr))
        .collect();
    let exchanges = Rc::new(Calls {
        // The token is all that a new machine has.
        peer: Peer { authorization: None, ..admin.clone() },
        path: EXCHANGE,
        message: Box::new(move |number| messages.get(number as usize).cloned().unwrap_or_default()),
    });
    callers::each(&exchanges, CALLERS, 0..WARM_UP).await?;
    let before = thread_microseconds(prism.pid(), WRITER)?;
    let first = callers::each(&exchanges, CALLERS, WARM_UP..size.tokens).await?;
    let writer = (thread_microseconds(prism.pid(), WRITER)? - before) as f64 / first.answered as f64;
    require_redeemed(&admin, size.tokens).await?;
    let again = callers::each(&exchanges, CALLERS, WARM_UP..size.tokens).await?;
    Ok(Round { audited, first, writer, again })
}

fn exchange(number: usize, token: &str, csr: &str) -> Vec<u8> {
    let request = ExchangeJoinTokenRequest {
        join_token: token.to_owned(),
        node_id: format!("worker-eu-west-{number:06}"),
        csr_pem: csr.to_owned().into_bytes().into(),
    };
    request.encode_to_vec()
}

/// Issues `tokens` join tokens, for any node.
async fn mint(admin: &Peer, tokens: u64) -> Result<Vec<String>> {
    let left = Rc::new(Cell::new(tokens));
    let minted = Rc::new(RefCell::new(Vec::new()));
    let connection = admin.connect().await?;
    let head = admin.head(CREATE_JOIN_TOKEN)?;
    let tasks: Vec<_> = (0..CALLERS)
        .map(|_| spawn_local(minter(connection.clone(), head.clone(), Rc::clone(&left), Rc::clone(&minted))))
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(minted.take())
}

async fn minter(
    mut connection: SendRequest<Bytes>,
    head: Request<()>,
    left: Rc<Cell<u64>>,
    minted: Rc<RefCell<Vec<String>>>,
) -> Result<()> {
    let request = wire::framed(&CreateJoinTokenRequest::default().encode_to_vec());
    while let Some(next) = left.get().checked_sub(1) {
        left.set(next);
        let answer;
        (answer, connection) = unary(connection, head.clone(), request.clone().into()).await?;
        ensure!(answer.len() >= PREFIX_BYTES, "a token was issued without an answer");
        minted.borrow_mut().push(CreateJoinTokenResponse::decode(answer.slice(PREFIX_BYTES..))?.join_token);
    }
    Ok(())
}

/// Asks the server itself that every token was redeemed, by a node and a key of its own.
async fn require_redeemed(admin: &Peer, tokens: u64) -> Result<()> {
    let listed: ListJoinTokensResponse = admin.call(LIST_JOIN_TOKENS, &ListJoinTokensRequest {}).await?;
    let mut keys: Vec<_> = listed.tokens.iter().map(|token| (&token.redeemed_by, &token.key_hash)).collect();
    keys.sort_unstable();
    keys.dedup();
    let redeemed = listed.tokens.iter().filter(|token| token.status == "REDEEMED").count();
    ensure!(
        redeemed as u64 == tokens && keys.len() == redeemed,
        "{redeemed} of {tokens} tokens are redeemed, by {} nodes: the figures are worthless",
        keys.len()
    );
    Ok(())
}

/// As many signing requests, each of a P-256 key of its own, in PEM.
fn signing_requests(number: u64) -> Result<Vec<String>> {
    let request = |_| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
    };
    (0..number).map(request).collect()
}

/// What the two signatures of an exchange cost, with what is read and written for them, in microseconds of processor time.
struct Signatures {
    verified: f64,
    made: f64,
}

impl Signatures {
    fn measure(requests: &[String], measured: Duration) -> Result<Self> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let issuer = Issuer::new(ca, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        // Read and verified.
        let read = |number: usize| Ok(CertificateSigningRequestParams::from_pem(&requests[number % requests.len()])?);
        let verified = timed(measured / 2, |number| read(number).map(drop))?;
        let request = read(0)?;
        let made = timed(measured / 2, |_| Ok(request.signed_by(&issuer).map(|made| drop(made.pem()))?))?;
        Ok(Self { verified, made })
    }
}

/// The processor time that `work` takes, in microseconds, of as many as are done in `measured`.
fn timed(measured: Duration, work: impl Fn(usize) -> Result<()>) -> Result<f64> {
    let (began, used) = (Instant::now(), cpu_microseconds(std::process::id())?);
    let mut done = 0;
    while began.elapsed() < measured {
        work(done)?;
        done += 1;
    }
    Ok((cpu_microseconds(std::process::id())? - used) as f64 / done as f64)
}

fn print(signatures: &Signatures, rounds: &[Round]) {
    println!(
        "{:>28} {:>10} {:>8} {:>8} {:>12} {:>14} {:>14}",
        "", "calls/s", "p50 µs", "p99 µs", "cpu µs/call", "per core", "generator cpu"
    );
    let middle = |of: fn(&Round) -> Outcome| median(rounds.iter().map(of).collect(), |outcome| outcome.run.rate);
    let (audited, first, again) =
        (middle(|round| round.audited), middle(|round| round.first), middle(|round| round.again));
    let writer = median(rounds.iter().map(|round| round.writer).collect(), |writer| *writer);
    for (name, cost) in [("CSR read and verified", signatures.verified), ("certificate signed", signatures.made)] {
        println!("{name:>28} {:>10} {:>8} {:>8} {cost:>12.1} {:>14.0}", "", "", "", 1e6 / cost);
    }
    print_one("WhoAmI, an audited call", &audited);
    let bare = signatures.verified + signatures.made + audited.run.cpu;
    println!("{:>28} {:>10} {:>8} {:>8} {bare:>12.1} {:>14.0}", "bare: the sum of these", "", "", "", 1e6 / bare);
    print_one("exchange", &first);
    print_one("exchange, the same again", &again);
    println!(
        "{:>28} {:.0} exchanges/s per core, {:.2} of the goal of {GOAL}; {:.2} times the processor time of the bare sum;\n\
         {:>28} {writer:.1} µs of it on the writer's thread, which there is one of: {:.0} exchanges/s at most",
        "",
        1e6 / first.run.cpu,
        1e6 / first.run.cpu / GOAL,
        first.run.cpu / bare,
        "",
        1e6 / writer
    );
}

fn print_one(name: &str, outcome: &Outcome) {
    println!(
        "{name:>28} {:>10.0} {:>8} {:>8} {:>12.1} {:>14.0} {:>12.0} %",
        outcome.run.rate,
        outcome.run.p50,
        outcome.run.p99,
        outcome.run.cpu,
        1e6 / outcome.run.cpu,
        100.0 * outcome.generator
    );
}
