//! Calls on the admin plane: credential, deadline, idempotency key, one repetition, a look at the audit log's
//! checkpoint in every answer.

use std::{cell::RefCell, rc::Rc, time::Duration};

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
    checkpoint::Checkpoint,
    connect,
    error::{Failure, Result, is_lost_connection},
    exit::Exit,
    rpc::Rpc,
    secret::Secret,
    target::{Credential, Target},
    watch::{self, Watch},
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
    credential: Credential,
    options: CallOptions,
    watch: Rc<Watch>,
    /// The access token of the last call, where there is a login.
    used: RefCell<Option<Secret>>,
}

impl Client {
    /// Connects to the target, whose audit log `watch` is about.
    pub async fn connect(target: &Target, options: CallOptions, watch: Rc<Watch>) -> Result<Self> {
        let metadata = metadata(target)?;
        let channel = connect::connect(target, options.timeout).await?;
        Ok(Self { channel, metadata, credential: target.credential.clone(), options, watch, used: RefCell::default() })
    }

    /// Makes a call and waits for its answer. A call whose connection breaks is made once more, and one whose login
    /// the server refuses once more with a renewed one; a change carries the same idempotency key each time, and so
    /// happens once.
    pub async fn call<R: Rpc>(&self, request: R) -> Result<R::Response> {
        let key = if R::CHANGES { Some(self.idempotency_key()?) } else { None };
        let bearer = self.bearer(None).await?;
        let mut outcome = self.call_in_time(request.clone(), key.as_ref(), bearer.as_ref()).await;
        if let (Ok(Err(status)), Some(refused)) = (&outcome, &bearer)
            && let Some(renewed) = self.renewed(status, refused).await?
        {
            outcome = self.call_in_time(request, key.as_ref(), Some(&renewed)).await;
        }
        match outcome {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => {
                let failure = self.failure(R::method(), &status);
                let unknown_outcome = is_lost_connection(&status) || status.code() == Code::DeadlineExceeded;
                Err(if unknown_outcome { with_repeat_hint(failure, key.as_ref()) } else { failure })
            }
            Err(failure) if failure.exit() == Exit::Deadline => Err(with_repeat_hint(failure, key.as_ref())),
            Err(failure) => Err(failure),
        }
    }

    /// Opens the audit log. Without `follow` the stream ends by itself.
    pub async fn audit_log(&self, request: GetAuditLogRequest) -> Result<AuditLog> {
        let wait = (!request.follow).then_some(self.options.timeout);
        let witness = self.watch.remembered();
        let bearer = self.bearer(None).await?;
        let mut opened = self.open(request.clone(), bearer.as_ref(), witness.as_ref(), wait).await?;
        if let (Err(status), Some(refused)) = (&opened, &bearer)
            && let Some(renewed) = self.renewed(status, refused).await?
        {
            opened = self.open(request, Some(&renewed), witness.as_ref(), wait).await?;
        }
        match opened {
            Ok(opened) => {
                let again = match &self.credential {
                    Credential::Login(login) => Some(login.again()),
                    Credential::Token(_) | Credential::Certificate(_) => None,
                };
                Ok(AuditLog { opened, wait, witness, again, watch: Rc::clone(&self.watch) })
            }
            Err(status) => {
                self.watch.answered(witness.as_ref(), status.metadata(), false).await;
                Err(self.failure("GetAuditLog", &status))
            }
        }
    }

    /// Whether a call that is refused for its credential may succeed later with a renewed one.
    pub fn renews(&self) -> bool {
        matches!(self.credential, Credential::Login(_))
    }

