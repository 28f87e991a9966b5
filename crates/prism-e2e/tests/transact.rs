//! TransactService on the embedded backend: contract §4, §9 "transact" and "tables".

use std::collections::BTreeMap;
use std::time::Duration;

use prism_e2e::rows::{item, number, text, write};
use prism_e2e::wait::{next, until};
use prism_e2e::{Options, Pattern, Refused as _, Session, Shared, Site};
use prism_proto::reader::v1::{CountRequest, ReadRequest};
use prism_proto::transact::v1::transaction_request::Request as Step;
use prism_proto::transact::v1::transaction_response::Response as Answer;
use prism_proto::transact::v1::{
    BeginTransaction, CommitTransaction, MailboxWrite, ReadMailboxRequest, ReadMailboxResponse, RollbackTransaction,
    TransactionOptions, TransactionRequest, TransactionResponse, WriteMode, WriteRequest, WriteResponse,
};
use prost_types::Value;
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

static SERVER: Shared = Shared::new();

async fn site() -> Site {
    Site::new(SERVER.get(Options::new()).await).await
}

fn mail(mailbox: &str, message: &str) -> MailboxWrite {
    MailboxWrite { mailbox_id: mailbox.to_owned(), message: message.to_owned().into(), ..Default::default() }
}

async fn send(session: &Session, request: WriteRequest) -> Result<WriteResponse, Status> {
    Ok(session.transact().write(request).await?.into_inner())
}

async fn rows(site: &Site) -> Vec<BTreeMap<String, Value>> {
    let reader = site.session(Pattern::Reader).await;
    let request = ReadRequest { collection: "items".to_owned(), ..Default::default() };
    let mut pages = reader.reader().read(request).await.unwrap().into_inner();
    let mut rows = Vec::new();
    while let Some(page) = next("a page", &mut pages).await {
        rows.extend(page.unwrap().rows.into_iter().map(|row| row.fields));
    }
    rows
}

async fn mailbox(session: &Session, request: ReadMailboxRequest) -> Vec<ReadMailboxResponse> {
    let mut stream = session.transact().read_mailbox(request).await.unwrap().into_inner();
    let mut messages = Vec::new();
    while let Some(message) = next("a message", &mut stream).await {
        messages.push(message.unwrap());
    }
    messages
}

fn all_of(mailbox: &str) -> ReadMailboxRequest {
    ReadMailboxRequest { mailbox_id: mailbox.to_owned(), ..Default::default() }
}

fn affected(answer: &WriteResponse) -> i64 {
    answer.data_result.as_ref().unwrap().rows_affected
}

#[tokio::test]
async fn insert_update_upsert_and_delete() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let answer = send(&session, write(WriteMode::Insert, item("a", "bolt", 1.0, 0.5))).await.unwrap();
    assert!(answer.committed && affected(&answer) == 1 && !answer.transaction_id.is_empty());
    assert_eq!(rows(&site).await, [item("a", "bolt", 1.0, 0.5)]);
    let duplicate = send(&session, write(WriteMode::Insert, item("a", "nut", 2.0, 1.0))).await.refused();
    assert_eq!(duplicate.code, Code::AlreadyExists);
    let part = [("id", text("a")), ("quantity", number(7.0))].map(|(k, v)| (k.to_owned(), v)).into();
    assert_eq!(affected(&send(&session, write(WriteMode::Update, part)).await.unwrap()), 1);
    assert_eq!(rows(&site).await, [item("a", "bolt", 7.0, 0.5)]);
    assert_eq!(affected(&send(&session, write(WriteMode::Update, item("z", "x", 0.0, 0.0))).await.unwrap()), 0);
    send(&session, write(WriteMode::Upsert, item("a", "nut", 8.0, 1.0))).await.unwrap();
    send(&session, write(WriteMode::Upsert, item("b", "nut", 9.0, 1.0))).await.unwrap();
    assert_eq!(rows(&site).await, [item("a", "nut", 8.0, 1.0), item("b", "nut", 9.0, 1.0)]);
    let key = BTreeMap::from([("id".to_owned(), text("a"))]);
    assert_eq!(affected(&send(&session, write(WriteMode::Delete, key)).await.unwrap()), 1);
    assert_eq!(rows(&site).await.len(), 1);
}

#[tokio::test]
async fn both_writes_commit_or_neither() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let both =
        |id: &str| WriteRequest { mailbox: Some(mail("m", id)), ..write(WriteMode::Insert, item(id, "x", 0.0, 0.0)) };
    let answer = send(&session, both("a")).await.unwrap();
    assert_eq!((affected(&answer), answer.mailbox_result.unwrap().sequence), (1, 1));
    assert_eq!(send(&session, both("a")).await.refused().code, Code::AlreadyExists);
    assert_eq!(mailbox(&session, all_of("m")).await.len(), 1, "the mailbox write went with the other");
    assert_eq!(send(&session, both("b")).await.unwrap().mailbox_result.unwrap().sequence, 2);
    assert_eq!(
        send(&session, WriteRequest { mailbox: Some(mail("m", "alone")), ..Default::default() })
            .await
            .unwrap()
            .mailbox_result
            .unwrap()
            .sequence,
        3
    );
    assert_eq!(rows(&site).await.len(), 2);
}

