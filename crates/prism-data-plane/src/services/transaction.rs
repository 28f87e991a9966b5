//! The `Transaction` stream: begin, writes that are rehearsed one by one, commit or rollback.
//!
//! Nothing is kept before the commit, so a stream that breaks needs no undoing. A refused write ends the stream with its error
//! and rolls everything back, as a failed statement does in SQL.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_backends::driver::{Transact, TransactOptions, WriteOutcome, WriteSet};
use prism_core::secret::{self, SecretKind};
use prism_core::{Error, Kind, Result};
use prism_proto::transact::v1 as wire;
use prism_proto::transact::v1::transaction_request::Request as Step;
use prism_proto::transact::v1::transaction_response::Response as Answer;
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Streaming};

use super::transact::{self, DEFAULT_TIMEOUT};
use crate::call::{self, Context};
use crate::cause::EndCause;
use crate::fields::Fields;
use crate::gate::{self, Gate, Permit};
use crate::rpc::Rpc;
use crate::session::Session;
use crate::stream::{self, Feed, Kind as StreamKind, Outlet, Responses};

/// How long a stream may be open before it begins its transaction.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// A transaction may hold this many times the largest message.
const MAX_MESSAGES: usize = 4;

type Inbound = Streaming<wire::TransactionRequest>;

/// Starts the stream. The token may come with the first message, so the answer's headers go out before the gate is passed.
pub fn start(gate: Arc<Gate>, request: Request<Inbound>) -> Response<Responses<wire::TransactionResponse>> {
    let (metadata, extensions, inbound) = request.into_parts();
    let context = Context::new(Rpc::Transaction, &metadata, &extensions);
    let (feed, responses) = stream::channel(context, StreamKind::Finite);
    tokio::spawn(run(gate, metadata, inbound, feed));
    Response::new(responses)
}

async fn run(gate: Arc<Gate>, metadata: MetadataMap, mut inbound: Inbound, mut feed: Feed<wire::TransactionResponse>) {
    let settled = tokio::select! {
        biased;
        () = feed.client_gone() => return,
        () = call::passed(feed.context().deadline) => Err(call::deadline_exceeded()),
        settled = serve(&gate, &metadata, &mut inbound, &feed) => settled,
    };
    let outcome = match settled {
        Ok(settled) => settled.finish(&mut feed).await,
        Err(error) => Err(error),
    };
    feed.finish(outcome, false);
}

/// A transaction whose client has said all that it has to say.
struct Settled {
    permit: Permit,
    end: End,
}

