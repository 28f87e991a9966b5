//! What QUEUE means, on every driver.

mod delivery;
mod position;
mod publish;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use prism_core::config::AccessPattern;
use prism_core::session::SessionId;
use prism_core::storage::StorageMeter;

use super::Subject;
use crate::driver::{
    ConsumerId, Delivery, Publication, Published, Queue, QueueSubscription, Route, StartPosition, SubscribeRequest,
};

/// How long a message may take to arrive, beside what the check itself waits for.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing must arrive to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(100);
/// The `ack_timeout_ms` of checks that wait for it.
const SHORT_ACK_TIMEOUT: Duration = Duration::from_millis(400);

/// Runs all checks.
pub async fn run(subject: &Subject) {
    publish::run(subject).await;
    delivery::run(subject).await;
    position::run(subject).await;
}

async fn open_metered(
    subject: &Subject,
    namespace: &str,
    options: &[(&str, &str)],
) -> (Arc<dyn Queue>, Arc<StorageMeter>) {
    match subject.open(namespace, AccessPattern::Queue, options).await {
        (Route::Queue(queue), meter) => (queue, meter),
        _ => panic!("the backend opened another pattern"),
    }
}

async fn open(subject: &Subject, namespace: &str) -> Arc<dyn Queue> {
    open_metered(subject, namespace, &[]).await.0
}

async fn open_partitioned(subject: &Subject, namespace: &str, partitions: &str) -> Arc<dyn Queue> {
    open_metered(subject, namespace, &[("partitions", partitions)]).await.0
}

async fn open_impatient(subject: &Subject, namespace: &str) -> Arc<dyn Queue> {
    let timeout = SHORT_ACK_TIMEOUT.as_millis().to_string();
    open_metered(subject, namespace, &[("ack_timeout_ms", &timeout)]).await.0
}

fn message(payload: impl Into<String>) -> Publication {
    Publication { payload: Bytes::from(payload.into()), headers: BTreeMap::new(), partition_key: None, partition: None }
}

/// Publishes `0`, `1`, ... to topic `t`.
async fn fill(queue: &Arc<dyn Queue>, count: usize) -> Vec<Published> {
    let results = queue.publish_many("t", (0..count).map(|n| message(n.to_string())).collect()).await.unwrap();
    results.into_iter().map(Result::unwrap).collect()
}

/// A subscription with its stream. Dropping it drops the subscription.
struct Consumer {
    session: SessionId,
    subscription: Box<dyn QueueSubscription>,
    deliveries: futures::stream::BoxStream<'static, prism_core::Result<Delivery>>,
}

async fn subscribe(queue: &Arc<dyn Queue>, group: &str) -> Consumer {
    consume(queue, SessionId::generate(), group, StartPosition::Committed, 1000).await
}

async fn consume(
    queue: &Arc<dyn Queue>,
    session: SessionId,
    group: &str,
    start: StartPosition,
    max_in_flight: usize,
) -> Consumer {
    static SUBSCRIPTIONS: AtomicU64 = AtomicU64::new(0);
    let subscription = SUBSCRIPTIONS.fetch_add(1, Ordering::Relaxed);
    let request = SubscribeRequest {
        topic: "t".to_owned(),
        group: group.to_owned(),
        start,
        max_in_flight,
        consumer: ConsumerId { session, subscription },
    };
    let mut subscription = queue.subscribe(request).await.unwrap();
    let deliveries = subscription.deliveries();
    Consumer { session, subscription, deliveries }
}

impl Consumer {
    async fn next(&mut self) -> Delivery {
        self.next_within(ARRIVES_WITHIN).await.expect("a message is due").expect("the subscription runs")
    }

    /// `Err`: nothing came; `Ok(None)`: the stream ended.
    async fn next_within(&mut self, time: Duration) -> Result<Option<Delivery>, tokio::time::error::Elapsed> {
        Ok(tokio::time::timeout(time, self.deliveries.next()).await?.map(|delivery| delivery.expect("no failure")))
    }

    async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            all.push(self.next().await);
        }
        all
    }

    /// Payloads of the next `count` messages, as numbers.
    async fn numbers(&mut self, count: usize) -> Vec<usize> {
        self.take(count).await.iter().map(number).collect()
    }

    async fn is_silent(&mut self) -> bool {
        self.next_within(SILENCE).await.is_err()
    }

    async fn acknowledge(&self, queue: &Arc<dyn Queue>, deliveries: &[Delivery]) -> Vec<String> {
        queue.acknowledge(self.session, ids(deliveries)).await.unwrap()
    }
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| delivery.message_id.clone()).collect()
}

fn number(delivery: &Delivery) -> usize {
    String::from_utf8(delivery.payload.to_vec()).unwrap().parse().unwrap()
}

fn attempts(deliveries: &[Delivery]) -> Vec<i32> {
    deliveries.iter().map(|delivery| delivery.attempt).collect()
}
