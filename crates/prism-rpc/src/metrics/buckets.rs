//! Latencies in log-linear buckets: four for each power of two from 1.024 µs to 137 s, and one at each end.

const OCTAVES: usize = 27;
const PER_OCTAVE: usize = 4;
/// Below the first octave, the octaves, above the last one.
pub(super) const BUCKETS: usize = 1 + OCTAVES * PER_OCTAVE + 1;
/// The first octave begins at 2^10 ns.
const SHIFT: u32 = 10;

/// The bucket of a latency.
pub(super) fn index(nanos: u64) -> usize {
    let Some(octave) = (nanos >> SHIFT).checked_ilog2() else { return 0 };
    let quarter = (nanos >> (octave + SHIFT - 2)) & 3;
    (1 + octave as usize * PER_OCTAVE + quarter as usize).min(BUCKETS - 1)
}

/// Where a bucket begins, in nanoseconds.
fn lower(index: usize) -> u64 {
    let Some(above) = index.checked_sub(1) else { return 0 };
    ((PER_OCTAVE + above % PER_OCTAVE) as u64) << (above / PER_OCTAVE + SHIFT as usize - 2)
}

/// The bounds that Prometheus is told, as powers of two above 1.024 µs: every second octave from 16 µs to 69 s.
pub(super) const BOUNDS: [usize; 12] = [4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26];

/// A bound of [`BOUNDS`] in seconds.
pub(super) fn bound_seconds(octave: usize) -> f64 {
    (1u64 << (octave + SHIFT as usize)) as f64 / 1e9
}

/// Counts by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Buckets(pub(super) Box<[u64; BUCKETS]>);

impl Default for Buckets {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Buckets {
    /// All counts together.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts below a bound of [`BOUNDS`].
    pub(super) fn below(&self, octave: usize) -> u64 {
        self.0.iter().take(1 + octave * PER_OCTAVE).sum()
    }

    /// Adds the counts of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0.iter()) {
            *sum += count;
        }
    }

    /// The latency in nanoseconds that a share of `quantile` does not exceed, interpolated within its bucket; 0 without counts.
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        let wanted = self.count() as f64 * quantile;
        let mut before = 0.0;
        for (index, count) in self.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if before + count >= wanted {
                let (from, to) = (lower(index) as f64, lower((index + 1).min(BUCKETS - 1)) as f64);
                return from + (to - from) * (wanted - before) / count;
            }
            before += count;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_lies_within_its_bucket() {
        for nanos in
            (0..2000).chain((0..47).flat_map(|power| (0..64).map(move |step| (1u64 << power) + (step << power) / 64)))
        {
            let index = index(nanos);
            assert!(lower(index) <= nanos, "{nanos} in {index}");
            assert!(index == BUCKETS - 1 || nanos < lower(index + 1), "{nanos} in {index}");
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn bounds_of_prometheus_are_bounds_of_buckets() {
        for octave in BOUNDS {
            let bound = (bound_seconds(octave) * 1e9).round() as u64;
            assert_eq!(lower(1 + octave * PER_OCTAVE), bound);
            let mut buckets = Buckets::default();
            buckets.0[index(bound - 1)] += 1;
            buckets.0[index(bound)] += 1;
            assert_eq!(buckets.below(octave), 1);
        }
    }

    #[test]
    fn quantiles_are_within_a_quarter_of_the_truth() {
        let mut buckets = Buckets::default();
        for micros in 1..=1000u64 {
            buckets.0[index(micros * 1000)] += 1;
        }
        for (quantile, truth) in [(0.5, 500e3), (0.95, 950e3), (0.99, 990e3)] {
            let found = buckets.quantile(quantile);
            assert!((found - truth).abs() < truth / 4.0, "{quantile}: {found}");
        }
        assert!(Buckets::default().quantile(0.5) < f64::EPSILON);
    }
}
