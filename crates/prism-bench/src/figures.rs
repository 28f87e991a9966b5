//! Figures of a run, and how several become one.

/// Figures of one run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests per second.
    pub rate: f64,
    /// Median latency, in microseconds.
    pub p50: u64,
    /// 99th percentile, in microseconds.
    pub p99: u64,
    /// Processor time of the server per request, in microseconds.
    pub cpu: f64,
}

/// The run whose `figure` is the median; there must be at least one run.
pub fn median<T>(mut runs: Vec<T>, figure: impl Fn(&T) -> f64) -> T {
    runs.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    let middle = runs.len() / 2;
    runs.swap_remove(middle)
}

/// The time below which a `share` of the sorted `times` lies; 0 when there are none.
pub fn percentile(times: &[u64], share: f64) -> u64 {
    times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times: Vec<u64> = (0..1000).collect();
        assert_eq!(percentile(&times, 0.5), 500);
        assert_eq!(percentile(&times, 0.99), 990);
        assert_eq!(percentile(&times, 1.0), 999);
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![(3.0, 'c'), (1.0, 'a'), (2.0, 'b')], |run| run.0).1, 'b');
    }
}
