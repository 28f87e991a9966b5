//! `prism.transact.v1.TransactService`; its `Transaction` stream is in [`super::transaction`].

use std::sync::Arc;
use std::time::Duration;

use prism_backends::driver::{
    DataWrite, Isolation, MailboxEntry, MailboxWrite, Route, Transact, TransactOptions, WriteMode, WriteOutcome,
    WriteSet,
};
use prism_core::Result;
use prism_core::limits::{Limits, MAX_IDEMPOTENCY_KEY_BYTES, MAX_TOPIC_BYTES};
use prism_proto::transact::v1 as wire;
use prism_proto::transact::v1::transact_service_server::TransactService;
use prism_rpc::convert::timestamp;
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::{transaction, wrong_route};
use crate::fields::Fields;
use crate::gate::Gate;
use crate::rpc::Rpc;
use crate::session::Session;
use crate::stream::{self, Kind, Outlet, Responses};
use crate::values::{self, MAX_NAME_BYTES};

/// Longest `timeout_ms`: five minutes.
const MAX_TIMEOUT_MS: i64 = 300_000;
/// How long a transaction may take when its options do not say.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Mailbox messages read in one go.
const MAILBOX_CHUNK: usize = 16;

/// The service.
pub struct Service(pub Arc<Gate>);

#[tonic::async_trait]
impl TransactService for Service {
    type TransactionStream = Responses<wire::TransactionResponse>;
    type ReadMailboxStream = Responses<wire::ReadMailboxResponse>;

    async fn write(&self, request: Request<wire::WriteRequest>) -> Result<Response<wire::WriteResponse>, Status> {
        let work = |session: Arc<Session>, request: wire::WriteRequest| async move {
            let mut fields = Fields::new();
            let fingerprint = fingerprint([&request]);
            let options = options(&mut fields, "options", request.options, fingerprint);
            let writes = write_set(&mut fields, request.data, request.mailbox, &self.0.limits);
            fields.finish()?;
            Ok(response(transactor(&session)?.write(writes, options).await?, true))
        };
        self.0.unary(Rpc::Write, request, work).await
    }

    async fn transaction(
        &self,
        request: Request<Streaming<wire::TransactionRequest>>,
    ) -> Result<Response<Self::TransactionStream>, Status> {
        Ok(transaction::start(Arc::clone(&self.0), request))
    }

    async fn read_mailbox(
        &self,
        request: Request<wire::ReadMailboxRequest>,
    ) -> Result<Response<Self::ReadMailboxStream>, Status> {
        let (permit, context, request) = self.0.open(Rpc::ReadMailbox, request).await?;
        let mailbox = mailbox(permit.session(), request).map_err(|error| context.status(&error))?;
        Ok(stream::start(&self.0, permit, context, Kind::Finite, |outlet| send_messages(outlet, mailbox)))
    }
}

/// A mailbox and how much of it to read.
struct Mailbox {
    transactor: Arc<dyn Transact>,
    id: String,
    since: i64,
    /// `None` = to the end.
    remaining: Option<usize>,
}

fn mailbox(session: &Session, request: wire::ReadMailboxRequest) -> Result<Mailbox> {
    let mut fields = Fields::new();
    fields.text("mailbox_id", &request.mailbox_id, 1, MAX_TOPIC_BYTES);
    let since = request.since_sequence.unwrap_or(0);
    fields.range("since_sequence", since, 0, i64::MAX);
    let limit = request.limit.unwrap_or(0);
    fields.range("limit", limit.into(), 0, i32::MAX.into());
    fields.finish()?;
    let remaining = usize::try_from(limit).ok().filter(|limit| *limit > 0);
    Ok(Mailbox { transactor: Arc::clone(transactor(session)?), id: request.mailbox_id, since, remaining })
}

