//! Callers without a credential who begin the request of an exchange and do not end it: they keep nobody from enrolling.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use prism_e2e::enrol::Machine;
use prism_e2e::raw::RawCodec;
use prism_e2e::wait::within;
use prism_e2e::{Failure, Options, Prism, dial};
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request};

/// Requests of one source of which something is still to come, the most that may be.
const PER_SOURCE: usize = 1024;
const CHANNELS: usize = 4;

fn from(server: &Prism, number: u8) -> Channel {
    let source = Ipv4Addr::new(127, 0, 9, number);
    dial::tls_from(source, &server.endpoints().admin, &server.data_dir().join("ca.pem"))
}

/// Begins an exchange, and says no more.
async fn stalls(channel: Channel) -> Failure {
    let path = http::uri::PathAndQuery::from_static("/prism.cluster.v1.BootstrapService/ExchangeJoinToken");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("a connection");
    let never = Request::new(tokio_stream::pending::<Bytes>());
    let answer = grpc.client_streaming::<_, Bytes, Bytes, _>(never, path, RawCodec).await;
    Failure::from(&answer.expect_err("a refusal"))
}

fn stall(tasks: &mut JoinSet<Failure>, server: &Prism, source: u8, count: usize) {
    let channels: Vec<_> = (0..CHANNELS).map(|_| from(server, source)).collect();
    for number in 0..count {
        tasks.spawn(stalls(channels[number % CHANNELS].clone()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_addresses_do_not_keep_a_third_from_enrolling() {
    let server = Prism::start(Options::new().config("[limits]\nauth_failures = 10000\n")).await;
    let admin = server.admin();
    let token = admin.create_join_token("").await.join_token;
    let mut slow = JoinSet::new();
    for source in [1, 2] {
        stall(&mut slow, &server, source, PER_SOURCE);
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    // One more of theirs is refused at once, and a third address is served.
    stalls(from(&server, 1)).await.is(Code::ResourceExhausted, "TOO_MANY_CALLS");
    Machine::new().exchange(&from(&server, 3), &token, "n1").await.unwrap();
    let ends = within("their time is over", slow.join_all()).await;
    assert_eq!(ends.len(), 2 * PER_SOURCE);
    for end in ends {
        assert_eq!(end.reason, "REQUEST_TOO_SLOW", "{end:?}");
    }
    let token = admin.create_join_token("").await.join_token;
    Machine::new().exchange(&from(&server, 1), &token, "n2").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_again_and_again_pays_like_for_a_wrong_credential() {
    let server = Prism::start(Options::new().config("[limits]\nauth_failures = 3\n")).await;
    let token = server.admin().create_join_token("").await.join_token;
    let mut slow = JoinSet::new();
    stall(&mut slow, &server, 1, 60);
    let ends = within("their time is over", slow.join_all()).await;
    let (paid, told): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.reason == "TOO_MANY_FAILURES");
    assert!(told.iter().all(|end| end.reason == "REQUEST_TOO_SLOW"), "{told:?}");
    assert!(!paid.is_empty(), "all of {} were told that they are slow", told.len());
    // Who is right never pays.
    Machine::new().exchange(&from(&server, 1), &token, "n1").await.unwrap();
}
