//! How a call is carried out: unary calls under their deadline and the session's end, and the mapping of errors to statuses.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_core::{Error, Kind, Result};
use prism_rpc::RequestId;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Response, Status};

use crate::credential::Origin;
use crate::gate::{Gate, Permit};
use crate::rpc::Rpc;
use crate::session::Session;

/// A request that carries the session token.
pub trait Tokened {
    /// Field 1, `session_token`.
    fn session_token(&self) -> &str;
}

macro_rules! tokened {
    ($($message:path),* $(,)?) => {
        $(impl Tokened for $message {
            fn session_token(&self) -> &str {
                &self.session_token
            }
        })*
    };
}

tokened! {
    prism_proto::session::v1::CloseSessionRequest,
    prism_proto::session::v1::HeartbeatRequest,
    prism_proto::session::v1::GetSessionRequest,
    prism_proto::session::v1::RefreshSessionRequest,
    prism_proto::keyvalue::v1::GetRequest,
    prism_proto::keyvalue::v1::PutRequest,
    prism_proto::keyvalue::v1::DeleteRequest,
    prism_proto::keyvalue::v1::ListRequest,
    prism_proto::keyvalue::v1::BatchGetRequest,
    prism_proto::keyvalue::v1::BatchPutRequest,
    prism_proto::queue::v1::PublishRequest,
    prism_proto::queue::v1::PublishBatchRequest,
    prism_proto::queue::v1::SubscribeRequest,
    prism_proto::queue::v1::AcknowledgeRequest,
    prism_proto::queue::v1::CommitRequest,
    prism_proto::queue::v1::SeekRequest,
    prism_proto::queue::v1::GetTopicInfoRequest,
    prism_proto::pubsub::v1::PublishRequest,
    prism_proto::pubsub::v1::SubscribeRequest,
    prism_proto::pubsub::v1::UnsubscribeRequest,
    prism_proto::reader::v1::ReadRequest,
    prism_proto::reader::v1::QueryRequest,
    prism_proto::reader::v1::CountRequest,
    prism_proto::transact::v1::WriteRequest,
    prism_proto::transact::v1::ReadMailboxRequest,
}

/// The source of a status whose call is in the figures already; the dispatcher counts errors that do not have it.
#[derive(Debug)]
pub struct Counted;

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("counted")
    }
}

impl std::error::Error for Counted {}

/// What of a request outlives its message.
#[derive(Clone)]
pub struct Context {
    /// Which RPC.
    pub rpc: Rpc,
    /// When the client gives up.
    pub deadline: Option<Instant>,
    /// Where the call comes from.
    pub source: IpAddr,
    request_id: Option<RequestId>,
}

impl Context {
    /// Of a request's metadata and extensions.
    pub fn new(rpc: Rpc, metadata: &MetadataMap, extensions: &Extensions) -> Self {
        let deadline = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
        Self {
            rpc,
            deadline: deadline.and_then(|timeout| Instant::now().checked_add(timeout)),
            source: Origin::of(extensions).source(),
            request_id: extensions.get::<RequestId>().cloned(),
        }
    }

    /// The status of an error.
    pub fn status(&self, error: &Error) -> Status {
        let id = self.request_id.as_ref().map_or("", RequestId::as_str);
        let mut status = prism_rpc::to_status(error, self.rpc.domain(), id);
        status.set_source(Arc::new(Counted));
        status
    }
}

impl Gate {
    /// Carries out a call that answers once: enters, runs `work` until it is done, the session ends or the time is up.
    pub async fn unary<Q, A, W, F>(&self, rpc: Rpc, request: Request<Q>, work: W) -> Result<Response<A>, Status>
    where
        Q: Message + Tokened,
        A: Message,
        W: FnOnce(Arc<Session>, Q) -> F,
        F: Future<Output = Result<A>>,
    {
        let (metadata, extensions, message) = request.into_parts();
        let context = Context::new(rpc, &metadata, &extensions);
        let outcome = match self.let_in(message.session_token(), &metadata, &context).await {
            Ok(mut permit) => {
                let session = Arc::clone(permit.session());
                session.received(message.encoded_len());
                let outcome = run(&permit, context.deadline, work(session, message)).await;
                if let Ok(answer) = &outcome {
                    permit.session().sent(answer.encoded_len());
                    permit.succeeded();
                }
                outcome
            }
            Err(refusal) => Err(refusal),
        };
        outcome.map(Response::new).map_err(|error| context.status(&error))
    }
}

/// Runs `work` until it is done, the session ends, or the time is up. What changes a session itself is not cut by its end.
pub async fn run<T>(permit: &Permit, deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let own = permit.session().timeout().and_then(|timeout| permit.started().checked_add(timeout));
    let deadline = match (deadline, own) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    tokio::select! {
        biased;
        result = work => result,
        error = permit.session().ended(), if permit.act().is_operation() => Err(error),
        () = passed(deadline) => Err(deadline_exceeded()),
    }
}

/// What is wrong with a message that did not come through: tonic's own statuses say it without a reason.
pub fn unreadable(status: &Status, most_bytes: usize) -> Error {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Error::new(
            Kind::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            format!("a message may have at most {most_bytes} bytes"),
        ),
        Code::Unimplemented => Error::new(Kind::Unimplemented, "UNIMPLEMENTED", "this server does not do that"),
        Code::Internal | Code::InvalidArgument => {
            Error::new(Kind::InvalidArgument, "MALFORMED_MESSAGE", "the message cannot be decoded")
        }
        _ => Error::aborted("STREAM_BROKEN", "the stream broke before the message was complete"),
    }
}

/// Waits for a deadline; for ever without one.
pub async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Runs `work` until it is done or the time is up.
pub async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        result = work => result,
        () = passed(deadline) => Err(deadline_exceeded()),
    }
}

/// DEADLINE_EXCEEDED.
pub fn deadline_exceeded() -> Error {
    Error::new(Kind::DeadlineExceeded, "DEADLINE_EXCEEDED", "the deadline of the call passed before it was done")
}

/// Parses `grpc-timeout`: up to eight digits and a unit. A malformed one is as good as none, as the protocol's own libraries
/// have it.
fn timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_the_protocol() {
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("2H"), Some(Duration::from_hours(2)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "5", "5s", "-5S", "123456789S", "5 S", "+5S", "1é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