/// What a transaction comes to.
enum End {
    Commit(Box<Open>),
    RolledBack(&'static str),
}

impl Settled {
    /// Commits, or does not, and answers. A commit that has begun is cut by nothing: it counts as running until it is done, and
    /// who still listens hears how it ended.
    async fn finish(mut self, feed: &mut Feed<wire::TransactionResponse>) -> Result<()> {
        let answer = match self.end {
            End::Commit(mut open) => {
                open.commit().await?;
                Answer::Committed(wire::TransactionCommitted { success: true })
            }
            End::RolledBack(reason) => Answer::RolledBack(wire::TransactionRolledBack { reason: reason.to_owned() }),
        };
        let answer = wire::TransactionResponse { response: Some(answer) };
        self.permit.session().sent(answer.encoded_len());
        self.permit.succeeded();
        // Released before the client can see the end, and whether it ever reads it or not.
        drop(self.permit);
        feed.send_last(answer);
        Ok(())
    }
}

async fn serve(
    gate: &Arc<Gate>,
    metadata: &MetadataMap,
    inbound: &mut Inbound,
    feed: &Feed<wire::TransactionResponse>,
) -> Result<Settled> {
    let begin = match tokio::time::timeout(BEGIN_WITHIN, first(inbound, gate.limits.max_message_bytes())).await {
        Ok(Ok(begin)) => begin,
        refused => {
            gate.count_stranger(Rpc::Transaction, Duration::ZERO, false);
            let refused = refused.map_or_else(|_| Some(call::deadline_exceeded()), Result::err);
            return Err(refused.unwrap_or_else(|| Error::internal("a refusal was lost")));
        }
    };
    let permit = gate.let_in(&begin.session_token, metadata, feed.context()).await?;
    let session = Arc::clone(permit.session());
    session.received(begin.encoded_len());
    let mut fields = Fields::new();
    let options = transact::options(&mut fields, "begin.options", begin.options, [0; 32]);
    fields.finish()?;
    let asked = options.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let timeout = session.timeout().map_or(asked, |most| most.min(asked));
    let open = Open {
        id: uuid::Uuid::now_v7().to_string(),
        transactor: Arc::clone(transact::transactor(&session)?),
        options,
        writes: Vec::new(),
        bytes: 0,
        most_bytes: gate.limits.max_message_bytes() * MAX_MESSAGES,
        hash: Sha256::new(),
    };
    let talk = Conversation { gate: Arc::clone(gate), outlet: feed.outlet(&session), session, open };
    let end = tokio::select! {
        biased;
        error = stream::forbidden(gate, &permit, StreamKind::Finite) => Err(error),
        () = tokio::time::sleep(timeout) => Err(call::deadline_exceeded()),
        end = talk.run(inbound) => end,
    }?;
    Ok(Settled { permit, end })
}

async fn first(inbound: &mut Inbound, most_bytes: usize) -> Result<wire::BeginTransaction> {
    match next(inbound, most_bytes).await? {
        Some(Step::Begin(begin)) => Ok(begin),
        _ => Err(Error::invalid("begin", "must be the first message of the stream")),
    }
}

/// The next message; `None` at the end of the client's side.
async fn next(inbound: &mut Inbound, most_bytes: usize) -> Result<Option<Step>> {
    match inbound.message().await {
        Ok(None) => Ok(None),
        Ok(Some(message)) => match message.request {
            Some(step) => Ok(Some(step)),
            None => Err(Error::invalid("request", "must be begin, write, commit or rollback")),
        },
        Err(broken) => Err(call::unreadable(&broken, most_bytes)),
    }
}

/// An open transaction: what it would write.
struct Open {
    id: String,
    transactor: Arc<dyn Transact>,
    options: TransactOptions,
    writes: Vec<(WriteSet, WriteOutcome)>,
    bytes: usize,
    most_bytes: usize,
    hash: Sha256,
}

struct Conversation {
    gate: Arc<Gate>,
    session: Arc<Session>,
    outlet: Outlet<wire::TransactionResponse>,
    open: Open,
}

impl Conversation {
    /// Talks until it is clear what the transaction comes to.
    async fn run(mut self, inbound: &mut Inbound) -> Result<End> {
        self.answer(Answer::Started(wire::TransactionStarted { transaction_id: self.open.id.clone() })).await;
        loop {
            let step = next(inbound, self.gate.limits.max_message_bytes()).await?;
            self.session.heard(self.gate.clock.now());
            // Each step is as new as a call of its own would be.
            self.gate.follow();
            if !self.gate.upholds(&self.session) {
                return Err(EndCause::CredentialRevoked.error());
            }
            match step {
                Some(Step::Begin(_)) => return Err(Error::invalid("begin", "the transaction has begun already")),
                Some(Step::Write(request)) => {
                    let outcome = self.write(request).await?;
                    self.answer(Answer::WriteResult(transact::response(outcome, false))).await;
                }
                Some(Step::Commit(_)) => return Ok(End::Commit(Box::new(self.open))),
                Some(Step::Rollback(_)) => return Ok(End::RolledBack("requested")),
                None => return Ok(End::RolledBack("the stream ended without a commit")),
            }
        }
    }

    async fn answer(&self, answer: Answer) {
        self.outlet.send(wire::TransactionResponse { response: Some(answer) }).await;
    }

    async fn write(&mut self, request: wire::WriteRequest) -> Result<WriteOutcome> {
        let bytes = request.encoded_len();
        self.session.received(bytes);
        self.check_token(&request.session_token)?;
        let mut fields = Fields::new();
        fields.require(request.options.is_none(), "write.options", "the options of a transaction belong into begin");
        let digest = transact::digest(&request);
        let writes = transact::write_set(&mut fields, request.data, request.mailbox, &self.gate.limits);
        fields.finish()?;
        // The stream itself was one operation; each of its writes is one more.
        if !self.open.writes.is_empty() {
            gate::take_token(&self.session, Instant::now())?;
        }
        self.open.write(writes, bytes, digest).await
    }

    /// A token in a write must be the one that the transaction began with.
    fn check_token(&self, token: &str) -> Result<()> {
        let same = token.is_empty()
            || secret::parse(SecretKind::Session, token).is_some_and(|presented| {
                presented.id == self.session.record().token_id && self.session.record().token_hash.matches(&presented)
            });
        if same { Ok(()) } else { Err(Error::invalid("write.session_token", "is not the token of this transaction")) }
    }
}

impl Open {
    async fn write(&mut self, writes: WriteSet, bytes: usize, digest: [u8; 32]) -> Result<WriteOutcome> {
        self.bytes += bytes;
        // How many writes there may be is the driver's to say.
        if self.bytes > self.most_bytes {
            return Err(Error::new(
                Kind::ResourceExhausted,
                "TRANSACTION_TOO_LARGE",
                format!("a transaction may have {} bytes", self.most_bytes),
            ));
        }
        self.hash.update(digest);
        let outcome = self.transactor.rehearse(&self.id, &self.writes, &writes).await?;
        self.writes.push((writes, outcome.clone()));
        Ok(outcome)
    }

    async fn commit(&mut self) -> Result<()> {
        let writes = std::mem::take(&mut self.writes);
        if writes.is_empty() {
            return Ok(());
        }
        let mut options = self.options.clone();
        if let Some((_, fingerprint)) = &mut options.idempotency {
            *fingerprint = std::mem::take(&mut self.hash).finalize().into();
        }
        self.transactor.commit(&self.id, writes, options).await
    }
}
