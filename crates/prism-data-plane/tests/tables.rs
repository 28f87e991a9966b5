//! Transactions, mailboxes and reads on the embedded backend, and what lies beside the services.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Node, fields, next, refused, said};
use prism_core::control::{DataNode, DrainOutcome, DrainScope, NamespaceStatus, Quota};
use prism_core::session::SessionId;
use prism_proto::reader::v1::reader_service_client::ReaderServiceClient;
use prism_proto::reader::v1::{CountRequest, QueryRequest, ReadRequest};
use prism_proto::session::v1::CreateSessionResponse;
use prism_proto::transact::v1::transact_service_client::TransactServiceClient;
use prism_proto::transact::v1::transaction_request::Request as Step;
use prism_proto::transact::v1::transaction_response::Response as Answer;
use prism_proto::transact::v1::{
    BeginTransaction, CommitTransaction, DataWrite, MailboxWrite, ReadMailboxRequest, RollbackTransaction,
    TransactionOptions, TransactionRequest, TransactionResponse, WriteMode, WriteRequest,
};
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

fn text(value: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn insert(id: &str) -> WriteRequest {
    let quantity = prost_types::Value { kind: Some(Kind::NumberValue(1.0)) };
    let record = BTreeMap::from([("id".to_owned(), text(id)), ("quantity".to_owned(), quantity)]);
    WriteRequest {
        data: Some(DataWrite { table: "items".to_owned(), record, mode: WriteMode::Insert.into(), id_field: None }),
        mailbox: Some(MailboxWrite {
            mailbox_id: "box".to_owned(),
            message: id.to_owned().into(),
            metadata: [].into(),
        }),
        ..WriteRequest::default()
    }
}

/// An open transaction.
struct Talk {
    steps: mpsc::Sender<TransactionRequest>,
    answers: Streaming<TransactionResponse>,
}

impl Talk {
    /// Nothing is sent before the answer's headers are there: a client may wait for them.
    async fn open(node: &Node, token: &str) -> Self {
        let (steps, requests) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("x-session-token", token.parse().unwrap());
        let answers = TransactServiceClient::new(node.channel.clone()).transaction(request).await.unwrap().into_inner();
        Self { steps, answers }
    }

    async fn begin(node: &Node, token: &str, timeout_ms: i32) -> Self {
        let mut talk = Self::open(node, token).await;
        let options = TransactionOptions { timeout_ms, ..TransactionOptions::default() };
        let begin = BeginTransaction { session_token: token.to_owned(), options: Some(options) };
        assert!(matches!(talk.say(Step::Begin(begin)).await, Ok(Some(Answer::Started(_)))));
        talk
    }

    async fn say(&mut self, step: Step) -> Result<Option<Answer>, Status> {
        self.steps.send(TransactionRequest { request: Some(step) }).await.unwrap();
        self.hear().await
    }

    async fn hear(&mut self) -> Result<Option<Answer>, Status> {
        Ok(next(&mut self.answers).await?.and_then(|answer| answer.response))
    }
}

struct Fixture {
    node: Node,
    writer: CreateSessionResponse,
    reader: String,
}

impl Fixture {
    async fn new() -> Self {
        let node = Node::start().await;
        let (writer, reader) = (node.session("transact").await, node.session("reader").await.session_token);
        Self { node, writer, reader }
    }

    fn token(&self) -> &str {
        &self.writer.session_token
    }

    async fn write(&self, request: WriteRequest) -> Result<(), Status> {
        let request = WriteRequest { session_token: self.token().to_owned(), ..request };
        TransactServiceClient::new(self.node.channel.clone()).write(request).await.map(|answer| {
            assert!(answer.into_inner().committed);
        })
    }

    async fn rows(&self) -> i64 {
        let request = CountRequest { session_token: self.reader.clone(), collection: "items".to_owned(), filter: None };
        ReaderServiceClient::new(self.node.channel.clone()).count(request).await.unwrap().into_inner().count
    }

    async fn mailbox(&self, since: i64, limit: i32) -> Vec<i64> {
        let request = ReadMailboxRequest {
            session_token: self.token().to_owned(),
            mailbox_id: "box".to_owned(),
            since_sequence: Some(since),
            limit: Some(limit),
        };
        let mut client = TransactServiceClient::new(self.node.channel.clone());
        let mut stream = client.read_mailbox(request).await.unwrap().into_inner();
        let mut sequences = Vec::new();
        while let Some(message) = next(&mut stream).await.unwrap() {
            sequences.push(message.sequence);
        }
        sequences
    }
}

#[tokio::test]
async fn a_write_is_both_or_neither_and_a_mailbox_is_read_to_its_end() {
    let fixture = Fixture::new().await;
    for number in 0..40 {
        fixture.write(insert(&format!("i{number:02}"))).await.unwrap();
    }
    assert_eq!(said(&fixture.write(insert("i00")).await.unwrap_err()).0, Code::AlreadyExists);
    assert_eq!(fixture.rows().await, 40);
    let all = fixture.mailbox(0, 0).await;
    assert_eq!(all.len(), 40);
    assert_eq!(fixture.mailbox(all[9], 20).await, all[10..30]);
    let nothing = fixture.write(WriteRequest::default()).await;
    assert_eq!(fields(&refused(nothing, Code::InvalidArgument, "INVALID_ARGUMENT")), ["data"]);
}

#[tokio::test]
async fn a_transaction_commits_as_a_whole() {
    let fixture = Fixture::new().await;
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
    for id in ["a", "b"] {
        let Ok(Some(Answer::WriteResult(result))) = talk.say(Step::Write(insert(id))).await else {
            panic!("no result")
        };
        assert!(!result.committed);
        assert_eq!(result.data_result.unwrap().rows_affected, 1);
    }
    assert_eq!(fixture.rows().await, 0, "nothing is kept before the commit");
    assert!(matches!(talk.say(Step::Commit(CommitTransaction {})).await, Ok(Some(Answer::Committed(_)))));
    assert_eq!(talk.hear().await.unwrap(), None);
    assert_eq!((fixture.rows().await, fixture.mailbox(0, 0).await.len()), (2, 2));
}

#[tokio::test]
async fn a_transaction_that_is_not_committed_leaves_nothing() {
    let fixture = Fixture::new().await;
    let open = || async {
        let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
        talk.say(Step::Write(insert("a"))).await.unwrap();
        talk
    };
    let mut talk = open().await;
    assert!(matches!(talk.say(Step::Rollback(RollbackTransaction {})).await, Ok(Some(Answer::RolledBack(_)))));
    // The client's side ends without a commit.
    let Talk { steps, mut answers } = open().await;
    drop(steps);
    let last = next(&mut answers).await.unwrap().and_then(|answer| answer.response);
    assert!(matches!(last, Some(Answer::RolledBack(_))));
    // The client is gone.
    drop(open().await);
    // A refused write takes the rest with it.
    let mut talk = open().await;
    assert_eq!(said(&talk.say(Step::Write(insert("a"))).await.unwrap_err()).0, Code::AlreadyExists);
    // An operator cuts it.
    let mut talk = open().await;
    let id = SessionId::parse(&fixture.writer.session_id).unwrap();
    fixture.node.plane.terminate(id, true, "stop").await;
    assert_eq!(said(&talk.hear().await.unwrap_err()), (Code::Aborted, "SESSION_TERMINATED".to_owned()));
    assert_eq!(fixture.rows().await, 0);
}

#[tokio::test]
async fn a_transaction_has_an_order_and_an_end() {
    let fixture = Fixture::new().await;
    let mut talk = Talk::open(&fixture.node, fixture.token()).await;
    let refusal = talk.say(Step::Write(insert("a"))).await;
    assert_eq!(fields(&refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT")), ["begin"]);
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
    let again = talk.say(Step::Begin(BeginTransaction::default())).await;
    assert_eq!(fields(&refused(again, Code::InvalidArgument, "INVALID_ARGUMENT")), ["begin"]);
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
    let foreign = WriteRequest { session_token: fixture.reader.clone(), ..insert("a") };
    let refusal = talk.say(Step::Write(foreign)).await;
    assert_eq!(fields(&refused(refusal, Code::InvalidArgument, "INVALID_ARGUMENT")), ["write.session_token"]);
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 50).await;
    refused(talk.hear().await, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let mut talk = Talk::open(&fixture.node, "nonsense").await;
    let refusal = talk.say(Step::Begin(BeginTransaction::default())).await;
    refused(refusal, Code::Unauthenticated, "SESSION_TOKEN_INVALID");
}

#[tokio::test]
async fn an_open_transaction_outlives_a_drain_that_waits_for_it() {
    let fixture = Fixture::new().await;
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
    let outcome = fixture.node.plane.drain(&DrainScope::default(), Duration::from_millis(50), false).await;
    assert_eq!(outcome, DrainOutcome { drained: 1, remaining: 1 }, "the reader goes, the transaction stays");
    talk.say(Step::Write(insert("a"))).await.unwrap();
    let plane = std::sync::Arc::clone(&fixture.node.plane);
    let drain = tokio::spawn(async move { plane.drain(&DrainScope::default(), Duration::from_secs(20), false).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    talk.say(Step::Write(insert("b"))).await.unwrap();
    assert!(matches!(talk.say(Step::Commit(CommitTransaction {})).await, Ok(Some(Answer::Committed(_)))));
    assert_eq!(drain.await.unwrap(), DrainOutcome { drained: 1, remaining: 0 });
}

#[tokio::test]
async fn read_only_ends_an_open_transaction() {
    let fixture = Fixture::new().await;
    let mut talk = Talk::begin(&fixture.node, fixture.token(), 0).await;
    fixture.node.control.namespace("default", NamespaceStatus::ReadOnly, Quota::default());
    refused(talk.hear().await, Code::FailedPrecondition, "NAMESPACE_READ_ONLY");
}

#[tokio::test]
async fn reads_stream_to_the_end() {
    let fixture = Fixture::new().await;
    for number in 0..25 {
        fixture.write(insert(&format!("i{number:02}"))).await.unwrap();
    }
    let mut client = ReaderServiceClient::new(fixture.node.channel.clone());
    let read = |cursor| ReadRequest {
        session_token: fixture.reader.clone(),
        collection: "items".to_owned(),
        page_size: 10,
        cursor,
        ..ReadRequest::default()
    };
    let mut stream = client.read(read(None)).await.unwrap().into_inner();
    let mut pages = Vec::new();
    while let Some(page) = next(&mut stream).await.unwrap() {
        assert_eq!(page.has_more, page.next_cursor.is_some());
        pages.push(page);
    }
    assert_eq!(pages.iter().map(|page| page.rows.len()).collect::<Vec<_>>(), [10, 10, 5]);
    let mut rest = client.read(read(pages[1].next_cursor.clone())).await.unwrap().into_inner();
    assert_eq!(next(&mut rest).await.unwrap().unwrap().rows, pages[2].rows);
    let query = QueryRequest {
        session_token: fixture.reader.clone(),
        collection: "items".to_owned(),
        page_size: 7,
        fields: vec!["id".to_owned()],
        ..QueryRequest::default()
    };
    let mut stream = client.query(query.clone()).await.unwrap().into_inner();
    let mut rows = 0;
    while next(&mut stream).await.unwrap().is_some() {
        rows += 1;
    }
    assert_eq!(rows, 25);
    let foreign = QueryRequest { collection: "secrets; DROP TABLE items".to_owned(), ..query };
    let mut stream = client.query(foreign).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn health_and_reflection_are_open() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let node = Node::start().await;
    let mut health = HealthClient::new(node.channel.clone());
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    assert_eq!(check("").await, ServingStatus::Serving);
    assert_eq!(check("prism.queue.v1.QueueService").await, ServingStatus::Serving);
    node.plane.shutdown(std::time::Instant::now()).await;
    assert_eq!(check("prism.queue.v1.QueueService").await, ServingStatus::NotServing);
}
