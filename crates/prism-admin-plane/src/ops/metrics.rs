//! GetMetrics: the same counters that Prometheus reads.

use std::time::Duration;

use async_trait::async_trait;
use prism_core::control::{NodeFigures, RequestFigures};
use prism_core::nodes::Nodes as _;
use prism_core::{Error, NodeId, Result, UnixMillis};
use prism_proto::admin::v1 as wire;
use prism_rpc::convert::{duration, from_duration, timestamp};
use prism_store::Tx;

use crate::convert::{self, names};
use crate::op::{Caller, Done, Op, Place, Scope, Services};

/// Window when the request does not say.
const DEFAULT_WINDOW: Duration = Duration::from_mins(1);
/// Shortest window.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// Longest window; history is kept no longer.
const MAX_WINDOW: Duration = Duration::from_hours(1);

/// `GetMetrics`.
#[derive(Clone)]
pub struct GetMetrics {
    namespace: Option<String>,
    window: Duration,
    started_at: UnixMillis,
    node: NodeId,
    figures: NodeFigures,
    process: ProcessFigures,
    unreachable: Vec<String>,
}

#[async_trait]
impl Op for GetMetrics {
    type Request = wire::GetMetricsRequest;
    type Response = wire::GetMetricsResponse;
    const RPC: &'static str = "prism.admin.v1.AdminService/GetMetrics";
    const SCOPE: Scope = Scope::Filtered;
    const PREPARES: bool = true;

    fn resource(_: &Self::Request) -> String {
        "metrics".to_owned()
    }

    fn namespace(request: &Self::Request) -> String {
        request.namespace.clone().unwrap_or_default()
    }

    fn place(request: &Self::Request, _: &Tx<'_>) -> Result<Place> {
        Ok(request.namespace.clone().map_or(Place::Visible, Place::Namespace))
    }

    fn parse(request: Self::Request, services: &Services) -> Result<Self> {
        let bounds =
            || Error::invalid("window", format!("must be {} to {} s", MIN_WINDOW.as_secs(), MAX_WINDOW.as_secs()));
        let window = request.window.as_ref().map_or(Ok(DEFAULT_WINDOW), |window| from_duration("window", window));
        let window = window
            .and_then(|window| if (MIN_WINDOW..=MAX_WINDOW).contains(&window) { Ok(window) } else { Err(bounds()) });
        convert::all_of([convert::namespace_filter(request.namespace.as_deref()), convert::outcome(&window)])?;
        Ok(Self {
            namespace: request.namespace,
            window: window?,
            started_at: services.started_at,
            node: services.fleet.own_id().clone(),
            figures: NodeFigures::default(),
            process: ProcessFigures::default(),
            unreachable: Vec::new(),
        })
    }

    async fn prepare(&mut self, services: &Services) -> Result<()> {
        let reached = services.fleet.figures(self.window).await;
        self.unreachable = names(&reached);
        self.figures = reached.answer;
        self.process = ProcessFigures::read(services.now().since(services.started_at));
        Ok(())
    }

    fn execute(mut self, tx: &mut Tx<'_>, caller: &Caller) -> Result<Done<Self::Response>> {
        if let Some(name) = &self.namespace {
            if tx.namespace(name)?.is_none() {
                return Err(Error::not_found(format!("namespace:{name}")));
            }
            self.figures.namespaces.entry(name.clone()).or_default();
        }
        let sees_all = caller.reach.includes(None);
        self.figures.namespaces.retain(|name, _| {
            caller.reach.includes(Some(name)) && self.namespace.as_ref().is_none_or(|wanted| wanted == name)
        });
        // What belongs to no single namespace is for those who may see all of them.
        let total = if self.namespace.is_some() || !sees_all {
            sum(self.figures.namespaces.values())
        } else {
            self.figures.total
        };
        let namespaces = self.figures.namespaces.iter().map(|(name, figures)| wire::NamespaceRequestMetrics {
            namespace: name.clone(),
            metrics: Some(convert::figures(figures)),
        });
        let backends = self.figures.backends.iter().map(|((kind, instance), figures)| wire::BackendRequestMetrics {
            backend_type: kind.name().to_owned(),
            instance_id: instance.clone(),
            metrics: Some(convert::figures(figures)),
        });
        Ok(Done::new(wire::GetMetricsResponse {
            collected_at: Some(timestamp(tx.now)),
            window: Some(duration(self.window)),
            total: Some(convert::figures(&total)),
            namespaces: namespaces.collect(),
            backends: if sees_all { backends.collect() } else { Vec::new() },
            process: Some(wire::ProcessMetrics {
                node_id: self.node.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: Some(timestamp(self.started_at)),
                resident_bytes: if sees_all { self.process.resident_bytes } else { 0 },
                cpu_percent: if sees_all { self.process.cpu_percent } else { 0.0 },
            }),
            unreachable_nodes: self.unreachable,
        }))
    }
}

/// The total of the namespaces a caller sees. One namespace is its own total; of several, percentiles cannot be added, so
/// the highest stands.
fn sum<'a>(all: impl Iterator<Item = &'a RequestFigures>) -> RequestFigures {
    all.fold(RequestFigures::default(), |total, figures| RequestFigures {
        requests_total: total.requests_total + figures.requests_total,
        errors_total: total.errors_total + figures.errors_total,
        requests_per_second: total.requests_per_second + figures.requests_per_second,
        latency_p50_ms: total.latency_p50_ms.max(figures.latency_p50_ms),
        latency_p95_ms: total.latency_p95_ms.max(figures.latency_p95_ms),
        latency_p99_ms: total.latency_p99_ms.max(figures.latency_p99_ms),
        active_sessions: total.active_sessions + figures.active_sessions,
        active_streams: total.active_streams + figures.active_streams,
    })
}

/// What the operating system says of this process.
#[derive(Clone, Copy, Debug, Default)]
struct ProcessFigures {
    resident_bytes: i64,
    /// Processor time over life time, in percent of one processor.
    cpu_percent: f64,
}

impl ProcessFigures {
    fn read(uptime: Duration) -> Self {
        let resident_bytes = procfs_field("/proc/self/statm", 1).map_or(0, |pages| pages * PAGE_BYTES);
        // Fields 14 and 15 of stat: user and system time. The command in field 2 of this program has no spaces.
        let ticks = procfs_field("/proc/self/stat", 13).unwrap_or(0) + procfs_field("/proc/self/stat", 14).unwrap_or(0);
        let seconds = ticks as f64 / TICKS_PER_SECOND;
        let cpu_percent = if uptime.is_zero() { 0.0 } else { seconds / uptime.as_secs_f64() * 100.0 };
        Self { resident_bytes, cpu_percent }
    }
}

/// Size of a page on the Linux systems Prism is built for.
const PAGE_BYTES: i64 = 4096;
/// Unit of processor times in procfs, fixed by the kernel's interface.
const TICKS_PER_SECOND: f64 = 100.0;

fn procfs_field(path: &str, index: usize) -> Option<i64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().nth(index)?.parse().ok()
}
