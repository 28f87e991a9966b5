//! How many admin calls a second one credential may make, if the operator set a bound, and how many a node may.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prism_core::error::QuotaViolation;
use prism_core::rate::TokenBucket;
use prism_core::{Error, Result};

/// Most credentials whose calls are counted. Whoever was quiet until its bucket is full is as new and forgotten first; when as many as this
/// call meanwhile, the count of all of them begins anew.
const MAX_TRACKED: usize = 10_000;
/// Calls of a node per second, whichever of its certificates it shows; it has little to ask.
const NODE_CALLS_PER_SECOND: u32 = 10;
/// And how many at once.
const NODE_CALLS_BURST: u32 = 100;

/// The calls of each credential.
#[derive(Debug)]
pub(crate) struct Rates {
    kind: &'static str,
    quota: &'static str,
    per_second: u32,
    burst: u32,
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
        Self { kind: "credential", quota: "admin_rps", per_second, burst: per_second, buckets: Mutex::default() }
    }

    /// The bound on each node's calls, which no setting lifts: they all have entries.
    pub(crate) fn of_nodes() -> Self {
        let (per_second, burst) = (NODE_CALLS_PER_SECOND, NODE_CALLS_BURST);
        Self { kind: "node", quota: "node_rps", per_second, burst, buckets: Mutex::default() }
    }

    /// After this a bucket is full again.
    fn full_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.burst.div_ceil(self.per_second.max(1))))
    }

    /// Counts a call of `credential` at `now`; RESOURCE_EXHAUSTED `QUOTA_EXCEEDED` when it is one too many.
    pub(crate) fn count(&self, credential: &str, now: Instant) -> Result<()> {
        if self.per_second == 0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(credential) {
            make_room(&mut buckets, self.full_after(), now);
            let calls = TokenBucket::new(u64::from(self.per_second), u64::from(self.burst));
            buckets.insert(credential.to_owned(), Bucket { calls, last: now });
        }
        let Some(bucket) = buckets.get_mut(credential) else { return Ok(()) };
        bucket.last = now;
        bucket.calls.take(now).map_err(|wait| {
            let limit = i64::from(self.per_second);
            let subject = format!("{}:{credential}", self.kind);
            Error::quota(QuotaViolation { subject, quota: self.quota, limit, usage: limit }).retry_after(wait)
        })
    }
}

fn make_room(buckets: &mut HashMap<String, Bucket>, full_after: Duration, now: Instant) {
    if buckets.len() >= MAX_TRACKED {
        buckets.retain(|_, bucket| now.saturating_duration_since(bucket.last) < full_after);
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
    fn a_node_has_a_burst_and_little_more() {
        let (rates, now) = (Rates::of_nodes(), Instant::now() + Duration::from_secs(1));
        let passed = |at| (0..300).filter(|_| rates.count("n1", at).is_ok()).count();
        assert_eq!(
            (passed(now), passed(now + Duration::from_secs(1)), passed(now + Duration::from_mins(1))),
            (100, 10, 100)
        );
        let refused = rates.count("n1", now + Duration::from_mins(1)).unwrap_err();
        assert_eq!((refused.kind(), refused.retry_delay().is_some()), (prism_core::Kind::ResourceExhausted, true));
        rates.count("n2", now).unwrap();
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
