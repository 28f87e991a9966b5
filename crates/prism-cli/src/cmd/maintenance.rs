//! `prism-admin maintenance`.

use clap::{Args, Subcommand};
use prism_proto::admin::v1::{
    GetMaintenanceStatusRequest, MaintenanceStatus, SetMaintenanceModeRequest, SetMaintenanceModeResponse,
};

use super::{Console, Scope};
use crate::{
    error::{Failure, Result},
    exit::Exit,
    output::Grid,
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start maintenance: new sessions and operations are refused
    On(On),
    /// End maintenance
    Off(Scope),
    /// Show the gateway's maintenance and that of every namespace
    Status(Scope),
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        match self {
            Self::On(on) => set(console, on.request()).await,
            Self::Off(scope) => {
                let request = SetMaintenanceModeRequest { namespace: scope.namespace, ..Default::default() };
                set(console, request).await
            }
            Self::Status(scope) => {
                let request = GetMaintenanceStatusRequest { namespace: scope.namespace };
                let answer = console.client().await?.call(request).await?;
                console.printer.message(&answer, |answer| table(&answer.statuses))
            }
        }?;
        Ok(Exit::Ok)
    }
}

/// `maintenance on`.
#[derive(Args, Debug)]
pub struct On {
    #[command(flatten)]
    scope: Scope,
    /// Sentence clients get with the refusal
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// When it ends by itself: a time, or how long from now (2h)
    #[arg(long, visible_alias = "for", value_name = "TIME", value_parser = text::parse_future)]
    until: Option<prost_types::Timestamp>,
    /// Keep reads and subscriptions working
    #[arg(long)]
    allow_reads: bool,
}

impl On {
    fn request(self) -> SetMaintenanceModeRequest {
        SetMaintenanceModeRequest {
            enabled: true,
            message: self.message,
            scheduled_end: self.until,
            namespace: self.scope.namespace,
            allow_reads: self.allow_reads,
        }
    }
}

async fn set(console: &Console, request: SetMaintenanceModeRequest) -> Result<()> {
    let answer: SetMaintenanceModeResponse = console.client().await?.call(request).await?;
    if !answer.success {
        return Err(Failure::new(Exit::Failed, "maintenance was not changed"));
    }
    console.printer.message(&answer, |answer| table(answer.status.as_slice()))
}

fn table(statuses: &[MaintenanceStatus]) -> String {
    let header = ["SCOPE", "MAINTENANCE", "READS", "SESSIONS", "STARTED", "ENDS", "MESSAGE"];
    let grid = statuses.iter().fold(Grid::new(header), |grid, status| {
        grid.row([
            status.namespace.as_ref().map_or_else(|| "gateway".to_owned(), |name| format!("namespace {name}")),
            if status.enabled { "on" } else { "off" }.to_owned(),
            if status.enabled { text::yes_no(status.allow_reads) } else { "-".to_owned() },
            status.active_sessions.to_string(),
            text::time(status.started_at.as_ref()),
            text::time(status.ends_at.as_ref()),
            text::or_dash(status.message.as_deref().unwrap_or_default()),
        ])
    });
    grid.render("no maintenance")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_and_namespaces_are_told_apart() {
        let text = table(&[
            MaintenanceStatus { enabled: true, message: Some("upgrade".to_owned()), ..Default::default() },
            MaintenanceStatus { namespace: Some("shop".to_owned()), ..Default::default() },
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("gateway") && lines[1].contains("upgrade"), "{text}");
        assert!(lines[2].contains("namespace shop") && lines[2].contains("off"), "{text}");
    }
}
