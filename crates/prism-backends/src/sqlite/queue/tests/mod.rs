mod durability;
mod model;
mod races;
mod retention;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use prism_core::config::{self, AccessPattern, BackendType, Config};
use prism_core::session::SessionId;
use prism_core::storage::StorageMeter;
use prism_core::{Clock, ConfigName, InstanceName, NamespaceName, Result, UnixMillis};

use super::Coordinator;
use crate::conformance::{Subject, queue};
use crate::driver::{ConsumerId, Delivery, Publication, Queue, QueueSubscription, StartPosition, SubscribeRequest};
use crate::sqlite::SqliteBackend;
use crate::sqlite::space::Space;

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_every_queue_does() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(UnixMillis(1_700_000_000_000));
    let name = InstanceName::parse("instance", "main").unwrap();
    let backend = SqliteBackend::open(name, folder.path().to_owned(), clock.clone()).await.unwrap();
    queue::run(&Subject { backend, clock }).await;
}

/// A queue on a file of its own, with everything at hand that a driver's caller does not see.
struct Fixture {
    space: Arc<Space>,
    coordinator: Arc<Coordinator>,
    queue: Arc<dyn Queue>,
    meter: Arc<StorageMeter>,
    clock: Clock,
}

fn open(path: &Path, options: &[(&str, &str)]) -> Fixture {
    let namespace = NamespaceName::parse("namespace", "default").unwrap();
    let (meter, clock) = (StorageMeter::new(namespace.clone()), Clock::manual(UnixMillis(1_700_000_000_000)));
    let space = Arc::new(Space::open(path, namespace.clone(), Arc::clone(&meter), clock.clone()).unwrap());
    let coordinator = Coordinator::open(Arc::clone(&space)).unwrap();
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let queue = coordinator.handle(&Config {
        name: ConfigName::parse("name", "test").unwrap(),
        version: "1".to_owned(),
        pattern: AccessPattern::Queue,
        backend: config::Backend { kind: BackendType::Sqlite, options, pool: None },
        instance: InstanceName::parse("instance", "main").unwrap(),
        consistency: None,
        cache: None,
        rate_limit: None,
        namespace,
    });
    Fixture { space, coordinator, queue, meter, clock }
}

/// Opens what a kill at this moment would leave: the file and its log as they are now.
fn open_after_kill(from: &Path, to: &Path, options: &[(&str, &str)]) -> Fixture {
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(name(from), name(to)).unwrap();
    }
    open(to, options)
}

fn message(payload: &str) -> Publication {
    Publication {
        payload: Bytes::from(payload.to_owned()),
        headers: BTreeMap::new(),
        partition_key: None,
        partition: None,
    }
}

async fn fill(queue: &Arc<dyn Queue>, count: usize) {
    for result in queue.publish_many("t", vec![message("0123456789"); count]).await.unwrap() {
        result.unwrap();
    }
}

struct Consumer {
    session: SessionId,
    subscription: Box<dyn QueueSubscription>,
    deliveries: futures::stream::BoxStream<'static, Result<Delivery>>,
}

async fn subscribe(queue: &Arc<dyn Queue>) -> Consumer {
    let session = SessionId::generate();
    let request = SubscribeRequest {
        topic: "t".to_owned(),
        group: "g".to_owned(),
        start: StartPosition::Committed,
        max_in_flight: 10_000,
        consumer: ConsumerId { session, subscription: 0 },
    };
    let mut subscription = queue.subscribe(request).await.unwrap();
    let deliveries = subscription.deliveries();
    Consumer { session, subscription, deliveries }
}

impl Consumer {
    async fn next(&mut self) -> Option<Result<Delivery>> {
        tokio::time::timeout(Duration::from_secs(5), self.deliveries.next()).await.expect("something is due")
    }

    async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.next().await.unwrap().unwrap());
        }
        all
    }

    /// The next `count` messages, after which nothing comes.
    async fn rest(&mut self, count: usize) -> Vec<Delivery> {
        let all = self.take(count).await;
        assert_eq!(offsets(&self.drain().await), [0; 0]);
        all
    }

    /// Whatever comes until nothing comes any more.
    async fn drain(&mut self) -> Vec<Delivery> {
        let mut all = Vec::new();
        while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(150), self.deliveries.next()).await {
            all.push(delivery.unwrap());
        }
        all
    }
}

fn ids<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> Vec<String> {
    deliveries.into_iter().map(|delivery| delivery.message_id.clone()).collect()
}

fn offsets(deliveries: &[Delivery]) -> Vec<i64> {
    deliveries.iter().map(|delivery| delivery.offset).collect()
}
