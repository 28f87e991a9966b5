//! Figures of the process itself.

use prism_rpc::Metrics;

/// Adds them to `metrics`.
pub fn register(metrics: &Metrics) {
    metrics.gauge_fn(
        "prism_process_resident_memory_bytes",
        "Memory of this server that is in use, in bytes.",
        Box::new(|| resident_bytes().map(|bytes| (Vec::new(), bytes)).into_iter().collect()),
    );
    let uptime = metrics.clone();
    metrics.gauge_fn(
        "prism_process_uptime_seconds",
        "For how long this server has been running, in seconds.",
        Box::new(move || vec![(Vec::new(), uptime.uptime().as_secs_f64())]),
    );
}

/// `None` where the operating system does not say.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_where_it_is_known() {
        let metrics = Metrics::new();
        register(&metrics);
        let text = metrics.render();
        assert!(text.contains("prism_process_uptime_seconds "), "{text}");
        if cfg!(target_os = "linux") {
            let line = text.lines().find(|line| line.starts_with("prism_process_resident_memory_bytes ")).unwrap();
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1024.0);
        }
    }
}
