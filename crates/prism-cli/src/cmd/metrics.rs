//! `prism-admin metrics`.

use std::time::Duration;

use clap::Args;
use prism_proto::admin::v1::{GetMetricsRequest, GetMetricsResponse, RequestMetrics};

use super::{Console, Scope, note_unreachable};
use crate::{error::Result, exit::Exit, output::Grid, text};

/// `metrics`: totals since the process started, rates and latencies over the window.
#[derive(Args, Debug)]
pub struct Metrics {
    #[command(flatten)]
    scope: Scope,
    /// Window of rates and latencies, 1s to 1h [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = text::parse_duration)]
    window: Option<Duration>,
}

impl Metrics {
    /// Fetches and prints the figures.
    pub async fn run(self, console: &Console) -> Result<Exit> {
        let request =
            GetMetricsRequest { namespace: self.scope.namespace, window: self.window.map(text::duration_to_proto) };
        let answer = console.client().await?.call(request).await?;
        note_unreachable(&answer.unreachable_nodes);
        console.printer.message(&answer, tables)?;
        Ok(Exit::Ok)
    }
}

fn tables(answer: &GetMetricsResponse) -> String {
    let process = answer.process.clone().unwrap_or_default();
    let window = answer.window.and_then(|window| Duration::try_from(window).ok()).unwrap_or_default();
    let mut out = Grid::sheet()
        .field("node", format!("{} (prism {})", process.node_id, process.version))
        .field("started", text::time(process.started_at.as_ref()))
        .field("memory", text::bytes(process.resident_bytes))
        .field("processor", format!("{:.1} %", process.cpu_percent))
        .field("collected", text::time(answer.collected_at.as_ref()))
        .field("window", humantime::format_duration(window).to_string())
        .render("");
    let mut grid = figures(header("SCOPE"), "total".to_owned(), answer.total.unwrap_or_default());
    for namespace in &answer.namespaces {
        let label = format!("namespace {}", namespace.namespace);
        grid = figures(grid, label, namespace.metrics.unwrap_or_default());
    }
    for backend in &answer.backends {
        let label = format!("backend {}/{}", backend.backend_type, backend.instance_id);
        grid = figures(grid, label, backend.metrics.unwrap_or_default());
    }
    out.push('\n');
    out.push_str(&grid.render(""));
    out
}

fn header(scope: &str) -> Grid {
    Grid::new([scope, "REQUESTS", "ERRORS", "PER SECOND", "P50 MS", "P95 MS", "P99 MS", "SESSIONS", "STREAMS"])
}

fn figures(grid: Grid, label: String, metrics: RequestMetrics) -> Grid {
    grid.row([
        label,
        metrics.requests_total.to_string(),
        metrics.errors_total.to_string(),
        format!("{:.1}", metrics.requests_per_second),
        format!("{:.3}", metrics.latency_p50_ms),
        format!("{:.3}", metrics.latency_p95_ms),
        format!("{:.3}", metrics.latency_p99_ms),
        metrics.active_sessions.to_string(),
        metrics.active_streams.to_string(),
    ])
}

#[cfg(test)]
mod tests {
    use prism_proto::admin::v1::NamespaceRequestMetrics;

    use super::*;

    #[test]
    fn every_scope_has_its_row() {
        let answer = GetMetricsResponse {
            total: Some(RequestMetrics { requests_total: 12, latency_p99_ms: 1.5, ..Default::default() }),
            namespaces: vec![NamespaceRequestMetrics { namespace: "shop".to_owned(), metrics: None }],
            window: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            ..Default::default()
        };
        let text = tables(&answer);
        assert!(text.contains("total") && text.contains("1.500") && text.contains("namespace shop"), "{text}");
        assert!(text.contains("1m"), "{text}");
    }
}
