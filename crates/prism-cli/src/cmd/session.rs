//! `prism-admin session`.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{
    GetSessionRequest, ListSessionsRequest, SessionInfo, SessionStatus, TerminateSessionRequest,
};

use super::{Console, Scope, note_rest, note_unreachable};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    names,
    output::{Grid, note},
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List sessions; ended ones too, unless --status says otherwise
    List {
        #[command(flatten)]
        scope: Scope,
        /// Only this state: active, idle, expiring or terminated
        #[arg(long, value_parser = names::parse::<SessionStatus>)]
        status: Option<SessionStatus>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one session
    Get {
        /// Id as `session list` shows it
        #[arg(value_name = "SESSION_ID")]
        id: String,
    },
    /// End a session: running operations finish, nothing new starts
    Terminate(Terminate),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::List { scope, status, paging } => list(console, scope, status, paging).await,
            Self::Get { id } => get(console, id).await,
            Self::Terminate(terminate) => terminate.run(console).await,
        }?;
        Ok(Exit::Ok)
    }
}

/// `session terminate`.
#[derive(Args, Debug)]
pub struct Terminate {
    /// Id as `session list` shows it
    #[arg(value_name = "SESSION_ID")]
    id: String,
    /// Cut streams and running operations; the token is dead at once
    #[arg(long)]
    force: bool,
    /// Sentence for the client and the audit log
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

impl Terminate {
    async fn run(self, console: &Console) -> Result<()> {
        let client = console.client().await?;
        if self.force {
            console.confirm(&format!("Cut session {} and what it is doing?", self.id))?;
        }
        let request = TerminateSessionRequest { session_id: self.id.clone(), force: self.force, reason: self.reason };
        let answer = client.call(request).await?;
        if !answer.success {
            return Err(Failure::new(Exit::Failed, format!("session {} was not ended", self.id)));
        }
        note_unreachable(&answer.unreachable_nodes);
        note(&format!("session {} starts nothing new; {} operations still run", self.id, answer.pending_operations));
        if console.printer.is_for_programs() { console.printer.message(&answer, |_| String::new()) } else { Ok(()) }
    }
}

async fn list(console: &Console, scope: Scope, status: Option<SessionStatus>, paging: Paging) -> Result<()> {
    let client = console.client().await?;
    let request = ListSessionsRequest {
        namespace: scope.namespace,
        status: status.map(Into::into),
        ..ListSessionsRequest::default()
    };
    let answer = pages::fetch(&client, request, paging).await?;
    note_unreachable(&answer.unreachable_nodes);
    note_rest(answer.sessions.len(), answer.next_page_token.as_deref(), answer.total_count);
    console.printer.listing(&answer, "sessions", |answer| table(&answer.sessions))
}

async fn get(console: &Console, session_id: String) -> Result<()> {
    let answer = console.client().await?.call(GetSessionRequest { session_id }).await?;
    note_unreachable(&answer.unreachable_nodes);
    console.printer.message(&answer, |answer| sheet(&answer.session.clone().unwrap_or_default()))
}

fn table(sessions: &[SessionInfo]) -> String {
    let header = ["SESSION", "NAMESPACE", "CLIENT", "STATUS", "REQUESTS", "STREAMS", "LAST ACTIVITY", "EXPIRES"];
    let grid = sessions.iter().fold(Grid::new(header), |grid, session| {
        let metrics = session.metrics.unwrap_or_default();
        grid.row([
            session.session_id.clone(),
            session.namespace.clone(),
            text::or_dash(&session.client_id),
            names::show::<SessionStatus>(session.status),
            metrics.requests_total.to_string(),
            metrics.active_streams.to_string(),
            text::time(session.last_activity.as_ref()),
            text::time(session.expires_at.as_ref()),
        ])
    });
    grid.render("no sessions")
}

fn sheet(session: &SessionInfo) -> String {
    let metrics = session.metrics.unwrap_or_default();
    Grid::sheet()
        .field("session", &session.session_id)
        .field("token", text::or_dash(&session.session_token))
        .field("client", text::or_dash(&session.client_id))
        .field("namespace", &session.namespace)
        .field("status", names::show::<SessionStatus>(session.status))
        .field("created", text::time(session.created_at.as_ref()))
        .field("expires", text::time(session.expires_at.as_ref()))
        .field("last activity", text::time(session.last_activity.as_ref()))
        .field("last request", text::time(metrics.last_request.as_ref()))
        .field("requests", metrics.requests_total.to_string())
        .field("sent", text::bytes(metrics.bytes_sent))
        .field("received", text::bytes(metrics.bytes_received))
        .field("open streams", metrics.active_streams.to_string())
        .render("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_chosen_by_clients_cannot_steer_the_terminal() {
        let session = SessionInfo {
            session_id: "s1".to_owned(),
            client_id: "\u{1b}]0;owned\u{7}".to_owned(),
            status: SessionStatus::Expiring.into(),
            ..SessionInfo::default()
        };
        for text in [table(std::slice::from_ref(&session)), sheet(&session)] {
            assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text:?}");
            assert!(text.contains("expiring"), "{text}");
        }
    }
}
