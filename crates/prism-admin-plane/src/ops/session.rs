//! ListSessions, GetSession, TerminateSession.

use async_trait::async_trait;
use prism_core::limits::{MAX_TEXT_BYTES, SessionPolicy};
use prism_core::nodes::Nodes as _;
use prism_core::page::Page;
use prism_core::session::{EndReason, SessionId, SessionStatus};
use prism_core::{Error, NodeId, Result, UnixMillis};
use prism_proto::admin::v1 as wire;
use prism_store::{SessionSummary, Tx};
use serde_json::{Value, json};

use crate::convert;
use crate::convert::names;
use crate::op::{Caller, Done, Op, Place, Scope, Services};

pub(super) fn resource_of(id: &str) -> String {
    format!("session:{id}")
}

fn parse_id(id: &str) -> Result<SessionId> {
    if id.is_empty() {
        return Err(Error::invalid("session_id", "must be set"));
    }
    SessionId::parse(id).ok_or_else(|| Error::invalid("session_id", "is not a session id (a UUID in lower case)"))
}

/// What the audit log shows of a session that is terminated.
fn state(row: &SessionSummary, policy: &SessionPolicy, now: UnixMillis) -> Value {
    let status = match row.status(policy, now) {
        SessionStatus::Active => "ACTIVE",
        SessionStatus::Idle => "IDLE",
        SessionStatus::Expiring => "EXPIRING",
        SessionStatus::Terminated => "TERMINATED",
    };
    json!({"status": status})
}

/// `ListSessions`.
#[derive(Clone)]
pub struct ListSessions {
    namespace: Option<String>,
    status: Option<SessionStatus>,
    page: Page,
    policy: SessionPolicy,
    unreachable: Vec<NodeId>,
}

#[async_trait]
impl Op for ListSessions {
    type Request = wire::ListSessionsRequest;
    type Response = wire::ListSessionsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/ListSessions";
    const SCOPE: Scope = Scope::Filtered;
    const PREPARES: bool = true;

    fn resource(_: &Self::Request) -> String {
        "sessions".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        // 0 = unspecified = any.
        let wanted = request.status.filter(|number| *number != 0);
        let status = wanted.map(convert::session_status).transpose().map(Option::flatten);
        let filter = format!("sessions\n{:?}\n{wanted:?}", request.namespace);
        let page = Page::parse(&filter, request.page_size, request.page_token.as_deref());
        let namespace = convert::namespace_filter(request.namespace.as_deref());
        convert::all_of([namespace, convert::outcome(&status), convert::outcome(&page)])?;
        let (status, page) = (status?, page?);
        Ok(Self {
            namespace: request.namespace,
            status,
            page,
            policy: services.store.policy().clone(),
            unreachable: Vec::new(),
        })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        self.unreachable = services.refresh_sessions().await?;
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        let (mut rows, total) =
            tx.sessions(&caller.reach, self.namespace.as_deref(), self.status, &self.policy, &self.page)?;
        let next_page_token = self.page.cut(&mut rows, |row| row.id.to_string());
        Ok(Done::new(wire::ListSessionsResponse {
            sessions: rows.iter().map(|row| convert::session(row, &self.policy, tx.now)).collect(),
            next_page_token,
            total_count: i32::try_from(total).unwrap_or(i32::MAX),
            unreachable_nodes: self.unreachable.iter().map(ToString::to_string).collect(),
        }))
    }
}

/// `GetSession`.
#[derive(Clone)]
pub struct GetSession {
    id: SessionId,
    policy: SessionPolicy,
    unreachable: Vec<NodeId>,
}

#[async_trait]
impl Op for GetSession {
    type Request = wire::GetSessionRequest;
    type Response = wire::GetSessionResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetSession";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.session_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.session_namespace(&request.session_id)?))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let id = parse_id(&request.session_id)?;
        Ok(Self { id, policy: services.store.policy().clone(), unreachable: Vec::new() })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        self.unreachable = services.refresh_sessions().await?;
        Ok(())
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let row = tx.session(self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id.to_string())))?;
        // Of a session that is over there is nothing more to hear, whoever is away.
        let of = if row.ended_at.is_none() { tx.node_of_session(&self.id.to_string())? } else { None };
        let names = self.unreachable.iter().map(ToString::to_string);
        Ok(Done::new(wire::GetSessionResponse {
            session: Some(convert::session(&row, &self.policy, tx.now)),
            unreachable_nodes: names.filter(|name| of.as_ref() == Some(name)).collect(),
        }))
    }
}

/// `TerminateSession`. The store ends or marks the session with its entry first; the data plane cuts it right after, before
/// the answer.
#[derive(Clone)]
pub struct TerminateSession {
    id: SessionId,
    force: bool,
    reason: String,
    policy: SessionPolicy,
}

#[async_trait]
impl Op for TerminateSession {
    type Request = wire::TerminateSessionRequest;
    type Response = wire::TerminateSessionResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/TerminateSession";
    const SCOPE: Scope = Scope::Namespace;
    const PREPARES: bool = true;

    fn resource(request: &Self::Request) -> String {
        resource_of(&request.session_id)
    }

    fn place(request: &Self::Request, tx: &Tx<'_>) -> Result<Place> {
        Ok(Place::of(tx.session_namespace(&request.session_id)?))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let id = parse_id(&request.session_id);
        convert::all_of([convert::outcome(&id), convert::text("reason", &request.reason, MAX_TEXT_BYTES)])?;
        let policy = services.store.policy().clone();
        Ok(Self { id: id?, force: request.force, reason: request.reason, policy })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        // The session's last figures are worth keeping, and not worth waiting for a node.
        services.fleet.report_own().await
    }

    fn execute(self, tx: &mut Tx<'_>, _: &Caller) -> Result<Done<Self::Response>> {
        let before = tx.session(self.id)?.ok_or_else(|| Error::not_found(resource_of(&self.id.to_string())))?;
        let changed = if self.force {
            tx.end_session(self.id, EndReason::Terminated)?
        } else {
            tx.mark_terminating(self.id, &self.reason)?
        };
        let after = tx.session(self.id)?;
        let shown = |row: &SessionSummary| state(row, &self.policy, tx.now);
        let mut done = Done::new(wire::TerminateSessionResponse { success: true, ..Default::default() })
            .detail("force", self.force)
            .detail("reason", self.reason)
            .changed(Some(&shown(&before)), after.as_ref().map(shown).as_ref());
        if !changed {
            done = done.detail("already_ended", true);
        }
        Ok(done)
    }

    async fn follow_up(request: &Self::Request, response: &mut Self::Response, services: &Services) {
        if let Some(id) = SessionId::parse(&request.session_id) {
            let reached = services.fleet.terminate(id, request.force, &request.reason).await;
            response.pending_operations = reached.answer.pending_operations;
            response.unreachable_nodes = names(&reached);
        }
    }
}
