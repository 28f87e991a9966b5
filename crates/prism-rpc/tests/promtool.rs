//! The figures as Prometheus's own tool reads them (issue "promtool-clean names").

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use prism_core::config::BackendType;
use prism_rpc::Metrics;

/// Debian's package `prometheus` holds promtool; `PROMTOOL` names it when it is not in the path.
fn promtool() -> String {
    std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned())
}

#[test]
fn promtool_has_no_complaint() {
    let metrics = Metrics::new();
    for namespace in ["", "orders", "billing"] {
        metrics.operation(namespace, "KeyValueService/Get").record(Duration::from_micros(120), true);
        metrics.operation(namespace, "QueueService/Publish").record(Duration::from_millis(3), false);
    }
    metrics.backend(BackendType::Memory, "memory").record(Duration::from_micros(3), true);
    metrics.admin("AdminService/GetMetrics").record(Duration::from_micros(700), true);
    metrics.counter("prism_connections_refused_total", "Connections closed because there were too many.").increment();
    metrics.gauge_fn(
        "prism_sessions",
        "Live sessions.",
        Box::new(|| vec![(vec![("namespace", "orders".to_owned())], 7.0)]),
    );
    let text = metrics.render();

    let mut child = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be run ({error}); install it or set PROMTOOL", promtool()));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
}