async fn send_messages(outlet: Outlet<wire::ReadMailboxResponse>, mut mailbox: Mailbox) -> Result<()> {
    loop {
        let wanted = mailbox.remaining.map_or(MAILBOX_CHUNK, |remaining| remaining.min(MAILBOX_CHUNK));
        if wanted == 0 {
            return Ok(());
        }
        let entries = mailbox.transactor.read_mailbox(&mailbox.id, mailbox.since, wanted).await?;
        let at_the_end = entries.len() < wanted;
        if let Some(remaining) = &mut mailbox.remaining {
            *remaining -= entries.len().min(*remaining);
        }
        for entry in entries {
            mailbox.since = mailbox.since.max(entry.sequence);
            outlet.send(mailbox_message(entry, &mailbox.id)).await;
        }
        if at_the_end {
            return Ok(());
        }
    }
}

fn mailbox_message(entry: MailboxEntry, mailbox_id: &str) -> wire::ReadMailboxResponse {
    wire::ReadMailboxResponse {
        message_id: entry.message_id,
        mailbox_id: mailbox_id.to_owned(),
        sequence: entry.sequence,
        message: entry.message,
        metadata: entry.metadata,
        created_at: Some(timestamp(entry.created_at)),
    }
}

/// The writes of a request; notes what is wrong with them.
pub(super) fn write_set(
    fields: &mut Fields,
    data: Option<wire::DataWrite>,
    mailbox: Option<wire::MailboxWrite>,
    limits: &Limits,
) -> WriteSet {
    fields.require(data.is_some() || mailbox.is_some(), "data", "data or mailbox must be set");
    let mailbox = mailbox.map(|mailbox| {
        fields.text("mailbox.mailbox_id", &mailbox.mailbox_id, 1, MAX_TOPIC_BYTES);
        fields.payload("mailbox.message", mailbox.message.len(), limits);
        fields.map("mailbox.metadata", &mailbox.metadata);
        MailboxWrite { mailbox_id: mailbox.mailbox_id, message: mailbox.message, metadata: mailbox.metadata }
    });
    WriteSet { data: data.and_then(|data| data_write(fields, data, limits)), mailbox }
}

fn data_write(fields: &mut Fields, data: wire::DataWrite, limits: &Limits) -> Option<DataWrite> {
    fields.text("data.table", &data.table, 1, MAX_NAME_BYTES);
    fields.require(!data.record.is_empty(), "data.record", "must have at least one column");
    let record = values::record(fields, "data.record", data.record, limits);
    if let Some(id_field) = &data.id_field {
        fields.text("data.id_field", id_field, 1, MAX_NAME_BYTES);
    }
    let mode = match wire::WriteMode::try_from(data.mode) {
        Ok(wire::WriteMode::Insert) => WriteMode::Insert,
        Ok(wire::WriteMode::Update) => WriteMode::Update,
        Ok(wire::WriteMode::Upsert) => WriteMode::Upsert,
        Ok(wire::WriteMode::Delete) => WriteMode::Delete,
        Ok(wire::WriteMode::Unspecified) | Err(_) => {
            fields.add("data.mode", "must be INSERT, UPDATE, UPSERT or DELETE");
            return None;
        }
    };
    Some(DataWrite { table: data.table, record, mode, id_field: data.id_field })
}

/// The options of a transaction under `root`; `fingerprint` goes with its idempotency key.
pub(super) fn options(
    fields: &mut Fields,
    root: &str,
    options: Option<wire::TransactionOptions>,
    fingerprint: [u8; 32],
) -> TransactOptions {
    let Some(options) = options else { return TransactOptions::default() };
    fields.range(format_args!("{root}.timeout_ms"), options.timeout_ms.into(), 0, MAX_TIMEOUT_MS);
    if let Some(key) = &options.idempotency_key {
        fields.text(format_args!("{root}.idempotency_key"), key, 1, MAX_IDEMPOTENCY_KEY_BYTES);
    }
    let isolation = match wire::IsolationLevel::try_from(options.isolation) {
        Ok(wire::IsolationLevel::Unspecified) => Isolation::Unspecified,
        Ok(wire::IsolationLevel::ReadCommitted) => Isolation::ReadCommitted,
        Ok(wire::IsolationLevel::Serializable) => Isolation::Serializable,
        Ok(wire::IsolationLevel::RepeatableRead) => Isolation::RepeatableRead,
        Err(_) => {
            fields.add(format_args!("{root}.isolation"), "is not a known isolation level");
            Isolation::Unspecified
        }
    };
    let timeout = u64::try_from(options.timeout_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    TransactOptions { isolation, timeout, idempotency: options.idempotency_key.map(|key| (key, fingerprint)) }
}

/// What identifies the writes of requests, without token and options.
pub(super) fn fingerprint<'a>(requests: impl IntoIterator<Item = &'a wire::WriteRequest>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for request in requests {
        hash.update(digest(request));
    }
    hash.finalize().into()
}

