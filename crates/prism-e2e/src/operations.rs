//! Every operation on data, for what stops or allows them as a class.

use prism_proto::{
    keyvalue::v1 as kv, pubsub::v1 as pubsub, queue::v1 as queue, reader::v1 as reader, transact::v1 as transact,
};
use tonic::Status;

use crate::data::Session;
use crate::site::{Pattern, Site};
use crate::wait::within;

/// One session per pattern.
pub struct All {
    /// KEY_VALUE.
    pub kv: Session,
    /// QUEUE.
    pub queue: Session,
    /// PUBSUB.
    pub pubsub: Session,
    /// PAGED_READER.
    pub reader: Session,
    /// TRANSACT_WRITE.
    pub transact: Session,
}

impl All {
    /// Opens them.
    pub async fn open(site: &Site) -> Self {
        Self {
            kv: site.session(Pattern::KeyValue).await,
            queue: site.session(Pattern::Queue).await,
            pubsub: site.session(Pattern::PubSub).await,
            reader: site.session(Pattern::Reader).await,
            transact: site.session(Pattern::Transact).await,
        }
    }

    /// Tries every write of contract §9 "READ_ONLY, writes are", once.
    pub async fn writes(&self) -> Vec<(&'static str, Result<(), Status>)> {
        let key = || "k".to_owned();
        let entry = kv::BatchPutEntry { key: key(), ..Default::default() };
        let message = queue::BatchMessage::default();
        let batch = queue::PublishBatchRequest { topic: "t".to_owned(), messages: vec![message], ..Default::default() };
        let event = pubsub::PublishRequest { topic: "t".to_owned(), ..Default::default() };
        let mailbox = transact::MailboxWrite { mailbox_id: "m".to_owned(), ..Default::default() };
        let write = transact::WriteRequest { mailbox: Some(mailbox), ..Default::default() };
        vec![
            ("Put", self.kv.kv().put(kv::PutRequest { key: key(), ..Default::default() }).await.map(drop)),
            (
                "BatchPut",
                self.kv
                    .kv()
                    .batch_put(kv::BatchPutRequest { entries: vec![entry], ..Default::default() })
                    .await
                    .map(drop),
            ),
            ("Delete", self.kv.kv().delete(kv::DeleteRequest { key: key(), ..Default::default() }).await.map(drop)),
            ("Publish", self.queue.publish("t", b"1").await.map(drop)),
            ("PublishBatch", self.queue.queue().publish_batch(batch).await.map(drop)),
            ("event", self.pubsub.pub_sub().publish(event).await.map(drop)),
            ("Write", self.transact.transact().write(write).await.map(drop)),
            ("Transaction", transaction(&self.transact).await),
        ]
    }

    /// Tries every read that contract §9 "maintenance" names, once.
    pub async fn reads(&self) -> Vec<(&'static str, Result<(), Status>)> {
        let key = || "k".to_owned();
        let collection = || "items".to_owned();
        let mailbox = transact::ReadMailboxRequest { mailbox_id: "m".to_owned(), ..Default::default() };
        let events = pubsub::SubscribeRequest { topic_pattern: "t".to_owned(), ..Default::default() };
        let info = queue::GetTopicInfoRequest { topic: "t".to_owned(), ..Default::default() };
        vec![
            ("Get", self.kv.get("k").await.map(drop)),
            (
                "BatchGet",
                self.kv.kv().batch_get(kv::BatchGetRequest { keys: vec![key()], ..Default::default() }).await.map(drop),
            ),
            ("List", self.kv.kv().list(kv::ListRequest::default()).await.map(drop)),
            ("GetTopicInfo", self.queue.queue().get_topic_info(info).await.map(drop)),
            ("Subscribe", self.queue.subscribe("t", "g").await.map(drop)),
            ("events", self.pubsub.pub_sub().subscribe(events).await.map(drop)),
            (
                "Read",
                self.reader
                    .reader()
                    .read(reader::ReadRequest { collection: collection(), ..Default::default() })
                    .await
                    .map(drop),
            ),
            (
                "Query",
                self.reader
                    .reader()
                    .query(reader::QueryRequest { collection: collection(), ..Default::default() })
                    .await
                    .map(drop),
            ),
            (
                "Count",
                self.reader
                    .reader()
                    .count(reader::CountRequest { collection: collection(), ..Default::default() })
                    .await
                    .map(drop),
            ),
            ("ReadMailbox", self.transact.transact().read_mailbox(mailbox).await.map(drop)),
        ]
    }
}

/// Begins and commits an empty transaction.
pub async fn transaction(session: &Session) -> Result<(), Status> {
    use transact::transaction_request::Request;
    let steps =
        [Request::Begin(transact::BeginTransaction::default()), Request::Commit(transact::CommitTransaction {})];
    let steps = steps.map(|step| transact::TransactionRequest { request: Some(step) });
    let mut answers = session.transact().transaction(tokio_stream::iter(steps)).await?.into_inner();
    while within("the transaction", answers.message()).await?.is_some() {}
    Ok(())
}