    async fn open(
        &self,
        request: GetAuditLogRequest,
        bearer: Option<&Secret>,
        witness: Option<&Checkpoint>,
        wait: Option<Duration>,
    ) -> Result<std::result::Result<Opened, Status>> {
        let request = self.request(request, None, bearer, witness)?;
        let open = async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<GetAuditLogRequest, AuditLogEntry>::default();
            let response = grpc.server_streaming(request, PathAndQuery::from_static(AUDIT_LOG), codec).await?;
            // Who follows may never come to the trailers.
            if watch::is_said(response.metadata()) {
                self.watch.answered(witness, response.metadata(), true).await;
            }
            let mut stream = response.into_inner();
            // A refusal may come only after the headers. Where nothing is waited for, the first entry tells.
            let first = if wait.is_some() { stream.message().await? } else { None };
            let ended = wait.is_some() && first.is_none();
            Ok(Opened { stream, first, ended })
        };
        match wait {
            // A server may hold back the headers of a stream that has nothing to send yet.
            None => Ok(open.await),
            Some(wait) => timeout(wait, open).await.map_err(|_| self.no_answer("GetAuditLog")),
        }
    }

    async fn call_in_time<R: Rpc>(
        &self,
        request: R,
        key: Option<&MetadataValue<Ascii>>,
        bearer: Option<&Secret>,
    ) -> std::result::Result<std::result::Result<R::Response, Status>, Failure> {
        timeout(self.options.timeout, self.call_twice(request, key, bearer))
            .await
            .map_err(|_| self.no_answer(R::method()))?
    }

    async fn call_twice<R: Rpc>(
        &self,
        request: R,
        key: Option<&MetadataValue<Ascii>>,
        bearer: Option<&Secret>,
    ) -> Result<std::result::Result<R::Response, Status>> {
        match self.call_once(request.clone(), key, bearer).await? {
            Err(status) if is_lost_connection(&status) => {
                tokio::time::sleep(REPEAT_AFTER).await;
                self.call_once(request, key, bearer).await
            }
            outcome => Ok(outcome),
        }
    }

    async fn call_once<R: Rpc>(
        &self,
        request: R,
        key: Option<&MetadataValue<Ascii>>,
        bearer: Option<&Secret>,
    ) -> Result<std::result::Result<R::Response, Status>> {
        let witness = self.watch.remembered();
        let request = self.request(request, key, bearer, witness.as_ref())?;
        let codec = ProstCodec::<R, R::Response>::default();
        let outcome = async { self.ready().await?.unary(request, PathAndQuery::from_static(R::PATH), codec).await };
        match outcome.await {
            Ok(response) => {
                self.watch.answered(witness.as_ref(), response.metadata(), true).await;
                Ok(Ok(response.into_inner()))
            }
            Err(status) => {
                self.watch.answered(witness.as_ref(), status.metadata(), false).await;
                Ok(Err(status))
            }
        }
    }

    async fn bearer(&self, refused: Option<&Secret>) -> Result<Option<Secret>> {
        match &self.credential {
            Credential::Token(token) => Ok(Some(token.clone())),
            Credential::Certificate(_) => Ok(None),
            Credential::Login(login) => {
                let used = self.used.borrow().clone();
                let token = login.bearer(refused, used.as_ref()).await?;
                *self.used.borrow_mut() = Some(token.clone());
                Ok(Some(token))
            }
        }
    }

    /// A new access token after the server has refused one, where there is a login to get it from.
    async fn renewed(&self, status: &Status, refused: &Secret) -> Result<Option<Secret>> {
        if status.code() == Code::Unauthenticated && self.renews() {
            self.bearer(Some(refused)).await
        } else {
            Ok(None)
        }
    }

    fn failure(&self, method: &str, status: &Status) -> Failure {
        let failure = Failure::from_status(method, status);
        match &self.credential {
            Credential::Certificate(_) if is_lost_connection(status) => {
                failure.hint("a server that does not accept the client certificate may also cut the connection")
            }
            Credential::Login(login) if status.code() == Code::Unauthenticated => failure.hint(login.again()),
            _ => failure,
        }
    }

    async fn ready(&self) -> std::result::Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        Ok(grpc)
    }

    fn request<M: Message>(
        &self,
        message: M,
        key: Option<&MetadataValue<Ascii>>,
        bearer: Option<&Secret>,
        witness: Option<&Checkpoint>,
    ) -> Result<Request<M>> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        if let Some(bearer) = bearer {
            request.metadata_mut().insert("authorization", authorization(bearer)?);
        }
        request.metadata_mut().insert(watch::HEAD, MetadataValue::from_static("signed"));
        if let Some(witness) = witness {
            request.metadata_mut().insert(watch::WITNESS, witness.sequence.into());
        }
        if let Some(key) = key {
            request.metadata_mut().insert("x-idempotency-key", key.clone());
        }
        Ok(request)
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

