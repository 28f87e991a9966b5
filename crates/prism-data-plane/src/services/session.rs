//! `prism.session.v1.SessionService`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prism_core::session::SessionStatus as Status_;
use prism_core::{Error, Result, UnixMillis};
use prism_proto::session::v1::session_service_server::SessionService;
use prism_proto::session::v1::{
    CloseSessionRequest, CloseSessionResponse, CreateSessionRequest, CreateSessionResponse, GetSessionRequest,
    GetSessionResponse, HeartbeatRequest, HeartbeatResponse, RefreshSessionRequest, RefreshSessionResponse,
    SessionMetrics, SessionStatus,
};
use prism_rpc::convert::{config_to_proto, from_duration, timestamp};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::admission;
use crate::call::{self, Context};
use crate::credential::Origin;
use crate::plane::Plane;
use crate::rpc::Rpc;
use crate::session::Session;

/// The service.
pub struct Service(pub Arc<Plane>);

#[tonic::async_trait]
impl SessionService for Service {
    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let started = Instant::now();
        let (metadata, extensions, message) = request.into_parts();
        let context = Context::new(Rpc::CreateSession, &metadata, &extensions);
        // A task of its own: an admission that has become durable must reach the map of sessions, even when the client is gone.
        let (answer, answered) = oneshot::channel();
        let origin = Origin::of(&extensions);
        tokio::spawn(admission::create(Arc::clone(&self.0), message, origin, started, answer));
        let answered = async { answered.await.unwrap_or_else(|lost| Err(Error::internal(lost))) };
        let outcome = call::within(context.deadline, answered).await;
        outcome.map(Response::new).map_err(|error| context.status(&error))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let work = |session: Arc<Session>, request: CloseSessionRequest| async move {
            let pending = self.0.close(&session, request.force).await?;
            let message = match (pending, request.force) {
                (0, _) => "the session is closed".to_owned(),
                (cut, true) => format!("the session is closed; {cut} running operations were cut"),
                (left, false) => {
                    format!("the session takes nothing new and closes when {left} running operations are done")
                }
            };
            Ok(CloseSessionResponse {
                success: true,
                message,
                pending_operations: i32::try_from(pending).unwrap_or(i32::MAX),
            })
        };
        self.0.gate.unary(Rpc::CloseSession, request, work).await
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let work = |session: Arc<Session>, _: HeartbeatRequest| async move {
            let gate = &self.0.gate;
            let now = gate.clock.now();
            let left = session.expires_at().since(now).min(gate.policy.idle_timeout);
            Ok(HeartbeatResponse {
                server_time: Some(timestamp(now)),
                ttl_seconds: i32::try_from(left.as_secs()).unwrap_or(i32::MAX),
                status: status(session.status(&gate.policy, now)).into(),
            })
        };
        self.0.gate.unary(Rpc::Heartbeat, request, work).await
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        let work = |session: Arc<Session>, _: GetSessionRequest| async move { Ok(self.describe(&session)) };
        self.0.gate.unary(Rpc::GetSession, request, work).await
    }

    async fn refresh_session(
        &self,
        request: Request<RefreshSessionRequest>,
    ) -> Result<Response<RefreshSessionResponse>, Status> {
        let work = |session: Arc<Session>, request: RefreshSessionRequest| async move {
            let expires_at = self.refresh(&session, &request).await?;
            Ok(RefreshSessionResponse { new_expires_at: Some(timestamp(expires_at)) })
        };
        self.0.gate.unary(Rpc::RefreshSession, request, work).await
    }
}

impl Service {
    fn describe(&self, session: &Session) -> GetSessionResponse {
        let gate = &self.0.gate;
        let figures = session.figures();
        GetSessionResponse {
            session_id: session.id().to_string(),
            status: status(session.status(&gate.policy, gate.clock.now())).into(),
            created_at: Some(timestamp(session.record().created_at)),
            expires_at: Some(timestamp(session.expires_at())),
            last_activity: Some(timestamp(session.last_activity())),
            config: Some(config_to_proto(session.config())),
            metrics: Some(SessionMetrics {
                requests_total: figures.requests_total,
                bytes_sent: figures.bytes_sent,
                bytes_received: figures.bytes_received,
                active_streams: figures.active_streams,
                last_request: figures.last_request.map(timestamp),
            }),
        }
    }

    async fn refresh(&self, session: &Arc<Session>, request: &RefreshSessionRequest) -> Result<UnixMillis> {
        let missing = || Error::invalid("extension", "must be more than 0");
        let extension = from_duration("extension", request.extension.as_ref().ok_or_else(missing)?)?;
        if extension == Duration::ZERO {
            return Err(missing());
        }
        let gate = &self.0.gate;
        let latest = session.record().created_at + gate.policy.max_age;
        let latest = gate.credential_ends(session).map_or(latest, |ends| ends.min(latest));
        let current = session.expires_at();
        let wanted = (gate.clock.now() + extension).min(latest);
        if wanted > current {
            self.0.extend(session, wanted).await?;
        }
        Ok(session.expires_at())
    }
}

fn status(status: Status_) -> SessionStatus {
    match status {
        Status_::Active => SessionStatus::Active,
        Status_::Idle => SessionStatus::Idle,
        Status_::Expiring => SessionStatus::Expiring,
        Status_::Terminated => SessionStatus::Terminated,
    }
}