#[tokio::test]
async fn a_mailbox_is_read_in_sequence_after_an_exclusive_start_and_ends_at_its_end() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    for number in 1..=40 {
        let mut message = mail("m", &number.to_string());
        message.metadata.insert("n".to_owned(), number.to_string());
        send(&session, WriteRequest { mailbox: Some(message), ..Default::default() }).await.unwrap();
    }
    let all = mailbox(&session, all_of("m")).await;
    assert_eq!(all.iter().map(|message| message.sequence).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert_eq!(
        (all[6].message.as_ref(), all[6].metadata["n"].as_str(), all[6].mailbox_id.as_str()),
        (&b"7"[..], "7", "m")
    );
    assert!(all.iter().all(|message| message.created_at.is_some() && !message.message_id.is_empty()));
    let some = mailbox(&session, ReadMailboxRequest { since_sequence: Some(38), ..all_of("m") }).await;
    assert_eq!(some.iter().map(|message| message.sequence).collect::<Vec<_>>(), [39, 40]);
    assert_eq!(mailbox(&session, ReadMailboxRequest { limit: Some(25), ..all_of("m") }).await.len(), 25);
    assert!(mailbox(&session, all_of("other")).await.is_empty());
    for (request, field) in [
        (all_of(""), "mailbox_id"),
        (ReadMailboxRequest { since_sequence: Some(-1), ..all_of("m") }, "since_sequence"),
        (ReadMailboxRequest { limit: Some(-1), ..all_of("m") }, "limit"),
    ] {
        session.transact().read_mailbox(request).await.refused().names(&[field]);
    }
}

#[tokio::test]
async fn only_the_tables_and_columns_of_the_config_can_be_written() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    for table in ["others", "sqlite_master", "_prism_kv", "items; DROP TABLE items"] {
        let mut request = write(WriteMode::Insert, item("a", "x", 0.0, 0.0));
        request.data.as_mut().unwrap().table = table.to_owned();
        assert_eq!(send(&session, request).await.refused().code, Code::PermissionDenied, "{table}");
    }
    let mut record = item("a", "x", 0.0, 0.0);
    record.insert("id) VALUES (1); --".to_owned(), text("x"));
    assert_eq!(send(&session, write(WriteMode::Insert, record)).await.refused().code, Code::InvalidArgument);
    // Values are bound, whatever they hold.
    let evil = "x'); DROP TABLE items; --";
    send(&session, write(WriteMode::Insert, item(evil, evil, 0.0, 0.0))).await.unwrap();
    assert_eq!(rows(&site).await, [item(evil, evil, 0.0, 0.0)]);
}

#[tokio::test]
async fn an_idempotency_key_writes_once() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let keyed = |id: &str| {
        let options = TransactionOptions { idempotency_key: Some("once".to_owned()), ..Default::default() };
        WriteRequest { options: Some(options), mailbox: Some(mail("m", id)), ..Default::default() }
    };
    let first = send(&session, keyed("a")).await.unwrap();
    let other = site.session(Pattern::Transact).await;
    assert_eq!(send(&other, keyed("a")).await.unwrap(), first, "from another session of the namespace too");
    assert_eq!(mailbox(&session, all_of("m")).await.len(), 1);
    assert_eq!(send(&session, keyed("b")).await.refused().code, Code::InvalidArgument);
}

#[tokio::test]
async fn idempotency_survives_a_crash() {
    let site = Site::new(std::sync::Arc::new(prism_e2e::Prism::start(Options::new()).await)).await;
    let session = site.session(Pattern::Transact).await;
    let options = TransactionOptions { idempotency_key: Some("once".to_owned()), ..Default::default() };
    let request = WriteRequest { options: Some(options), ..write(WriteMode::Insert, item("a", "x", 1.0, 1.0)) };
    let first = send(&session, request.clone()).await.unwrap();
    site.server.crash_and_restart().await;
    let session = session.on(&site.server.data_channel());
    assert_eq!(send(&session, request).await.unwrap(), first);
}

/// An open transaction stream.
struct Open {
    steps: Sender<TransactionRequest>,
    answers: Streaming<TransactionResponse>,
}

impl Open {
    async fn begin(session: &Session, options: Option<TransactionOptions>) -> Self {
        let mut open = Self::stream(session).await;
        let begin = BeginTransaction { options, ..Default::default() };
        assert!(matches!(open.ask(Step::Begin(begin)).await, Some(Ok(Answer::Started(_)))));
        open
    }

    async fn stream(session: &Session) -> Self {
        let (steps, received) = tokio::sync::mpsc::channel(16);
        let answers = session.transact().transaction(ReceiverStream::new(received)).await.unwrap().into_inner();
        Self { steps, answers }
    }

