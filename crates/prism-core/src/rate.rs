//! Token buckets on atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time between two operations of a share of nothing: ten years, in nanoseconds.
const NEVER: u64 = 10 * 366 * 24 * 3600 * 1_000_000_000;

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
        Self::since(Instant::now(), rate, burst)
    }

    /// The same, for times from `origin` on.
    pub fn since(origin: Instant, rate: u64, burst: u64) -> Self {
        let bucket =
            Self { origin, next: AtomicU64::new(0), interval: AtomicU64::new(0), tolerance: AtomicU64::new(0) };
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

    /// Changes the rate to `millis` thousandths of an operation per second, 0 = nothing at all, with one second's worth of burst and
    /// room for at least one operation. Tokens that were there stay, as far as there is room for them, and none are added: a rate
    /// that goes up and down all the time lets through no more than its mean.
    pub fn set_share(&self, millis: u64, now: Instant) {
        let interval = 1_000_000_000_000u64.checked_div(millis).map_or(NEVER, |nanos| nanos.clamp(1, NEVER));
        let before = self.interval.load(Ordering::Relaxed);
        if before == interval {
            return;
        }
        let burst = (millis / 1000).max(1);
        let tolerance = interval.saturating_mul(burst - 1);
        let now = self.nanos(now);
        let next = self.next.load(Ordering::Relaxed);
        let debt = next.saturating_sub(now);
        let next = if before == 0 {
            // There was no limit, so nothing was counted: the bucket starts full.
            now
        } else {
            let room = self.tolerance.load(Ordering::Relaxed).saturating_add(before);
            let tokens = room.saturating_sub(debt.min(room)) / before;
            let wanted = tolerance.saturating_add(interval);
            now.saturating_add(wanted.saturating_sub(tokens.saturating_mul(interval).min(wanted)))
        };
        self.interval.store(interval, Ordering::Relaxed);
        self.tolerance.store(tolerance, Ordering::Relaxed);
        self.next.store(next, Ordering::Relaxed);
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes one token at `now`, or says how long until there is one.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let interval = self.interval.load(Ordering::Relaxed);
        if interval == 0 {
            return Ok(());
        }
        let tolerance = self.tolerance.load(Ordering::Relaxed);
        let now = self.nanos(now);
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
    fn a_share_that_goes_up_and_down_lets_through_its_mean() {
        let bucket = TokenBucket::new(100, 0);
        let start = Instant::now();
        let mut taken = 0;
        for second in 0..20u64 {
            let now = start + Duration::from_secs(second);
            bucket.set_share(if second % 2 == 0 { 100_000 } else { 1000 }, now);
            for step in 0..1000 {
                taken += usize::from(bucket.take(now + Duration::from_millis(step)).is_ok());
            }
        }
        // A second's worth of burst at the beginning, and then 10 s at 100 and 10 s at 1 a second.
        assert!((1090..=1120).contains(&taken), "{taken}");
    }

    #[test]
    fn a_share_may_be_a_fraction_or_nothing() {
        let bucket = TokenBucket::new(0, 0);
        let start = Instant::now();
        bucket.set_share(100, start);
        assert!(bucket.take(start).is_ok());
        assert!(bucket.take(start + Duration::from_secs(9)).is_err());
        assert!(bucket.take(start + Duration::from_secs(10)).is_ok());
        bucket.set_share(0, start + Duration::from_secs(30));
        let _ = bucket.take(start + Duration::from_secs(30));
        assert!(bucket.take(start + Duration::from_hours(24)).is_err());
        bucket.set_share(1000, start + Duration::from_hours(24));
        assert!(bucket.take(start + Duration::from_hours(25)).is_ok());
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
