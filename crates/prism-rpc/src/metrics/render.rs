//! The text format of Prometheus.

use std::fmt::Write;
use std::sync::Arc;

use prism_core::UnixMillis;

use super::buckets::{BOUNDS, Buckets, bound_seconds};
use super::{Labels, MAX_NAMESPACES, OTHER_NAMESPACE, Registry, Series};

/// Renders everything that `registry` has counted.
pub(super) fn counted(registry: &Registry, started_at: UnixMillis) -> String {
    let mut out = Text(String::with_capacity(16 * 1024));
    out.head("prism_build_info", "Version of this server; always 1.", "gauge");
    out.sample("prism_build_info", "", &[("version", env!("CARGO_PKG_VERSION").to_owned())], "1");
    out.head("prism_process_start_time_seconds", "When this server started, in seconds since the Unix epoch.", "gauge");
    out.sample("prism_process_start_time_seconds", "", &[], started_at.0 as f64 / 1000.0);

    let operations: Vec<(Labels, Arc<Series>)> = registry
        .operations
        .iter()
        .flat_map(|(namespace, group)| {
            group.series.iter().map(move |(method, series)| {
                (vec![("namespace", namespace.clone()), ("method", (*method).to_owned())], series.clone())
            })
        })
        .collect();
    out.family("prism_data", "data-plane calls", &operations);
    let backends: Vec<(Labels, Arc<Series>)> = registry
        .backends
        .iter()
        .flat_map(|((kind, instance), group)| {
            group.series.values().map(move |series| {
                (vec![("backend", kind.name().to_owned()), ("instance", instance.clone())], series.clone())
            })
        })
        .collect();
    out.family("prism_backend", "driver calls", &backends);
    let admin: Vec<(Labels, Arc<Series>)> = registry
        .admin
        .iter()
        .map(|(method, series)| (vec![("method", (*method).to_owned())], series.clone()))
        .collect();
    out.family("prism_admin", "admin calls", &admin);

    for (name, family) in &registry.counters {
        out.head(name, family.help, "counter");
        out.sample(name, "", &[], family.counter.get());
    }
    out.0
}

/// Adds a gauge with its samples to `text`.
pub(super) fn gauge(text: &mut String, name: &str, help: &str, samples: Vec<(Labels, f64)>) {
    let mut out = Text(std::mem::take(text));
    out.head(name, help, "gauge");
    for (labels, value) in bounded(samples) {
        out.sample(name, "", &labels, value);
    }
    *text = out.0;
}

/// At most [`MAX_NAMESPACES`] samples and one for the sum of the rest.
fn bounded(mut samples: Vec<(Labels, f64)>) -> Vec<(Labels, f64)> {
    if samples.len() > MAX_NAMESPACES {
        let rest: f64 = samples.drain(MAX_NAMESPACES..).map(|(_, value)| value).sum();
        let labels =
            samples.first().map(|(labels, _)| labels.iter().map(|(name, _)| (*name, OTHER_NAMESPACE.to_owned())));
        let labels = labels.map(Iterator::collect).unwrap_or_default();
        samples.push((labels, rest));
    }
    samples
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail; so it is in the rest of this file.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[(&'static str, String)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        for (position, (label, text)) in labels.iter().enumerate() {
            self.0.push(if position == 0 { '{' } else { ',' });
            self.0.push_str(label);
            self.0.push_str("=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// Requests, errors and durations of a set of series, all taken at one moment.
    fn family(&mut self, prefix: &str, what: &str, series: &[(Labels, Arc<Series>)]) {
        if series.is_empty() {
            return;
        }
        let taken: Vec<(&Labels, Buckets, &Series)> = series
            .iter()
            .map(|(labels, series)| {
                let mut buckets = Buckets::default();
                series.add_to(&mut buckets);
                (labels, buckets, series.as_ref())
            })
            .collect();
        let name = format!("{prefix}_requests_total");
        self.head(&name, &format!("Number of {what}."), "counter");
        for (labels, buckets, _) in &taken {
            self.sample(&name, "", labels, buckets.count());
        }
        let name = format!("{prefix}_request_errors_total");
        self.head(&name, &format!("Number of {what} that ended with another status than OK."), "counter");
        for (labels, _, series) in &taken {
            self.sample(&name, "", labels, series.errors());
        }
        let name = format!("{prefix}_request_duration_seconds");
        self.head(&name, &format!("Duration of {what}."), "histogram");
        for (labels, buckets, series) in &taken {
            self.histogram(&name, labels, buckets, series);
        }
    }

    fn histogram(&mut self, name: &str, labels: &Labels, buckets: &Buckets, series: &Series) {
        let count = buckets.count();
        let mut labels = labels.clone();
        for octave in BOUNDS {
            labels.push(("le", bound_seconds(octave).to_string()));
            self.sample(name, "_bucket", &labels, buckets.below(octave));
            labels.pop();
        }
        labels.push(("le", "+Inf".to_owned()));
        self.sample(name, "_bucket", &labels, count);
        labels.pop();
        self.sample(name, "_sum", &labels, series.nanos.load(std::sync::atomic::Ordering::Relaxed) as f64 / 1e9);
        self.sample(name, "_count", &labels, count);
    }
}
