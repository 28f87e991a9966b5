//! Figures and backends of a node.

use prism_core::config::{AccessPattern, BackendType};
use prism_core::control::{BackendReport, Health, NamespaceFigures, NodeFigures, RequestFigures};
use prism_core::{InstanceName, Result, UnixMillis};
use prism_proto::cluster::v1 as wire;

use super::{bad, bounded, need, printable};
use crate::bounds::{MAX_BACKENDS, MAX_ITEMS, MAX_REPORT_TEXT};

/// Nothing is less than nothing: what one node says must not spoil the sum of all.
fn request_from_wire(figures: wire::RequestFiguresEntry) -> RequestFigures {
    RequestFigures {
        requests_total: figures.requests_total.max(0),
        errors_total: figures.errors_total.max(0),
        requests_per_second: number(figures.requests_per_second),
        latency_p50_ms: number(figures.latency_p50_ms),
        latency_p95_ms: number(figures.latency_p95_ms),
        latency_p99_ms: number(figures.latency_p99_ms),
        active_sessions: figures.active_sessions.max(0),
        active_streams: figures.active_streams.max(0),
    }
}

fn number(number: f64) -> f64 {
    if number.is_finite() { number.max(0.0) } else { 0.0 }
}

fn instance(name: String) -> Result<String> {
    InstanceName::parse("instance", &name).map_err(|_| bad("an instance has not the form of a name"))?;
    Ok(name)
}

fn request_to_wire(figures: &RequestFigures) -> wire::RequestFiguresEntry {
    wire::RequestFiguresEntry {
        requests_total: figures.requests_total,
        errors_total: figures.errors_total,
        requests_per_second: figures.requests_per_second,
        latency_p50_ms: figures.latency_p50_ms,
        latency_p95_ms: figures.latency_p95_ms,
        latency_p99_ms: figures.latency_p99_ms,
        active_sessions: figures.active_sessions,
        active_streams: figures.active_streams,
    }
}

fn kind(name: &str) -> Result<BackendType> {
    BackendType::by_name(name).ok_or_else(|| bad(format_args!("{name:?} is no type of backend")))
}

/// Figures of a node.
pub fn node_figures_from_wire(figures: wire::NodeFiguresEntry) -> Result<NodeFigures> {
    // One for each namespace, and one for calls without.
    if figures.namespaces.len() > MAX_ITEMS + 1 {
        return Err(bad("figures of too many namespaces"));
    }
    let mut backends = std::collections::BTreeMap::new();
    for backend in bounded("backends", figures.backends, MAX_BACKENDS)? {
        let figures = request_from_wire(need("figures", backend.figures)?);
        backends.insert((kind(&backend.r#type)?, instance(backend.instance)?), figures);
    }
    Ok(NodeFigures {
        total: request_from_wire(need("total", figures.total)?),
        namespaces: figures.namespaces.into_iter().map(|(name, of)| (name, request_from_wire(of))).collect(),
        backends,
    })
}

/// The same, the other way.
pub fn node_figures_to_wire(figures: &NodeFigures) -> wire::NodeFiguresEntry {
    let backends = figures.backends.iter().take(MAX_BACKENDS);
    let backends = backends.map(|((kind, instance), figures)| wire::BackendFiguresEntry {
        r#type: kind.name().to_owned(),
        instance: instance.clone(),
        figures: Some(request_to_wire(figures)),
    });
    let namespaces = figures.namespaces.iter().take(MAX_ITEMS + 1);
    wire::NodeFiguresEntry {
        total: Some(request_to_wire(&figures.total)),
        namespaces: namespaces.map(|(name, figures)| (name.clone(), request_to_wire(figures))).collect(),
        backends: backends.collect(),
    }
}

/// Figures of a namespace.
pub fn namespace_figures_from_wire(figures: wire::NamespaceFiguresEntry) -> NamespaceFigures {
    NamespaceFigures {
        storage_bytes_used: figures.storage_bytes_used.max(0),
        requests_per_second: figures.requests_per_second.max(0),
    }
}

/// The same, the other way.
pub fn namespace_figures_to_wire(figures: NamespaceFigures) -> wire::NamespaceFiguresEntry {
    wire::NamespaceFiguresEntry {
        storage_bytes_used: figures.storage_bytes_used,
        requests_per_second: figures.requests_per_second,
    }
}

/// A backend instance.
pub fn backend_from_wire(report: wire::BackendReportEntry) -> Result<BackendReport> {
    let health = Health::ALL.into_iter().find(|health| health.name() == report.health);
    let pattern = |name: &String| {
        let found = AccessPattern::ALL.into_iter().find(|pattern| pattern.name() == name);
        found.ok_or_else(|| bad(format_args!("{name:?} is no access pattern")))
    };
    Ok(BackendReport {
        kind: kind(&report.r#type)?,
        instance: instance(report.instance)?,
        endpoint: printable(&report.endpoint, MAX_REPORT_TEXT),
        health: health.ok_or_else(|| bad(format_args!("{:?} is no state of health", report.health)))?,
        message: printable(&report.message, MAX_REPORT_TEXT),
        checked_at: UnixMillis(report.checked_at_ms),
        active_connections: report.active_connections.max(0),
        pool_size: report.pool_size.max(0),
        idle_connections: report.idle_connections.max(0),
        cpu_percent: number(report.cpu_percent),
        memory_percent: number(report.memory_percent),
        requests_per_second: report.requests_per_second.max(0),
        avg_latency_ms: number(report.avg_latency_ms),
        patterns: bounded("patterns", report.patterns, MAX_ITEMS)?.iter().map(pattern).collect::<Result<_>>()?,
    })
}

/// The same, the other way.
pub fn backend_to_wire(report: &BackendReport) -> wire::BackendReportEntry {
    wire::BackendReportEntry {
        r#type: report.kind.name().to_owned(),
        instance: report.instance.clone(),
        endpoint: printable(&report.endpoint, MAX_REPORT_TEXT),
        health: report.health.name().to_owned(),
        message: printable(&report.message, MAX_REPORT_TEXT),
        checked_at_ms: report.checked_at.0,
        active_connections: report.active_connections,
        pool_size: report.pool_size,
        idle_connections: report.idle_connections,
        cpu_percent: report.cpu_percent,
        memory_percent: report.memory_percent,
        requests_per_second: report.requests_per_second,
        avg_latency_ms: report.avg_latency_ms,
        patterns: report.patterns.iter().map(|pattern| pattern.name().to_owned()).collect(),
    }
}
