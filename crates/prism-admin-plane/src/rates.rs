//! How many admin calls a second one credential may make, if the operator set a bound.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prism_core::error::QuotaViolation;
use prism_core::rate::TokenBucket;
use prism_core::{Error, Result};

/// Most credentials whose calls are counted. Whoever was quiet for a second is as new and forgotten first; when as many as this
/// call within one second, the count of all of them begins anew.
const MAX_TRACKED: usize = 10_000;
/// After this a bucket is full again, for it holds the calls of one second.
const FULL_AFTER: Duration = Duration::from_secs(1);

/// The calls of each credential.
#[derive(Debug)]
pub(crate) struct Rates {
    per_second: u32,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    calls: TokenBucket,
    last: Instant,
}

impl Rates {
    /// A bound of so many calls per second, and as many at once; 0 = none, at no cost.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// Counts a call of `credential` at `now`; RESOURCE_EXHAUSTED `QUOTA_EXCEEDED` when it is one too many.
    pub(crate) fn count(&self, credential: &str, now: Instant) -> Result<()> {
        if self.per_second == 0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(credential) {
            make_room(&mut buckets, now);
            let calls = TokenBucket::new(u64::from(self.per_second), 0);
            buckets.insert(credential.to_owned(), Bucket { calls, last: now });
        }
        let Some(bucket) = buckets.get_mut(credential) else { return Ok(()) };
        bucket.last = now;
        bucket.calls.take(now).map_err(|wait| {
            let limit = i64::from(self.per_second);
            let subject = format!("credential:{credential}");
            Error::quota(QuotaViolation { subject, quota: "admin_rps", limit, usage: limit }).retry_after(wait)
        })
    }
}

fn make_room(buckets: &mut HashMap<String, Bucket>, now: Instant) {
    if buckets.len() >= MAX_TRACKED {
        buckets.retain(|_, bucket| now.saturating_duration_since(bucket.last) < FULL_AFTER);
    }
    if buckets.len() >= MAX_TRACKED {
        buckets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_credential_has_its_own_second() {
        let rates = Rates::new(5);
        // Later than any bucket is made.
        let now = Instant::now() + Duration::from_secs(1);
        let passed = |credential: &str, at| (0..20).filter(|_| rates.count(credential, at).is_ok()).count();
        assert_eq!((passed("a", now), passed("b", now)), (5, 5));
        let refused = rates.count("a", now).unwrap_err();
        assert_eq!(refused.reason(), "QUOTA_EXCEEDED");
        assert!(rates.count("a", now + refused.retry_delay().unwrap()).is_ok());
        assert_eq!(passed("a", now + Duration::from_secs(10)), 5);
    }

    #[test]
    fn without_a_bound_nothing_is_counted() {
        let rates = Rates::new(0);
        assert!((0..1000).all(|_| rates.count("a", Instant::now()).is_ok()));
        assert!(rates.buckets.lock().unwrap().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_who_calls_is_remembered_before_who_is_quiet() {
        let rates = Rates::new(1);
        let start = Instant::now();
        for number in 0..MAX_TRACKED {
            rates.count(&format!("quiet{number}"), start).unwrap();
        }
        let later = start + Duration::from_millis(1500);
        rates.count("loud", later).unwrap();
        rates.count("loud", later).unwrap_err();
        assert_eq!(rates.buckets.lock().unwrap().len(), 1, "the quiet ones are as new");
        for number in 0..5 * MAX_TRACKED {
            rates.count(&format!("crowd{number}"), later).unwrap();
        }
        assert!(rates.buckets.lock().unwrap().len() <= MAX_TRACKED);
    }
}
