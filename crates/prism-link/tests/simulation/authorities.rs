//! The cluster's CA on its way to the nodes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use prism_core::{Clock, NodeId, Result, UnixMillis};
use prism_link::bounds::MAX_AUTHORITIES_BYTES;
use prism_link::{Closed, Connector, ControllerEnd, Fleet, FleetOptions, NodeEnd, NodeLink, NodeLinkOptions};
use prism_proto::cluster::v1 as wire;
use tokio::sync::mpsc;

use crate::control::Control;
use crate::world::Dice;

/// Connects to a fleet in the same process, and remembers what it was told of the CA.
struct Straight {
    fleet: Arc<Fleet>,
    told: Arc<Mutex<Vec<Vec<u8>>>>,
}

#[async_trait]
impl Connector for Straight {
    async fn connect(&self, _: &str) -> Result<NodeEnd> {
        let (up, down) = (mpsc::channel::<wire::NodeFrame>(64), mpsc::channel::<wire::ControllerFrame>(64));
        let told = Arc::clone(&self.told);
        let incoming = stream(down.1).inspect(move |frame| {
            if let Ok(wire::ControllerFrame { frame: Some(wire::controller_frame::Frame::Authorities(now)) }) = frame {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(now.ca_certificate_pem.to_vec());
            }
        });
        let end = ControllerEnd { incoming: stream(up.1).boxed(), outgoing: Box::pin(sink(down.0)) };
        let fleet = Arc::clone(&self.fleet);
        tokio::spawn(async move { fleet.serve(node(), end).await });
        Ok(NodeEnd { incoming: incoming.boxed(), outgoing: Box::pin(sink(up.0)) })
    }
}

fn stream<T: Send + 'static>(taken: mpsc::Receiver<T>) -> impl futures::Stream<Item = Result<T>> + Send {
    futures::stream::unfold(taken, |mut taken| async move { taken.recv().await.map(|item| (Ok(item), taken)) })
}

fn sink<T: Send + 'static>(given: mpsc::Sender<T>) -> impl futures::Sink<T, Error = Closed> + Send {
    futures::sink::unfold(given, |given, frame| async move {
        given.send(frame).await.map_err(|_| Closed)?;
        Ok(given)
    })
}

fn node() -> NodeId {
    NodeId::parse("node", "n1").unwrap()
}

#[test]
fn a_node_hears_of_the_ca_when_it_comes_and_whenever_it_changes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let clock = Clock::manual(UnixMillis(1_000_000));
        let options = FleetOptions {
            control: Control::new(clock.clone(), Dice::new(1)),
            id: NodeId::parse("node", "controller").unwrap(),
            cluster: "prism".to_owned(),
            epoch: 1,
            clock: clock.clone(),
            certifier: None,
        };
        let fleet = Arc::new(Fleet::start(options).await.unwrap());
        fleet.tell_authorities("one");
        let told = Arc::new(Mutex::default());
        let folder = tempfile::tempdir().unwrap();
        let link = NodeLink::start(NodeLinkOptions {
            node: node(),
            process: 1,
            controllers: vec!["any".to_owned()],
            connector: Arc::new(Straight { fleet: Arc::clone(&fleet), told: Arc::clone(&told) }),
            storage: Arc::new(prism_link::Files::new(folder.path())),
            version: "1".to_owned(),
            backends: Vec::new(),
            stored: Vec::new(),
            data_endpoint: "127.0.0.1:1".to_owned(),
            clock,
            jitter: Box::new(|pause| pause),
        });
        let link = link.await.unwrap();
        let mut heard = link.authorities();
        let mut next = async || {
            let changed = tokio::time::timeout(Duration::from_mins(1), heard.changed());
            changed.await.expect("it is told").unwrap();
            String::from_utf8(heard.borrow_and_update().as_ref().unwrap().to_vec()).unwrap()
        };
        assert_eq!(next().await, "one");
        fleet.tell_authorities("two");
        assert_eq!(next().await, "two");
        // The same again is not sent.
        fleet.tell_authorities("two");
        fleet.tell_authorities("three");
        assert_eq!(next().await, "three");
        let words = |told: &Mutex<Vec<Vec<u8>>>| told.lock().unwrap().concat();
        assert_eq!(words(&told), b"onetwothree");

        // What is too large is not taken, and ends the link.
        fleet.tell_authorities(&"x".repeat(MAX_AUTHORITIES_BYTES + 1));
        tokio::time::sleep(Duration::from_secs(10)).await;
        fleet.tell_authorities("four");
        assert_eq!(next().await, "four");
        assert!(told.lock().unwrap().len() > 5, "each connection is told");
    });
}
