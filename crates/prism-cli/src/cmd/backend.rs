//! `prism-admin backend`.

use clap::Subcommand;
use prism_proto::{
    admin::v1::{
        BackendHealth, BackendSummary, GetBackendStatusRequest, GetBackendStatusResponse, ListBackendsRequest,
        backend_health::HealthStatus,
    },
    config::v1::AccessPattern,
};

use super::{Console, note_rest, note_unreachable};
use crate::{
    error::Result,
    exit::Exit,
    names,
    output::Grid,
    pages::{self, Paging},
    text,
};

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the configured backend types
    List(Paging),
    /// Show health and use of the backends of one type
    Status {
        /// sqlite, memory, postgres, kafka, nats or redis
        #[arg(value_name = "TYPE")]
        backend_type: String,
    },
}

impl Command {
    /// Carries the verb out.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let client = console.client().await?;
        match self {
            Self::List(paging) => {
                let answer = pages::fetch(&client, ListBackendsRequest::default(), paging).await?;
                note_unreachable(&answer.unreachable_nodes);
                note_rest(answer.backends.len(), answer.next_page_token.as_deref(), answer.total_count);
                console.printer.listing(&answer, "backends", |answer| table(&answer.backends))
            }
            Self::Status { backend_type } => {
                let request = GetBackendStatusRequest { backend_type: backend_type.to_lowercase() };
                let answer = client.call(request).await?;
                note_unreachable(&answer.unreachable_nodes);
                console.printer.message(&answer, status)
            }
        }?;
        Ok(Exit::Ok)
    }
}

fn table(backends: &[BackendSummary]) -> String {
    let header = ["TYPE", "HEALTH", "INSTANCES", "PATTERNS", "NAMESPACES", "MESSAGE"];
    let grid = backends.iter().fold(Grid::new(header), |grid, backend| {
        let patterns: Vec<String> =
            backend.patterns.iter().map(|pattern| names::show::<AccessPattern>(*pattern)).collect();
        grid.row([
            backend.backend_type.clone(),
            health(backend.health.as_ref()),
            backend.instance_count.to_string(),
            text::or_dash(&patterns.join(",")),
            text::or_dash(&backend.namespaces.join(",")),
            message(backend.health.as_ref()),
        ])
    });
    grid.render("no backends")
}

fn status(answer: &GetBackendStatusResponse) -> String {
    let sheet = Grid::sheet()
        .field("type", &answer.backend_type)
        .field("health", health(answer.health.as_ref()))
        .field("message", message(answer.health.as_ref()))
        .render("");
    let header =
        ["INSTANCE", "NODE", "HEALTH", "ENDPOINT", "ACTIVE", "POOL", "IDLE", "OPS/S", "MEAN MS", "CHECKED", "MESSAGE"];
    let grid = answer.instances.iter().fold(Grid::new(header), |grid, instance| {
        let metrics = instance.metrics.unwrap_or_default();
        grid.row([
            instance.id.clone(),
            text::or_dash(&instance.node_id),
            health(instance.health.as_ref()),
            text::or_dash(&instance.endpoint),
            metrics.active_connections.to_string(),
            metrics.pool_size.to_string(),
            metrics.idle_connections.to_string(),
            metrics.requests_per_second.to_string(),
            format!("{:.2}", metrics.avg_latency_ms),
            text::time(instance.health.as_ref().and_then(|health| health.last_check.as_ref())),
            message(instance.health.as_ref()),
        ])
    });
    format!("{sheet}\n{}", grid.render("no instances"))
}

fn health(health: Option<&BackendHealth>) -> String {
    names::show::<HealthStatus>(health.map_or(0, |health| health.status))
}

fn message(health: Option<&BackendHealth>) -> String {
    text::or_dash(health.map_or("", |health| health.message.as_str()))
}
