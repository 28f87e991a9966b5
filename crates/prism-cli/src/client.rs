//! Calls on the admin plane: credential, deadline, idempotency key, one repetition.

use std::time::Duration;

use http::uri::PathAndQuery;
use prism_proto::admin::v1::{AuditLogEntry, GetAuditLogRequest};
use prost::Message;
use tokio::time::timeout;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use crate::{
    connect,
    error::{Failure, Result, is_lost_connection},
    exit::Exit,
    rpc::Rpc,
    target::Target,
};

/// Largest answer that is read: a page of 1000 configs with long options fits.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;
/// Pause before a call is repeated whose connection broke.
const REPEAT_AFTER: Duration = Duration::from_millis(200);
const AUDIT_LOG: &str = "/prism.admin.v1.AdminService/GetAuditLog";

/// How calls are made.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Key for changes, instead of a new one for each.
    pub idempotency_key: Option<String>,
}

/// A connection with a credential.
pub struct Client {
    channel: Channel,
    metadata: MetadataMap,
    options: CallOptions,
}

impl Client {
    /// Connects to the target.
    pub async fn connect(target: &Target, options: CallOptions) -> Result<Self> {
        let metadata = credentials(target)?;
        Ok(Self { channel: connect::connect(target, options.timeout).await?, metadata, options })
    }

    /// Makes a call and waits for its answer. A call whose connection breaks is made once more; a
    /// change carries the same idempotency key both times, and so happens once.
    pub async fn call<R: Rpc>(&self, request: R) -> Result<R::Response> {
        let key = if R::CHANGES { Some(self.idempotency_key()?) } else { None };
        match timeout(self.options.timeout, self.call_twice(request, key.as_ref())).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => {
                let failure = Failure::from_status(R::method(), &status);
                let unknown_outcome = is_lost_connection(&status) || status.code() == Code::DeadlineExceeded;
                Err(if unknown_outcome { with_repeat_hint(failure, key.as_ref()) } else { failure })
            }
            Err(_) => Err(with_repeat_hint(self.no_answer(R::method()), key.as_ref())),
        }
    }

    /// Opens the audit log. Without `follow` the stream ends by itself.
    pub async fn audit_log(&self, request: GetAuditLogRequest) -> Result<AuditLog> {
        let wait = (!request.follow).then_some(self.options.timeout);
        let open = async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<GetAuditLogRequest, AuditLogEntry>::default();
            grpc.server_streaming(self.request(request, None), PathAndQuery::from_static(AUDIT_LOG), codec).await
        };
        match wait {
            // A server may hold back the headers of a stream that has nothing to send yet.
            None => open.await,
            Some(wait) => timeout(wait, open).await.map_err(|_| self.no_answer("GetAuditLog"))?,
        }
        .map(|response| AuditLog { stream: response.into_inner(), wait })
        .map_err(|status| Failure::from_status("GetAuditLog", &status))
    }

    async fn call_twice<R: Rpc>(
        &self,
        request: R,
        key: Option<&MetadataValue<Ascii>>,
    ) -> std::result::Result<R::Response, Status> {
        match self.call_once(request.clone(), key).await {
            Err(status) if is_lost_connection(&status) => {
                tokio::time::sleep(REPEAT_AFTER).await;
                self.call_once(request, key).await
            }
            outcome => outcome,
        }
    }

    async fn call_once<R: Rpc>(
        &self,
        request: R,
        key: Option<&MetadataValue<Ascii>>,
    ) -> std::result::Result<R::Response, Status> {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<R, R::Response>::default();
        grpc.unary(self.request(request, key), PathAndQuery::from_static(R::PATH), codec)
            .await
            .map(tonic::Response::into_inner)
    }

    async fn ready(&self) -> std::result::Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }

    fn request<M: Message>(&self, message: M, key: Option<&MetadataValue<Ascii>>) -> Request<M> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        if let Some(key) = key {
            request.metadata_mut().insert("x-idempotency-key", key.clone());
        }
        request
    }

    fn idempotency_key(&self) -> Result<MetadataValue<Ascii>> {
        let key = self.options.idempotency_key.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        key.parse().map_err(|_| Failure::usage("--idempotency-key must be printable ASCII"))
    }

    fn no_answer(&self, method: &str) -> Failure {
        let waited = humantime::format_duration(self.options.timeout);
        Failure::new(Exit::Deadline, format!("{method}: no answer within {waited}"))
            .hint("--timeout gives it more time")
    }
}

/// The audit log as it arrives.
pub struct AuditLog {
    stream: Streaming<AuditLogEntry>,
    wait: Option<Duration>,
}

impl AuditLog {
    /// The next entry; none at the end.
    pub async fn next(&mut self) -> Result<Option<AuditLogEntry>> {
        let next = self.stream.message();
        let outcome = match self.wait {
            None => next.await,
            Some(wait) => timeout(wait, next).await.map_err(|_| {
                let waited = humantime::format_duration(wait);
                Failure::new(Exit::Deadline, format!("GetAuditLog: no entry within {waited}"))
            })?,
        };
        outcome.map_err(|status| Failure::from_status("GetAuditLog", &status))
    }
}

fn credentials(target: &Target) -> Result<MetadataMap> {
    let unusable = |what: &str| Failure::usage(format!("{what} cannot be sent: it is not printable ASCII"));
    let mut metadata = MetadataMap::new();
    let mut bearer: MetadataValue<Ascii> =
        format!("Bearer {}", target.token).parse().map_err(|_| unusable("the token"))?;
    // Kept out of the header compression table and of debug output.
    bearer.set_sensitive(true);
    metadata.insert("authorization", bearer);
    if let Some(user) = &target.user {
        metadata.insert("x-admin-user", user.parse().map_err(|_| unusable("--user"))?);
    }
    Ok(metadata)
}

fn with_repeat_hint(failure: Failure, key: Option<&MetadataValue<Ascii>>) -> Failure {
    match key.and_then(|key| key.to_str().ok()) {
        Some(key) => failure.hint(format!(
            "it may have been carried out all the same; repeated with --idempotency-key {key} it happens once"
        )),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(user: Option<&str>) -> Target {
        Target {
            host: "a".to_owned(),
            port: 1,
            ca: "ca".into(),
            token: "prx_a".to_owned(),
            user: user.map(str::to_owned),
        }
    }

    #[test]
    fn credentials_are_sensitive_headers() {
        let metadata = credentials(&target(Some("alice@example.com"))).unwrap();
        let bearer = metadata.get("authorization").unwrap();
        assert_eq!(bearer.to_str().unwrap(), "Bearer prx_a");
        assert!(bearer.is_sensitive());
        assert_eq!(metadata.get("x-admin-user").unwrap(), "alice@example.com");
        assert!(credentials(&target(None)).unwrap().get("x-admin-user").is_none());
        assert_eq!(credentials(&target(Some("a\nb"))).unwrap_err().exit(), Exit::Usage);
    }
}