    async fn ask(&mut self, step: Step) -> Option<Result<Answer, Status>> {
        self.steps.send(TransactionRequest { request: Some(step) }).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Option<Result<Answer, Status>> {
        let answer = next("an answer", &mut self.answers).await?;
        Some(answer.map(|answer| answer.response.unwrap()))
    }
}

fn step(mode: WriteMode, id: &str) -> Step {
    Step::Write(write(mode, item(id, "x", 0.0, 0.0)))
}

#[tokio::test]
async fn a_transaction_commits_all_its_writes_at_once() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let mut open = Open::begin(&session, None).await;
    for id in ["a", "b"] {
        match open.ask(step(WriteMode::Insert, id)).await {
            Some(Ok(Answer::WriteResult(result))) => assert!(!result.committed && affected(&result) == 1),
            other => panic!("{other:?}"),
        }
    }
    assert!(rows(&site).await.is_empty(), "nothing can be seen before the commit");
    match open.ask(Step::Commit(CommitTransaction {})).await {
        Some(Ok(Answer::Committed(done))) => assert!(done.success),
        other => panic!("{other:?}"),
    }
    assert!(open.answer().await.is_none(), "the stream ends with OK");
    assert_eq!(rows(&site).await.len(), 2);
}

#[tokio::test]
async fn a_rollback_a_broken_stream_and_an_ended_stream_write_nothing() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let mut open = Open::begin(&session, None).await;
    open.ask(step(WriteMode::Insert, "a")).await.unwrap().unwrap();
    assert!(matches!(open.ask(Step::Rollback(RollbackTransaction {})).await, Some(Ok(Answer::RolledBack(_)))));

    let mut ended = Open::begin(&session, None).await;
    ended.ask(step(WriteMode::Insert, "b")).await.unwrap().unwrap();
    let Open { steps, mut answers } = ended;
    drop(steps);
    let last = next("an answer", &mut answers).await.unwrap().unwrap().response.unwrap();
    assert!(matches!(last, Answer::RolledBack(_)), "{last:?}");

    let mut broken = Open::begin(&session, None).await;
    broken.ask(step(WriteMode::Insert, "c")).await.unwrap().unwrap();
    drop(broken);
    until("the broken stream to be gone", async || {
        (site.admin.session(&session.id).await.metrics.unwrap().active_streams == 0).then_some(())
    })
    .await;
    assert!(rows(&site).await.is_empty());
    send(&session, write(WriteMode::Insert, item("a", "x", 0.0, 0.0))).await.unwrap();
}

#[tokio::test]
async fn a_conflict_is_found_at_the_commit_at_the_latest() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let (mut one, mut two) = (Open::begin(&session, None).await, Open::begin(&session, None).await);
    one.ask(step(WriteMode::Insert, "a")).await.unwrap().unwrap();
    let second = two.ask(step(WriteMode::Insert, "a")).await.unwrap();
    one.ask(Step::Commit(CommitTransaction {})).await.unwrap().unwrap();
    let refused = match second {
        Err(status) => Err(status),
        Ok(_) => two.ask(Step::Commit(CommitTransaction {})).await.unwrap(),
    };
    let code = refused.refused().code;
    assert!(matches!(code, Code::Aborted | Code::AlreadyExists), "{code:?}");
    assert_eq!(rows(&site).await.len(), 1);
}

#[tokio::test]
async fn a_stream_that_does_not_keep_the_order_or_its_time_is_refused() {
    let site = site().await;
    let session = site.session(Pattern::Transact).await;
    let mut early = Open::stream(&session).await;
    early.ask(step(WriteMode::Insert, "a")).await.refused().names(&["begin"]);
    let mut twice = Open::begin(&session, None).await;
    twice.ask(Step::Begin(BeginTransaction::default())).await.refused().names(&["begin"]);
    let options = TransactionOptions { timeout_ms: 300, ..Default::default() };
    let mut slow = Open::begin(&session, Some(options)).await;
    slow.ask(step(WriteMode::Insert, "b")).await.unwrap().unwrap();
    assert_eq!(slow.answer().await.refused().code, Code::DeadlineExceeded);
    let negative = TransactionOptions { timeout_ms: -1, ..Default::default() };
    let mut bad = Open::stream(&session).await;
    bad.ask(Step::Begin(BeginTransaction { options: Some(negative), ..Default::default() }))
        .await
        .refused()
        .names(&["begin.options.timeout_ms"]);
    let nobody = session.with_headers(prism_e2e::Headers::none());
    let mut stranger = Open::stream(&nobody).await;
    stranger
        .ask(Step::Begin(BeginTransaction::default()))
        .await
        .refused()
        .is(Code::Unauthenticated, "SESSION_TOKEN_INVALID");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reader = site.session(Pattern::Reader).await;
    let request = CountRequest { collection: "items".to_owned(), ..Default::default() };
    assert_eq!(reader.reader().count(request).await.unwrap().into_inner().count, 0);
}
