//! Token buckets on atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A token bucket of `rate` operations per second and a burst, without a lock (GCRA).
#[derive(Debug)]
pub struct TokenBucket {
    origin: Instant,
    /// Theoretical arrival time of the next operation, in nanoseconds since `origin`.
    next: AtomicU64,
    /// Nanoseconds between two operations; 0 = unlimited.
    interval: AtomicU64,
    /// How far `next` may run ahead of now, in nanoseconds.
    tolerance: AtomicU64,
}

impl TokenBucket {
    /// A bucket that starts full. `rate` 0 = unlimited; `burst` 0 = one second's worth.
    pub fn new(rate: u64, burst: u64) -> Self {
        let bucket = Self {
            origin: Instant::now(),
            next: AtomicU64::new(0),
            interval: AtomicU64::new(0),
            tolerance: AtomicU64::new(0),
        };
        bucket.set(rate, burst);
        bucket
    }

    /// Changes rate and burst; what was spent stays spent.
    pub fn set(&self, rate: u64, burst: u64) {
        let interval = 1_000_000_000u64.checked_div(rate).map_or(0, |nanos| nanos.max(1));
        let burst = if burst == 0 { rate } else { burst };
        self.interval.store(interval, Ordering::Relaxed);
        self.tolerance.store(interval.saturating_mul(burst.saturating_sub(1)), Ordering::Relaxed);
    }

    /// Takes one token at `now`, or says how long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let interval = self.interval.load(Ordering::Relaxed);
        if interval == 0 {
            return Ok(());
        }
        let tolerance = self.tolerance.load(Ordering::Relaxed);
        let now = u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX);
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            // A shrunk burst must not leave a debt that was made under the larger one.
            let arrival = next.min(now.saturating_add(tolerance).saturating_add(interval)).max(now);
            if arrival - now > tolerance {
                return Err(Duration::from_nanos(arrival - now - tolerance));
            }
            match self.next.compare_exchange_weak(next, arrival + interval, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => next = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_of_burst_and_then_the_rate() {
        let bucket = TokenBucket::new(10, 0);
        let start = Instant::now();
        assert_eq!((0..50).filter(|_| bucket.take(start).is_ok()).count(), 10);
        let wait = bucket.take(start).unwrap_err();
        assert!(bucket.take(start + wait).is_ok());
        let later = start + Duration::from_mins(1);
        assert_eq!((0..50).filter(|_| bucket.take(later).is_ok()).count(), 10);
    }

    #[test]
    fn zero_is_unlimited_and_a_change_takes_effect() {
        let bucket = TokenBucket::new(0, 0);
        let now = Instant::now();
        assert!((0..10_000).all(|_| bucket.take(now).is_ok()));
        bucket.set(1, 0);
        assert!(bucket.take(now).is_ok());
        assert!(bucket.take(now).is_err());
    }
}
