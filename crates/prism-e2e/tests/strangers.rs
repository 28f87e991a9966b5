//! What callers without a credential may hold of the admin port: a share of its connections and of its open streams, and
//! never so much that an operator finds no place.

use std::net::Ipv4Addr;
use std::sync::Arc;

use prism_e2e::matrix::reflected_rules;
use prism_e2e::wait::{until, within};
use prism_e2e::{Admin, Cli, Failure, Options, Prism, dial, http1};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Open health and reflection calls of one source, and of all.
const OPEN_PER_SOURCE: usize = 32;
const OPEN: usize = 256;
const TOO_MANY: &str = "TOO_MANY_OPEN_CALLS";

fn source(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 9, number)
}

/// A new connection to the admin port from a source of one's own.
fn from(server: &Prism, source: Ipv4Addr) -> Channel {
    dial::tls_from(source, &server.endpoints().admin, &server.data_dir().join("ca.pem"))
}

type Watch = Streaming<HealthCheckResponse>;

/// A stream that says something once and then stays.
async fn watch(channel: &Channel) -> Result<Watch, Status> {
    let mut health = HealthClient::new(channel.clone());
    let mut watch = within("an answer", health.watch(HealthCheckRequest::default())).await?.into_inner();
    watch.message().await?.expect("what the server is");
    Ok(watch)
}

async fn check(channel: &Channel) -> Result<(), Status> {
    let mut health = HealthClient::new(channel.clone());
    within("an answer", health.check(HealthCheckRequest::default())).await.map(drop)
}

#[track_caller]
fn refused(outcome: Result<Watch, Status>) -> Failure {
    let failure = Failure::from(&outcome.expect_err("a refusal"));
    failure.is(Code::ResourceExhausted, TOO_MANY);
    failure
}

#[tokio::test]
async fn open_streams_of_strangers_are_bounded_by_source_and_in_all() {
    let server = Arc::new(Prism::start(Options::new()).await);
    let attacker = from(&server, source(1));
    let mut held = Vec::new();
    for _ in 0..OPEN_PER_SOURCE {
        held.push(watch(&attacker).await.unwrap());
    }
    let failure = refused(watch(&attacker).await);
    assert!(failure.retry.is_some(), "{failure:?}");
    // Over whatever connection, and with short calls as well; others have theirs.
    refused(watch(&from(&server, source(1))).await);
    check(&attacker).await.unwrap_err();
    let admin = server.admin();
    assert!(!within("reflection", reflected_rules(&admin.channel)).await.is_empty());
    check(&from(&server, source(2))).await.unwrap();
    for number in 2.. {
        let crowd = from(&server, source(number));
        while held.len() < OPEN && held.len() < usize::from(number) * OPEN_PER_SOURCE {
            held.push(watch(&crowd).await.unwrap());
        }
        if held.len() == OPEN {
            break;
        }
    }
    refused(watch(&from(&server, source(100))).await);
    // Who has a credential is not touched by it, from wherever he comes.
    let operator = Admin { channel: attacker.clone(), headers: server.admin().headers };
    operator.who_am_i().await.unwrap();
    Cli::of(&server).run("namespace list").ok();
    // Places come back with the end of a stream, however it ends.
    held.truncate(OPEN_PER_SOURCE - 1);
    until("a place", async || watch(&attacker).await.ok()).await;
    drop(held);
    until("all places", async || check(&attacker).await.ok()).await;
}

#[tokio::test]
async fn connections_of_one_source_are_bounded_and_an_operator_from_elsewhere_gets_in() {
    // A quarter of all is of one source.
    let server = Arc::new(Prism::start(Options::new().config("[limits]\nmax_connections = 40\n")).await);
    let mut held = Vec::new();
    for number in 1..=3 {
        for _ in 0..10 {
            let channel = from(&server, source(number));
            check(&channel).await.unwrap();
            held.push(channel);
        }
        for _ in 0..20 {
            // Closed at once.
            let refused = check(&from(&server, source(number))).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        }
    }
    // Those that are open go on, and the operator's is another source.
    check(&held[0]).await.unwrap();
    let cli = Cli::of(&server);
    for _ in 0..5 {
        cli.run("whoami").ok();
    }
    let (_, metrics) = http1::get(&server.endpoints().metrics, "/metrics").await;
    let refusals = metrics.lines().find_map(|line| line.strip_prefix("prism_connections_refused_total "));
    assert!(refusals.and_then(|count| count.parse::<f64>().ok()).is_some_and(|count| count >= 60.0), "{metrics}");
    held.truncate(9);
    until("a place", async || check(&from(&server, source(1))).await.ok()).await;
}

/// Connections over which nothing is ever said count like any other.
#[tokio::test]
async fn silent_connections_count_too() {
    let server = Arc::new(Prism::start(Options::new().config("[limits]\nmax_connections = 40\n")).await);
    let address = server.endpoints().admin.parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..100 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((source(1), 0).into()).unwrap();
        silent.push(socket.connect(address).await.unwrap());
    }
    until("a refusal", async || check(&from(&server, source(1))).await.err()).await;
    Cli::of(&server).run("whoami").ok();
    check(&from(&server, source(2))).await.unwrap();
}