/// A stream, and its first entry or its end if that was waited for.
struct Opened {
    stream: Streaming<AuditLogEntry>,
    first: Option<AuditLogEntry>,
    ended: bool,
}

/// The audit log as it arrives.
pub struct AuditLog {
    opened: Opened,
    again: Option<String>,
    wait: Option<Duration>,
    witness: Option<Checkpoint>,
    watch: Rc<Watch>,
}

impl AuditLog {
    /// The next entry; none at the end.
    pub async fn next(&mut self) -> Result<Option<AuditLogEntry>> {
        if let Some(first) = self.opened.first.take() {
            return Ok(Some(first));
        }
        let outcome = match self.wait {
            _ if self.opened.ended => Ok(None),
            None => self.opened.stream.message().await,
            Some(wait) => timeout(wait, self.opened.stream.message()).await.map_err(|_| {
                let waited = humantime::format_duration(wait);
                Failure::new(Exit::Deadline, format!("GetAuditLog: no entry within {waited}"))
            })?,
        };
        match outcome {
            Ok(Some(entry)) => Ok(Some(entry)),
            Ok(None) => {
                let trailers = self.opened.stream.trailers().await.ok().flatten().unwrap_or_default();
                self.watch.answered(self.witness.as_ref(), &trailers, true).await;
                Ok(None)
            }
            Err(status) => {
                self.watch.answered(self.witness.as_ref(), status.metadata(), false).await;
                let failure = Failure::from_status("GetAuditLog", &status);
                match &self.again {
                    Some(again) if status.code() == Code::Unauthenticated => Err(failure.hint(again)),
                    _ => Err(failure),
                }
            }
        }
    }
}

/// What all calls carry.
fn metadata(target: &Target) -> Result<MetadataMap> {
    let mut metadata = MetadataMap::new();
    if let Some(user) = &target.user {
        metadata.insert("x-admin-user", user.parse().map_err(|_| unusable("--user"))?);
    }
    Ok(metadata)
}

fn authorization(token: &Secret) -> Result<MetadataValue<Ascii>> {
    let mut bearer: MetadataValue<Ascii> =
        format!("Bearer {}", token.reveal()).parse().map_err(|_| unusable("the token"))?;
    // Kept out of the header compression table and of debug output.
    bearer.set_sensitive(true);
    Ok(bearer)
}

fn unusable(what: &str) -> Failure {
    Failure::usage(format!("{what} cannot be sent: it is not printable ASCII"))
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
    use std::path::Path;

    use super::*;
    use crate::memory::{LogName, Memory};

    fn target(user: Option<&str>) -> Target {
        Target {
            host: "a".to_owned(),
            port: 1,
            ca: "ca".into(),
            credential: Credential::Token(Secret::parse("prx_a", "test").unwrap()),
            user: user.map(str::to_owned),
            memory: Memory::of(None, &LogName::Endpoint("a:1".to_owned()), Path::new("ca")),
        }
    }

    #[test]
    fn credentials_are_sensitive_headers() {
        let bearer = authorization(&Secret::parse("prx_a", "test").unwrap()).unwrap();
        assert_eq!(bearer.to_str().unwrap(), "Bearer prx_a");
        assert!(bearer.is_sensitive());
        let metadata = |user| super::metadata(&target(user));
        assert_eq!(metadata(Some("alice@example.com")).unwrap().get("x-admin-user").unwrap(), "alice@example.com");
        assert!(metadata(None).unwrap().get("x-admin-user").is_none());
        assert_eq!(metadata(Some("a\nb")).unwrap_err().exit(), Exit::Usage);
    }
}
