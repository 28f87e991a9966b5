use super::*;

fn counted() -> Metrics {
    let metrics = Metrics::new();
    let get = metrics.operation("orders", "KeyValueService/Get");
    for _ in 0..9 {
        get.record(Duration::from_micros(100), true);
    }
    get.record(Duration::from_millis(50), false);
    metrics.operation("", "SessionService/CreateSession").record(Duration::from_micros(5), false);
    metrics.backend(BackendType::Sqlite, "main").record(Duration::from_micros(80), true);
    metrics.admin("AdminService/ListConfigs").record(Duration::from_micros(300), true);
    metrics.counter("prism_example_total", "An example.").add(3);
    metrics.gauge_fn(
        "prism_sessions",
        "Live sessions.",
        Box::new(|| vec![(vec![("namespace", "a\"\\\nb".to_owned())], 2.0)]),
    );
    metrics
}

#[test]
fn one_recording_shows_in_every_figure() {
    let metrics = counted();
    let window = Duration::from_mins(1);
    let total = metrics.total_figures(window);
    assert_eq!((total.requests_total, total.errors_total), (11, 2));
    let namespaces = metrics.namespace_figures(window);
    assert_eq!(namespaces.keys().collect::<Vec<_>>(), ["orders"]);
    let orders = namespaces["orders"];
    assert_eq!((orders.requests_total, orders.errors_total), (10, 1));
    assert!((0.08..0.13).contains(&orders.latency_p50_ms), "{orders:?}");
    assert!((40.0..70.0).contains(&orders.latency_p99_ms), "{orders:?}");
    assert_eq!(metrics.namespace("orders", window).requests_total, 10);
    assert_eq!(metrics.namespace("unknown", window), RequestFigures::default());
    let backends = metrics.backend_figures(window);
    assert_eq!(backends[&(BackendType::Sqlite, "main".to_owned())].requests_total, 1);
}

#[tokio::test]
async fn rates_cover_the_window_only() {
    let metrics = counted();
    let (trigger, shutdown) = Shutdown::new();
    metrics.spawn_history(shutdown);
    let rate = |window| metrics.namespace("orders", Duration::from_secs(window)).requests_per_second;
    assert!(rate(1) > 0.0);
    tokio::time::sleep(Duration::from_millis(2600)).await;
    // What was counted before the second that the window holds is in the totals and the long window only.
    assert!(rate(1) < f64::EPSILON, "{}", rate(1));
    assert!(rate(60) > 0.0);
    assert_eq!(metrics.namespace("orders", Duration::from_secs(1)).requests_total, 10);
    trigger.now();
}

#[test]
fn namespaces_beyond_the_bound_share_one_label() {
    let metrics = Metrics::new();
    for number in 0..MAX_NAMESPACES + 50 {
        metrics.operation(&format!("n{number}"), "KeyValueService/Get").record(Duration::ZERO, true);
    }
    metrics.operation("", "KeyValueService/Get").record(Duration::ZERO, true);
    let figures = metrics.namespace_figures(Duration::from_secs(1));
    assert_eq!(figures.len(), MAX_NAMESPACES + 1);
    assert_eq!(figures[OTHER_NAMESPACE].requests_total, 50);
    assert_eq!(metrics.total_figures(Duration::from_secs(1)).requests_total, MAX_NAMESPACES as i64 + 51);
}

#[test]
fn gauges_are_bounded_too() {
    let metrics = Metrics::new();
    let read = || (0..MAX_NAMESPACES + 5).map(|n| (vec![("namespace", format!("n{n}"))], 1.0)).collect();
    metrics.gauge_fn("prism_storage_bytes", "Bytes.", Box::new(read));
    let text = metrics.render();
    assert!(text.contains("prism_storage_bytes{namespace=\"_other\"} 5\n"));
    assert!(!text.contains("n1000\""));
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let text = counted().render();
    for line in [
        "# TYPE prism_data_requests_total counter",
        "prism_data_requests_total{namespace=\"orders\",method=\"KeyValueService/Get\"} 10",
        "prism_data_request_errors_total{namespace=\"_none\",method=\"SessionService/CreateSession\"} 1",
        "# TYPE prism_data_request_duration_seconds histogram",
        "prism_data_request_duration_seconds_bucket{namespace=\"orders\",method=\"KeyValueService/Get\",le=\"0.000262144\"} 9",
        "prism_data_request_duration_seconds_bucket{namespace=\"orders\",method=\"KeyValueService/Get\",le=\"+Inf\"} 10",
        "prism_data_request_duration_seconds_count{namespace=\"orders\",method=\"KeyValueService/Get\"} 10",
        "prism_backend_requests_total{backend=\"sqlite\",instance=\"main\"} 1",
        "prism_admin_requests_total{method=\"AdminService/ListConfigs\"} 1",
        "prism_example_total 3",
        "prism_sessions{namespace=\"a\\\"\\\\\\nb\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let mut families = std::collections::HashSet::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(families.insert(name), "{name} twice");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        assert!(families.contains(base) || families.contains(name), "{line}");
    }
}