/// SHA-256 of the writes of one request.
pub(super) fn digest(request: &wire::WriteRequest) -> [u8; 32] {
    let mut hash = Sha256::new();
    // Maps are encoded in key order, so that equal requests have equal encodings.
    let parts = [
        request.data.as_ref().map(Message::encode_to_vec).unwrap_or_default(),
        request.mailbox.as_ref().map(Message::encode_to_vec).unwrap_or_default(),
    ];
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(&part);
    }
    hash.finalize().into()
}

/// The answer to a write.
pub(super) fn response(outcome: WriteOutcome, committed: bool) -> wire::WriteResponse {
    wire::WriteResponse {
        transaction_id: outcome.transaction_id,
        committed,
        data_result: outcome.data.map(|data| wire::DataResult {
            rows_affected: data.rows_affected,
            generated_values: values::record_to_proto(data.generated_values),
        }),
        mailbox_result: outcome
            .mailbox
            .map(|mailbox| wire::MailboxResult { message_id: mailbox.message_id, sequence: mailbox.sequence }),
    }
}

/// The driver of a session.
pub(super) fn transactor(session: &Session) -> Result<&Arc<dyn Transact>> {
    match session.route()? {
        Route::Transact(transactor) => Ok(transactor),
        _ => Err(wrong_route()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(data: Option<wire::DataWrite>, mailbox: Option<wire::MailboxWrite>) -> Vec<String> {
        let mut fields = Fields::new();
        write_set(&mut fields, data, mailbox, &Limits { max_value_bytes: 4, ..Limits::default() });
        fields.finish().err().map(|error| error.fields().iter().map(|v| v.field.clone()).collect()).unwrap_or_default()
    }

    #[test]
    fn every_field_of_a_write_is_checked() {
        assert_eq!(violations(None, None), ["data"]);
        let data = wire::DataWrite { id_field: Some(String::new()), mode: 9, ..wire::DataWrite::default() };
        assert_eq!(violations(Some(data), None), ["data.table", "data.record", "data.id_field", "data.mode"]);
        let mailbox = wire::MailboxWrite { message: "12345".into(), ..wire::MailboxWrite::default() };
        assert_eq!(violations(None, Some(mailbox)), ["mailbox.mailbox_id", "mailbox.message"]);
    }

    #[test]
    fn every_field_of_the_options_is_checked() {
        let check = |given| {
            let mut fields = Fields::new();
            let options = options(&mut fields, "options", Some(given), [0; 32]);
            fields.finish().map(|()| options)
        };
        let bad = wire::TransactionOptions { isolation: 9, timeout_ms: -1, idempotency_key: Some(String::new()) };
        let fields: Vec<_> = check(bad).unwrap_err().fields().iter().map(|v| v.field.clone()).collect();
        assert_eq!(fields, ["options.timeout_ms", "options.idempotency_key", "options.isolation"]);
        assert!(check(wire::TransactionOptions { timeout_ms: 300_001, ..Default::default() }).is_err());
        let good = check(wire::TransactionOptions { timeout_ms: 5, ..Default::default() }).unwrap();
        assert_eq!(good.timeout, Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_fingerprint_is_that_of_the_writes() {
        let mailbox = |id: &str| Some(wire::MailboxWrite { mailbox_id: id.to_owned(), ..Default::default() });
        let write = |token: &str, id: &str| wire::WriteRequest {
            session_token: token.to_owned(),
            mailbox: mailbox(id),
            ..Default::default()
        };
        assert_eq!(fingerprint([&write("a", "m")]), fingerprint([&write("b", "m")]));
        assert_ne!(fingerprint([&write("a", "m")]), fingerprint([&write("a", "n")]));
    }
}
